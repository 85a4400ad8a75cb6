//! Requests in flight: each has one id for life, one place it was last sent to, and at most one timer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cairn_types::io::{BlockState, ClientOp, ReadData};
use cairn_types::{BLOCK_SIZE, ConfVersion, Epoch, OsdId, TraceId};

use crate::OpId;

/// What a request is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A map in which its PG has a primary.
    Unrouted,
    /// A map at least this new.
    AwaitEpoch(Epoch),
    /// A connection to this OSD.
    AwaitLink(OsdId),
    /// The end of a pause.
    Paused,
    /// An answer.
    Sent {
        /// The primary.
        to: OsdId,
        /// Its interval: in a later one it knows nothing of this request.
        interval: ConfVersion,
        /// When.
        at: Duration,
    },
}

/// One piece of one operation.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) op: OpId,
    /// Which piece of it.
    pub(crate) slot: usize,
    pub(crate) trace: TraceId,
    pub(crate) what: ClientOp,
    /// How many generations up it asks; what those below it said of the whole piece, and where that begins.
    pub(crate) level: usize,
    pub(crate) below: Option<(ReadData, u32)>,
    pub(crate) state: State,
    /// Transient refusals in a row.
    pub(crate) refusals: u32,
    /// Answers whose data did not match its checksums.
    pub(crate) mismatches: u32,
    timer: Option<Duration>,
}

/// All requests that have no final answer, by sequence.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    table: BTreeMap<u64, Request>,
    timers: BTreeSet<(Duration, u64)>,
    last_seq: u64,
}

impl Requests {
    /// Takes a request in and gives it its number.
    pub(crate) fn add(&mut self, op: OpId, slot: usize, trace: TraceId, what: ClientOp) -> u64 {
        self.last_seq += 1;
        let state = State::Unrouted;
        let request =
            Request { op, slot, trace, what, level: 0, below: None, state, refusals: 0, mismatches: 0, timer: None };
        self.table.insert(self.last_seq, request);
        self.last_seq
    }

    /// Takes a request out: it has its answer, and is never sent again.
    pub(crate) fn remove(&mut self, seq: u64) -> Option<Request> {
        self.wait(seq, State::Unrouted, None);
        self.table.remove(&seq)
    }

    pub(crate) fn get_mut(&mut self, seq: u64) -> Option<&mut Request> {
        self.table.get_mut(&seq)
    }

    /// Whether no write is under way.
    pub(crate) fn is_drained(&self) -> bool {
        self.table.values().all(|request| !request.what.is_write())
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn clear(&mut self) {
        self.table.clear();
        self.timers.clear();
    }

    /// The sequences of those that wait in a way that `pick` accepts.
    pub(crate) fn matching(&self, pick: impl Fn(&State) -> bool) -> Vec<u64> {
        self.table.iter().filter(|(_, request)| pick(&request.state)).map(|(seq, _)| *seq).collect()
    }

    /// Puts a request into a state, until `until` at the latest.
    pub(crate) fn wait(&mut self, seq: u64, state: State, until: Option<Duration>) {
        let Some(request) = self.table.get_mut(&seq) else { return };
        request.state = state;
        if let Some(old) = request.timer.take() {
            self.timers.remove(&(old, seq));
        }
        if let Some(at) = until {
            request.timer = Some(at);
            self.timers.insert((at, seq));
        }
    }

    /// When the next of them loses patience.
    pub(crate) fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// One whose time has come.
    pub(crate) fn due(&self, now: Duration) -> Option<u64> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|(_, seq)| *seq)
    }

    /// Every request up to here has its answer and is never sent again.
    pub(crate) fn acked_through(&self) -> u64 {
        self.table.keys().next().map_or(self.last_seq, |first| first - 1)
    }

    /// Whom the requests belong to, once for each.
    pub(crate) fn owners(&self) -> impl Iterator<Item = OpId> + '_ {
        self.table.values().map(|request| request.op)
    }

    /// The timers are those of the requests.
    pub(crate) fn check(&self) {
        let own: BTreeSet<_> = self.table.iter().filter_map(|(seq, r)| r.timer.map(|at| (at, *seq))).collect();
        assert_eq!(own, self.timers, "a timer without its request, or the reverse");
    }
}

/// Why data that was read cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Not as many blocks as were asked for.
    Shape,
    /// A block differs from what its record says.
    Mismatch,
}

/// Compares what was read with what was asked for and with the checksums that the writer made.
pub(crate) fn verify(read: &ReadData, len: u32) -> Result<(), Unusable> {
    if read.data.len() != len as usize || read.blocks.len() != (len / BLOCK_SIZE) as usize {
        return Err(Unusable::Shape);
    }
    for (block, state) in read.data.chunks(BLOCK_SIZE as usize).zip(&read.blocks) {
        let matches = match state {
            BlockState::Data { crc } => crc32c::crc32c(block) == *crc,
            BlockState::Absent | BlockState::Zero => block.iter().all(|byte| *byte == 0),
        };
        if !matches {
            return Err(Unusable::Mismatch);
        }
    }
    Ok(())
}
