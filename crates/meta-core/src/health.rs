//! Health: what is wrong, how badly, and what to do about it. Read off the map; members are the daemon's to add.
//! The codes are Ceph's where they mean the same. What is muted is shown and does not count.

use cairn_proto::meta::{HealthCheck, HealthReply};
use cairn_types::OsdId;
use cairn_types::map::{ClusterMap, FailureDomain, Osd, Pool};

use crate::capacity::{self, FULL_PERCENT, NEARFULL_PERCENT};
use crate::machine::Machine;
use crate::pg::is_up;
use crate::query::{is_active, is_degraded, pgs_of};

/// The most lines of detail of one check.
const DETAILS: usize = 20;
/// A disk operation older than this makes its OSD slow.
const SLOW_MS: u64 = 1000;

/// Every code there is, with what it means. `docs/operating/health.md` has a section on each.
pub const CODES: &[(&str, &str)] = &[
    ("META_CLOCK_SKEW", "the clocks of metadata members differ"),
    ("META_DOWN", "metadata members cannot be reached"),
    ("META_EVEN", "an even number of metadata members votes"),
    ("META_LEARNER", "a metadata member has been added and does not vote yet"),
    ("META_RESTORED", "the metadata came from a backup, and OSDs must say what they know"),
    ("META_SINGLE", "one metadata member only"),
    ("NO_OSDS", "there is no OSD"),
    ("NO_POOLS", "there is no pool"),
    ("OSDMAP_FLAGS", "a flag of maintenance is set"),
    ("OSD_DOWN", "OSDs do not answer"),
    ("OSD_FULL", "OSDs are full, and take no more writes"),
    ("OSD_NEARFULL", "OSDs are nearly full"),
    ("OSD_OUT", "OSDs are out of placement and still hold copies"),
    ("OSD_SCRUB_ERRORS", "scrubs found bad copies on OSDs"),
    ("PG_AVAILABILITY", "placement groups serve no I/O"),
    ("PG_BACKFILL_FULL", "OSDs that should be filled are full"),
    ("PG_DAMAGED", "blocks have no good copy"),
    ("PG_DEGRADED", "placement groups have fewer copies than wanted"),
    ("PG_MISPLACED", "placement groups have all copies, but not where placement wants them"),
    ("POOL_NEAR_FULL", "a pool has nearly as many volumes, or bytes, as it may"),
    ("POOL_SINGLE_HOST", "all copies of a pool lie on one host"),
    ("POOL_TOO_FEW_DOMAINS", "a pool cannot place all its copies"),
    ("POOL_TOO_FEW_PGS", "a pool has far fewer placement groups than it would be given today"),
    ("SLOW_OPS", "disk operations take long"),
];

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
    checks.extend(osds_out(map));
    checks.extend(osds_slow(machine));
    checks.extend(restored(machine));
    checks.extend(members(machine));
    checks.extend(osds_full(map, FULL_PERCENT, 101, "OSD_FULL", ERROR));
    checks.extend(osds_full(map, NEARFULL_PERCENT, FULL_PERCENT, "OSD_NEARFULL", WARN));
    checks.extend(pgs_inactive(map));
    checks.extend(pgs_degraded(map));
    checks.extend(crate::scrub::checks(machine));
    checks.extend(crate::rules::checks(machine));
    checks.extend(pools_crowded(map));
    checks.extend(pools_too_few_domains(map));
    checks.extend(crate::health_placement::checks(machine));
    summed_up(checks)
}

/// The reply of some checks: sorted, with the worst as the status. Notes alone leave it OK.
#[must_use]
pub fn summed_up(mut checks: Vec<HealthCheck>) -> HealthReply {
    checks.sort_by_key(|check| (check.muted, check.severity != ERROR, check.severity == NOTE, check.code.clone()));
    let worst = checks.first().filter(|worst| worst.severity != NOTE && !worst.muted);
    let status = worst.map_or("OK", |worst| &worst.severity).to_owned();
    HealthReply { status, checks }
}

/// Marks what is muted at this time (seconds since 1970).
pub fn mute(machine: &Machine, checks: &mut [HealthCheck], now_s: u64) {
    for check in checks {
        if let Some(until_s) =
            machine.mutes.until_s.get(&check.code).filter(|until_s| **until_s == 0 || **until_s > now_s)
        {
            (check.muted, check.muted_until_s) = (true, *until_s);
        }
    }
}

/// One that is worth knowing and nothing worse.
#[must_use]
pub fn note(code: &str, summary: String, remedy: &str, details: Vec<String>) -> HealthCheck {
    HealthCheck { severity: NOTE.to_owned(), ..check(code, false, summary, remedy, details) }
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
    let (code, remedy) = (code.to_owned(), remedy.to_owned());
    HealthCheck { code, severity, summary, remedy, details, ..HealthCheck::default() }
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

/// Being out is what was asked for; what is still to move is worth knowing.
fn osds_out(map: &ClusterMap) -> Option<HealthCheck> {
    let copies = |osd: &Osd| map.pgs.values().filter(|pg| pg.acting.contains(&osd.id)).count();
    let out =
        map.osds.values().filter(|osd| !osd.placed).map(|osd| (osd, copies(osd))).filter(|(_, copies)| *copies > 0);
    let details: Vec<String> =
        out.map(|(osd, copies)| format!("{} still holds {copies} placement groups", osd.id)).collect();
    let summary = format!("{} out of placement and not empty yet", counted(details.len(), "OSD", "OSDs"));
    let remedy = "leave it running until its data has moved; cairn osd ls shows it";
    (!details.is_empty()).then(|| note("OSD_OUT", summary, remedy, details))
}

fn restored(machine: &Machine) -> Option<HealthCheck> {
    let awaited = machine.awaited_osds();
    let details = awaited.iter().map(|osd| format!("{osd} has not said what its disk knows")).collect();
    let summary = format!("the metadata came from a backup: {} awaited", counted(awaited.len(), "OSD is", "OSDs are"));
    let remedy = "start these OSDs; if one is lost for ever, stop and restore all members again: cairn meta restore FILE \
                  --lost-osd ID";
    (!awaited.is_empty()).then(|| check("META_RESTORED", true, summary, remedy, details))
}

fn members(machine: &Machine) -> Vec<HealthCheck> {
    let all = &machine.members().members;
    let voters = all.iter().filter(|m| !m.learner).count();
    let mut checks = Vec::new();
    if let Some(learner) = all.iter().find(|m| m.learner) {
        let summary = format!("metadata member {} at {} does not vote yet", learner.id, learner.address);
        let remedy = "start it, if it does not run: cairn meta --dir DIR --listen ADDRESS --join MEMBERS";
        checks.push(note("META_LEARNER", summary, remedy, vec![]));
    }
    if voters == 1 && !machine.map.osds.is_empty() {
        let summary = "one metadata member: nothing can be decided while it is away".to_owned();
        let remedy = "add two on other hosts: cairn meta add ADDRESS";
        checks.push(note("META_SINGLE", summary, remedy, vec![]));
    } else if voters > 0 && voters.is_multiple_of(2) {
        let summary = format!("{voters} metadata members vote: one more, or one fewer, survives as many losses");
        checks.push(note("META_EVEN", summary, "add one: cairn meta add ADDRESS", vec![]));
    }
    checks
}

fn osds_slow(machine: &Machine) -> Option<HealthCheck> {
    let slow = machine.notes.iter().filter(|(id, notes)| is_up(&machine.map, **id) && notes.oldest_io_ms > SLOW_MS);
    let details: Vec<String> =
        slow.map(|(id, notes)| format!("{id}: a disk operation waits for {} ms", notes.oldest_io_ms)).collect();
    let summary = format!("{} with slow disk operations", counted(details.len(), "OSD", "OSDs"));
    let remedy = "look at the disk and what else uses it; drain the OSD if it stays slow";
    (!details.is_empty()).then(|| check("SLOW_OPS", false, summary, remedy, details))
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
            let (up, missing): (Vec<OsdId>, Vec<OsdId>) = pg.isr.iter().partition(|osd| is_up(map, **osd));
            let named = |osds: &[OsdId]| osds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            details.push(match (up.as_slice(), missing.as_slice()) {
                ([], []) => format!("{id} has 0 of {} members it needs", pool.min_size),
                (up, []) => {
                    let (has, needs, alone) = (pg.isr.len(), pool.min_size, named(up));
                    let filled = "until others are filled";
                    format!("{id} has {has} of {needs} members it needs, {filled}; {alone} alone has every acknowledged write")
                }
                ([], missing) => format!("{id} waits for {}", named(missing)),
                (up, missing) => {
                    format!("{id} waits for {}; {} alone has every acknowledged write", named(missing), named(up))
                }
            });
        }
    }
    let summary = format!("{} serving no I/O", counted(details.len(), "placement group is", "placement groups are"));
    let remedy = "start the OSDs that are waited for, on any host that has their disk: they hold the newest data; where \
                  a disk is gone for ever, take its OSD out (cairn osd out) and leave those alone that still have everything";
    (!details.is_empty()).then(|| check("PG_AVAILABILITY", true, summary, remedy, details))
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
    (!details.is_empty()).then(|| note("POOL_SINGLE_HOST", summary, remedy, details))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The page and the program name the same codes.
    #[test]
    fn every_code_has_its_section_and_every_section_its_code() {
        let page = include_str!("../../../docs/operating/health.md");
        let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        let codes: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
        assert_eq!(sections, codes);
        let sources = [
            include_str!("health.rs"),
            include_str!("health_placement.rs"),
            include_str!("rules.rs"),
            include_str!("scrub.rs"),
            include_str!("../../meta/src/doors/meta.rs"),
        ];
        let mut raised: Vec<&str> = Vec::new();
        // Put together here, so that this test does not find its own words.
        for call in ["check", "note"].map(|name| format!("{name}(")) {
            let calls = sources.iter().flat_map(|source| source.split(&call).skip(1));
            raised.extend(calls.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next()));
        }
        // This test itself is one of the sources.
        raised.retain(|code| code.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
        raised.extend(["OSD_FULL", "OSD_NEARFULL"]);
        raised.sort_unstable();
        raised.dedup();
        assert_eq!(raised, codes, "what is raised is documented, and what is documented is raised");
    }
}
