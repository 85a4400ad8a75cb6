//! The real store engine on a simulated disk: what it wants done takes its time, and happens when that is over.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use cairn_disk::{BufferPool, CrashPolicy, Disk as _, Injection, SimDisk};
use cairn_osd_core::{LoadedPg, ReadFailure, Transaction};
use cairn_store::{Config, FormatOptions, Io, IoOp, Output, Store, Token};
use cairn_types::io::ReadData;
use cairn_types::peer::ObjectKey;
#[cfg(test)]
use cairn_types::scrub::BlockCopy;
use cairn_types::{BLOCK_SIZE, Epoch, ObjectId, PgId};
use uuid::Uuid;

use crate::history::value_of;
use crate::medium::{Content, Done};
use crate::rng::Rng;

const DISK: u64 = 10 << 20;
pub(crate) const RING: u64 = 1 << 20;
const OBJECT_SIZE: u32 = 64 << 10;

#[derive(Clone, Copy, Debug)]
enum Asked {
    Persist(u64),
    Read(u64),
    List(u64),
    Inspect(u64),
}

/// See the file's head.
pub(crate) struct Engine {
    pub(crate) disk: SimDisk,
    pool: BufferPool,
    store: Option<Store>,
    asked: BTreeMap<Token, Asked>,
    jobs: BTreeMap<u64, Io>,
    next_job: u64,
    done: VecDeque<Done>,
    failed: bool,
    astray: Option<Astray>,
    fails_a_write: bool,
    /// A sync failed: what was not synced before may be gone, as after a power cut.
    sync_failed: bool,
}

/// What becomes of the next write of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Astray {
    /// It lands on other data.
    Elsewhere,
    /// It never lands.
    Nowhere,
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
        let disk = SimDisk::sparse(DISK, rng.next());
        let options = FormatOptions { osd_uuid: Uuid::from_u128(uuid), ring_len: Some(RING), force: false };
        cairn_store::format(&disk, &options).expect("an empty disk is formatted");
        Self { disk, ..Self::blank() }
    }

    fn blank() -> Self {
        Self {
            disk: SimDisk::new(0, 0),
            pool: BufferPool::new(1 << 20),
            store: None,
            asked: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            done: VecDeque::new(),
            failed: false,
            astray: None,
            fails_a_write: false,
            sync_failed: false,
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

    pub(crate) fn inspect(&mut self, tag: u64, pg: PgId, object: ObjectId, (offset, len): (u32, u32), deep: bool) {
        let token = self.store().inspect(pg, object, offset, len, deep);
        self.asked.insert(token, Asked::Inspect(tag));
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
        if let IoOp::Write { offset, .. } = &io.op
            && std::mem::take(&mut self.fails_a_write)
        {
            self.disk.inject(Injection::WriteError(*offset));
        }
        let result = match self.astray {
            Some(astray) if is_data(&io.op) => {
                self.astray = None;
                self.lead_astray(&io.op, astray)
            }
            _ => io.op.perform(&self.disk, &self.pool),
        };
        self.store().handle_io(io.id, result);
    }

    /// A write that says it succeeded, and did not.
    fn lead_astray(&self, op: &IoOp, astray: Astray) -> cairn_store::IoResult {
        let IoOp::Write { offset, pieces, sync } = op else { return Ok(Bytes::new()) };
        let elsewhere = self.data_blocks().into_iter().find(|at| at.abs_diff(*offset) > 64 << 10);
        if let (Astray::Elsewhere, Some(at), Some(first)) = (astray, elsewhere, pieces.first()) {
            self.disk.write_at(at, &[first.slice(..BLOCK_SIZE as usize)])?;
        }
        if *sync {
            self.disk.sync()?;
        }
        Ok(Bytes::new())
    }

    /// Where blocks of data lie, live or left behind: clients fill each block with one value, and nothing else on the
    /// disk looks like that.
    fn data_blocks(&self) -> Vec<u64> {
        let Ok(Some(superblock)) = cairn_store::read_superblock(&self.disk) else { return Vec::new() };
        let shard = superblock.shard();
        let mut block = [0; BLOCK_SIZE as usize];
        let blocks = (shard.area_start..shard.area_start + shard.area_len).step_by(BLOCK_SIZE as usize);
        let is_data = |at: &u64| self.disk.read_at(*at, &mut block).is_ok() && value_of(&block).is_some_and(|v| v != 0);
        blocks.filter(is_data).collect()
    }

    fn some_data(&self, rng: &mut Rng, count: u32) -> Vec<u64> {
        let all = self.data_blocks();
        if all.is_empty() { Vec::new() } else { (0..count).map(|_| *rng.pick(&all)).collect() }
    }

    /// Bits of blocks of data flip.
    pub(crate) fn rot(&self, rng: &mut Rng, count: u32) {
        for at in self.some_data(rng, count) {
            self.disk.flip_bit(at + rng.below(u64::from(BLOCK_SIZE)), rng.below(8) as u8);
        }
    }

    /// Blocks of data cannot be read any more.
    pub(crate) fn make_unreadable(&self, rng: &mut Rng, count: u32) {
        self.some_data(rng, count).into_iter().for_each(|at| self.disk.inject(Injection::ReadError(at)));
    }

    pub(crate) fn lead_next_astray(&mut self, astray: Astray) {
        self.astray = Some(astray);
    }

    pub(crate) fn fail_next_write(&mut self) {
        self.fails_a_write = true;
    }

    pub(crate) fn fail_next_sync(&mut self) {
        self.sync_failed = true;
        self.disk.inject(Injection::SyncError);
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.disk.inject(Injection::Full(full));
    }

    /// A bit flips in the head of some record of the log, in the middle or at its end, live or long forgotten.
    pub(crate) fn rot_log(&self, rng: &mut Rng) {
        let Ok(Some(superblock)) = cairn_store::read_superblock(&self.disk) else { return };
        let shard = superblock.shard();
        let mut block = [0; BLOCK_SIZE as usize];
        let ring = (shard.ring_start..shard.ring_start + shard.ring_len).step_by(BLOCK_SIZE as usize);
        let is_head = |at: &u64| self.disk.read_at(*at, &mut block).is_ok() && block.starts_with(b"CWAL");
        let heads = ring.filter(is_head).collect::<Vec<_>>();
        if !heads.is_empty() {
            self.disk.flip_bit(rng.pick(&heads) + rng.between(8, 88), rng.below(8) as u8);
        }
    }

    /// As the disk is now.
    pub(crate) fn image(&self) -> SimDisk {
        self.disk.fork()
    }

    /// The disk is what it was then.
    pub(crate) fn restore(&mut self, image: &SimDisk) {
        self.disk = image.fork().power_on(CrashPolicy::LOSE_ALL);
    }

    pub(crate) fn look_for_room(&mut self) {
        self.store().request_checkpoint();
    }

    /// Whether there is no room for new data.
    pub(crate) fn is_full(&self) -> bool {
        self.store.as_ref().is_some_and(|store| {
            let usage = store.usage();
            usage.available() < usage.capacity / 4
        })
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
            Output::Inspected { token, blocks } => {
                if let Some(Asked::Inspect(tag)) = self.asked.remove(&token) {
                    self.done.push_back(Done::Inspected(tag, blocks));
                }
                return;
            }
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
        let power = power || std::mem::take(&mut self.sync_failed);
        self.astray = None;
        self.fails_a_write = false;
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

    fn objects(&mut self, pg: PgId, pg_count: u32) -> Vec<ObjectId> {
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
        objects
    }

    /// Every block that is not absent, held against its bytes, as a process killed at this moment would find it.
    #[cfg(test)]
    pub(crate) fn survey(
        &self,
        pgs: impl Iterator<Item = PgId>,
        pg_count: u32,
    ) -> BTreeMap<PgId, BTreeMap<(ObjectId, u32), BlockCopy>> {
        let disk = self.disk.fork();
        let opened = cairn_store::open(&disk, config()).expect("a disk that keeps its promises opens");
        let mut copy = Self { disk, store: Some(opened.store), ..Self::blank() };
        pgs.map(|pg| (pg, copy.survey_pg(pg, pg_count))).collect()
    }

    #[cfg(test)]
    fn survey_pg(&mut self, pg: PgId, pg_count: u32) -> BTreeMap<(ObjectId, u32), BlockCopy> {
        let mut copies = BTreeMap::new();
        for object in self.objects(pg, pg_count) {
            self.inspect(1, pg, object, (0, OBJECT_SIZE), true);
            self.settle();
            while let Some(done) = self.take_done() {
                let Done::Inspected(1, blocks) = done else { continue };
                let blocks = blocks.into_iter().enumerate().filter(|(_, copy)| *copy != BlockCopy::Absent);
                copies.extend(blocks.map(|(index, copy)| ((object, index as u32 * BLOCK_SIZE), copy)));
            }
        }
        copies
    }

    pub(crate) fn content(&mut self, pg: PgId, pg_count: u32) -> Content {
        let mut content = Content::default();
        for object in self.objects(pg, pg_count) {
            self.read(1, pg, object, 0, OBJECT_SIZE);
            self.settle();
            while let Some(done) = self.take_done() {
                let Done::Read(1, result) = done else { continue };
                let read = match result {
                    Ok(read) => read,
                    Err(ReadFailure::Corrupt { offsets }) => {
                        self.content_around(object, pg, &offsets, &mut content);
                        continue;
                    }
                };
                for (index, state) in read.blocks.iter().enumerate() {
                    let at = index as u32 * BLOCK_SIZE;
                    content.note(object, at, *state);
                }
            }
        }
        content
    }

    /// The blocks of an object one by one, because some of them are bad.
    fn content_around(&mut self, object: ObjectId, pg: PgId, bad: &[u32], content: &mut Content) {
        for at in (0..OBJECT_SIZE).step_by(BLOCK_SIZE as usize) {
            if bad.contains(&at) {
                content.bad.insert((object, at));
                continue;
            }
            self.read(2, pg, object, at, BLOCK_SIZE);
            self.settle();
            while let Some(done) = self.take_done() {
                match done {
                    Done::Read(2, Ok(read)) => content.note(object, at, read.blocks[0]),
                    Done::Read(2, Err(_)) => {
                        content.bad.insert((object, at));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Whether this writes blocks of data to their places, and nothing else.
fn is_data(op: &IoOp) -> bool {
    let IoOp::Write { pieces, .. } = op else { return false };
    let uniform = |piece: &Bytes| piece.chunks(BLOCK_SIZE as usize).all(|b| value_of(b).is_some_and(|v| v != 0));
    pieces.iter().all(uniform)
}
