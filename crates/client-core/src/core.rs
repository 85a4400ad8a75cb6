//! The state machine: operations, their requests, the map and the links, and what follows from each event.

mod routing;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::{BLOCK_SIZE, Generation, Incarnation, ObjectId, OsdId, SnapId, TraceId};

use crate::op::{ABSENT, BadAnswer, Config, DATA, IoError, Op, OpId, ZERO};
use crate::order::{Access, Order};
use crate::planted::{Bug, planted};
use crate::request::{Requests, State, Unusable, verify};
use crate::running::{Running, Step};

/// An answer whose data does not match is asked for again this often before the operation fails.
const MAX_MISMATCHES: u32 = 3;

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Hang up if there is a connection, and dial; then go on dialling until told otherwise.
    Connect {
        /// Whom.
        osd: OsdId,
        /// `unix:/path` or `tcp:host:port`, in order of preference.
        addresses: Vec<String>,
    },
    /// The OSD is gone for good: hang up.
    Disconnect {
        /// Whom.
        osd: OsdId,
    },
    /// Send this on the connection to `to`; if there is none, forget it.
    Send {
        /// Whom to.
        to: OsdId,
        /// What.
        request: ClientRequest,
    },
    /// Everything that was acknowledged so far is in this snapshot, and nothing that comes will be: tell the metadata
    /// service.
    Drained {
        /// The snapshot.
        snapshot: SnapId,
    },
    /// An operation has ended: with its bytes if it was a read, otherwise with none.
    Done {
        /// Which.
        op: OpId,
        /// How.
        result: Result<Bytes, IoError>,
    },
}

/// What the core knows of its connection to one OSD.
#[derive(Debug)]
struct LinkState {
    addresses: Vec<String>,
    incarnation: Incarnation,
    up: bool,
    /// When something came from it last.
    heard_at: Option<Duration>,
}

/// A snapshot is being taken: writes are held back until those before them are done.
#[derive(Clone, Copy, Debug)]
struct Barrier {
    snapshot: SnapId,
    until: Duration,
}

/// A state for whoever asked.
fn state_byte(state: &BlockState) -> u8 {
    match state {
        BlockState::Absent => ABSENT,
        BlockState::Zero => ZERO,
        BlockState::Data { .. } => DATA,
    }
}

/// One volume, one session.
#[derive(Debug)]
pub struct Core {
    config: Config,
    /// What writes carry: the newest snapshot that they are not in.
    context: SnapId,
    barrier: Option<Barrier>,
    /// A snapshot that came too late to be taken.
    given_up: SnapId,
    size: u64,
    map: Option<Arc<ClusterMap>>,
    links: BTreeMap<OsdId, LinkState>,
    ops: BTreeMap<OpId, Running>,
    order: Order,
    last_op: u64,
    held_bytes: u64,
    /// Pieces whose turn has not come: as many requests are in flight as may be.
    queued: VecDeque<(OpId, usize, ClientOp)>,
    requests: Requests,
    outputs: VecDeque<Output>,
    fatal: Option<IoError>,
    seed: u64,
}

impl Core {
    /// A core without a map: operations are taken and wait for one.
    ///
    /// # Panics
    /// When size or object size are not what [`Config`] says they are.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        assert!(config.object_size.is_power_of_two() && config.object_size >= BLOCK_SIZE);
        assert!(config.size.is_multiple_of(u64::from(BLOCK_SIZE)));
        Self {
            size: config.size,
            context: config.snap_context,
            barrier: None,
            given_up: SnapId(0),
            config,
            map: None,
            links: BTreeMap::new(),
            ops: BTreeMap::new(),
            order: Order::default(),
            last_op: 0,
            held_bytes: 0,
            queued: VecDeque::new(),
            requests: Requests::default(),
            outputs: VecDeque::new(),
            fatal: None,
            seed,
        }
    }

    // ------------------------------------------------------------------------------------------------- getters

    /// Whether another operation may come now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.ops.len() < self.config.max_ops && self.held_bytes < self.config.max_bytes
    }

    /// Whether every operation has ended.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    /// Bytes of the volume.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Why every operation fails from now on, if so.
    #[must_use]
    pub fn fatal(&self) -> Option<IoError> {
        self.fatal
    }

    // -------------------------------------------------------------------------------------------------- events

    /// An operation comes. It ends with an [`Output::Done`].
    ///
    /// # Panics
    /// When there is no room: ask [`Core::has_room`] first.
    pub fn handle_op(&mut self, now: Duration, op: Op, trace: TraceId) -> OpId {
        assert!(self.has_room(), "more operations than may be taken");
        self.last_op += 1;
        let id = OpId(self.last_op);
        let early = self.fatal.map_or_else(|| op.check(&self.config, self.size), Err);
        if early.is_err() || (op.range().1 == 0 && op != Op::Flush) {
            self.outputs.push_back(Output::Done { op: id, result: early.map(|()| Bytes::new()) });
            return id;
        }
        let access = match &op {
            Op::Read { .. } | Op::Status { .. } => Access::Read(op.blocks()),
            Op::Write { .. } | Op::Zero { .. } | Op::CopyUp { .. } => Access::Write(op.blocks()),
            Op::Flush => Access::Barrier,
        };
        self.held_bytes += op.held_bytes();
        self.ops.insert(id, Running::new(op, trace));
        if self.order.enter(id, access) {
            self.begin(id);
        }
        self.issue(now);
        id
    }

    /// A map comes; one older than the one that is known is ignored (I7).
    pub fn handle_map(&mut self, now: Duration, map: Arc<ClusterMap>) {
        if self.fatal.is_some() || self.map.as_ref().is_some_and(|known| map.epoch <= known.epoch) {
            return;
        }
        let view = self.config.view;
        let fence = map.volumes.get(&self.config.volume).filter(|fence| !fence.purging);
        let valid = match view {
            // Who only looks at what has content holds nothing.
            SnapId::HEAD if self.config.generation == Generation(0) => fence.is_some(),
            SnapId::HEAD => fence.is_some_and(|fence| fence.generations.contains(&self.config.generation)),
            snapshot => fence.is_some_and(|fence| fence.snapshots.get(&snapshot) == Some(&SnapPhase::Ready)),
        };
        if !valid && map.epoch >= self.config.min_epoch {
            self.fail_session(if view == SnapId::HEAD { IoError::Fenced } else { IoError::NoSnapshot });
            return;
        }
        let taken = fence.into_iter().flat_map(|fence| fence.snapshots.iter().rev());
        let taken = taken.into_iter().find(|(_, phase)| **phase == SnapPhase::Taking).map(|(id, _)| *id);
        self.map = Some(map);
        self.update_links();
        for seq in self.requests.matching(|_| true) {
            self.reroute(now, seq);
        }
        if view == SnapId::HEAD {
            self.follow_snapshots(now, taken);
        }
    }

    /// The newest snapshot that is being taken: those before it are taken with it.
    fn follow_snapshots(&mut self, now: Duration, taken: Option<SnapId>) {
        let wanted = taken.filter(|snapshot| *snapshot > self.context && *snapshot > self.given_up);
        if wanted != self.barrier.map(|barrier| barrier.snapshot) {
            let until = now + self.config.timing.drain;
            self.barrier = wanted.map(|snapshot| Barrier { snapshot, until });
        }
        self.pass_barrier(now);
        self.issue(now);
    }

    /// Nothing is on its way: what comes from now on is not in the snapshot.
    fn pass_barrier(&mut self, now: Duration) {
        let Some(Barrier { snapshot, until }) = self.barrier else { return };
        if self.requests.is_drained() || planted(Bug::NoDrain) {
            self.context = snapshot;
            self.outputs.push_back(Output::Drained { snapshot });
        } else if now >= until {
            self.given_up = snapshot;
        } else {
            return;
        }
        self.barrier = None;
    }

    /// A connection is open.
    pub fn handle_link_up(&mut self, now: Duration, osd: OsdId) {
        let Some(link) = self.links.get_mut(&osd) else { return };
        link.up = true;
        for seq in self.requests.matching(|state| *state == State::AwaitLink(osd)) {
            self.route(now, seq);
        }
    }

    /// A connection is lost, or could not be made; the driver goes on dialling.
    pub fn handle_link_down(&mut self, _now: Duration, osd: OsdId) {
        if let Some(link) = self.links.get_mut(&osd) {
            link.up = false;
        }
        self.await_link(osd);
    }

    /// An answer comes. What is not awaited, or not any more, is ignored.
    pub fn handle_reply(&mut self, now: Duration, from: OsdId, reply: ClientReply) {
        if let Some(link) = self.links.get_mut(&from) {
            link.heard_at = Some(now);
        }
        let seq = reply.id.seq;
        if reply.id.session != self.config.session || self.requests.get_mut(seq).is_none() {
            return;
        }
        match reply.result {
            Ok(body) => self.handle_body(now, seq, body),
            Err(Refusal::Fenced) => self.fail_session(IoError::Fenced),
            Err(Refusal::NoSnapshot) => self.fail_session(IoError::NoSnapshot),
            Err(refusal) => self.handle_refusal(now, seq, from, refusal),
        }
    }

    /// The volume has grown.
    ///
    /// # Panics
    /// When the size is not whole blocks.
    pub fn handle_size(&mut self, size: u64) {
        assert!(size.is_multiple_of(u64::from(BLOCK_SIZE)));
        self.size = self.size.max(size);
    }

    /// When [`Core::handle_timeout`] wants to be called.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.requests.next_timer().into_iter().chain(self.barrier.map(|barrier| barrier.until)).min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.barrier.is_some_and(|barrier| barrier.until <= now) {
            self.pass_barrier(now);
            self.issue(now);
        }
        while let Some(seq) = self.requests.due(now) {
            let request = self.requests.get_mut(seq).expect("a timer has its request");
            if let State::Sent { to, at, .. } = request.state
                && self.links.get(&to).is_some_and(|link| link.heard_at.is_none_or(|heard| heard < at))
            {
                // Nothing at all came since it was sent: the connection may be dead without knowing it.
                self.redial(to);
            } else {
                self.route(now, seq);
            }
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // ------------------------------------------------------------------------------------------------- answers

    fn handle_body(&mut self, now: Duration, seq: u64, body: ReplyBody) {
        let request = self.requests.get_mut(seq).expect("looked up before");
        let result = match (&request.what, body) {
            (ClientOp::Read { len, .. }, ReplyBody::Data(read)) => match verify(&read, *len) {
                Ok(()) => match self.look_above(now, seq, read) {
                    Some(read) => Ok(read.data),
                    None => return,
                },
                Err(Unusable::Shape) => Err(IoError::BadAnswer(BadAnswer::Shape)),
                Err(Unusable::Mismatch) if request.mismatches < MAX_MISMATCHES => {
                    request.mismatches += 1;
                    self.pause(now, seq);
                    return;
                }
                Err(Unusable::Mismatch) => Err(IoError::Corrupt),
            },
            (ClientOp::Status { len, .. }, ReplyBody::Status(blocks))
                if blocks.len() == (len / BLOCK_SIZE) as usize =>
            {
                match self.look_above(now, seq, ReadData { data: Bytes::new(), blocks }) {
                    Some(read) => Ok(read.blocks.iter().map(state_byte).collect()),
                    None => return,
                }
            }
            (ClientOp::Write { .. } | ClientOp::Zero { .. }, ReplyBody::Done) => Ok(Bytes::new()),
            _ => Err(IoError::BadAnswer(BadAnswer::Shape)),
        };
        self.settle(now, seq, result);
    }

    fn handle_refusal(&mut self, now: Duration, seq: u64, from: OsdId, refusal: Refusal) {
        let request = self.requests.get_mut(seq).expect("looked up before");
        if !matches!(request.state, State::Sent { to, .. } if to == from) {
            // Of an earlier sending; the present one decides.
            return;
        }
        match refusal {
            Refusal::NotPrimary { epoch } | Refusal::StaleMap { epoch } => {
                if self.map.as_ref().is_some_and(|map| map.epoch < epoch) {
                    let until = now + self.config.timing.resend;
                    self.requests.wait(seq, State::AwaitEpoch(epoch), Some(until));
                } else {
                    self.pause(now, seq);
                }
            }
            Refusal::Busy | Refusal::NoSpace => self.pause(now, seq),
            Refusal::ReadOnly => self.settle(now, seq, Err(IoError::ReadOnly)),
            Refusal::Corrupt => self.settle(now, seq, Err(IoError::Corrupt)),
            Refusal::Fenced => self.fail_session(IoError::Fenced),
            Refusal::NoSnapshot => self.fail_session(IoError::NoSnapshot),
            Refusal::StaleSnapContext | Refusal::AlreadyAcked | Refusal::Malformed => {
                self.settle(now, seq, Err(IoError::BadAnswer(BadAnswer::Refusal(refusal))));
            }
        }
    }

    /// A piece that was read, if nothing is left to be asked of the parents; otherwise those are asked, as a request of its
    /// own.
    fn look_above(&mut self, now: Duration, seq: u64, read: ReadData) -> Option<ReadData> {
        let request = self.requests.get_mut(seq).expect("looked up before");
        if self.config.parents.is_empty() || !self.ops[&request.op].looks_above() {
            return Some(read);
        }
        let (object, (at, _), level) = (request.what.object(), request.what.range(), request.level);
        let (op, slot, trace) = (request.op, request.slot, request.trace);
        let (read, start) = match request.below.take() {
            None => (read, at),
            Some((whole, start)) => (whole.over(&read, (at - start) / BLOCK_SIZE), start),
        };
        let Some(parent) = self.config.parents.get(level) else { return Some(read) };
        let base = object.index * u64::from(self.config.object_size) + u64::from(start);
        let inside = |index: usize| base + index as u64 * u64::from(BLOCK_SIZE) < parent.size;
        let unknown = |index: &usize| read.blocks[*index] == BlockState::Absent && inside(*index);
        let Some(first) = (0..read.blocks.len()).find(unknown) else { return Some(read) };
        let last = (0..read.blocks.len()).rev().find(unknown).unwrap_or(first);
        let object =
            ObjectId { pool: parent.pool, volume: parent.volume, index: object.index, snapshot: parent.snapshot };
        let (offset, len) = (start + first as u32 * BLOCK_SIZE, (last + 1 - first) as u32 * BLOCK_SIZE);
        let what = match request.what {
            ClientOp::Status { .. } => ClientOp::Status { object, offset, len, since: SnapId(0) },
            _ => ClientOp::Read { object, offset, len },
        };
        self.requests.remove(seq);
        let seq = self.requests.add(op, slot, trace, what);
        let request = self.requests.get_mut(seq).expect("it was just added");
        (request.level, request.below) = (level + 1, Some((read, start)));
        self.route(now, seq);
        None
    }

    /// A request has its final answer.
    fn settle(&mut self, now: Duration, seq: u64, result: Result<Bytes, IoError>) {
        let request = self.requests.remove(seq).expect("looked up before");
        self.end_piece(request.op, request.slot, result);
        self.pass_barrier(now);
        self.issue(now);
    }

    // ---------------------------------------------------------------------------------------------- operations

    fn begin(&mut self, id: OpId) {
        let step = self.ops.get_mut(&id).expect("it has come").begin(&self.config);
        self.follow(id, step);
    }

    fn end_piece(&mut self, id: OpId, slot: usize, result: Result<Bytes, IoError>) {
        let running = self.ops.get_mut(&id).expect("an operation outlives its pieces");
        if let Some(step) = running.end_piece(slot, result, &self.config) {
            self.follow(id, step);
        }
    }

    fn follow(&mut self, id: OpId, step: Step) {
        match step {
            Step::Pieces(pieces) => {
                self.queued.extend(pieces.into_iter().enumerate().map(|(slot, what)| (id, slot, what)));
            }
            Step::End(result) => {
                let ended = self.ops.remove(&id).expect("it has come");
                self.held_bytes -= ended.op().held_bytes();
                self.outputs.push_back(Output::Done { op: id, result });
                for free in self.order.leave(id) {
                    self.begin(free);
                }
            }
        }
    }

    /// Sends what is queued, as far as there is room in flight.
    fn issue(&mut self, now: Duration) {
        while self.requests.len() < self.config.max_requests
            && let Some((id, slot, what)) = self.next_queued()
        {
            let running = &self.ops[&id];
            if let Some(error) = running.failed() {
                self.end_piece(id, slot, Err(error));
                continue;
            }
            let seq = self.requests.add(id, slot, running.trace(), what);
            self.route(now, seq);
        }
    }

    /// The next piece; before a snapshot only what reads.
    fn next_queued(&mut self) -> Option<(OpId, usize, ClientOp)> {
        if self.barrier.is_none() {
            return self.queued.pop_front();
        }
        let next = self.queued.iter().position(|(_, _, what)| !what.is_write())?;
        self.queued.remove(next)
    }

    /// Nothing works any more. What is in flight has no known outcome, and there is no session left to learn it in.
    fn fail_session(&mut self, error: IoError) {
        self.fatal = Some(error);
        self.barrier = None;
        self.outputs.retain(|output| !matches!(output, Output::Send { .. }));
        let failed = std::mem::take(&mut self.ops);
        self.outputs.extend(failed.into_keys().map(|op| Output::Done { op, result: Err(error) }));
        self.order.clear();
        self.queued.clear();
        self.requests.clear();
        self.held_bytes = 0;
        let gone = std::mem::take(&mut self.links);
        self.outputs.extend(gone.into_keys().map(|osd| Output::Disconnect { osd }));
    }

    /// Asserts what must always hold.
    pub fn invariants(&self) {
        self.order.check();
        self.requests.check();
        assert!(self.requests.len() <= self.config.max_requests, "more requests in flight than may be");
        assert!(self.requests.owners().all(|op| self.ops.contains_key(&op)), "a request without its operation");
        let held: u64 = self.ops.values().map(|running| running.op().held_bytes()).sum();
        assert_eq!(held, self.held_bytes, "bytes held are counted wrong");
        assert!(self.ops.len() <= self.config.max_ops, "more operations than may be taken");
    }
}
