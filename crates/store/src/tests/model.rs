//! The model: what a PG must be after its first k transactions. A page of maps, nothing about disks.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_types::io::BlockState;
use cairn_types::peer::{EntryOp, LogEntry, Logged, RunContent};
use cairn_types::{BLOCK_SIZE, ObjectId};

use crate::{LoadedPg, Transaction};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Zero,
    Data(u32, Bytes),
}

type Object = BTreeMap<u32, Cell>;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PgModel {
    pub(super) commit: u64,
    pub(super) end: u64,
    kept: BTreeMap<u64, LogEntry>,
    pub(super) pending: BTreeMap<u64, Logged>,
    attributes: BTreeMap<Vec<u8>, Bytes>,
    objects: BTreeMap<ObjectId, Object>,
}

impl PgModel {
    pub(super) fn apply(&mut self, t: &Transaction) {
        if let Some(to) = t.rewind {
            let to = to.max(self.commit);
            self.pending.split_off(&(to + 1));
            self.end = self.end.min(to);
        }
        let commit = t.commit.min(self.end).max(self.commit);
        let rest = self.pending.split_off(&(commit + 1));
        for (seq, logged) in std::mem::replace(&mut self.pending, rest) {
            perform(&mut self.objects, &logged);
            self.kept.insert(seq, logged.entry);
        }
        self.commit = commit;
        if let Some(point) = t.restart {
            self.kept.clear();
            self.pending.clear();
            (self.commit, self.end) = (point.seq(), point.seq());
        }
        for logged in &t.append {
            self.end = logged.entry.version.seq;
            self.pending.insert(self.end, logged.clone());
        }
        for (object, runs) in &t.content {
            let blocks = self.objects.entry(*object).or_default();
            for run in runs {
                for i in 0..run.len / BLOCK_SIZE {
                    let block = run.offset / BLOCK_SIZE + i;
                    match &run.content {
                        RunContent::Absent => blocks.remove(&block),
                        RunContent::Zero => blocks.insert(block, Cell::Zero),
                        RunContent::Data { data, crcs } => blocks.insert(block, cell(data, crcs, i)),
                    };
                }
            }
        }
        t.remove.iter().for_each(|object| {
            self.objects.remove(object);
        });
        if let Some(trim) = t.trim {
            self.kept = self.kept.split_off(&(trim.min(self.commit) + 1));
        }
        for (name, value) in &t.attributes {
            match value {
                Some(value) => self.attributes.insert(name.clone(), value.clone()),
                None => self.attributes.remove(name),
            };
        }
    }

    /// The objects as a read sees them: pending entries count.
    pub(super) fn tip(&self) -> BTreeMap<ObjectId, Object> {
        let mut objects = self.objects.clone();
        self.pending.values().for_each(|logged| perform(&mut objects, logged));
        objects.retain(|_, blocks| !blocks.is_empty());
        objects
    }

    pub(super) fn loaded(&self) -> LoadedPg {
        let pending = self.pending.iter();
        LoadedPg {
            commit: self.commit,
            end: self.end,
            log: self.kept.values().chain(self.pending.values().map(|logged| &logged.entry)).cloned().collect(),
            pending: pending.map(|(seq, logged)| (*seq, logged.data.clone())).collect(),
            attributes: self.attributes.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        }
    }
}

fn cell(data: &Bytes, crcs: &[u32], i: u32) -> Cell {
    Cell::Data(crcs[i as usize], data.slice(i as usize * 4096..(i as usize + 1) * 4096))
}

fn perform(objects: &mut BTreeMap<ObjectId, Object>, logged: &Logged) {
    let blocks = objects.entry(logged.entry.op.object()).or_default();
    match &logged.entry.op {
        EntryOp::Write { offset, crcs, .. } => {
            for i in 0..crcs.len() as u32 {
                blocks.insert(offset / BLOCK_SIZE + i, cell(&logged.data, crcs, i));
            }
        }
        EntryOp::Zero { offset, len, unmap, .. } => {
            for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
                if *unmap {
                    blocks.remove(&block);
                } else {
                    blocks.insert(block, Cell::Zero);
                }
            }
        }
        EntryOp::Remove { .. } => blocks.clear(),
    }
}

/// What a read of a range must give.
pub(super) fn expected(object: Option<&Object>, offset: u32, len: u32) -> (Vec<u8>, Vec<BlockState>) {
    let (mut data, mut states) = (Vec::new(), Vec::new());
    for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
        match object.and_then(|blocks| blocks.get(&block)) {
            None => {
                data.extend([0; 4096]);
                states.push(BlockState::Absent);
            }
            Some(Cell::Zero) => {
                data.extend([0; 4096]);
                states.push(BlockState::Zero);
            }
            Some(Cell::Data(crc, bytes)) => {
                data.extend_from_slice(bytes);
                states.push(BlockState::Data { crc: *crc });
            }
        }
    }
    (data, states)
}
