//! The store as the offline check sees it: opened in memory only, with the log replayed and nothing written.

use std::sync::Arc;

use cairn_disk::Disk;
use cairn_types::{ObjectId, PgId};

use super::open::read_index;
use super::{Config, Row, Store};
use crate::alloc::UsedMap;
use crate::error::Error;
use crate::key::{Key, Part, RowKey};
use crate::scan::Log;
use crate::segment::{Block, Segment};
use crate::superblock::Superblock;

/// Data of an entry that is logged and not committed, straight in its place.
pub(crate) struct PendingBlock {
    pub(crate) pg: PgId,
    pub(crate) seq: u64,
    pub(crate) object: ObjectId,
    /// Within the object.
    pub(crate) block: u32,
    pub(crate) at: u64,
    pub(crate) crc: u32,
    /// The place has these bytes; otherwise they are in the log.
    pub(crate) placed: bool,
}

impl Store {
    /// The store as replay leaves it, and the blocks whose bytes in the log are rotten.
    pub(crate) fn replayed(
        disk: &dyn Disk,
        superblock: &Superblock,
        log: &Log,
    ) -> Result<(Self, Vec<(ObjectId, u32)>), Error> {
        let shard = superblock.shard();
        let mut used = UsedMap::new(shard.area_start / 4096, shard.area_len / 4096);
        let mut index = read_index(disk, superblock, &mut used)?;
        let nodes = std::mem::take(&mut index.nodes);
        let mut store = Self::at_checkpoint(Config::default(), superblock.clone());
        store.adopt(index);
        let lost = store.replay(disk, log, &mut used, &nodes)?;
        Ok((store, lost))
    }

    /// Whether replay changed this row: what the index says of it is old.
    pub(crate) fn has_replayed(&self, key: &RowKey) -> bool {
        self.dirty.get(key).is_some()
    }

    /// The segments that replay changed.
    pub(crate) fn replayed_segments(&self) -> impl Iterator<Item = (Key, u16, &Arc<Segment>)> {
        self.dirty.iter().filter_map(|(key, row)| match (key, row) {
            (RowKey::Object(key, Part::Segment(number)), Row::Segment(segment)) => Some((*key, *number, segment)),
            _ => None,
        })
    }

    /// Whether the bytes of this place are in the log, and still to be copied.
    pub(crate) fn waits_for_copy(&self, at: u64) -> bool {
        self.deferred.contains(at)
    }

    /// The data of pending entries.
    pub(crate) fn pending_blocks(&self) -> Vec<PendingBlock> {
        let mut out = Vec::new();
        for (pg, state) in &self.pgs {
            for (seq, pending) in &state.pending {
                for change in &pending.delta.changes {
                    let Block::Data { at, crc } = change.to else { continue };
                    let (object, block, placed) = (pending.delta.key.object(), change.block, !change.inline);
                    out.push(PendingBlock { pg: *pg, seq: *seq, object, block, at, crc, placed });
                }
            }
        }
        out
    }
}
