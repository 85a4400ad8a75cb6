//! More placement groups for a pool: each group splits in two when it is ready, which its primary knows; when all have,
//! the pool has twice as many. Nothing is copied for it: the half lies where the whole does, until placement wants it
//! elsewhere.
//!
//! A pool whose groups became too few for its OSDs is given more by itself. There is no way back to fewer: two groups with
//! different members would have to become one.

use cairn_proto::meta::{PgChange, PgOutcome, SetPgs};
use cairn_types::map::{Born, ClusterMap, PgConfig, Pool};
use cairn_types::peer::LogPoint;
use cairn_types::{OsdId, PgId};

use crate::health_placement::too_few_pgs;
use crate::machine::{Machine, Turn};
use crate::pg::judge;
use crate::pool;
use crate::refusal::Refusal;

/// Judges the split of a PG at the end of its log: the half that comes of it, with both configurations, or why not.
fn judge_split(
    map: &ClusterMap,
    (id, now): (PgId, &PgConfig),
    reporter: OsdId,
    (change, at): (&PgChange, LogPoint),
) -> Result<(PgId, PgConfig, PgConfig), String> {
    let pool = map.pools.get(&id.pool).ok_or("there is no such pool")?;
    let next = judge(map, now, pool.min_size, reporter, change)?;
    let half = PgId { index: id.index + pool.pg_count, ..id };
    if map.pgs.contains_key(&half) {
        return Err(format!("{id} has split already: {half} is the other half"));
    }
    if !pool.is_splitting() || id.index >= pool.pg_count {
        return Err(format!("{id} is not to split: its pool has {} of {} groups", pool.pg_count, pool.pg_target));
    }
    let same = PgConfig { c: now.c, ..next.clone() } == *now;
    if !same || now.isr.len() != now.acting.len() || !now.backfill.is_empty() || (now.isr.len() as u32) < pool.size {
        return Err("a group splits only while every copy is in sync, and nothing else changes with it".to_owned());
    }
    if at.version.c > now.c {
        return Err(format!("its log cannot end under {}, which is not yet", at.version.c));
    }
    let whole = PgConfig { interval: next.c, ..next };
    let born = Some(Born { from: id.index, c: whole.c, at });
    Ok((half, whole.clone(), PgConfig { born, ..whole }))
}

impl Machine {
    /// Where every PG of a pool has split there are twice as many; and so on until they are as many as they are to be.
    pub(crate) fn count_halves(&mut self, turn: &mut Turn<'_>) {
        let all = |machine: &Self, pool: &Pool| {
            let id = |index| PgId { pool: pool.id, index };
            let halves = id(pool.pg_count)..id(pool.next_pg_count());
            pool.is_splitting() && machine.map.pgs.range(halves).count() == pool.pg_count as usize
        };
        while let Some(pool) = self.map.pools.values().find(|pool| all(self, pool)).cloned() {
            self.write_pool(turn, Pool { pg_count: pool.next_pg_count(), ..pool });
        }
    }

    /// A primary says that its PG is ready to be two.
    pub(crate) fn split_pg(
        &mut self,
        turn: &mut Turn<'_>,
        (id, now): (PgId, PgConfig),
        reporter: OsdId,
        (change, at): (&PgChange, LogPoint),
    ) -> PgOutcome {
        match judge_split(&self.map, (id, &now), reporter, (change, at)) {
            Ok((half, one, other)) => {
                let now = Some((id, &one).into());
                self.put_pg(turn, id, one);
                self.put_pg(turn, half, other);
                self.scrub_half_as(turn, id, half);
                PgOutcome { pg: change.pg, applied: true, now, refused: String::new() }
            }
            Err(refused) => PgOutcome { pg: change.pg, applied: false, now: Some((id, &now).into()), refused },
        }
    }

    /// A pool is to have so many placement groups.
    pub(crate) fn set_pgs(&mut self, turn: &mut Turn<'_>, request: &SetPgs) -> Result<(), Refusal> {
        let found = self.map.pools.values().find(|pool| pool.name == request.pool);
        let Some(now) = found else {
            let words = format!("there is no pool `{}`", request.pool.escape_debug());
            return Err(Refusal::not_found(words).remedy("cairn pool ls shows the pools"));
        };
        let next = Pool { pg_target: request.pgs, ..now.clone() };
        pool::check_pgs(next.pg_target)?;
        let begun = self.map.pgs.keys().any(|id| id.pool == now.id && id.index >= now.pg_count);
        let least = if begun { now.next_pg_count() } else { now.pg_count };
        if next.pg_target < least {
            let (name, have) = (&now.name, now.pg_count);
            let coming = if begun { format!(" and is about to have {least}") } else { String::new() };
            let words = format!("pool `{name}` has {have} placement groups{coming}, and groups are never joined again");
            return Err(
                Refusal::invalid(words).remedy(format!("ask for {least} or more; for fewer, make another pool"))
            );
        }
        pool::check_load(&self.map, now, next.pg_target)?;
        if next != *now {
            self.write_pool(turn, next);
        }
        Ok(())
    }

    /// The pool that should have more groups by itself, and how many.
    pub(crate) fn pool_that_outgrew_its_pgs(&self) -> Option<SetPgs> {
        if self.map.settings.noautoscale || self.map.settings.norebalance {
            return None;
        }
        let pools = self.map.pools.values().filter(|pool| !pool.is_splitting());
        let mut few = pools.filter(|pool| too_few_pgs(&self.map, pool));
        few.next().map(|pool| SetPgs { pool: pool.name.clone(), pgs: pool::target_pgs(&self.map, pool) })
    }
}
