//! The activation of a primary: collect the log ends of all in-sync members, adopt the longest by (c, seq), bring
//! every member to it, and wait until no earlier primary can hold a lease (I5). Until then: no write is
//! acknowledged, no read answered, nobody added.
//!
//! One thing is cut instead of rolled forward: entries of a generation that is fenced by now, where it is certain
//! that they were not acknowledged, because some in-sync member never persisted them. See
//! `docs/decisions/0010-fenced-entries-are-cut.md`.

use cairn_types::OsdId;
use cairn_types::peer::{LogPoint, LogReport, Logged, PgMessage};

use super::member::{Member, RESEND_MS, Step};
use super::order::Primary;
use super::{Ctx, Pg};
use crate::Time;
use crate::planted::{Bug, planted};

/// How far a primary is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Waits for the reports of all in-sync members.
    Collecting,
    /// Fetches the end of a longer log.
    Fetching {
        from: OsdId,
        through: LogPoint,
        /// The highest position of it that this OSD had before.
        own: u64,
        asked_at: Time,
    },
    /// Waits until all in-sync members have the log, and earlier leases have run out.
    Aligning { end: u64 },
    /// Serves.
    Active,
}

impl Phase {
    /// The log is decided, and acknowledgements of it count.
    pub(super) fn is_aligned(self) -> bool {
        matches!(self, Self::Aligning { .. } | Self::Active)
    }
}

impl Pg {
    /// The map makes, or keeps, this OSD the primary.
    pub(super) fn lead(&mut self, ctx: &mut Ctx<'_>) {
        let interval = self.config.interval;
        match &mut self.primary {
            Some(primary) if primary.interval == interval && primary.is_active() && primary.cut_above.is_none() => {
                self.go_on_leading(ctx);
            }
            Some(primary) if primary.interval == interval => {
                let mut fresh = Primary::new(ctx.next_attempt(), interval, primary.since, primary.grants.clone());
                fresh.knows_commit = primary.knows_commit;
                // Whoever waits goes on waiting: the interval, and with it the log, is the same.
                fresh.queue = std::mem::take(&mut primary.queue);
                fresh.waiting = std::mem::take(&mut primary.waiting);
                fresh.join = primary.join.carry_over();
                self.activate(ctx, fresh);
            }
            Some(_) | None => {
                let fresh = Primary::new(ctx.next_attempt(), interval, ctx.map.epoch, ctx.peers.outstanding(ctx.now));
                self.activate(ctx, fresh);
            }
        }
    }

    fn activate(&mut self, ctx: &mut Ctx<'_>, fresh: Primary) {
        self.step_down(ctx);
        self.primary = Some(Box::new(fresh));
        self.meet_members(ctx);
    }

    /// Collects anew under the same configuration: nothing was ordered under it yet.
    pub(super) fn activate_again(&mut self, ctx: &mut Ctx<'_>) {
        let Some(primary) = &mut self.primary else { return };
        assert!(!primary.is_active(), "an active primary has ordered entries under this configuration");
        let mut fresh = Primary::new(ctx.next_attempt(), primary.interval, primary.since, primary.grants.clone());
        fresh.knows_commit = primary.knows_commit;
        fresh.queue = std::mem::take(&mut primary.queue);
        fresh.waiting = std::mem::take(&mut primary.waiting);
        fresh.join = primary.join.carry_over();
        fresh.proposal = primary.proposal.take();
        self.activate(ctx, fresh);
    }

    /// The same interval goes on under a newer configuration.
    fn go_on_leading(&mut self, ctx: &mut Ctx<'_>) {
        self.meet_members(ctx);
        let c = self.config.c;
        let isr = self.config.isr.clone();
        let primary = self.primary.as_mut().expect("lead is called with one");
        if primary.proposal.as_ref().is_some_and(|proposal| proposal.expect_c() < c) {
            primary.proposal = None;
        }
        for (osd, member) in &mut primary.members {
            // Members that follow the newer configuration have dropped what was sent under the older one.
            member.send_again();
            if isr.contains(osd) {
                member.recovery = None;
            }
        }
    }

    /// Everybody with a part in the configuration, and nobody else.
    fn meet_members(&mut self, ctx: &Ctx<'_>) {
        let me = self.me;
        let config = &self.config;
        let all = config.acting.iter().chain(&config.isr).chain(&config.backfill).copied().filter(|osd| *osd != me);
        let all = all.collect::<std::collections::BTreeSet<_>>();
        let Some(primary) = &mut self.primary else { return };
        primary.members.retain(|osd, _| all.contains(osd));
        for osd in all {
            primary.members.entry(osd).or_insert_with(|| Member::new(ctx.now, ctx.peers.incarnation(osd)));
        }
    }

    /// Moves an activation on, or aligns a member that came back to an active primary.
    pub(super) fn advance_activation(&mut self, ctx: &mut Ctx<'_>) {
        let Some(primary) = &self.primary else { return };
        match primary.phase {
            Phase::Collecting => self.evaluate(ctx),
            Phase::Fetching { .. } => {}
            Phase::Aligning { .. } | Phase::Active => self.align_returned(ctx),
        }
    }

    /// The in-sync members but this one.
    fn in_sync_others(&self) -> Vec<OsdId> {
        self.config.isr.iter().copied().filter(|osd| *osd != self.me).collect()
    }

    fn report_of(&self, osd: OsdId) -> Option<&LogReport> {
        match &self.primary.as_ref()?.members.get(&osd)?.step {
            Step::Reported(report) => Some(report),
            _ => None,
        }
    }

    fn condemn(&mut self, osd: OsdId) {
        if let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&osd)) {
            member.corrupt = true;
        }
        // What it had is worth nothing as a base: it is filled anew.
        self.absents.forget(osd);
    }

    /// All in-sync members have reported: whose log is the longest, and who lost what it once acknowledged?
    fn evaluate(&mut self, ctx: &mut Ctx<'_>) {
        if planted(Bug::ActivateAlone) {
            let primary = self.primary.as_mut().expect("activating");
            primary.phase = Phase::Active;
            return;
        }
        let Some(reports) = self.reports().filter(|_| self.usable) else { return };
        let known = reports.iter().map(|(_, report)| report.commit).chain([self.log.commit_point()]).max();
        let known = known.unwrap_or_default().seq();
        let short = reports.iter().filter(|(_, r)| !r.usable || r.end().seq() < known).map(|(osd, _)| *osd);
        let short = short.collect::<Vec<_>>();
        if !short.is_empty() {
            short.into_iter().for_each(|osd| self.condemn(osd));
        } else if self.log.end().seq() < known {
            // This OSD lost what it had acknowledged: it must not lead.
            self.usable = false;
        } else {
            let longest = reports.iter().max_by_key(|(osd, report)| (report.end().version, std::cmp::Reverse(*osd)));
            let longer = |report: &LogReport| report.end().version > self.log.end().version;
            match longest.filter(|(_, report)| longer(report)) {
                Some((osd, report)) => self.fetch_from(ctx, *osd, report),
                None => self.align_all(ctx, self.log.end().seq()),
            }
        }
    }

    /// The reports of all in-sync members, once they are all there and none of them is condemned.
    fn reports(&self) -> Option<Vec<(OsdId, LogReport)>> {
        let primary = self.primary.as_ref()?;
        let reports = self.in_sync_others().into_iter().map(|osd| match primary.members.get(&osd)? {
            Member { step: Step::Reported(report), corrupt: false, .. } => Some((osd, report.clone())),
            _ => None,
        });
        reports.collect()
    }

    /// The highest point of a reported log that lies on this one.
    pub(super) fn agreed(&self, report: &LogReport) -> Option<LogPoint> {
        let points = report.tail.iter().rev().chain([&report.commit]);
        points.copied().find(|point| self.log.holds(*point))
    }

    fn fetch_from(&mut self, ctx: &mut Ctx<'_>, osd: OsdId, longest: &LogReport) {
        let at = self.agreed(longest).filter(|point| point.seq() >= self.log.commit());
        let Some(at) = at else {
            self.condemn(osd);
            return;
        };
        self.cut_back(ctx, at.seq());
        let (through, own) = (longest.end(), at.seq());
        let primary = self.primary.as_mut().expect("evaluating");
        primary.phase = Phase::Fetching { from: osd, through, own, asked_at: ctx.now };
        self.ask_for_more(ctx);
    }

    fn ask_for_more(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c, after) = (self.id, self.config.c, self.log.end().seq());
        let Some(primary) = &mut self.primary else { return };
        let Phase::Fetching { from, through, asked_at, .. } = &mut primary.phase else { return };
        *asked_at = ctx.now;
        let Some(member) = primary.members.get(from) else { return };
        let body = PgMessage::FetchLog { after, through: through.seq() };
        ctx.out.send(*from, id, c, member.attempt, body);
    }

    /// Asks again for log entries that did not come.
    pub(super) fn resend_fetch(&mut self, ctx: &mut Ctx<'_>) {
        let Some(Phase::Fetching { from, through, asked_at, .. }) = self.primary.as_ref().map(|primary| primary.phase)
        else {
            return;
        };
        let stands = self.report_of(from).is_some_and(|report| report.end() == through);
        if !stands {
            // It restarted or was lost meanwhile, perhaps without what had not reached its disk: collect anew.
            self.primary.as_mut().expect("seen above").phase = Phase::Collecting;
        } else if ctx.now.ms_since(asked_at) >= RESEND_MS {
            self.ask_for_more(ctx);
        }
    }

    /// Entries of the longer log.
    pub(super) fn handle_fetched(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, entries: Vec<Logged>) {
        let Some(primary) = &self.primary else { return };
        let Phase::Fetching { from: source, through, own, .. } = primary.phase else { return };
        let asked = primary.members.get(&from).is_some_and(|member| member.attempt == attempt);
        if from != source || !asked {
            return;
        }
        for logged in entries {
            if self.log.end().seq() < through.seq() && self.continues(&logged) && self.is_sound(&logged) {
                self.append(ctx, vec![logged]);
            }
        }
        if self.log.end() == through {
            self.align_all(ctx, own);
        } else if self.log.end().seq() >= through.seq() {
            self.condemn(source);
            self.primary.as_mut().expect("fetching").phase = Phase::Collecting;
        } else {
            self.ask_for_more(ctx);
        }
    }

    /// The log is chosen: cut what is fenced, bring everybody to it. `own` is how much of it this OSD had itself.
    fn align_all(&mut self, ctx: &mut Ctx<'_>, own: u64) {
        let Some(reports) = self.reports() else { return };
        let commit = self.log.commit();
        let agreed = reports.iter().map(|(osd, report)| (*osd, self.agreed(report)));
        let agreed = agreed.map(|(osd, at)| (osd, at.filter(|point| point.seq() >= commit))).collect::<Vec<_>>();
        if let Some((osd, _)) = agreed.iter().find(|(_, at)| at.is_none()) {
            self.condemn(*osd);
            self.primary.as_mut().expect("activating").phase = Phase::Collecting;
            return;
        }
        let agreed = agreed.into_iter().filter_map(|(osd, at)| Some((osd, at?))).collect::<Vec<_>>();
        let common = agreed.iter().map(|(_, at)| at.seq()).chain([own]).min().unwrap_or(own);
        let knows_commit = self.primary.as_ref().is_some_and(|primary| primary.knows_commit);
        let knows_commit = knows_commit || planted(Bug::CutUncertain);
        self.cut_fenced(ctx, if knows_commit { commit } else { common });
        let end = self.log.end();
        for (osd, at) in agreed {
            let at = if at.seq() > end.seq() { end } else { at };
            self.start_member(ctx, osd, at, PgMessage::Align { at });
        }
        self.primary.as_mut().expect("activating").phase = Phase::Aligning { end: end.seq() };
    }

    /// An in-sync member whose life began anew, or that lost the thread, while this primary goes on.
    fn align_returned(&mut self, ctx: &mut Ctx<'_>) {
        for osd in self.must_persist() {
            let Some(report) = self.report_of(osd).cloned() else { continue };
            let acked = self.primary.as_ref().and_then(|p| p.members.get(&osd)).map_or(0, |member| member.acked);
            let floor = acked.max(self.log.commit());
            match self.agreed(&report).filter(|point| point.seq() >= floor && report.usable) {
                Some(at) => self.start_member(ctx, osd, at, PgMessage::Align { at }),
                None => self.condemn(osd),
            }
        }
    }

    /// Everybody has the log, and nobody else can hold a lease: serve.
    pub(super) fn finish_activation(&mut self, ctx: &mut Ctx<'_>) {
        let Some(primary) = &mut self.primary else { return };
        let Phase::Aligning { end } = primary.phase else { return };
        let since = primary.since;
        primary
            .grants
            .retain(|grant| !ctx.peers.is_spent(ctx.now, grant, since, ctx.map) && !planted(Bug::ServeBeforeLeasesEnd));
        let others = self.config.isr.iter().filter(|osd| **osd != self.me);
        let all = others.map(|osd| primary.members.get(osd)).all(|m| m.is_some_and(Member::is_streaming));
        let whole = self.log.commit() >= end;
        if all && whole && self.log.is_settled() && self.durable_c == self.config.c && primary.grants.is_empty() {
            primary.phase = Phase::Active;
            primary.knows_commit = true;
            primary.cut_above = None;
            self.touched = true;
        }
    }

    /// Earlier primaries whose leases this one waits for: they are asked whether they know the newer map.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = OsdId> + '_ {
        let waiting = self.primary.iter().filter(|primary| !primary.is_active());
        waiting.flat_map(|primary| primary.grants.iter().map(|grant| grant.holder))
    }

    /// When the last outstanding grant runs out.
    pub(super) fn activation_deadline(&self) -> Option<Time> {
        let primary = self.primary.as_ref()?;
        if primary.is_active() { None } else { primary.grants.iter().map(|grant| grant.until).max() }
    }
}
