//! Reservations: how many PGs may be filled from nothing at once, at the OSD that receives and at the primary that sends.
//!
//! A reservation is not a message but a row of the map: a PG whose configuration names an OSD as `backfill` holds a
//! place at that OSD and one at its primary. Both are taken by the one compare-and-swap that adds the member, and given
//! back by the one that makes it catch up or lets it go. So nobody holds one end while waiting for the other, and a crash
//! leaves none behind.

use std::collections::BTreeSet;

use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::{OsdId, PgId};

use crate::pg::is_up;

/// Whether a PG lacks a copy: then it comes before those that only move.
fn is_urgent(map: &ClusterMap, id: PgId, pg: &PgConfig) -> bool {
    let size = map.pools.get(&id.pool).map_or(0, |pool| pool.size as usize);
    pg.isr.iter().filter(|osd| is_up(map, **osd)).count() < size
}

/// Refuses a change that begins more fills than are allowed.
pub(crate) fn check(
    map: &ClusterMap,
    (id, now): (PgId, &PgConfig),
    next: &PgConfig,
    primary: OsdId,
) -> Result<(), String> {
    let before: BTreeSet<&OsdId> = now.backfill.iter().chain(&now.acting).collect();
    let added: Vec<OsdId> = next.backfill.iter().filter(|osd| !before.contains(osd)).copied().collect();
    if added.is_empty() {
        return Ok(());
    }
    let urgent = is_urgent(map, id, now);
    if map.settings.norebalance && !urgent {
        return Err("it has all its copies, and norebalance is set".to_owned());
    }
    let most = map.settings.fills(urgent) as usize;
    // A group that nobody leads fills nobody.
    let fills = |pg: &PgConfig| pg.primary.is_some() && !pg.backfill.is_empty();
    let filling = || map.pgs.iter().filter(|(other, pg)| **other != id && fills(pg));
    if filling().filter(|(_, pg)| pg.primary == Some(primary)).count() >= most {
        return Err(format!("{primary} fills {most} groups already"));
    }
    match added.iter().find(|osd| filling().filter(|(_, pg)| pg.backfill.contains(osd)).count() >= most) {
        Some(osd) => Err(format!("{osd} is being filled by {most} groups already")),
        None => Ok(()),
    }
}
