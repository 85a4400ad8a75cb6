//! Deleted volumes: the primary walks the PG in key order and removes their objects as log entries, in order with
//! everything else, and reports the PG purged once all removals are committed.

use std::collections::BTreeMap;

use cairn_types::peer::{EntryOp, Logged, ObjectKey};
use cairn_types::{ObjectId, VolumeId};

use super::order::Primary;
use super::{Ctx, ListFor, Pg};
use crate::Time;
use crate::output::Output;

/// A report is made again when the map does not show it after this long.
const REPORT_MS: u64 = 5000;

#[derive(Debug)]
enum Walk {
    /// Waits for the listing of this number.
    Listing { number: u64 },
    /// Goes on after this object once everything through this position is committed.
    After { key: Option<ObjectKey>, committed: u64 },
    /// All removals stand in the log, up to this position.
    End { committed: u64 },
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Purge {
    walk: Option<(VolumeId, Walk)>,
    reported: BTreeMap<VolumeId, Time>,
}

impl Pg {
    /// Removes a little more of what is deleted.
    pub(super) fn advance_purge(&mut self, ctx: &mut Ctx<'_>) {
        let (pool, commit, held) = (self.id.pool, self.log.commit(), self.is_held());
        let Some(primary) = &mut self.primary else { return };
        if !primary.is_active() || primary.cut_above.is_some() || held || primary.is_hushed() {
            return;
        }
        let purge = &mut primary.purge;
        if purge.walk.is_none() {
            let wanted = ctx.upkeep.chores(pool).into_iter().flat_map(|chores| &chores.purging).copied();
            purge.reported.retain(|volume, _| ctx.map.volumes.contains_key(volume));
            let due =
                |volume: &VolumeId| purge.reported.get(volume).is_none_or(|at| ctx.now.ms_since(*at) >= REPORT_MS);
            purge.walk = wanted.into_iter().find(due).map(|volume| (volume, Walk::After { key: None, committed: 0 }));
        }
        match &mut purge.walk {
            Some((_, walk @ Walk::After { .. })) => {
                let Walk::After { key, committed } = *walk else { return };
                if committed <= commit {
                    let number = ctx.next_attempt();
                    *walk = Walk::Listing { number };
                    ctx.out.list(self.id, key, ctx.own.page, ListFor::Purge { number });
                }
            }
            Some((volume, Walk::End { committed })) if *committed <= commit => {
                let interval = self.config.interval;
                let report = Output::ReportPurged { volume: *volume, pg: self.id, snapshots: Vec::new(), interval };
                ctx.out.push(report);
                purge.reported.insert(*volume, ctx.now);
                purge.walk = None;
            }
            Some((_, Walk::Listing { .. } | Walk::End { .. })) | None => {}
        }
    }

    /// Some of the PG's objects, in key order.
    pub(super) fn purge_listed(&mut self, ctx: &mut Ctx<'_>, number: u64, objects: Vec<ObjectId>) {
        let may = |primary: &Primary| primary.is_active() && primary.cut_above.is_none() && !primary.is_hushed();
        let active = self.primary.as_deref().is_some_and(may) && !self.is_held();
        let walk = self.primary.as_ref().and_then(|primary| primary.purge.walk.as_ref());
        let Some((volume, Walk::Listing { number: awaited })) = walk else { return };
        if *awaited != number {
            return;
        }
        let volume = *volume;
        if !active {
            self.primary.as_mut().expect("seen above").purge.walk = None;
            return;
        }
        let last = objects.last().copied().map(ObjectKey::new);
        let at_end = objects.len() < ctx.own.page;
        for object in objects.into_iter().filter(|object| object.volume == volume) {
            let entry = self.next_entry(ctx, EntryOp::Remove { object });
            self.append(ctx, vec![Logged { entry, data: bytes::Bytes::new() }]);
        }
        let committed = self.log.end().seq();
        let walk = if at_end { Walk::End { committed } } else { Walk::After { key: last, committed } };
        self.primary.as_mut().expect("seen above").purge.walk = Some((volume, walk));
    }
}
