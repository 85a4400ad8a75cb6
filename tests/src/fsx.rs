//! A file exerciser after Apple's and SGI's fsx: random writes, reads, holes and changes of length on one file or
//! device, each held against a copy in memory. The seed decides everything; the last operations are told on a failure.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, FallocateFlags};

use crate::history::{Aligned, BLOCK, O_DIRECT};
use crate::rng::Rng;

/// What is exercised, and how.
#[derive(Clone, Debug)]
pub struct Fsx {
    /// A file that is made, or a device whose bytes are zero.
    pub path: PathBuf,
    /// Decides every operation.
    pub seed: u64,
    /// How many at least.
    pub operations: u64,
    /// It goes on until this is set.
    pub enough: Arc<AtomicBool>,
    /// Bytes that are touched.
    pub len: u64,
    /// Past the page cache, in whole blocks; otherwise through it, at any byte.
    pub direct: bool,
    /// Whether the length changes too: files only.
    pub resize: bool,
}

/// Bytes of the longest operation.
const LONGEST: u64 = 128 << 10;

/// Operations that are told when it fails.
const TOLD: usize = 20;

struct Run<'a> {
    options: &'a Fsx,
    rng: Rng,
    file: File,
    model: Vec<u8>,
    told: VecDeque<String>,
    buffer: Aligned,
}

impl Fsx {
    /// Runs, and reads everything at the end.
    ///
    /// # Errors
    /// At the first difference, or failed call, with the operations that led to it.
    pub fn run(&self) -> Result<()> {
        let file = open(&self.path, self.direct)?;
        let len = if self.resize { 0 } else { self.len };
        let mut run = Run {
            options: self,
            rng: Rng::new(self.seed),
            file,
            model: vec![0; len as usize],
            told: VecDeque::new(),
            buffer: Aligned::new(LONGEST as usize),
        };
        let mut number = 0;
        while number < self.operations || !self.enough.load(Ordering::SeqCst) {
            run.step().with_context(|| run.story(number))?;
            number += 1;
        }
        run.read_all().with_context(|| run.story(number))
    }
}

fn open(path: &Path, direct: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(!path.exists()).custom_flags(if direct { O_DIRECT } else { 0 });
    options.open(path).with_context(|| format!("cannot open {}", path.display()))
}

impl Run<'_> {
    fn step(&mut self) -> Result<()> {
        match self.rng.below(100) {
            0..40 => self.write(),
            40..75 => self.read(),
            75..85 => self.punch(),
            85..93 if self.options.resize => self.truncate(),
            85..97 => self.sync(),
            _ => self.reopen(),
        }
    }

    /// Somewhere below `limit`, in whole blocks where the page cache is passed by.
    fn range(&mut self, limit: u64) -> (u64, u64) {
        let unit = if self.options.direct { BLOCK as u64 } else { 1 };
        let at = self.rng.below(limit.div_ceil(unit)) * unit;
        // Small ones as often as long ones.
        let longest = 1 << (self.rng.below(18));
        let len = (1 + self.rng.below(longest)).next_multiple_of(unit).min(LONGEST).min(limit - at);
        (at, len)
    }

    fn write(&mut self) -> Result<()> {
        let (at, len) = self.range(self.options.len);
        self.tell(format!("write {at}+{len}"));
        let bytes = &mut self.buffer.bytes()[..len as usize];
        let first = self.rng.word();
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = crate::rng::mix(first.wrapping_add(index as u64)).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        self.file.write_all_at(bytes, at)?;
        let end = (at + len) as usize;
        if self.model.len() < end {
            self.model.resize(end, 0);
        }
        self.model[at as usize..end].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let whole = self.whole();
        if whole == 0 {
            return Ok(());
        }
        let (at, len) = self.range(whole);
        self.tell(format!("read {at}+{len}"));
        self.compare(at, len)
    }

    /// Bytes that can be read in whole units.
    fn whole(&self) -> u64 {
        let len = self.model.len() as u64;
        if self.options.direct { len / BLOCK as u64 * BLOCK as u64 } else { len }
    }

    fn compare(&mut self, at: u64, len: u64) -> Result<()> {
        let bytes = &mut self.buffer.bytes()[..len as usize];
        self.file.read_exact_at(bytes, at)?;
        let expected = &self.model[at as usize..(at + len) as usize];
        if let Some(wrong) = bytes.iter().zip(expected).position(|(found, expected)| found != expected) {
            let differ = bytes.iter().zip(expected).filter(|(found, expected)| found != expected).count();
            bail!(
                "byte {} is {:#04x} and not {:#04x}; {differ} of {len} bytes from {at} differ",
                at + wrong as u64,
                bytes[wrong],
                expected[wrong]
            );
        }
        Ok(())
    }

    fn punch(&mut self) -> Result<()> {
        let whole = self.whole();
        if whole == 0 {
            return Ok(());
        }
        let (at, len) = self.range(whole);
        // A device takes whole blocks only; a file zeroes the parts of blocks.
        let (at, len) = if self.options.resize { (at, len) } else { (at / 4096 * 4096, len.next_multiple_of(4096)) };
        let len = len.min(whole - at);
        self.tell(format!("punch {at}+{len}"));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.file, flags, at, len)?;
        self.model[at as usize..(at + len) as usize].fill(0);
        Ok(())
    }

    fn truncate(&mut self) -> Result<()> {
        let len = self.rng.below(self.options.len + 1);
        let len = if self.options.direct { len / BLOCK as u64 * BLOCK as u64 } else { len };
        self.tell(format!("truncate {len}"));
        self.file.set_len(len)?;
        self.model.resize(len as usize, 0);
        Ok(())
    }

    /// To the device, and out of the cache, so that the next reads come from there.
    fn sync(&mut self) -> Result<()> {
        self.tell("sync".to_owned());
        self.file.sync_all()?;
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)?;
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        self.tell("reopen".to_owned());
        self.file.sync_all()?;
        self.file = open(&self.options.path, self.options.direct)?;
        Ok(())
    }

    fn read_all(&mut self) -> Result<()> {
        self.sync()?;
        let found = crate::device_len(&self.file)?;
        if self.options.resize && found != self.model.len() as u64 {
            bail!("the file has {found} bytes and not {}", self.model.len());
        }
        let whole = self.whole();
        for at in (0..whole).step_by(LONGEST as usize) {
            self.compare(at, LONGEST.min(whole - at))?;
        }
        Ok(())
    }

    fn tell(&mut self, what: String) {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back(what);
    }

    fn story(&self, number: u64) -> String {
        let told: Vec<&str> = self.told.iter().map(String::as_str).collect();
        let Fsx { path, seed, .. } = self.options;
        format!("{} seed {seed} operation {number} (after {})", path.display(), told.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(folder: &tempfile::TempDir) -> Fsx {
        let path = folder.path().join("file");
        Fsx {
            path,
            seed: 3,
            operations: 600,
            enough: Arc::new(AtomicBool::new(true)),
            len: 1 << 20,
            direct: false,
            resize: true,
        }
    }

    #[test]
    fn an_honest_file_passes_in_every_way() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        options(&folder).run().unwrap();
        let other = folder.path().join("other");
        File::create(&other).unwrap().set_len(1 << 20).unwrap();
        Fsx { path: other, direct: true, resize: false, ..options(&folder) }.run().unwrap();
    }

    #[test]
    fn a_byte_that_changes_by_itself_is_found_and_the_way_to_it_told() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let fsx = Fsx { operations: 50, resize: false, ..options(&folder) };
        let file = File::create(&fsx.path).unwrap();
        file.set_len(1 << 20).unwrap();
        // What was never written must read as zeros; this seed's writes do not cover all of the file.
        file.write_all_at(&[1; 1 << 20], 0).unwrap();
        let error = format!("{:#}", fsx.run().unwrap_err());
        assert!(error.contains("and not 0x") && error.contains("seed 3"), "{error}");
    }
}
