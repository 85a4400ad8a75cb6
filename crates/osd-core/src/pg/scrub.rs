//! A scrub at the primary: it asks every in-sync member what it has of the next objects, in bounded steps, and compares.
//!
//! Nothing stands still for it. Each answer says up to which position of the log it surely contains everything; a block
//! that a later entry touches is passed over, because members may differ in it for a good reason. What is
//! left must be equal, and equal to what the log says where it reaches back so far. Rotten copies are fetched anew
//! by the member that finds them; a member whose index is wrong by the log is told so. A step with bad copies is
//! repeated until they are good, or until nothing gets better: then there is no good copy, and that is reported.
//! Never counts what the majority says.

use std::collections::{BTreeMap, BTreeSet};

use cairn_types::io::BlockState;
use cairn_types::peer::{ObjectKey, PgMessage};
use cairn_types::scrub::{
    BlockCopy, Damage, DamagedBlock, MAX_DAMAGED, MAX_SCRUB_OBJECTS, Mend, ScrubAsk, ScrubFound, ScrubOutcome,
};
use cairn_types::{BLOCK_SIZE, ConfVersion, ObjectId, OsdId};

use super::{Ctx, Pg};
use crate::Time;
use crate::output::Output;

/// Objects compared in one step of a light scrub.
const LIGHT_OBJECTS: u32 = 16;
/// Bytes of objects read in one step of a deep scrub, by each member.
const DEEP_BYTES: u32 = 4 << 20;
/// Asked again when a member has not answered for this long.
const RESEND_MS: u64 = 2000;
/// Between looks at a step that cannot go on.
const LOOK_MS: u64 = 200;
/// Clients that asked something this recently come first ...
const QUIET_MS: u64 = 20;
/// ... but a step begins this long after the one before, however busy they are.
const PAUSE_MS: u64 = 100;
/// A step is given up when nothing got better in this many rounds, and there is no good copy of what is bad ...
const ROUNDS: u32 = 5;
/// ... or nothing got better for this long.
const HOPELESS_MS: u64 = 8000;
/// An outcome is reported again after this long without an answer.
const REPORT_MS: u64 = 10_000;

/// One copy of one block.
type Copy = (OsdId, ObjectId, u32);

#[derive(Debug)]
struct Run {
    /// Members that every step so far has compared.
    members: BTreeSet<OsdId>,
    cursor: Option<ObjectKey>,
    step: Option<Step>,
    wake: Time,
    began: Time,
    /// Bad copies of the present step, in any of its rounds.
    bad: BTreeSet<Copy>,
    /// Those of the last round.
    still_bad: BTreeSet<Copy>,
    rounds: u32,
    better_at: Time,
    outcome: ScrubOutcome,
}

/// One question to all members.
#[derive(Debug)]
struct Step {
    ask: ScrubAsk,
    c: ConfVersion,
    asked: BTreeMap<OsdId, u64>,
    asked_at: Time,
    found: BTreeMap<OsdId, ScrubFound>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Scrub {
    ordered: Option<(bool, u64)>,
    run: Option<Box<Run>>,
    unreported: Option<(ScrubOutcome, Time)>,
    next_id: u64,
    damaged: u64,
}

impl Scrub {
    /// Whether one is under way, and whether it reads data.
    pub(super) fn under_way(&self) -> Option<bool> {
        self.run.as_ref().map(|run| run.outcome.deep)
    }

    /// Blocks without a good copy that the last one found.
    pub(super) fn damaged(&self) -> u64 {
        self.damaged
    }
}

/// What a round found.
#[derive(Default)]
struct Verdict {
    objects: u64,
    blocks: u64,
    bad: BTreeSet<Copy>,
    mends: BTreeMap<(OsdId, ObjectId), Vec<(u32, BlockState)>>,
    damaged: Vec<DamagedBlock>,
}

impl Pg {
    /// Somebody wants a scrub.
    pub(crate) fn order_scrub(&mut self, deep: bool, order: u64) {
        let known = self.scrub.run.as_ref().is_some_and(|run| run.outcome.order == order)
            || self.scrub.unreported.as_ref().is_some_and(|(outcome, _)| outcome.order == order);
        if !known && self.is_primary() {
            self.scrub.ordered = Some((deep, order));
            self.touched = true;
        }
    }

    /// The outcome has arrived.
    pub(crate) fn scrub_reported(&mut self, order: u64) {
        self.scrub.unreported.take_if(|(outcome, _)| outcome.order == order);
    }

    /// Not the primary any more: the next one is ordered anew.
    pub(super) fn drop_scrub(&mut self, ctx: &mut Ctx<'_>) {
        ctx.out.release_scrub(self.id);
        self.scrub = Scrub { next_id: self.scrub.next_id, ..Scrub::default() };
    }

    /// When a step is due.
    pub(super) fn scrub_deadline(&self, ctx: &Ctx<'_>) -> Option<Time> {
        let run = self.scrub.run.as_ref().filter(|run| run.step.is_none())?;
        Some(run.wake).filter(|at| *at > ctx.now)
    }

    /// Begins what is ordered, goes on with what is under way.
    pub(super) fn advance_scrub(&mut self, ctx: &mut Ctx<'_>) {
        self.report_scrub(ctx);
        let able = self.primary.as_ref().is_some_and(|primary| primary.is_active() && primary.cut_above.is_none());
        if !able || self.is_held() {
            return;
        }
        if self.scrub.run.is_none()
            && let Some((deep, order)) = self.scrub.ordered
            && ctx.out.reserve_scrub(self.id, ctx.own.scrubs)
        {
            self.scrub.ordered = None;
            let outcome = ScrubOutcome {
                pg: self.id,
                deep,
                order,
                objects: 0,
                blocks: 0,
                found: BTreeMap::new(),
                repaired: 0,
                damaged: Vec::new(),
                damaged_count: 0,
            };
            self.scrub.run = Some(Box::new(Run::new(self.in_sync(), outcome)));
        }
        self.check_step(ctx);
        self.begin_step(ctx);
    }

    fn report_scrub(&mut self, ctx: &mut Ctx<'_>) {
        if let Some((outcome, at)) = self.scrub.unreported.as_mut().filter(|(_, at)| *at <= ctx.now) {
            *at = ctx.now.plus_ms(REPORT_MS);
            ctx.out.push(Output::ReportScrub { outcome: Box::new(outcome.clone()) });
        }
    }

    fn in_sync(&self) -> BTreeSet<OsdId> {
        self.config.isr.iter().copied().collect()
    }

    /// A step whose members changed begins anew; one that waits for an answer asks again.
    fn check_step(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c, wake) = (self.id, self.config.c, ctx.now.plus_ms(LOOK_MS));
        let Some(run) = &mut self.scrub.run else { return };
        let Some(step) = &mut run.step else { return };
        let members = self.primary.iter().flat_map(|primary| &primary.members);
        let streaming = members.filter(|(_, member)| member.is_streaming());
        let streaming = streaming.map(|(osd, member)| (*osd, member.attempt)).collect::<BTreeMap<_, _>>();
        if step.c != c || step.asked.iter().any(|(osd, attempt)| streaming.get(osd) != Some(attempt)) {
            run.step = None;
            run.wake = wake;
            return self.forget_inspection();
        }
        if ctx.now.ms_since(step.asked_at) >= RESEND_MS {
            step.asked_at = ctx.now;
            let ask = step.ask;
            for (osd, attempt) in step.asked.iter().filter(|(osd, _)| !step.found.contains_key(osd)) {
                ctx.out.send(*osd, id, c, *attempt, PgMessage::ScrubAsk(ask));
            }
            if !step.found.contains_key(&self.me) {
                self.inspect(ctx, self.me, 0, ask);
            }
        }
    }

    /// Asks everybody, when clients leave room for it.
    fn begin_step(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c, me, in_sync) = (self.id, self.config.c, self.me, self.in_sync());
        let Some(run) = self.scrub.run.as_mut().filter(|run| run.step.is_none()) else { return };
        if run.wake > ctx.now {
            return;
        }
        let quiet = ctx.now.ms_since(ctx.out.client_at) >= QUIET_MS;
        if !quiet && ctx.now.ms_since(run.began) < PAUSE_MS {
            run.wake = ctx.now.plus_ms(QUIET_MS);
            return;
        }
        let mut asked = BTreeMap::new();
        for osd in in_sync.iter().filter(|osd| **osd != me) {
            let member = self.primary.as_ref().and_then(|primary| primary.members.get(osd));
            let Some(member) = member.filter(|member| member.is_streaming()) else {
                run.wake = ctx.now.plus_ms(LOOK_MS);
                return;
            };
            asked.insert(*osd, member.attempt);
        }
        run.members.retain(|osd| in_sync.contains(osd));
        self.scrub.next_id += 1;
        let limit = match run.outcome.deep {
            true => (DEEP_BYTES / self.object_size.max(1)).clamp(1, LIGHT_OBJECTS),
            false => LIGHT_OBJECTS,
        };
        let ask = ScrubAsk { id: self.scrub.next_id, deep: run.outcome.deep, after: run.cursor, limit };
        for (osd, attempt) in &asked {
            ctx.out.send(*osd, id, c, *attempt, PgMessage::ScrubAsk(ask));
        }
        run.began = ctx.now;
        run.step = Some(Step { ask, c, asked, asked_at: ctx.now, found: BTreeMap::new() });
        self.inspect(ctx, me, 0, ask);
    }

    /// A member has answered.
    pub(super) fn handle_scrub_found(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, found: ScrubFound) {
        let step = self.scrub.run.as_ref().and_then(|run| run.step.as_ref());
        if step.is_some_and(|step| step.asked.get(&from) == Some(&attempt)) {
            self.take_found(ctx, from, found);
        }
    }

    /// An answer, the own one too.
    pub(super) fn take_found(&mut self, ctx: &mut Ctx<'_>, from: OsdId, found: ScrubFound) {
        let Some(step) = self.scrub.run.as_mut().and_then(|run| run.step.as_mut()) else { return };
        // A list that ends before the end names something; what it describes is not ahead of this log.
        let most = (self.object_size / BLOCK_SIZE) as usize;
        let makes_sense = (found.end || !found.objects.is_empty())
            && found.at <= self.log.end().seq()
            && found.objects.len() <= MAX_SCRUB_OBJECTS
            && found.objects.iter().all(|(_, blocks)| blocks.len() <= most);
        if step.ask.id != found.id || step.c != self.config.c || !makes_sense {
            return;
        }
        step.found.insert(from, found);
        if step.found.len() < step.asked.len() + 1 {
            return;
        }
        let found = self.scrub.run.as_mut().and_then(|run| run.step.take()).map(|step| step.found);
        let found = found.unwrap_or_default();
        let floor = found.values().map(|found| found.at).min().unwrap_or(0);
        if floor < self.log.base().seq() {
            // Nobody knows any more what was written since: compare again.
            return;
        }
        let unfinished = found.values().filter(|one| !one.end);
        let through = unfinished.filter_map(|one| one.objects.last()).map(|(object, _)| ObjectKey::new(*object)).min();
        let verdict = self.judge(&found, through, floor);
        self.conclude(ctx, verdict, through);
    }

    /// Compares block by block, up to an object.
    fn judge(&self, found: &BTreeMap<OsdId, ScrubFound>, through: Option<ObjectKey>, floor: u64) -> Verdict {
        let mut objects: BTreeMap<ObjectKey, BTreeMap<OsdId, &[BlockCopy]>> = BTreeMap::new();
        for (osd, one) in found {
            for (object, blocks) in &one.objects {
                let key = ObjectKey::new(*object);
                if through.is_none_or(|through| key <= through) {
                    objects.entry(key).or_default().insert(*osd, blocks);
                }
            }
        }
        let mut verdict = Verdict::default();
        for (key, copies) in objects {
            verdict.objects += 1;
            let blocks = copies.values().map(|blocks| blocks.len()).max().unwrap_or(0);
            for index in 0..blocks {
                let copy = |osd: &OsdId| {
                    let copy = copies.get(osd).and_then(|blocks| blocks.get(index));
                    (*osd, copy.copied().unwrap_or_default())
                };
                let row = found.keys().map(copy).collect::<Vec<_>>();
                verdict.blocks += u64::from(row.iter().any(|(_, copy)| *copy != BlockCopy::Absent));
                if row.iter().any(|(_, copy)| !copy.is_good() || *copy != row[0].1) {
                    self.judge_block(&mut verdict, key.object(), index as u32 * BLOCK_SIZE, &row, floor);
                }
            }
        }
        verdict
    }

    /// A block in which not all copies are equal and good.
    fn judge_block(&self, verdict: &mut Verdict, object: ObjectId, at: u32, row: &[(OsdId, BlockCopy)], floor: u64) {
        if self.log.after(floor).any(|kept| kept.entry.op.touches(object, at, BLOCK_SIZE)) {
            return;
        }
        let first = row.iter().find_map(|(_, copy)| copy.state());
        let agreed = first.filter(|first| row.iter().filter_map(|(_, copy)| copy.state()).all(|state| state == *first));
        let expected = self.state_through(object, at, floor).or(agreed);
        let Some(expected) = expected else {
            verdict.bad.extend(row.iter().map(|(osd, _)| (*osd, object, at)));
            verdict.damaged.push(DamagedBlock { object, offset: at, damage: Damage::CopiesDiffer });
            return;
        };
        for (osd, copy) in row {
            if copy.state() != Some(expected) && *copy != BlockCopy::Lost {
                verdict.mends.entry((*osd, object)).or_default().push((at, expected));
            }
            if copy.state() != Some(expected) || !copy.is_good() {
                verdict.bad.insert((*osd, object, at));
            }
        }
        if !row.iter().any(|(_, copy)| copy.is_good() && copy.state() == Some(expected)) {
            verdict.damaged.push(DamagedBlock { object, offset: at, damage: Damage::NoGoodCopy });
        }
    }

    /// What a round means: on to the next step, or the same again, or the end.
    fn conclude(&mut self, ctx: &mut Ctx<'_>, verdict: Verdict, through: Option<ObjectKey>) {
        let Some(run) = &mut self.scrub.run else { return };
        if run.rounds == 0 || verdict.bad.len() < run.still_bad.len() {
            run.better_at = ctx.now;
            run.rounds = 0;
        }
        run.bad.extend(verdict.bad.iter().copied());
        run.still_bad = verdict.bad;
        run.rounds += 1;
        let damaged = verdict.damaged.iter().map(|block| (block.object, block.offset)).collect::<BTreeSet<_>>();
        let all_damaged = run.still_bad.iter().all(|(_, object, at)| damaged.contains(&(*object, *at)));
        let waited = all_damaged || ctx.now.ms_since(run.better_at) >= HOPELESS_MS;
        let hopeless = run.rounds >= ROUNDS && waited;
        if !run.still_bad.is_empty() && !hopeless {
            run.wake = ctx.now.plus_ms(LOOK_MS * u64::from(run.rounds.min(ROUNDS)));
            return self.send_mends(ctx, verdict.mends);
        }
        let repaired = run.bad.len() - run.bad.intersection(&run.still_bad).count();
        run.outcome.repaired += repaired as u64;
        for (osd, _, _) in std::mem::take(&mut run.bad) {
            *run.outcome.found.entry(osd).or_default() += 1;
        }
        run.still_bad.clear();
        run.rounds = 0;
        run.outcome.objects += verdict.objects;
        run.outcome.blocks += verdict.blocks;
        run.outcome.damaged_count += verdict.damaged.len() as u64;
        let room = MAX_DAMAGED - run.outcome.damaged.len();
        run.outcome.damaged.extend(verdict.damaged.into_iter().take(room));
        run.cursor = through;
        if through.is_none() {
            self.finish_scrub(ctx);
        }
    }

    fn send_mends(&mut self, ctx: &mut Ctx<'_>, mends: BTreeMap<(OsdId, ObjectId), Vec<(u32, BlockState)>>) {
        for ((osd, object), blocks) in mends {
            let mend = Mend { object, blocks };
            if osd == self.me {
                self.mend(&mend);
            } else if let Some(member) = self.primary.as_ref().and_then(|primary| primary.members.get(&osd)) {
                ctx.out.send(osd, self.id, self.config.c, member.attempt, PgMessage::Mend(mend));
            }
        }
    }

    /// The last object is compared. Members that came in the meantime want it all once more.
    fn finish_scrub(&mut self, ctx: &mut Ctx<'_>) {
        let in_sync = self.in_sync();
        let Some(run) = self.scrub.run.take() else { return };
        if in_sync.is_subset(&run.members) {
            ctx.out.release_scrub(self.id);
            // A light one has not looked at what a deep one found.
            let before = if run.outcome.deep { 0 } else { self.scrub.damaged };
            self.scrub.damaged = run.outcome.damaged_count.max(before);
            self.scrub.unreported = Some((run.outcome, ctx.now));
            self.report_scrub(ctx);
            return;
        }
        let outcome = ScrubOutcome { objects: 0, blocks: 0, damaged: Vec::new(), damaged_count: 0, ..run.outcome };
        self.scrub.run = Some(Box::new(Run::new(in_sync, outcome)));
    }
}

impl Run {
    fn new(members: BTreeSet<OsdId>, outcome: ScrubOutcome) -> Self {
        Self {
            members,
            cursor: None,
            step: None,
            wake: Time(0),
            began: Time(0),
            bad: BTreeSet::new(),
            still_bad: BTreeSet::new(),
            rounds: 0,
            better_at: Time(0),
            outcome,
        }
    }
}
