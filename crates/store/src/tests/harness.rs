//! A driver for the store in tests: performs its I/O in a seeded random order, so that no order is relied upon that
//! the store does not wait for itself.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_disk::{BufferPool, Disk, SimDisk};
use cairn_types::peer::{EntryOp, LogEntry, Logged, Run, RunContent};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, ObjectId, PgId, PoolId, RequestId, SessionId, SnapId, Version, VolumeId,
};
use uuid::Uuid;

use crate::{
    Config, FormatOptions, Io, IoOp, IoResult, LoadedPg, Opened, Output, ReadFailure, ReadReply, Store, Token,
    Transaction, format, open,
};

pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        cairn_types::id::mix(self.0)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

pub(super) const DISK_LEN: u64 = 16 << 20;

/// Small enough that everything wraps, spills and evicts within a short test.
pub(super) fn small() -> Config {
    Config {
        inline_max: 64 << 10,
        record_max: 128 << 10,
        deferred_max: 128 << 10,
        cached_nodes: 512,
        prewrite_ahead: 1 << 20,
    }
}

pub(super) fn formatted(disk: SimDisk) -> SimDisk {
    let options = FormatOptions { osd_uuid: Uuid::from_u128(7), ring_len: Some(2 << 20), force: false };
    format(&disk, &options).unwrap();
    disk
}

pub(super) struct Bench {
    pub(super) disk: SimDisk,
    pub(super) store: Store,
    pub(super) loaded: BTreeMap<PgId, LoadedPg>,
    pub(super) lost: Vec<(ObjectId, u32)>,
    pub(super) outputs: Vec<Output>,
    /// Where a write and its flush are handed over together: keep what is on the disk between them.
    pub(super) keep_midway: bool,
    pub(super) midway: Option<SimDisk>,
    waiting: Vec<Io>,
    pool: BufferPool,
    rng: Rng,
}

impl Bench {
    pub(super) fn new(seed: u64) -> Self {
        Self::open(formatted(SimDisk::new(DISK_LEN, seed)), seed)
    }

    pub(super) fn open(disk: SimDisk, seed: u64) -> Self {
        Self::try_open(disk, seed).unwrap()
    }

    pub(super) fn try_open(disk: SimDisk, seed: u64) -> Result<Self, crate::Error> {
        let opened = open(&disk, small())?;
        Ok(Self::over(disk, opened, seed))
    }

    pub(super) fn over(disk: SimDisk, opened: Opened, seed: u64) -> Self {
        let Opened { store, pgs, lost, .. } = opened;
        let (outputs, waiting) = (Vec::new(), Vec::new());
        let (pool, rng) = (BufferPool::new(1 << 20), Rng(seed));
        Self { disk, store, loaded: pgs, lost, outputs, keep_midway: false, midway: None, waiting, pool, rng }
    }

    /// Performs one I/O, any; false when there is none.
    pub(super) fn step(&mut self) -> bool {
        while let Some(io) = self.store.poll_io() {
            self.waiting.push(io);
        }
        if self.waiting.is_empty() {
            return false;
        }
        let io = self.waiting.swap_remove(self.rng.below(self.waiting.len() as u64) as usize);
        let result = self.perform(&io.op);
        self.store.handle_io(io.id, result);
        while let Some(output) = self.store.poll_output() {
            self.outputs.push(output);
        }
        true
    }

    fn perform(&mut self, op: &IoOp) -> IoResult {
        match op {
            IoOp::Write { offset, pieces, sync: true } if self.keep_midway => {
                self.disk.write_at(*offset, pieces)?;
                self.midway = Some(self.disk.fork());
                self.disk.sync().map(|()| Bytes::new())
            }
            op => op.perform(&self.disk, &self.pool),
        }
    }

    pub(super) fn settle(&mut self) {
        while self.step() {}
        while let Some(output) = self.store.poll_output() {
            self.outputs.push(output);
        }
    }

    /// Submits and waits until it is durable.
    pub(super) fn persist(&mut self, transaction: Transaction) {
        let token = self.store.submit(transaction);
        self.settle();
        assert!(self.outputs.contains(&Output::Persisted { token }), "{:?}", self.outputs.last());
    }

    pub(super) fn answer(&mut self, token: Token) -> Output {
        self.settle();
        let is_it = |output: &Output| match output {
            Output::Persisted { token: t }
            | Output::Rejected { token: t, .. }
            | Output::Read { token: t, .. }
            | Output::Inspected { token: t, .. }
            | Output::Listed { token: t, .. } => *t == token,
            Output::Failed { .. } => false,
        };
        let at = self.outputs.iter().position(is_it).expect("everything is answered when nothing is under way");
        self.outputs.remove(at)
    }

    pub(super) fn read(&mut self, pg: PgId, object: ObjectId, offset: u32, len: u32) -> Result<ReadReply, ReadFailure> {
        let token = self.store.read(pg, object, offset, len);
        match self.answer(token) {
            Output::Read { result, .. } => result,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn list(&mut self, pg: PgId, limit: usize) -> Vec<ObjectId> {
        let mut all: Vec<ObjectId> = Vec::new();
        loop {
            let after = all.last().map(|object| cairn_types::peer::ObjectKey::new(*object));
            let token = self.store.list(pg, PG_COUNT, after, limit);
            match self.answer(token) {
                Output::Listed { objects, done, .. } => {
                    assert!(objects.len() <= limit && (done || objects.len() == limit));
                    all.extend(objects);
                    if done {
                        return all;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    pub(super) fn checkpoint(&mut self) {
        self.store.request_checkpoint();
        self.settle();
    }

    /// Power cut now, then open again.
    pub(super) fn reopen(self, policy: cairn_disk::CrashPolicy, seed: u64) -> Self {
        let disk = self.disk.power_on(policy);
        drop(self);
        Self::open(disk, seed)
    }
}

pub(super) const PG_COUNT: u32 = 4;

pub(super) fn pg(index: u32) -> PgId {
    PgId { pool: PoolId(1), index }
}

/// The nth object of a PG.
pub(super) fn object(pg: PgId, n: u64) -> ObjectId {
    let mut candidates =
        (0..).map(|index| ObjectId { pool: pg.pool, volume: VolumeId(1), index, snapshot: SnapId::HEAD });
    let inside = |object: &ObjectId| cairn_types::map::pg_index(object.hash(), PG_COUNT) == pg.index;
    candidates.by_ref().filter(inside).nth(n as usize).unwrap()
}

pub(super) fn bytes(fill: u64, blocks: u32) -> Bytes {
    let mut data = Vec::new();
    for i in 0..u64::from(blocks) {
        let word = cairn_types::id::mix(fill ^ i << 32).to_le_bytes();
        (0..4096 / 8).for_each(|_| data.extend_from_slice(&word));
    }
    Bytes::from(data)
}

pub(super) fn crcs(data: &[u8]) -> Vec<u32> {
    data.chunks(4096).map(crc32c::crc32c).collect()
}

pub(super) fn entry(seq: u64, op: EntryOp) -> LogEntry {
    LogEntry {
        version: Version { c: ConfVersion(1), seq },
        prev: seq,
        epoch: Epoch(1),
        request: RequestId { session: SessionId(9), seq },
        acked_through: 0,
        generation: Generation(1),
        snap_context: SnapId(0),
        op,
    }
}

pub(super) fn write(seq: u64, object: ObjectId, block: u32, data: Bytes) -> Logged {
    let op = EntryOp::Write { object, offset: block * BLOCK_SIZE, crcs: crcs(&data) };
    Logged { entry: entry(seq, op), data }
}

pub(super) fn zero(seq: u64, object: ObjectId, block: u32, blocks: u32, unmap: bool) -> Logged {
    let op = EntryOp::Zero { object, offset: block * BLOCK_SIZE, len: blocks * BLOCK_SIZE, unmap };
    Logged { entry: entry(seq, op), data: Bytes::new() }
}

pub(super) fn data_run(block: u32, data: Bytes) -> Run {
    let crcs = crcs(&data);
    Run { offset: block * BLOCK_SIZE, len: data.len() as u32, content: RunContent::Data { data, crcs } }
}

pub(super) fn appended(pg: PgId, commit: u64, append: Vec<Logged>) -> Transaction {
    Transaction { append, ..Transaction::new(pg, commit) }
}

/// The number of writes, syncs and discards so far.
pub(super) fn io_count(disk: &SimDisk) -> u64 {
    assert!(disk.len() > 0);
    disk.io_index()
}
