//! What clients did and saw, block by block: the material of the checkers.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_types::{BLOCK_SIZE, VolumeId};

use crate::bus::Nanos;

/// One client operation on one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlockOp {
    /// The write's own value, 0 for zeros; of a read, what it saw.
    pub(crate) value: u64,
    pub(crate) is_write: bool,
    pub(crate) begun: Nanos,
    /// `None`: it never ended, or its session was fenced; it may have happened or not.
    pub(crate) ended: Option<Nanos>,
    /// Its session was over by then: a write that never ended has happened before that or never.
    pub(crate) until: Option<Nanos>,
    /// Begun by a session after another one had been told that it holds the volume alone.
    pub(crate) fenced: bool,
}

impl BlockOp {
    /// When it has surely had its effect, if it has one; zeros look alike, so nothing is sure of those.
    pub(crate) fn over(&self) -> Option<Nanos> {
        self.ended.or(self.until.filter(|_| self.is_write && self.value != 0))
    }
}

/// One block of one volume.
pub(crate) type Block = (VolumeId, u64);

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) blocks: BTreeMap<Block, Vec<BlockOp>>,
    last_value: u64,
}

impl History {
    /// A value nobody has written yet.
    pub(crate) fn fresh_value(&mut self) -> u64 {
        self.last_value += 1;
        self.last_value
    }

    /// An operation begins; gives where it is noted.
    pub(crate) fn begin(&mut self, block: Block, value: u64, is_write: bool, now: Nanos, fenced: bool) -> usize {
        let ops = self.blocks.entry(block).or_default();
        ops.push(BlockOp { value, is_write, begun: now, ended: None, until: None, fenced });
        ops.len() - 1
    }

    /// A snapshot that holds what was there at that moment has this value.
    pub(crate) fn held(&mut self, block: Block, value: u64, at: Nanos) {
        let ops = self.blocks.entry(block).or_default();
        ops.push(BlockOp { value, is_write: false, begun: at, ended: Some(at), until: None, fenced: false });
    }

    /// Its session is over: another was told that it holds the volume in its place.
    pub(crate) fn close(&mut self, block: Block, index: usize, now: Nanos) {
        let op = &mut self.blocks.get_mut(&block).expect("it began")[index];
        op.until.get_or_insert(now);
    }

    /// It ended; a read saw `value`.
    pub(crate) fn end(&mut self, block: Block, index: usize, value: Option<u64>, now: Nanos) {
        let op = &mut self.blocks.get_mut(&block).expect("it began")[index];
        op.ended = Some(now);
        if let Some(value) = value {
            op.value = value;
        }
    }
}

/// A block full of one value.
pub(crate) fn block_of(value: u64) -> Bytes {
    Bytes::from(value.to_le_bytes().repeat(BLOCK_SIZE as usize / 8))
}

/// The value a block is full of; `None` when it is full of several.
pub(crate) fn value_of(block: &[u8]) -> Option<u64> {
    let first = &block[..8];
    let whole = block.chunks(8).all(|chunk| chunk == first);
    whole.then(|| u64::from_le_bytes(first.try_into().expect("8 bytes")))
}
