//! The primary's order: requests become log entries, entries are sent to every member and stored here at once, and
//! whoever asked is answered when all in-sync members have persisted them, in order (Write 1-4, I2).

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use cairn_types::io::{ClientOp, ClientRequest, Refusal, ReplyBody};
use cairn_types::peer::{EntryOp, LogEntry, Logged};
use cairn_types::{BLOCK_SIZE, ConfVersion, Epoch, MAX_PAYLOAD, OsdId, RequestId, SnapId, Version};

use super::activate::Phase;
use super::dups::Seen;
use super::join::Join;
use super::log::Log;
use super::member::Member;
use super::propose::Proposal;
use super::purge::Purge;
use super::read::ReadyRead;
use super::split::Hush;
use super::store::crcs_match;
use super::{Ctx, Pg};
use crate::Time;
use crate::outbox::Outbox;
use crate::output::ConnId;
use crate::peers::Outstanding;
use crate::planted::{Bug, planted};

/// Replies kept for one session that never says what it received.
const MAX_KEPT_REPLIES: usize = 4096;

/// What only a primary has.
#[derive(Debug)]
pub(super) struct Primary {
    /// Unique among the activations of this life.
    pub(super) serial: u64,
    /// The `c` at which this primary's interval began.
    pub(super) interval: ConfVersion,
    pub(super) phase: Phase,
    /// Grants of ours to earlier primaries, and the epoch at which those ceased to be.
    pub(super) grants: Vec<Outstanding>,
    pub(super) since: Epoch,
    pub(super) members: BTreeMap<OsdId, Member>,
    pub(super) proposal: Option<Proposal>,
    /// No proposal before this instant: the last one was refused.
    pub(super) propose_after: Time,
    /// Uncommitted entries of fenced generations stand above this position: nothing above it is committed, and the
    /// log is cut there under the next configuration (I8).
    pub(super) cut_above: Option<u64>,
    /// This OSD was the active primary until this activation began: it knows the commit point for certain.
    pub(super) knows_commit: bool,
    pub(super) queue: VecDeque<(ConnId, ClientRequest)>,
    /// Who is answered when a position is committed.
    pub(super) waiting: BTreeMap<u64, Vec<(ConnId, RequestId)>>,
    /// Payload bytes per uncommitted position, and when its request came.
    bytes: BTreeMap<u64, (usize, Time)>,
    /// Reads at the store.
    pub(super) reading: usize,
    /// Reads that have their data.
    pub(super) ready: Vec<ReadyRead>,
    pub(super) purge: Purge,
    pub(super) join: Join,
    pub(super) hush: Hush,
}

impl Primary {
    pub(super) fn new(serial: u64, interval: ConfVersion, since: Epoch, grants: Vec<Outstanding>) -> Self {
        Self {
            serial,
            interval,
            phase: Phase::Collecting,
            grants,
            since,
            members: BTreeMap::new(),
            proposal: None,
            propose_after: Time(0),
            cut_above: None,
            knows_commit: false,
            queue: VecDeque::new(),
            waiting: BTreeMap::new(),
            bytes: BTreeMap::new(),
            reading: 0,
            ready: Vec::new(),
            purge: Purge::default(),
            join: Join::default(),
            hush: Hush::default(),
        }
    }

    /// Nothing is ordered now, because the PG is about to split, or may have.
    pub(super) fn is_hushed(&self) -> bool {
        let hushed = self.hush.is_on() || self.proposal.as_ref().is_some_and(Proposal::splits);
        hushed && !planted(Bug::SplitWhileOrdering)
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Active)
    }

    fn requests(&self) -> usize {
        self.queue.len() + self.waiting.values().map(Vec::len).sum::<usize>() + self.reading + self.ready.len()
    }

    /// Gives up everything; gives who waits for an answer.
    pub(super) fn disband(mut self: Box<Self>, out: &mut Outbox) -> Vec<(ConnId, RequestId)> {
        self.release_bytes(out, u64::MAX);
        let queued = self.queue.into_iter().map(|(conn, request)| (conn, request.id));
        let ready = self.ready.into_iter().map(|read| (read.conn, read.id));
        queued.chain(self.waiting.into_values().flatten()).chain(ready).collect()
    }

    /// Uncommitted bytes at or below a position count no longer.
    pub(super) fn release_bytes(&mut self, out: &mut Outbox, through: u64) {
        while let Some(entry) = self.bytes.first_entry().filter(|entry| *entry.key() <= through) {
            out.bytes_in_flight -= entry.remove().0;
        }
    }

    /// Uncommitted bytes above a position count no longer: those entries were cut off.
    pub(super) fn release_bytes_above(&mut self, out: &mut Outbox, after: u64) {
        out.bytes_in_flight -= self.bytes.split_off(&(after + 1)).values().map(|(bytes, _)| bytes).sum::<usize>();
    }

    /// A request that waits already is answered on its newest connection only.
    fn moves_waiter(&mut self, conn: ConnId, id: RequestId) -> bool {
        let queued = self.queue.iter_mut().find(|(_, request)| request.id == id).map(|(conn, _)| conn);
        let waiting = self.waiting.values_mut().flatten().find(|(_, other)| *other == id).map(|(conn, _)| conn);
        match queued.or(waiting) {
            Some(place) => {
                *place = conn;
                true
            }
            None => false,
        }
    }

    pub(super) fn invariants(&self, log: &Log) {
        if let Some(first) = self.waiting.keys().next() {
            assert!(*first > log.commit(), "whoever waits for a committed entry was answered");
        }
        for member in self.members.values().filter(|member| member.is_streaming()) {
            assert!(member.acked <= log.end().seq(), "nobody acknowledges what was not ordered");
        }
    }
}

impl Pg {
    /// Executes a request, or lets it wait, or refuses it.
    pub(super) fn take_request(&mut self, ctx: &mut Ctx<'_>, conn: ConnId, request: ClientRequest) {
        let id = request.id;
        if let Err(refusal) = self.try_request(ctx, conn, request) {
            ctx.out.reply(conn, id, Err(refusal));
        }
    }

    fn try_request(&mut self, ctx: &mut Ctx<'_>, conn: ConnId, request: ClientRequest) -> Result<(), Refusal> {
        if !self.is_well_formed(&request) {
            return Err(Refusal::Malformed);
        }
        let (held, ours) = (self.is_held(), self.is_ours(request.op.object()));
        let Some(primary) = &mut self.primary else { return Err(Refusal::NotPrimary { epoch: ctx.map.epoch }) };
        // Of an object that is in the other half now, its sender does not know yet either.
        if request.c < self.config.interval || !ours {
            return Err(Refusal::StaleMap { epoch: ctx.map.epoch });
        }
        super::fence::admit(ctx.map, &request)?;
        if request.op.is_write() && primary.moves_waiter(conn, request.id) {
            return Ok(());
        }
        if primary.requests() + self.repair.waiting() >= ctx.own.requests_per_pg {
            return Err(Refusal::Busy);
        }
        if !primary.is_active() || primary.cut_above.is_some() || held {
            primary.queue.push_back((conn, request));
            return Ok(());
        }
        if !request.op.is_write() {
            self.start_read(ctx, conn, &request);
            return Ok(());
        }
        if primary.is_hushed() || primary.join.holds(request.op.object()) {
            primary.queue.push_back((conn, request));
            return Ok(());
        }
        match self.dups.seen(request.id) {
            Seen::Forgotten | Seen::Executed(_) if planted(Bug::ExecuteTwice) => self.execute(ctx, conn, request),
            Seen::Forgotten => Err(Refusal::AlreadyAcked),
            Seen::Executed(at) if at <= self.log.commit() => {
                ctx.out.reply(conn, request.id, Ok(ReplyBody::Done));
                Ok(())
            }
            Seen::Executed(at) => {
                primary.waiting.entry(at).or_default().push((conn, request.id));
                Ok(())
            }
            Seen::New => self.execute(ctx, conn, request),
        }
    }

    /// Orders a write.
    fn execute(&mut self, ctx: &mut Ctx<'_>, conn: ConnId, request: ClientRequest) -> Result<(), Refusal> {
        let join = &self.primary.as_ref().expect("only a primary executes").join;
        let layer = request.op.object().at(join.layer_of(ctx.map, request.op.object(), request.snap_context));
        let (op, data) = match request.op {
            ClientOp::Write { offset, data, crcs, .. } => {
                if self.is_full(ctx) {
                    return Err(Refusal::NoSpace);
                }
                if !crcs_match(&data, &crcs) {
                    return Err(Refusal::Malformed);
                }
                (EntryOp::Write { object: layer, offset, crcs }, data)
            }
            ClientOp::Zero { offset, len, unmap, .. } => {
                // A lower layer must not be seen through what was discarded above it.
                let unmap = unmap && (layer.snapshot == SnapId(0) || planted(Bug::DiscardUncovers));
                // Zeros are content, and stay in the index for good.
                if !unmap && self.is_full(ctx) {
                    return Err(Refusal::NoSpace);
                }
                (EntryOp::Zero { object: layer, offset, len, unmap }, Bytes::new())
            }
            ClientOp::Read { .. } | ClientOp::Status { .. } => unreachable!("reads are not ordered"),
        };
        let over = ctx.out.bytes_in_flight + data.len() > ctx.own.bytes_in_flight && ctx.out.bytes_in_flight > 0;
        if over || self.dups.kept(request.id.session) >= MAX_KEPT_REPLIES {
            return Err(Refusal::Busy);
        }
        let entry = LogEntry {
            request: request.id,
            acked_through: request.acked_through,
            generation: request.generation,
            snap_context: request.snap_context,
            ..self.next_entry(ctx, op)
        };
        let (seq, bytes) = (entry.version.seq, data.len());
        self.append(ctx, vec![Logged { entry, data }]);
        let primary = self.primary.as_mut().expect("only a primary executes");
        primary.join.note_written(layer);
        primary.waiting.entry(seq).or_default().push((conn, request.id));
        primary.bytes.insert(seq, (bytes, ctx.now));
        ctx.out.bytes_in_flight += bytes;
        Ok(())
    }

    /// The next position, for what the primary does of its own accord.
    pub(super) fn next_entry(&self, ctx: &Ctx<'_>, op: EntryOp) -> LogEntry {
        let end = self.log.end();
        LogEntry {
            version: Version { c: self.config.c, seq: end.seq() + 1 },
            prev: end.hash,
            epoch: ctx.map.epoch,
            request: RequestId::default(),
            acked_through: 0,
            generation: cairn_types::Generation(0),
            snap_context: SnapId(0),
            op,
        }
    }

    /// Aligned, within the object, of this PG, and no longer than a frame.
    fn is_well_formed(&self, request: &ClientRequest) -> bool {
        let (offset, len) = request.op.range();
        let object = request.op.object();
        len > 0
            && len <= MAX_PAYLOAD
            && offset.is_multiple_of(BLOCK_SIZE)
            && len.is_multiple_of(BLOCK_SIZE)
            && offset.checked_add(len).is_some_and(|end| end <= self.object_size)
            && object.pool == self.id.pool
            && (object.snapshot == SnapId::HEAD || !request.op.is_write())
            && !matches!(request.op, ClientOp::Status { since, .. } if since >= object.snapshot)
            && object.volume == request.volume
            && request.id.seq > request.acked_through
            && request.pg == self.id
    }

    /// Some member has no room for content. Removals and discards always go through.
    pub(super) fn is_full(&self, ctx: &Ctx<'_>) -> bool {
        ctx.full || self.config.isr.iter().any(|osd| ctx.peers.is_full(*osd))
    }

    /// Everything a primary can do now, in the order in which one thing makes the next possible.
    pub(super) fn advance_primary(&mut self, ctx: &mut Ctx<'_>) {
        self.query_members(ctx);
        self.advance_activation(ctx);
        self.advance_commit(ctx);
        self.finish_activation(ctx);
        self.finish_reads(ctx);
        self.drain_queue(ctx);
        self.advance_purge(ctx);
        self.advance_join(ctx);
        self.stream(ctx);
        self.advance_recovery(ctx);
        self.advance_split(ctx);
        self.advance_proposal(ctx);
    }

    /// Commits the longest prefix that every member of every configuration that may be in force has persisted (I2). Where
    /// fewer are in sync than the pool demands that is what was inherited: nothing is ordered there.
    fn advance_commit(&mut self, ctx: &mut Ctx<'_>) {
        let Some(through) = self.committable(ctx) else { return };
        if through <= self.log.commit() {
            return;
        }
        self.commit_through(through);
        // On too few disks nothing is acknowledged. Whoever asks again is told when there are enough.
        let few = self.is_held() && !planted(Bug::AckOnTooFew);
        let primary = self.primary.as_mut().expect("only a primary commits");
        if let Some((_, (_, began))) = primary.bytes.first_key_value().filter(|(seq, _)| **seq <= through) {
            ctx.out.pace.client(ctx.now, *began);
        }
        primary.release_bytes(ctx.out, through);
        let later = primary.waiting.split_off(&(through + 1));
        let answered = std::mem::replace(&mut primary.waiting, later);
        for (conn, id) in answered.into_values().flatten() {
            ctx.out.reply(conn, id, if few { Err(Refusal::Busy) } else { Ok(ReplyBody::Done) });
        }
    }

    /// `None`: nothing may be committed now.
    fn committable(&self, ctx: &Ctx<'_>) -> Option<u64> {
        let primary = self.primary.as_ref()?;
        if !primary.phase.is_aligned() || self.durable_c < self.config.c || !self.usable {
            return None;
        }
        let mut through = self.log.persisted();
        if planted(Bug::AckBeforeReplicas) {
            return Some(through);
        }
        for isr in self.in_force() {
            for osd in isr.iter().filter(|osd| **osd != self.me) {
                if planted(Bug::IgnoreMinSize) && isr.len() == self.min_size && ctx.peers.is_down(ctx.now, *osd) {
                    continue;
                }
                if planted(Bug::DropWithoutCas) && primary.members.get(osd).is_some_and(Member::is_behind) {
                    continue;
                }
                let member = primary.members.get(osd).filter(|member| member.is_streaming())?;
                through = through.min(member.acked);
            }
        }
        Some(primary.cut_above.map_or(through, |limit| through.min(limit)))
    }

    /// What waited for the activation.
    pub(super) fn drain_queue(&mut self, ctx: &mut Ctx<'_>) {
        let may = |p: &Primary| p.is_active() && p.cut_above.is_none() && !p.is_hushed();
        if self.is_held() || !self.primary.as_deref().is_some_and(may) {
            return;
        }
        let queue = self.primary.as_mut().map(|primary| std::mem::take(&mut primary.queue)).unwrap_or_default();
        for (conn, request) in queue {
            self.take_request(ctx, conn, request);
        }
    }

    /// Client requests waiting or in flight.
    pub(super) fn requests(&self) -> u32 {
        self.primary.as_ref().map_or(0, |primary| primary.requests() as u32)
    }
}
