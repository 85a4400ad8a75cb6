//! The machine against tiny references of what it must be: a key-value store that copies itself at every revision, and
//! the invariants of PGs (checked after every command by `cluster`) under commands drawn at random.

mod cluster;

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_meta_core::{Event, Machine, MemoryState, SESSIONS, kv, query};
use cairn_proto::etcdserverpb::request_op::Request;
use cairn_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, compare,
};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    AttachMode, AttachRequest, ChangePgsRequest, Command, CreatePoolRequest, CreateVolumeRequest, DownEvidence,
    ErrorCode, Location, OsdReports, PgChange, Pool, RegisterNodeRequest, ReportDownRequest, ReportOsdRequest,
    SetOsdPlaced, VolumeRef, volume_ref,
};
use cairn_proto::mvccpb::KeyValue;
use cairn_types::PgId;
use cluster::Cluster;
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use prost::Message;

// ---- the key-value half

/// Every revision in full: what etcd's store means, without any index.
#[derive(Clone, Default)]
struct Reference {
    past: BTreeMap<i64, BTreeMap<Vec<u8>, KeyValue>>,
    now: BTreeMap<Vec<u8>, KeyValue>,
    revision: i64,
    compacted: i64,
}

impl Reference {
    fn new() -> Self {
        let mut reference = Self { revision: 1, ..Self::default() };
        reference.past.insert(1, BTreeMap::new());
        reference
    }

    fn put(&mut self, key: &[u8], value: &[u8], lease: i64) {
        let old = self.now.get(key);
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            value: Bytes::copy_from_slice(value),
            create_revision: old.map_or(self.revision + 1, |kv| kv.create_revision),
            mod_revision: self.revision + 1,
            version: old.map_or(1, |kv| kv.version + 1),
            lease,
        };
        self.now.insert(key.to_vec(), kv);
    }

    fn keys(&self, from: &[u8], end: &[u8]) -> Vec<Vec<u8>> {
        let inside = |key: &&Vec<u8>| kv::in_range(key, from, end);
        self.now.keys().filter(inside).cloned().collect()
    }

    fn delete(&mut self, from: &[u8], end: &[u8]) -> bool {
        let gone = self.keys(from, end);
        gone.iter().for_each(|key| drop(self.now.remove(key)));
        !gone.is_empty()
    }

    fn seal(&mut self, changed: bool) {
        if changed {
            self.revision += 1;
            self.past.insert(self.revision, self.now.clone());
        }
    }

    fn range(&self, from: &[u8], end: &[u8], revision: i64) -> Vec<KeyValue> {
        let at = &self.past[&if revision == 0 { self.revision } else { revision }];
        at.iter().filter(|(key, _)| kv::in_range(key, from, end)).map(|(_, kv)| kv.clone()).collect()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(Vec<u8>, u8, bool),
    Delete(Vec<u8>, Vec<u8>),
    /// If the key exists, put the first, otherwise delete a range and put the second, all in one.
    Txn(Vec<u8>, Vec<u8>, Vec<u8>),
    Compact(i64),
    Revoke,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), Just(1), Just(0xff), Just(b'a')], 1..4)
}

fn end() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![Just(vec![]), Just(vec![0]), key()]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (key(), any::<u8>(), any::<bool>()).prop_map(|(key, value, leased)| Op::Put(key, value, leased)),
        2 => (key(), end()).prop_map(|(key, end)| Op::Delete(key, end)),
        2 => (key(), key(), key()).prop_map(|(a, b, c)| Op::Txn(a, b, c)),
        1 => (1i64..40).prop_map(Op::Compact),
        1 => Just(Op::Revoke),
    ]
}

const LEASE: i64 = 5;

fn put(key: &[u8], value: &[u8], lease: i64) -> PutRequest {
    PutRequest { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value), lease, ..Default::default() }
}

fn delete(key: &[u8], end: &[u8]) -> DeleteRangeRequest {
    DeleteRangeRequest {
        key: Bytes::copy_from_slice(key),
        range_end: Bytes::copy_from_slice(end),
        ..Default::default()
    }
}

fn perform(cluster: &mut Cluster, reference: &mut Reference, op: Op) {
    match op {
        Op::Put(key, value, leased) => {
            let lease = if leased { LEASE } else { 0 };
            cluster.run(Payload::KvPut(put(&key, &[value], lease))).unwrap();
            reference.put(&key, &[value], lease);
            reference.seal(true);
        }
        Op::Delete(key, end) => {
            cluster.run(Payload::KvDeleteRange(delete(&key, &end))).unwrap();
            let changed = reference.delete(&key, &end);
            reference.seal(changed);
        }
        Op::Txn(a, b, c) => {
            let op = |request| RequestOp { request: Some(request) };
            let exists = Compare {
                key: Bytes::copy_from_slice(&a),
                target: compare::CompareTarget::Version.into(),
                result: compare::CompareResult::Greater.into(),
                target_union: Some(compare::TargetUnion::Version(0)),
                ..Default::default()
            };
            let txn = TxnRequest {
                compare: vec![exists],
                success: vec![op(Request::RequestPut(put(&b, b"then", 0)))],
                failure: vec![
                    op(Request::RequestDeleteRange(delete(&c, b""))),
                    op(Request::RequestRange(RangeRequest { key: Bytes::copy_from_slice(&c), ..Default::default() })),
                    op(Request::RequestPut(put(&a, b"else", LEASE))),
                ],
            };
            let result = cluster.run(Payload::KvTxn(txn));
            if a == c {
                assert_eq!(result.unwrap_err().message, "etcdserver: duplicate key given in txn request");
                return;
            }
            let Answer::KvTxn(reply) = result.unwrap() else { panic!() };
            assert_eq!(reply.succeeded, reference.now.contains_key(&a));
            if reply.succeeded {
                reference.put(&b, b"then", 0);
            } else {
                reference.delete(&c, b"");
                reference.put(&a, b"else", LEASE);
            }
            reference.seal(true);
        }
        Op::Compact(revision) => {
            let result = cluster.run(Payload::KvCompact(CompactionRequest { revision, physical: false }));
            if revision > reference.compacted && revision <= reference.revision {
                result.unwrap();
                reference.compacted = revision;
            } else {
                assert_eq!(result.unwrap_err().code(), ErrorCode::OutOfRange);
            }
        }
        Op::Revoke => {
            cluster.run(Payload::LeaseRevoke(LeaseRevokeRequest { id: LEASE })).unwrap();
            let before = reference.now.len();
            reference.now.retain(|_, kv| kv.lease != LEASE);
            reference.seal(before != reference.now.len());
            cluster.run(Payload::LeaseGrant(LeaseGrantRequest { id: LEASE, ttl: 10 })).unwrap();
        }
    }
}

fn compare_all(cluster: &Cluster, reference: &Reference, from: &[u8], end: &[u8]) {
    assert_eq!(cluster.machine.kv_revision(), reference.revision);
    for revision in reference.compacted.max(1)..=reference.revision {
        let request = RangeRequest {
            key: Bytes::copy_from_slice(from),
            range_end: Bytes::copy_from_slice(end),
            revision,
            ..Default::default()
        };
        let reply = kv::range(&cluster.machine, &cluster.state, &request).unwrap();
        assert_eq!(reply.kvs, reference.range(from, end, revision), "at revision {revision}");
        assert_eq!(reply.count, reply.kvs.len() as i64);
    }
    let leased: Vec<Vec<u8>> = kv::lease_keys(&cluster.state, LEASE).iter().map(|key| key.to_vec()).collect();
    let expected: Vec<Vec<u8>> =
        reference.now.values().filter(|kv| kv.lease == LEASE).map(|kv| kv.key.to_vec()).collect();
    assert_eq!(leased, expected);
}

/// Replaying history over an old revision gives every newer one.
fn replay(cluster: &Cluster, reference: &Reference) {
    let from = reference.compacted.max(1);
    let mut now = reference.past[&from].clone();
    let past = kv::history(&cluster.machine, &cluster.state, (b"\0", b"\0"), from + 1, usize::MAX).unwrap();
    assert_eq!(past.through, reference.revision);
    for (revision, events) in past.revisions {
        for event in events {
            let kv = event.kv.unwrap();
            let key = kv.key.to_vec();
            assert_eq!(event.prev_kv.as_ref(), now.get(&key), "the previous value at {revision}");
            if event.r#type == 0 {
                now.insert(key, kv)
            } else {
                now.remove(&key)
            };
        }
        assert_eq!(&now, &reference.past[&revision]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_key_value_half_is_its_reference(ops in vec(op(), 1..60), from in key(), end in end()) {
        let mut cluster = Cluster::new();
        let mut reference = Reference::new();
        cluster.run(Payload::LeaseGrant(LeaseGrantRequest { id: LEASE, ttl: 10 })).unwrap();
        for op in ops {
            perform(&mut cluster, &mut reference, op);
        }
        compare_all(&cluster, &reference, &from, &end);
        compare_all(&cluster, &reference, b"\0", b"\0");
        replay(&cluster, &reference);
    }
}

#[test]
fn what_watchers_hear_is_what_history_says() {
    let mut cluster = Cluster::new();
    let mut heard = Vec::new();
    for n in 0..5u8 {
        let command = Command { version: 1, payload: Some(Payload::KvPut(put(b"k", &[n], 0))), ..Default::default() };
        for event in cluster.apply(&command.encode_to_vec()).events {
            if let Event::Kv { revision, events } = event {
                heard.push((revision, events));
            }
        }
    }
    let past = kv::history(&cluster.machine, &cluster.state, (b"k", b""), 1, 100).unwrap();
    assert_eq!(past.revisions, heard);
}

#[test]
fn compacted_history_is_removed_in_bounded_pieces() {
    let mut cluster = Cluster::new();
    for n in 0..1000u32 {
        cluster.run(Payload::KvPut(put(b"k", &n.to_be_bytes(), 0))).unwrap();
    }
    let stored = |cluster: &Cluster| cluster.state.records().filter(|(key, _)| key[0] == b'r').count();
    let revision = cluster.machine.kv_revision();
    cluster.run(Payload::KvCompact(CompactionRequest { revision, physical: false })).unwrap();
    let mut before = stored(&cluster);
    assert!(before > 800, "a compaction does not stall the log: {before}");
    for _ in 0..40 {
        cluster.run(Payload::KvDeleteRange(delete(b"nothing", b""))).unwrap();
        assert!(before - stored(&cluster) <= 64);
        before = stored(&cluster);
    }
    assert_eq!(before, 1, "the newest version stays");
}

#[test]
fn transactions_are_checked_before_anything_is_written() {
    let op = |request| RequestOp { request: Some(request) };
    let mut cluster = Cluster::new();
    let nested = |success| op(Request::RequestTxn(TxnRequest { success, ..Default::default() }));
    let put_a = || op(Request::RequestPut(put(b"a", b"1", 0)));
    for (ops, message) in [
        (vec![put_a(), put_a()], "etcdserver: duplicate key given in txn request"),
        (vec![put_a(), nested(vec![put_a()])], "etcdserver: duplicate key given in txn request"),
        (vec![put_a(), op(Request::RequestPut(put(b"", b"1", 0)))], "etcdserver: key is not provided"),
        (vec![put_a(), op(Request::RequestPut(put(b"b", b"1", 77)))], "etcdserver: requested lease not found"),
        (
            vec![
                put_a(),
                op(Request::RequestRange(RangeRequest { key: "a".into(), revision: 9, ..Default::default() })),
            ],
            "etcdserver: mvcc: required revision is a future revision",
        ),
        ((0..129).map(|_| put_a()).collect(), "etcdserver: too many operations in txn request"),
    ] {
        let error = cluster.run(Payload::KvTxn(TxnRequest { success: ops, ..Default::default() })).unwrap_err();
        assert_eq!(error.message, message);
        assert_eq!(cluster.machine.kv_revision(), 1);
    }
    let branches = TxnRequest { success: vec![put_a()], failure: vec![put_a()], ..Default::default() };
    let txn = TxnRequest { success: vec![op(Request::RequestTxn(branches))], ..Default::default() };
    cluster.run(Payload::KvTxn(txn)).expect("two branches exclude each other");
}

// ---- PGs, volumes, sessions

#[derive(Clone, Debug)]
enum Deed {
    Register(u8),
    Report(u8, u8),
    Down { osd: u8, by: u8, evidence: DownEvidence },
    Change { pg: u8, by: u8, fresh: bool, isr: Vec<u8>, acting: Vec<u8>, backfill: Vec<u8>, primary: Option<u8> },
    Placed(u8, bool),
    Attach { node: u8, steal: bool, mode: AttachMode },
    Later(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    let osd = || 0u8..5;
    let set = || vec(0u8..5, 0..5);
    let evidence = prop_oneof![Just(DownEvidence::Silent), Just(DownEvidence::Refused), Just(DownEvidence::Exited)];
    let mode = prop_oneof![Just(AttachMode::Exclusive), Just(AttachMode::ReadOnly), Just(AttachMode::Shared)];
    prop_oneof![
        2 => osd().prop_map(Deed::Register),
        2 => (osd(), 0u8..3).prop_map(|(osd, lag)| Deed::Report(osd, lag)),
        3 => (osd(), osd(), evidence).prop_map(|(osd, by, evidence)| Deed::Down { osd, by, evidence }),
        8 => (0u8..4, osd(), proptest::bool::weighted(0.9), set(), set(), set(), proptest::option::of(osd())).prop_map(
            |(pg, by, fresh, isr, mut acting, backfill, primary)| {
                acting.extend(&isr);
                acting.sort_unstable();
                acting.dedup();
                Deed::Change { pg, by, fresh, isr, acting, backfill, primary }
            }
        ),
        1 => (osd(), any::<bool>()).prop_map(|(osd, placed)| Deed::Placed(osd, placed)),
        1 => (0u8..3, any::<bool>(), mode).prop_map(|(node, steal, mode)| Deed::Attach { node, steal, mode }),
        1 => (1u8..20).prop_map(Deed::Later),
    ]
}

fn disk(osd: u8) -> String {
    format!("disk{osd}")
}

fn act(cluster: &mut Cluster, deed: Deed, session: &mut u64) {
    let life = |cluster: &Cluster, osd: u8| cluster.disks[&disk(osd)].incarnation;
    let payload = match deed {
        Deed::Register(osd) => {
            cluster.register(&disk(osd)).expect("its own disk is welcome");
            return;
        }
        Deed::Later(seconds) => {
            cluster.now_s += u64::from(seconds);
            return;
        }
        Deed::Report(osd, lag) => Payload::OsdReports(OsdReports {
            reports: vec![ReportOsdRequest {
                id: cluster.osd(&disk(osd)),
                incarnation: life(cluster, osd),
                acked_epoch: cluster.machine.map().epoch.0.saturating_sub(lag.into()),
                ..Default::default()
            }],
        }),
        Deed::Down { osd, by, evidence } => Payload::ReportDown(ReportDownRequest {
            mutation: None,
            reporter: Some(cluster.osd(&disk(by))),
            osd: cluster.osd(&disk(osd)),
            incarnation: life(cluster, osd),
            evidence: evidence.into(),
        }),
        Deed::Change { pg, by, fresh, isr, acting, backfill, primary } => {
            let id = PgId { pool: cairn_types::PoolId(1), index: pg.into() };
            let now = &cluster.machine.map().pgs[&id];
            let by = if fresh { now.primary.map_or(u32::from(by), |osd| osd.0) } else { by.into() };
            let mut isr: Vec<u32> = isr.into_iter().map(u32::from).collect();
            isr.dedup();
            Payload::ChangePgs(ChangePgsRequest {
                mutation: None,
                reporter: by,
                incarnation: life(cluster, by as u8),
                changes: vec![PgChange {
                    pg: Some(id.into()),
                    expect_c: now.c.0 - u64::from(!fresh),
                    primary: primary.map(u32::from),
                    isr,
                    acting: acting.into_iter().map(u32::from).collect(),
                    backfill: backfill.into_iter().map(u32::from).collect(),
                    split_at: None,
                }],
            })
        }
        Deed::Placed(osd, placed) => {
            Payload::SetOsdPlaced(SetOsdPlaced { id: cluster.osd(&disk(osd)), placed, weight: None })
        }
        Deed::Attach { node, steal, mode } => {
            *session += 1;
            Payload::Attach(AttachRequest {
                mutation: None,
                volume: Some(VolumeRef { by: Some(volume_ref::By::Name("v".into())) }),
                node: format!("n{node}"),
                mode: mode.into(),
                data_session: Bytes::from(format!("{session:_>16}")),
                steal,
                replaces: 0,
                restores: 0,
            })
        }
    };
    let _refused_or_not = cluster.run(payload);
}

fn furnished(min_size: u32) -> Cluster {
    let mut cluster = Cluster::new();
    for osd in 0..5 {
        let place = Location { host: format!("h{osd}"), ..Default::default() };
        cluster.add_disk(&disk(osd), place, 1 << 40);
        cluster.register(&disk(osd)).unwrap();
    }
    let pool = Pool { name: "p".into(), size: 3, min_size, pg_count: 4, ..Default::default() };
    cluster.run(Payload::CreatePool(CreatePoolRequest { pool: Some(pool), ..Default::default() })).unwrap();
    for node in 0..3 {
        let node = RegisterNodeRequest { name: format!("n{node}"), ..Default::default() };
        cluster.run(Payload::RegisterNode(node)).unwrap();
    }
    let volume = CreateVolumeRequest { name: "v".into(), size: 1 << 30, ..Default::default() };
    cluster.run(Payload::CreateVolume(volume)).unwrap();
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// `cluster` checks the invariants after each; here is what must hold about lives and generations.
    #[test]
    fn pgs_keep_their_invariants_under_any_commands(deeds in vec(deed(), 1..80), min_size in 1u32..3) {
        let mut cluster = furnished(min_size);
        let mut session = 0;
        let (mut newest, mut dead) = (0, BTreeMap::new());
        for deed in deeds {
            act(&mut cluster, deed, &mut session);
            for osd in cluster.machine.map().osds.values() {
                let before = dead.insert(osd.id, osd.dead_through).unwrap_or_default();
                prop_assert!(osd.dead_through >= before, "the dead never return");
                prop_assert!(!osd.up || osd.incarnation > osd.dead_through);
            }
            for pg in cluster.machine.map().pgs.values() {
                prop_assert!(pg.primary.is_none_or(|osd| cluster.machine.map().osds[&osd].up), "a primary is up");
            }
            for fence in cluster.machine.map().volumes.values() {
                prop_assert!(fence.read_only.is_subset(&fence.generations));
                let writers = fence.generations.difference(&fence.read_only).count();
                prop_assert!(writers <= 1 || fence.generations.len() <= 3);
                let top = fence.generations.last().map_or(0, |generation| generation.0);
                prop_assert!(top >= newest, "generations are never reused");
                newest = newest.max(top);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic(junk in vec(any::<u8>(), 0..200), cut in 0usize..100) {
        let mut cluster = Cluster::new();
        cluster.apply(&junk);
        let request = CreateVolumeRequest { name: "v".into(), size: 1, ..Default::default() };
        let sound = Command { version: 1, payload: Some(Payload::CreateVolume(request)), ..Default::default() };
        let mut bent = sound.encode_to_vec();
        bent.truncate(cut);
        bent.extend(&junk);
        cluster.apply(&bent);
        prop_assert_eq!(cluster.machine.map().epoch.0, 1);
    }
}

#[test]
fn sessions_are_bounded_and_the_forgotten_are_told() {
    let mut state = MemoryState::default();
    let mut machine = Machine::open(&state).unwrap();
    let mut run = |index: u64, session: u64, seq: u64, acked_through: u64| {
        let payload = match index {
            0 => Payload::InitCluster(cairn_proto::meta::InitCluster {
                cluster: Bytes::from_static(b"0123456789abcdef"),
                min_protocol: 1,
            }),
            _ => Payload::KvPut(put(b"k", b"v", 0)),
        };
        let session = Bytes::copy_from_slice(&u128::from(session).to_be_bytes());
        let command = Command { version: 1, session, seq, acked_through, payload: Some(payload), ..Default::default() };
        let applied = machine.apply(&state, index, &command.encode_to_vec()).unwrap();
        state.write(&applied.batch);
        (applied.reply, machine.session_count())
    };
    run(0, 0, 1, 0);
    run(1, 0, 2, 1);
    for session in 1..=SESSIONS as u64 {
        let (_, count) = run(session + 1, session, 1, 0);
        assert!(count <= SESSIONS);
    }
    let (reply, _) = run(u64::MAX, 0, 3, 2);
    let Some(Answer::Error(error)) = reply.result else { panic!("{reply:?}") };
    assert_eq!(error.code(), ErrorCode::SessionExpired);
    let stored = |kind: u8| state.records().filter(|(key, _)| key[0] == kind).count();
    assert_eq!((stored(b's'), stored(b't')), (SESSIONS, SESSIONS));
}

/// An OSD that registers before the first leader named the cluster sends the same request until it is carried out.
#[test]
fn what_came_too_early_is_not_remembered() {
    let mut state = MemoryState::default();
    let mut machine = Machine::open(&state).unwrap();
    let mut run = |index: u64, session: &'static [u8], payload: Payload| {
        let session = Bytes::from_static(session);
        let command = Command { version: 1, session, seq: 1, payload: Some(payload), ..Default::default() };
        let applied = machine.apply(&state, index, &command.encode_to_vec()).unwrap();
        state.write(&applied.batch);
        applied.reply.result.unwrap()
    };
    let early = Payload::KvPut(put(b"k", b"v", 0));
    assert!(matches!(run(1, b"0123456789abcdef", early.clone()), Answer::Error(_)));
    let init = cairn_proto::meta::InitCluster { cluster: Bytes::from_static(b"0123456789abcdef"), min_protocol: 1 };
    run(2, b"", Payload::InitCluster(init));
    assert!(matches!(run(3, b"0123456789abcdef", early), Answer::KvPut(_)));
}

#[test]
fn commands_of_the_future_and_of_nobody_are_refused_in_words() {
    let mut cluster = Cluster::nameless();
    let error = cluster.run(Payload::KvPut(put(b"k", b"v", 0))).unwrap_err();
    assert_eq!(error.message, "the cluster has no name yet");
    let mut cluster = Cluster::new();
    cluster.version = 2;
    let error = cluster.run(Payload::KvPut(put(b"k", b"v", 0))).unwrap_err();
    assert_eq!(error.message, "the command has version 2, and this cluster carries out 1 to 1");
    assert_eq!(error.code(), ErrorCode::UnsupportedVersion);
    let unknown = Command { version: 1, ..Default::default() };
    let reply = cluster.apply(&unknown.encode_to_vec()).reply;
    let Some(Answer::Error(error)) = reply.result else { panic!("{reply:?}") };
    assert_eq!(error.message, "the command carries nothing that this version knows");
}

#[test]
fn a_watcher_gets_a_delta_where_history_reaches_and_the_whole_map_elsewhere() {
    let mut cluster = furnished(2);
    let epoch = cluster.machine.map().epoch;
    assert!(cluster.machine.map_since(epoch).is_none());
    cluster.register(&disk(1)).unwrap();
    let delta = cluster.machine.map_since(epoch).unwrap();
    assert!(!delta.full && delta.osds.len() == 1 && delta.epoch == epoch.0 + 1);
    assert!(cluster.machine.map_since(cairn_types::Epoch(0)).unwrap().full);
    let reopened = Machine::open(&cluster.state).unwrap();
    assert!(reopened.map_since(epoch).unwrap().full, "history is not kept over a restart");
    assert_eq!(query::usage(&reopened).volumes, 1);
}

#[test]
fn a_state_of_another_format_is_not_opened() {
    let mut cluster = Cluster::new();
    let record = cairn_proto::meta::ClusterRecord { format: 99, ..Default::default() };
    let batch = cairn_meta_core::Batch {
        changes: vec![cairn_meta_core::Change::Put(Bytes::from_static(b"m"), record.encode_to_vec().into())],
    };
    cluster.state.write(&batch);
    let error = Machine::open(&cluster.state).unwrap_err();
    assert_eq!(error.to_string(), "the metadata state is damaged at `m`: expected state format 1, found format 99");
}
