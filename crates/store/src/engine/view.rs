//! What is there now: the rows that took effect (changed ones in memory, the rest in the index), and on top of
//! them what is planned.

use std::sync::Arc;

use bytes::Bytes;

use super::{Above, Purpose, Row, Store};
use crate::codec::Malformed;
use crate::error::Error;
use crate::io::IoOp;
use crate::key::{Key, Part, RowKey};
use crate::segment::{ObjectInfo, SEGMENT_BLOCKS, Segment};
use crate::tree::{self, Miss, Node, NodeRef};

/// The question cannot be answered yet: a node is being read (or the store has failed).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait;

impl Store {
    /// One segment as it took effect; absent ones are all absent.
    pub(super) fn segment(&mut self, key: Key, segment: u16) -> Result<Arc<Segment>, Wait> {
        let row = RowKey::segment(key, segment);
        match self.dirty.get(&row) {
            Some(Row::Segment(segment)) => return Ok(Arc::clone(segment)),
            Some(_) => return Ok(Arc::default()),
            None => {}
        }
        match self.stored(&row)? {
            Some(value) => self.decoded(&row, Segment::decode(&value)).map(Arc::new),
            None => Ok(Arc::default()),
        }
    }

    /// One object's row as it took effect.
    pub(super) fn object(&mut self, key: Key) -> Result<Option<ObjectInfo>, Wait> {
        let row = RowKey::Object(key, Part::Info);
        match self.dirty.get(&row) {
            Some(Row::Object(info)) => return Ok(Some(*info)),
            Some(_) => return Ok(None),
            None => {}
        }
        match self.stored(&row)? {
            Some(value) => self.decoded(&row, ObjectInfo::decode(&value)).map(Some),
            None => Ok(None),
        }
    }

    fn stored(&mut self, row: &RowKey) -> Result<Option<Bytes>, Wait> {
        tree::get(self.root, &row.encode(0), &mut self.cache).map_err(|miss| self.missed(miss))
    }

    fn decoded<T>(&mut self, row: &RowKey, value: Result<T, Malformed>) -> Result<T, Wait> {
        value.map_err(|malformed| {
            self.fail(Error::Malformed { place: format!("the row {row:?}"), malformed });
            Wait
        })
    }

    /// Asks for a node, once.
    pub(super) fn missed(&mut self, miss: Miss) -> Wait {
        let at = miss.0;
        if self.loading.insert(at) {
            let purpose = Purpose::Node { at, root: self.root };
            self.issue(IoOp::Read { offset: at.block * 4096, len: tree::NODE_SIZE }, purpose);
        }
        Wait
    }

    pub(super) fn node_read(&mut self, at: NodeRef, root: Option<NodeRef>, page: &Bytes) {
        self.loading.remove(&at);
        let found = crc32c::crc32c(page);
        if found != at.crc {
            // The tree that referred to it may be gone, and its node's place used anew. Whoever still needs a node
            // asks again, of the new tree.
            if self.root == root {
                self.fail(Error::CorruptIndex { block: at.block, expected: at.crc, found });
            }
        } else {
            match Node::decode(page) {
                Ok(node) => self.cache.insert(at, Arc::new(node)),
                Err(malformed) => {
                    self.fail(Error::Malformed { place: format!("index node {}", at.block), malformed });
                }
            }
        }
        self.wake();
    }

    pub(super) fn put_row(&mut self, key: RowKey, row: Row) {
        self.dirty.put(key, row, self.epoch);
    }
}

impl Above {
    /// Lays what is planned for one segment over it: what is certain, then pending entries with positions up to
    /// `through`.
    pub(super) fn lay_over(&self, segment: u16, blocks: &mut Segment, through: u64) {
        let gated = self.gated.range(..=through).map(|(_, delta)| delta);
        for delta in self.bottom.iter().chain(gated) {
            if delta.remove {
                *blocks = Segment::default();
            }
            let first = u32::from(segment) * SEGMENT_BLOCKS as u32;
            let start = delta.changes.partition_point(|change| change.block < first);
            for change in &delta.changes[start..] {
                let Some(slot) = blocks.blocks.get_mut((change.block - first) as usize) else { break };
                *slot = change.to;
            }
        }
    }
}

/// The segment a block lies in, and its place there.
pub(super) fn split(block: u32) -> (u16, usize) {
    ((block / SEGMENT_BLOCKS as u32) as u16, block as usize % SEGMENT_BLOCKS)
}
