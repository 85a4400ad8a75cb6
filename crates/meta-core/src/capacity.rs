//! How much fits: what a pool can still store, counted the way its copies must be spread.

use std::collections::BTreeMap;

use cairn_types::map::{ClusterMap, FailureDomain, Osd, Pool};

/// Percent of an OSD that may be filled: beyond it, no promise of space counts on it.
pub(crate) const FULL_PERCENT: u64 = 95;
/// Percent at which an OSD is nearly full: a warning.
pub(crate) const NEARFULL_PERCENT: u64 = 85;

/// The failure domain of an OSD at a level, by name.
pub(crate) fn domain_of(osd: &Osd, level: FailureDomain) -> (String, String, String, u32) {
    let place = &osd.location;
    match level {
        FailureDomain::Zone => (place.zone.clone(), String::new(), String::new(), 0),
        FailureDomain::Rack => (place.zone.clone(), place.rack.clone(), String::new(), 0),
        FailureDomain::Host => (place.zone.clone(), place.rack.clone(), place.host.clone(), 0),
        FailureDomain::Osd => (place.zone.clone(), place.rack.clone(), place.host.clone(), osd.id.0),
    }
}

/// OSDs that placement may use for a pool.
pub(crate) fn candidates<'a>(map: &'a ClusterMap, pool: &'a Pool) -> impl Iterator<Item = &'a Osd> {
    let fits = |osd: &&Osd| pool.device_class.as_ref().is_none_or(|class| *class == osd.device_class);
    map.osds.values().filter(|osd| osd.placed).filter(fits)
}

/// Free bytes that may still be promised in each failure domain of a pool.
fn free_by_domain(map: &ClusterMap, pool: &Pool) -> Vec<u64> {
    let mut free = BTreeMap::new();
    for osd in candidates(map, pool) {
        let room = (osd.capacity / 100 * FULL_PERCENT).saturating_sub(osd.used);
        *free.entry(domain_of(osd, pool.failure_domain)).or_insert(0u64) += room;
    }
    free.into_values().collect()
}

/// Failure domains that a pool can use.
pub(crate) fn domains(map: &ClusterMap, pool: &Pool) -> usize {
    free_by_domain(map, pool).len()
}

/// Bytes of volume data that a pool can still take.
///
/// Each byte is stored `size` times in different domains, so a domain larger than the others cannot be used to its end:
/// the answer is the greatest `u` with `sum(min(free, u)) >= size * u`. A pool with fewer domains than copies (accepted
/// by `--allow-degraded`) is counted with as many copies as it can make.
#[must_use]
pub(crate) fn available(map: &ClusterMap, pool: &Pool) -> u64 {
    let mut free = free_by_domain(map, pool);
    let copies = (pool.size as usize).min(free.len());
    free.sort_unstable_by(|a, b| b.cmp(a));
    // With the k largest domains capped at u, the rest must hold (copies - k) copies between them.
    let rest = |k: usize| free[k..].iter().map(|room| u128::from(*room)).sum::<u128>();
    let fits = (0..copies).map(|k| rest(k) / (copies - k) as u128).min().unwrap_or(0);
    u64::try_from(fits).unwrap_or(u64::MAX)
}

/// A number of bytes as people read it.
#[must_use]
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let power = (bytes.ilog2() / 10) as usize;
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    let unit = UNITS[power - 1];
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        part => format!("{}.{part} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::map::Location;
    use cairn_types::{Epoch, Incarnation, OsdId, PoolId};
    use proptest::prelude::{prop_assert, proptest};
    use uuid::Uuid;

    use super::*;

    fn map_of(free: &[u64]) -> ClusterMap {
        let osd = |(id, room): (usize, &u64)| Osd {
            id: OsdId(id as u32),
            uuid: Uuid::from_u128(id as u128),
            incarnation: Incarnation(1),
            dead_through: Incarnation(0),
            addresses: vec![],
            up: true,
            placed: true,
            weight: 1,
            location: Location { zone: "z".into(), rack: "r".into(), host: format!("h{id}") },
            device_class: "ssd".into(),
            capacity: room * 100,
            used: room * (FULL_PERCENT - 1),
            acked_epoch: Epoch(0),
        };
        let osds = free.iter().enumerate().map(osd).map(|osd| (osd.id, osd)).collect();
        ClusterMap { osds, ..ClusterMap::default() }
    }

    fn pool(size: u32) -> Pool {
        Pool {
            id: PoolId(1),
            name: "p".into(),
            size,
            min_size: 1,
            failure_domain: FailureDomain::Host,
            device_class: None,
            object_size: 4 << 20,
            pg_count: 8,
            pg_target: 8,
        }
    }

    #[test]
    fn the_largest_domain_cannot_be_used_alone() {
        assert_eq!(available(&map_of(&[100, 10, 10]), &pool(3)), 10);
        assert_eq!(available(&map_of(&[100, 10, 10]), &pool(2)), 20);
        assert_eq!(available(&map_of(&[100, 10, 10]), &pool(1)), 120);
        assert_eq!(available(&map_of(&[100]), &pool(3)), 100, "degraded: one copy is all it can make");
        assert_eq!(available(&map_of(&[]), &pool(3)), 0);
    }

    proptest! {
        /// Against the definition.
        #[test]
        fn available_is_the_greatest_that_fits(free in proptest::collection::vec(0u64..50, 1..6), size in 1u32..4) {
            let copies = u64::from(size).min(free.len() as u64);
            let fits = |u: u64| free.iter().map(|room| (*room).min(u)).sum::<u64>() >= copies * u;
            let answer = available(&map_of(&free), &pool(size));
            prop_assert!(fits(answer) && !fits(answer + 1), "{answer}");
        }
    }

    #[test]
    fn bytes_read_well() {
        assert_eq!(human(512), "512 bytes");
        assert_eq!(human(1 << 30), "1 GiB");
        assert_eq!(human((3 << 30) / 2), "1.5 GiB");
    }
}
