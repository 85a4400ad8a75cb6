//! What the primary asks of the metadata service: to drop members that hold everybody up, to take in those that
//! came back, to give the lead away when its own disk is sick. One proposal per PG at a time.
//!
//! From the sending of a proposal until its outcome is known for certain, both configurations may be in force, and
//! whatever is committed or answered counts with both in-sync sets (I3). An outcome that is unknown stays unknown
//! until the configuration has moved on: then no copy of the proposal can be applied any more.

use cairn_types::map::PgConfig;
use cairn_types::{ConfVersion, Epoch, OsdId};

use super::{Ctx, Pg};
use crate::Time;
use crate::output::{CasToken, Output, PgChange, PgDecision};
use crate::planted::{Bug, planted};

/// After a refusal.
const REFUSED_MS: u64 = 500;
/// After a refusal to go on without who is lost: that takes a person.
const REFUSED_SHORT_MS: u64 = 10_000;
/// After an unknown outcome.
const UNKNOWN_MS: u64 = 100;
/// A disk operation that takes longer than this makes its OSD unfit to lead or to be waited for.
const SICK_MS: u64 = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be sent with the next command.
    Wanted,
    Sent(CasToken),
    /// Applied: the map of this epoch brings it.
    Applied(Epoch),
    /// To be sent again: the outcome is unknown.
    Again(Time),
}

/// One compare-and-swap under way.
#[derive(Debug)]
pub(super) struct Proposal {
    change: PgChange,
    stage: Stage,
    /// Some copy of this or an earlier proposal for the same `c` may still be applied.
    doubtful: bool,
    /// The in-sync sets of all proposals for this `c` that may be in force.
    sets: Vec<Vec<OsdId>>,
    /// The PG may have split, by this or an earlier proposal for this `c`.
    splits: bool,
}

impl Proposal {
    pub(super) fn expect_c(&self) -> ConfVersion {
        self.change.expect_c
    }

    /// The PG may have split: nothing may be ordered.
    pub(super) fn splits(&self) -> bool {
        self.splits
    }
}

impl Pg {
    /// The in-sync sets of every configuration that may be in force.
    pub(super) fn in_force(&self) -> impl Iterator<Item = &[OsdId]> {
        let forgetful = planted(Bug::ForgetUnion);
        let proposed = self.primary.iter().filter_map(|primary| primary.proposal.as_ref()).filter(move |_| !forgetful);
        let proposed = proposed.flat_map(|proposal| proposal.sets.iter().map(Vec::as_slice));
        std::iter::once(self.config.isr.as_slice()).chain(proposed)
    }

    /// The other members of their union.
    pub(super) fn must_persist(&self) -> Vec<OsdId> {
        let all = self.in_force().flatten().copied().filter(|osd| *osd != self.me);
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// Decides what to ask for.
    pub(super) fn advance_proposal(&mut self, ctx: &mut Ctx<'_>) {
        let Some(primary) = &self.primary else { return };
        match &primary.proposal {
            Some(Proposal { stage: Stage::Again(at), .. }) if *at <= ctx.now => {
                self.primary.as_mut().and_then(|p| p.proposal.as_mut()).expect("seen above").stage = Stage::Wanted;
            }
            Some(_) => {}
            None if ctx.now < primary.propose_after => {}
            None => {
                if let Some(change) = self.wish(ctx) {
                    let filled = |osd: &&OsdId| self.config.acting.contains(osd) || self.config.backfill.contains(osd);
                    ctx.fills.ask(change.backfill.iter().filter(|osd| !filled(osd)));
                    let (sets, splits) = (vec![change.isr.clone()], change.split_at.is_some());
                    let proposal = Proposal { change, stage: Stage::Wanted, doubtful: false, sets, splits };
                    self.primary.as_mut().expect("seen above").proposal = Some(proposal);
                }
            }
        }
    }

    pub(super) fn as_change(&self, config: PgConfig) -> PgChange {
        let PgConfig { primary, isr, acting, backfill, .. } = config;
        PgChange { pg: self.id, expect_c: self.config.c, primary, isr, acting, backfill, split_at: None }
    }

    fn wish(&self, ctx: &Ctx<'_>) -> Option<PgChange> {
        let primary = self.primary.as_ref()?;
        let changed = self
            .without_failed(ctx)
            .or_else(|| self.with_another_leader(ctx))
            .or_else(|| primary.cut_above.map(|_| self.config.clone()))
            .or_else(|| if primary.is_active() { self.with_joined(ctx) } else { None })
            .or_else(|| self.without_lost(ctx))
            .or_else(|| if primary.is_active() { self.with_returned(ctx) } else { None })
            .or_else(|| if primary.is_active() { self.without_surplus(ctx) } else { None });
        changed.map(|config| self.as_change(config)).or_else(|| self.split_wish())
    }

    /// In-sync members that are down, contradict themselves, or hold everybody up.
    fn failed(&self, ctx: &Ctx<'_>) -> Vec<OsdId> {
        let Some(primary) = &self.primary else { return Vec::new() };
        let failed = |osd: &OsdId| {
            ctx.peers.is_down(ctx.now, *osd)
                || primary.members.get(osd).is_some_and(|m| m.corrupt || m.is_stalled(ctx.now))
        };
        self.config.isr.iter().copied().filter(|osd| *osd != self.me && failed(osd)).collect()
    }

    /// Failed members are dropped, if enough remain.
    fn without_failed(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        let failed = self.failed(ctx);
        let enough = !failed.is_empty() && self.config.isr.len() - failed.len() >= self.min_size;
        enough.then(|| without(&self.config, &failed))
    }

    /// In-sync members whose disks count as gone: the map calls them down and out, and nothing is heard of them.
    fn lost(&self, ctx: &Ctx<'_>) -> Vec<OsdId> {
        let lost = |osd: &&OsdId| **osd != self.me && ctx.map.is_gone(**osd) && !ctx.peers.is_reachable(ctx.now, **osd);
        self.config.isr.iter().filter(lost).copied().collect()
    }

    /// A primary whose members are gone goes on without them, though fewer remain than the pool demands: it has all that
    /// was acknowledged, as every in-sync member has. It orders and answers nothing until others have joined; so it asks
    /// only where there are enough, and only where they cannot join before: it is not active yet, or has entries open that
    /// nobody can be brought back over.
    fn without_lost(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        let primary = self.primary.as_ref()?;
        let stuck = !primary.is_active() || self.log.commit() < self.log.end().seq();
        let well = self.usable && ctx.out.oldest_io_ms(ctx.now) < SICK_MS;
        let lost = self.lost(ctx);
        if lost.is_empty() || !stuck || !well {
            return None;
        }
        let rest = without(&self.config, &lost);
        let wanted = rest.acting.iter().chain(&rest.backfill).chain(&rest.up);
        let there = wanted.filter(|osd| **osd == self.me || self.is_fit(ctx, **osd));
        let enough = there.collect::<std::collections::BTreeSet<_>>().len() >= self.min_size;
        enough.then_some(rest)
    }

    /// Can be brought back, or filled.
    fn is_fit(&self, ctx: &Ctx<'_>, osd: OsdId) -> bool {
        !ctx.peers.is_down(ctx.now, osd) && !ctx.peers.is_full(osd) && u64::from(ctx.peers.oldest_io_ms(osd)) < SICK_MS
    }

    /// This OSD's disk is sick, or its copy is: another in-sync member leads.
    fn with_another_leader(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        if self.usable && ctx.out.oldest_io_ms(ctx.now) < SICK_MS {
            return None;
        }
        let fit = |osd: &&OsdId| {
            **osd != self.me && !ctx.peers.is_down(ctx.now, **osd) && u64::from(ctx.peers.oldest_io_ms(**osd)) < SICK_MS
        };
        let leader = *self.config.isr.iter().find(fit)?;
        let rest = without(&self.config, &[self.me]);
        if rest.isr.len() < self.min_size {
            return self.usable.then(|| PgConfig { primary: Some(leader), ..self.config.clone() });
        }
        Some(PgConfig { primary: Some(leader), ..rest })
    }

    /// Members that have everything, receive everything, and have granted their lease join the in-sync set (I3). A
    /// failed member that could not be dropped, because too few would have remained, is replaced in the same step.
    fn with_joined(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        let primary = self.primary.as_ref()?;
        let failed = self.failed(ctx);
        let (commit, end) = (self.log.commit(), self.log.end().seq());
        let whole = |osd: &OsdId| {
            primary.members.get(osd).is_some_and(|member| {
                // While a failed member holds the commit point back, having the whole log must do.
                let settled = if failed.is_empty() || member.acked < end { commit } else { end };
                member.is_streaming()
                    && !member.corrupt
                    && member.acked >= commit
                    && (planted(Bug::JoinEarly)
                        || member.recovery.as_ref().is_some_and(|recovery| recovery.is_whole(settled)))
                    && ctx.peers.holds_lease(ctx.now, *osd)
                    && !ctx.peers.is_down(ctx.now, *osd)
                    && u64::from(ctx.peers.oldest_io_ms(*osd)) < SICK_MS
            })
        };
        let outside = primary.members.keys().copied().filter(|osd| !self.config.isr.contains(osd));
        let (filled, caught_up): (Vec<_>, Vec<_>) =
            outside.filter(whole).partition(|osd| self.config.backfill.contains(osd));
        if filled.is_empty() && caught_up.is_empty() {
            return None;
        }
        let mut config = self.config.clone();
        // A member that was filled from nothing is first one that has caught up, then in sync.
        config.backfill.retain(|osd| !filled.contains(osd));
        config.acting.extend(filled);
        config.isr.extend(caught_up);
        let enough = config.isr.len() - failed.len() >= self.min_size;
        Some(self.swapped(ctx, if enough { without(&config, &failed) } else { config }))
    }

    /// The same configuration without those whose place was taken, if with it everybody is in sync that placement wants:
    /// {A, B} becomes {A, C} in one step. This OSD hands over on its own, in `without_surplus`.
    fn swapped(&self, ctx: &Ctx<'_>, config: PgConfig) -> PgConfig {
        let in_sync = |osd: &OsdId| config.isr.contains(osd) && !ctx.peers.is_down(ctx.now, *osd);
        if config.up.len() < self.size || !config.up.iter().all(in_sync) {
            return config;
        }
        let members = config.acting.iter().chain(&config.backfill);
        let surplus = members.copied().filter(|osd| *osd != self.me && !config.up.contains(osd)).collect::<Vec<_>>();
        without(&config, &surplus)
    }

    /// OSDs that placement wants and that are reachable become members: catching up where their dirty map is
    /// known, filled from nothing otherwise.
    fn with_returned(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        let wanted =
            |osd: &&OsdId| **osd != self.me && !super::is_member(&self.config, **osd) && self.is_fit(ctx, **osd);
        let (known, mut new): (Vec<_>, Vec<_>) =
            self.config.up.iter().filter(wanted).copied().partition(|osd| self.absents.of(*osd).is_some());
        // Filling from nothing is reserved at both ends; groups that lack a copy come before those that only move.
        let living = self.config.isr.iter().filter(|osd| !ctx.peers.is_down(ctx.now, **osd));
        let urgent = living.count() < self.size;
        new.retain(|osd| ctx.fills.allow(*osd, urgent));
        if known.is_empty() && new.is_empty() {
            return None;
        }
        let mut config = self.config.clone();
        config.acting.extend(known);
        config.backfill.extend(new);
        Some(config)
    }

    /// Once everybody that placement wants is in sync, and they are as many as the pool asks for, the others go;
    /// this OSD too, if it is one of them.
    fn without_surplus(&self, ctx: &Ctx<'_>) -> Option<PgConfig> {
        let up = &self.config.up;
        let in_sync = |osd: &OsdId| self.config.isr.contains(osd) && !ctx.peers.is_down(ctx.now, *osd);
        if up.len() < self.size || !up.iter().all(in_sync) {
            return None;
        }
        let members = self.config.acting.iter().chain(&self.config.backfill).chain(&self.config.isr);
        let surplus = members.copied().filter(|osd| !up.contains(osd)).collect::<Vec<_>>();
        let leader = if surplus.contains(&self.me) { up.first().copied() } else { Some(self.me) };
        (!surplus.is_empty()).then(|| PgConfig { primary: leader, ..without(&self.config, &surplus) })
    }

    /// A member that has no room cannot be brought back, and takes no entries meanwhile.
    pub(super) fn is_unfit(&self, ctx: &Ctx<'_>, osd: OsdId) -> bool {
        ctx.peers.is_full(osd) && !self.config.isr.contains(&osd)
    }

    /// The proposal to be sent now, if there is one.
    pub(crate) fn wanted_change(&self) -> Option<PgChange> {
        let proposal = self.primary.as_ref()?.proposal.as_ref()?;
        (proposal.stage == Stage::Wanted).then(|| proposal.change.clone())
    }

    /// It was sent.
    pub(crate) fn note_proposed(&mut self, token: CasToken) {
        if let Some(proposal) = self.primary.as_mut().and_then(|primary| primary.proposal.as_mut()) {
            proposal.stage = Stage::Sent(token);
        }
    }

    /// What came of it. `None` is unknown.
    pub(crate) fn handle_cas(
        &mut self,
        ctx: &mut Ctx<'_>,
        token: CasToken,
        epoch: Epoch,
        decision: Option<&PgDecision>,
    ) {
        self.touched = true;
        let (now, config) = (ctx.now, self.config.clone());
        let Some(primary) = &mut self.primary else { return };
        let Some(proposal) = primary.proposal.as_mut().filter(|p| p.stage == Stage::Sent(token)) else { return };
        match decision {
            None if planted(Bug::UnknownIsFailed) => {
                primary.proposal = None;
                primary.propose_after = now.plus_ms(REFUSED_MS);
            }
            None => {
                proposal.doubtful = true;
                proposal.stage = Stage::Again(now.plus_ms(UNKNOWN_MS));
            }
            Some(decision) if decision.applied || decision.now.c > proposal.change.expect_c => {
                proposal.stage = Stage::Applied(epoch);
                ctx.out.push(Output::NeedMap { epoch });
            }
            Some(_) if proposal.doubtful => {
                // An earlier copy may still be applied: any change at all, even none, outdates it.
                let PgConfig { primary: leader, isr, acting, backfill, .. } = config;
                proposal.sets.push(isr.clone());
                let (pg, expect_c) = (self.id, self.config.c);
                proposal.change = PgChange { pg, expect_c, primary: leader, isr, acting, backfill, split_at: None };
                proposal.stage = Stage::Again(now.plus_ms(REFUSED_MS));
            }
            Some(_) => {
                let short = proposal.change.isr.len() < self.min_size;
                primary.proposal = None;
                primary.propose_after = now.plus_ms(if short { REFUSED_SHORT_MS } else { REFUSED_MS });
            }
        }
    }

    /// When a proposal is due again.
    pub(super) fn proposal_deadline(&self) -> Option<Time> {
        match self.primary.as_ref()?.proposal.as_ref()?.stage {
            Stage::Again(at) => Some(at),
            Stage::Wanted | Stage::Sent(_) | Stage::Applied(_) => None,
        }
    }
}

/// A configuration without these members.
fn without(config: &PgConfig, gone: &[OsdId]) -> PgConfig {
    let rest = |set: &[OsdId]| set.iter().copied().filter(|osd| !gone.contains(osd)).collect::<Vec<_>>();
    PgConfig {
        isr: rest(&config.isr),
        acting: rest(&config.acting),
        backfill: rest(&config.backfill),
        ..config.clone()
    }
}
