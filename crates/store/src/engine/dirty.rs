//! Rows that differ from the durable index, and an upper bound of the room that the next checkpoint needs for them.
//!
//! The bound is why a full device still takes deletes: what is planned must always find room for its index nodes, so
//! planning asks here before it goes on, and data is refused before the index is in need.

use std::collections::BTreeMap;
use std::ops::RangeFrom;

use cairn_types::peer::{EntryOp, LogEntry};

use super::Row;
use crate::key::RowKey;
use crate::tree::MAX_VALUE;

/// Index nodes that one changed row may cost: its leaf, the other half of it where it splits, the node above.
const NODES_PER_ROW: u64 = 3;
/// Nodes near the root, and a little.
const NODES_BESIDE: u64 = 16;

/// Nodes that a checkpoint of so many changed rows needs at most.
pub(super) fn nodes_for(rows: u64) -> u64 {
    if rows == 0 { 0 } else { NODES_PER_ROW * rows + NODES_BESIDE }
}

/// Rows of the index that a value of so many bytes takes.
pub(super) fn chunks_of(bytes: usize) -> u64 {
    bytes as u64 / MAX_VALUE as u64 + 1
}

/// Rows of the index that a log entry takes.
pub(super) fn log_rows(entry: &LogEntry) -> u64 {
    match &entry.op {
        EntryOp::Write { crcs, .. } => chunks_of(256 + crcs.len() * 4),
        EntryOp::Zero { .. } | EntryOp::Remove { .. } => 1,
    }
}

#[derive(Debug)]
struct DirtyRow {
    row: Row,
    epoch: u64,
}

impl DirtyRow {
    fn weight(&self) -> u64 {
        match &self.row {
            Row::Attribute(value) => chunks_of(value.len()),
            Row::Log(entry) => log_rows(entry),
            Row::Gone | Row::Pg(_) | Row::Object(_) | Row::Segment(_) => 1,
        }
    }
}

/// The rows, by key.
#[derive(Debug, Default)]
pub(super) struct DirtyRows {
    rows: BTreeMap<RowKey, DirtyRow>,
    weight: u64,
}

impl DirtyRows {
    pub(super) fn get(&self, key: &RowKey) -> Option<&Row> {
        self.rows.get(key).map(|dirty| &dirty.row)
    }

    pub(super) fn put(&mut self, key: RowKey, row: Row, epoch: u64) {
        let dirty = DirtyRow { row, epoch };
        self.weight += dirty.weight();
        if let Some(old) = self.rows.insert(key, dirty) {
            self.weight -= old.weight();
        }
    }

    pub(super) fn forget(&mut self, key: &RowKey) {
        if let Some(old) = self.rows.remove(key) {
            self.weight -= old.weight();
        }
    }

    /// A checkpoint that froze this epoch is durable.
    pub(super) fn retire(&mut self, epoch: u64) {
        self.rows.retain(|_, dirty| dirty.epoch > epoch);
        self.weight = self.rows.values().map(DirtyRow::weight).sum();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Rows of the index, where a long value counts as many.
    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&RowKey, &Row)> {
        self.rows.iter().map(|(key, dirty)| (key, &dirty.row))
    }

    pub(super) fn range(&self, from: RangeFrom<RowKey>) -> impl Iterator<Item = (&RowKey, &Row)> {
        self.rows.range(from).map(|(key, dirty)| (key, &dirty.row))
    }
}
