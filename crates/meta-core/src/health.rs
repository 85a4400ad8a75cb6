//! Health: what is wrong, how badly, and what to do about it. Read off the map; members are the daemon's to add.

use cairn_proto::meta::{HealthCheck, HealthReply};
use cairn_types::map::{ClusterMap, FailureDomain, Osd, Pool};

use crate::capacity::{self, FULL_PERCENT, NEARFULL_PERCENT};
use crate::machine::Machine;
use crate::pg::is_up;
use crate::query::{is_active, is_degraded, pgs_of};

/// The most lines of detail of one check.
const DETAILS: usize = 20;
/// A disk operation older than this makes its OSD slow.
const SLOW_MS: u64 = 1000;

const WARN: &str = "WARN";
const ERROR: &str = "ERROR";
/// Worth knowing; nothing is wrong, and the cluster is healthy with it.
pub(crate) const NOTE: &str = "NOTE";

/// All checks that have something to say, the grave ones first.
#[must_use]
pub fn health(machine: &Machine) -> HealthReply {
    let map = &machine.map;
    let mut checks = Vec::new();
    checks.extend(no_osds(map));
    checks.extend(no_pools(map));
    checks.extend(osds_down(map));
    checks.extend(osds_slow(machine));
    checks.extend(osds_full(map, FULL_PERCENT, 101, "OSD_FULL", ERROR));
    checks.extend(osds_full(map, NEARFULL_PERCENT, FULL_PERCENT, "OSD_NEARFULL", WARN));
    checks.extend(pgs_inactive(map));
    checks.extend(pgs_degraded(map));
    checks.extend(crate::scrub::checks(machine));
    checks.extend(pools_crowded(map));
    checks.extend(pools_too_few_domains(map));
    checks.extend(crate::health_placement::checks(machine));
    summed_up(checks)
}

/// The reply of some checks: sorted, with the worst as the status. Notes alone leave it OK.
#[must_use]
pub fn summed_up(mut checks: Vec<HealthCheck>) -> HealthReply {
    checks.sort_by_key(|check| (check.severity != ERROR, check.severity == NOTE, check.code.clone()));
    let worst = checks.first().filter(|worst| worst.severity != NOTE);
    let status = worst.map_or("OK", |worst| &worst.severity).to_owned();
    HealthReply { status, checks }
}

/// One check, its details cut to a bound.
#[must_use]
pub fn check(code: &str, severe: bool, summary: String, remedy: &str, mut details: Vec<String>) -> HealthCheck {
    if details.len() > DETAILS {
        let rest = details.len() - DETAILS;
        details.truncate(DETAILS);
        details.push(format!("and {rest} more"));
    }
    let severity = if severe { ERROR } else { WARN }.to_owned();
    HealthCheck { code: code.to_owned(), severity, summary, remedy: remedy.to_owned(), details }
}

pub(crate) fn counted(n: usize, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

fn no_osds(map: &ClusterMap) -> Option<HealthCheck> {
    map.osds.is_empty().then(|| {
        check("NO_OSDS", false, "there is no OSD, so nothing can be stored".to_owned(), "start OSDs: cairn osd", vec![])
    })
}

fn no_pools(map: &ClusterMap) -> Option<HealthCheck> {
    (map.pools.is_empty() && !map.osds.is_empty()).then(|| {
        let summary = "there is no pool, so no volume can be made".to_owned();
        check("NO_POOLS", false, summary, "make one: cairn pool create NAME", vec![])
    })
}

fn osds_down(map: &ClusterMap) -> Option<HealthCheck> {
    let down: Vec<&Osd> = map.osds.values().filter(|osd| osd.placed && !is_up(map, osd.id)).collect();
    let details = down.iter().map(|osd| format!("{} on host {}", osd.id, osd.location.host)).collect();
    let summary = format!("{} of {} down", counted(down.len(), "OSD", "OSDs"), map.osds.len());
    let remedy = "start the OSD again; if its disk is lost, take it out (cairn osd drain) so that its data is copied";
    (!down.is_empty()).then(|| check("OSD_DOWN", down.len() == map.osds.len(), summary, remedy, details))
}

fn osds_slow(machine: &Machine) -> Option<HealthCheck> {
    let slow = machine.notes.iter().filter(|(id, notes)| is_up(&machine.map, **id) && notes.oldest_io_ms > SLOW_MS);
    let details: Vec<String> =
        slow.map(|(id, notes)| format!("{id}: a disk operation waits for {} ms", notes.oldest_io_ms)).collect();
    let summary = format!("{} with slow disk operations", counted(details.len(), "OSD", "OSDs"));
    let remedy = "look at the disk and what else uses it; drain the OSD if it stays slow";
    (!details.is_empty()).then(|| check("OSD_SLOW", false, summary, remedy, details))
}

fn osds_full(map: &ClusterMap, from: u64, below: u64, code: &str, severity: &str) -> Option<HealthCheck> {
    let percent = |osd: &Osd| (u128::from(osd.used) * 100 / u128::from(osd.capacity.max(1))) as u64;
    let full = map.osds.values().filter(|osd| osd.placed && (from..below).contains(&percent(osd)));
    let details: Vec<String> = full
        .map(|osd| {
            let (used, capacity) = (capacity::human(osd.used), capacity::human(osd.capacity));
            format!("{} holds {used} of {capacity} ({} %)", osd.id, percent(osd))
        })
        .collect();
    let summary = format!("{} at or above {from} %", counted(details.len(), "OSD", "OSDs"));
    let remedy = "add OSDs, or delete volumes or the data in them";
    (!details.is_empty()).then(|| check(code, severity == ERROR, summary, remedy, details))
}

fn pgs_inactive(map: &ClusterMap) -> Option<HealthCheck> {
    let mut details = Vec::new();
    for pool in map.pools.values() {
        for (id, pg) in pgs_of(map, pool.id).filter(|(_, pg)| !is_active(map, pool, pg)) {
            let missing: Vec<String> =
                pg.isr.iter().filter(|osd| !is_up(map, **osd)).map(ToString::to_string).collect();
            details.push(match missing.as_slice() {
                [] => format!("{id} has {} of {} members it needs", pg.isr.len(), pool.min_size),
                missing => format!("{id} waits for {}", missing.join(", ")),
            });
        }
    }
    let summary = format!("{} serving no I/O", counted(details.len(), "placement group is", "placement groups are"));
    let remedy = "bring the named OSDs back: they hold the newest data";
    (!details.is_empty()).then(|| check("PG_INACTIVE", true, summary, remedy, details))
}

fn pgs_degraded(map: &ClusterMap) -> Option<HealthCheck> {
    let mut details = Vec::new();
    for pool in map.pools.values() {
        let degraded = pgs_of(map, pool.id).filter(|(_, pg)| is_active(map, pool, pg) && is_degraded(map, pool, pg));
        details.extend(degraded.map(|(id, pg)| format!("{id} has {} of {} copies", pg.isr.len(), pool.size)));
    }
    let many = "placement groups have";
    let summary = format!("{} fewer copies than wanted", counted(details.len(), "placement group has", many));
    let remedy = "nothing if an OSD has just come back: they are being filled; otherwise bring OSDs back or add some";
    (!details.is_empty()).then(|| check("PG_DEGRADED", false, summary, remedy, details))
}

/// Pools whose copies may all lie on one host.
fn pools_crowded(map: &ClusterMap) -> Option<HealthCheck> {
    let crowded = map.pools.values().filter(|pool| pool.size > 1 && pool.failure_domain == FailureDomain::Osd);
    let hosts = |pool: &Pool| {
        let mut hosts: Vec<_> = capacity::candidates(map, pool).map(|osd| &osd.location).collect();
        hosts.sort();
        hosts.dedup();
        hosts.len()
    };
    let details: Vec<String> = crowded
        .filter(|pool| hosts(pool) == 1)
        .map(|pool| format!("pool `{}` keeps {} copies on 1 host", pool.name, pool.size))
        .collect();
    let one = "pool keeps all its copies on a single host";
    let summary = counted(details.len(), one, "pools keep all their copies on a single host");
    let remedy = "one lost machine loses them all: add OSDs on other hosts and use a pool with failure domain host";
    let note = |check: HealthCheck| HealthCheck { severity: NOTE.to_owned(), ..check };
    (!details.is_empty()).then(|| note(check("POOL_SINGLE_HOST", false, summary, remedy, details)))
}

fn pools_too_few_domains(map: &ClusterMap) -> Option<HealthCheck> {
    let lacking = map.pools.values().filter(|pool| capacity::domains(map, pool) < pool.size as usize);
    let details: Vec<String> = lacking
        .map(|pool| {
            let (have, level) = (capacity::domains(map, pool), pool.failure_domain.as_str());
            format!("pool `{}` wants {} copies on different {level}s and has {have}", pool.name, pool.size)
        })
        .collect();
    let summary = counted(details.len(), "pool cannot place all its copies", "pools cannot place all their copies");
    let remedy = "add what is missing: the placement groups are filled by themselves";
    (!details.is_empty()).then(|| check("POOL_TOO_FEW_DOMAINS", false, summary, remedy, details))
}
