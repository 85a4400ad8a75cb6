//! A member that is not the primary: it persists what the primary of its own configuration orders, in order, and
//! says so; it tells a new primary where its log ends; it is brought back when it was away.

use cairn_types::peer::{LogPoint, LogReport, Logged, Missing, PgCommit, PgMessage, Push, RunContent, StartRecovery};
use cairn_types::{ObjectId, OsdId};

use super::{Ctx, Durable, ListFor, Pg, fence, record};
use crate::output::Output;
use crate::planted::{Bug, planted};

/// A message takes no further entry at this many payload bytes: with the largest entry (4 MiB) as its last it still
/// fits into a frame, and many messages share one.
const MESSAGE_BYTES: usize = 64 << 10;

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// The primary's last query.
    attempt: u64,
    /// The log goes on from where that attempt aligned it.
    aligned: bool,
    ack_due: bool,
    gap: bool,
    /// Entries that wait for a newer map.
    early: Option<(u64, Vec<Logged>)>,
    /// The old content goes; then this begins.
    emptying: Option<Afterwards>,
    next_push: u64,
}

/// What follows when the old content is gone.
#[derive(Debug)]
enum Afterwards {
    /// A fill from nothing.
    Fill(Box<StartRecovery>),
    /// Nothing: the group lives elsewhere.
    Nothing,
}

impl Replica {
    /// The log goes on from where the primary of this attempt aligned it.
    pub(super) fn follows(&self, attempt: u64) -> bool {
        self.aligned && self.attempt == attempt
    }

    /// The log goes on from where some primary of the present interval aligned it.
    pub(super) fn is_aligned(&self) -> bool {
        self.aligned
    }

    /// Another primary, or another interval: nothing it said counts any more.
    pub(super) fn forget_primary(&mut self) {
        *self = Self::default();
    }
}

impl Pg {
    /// The primary asks where the log ends. From here on it stands still until it is aligned.
    pub(super) fn handle_query(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64) {
        if attempt < self.replica.attempt {
            return;
        }
        if attempt > self.replica.attempt {
            self.replica = Replica { attempt, ..Replica::default() };
        }
        let report = LogReport {
            commit: self.log.commit_point(),
            tail: self.log.points_after(self.log.commit()),
            usable: self.usable && !self.missing.is_filling(),
            missing: !self.missing.is_empty(),
        };
        ctx.out.send(from, self.id, self.config.c, attempt, PgMessage::LogReport(report));
    }

    /// The primary fetches the end of this log.
    pub(super) fn handle_fetch(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, after: u64, through: u64) {
        if attempt != self.replica.attempt {
            return;
        }
        let mut entries = Vec::new();
        let mut bytes = 0;
        for kept in self.log.after(after).take_while(|kept| kept.entry.version.seq <= through) {
            let Some(logged) = kept.logged() else { break };
            bytes += logged.data.len();
            entries.push(logged);
            if bytes >= MESSAGE_BYTES || entries.len() >= cairn_types::peer::MAX_ENTRIES {
                break;
            }
        }
        ctx.out.send(from, self.id, self.config.c, attempt, PgMessage::LogEntries { entries });
    }

    /// The primary has chosen the log: both agree up to here.
    pub(super) fn handle_align(&mut self, ctx: &mut Ctx<'_>, attempt: u64, at: LogPoint) {
        if attempt != self.replica.attempt || self.replica.emptying.is_some() {
            return;
        }
        if !self.replica.aligned {
            if !self.log.holds(at) || at.seq() < self.log.commit() {
                return;
            }
            self.rewind(ctx, at.seq());
            self.replica.aligned = true;
        }
        self.replica.ack_due = true;
    }

    /// The primary orders.
    pub(super) fn handle_replicate(&mut self, ctx: &mut Ctx<'_>, attempt: u64, commit: u64, entries: Vec<Logged>) {
        if attempt != self.replica.attempt || !self.replica.aligned {
            return;
        }
        // Who is being brought back and has no room takes nothing: the primary has not heard of it yet.
        if ctx.full && !self.config.isr.contains(&self.me) {
            return;
        }
        self.replica.ack_due = true;
        let mut taken = Vec::new();
        let mut end = self.log.end();
        for logged in entries {
            let seq = logged.entry.version.seq;
            if seq <= end.seq() {
                continue;
            }
            if seq != end.seq() + 1 || logged.entry.prev != end.hash || !self.may_follow(&logged, end) {
                self.replica.gap = true;
                break;
            }
            if !logged.data.is_empty() && self.takes_nothing(ctx) {
                break;
            }
            let blind = planted(Bug::NoFenceAtReplica) || planted(Bug::NoFence);
            if seq > commit && !blind && fence::is_fenced(ctx.map, &logged.entry) {
                self.refuse(ctx, attempt, commit, logged);
                break;
            }
            end = logged.entry.point();
            taken.push(logged);
        }
        if !taken.is_empty() {
            self.append(ctx, taken);
        }
        self.follow_commit(commit);
    }

    /// No room, and nobody's acknowledgement depends on this member: it waits for room before it comes nearer. A member
    /// of the in-sync set takes what was ordered before the primary knew; there is room kept for that.
    fn takes_nothing(&self, ctx: &Ctx<'_>) -> bool {
        ctx.full && !self.config.isr.contains(&self.me)
    }

    fn may_follow(&self, logged: &Logged, end: LogPoint) -> bool {
        logged.entry.version >= end.version && logged.entry.version.c <= self.config.c && self.is_sound(logged)
    }

    /// An entry whose generation is not valid here: wait for the map, or refuse it for good.
    fn refuse(&mut self, ctx: &mut Ctx<'_>, attempt: u64, commit: u64, logged: Logged) {
        if logged.entry.epoch > ctx.map.epoch {
            ctx.out.push(Output::NeedMap { epoch: logged.entry.epoch });
            self.replica.early = Some((commit, vec![logged]));
        } else if let Some(primary) = self.config.primary {
            let body = PgMessage::Fenced { seq: logged.entry.version.seq, epoch: ctx.map.epoch };
            ctx.out.send(primary, self.id, self.config.c, attempt, body);
        }
    }

    /// The commit point as the primary says it.
    pub(crate) fn handle_commit(&mut self, from: OsdId, news: &PgCommit) {
        let fits = news.c == self.config.c && news.attempt == self.replica.attempt && self.replica.aligned;
        if fits && self.config.primary == Some(from) {
            self.follow_commit(news.commit);
        }
    }

    fn follow_commit(&mut self, commit: u64) {
        let commit = commit.min(self.log.end().seq());
        if commit > self.log.commit() {
            self.commit_through(commit);
        }
    }

    /// What a replica says on its own: what is durable.
    pub(super) fn advance_replica(&mut self, ctx: &mut Ctx<'_>) {
        if let Some((commit, entries)) = self
            .replica
            .early
            .take_if(|(_, entries)| entries.first().is_some_and(|logged| logged.entry.epoch <= ctx.map.epoch))
        {
            self.handle_replicate(ctx, self.replica.attempt, commit, entries);
        }
        let Some(primary) = self.config.primary else { return };
        let Replica { ack_due, aligned, .. } = self.replica;
        // A cut, or the beginning of a recovery, that a power cut could undo is not acknowledged.
        if !ack_due || !aligned || !self.log.is_settled() || self.durable_c < self.config.c {
            return;
        }
        let durable = if planted(Bug::AckBeforeFlush) { self.log.end().seq() } else { self.log.persisted() };
        let persisted = self.log.point_at(durable.max(self.log.base().seq()));
        let persisted = persisted.expect("what is durable is in the log");
        let gap = std::mem::take(&mut self.replica.gap);
        self.replica.ack_due = false;
        let body = PgMessage::Ack { persisted, gap };
        ctx.out.send(primary, self.id, self.config.c, self.replica.attempt, body);
    }

    /// More of the log is durable: the primary wants to know.
    pub(super) fn note_durable(&mut self) {
        self.replica.ack_due |= self.replica.aligned;
    }

    /// The primary brings this member back.
    pub(super) fn handle_start_recovery(&mut self, ctx: &mut Ctx<'_>, attempt: u64, start: StartRecovery) {
        if attempt != self.replica.attempt || self.replica.emptying.is_some() {
            return;
        }
        if self.replica.aligned {
            self.replica.ack_due = true;
            return;
        }
        if start.base.seq() < self.log.commit() {
            return;
        }
        match start.missing {
            Missing::Blocks(_) => {
                let at = start.rewind_to;
                let fits = self.log.holds(at) && at.seq() >= self.log.commit() && at.seq() <= start.base.seq();
                if fits && self.usable {
                    self.begin_recovery(ctx, start);
                }
            }
            Missing::Everything => {
                self.empty(ctx, Afterwards::Fill(Box::new(start)));
            }
        }
    }

    /// A group that this OSD has no part in any more, and that is whole elsewhere, gives its space back.
    pub(super) fn clear_stray(&mut self, ctx: &mut Ctx<'_>) {
        let config = &self.config;
        let whole = !config.up.is_empty()
            && config.up.len() >= self.size
            && config.up.iter().all(|osd| config.isr.contains(osd))
            && ctx.map.pgs.get(&self.id).is_some_and(|now| now.c == config.c);
        // A life that ended while it emptied the group left the rest for this one.
        let done = self.cleared || self.replica.emptying.is_some();
        if whole && !self.is_member() && !done && !config.up.contains(&self.me) {
            self.empty(ctx, Afterwards::Nothing);
        }
    }

    fn empty(&mut self, ctx: &mut Ctx<'_>, afterwards: Afterwards) {
        self.usable = false;
        self.log.rewind(self.log.commit());
        let mut transaction = self.transaction();
        transaction.rewind = Some(self.log.commit());
        transaction.attributes.push(self.membership(ctx.map.epoch));
        let durable = self.log_durable();
        self.store(ctx, transaction, durable);
        self.replica.emptying = Some(afterwards);
        ctx.out.list(self.id, None, ctx.own.page, ListFor::Empty { attempt: self.replica.attempt });
    }

    /// Some of the old content, in key order.
    pub(super) fn empty_listed(&mut self, ctx: &mut Ctx<'_>, attempt: u64, objects: Vec<ObjectId>) {
        if attempt != self.replica.attempt || self.replica.emptying.is_none() {
            return;
        }
        if objects.is_empty() {
            match self.replica.emptying.take() {
                Some(Afterwards::Fill(start)) => self.begin_recovery(ctx, *start),
                Some(Afterwards::Nothing) => self.cleared = true,
                None => {}
            }
            return;
        }
        let mut transaction = self.transaction();
        transaction.remove = objects;
        self.store(ctx, transaction, Durable { emptied: Some(attempt), ..Durable::default() });
    }

    /// That part is gone: the next.
    pub(super) fn empty_more(&mut self, ctx: &mut Ctx<'_>, attempt: u64) {
        if attempt == self.replica.attempt && self.replica.emptying.is_some() {
            ctx.out.list(self.id, None, ctx.own.page, ListFor::Empty { attempt });
        }
    }

    /// One record: the log goes on after the base, with what is missing there and the tables of the primary.
    fn begin_recovery(&mut self, ctx: &mut Ctx<'_>, start: StartRecovery) {
        let rewind = self.log.end().seq() > start.rewind_to.seq();
        let mut attributes = Vec::new();
        let known = self.dups.replace(if planted(Bug::LoseDups) { Vec::new() } else { start.dups.clone() });
        attributes.extend(known.into_iter().map(|session| record::session(session, None)));
        attributes.extend(start.dups.iter().map(|row| record::session(row.session, Some(row))));
        self.absents.replace(start.absent);
        self.log.restart(start.base);
        match start.missing {
            Missing::Blocks(blocks) => self.missing.begin_blocks(blocks),
            Missing::Everything => self.missing.begin_fill(),
        }
        self.usable = true;
        attributes.push(record::base(start.base));
        attributes.push(self.membership(ctx.map.epoch));
        let mut transaction = self.transaction();
        transaction.rewind = rewind.then(|| start.rewind_to.seq());
        transaction.restart = Some(start.base);
        transaction.attributes.extend(attributes);
        let durable = self.log_durable();
        self.store(ctx, transaction, durable);
        self.replica.aligned = true;
        self.replica.next_push = 0;
    }

    /// Content that this member misses. Pushes are taken in order, each lands where it is still missing.
    pub(super) fn handle_push(&mut self, ctx: &mut Ctx<'_>, attempt: u64, push: Push) {
        let early = push.id > self.replica.next_push && !planted(Bug::PushGap);
        if attempt != self.replica.attempt || !self.replica.aligned || early {
            return;
        }
        // Not taken, not acknowledged: the primary hears that there is no room, and begins again when there is.
        if self.takes_nothing(ctx) && push.runs.iter().any(|run| !matches!(run.content, RunContent::Absent)) {
            return;
        }
        if !push.runs.iter().all(|run| self.is_sound_run(run)) {
            return;
        }
        let again = push.id < self.replica.next_push;
        self.replica.next_push = self.replica.next_push.max(push.id + 1);
        let mut content = Vec::new();
        if !again {
            let object = push.object;
            let covered = |at| self.log.touched_by(object, at, cairn_types::BLOCK_SIZE).is_some();
            content = self.missing.landing(object, &push.runs, covered);
            self.missing.landed(object, &content);
            match push.cursor {
                Some(cairn_types::peer::BackfillCursor::Through(key)) => self.missing.filled(Some(key)),
                Some(cairn_types::peer::BackfillCursor::End) => self.missing.filled(None),
                None => {}
            }
        }
        let mut transaction = self.transaction();
        if !content.is_empty() {
            transaction.content.push((push.object, content));
        }
        let through = self.replica.next_push - 1;
        self.store(ctx, transaction, Durable { push: Some((attempt, through)), ..Durable::default() });
    }

    /// A push is durable here.
    pub(super) fn push_durable(&mut self, ctx: &mut Ctx<'_>, attempt: u64, id: u64) {
        if let Some(primary) = self.config.primary.filter(|_| attempt == self.replica.attempt) {
            ctx.out.send(primary, self.id, self.config.c, attempt, PgMessage::PushAck { id });
        }
    }
}
