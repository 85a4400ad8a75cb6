//! Scrubs of a run: ordered as the metadata service would, and at the end of every run demanded to find nothing, where
//! nothing rotted.

use std::collections::BTreeSet;

use cairn_osd_core::Transaction;
use cairn_types::scrub::ScrubOutcome;
use cairn_types::{BLOCK_SIZE, ObjectId, PgId};

use crate::bus::{Nanos, SECOND};
use crate::check::Check;
use crate::world::World;

/// A scrub of everything takes no longer.
const PATIENCE: u64 = 60;

impl World {
    /// Has every group scrubbed; gives what was found, of fewer groups where it did not end.
    pub(crate) fn scrub(&mut self, deep: bool) -> Vec<ScrubOutcome> {
        let order = self.bus.now;
        for _ in 0..PATIENCE {
            let done = self.outcomes(order).iter().map(|outcome| outcome.pg).collect::<BTreeSet<_>>();
            let pgs = self.newest_map().pgs.keys().copied().collect::<Vec<_>>();
            for pg in pgs.into_iter().filter(|pg| !done.contains(pg)) {
                self.order_scrub(pg, deep, order);
            }
            let limit = self.bus.now + SECOND;
            if self.until(limit, |world| world.outcomes(order).len() == world.newest_map().pgs.len())
                || self.failure.is_some()
            {
                break;
            }
        }
        let outcomes = self.outcomes(order).into_iter().cloned().collect();
        self.osds.iter_mut().for_each(|osd| osd.scrubbed.clear());
        outcomes
    }

    /// Whoever leads the group takes it.
    fn order_scrub(&mut self, pg: PgId, deep: bool, order: Nanos) {
        for osd in &mut self.osds {
            osd.order_scrub(&mut self.bus, &self.directory, pg, deep, order);
        }
    }

    fn outcomes(&self, order: Nanos) -> Vec<&ScrubOutcome> {
        let mut all = self.osds.iter().flat_map(|osd| &osd.scrubbed).collect::<Vec<_>>();
        all.retain(|outcome| outcome.order == order);
        all.sort_by_key(|outcome| outcome.pg);
        all.dedup_by_key(|outcome| outcome.pg);
        all
    }

    /// Scrubs end, find bad copies on disks only that broke their promises, repair all of them, and then find nothing.
    pub(crate) fn demand_clean(&mut self) {
        // Light, deep, and deep again: a repair may itself have gone astray on such a disk, once.
        for (round, deep) in [false, true, true, true].into_iter().enumerate() {
            let outcomes = self.scrub(deep);
            if outcomes.len() < self.newest_map().pgs.len() {
                return self.fail(Check::Liveness, |w| format!("a scrub did not end: {}", w.ailments()));
            }
            let ill = self.osds.iter().filter(|osd| osd.ill).filter_map(|osd| osd.id()).collect::<BTreeSet<_>>();
            let last = round == 3;
            let is_wrong = |outcome: &&ScrubOutcome| {
                let found = outcome.found.keys().any(|osd| last || !ill.contains(osd));
                found || outcome.damaged_count > 0
            };
            if let Some(outcome) = outcomes.iter().find(is_wrong) {
                return self.fail(Check::Replicas, |_| format!("a scrub finds what it must not: {outcome:?}"));
            }
            let found = outcomes.iter().flat_map(|outcome| outcome.found.values()).sum::<u64>();
            if found > 0 {
                self.bus.stats.sometimes("a scrub repairs");
            } else if deep {
                break;
            }
        }
    }
}

/// The blocks that a transaction puts in place of what was there.
pub(crate) fn landed(transaction: &Transaction) -> Vec<(ObjectId, u32)> {
    let runs = transaction.content.iter().flat_map(|(object, runs)| runs.iter().map(move |run| (*object, run)));
    let blocks = runs.flat_map(|(object, run)| {
        (run.offset..run.offset + run.len).step_by(BLOCK_SIZE as usize).map(move |at| (object, at))
    });
    blocks.collect()
}
