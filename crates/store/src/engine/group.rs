//! Group commit: everything that was planned while the previous flush ran becomes one record, one write and one
//! flush. The flush is asked for when all writes of the group have completed, those to fresh extents too.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::apply::Durable;
use super::{Delta, LogPosition, Pending, Planned, Purpose, Store, Waiter};
use crate::codec::Writer;
use crate::io::IoOp;
use crate::planted::{Bug, planted as is_planted};
use crate::record::{HEADER, Header, Image, Origin, Piece, PieceTo, TxnImage};
use crate::segment::Block;
use crate::transaction::Output;

/// The record under way.
#[derive(Debug)]
pub(super) struct Group {
    writes: u32,
    syncing: bool,
    lsn: u64,
    position: LogPosition,
    transactions: VecDeque<Planned>,
}

/// A record before it has a place.
#[derive(Default)]
struct Draft {
    meta: Writer,
    data: Vec<Bytes>,
    transactions: VecDeque<Planned>,
}

impl Draft {
    fn bytes(&self) -> u64 {
        ((HEADER + self.meta.bytes.len()).next_multiple_of(4096) + self.data.len() * 4096) as u64
    }
}

impl Store {
    pub(super) fn build_group(&mut self) {
        if self.group.is_some() || (self.planned.is_empty() && self.relogs.is_empty()) {
            return;
        }
        let (relogging, record_max) = (!self.relogs.is_empty(), self.record_max());
        let mut draft = Draft::default();
        while draft.bytes() < record_max {
            let queue = if relogging { &mut self.relogs } else { &mut self.planned };
            let Some(planned) = queue.front() else { break };
            let size = planned.inline_bytes() + 8192;
            if !draft.transactions.is_empty() && draft.bytes() + size > 2 * record_max {
                break;
            }
            let Some(planned) = queue.pop_front() else { break };
            // The record's first data block follows header and transactions, whose length is known only at the
            // end: block numbers in pieces count from the first data block.
            image_of(&planned, &mut draft.data).encode(&mut draft.meta);
            draft.transactions.push_back(planned);
        }
        let reserve = if relogging { 0 } else { self.ring.len / 4 };
        if !self.has_ring_room(draft.bytes(), reserve) {
            self.checkpoint_wanted = true;
            let queue = if relogging { &mut self.relogs } else { &mut self.planned };
            while let Some(planned) = draft.transactions.pop_back() {
                queue.push_front(planned);
            }
            return;
        }
        if !relogging {
            let planned = draft.transactions.iter().map(|planned| planned.inline_bytes() + 4096);
            self.planned_bytes = self.planned_bytes.saturating_sub(planned.sum());
        }
        self.write_group(draft);
        if self.planned_bytes < record_max {
            self.plan_ready();
        }
    }

    /// Whether a record fits, with the filler that may have to go before it.
    fn has_ring_room(&self, bytes: u64, reserve: u64) -> bool {
        let tail = self.ring.len - self.ring.head;
        let filler = if bytes > tail { tail } else { 0 };
        self.ring.used + filler + bytes + reserve + 4096 <= self.ring.len
    }

    fn write_group(&mut self, draft: Draft) {
        let bytes = draft.bytes();
        let mut writes = 1;
        let tail = self.ring.len - self.ring.head;
        if bytes > tail {
            let header = self.header(true, HEADER as u32, (tail / 4096) as u32, 0);
            self.write_record(&header, &[], Vec::new(), false);
            writes += 1;
        }
        // Nothing else to wait for: write and flush are handed over together.
        let alone = writes == 1 && !self.syncing && self.want_sync.is_empty();
        let placed = |planned: &Planned| self.placed.contains_key(&planned.id) && !is_planted(Bug::FlushBeforeWrites);
        let fused = alone && !is_planted(Bug::AckUnflushed) && !draft.transactions.iter().any(placed);
        self.syncing |= fused;
        let meta_len = (HEADER + draft.meta.bytes.len()) as u32;
        let header = self.header(false, meta_len, (bytes / 4096) as u32, draft.transactions.len() as u32);
        self.write_record(&header, &draft.meta.bytes, draft.data, fused);
        for (index, planned) in draft.transactions.iter().enumerate() {
            self.stamp(planned, Origin { lsn: header.lsn, index: index as u32 });
        }
        let position =
            LogPosition { lsn: header.lsn, pos: self.ring.head, crc: self.ring.prev_crc, written: self.ring.written };
        let transactions = draft.transactions;
        self.group = Some(Group { writes, syncing: false, lsn: header.lsn, position, transactions });
    }

    fn header(&self, filler: bool, meta_len: u32, blocks: u32, transactions: u32) -> Header {
        let identity = &self.superblock.identity;
        Header {
            filler,
            osd_uuid: identity.osd_uuid.as_u128(),
            lsn: self.ring.next_lsn,
            prev_crc: self.ring.prev_crc,
            meta_len,
            blocks,
            mount: self.superblock.mount,
            incarnation: identity.incarnation.0,
            durable_lsn: self.ring.durable_lsn,
            transactions,
        }
    }

    fn write_record(&mut self, header: &Header, meta: &[u8], data: Vec<Bytes>, sync: bool) {
        let (head, crc) = header.seal(meta);
        let mut buffer = self.pool.take(head.len());
        buffer[..head.len()].copy_from_slice(&head);
        let mut pieces = vec![buffer.freeze()];
        pieces.extend(data);
        let offset = self.superblock.shard().ring_start + self.ring.head;
        self.issue(IoOp::Write { offset, pieces, sync }, Purpose::Record { synced: sync });
        let bytes = u64::from(header.blocks) * 4096;
        self.ring.used += bytes;
        self.ring.written += bytes;
        self.ring.head = (self.ring.head + bytes) % self.ring.len;
        self.ring.next_lsn += 1;
        self.ring.prev_crc = crc;
    }

    /// Remembers where the entries were first logged.
    pub(super) fn stamp(&mut self, planned: &Planned, origin: Origin) {
        if let (Some(id), None) = (planned.scope, planned.relog) {
            if is_planted(Bug::CopyBeforeCommit) {
                self.copy_too_early(planned);
            }
            let pg = self.pgs.entry(id).or_default();
            for (entry, delta) in &planned.append {
                let pending = Pending { entry: Arc::clone(entry), delta: Arc::clone(delta) };
                pg.unapplied.insert((entry.version.seq, origin), pending);
            }
        }
    }

    /// Only what is planted does this.
    fn copy_too_early(&mut self, planned: &Planned) {
        for change in planned.append.iter().flat_map(|(_, delta)| &delta.changes).filter(|change| change.inline) {
            if let (Some(at), Some(data)) = (change.to.at(), &change.data) {
                self.deferred.put(at, data.clone(), self.epoch);
            }
        }
    }

    pub(super) fn record_written(&mut self, synced: bool) {
        if synced {
            self.syncing = false;
            return self.group_durable();
        }
        if let Some(group) = &mut self.group {
            group.writes -= 1;
        }
        self.sync_group_if_written();
    }

    pub(super) fn placed_written(&mut self, planned: u64) {
        if let Some(left) = self.placed.get_mut(&planned) {
            *left -= 1;
            if *left == 0 {
                self.placed.remove(&planned);
            }
        }
        self.sync_group_if_written();
    }

    fn sync_group_if_written(&mut self) {
        let placed = &self.placed;
        let Some(group) = self.group.as_mut().filter(|group| group.writes == 0 && !group.syncing) else { return };
        let placed = |planned: &Planned| placed.contains_key(&planned.id) && !is_planted(Bug::FlushBeforeWrites);
        if !group.transactions.iter().any(placed) {
            group.syncing = true;
            if is_planted(Bug::AckUnflushed) {
                let tokens = group.transactions.iter_mut().filter_map(|planned| planned.token.take());
                self.outputs.extend(tokens.map(|token| Output::Persisted { token }));
            }
            self.want_sync.push(Waiter::Group);
        }
    }

    pub(super) fn group_durable(&mut self) {
        let Some(group) = self.group.take() else { return };
        self.ring.durable_lsn = group.lsn;
        for token in group.transactions.iter().filter_map(|planned| planned.token) {
            self.outputs.push_back(Output::Persisted { token });
        }
        self.apply.push_back(Durable { position: group.position, transactions: group.transactions });
    }
}

/// The transaction as the record has it; its inline bytes go to the end of `data`.
fn image_of(planned: &Planned, data: &mut Vec<Bytes>) -> TxnImage {
    let mut append = Vec::with_capacity(planned.append.len());
    for (entry, delta) in &planned.append {
        let mut image = delta_image(delta, data);
        image.crcs.clear();
        append.push((Arc::clone(entry), image));
    }
    TxnImage {
        scope: planned.scope,
        relog: planned.relog,
        rewind: planned.rewind,
        commit: planned.commit,
        restart: planned.restart,
        append,
        direct: planned.direct.iter().map(|delta| delta_image(delta, data)).collect(),
        trim: planned.trim,
        attributes: planned.attributes.clone(),
        dropped: planned.dropped,
    }
}

fn delta_image(delta: &Delta, data: &mut Vec<Bytes>) -> Image {
    let mut image = Image { object: delta.key.object(), remove: delta.remove, pieces: Vec::new(), crcs: Vec::new() };
    for change in &delta.changes {
        let record_block = data.len() as u32;
        let to = match (change.to, change.inline, &change.data) {
            (Block::Absent, ..) => PieceTo::Absent,
            (Block::Zero, ..) => PieceTo::Zero,
            (Block::Lost { at }, ..) => PieceTo::Lost { at },
            (Block::Data { at, crc }, inline, bytes) => {
                image.crcs.push(crc);
                match bytes {
                    Some(bytes) if inline => {
                        data.push(bytes.clone());
                        PieceTo::Inline { at, record_block }
                    }
                    _ => PieceTo::Placed { at },
                }
            }
        };
        match image.pieces.last_mut() {
            Some(last) if continues(last, change.block, to) => last.count += 1,
            _ => image.pieces.push(Piece { block: change.block, count: 1, to }),
        }
    }
    image
}

fn continues(last: &Piece, block: u32, to: PieceTo) -> bool {
    let n = u64::from(last.count);
    let same = match (last.to, to) {
        (PieceTo::Inline { at, record_block }, PieceTo::Inline { at: next, record_block: next_block }) => {
            at + n == next && record_block + last.count == next_block
        }
        (PieceTo::Placed { at }, PieceTo::Placed { at: next }) | (PieceTo::Lost { at }, PieceTo::Lost { at: next }) => {
            at + n == next
        }
        (a, b) => a == b,
    };
    same && last.block + last.count == block
}
