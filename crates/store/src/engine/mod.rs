//! The engine: what is submitted becomes planned changes, these become records of the log, durable records take
//! effect on the index, and checkpoints give the log's space back.
//!
//! It never touches the disk and never waits: [`Store::poll_io`] names I/O to perform, [`Store::handle_io`] takes
//! the results, [`Store::poll_output`] gives the answers. A look-up that misses a node of the index asks for it and
//! is tried again; only the PG it belongs to waits.
//!
//! The stages, in the order in which a transaction passes them:
//! 1. `plan`: each PG's queue, in order. Physical targets are chosen here and stand in the record.
//! 2. `group`: what is planned while the previous flush runs becomes one record, one write, one flush.
//! 3. `apply`: durable transactions take effect in log order: committed entries, direct content, attributes.
//! 4. `deferred`: bytes that are only in the log are copied to their places, latest version only.
//! 5. `checkpoint`: effects through L become a new index root; one superblock write switches to it.
//!
//! Invariants: nothing takes effect before its record is durable and the PG's commit point covers it; a block that
//! anything durable refers to is never written except in place by the record that says so; a freed block is reused
//! only after a durable checkpoint froze the state in which it was free.

mod apply;
mod check;
mod checkpoint;
mod deferred;
mod dirty;
mod group;
mod inspect;
mod open;
mod plan;
mod prewrite;
mod read;
mod replay;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cairn_disk::BufferPool;
use cairn_types::peer::{LogEntry, ObjectKey};
use cairn_types::{ObjectId, PgId};

use crate::alloc::Allocator;
use crate::error::Error;
use crate::io::{Io, IoId, IoOp, IoResult};
use crate::key::{Key, RowKey};
use crate::record::Origin;
use crate::segment::{Block, ObjectInfo, Segment};
use crate::superblock::{Identity, Superblock};
use crate::transaction::{Output, Rejection, Token, Transaction, Usage};
use crate::tree::{NodeCache, NodeRef};

pub use open::{Opened, open, write_identity};

/// Bounds of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Writes up to this many bytes travel in the record, longer ones go straight to fresh extents.
    pub inline_max: usize,
    /// A record closes when it carries this much.
    pub record_max: usize,
    /// Bytes of committed data that wait in memory for being copied to their places; more starts the copying.
    pub deferred_max: usize,
    /// Index nodes kept in memory, 4 KiB each; twice as many at most.
    pub cached_nodes: usize,
    /// Bytes that a sparse file is written ahead of use.
    pub prewrite_ahead: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            inline_max: 64 << 10,
            record_max: 2 << 20,
            deferred_max: 8 << 20,
            cached_nodes: 4096,
            prewrite_ahead: 32 << 20,
        }
    }
}

/// One 4 KiB block of an object that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BlockChange {
    /// Within the object.
    block: u32,
    to: Block,
    /// The bytes, as long as reads are served from here.
    data: Option<Bytes>,
    /// The bytes are in the record only, and are copied to their place after the change took effect.
    inline: bool,
}

/// What one entry, or one direct change, does to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Delta {
    key: Key,
    /// The whole object goes; `changes` says which blocks that meant when it was planned.
    remove: bool,
    /// Rising block numbers.
    changes: Vec<BlockChange>,
}

impl Delta {
    fn change_of(&self, block: u32) -> Option<&BlockChange> {
        self.changes.binary_search_by_key(&block, |change| change.block).ok().map(|i| &self.changes[i])
    }

    fn refers_to(&self, block: u32, at: u64) -> bool {
        self.change_of(block).is_some_and(|change| change.to.at() == Some(at))
    }
}

/// Changes of an object that are planned but have not taken effect, in the order in which they will.
#[derive(Debug, Default)]
struct Above {
    /// Committed or direct: certain to come.
    bottom: VecDeque<Arc<Delta>>,
    /// Pending entries by position.
    gated: BTreeMap<u64, Arc<Delta>>,
    /// Forgotten by a planned transaction that has not taken effect: no read sees them, but their blocks are not
    /// free yet.
    leaving: Vec<Arc<Delta>>,
}

impl Above {
    fn deltas(&self) -> impl Iterator<Item = &Arc<Delta>> {
        self.bottom.iter().chain(self.gated.values())
    }

    fn refers_to(&self, block: u32, at: u64) -> bool {
        self.deltas().chain(&self.leaving).any(|delta| delta.refers_to(block, at))
    }

    fn is_empty(&self) -> bool {
        self.bottom.is_empty() && self.gated.is_empty() && self.leaving.is_empty()
    }
}

/// An entry that is planned and not committed.
#[derive(Clone, Debug)]
struct Pending {
    entry: Arc<LogEntry>,
    delta: Arc<Delta>,
}

/// One PG.
#[derive(Debug, Default)]
struct Pg {
    /// Requests that are not planned yet.
    queue: VecDeque<Item>,
    /// As planned.
    planned_commit: u64,
    planned_end: u64,
    pending: BTreeMap<u64, Pending>,
    /// Entries that are logged and have neither taken effect nor been forgotten, by position and first record: those
    /// that a checkpoint must log again. Later than `pending`, which is as planned.
    unapplied: BTreeMap<(u64, Origin), Pending>,
    /// As it took effect: what a checkpoint writes.
    row: PgRow,
    attributes: BTreeMap<Bytes, Bytes>,
    /// The commit point that the newest checkpoint froze: rows of later entries are in no index.
    frozen_commit: u64,
}

/// The state of a PG that its row in the index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PgRow {
    /// Entries up to here took effect.
    commit: u64,
    /// The first entry that is kept; one more than `commit` when none is.
    kept_from: u64,
}

impl Default for PgRow {
    fn default() -> Self {
        Self { commit: 0, kept_from: 1 }
    }
}

#[derive(Debug)]
enum Item {
    Write { number: u64, token: Token, transaction: Box<Transaction> },
    Read { token: Token, object: ObjectId, offset: u32, len: u32 },
    Inspect { token: Token, object: ObjectId, offset: u32, len: u32, deep: bool },
    List { token: Token, pg: PgId, pg_count: u32, after: Option<Key>, limit: usize },
}

/// A row that differs from the durable index.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Row {
    Gone,
    Pg(PgRow),
    Attribute(Bytes),
    Log(Arc<LogEntry>),
    Object(ObjectInfo),
    Segment(Arc<Segment>),
}

/// A planned transaction on its way into the log.
#[derive(Debug, Default)]
struct Planned {
    id: u64,
    token: Option<Token>,
    scope: Option<PgId>,
    relog: Option<Origin>,
    rewind: Option<u64>,
    commit: u64,
    restart: Option<cairn_types::peer::LogPoint>,
    append: Vec<(Arc<LogEntry>, Arc<Delta>)>,
    direct: Vec<Arc<Delta>>,
    trim: Option<u64>,
    attributes: Vec<(Bytes, Option<Bytes>)>,
    dropped: Option<(Origin, u64)>,
    /// Entries that this commit point makes effective, in order.
    committed: Vec<(u64, Arc<LogEntry>, Arc<Delta>)>,
    /// Pending entries that are forgotten, with their positions.
    forgotten: Vec<(u64, Arc<Delta>)>,
    /// Rows of the index that its effects change, at most.
    rows: u64,
}

/// What an I/O was for.
#[derive(Debug)]
enum Purpose {
    Record { synced: bool },
    Placed { planned: u64 },
    Node { at: NodeRef, root: Option<NodeRef> },
    NodeWrite,
    Deferred { blocks: Vec<u64> },
    Superblock,
    Sync { waiters: Vec<Waiter> },
    Data { read: u64, first: usize, blocks: Vec<u64> },
    Prewrite { blocks: u64 },
    Discard { start: u64, count: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    Group,
    CheckpointData,
}

/// The end of the log and what is known of it.
#[derive(Clone, Copy, Debug)]
struct RingState {
    /// Bytes.
    len: u64,
    /// Where the next record goes, in bytes from the ring's start.
    head: u64,
    /// Bytes between the durable checkpoint's position and the head.
    used: u64,
    /// Bytes written in this life, and those found at open.
    written: u64,
    next_lsn: u64,
    prev_crc: u32,
    durable_lsn: u64,
    /// Everything through this record took effect.
    applied: LogPosition,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct LogPosition {
    /// The record before it.
    lsn: u64,
    /// In bytes from the ring's start.
    pos: u64,
    /// Checksum of the record before it.
    crc: u32,
    /// [`RingState::written`] up to here.
    written: u64,
}

/// The store of one device.
#[derive(Debug)]
pub struct Store {
    config: Config,
    superblock: Superblock,
    pool: BufferPool,
    failed: Option<Error>,

    next_io: u64,
    next_number: u64,
    io: VecDeque<Io>,
    flight: BTreeMap<IoId, Purpose>,
    outputs: VecDeque<Output>,

    pgs: BTreeMap<PgId, Pg>,
    runnable: BTreeSet<PgId>,
    stalled: BTreeSet<PgId>,
    /// Numbers of transactions that are not planned yet, for barriers.
    unplanned: BTreeSet<u64>,
    /// The store's own attributes that wait for everything before them: (number, token, name, value).
    notes: VecDeque<(u64, Token, Bytes, Bytes)>,
    own_attributes: BTreeMap<Bytes, Bytes>,
    above: BTreeMap<Key, Above>,
    /// Bytes of pending data that pins the log or memory.
    pending_inline: u64,

    ring: RingState,
    planned: VecDeque<Planned>,
    planned_bytes: u64,
    /// Rows that will change when everything planned has taken effect.
    planned_rows: u64,
    relogs: VecDeque<Planned>,
    placed: BTreeMap<u64, u32>,
    group: Option<group::Group>,
    apply: VecDeque<apply::Durable>,
    want_sync: Vec<Waiter>,
    syncing: bool,

    cache: NodeCache,
    root: Option<NodeRef>,
    loading: BTreeSet<NodeRef>,
    dirty: dirty::DirtyRows,
    /// Rows whose values take several chunks, and how many in the durable index.
    chunks: BTreeMap<RowKey, u16>,
    epoch: u64,
    checkpoint: Option<checkpoint::Run>,
    checkpoint_wanted: bool,

    deferred: deferred::Deferred,
    pins: BTreeMap<u64, u32>,
    reads: BTreeMap<u64, read::ReadRun>,
    free: Allocator,
    quarantine: BTreeSet<u64>,
    /// The medium is told of freed blocks, and this many are on their way to it.
    discards: bool,
    discarding: u64,
    /// Blocks below this were written at least once, or need not be.
    written_through: u64,
    prewrite: prewrite::Prewrite,
}

impl Store {
    /// Hands in a transaction. [`Output::Persisted`] or [`Output::Rejected`] answers it.
    pub fn submit(&mut self, transaction: Transaction) -> Token {
        let (number, token) = self.number();
        let pg = transaction.pg;
        self.unplanned.insert(number);
        let item = Item::Write { number, token, transaction: Box::new(transaction) };
        self.pgs.entry(pg).or_default().queue.push_back(item);
        self.runnable.insert(pg);
        token
    }

    /// Puts one of the store's own attributes; durable not before any transaction submitted earlier.
    pub fn put_note(&mut self, name: &[u8], value: Bytes) -> Token {
        let (number, token) = self.number();
        self.notes.push_back((number, token, Bytes::copy_from_slice(name), value));
        token
    }

    /// One of the store's own attributes, as it is durable.
    #[must_use]
    pub fn note(&self, name: &[u8]) -> Option<&Bytes> {
        self.own_attributes.get(name)
    }

    /// Reads whole blocks; what was submitted before counts, committed or not.
    pub fn read(&mut self, pg: PgId, object: ObjectId, offset: u32, len: u32) -> Token {
        let token = self.number().1;
        self.pgs.entry(pg).or_default().queue.push_back(Item::Read { token, object, offset, len });
        self.runnable.insert(pg);
        token
    }

    /// Lists the objects of a PG, in a pool of `pg_count` PGs, in key order.
    pub fn list(&mut self, pg: PgId, pg_count: u32, after: Option<ObjectKey>, limit: usize) -> Token {
        let token = self.number().1;
        let after = after.map(|key| Key::new(key.object()));
        self.pgs.entry(pg).or_default().queue.push_back(Item::List { token, pg, pg_count, after, limit });
        self.runnable.insert(pg);
        token
    }

    /// Asks for a checkpoint, as soon as the one under way is done.
    /// On a full filesystem it also looks whether there is room again.
    pub fn request_checkpoint(&mut self) {
        self.checkpoint_wanted = true;
        self.prewrite_may_retry();
    }

    /// The next I/O to perform. Call it until `None` after everything that was handed in.
    pub fn poll_io(&mut self) -> Option<Io> {
        if self.io.is_empty() && self.failed.is_none() {
            self.advance();
        }
        if self.failed.is_some() {
            self.io.clear();
        }
        self.io.pop_front()
    }

    /// The next answer.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes the result of an I/O.
    pub fn handle_io(&mut self, id: IoId, result: IoResult) {
        let Some(purpose) = self.flight.remove(&id) else { return };
        if self.failed.is_some() {
            return;
        }
        match (purpose, result) {
            (Purpose::Data { read, first, blocks }, result) => self.data_read(read, first, &blocks, result),
            (Purpose::Prewrite { blocks }, result) => self.prewritten(blocks, result),
            (Purpose::Discard { start, count }, _) => self.discarded(start, count),
            (_, Err(error)) => self.fail(Error::Disk(error)),
            (Purpose::Record { synced }, Ok(_)) => self.record_written(synced),
            (Purpose::Placed { planned }, Ok(_)) => self.placed_written(planned),
            (Purpose::Node { at, root }, Ok(page)) => self.node_read(at, root, &page),
            (Purpose::NodeWrite, Ok(_)) => self.checkpoint_node_written(),
            (Purpose::Deferred { blocks }, Ok(_)) => self.deferred_written(&blocks),
            (Purpose::Superblock, Ok(_)) => self.checkpoint_durable(),
            (Purpose::Sync { waiters }, Ok(_)) => self.synced(&waiters),
        }
    }

    /// Whether nothing is under way and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let busy = self.group.is_some() || self.checkpoint.is_some() || self.checkpoint_wanted;
        self.flight.is_empty()
            && self.io.is_empty()
            && !busy
            && self.planned.is_empty()
            && self.unplanned.is_empty()
            && self.notes.is_empty()
            && self.apply.is_empty()
    }

    /// The first error, once there is one.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.failed.as_ref()
    }

    /// Who the disk is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.superblock.identity
    }

    /// Room on the device. What a sparse file has no blocks for yet counts only when writing ahead has shown, in this
    /// life, that the filesystem below gives some: after a start nobody knows.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let shard = self.superblock.shard();
        let unwritten = if self.medium_gives_room() { self.area_end() - self.written_through } else { 0 };
        let free = (self.free.free_blocks() + unwritten) * 4096;
        let frozen = self.checkpoint.as_ref().map_or(0, checkpoint::Run::quarantined);
        let reclaiming = ((self.quarantine.len() + frozen) as u64 + self.discarding) * 4096;
        Usage { capacity: shard.area_len, used: shard.area_len - free, reclaiming }
    }

    /// Whether [`Store::usage`] is more than a beginning: right after a start nobody knows what a full filesystem below
    /// would refuse.
    #[must_use]
    pub fn knows_room(&self) -> bool {
        self.medium_gives_room() || self.medium_is_full()
    }

    /// The first block after the area.
    fn area_end(&self) -> u64 {
        let shard = self.superblock.shard();
        (shard.area_start + shard.area_len) / 4096
    }

    fn number(&mut self) -> (u64, Token) {
        let number = self.next_number;
        self.next_number += 1;
        (number, Token(number))
    }

    fn issue(&mut self, op: IoOp, purpose: Purpose) {
        let id = IoId(self.next_io);
        self.next_io += 1;
        let background = matches!(
            purpose,
            Purpose::Deferred { .. } | Purpose::NodeWrite | Purpose::Prewrite { .. } | Purpose::Discard { .. }
        );
        self.flight.insert(id, purpose);
        self.io.push_back(Io { id, op, background });
    }

    fn fail(&mut self, error: Error) {
        if self.failed.is_none() {
            self.failed = Some(error.clone());
            self.outputs.push_back(Output::Failed { error });
        }
    }

    /// One round through the stages. Every stage does what it can and leaves the rest.
    fn advance(&mut self) {
        self.apply_ready();
        self.plan_ready();
        self.plan_notes();
        self.build_group();
        self.step_checkpoint();
        self.issue_deferred();
        self.issue_prewrite();
        self.issue_sync();
    }

    fn issue_sync(&mut self) {
        if !self.syncing && !self.want_sync.is_empty() {
            self.syncing = true;
            let waiters = std::mem::take(&mut self.want_sync);
            self.issue(IoOp::Sync, Purpose::Sync { waiters });
        }
    }

    fn synced(&mut self, waiters: &[Waiter]) {
        self.syncing = false;
        for waiter in waiters {
            match waiter {
                Waiter::Group => self.group_durable(),
                Waiter::CheckpointData => self.checkpoint_data_durable(),
            }
        }
    }

    fn reject(&mut self, token: Token, reason: Rejection) {
        self.outputs.push_back(Output::Rejected { token, reason });
    }

    /// Everything that waited for a node or for space is tried again.
    fn wake(&mut self) {
        self.runnable.append(&mut self.stalled);
    }
}
