//! The members' record, muted health checks, and a state that was restored from a backup.

mod cluster;

use bytes::Bytes;
use cairn_meta_core::restore::{Restoration, awaited, transform};
use cairn_meta_core::{Machine, MemoryState, health, kv};
use cairn_proto::etcdserverpb::PutRequest;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    AddMember, BeginMembers, ChangeMemberReply, ChangeMemberRequest, Command, CommandError, CreatePoolRequest,
    ErrorCode, Location, LogPoint, Member, MuteHealthRequest, PgBorn, PgMemory, Pool, PromoteMember,
    RegisterOsdRequest, UpdateMember,
};
use cairn_types::{OsdId, PgId};
use prost::Message;

use cluster::Cluster;

fn begun() -> Cluster {
    let mut cluster = Cluster::new();
    let members = (1..=3).map(|id| Member { id, address: format!("h{id}:1"), ..Member::default() }).collect();
    cluster.run(Payload::BeginMembers(BeginMembers { members, lineage: Bytes::from_static(&[1; 16]) })).unwrap();
    cluster
}

fn change(cluster: &mut Cluster, change: Change) -> Result<ChangeMemberReply, CommandError> {
    let request = ChangeMemberRequest { change: Some(change), ..ChangeMemberRequest::default() };
    match cluster.run(Payload::ChangeMember(request))? {
        Answer::ChangeMember(reply) => Ok(reply),
        other => panic!("{other:?}"),
    }
}

fn add(id: u64, address: &str, replaces: u64, directory: u8) -> Change {
    let directory = if directory == 0 { Bytes::new() } else { vec![directory; 16].into() };
    Change::Add(AddMember { id, address: address.into(), replaces, stay_learner: false, directory })
}

#[test]
fn a_number_is_given_once() {
    let mut cluster = begun();
    let reply = change(&mut cluster, add(4, "h4:1", 0, 0)).unwrap();
    assert_eq!((reply.member.unwrap().id, reply.genesis), (4, vec![1, 2, 3]));
    assert_eq!(change(&mut cluster, add(9, "h5:1", 0, 0)).unwrap_err().code(), ErrorCode::FailedPrecondition);
    change(&mut cluster, Change::Remove(4)).unwrap();
    let again = change(&mut cluster, add(4, "h4:1", 0, 0)).unwrap_err();
    assert_eq!((again.code(), again.message.contains("the number 5")), (ErrorCode::Conflict, true));
    let gone = change(&mut cluster, Change::Remove(4)).unwrap_err();
    assert_eq!((gone.code(), gone.message.as_str()), (ErrorCode::NotFound, "member 4 was removed"));
    assert!(change(&mut cluster, add(5, "nowhere", 0, 0)).unwrap_err().message.contains("no address"));
}

#[test]
fn a_learner_is_the_directory_that_began_as_it() {
    let mut cluster = begun();
    change(&mut cluster, add(4, "h4:1", 0, 0)).unwrap();
    let numbered = change(&mut cluster, add(5, "h4:1", 0, 7)).unwrap_err();
    assert_eq!(numbered.code(), ErrorCode::Conflict, "raft would add member 5, and nobody would know it");
    let claimed = change(&mut cluster, add(0, "h4:1", 0, 7)).unwrap();
    assert_eq!(claimed.member.as_ref().unwrap().id, 4, "announced, and begun");
    let again = change(&mut cluster, add(0, "h4:1", 0, 7)).unwrap();
    assert_eq!(again.member.unwrap().id, 4, "asked again, it is the same");
    let wiped = change(&mut cluster, add(0, "h4:1", 0, 8)).unwrap_err();
    assert_eq!(wiped.code(), ErrorCode::IdentityMismatch);
    assert!(wiped.remedy.contains("cairn meta remove 4"), "{}", wiped.remedy);
    // Once it votes, its directory has no reason to ask again but that it lost what it was.
    change(&mut cluster, Change::Promote(PromoteMember { id: 4, instead_of: 0 })).unwrap();
    let emptied = change(&mut cluster, add(0, "h4:1", 0, 7)).unwrap_err();
    assert_eq!(emptied.code(), ErrorCode::IdentityMismatch);
    assert!(emptied.remedy.contains("--replace 4"), "{}", emptied.remedy);
}

#[test]
fn a_replacement_takes_its_place_in_one_step() {
    let mut cluster = begun();
    let taken = change(&mut cluster, add(4, "h2:1", 0, 1)).unwrap_err();
    assert!(taken.remedy.contains("cairn meta replace 2"), "{taken:?}");
    change(&mut cluster, add(4, "h2:1", 2, 1)).unwrap();
    let wrong = Change::Promote(PromoteMember { id: 4, instead_of: 3 });
    assert_eq!(change(&mut cluster, wrong).unwrap_err().code(), ErrorCode::FailedPrecondition);
    let swapped = change(&mut cluster, Change::Promote(PromoteMember { id: 4, instead_of: 2 })).unwrap();
    let ids: Vec<u64> = swapped.members.iter().map(|m| m.id).collect();
    assert_eq!(ids, [1, 3, 4]);
    assert_eq!(cluster.machine.members().leaving[0].id, 2, "its address is kept while raft needs it");
    let moved = Change::Update(UpdateMember { id: 4, address: "h9:1".into() });
    assert_eq!(change(&mut cluster, moved).unwrap().member.unwrap().address, "h9:1");
    for id in [1, 3] {
        change(&mut cluster, Change::Remove(id)).unwrap();
    }
    let last = change(&mut cluster, Change::Remove(4)).unwrap_err();
    assert!(last.message.contains("the last one that votes"), "{}", last.message);
}

#[test]
fn a_rehearsal_changes_nothing() {
    let cluster = begun();
    let request = ChangeMemberRequest { dry_run: true, change: Some(add(4, "h4:1", 0, 0)), mutation: None };
    let reply = cluster.machine.rehearse_member(&cluster.state, &request).unwrap();
    assert_eq!((reply.members.len(), cluster.machine.members().members.len()), (4, 3));
}

#[test]
fn what_is_muted_is_shown_and_does_not_count_until_its_time() {
    let mut cluster = Cluster::new();
    cluster.add_disk("a", place("h1"), 1 << 40);
    cluster.register("a").unwrap();
    let mute = |code: &str, until_s, unmute| {
        Payload::MuteHealth(MuteHealthRequest { mutation: None, code: code.into(), until_s, unmute })
    };
    let status = |cluster: &Cluster, now_s| {
        let mut checks = health::health(&cluster.machine).checks;
        health::mute(&cluster.machine, &mut checks, now_s);
        let reply = health::summed_up(checks);
        (reply.status.clone(), reply.checks.iter().filter(|check| check.muted).count())
    };
    assert_eq!(status(&cluster, 1000), ("WARN".to_owned(), 0), "there is no pool");
    cluster.run(mute("NO_POOLS", 2000, false)).unwrap();
    assert_eq!(status(&cluster, 1999), ("OK".to_owned(), 1));
    assert_eq!(status(&cluster, 2000), ("WARN".to_owned(), 0), "its time is over");
    cluster.run(mute("NO_POOLS", 0, false)).unwrap();
    assert_eq!(status(&cluster, u64::MAX), ("OK".to_owned(), 1), "until it is unmuted");
    cluster.run(mute("NO_POOLS", 0, true)).unwrap();
    assert_eq!(status(&cluster, 1000), ("WARN".to_owned(), 0));
    let unknown = cluster.run(mute("NO_POLS", 0, false)).unwrap_err();
    assert!(unknown.remedy.contains("NO_POOLS"), "{unknown:?}");
    assert_eq!(cluster.run(mute("OSD_DOWN", 5, false)).unwrap_err().code(), ErrorCode::InvalidArgument);
}

fn place(host: &str) -> Location {
    Location { host: host.into(), ..Location::default() }
}

/// A cluster of three OSDs with a pool, its state as a backup has it, restored.
fn restored(lost: &[u32]) -> (Cluster, MemoryState) {
    let mut cluster = begun();
    for (name, host) in [("a", "h1"), ("b", "h2"), ("c", "h3")] {
        cluster.add_disk(name, place(host), 1 << 40);
        cluster.register(name).unwrap();
    }
    let pool = Pool { name: "p".into(), size: 3, min_size: 2, pg_count: 4, ..Pool::default() };
    cluster.run(Payload::CreatePool(CreatePoolRequest { pool: Some(pool), ..Default::default() })).unwrap();
    let put = PutRequest { key: "before".into(), value: "v".into(), ..PutRequest::default() };
    cluster.run(Payload::KvPut(put)).unwrap();
    let records: Vec<(Bytes, Bytes)> = cluster.state.records().map(|(k, v)| (k.clone(), v.clone())).collect();
    let osds = records.iter().filter_map(|(k, v)| awaited(k, v).unwrap()).filter(|osd| !lost.contains(osd)).collect();
    let members = vec![(7, "new:1".to_owned())];
    let restoration = Restoration { members, lineage: [9; 16], awaited: osds, lost: lost.to_vec() };
    let state = records.iter().map(|(k, v)| (k.clone(), transform(&restoration, k, v).unwrap())).collect();
    (cluster, state)
}

fn apply(machine: &mut Machine, state: &mut MemoryState, index: u64, payload: Payload) -> Answer {
    let command = Command { version: 1, now_s: 5000, payload: Some(payload), ..Command::default() };
    let applied = machine.apply(&*state, index, &command.encode_to_vec()).unwrap();
    state.write(&applied.batch);
    assert_eq!(Machine::open(&*state).unwrap().map(), machine.map(), "what is in memory is what was written");
    applied.reply.result.unwrap()
}

#[test]
fn after_a_restore_the_newest_configuration_that_any_disk_knows_counts() {
    let (cluster, mut state) = restored(&[]);
    let before = cluster.machine.map().clone();
    let mut machine = Machine::open(&state).unwrap();
    assert!(machine.map().epoch.0 > before.epoch.0 + (1 << 31));
    assert_eq!(machine.members().members.iter().map(|m| m.id).collect::<Vec<_>>(), [7]);
    assert!(machine.members().next_id == 8 && machine.members().lineage[..] == [9; 16]);
    assert!(machine.map().osds.values().all(|osd| !osd.up && osd.dead_through == osd.incarnation));
    let id = *machine.map().pgs.keys().next().unwrap();
    let stale = machine.map().pgs[&id].clone();
    // Since the backup the PG moved on: c lost its place, and a and b took writes without it.
    let newest: Vec<OsdId> = stale.isr.iter().copied().filter(|osd| osd.0 != cluster.osd("c")).collect();
    let known = |c: u64, isr: &[OsdId]| {
        let isr = isr.iter().map(|osd| osd.0).collect();
        PgMemory { pg: Some(id.into()), c, isr, born: None }
    };
    let memories = [
        ("a", known(stale.c.0 + 4, &newest)),
        ("c", known(stale.c.0, &stale.isr)),
        ("b", known(stale.c.0 + 4, &newest)),
    ];
    for (index, (name, memory)) in memories.into_iter().enumerate() {
        assert!(machine.map().pgs.values().all(|pg| pg.primary.is_none()), "nobody leads before all have spoken");
        let codes: Vec<String> = health::health(&machine).checks.into_iter().map(|check| check.code).collect();
        assert!(codes.contains(&"META_RESTORED".to_owned()), "{codes:?}");
        let disk = &cluster.disks[name];
        let request = RegisterOsdRequest {
            last_incarnation: disk.incarnation + 2,
            memories: vec![memory],
            ..disk.register.clone()
        };
        let answer = apply(&mut machine, &mut state, 1000 + index as u64, Payload::RegisterOsd(request));
        assert!(matches!(answer, Answer::RegisterOsd(_)), "{answer:?}");
    }
    let now = &machine.map().pgs[&id];
    assert_eq!((&now.isr, &now.acting), (&newest, &newest), "the stale member is not in sync");
    assert!(now.c.0 > stale.c.0 + 4 && now.primary.is_some_and(|osd| newest.contains(&osd)), "{now:?}");
    assert!(machine.awaited_osds().is_empty() && machine.map().pgs.values().all(|pg| pg.primary.is_some()));
}

#[test]
fn an_osd_that_is_lost_for_ever_is_not_awaited() {
    let (cluster, _) = restored(&[]);
    let lost = cluster.osd("b");
    let (_, state) = restored(&[lost]);
    let machine = Machine::open(&state).unwrap();
    assert!(!machine.awaited_osds().contains(&OsdId(lost)) && machine.awaited_osds().len() == 2);
}

/// What the disk of an OSD of the backup says when it registers after a restore.
fn comes_back(cluster: &Cluster, name: &str, memories: Vec<PgMemory>) -> RegisterOsdRequest {
    let disk = &cluster.disks[name];
    RegisterOsdRequest { last_incarnation: disk.incarnation + 2, memories, ..disk.register.clone() }
}

/// The number that the old cluster gave to the first OSD after the backup.
fn next_osd(cluster: &Cluster) -> OsdId {
    OsdId(cluster.machine.map().osds.keys().max().map_or(0, |osd| osd.0 + 1))
}

#[test]
fn an_osd_that_is_newer_than_the_backup_is_awaited_and_taken_back() {
    let (cluster, mut state) = restored(&[]);
    let mut machine = Machine::open(&state).unwrap();
    let id = *machine.map().pgs.keys().next().unwrap();
    let stale = machine.map().pgs[&id].clone();
    // Since the backup a fourth OSD came, took the place of c and then of b, and in the end wrote alone with a.
    let newer = next_osd(&cluster);
    let a = OsdId(cluster.osd("a"));
    let memory = |c: u64, isr: &[OsdId]| {
        vec![PgMemory { pg: Some(id.into()), c, isr: isr.iter().map(|osd| osd.0).collect(), born: None }]
    };
    let last = memory(stale.c.0 + 9, &[a, newer]);
    for (index, name) in ["b", "c", "a"].into_iter().enumerate() {
        let memories = if name == "a" { last.clone() } else { Vec::new() };
        let request = Payload::RegisterOsd(comes_back(&cluster, name, memories));
        apply(&mut machine, &mut state, 1000 + index as u64, request);
    }
    assert_eq!(machine.awaited_osds(), [newer], "it has what a cannot have alone");
    assert!(machine.map().pgs.values().all(|pg| pg.primary.is_none()));
    // Its disk is no stranger's: it has the cluster's name and a number that the backup did not give.
    let mut request = comes_back(&cluster, "a", last);
    (request.uuid, request.id, request.last_incarnation) = (vec![44; 16].into(), Some(newer.0), 7);
    request.addresses = vec!["unix:/d".into()];
    let stranger = RegisterOsdRequest { cluster: Bytes::new(), ..request.clone() };
    assert!(matches!(apply(&mut machine, &mut state, 1010, Payload::RegisterOsd(stranger)), Answer::Error(_)));
    let never_given = RegisterOsdRequest { id: Some(1 << 20), ..request.clone() };
    assert!(matches!(apply(&mut machine, &mut state, 1011, Payload::RegisterOsd(never_given)), Answer::Error(_)));
    let Answer::RegisterOsd(reply) = apply(&mut machine, &mut state, 1012, Payload::RegisterOsd(request)) else {
        panic!("it is taken back")
    };
    assert_eq!(reply.id, newer.0);
    assert!(reply.incarnation > 1 << 31, "none of its lives is given again");
    let now = &machine.map().pgs[&id];
    assert_eq!(now.isr, [a, newer]);
    assert!(now.primary.is_some() && now.c.0 > stale.c.0 + (1 << 31), "no version is given again: {now:?}");
    // Who comes new gets a number that was never given.
    assert!(machine.awaited_osds().is_empty());
}

#[test]
fn an_osd_that_is_newer_than_the_backup_can_be_lost_too() {
    let newer = next_osd(&restored(&[]).0);
    let (cluster, mut state) = restored(&[newer.0]);
    let mut machine = Machine::open(&state).unwrap();
    let id = *machine.map().pgs.keys().next().unwrap();
    let a = OsdId(cluster.osd("a"));
    let c = machine.map().pgs[&id].c.0 + 9;
    for (index, name) in ["b", "c", "a"].into_iter().enumerate() {
        let memories = vec![PgMemory { pg: Some(id.into()), c, isr: vec![a.0, newer.0], born: None }];
        apply(
            &mut machine,
            &mut state,
            1000 + index as u64,
            Payload::RegisterOsd(comes_back(&cluster, name, memories)),
        );
    }
    assert!(machine.awaited_osds().is_empty());
    assert_eq!(machine.map().pgs[&id].primary, Some(a), "in sync, so it has what was acknowledged");
}

#[test]
fn revisions_that_were_given_since_the_backup_are_not_given_again() {
    let (cluster, mut state) = restored(&[]);
    let before = cluster.machine.kv_revision();
    let mut machine = Machine::open(&state).unwrap();
    assert!(machine.kv_revision() > before + (1 << 31));
    for since in [before, before + 1, before + 1000] {
        let told = format!("{:?}", kv::history(&machine, &state, (b"\0", b"\0"), since, 100).unwrap_err());
        assert!(told.contains("compacted"), "a watch from {since} must begin anew: {told}");
    }
    let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
    let Answer::KvPut(reply) = apply(&mut machine, &mut state, 1000, Payload::KvPut(put)) else { panic!() };
    assert!(reply.header.unwrap().revision > before + (1 << 31));
}

/// Nothing in the backup names it, and its objects are in no other group.
#[test]
fn a_group_that_was_split_off_after_the_backup_is_known_by_the_disks() {
    let (cluster, mut state) = restored(&[]);
    let mut machine = Machine::open(&state).unwrap();
    let pool = *machine.map().pools.keys().next().unwrap();
    let half = PgId { pool, index: 4 };
    let isr: Vec<u32> = ["c", "a"].map(|name| cluster.osd(name)).to_vec();
    let born = Some(PgBorn { from: 0, c: 9, at: Some(LogPoint { c: 3, seq: 70, hash: 5 }) });
    let memory = PgMemory { pg: Some(half.into()), c: 9, isr: isr.clone(), born };
    for (index, name) in ["b", "c", "a"].into_iter().enumerate() {
        let memories = if name == "b" { Vec::new() } else { vec![memory.clone()] };
        let request = Payload::RegisterOsd(comes_back(&cluster, name, memories));
        apply(&mut machine, &mut state, 1000 + index as u64, request);
    }
    let map = machine.map();
    assert_eq!(
        (map.pools[&pool].pg_count, map.pools[&pool].pg_target),
        (4, 8),
        "the others split as they were about to"
    );
    let now = &map.pgs[&half];
    assert_eq!(now.isr.iter().map(|osd| osd.0).collect::<Vec<_>>(), isr);
    assert!(now.primary.is_some() && now.born.is_some_and(|born| born.at.seq() == 70), "{now:?}");
    let of = |hash| map.pg_of(pool, hash).unwrap().0.index;
    assert_eq!((of(4), of(12), of(0), of(5)), (4, 4, 0, 1));
    assert_eq!(
        (map.parts(half), map.parts(PgId { index: 0, ..half }), map.parts(PgId { index: 1, ..half })),
        (8, 8, 4)
    );
}

/// Nothing is served in its place as if it had always been empty.
#[test]
fn a_group_that_must_have_been_and_that_no_disk_knows_is_led_by_nobody() {
    let (cluster, mut state) = restored(&[]);
    let mut machine = Machine::open(&state).unwrap();
    let pool = *machine.map().pools.keys().next().unwrap();
    let known = |index: u32, from: u32| {
        let isr: Vec<u32> = ["c", "a"].map(|name| cluster.osd(name)).to_vec();
        let born = Some(PgBorn { from, c: 9, at: Some(LogPoint { c: 3, seq: 70, hash: 5 }) });
        PgMemory { pg: Some(PgId { pool, index }.into()), c: 9, isr, born }
    };
    // Of four became eight, and of those some split again; nobody has 6.
    let memories = vec![known(4, 0), known(5, 1), known(7, 3), known(13, 5)];
    for (index, name) in ["b", "c", "a"].into_iter().enumerate() {
        let memories = if name == "b" { Vec::new() } else { memories.clone() };
        let request = Payload::RegisterOsd(comes_back(&cluster, name, memories));
        apply(&mut machine, &mut state, 1000 + index as u64, request);
    }
    let map = machine.map();
    assert_eq!((map.pools[&pool].pg_count, map.pools[&pool].pg_target), (8, 16));
    let of = |hash| {
        let (id, now) = map.pg_of(pool, hash).unwrap();
        (id.index, now.primary.is_some())
    };
    assert_eq!((of(6), of(14), of(2), of(13), of(5)), ((6, false), (6, false), (2, true), (13, true), (5, true)));
}
