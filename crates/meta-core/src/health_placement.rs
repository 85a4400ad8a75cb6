//! Health of placement: flags that were left set, groups on the move, groups that have nowhere to go, too few groups.

use cairn_proto::meta::HealthCheck;
use cairn_types::map::{ClusterMap, Osd, Pool};

use crate::capacity::{self, FULL_PERCENT};
use crate::health::{NOTE, check, counted};
use crate::machine::Machine;
use crate::pg::is_up;
use crate::plan::{is_misplaced, is_settled};
use crate::pool::{most_pgs, target_pgs};
use crate::query::pgs_of;

/// A pool with this many times fewer PGs than it would be given today is worth a warning.
const TOO_FEW: u32 = 4;
/// With so few OSDs a small number was chosen on purpose.
const SMALL: usize = 8;

pub(crate) fn checks(machine: &Machine) -> Vec<HealthCheck> {
    let map = machine.map();
    [flags(map), misplaced(map), no_room(map), few_pgs(map)].into_iter().flatten().collect()
}

fn flags(map: &ClusterMap) -> Option<HealthCheck> {
    let set = map.settings.flags();
    let effect = |flag: &&str| match *flag {
        "noout" => "noout: an OSD that stays down is not taken out, so its copies are not made again elsewhere",
        "norebalance" => "norebalance: placement groups that have all their copies do not move",
        "noin" => "noin: an OSD that joins stays out of placement",
        "noautoscale" => "noautoscale: a pool that has too few placement groups for its OSDs keeps them",
        _ => "nobalance: uneven placement groups are left as they are",
    };
    let details = set.iter().map(|flag| effect(flag).to_owned()).collect();
    let remedy = format!("when the maintenance is over: cairn osd unset {}", set.first().unwrap_or(&"FLAG"));
    let words = if set.len() == 1 { "is" } else { "are" };
    let summary = format!("{} {words} set", set.join(", "));
    (!set.is_empty()).then(|| check("OSDMAP_FLAGS", false, summary, &remedy, details))
}

fn misplaced(map: &ClusterMap) -> Option<HealthCheck> {
    let moving = |pool: &Pool| pgs_of(map, pool.id).filter(|(_, pg)| is_misplaced(map, pool.size, pg)).count();
    let count: usize = map.pools.values().map(moving).sum();
    let summary = format!(
        "{} all copies, but not where placement wants them",
        counted(count, "placement group has", "placement groups have")
    );
    let remedy = "nothing: they are being moved; cairn osd moves shows how far they are";
    let found = || check("PG_MISPLACED", false, summary, remedy, Vec::new());
    (count > 0).then(|| HealthCheck { severity: NOTE.to_owned(), ..found() })
}

/// OSDs that placement wants to fill and that are full.
fn no_room(map: &ClusterMap) -> Option<HealthCheck> {
    let full = |osd: &&Osd| u128::from(osd.used) * 100 >= u128::from(osd.capacity) * u128::from(FULL_PERCENT);
    let unsettled = || map.pgs.values().filter(|pg| !is_settled(pg));
    let wanted = |osd: &&Osd| unsettled().any(|pg| pg.up.contains(&osd.id) && !pg.isr.contains(&osd.id));
    let stopped = map.osds.values().filter(|osd| is_up(map, osd.id)).filter(full).filter(wanted);
    let details: Vec<String> = stopped.map(|osd| format!("{} takes no more", osd.id)).collect();
    let summary = format!("{} too full to be filled", counted(details.len(), "OSD is", "OSDs are"));
    let remedy = "add OSDs, or give the full ones less weight: cairn osd reweight ID WEIGHT";
    (!details.is_empty()).then(|| check("PG_BACKFILL_FULL", false, summary, remedy, details))
}

/// Whether a pool has so few groups for the OSDs there are that they cannot be used evenly, and may be given more.
pub(crate) fn too_few_pgs(map: &ClusterMap, pool: &Pool) -> bool {
    let grown = capacity::candidates(map, pool).count() > SMALL;
    let target = target_pgs(map, pool);
    grown && pool.pg_target.saturating_mul(TOO_FEW) <= target && target <= most_pgs(map, pool)
}

fn few_pgs(map: &ClusterMap) -> Option<HealthCheck> {
    let few = map.pools.values().filter(|pool| too_few_pgs(map, pool));
    let details: Vec<String> = few
        .map(|pool| {
            format!("pool `{}` has {} and would be given {} today", pool.name, pool.pg_target, target_pgs(map, pool))
        })
        .collect();
    let summary = counted(details.len(), "pool has too few placement groups", "pools have too few placement groups");
    let remedy = "it is given more by itself, unless noautoscale or norebalance is set (cairn osd unset noautoscale); by \
                  hand: cairn pool set NAME --pgs N";
    (!details.is_empty()).then(|| check("POOL_TOO_FEW_PGS", false, summary, remedy, details))
}
