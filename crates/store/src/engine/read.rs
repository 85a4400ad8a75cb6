//! Reads and listings: from what is planned, from what waits to be copied, from the medium; every block's checksum
//! is verified, wherever it came from.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_types::{BLOCK_SIZE, ObjectId, PgId};

use super::plan::state_of;
use super::view::{Wait, split};
use super::{Purpose, Row, Store};
use crate::io::{IoOp, IoResult};
use crate::key::{Key, Part, RowKey};
use crate::segment::{Block, MAX_SEGMENTS, SEGMENT_BLOCKS};
use crate::transaction::{Output, ReadFailure, ReadReply, Token};
use crate::tree;

/// Blocks in one read from the medium at most.
const RUN: usize = 256;

/// A read under way.
#[derive(Debug)]
pub(super) struct ReadRun {
    token: Token,
    object: ObjectId,
    first: u32,
    blocks: Vec<Block>,
    data: Vec<Option<Bytes>>,
    left: u32,
    bad: Vec<u32>,
    /// For a scrub: the answer describes the blocks, and nobody waits for it.
    inspection: bool,
}

/// What an object's blocks are at this moment, with the bytes that are in memory.
pub(super) struct Seen {
    first: u32,
    pub(super) blocks: Vec<Block>,
    data: Vec<Option<Bytes>>,
}

impl Seen {
    /// The read that fetches the rest of the bytes.
    pub(super) fn run(self, token: Token, object: ObjectId, inspection: bool) -> ReadRun {
        let Self { first, blocks, data } = self;
        ReadRun { token, object, first, blocks, data, left: 0, bad: Vec::new(), inspection }
    }
}

impl Store {
    pub(super) fn start_read(&mut self, token: Token, object: ObjectId, offset: u32, len: u32) -> Result<(), Wait> {
        let seen = self.look(object, offset, len)?;
        self.read_from_medium(seen.run(token, object, false));
        Ok(())
    }

    pub(super) fn look(&mut self, object: ObjectId, offset: u32, len: u32) -> Result<Seen, Wait> {
        let key = Key::new(object);
        let first = offset / BLOCK_SIZE;
        let count = (len / BLOCK_SIZE).min((MAX_SEGMENTS * SEGMENT_BLOCKS as u32).saturating_sub(first));
        let mut blocks = vec![Block::Absent; count as usize];
        let mut data: Vec<Option<Bytes>> = vec![None; count as usize];
        let mut waiting = false;
        for block in first..first + count {
            let (segment, slot) = split(block);
            if slot != 0 && block != first {
                continue;
            }
            let Ok(stored) = self.segment(key, segment) else {
                waiting = true;
                continue;
            };
            let from = (block - first) as usize;
            let len = (SEGMENT_BLOCKS - slot).min(blocks.len() - from);
            blocks[from..from + len].copy_from_slice(&stored.blocks[slot..slot + len]);
        }
        if waiting {
            return Err(Wait);
        }
        for delta in self.above.get(&key).into_iter().flat_map(|above| above.deltas()) {
            if delta.remove {
                blocks.fill(Block::Absent);
            }
            let start = delta.changes.partition_point(|change| change.block < first);
            for change in &delta.changes[start..] {
                let Some(slot) = blocks.get_mut((change.block - first) as usize) else { break };
                *slot = change.to;
                data[(change.block - first) as usize].clone_from(&change.data);
            }
        }
        for (slot, data) in blocks.iter().zip(&mut data) {
            match slot.readable_at() {
                None => *data = None,
                Some(at) if data.is_none() => *data = self.deferred.get(at).cloned(),
                Some(_) => {}
            }
        }
        Ok(Seen { first, blocks, data })
    }

    pub(super) fn read_from_medium(&mut self, mut run: ReadRun) {
        let id = self.number().0;
        let missing = |i: usize| run.data[i].is_none().then(|| run.blocks[i].readable_at()).flatten();
        let mut reads: Vec<(usize, Vec<u64>)> = Vec::new();
        for i in 0..run.blocks.len() {
            let Some(at) = missing(i) else { continue };
            match reads.last_mut() {
                Some((first, places))
                    if *first + places.len() == i && places.last() == Some(&(at - 1)) && places.len() < RUN =>
                {
                    places.push(at);
                }
                _ => reads.push((i, vec![at])),
            }
        }
        run.left = reads.len() as u32;
        if run.left == 0 {
            return self.finish_read(run);
        }
        let background = run.inspection;
        self.reads.insert(id, run);
        for (first, blocks) in reads {
            self.issue_read(id, first, blocks, background);
        }
    }

    fn issue_read(&mut self, read: u64, first: usize, blocks: Vec<u64>, background: bool) {
        blocks.iter().for_each(|at| *self.pins.entry(*at).or_default() += 1);
        let (offset, len) = (blocks[0] * 4096, blocks.len() * 4096);
        self.issue(IoOp::Read { offset, len }, Purpose::Data { read, first, blocks });
        self.io.back_mut().expect("it was put there").background = background;
    }

    fn read_singly(&mut self, read: u64, first: usize, places: &[u64]) {
        let Some(run) = self.reads.get_mut(&read) else { return };
        run.left += places.len() as u32 - 1;
        let background = run.inspection;
        for (i, at) in places.iter().enumerate() {
            self.issue_read(read, first + i, vec![*at], background);
        }
    }

    pub(super) fn data_read(&mut self, read: u64, first: usize, places: &[u64], result: IoResult) {
        for at in places {
            if let Some(pins) = self.pins.get_mut(at) {
                *pins -= 1;
                if *pins == 0 {
                    self.pins.remove(at);
                }
            }
        }
        if let Err(error @ cairn_disk::Error::PoweredOff) = result {
            // That says nothing about the blocks.
            return self.fail(crate::Error::Disk(error));
        }
        if result.is_err() && places.len() > 1 {
            // One bad block must not hide its neighbours.
            return self.read_singly(read, first, places);
        }
        let Some(run) = self.reads.get_mut(&read) else { return };
        if let Ok(bytes) = result {
            for i in 0..places.len() {
                run.data[first + i] = Some(bytes.slice(i * 4096..(i + 1) * 4096));
            }
        }
        run.left -= 1;
        if run.left == 0
            && let Some(run) = self.reads.remove(&read)
        {
            self.finish_read(run);
        }
    }

    fn finish_read(&mut self, mut run: ReadRun) {
        for (i, block) in run.blocks.iter().enumerate() {
            let good = match (block, &run.data[i]) {
                (Block::Absent | Block::Zero, _) => true,
                (Block::Data { crc, .. }, Some(bytes)) => crc32c::crc32c(bytes) == *crc,
                (Block::Lost { .. }, _) | (Block::Data { .. }, None) => false,
            };
            if !good {
                run.bad.push((run.first + i as u32) * BLOCK_SIZE);
            }
        }
        if run.inspection {
            return self.inspected(run.token, run.first, &run.blocks, &run.bad);
        }
        let result = if run.bad.is_empty() {
            let blocks = run.blocks.iter().map(|block| state_of(*block)).collect();
            Ok(ReadReply { data: self.assemble(&run.data), blocks })
        } else {
            Err(ReadFailure { object: run.object, offsets: run.bad })
        };
        self.outputs.push_back(Output::Read { token: run.token, result });
    }

    /// One byte string, copied only where it comes from several places.
    fn assemble(&self, parts: &[Option<Bytes>]) -> Bytes {
        if let [Some(only)] = parts {
            return only.clone();
        }
        let mut buffer = self.pool.take(parts.len() * 4096);
        for (part, out) in parts.iter().zip(buffer.chunks_mut(4096)) {
            match part {
                Some(part) => out.copy_from_slice(part),
                None => out.fill(0),
            }
        }
        buffer.freeze().slice(..parts.len() * 4096)
    }

    pub(super) fn start_list(
        &mut self,
        token: Token,
        pg: PgId,
        pg_count: u32,
        after: Option<Key>,
        limit: usize,
    ) -> Result<(), Wait> {
        let inside = |key: &Key| key.is_in(pg, pg_count) && Some(*key) != after;
        let mut first = after.unwrap_or(Key::first_of(pg));
        let mut objects = Vec::new();
        // A page of the index may hold objects that are gone by now: pages are taken until there are enough.
        loop {
            let skip = objects.last().copied();
            let (found, end) = self.listed(first, limit.saturating_add(1), &inside)?;
            objects.extend(found.into_iter().filter(|object| Some(*object) != skip));
            match end {
                Some(end) if objects.len() <= limit => first = end,
                _ => break,
            }
        }
        let done = objects.len() <= limit;
        objects.truncate(limit);
        self.outputs.push_back(Output::Listed { token, objects, done });
        Ok(())
    }

    /// A page of objects from `first` on, and the last key looked at unless the range ended.
    fn listed(
        &mut self,
        first: Key,
        limit: usize,
        inside: &dyn Fn(&Key) -> bool,
    ) -> Result<(Vec<ObjectId>, Option<Key>), Wait> {
        let (mut found, end) = self.stored_objects(first, limit, inside)?;
        for (key, row) in self.dirty.range(RowKey::Object(first, Part::Info)..) {
            match key {
                RowKey::Object(key, _) if *key != first && !inside(key) => break,
                RowKey::Object(key, Part::Info) if inside(key) => {
                    found.insert(*key, *row != Row::Gone);
                }
                _ => {}
            }
        }
        for (key, above) in self.above.range(first..).take_while(|(key, _)| **key == first || inside(key)) {
            if inside(key)
                && let Some(last) = above.deltas().last()
            {
                found.insert(*key, !last.remove);
            }
        }
        let listed = found.iter().filter(|(key, exists)| **exists && end.is_none_or(|end| **key <= end));
        Ok((listed.map(|(key, _)| key.object()).collect(), end))
    }

    /// Objects of the durable index in key order, and the last key looked at unless the range ended.
    fn stored_objects(
        &mut self,
        first: Key,
        limit: usize,
        inside: &dyn Fn(&Key) -> bool,
    ) -> Result<(BTreeMap<Key, bool>, Option<Key>), Wait> {
        let mut found = BTreeMap::new();
        let mut from = RowKey::Object(first, Part::Info).encode(0);
        loop {
            let rows = tree::rows_from(self.root, &from, &mut self.cache).map_err(|miss| self.missed(miss))?;
            for (key, _) in &rows.rows {
                let Ok((RowKey::Object(key, part), _)) = RowKey::decode(key) else { return Ok((found, None)) };
                if key != first && !inside(&key) {
                    return Ok((found, None));
                }
                if part == Part::Info && inside(&key) {
                    found.insert(key, true);
                    if found.len() >= limit {
                        return Ok((found, Some(key)));
                    }
                }
            }
            match rows.next {
                Some(next) => from = next,
                None => return Ok((found, None)),
            }
        }
    }
}
