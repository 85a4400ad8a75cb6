//! Blocks that this in-sync member's own copy lacks, because they rotted: fetched from another member, whose content
//! must match its checksums and be what the log, or else this member's own index, says is there. Nothing is answered
//! from a missing block, least of all zeros (I9); a block that every in-sync member refuses has no good copy.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cairn_types::io::{BlockState, ReadData, Refusal};
use cairn_types::peer::{BlockSet, PgMessage, Run, RunContent};
use cairn_types::scrub::BlockCopy;
use cairn_types::{BLOCK_SIZE, ConfVersion, ObjectId, OsdId};

use super::inspect::InspectFor;
use super::read::{ClientRead, as_runs};
use super::{Ctx, Durable, Pg, ReadFor, missing};
use crate::Time;
use crate::output::ReadFailure;

/// Fetches under way per PG.
const WINDOW: usize = 4;
/// The longest range fetched at once.
const PIECE: u32 = 256 << 10;
/// Asked again, or another member asked, after this long.
const PATIENCE_MS: u64 = 1000;
/// A block that no member could give is tried again after this long.
const RETRY_MS: u64 = 5000;
/// A block that an open entry covers is looked at again after this long.
const OPEN_MS: u64 = 100;
/// Objects with missing blocks whose repair begins by itself, at once.
const SELF_STARTED: usize = 64;
/// Answers that wait for the commit point; more are not given, and asked for again.
const MAX_SERVING: usize = 64;

/// What ought to be in each block of a job; `None` where neither log nor index knows.
type Expected = Vec<Option<BlockState>>;

#[derive(Debug, Default)]
struct Job {
    len: u32,
    expected: Option<Expected>,
    /// The index is being asked for that.
    looking: bool,
    /// Asked in this round.
    tried: BTreeSet<OsdId>,
    /// Said that they do not have it.
    refused: BTreeSet<OsdId>,
    asked: Option<(OsdId, u64)>,
    wake: Time,
    /// Every in-sync member refused.
    hopeless: bool,
}

/// An answer to another member that counts once everything in it is committed.
#[derive(Debug)]
struct Serving {
    to: OsdId,
    attempt: u64,
    id: u64,
    after: u64,
    runs: Vec<Run>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Repair {
    jobs: BTreeMap<(ObjectId, u32), Job>,
    waiting: VecDeque<ClientRead>,
    serving: VecDeque<Serving>,
    /// Blocks that are missing only because their bytes could not be read, in this life: if they can be read again, they
    /// are what they were. Of no other missing block do good bytes say anything: they may be of an older write.
    suspects: BTreeSet<(ObjectId, u32)>,
    next_id: u64,
    /// What is expected was looked up under this configuration.
    c: ConfVersion,
}

impl Repair {
    /// Missing blocks are wanted, perhaps by a client.
    pub(super) fn wait_for(&mut self, object: ObjectId, lacking: &BlockSet, read: Option<ClientRead>) {
        self.waiting.extend(read);
        for (offset, len) in lacking.ranges() {
            let mut at = offset;
            while at < offset + len {
                let piece = PIECE.min(offset + len - at);
                if !self.is_under_way(object, at, piece) {
                    self.jobs.insert((object, at), Job { len: piece, ..Job::default() });
                }
                at += piece;
            }
        }
    }

    /// Some job covers the whole range.
    fn is_under_way(&self, object: ObjectId, offset: u32, len: u32) -> bool {
        let before = self.jobs.range((object, 0)..=(object, offset)).next_back();
        before.is_some_and(|((_, at), job)| offset + len <= at + job.len)
    }

    /// Not the primary any more, or under another configuration: who waits for an answer. Answers under way are void.
    pub(super) fn forget(&mut self) -> VecDeque<ClientRead> {
        self.jobs.clear();
        self.serving.clear();
        std::mem::take(&mut self.waiting)
    }

    /// These are missing from now on because they cannot be read.
    pub(super) fn suspects(&mut self, object: ObjectId, offsets: &[u32]) {
        self.suspects.extend(offsets.iter().map(|at| (object, *at)));
    }

    /// The log says that this block is something else than the index does: its own bytes are not wanted back.
    pub(super) fn dispute(&mut self, object: ObjectId, at: u32) {
        self.suspects.remove(&(object, at));
    }

    /// Missing only because it could not be read.
    pub(super) fn is_suspect(&self, object: ObjectId, at: u32) -> bool {
        self.suspects.contains(&(object, at))
    }

    /// Client reads that wait for missing blocks.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

impl Pg {
    /// Asks for what is wanted; lets go on what has come.
    pub(super) fn advance_repair(&mut self, ctx: &mut Ctx<'_>) {
        self.serve_committed(ctx);
        let idle = self.missing.is_empty() && self.repair.jobs.is_empty() && self.repair.waiting.is_empty();
        if idle || !self.may_repair() {
            return;
        }
        if self.repair.c != self.config.c {
            // Entries may have been cut since: what is expected is looked up anew.
            self.repair.c = self.config.c;
            self.repair.jobs.values_mut().for_each(|job| *job = Job { len: job.len, ..Job::default() });
        }
        if self.repair.jobs.is_empty() {
            for (object, lacking) in self.missing.some(SELF_STARTED) {
                self.repair.wait_for(object, &lacking, None);
            }
        }
        let missing = &self.missing;
        self.repair.jobs.retain(|(object, offset), job| missing.lacks(*object, *offset, job.len));
        self.repair.suspects.retain(|(object, at)| missing.lacks(*object, *at, BLOCK_SIZE));
        self.ask_peers(ctx);
        self.answer_waiting(ctx);
    }

    /// Only an in-sync member knows that what it misses is rot, and knows what was there.
    fn may_repair(&self) -> bool {
        let aligned = match &self.primary {
            Some(primary) => primary.is_active(),
            None => self.replica.is_aligned(),
        };
        aligned && self.usable && self.config.isr.contains(&self.me) && !self.missing.is_filling()
    }

    fn ask_peers(&mut self, ctx: &mut Ctx<'_>) {
        let in_sync = self.config.isr.iter().copied().filter(|osd| *osd != self.me).collect::<Vec<_>>();
        // Members that are being brought back may have it too; what they give is held against what is expected.
        let others = self.config.acting.iter().chain(&self.config.backfill).copied();
        let others = others.filter(|osd| *osd != self.me && !in_sync.contains(osd)).collect::<Vec<_>>();
        // While members are missing, one of them may have what nobody else has.
        let held = self.is_held();
        let is_busy = |job: &&Job| job.looking || (job.asked.is_some() && job.wake > ctx.now);
        let mut under_way = self.repair.jobs.values().filter(is_busy).count();
        for ((object, offset), job) in &mut self.repair.jobs {
            if job.looking || job.wake > ctx.now || under_way >= WINDOW {
                continue;
            }
            let Some(expected) = &job.expected else {
                job.looking = true;
                under_way += 1;
                let what = InspectFor::Repair { c: self.config.c, object: *object, offset: *offset };
                ctx.out.inspect(self.id, *object, (*offset, job.len), false, what);
                continue;
            };
            job.asked = None;
            let certain = expected.iter().all(Option::is_some);
            let candidates = in_sync.iter().chain(others.iter().filter(|_| certain));
            let mut untried = candidates.filter(|osd| !job.tried.contains(osd));
            if let Some(peer) = untried.find(|osd| !ctx.peers.is_down(ctx.now, **osd)) {
                self.repair.next_id += 1;
                job.tried.insert(*peer);
                job.asked = Some((*peer, self.repair.next_id));
                job.wake = ctx.now.plus_ms(PATIENCE_MS);
                under_way += 1;
                let body = PgMessage::Pull { id: self.repair.next_id, object: *object, offset: *offset, len: job.len };
                ctx.out.send(*peer, self.id, self.config.c, 0, body);
            } else if !held && in_sync.iter().all(|osd| job.refused.contains(osd)) {
                let (len, wake) = (job.len, ctx.now.plus_ms(RETRY_MS));
                *job = Job { len, wake, hopeless: true, ..Job::default() };
            } else {
                // Somebody who may have it does not answer: until it does, or leaves the in-sync set.
                job.tried.clone_from(&job.refused);
                job.wake = ctx.now.plus_ms(PATIENCE_MS);
            }
        }
    }

    /// What the index says of a range that is to be repaired; the log knows better where it reaches back so far.
    pub(super) fn repair_inspected(&mut self, c: ConfVersion, (object, offset): (ObjectId, u32), copies: &[BlockCopy]) {
        if c != self.config.c {
            return;
        }
        let state = |(i, copy): (usize, &BlockCopy)| {
            self.logged_state(object, offset + i as u32 * BLOCK_SIZE).or_else(|| copy.state())
        };
        let expected = copies.iter().enumerate().map(state).collect::<Expected>();
        // A job of another length in the same place has asked for itself.
        let fits = |job: &&mut Job| job.looking && expected.len() == (job.len / BLOCK_SIZE) as usize;
        if let Some(job) = self.repair.jobs.get_mut(&(object, offset)).filter(fits) {
            job.looking = false;
            job.expected = Some(expected);
        }
    }

    fn answer_waiting(&mut self, ctx: &mut Ctx<'_>) {
        for read in std::mem::take(&mut self.repair.waiting) {
            let (object, offset, len) = (read.request.object, read.request.offset, read.request.len);
            let lacking = self.missing.lacking(object, offset, len);
            let of_object = self.repair.jobs.range((object, 0)..=(object, u32::MAX));
            let mut hopeless = of_object.filter(|(_, job)| job.hopeless).map(|((_, at), job)| (*at, job.len));
            if lacking.is_empty() {
                self.read_again(ctx, read);
            } else if hopeless
                .any(|(at, len)| (at..at + len).step_by(BLOCK_SIZE as usize).any(|at| lacking.contains(at)))
            {
                ctx.out.reply(read.conn, read.request.id, Err(Refusal::Corrupt));
            } else {
                self.repair.waiting.push_back(read);
            }
        }
    }

    /// Another member of the configuration asks for content.
    pub(super) fn handle_pull(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: OsdId,
        attempt: u64,
        id: u64,
        object: ObjectId,
        (offset, len): (u32, u32),
    ) {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.object_size && len > 0);
        if !inside || !self.usable || self.missing.lacks(object, offset, len) {
            let body = PgMessage::PullReply { id, runs: None };
            ctx.out.send(from, self.id, self.config.c, attempt, body);
            return;
        }
        let what = ReadFor::Pull { to: from, attempt, id, object, offset, len };
        ctx.out.read(ctx.now, self.id, object, (offset, len), what);
    }

    /// The store's answer to that.
    pub(super) fn pull_read_done(
        &mut self,
        ctx: &mut Ctx<'_>,
        (to, attempt, id): (OsdId, u64, u64),
        (object, offset, len): (ObjectId, u32, u32),
        result: Result<ReadData, ReadFailure>,
    ) {
        match result {
            Ok(data) => {
                // Entries that are not committed may still be cut: nobody may take their bytes for content.
                let after = self.log.touched_by(object, offset, len).unwrap_or(0);
                let runs = as_runs(&data, offset);
                if self.repair.serving.len() < MAX_SERVING {
                    self.repair.serving.push_back(Serving { to, attempt, id, after, runs });
                }
            }
            Err(ReadFailure::Corrupt { offsets }) => {
                if self.config.isr.contains(&self.me) {
                    self.note_rotten(object, &offsets);
                }
                ctx.out.send(to, self.id, self.config.c, attempt, PgMessage::PullReply { id, runs: None });
            }
        }
    }

    fn serve_committed(&mut self, ctx: &mut Ctx<'_>) {
        let (id, c, commit) = (self.id, self.config.c, self.log.commit());
        for serving in std::mem::take(&mut self.repair.serving) {
            if serving.after <= commit {
                let body = PgMessage::PullReply { id: serving.id, runs: Some(serving.runs) };
                ctx.out.send(serving.to, id, c, serving.attempt, body);
            } else {
                self.repair.serving.push_back(serving);
            }
        }
    }

    /// Content for missing blocks: it lands where they are still missing, no open entry covers them, and it is what is
    /// expected there.
    pub(super) fn handle_pull_reply(&mut self, ctx: &mut Ctx<'_>, from: OsdId, id: u64, runs: Option<Vec<Run>>) {
        let asked = self.repair.jobs.iter().find(|(_, job)| job.asked == Some((from, id)));
        let Some((key, _)) = asked else { return };
        let ((object, offset), key) = (*key, *key);
        let Some(mut job) = self.repair.jobs.remove(&key) else { return };
        job.asked = None;
        job.wake = Time(0);
        job.refused.insert(from);
        let runs = runs.filter(|runs| runs.iter().all(|run| self.is_sound_run(run))).unwrap_or_default();
        let expected = job.expected.clone().unwrap_or_default();
        let wrong = self.unexpected(object, offset, &expected, &runs);
        let unfit = |at| self.open_entry(object, at).is_some() || wrong.contains(&at);
        let landing = self.missing.landing(object, &runs, unfit);
        if !landing.is_empty() {
            self.missing.landed(object, &landing);
            let mut transaction = self.transaction();
            transaction.content.push((object, landing));
            self.store(ctx, transaction, Durable::default());
        }
        self.requeue(ctx.now, (object, offset), job, from);
    }

    /// Blocks of an answer that are not what they must be.
    fn unexpected(&self, object: ObjectId, offset: u32, expected: &Expected, runs: &[Run]) -> BTreeSet<u32> {
        let blocks = runs
            .iter()
            .flat_map(|run| (run.offset..run.offset + run.len).step_by(BLOCK_SIZE as usize).map(move |at| (run, at)));
        let wrong = blocks.filter(|(run, at)| {
            let index = at.checked_sub(offset).map(|distance| (distance / BLOCK_SIZE) as usize);
            let index = index.filter(|index| *index < expected.len());
            let logged = self.logged_state(object, *at);
            let must_be = index.map(|index| logged.or(expected[index]));
            // Outside of what was asked for nothing is taken.
            must_be.is_none_or(|must_be| must_be.is_some_and(|state| state != state_of(run, *at)))
        });
        wrong.map(|(_, at)| at).collect()
    }

    /// What is still missing of a range is tried again: of others, and block by block, so that one bad block of a peer
    /// does not hide its good ones.
    fn requeue(&mut self, now: Time, (object, offset): (ObjectId, u32), mut job: Job, from: OsdId) {
        let lacking = self.missing.lacking(object, offset, job.len);
        if lacking.is_empty() {
            return;
        }
        if job.len == BLOCK_SIZE {
            if self.open_entry(object, offset).is_some() {
                // Its commit brings the block; if it is cut, the block is asked for again.
                job.refused.remove(&from);
                job.tried.remove(&from);
                job.wake = now.plus_ms(OPEN_MS);
            }
            self.repair.jobs.insert((object, offset), job);
            return;
        }
        for at in (offset..offset + job.len).step_by(BLOCK_SIZE as usize).filter(|at| lacking.contains(*at)) {
            let index = ((at - offset) / BLOCK_SIZE) as usize;
            let expected = job.expected.as_ref().and_then(|all| all.get(index)).map(|one| vec![*one]);
            self.repair.jobs.insert((object, at), Job { len: BLOCK_SIZE, expected, ..Job::default() });
        }
    }
}

/// What one block of a run is.
fn state_of(run: &Run, at: u32) -> BlockState {
    match missing::cut(run, at, BLOCK_SIZE).content {
        RunContent::Absent => BlockState::Absent,
        RunContent::Zero => BlockState::Zero,
        RunContent::Data { crcs, .. } => BlockState::Data { crc: crcs[0] },
    }
}
