//! A history of one block device: every block carries the number of the write that put it there, every acknowledged
//! write is remembered, and every read is held against what was acknowledged before it began.
//!
//! Each block has one writer, so its numbers rise; any thread reads it. With `acked` (the newest acknowledged), `seen`
//! (the newest that any finished read returned) and `issued` (the newest begun), a read is right when
//! `max(acked, seen)` at its begin <= what it returned <= `issued` at its end. That is linearizability of a register
//! with one writer (Lamport's atomic register), block by block. Observers read through other hosts: a server that was
//! deposed and has not noticed would answer them with what has been overwritten.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::rng::{Rng, mix};
use crate::shell::wait_for;

/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// O_DIRECT, as Linux numbers it on x86-64 and on most others (open(2)).
pub const O_DIRECT: i32 = if cfg!(any(target_arch = "aarch64", target_arch = "arm")) { 0o200_000 } else { 0o40_000 };

/// Blocks of the longest request.
const LONGEST: u64 = 16;

/// Between two requests of one thread.
const PAUSE: Duration = Duration::from_millis(3);

const WRITERS: u64 = 4;
const READERS: u64 = 2;

/// Half of all requests go to so many blocks of each writer: a read soon follows a write, or runs beside it.
const HOT: u64 = 32;

/// Finished requests that are remembered: an hour of them.
const REMEMBERED: usize = 4 << 20;

/// A running history.
pub struct History {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

/// Reads of the same volume through another device: on another host, which may not have heard what the writer's has.
pub struct Observer {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

struct Shared {
    device: PathBuf,
    run: u64,
    began: Instant,
    blocks: Vec<Block>,
    stop: AtomicBool,
    finished: Mutex<VecDeque<Request>>,
    requests: AtomicU64,
    /// Per thread: when its present request began, in microseconds and one; 0 between two.
    under_way: Vec<AtomicU64>,
    wrong: Mutex<Vec<Wrong>>,
}

#[derive(Default)]
struct Block {
    issued: AtomicU64,
    acked: AtomicU64,
    seen: AtomicU64,
}

/// One finished request.
#[derive(Clone, Copy, Debug)]
struct Request {
    began: Duration,
    ended: Duration,
}

/// What may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// An acknowledged write is gone.
    Lost(String),
    /// A read returned what had been overwritten.
    Stale(String),
    /// A block holds what nobody wrote.
    Corrupt(String),
    /// A request failed.
    Failed(String),
}

/// How long the requests of a time took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// Finished requests.
    pub requests: usize,
    /// The 999th of a thousand.
    pub p999: Duration,
    /// The longest, one that is still under way included.
    pub longest: Duration,
}

impl History {
    /// Begins to write and read a device whose bytes are zero.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn start(device: &Path, seed: u64) -> Result<Self> {
        let file = open(device)?;
        let blocks = crate::device_len(&file)? / BLOCK as u64;
        let threads = WRITERS + READERS;
        let shared = Arc::new(Shared {
            device: device.to_owned(),
            run: mix(seed),
            began: Instant::now(),
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            stop: AtomicBool::new(false),
            finished: Mutex::default(),
            requests: AtomicU64::new(0),
            under_way: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            wrong: Mutex::default(),
        });
        let mut running = Vec::new();
        for thread in 0..threads {
            let (shared, file) = (Arc::clone(&shared), file.try_clone().context("cannot share the device")?);
            let rng = Rng::new(seed ^ mix(thread));
            running.push(std::thread::spawn(move || shared.work(thread, &file, rng)));
        }
        Ok(Self { shared, threads: running })
    }

    /// Since its begin.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// The requests that were under way between two times.
    #[must_use]
    pub fn latency(&self, from: Duration, to: Duration) -> Latency {
        let mut took: Vec<Duration> = {
            let finished = self.shared.finished.lock().expect("no holder panics");
            let of_that_time = finished.iter().rev().take_while(|one| one.ended >= from).filter(|one| one.began <= to);
            of_that_time.map(|one| one.ended - one.began).collect()
        };
        let requests = took.len();
        took.sort_unstable();
        let p999 = took.get(requests * 999 / 1000).copied().unwrap_or_default();
        let longest = took.last().copied().unwrap_or_default().max(self.oldest_under_way());
        Latency { requests, p999, longest }
    }

    /// Age of the oldest unanswered request.
    #[must_use]
    pub fn oldest_under_way(&self) -> Duration {
        let now = self.now();
        let begins = self.shared.under_way.iter().map(|began| began.load(Ordering::SeqCst)).filter(|began| *began > 0);
        begins.map(|began| now.saturating_sub(Duration::from_micros(began - 1))).max().unwrap_or_default()
    }

    /// What was wrong so far.
    #[must_use]
    pub fn wrong(&self) -> Vec<Wrong> {
        self.shared.wrong.lock().expect("no holder panics").clone()
    }

    /// Finished requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// Begins to read the volume through another device too. What it waits for is nobody's stall.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn observe(&self, device: &Path, seed: u64) -> Result<Observer> {
        let file = open(device)?;
        let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, shared) = (Arc::clone(&stop), Arc::clone(&reads), Arc::clone(&self.shared));
        let thread = std::thread::spawn(move || {
            let (mut rng, mut buffer) = (Rng::new(seed), Aligned::new(BLOCK));
            while !stopped.load(Ordering::SeqCst) {
                let at = shared.anywhere(&mut rng);
                let floor = [shared.floor(at)];
                match file.read_exact_at(buffer.bytes(), at * BLOCK as u64) {
                    Ok(()) => shared.judge(at, buffer.bytes(), &floor, false),
                    // It ends on purpose, or it is wrong.
                    Err(_) if stopped.load(Ordering::SeqCst) => return,
                    Err(error) => return shared.note(Wrong::Failed(format!("an observer's read: {error}"))),
                }
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(PAUSE);
            }
        });
        Ok(Observer { stop, reads, thread: Some(thread) })
    }

    /// Blocks whose newest write was acknowledged at least once.
    #[must_use]
    pub fn blocks_written(&self) -> usize {
        self.shared.blocks.iter().filter(|block| block.acked.load(Ordering::SeqCst) > 0).count()
    }

    /// No new requests; returns when none is under way.
    ///
    /// # Errors
    /// When one is not answered within `limit`.
    pub fn stop(&mut self, limit: Duration) -> Result<()> {
        self.shared.stop.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + limit;
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > deadline {
                bail!("a request is not answered after {:.1} s", self.oldest_under_way().as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                bail!("a thread of the history panicked");
            }
        }
        Ok(())
    }

    /// Reads every block of a device that shows this volume, once the history has stopped, and adds to what is wrong.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn check_everything(&self, device: &Path) -> Result<()> {
        let file = open(device)?;
        let mut buffer = Aligned::new(LONGEST as usize * BLOCK);
        for at in (0..self.shared.blocks.len() as u64).step_by(LONGEST as usize) {
            let count = LONGEST.min(self.shared.blocks.len() as u64 - at);
            let bytes = &mut buffer.bytes()[..count as usize * BLOCK];
            file.read_exact_at(bytes, at * BLOCK as u64).context("cannot read the device back")?;
            let floors: Vec<u64> = (at..at + count).map(|block| self.shared.floor(block)).collect();
            self.shared.judge(at, bytes, &floors, true);
        }
        Ok(())
    }
}

impl Observer {
    /// Expects its device to go away: a read that fails from here on is no fault.
    pub fn expect_the_end(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Ends it. How many reads it made.
    ///
    /// # Errors
    /// When its last read is not answered within `limit`.
    pub fn end(mut self, limit: Duration) -> Result<u64> {
        self.expect_the_end();
        let Some(thread) = self.thread.take() else { bail!("an observer has one thread") };
        wait_for("the last read of an observer", limit, || Ok(thread.is_finished().then_some(())))?;
        if thread.join().is_err() {
            bail!("an observer panicked");
        }
        Ok(self.reads.load(Ordering::SeqCst))
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.expect_the_end();
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn work(&self, thread: u64, file: &File, mut rng: Rng) {
        let mut buffer = Aligned::new(LONGEST as usize * BLOCK);
        while !self.stop.load(Ordering::SeqCst) {
            let count = 1 + if rng.below(4) == 0 { rng.below(LONGEST) } else { 0 };
            let outcome = if thread < WRITERS {
                let at = self.somewhere(thread, &mut rng);
                let (_, end) = self.part(thread);
                self.write(thread, file, at, count.min(end - at), buffer.bytes())
            } else {
                let at = self.anywhere(&mut rng);
                self.read(thread, file, at, count.min(self.blocks.len() as u64 - at), buffer.bytes())
            };
            if let Err(error) = outcome {
                self.note(Wrong::Failed(error.to_string()));
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The blocks of a writer: from here to there.
    fn part(&self, writer: u64) -> (u64, u64) {
        let blocks = self.blocks.len() as u64;
        (blocks * writer / WRITERS, blocks * (writer + 1) / WRITERS)
    }

    /// A block of a writer; every second time one of its first few.
    fn somewhere(&self, writer: u64, rng: &mut Rng) -> u64 {
        let (first, end) = self.part(writer);
        let span = if rng.below(2) == 0 { HOT.min(end - first) } else { end - first };
        first + rng.below(span)
    }

    fn anywhere(&self, rng: &mut Rng) -> u64 {
        let writer = rng.below(WRITERS);
        self.somewhere(writer, rng)
    }

    fn write(&self, thread: u64, file: &File, at: u64, count: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let bytes = &mut buffer[..count as usize * BLOCK];
        let mut numbers = Vec::with_capacity(count as usize);
        for (block, slot) in (at..at + count).zip(bytes.chunks_exact_mut(BLOCK)) {
            let number = self.blocks[block as usize].issued.fetch_add(1, Ordering::SeqCst) + 1;
            fill(slot, self.run, block, number);
            numbers.push(number);
        }
        self.timed(thread, || file.write_all_at(bytes, at * BLOCK as u64))?;
        for (block, number) in (at..at + count).zip(numbers) {
            self.blocks[block as usize].acked.fetch_max(number, Ordering::SeqCst);
        }
        Ok(())
    }

    fn read(&self, thread: u64, file: &File, at: u64, count: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let bytes = &mut buffer[..count as usize * BLOCK];
        let floors: Vec<u64> = (at..at + count).map(|block| self.floor(block)).collect();
        self.timed(thread, || file.read_exact_at(bytes, at * BLOCK as u64))?;
        self.judge(at, bytes, &floors, false);
        Ok(())
    }

    fn timed(&self, thread: u64, request: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        let began = self.began.elapsed();
        let mark = &self.under_way[thread as usize];
        mark.store(began.as_micros() as u64 + 1, Ordering::SeqCst);
        let outcome = request();
        {
            let mut finished = self.finished.lock().expect("no holder panics");
            if finished.len() == REMEMBERED {
                finished.pop_front();
            }
            finished.push_back(Request { began, ended: self.began.elapsed() });
        }
        self.requests.fetch_add(1, Ordering::SeqCst);
        mark.store(0, Ordering::SeqCst);
        outcome
    }

    /// A read that begins now may return nothing older.
    fn floor(&self, block: u64) -> u64 {
        let block = &self.blocks[block as usize];
        block.acked.load(Ordering::SeqCst).max(block.seen.load(Ordering::SeqCst))
    }

    fn judge(&self, at: u64, bytes: &[u8], floors: &[u64], for_good: bool) {
        for ((block, slot), floor) in (at..).zip(bytes.chunks_exact(BLOCK)).zip(floors) {
            let state = &self.blocks[block as usize];
            let issued = state.issued.load(Ordering::SeqCst);
            match number_in(slot, self.run, block) {
                None => {
                    self.note(Wrong::Corrupt(format!("block {block} holds what nobody wrote: {:02x?}", &slot[..32])))
                }
                Some(found) if found > issued => {
                    self.note(Wrong::Corrupt(format!(
                        "block {block} holds write {found}, and only {issued} were made"
                    )));
                }
                Some(found) if found < *floor && for_good => {
                    self.note(Wrong::Lost(format!("block {block} holds write {found}, and {floor} was acknowledged")));
                }
                Some(found) if found < *floor => {
                    let now = self.began.elapsed().as_secs_f64();
                    let what = format!("block {block} read as of write {found} after {floor} was there, at {now:.2} s");
                    self.note(Wrong::Stale(what));
                }
                Some(found) => {
                    state.seen.fetch_max(found, Ordering::SeqCst);
                }
            }
        }
    }

    fn note(&self, wrong: Wrong) {
        let mut all = self.wrong.lock().expect("no holder panics");
        if all.len() < 100 {
            eprintln!("{}: {wrong:?}", self.device.display());
            all.push(wrong);
        }
    }
}

/// The bytes of a write: its block and number, and words that follow from them, so that no other bytes pass for it.
fn fill(slot: &mut [u8], run: u64, block: u64, number: u64) {
    let seed = mix(run ^ mix(block ^ mix(number)));
    for (index, word) in slot.chunks_exact_mut(8).enumerate() {
        let value = match index {
            0 => run,
            1 => block,
            2 => number,
            _ => mix(seed.wrapping_add(index as u64)),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Which write these bytes are; 0 for a block never written; nothing when they are no write to this block.
fn number_in(slot: &[u8], run: u64, block: u64) -> Option<u64> {
    if slot.iter().all(|byte| *byte == 0) {
        return Some(0);
    }
    let number = u64::from_le_bytes(slot[16..24].try_into().expect("eight bytes"));
    let mut expected = [0; BLOCK];
    fill(&mut expected, run, block, number);
    (slot == expected).then_some(number)
}

/// Memory that direct I/O takes: a vector with a block's room to begin at a whole block.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many zero bytes.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + BLOCK];
        let start = memory.as_ptr().align_offset(BLOCK);
        Self { memory, start, len }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// Opens a device past the page cache.
fn open(device: &Path) -> Result<File> {
    let open = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
    open.with_context(|| format!("cannot open {}", device.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::until;

    fn history(folder: &tempfile::TempDir) -> (PathBuf, History) {
        let device = folder.path().join("device");
        File::create(&device).unwrap().set_len(256 * BLOCK as u64).unwrap();
        let history = History::start(&device, 1).unwrap();
        while history.blocks_written() < 64 {
            std::thread::yield_now();
        }
        (device, history)
    }

    #[test]
    fn an_honest_device_passes() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (device, mut history) = history(&folder);
        history.stop(Duration::from_secs(10)).unwrap();
        history.check_everything(&device).unwrap();
        assert_eq!(history.wrong(), Vec::new());
        let latency = history.latency(Duration::ZERO, history.now());
        assert!(latency.requests > 0 && latency.longest > Duration::ZERO);
    }

    #[test]
    fn a_lost_write_a_stale_read_and_rot_are_found() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (device, mut history) = history(&folder);
        history.stop(Duration::from_secs(10)).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&device).unwrap();
        let written: Vec<u64> = (0..256).filter(|block| history.shared.floor(*block) > 0).take(3).collect();
        file.write_all_at(&[0; BLOCK], written[0] * BLOCK as u64).unwrap();
        file.write_all_at(&[7], written[1] * BLOCK as u64 + 3000).unwrap();
        let other = written[2];
        let mut bytes = [0; BLOCK];
        fill(&mut bytes, history.shared.run, other, 1 << 40);
        file.write_all_at(&bytes, other * BLOCK as u64).unwrap();
        history.check_everything(&device).unwrap();
        let wrong = history.wrong();
        assert!(wrong.iter().any(|one| matches!(one, Wrong::Lost(_))), "{wrong:?}");
        assert_eq!(wrong.iter().filter(|one| matches!(one, Wrong::Corrupt(_))).count(), 2, "{wrong:?}");
        let mut buffer = [0; BLOCK];
        history.shared.read(0, &file, written[0], 1, &mut buffer).unwrap();
        assert!(history.wrong().iter().any(|one| matches!(one, Wrong::Stale(_))));
    }

    #[test]
    fn an_observer_with_an_old_copy_is_found() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let (device, mut history) = history(&folder);
        let old = folder.path().join("old");
        std::fs::copy(&device, &old).unwrap();
        let honest = history.observe(&device, 2).unwrap();
        let requests = history.requests();
        until("more writes", 10, || Ok((history.requests() > requests + 200).then_some(()))).unwrap();
        assert!(honest.end(Duration::from_secs(10)).unwrap() > 0);
        assert_eq!(history.wrong(), Vec::new());
        let late = history.observe(&old, 3).unwrap();
        until("a stale read", 10, || Ok((!history.wrong().is_empty()).then_some(()))).unwrap();
        late.end(Duration::from_secs(10)).unwrap();
        assert!(history.wrong().iter().all(|one| matches!(one, Wrong::Stale(_))), "{:?}", history.wrong());
        history.stop(Duration::from_secs(10)).unwrap();
    }
}
