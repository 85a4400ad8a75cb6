//! The real store engine on a simulated disk: what it wants done takes its time, and happens when that is over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use cairn_disk::{BufferPool, CrashPolicy, SimDisk};
use cairn_osd_core::{LoadedPg, ReadFailure, Transaction};
use cairn_store::{Config, FormatOptions, Io, IoOp, Output, Store, Token};
use cairn_types::io::{BlockState, ReadData};
use cairn_types::peer::ObjectKey;
use cairn_types::{BLOCK_SIZE, Epoch, ObjectId, PgId};
use uuid::Uuid;

use crate::medium::Done;
use crate::rng::Rng;

const DISK: u64 = 24 << 20;
const RING: u64 = 2 << 20;
const OBJECT_SIZE: u32 = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Asked {
    Persist(u64),
    Read(u64),
    List(u64),
}

/// See the file's head.
pub(crate) struct Engine {
    disk: SimDisk,
    pool: BufferPool,
    store: Option<Store>,
    asked: BTreeMap<Token, Asked>,
    jobs: BTreeMap<u64, Io>,
    next_job: u64,
    done: VecDeque<Done>,
    failed: bool,
}

fn config() -> Config {
    Config {
        inline_max: 16 << 10,
        record_max: 256 << 10,
        deferred_max: 128 << 10,
        cached_nodes: 64,
        prewrite_ahead: 1 << 20,
    }
}

impl Engine {
    pub(crate) fn new(uuid: u128, rng: &mut Rng) -> Self {
        let disk = SimDisk::new(DISK, rng.next());
        let options = FormatOptions { osd_uuid: Uuid::from_u128(uuid), ring_len: Some(RING), force: false };
        cairn_store::format(&disk, &options).expect("an empty disk is formatted");
        Self {
            disk,
            pool: BufferPool::new(1 << 20),
            store: None,
            asked: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            done: VecDeque::new(),
            failed: false,
        }
    }

    fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("a living process has opened its store")
    }

    pub(crate) fn submit(&mut self, tag: u64, transaction: Transaction) {
        let Transaction { pg, rewind, commit, restart, append, content, remove, trim, attributes } = transaction;
        let transaction =
            cairn_store::Transaction { pg, rewind, commit, restart, append, content, remove, trim, attributes };
        let token = self.store().submit(transaction);
        self.asked.insert(token, Asked::Persist(tag));
    }

    pub(crate) fn submit_epoch(&mut self, tag: u64, epoch: Epoch) {
        let token = self.store().put_note(b"epoch", Bytes::copy_from_slice(&epoch.0.to_le_bytes()));
        self.asked.insert(token, Asked::Persist(tag));
    }

    pub(crate) fn read(&mut self, tag: u64, pg: PgId, object: ObjectId, offset: u32, len: u32) {
        let token = self.store().read(pg, object, offset, len);
        self.asked.insert(token, Asked::Read(tag));
    }

    pub(crate) fn list(&mut self, tag: u64, pg: PgId, pg_count: u32, after: Option<ObjectKey>, limit: usize) {
        let token = self.store().list(pg, pg_count, after, limit);
        self.asked.insert(token, Asked::List(tag));
    }

    pub(crate) fn take_jobs(&mut self) -> Vec<(u64, bool)> {
        let mut jobs = Vec::new();
        while let Some(io) = self.store.as_mut().and_then(Store::poll_io) {
            self.next_job += 1;
            jobs.push((self.next_job, matches!(io.op, IoOp::Sync)));
            self.jobs.insert(self.next_job, io);
        }
        jobs
    }

    pub(crate) fn finish(&mut self, job: u64) {
        let Some(io) = self.jobs.remove(&job) else { return };
        let result = io.op.perform(&self.disk, &self.pool);
        self.store().handle_io(io.id, result);
    }

    pub(crate) fn take_done(&mut self) -> Option<Done> {
        while let Some(output) = self.store.as_mut().and_then(Store::poll_output) {
            self.take_output(output);
        }
        self.done.pop_front()
    }

    fn take_output(&mut self, output: Output) {
        let (token, done) = match output {
            Output::Persisted { token } => (token, None),
            Output::Rejected { reason, .. } => {
                self.done.push_back(Done::Failed(format!("a transaction was rejected: {reason}")));
                return;
            }
            Output::Failed { error } => {
                if !std::mem::replace(&mut self.failed, true) {
                    self.done.push_back(Done::Failed(error.to_string()));
                }
                return;
            }
            Output::Read { token, result } => {
                let result = result.map(|reply| ReadData { data: reply.data, blocks: reply.blocks });
                (token, Some(Ok(result.map_err(|failure| ReadFailure::Corrupt { offsets: failure.offsets }))))
            }
            Output::Listed { token, objects, .. } => (token, Some(Err(objects))),
        };
        match (self.asked.remove(&token), done) {
            (Some(Asked::Persist(tag)), None) => self.done.push_back(Done::Persisted(tag)),
            (Some(Asked::Read(tag)), Some(Ok(result))) => self.done.push_back(Done::Read(tag, result)),
            (Some(Asked::List(tag)), Some(Err(objects))) => self.done.push_back(Done::Listed(tag, objects)),
            (asked, _) => panic!("an answer to what was not asked: {asked:?}"),
        }
    }

    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        // What was on its way to the disk may have got there.
        for io in std::mem::take(&mut self.jobs).into_values() {
            if !matches!(io.op, IoOp::Read { .. }) && rng.chance(500) {
                let _ = io.op.perform(&self.disk, &self.pool);
            }
        }
        let policy = match (power, rng.below(3)) {
            (false, _) => CrashPolicy::KEEP_ALL,
            (true, 0) => CrashPolicy::LOSE_ALL,
            (true, _) => CrashPolicy::HARSH,
        };
        if power {
            self.disk.power_off(policy);
            self.disk = self.disk.power_on(policy);
        }
        self.store = None;
        self.asked.clear();
        self.done.clear();
        self.failed = false;
    }

    pub(crate) fn load(&mut self) -> Result<(Epoch, Vec<(PgId, LoadedPg)>), String> {
        let opened = cairn_store::open(&self.disk, config()).map_err(|error| error.to_string())?;
        let epoch = opened
            .store
            .note(b"epoch")
            .map_or(0, |note| u64::from_le_bytes(note[..].try_into().expect("8 bytes were put")));
        let pgs = opened.pgs.into_iter().map(|(id, pg)| {
            let cairn_store::LoadedPg { commit, log, pending, attributes, .. } = pg;
            (id, LoadedPg { commit, log, pending, attributes })
        });
        let pgs = pgs.collect();
        self.store = Some(opened.store);
        Ok((Epoch(epoch), pgs))
    }

    /// Works until nothing is under way, at once.
    fn settle(&mut self) {
        loop {
            let jobs = self.take_jobs();
            if jobs.is_empty() {
                return;
            }
            for (job, _) in jobs {
                self.finish(job);
            }
        }
    }

    pub(crate) fn content(&mut self, pg: PgId, pg_count: u32) -> BTreeMap<(ObjectId, u32), u32> {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.finish(job);
        }
        while self.take_done().is_some() {}
        self.list(0, pg, pg_count, None, usize::MAX);
        self.settle();
        let mut objects = Vec::new();
        while let Some(done) = self.take_done() {
            if let Done::Listed(_, listed) = done {
                objects = listed;
            }
        }
        let mut content = BTreeMap::new();
        for object in objects {
            self.read(1, pg, object, 0, OBJECT_SIZE);
            self.settle();
            while let Some(done) = self.take_done() {
                let Done::Read(1, result) = done else { continue };
                let read = result.expect("every block at rest matches its checksum");
                for (index, state) in read.blocks.iter().enumerate() {
                    let at = index as u32 * BLOCK_SIZE;
                    match state {
                        BlockState::Absent => None,
                        BlockState::Zero => content.insert((object, at), 0),
                        BlockState::Data { crc } => content.insert((object, at), *crc),
                    };
                }
            }
        }
        content
    }
}
