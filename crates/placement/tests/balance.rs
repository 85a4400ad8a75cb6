//! What the balancer promises, measured: within a twentieth or one copy of each OSD's share, failure domains kept, few
//! moves, bounded steps; and that one OSD can take the place of another.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{Exception, Exceptions, Placer};
use cairn_types::map::{ClusterMap, FailureDomain, Location, Osd, Pool};
use cairn_types::{Epoch, Incarnation, OsdId, PoolId};
use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use uuid::Uuid;

fn osd(id: u32, host: u32, weight: u32) -> Osd {
    let location =
        Location { zone: format!("z{}", host % 2), rack: format!("r{}", host % 4), host: format!("h{host}") };
    Osd {
        id: OsdId(id),
        uuid: Uuid::from_u128(u128::from(id)),
        incarnation: Incarnation(1),
        dead_through: Incarnation(0),
        addresses: vec![],
        up: true,
        placed: true,
        weight,
        location,
        device_class: "ssd".into(),
        capacity: 1 << 40,
        used: 0,
        acked_epoch: Epoch(0),
    }
}

fn map(osds: impl Iterator<Item = Osd>) -> ClusterMap {
    ClusterMap { osds: osds.map(|osd| (osd.id, osd)).collect(), ..ClusterMap::default() }
}

fn pool(size: u32, failure_domain: FailureDomain, pg_count: u32) -> Pool {
    Pool {
        id: PoolId(1),
        name: "p".into(),
        size,
        min_size: 1,
        failure_domain,
        device_class: None,
        object_size: 4 << 20,
        pg_count,
        pg_target: pg_count,
    }
}

/// Every PG's members, exceptions applied.
fn placed(placer: &Placer, pgs: u32, exceptions: &Exceptions) -> Vec<Vec<OsdId>> {
    let one = |index| {
        let mut members = placer.place_what_fits(index);
        placer.amend(&mut members, exceptions.get(&index).map_or(&[], Vec::as_slice));
        members
    };
    (0..pgs).map(one).collect()
}

#[test]
fn balance_brings_every_osd_within_five_percent() {
    let equal = |hosts: u32, disks: u32| map((0..hosts * disks).map(move |id| osd(id, id / disks, 65536)));
    let mixed = map((0..12).map(|id| osd(id, id / 2, [65536, 131_072, 98304][id as usize % 3])));
    for (name, map, pool) in [
        ("8 OSDs, 3 copies on OSDs", equal(8, 1), pool(3, FailureDomain::Osd, 256)),
        ("6 hosts of 4, 3 copies on hosts", equal(6, 4), pool(3, FailureDomain::Host, 512)),
        ("4 hosts of 3, 2 copies in racks", equal(4, 3), pool(2, FailureDomain::Rack, 256)),
        ("6 hosts of unequal disks", mixed, pool(3, FailureDomain::Host, 512)),
        ("100 OSDs", equal(25, 4), pool(3, FailureDomain::Host, 2048)),
    ] {
        let placer = Placer::new(&map, &pool);
        let before = placer.spread(pool.pg_count, &Exceptions::new());
        let exceptions = placer.balance(pool.pg_count, &Exceptions::new(), 10_000);
        let after = placer.spread(pool.pg_count, &exceptions);
        let share = 3.0 * f64::from(pool.pg_count) / map.osds.len() as f64;
        println!(
            "{name} ({share:.0} PGs each): {:.1} % -> {:.1} % by {} exceptions of {} PGs",
            f64::from(before.permille) / 10.0,
            f64::from(after.permille) / 10.0,
            exceptions.len(),
            pool.pg_count
        );
        assert!(before.uneven && !after.uneven, "{name}: {before:?} {after:?}");
        assert!(after.permille <= 50, "{name}: {after:?}");
        let again = placer.balance(pool.pg_count, &exceptions, 10_000);
        assert_eq!(again, exceptions, "{name}: what is even stays as it is");
    }
}

#[test]
fn a_few_steps_at_a_time_end_in_balance_too() {
    let map = map((0..8).map(|id| osd(id, id, 65536)));
    let pool = pool(3, FailureDomain::Host, 256);
    let placer = Placer::new(&map, &pool);
    let (mut exceptions, mut rounds) = (Exceptions::new(), 0);
    while placer.spread(256, &exceptions).uneven {
        let before = placed(&placer, 256, &exceptions);
        exceptions = placer.balance(256, &exceptions, 4);
        let after = placed(&placer, 256, &exceptions);
        let moved: usize =
            before.iter().zip(&after).map(|(old, new)| new.iter().filter(|osd| !old.contains(osd)).count()).sum();
        assert!((1..=4).contains(&moved), "{moved} copies in one round");
        rounds += 1;
        assert!(rounds < 100, "it does not end");
    }
}

#[test]
fn an_exception_that_the_map_has_outgrown_does_nothing() {
    let mut map = map((0..6).map(|id| osd(id, id / 2, 65536)));
    let pool = pool(2, FailureDomain::Host, 8);
    let placer = Placer::new(&map, &pool);
    let raw = placer.place(0).unwrap();
    let host = |osd: OsdId| osd.0 / 2;
    let third = (0..6).map(OsdId).find(|osd| raw.iter().all(|member| host(*member) != host(*osd))).unwrap();
    let twin = OsdId(raw[1].0 ^ 1);
    let amended = |placer: &Placer, from, to| {
        let mut members = raw.clone();
        let applied = placer.amend(&mut members, &[Exception { from, to }]);
        (members, applied.len())
    };
    assert_eq!(amended(&placer, raw[0], third), (vec![third, raw[1]], 1));
    assert_eq!(amended(&placer, raw[0], twin), (raw.clone(), 0), "two copies on one host");
    assert_eq!(amended(&placer, third, raw[0]), (raw.clone(), 0), "there is no copy there");
    assert_eq!(amended(&placer, raw[0], OsdId(77)), (raw.clone(), 0), "there is no such OSD");
    map.osds.get_mut(&third).unwrap().placed = false;
    let placer = Placer::new(&map, &pool);
    let mut members = raw.clone();
    assert!(placer.amend(&mut members, &[Exception { from: raw[0], to: third }]).is_empty(), "it is out");
}

#[test]
fn an_osd_that_stands_for_another_gets_exactly_what_that_one_had() {
    for level in [FailureDomain::Osd, FailureDomain::Host] {
        let before = map((0..12).map(|id| osd(id, id / 3, 65536)));
        let mut after = before.clone();
        after.osds.get_mut(&OsdId(4)).unwrap().placed = false;
        after.osds.insert(OsdId(50), osd(50, 1, 65536));
        let pool = pool(3, level, 256);
        let (old, new) = (Placer::new(&before, &pool), Placer::new(&after, &pool));
        let stands = Placer::standing_in(&after, &pool, &BTreeMap::from([(OsdId(50), OsdId(4))]));
        let mut moved_without = 0;
        for index in 0..256 {
            let expected: Vec<OsdId> = old
                .place(index)
                .unwrap()
                .into_iter()
                .map(|osd| if osd == OsdId(4) { OsdId(50) } else { osd })
                .collect();
            assert_eq!(stands.place(index).unwrap(), expected, "{}: PG {index}", level.as_str());
            moved_without += usize::from(new.place(index).unwrap() != expected);
        }
        assert!(moved_without > 0, "without that, other PGs move too");
    }
}

proptest! {
    /// Whatever the cluster: domains are never shared, nobody gets a copy twice, only usable OSDs are used, no step makes
    /// it worse, and the same map gives the same exceptions.
    #[test]
    fn balance_never_breaks_what_placement_promises(
        places in proptest::collection::vec((0u32..6, 1u32..200_000), 2..16),
        level in prop_oneof![
            Just(FailureDomain::Osd), Just(FailureDomain::Host), Just(FailureDomain::Rack), Just(FailureDomain::Zone)
        ].boxed(),
        size in 1u32..4, most in 0usize..200,
    ) {
        let osds = places.iter().enumerate().map(|(id, (host, weight))| osd(id as u32, *host, *weight));
        let map = map(osds);
        let pool = pool(size, level, 64);
        let placer = Placer::new(&map, &pool);
        let exceptions = placer.balance(64, &Exceptions::new(), most);
        prop_assert_eq!(&exceptions, &placer.balance(64, &Exceptions::new(), most));
        prop_assert!(exceptions.values().map(Vec::len).sum::<usize>() <= most);
        let domain = |id: &OsdId| {
            let (osd, place) = (&map.osds[id], &map.osds[id].location);
            match level {
                FailureDomain::Osd => osd.id.to_string(),
                FailureDomain::Host => format!("{}/{}/{}", place.zone, place.rack, place.host),
                FailureDomain::Rack => format!("{}/{}", place.zone, place.rack),
                FailureDomain::Zone => place.zone.clone(),
            }
        };
        for (index, members) in placed(&placer, 64, &exceptions).iter().enumerate() {
            prop_assert_eq!(members.len(), placer.place_what_fits(index as u32).len());
            let domains: BTreeSet<String> = members.iter().map(domain).collect();
            prop_assert_eq!(domains.len(), members.len(), "PG {}: {:?}", index, members);
        }
    }
}
