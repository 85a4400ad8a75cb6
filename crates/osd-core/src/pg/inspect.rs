//! What a member does in a scrub: it describes its copies of the next objects, piece by piece, and asks a peer for what it
//! finds rotten by itself, without being told. Whoever asked compares; see `scrub`.

use std::collections::VecDeque;

use cairn_types::io::BlockState;
use cairn_types::peer::{BlockSet, EntryOp, PgMessage};
use cairn_types::scrub::{BlockCopy, MAX_SCRUB_OBJECTS, Mend, ScrubAsk, ScrubFound};
use cairn_types::{BLOCK_SIZE, ConfVersion, ObjectId, OsdId};

use super::read::ClientRead;
use super::{Ctx, ListFor, Pg};

/// Bytes described at once: a bound for what is read without a pause.
const PIECE: u32 = 512 << 10;

/// Whom an inspection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InspectFor {
    /// A client who asks for states.
    Client { serial: u64, read: Box<ClientRead> },
    /// The scrub, in this inspection.
    Scrub { serial: u64 },
    /// The repair of this range: what ought to be there.
    Repair { c: ConfVersion, object: ObjectId, offset: u32 },
}

/// One question under way.
#[derive(Debug)]
pub(super) struct Inspection {
    serial: u64,
    from: OsdId,
    attempt: u64,
    ask: ScrubAsk,
    at: u64,
    todo: VecDeque<ObjectId>,
    /// What is known of the object at hand.
    blocks: Vec<BlockCopy>,
    done: Vec<(ObjectId, Vec<BlockCopy>)>,
    end: bool,
}

impl Pg {
    /// The primary asks. The same question again is no reason to begin anew.
    pub(super) fn handle_scrub_ask(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, ask: ScrubAsk) {
        if self.replica.follows(attempt) {
            self.inspect(ctx, from, attempt, ask);
        }
    }

    /// Begins to describe what is here.
    pub(super) fn inspect(&mut self, ctx: &mut Ctx<'_>, from: OsdId, attempt: u64, ask: ScrubAsk) {
        let same = |known: &Inspection| (known.from, known.attempt, known.ask) == (from, attempt, ask);
        let able = self.usable && self.config.isr.contains(&self.me);
        if !able || ask.limit == 0 || self.inspection.as_ref().is_some_and(same) {
            return;
        }
        self.inspections += 1;
        let serial = self.inspections;
        self.inspection = Some(Inspection {
            serial,
            from,
            attempt,
            ask,
            // What is described later contains at least this much.
            at: self.log.end().seq(),
            todo: VecDeque::new(),
            blocks: Vec::new(),
            done: Vec::new(),
            end: false,
        });
        let limit = (ask.limit as usize).min(MAX_SCRUB_OBJECTS);
        ctx.out.list(self.id, ask.after, limit, ListFor::Inspect { serial });
    }

    /// Gives up what was asked under another configuration.
    pub(super) fn forget_inspection(&mut self) {
        self.inspection = None;
    }

    /// The objects to describe.
    pub(super) fn inspect_listed(&mut self, ctx: &mut Ctx<'_>, serial: u64, objects: Vec<ObjectId>) {
        let Some(inspection) = self.inspection.as_mut().filter(|one| one.serial == serial) else { return };
        inspection.end = objects.len() < (inspection.ask.limit as usize).min(MAX_SCRUB_OBJECTS);
        inspection.todo = objects.into();
        self.inspect_on(ctx);
    }

    /// The next piece, or the answer.
    fn inspect_on(&mut self, ctx: &mut Ctx<'_>) {
        let Some(inspection) = &mut self.inspection else { return };
        let offset = inspection.blocks.len() as u32 * BLOCK_SIZE;
        if let Some(object) = inspection.todo.front().copied().filter(|_| offset < self.object_size) {
            let range = (offset, PIECE.min(self.object_size - offset));
            let what = InspectFor::Scrub { serial: inspection.serial };
            return ctx.out.inspect(self.id, object, range, inspection.ask.deep, what);
        }
        if let Some(object) = inspection.todo.pop_front() {
            let mut blocks = std::mem::take(&mut inspection.blocks);
            let len = blocks.iter().rposition(|block| *block != BlockCopy::Absent).map_or(0, |last| last + 1);
            blocks.truncate(len);
            inspection.done.push((object, blocks));
            return self.inspect_on(ctx);
        }
        let Some(Inspection { from, attempt, ask, at, done, end, .. }) = self.inspection.take() else { return };
        let found = ScrubFound { id: ask.id, at, objects: done, end };
        if from == self.me {
            self.take_found(ctx, from, found);
        } else {
            ctx.out.send(from, self.id, self.config.c, attempt, PgMessage::ScrubFound(found));
        }
    }

    /// One piece is described.
    pub(super) fn piece_inspected(&mut self, ctx: &mut Ctx<'_>, serial: u64, copies: &[BlockCopy]) {
        let Some(inspection) = self.inspection.as_mut().filter(|one| one.serial == serial) else { return };
        let Some(object) = inspection.todo.front().copied() else { return };
        let (first, deep, since) = (inspection.blocks.len() as u32 * BLOCK_SIZE, inspection.ask.deep, inspection.at);
        inspection.blocks.extend(copies);
        if copies.is_empty() {
            // Beyond what the store can hold: nothing is there.
            inspection.blocks.resize((self.object_size / BLOCK_SIZE) as usize, BlockCopy::Absent);
        }
        self.note_copies(object, first, copies, (deep, since));
        self.inspect_on(ctx);
    }

    /// Rotten copies are missing from now on, unless a write has come over them since; a copy that was missing because it
    /// could not be read, and reads well now, is missing no more.
    fn note_copies(&mut self, object: ObjectId, first: u32, copies: &[BlockCopy], (deep, since): (bool, u64)) {
        if !self.config.isr.contains(&self.me) {
            return;
        }
        let offset = |i: usize| first + i as u32 * BLOCK_SIZE;
        let bad = copies.iter().enumerate().filter(|(_, copy)| !copy.is_good()).map(|(i, _)| offset(i));
        let written = |at: &u32| self.log.after(since).any(|kept| kept.entry.op.touches(object, *at, BLOCK_SIZE));
        let bad = bad.filter(|at| !written(at)).collect::<Vec<_>>();
        if !bad.is_empty() {
            self.note_rotten(object, &bad);
        }
        let suspected = self.missing.lacking(object, first, copies.len() as u32 * BLOCK_SIZE);
        if !deep || suspected.is_empty() {
            return;
        }
        for (i, copy) in copies.iter().enumerate().filter(|(i, copy)| copy.is_good() && suspected.contains(offset(*i)))
        {
            let at = offset(i);
            let logged = self.logged_state(object, at);
            let certain = logged == copy.state() || (logged.is_none() && self.repair.is_suspect(object, at));
            // What an open entry brings may still be cut, and then what lies below it counts.
            if certain && self.open_entry(object, at).is_none() {
                self.missing.found_good(object, at, BLOCK_SIZE);
            }
        }
    }

    /// Blocks of this member of the in-sync set that cannot be read: fetched from others.
    pub(super) fn note_rotten(&mut self, object: ObjectId, offsets: &[u32]) {
        self.miss_unreadable(object, offsets);
        let mut set = BlockSet::default();
        offsets.iter().for_each(|at| set.insert(*at, BLOCK_SIZE));
        self.repair.wait_for(object, &set, None);
    }

    /// Blocks that cannot be read are missing from now on.
    pub(super) fn miss_unreadable(&mut self, object: ObjectId, offsets: &[u32]) {
        let fresh = offsets.iter().copied().filter(|at| !self.missing.lacks(object, *at, BLOCK_SIZE));
        let fresh = fresh.collect::<Vec<_>>();
        if !fresh.is_empty() {
            self.missing.add(object, &fresh);
            self.repair.suspects(object, &fresh);
        }
    }

    /// The primary found that this index is not what the log says. The own log decides.
    pub(super) fn handle_mend(&mut self, attempt: u64, mend: &Mend) {
        if self.replica.follows(attempt) {
            self.mend(mend);
        }
    }

    /// See [`Pg::handle_mend`].
    pub(super) fn mend(&mut self, mend: &Mend) {
        let inside = |at: u32| at.is_multiple_of(BLOCK_SIZE) && at < self.object_size;
        let agreed = |(at, state): &&(u32, BlockState)| {
            let (at, state) = (*at, *state);
            inside(at)
                && self.logged_state(mend.object, at) == Some(state)
                && self.open_entry(mend.object, at).is_none()
        };
        let offsets = mend.blocks.iter().filter(agreed).map(|(at, _)| *at).collect::<Vec<_>>();
        if self.config.isr.contains(&self.me) && !offsets.is_empty() {
            self.note_rotten(mend.object, &offsets);
            offsets.iter().for_each(|at| self.repair.dispute(mend.object, *at));
        }
    }

    /// What the newest committed entry that is still kept made of a block; `None` when none touches it.
    pub(super) fn logged_state(&self, object: ObjectId, at: u32) -> Option<BlockState> {
        self.state_through(object, at, self.log.commit())
    }

    /// The same of all entries up to a position.
    pub(super) fn state_through(&self, object: ObjectId, at: u32, through: u64) -> Option<BlockState> {
        let kept = self.log.through(through).rev().map(|kept| &kept.entry);
        let entry = kept.into_iter().find(|entry| entry.op.touches(object, at, BLOCK_SIZE))?;
        Some(match &entry.op {
            EntryOp::Write { offset, crcs, .. } => {
                BlockState::Data { crc: crcs[((at - offset) / BLOCK_SIZE) as usize] }
            }
            EntryOp::Zero { unmap: false, .. } => BlockState::Zero,
            EntryOp::Zero { unmap: true, .. } | EntryOp::Remove { .. } => BlockState::Absent,
        })
    }

    /// The position of an uncommitted entry that touches a block.
    pub(super) fn open_entry(&self, object: ObjectId, at: u32) -> Option<u64> {
        self.log.touched_by(object, at, BLOCK_SIZE)
    }
}
