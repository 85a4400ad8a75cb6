//! The primary brings members back: a delta of dirty blocks where their log and dirty map are known, a fill in key
//! order where not. Meanwhile they take every new entry, so a push lands only where it is still wanted.

use std::collections::{BTreeMap, VecDeque};

use cairn_types::io::ReadData;
use cairn_types::peer::{BackfillCursor, LogPoint, LogReport, Missing, ObjectKey, PgMessage, Push, StartRecovery};
use cairn_types::{ObjectId, OsdId};

use super::member::Step;
use super::read::as_runs;
use super::{Ctx, ListFor, Pg, ReadFor};
use crate::Time;
use crate::output::ReadFailure;
use crate::planted::{Bug, planted};

/// The longest range pushed at once.
const PIECE: u32 = 512 << 10;
/// Sent again when not acknowledged after this long.
const RESEND_MS: u64 = 1000;
/// A range that could not be read here is tried again after this long.
const REREAD_MS: u64 = 500;

/// One range to be pushed.
#[derive(Clone, Copy, Debug)]
struct Piece {
    object: ObjectId,
    offset: u32,
    len: u32,
    cursor: Option<BackfillCursor>,
}

#[derive(Debug)]
enum Stage {
    /// To be read, not before this instant.
    Waiting(Time),
    Reading,
    /// Read; counts once this position is committed.
    Read {
        after: u64,
        data: ReadData,
    },
    Sent(Box<Push>, Time),
}

#[derive(Debug)]
enum Fill {
    /// The next listing begins here.
    After(Option<ObjectKey>),
    Listing,
}

/// One member's way back.
#[derive(Debug)]
pub(super) struct Recovery {
    todo: VecDeque<Piece>,
    fill: Option<Fill>,
    next_id: u64,
    under_way: BTreeMap<u64, (Piece, Stage)>,
    /// All pushes are durable; what was open then must be committed before the member is whole.
    barrier: Option<u64>,
}

impl Recovery {
    fn new(missing: &Missing) -> Self {
        let mut todo = VecDeque::new();
        let mut fill = None;
        match missing {
            Missing::Blocks(objects) => {
                for (object, blocks) in objects {
                    blocks.ranges().for_each(|(offset, len)| cut(&mut todo, *object, offset, len, None));
                }
            }
            Missing::Everything => fill = Some(Fill::After(None)),
        }
        Self { todo, fill, next_id: 0, under_way: BTreeMap::new(), barrier: None }
    }

    /// Nothing is owed any more.
    pub(super) fn is_whole(&self, commit: u64) -> bool {
        self.barrier.is_some_and(|barrier| barrier <= commit)
    }
}

/// Cuts a range into pieces; the last one carries the cursor.
fn cut(todo: &mut VecDeque<Piece>, object: ObjectId, offset: u32, len: u32, cursor: Option<BackfillCursor>) {
    let mut at = offset;
    while at < offset + len {
        let piece = PIECE.min(offset + len - at);
        let last = at + piece == offset + len;
        todo.push_back(Piece { object, offset: at, len: piece, cursor: cursor.filter(|_| last) });
        at += piece;
    }
}

impl Pg {
    /// Begins what can begin, carries on with what is under way.
    pub(super) fn advance_recovery(&mut self, ctx: &mut Ctx<'_>) {
        if !self.primary.as_ref().is_some_and(|primary| primary.is_active()) {
            return;
        }
        let in_sync = self.must_persist();
        let members = self.primary.iter().flat_map(|primary| primary.members.keys().copied());
        let outside = members.filter(|osd| !in_sync.contains(osd)).collect::<Vec<_>>();
        for osd in outside {
            self.begin(ctx, osd);
            self.carry_on(ctx, osd);
        }
    }

    fn begin(&mut self, ctx: &mut Ctx<'_>, osd: OsdId) {
        let member = self.primary.as_ref().and_then(|primary| primary.members.get(&osd));
        let Some(Step::Reported(report)) = member.map(|member| &member.step) else { return };
        if !ctx.out.reserve(self.id, osd, ctx.own.recoveries) {
            return;
        }
        let base = self.log.commit_point();
        let (rewind_to, missing) = self.what_it_lacks(osd, report, base);
        let recovery = Recovery::new(&missing);
        let dups = self.dups.snapshot(base.seq());
        let absent = self.absents.snapshot(osd);
        let start = StartRecovery { rewind_to, base, missing, dups, absent };
        self.start_member(ctx, osd, base, PgMessage::StartRecovery(Box::new(start)));
        if let Some(member) = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&osd)) {
            member.recovery = Some(recovery);
        }
    }

    /// A delta needs a point that both logs have, at or above all the member knows to be committed, and a dirty map
    /// that goes back at least that far.
    fn what_it_lacks(&self, osd: OsdId, report: &LogReport, base: LogPoint) -> (LogPoint, Missing) {
        let everything = (base, Missing::Everything);
        let Some(absent) = self.absents.of(osd).filter(|_| report.usable) else { return everything };
        let Some(floor) = absent.anchor.first().map(LogPoint::seq) else { return everything };
        let points = report.tail.iter().rev().chain([&report.commit]);
        let mut shared = points.filter(|point| point.seq() >= floor && point.seq() <= base.seq());
        let careless = planted(Bug::KeepDivergedEnd);
        match shared.find(|point| careless || self.log.holds(**point) || absent.anchor.contains(point)) {
            Some(at) => {
                let dirty = absent.dirty.iter().map(|(object, blocks)| (*object, blocks.clone()));
                (*at, Missing::Blocks(dirty.collect()))
            }
            None => everything,
        }
    }

    fn carry_on(&mut self, ctx: &mut Ctx<'_>, osd: OsdId) {
        let (id, c, commit, end) = (self.id, self.config.c, self.log.commit(), self.log.end().seq());
        let member = self.primary.as_mut().and_then(|primary| primary.members.get_mut(&osd));
        let Some(member) = member.filter(|member| member.is_streaming()) else { return };
        let attempt = member.attempt;
        let Some(recovery) = member.recovery.as_mut().filter(|recovery| recovery.barrier.is_none()) else { return };
        while recovery.under_way.len() < ctx.own.recovery_window {
            let Some(piece) = recovery.todo.pop_front() else { break };
            recovery.under_way.insert(recovery.next_id, (piece, Stage::Waiting(Time(0))));
            recovery.next_id += 1;
        }
        if recovery.todo.is_empty()
            && let Some(Fill::After(after)) = recovery.fill
        {
            recovery.fill = Some(Fill::Listing);
            ctx.out.list(id, after, ctx.own.page, ListFor::Fill { to: osd, attempt });
        }
        let mut wanted = Vec::new();
        for (push, (piece, stage)) in &mut recovery.under_way {
            let Piece { object, offset, len, .. } = *piece;
            if !matches!(stage, Stage::Waiting(at) if *at <= ctx.now) {
                continue;
            }
            *stage = if len == 0 {
                Stage::Read { after: 0, data: ReadData::default() }
            } else if self.missing.lacks(object, offset, len) {
                wanted.push((object, offset, len));
                Stage::Waiting(ctx.now.plus_ms(REREAD_MS))
            } else if let Err(later) = ctx.out.pace.take(ctx.now, len, ctx.map.settings.client_latency_ms) {
                Stage::Waiting(later)
            } else {
                ctx.out.read(ctx.now, id, object, (offset, len), ReadFor::Push { to: osd, attempt, id: *push });
                Stage::Reading
            };
        }
        // Pushes leave in order: the member takes them in order.
        for (push, (piece, stage)) in &mut recovery.under_way {
            match stage {
                Stage::Read { after, data } if *after <= commit => {
                    let runs = as_runs(data, piece.offset);
                    let push = Push { id: *push, object: piece.object, runs, cursor: piece.cursor };
                    ctx.out.send(osd, id, c, attempt, PgMessage::Push(push.clone()));
                    *stage = Stage::Sent(Box::new(push), ctx.now);
                }
                Stage::Sent(..) => {}
                Stage::Waiting(_) | Stage::Reading | Stage::Read { .. } => break,
            }
        }
        if recovery.todo.is_empty() && recovery.under_way.is_empty() && recovery.fill.is_none() {
            recovery.barrier = Some(end);
        }
        for (object, offset, len) in wanted {
            self.repair.wait_for(object, &self.missing.lacking(object, offset, len), None);
        }
    }

    fn recovery_of(&mut self, osd: OsdId, attempt: u64) -> Option<&mut Recovery> {
        let member = self.primary.as_mut()?.members.get_mut(&osd)?;
        if member.attempt == attempt { member.recovery.as_mut() } else { None }
    }

    /// What is to be pushed was read.
    pub(super) fn push_read_done(&mut self, to: OsdId, attempt: u64, id: u64, result: Result<ReadData, ReadFailure>) {
        let Some((piece, _)) = self.recovery_of(to, attempt).and_then(|r| r.under_way.get(&id)) else { return };
        let Piece { object, offset, len, .. } = *piece;
        let stage = match result {
            Ok(data) => Stage::Read { after: self.log.touched_by(object, offset, len).unwrap_or(0), data },
            Err(ReadFailure::Corrupt { offsets }) => {
                self.miss_unreadable(object, &offsets);
                Stage::Waiting(Time(0))
            }
        };
        if let Some((_, now)) = self.recovery_of(to, attempt).and_then(|recovery| recovery.under_way.get_mut(&id)) {
            *now = stage;
        }
    }

    /// Objects of the PG, in key order, for a fill.
    pub(super) fn fill_listed(&mut self, ctx: &Ctx<'_>, to: OsdId, attempt: u64, objects: Vec<ObjectId>) {
        let size = self.object_size;
        let Some(recovery) = self.recovery_of(to, attempt) else { return };
        let at_end = objects.len() < ctx.own.page;
        let last = objects.last().copied().map(ObjectKey::new);
        for object in objects {
            let cursor = Some(BackfillCursor::Through(ObjectKey::new(object)));
            cut(&mut recovery.todo, object, 0, size, cursor);
        }
        if at_end {
            recovery.fill = None;
            let nothing = ObjectId {
                pool: cairn_types::PoolId(0),
                volume: cairn_types::VolumeId(0),
                index: 0,
                snapshot: cairn_types::SnapId::HEAD,
            };
            let end = Piece { object: nothing, offset: 0, len: 0, cursor: Some(BackfillCursor::End) };
            recovery.todo.push_back(end);
        } else {
            recovery.fill = Some(Fill::After(last));
        }
    }

    /// Everything through this push is durable there.
    pub(super) fn handle_push_ack(&mut self, _ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, id: u64) {
        if let Some(recovery) = self.recovery_of(from, attempt) {
            recovery.under_way = recovery.under_way.split_off(&(id + 1));
        }
    }

    /// Sends pushes again that were not acknowledged.
    pub(super) fn resend_pushes(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c) = (self.id, self.config.c);
        let Some(primary) = &mut self.primary else { return };
        for (osd, member) in &mut primary.members {
            let attempt = member.attempt;
            let Some(recovery) = &mut member.recovery else { continue };
            for (_, stage) in recovery.under_way.values_mut() {
                if let Stage::Sent(push, at) = stage
                    && ctx.now.ms_since(*at) >= RESEND_MS
                {
                    *at = ctx.now;
                    ctx.out.send(*osd, id, c, attempt, PgMessage::Push((**push).clone()));
                }
            }
        }
    }

    /// Members that are on their way back.
    pub(crate) fn recovering(&self) -> Vec<OsdId> {
        let members = self.primary.iter().flat_map(|primary| &primary.members);
        let under_way = members.filter(|(_, m)| m.recovery.as_ref().is_some_and(|r| r.barrier.is_none()));
        under_way.map(|(osd, _)| *osd).collect()
    }

    /// When a primary has something to do that no event brings.
    pub(super) fn primary_deadline(&self, ctx: &Ctx<'_>) -> Option<Time> {
        let hush = self.primary.as_ref().and_then(|primary| primary.hush.deadline());
        let due = self.activation_deadline().into_iter().chain(self.proposal_deadline()).chain(hush);
        due.filter(|at| *at > ctx.now).min()
    }
}
