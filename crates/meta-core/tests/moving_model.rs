//! Placement under any commands: what an administrator does changes where data should be and never who has it; whatever was
//! begun, cut short or taken back, data ends where placement wants it; and reservations hold at both ends.

mod cluster;

use std::collections::BTreeMap;

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    BalancePgs, ChangePlacementRequest, ChangeSettingsRequest, CreatePoolRequest, DownEvidence, DropOsd, Location,
    OutSilentOsds, PlaceOsd, Pool, ReplaceOsd, ReportDownRequest,
};
use cairn_types::PgId;
use cairn_types::map::PgConfig;
use cluster::{Cluster, primaries};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

const OSDS: u8 = 7;

#[derive(Clone, Debug)]
enum Deed {
    Place(u8, Option<bool>, Option<u32>, bool),
    Replace(u8, u8),
    Remove(u8),
    Balance(u8),
    Settings(Option<bool>, Option<bool>, u8),
    Down(u8),
    Up(u8),
    Later(u16),
    Rounds(u8),
}

fn deed() -> impl Strategy<Value = Deed> {
    let osd = || 0u8..OSDS;
    let maybe = || proptest::option::of(any::<bool>());
    let weight = || proptest::option::of((1u32..4).prop_map(|part| part * 32768));
    prop_oneof![
        4 => (osd(), maybe(), weight(), any::<bool>()).prop_map(|(osd, placed, w, force)| Deed::Place(osd, placed, w, force)),
        1 => (osd(), osd()).prop_map(|(old, new)| Deed::Replace(old, new)),
        1 => osd().prop_map(Deed::Remove),
        2 => (1u8..9).prop_map(Deed::Balance),
        1 => (maybe(), maybe(), 1u8..5).prop_map(|(noout, norebalance, most)| Deed::Settings(noout, norebalance, most)),
        1 => osd().prop_map(Deed::Down),
        2 => osd().prop_map(Deed::Up),
        1 => (1u16..700).prop_map(Deed::Later),
        4 => (1u8..4).prop_map(Deed::Rounds),
    ]
}

fn disk(osd: u8) -> String {
    format!("disk{osd}")
}

fn furnished() -> Cluster {
    let mut cluster = Cluster::new();
    for osd in 0..OSDS {
        let place = Location { host: format!("h{}", osd % 5), ..Default::default() };
        cluster.add_disk(&disk(osd), place, 1 << 40);
        cluster.register(&disk(osd)).unwrap();
    }
    let pool = Pool { name: "p".into(), size: 3, min_size: 2, pg_count: 16, ..Default::default() };
    cluster.run(Payload::CreatePool(CreatePoolRequest { pool: Some(pool), ..Default::default() })).unwrap();
    cluster
}

type Members = BTreeMap<PgId, PgConfig>;

fn members(cluster: &Cluster) -> Members {
    cluster.machine.map().pgs.iter().map(|(id, pg)| (*id, PgConfig { up: Vec::new(), ..pg.clone() })).collect()
}

/// A change of placement; it must leave every group's members alone.
fn change(cluster: &mut Cluster, change: Change, force: bool) -> Result<(), String> {
    let before = members(cluster);
    let request = ChangePlacementRequest { change: Some(change), force, ..ChangePlacementRequest::default() };
    let _refused_or_not = cluster.run(Payload::ChangePlacement(request));
    if members(cluster) == before { Ok(()) } else { Err("a change of placement changed who has what".to_owned()) }
}

fn act(cluster: &mut Cluster, deed: &Deed) -> Result<(), String> {
    let number = |cluster: &Cluster, osd: u8| cluster.osd(&disk(osd));
    match *deed {
        Deed::Place(osd, placed, weight, force) => {
            let id = number(cluster, osd);
            return change(cluster, Change::Place(PlaceOsd { id, placed, weight }), force);
        }
        Deed::Replace(old, with) => {
            let (old, with) = (number(cluster, old), number(cluster, with));
            return change(cluster, Change::Replace(ReplaceOsd { old, with }), false);
        }
        Deed::Remove(osd) => {
            let id = number(cluster, osd);
            return change(cluster, Change::Remove(DropOsd { id }), false);
        }
        Deed::Balance(most) => {
            return change(cluster, Change::Balance(BalancePgs { most: most.into(), automatic: false }), false);
        }
        Deed::Settings(noout, norebalance, most) => {
            let backfills = Some(most.into());
            let request = ChangeSettingsRequest { noout, norebalance, backfills, ..ChangeSettingsRequest::default() };
            cluster.run(Payload::ChangeSettings(request)).unwrap();
        }
        Deed::Down(osd) => {
            let incarnation = cluster.disks[&disk(osd)].incarnation;
            let evidence = DownEvidence::Exited.into();
            let (id, reporter) = (number(cluster, osd), None);
            let request = ReportDownRequest { mutation: None, reporter, osd: id, incarnation, evidence };
            let _removed_perhaps = cluster.run(Payload::ReportDown(request));
        }
        // One that was removed is refused.
        Deed::Up(osd) => drop(cluster.register(&disk(osd))),
        Deed::Later(seconds) => {
            cluster.now_s += u64::from(seconds);
            return change(cluster, Change::OutSilent(OutSilentOsds {}), false);
        }
        Deed::Rounds(rounds) => {
            for _ in 0..rounds {
                primaries::round(cluster);
            }
        }
    }
    Ok(())
}

/// No OSD receives, and no primary sends, more fills than are allowed.
fn reserved(cluster: &Cluster, most: u32) -> Result<(), String> {
    let map = cluster.machine.map();
    let (mut at, mut led): (BTreeMap<_, u32>, BTreeMap<_, u32>) = Default::default();
    for pg in map.pgs.values().filter(|pg| pg.primary.is_some() && !pg.backfill.is_empty()) {
        *led.entry(pg.primary).or_default() += 1;
        pg.backfill.iter().for_each(|osd| *at.entry(*osd).or_default() += 1);
    }
    match at.values().chain(led.values()).any(|count| *count > most) {
        true => Err(format!("more than {most} fills at once: {at:?} {led:?}")),
        false => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_asked_data_ends_where_placement_wants_it(deeds in vec(deed(), 1..40)) {
        let mut cluster = furnished();
        // The limit may be lowered while more are under way.
        let most = deeds.iter().filter_map(|deed| if let Deed::Settings(_, _, most) = deed { Some(*most) } else { None });
        let most = most.map(u32::from).chain([8]).max().unwrap_or(8);
        for deed in &deeds {
            if let Err(wrong) = act(&mut cluster, deed).and_then(|()| reserved(&cluster, most)) {
                prop_assert!(false, "{deed:?}: {wrong}");
            }
            for pg in cluster.machine.map().pgs.values() {
                prop_assert!(pg.isr.len() >= 2, "never below min_size: {pg:?}");
            }
        }
        for osd in 0..OSDS {
            act(&mut cluster, &Deed::Up(osd)).unwrap();
        }
        let off = ChangeSettingsRequest { norebalance: Some(false), ..ChangeSettingsRequest::default() };
        cluster.run(Payload::ChangeSettings(off)).unwrap();
        primaries::settle(&mut cluster);
        let map = cluster.machine.map();
        let hosts = map.osds.values().filter(|osd| osd.placed).map(|osd| &osd.location.host);
        let hosts = hosts.collect::<std::collections::BTreeSet<_>>().len();
        for (id, pg) in &map.pgs {
            prop_assert_eq!(pg.up.len(), hosts.min(3), "{}", id);
            prop_assert!(pg.up.iter().all(|osd| pg.isr.contains(osd)), "{id} is not where it belongs: {pg:?}");
            prop_assert!(hosts < 3 || pg.acting.len() == 3, "{id} is elsewhere too: {pg:?}");
        }
    }
}
