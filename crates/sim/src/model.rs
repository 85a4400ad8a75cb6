//! A store in memory: the smallest thing that keeps the promises the core relies on, and on a power cut no more than
//! them. It is the model that the real engine is compared with.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use cairn_osd_core::{LoadedPg, Transaction};
use cairn_types::io::{BlockState, ReadData};
use cairn_types::map::pg_index;
use cairn_types::peer::{EntryOp, LogEntry, LogPoint, ObjectKey, RunContent};
use cairn_types::scrub::BlockCopy;
use cairn_types::{BLOCK_SIZE, Epoch, ObjectId, PgId};

use crate::medium::Done;
use crate::rng::Rng;

/// A block: explicit zeros, or data with its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Block {
    Zero,
    Data(Bytes, u32),
}

type Object = BTreeMap<u32, Block>;
type Objects = BTreeMap<ObjectKey, Object>;

/// One PG, but for its objects: which PG an object is of the disk does not know.
#[derive(Clone, Debug, Default)]
struct PgImage {
    commit: u64,
    base: LogPoint,
    log: VecDeque<LogEntry>,
    pending: BTreeMap<u64, Bytes>,
    attributes: BTreeMap<Vec<u8>, Bytes>,
}

impl PgImage {
    fn end(&self) -> u64 {
        self.log.back().map_or(self.base.seq(), |entry| entry.version.seq)
    }

    fn carry_out(&mut self, objects: &mut Objects, transaction: &Transaction) {
        if let Some(to) = transaction.rewind {
            assert!(to >= self.commit, "a rewind below the commit point");
            while self.end() > to {
                let entry = self.log.pop_back().expect("above the base");
                self.pending.remove(&entry.version.seq);
            }
        }
        self.commit_through(objects, transaction.commit);
        if let Some(base) = transaction.restart {
            assert!(base.seq() >= self.end().min(self.commit) && base.seq() >= self.commit, "a restart goes forward");
            self.log.clear();
            self.pending.clear();
            self.base = base;
            self.commit = base.seq();
        }
        for logged in &transaction.append {
            assert_eq!(logged.entry.version.seq, self.end() + 1, "an append that does not continue the log");
            self.pending.insert(logged.entry.version.seq, logged.data.clone());
            self.log.push_back(logged.entry.clone());
        }
        for (object, runs) in &transaction.content {
            let blocks = objects.entry(ObjectKey::new(*object)).or_default();
            for run in runs {
                for index in 0..run.len / BLOCK_SIZE {
                    let at = run.offset + index * BLOCK_SIZE;
                    put(
                        blocks,
                        at,
                        match &run.content {
                            RunContent::Absent => None,
                            RunContent::Zero => Some(Block::Zero),
                            RunContent::Data { data, crcs } => Some(data_block(data, crcs, index)),
                        },
                    );
                }
            }
        }
        for object in &transaction.remove {
            objects.remove(&ObjectKey::new(*object));
        }
        objects.retain(|_, object| !object.is_empty());
        if let Some(through) = transaction.trim {
            assert!(through <= self.commit, "only committed entries are trimmed");
            while self.log.front().is_some_and(|entry| entry.version.seq <= through) {
                let entry = self.log.pop_front().expect("seen");
                self.base = entry.point();
            }
        }
        for (key, value) in &transaction.attributes {
            match value {
                Some(value) => self.attributes.insert(key.clone(), value.clone()),
                None => self.attributes.remove(key),
            };
        }
    }

    fn commit_through(&mut self, objects: &mut Objects, commit: u64) {
        let ready = self.pending.keys().copied().take_while(|seq| *seq <= commit).collect::<Vec<_>>();
        for seq in ready {
            let data = self.pending.remove(&seq).expect("listed");
            let entry =
                self.log.iter().find(|entry| entry.version.seq == seq).expect("pending entries are kept").clone();
            apply(objects, &entry.op, &data);
        }
        self.commit = self.commit.max(commit.min(self.end()));
    }

    /// What is not in effect yet, in order.
    fn pending(&self) -> impl Iterator<Item = (&LogEntry, &Bytes)> {
        self.log.iter().filter_map(|entry| Some((entry, self.pending.get(&entry.version.seq)?)))
    }
}

fn data_block(data: &Bytes, crcs: &[u32], index: u32) -> Block {
    let at = (index * BLOCK_SIZE) as usize;
    Block::Data(data.slice(at..at + BLOCK_SIZE as usize), crcs[index as usize])
}

fn put(blocks: &mut Object, at: u32, block: Option<Block>) {
    match block {
        Some(block) => blocks.insert(at, block),
        None => blocks.remove(&at),
    };
}

fn apply(objects: &mut Objects, op: &EntryOp, data: &Bytes) {
    let key = ObjectKey::new(op.object());
    match op {
        EntryOp::Write { offset, crcs, .. } => {
            let blocks = objects.entry(key).or_default();
            for index in 0..crcs.len() as u32 {
                put(blocks, offset + index * BLOCK_SIZE, Some(data_block(data, crcs, index)));
            }
        }
        EntryOp::Zero { offset, len, unmap, .. } => {
            let blocks = objects.entry(key).or_default();
            for at in (*offset..offset + len).step_by(BLOCK_SIZE as usize) {
                put(blocks, at, (!unmap).then_some(Block::Zero));
            }
            if blocks.is_empty() {
                objects.remove(&key);
            }
        }
        EntryOp::Remove { .. } => {
            objects.remove(&key);
        }
    }
}

#[derive(Clone, Debug)]
enum Record {
    Transaction(Box<Transaction>),
    Epoch(Epoch),
}

#[derive(Clone, Debug, Default)]
struct Image {
    pgs: BTreeMap<PgId, PgImage>,
    objects: Objects,
    epoch: Epoch,
}

impl Image {
    fn carry_out(&mut self, record: &Record) {
        match record {
            Record::Transaction(transaction) => {
                self.pgs.entry(transaction.pg).or_default().carry_out(&mut self.objects, transaction);
            }
            Record::Epoch(epoch) => self.epoch = self.epoch.max(*epoch),
        }
    }

    /// The objects of a PG, one of so many, as they are with what is pending.
    fn keys(&self, pg: PgId, parts: u32) -> BTreeSet<ObjectKey> {
        let ours = |key: &ObjectKey| {
            let object = key.object();
            object.pool == pg.pool && pg_index(object.hash(), parts) == pg.index
        };
        let mut keys = self.objects.keys().copied().filter(ours).collect::<BTreeSet<_>>();
        for (entry, _) in self.pgs.get(&pg).into_iter().flat_map(PgImage::pending) {
            let key = ObjectKey::new(entry.op.object());
            match entry.op {
                EntryOp::Remove { .. } => keys.remove(&key),
                EntryOp::Write { .. } | EntryOp::Zero { .. } => keys.insert(key),
            };
        }
        keys
    }

    /// What is pending in any PG counts: if it is not of the one that asks, the core has forgotten it.
    fn read(&self, object: ObjectId, offset: u32, len: u32) -> ReadData {
        let mut blocks = self.objects.get(&ObjectKey::new(object)).cloned().unwrap_or_default();
        for (entry, data) in self.pgs.values().flat_map(PgImage::pending) {
            if entry.op.object() == object {
                let mut one = BTreeMap::from([(ObjectKey::new(object), std::mem::take(&mut blocks))]);
                apply(&mut one, &entry.op, data);
                blocks = one.remove(&ObjectKey::new(object)).unwrap_or_default();
            }
        }
        let mut data = Vec::with_capacity(len as usize);
        let mut states = Vec::new();
        for at in (offset..offset + len).step_by(BLOCK_SIZE as usize) {
            match blocks.get(&at) {
                Some(Block::Data(bytes, crc)) => {
                    data.extend_from_slice(bytes);
                    states.push(BlockState::Data { crc: *crc });
                }
                state => {
                    data.resize(data.len() + BLOCK_SIZE as usize, 0);
                    states.push(if state.is_some() { BlockState::Zero } else { BlockState::Absent });
                }
            }
        }
        ReadData { data: Bytes::from(data), blocks: states }
    }
}

/// One thing the disk works on.
#[derive(Clone, Debug)]
enum Job {
    Flush(Vec<u64>),
    Read { tag: u64, object: ObjectId, offset: u32, len: u32 },
    Inspect { tag: u64, object: ObjectId, offset: u32, len: u32 },
    List { tag: u64, pg: PgId, parts: u32, after: Option<ObjectKey>, limit: usize },
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    live: Image,
    durable: Image,
    unsynced: VecDeque<(u64, Record)>,
    flushing: bool,
    jobs: BTreeMap<u64, Job>,
    fresh: Vec<u64>,
    next_job: u64,
    done: VecDeque<Done>,
}

impl Model {
    fn job(&mut self, job: Job) {
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
        self.fresh.push(self.next_job);
    }

    fn record(&mut self, tag: u64, record: Record) {
        self.live.carry_out(&record);
        self.unsynced.push_back((tag, record));
        self.flush();
    }

    fn flush(&mut self) {
        if !self.flushing && !self.unsynced.is_empty() {
            self.flushing = true;
            let tags = self.unsynced.iter().map(|(tag, _)| *tag).collect();
            self.job(Job::Flush(tags));
        }
    }

    pub(crate) fn submit(&mut self, tag: u64, transaction: Transaction) {
        self.record(tag, Record::Transaction(Box::new(transaction)));
    }

    pub(crate) fn submit_epoch(&mut self, tag: u64, epoch: Epoch) {
        self.record(tag, Record::Epoch(epoch));
    }

    pub(crate) fn read(&mut self, tag: u64, object: ObjectId, offset: u32, len: u32) {
        self.job(Job::Read { tag, object, offset, len });
    }

    pub(crate) fn inspect(&mut self, tag: u64, object: ObjectId, (offset, len): (u32, u32)) {
        self.job(Job::Inspect { tag, object, offset, len });
    }

    pub(crate) fn list(&mut self, tag: u64, pg: PgId, parts: u32, after: Option<ObjectKey>, limit: usize) {
        self.job(Job::List { tag, pg, parts, after, limit });
    }

    /// Jobs that were not handed to the disk yet; true for those that take as long as a flush.
    pub(crate) fn take_jobs(&mut self) -> Vec<(u64, bool)> {
        let jobs = &self.jobs;
        self.fresh.drain(..).map(|id| (id, matches!(jobs.get(&id), Some(Job::Flush(_))))).collect()
    }

    /// The disk has finished a job.
    pub(crate) fn finish(&mut self, job: u64) {
        match self.jobs.remove(&job) {
            Some(Job::Flush(tags)) => {
                for tag in tags {
                    let (found, record) = self.unsynced.pop_front().expect("flushed in order");
                    assert_eq!(found, tag);
                    self.durable.carry_out(&record);
                    self.done.push_back(Done::Persisted(tag));
                }
                self.flushing = false;
                self.flush();
            }
            Some(Job::Read { tag, object, offset, len }) => {
                let data = self.live.read(object, offset, len);
                self.done.push_back(Done::Read(tag, Ok(data)));
            }
            Some(Job::Inspect { tag, object, offset, len }) => {
                let read = self.live.read(object, offset, len);
                let copies = read.blocks.into_iter().map(|state| match state {
                    BlockState::Absent => BlockCopy::Absent,
                    BlockState::Zero => BlockCopy::Zero,
                    BlockState::Data { crc } => BlockCopy::Data { crc },
                });
                self.done.push_back(Done::Inspected(tag, copies.collect()));
            }
            Some(Job::List { tag, pg, parts, after, limit }) => {
                let keys = self.live.keys(pg, parts).into_iter();
                let after = keys.filter(|key| after.is_none_or(|after| *key > after));
                self.done.push_back(Done::Listed(tag, after.take(limit).map(|key| key.object()).collect()));
            }
            None => {}
        }
    }

    pub(crate) fn take_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// The process dies. A power cut takes what was not flushed, each PG up to some point; a kill takes nothing.
    pub(crate) fn crash(&mut self, power: bool, rng: &mut Rng) {
        let mut lost: BTreeMap<PgId, bool> = BTreeMap::new();
        for (_, record) in std::mem::take(&mut self.unsynced) {
            match &record {
                Record::Transaction(transaction) => {
                    let gone = lost.entry(transaction.pg).or_default();
                    *gone |= power && rng.chance(400);
                    if !*gone {
                        self.durable.carry_out(&record);
                    }
                }
                Record::Epoch(_) if power && rng.chance(500) => {}
                Record::Epoch(_) => self.durable.carry_out(&record),
            }
        }
        self.live = self.durable.clone();
        self.flushing = false;
        self.jobs.clear();
        self.fresh.clear();
        self.done.clear();
    }

    /// What a new life finds.
    pub(crate) fn load(&self) -> (Epoch, Vec<(PgId, LoadedPg)>) {
        let pgs = self.live.pgs.iter().map(|(id, pg)| {
            let loaded = LoadedPg {
                commit: pg.commit,
                log: pg.log.iter().cloned().collect(),
                pending: pg.pending.iter().map(|(seq, data)| (*seq, data.clone())).collect(),
                attributes: pg.attributes.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            };
            (*id, loaded)
        });
        (self.live.epoch, pgs.collect())
    }

    /// Every block of a PG, pending entries included, for the checker.
    pub(crate) fn content(&self, pg: PgId, parts: u32) -> BTreeMap<(ObjectId, u32), u32> {
        let mut image = self.live.clone();
        if let Some(of) = image.pgs.get_mut(&pg) {
            of.commit_through(&mut image.objects, u64::MAX);
        }
        let keys = image.keys(pg, parts);
        let mut content = BTreeMap::new();
        for (key, blocks) in image.objects.iter().filter(|(key, _)| keys.contains(key)) {
            for (at, block) in blocks {
                let value = match block {
                    Block::Zero => 0,
                    Block::Data(data, crc) => {
                        assert_eq!(crc32c::crc32c(data), *crc, "a stored block matches its checksum");
                        *crc
                    }
                };
                content.insert((key.object(), *at), value);
            }
        }
        content
    }
}
