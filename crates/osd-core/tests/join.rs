//! A primary that joins the layers of a snapshot that goes, by hand: what it takes for the answer it asked for, and what it
//! remembers of a walk. Both windows are too short for chance to meet them often.

mod maps;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use cairn_osd_core::{Config, ConnId, ListToken, OsdCore, Output, PgChange, Time};
use cairn_types::io::{ClientOp, ClientRequest};
use cairn_types::map::{ClusterMap, PgConfig, SnapPhase, VolumeFence};
use cairn_types::peer::{HeartbeatReply, LogPoint, LogReport, Logged, PeerMessage, PgMessage};
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
    let going = VolumeFence { snapshots: [(GOING, SnapPhase::Going)].into(), ..held(1) };
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
        let mut primary = Self {
            core: OsdCore::new(Config::new(ME, LIFE, Epoch(1)), 1, Time(0)),
            now: Time(0),
            lists: VecDeque::new(),
            reports: 0,
            written: Vec::new(),
            proposed: Vec::new(),
            log: Vec::new(),
            acknowledges: true,
            requests: 0,
            map: Arc::default(),
        };
        primary.hear_map(map(Epoch(1), 1, members));
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
                    self.core.handle_persisted(self.now, token);
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
