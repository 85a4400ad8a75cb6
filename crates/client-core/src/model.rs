//! A model of a cluster that loses, repeats, reorders and refuses, and a run of the core against it: every write is
//! executed once and in order, every read returns what it may, and in the end everything has ended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_types::id::mix;
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::map::{ClusterMap, FailureDomain, Location, Osd, PgConfig, Pool, VolumeFence};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, SessionId, SnapId, TraceId,
    VolumeId,
};
use proptest::prelude::{ProptestConfig, any, proptest};
use uuid::Uuid;

use crate::{Config, Core, Op, OpId, Output, Timing};

const BLOCK: usize = BLOCK_SIZE as usize;
pub(crate) const OBJECT: u32 = 2 * BLOCK_SIZE;
pub(crate) const SIZE: u64 = 8 * BLOCK_SIZE as u64;

pub(crate) fn config() -> Config {
    Config {
        session: SessionId(7),
        volume: VolumeId(1),
        pool: PoolId(1),
        generation: Generation(3),
        min_epoch: Epoch(2),
        size: SIZE,
        object_size: OBJECT,
        snap_context: SnapId(0),
        view: SnapId::HEAD,
        parents: Vec::new(),
        read_only: false,
        max_ops: 16,
        max_bytes: 40_000,
        max_requests: 6,
        timing: Timing::default(),
    }
}

/// Three OSDs, two PGs, PG n with OSD n as its primary.
pub(crate) fn map(epoch: u64) -> ClusterMap {
    let location = Location { zone: "z".into(), rack: "r".into(), host: "h".into() };
    let osd = |id: u32| Osd {
        id: OsdId(id),
        uuid: Uuid::from_u128(u128::from(id)),
        incarnation: Incarnation(1),
        dead_through: Incarnation(0),
        addresses: vec![format!("unix:/osd.{id}")],
        up: true,
        placed: true,
        weight: 1,
        location: location.clone(),
        device_class: String::new(),
        capacity: 0,
        used: 0,
        acked_epoch: Epoch(0),
    };
    let pool = Pool {
        id: PoolId(1),
        name: "p".into(),
        size: 3,
        min_size: 2,
        failure_domain: FailureDomain::Osd,
        device_class: None,
        object_size: OBJECT,
        pg_count: 2,
        pg_target: 2,
    };
    let pg = |index: u32| {
        let config = PgConfig {
            c: ConfVersion(1),
            interval: ConfVersion(1),
            primary: Some(OsdId(index)),
            ..PgConfig::default()
        };
        (PgId { pool: PoolId(1), index }, config)
    };
    let fence = VolumeFence { pool: PoolId(1), generations: BTreeSet::from([Generation(3)]), ..VolumeFence::default() };
    ClusterMap {
        epoch: Epoch(epoch),
        osds: (0..3).map(|id| (OsdId(id), osd(id))).collect(),
        pools: BTreeMap::from([(PoolId(1), pool)]),
        pgs: (0..2).map(pg).collect(),
        volumes: BTreeMap::from([(VolumeId(1), fence)]),
        ..ClusterMap::default()
    }
}

/// All OSDs together: what is stored is what every in-sync member has, whoever is primary.
#[derive(Default)]
struct Store {
    objects: BTreeMap<ObjectId, Vec<u8>>,
    executed: BTreeSet<u64>,
    /// The operation that wrote a block last.
    writers: BTreeMap<(ObjectId, usize), TraceId>,
    acked_through: u64,
}

impl Store {
    fn handle(&mut self, request: &ClientRequest) -> Result<ReplyBody, Refusal> {
        self.acked_through = self.acked_through.max(request.acked_through);
        let seq = request.id.seq;
        if request.op.is_write() {
            if seq <= self.acked_through {
                return Err(Refusal::AlreadyAcked);
            }
            if !self.executed.insert(seq) {
                return Ok(ReplyBody::Done);
            }
        }
        let object = request.op.object();
        let (offset, len) = request.op.range();
        let range = offset as usize..(offset + len) as usize;
        let content = self.objects.entry(object).or_insert_with(|| vec![0; OBJECT as usize]);
        let source = match &request.op {
            ClientOp::Read { .. } => {
                let data = Bytes::copy_from_slice(&content[range]);
                let blocks = data.chunks(BLOCK).map(|b| BlockState::Data { crc: crc32c::crc32c(b) }).collect();
                return Ok(ReplyBody::Data(ReadData { data, blocks }));
            }
            ClientOp::Write { data, crcs, .. } => {
                assert!(data.chunks(BLOCK).map(crc32c::crc32c).eq(crcs.iter().copied()));
                data.clone()
            }
            ClientOp::Zero { .. } => Bytes::from(vec![0; len as usize]),
            ClientOp::Status { .. } => unreachable!("the model asks for no states"),
        };
        content[range.clone()].copy_from_slice(&source);
        for block in range.step_by(BLOCK) {
            let before = self.writers.insert((object, block), request.trace);
            assert!(before.is_none_or(|op| op < request.trace), "{before:?} was overtaken by {:?}", request.trace);
        }
        Ok(ReplyBody::Done)
    }
}

/// What the volume was asked, and when it said it was done.
struct Asked {
    op: Op,
    at_step: usize,
    done: bool,
}

struct World {
    random: u64,
    core: Core,
    now: Duration,
    store: Store,
    truth: ClusterMap,
    asked: Vec<Asked>,
    step: usize,
    /// (to, request) and (from, reply) on the wires.
    requests: Vec<(OsdId, ClientRequest)>,
    replies: Vec<(OsdId, ClientReply)>,
    /// Links the core asked for, and whether they are up.
    links: BTreeMap<OsdId, bool>,
    calm: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: seed,
            core: Core::new(config(), seed),
            now: Duration::ZERO,
            store: Store::default(),
            truth: map(2),
            asked: Vec::new(),
            step: 0,
            requests: Vec::new(),
            replies: Vec::new(),
            links: BTreeMap::new(),
            calm: false,
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random = mix(self.random);
        (self.random >> 16) as usize % limit
    }

    fn ask(&mut self) {
        if !self.core.has_room() {
            return;
        }
        let len = [1, 512, 4096, 5000, 8192, 16384][self.below(6)];
        let mut offset = self.below(SIZE as usize - len) as u64;
        if self.below(2) == 0 {
            offset -= offset % u64::from(BLOCK_SIZE);
        }
        let fill = 1 + (self.asked.len() % 255) as u8;
        let len = len as u64;
        let op = match self.below(8) {
            0 => Op::Flush,
            1 => Op::Zero { offset, len, unmap: fill.is_multiple_of(2) },
            2 | 3 => Op::Read { offset, len },
            _ => Op::Write { offset, data: Bytes::from(vec![fill; len as usize]) },
        };
        self.asked.push(Asked { op: op.clone(), at_step: self.step, done: false });
        let trace = TraceId(self.asked.len() as u64);
        let id = self.core.handle_op(self.now, op, trace);
        assert_eq!(id, OpId(trace.0));
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Connect { osd, .. } => {
                    self.links.insert(osd, false);
                }
                Output::Disconnect { osd } => {
                    self.links.remove(&osd);
                }
                Output::Send { to, request } if self.links.get(&to) == Some(&true) => self.requests.push((to, request)),
                Output::Send { .. } | Output::Drained { .. } => {}
                Output::Done { op, result } => {
                    self.check_done(op.0 as usize - 1, &result.expect("nothing fails for good here"));
                }
            }
            self.core.invariants();
        }
    }

    fn check_done(&mut self, index: usize, data: &Bytes) {
        assert!(!self.asked[index].done, "an operation ends once");
        self.asked[index].done = true;
        let (earlier, _) = self.asked.split_at(index);
        match self.asked[index].op {
            Op::Flush => assert!(earlier.iter().all(|asked| asked.done || !asked.op.is_write()), "a flush overtook"),
            Op::Read { offset, len } => {
                assert_eq!(data.len() as u64, len);
                for (at, byte) in (offset..).zip(data) {
                    assert!(self.may_be(index, at, *byte), "byte {at} is {byte} for operation {index}");
                }
            }
            _ => assert!(data.is_empty()),
        }
    }

    /// A read may see the last write that was asked for before it, or any that was asked for while it ran.
    fn may_be(&self, read: usize, at: u64, byte: u8) -> bool {
        let before = content(self.asked[..read].iter().map(|asked| &asked.op), at);
        let during = self.asked[read..].iter().filter(|asked| asked.at_step <= self.step);
        before == byte || during.filter_map(|asked| written(&asked.op, at)).any(|value| value == byte)
    }

    /// One thing happens.
    fn happen(&mut self) {
        self.step += 1;
        match self.below(if self.calm { 6 } else { 14 }) {
            0 | 1 => self.deliver_request(),
            2 | 3 => self.deliver_reply(),
            4 => self.pass_time(),
            5 => self.raise_a_link(),
            6 | 7 => self.ask(),
            8 => self.lose_or_repeat(),
            9 => self.move_a_primary(),
            10 => self.break_a_link(),
            11 => self.show_the_map(),
            _ => self.deliver_request(),
        }
        self.drain();
        self.core.invariants();
    }

    fn deliver_request(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let at = self.below(self.requests.len());
        let (osd, request) = self.requests.swap_remove(at);
        let pg = &self.truth.pgs[&request.pg];
        let epoch = self.truth.epoch;
        let result = if pg.primary != Some(osd) {
            Err(Refusal::NotPrimary { epoch })
        } else if request.c < pg.interval {
            Err(Refusal::StaleMap { epoch })
        } else if !self.calm && self.below(10) == 0 {
            Err([Refusal::Busy, Refusal::NoSpace][self.below(2)])
        } else {
            self.store.handle(&request)
        };
        self.replies.push((osd, ClientReply { id: request.id, result }));
    }

    fn deliver_reply(&mut self) {
        if !self.replies.is_empty() {
            let at = self.below(self.replies.len());
            let (osd, mut reply) = self.replies.swap_remove(at);
            if let Ok(ReplyBody::Data(read)) = &mut reply.result
                && !self.calm
                && self.below(20) == 0
            {
                let mut rotten = read.data.to_vec();
                rotten[0] ^= 1;
                read.data = rotten.into();
            }
            self.core.handle_reply(self.now, osd, reply);
        }
    }

    fn lose_or_repeat(&mut self) {
        if !self.requests.is_empty() {
            let at = self.below(self.requests.len());
            if self.below(2) == 0 {
                self.requests.push(self.requests[at].clone());
            } else {
                self.requests.swap_remove(at);
            }
        }
        if !self.replies.is_empty() {
            let at = self.below(self.replies.len());
            if self.below(2) == 0 {
                self.replies.push(self.replies[at].clone());
            } else {
                self.replies.swap_remove(at);
            }
        }
    }

    fn move_a_primary(&mut self) {
        let pg = PgId { pool: PoolId(1), index: self.below(2) as u32 };
        let primary = match self.below(4) {
            3 => None,
            osd => Some(OsdId(osd as u32)),
        };
        self.truth.epoch = self.truth.epoch.next();
        let config = self.truth.pgs.get_mut(&pg).expect("both exist");
        config.c = config.c.next();
        config.interval = config.c;
        config.primary = primary;
    }

    fn break_a_link(&mut self) {
        let up: Vec<OsdId> = self.links.iter().filter(|(_, up)| **up).map(|(osd, _)| *osd).collect();
        if !up.is_empty() {
            let osd = up[self.below(up.len())];
            self.links.insert(osd, false);
            self.core.handle_link_down(self.now, osd);
        }
    }

    fn raise_a_link(&mut self) {
        let down: Vec<OsdId> = self.links.iter().filter(|(_, up)| !**up).map(|(osd, _)| *osd).collect();
        if !down.is_empty() {
            let osd = down[self.below(down.len())];
            self.links.insert(osd, true);
            self.core.handle_link_up(self.now, osd);
        }
    }

    fn show_the_map(&mut self) {
        self.core.handle_map(self.now, Arc::new(self.truth.clone()));
    }

    fn pass_time(&mut self) {
        if let Some(at) = self.core.poll_timeout() {
            self.now = self.now.max(at);
            self.core.handle_timeout(self.now);
        }
    }

    /// The weather clears: everything ends.
    fn heal(&mut self) {
        self.calm = true;
        self.truth.epoch = self.truth.epoch.next();
        for (pg, config) in &mut self.truth.pgs {
            config.primary.get_or_insert(OsdId(pg.index));
        }
        self.show_the_map();
        self.drain();
        let mut left = 20_000;
        while !self.core.is_idle() {
            self.happen();
            left -= 1;
            assert!(left > 0, "an operation never ends");
        }
        assert!(self.asked.iter().all(|asked| asked.done));
    }

    fn check_content(&self) {
        for at in (0..SIZE).step_by(61) {
            let object = at / u64::from(OBJECT);
            let id = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: object, snapshot: SnapId::HEAD };
            let stored = self.store.objects.get(&id).map_or(0, |bytes| bytes[(at % u64::from(OBJECT)) as usize]);
            assert_eq!(stored, content(self.asked.iter().map(|asked| &asked.op), at), "byte {at}");
        }
    }
}

/// What an operation makes of a byte, if it touches it.
fn written(op: &Op, at: u64) -> Option<u8> {
    let (offset, len) = op.range();
    if !(offset..offset + len).contains(&at) {
        return None;
    }
    match op {
        Op::Write { data, .. } => Some(data[(at - offset) as usize]),
        Op::Zero { .. } => Some(0),
        Op::Read { .. } | Op::Flush | Op::Status { .. } | Op::CopyUp { .. } => None,
    }
}

/// A byte after operations one after the other.
fn content<'a>(ops: impl DoubleEndedIterator<Item = &'a Op>, at: u64) -> u8 {
    ops.rev().find_map(|op| written(op, at)).unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_write_is_executed_once_and_in_order_whatever_the_weather(seed in any::<u64>()) {
        let mut world = World::new(seed);
        world.show_the_map();
        for _ in 0..400 {
            world.happen();
        }
        world.heal();
        world.check_content();
    }
}
