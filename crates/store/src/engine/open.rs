//! Opening: the newest superblock, the index under it, and the log after it, until the store is where it was; then
//! a new mount, which no record of an earlier life can be mistaken for.
//!
//! This runs before the loop does and reads the disk directly. When it returns, everything it reports is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Bytes, BytesMut};
use cairn_disk::{BufferPool, Disk};
use cairn_types::peer::LogEntry;
use cairn_types::{ObjectId, PgId};

use super::checkpoint::{decode_pg_row, without_length};
use super::{Config, LogPosition, Pending, Pg, PgRow, RingState, Store};
use crate::alloc::{Allocator, UsedMap};
use crate::codec::{Malformed, Reader};
use crate::error::Error;
use crate::format::{read_superblock, write_superblock};
use crate::key::{RowKey, Scope};
use crate::record::decode_entry;
use crate::scan::scan;
use crate::segment::{Block, Segment};
use crate::superblock::{Identity, Superblock};
use crate::transaction::LoadedPg;
use crate::tree::NodeCache;
use crate::walk::{Found, walk};

/// An open store and what it found.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// The PGs, as their owner left them.
    pub pgs: BTreeMap<PgId, LoadedPg>,
    /// Blocks whose bytes in the log were rotten although they had been durable: (object, byte offset). They read
    /// as corrupt until they are repaired.
    pub lost: Vec<(ObjectId, u32)>,
    /// Records that were replayed.
    pub replayed: u64,
}

/// What the index says, beside the blocks it refers to.
#[derive(Default)]
pub(super) struct IndexContent {
    rows: BTreeMap<PgId, PgRow>,
    attributes: BTreeMap<(Scope, Bytes), Bytes>,
    log: BTreeMap<(PgId, u64), LogEntry>,
    chunks: BTreeMap<RowKey, u16>,
    /// Where its nodes lie.
    pub(super) nodes: BTreeSet<u64>,
}

/// Opens a formatted device for use.
///
/// # Errors
/// When it is not formatted, fails, or holds what must not be used; see [`Error`].
pub fn open(disk: &dyn Disk, config: Config) -> Result<Opened, Error> {
    let mut superblock = read_superblock(disk)?.ok_or(Error::NotFormatted)?;
    let log = scan(disk, &superblock)?;
    let shard = superblock.shard();
    let mut used = UsedMap::new(shard.area_start / 4096, shard.area_len / 4096);
    let mut index = read_index(disk, &superblock, &mut used)?;
    let nodes = std::mem::take(&mut index.nodes);
    superblock.sequence += 1;
    // Where a copy of the superblock rotted, the log knows later lives than the other one does.
    let mounts = log.records.iter().map(|record| record.header.mount);
    superblock.mount = mounts.fold(superblock.mount, u64::max) + 1;
    let mut store = Store::at_checkpoint(config, superblock);
    let mut kept = store.adopt(index);
    let lost = store.replay(disk, &log, &mut used, &nodes)?;
    store.finish_open(disk, used);
    write_superblock(disk, &store.superblock)?;
    let ids: Vec<PgId> = store.pgs.keys().copied().collect();
    let mut pgs = BTreeMap::new();
    for id in ids {
        let entries = store.kept_entries(id, &mut kept);
        pgs.insert(id, store.loaded(disk, id, entries)?);
    }
    Ok(Opened { store, pgs, lost, replayed: log.records.len() as u64 })
}

/// Writes who the disk is, durably: at registration, before anything is done under the new incarnation.
///
/// # Errors
/// When the disk fails.
pub fn write_identity(disk: &dyn Disk, store: &mut Store, identity: Identity) -> Result<(), Error> {
    store.superblock.identity = identity;
    store.superblock.sequence += 1;
    write_superblock(disk, &store.superblock)
}

pub(super) fn read_index(disk: &dyn Disk, superblock: &Superblock, used: &mut UsedMap) -> Result<IndexContent, Error> {
    let mut content = IndexContent::default();
    let mut partial: Option<(RowKey, BytesMut)> = None;
    let finish = |content: &mut IndexContent, partial: Option<(RowKey, BytesMut)>| match partial {
        Some((key, value)) => take_chunked(content, &key, &value).map_err(|malformed| row_error(&key, malformed)),
        None => Ok(()),
    };
    walk(disk, superblock.checkpoint.root, &mut |found| {
        let (key, value) = match found {
            Found::Node(block) if used.mark(block) => {
                content.nodes.insert(block);
                return Ok(());
            }
            Found::Node(block) => return Err(Error::CorruptExtent { block }),
            Found::Row(key, value) => (key, value),
        };
        let (row, chunk) = RowKey::decode(key)
            .map_err(|malformed| Error::Malformed { place: "a row of the index".to_owned(), malformed })?;
        match row {
            RowKey::Pg(pg) => {
                let decoded = decode_pg_row(value).map_err(|malformed| row_error(&row, malformed))?;
                content.rows.insert(pg, decoded);
            }
            RowKey::Object(_, crate::key::Part::Segment(_)) => {
                let segment = Segment::decode(value).map_err(|malformed| row_error(&row, malformed))?;
                for at in segment.blocks.iter().filter_map(|block| block.at()) {
                    if !used.mark(at) {
                        return Err(Error::CorruptExtent { block: at });
                    }
                }
            }
            RowKey::Object(..) => {}
            RowKey::Attribute(..) | RowKey::Log(..) => {
                if chunk == 0 {
                    finish(&mut content, partial.take())?;
                    partial = Some((row, BytesMut::from(&value[..])));
                } else if let Some((key, bytes)) = partial.as_mut().filter(|(key, _)| *key == row) {
                    bytes.extend_from_slice(value);
                    content.chunks.insert(key.clone(), chunk + 1);
                } else {
                    return Err(row_error(&row, Malformed::Short("the first chunk")));
                }
            }
        }
        Ok(())
    })?;
    finish(&mut content, partial)?;
    Ok(content)
}

fn take_chunked(content: &mut IndexContent, key: &RowKey, value: &[u8]) -> Result<(), Malformed> {
    let bytes = without_length(value)?;
    match key {
        RowKey::Attribute(scope, _, name) => {
            content.attributes.insert((*scope, name.clone()), Bytes::copy_from_slice(bytes));
        }
        RowKey::Log(pg, seq) => {
            let mut r = Reader::new(bytes);
            content.log.insert((*pg, *seq), decode_entry(&mut r)?);
            r.finish()?;
        }
        RowKey::Pg(_) | RowKey::Object(..) => {}
    }
    Ok(())
}

fn row_error(key: &RowKey, malformed: Malformed) -> Error {
    Error::Malformed { place: format!("the row {key:?}"), malformed }
}

/// The bytes of a pending entry: from the log, or from where they were placed; `None` when they are not whole.
fn pending_data(disk: &dyn Disk, pending: &Pending) -> Result<Option<Bytes>, Error> {
    let mut data = BytesMut::new();
    for change in &pending.delta.changes {
        match (change.to, &change.data) {
            (Block::Lost { .. }, _) => return Ok(None),
            (Block::Absent | Block::Zero, _) => {}
            (Block::Data { .. }, Some(bytes)) => data.extend_from_slice(bytes),
            (Block::Data { at, crc }, None) => {
                let mut block = [0; 4096];
                match disk.read_at(at * 4096, &mut block) {
                    Ok(()) if crc32c::crc32c(&block) == crc => data.extend_from_slice(&block),
                    Ok(()) | Err(cairn_disk::Error::Io { .. }) => return Ok(None),
                    Err(error) => return Err(Error::Disk(error)),
                }
            }
        }
    }
    Ok(Some(data.freeze()))
}

impl Store {
    pub(super) fn at_checkpoint(config: Config, superblock: Superblock) -> Self {
        let checkpoint = superblock.checkpoint;
        let applied = LogPosition {
            lsn: checkpoint.next_lsn - 1,
            pos: checkpoint.ring_pos,
            crc: checkpoint.prev_crc,
            written: 0,
        };
        let ring = RingState {
            len: superblock.shard().ring_len,
            head: checkpoint.ring_pos,
            used: 0,
            written: 0,
            next_lsn: checkpoint.next_lsn,
            prev_crc: checkpoint.prev_crc,
            durable_lsn: 0,
            applied,
        };
        Self {
            config,
            pool: BufferPool::new(4 * config.record_max + (8 << 20)),
            failed: None,
            next_io: 1,
            next_number: 1,
            io: VecDeque::new(),
            flight: BTreeMap::new(),
            outputs: VecDeque::new(),
            pgs: BTreeMap::new(),
            runnable: BTreeSet::new(),
            stalled: BTreeSet::new(),
            unplanned: BTreeSet::new(),
            notes: VecDeque::new(),
            own_attributes: BTreeMap::new(),
            above: BTreeMap::new(),
            pending_inline: 0,
            ring,
            planned: VecDeque::new(),
            planned_bytes: 0,
            planned_rows: 0,
            relogs: VecDeque::new(),
            placed: BTreeMap::new(),
            group: None,
            apply: VecDeque::new(),
            want_sync: Vec::new(),
            syncing: false,
            cache: NodeCache::new(config.cached_nodes),
            root: checkpoint.root,
            loading: BTreeSet::new(),
            dirty: super::dirty::DirtyRows::default(),
            chunks: BTreeMap::new(),
            epoch: 1,
            checkpoint: None,
            checkpoint_wanted: false,
            deferred: super::deferred::Deferred::default(),
            pins: BTreeMap::new(),
            reads: BTreeMap::new(),
            free: Allocator::default(),
            quarantine: BTreeSet::new(),
            discards: false,
            discarding: 0,
            written_through: checkpoint.written_through,
            prewrite: super::prewrite::Prewrite::default(),
            superblock,
        }
    }

    /// Takes over what the index says; gives back the kept log entries.
    pub(super) fn adopt(&mut self, index: IndexContent) -> BTreeMap<(PgId, u64), LogEntry> {
        for (id, row) in index.rows {
            let pg = Pg {
                planned_commit: row.commit,
                planned_end: row.commit,
                frozen_commit: row.commit,
                row,
                ..Pg::default()
            };
            self.pgs.insert(id, pg);
        }
        for ((scope, name), value) in index.attributes {
            match scope {
                Some(id) => self.pgs.entry(id).or_default().attributes.insert(name, value),
                None => self.own_attributes.insert(name, value),
            };
        }
        self.chunks = index.chunks;
        index.log
    }

    /// The PG's kept entries: those of the index and of replayed records, then the pending ones.
    fn kept_entries(&self, id: PgId, kept: &mut BTreeMap<(PgId, u64), LogEntry>) -> Vec<LogEntry> {
        let pg = &self.pgs[&id];
        let mut entries = Vec::new();
        for seq in pg.row.kept_from..=pg.row.commit {
            let key = RowKey::Log(id, seq);
            match self.dirty.get(&key) {
                Some(super::Row::Log(entry)) => entries.push(LogEntry::clone(entry)),
                Some(_) => {}
                None => entries.extend(kept.remove(&(id, seq))),
            }
        }
        entries.extend(pg.pending.values().map(|pending| LogEntry::clone(&pending.entry)));
        entries
    }

    /// The PG as its owner finds it.
    fn loaded(&self, disk: &dyn Disk, id: PgId, log: Vec<LogEntry>) -> Result<LoadedPg, Error> {
        let pg = &self.pgs[&id];
        let mut pending = Vec::new();
        for (seq, entry) in &pg.pending {
            if let Some(data) = pending_data(disk, entry)? {
                pending.push((*seq, data));
            }
        }
        let attributes = pg.attributes.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect();
        Ok(LoadedPg { commit: pg.planned_commit, end: pg.planned_end, log, pending, attributes })
    }

    /// What is not referred to is free. On a sparse file only what was written once counts as free.
    fn finish_open(&mut self, disk: &dyn Disk, used: UsedMap) {
        let end = self.area_end();
        self.discards = !disk.wants_prewrite();
        let referred = used.highest().map_or(0, |block| block + 1);
        self.written_through = if disk.wants_prewrite() { self.written_through.max(referred) } else { end };
        self.free = used.free_below(self.written_through);
    }
}
