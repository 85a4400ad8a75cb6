//! Failure domains are honoured, or refused in words: every level, over clusters of every shape, when a pool is made, when
//! an OSD leaves, joins or is weighed, and when the balancer has its say.

mod cluster;

use std::collections::BTreeSet;

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    BalancePgs, ChangePlacementRequest, CommandError, CreatePoolRequest, ErrorCode, Location, PlaceOsd, Pool,
};
use cairn_types::map::{ClusterMap, FailureDomain, Osd};
use cairn_types::{OsdId, PoolId};
use cluster::Cluster;

const LEVELS: [FailureDomain; 4] = [FailureDomain::Osd, FailureDomain::Host, FailureDomain::Rack, FailureDomain::Zone];
/// Zones, racks in each, hosts in each, disks in each.
const SHAPES: [(u32, u32, u32, u32); 7] =
    [(1, 1, 1, 1), (1, 1, 1, 4), (1, 1, 3, 1), (1, 1, 3, 2), (1, 3, 1, 2), (3, 1, 1, 2), (2, 2, 2, 1)];

fn furnished((zones, racks, hosts, disks): (u32, u32, u32, u32)) -> Cluster {
    let mut cluster = Cluster::new();
    for (zone, rack) in (0..zones).flat_map(|zone| (0..racks).map(move |rack| (zone, rack))) {
        for (host, disk) in (0..hosts).flat_map(|host| (0..disks).map(move |disk| (host, disk))) {
            let name = format!("{zone}{rack}{host}{disk}");
            let place =
                Location { zone: format!("z{zone}"), rack: format!("r{rack}"), host: format!("h{zone}{rack}{host}") };
            cluster.add_disk(&name, place, 1 << 40);
            cluster.register(&name).unwrap();
        }
    }
    cluster
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

fn domains(map: &ClusterMap, level: FailureDomain) -> usize {
    map.osds.values().filter(|osd| osd.placed).map(|osd| domain(osd, level)).collect::<BTreeSet<_>>().len()
}

fn make(cluster: &mut Cluster, level: FailureDomain, size: u32, degraded: bool) -> Result<(), CommandError> {
    let pool = Pool {
        name: format!("{}{size}", level.as_str()),
        size,
        min_size: 1,
        failure_domain: level.as_str().into(),
        pg_count: 16,
        ..Pool::default()
    };
    let request = CreatePoolRequest { pool: Some(pool), allow_degraded: degraded, ..CreatePoolRequest::default() };
    cluster.run(Payload::CreatePool(request)).map(drop)
}

fn change(cluster: &mut Cluster, change: Change) -> Result<(), CommandError> {
    let request = ChangePlacementRequest { change: Some(change), ..ChangePlacementRequest::default() };
    cluster.run(Payload::ChangePlacement(request)).map(drop)
}

/// Wherever placement wants a PG, no two copies share a domain, and there are as many as there can be.
fn check(cluster: &Cluster, what: &str) {
    let map = cluster.machine.map();
    for (id, pg) in &map.pgs {
        let pool = &map.pools[&id.pool];
        let level = pool.failure_domain;
        let used: BTreeSet<String> = pg.up.iter().map(|osd| domain(&map.osds[osd], level)).collect();
        assert_eq!(used.len(), pg.up.len(), "{what}: {id} on different {}s: {:?}", level.as_str(), pg.up);
        assert_eq!(pg.up.len(), domains(map, level).min(pool.size as usize), "{what}: {id} of {}", pool.name);
        assert!(pg.up.iter().all(|osd| map.osds[osd].placed), "{what}: {id}");
    }
}

#[test]
fn a_pool_is_made_where_its_domains_are_and_refused_in_words_elsewhere() {
    let (mut made, mut refused) = (0, 0);
    for shape in SHAPES {
        let mut cluster = furnished(shape);
        for (level, size) in LEVELS.into_iter().flat_map(|level| (1..=4).map(move |size| (level, size))) {
            let have = domains(cluster.machine.map(), level);
            let result = make(&mut cluster, level, size, false);
            let what = format!("{shape:?}, {size} copies on {}s", level.as_str());
            if have >= size as usize {
                assert_eq!(result, Ok(()), "{what}");
                made += 1;
                continue;
            }
            refused += 1;
            let error = result.unwrap_err();
            assert_eq!(error.code(), ErrorCode::TooFewDomains, "{what}");
            let plural = if level == FailureDomain::Osd { "OSDs".into() } else { format!("{}s", level.as_str()) };
            assert!(error.message.contains(&format!("{size} copies on different {plural}")), "{}", error.message);
            assert!(error.message.contains(&have.to_string()), "it says how many there are: {}", error.message);
            assert!(error.remedy.contains("add") && error.remedy.contains("--allow-degraded"), "{}", error.remedy);
            make(&mut cluster, level, size, true).expect("accepted on demand");
        }
        check(&cluster, &format!("{shape:?}"));
    }
    println!("{made} made, {refused} refused");
    assert!(made > 40 && refused > 30);
}

#[test]
fn an_osd_leaves_only_where_its_copies_can_go_to_another_domain() {
    let (mut left, mut refused) = (0, 0);
    for (shape, level) in SHAPES.into_iter().flat_map(|shape| LEVELS.map(|level| (shape, level))) {
        for size in 1..=3 {
            let mut cluster = furnished(shape);
            if make(&mut cluster, level, size, false).is_err() {
                continue;
            }
            let what = format!("{shape:?}, {size} copies on {}s", level.as_str());
            // One after the other, until no more may go.
            for id in cluster.machine.map().osds.keys().copied().collect::<Vec<_>>() {
                let place = PlaceOsd { id: id.0, placed: Some(false), weight: None };
                match change(&mut cluster, Change::Place(place)) {
                    Ok(()) => left += 1,
                    Err(error) => {
                        refused += 1;
                        assert_eq!(error.code(), ErrorCode::TooFewDomains, "{what}");
                        assert!(error.message.contains(&format!("without {id}")), "{}", error.message);
                        assert!(error.remedy.contains(&format!("add a {} first", level.as_str())), "{}", error.remedy);
                    }
                }
                assert!(domains(cluster.machine.map(), level) >= size as usize, "{what}");
                check(&cluster, &what);
            }
        }
    }
    println!("{left} left, {refused} refused");
    assert!(left > 40 && refused > 40);
}

#[test]
fn weights_and_balance_never_put_two_copies_into_one_domain() {
    let mut exceptions = 0;
    for (shape, level) in SHAPES.into_iter().flat_map(|shape| LEVELS.map(|level| (shape, level))) {
        let mut cluster = furnished(shape);
        if make(&mut cluster, level, 2, false).is_err() {
            continue;
        }
        let ids: Vec<OsdId> = cluster.machine.map().osds.keys().copied().collect();
        for (step, id) in ids.iter().enumerate() {
            let weight = Some(65536 / (step as u32 % 3 + 1));
            change(&mut cluster, Change::Place(PlaceOsd { id: id.0, placed: None, weight })).unwrap();
            change(&mut cluster, Change::Balance(BalancePgs { most: 8, automatic: false })).unwrap();
            check(&cluster, &format!("{shape:?} on {}s, step {step}", level.as_str()));
        }
        let placer = cairn_placement::Placer::new(cluster.machine.map(), &cluster.machine.map().pools[&PoolId(1)]);
        let moved = |(id, pg): (&cairn_types::PgId, &cairn_types::map::PgConfig)| {
            usize::from(placer.place_what_fits(id.index) != pg.up)
        };
        exceptions += cluster.machine.map().pgs.iter().map(moved).sum::<usize>();
    }
    assert!(exceptions > 10, "the balancer had something to do: {exceptions}");
}

#[test]
fn the_number_of_pgs_is_chosen_for_the_osds_and_health_names_a_pool_that_was_outgrown() {
    let pgs = |cluster: &mut Cluster, name: &str, expected_osds| {
        let pool = Pool { name: name.into(), size: 3, ..Pool::default() };
        let request = CreatePoolRequest { pool: Some(pool), expected_osds, ..CreatePoolRequest::default() };
        cluster.run(Payload::CreatePool(request)).unwrap();
        cluster.machine.map().pools.values().find(|pool| pool.name == name).unwrap().pg_count
    };
    let few = |cluster: &Cluster| {
        let checks = cairn_meta_core::health::health(&cluster.machine).checks;
        checks.into_iter().find(|check| check.code == "POOL_TOO_FEW_PGS").map(|check| check.details)
    };
    let mut cluster = furnished((1, 1, 3, 1));
    assert_eq!(pgs(&mut cluster, "today", 0), 64);
    assert_eq!(pgs(&mut cluster, "grown", 12), 256);
    for host in 3..12 {
        let name = format!("more{host}");
        cluster.add_disk(&name, Location { host: format!("more{host}"), ..Location::default() }, 1 << 40);
        cluster.register(&name).unwrap();
        assert_eq!(few(&cluster).is_some(), host >= 8, "{} hosts", host + 1);
    }
    assert_eq!(few(&cluster).unwrap(), ["pool `today` has 64 and would be given 256 today"]);
    let target = cairn_meta_core::query::pools(&cluster.machine).iter().map(|pool| pool.target_pgs).collect::<Vec<_>>();
    assert_eq!(target, [256, 256]);
}
