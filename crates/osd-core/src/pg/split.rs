//! A PG splits in two: the objects whose hash has one more bit set go on as a PG of their own. No content moves: both
//! are ranges of the same store. What is cut is the log.
//!
//! The primary lets what it ordered be committed, orders nothing more, and proposes the split at the end of its log. So
//! every in-sync member has everything through that point, and nothing after it: whoever comes to know of the split,
//! however late, commits its log through there and forgets it, and both halves go on after that point. What is known of
//! requests goes along to both, so that one that was executed before is not executed again by the other half (I6).
//!
//! A member whose log does not end there was not in sync. Its copy is of no use to either half, and is emptied.

use cairn_types::map::{Born, PgConfig};
use cairn_types::peer::LogPoint;
use cairn_types::{ConfVersion, ObjectId, PgId};

use super::order::Primary;
use super::{Ctx, Durable, Pg, record};
use crate::Time;
use crate::output::PgChange;
use crate::planted::{Bug, planted};

/// How long nothing is ordered while what was ordered is waited for.
const HUSH_MS: u64 = 250;
/// After that, or after a split that was refused; longer each time.
const REST_MS: u64 = 2000;
/// So many times that is doubled.
const PATIENCE: u32 = 5;
/// PGs that one OSD lets split at once: their clients wait meanwhile.
const AT_ONCE: usize = 4;

/// Nothing is ordered for a moment, so that the log has an end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Hush {
    since: Option<Time>,
    not_before: Time,
    /// How often it was in vain.
    failed: u32,
}

impl Hush {
    pub(super) fn is_on(self) -> bool {
        self.since.is_some()
    }

    fn end(&mut self, now: Time) {
        let rest = REST_MS << self.failed.min(PATIENCE);
        *self = Self { since: None, not_before: now.plus_ms(rest), failed: self.failed + 1 };
    }

    /// When it is given up, at the latest.
    pub(super) fn deadline(self) -> Option<Time> {
        self.since.map(|since| since.plus_ms(HUSH_MS))
    }
}

/// How far a member is with a split that the map has brought. Each step waits until the one before is durable: the store
/// keeps the order of one PG's transactions, and not that of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Split {
    #[default]
    Idle,
    /// The whole is being committed through the split.
    Clearing { at: LogPoint, has_all: bool },
    /// It is. `has_all`: what this member has is of use to the half.
    Cleared { at: LogPoint, has_all: bool },
    /// This is a half, and not durable yet.
    Born,
}

impl Split {
    pub(super) fn step_is_durable(&mut self) {
        *self = match *self {
            Self::Clearing { at, has_all } => Self::Cleared { at, has_all },
            Self::Idle | Self::Born => Self::Idle,
            cleared @ Self::Cleared { .. } => cleared,
        };
    }
}

impl Pg {
    /// Prepares a split where one is wanted, and gives it up where it takes too long.
    pub(super) fn advance_split(&mut self, ctx: &mut Ctx<'_>) {
        let wanted = self.is_to_split(ctx);
        let Some(primary) = &mut self.primary else { return };
        let hush = &mut primary.hush;
        match hush.since {
            // The proposal itself keeps everybody quiet.
            Some(_) if primary.proposal.as_ref().is_some_and(super::propose::Proposal::splits) => hush.end(ctx.now),
            Some(since) if !wanted || ctx.now.ms_since(since) >= HUSH_MS => {
                hush.end(ctx.now);
                self.drain_queue(ctx);
            }
            None if wanted && ctx.now >= hush.not_before && ctx.out.reserve_split(self.id, AT_ONCE) => {
                hush.since = Some(ctx.now);
            }
            Some(_) | None => {}
        }
        if !self.is_about_to_split() {
            ctx.out.release_split(self.id);
        }
    }

    /// Its clients wait because of a split.
    pub(crate) fn is_about_to_split(&self) -> bool {
        let splits = |primary: &Primary| primary.proposal.as_ref().is_some_and(super::propose::Proposal::splits);
        self.primary.as_deref().is_some_and(|primary| primary.hush.is_on() || splits(primary))
    }

    /// The pool is to have more PGs, this one has not split, and every copy is whole.
    fn is_to_split(&self, ctx: &Ctx<'_>) -> bool {
        let Some(pool) = ctx.map.pools.get(&self.id.pool).filter(|pool| pool.is_splitting()) else { return false };
        let half = PgId { index: self.id.index + pool.pg_count, ..self.id };
        let undivided = self.id.index < pool.pg_count && !ctx.map.pgs.contains_key(&half);
        undivided && self.primary.as_deref().is_some_and(|primary| self.is_whole(ctx, primary))
    }

    fn is_whole(&self, ctx: &Ctx<'_>, primary: &Primary) -> bool {
        let PgConfig { isr, acting, backfill, .. } = &self.config;
        let in_sync = |osd: &cairn_types::OsdId| {
            *osd == self.me
                || !ctx.peers.is_down(ctx.now, *osd)
                    && primary.members.get(osd).is_some_and(|member| member.is_streaming() && !member.corrupt)
        };
        let free = primary.proposal.as_ref().is_none_or(super::propose::Proposal::splits);
        let active = primary.is_active() && primary.cut_above.is_none() && free && self.usable;
        let all = isr.len() >= self.size && acting.iter().all(|osd| isr.contains(osd)) && backfill.is_empty();
        active && all && isr.iter().all(in_sync) && self.missing.is_empty()
    }

    /// The split, once everything that was ordered is committed and on every member.
    pub(super) fn split_wish(&self) -> Option<PgChange> {
        let primary = self.primary.as_ref().filter(|primary| primary.hush.is_on())?;
        let end = self.log.end();
        let settled =
            self.log.commit() == end.seq() && primary.members.values().all(|member| member.acked >= end.seq());
        let settled = settled || planted(Bug::SplitUncommitted);
        settled.then(|| PgChange { split_at: Some(end), ..self.as_change(self.config.clone()) })
    }

    /// Whether an object belongs to this PG.
    pub(super) fn is_ours(&self, object: ObjectId) -> bool {
        object.hash() & u64::from(self.parts - 1) == u64::from(self.id.index)
    }

    /// The map's configuration after the split is taken: what the half has now, the whole has not.
    pub(super) fn end_split(&mut self) {
        if std::mem::take(&mut self.split) != Split::Idle {
            let (parts, index) = (u64::from(self.parts), u64::from(self.id.index));
            self.missing.keep_only(|object| object.hash() & (parts - 1) == index);
        }
    }

    /// Whether what this OSD has came of this very split. After the loss of the metadata service's memory it may be of
    /// another one that was forgotten.
    pub(crate) fn is_born_as(&self, born: &Born) -> bool {
        self.born == Some(*born)
    }

    /// Which split it came of, from the map. What came of another one is of no use.
    pub(super) fn follow_birth(&mut self, ctx: &mut Ctx<'_>) -> Option<record::Attribute> {
        let born = self.config.born.filter(|born| self.born != Some(*born))?;
        if self.born.replace(born).is_some() {
            self.disown(ctx);
        }
        Some(record::born(&born))
    }

    /// What this member has is not the PG's: it is filled anew, or emptied.
    fn disown(&mut self, ctx: &mut Ctx<'_>) {
        self.step_down(ctx);
        self.replica.forget_primary();
        self.usable = false;
        self.absents.clear();
        // What is pending must not take effect any more, least of all on what a half writes.
        self.rewind(ctx, self.log.commit());
    }

    /// This OSD has heard of a split, and is not through it: nothing that was said before counts.
    pub(super) fn is_splitting(&self) -> bool {
        self.split != Split::Idle
    }

    /// Whether this map's split is still ahead of this member.
    pub(crate) fn is_ahead_of(&self, born: &Born) -> bool {
        self.config.c < born.c
    }

    /// Whether every step so far is durable.
    pub(crate) fn split_step_is_durable(&self) -> bool {
        !matches!(self.split, Split::Clearing { .. } | Split::Born)
    }

    /// The first step: serves nothing any more, commits what it has through the split, and forgets the log. The half
    /// begins when that is durable: what is pending here may be of the half's objects, and must not land on what the half
    /// writes. True: it is.
    pub(crate) fn clear_for_split(&mut self, ctx: &mut Ctx<'_>, born: &Born) -> bool {
        match self.split {
            Split::Cleared { at, .. } if at == born.at => return true,
            Split::Clearing { .. } => return false,
            Split::Idle | Split::Cleared { .. } | Split::Born => {}
        }
        // Whoever leads by the new map trusts that this OSD, which says that it has it, serves nothing by the old one.
        self.step_down(ctx);
        self.replica.forget_primary();
        // Who left the in-sync set since, and what it has, was not followed through the split: nobody is known to be absent.
        self.config.isr = ctx.map.pgs.get(&self.id).map(|now| now.isr.clone()).unwrap_or_default();
        self.absents.clear();
        let has_all = self.usable && !self.missing.is_filling() && self.log.end() == born.at;
        let has_all = has_all || planted(Bug::SplitStale);
        let mut gone = Vec::new();
        if has_all {
            let through = self.log.end().seq();
            self.commit_through(through);
            gone = self.log.trim(through);
        } else {
            self.disown(ctx);
        }
        let mut transaction = self.transaction();
        if !gone.is_empty() {
            transaction.trim = Some(self.log.base().seq());
            transaction.attributes.push(record::base(self.log.base()));
            let rows = self.dups.snapshot(self.log.commit());
            transaction.attributes.extend(rows.iter().map(|row| record::session(row.session, Some(row))));
        }
        transaction.attributes.push(self.membership(ctx.map.epoch));
        self.store(ctx, transaction, Durable { split: true, ..Durable::default() });
        self.split = Split::Clearing { at: born.at, has_all };
        false
    }

    /// The second step: the half, from what this OSD has of the whole. The whole follows the new configuration when the
    /// half is durable.
    pub(crate) fn split_off(&mut self, ctx: &mut Ctx<'_>, id: PgId, born: &Born) -> Option<Self> {
        let Split::Cleared { has_all, .. } = self.split else { return None };
        let mut half = Self::new(id, self.me);
        half.follow_pool(ctx);
        half.config.c = ConfVersion(born.c.0 - 1);
        half.config.isr = ctx.map.pgs.get(&id).map(|now| now.isr.clone()).unwrap_or_default();
        half.split = Split::Born;
        half.born = Some(*born);
        half.usable = has_all;
        half.touched = true;
        let mut attributes = vec![record::born(born)];
        if has_all {
            half.log.restart(self.log.base());
            // Rotten blocks that wait for a good copy wait there. The half may have split since, says the map; its own halves
            // find theirs here.
            let parts = 2 * u64::from(id.index - born.from);
            half.missing.begin_blocks(self.missing.of(|object| object.hash() % parts == u64::from(id.index)));
            attributes.push(record::base(half.log.base()));
            if !planted(Bug::SplitWithoutDups) {
                let rows = self.dups.snapshot(self.log.commit());
                attributes.extend(rows.iter().map(|row| record::session(row.session, Some(row))));
                half.dups.replace(rows);
            }
        }
        attributes.push(half.membership(ctx.map.epoch));
        let mut transaction = half.transaction();
        transaction.restart = (half.log.base().seq() > 0).then(|| half.log.base());
        transaction.attributes.extend(attributes);
        let durable = Durable { split: true, ..half.log_durable() };
        half.store(ctx, transaction, durable);
        Some(half)
    }
}
