//! One OSD as a member, by hand: what it may acknowledge, what it may keep of a group that splits, and what it does as the
//! last one.

mod maps;

use std::sync::Arc;

use bytes::Bytes;
use cairn_osd_core::{Config, OsdCore, Output, PersistToken, PgChange, Time, Transaction};
use cairn_types::map::{Born, ClusterMap, Osd, PgConfig};
use cairn_types::peer::{EntryOp, LogEntry, LogPoint, LogReport, Logged, PeerMessage, PgMessage};
use cairn_types::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, RequestId, SnapId, Version,
    VolumeId,
};

const WHOLE: PgId = PgId { pool: PoolId(1), index: 0 };
const HALF: PgId = PgId { pool: PoolId(1), index: 1 };
const ME: OsdId = OsdId(2);
const PRIMARY: OsdId = OsdId(1);
const LIFE: Incarnation = Incarnation(1);

fn config(c: u64, born: Option<Born>) -> PgConfig {
    let members = vec![PRIMARY, ME];
    let c = ConfVersion(c);
    PgConfig {
        c,
        interval: c,
        primary: Some(PRIMARY),
        isr: vec![PRIMARY],
        acting: members.clone(),
        up: members,
        born,
        ..PgConfig::default()
    }
}

/// Everybody in sync.
fn whole(c: u64) -> PgConfig {
    PgConfig { isr: vec![PRIMARY, ME], ..config(c, None) }
}

fn map(epoch: u64, pgs: &[(PgId, PgConfig)]) -> Arc<ClusterMap> {
    let pool = maps::pool(2, 1, pgs.len() as u32);
    Arc::new(ClusterMap {
        epoch: Epoch(epoch),
        pools: [(pool.id, pool)].into(),
        osds: [PRIMARY, ME].map(|id| (id, maps::osd(id))).into(),
        pgs: pgs.iter().cloned().collect(),
        ..ClusterMap::default()
    })
}

fn point(c: u64, seq: u64) -> LogPoint {
    LogPoint { version: Version { c: ConfVersion(c), seq }, hash: seq * 31 }
}

struct Member {
    core: OsdCore,
    stored: Vec<Transaction>,
    said: Vec<(PgId, PgMessage)>,
    /// Of what it said last as a primary.
    attempt: u64,
    proposed: Vec<PgChange>,
    /// Nothing is durable before somebody says so.
    slow: Option<Vec<PersistToken>>,
}

impl Member {
    fn new() -> Self {
        let core = OsdCore::new(Config::new(ME, LIFE, Epoch(1)), 1, Time(0));
        Self { core, stored: Vec::new(), said: Vec::new(), attempt: 0, proposed: Vec::new(), slow: None }
    }

    /// Everything is durable at once, unless the disk is slow.
    fn settle(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, transaction } => {
                    self.stored.push(*transaction);
                    match &mut self.slow {
                        Some(waiting) => waiting.push(token),
                        None => self.core.handle_persisted(Time(0), token),
                    }
                }
                Output::ProposePgs { changes, .. } => self.proposed.extend(changes),
                Output::PersistEpoch { token, .. } => self.core.handle_persisted(Time(0), token),
                Output::List { token, .. } => self.core.handle_list(Time(0), token, Vec::new()),
                Output::SendPeer { message: PeerMessage::Pg { pg, body, attempt, .. }, .. } => {
                    self.attempt = attempt;
                    self.said.push((pg, body));
                }
                _ => {}
            }
        }
        self.core.invariants();
    }

    fn all_is_durable(&mut self) {
        for token in self.slow.take().unwrap_or_default() {
            self.core.handle_persisted(Time(0), token);
        }
        self.settle();
    }

    fn acked(&self) -> Vec<u64> {
        let ack = |(_, body): &(PgId, PgMessage)| match body {
            PgMessage::Ack { persisted, .. } => Some(persisted.seq()),
            _ => None,
        };
        self.said.iter().filter_map(ack).collect()
    }

    fn hear_map(&mut self, map: &Arc<ClusterMap>) {
        self.core.handle_map(Time(0), Arc::clone(map));
        self.settle();
    }

    fn hear(&mut self, pg: PgId, c: u64, attempt: u64, body: PgMessage) {
        let message = PeerMessage::Pg { pg, c: ConfVersion(c), attempt, body };
        self.core.handle_peer(Time(0), PRIMARY, LIFE, message);
        self.settle();
    }

    /// The other one answers as its so many-th life.
    fn hear_life(&mut self, now: Time, life: u64, body: PgMessage) {
        let message = PeerMessage::Pg { pg: WHOLE, c: ConfVersion(2), attempt: self.attempt, body };
        self.core.handle_peer(now, PRIMARY, Incarnation(life), message);
        self.settle();
    }

    fn said(&self, is: impl Fn(&PgMessage) -> bool) -> bool {
        self.said.iter().any(|(_, body)| is(body))
    }

    fn report(&mut self, pg: PgId, c: u64) -> LogReport {
        self.said.clear();
        self.hear(pg, c, 1 << 32, PgMessage::QueryLog);
        let report = self.said.iter().find_map(|(of, body)| match body {
            PgMessage::LogReport(report) if *of == pg => Some(report.clone()),
            _ => None,
        });
        report.expect("it says where its log ends")
    }
}

fn write() -> Logged {
    let data = Bytes::from(vec![7; BLOCK_SIZE as usize]);
    let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 1, snapshot: SnapId::HEAD };
    let entry = LogEntry {
        version: Version { c: ConfVersion(1), seq: 1 },
        prev: 0,
        epoch: Epoch(1),
        request: RequestId::default(),
        acked_through: 0,
        generation: Generation(0),
        snap_context: SnapId(0),
        op: EntryOp::Write { object, offset: 0, crcs: vec![crc32c::crc32c(&data)] },
    };
    Logged { entry, data }
}

/// The store knows what is pending by its object and not by its group: in the half it would still hide what is there.
#[test]
fn what_was_not_committed_is_cut_before_there_is_a_half() {
    let mut member = Member::new();
    member.hear_map(&map(1, &[(WHOLE, whole(1))]));
    member.hear(WHOLE, 1, 1, PgMessage::QueryLog);
    member.hear(WHOLE, 1, 1, PgMessage::Align { at: LogPoint::default() });
    member.hear(WHOLE, 1, 1, PgMessage::Replicate { commit: 0, entries: vec![write()] });
    assert!(member.stored.iter().any(|transaction| transaction.append.len() == 1));
    member.stored.clear();
    let born = Some(Born { from: 0, c: ConfVersion(4), at: point(3, 8) });
    member.hear_map(&map(5, &[(WHOLE, config(4, None)), (HALF, config(4, born))]));
    let half = member.stored.iter().position(|transaction| transaction.pg == HALF).expect("there is a half");
    let cut = member.stored.iter().position(|transaction| transaction.pg == WHOLE && transaction.rewind == Some(0));
    assert!(cut.is_some_and(|cut| cut < half), "{:#?}", member.stored);
    for pg in [WHOLE, HALF] {
        let report = member.report(pg, 4);
        assert!(!report.usable && report.tail.is_empty(), "{pg}: {report:?}");
    }
}

/// It was split before a disaster of the metadata service, which has forgotten that, and split it once more.
#[test]
fn a_half_of_another_birth_is_of_no_use() {
    let mut member = Member::new();
    member.hear_map(&map(1, &[(WHOLE, whole(1))]));
    let born = |c, at| Some(Born { from: 0, c: ConfVersion(c), at });
    let first = PgConfig { born: born(2, LogPoint::default()), ..whole(2) };
    member.hear_map(&map(2, &[(WHOLE, whole(2)), (HALF, first)]));
    assert!(member.report(HALF, 2).usable, "it has all there was");
    let second = config(9, born(9, point(8, 70)));
    member.hear_map(&map(7, &[(WHOLE, config(9, None)), (HALF, second)]));
    assert!(!member.report(HALF, 9).usable && !member.report(WHOLE, 9).usable);
}

/// Nothing that the primary of before said is taken in between.
#[test]
fn messages_from_before_the_split_are_not_taken() {
    let mut member = Member::new();
    member.hear_map(&map(1, &[(WHOLE, whole(1))]));
    member.hear(WHOLE, 1, 1, PgMessage::QueryLog);
    member.hear(WHOLE, 1, 1, PgMessage::Align { at: LogPoint::default() });
    member.stored.clear();
    let born = Some(Born { from: 0, c: ConfVersion(2), at: LogPoint::default() });
    let half = PgConfig { born, ..whole(2) };
    // The map is here, and nothing of it is durable yet.
    member.core.handle_map(Time(0), map(2, &[(WHOLE, whole(2)), (HALF, half)]));
    let late = PgMessage::Replicate { commit: 0, entries: vec![write()] };
    member.hear(WHOLE, 1, 1, late);
    assert!(member.stored.iter().all(|transaction| transaction.append.is_empty()));
    assert_eq!(member.report(WHOLE, 2).end(), LogPoint::default());
}

/// A power cut would bring the entry back, and whoever read without it would see it come to be after all.
#[test]
fn a_cut_is_acknowledged_when_it_is_durable() {
    let mut member = Member::new();
    member.hear_map(&map(1, &[(WHOLE, whole(1))]));
    member.hear(WHOLE, 1, 1, PgMessage::QueryLog);
    member.hear(WHOLE, 1, 1, PgMessage::Align { at: LogPoint::default() });
    member.hear(WHOLE, 1, 1, PgMessage::Replicate { commit: 0, entries: vec![write()] });
    assert_eq!(member.acked().last(), Some(&1));
    member.said.clear();
    member.slow = Some(Vec::new());
    member.hear(WHOLE, 1, 2, PgMessage::QueryLog);
    member.hear(WHOLE, 1, 2, PgMessage::Align { at: LogPoint::default() });
    assert_eq!(member.stored.last().and_then(|transaction| transaction.rewind), Some(0));
    assert_eq!(member.acked(), [0; 0]);
    member.all_is_durable();
    assert_eq!(member.acked(), [0]);
}

/// Of two that were in sync this one is left, and the other's disk is gone: others may join once it goes on alone.
#[test]
fn the_last_one_goes_on_when_the_other_is_gone_for_good_and_not_before() {
    let third = OsdId(3);
    let with_third = |epoch, up, placed| {
        let members = vec![PRIMARY, ME];
        let acting = vec![PRIMARY, ME, third];
        let led = PgConfig { primary: Some(ME), isr: members, acting: acting.clone(), up: acting, ..config(2, None) };
        let mut map = Arc::unwrap_or_clone(map(epoch, &[(WHOLE, led)]));
        let other = map.osds.get_mut(&PRIMARY).unwrap();
        (other.up, other.placed) = (up, placed);
        let new = Osd { id: third, up: true, placed: true, ..other.clone() };
        map.osds.insert(third, new);
        map.pools.values_mut().for_each(|pool| (pool.size, pool.min_size) = (3, 2));
        Arc::new(map)
    };
    for (up, placed, goes_on) in [(false, true, false), (true, false, false), (false, false, true)] {
        let mut member = Member::new();
        member.hear_map(&with_third(2, up, placed));
        member.core.handle_connection_refused(Time(0), PRIMARY);
        member.settle();
        let asked = member.proposed.iter().filter(|change| change.isr == [ME]).count();
        assert_eq!(asked > 0, goes_on, "up {up}, placed {placed}: {:?}", member.proposed);
    }
}

/// It said where its log ends before that was on its disk, and died. Its next life may have less, and will never have more.
#[test]
fn who_returns_with_less_than_it_had_said_is_not_asked_for_the_rest() {
    let mut member = Member::new();
    let led = PgConfig { primary: Some(ME), ..whole(2) };
    let report = |tail: &[LogPoint]| {
        let tail = tail.to_vec();
        PgMessage::LogReport(LogReport { commit: LogPoint::default(), tail, usable: true, missing: false })
    };
    member.hear_map(&map(2, &[(WHOLE, led)]));
    assert!(member.said(|body| matches!(body, PgMessage::QueryLog)), "{:?}", member.said);
    member.hear_life(Time(0), 1, report(&[point(1, 1)]));
    assert!(member.said(|body| matches!(body, PgMessage::FetchLog { after: 0, through: 1 })), "{:?}", member.said);
    // Before anything else is done its next life is here, and has said where its log ends.
    member.said.clear();
    member.hear_life(Time(0), 2, PgMessage::LogEntries { entries: Vec::new() });
    assert!(member.said(|body| matches!(body, PgMessage::QueryLog)), "{:?}", member.said);
    member.said.clear();
    member.hear_life(Time(0), 2, report(&[]));
    let later = Time(5_000_000_000);
    member.core.handle_timeout(later);
    member.settle();
    assert!(!member.said(|body| matches!(body, PgMessage::FetchLog { .. })), "{:?}", member.said);
    assert!(member.said(|body| matches!(body, PgMessage::Align { .. })), "{:?}", member.said);
}
