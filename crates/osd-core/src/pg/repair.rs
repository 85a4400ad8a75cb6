//! Blocks that this primary's own copy lacks, rotten or never received: fetched from another in-sync member, whose
//! content must match its checksums; nothing is answered from a missing block, least of all zeros (I9).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cairn_types::io::{ReadData, Refusal};
use cairn_types::peer::{PgMessage, Run, RunContent};
use cairn_types::{ObjectId, OsdId};

use super::read::{ClientRead, as_runs};
use super::store::crcs_match;
use super::{Ctx, Durable, Pg, ReadFor};
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

#[derive(Debug)]
struct Job {
    len: u32,
    /// Asked in this round.
    tried: BTreeSet<OsdId>,
    /// They said that they have nothing sound.
    refused: BTreeSet<OsdId>,
    asked: Option<(OsdId, u64)>,
    wake: Time,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Repair {
    jobs: BTreeMap<(ObjectId, u32), Job>,
    waiting: VecDeque<ClientRead>,
    next_id: u64,
}

impl Repair {
    /// A range with missing blocks is wanted, perhaps by a client.
    pub(super) fn wait_for(&mut self, object: ObjectId, offset: u32, len: u32, read: Option<ClientRead>) {
        self.waiting.extend(read);
        let mut at = offset;
        while at < offset + len {
            let piece = PIECE.min(offset + len - at);
            let (tried, refused) = (BTreeSet::new(), BTreeSet::new());
            let job = Job { len: piece, tried, refused, asked: None, wake: Time(0) };
            self.jobs.entry((object, at)).or_insert(job);
            at += piece;
        }
    }

    /// Not the primary any more.
    pub(super) fn forget(&mut self) -> VecDeque<ClientRead> {
        std::mem::take(self).waiting
    }
}

impl Pg {
    /// Asks for what is wanted; lets go on what has come.
    pub(super) fn advance_repair(&mut self, ctx: &mut Ctx<'_>) {
        let active = self.primary.as_ref().is_some_and(|primary| primary.is_active());
        if !active || self.repair.jobs.is_empty() && self.repair.waiting.is_empty() {
            return;
        }
        let missing = &self.missing;
        self.repair.jobs.retain(|(object, offset), job| missing.lacks(*object, *offset, job.len));
        let others = self.config.isr.iter().copied().filter(|osd| *osd != self.me).collect::<Vec<_>>();
        let peers = others.iter().copied().filter(|osd| !ctx.peers.is_down(ctx.now, *osd)).collect::<Vec<_>>();
        let mut hopeless = BTreeSet::new();
        let mut under_way = self.repair.jobs.values().filter(|job| job.asked.is_some() && job.wake > ctx.now).count();
        for ((object, offset), job) in &mut self.repair.jobs {
            if job.wake > ctx.now || under_way >= WINDOW {
                continue;
            }
            let Some(peer) = peers.iter().find(|osd| !job.tried.contains(osd)) else {
                job.tried.clear();
                job.asked = None;
                job.wake = ctx.now.plus_ms(PATIENCE_MS);
                // An in-sync member that is only out of reach may have it: whoever reads waits for it.
                if others.iter().all(|osd| job.refused.contains(osd)) {
                    job.refused.clear();
                    job.wake = ctx.now.plus_ms(RETRY_MS);
                    hopeless.insert(*object);
                }
                continue;
            };
            self.repair.next_id += 1;
            job.tried.insert(*peer);
            job.asked = Some((*peer, self.repair.next_id));
            job.wake = ctx.now.plus_ms(PATIENCE_MS);
            under_way += 1;
            let body = PgMessage::Pull { id: self.repair.next_id, object: *object, offset: *offset, len: job.len };
            ctx.out.send(*peer, self.id, self.config.c, 0, body);
        }
        for read in std::mem::take(&mut self.repair.waiting) {
            let object = read.request.object;
            if !self.missing.lacks(object, read.request.offset, read.request.len) {
                self.read_again(ctx, read);
            } else if hopeless.contains(&object) {
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
        let what = ReadFor::Pull { to: from, attempt, id, offset };
        ctx.out.read(ctx.now, self.id, object, (offset, len), what);
    }

    /// The store's answer to that.
    pub(super) fn pull_read_done(
        &mut self,
        ctx: &mut Ctx<'_>,
        to: OsdId,
        attempt: u64,
        id: u64,
        offset: u32,
        result: Result<ReadData, ReadFailure>,
    ) {
        let runs = result.ok().map(|data| as_runs(&data, offset));
        ctx.out.send(to, self.id, self.config.c, attempt, PgMessage::PullReply { id, runs });
    }

    /// Content for missing blocks: it lands where they are still missing and no open entry covers them.
    pub(super) fn handle_pull_reply(&mut self, ctx: &mut Ctx<'_>, from: OsdId, id: u64, runs: Option<Vec<Run>>) {
        let jobs = &mut self.repair.jobs;
        let Some(((object, _), job)) = jobs.iter_mut().find(|(_, job)| job.asked == Some((from, id))) else { return };
        let object = *object;
        job.asked = None;
        job.wake = Time(0);
        let Some(runs) = runs else {
            job.refused.insert(from);
            return;
        };
        let sound = runs.iter().all(|run| match &run.content {
            RunContent::Data { data, crcs } => data.len() == run.len as usize && crcs_match(data, crcs),
            RunContent::Absent | RunContent::Zero => true,
        });
        if !sound {
            job.refused.insert(from);
            return;
        }
        let covered = |at| self.log.touched_by(object, at, cairn_types::BLOCK_SIZE).is_some();
        let landing = self.missing.landing(object, &runs, covered);
        if !landing.is_empty() {
            self.missing.landed(object, &landing);
            let mut transaction = self.transaction();
            transaction.content.push((object, landing));
            self.store(ctx, transaction, Durable::default());
        }
    }
}
