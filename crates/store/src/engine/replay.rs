//! Replay: the records after the checkpoint take effect again, in the order in which they were first logged.
//!
//! What is bad above the durable mark was never acknowledged: that transaction and all later ones of its PG are
//! dropped, and a record says so, because later records will raise the mark. What is bad at or below it is rot: the
//! entry stays, the blocks count as lost. Fresh extents are checked only above the mark, and not where a later
//! change that took effect may have been copied over them: those bytes may be newer. That excuse holds only as long as
//! nothing else above the mark is bad, because then nothing of it took effect.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cairn_disk::Disk;
use cairn_types::peer::{EntryOp, LogEntry};
use cairn_types::{BLOCK_SIZE, ObjectId, PgId};

use super::view::Wait;
use super::{BlockChange, Delta, LogPosition, Planned, Store};
use crate::alloc::UsedMap;
use crate::codec::Malformed;
use crate::error::Error;
use crate::key::Key;
use crate::planted::{Bug, planted};
use crate::record::{Image, Origin, PieceTo, TxnImage};
use crate::scan::{Log, Scanned};
use crate::segment::{Block, MAX_SEGMENTS, SEGMENT_BLOCKS};

/// A transaction of the log and its place in the order of replay.
struct Step<'a> {
    order: Origin,
    relog: bool,
    record: &'a Scanned,
    image: &'a TxnImage,
}

/// What replay learns on its way.
struct Course<'a> {
    disk: &'a dyn Disk,
    ring_start: u64,
    durable_lsn: u64,
    /// Where a change that took effect may have been written in place, and the newest that may.
    overlaid: BTreeMap<u64, Origin>,
    /// Nothing above the durable mark is known to be torn: changes in it may have taken effect.
    whole: bool,
    /// PGs of which everything from here on is dropped.
    dropped: BTreeMap<PgId, Origin>,
    lost: Vec<(ObjectId, u32)>,
}

impl Store {
    /// Replays the log. Gives back the blocks whose bytes are lost.
    pub(super) fn replay(
        &mut self,
        disk: &dyn Disk,
        log: &Log,
        used: &mut UsedMap,
        nodes: &BTreeSet<u64>,
    ) -> Result<Vec<(ObjectId, u32)>, Error> {
        let steps = steps_of(log);
        let mut course = Course {
            disk,
            ring_start: self.superblock.shard().ring_start,
            durable_lsn: log.durable_lsn,
            overlaid: overlaid_by(&steps),
            whole: true,
            dropped: BTreeMap::new(),
            lost: Vec::new(),
        };
        course.whole = course.is_whole(&steps)?;
        for step in &steps {
            self.replay_step(step, &mut course, used, nodes)?;
        }
        let scanned: u64 = log.records.iter().map(|record| u64::from(record.header.blocks) * 4096).sum();
        let ring = &mut self.ring;
        (ring.head, ring.next_lsn, ring.prev_crc) = (log.head, log.next_lsn, log.prev_crc);
        (ring.used, ring.written, ring.durable_lsn) = (scanned, scanned, log.next_lsn - 1);
        ring.applied = LogPosition { lsn: log.next_lsn - 1, pos: log.head, crc: log.prev_crc, written: scanned };
        let dropped = if planted(Bug::ForgetDropped) { BTreeMap::new() } else { course.dropped };
        for (pg, from) in dropped {
            let (id, commit) = (self.number().0, self.pgs.entry(pg).or_default().planned_commit);
            let dropped = Some((from, log.next_lsn - 1));
            self.planned.push_back(Planned { id, scope: Some(pg), commit, dropped, ..Planned::default() });
        }
        Ok(course.lost)
    }

    fn replay_step(
        &mut self,
        step: &Step<'_>,
        course: &mut Course<'_>,
        used: &mut UsedMap,
        nodes: &BTreeSet<u64>,
    ) -> Result<(), Error> {
        let scope = step.image.scope;
        let lsn = step.record.header.lsn;
        if scope.is_some_and(|pg| course.dropped.contains_key(&pg) && lsn > course.durable_lsn) {
            return Ok(());
        }
        let commit = scope.map_or(0, |pg| self.pgs.entry(pg).or_default().planned_commit);
        let mut planned = Planned {
            id: self.number().0,
            scope,
            rewind: step.image.rewind,
            commit: step.image.commit.max(commit),
            restart: step.image.restart,
            trim: step.image.trim,
            attributes: step.image.attributes.clone(),
            ..Planned::default()
        };
        if step.relog {
            planned.commit = commit;
        }
        let mut lost = Vec::new();
        for (entry, image) in &step.image.append {
            if step.relog && entry.version.seq <= commit {
                continue;
            }
            let delta = course.load(step, image, Some(entry), &mut lost)?;
            planned.append.push((Arc::clone(entry), Arc::new(delta)));
        }
        for image in &step.image.direct {
            planned.direct.push(Arc::new(course.load(step, image, None, &mut lost)?));
        }
        if !lost.is_empty() {
            if let Some(pg) = scope.filter(|_| lsn > course.durable_lsn) {
                course.dropped.insert(pg, step.order);
                return Ok(());
            }
            course.lost.append(&mut lost);
        }
        let deltas = planned.append.iter().map(|(_, delta)| delta).chain(&planned.direct);
        for at in deltas.flat_map(|delta| &delta.changes).filter_map(|change| change.to.at()) {
            if !used.mark(at) && !used.is_used(at) {
                return Err(Error::CorruptExtent { block: at });
            }
            // Freed and used again within one replay: the superblock that let go of it has rotted. So it may be with
            // a node, but that one is still needed.
            if nodes.contains(&at) {
                return Err(Error::StaleSuperblock { block: at });
            }
            self.quarantine.remove(&at);
        }
        if let Some(pg) = scope {
            self.check_follows(pg, &planned, lsn)?;
            self.enter(pg, &mut planned);
            self.stamp(&planned, step.order);
        }
        self.apply_now(course.disk, &planned)
    }

    /// The entries of a record continue the log; anything else was never written by this program.
    fn check_follows(&mut self, pg: PgId, planned: &Planned, lsn: u64) -> Result<(), Error> {
        let state = self.pgs.entry(pg).or_default();
        let end = planned.rewind.map_or(state.planned_end, |to| to.min(state.planned_end));
        let end = planned.restart.map_or(end, |point| point.seq());
        let expected = planned.append.iter().zip(end + 1..);
        for ((entry, _), seq) in expected {
            if entry.version.seq != seq {
                let malformed = Malformed::Value { field: "position of an entry", value: entry.version.seq };
                return Err(Error::Malformed { place: format!("record {lsn}"), malformed });
            }
        }
        Ok(())
    }

    /// Applies, reading what is missed at once.
    fn apply_now(&mut self, disk: &dyn Disk, planned: &Planned) -> Result<(), Error> {
        while let Err(Wait) = self.try_apply(planned) {
            while let Some(io) = self.io.pop_front() {
                let result = io.op.perform(disk, &self.pool);
                self.handle_io(io.id, result);
            }
            if let Some(error) = &self.failed {
                return Err(error.clone());
            }
        }
        self.failed.clone().map_or(Ok(()), Err)
    }
}

/// The transactions in the order of their first logging, without those that a record declared dropped and without
/// copies whose first record is still there.
fn steps_of(log: &Log) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut dropped: Vec<(PgId, Origin, u64)> = Vec::new();
    for record in &log.records {
        for (index, image) in record.transactions.iter().enumerate() {
            let own = Origin { lsn: record.header.lsn, index: index as u32 };
            steps.push(Step { order: image.relog.unwrap_or(own), relog: image.relog.is_some(), record, image });
            if let (Some(pg), Some((from, through))) = (image.scope, image.dropped) {
                dropped.push((pg, from, through));
            }
        }
    }
    steps.retain(|step| {
        let covers = |(pg, from, through): &(PgId, Origin, u64)| {
            step.image.scope == Some(*pg) && step.order >= *from && step.record.header.lsn <= *through
        };
        !dropped.iter().any(covers)
    });
    steps.sort_by_key(|step| (step.order, step.relog, step.record.header.lsn));
    let mut seen = BTreeSet::new();
    steps.retain(|step| seen.insert(step.order));
    steps
}

/// Places that inline data was meant for, of direct changes and of entries that a commit point covers.
fn overlaid_by(steps: &[Step<'_>]) -> BTreeMap<u64, Origin> {
    let mut overlaid = BTreeMap::new();
    let mut pending: BTreeMap<PgId, BTreeMap<u64, (Origin, &Image)>> = BTreeMap::new();
    let mut overlay = |order: Origin, image: &Image| {
        for piece in &image.pieces {
            if let PieceTo::Inline { at, .. } = piece.to {
                overlaid.extend((at..at + u64::from(piece.count)).map(|at| (at, order)));
            }
        }
    };
    for step in steps {
        if let Some(pg) = step.image.scope {
            let pending = pending.entry(pg).or_default();
            if let Some(to) = step.image.rewind {
                pending.split_off(&(to + 1));
            }
            if !step.relog {
                let rest = pending.split_off(&(step.image.commit + 1));
                let committed = std::mem::replace(pending, rest);
                committed.into_values().for_each(|(order, image)| overlay(order, image));
            }
            if step.image.restart.is_some() {
                pending.clear();
            }
            for (entry, image) in &step.image.append {
                pending.insert(entry.version.seq, (step.order, image));
            }
        }
        step.image.direct.iter().for_each(|image| overlay(step.order, image));
    }
    overlaid
}

impl Course<'_> {
    /// Whether everything above the durable mark is as it was written, but for what may be newer.
    fn is_whole(&self, steps: &[Step<'_>]) -> Result<bool, Error> {
        for step in steps.iter().filter(|step| step.record.header.lsn > self.durable_lsn) {
            let mut lost = Vec::new();
            for (entry, image) in &step.image.append {
                self.load(step, image, Some(entry), &mut lost)?;
            }
            for image in &step.image.direct {
                self.load(step, image, None, &mut lost)?;
            }
            if !lost.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A change with its bytes, and the blocks of it that are bad.
    fn load(
        &self,
        step: &Step<'_>,
        image: &Image,
        entry: Option<&LogEntry>,
        lost: &mut Vec<(ObjectId, u32)>,
    ) -> Result<Delta, Error> {
        let lsn = step.record.header.lsn;
        let malformed = |field| {
            let malformed = Malformed::Value { field, value: lsn };
            Error::Malformed { place: format!("record {lsn}"), malformed }
        };
        let mut changes = Vec::new();
        let mut crcs = image.crcs.iter().copied();
        for piece in &image.pieces {
            if piece.block.saturating_add(piece.count) > MAX_SEGMENTS * SEGMENT_BLOCKS as u32 {
                return Err(malformed("block range"));
            }
            let data = self.bytes_of(step, piece.to, piece.count)?;
            for i in 0..piece.count {
                let block = piece.block + i;
                let (at, inline) = match piece.to {
                    PieceTo::Inline { at, .. } => (at + u64::from(i), true),
                    PieceTo::Placed { at } => (at + u64::from(i), false),
                    PieceTo::Absent => {
                        changes.push(BlockChange { block, to: Block::Absent, data: None, inline: false });
                        continue;
                    }
                    PieceTo::Zero => {
                        changes.push(BlockChange { block, to: Block::Zero, data: None, inline: false });
                        continue;
                    }
                    PieceTo::Lost { at } => {
                        let to = Block::Lost { at: at + u64::from(i) };
                        changes.push(BlockChange { block, to, data: None, inline: false });
                        continue;
                    }
                };
                let crc = match entry {
                    Some(entry) => crc_in(entry, block),
                    None => crcs.next(),
                };
                let crc = crc.ok_or_else(|| malformed("checksums"))?;
                let bytes = data.as_ref().map(|data| data.slice(i as usize * 4096..(i as usize + 1) * 4096));
                let newer = !planted(Bug::DropOverlaid)
                    && self.whole
                    && self.overlaid.get(&at).is_some_and(|order| *order > step.order);
                let checked = inline || (lsn > self.durable_lsn && !newer && !planted(Bug::TrustUnflushed));
                let good = bytes.as_ref().is_some_and(|bytes| crc32c::crc32c(bytes) == crc);
                if checked && !good {
                    lost.push((image.object, block * BLOCK_SIZE));
                    changes.push(BlockChange { block, to: Block::Lost { at }, data: None, inline: false });
                } else {
                    let data = bytes.filter(|_| good);
                    changes.push(BlockChange { block, to: Block::Data { at, crc }, data, inline });
                }
            }
        }
        if changes.windows(2).any(|pair| pair[0].block >= pair[1].block) {
            return Err(malformed("order of blocks"));
        }
        Ok(Delta { key: Key::new(image.object), remove: image.remove, changes })
    }

    /// The bytes of a piece: from the record, or from the extent; `None` where the medium does not answer, or is not
    /// asked.
    fn bytes_of(&self, step: &Step<'_>, to: PieceTo, count: u32) -> Result<Option<Bytes>, Error> {
        let header = &step.record.header;
        let offset = match to {
            PieceTo::Absent | PieceTo::Zero | PieceTo::Lost { .. } => return Ok(None),
            // Durable bytes in their places are verified when they are read; there may be a great many.
            PieceTo::Placed { .. } if header.lsn <= self.durable_lsn => return Ok(None),
            PieceTo::Placed { at } => at * 4096,
            PieceTo::Inline { record_block, .. } => {
                let block = header.meta_blocks() + u64::from(record_block);
                if block + u64::from(count) > u64::from(header.blocks) {
                    let malformed = Malformed::Value { field: "record block", value: block };
                    return Err(Error::Malformed { place: format!("record {}", header.lsn), malformed });
                }
                self.ring_start + step.record.pos + block * 4096
            }
        };
        let mut buffer = cairn_disk::AlignedBuf::zeroed(count as usize * 4096);
        match self.disk.read_at(offset, &mut buffer) {
            Ok(()) => Ok(Some(buffer.freeze())),
            Err(cairn_disk::Error::Io { .. }) => Ok(None),
            Err(error) => Err(Error::Disk(error)),
        }
    }
}

fn crc_in(entry: &LogEntry, block: u32) -> Option<u32> {
    match &entry.op {
        EntryOp::Write { offset, crcs, .. } => {
            let i = block.checked_sub(*offset / BLOCK_SIZE)?;
            crcs.get(i as usize).copied()
        }
        EntryOp::Zero { .. } | EntryOp::Remove { .. } => None,
    }
}
