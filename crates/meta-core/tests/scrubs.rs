//! Orders, outcomes and what they mean for the health of the cluster.

mod cluster;

use cairn_meta_core::{health, scrub};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    BadCopies, CreatePoolRequest, DamagedBlock, ErrorCode, HealthCheck, Location, OrderScrubRequest, PgScrub, Pool,
    ReportScrubRequest, ScheduleScrubsRequest, ScrubFindings, ScrubOrder,
};
use cairn_types::{OsdId, PgId, PoolId};
use cluster::Cluster;

const NOW: u64 = 1_800_000_000;
const PG: PgId = PgId { pool: PoolId(1), index: 2 };

fn clustered() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.now_s = NOW;
    for name in ["a", "b", "c"] {
        let place = Location { zone: "z".into(), rack: "r".into(), host: name.into() };
        cluster.add_disk(name, place, 1 << 40);
        cluster.register(name).unwrap();
    }
    let pool = Pool { name: "p".into(), size: 3, min_size: 2, pg_count: 4, ..Pool::default() };
    let request = CreatePoolRequest { pool: Some(pool), ..CreatePoolRequest::default() };
    cluster.run(Payload::CreatePool(request)).unwrap();
    cluster
}

fn primary(cluster: &Cluster) -> OsdId {
    cluster.machine.map().pgs[&PG].primary.unwrap()
}

fn order(cluster: &Cluster, at_s: u64) -> Option<ScrubOrder> {
    let orders = scrub::orders(&cluster.machine, primary(cluster), at_s);
    orders.into_iter().find(|order| order.pg == Some(PG.into()))
}

fn report(cluster: &mut Cluster, osd: OsdId, order: ScrubOrder, findings: ScrubFindings) -> Result<(), ErrorCode> {
    let incarnation = cluster.machine.map().osds[&osd].incarnation.0;
    let ScrubOrder { pg, deep, order } = order;
    let findings = Some(findings);
    let request = ReportScrubRequest { mutation: None, reporter: osd.0, incarnation, pg, deep, order, findings };
    cluster.run(Payload::ReportScrub(request)).map(|_| ()).map_err(|error| error.code())
}

fn known(cluster: &Cluster) -> PgScrub {
    let scrubs = scrub::pgs(&cluster.machine).scrubs;
    scrubs.into_iter().find(|scrub| scrub.pg == Some(PG.into())).unwrap_or_default()
}

fn found_by(cluster: &Cluster) -> Vec<HealthCheck> {
    let checks = health::health(&cluster.machine).checks;
    checks.into_iter().filter(|check| ["PG_DAMAGED", "OSD_SCRUB_ERRORS"].contains(&check.code.as_str())).collect()
}

#[test]
fn whoever_leads_a_group_is_told_until_the_outcome_is_reported() {
    let mut cluster = clustered();
    let osd = primary(&cluster);
    let first = order(&cluster, NOW).expect("it was never scrubbed");
    assert!(first.deep);
    report(&mut cluster, osd, first, ScrubFindings::default()).unwrap();
    assert_eq!((known(&cluster).light_s, known(&cluster).deep_s), (NOW, NOW));
    assert_eq!(order(&cluster, NOW), None);

    let ordered = OrderScrubRequest { mutation: None, pgs: vec![PG.into()], deep: true };
    cluster.run(Payload::OrderScrub(ordered)).unwrap();
    // A light one on top of it does not make it less.
    let ordered = OrderScrubRequest { mutation: None, pgs: vec![PG.into()], deep: false };
    cluster.run(Payload::OrderScrub(ordered)).unwrap();
    let by_hand = order(&cluster, NOW).unwrap();
    assert!(by_hand.deep);
    let others = cluster.machine.map().pgs[&PG].isr.iter().copied().find(|other| *other != osd).unwrap();
    assert!(scrub::orders(&cluster.machine, others, NOW).iter().all(|order| order.pg != Some(PG.into())));
    assert_eq!(
        report(&mut cluster, others, by_hand, ScrubFindings::default()),
        Err(ErrorCode::FailedPrecondition),
        "only the primary has scrubbed it"
    );
    report(&mut cluster, osd, first, ScrubFindings::default()).unwrap();
    assert_eq!(order(&cluster, NOW), Some(by_hand), "the outcome of another order is not the one waited for");
    report(&mut cluster, osd, by_hand, ScrubFindings::default()).unwrap();
    assert_eq!(order(&cluster, NOW), None);
    let unknown =
        OrderScrubRequest { mutation: None, pgs: vec![PgId { pool: PoolId(1), index: 9 }.into()], deep: false };
    assert_eq!(cluster.run(Payload::OrderScrub(unknown)).unwrap_err().code(), ErrorCode::NotFound);
}

#[test]
fn the_schedule_can_be_changed_and_stopped() {
    let mut cluster = clustered();
    let osd = primary(&cluster);
    let first = order(&cluster, NOW).unwrap();
    report(&mut cluster, osd, first, ScrubFindings::default()).unwrap();
    let mut set = |light_s, deep_s, paused| {
        let request = ScheduleScrubsRequest { mutation: None, light_s, deep_s, paused };
        cluster.run(Payload::ScheduleScrubs(request)).map_err(|error| error.code())
    };
    assert_eq!(set(Some(5), None, None), Err(ErrorCode::InvalidArgument));
    set(Some(3600), Some(7200), None).unwrap();
    let schedule = scrub::pgs(&cluster.machine).schedule.unwrap();
    assert_eq!((schedule.light_s, schedule.deep_s, schedule.paused), (3600, 7200, false));
    assert!(order(&cluster, NOW + 7200).unwrap().deep);
    let pause = ScheduleScrubsRequest { mutation: None, light_s: None, deep_s: None, paused: Some(true) };
    cluster.run(Payload::ScheduleScrubs(pause)).unwrap();
    assert_eq!(order(&cluster, NOW + 100_000), None);
}

#[test]
fn what_is_lost_is_an_error_and_what_was_repaired_a_note() {
    let mut cluster = clustered();
    let osd = primary(&cluster);
    let due = order(&cluster, NOW).unwrap();
    let found = vec![BadCopies { osd: osd.0, copies: 3 }];
    let repaired = ScrubFindings { found: found.clone(), repaired: 3, ..ScrubFindings::default() };
    report(&mut cluster, osd, due, repaired).unwrap();
    let checks = found_by(&cluster);
    assert_eq!((checks[0].code.as_str(), checks[0].severity.as_str(), checks.len()), ("OSD_SCRUB_ERRORS", "NOTE", 1));
    assert_eq!(checks[0].details, [format!("{osd} had 3 bad copies in 1 group")]);
    assert_eq!(health::health(&cluster.machine).status, "OK");

    let damaged_blocks = vec![DamagedBlock { volume: 7, object: 12, offset: 8192, ..DamagedBlock::default() }];
    let lost = ScrubFindings { found, repaired: 0, damaged: 1, damaged_blocks, ..ScrubFindings::default() };
    report(&mut cluster, osd, due, lost).unwrap();
    let checks = found_by(&cluster);
    assert_eq!((checks[0].code.as_str(), checks[0].severity.as_str()), ("PG_DAMAGED", "ERROR"));
    assert_eq!(checks[0].details, ["1.2: volume 7, object 12, at byte 8192: no copy matches its checksum"]);
    assert_eq!(checks[1].severity, "WARN");
    // A light scrub reads no data: it takes nothing back.
    report(&mut cluster, osd, ScrubOrder { deep: false, ..due }, ScrubFindings::default()).unwrap();
    assert_eq!(found_by(&cluster).len(), 2);
    report(&mut cluster, osd, due, ScrubFindings::default()).unwrap();
    assert_eq!(found_by(&cluster), []);
}
