//! The offline check of a device: nothing is written, everything is read once.

use std::collections::BTreeSet;

use cairn_disk::Disk;

use crate::alloc::UsedMap;
use crate::error::Error;
use crate::format::read_superblock;
use crate::key::{Key, Part, RowKey};
use crate::record::Image;
use crate::scan::scan;
use crate::segment::{Block, Segment};
use crate::superblock::Superblock;
use crate::walk::{Found, walk};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The superblock in force.
    pub superblock: Option<Superblock>,
    /// Objects in the index.
    pub objects: u64,
    /// Blocks of data that the index refers to.
    pub blocks: u64,
    /// Index nodes.
    pub nodes: u64,
    /// Records of the log after the checkpoint.
    pub records: u64,
    /// Blocks whose bytes do not match their checksum, or are known to be lost.
    pub bad_blocks: u64,
    /// What is wrong, one sentence each; the first hundred.
    pub problems: Vec<String>,
}

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, sentence: String) {
        if self.problems.len() < 100 {
            self.problems.push(sentence);
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
    let mut report = Report { superblock: Some(superblock.clone()), ..Report::default() };
    let mut in_log = Touched::default();
    match scan(disk, &superblock) {
        Ok(log) => {
            report.records = log.records.len() as u64;
            for image in log.records.iter().flat_map(|record| &record.transactions) {
                let images = image.append.iter().map(|(_, image)| image).chain(&image.direct);
                images.for_each(|image| in_log.add(image));
            }
        }
        Err(error) => report.problem(error.to_string()),
    }
    let shard = superblock.shard();
    let mut used = UsedMap::new(shard.area_start / 4096, shard.area_len / 4096);
    let walked = walk(disk, superblock.checkpoint.root, &mut |found| {
        match found {
            Found::Node(block) => {
                report.nodes += 1;
                if !used.mark(block) {
                    report.problem(Error::CorruptExtent { block }.to_string());
                }
            }
            Found::Row(key, value) => check_row(disk, key, value, &mut used, &in_log, &mut report),
        }
        Ok(())
    });
    if let Err(error) = walked {
        report.problem(error.to_string());
    }
    Ok(report)
}

/// Blocks that the log changes after the checkpoint: their places may hold older or newer bytes than the index says,
/// and replay decides.
#[derive(Default)]
struct Touched {
    removed: BTreeSet<Key>,
    blocks: BTreeSet<(Key, u32)>,
}

impl Touched {
    fn add(&mut self, image: &Image) {
        let key = Key::new(image.object);
        if image.remove {
            self.removed.insert(key);
        }
        let blocks = image.pieces.iter().flat_map(|piece| piece.block..piece.block + piece.count);
        self.blocks.extend(blocks.map(|block| (key, block)));
    }

    fn has(&self, key: Key, block: u32) -> bool {
        self.removed.contains(&key) || self.blocks.contains(&(key, block))
    }
}

fn check_row(disk: &dyn Disk, key: &[u8], value: &[u8], used: &mut UsedMap, in_log: &Touched, report: &mut Report) {
    let row = match RowKey::decode(key) {
        Ok((row, _)) => row,
        Err(malformed) => return report.problem(format!("a row of the index cannot be read: {malformed}")),
    };
    match row {
        RowKey::Object(_, Part::Info) => report.objects += 1,
        RowKey::Object(object, Part::Segment(number)) => match Segment::decode(value) {
            Ok(segment) => {
                for (slot, block) in segment.blocks.iter().enumerate() {
                    let index = u32::from(number) * 64 + slot as u32;
                    let settled = !in_log.has(object, index);
                    if let Err(sentence) = check_block(disk, *block, used, settled, report) {
                        let offset = u64::from(index) * 4096;
                        report.problem(format!("object {} at byte {offset}: {sentence}", object.object()));
                    }
                }
            }
            Err(malformed) => report.problem(format!("segment {number} of {}: {malformed}", object.object())),
        },
        RowKey::Pg(_) | RowKey::Attribute(..) | RowKey::Log(..) => {}
    }
}

fn check_block(
    disk: &dyn Disk,
    block: Block,
    used: &mut UsedMap,
    settled: bool,
    report: &mut Report,
) -> Result<(), String> {
    let (at, crc) = match block {
        Block::Absent | Block::Zero => return Ok(()),
        Block::Lost => {
            report.bad_blocks += 1;
            return Err("known to be lost; a peer has it".to_owned());
        }
        Block::Data { at, crc } => (at, crc),
    };
    report.blocks += 1;
    if !used.mark(at) {
        return Err(Error::CorruptExtent { block: at }.to_string());
    }
    if !settled {
        return Ok(());
    }
    let mut bytes = [0u8; 4096];
    let found = match disk.read_at(at * 4096, &mut bytes) {
        Ok(()) => crc32c::crc32c(&bytes),
        Err(error) => {
            report.bad_blocks += 1;
            return Err(error.to_string());
        }
    };
    if found == crc {
        return Ok(());
    }
    report.bad_blocks += 1;
    Err(format!("block {at} has checksum {found:08x}, the index says {crc:08x}"))
}
