//! Placement groups: who may change a configuration, and to what.
//!
//! A configuration changes in three ways, each raising its version `c` by one:
//! - its primary proposes, by compare-and-swap ([`judge`]): members join the in-sync set from `acting` only, slow ones
//!   leave it, but never so far that fewer than the pool's `min_size` remain; only those that are down and out leave
//!   further, where its primary cannot go on without: such a group serves nothing until others have joined;
//! - an OSD is gone ([`without`]): it leaves every set, the in-sync set only where `min_size` allows, and a new primary
//!   comes from the in-sync set and from nowhere else;
//! - an OSD is back ([`elect`]): a PG that had no living in-sync member gets it as its primary.
//!
//! A returned OSD is not put back by these rules: the primary knows whether its log and dirty maps reach back far enough,
//! so the primary proposes it as `acting` (catching up) or as `backfill` (from nothing). `up`, what placement wants, is
//! advice to the primary: it changes without a new `c`, and an OSD may join a set only while it is in `up`. How many groups
//! are filled from nothing at once is bounded at both ends (`fills`).
//!
//! Invariants: the in-sync set is never emptied, and nobody whose disk may come back is put out of it below `min_size`;
//! `acting` contains it; the primary is in it; `interval` is the `c` under which the present primary began.

use std::collections::BTreeSet;

use cairn_proto::meta::{ChangePgsReply, ChangePgsRequest, PgChange, PgOutcome};
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::{Incarnation, OsdId, PgId};

use crate::fills;
use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};

/// Whether an OSD is serving, as far as is known.
pub(crate) fn is_up(map: &ClusterMap, osd: OsdId) -> bool {
    map.osds.get(&osd).is_some_and(|o| o.up && o.incarnation > o.dead_through)
}

/// Judges a proposal of a PG's primary: the next configuration, or why not.
pub(crate) fn judge(
    map: &ClusterMap,
    now: &PgConfig,
    min_size: u32,
    reporter: OsdId,
    change: &PgChange,
) -> Result<PgConfig, String> {
    if now.c.0 != change.expect_c {
        return Err(format!("the configuration is {} and not c{}", now.c, change.expect_c));
    }
    if now.primary != Some(reporter) {
        let primary = now.primary.map_or("nobody".to_owned(), |osd| osd.to_string());
        return Err(format!("only the primary may propose, and that is {primary}, not {reporter}"));
    }
    let isr = distinct("the in-sync set", &change.isr)?;
    let acting = distinct("the acting set", &change.acting)?;
    let backfill = distinct("the backfill set", &change.backfill)?;
    let has = |set: &[OsdId], osd: &OsdId| set.contains(osd);

    if isr.is_empty() {
        return Err("the in-sync set would be empty".to_owned());
    }
    let needed = now.isr.iter().find(|osd| !has(&isr, osd) && !map.is_gone(**osd));
    if let Some(osd) = needed.filter(|_| (isr.len() as u32) < min_size) {
        let wish = isr.len();
        return Err(format!(
            "the in-sync set would have {wish} of at least {min_size} members; \
             without {osd}, which is not out for good, no write may be acknowledged"
        ));
    }
    if let Some(osd) = isr.iter().find(|osd| !has(&now.isr, osd) && !has(&now.acting, osd)) {
        return Err(format!("{osd} cannot join the in-sync set: it is not catching up (not in the acting set)"));
    }
    if let Some(osd) = isr.iter().find(|osd| !has(&acting, osd)) {
        return Err(format!("{osd} is in the in-sync set and must be in the acting set"));
    }
    if let Some(osd) = backfill.iter().find(|osd| has(&acting, osd)) {
        return Err(format!("{osd} cannot be in the acting set and backfilled at once"));
    }
    let known = |osd: &OsdId| has(&now.acting, osd) || has(&now.backfill, osd);
    for osd in acting.iter().chain(&backfill).filter(|osd| !known(osd)) {
        if !has(&now.up, osd) {
            return Err(format!("{osd} cannot join: placement does not want this group on it"));
        }
        if !is_up(map, *osd) {
            return Err(format!("{osd} cannot join: it is down"));
        }
    }
    if let Some(osd) = isr.iter().find(|osd| !has(&now.isr, osd) && !is_up(map, **osd)) {
        return Err(format!("{osd} cannot join the in-sync set: it is down"));
    }
    let primary = change.primary.map_or(reporter, OsdId);
    if !has(&isr, &primary) || !is_up(map, primary) {
        return Err(format!("{primary} cannot be the primary: it must be up and in the in-sync set"));
    }
    let c = now.c.next();
    let interval = if primary == reporter { now.interval } else { c };
    let (up, born) = (now.up.clone(), now.born);
    Ok(PgConfig { c, interval, primary: Some(primary), isr, acting, backfill, up, born })
}

fn distinct(what: &str, osds: &[u32]) -> Result<Vec<OsdId>, String> {
    match osds.iter().collect::<BTreeSet<_>>().len() == osds.len() {
        true => Ok(osds.iter().copied().map(OsdId).collect()),
        false => Err(format!("{what} names an OSD twice")),
    }
}

/// The in-sync member that should lead: the first in placement's order that is up; `avoid` only if nobody else is.
pub(crate) fn elect(map: &ClusterMap, pg: &PgConfig, avoid: Option<OsdId>) -> Option<OsdId> {
    let ranked = || pg.up.iter().chain(&pg.acting).filter(|osd| pg.isr.contains(osd) && is_up(map, **osd));
    ranked().find(|osd| Some(**osd) != avoid).or_else(|| ranked().next()).copied()
}

/// The configuration after `osd` is gone (the map already says so if it is down), or `None` when nothing changes.
pub(crate) fn without(map: &ClusterMap, now: &PgConfig, min_size: u32, osd: OsdId) -> Option<PgConfig> {
    let mut next = now.clone();
    next.backfill.retain(|member| *member != osd);
    let in_sync = now.isr.contains(&osd);
    if !in_sync || now.isr.len() as u32 > min_size.max(1) {
        next.isr.retain(|member| *member != osd);
        next.acting.retain(|member| *member != osd);
    }
    if now.primary == Some(osd) || now.primary.is_none() {
        next.primary = elect(map, &next, Some(osd));
    }
    renewed(now, next)
}

/// Raises `c` if anything changed, and begins a new interval if the primary did.
fn renewed(now: &PgConfig, mut next: PgConfig) -> Option<PgConfig> {
    if next == *now {
        return None;
    }
    next.c = now.c.next();
    if next.primary != now.primary {
        next.interval = next.c;
    }
    Some(next)
}

impl Machine {
    pub(crate) fn change_pgs(&mut self, turn: &mut Turn<'_>, request: ChangePgsRequest) -> Outcome<ChangePgsReply> {
        let reporter = OsdId(request.reporter);
        self.check_alive(reporter, Incarnation(request.incarnation))?;
        self.confirm(turn, reporter);
        let mut outcomes = Vec::with_capacity(request.changes.len());
        let before = self.map.pgs.len();
        for change in request.changes {
            outcomes.push(self.change_pg(turn, reporter, change));
        }
        if self.map.pgs.len() != before {
            self.count_halves(turn);
            self.place_pgs(turn);
        }
        let applied = outcomes.iter().any(|outcome| outcome.applied);
        let epoch = if applied { self.coming_epoch() } else { self.map.epoch };
        Ok(ChangePgsReply { epoch: epoch.0, outcomes })
    }

    fn change_pg(&mut self, turn: &mut Turn<'_>, reporter: OsdId, change: PgChange) -> PgOutcome {
        let id: PgId = change.pg.unwrap_or_default().into();
        let (Some(now), Some(pool)) = (self.map.pgs.get(&id), self.map.pools.get(&id.pool)) else {
            let refused = format!("there is no placement group {id}");
            return PgOutcome { pg: change.pg, applied: false, now: None, refused };
        };
        if let Some(at) = change.split_at {
            return self.split_pg(turn, (id, now.clone()), reporter, (&change, at.into()));
        }
        let judged = judge(&self.map, now, pool.min_size, reporter, &change)
            .and_then(|next| fills::check(&self.map, (id, now), &next, reporter).map(|()| next));
        let judged = judged.and_then(|next| self.check_lost(now, pool.min_size, next));
        match judged {
            Ok(next) => {
                let now = Some((id, &next).into());
                self.write_pg(turn, id, next);
                PgOutcome { pg: change.pg, applied: true, now, refused: String::new() }
            }
            Err(refused) => PgOutcome { pg: change.pg, applied: false, now: Some((id, now).into()), refused },
        }
    }

    /// Takes an OSD out of every PG that `concerns` holds for.
    pub(crate) fn leave_pgs(&mut self, turn: &mut Turn<'_>, osd: OsdId, concerns: impl Fn(&PgConfig) -> bool) {
        let involved = |pg: &PgConfig| pg.acting.contains(&osd) || pg.backfill.contains(&osd) || pg.isr.contains(&osd);
        let mut changes = Vec::new();
        for (id, pg) in self.map.pgs.iter().filter(|(_, pg)| involved(pg) && concerns(pg)) {
            let min_size = self.map.pools.get(&id.pool).map_or(1, |pool| pool.min_size);
            changes.extend(without(&self.map, pg, min_size, osd).map(|next| (*id, next)));
        }
        for (id, next) in changes {
            self.write_pg(turn, id, next);
        }
    }

    /// An OSD has a new life: what its earlier one led needs a new interval, and what waited for it gets it.
    pub(crate) fn renew_pgs(&mut self, turn: &mut Turn<'_>, osd: OsdId) {
        let mut changes = Vec::new();
        for (id, pg) in self.map.pgs.iter().filter(|(_, pg)| pg.isr.contains(&osd)) {
            if pg.primary.is_some_and(|primary| primary != osd) {
                continue;
            }
            let c = pg.c.next();
            let primary = elect(&self.map, pg, Some(osd));
            changes.push((*id, PgConfig { c, interval: c, primary, ..pg.clone() }));
        }
        for (id, next) in changes {
            self.write_pg(turn, id, next);
        }
    }

    /// An OSD is heard of again in the same life: PGs without a primary may have one now.
    pub(crate) fn revive_pgs(&mut self, turn: &mut Turn<'_>, osd: OsdId) {
        let mut changes = Vec::new();
        for (id, pg) in self.map.pgs.iter().filter(|(_, pg)| pg.primary.is_none() && pg.isr.contains(&osd)) {
            let next = PgConfig { primary: elect(&self.map, pg, None), ..pg.clone() };
            changes.extend(renewed(pg, next).map(|next| (*id, next)));
        }
        for (id, next) in changes {
            self.write_pg(turn, id, next);
        }
    }

    /// That an OSD speaks under its present, living incarnation.
    pub(crate) fn check_alive(&self, id: OsdId, incarnation: Incarnation) -> Result<(), Refusal> {
        let Some(osd) = self.map.osds.get(&id) else {
            return Err(Refusal::not_found(format!("there is no {id}")));
        };
        if incarnation != osd.incarnation || incarnation <= osd.dead_through {
            let message = format!(
                "{id} speaks as {incarnation}, but its present incarnation is {} and {} and below are dead",
                osd.incarnation, osd.dead_through
            );
            return Err(Refusal::precondition(message).remedy("the OSD must stop and register anew"));
        }
        Ok(())
    }
}
