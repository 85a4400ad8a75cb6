//! Stories of one group on three OSDs whose disks lie: the real cores, a store of a few lines, no clock but the story's.

mod maps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cairn_osd_core::{Config, ConnId, OsdCore, Output, ReadFailure, Time, Transaction};
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::map::{ClusterMap, PgConfig, VolumeFence};
use cairn_types::peer::{EntryOp, PeerMessage, PgMessage, PgState, Run, RunContent};
use cairn_types::scrub::{BlockCopy, Damage, DamagedBlock, ScrubOutcome};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, RequestId, SessionId,
    SnapId, TraceId, VolumeId,
};

const PG: PgId = PgId { pool: PoolId(1), index: 0 };
const ALL: [u32; 3] = [1, 2, 3];

fn object(index: u64) -> ObjectId {
    ObjectId { pool: PoolId(1), volume: VolumeId(1), index, snapshot: SnapId(0) }
}

fn block(fill: u8) -> Bytes {
    Bytes::from(vec![fill; BLOCK_SIZE as usize])
}

/// What one OSD has. Entries take effect as they come: nothing is ever cut here.
#[derive(Default)]
struct Store {
    blocks: BTreeMap<(ObjectId, u32), (BlockState, Bytes)>,
    rotten: BTreeSet<(ObjectId, u32)>,
    landed: BTreeSet<(ObjectId, u32)>,
}

impl Store {
    fn put(&mut self, object: ObjectId, at: u32, data: Bytes) {
        let crc = crc32c::crc32c(&data);
        self.blocks.insert((object, at), (BlockState::Data { crc }, data));
        self.rotten.remove(&(object, at));
    }

    fn take(&mut self, transaction: Transaction) {
        for logged in transaction.append {
            let EntryOp::Write { object, offset, crcs } = &logged.entry.op else { panic!("only writes here") };
            for i in 0..crcs.len() as u32 {
                let at = (i * BLOCK_SIZE) as usize;
                self.put(*object, offset + i * BLOCK_SIZE, logged.data.slice(at..at + BLOCK_SIZE as usize));
            }
        }
        for (object, run) in
            transaction.content.iter().flat_map(|(object, runs)| runs.iter().map(move |run| (*object, run)))
        {
            for at in (0..run.len).step_by(BLOCK_SIZE as usize) {
                self.landed.insert((object, run.offset + at));
                match &run.content {
                    RunContent::Data { data, .. } => {
                        let data = data.slice(at as usize..(at + BLOCK_SIZE) as usize);
                        self.put(object, run.offset + at, data);
                    }
                    RunContent::Absent | RunContent::Zero => {
                        self.blocks.remove(&(object, run.offset + at));
                    }
                }
            }
        }
    }

    fn state(&self, object: ObjectId, at: u32) -> BlockState {
        self.blocks.get(&(object, at)).map_or(BlockState::Absent, |(state, _)| *state)
    }

    fn read(&self, object: ObjectId, offset: u32, len: u32) -> Result<ReadData, ReadFailure> {
        let all = (offset..offset + len).step_by(BLOCK_SIZE as usize);
        let offsets = all.clone().filter(|at| self.rotten.contains(&(object, *at))).collect::<Vec<_>>();
        if !offsets.is_empty() {
            return Err(ReadFailure::Corrupt { offsets });
        }
        let data = all.clone().map(|at| self.blocks.get(&(object, at)).map_or(block(0), |(_, data)| data.clone()));
        let data = data.collect::<Vec<_>>().concat().into();
        Ok(ReadData { data, blocks: all.map(|at| self.state(object, at)).collect() })
    }

    fn inspect(&self, object: ObjectId, offset: u32, len: u32, deep: bool) -> Vec<BlockCopy> {
        let copy = |at| match self.state(object, at) {
            BlockState::Absent => BlockCopy::Absent,
            BlockState::Zero => BlockCopy::Zero,
            BlockState::Data { crc } if deep && self.rotten.contains(&(object, at)) => BlockCopy::Rotten { crc },
            BlockState::Data { crc } => BlockCopy::Data { crc },
        };
        (offset..offset + len).step_by(BLOCK_SIZE as usize).map(copy).collect()
    }
}

struct Cluster {
    now: Time,
    cores: BTreeMap<u32, OsdCore>,
    stores: BTreeMap<u32, Store>,
    wire: VecDeque<(u32, u32, PeerMessage)>,
    replies: BTreeMap<u64, ClientReply>,
    outcomes: Vec<ScrubOutcome>,
    sent: u64,
    /// What becomes of a message on its way; not 0 where it is another one now.
    lie: fn(&mut PeerMessage) -> u32,
    lies: BTreeSet<u32>,
}

fn map() -> ClusterMap {
    let pool = maps::pool(3, 2, 1);
    let members = ALL.map(OsdId).to_vec();
    let config = PgConfig {
        c: ConfVersion(1),
        interval: ConfVersion(1),
        primary: Some(OsdId(1)),
        isr: members.clone(),
        acting: members.clone(),
        backfill: vec![],
        up: members,
        born: None,
    };
    let fence = VolumeFence { pool: PoolId(1), generations: [Generation(1)].into(), ..VolumeFence::default() };
    ClusterMap {
        epoch: Epoch(1),
        osds: ALL.map(|id| (OsdId(id), maps::osd(OsdId(id)))).into(),
        pools: [(PoolId(1), pool)].into(),
        pgs: [(PG, config)].into(),
        volumes: [(VolumeId(1), fence)].into(),
        ..ClusterMap::default()
    }
}

impl Cluster {
    fn new() -> Self {
        let map = Arc::new(map());
        let mut cluster = Self {
            now: Time(0),
            cores: BTreeMap::new(),
            stores: BTreeMap::new(),
            wire: VecDeque::new(),
            replies: BTreeMap::new(),
            outcomes: Vec::new(),
            sent: 0,
            lie: |_| 0,
            lies: BTreeSet::new(),
        };
        for id in ALL {
            let config = Config { log_entries: 8, ..Config::new(OsdId(id), Incarnation(1), Epoch(1)) };
            let mut core = OsdCore::new(config, id.into(), Time(0));
            core.handle_map(Time(0), Arc::clone(&map));
            cluster.cores.insert(id, core);
            cluster.stores.insert(id, Store::default());
        }
        cluster.until("an active primary", |cluster| {
            cluster.cores[&1].status().iter().any(|status| status.state == PgState::Active)
        });
        cluster
    }

    /// Time goes on, and everything that can happen does.
    fn step(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
        for id in ALL {
            let core = self.cores.get_mut(&id).unwrap();
            if core.poll_timeout().is_some_and(|due| due <= self.now) {
                core.handle_timeout(self.now);
            }
            self.drain(id);
        }
        while let Some((from, to, mut message)) = self.wire.pop_front() {
            self.lies.insert((self.lie)(&mut message));
            self.cores.get_mut(&to).unwrap().handle_peer(self.now, OsdId(from), Incarnation(1), message);
            self.drain(to);
        }
    }

    fn drain(&mut self, id: u32) {
        let (core, store) = (self.cores.get_mut(&id).unwrap(), self.stores.get_mut(&id).unwrap());
        while let Some(output) = core.poll_output() {
            match output {
                Output::Persist { token, transaction } => {
                    store.take(*transaction);
                    core.handle_persisted(self.now, token);
                }
                Output::PersistEpoch { token, .. } => core.handle_persisted(self.now, token),
                Output::Read { token, object, offset, len, .. } => {
                    core.handle_read(self.now, token, store.read(object, offset, len));
                }
                Output::Inspect { token, object, offset, len, deep, .. } => {
                    core.handle_inspected(self.now, token, &store.inspect(object, offset, len, deep));
                }
                Output::List { token, after, limit, .. } => {
                    let keys = store.blocks.keys().map(|(object, _)| cairn_types::peer::ObjectKey::new(*object));
                    let keys =
                        keys.collect::<BTreeSet<_>>().into_iter().filter(|key| after.is_none_or(|after| *key > after));
                    core.handle_list(self.now, token, keys.take(limit).map(|key| key.object()).collect());
                }
                Output::SendPeer { to, message } => self.wire.push_back((id, to.0, message)),
                Output::Reply { reply, .. } => {
                    self.replies.insert(reply.id.seq, reply);
                }
                Output::ReportScrub { outcome } => {
                    core.handle_scrub_reported(PG, outcome.order);
                    self.outcomes.push(*outcome);
                }
                Output::AckEpoch { .. } | Output::NeedMap { .. } => {}
                other => panic!("nobody fails in these stories: {other:?}"),
            }
        }
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        for _ in 0..6000 {
            if holds(self) {
                return;
            }
            self.step(10);
        }
        panic!("{what} did not happen in a minute; in place: {:?}", self.landed());
    }

    fn ask(&mut self, op: ClientOp) -> u64 {
        self.sent += 1;
        let request = ClientRequest {
            id: RequestId { session: SessionId(1), seq: self.sent },
            acked_through: 0,
            trace: TraceId(self.sent),
            pg: PG,
            c: ConfVersion(1),
            epoch: Epoch(1),
            volume: VolumeId(1),
            generation: Generation(1),
            snap_context: SnapId(0),
            op,
        };
        self.cores.get_mut(&1).unwrap().handle_client(self.now, ConnId(1), request);
        self.drain(1);
        self.sent
    }

    fn answer(&mut self, op: ClientOp) -> Result<ReplyBody, Refusal> {
        let asked = self.ask(op);
        self.until("an answer", |cluster| cluster.replies.contains_key(&asked));
        self.replies[&asked].result.clone()
    }

    fn write(&mut self, index: u64, offset: u32, data: Bytes) {
        let crcs = data.chunks(BLOCK_SIZE as usize).map(crc32c::crc32c).collect();
        let written = self.answer(ClientOp::Write { object: object(index).at(SnapId::HEAD), offset, data, crcs });
        assert_eq!(written, Ok(ReplyBody::Done));
    }

    fn read(&mut self, index: u64, offset: u32) -> Result<Bytes, Refusal> {
        match self.answer(ClientOp::Read { object: object(index).at(SnapId::HEAD), offset, len: BLOCK_SIZE })? {
            ReplyBody::Data(read) => Ok(read.data),
            ReplyBody::Done | ReplyBody::Status(_) => panic!("a read is answered with data"),
        }
    }

    fn rot(&mut self, osd: u32, index: u64, offset: u32) {
        self.stores.get_mut(&osd).unwrap().rotten.insert((object(index), offset));
    }

    fn order(&mut self, deep: bool) -> u64 {
        let order = self.now.0 + 1;
        self.cores.get_mut(&1).unwrap().handle_scrub(self.now, PG, deep, order);
        order
    }

    fn scrub(&mut self, deep: bool) -> ScrubOutcome {
        let order = self.order(deep);
        self.until("the end of the scrub", |cluster| cluster.outcomes.iter().any(|outcome| outcome.order == order));
        self.outcomes.pop().unwrap()
    }

    fn landed(&self) -> BTreeSet<(u32, u64, u32)> {
        let of = |(id, store): (&u32, &Store)| {
            store.landed.iter().map(|(object, at)| (*id, object.index, *at)).collect::<Vec<_>>()
        };
        self.stores.iter().flat_map(of).collect()
    }
}

fn counts(outcome: &ScrubOutcome) -> (u64, u64, u64) {
    (outcome.found.values().sum(), outcome.repaired, outcome.damaged_count)
}

#[test]
fn rotten_copies_are_fetched_anew_and_nothing_else_is_written() {
    let mut cluster = Cluster::new();
    for index in 0..40 {
        cluster.write(index, 0, block(index as u8));
        cluster.write(index, 12288, block(100));
    }
    assert_eq!(counts(&cluster.scrub(true)), (0, 0, 0));
    // Two of three copies, and beside it another block of the third.
    for (osd, index, offset) in [(1, 3, 0), (2, 3, 0), (3, 3, 12288), (3, 20, 0), (1, 39, 12288)] {
        cluster.rot(osd, index, offset);
    }
    assert_eq!(counts(&cluster.scrub(false)), (0, 0, 0), "a light one reads no data");
    let outcome = cluster.scrub(true);
    assert_eq!(counts(&outcome), (5, 5, 0));
    assert_eq!(outcome.found, [(OsdId(1), 2), (OsdId(2), 1), (OsdId(3), 2)].into());
    assert_eq!((outcome.objects, outcome.blocks), (40, 80));
    let rotten = [(1, 3, 0), (2, 3, 0), (3, 3, 12288), (3, 20, 0), (1, 39, 12288)];
    assert_eq!(cluster.landed(), rotten.into());
    assert_eq!(counts(&cluster.scrub(true)), (0, 0, 0));
    assert!(ALL.iter().all(|id| cluster.stores[id].blocks == cluster.stores[&1].blocks));
}

#[test]
fn the_log_decides_and_not_the_majority() {
    let mut cluster = Cluster::new();
    cluster.write(0, 0, block(7));
    cluster.write(1, 0, block(8));
    // Two members agree, each with bytes that match its own index. They are wrong.
    for id in [1, 2] {
        cluster.stores.get_mut(&id).unwrap().put(object(0), 0, block(66));
    }
    cluster.stores.get_mut(&2).unwrap().blocks.remove(&(object(1), 0));
    for deep in [false, true] {
        let outcome = cluster.scrub(deep);
        assert_eq!(counts(&outcome), if deep { (0, 0, 0) } else { (3, 3, 0) });
    }
    assert_eq!(cluster.landed(), [(1, 0, 0), (2, 0, 0), (2, 1, 0)].into());
    assert_eq!(cluster.read(0, 0), Ok(block(7)));
    assert!(ALL.iter().all(|id| cluster.stores[id].blocks == cluster.stores[&3].blocks));
}

#[test]
fn where_the_log_forgot_and_the_copies_differ_nobody_is_believed() {
    let mut cluster = Cluster::new();
    cluster.write(0, 4096, block(7));
    (1..30).for_each(|index| cluster.write(index, 0, block(1)));
    for id in [1, 2] {
        cluster.stores.get_mut(&id).unwrap().put(object(0), 4096, block(66));
    }
    let outcome = cluster.scrub(true);
    assert_eq!(counts(&outcome), (3, 0, 1));
    let damage = Damage::CopiesDiffer;
    assert_eq!(outcome.damaged, [DamagedBlock { object: object(0), offset: 4096, damage }]);
    assert_eq!(cluster.landed(), BTreeSet::new());
    // The rotten copy of one is not replaced by the other's: they are not the same block.
    cluster.rot(1, 0, 4096);
    cluster.rot(2, 0, 4096);
    assert_eq!(counts(&cluster.scrub(true)), (3, 0, 1));
    assert_eq!(cluster.landed(), BTreeSet::new());
    assert_eq!(cluster.read(0, 4096), Err(Refusal::Corrupt));
}

#[test]
fn a_block_without_a_good_copy_is_named_and_reads_as_an_error_until_it_is_written() {
    let mut cluster = Cluster::new();
    cluster.write(5, 0, [block(1), block(2), block(3)].concat().into());
    ALL.iter().for_each(|id| cluster.rot(*id, 5, 4096));
    cluster.rot(2, 5, 0);
    let outcome = cluster.scrub(true);
    assert_eq!(counts(&outcome), (4, 1, 1));
    let damage = Damage::NoGoodCopy;
    assert_eq!(outcome.damaged, [DamagedBlock { object: object(5), offset: 4096, damage }]);
    assert_eq!(cluster.landed(), [(2, 5, 0)].into());
    assert_eq!(cluster.read(5, 4096), Err(Refusal::Corrupt));
    assert_eq!((cluster.read(5, 0), cluster.read(5, 8192)), (Ok(block(1)), Ok(block(3))));
    cluster.write(5, 4096, block(9));
    assert_eq!(cluster.read(5, 4096), Ok(block(9)));
    assert_eq!(counts(&cluster.scrub(true)), (0, 0, 0));
}

#[test]
fn a_read_of_rot_is_answered_from_a_peer_and_written_back() {
    let mut cluster = Cluster::new();
    cluster.write(0, 0, [block(1), block(2)].concat().into());
    // Until every member knows that it is committed: a block under an open entry is not asked for.
    (0..100).for_each(|_| cluster.step(10));
    cluster.rot(1, 0, 0);
    // The peer that is asked first has rot beside it.
    cluster.rot(2, 0, 4096);
    cluster.rot(2, 0, 0);
    assert_eq!(cluster.read(0, 0), Ok(block(1)));
    cluster.until("the copies of both", |cluster| cluster.landed() == [(1, 0, 0), (2, 0, 0)].into());
    assert_eq!(counts(&cluster.scrub(true)), (1, 1, 0), "nobody has read the other one");
}

#[test]
fn a_copy_that_could_not_be_read_for_a_while_is_not_written_anew() {
    let mut cluster = Cluster::new();
    cluster.write(0, 0, block(1));
    ALL.iter().for_each(|id| cluster.rot(*id, 0, 0));
    assert_eq!(cluster.read(0, 0), Err(Refusal::Corrupt));
    ALL.iter().for_each(|id| cluster.stores.get_mut(id).unwrap().rotten.clear());
    assert_eq!(counts(&cluster.scrub(true)), (0, 0, 0));
    assert_eq!(cluster.read(0, 0), Ok(block(1)));
    assert_eq!(cluster.landed(), BTreeSet::new());
}

#[test]
fn writes_go_on_and_are_not_taken_for_damage() {
    let mut cluster = Cluster::new();
    (0..20).for_each(|index| cluster.write(index, 0, block(1)));
    for (round, id) in (0..12u8).zip(ALL.iter().cycle()) {
        cluster.rot(*id, u64::from(round), 0);
        let order = cluster.order(true);
        let mut fill = round;
        while !cluster.outcomes.iter().any(|outcome| outcome.order == order) {
            // Ordered, and for a moment on some of the members only.
            fill = fill.wrapping_add(1);
            let data = block(fill);
            let crcs = vec![crc32c::crc32c(&data)];
            let index = u64::from(fill % 20);
            cluster.ask(ClientOp::Write { object: object(index).at(SnapId::HEAD), offset: 4096, data, crcs });
            cluster.step(5);
        }
        let outcome = cluster.outcomes.pop().unwrap();
        assert_eq!(counts(&outcome), (1, 1, 0), "round {round}");
    }
}

/// A peer that answers nonsense, as long as a number can be, is not believed and breaks nothing.
#[test]
fn answers_beyond_every_bound_are_no_answers() {
    let mut cluster = Cluster::new();
    cluster.write(0, 0, block(1));
    (0..100).for_each(|_| cluster.step(10));
    let order = cluster.order(true);
    cluster.rot(1, 0, 0);
    cluster.ask(ClientOp::Read { object: object(0).at(SnapId::HEAD), offset: 0, len: BLOCK_SIZE });
    let (mut found, mut pulled) = (0, 0);
    for _ in 0..600 {
        cluster.lie = |message| {
            let PeerMessage::Pg { body, .. } = message else { return 0 };
            match body {
                PgMessage::ScrubFound(found) => {
                    found.objects = vec![(object(0), vec![BlockCopy::Lost; (1 << 20) + 1])];
                    1
                }
                PgMessage::PullReply { runs, .. } => {
                    *runs = Some(vec![Run { offset: u32::MAX - 4095, len: 8192, content: RunContent::Zero }]);
                    2
                }
                _ => 0,
            }
        };
        cluster.step(10);
        found += u32::from(cluster.lies.contains(&1));
        pulled += u32::from(cluster.lies.contains(&2));
    }
    assert!(found > 0 && pulled > 0 && cluster.outcomes.is_empty());
    assert_eq!(cluster.landed(), BTreeSet::new());
    cluster.lie = |_| 0;
    cluster.until("the end of the scrub", |cluster| cluster.outcomes.iter().any(|outcome| outcome.order == order));
    assert_eq!(cluster.landed(), [(1, 0, 0)].into());
}

/// Reads of a block that nobody has now are as many as any requests, and no more.
#[test]
fn reads_that_wait_for_a_missing_block_are_bounded() {
    let mut cluster = Cluster::new();
    cluster.write(0, 0, block(1));
    cluster.rot(1, 0, 0);
    let most = Config::new(OsdId(1), Incarnation(1), Epoch(1)).requests_per_pg;
    for _ in 0..most + 10 {
        cluster.ask(ClientOp::Read { object: object(0).at(SnapId::HEAD), offset: 0, len: BLOCK_SIZE });
    }
    let busy = cluster.replies.values().filter(|reply| reply.result == Err(Refusal::Busy)).count();
    assert!(busy >= 10, "{busy}");
    let all = cluster.sent;
    cluster.until("all answers", |cluster| cluster.replies.len() as u64 == all);
    assert!(cluster.replies.values().all(|reply| reply.result.is_ok() || reply.result == Err(Refusal::Busy)));
}
