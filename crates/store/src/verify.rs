//! The offline check of a device: nothing is written, everything that is referred to is read once.
//!
//! The superblocks, the log, the index as the newest checkpoint left it, and then the store as replay would leave it:
//! every block of every object against its checksum, and every place against all others. What a crash may leave (a
//! torn superblock copy, a torn tail of the log) is no problem; what replay could not explain is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use cairn_disk::{AlignedBuf, Disk};
use cairn_types::ObjectId;

use crate::alloc::UsedMap;
use crate::engine::Store;
use crate::error::Error;
use crate::format::read_superblock;
use crate::key::{Key, Part, RowKey};
use crate::scan::{Log, scan};
use crate::segment::{Block, SEGMENT_BLOCKS, Segment};
use crate::superblock::{COPIES, Superblock};
use crate::walk::{Found, walk};

/// As many problems are described; the others are counted.
pub const MAX_PROBLEMS: usize = 1000;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which object, where it is one's.
    pub object: Option<ObjectId>,
    /// Where in the object, in bytes.
    pub offset: Option<u64>,
    /// What is wrong, in words.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.object, self.offset) {
            (Some(object), Some(offset)) => write!(f, "object {object} at byte {offset}: {}", self.what),
            (Some(object), None) => write!(f, "object {object}: {}", self.what),
            _ => f.write_str(&self.what),
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The superblock in force.
    pub superblock: Option<Superblock>,
    /// Copies of the superblock that are whole: 2, or 1 where the power went while the other was written.
    pub superblocks: u32,
    /// Objects in the index.
    pub objects: u64,
    /// Index nodes.
    pub nodes: u64,
    /// Records of the log after the checkpoint.
    pub records: u64,
    /// Entries of the log that are not committed.
    pub pending: u64,
    /// Blocks of data that something refers to.
    pub blocks: u64,
    /// Those of them whose bytes were read and compared.
    pub verified: u64,
    /// Blocks whose bytes do not match their checksum, cannot be read, or are known to be lost.
    pub bad_blocks: u64,
    /// How many things are wrong,
    pub found: u64,
    /// and the first [`MAX_PROBLEMS`] of them.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found == 0
    }

    fn problem(&mut self, object: Option<ObjectId>, offset: Option<u64>, what: String) {
        self.found += 1;
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { object, offset, what });
        }
    }
}

/// Checks a device that nobody uses.
///
/// # Errors
/// Only where there is nothing to report about: the device fails or has no superblock. Everything else stands in
/// the report.
pub fn verify(disk: &dyn Disk) -> Result<Report, Error> {
    let superblock = read_superblock(disk)?.ok_or(Error::NotFormatted)?;
    let mut check = Check::new(disk, &superblock);
    check.report.superblocks = whole_copies(disk);
    let log = match scan(disk, &superblock) {
        Ok(log) => Some(log),
        Err(error) => {
            check.report.problem(None, None, error.to_string());
            None
        }
    };
    let store = log.and_then(|log| check.replay(&superblock, &log));
    check.index(&superblock, store.as_ref());
    if let Some(store) = &store {
        check.replayed(store);
    }
    Ok(check.report)
}

fn whole_copies(disk: &dyn Disk) -> u32 {
    let mut block = vec![0; 4096];
    let mut whole =
        |copy: &u64| disk.read_at(*copy, &mut block).is_ok() && matches!(Superblock::decode(&block), Ok(Some(_)));
    COPIES.iter().filter(|copy| whole(copy)).count() as u32
}

/// A check under way.
struct Check<'a> {
    disk: &'a dyn Disk,
    report: Report,
    /// Places that the index as the checkpoint left it refers to.
    indexed: UsedMap,
    /// Places that the store refers to as replay leaves it.
    live: UsedMap,
    /// Places of committed data over which a pending entry may be written.
    pending: BTreeMap<u64, (Key, u32)>,
    buffer: AlignedBuf,
}

impl<'a> Check<'a> {
    fn new(disk: &'a dyn Disk, superblock: &Superblock) -> Self {
        let shard = superblock.shard();
        let map = || UsedMap::new(shard.area_start / 4096, shard.area_len / 4096);
        let report = Report { superblock: Some(superblock.clone()), ..Report::default() };
        let buffer = AlignedBuf::zeroed(SEGMENT_BLOCKS * 4096);
        Self { disk, report, indexed: map(), live: map(), pending: BTreeMap::new(), buffer }
    }

    /// The log, replayed in memory.
    fn replay(&mut self, superblock: &Superblock, log: &Log) -> Option<Store> {
        self.report.records = log.records.len() as u64;
        match Store::replayed(self.disk, superblock, log) {
            Ok((store, lost)) => {
                for (object, offset) in lost {
                    let what = "its bytes in the log do not match their checksum; a peer has them".to_owned();
                    self.report.problem(Some(object), Some(offset.into()), what);
                }
                Some(store)
            }
            Err(error) => {
                self.report.problem(None, None, format!("the log cannot be replayed: {error}"));
                None
            }
        }
    }

    /// The index: its nodes, its rows, that nothing is claimed twice, and the data of rows that the log leaves alone.
    fn index(&mut self, superblock: &Superblock, store: Option<&Store>) {
        let disk = self.disk;
        let walked = walk(disk, superblock.checkpoint.root, &mut |found| {
            match found {
                Found::Node(block) => {
                    self.report.nodes += 1;
                    if !self.indexed.mark(block) || !self.live.mark(block) {
                        self.report.problem(None, None, Error::CorruptExtent { block }.to_string());
                    }
                }
                Found::Row(key, value) => self.row(key, value, store),
            }
            Ok(())
        });
        if let Err(error) = walked {
            self.report.problem(None, None, error.to_string());
        }
    }

    fn row(&mut self, key: &[u8], value: &[u8], store: Option<&Store>) {
        let row = match RowKey::decode(key) {
            Ok((row, _)) => row,
            Err(malformed) => {
                return self.report.problem(None, None, format!("a row of the index cannot be read: {malformed}"));
            }
        };
        match row {
            RowKey::Object(_, Part::Info) => self.report.objects += 1,
            RowKey::Object(object, Part::Segment(number)) => match Segment::decode(value) {
                Ok(segment) => {
                    self.claims(object, number, &segment);
                    if !store.is_some_and(|store| store.has_replayed(&row)) {
                        self.segment(object, number, &segment, store);
                    }
                }
                Err(malformed) => {
                    self.report.problem(Some(object.object()), None, format!("segment {number}: {malformed}"));
                }
            },
            RowKey::Pg(_) | RowKey::Attribute(..) | RowKey::Log(..) => {}
        }
    }

    fn claims(&mut self, object: Key, number: u16, segment: &Segment) {
        for (slot, block) in segment.blocks.iter().enumerate() {
            if let Some(at) = block.at()
                && !self.indexed.mark(at)
            {
                let what = format!("{} (in the index)", Error::CorruptExtent { block: at });
                self.report.problem(Some(object.object()), Some(offset_of(number, slot)), what);
            }
        }
    }

    /// What replay changed, and what is pending.
    fn replayed(&mut self, store: &Store) {
        for (key, number, segment) in store.replayed_segments() {
            self.segment(key, number, segment, Some(store));
        }
        let mut entries = BTreeSet::new();
        for pending in store.pending_blocks() {
            entries.insert((pending.pg, pending.seq));
            let key = (Key::new(pending.object), pending.block);
            let other = self.pending.insert(pending.at, key).is_some_and(|other| other != key);
            let outside = !self.live.mark(pending.at) && !self.live.is_used(pending.at);
            let offset = u64::from(pending.block) * 4096;
            if other || outside {
                let what = format!("entry {} of {}: {}", pending.seq, pending.pg, claimed(pending.at));
                self.report.problem(Some(pending.object), Some(offset), what);
            } else if pending.placed && !store.waits_for_copy(pending.at) {
                // A later pending entry may be copied over it only after both are committed.
                self.report.blocks += 1;
                self.compare(&[(pending.at, pending.crc, offset)], pending.object);
            }
        }
        self.report.pending = entries.len() as u64;
    }

    /// One segment as it is now: its places, and its bytes.
    fn segment(&mut self, object: Key, number: u16, segment: &Segment, store: Option<&Store>) {
        let mut run: Vec<(u64, u32, u64)> = Vec::new();
        for (slot, block) in segment.blocks.iter().enumerate() {
            let offset = offset_of(number, slot);
            let (at, crc) = match *block {
                Block::Absent | Block::Zero => continue,
                Block::Lost { at } => {
                    self.report.bad_blocks += 1;
                    let what =
                        if self.live.mark(at) { "known to be lost; a peer has it".to_owned() } else { claimed(at) };
                    self.report.problem(Some(object.object()), Some(offset), what);
                    continue;
                }
                Block::Data { at, crc } => (at, crc),
            };
            self.report.blocks += 1;
            if !self.live.mark(at) {
                self.report.problem(Some(object.object()), Some(offset), claimed(at));
                continue;
            }
            // The log has newer bytes, whose checksum replay has compared.
            if store.is_some_and(|store| store.waits_for_copy(at)) {
                self.report.verified += 1;
                continue;
            }
            if run.last().is_some_and(|(last, ..)| last + 1 != at) {
                self.compare(&run, object.object());
                run.clear();
            }
            run.push((at, crc, offset));
        }
        self.compare(&run, object.object());
    }

    /// Reads neighbouring places, each with its checksum and its offset in the object.
    fn compare(&mut self, run: &[(u64, u32, u64)], object: ObjectId) {
        let Some((first, ..)) = run.first() else { return };
        match self.disk.read_at(first * 4096, &mut self.buffer[..run.len() * 4096]) {
            Ok(()) => {}
            // One bad block must not hide its neighbours.
            Err(_) if run.len() > 1 => return run.chunks(1).for_each(|one| self.compare(one, object)),
            Err(error) => {
                self.report.bad_blocks += 1;
                return self.report.problem(Some(object), Some(run[0].2), error.to_string());
            }
        }
        for (i, (at, crc, offset)) in run.iter().enumerate() {
            let bytes = &self.buffer[i * 4096..(i + 1) * 4096];
            let found = crc32c::crc32c(bytes);
            self.report.verified += 1;
            if found != *crc {
                self.report.bad_blocks += 1;
                let what = format!("block {at} of the device has checksum {found:08x}, it must be {crc:08x}");
                self.report.problem(Some(object), Some(*offset), what);
            }
        }
    }
}

fn offset_of(segment: u16, slot: usize) -> u64 {
    (u64::from(segment) * SEGMENT_BLOCKS as u64 + slot as u64) * 4096
}

fn claimed(block: u64) -> String {
    format!("block {block} of the device is claimed twice, or does not exist")
}

#[cfg(test)]
mod tests {
    use cairn_disk::SimDisk;
    use cairn_types::{PoolId, SnapId, VolumeId};

    use super::*;
    use crate::{FormatOptions, format};

    #[test]
    fn a_place_that_is_claimed_twice_or_outside_is_named() {
        let disk = SimDisk::new(16 << 20, 1);
        let options = FormatOptions { osd_uuid: uuid::Uuid::from_u128(7), ring_len: Some(1 << 20), force: false };
        format(&disk, &options).unwrap();
        let superblock = read_superblock(&disk).unwrap().unwrap();
        let crc = crc32c::crc32c(&[0; 4096]);
        let object = |index| ObjectId { pool: PoolId(1), volume: VolumeId(1), index, snapshot: SnapId::HEAD };
        let mut segment = Segment::default();
        let mut check = Check::new(&disk, &superblock);
        segment.blocks[3] = Block::Data { at: 1000, crc };
        check.segment(Key::new(object(1)), 0, &segment, None);
        assert!(check.report.is_clean());
        check.segment(Key::new(object(2)), 1, &segment, None);
        segment.blocks[3] = Block::Data { at: 1 << 40, crc };
        check.segment(Key::new(object(3)), 0, &segment, None);
        segment.blocks[3] = Block::Data { at: 1001, crc: crc ^ 1 };
        check.segment(Key::new(object(4)), 0, &segment, None);
        let named: Vec<_> = check.report.problems.iter().map(|problem| (problem.object, problem.offset)).collect();
        let expected = [(object(2), 67 * 4096), (object(3), 3 * 4096), (object(4), 3 * 4096)];
        assert_eq!(named, expected.map(|(object, offset)| (Some(object), Some(offset))));
        assert_eq!((check.report.blocks, check.report.verified, check.report.bad_blocks), (4, 2, 1));
    }
}
