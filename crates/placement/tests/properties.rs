//! What placement promises, measured: balance, movement, separation.

use std::collections::{BTreeMap, BTreeSet};

use cairn_placement::{Placer, TooFewDomains, place};
use cairn_types::map::{ClusterMap, FailureDomain, Location, Osd, Pool};
use cairn_types::{Epoch, Incarnation, OsdId, PoolId};
use proptest::prelude::{Just, Strategy, prop_assert, prop_assert_eq, prop_oneof, proptest};
use uuid::Uuid;

fn osd(id: u32, place: (&str, &str, &str), weight: u32) -> Osd {
    Osd {
        id: OsdId(id),
        uuid: Uuid::from_u128(u128::from(id)),
        incarnation: Incarnation(1),
        dead_through: Incarnation(0),
        addresses: vec![],
        up: true,
        placed: true,
        weight,
        location: Location { zone: place.0.into(), rack: place.1.into(), host: place.2.into() },
        device_class: "ssd".into(),
        capacity: 1 << 40,
        used: 0,
        acked_epoch: Epoch(0),
    }
}

fn flat(weights: &[u32]) -> ClusterMap {
    let osds = weights.iter().enumerate().map(|(id, weight)| osd(id as u32, ("z", "r", "h"), *weight));
    ClusterMap { osds: osds.map(|osd| (osd.id, osd)).collect(), ..ClusterMap::default() }
}

/// `hosts` hosts in two racks each of two zones, with `disks` disks each.
fn tree(hosts: u32, disks: u32) -> ClusterMap {
    let mut map = ClusterMap::default();
    for host in 0..hosts {
        let (zone, rack) = (format!("z{}", host % 2), format!("r{}", host / 2 % 2));
        for disk in 0..disks {
            let id = host * disks + disk;
            map.osds.insert(OsdId(id), osd(id, (&zone, &rack, &format!("h{host}")), 65536));
        }
    }
    map
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

fn counts(map: &ClusterMap, pool: &Pool, keys: u32) -> BTreeMap<OsdId, u64> {
    let placer = Placer::new(map, pool);
    let mut counts = BTreeMap::new();
    for key in 0..keys {
        for osd in placer.place_what_fits(key) {
            *counts.entry(osd).or_default() += 1;
        }
    }
    counts
}

/// The largest deviation from each OSD's share by weight, in percent.
fn worst(map: &ClusterMap, counts: &BTreeMap<OsdId, u64>) -> f64 {
    let placed: u64 = counts.values().sum();
    let total: u64 = map.osds.values().map(|osd| u64::from(osd.weight)).sum();
    let off = |osd: &Osd| {
        let share = placed as f64 * f64::from(osd.weight) / total as f64;
        (counts.get(&osd.id).copied().unwrap_or(0) as f64 / share - 1.0).abs() * 100.0
    };
    map.osds.values().map(off).fold(0.0, f64::max)
}

const MILLION: u32 = 1_000_000;

#[test]
fn a_million_keys_lie_within_five_percent_of_weight() {
    let skewed = flat(&[65536, 32768, 65536, 131_072, 98304, 65536, 65536, 131_072]);
    for (name, map, pool) in [
        ("8 unequal OSDs, 1 copy", &skewed, pool(1, FailureDomain::Osd, 1 << 20)),
        ("8 unequal OSDs, 3 copies", &skewed, pool(3, FailureDomain::Osd, 1 << 20)),
        ("6 hosts of 2, 3 copies", &tree(6, 2), pool(3, FailureDomain::Host, 1 << 20)),
    ] {
        let off = worst(map, &counts(map, &pool, MILLION));
        println!("{name}: at most {off:.2} % off its weight");
        assert!(off < 2.0, "{name}: {off} %");
    }
}

#[test]
fn primaries_are_spread_by_weight_too() {
    let map = flat(&[65536, 65536, 65536]);
    let placer = Placer::new(&map, &pool(3, FailureDomain::Osd, 1 << 16));
    let mut firsts = BTreeMap::new();
    for key in 0..60_000 {
        *firsts.entry(placer.place(key).unwrap()[0]).or_insert(0u64) += 1;
    }
    let off = worst(&map, &firsts);
    assert!(off < 5.0, "{firsts:?}");
}

#[test]
fn the_spread_at_128_pgs_per_osd() {
    for (osds, size) in [(3, 3), (6, 3), (12, 3), (24, 2)] {
        let pgs = 128 * osds / size;
        let counts = counts(&flat(&vec![65536; osds as usize]), &pool(size, FailureDomain::Osd, pgs), pgs);
        let (least, most) = (counts.values().min().unwrap(), counts.values().max().unwrap());
        println!("{osds} OSDs, {size} copies, 128 PGs per OSD: from {least} to {most}");
        assert_eq!(counts.values().sum::<u64>(), u64::from(pgs * size));
        assert!(*most < 128 * 2 && *least > 128 / 2, "{counts:?}");
    }
}

/// Copies that must be made because `after` differs from `before`: those on OSDs that did not hold the PG.
fn moved(before: &ClusterMap, after: &ClusterMap, pool: &Pool, keys: u32) -> (u64, u64) {
    let (old, new) = (Placer::new(before, pool), Placer::new(after, pool));
    let (mut moved, mut all) = (0, 0);
    for key in 0..keys {
        let had: BTreeSet<OsdId> = old.place_what_fits(key).into_iter().collect();
        let has = new.place_what_fits(key);
        all += has.len() as u64;
        moved += has.iter().filter(|osd| !had.contains(osd)).count() as u64;
    }
    (moved, all)
}

#[test]
fn adding_an_osd_to_a_flat_tree_moves_its_share() {
    for (weights, size, added) in [
        (vec![65536; 10], 1, 65536),
        (vec![65536; 10], 3, 65536),
        (vec![65536, 131_072, 32768, 65536, 98304, 65536], 3, 65536),
    ] {
        let before = flat(&weights);
        let mut grown = weights.clone();
        grown.push(added);
        let after = flat(&grown);
        let (moved, all) = moved(&before, &after, &pool(size, FailureDomain::Osd, 1 << 18), 60_000);
        let share = f64::from(added) / grown.iter().map(|w| f64::from(*w)).sum::<f64>();
        let ratio = moved as f64 / all as f64 / share;
        println!("{} OSDs, {size} copies: one more moves {ratio:.3} times its share", weights.len());
        assert!((0.9..1.2).contains(&ratio), "{ratio}");
    }
}

#[test]
fn adding_an_osd_to_a_deep_tree_moves_at_most_its_share_per_level() {
    for level in [FailureDomain::Host, FailureDomain::Rack] {
        let before = tree(8, 3);
        let mut after = before.clone();
        let home = before.osds[&OsdId(0)].location.clone();
        after.osds.insert(OsdId(99), Osd { location: home, ..osd(99, ("", "", ""), 65536) });
        let (moved, all) = moved(&before, &after, &pool(3, level, 1 << 18), 60_000);
        let share = 1.0 / after.osds.len() as f64;
        let ratio = moved as f64 / all as f64 / share;
        let height = 4.0; // zone, rack, host, osd
        println!("failure domain {}: one more OSD moves {ratio:.3} times its share", level.as_str());
        assert!((0.8..height).contains(&ratio), "{ratio}");
    }
}

#[test]
fn too_few_domains_are_an_error_with_both_numbers() {
    let map = tree(2, 3);
    let pool = pool(3, FailureDomain::Host, 8);
    let error = place(&map, &pool, 0).unwrap_err();
    assert_eq!(error, TooFewDomains { wanted: 3, have: 2, level: FailureDomain::Host });
    assert_eq!(error.to_string(), "3 copies on different hosts, but only 2 of those can be used");
    assert_eq!(Placer::new(&map, &pool).place_what_fits(0).len(), 2);
    assert!(Placer::new(&ClusterMap::default(), &pool).place_what_fits(0).is_empty());
}

#[test]
fn only_placed_osds_of_the_class_are_used() {
    let mut map = flat(&[65536; 6]);
    map.osds.get_mut(&OsdId(1)).unwrap().placed = false;
    map.osds.get_mut(&OsdId(2)).unwrap().device_class = "hdd".into();
    let pool = Pool { device_class: Some("ssd".into()), ..pool(2, FailureDomain::Osd, 64) };
    let used: BTreeSet<u32> = counts(&map, &pool, 64).keys().map(|osd| osd.0).collect();
    assert_eq!(used, [0, 3, 4, 5].into());
}

#[test]
fn placement_is_fixed_for_life() {
    let map = flat(&[65536, 65536, 131_072, 65536]);
    let placer = Placer::new(&map, &pool(2, FailureDomain::Osd, 8));
    let places: Vec<Vec<u32>> = (0..8).map(|pg| placer.place(pg).unwrap().iter().map(|osd| osd.0).collect()).collect();
    assert_eq!(format!("{places:?}"), "[[2, 0], [2, 3], [0, 1], [0, 1], [2, 1], [1, 2], [1, 2], [0, 2]]");
}

fn domain(osd: &Osd, level: FailureDomain) -> String {
    let place = &osd.location;
    match level {
        FailureDomain::Osd => osd.id.to_string(),
        FailureDomain::Host => format!("{}/{}/{}", place.zone, place.rack, place.host),
        FailureDomain::Rack => format!("{}/{}", place.zone, place.rack),
        FailureDomain::Zone => place.zone.clone(),
    }
}

proptest! {
    /// Whatever the tree: distinct domains, as many copies as can be, the same answer whatever else was asked before.
    #[test]
    fn failure_domains_are_never_shared(
        places in proptest::collection::vec((0u8..3, 0u8..2, 0u8..3, 1u32..200_000), 1..20),
        level in prop_oneof![
            Just(FailureDomain::Osd), Just(FailureDomain::Host), Just(FailureDomain::Rack), Just(FailureDomain::Zone)
        ].boxed(),
        size in 1u32..5, index: u32,
    ) {
        let mut map = ClusterMap::default();
        for (id, (zone, rack, host, weight)) in places.iter().enumerate() {
            let (zone, rack, host) = (zone.to_string(), rack.to_string(), host.to_string());
            map.osds.insert(OsdId(id as u32), osd(id as u32, (&zone, &rack, &host), *weight));
        }
        let there: BTreeSet<String> = map.osds.values().map(|osd| domain(osd, level)).collect();
        let pool = pool(size, level, 1 << 20);
        let placer = Placer::new(&map, &pool);
        prop_assert_eq!(placer.domains(), there.len());
        let chosen = placer.place_what_fits(index);
        let used: BTreeSet<String> = chosen.iter().map(|id| domain(&map.osds[id], level)).collect();
        prop_assert_eq!(used.len(), chosen.len());
        prop_assert_eq!(chosen.len(), there.len().min(size as usize));
        prop_assert!(placer.place(index).is_ok() == (there.len() >= size as usize));
    }

    /// Taking an OSD away touches only the PGs that lay on it.
    #[test]
    fn removal_moves_nothing_that_was_elsewhere(equal in 4usize..10, gone: proptest::sample::Index, index: u32) {
        let before = flat(&vec![65536; equal]);
        let gone = OsdId(gone.index(equal) as u32);
        let mut after = before.clone();
        after.osds.remove(&gone);
        let pool = pool(2, FailureDomain::Osd, 1 << 20);
        let had: BTreeSet<OsdId> = place(&before, &pool, index).unwrap().into_iter().collect();
        let has: BTreeSet<OsdId> = place(&after, &pool, index).unwrap().into_iter().collect();
        prop_assert!(had.iter().filter(|osd| **osd != gone).all(|osd| has.contains(osd)));
    }
}
