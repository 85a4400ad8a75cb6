//! The other members as the primary sees them: where each one's log stands, and what is still to be sent to it.

use cairn_types::peer::{LogPoint, LogReport, PgMessage};
use cairn_types::{Incarnation, OsdId};

use super::recover::Recovery;
use super::{Ctx, Pg};
use crate::Time;

/// Sent again when nothing came back for this long.
pub(super) const RESEND_MS: u64 = 300;
/// Between going back for a gap twice.
const GAP_MS: u64 = 20;
/// A member whose oldest unacknowledged entry is older than this holds everybody up: it leaves the in-sync set.
const STALLED_MS: u64 = 1500;
/// A message takes no further entry at this many payload bytes: with the largest entry (4 MiB) as its last it still
/// fits into a frame, and many messages share one.
const MESSAGE_BYTES: usize = 64 << 10;
/// Data of committed entries that is kept for members outside the in-sync set that lag.
const LAG_BYTES: usize = 16 << 20;
/// A member that fell behind, or was removed as too slow, is left alone for this long.
pub(super) const REST_MS: u64 = 1000;

/// How far the conversation with a member has come.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing was said in this attempt.
    Fresh,
    /// Asked where its log ends.
    Asked,
    /// It has answered, and its log stands still until it is aligned.
    Reported(LogReport),
    /// Told to go on from this point.
    Starting { at: LogPoint, message: Box<PgMessage> },
    /// It takes entries as they come.
    Streaming,
}

/// See the file's head.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) life: Incarnation,
    pub(super) attempt: u64,
    pub(super) step: Step,
    /// Persisted there through here, by its own word, in this attempt or an earlier one.
    pub(super) acked: u64,
    /// Sent through here.
    sent: u64,
    said_at: Time,
    /// Since then it owes an answer, or was the last to come nearer to it.
    owes_since: Option<Time>,
    went_back_at: Time,
    /// The commit point it was told last.
    told_commit: u64,
    /// Its log or its content contradicts what it acknowledged: it must leave the in-sync set.
    pub(super) corrupt: bool,
    pub(super) recovery: Option<Recovery>,
    /// Not spoken to before this instant.
    rest_until: Time,
}

impl Member {
    pub(super) fn new(now: Time, life: Incarnation) -> Self {
        Self {
            life,
            attempt: 0,
            step: Step::Fresh,
            acked: 0,
            sent: 0,
            said_at: now,
            owes_since: None,
            went_back_at: Time(0),
            told_commit: 0,
            corrupt: false,
            recovery: None,
            rest_until: Time(0),
        }
    }

    pub(super) fn is_streaming(&self) -> bool {
        matches!(self.step, Step::Streaming)
    }

    /// Begins the conversation anew, after a rest where it was the member's fault.
    pub(super) fn reset(&mut self, now: Time, rest_ms: u64) {
        self.step = Step::Fresh;
        self.recovery = None;
        self.rest_until = now.plus_ms(rest_ms);
        self.owes_since = None;
    }

    /// Something was sent to it and nothing came back for too long.
    pub(super) fn is_stalled(&self, now: Time) -> bool {
        self.owes_since.is_some_and(|since| now.ms_since(since) >= STALLED_MS)
    }

    /// It was not heard of for a moment: what a careless primary might take for dead.
    pub(super) fn is_behind(&self) -> bool {
        !self.is_streaming() || self.acked < self.sent
    }

    /// Where it goes on from, if it takes entries or is about to.
    fn needs_after(&self) -> Option<u64> {
        match &self.step {
            Step::Streaming => Some(self.acked),
            Step::Starting { at, .. } => Some(at.seq()),
            Step::Fresh | Step::Asked | Step::Reported(_) => None,
        }
    }

    /// What is already sent counts as not sent.
    pub(super) fn send_again(&mut self) {
        self.sent = self.acked;
    }
}

impl Pg {
    /// Asks members that nothing was said to yet; forgets what earlier lives of them said.
    pub(super) fn query_members(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c) = (self.id, self.config.c);
        for osd in self.others().filter(|osd| self.is_unfit(ctx, *osd)).collect::<Vec<_>>() {
            if let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&osd)) {
                member.reset(ctx.now, REST_MS);
            }
        }
        let isr = &self.config.isr;
        let Some(primary) = &mut self.primary else { return };
        for (osd, member) in &mut primary.members {
            let life = ctx.peers.incarnation(*osd);
            if member.life != life {
                member.life = life;
                member.reset(ctx.now, 0);
            }
            let ready = matches!(member.step, Step::Fresh) && ctx.now >= member.rest_until;
            let there = !ctx.peers.is_down(ctx.now, *osd) || isr.contains(osd) && ctx.peers.is_reachable(ctx.now, *osd);
            if ready && there {
                member.attempt = ctx.next_attempt();
                member.step = Step::Asked;
                member.said_at = ctx.now;
                member.owes_since = Some(ctx.now);
                ctx.out.send(*osd, id, c, member.attempt, PgMessage::QueryLog);
            }
        }
    }

    /// Tells a member to go on from a point.
    pub(super) fn start_member(&mut self, ctx: &mut Ctx<'_>, osd: OsdId, at: LogPoint, message: PgMessage) {
        let (id, c) = (self.id, self.config.c);
        let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&osd)) else { return };
        ctx.out.send(osd, id, c, member.attempt, message.clone());
        member.step = Step::Starting { at, message: Box::new(message) };
        member.said_at = ctx.now;
        member.owes_since = Some(ctx.now);
    }

    /// A member answers where its log ends.
    pub(super) fn handle_report(&mut self, _ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, report: LogReport) {
        let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&from)) else { return };
        if member.attempt == attempt && matches!(member.step, Step::Asked) {
            member.step = Step::Reported(report);
            member.owes_since = None;
        }
    }

    /// A member says what is durable there.
    pub(super) fn handle_ack(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, point: LogPoint, gap: bool) {
        let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&from)) else { return };
        if member.attempt != attempt {
            return;
        }
        match &member.step {
            Step::Starting { at, .. } if point == *at || (point.seq() > at.seq() && self.log.holds(point)) => {
                member.step = Step::Streaming;
                member.acked = point.seq();
                member.sent = point.seq();
                member.owes_since = None;
            }
            Step::Streaming if point.seq() > self.log.end().seq() => member.reset(ctx.now, 0),
            Step::Streaming if point.seq() > self.log.base().seq() && !self.log.holds(point) => {
                // It persisted something else at this position: its log is not ours.
                member.reset(ctx.now, 0);
            }
            Step::Streaming => {
                if point.seq() > member.acked {
                    member.acked = point.seq();
                    member.sent = member.sent.max(member.acked);
                    member.owes_since = None;
                }
                if gap && point.seq() >= member.acked && ctx.now.ms_since(member.went_back_at) >= GAP_MS {
                    member.went_back_at = ctx.now;
                    member.send_again();
                }
            }
            Step::Fresh | Step::Asked | Step::Reported(_) | Step::Starting { .. } => {}
        }
    }

    /// Sends every streaming member what it was not sent yet.
    pub(super) fn stream(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c, commit, end) = (self.id, self.config.c, self.log.commit(), self.log.end().seq());
        let Some(primary) = &mut self.primary else { return };
        for (osd, member) in primary.members.iter_mut().filter(|(_, member)| member.is_streaming()) {
            if member.acked >= end {
                member.owes_since = None;
            } else if member.owes_since.is_none() {
                member.owes_since = Some(ctx.now);
            }
            while member.sent < end {
                let mut entries = Vec::new();
                let mut bytes = 0;
                for kept in self.log.after(member.sent) {
                    let Some(logged) = kept.logged() else { break };
                    bytes += logged.data.len();
                    entries.push(logged);
                    if bytes >= MESSAGE_BYTES || entries.len() >= cairn_types::peer::MAX_ENTRIES {
                        break;
                    }
                }
                if entries.is_empty() || member.sent < self.log.base().seq() {
                    // What it needs is not kept any more: its dirty map knows.
                    member.reset(ctx.now, REST_MS);
                    break;
                }
                member.sent += entries.len() as u64;
                member.told_commit = commit;
                ctx.out.send(*osd, id, c, member.attempt, PgMessage::Replicate { commit, entries });
            }
        }
        self.release_data(ctx.now);
    }

    /// Entries after this position are still needed by some member that takes entries, or is about to.
    pub(super) fn needed_after(&self) -> u64 {
        let members = self.primary.iter().flat_map(|primary| primary.members.values());
        members.filter_map(Member::needs_after).min().unwrap_or(u64::MAX)
    }

    /// Data of committed entries is kept while some member may need it, within a bound.
    fn release_data(&mut self, now: Time) {
        let commit = self.log.commit();
        let Some(primary) = &mut self.primary else { return };
        let mut floor = commit;
        for member in primary.members.values_mut() {
            let Some(after) = member.needs_after().filter(|after| *after < commit) else { continue };
            if self.log.data_bytes() > LAG_BYTES {
                member.reset(now, REST_MS);
            } else {
                floor = floor.min(after);
            }
        }
        self.log.drop_data(floor);
    }

    /// Says again what was not answered.
    pub(super) fn resend(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c) = (self.id, self.config.c);
        let Some(primary) = &mut self.primary else { return };
        for (osd, member) in &mut primary.members {
            if ctx.now.ms_since(member.said_at) < RESEND_MS {
                continue;
            }
            member.said_at = ctx.now;
            match &member.step {
                Step::Asked => ctx.out.send(*osd, id, c, member.attempt, PgMessage::QueryLog),
                Step::Starting { message, .. } => ctx.out.send(*osd, id, c, member.attempt, (**message).clone()),
                Step::Streaming if member.owes_since.is_some_and(|since| ctx.now.ms_since(since) >= RESEND_MS) => {
                    member.send_again();
                }
                Step::Streaming | Step::Fresh | Step::Reported(_) => {}
            }
        }
        self.resend_pushes(ctx);
        self.resend_fetch(ctx);
    }

    /// The commit point, for a member that was not told the present one: rides on a heartbeat.
    pub(crate) fn commit_news(&mut self, to: OsdId) -> Option<cairn_types::peer::PgCommit> {
        let (pg, c, commit) = (self.id, self.config.c, self.log.commit());
        let member = self.primary.as_mut()?.members.get_mut(&to)?;
        if !member.is_streaming() || member.told_commit >= commit {
            return None;
        }
        member.told_commit = commit;
        Some(cairn_types::peer::PgCommit { pg, c, attempt: member.attempt, commit })
    }
}
