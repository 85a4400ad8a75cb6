//! Checkpoints: the effects through L become a new index root, one superblock write switches to it, and the log up
//! to L and the blocks freed before are free again.
//!
//! The order is what makes it safe, and each step waits for the one before:
//! 1. freeze: L is the last record that took effect whole; pending entries at or below L are logged again;
//! 2. deferred data through L is copied to its places, the new index nodes are written to free blocks, and the
//!    copies of pending entries are durable;
//! 3. sync;
//! 4. the superblock with L and the new root is written;
//! 5. sync: index and L have changed together;
//! 6. the log's tail moves to L, quarantined blocks and the old tree's nodes are free.
//!
//! Slices of changed rows are merged as the writes of earlier ones complete, so that no turn of the loop takes long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::dirty::nodes_for;
use super::{LogPosition, PgRow, Planned, Purpose, Row, Store, Waiter};
use crate::codec::{Malformed, Reader, Writer};
use crate::error::Error;
use crate::io::IoOp;
use crate::key::RowKey;
use crate::planted::{Bug, planted};
use crate::record::{Origin, encode_entry};
use crate::superblock::{Checkpoint, Superblock};
use crate::tree::{Change, MAX_VALUE, NodeRef, Rewrite};

/// Rows merged in one step.
const SLICE: usize = 64;
/// Node writes in flight at most.
const NODE_WRITES: u32 = 32;
/// Runs of freed blocks at least this long are discarded,
const DISCARD_MIN: u64 = 16;
/// as long as not more than this many blocks wait for it.
const DISCARD_MAX: u64 = 16 << 10;
/// The format of rows written here.
const ROW_VERSION: u8 = 1;

/// A checkpoint under way.
#[derive(Debug)]
pub(super) struct Run {
    epoch: u64,
    position: LogPosition,
    rows: VecDeque<(RowKey, Row)>,
    slice: Vec<Change>,
    /// A slice was merged, the last one or not, and its nodes have no places yet.
    unsettled: Option<bool>,
    rewrite: Option<Rewrite>,
    finished: Option<(Option<NodeRef>, Vec<u64>)>,
    node_writes: u32,
    relogs: usize,
    quarantine: BTreeSet<u64>,
    syncing: bool,
    superblock: Option<Superblock>,
}

impl Run {
    pub(super) fn quarantined(&self) -> usize {
        self.quarantine.len()
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }
}

impl Store {
    /// Blocks that data leaves alone, so that deletes, trims, metadata and the next checkpoint always find room.
    pub(super) fn reserve_blocks(&self) -> u64 {
        let area = self.superblock.shard().area_len / 4096;
        (area / 64).clamp(128, 16 << 10).min(area / 4)
    }

    /// What is kept in any case. The other half of the reserve is for data that was let in before anybody knew that
    /// there is no room: whoever asks [`Store::usage`] stops earlier.
    pub(super) fn floor_blocks(&self) -> u64 {
        self.reserve_blocks() / 2
    }

    /// Rows that differ from the durable index, and those that will when everything planned has taken effect.
    pub(super) fn waiting_rows(&self) -> u64 {
        self.dirty.weight() + self.planned_rows
    }

    pub(super) fn step_checkpoint(&mut self) {
        if self.checkpoint.is_none() && (self.checkpoint_wanted || self.ring.used > self.ring.len / 2) {
            self.freeze();
        }
        let Some(mut run) = self.checkpoint.take() else { return };
        self.merge_slices(&mut run);
        let written = run.finished.is_some() && run.node_writes == 0 && run.relogs == 0;
        let copied = !self.deferred.has_through(run.epoch) || planted(Bug::ForgetDeferred);
        let due = written && copied && !run.syncing;
        run.syncing |= due;
        self.checkpoint = Some(run);
        if due && planted(Bug::IndexBeforeData) {
            self.checkpoint_data_durable();
        } else if due {
            self.want_sync.push(Waiter::CheckpointData);
        }
    }

    fn freeze(&mut self) {
        self.checkpoint_wanted = false;
        let position = self.ring.applied;
        let unchanged = position.lsn + 1 == self.superblock.checkpoint.next_lsn && self.dirty.is_empty();
        if unchanged && self.quarantine.is_empty() {
            self.prewrite_may_retry();
            return;
        }
        let relogs = if planted(Bug::ForgetPending) { 0 } else { self.relog_pending(position.lsn) };
        let number = self.superblock.checkpoint.number + 1;
        self.checkpoint = Some(Run {
            epoch: self.epoch,
            position,
            rows: self.dirty.iter().map(|(key, row)| (key.clone(), row.clone())).collect(),
            slice: Vec::new(),
            unsettled: None,
            rewrite: Some(Rewrite::new(self.root, number)),
            finished: None,
            node_writes: 0,
            relogs,
            quarantine: std::mem::take(&mut self.quarantine),
            syncing: false,
            superblock: None,
        });
        self.epoch += 1;
        for pg in self.pgs.values_mut() {
            pg.frozen_commit = pg.row.commit;
        }
    }

    /// Entries that have not taken effect and whose records end with this checkpoint go to the head of the log once
    /// more. The next checkpoint starts only after they are durable, so that it covers the copies: one that was
    /// forgotten in between cannot outlive the record that forgot it.
    fn relog_pending(&mut self, through: u64) -> usize {
        let mut relogs = Vec::new();
        for (id, pg) in &self.pgs {
            let mut by_origin: BTreeMap<Origin, Planned> = BTreeMap::new();
            for ((_, origin), pending) in pg.unapplied.iter().filter(|((_, origin), _)| origin.lsn <= through) {
                let relog = by_origin.entry(*origin).or_default();
                relog.append.push((Arc::clone(&pending.entry), Arc::clone(&pending.delta)));
            }
            for (origin, relog) in by_origin {
                let commit = pg.row.commit;
                relogs.push(Planned { scope: Some(*id), relog: Some(origin), commit, ..relog });
            }
        }
        let count = relogs.len();
        for mut relog in relogs {
            relog.id = self.number().0;
            self.relogs.push_back(relog);
        }
        count
    }

    pub(super) fn checkpoint_relogged(&mut self) {
        if let Some(run) = &mut self.checkpoint {
            run.relogs -= 1;
        }
    }

    fn merge_slices(&mut self, run: &mut Run) {
        while run.node_writes < NODE_WRITES {
            let last = match run.unsettled {
                Some(last) => last,
                None => match self.merge_slice(run) {
                    Some(last) => last,
                    None => return,
                },
            };
            run.unsettled = Some(last);
            let Some(rewrite) = &mut run.rewrite else { return };
            let free = &mut self.free;
            let mut place = || free.take(1).map(|runs| runs[0].0);
            let (writes, whole) = rewrite.take_writes(last, &mut self.cache, &mut place);
            run.node_writes += self.write_nodes(writes);
            if !whole {
                return self.await_index_room(run);
            }
            run.unsettled = None;
            if last && let Some(rewrite) = run.rewrite.take() {
                run.finished = Some(rewrite.finish());
                self.reuse_nodes_too_early(run);
            }
        }
    }

    /// Only what is planted does this.
    fn reuse_nodes_too_early(&mut self, run: &mut Run) {
        if planted(Bug::ReuseTreeNodes)
            && let Some((_, nodes)) = &mut run.finished
        {
            std::mem::take(nodes).into_iter().for_each(|block| self.free.give(block, 1));
        }
    }

    /// Takes the next changed rows into the tree; whether none were left. `None` while a node is missing, or when
    /// everything is merged.
    fn merge_slice(&mut self, run: &mut Run) -> Option<bool> {
        let rewrite = run.rewrite.as_mut()?;
        while run.slice.len() < SLICE
            && let Some((key, row)) = run.rows.pop_front()
        {
            push_changes(&key, &row, &mut self.chunks, &mut run.slice);
        }
        if run.slice.is_empty() {
            return Some(true);
        }
        if let Err(misses) = rewrite.apply(&run.slice, &mut self.cache) {
            misses.into_iter().for_each(|miss| {
                self.missed(miss);
            });
            return None;
        }
        run.slice.clear();
        Some(false)
    }

    /// A node found no free block. After a restart that says little: a file's blocks are given out only when they
    /// were written once, and what an earlier life wrote ahead is not known. More are written, or come back from a
    /// discard. Where the filesystem is full the checkpoint waits until it is not; otherwise this is the end.
    fn await_index_room(&mut self, run: &Run) {
        let more = nodes_for(run.rows.len() as u64 + 1);
        let hope = self.prewrite_now(self.free.free_blocks() + more) || self.medium_is_full() || self.discarding > 0;
        if !hope {
            self.fail(Error::NoIndexSpace);
        }
    }

    fn write_nodes(&mut self, mut nodes: Vec<(u64, Bytes)>) -> u32 {
        nodes.sort_by_key(|(block, _)| *block);
        let mut writes = 0;
        for run in nodes.chunk_by(|a, b| a.0 + 1 == b.0) {
            let pieces = run.iter().map(|(_, page)| page.clone()).collect();
            self.issue(IoOp::Write { offset: run[0].0 * 4096, pieces, sync: false }, Purpose::NodeWrite);
            writes += 1;
        }
        writes
    }

    pub(super) fn checkpoint_node_written(&mut self) {
        if let Some(run) = &mut self.checkpoint {
            run.node_writes -= 1;
        }
    }

    pub(super) fn checkpoint_data_durable(&mut self) {
        let Some(run) = &mut self.checkpoint else { return };
        let root = run.finished.as_ref().and_then(|(root, _)| *root);
        let mut superblock = self.superblock.clone();
        superblock.sequence += if planted(Bug::OneSuperblock) { 2 } else { 1 };
        superblock.checkpoint = Checkpoint {
            next_lsn: run.position.lsn + 1,
            ring_pos: run.position.pos,
            prev_crc: run.position.crc,
            root,
            number: superblock.checkpoint.number + 1,
            written_through: self.written_through,
            durable_lsn: self.ring.durable_lsn,
        };
        let pieces = vec![Bytes::from(superblock.encode())];
        let write = IoOp::Write { offset: superblock.slot(), pieces, sync: true };
        run.superblock = Some(superblock);
        self.issue(write, Purpose::Superblock);
    }

    pub(super) fn checkpoint_durable(&mut self) {
        let Some(run) = self.checkpoint.take() else { return };
        let (root, nodes) = run.finished.expect("the superblock is written after the last node");
        self.superblock = run.superblock.expect("the superblock was written");
        self.root = root;
        self.ring.used = self.ring.written - run.position.written;
        self.dirty.retire(run.epoch);
        let mut released = nodes;
        for block in run.quarantine {
            if self.pins.contains_key(&block) || self.deferred.contains(block) {
                self.quarantine.insert(block);
            } else {
                released.push(block);
            }
        }
        self.release(released);
        self.prewrite_may_retry();
        self.wake();
    }

    /// Blocks that can be taken again. A device is told of the longer runs first; a file keeps what it has, because
    /// a hole would have to be written ahead anew.
    fn release(&mut self, mut blocks: Vec<u64>) {
        blocks.sort_unstable();
        for run in blocks.chunk_by(|a, b| a + 1 == *b) {
            let (start, count) = (run[0], run.len() as u64);
            if self.discards && count >= DISCARD_MIN && self.discarding < DISCARD_MAX {
                self.discarding += count;
                let discard = IoOp::Discard { offset: start * 4096, len: count * 4096 };
                self.issue(discard, Purpose::Discard { start, count });
            } else {
                self.free.give(start, count);
            }
        }
    }

    /// A device that refuses a discard keeps the bytes, which is as good.
    pub(super) fn discarded(&mut self, start: u64, count: u64) {
        self.discarding -= count;
        self.free.give(start, count);
        self.wake();
    }
}

/// The index rows of a row in memory: attributes and log entries may take several.
fn push_changes(key: &RowKey, row: &Row, chunks: &mut BTreeMap<RowKey, u16>, out: &mut Vec<Change>) {
    let before = chunks.get(key).copied().unwrap_or(1);
    let value = match row {
        Row::Gone => None,
        Row::Pg(row) => Some(encode_pg_row(*row)),
        Row::Object(info) => Some(info.encode()),
        Row::Segment(segment) => Some(segment.encode()),
        Row::Attribute(value) => Some(with_length(value)),
        Row::Log(entry) => {
            let mut w = Writer::default();
            encode_entry(entry, &mut w);
            Some(with_length(&w.bytes))
        }
    };
    let pieces: Vec<Bytes> = match value {
        None => Vec::new(),
        Some(value) => {
            let value = Bytes::from(value);
            (0..value.len()).step_by(MAX_VALUE).map(|i| value.slice(i..(i + MAX_VALUE).min(value.len()))).collect()
        }
    };
    let count = pieces.len() as u16;
    for (chunk, piece) in pieces.into_iter().enumerate() {
        out.push((key.encode(chunk as u16), Some(piece)));
    }
    out.extend((count..before).map(|chunk| (key.encode(chunk), None)));
    if count > 1 {
        chunks.insert(key.clone(), count);
    } else {
        chunks.remove(key);
    }
}

/// Version, length, bytes: the first chunk tells how many there must be.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(ROW_VERSION).blob(bytes);
    w.bytes
}

/// The bytes of a chunked value, all chunks joined.
pub(super) fn without_length(value: &[u8]) -> Result<&[u8], Malformed> {
    let mut r = Reader::new(value);
    row_version(&mut r)?;
    let bytes = r.blob("value")?;
    r.finish()?;
    Ok(bytes)
}

fn encode_pg_row(row: PgRow) -> Vec<u8> {
    let mut w = Writer::default();
    w.u8(ROW_VERSION).u64(row.commit).u64(row.kept_from);
    w.bytes
}

pub(super) fn decode_pg_row(value: &[u8]) -> Result<PgRow, Malformed> {
    let mut r = Reader::new(value);
    row_version(&mut r)?;
    let row = PgRow { commit: r.u64("commit")?, kept_from: r.u64("kept from")? };
    r.finish()?;
    Ok(row)
}

fn row_version(r: &mut Reader<'_>) -> Result<(), Malformed> {
    match r.u8("row version")? {
        ROW_VERSION => Ok(()),
        found => Err(Malformed::Version { what: "row", found: found.into(), known: ROW_VERSION.into() }),
    }
}
