//! A primary that joins the layers of a snapshot that goes, by hand: what it takes for the answer it asked for, and what it
//! remembers of a walk, and what it does when more goes meanwhile. These windows are too short for chance to meet them often.

mod maps;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cairn_osd_core::{Config, ConnId, ListToken, OsdCore, Output, PgChange, ReadToken, Time};
use cairn_types::io::{BlockState, ClientOp, ClientRequest, ReadData};
use cairn_types::map::{ClusterMap, PgConfig, SnapPhase, VolumeFence};
use cairn_types::peer::{EntryOp, HeartbeatReply, LogPoint, LogReport, Logged, PeerMessage, PgMessage};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, RequestId, SessionId,
    SnapId, TraceId, VolumeId,
};

const PG: PgId = PgId { pool: PoolId(1), index: 0 };
const ME: OsdId = OsdId(1);
const OTHER: OsdId = OsdId(2);
const LIFE: Incarnation = Incarnation(1);
/// Its only snapshot goes.
const VOLUME: VolumeId = VolumeId(1);
const GOING: SnapId = SnapId(5);
/// Another volume, whose holder is fenced at this epoch.
const FENCED: VolumeId = VolumeId(2);
const FENCED_AT: Epoch = Epoch(2);

/// One group of these members, in sync under one interval, and the two volumes.
fn map(epoch: Epoch, c: u64, members: &[OsdId]) -> Arc<ClusterMap> {
    map_with(epoch, c, members, &[(GOING, SnapPhase::Going)])
}

/// The same, where the volume has these snapshots.
fn map_with(epoch: Epoch, c: u64, members: &[OsdId], snapshots: &[(SnapId, SnapPhase)]) -> Arc<ClusterMap> {
    let pool = maps::pool(members.len() as u32, 1, 1);
    let config = PgConfig {
        c: ConfVersion(c),
        interval: ConfVersion(1),
        primary: Some(ME),
        isr: members.to_vec(),
        acting: members.to_vec(),
        up: members.to_vec(),
        ..PgConfig::default()
    };
    let held = |by| VolumeFence { pool: PoolId(1), generations: [Generation(by)].into(), ..VolumeFence::default() };
    let going = VolumeFence { snapshots: snapshots.iter().copied().collect(), ..held(1) };
    let fenced = held(if epoch < FENCED_AT { 1 } else { 2 });
    Arc::new(ClusterMap {
        epoch,
        pools: [(pool.id, pool)].into(),
        osds: members.iter().map(|id| (*id, maps::osd(*id))).collect(),
        pgs: [(PG, config)].into(),
        volumes: [(VOLUME, going), (FENCED, fenced)].into(),
        ..ClusterMap::default()
    })
}

struct Primary {
    core: OsdCore,
    now: Time,
    lists: VecDeque<ListToken>,
    reports: usize,
    /// Layers that were written to.
    written: Vec<ObjectId>,
    /// What each layer of the volume's object holds: a byte that stands for a block.
    layers: BTreeMap<SnapId, BTreeMap<u32, u8>>,
    reads: VecDeque<(ReadToken, ObjectId, u32, u32)>,
    proposed: Vec<PgChange>,
    /// The other member's log, and whether it acknowledges what comes.
    log: Vec<LogPoint>,
    acknowledges: bool,
    requests: u64,
    map: Arc<ClusterMap>,
}

impl Primary {
    /// Serves, and waits for the first answer of its walk.
    fn new(members: &[OsdId]) -> Self {
        Self::under(map(Epoch(1), 1, members))
    }

    fn under(map: Arc<ClusterMap>) -> Self {
        let mut primary = Self {
            core: OsdCore::new(Config::new(ME, LIFE, Epoch(1)), 1, Time(0)),
            now: Time(0),
            lists: VecDeque::new(),
            reports: 0,
            written: Vec::new(),
            layers: BTreeMap::new(),
            reads: VecDeque::new(),
            proposed: Vec::new(),
            log: Vec::new(),
            acknowledges: true,
            requests: 0,
            map: Arc::default(),
        };
        primary.hear_map(map);
        primary.until(|primary| !primary.lists.is_empty());
        primary
    }

    fn hear_map(&mut self, map: Arc<ClusterMap>) {
        self.map = Arc::clone(&map);
        self.core.handle_map(self.now, map);
        self.settle();
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let end = self.now.plus_ms(60_000);
        while !done(self) {
            assert!(self.now < end, "not in a minute");
            self.tick();
        }
    }

    /// Until it next looks at its clock.
    fn tick(&mut self) {
        let next = self.core.poll_timeout().expect("a group has a clock");
        self.now = self.now.max(next);
        self.core.handle_timeout(self.now);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, transaction } => {
                    self.written.extend(transaction.append.iter().map(|logged| logged.entry.op.object()));
                    for Logged { entry, data } in &transaction.append {
                        self.apply(&entry.op, data);
                    }
                    self.core.handle_persisted(self.now, token);
                }
                Output::Read { token, object, offset, len, .. } => {
                    self.reads.push_back((token, object, offset, len));
                }
                Output::PersistEpoch { token, .. } => self.core.handle_persisted(self.now, token),
                Output::List { token, .. } => self.lists.push_back(token),
                Output::ReportPurged { .. } => self.reports += 1,
                Output::ProposePgs { changes, .. } => self.proposed.extend(changes),
                Output::SendPeer { message, .. } => self.answer(message),
                _ => {}
            }
        }
        self.core.invariants();
    }

    fn apply(&mut self, op: &EntryOp, data: &[u8]) {
        if op.object().volume != VOLUME {
            return;
        }
        let blocks = |offset: u32, len: usize| offset / BLOCK_SIZE..offset / BLOCK_SIZE + len as u32 / BLOCK_SIZE;
        let layer = self.layers.entry(op.object().snapshot).or_default();
        match op {
            EntryOp::Write { offset, .. } => layer.extend(blocks(*offset, data.len()).map(|block| (block, data[0]))),
            EntryOp::Zero { offset, len, .. } => {
                let gone = blocks(*offset, *len as usize);
                layer.retain(|block, _| !gone.contains(block));
            }
            EntryOp::Remove { .. } => layer.clear(),
        }
    }

    /// Answers the oldest question for content.
    fn read(&mut self) {
        let (token, object, offset, len) = self.reads.pop_front().expect("a walk reads");
        let layer = self.layers.entry(object.snapshot).or_default();
        let (mut data, mut blocks) = (Vec::new(), Vec::new());
        for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
            let content = vec![layer.get(&block).copied().unwrap_or(0); BLOCK_SIZE as usize];
            let known = layer.contains_key(&block);
            blocks.push(if known { BlockState::Data { crc: crc32c::crc32c(&content) } } else { BlockState::Absent });
            data.extend(content);
        }
        self.core.handle_read(self.now, token, Ok(ReadData { data: data.into(), blocks }));
        self.settle();
    }

    /// What the other member says to it.
    fn answer(&mut self, message: PeerMessage) {
        let answer = match message {
            PeerMessage::Heartbeat(beat) => PeerMessage::HeartbeatReply(HeartbeatReply {
                echo: beat.sent_at,
                echo_incarnation: LIFE,
                epoch: beat.epoch,
                lease: beat.want_lease,
                oldest_io_ms: 0,
                full: false,
            }),
            PeerMessage::HeartbeatReply(_) => return,
            PeerMessage::Pg { pg, c, attempt, body } => {
                let Some(body) = self.answer_of_pg(body) else { return };
                PeerMessage::Pg { pg, c, attempt, body }
            }
        };
        self.core.handle_peer(self.now, OTHER, LIFE, answer);
    }

    fn answer_of_pg(&mut self, body: PgMessage) -> Option<PgMessage> {
        match body {
            PgMessage::QueryLog => Some(PgMessage::LogReport(LogReport {
                commit: LogPoint::default(),
                tail: self.log.clone(),
                usable: true,
                missing: false,
            })),
            PgMessage::Align { at } => {
                self.log.retain(|point| *point <= at);
                Some(PgMessage::Ack { persisted: at, gap: false })
            }
            PgMessage::Replicate { entries, .. } if self.acknowledges => {
                self.log.extend(entries.iter().map(|Logged { entry, .. }| entry.point()));
                let persisted = self.log.last().copied().unwrap_or_default();
                Some(PgMessage::Ack { persisted, gap: false })
            }
            _ => None,
        }
    }

    /// The first block of the first object is written, in the context of the snapshot that goes.
    fn write(&mut self, volume: VolumeId) {
        self.requests += 1;
        let data = Bytes::from(vec![7; BLOCK_SIZE as usize]);
        let object = ObjectId { pool: PG.pool, volume, index: 0, snapshot: SnapId::HEAD };
        let request = ClientRequest {
            id: RequestId { session: SessionId(9), seq: self.requests },
            acked_through: 0,
            trace: TraceId(0),
            pg: PG,
            c: self.map.pgs[&PG].c,
            epoch: self.map.epoch,
            volume,
            generation: Generation(1),
            snap_context: GOING,
            op: ClientOp::Write { object, offset: 0, crcs: vec![crc32c::crc32c(&data)], data },
        };
        self.core.handle_client(self.now, ConnId(1), request);
        self.settle();
    }

    fn full(&mut self, full: bool) {
        self.core.handle_space(self.now, full);
        self.tick();
    }

    /// Answers the oldest question of a walk: there is nothing.
    fn list(&mut self) {
        let token = self.lists.pop_front().expect("a walk asks");
        self.core.handle_list(self.now, token, Vec::new());
        self.settle();
    }
}

#[test]
fn the_answer_to_an_earlier_walk_is_not_taken_for_this_ones() {
    let mut primary = Primary::new(&[ME]);
    // A full disk ends the walk; with room there is another.
    primary.full(true);
    primary.full(false);
    assert_eq!((primary.lists.len(), primary.reports), (2, 0));
    // What the first one was to find is not what the second one asked for.
    primary.list();
    assert_eq!(primary.reports, 0, "nothing is known of the layers yet");
    primary.list();
    assert_eq!(primary.reports, 1);
}

/// Nothing lies below the layer any more: whatever is written there would be forgotten with the snapshot.
#[test]
fn what_was_reported_as_joined_stays_so_for_the_interval() {
    let members = [ME, OTHER];
    let mut primary = Primary::new(&members);
    primary.list();
    assert_eq!(primary.reports, 1);
    primary.write(VOLUME);
    assert_eq!(primary.written.pop().map(|layer| layer.snapshot), Some(SnapId(0)));
    // The other one has not acknowledged an entry, and will not: its holder is fenced.
    primary.acknowledges = false;
    primary.write(FENCED);
    assert!(primary.written.pop().is_some());
    primary.hear_map(map(FENCED_AT, 1, &members));
    primary.until(|primary| !primary.proposed.is_empty());
    // The entry is cut, and the same interval goes on.
    primary.acknowledges = true;
    primary.hear_map(map(Epoch(3), 2, &members));
    primary.write(VOLUME);
    primary.until(|primary| !primary.written.is_empty());
    assert_eq!(primary.written.pop().map(|layer| layer.snapshot), Some(SnapId(0)));
}

/// The layer that a join writes to may not have been there when the walk looked. When its snapshot goes too, what is in it
/// is older than what is above, and must not come down over that.
#[test]
fn a_layer_that_a_join_has_made_goes_before_those_above_it() {
    let (lower, higher) = (SnapId(4), SnapId(6));
    let members = [ME];
    let phases = |lower_phase, higher_phase| [(lower, lower_phase), (GOING, SnapPhase::Going), (higher, higher_phase)];
    let one = map_with(Epoch(1), 1, &members, &phases(SnapPhase::Ready, SnapPhase::Ready));
    let mut primary = Primary::under(one);
    primary.layers.insert(GOING, [(0, 5)].into());
    primary.layers.insert(higher, [(0, 6)].into());
    let object = ObjectId { pool: PG.pool, volume: VOLUME, index: 0, snapshot: SnapId(0) };
    let token = primary.lists.pop_front().expect("a walk asks");
    primary.core.handle_list(primary.now, token, vec![object.at(GOING), object.at(higher)]);
    primary.settle();
    // The first slice comes down to where nothing was.
    primary.until(|primary| !primary.reads.is_empty());
    primary.read();
    assert_eq!(primary.layers[&lower], [(0, 5)].into());
    // Now all three go.
    primary.hear_map(map_with(Epoch(2), 1, &members, &phases(SnapPhase::Going, SnapPhase::Going)));
    for _ in 0..400 {
        while !primary.reads.is_empty() {
            primary.read();
        }
        if let Some(token) = primary.lists.pop_front() {
            let layers = primary.layers.iter().filter(|(_, blocks)| !blocks.is_empty());
            let objects = layers.map(|(layer, _)| object.at(*layer)).collect();
            primary.core.handle_list(primary.now, token, objects);
            primary.settle();
        }
        if primary.reads.is_empty() && primary.lists.is_empty() {
            primary.tick();
        }
    }
    primary.layers.retain(|_, blocks| !blocks.is_empty());
    assert_eq!(primary.layers, [(SnapId(0), [(0, 6)].into())].into(), "the newest is what is left");
}
