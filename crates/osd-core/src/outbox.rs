//! Orders on their way to the driver, and what each token was for. All PGs of one OSD share it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cairn_types::io::{ClientReply, Refusal, ReplyBody};
use cairn_types::peer::{ObjectKey, PeerMessage, PgMessage};
use cairn_types::{ConfVersion, Epoch, ObjectId, OsdId, PgId, RequestId};

use crate::Time;
use crate::output::{
    CasToken, ConnId, InspectToken, ListToken, Output, PersistToken, PgChange, ReadToken, Transaction,
};
use crate::pace::Pace;
use crate::pg::{Durable, InspectFor, ListFor, ReadFor};

/// Inspections at the store at once, over all PGs; more wait here.
const INSPECTIONS: usize = 2;

/// What a durable token means to its owner.
#[derive(Debug)]
pub(crate) enum PersistFor {
    Pg(PgId, Durable),
    Epoch(Epoch),
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    next_token: u64,
    persists: BTreeMap<PersistToken, (Time, PersistFor)>,
    reads: BTreeMap<ReadToken, (Time, PgId, ReadFor)>,
    lists: BTreeMap<ListToken, (PgId, ListFor)>,
    inspections: BTreeMap<InspectToken, (PgId, InspectFor)>,
    waiting_inspections: VecDeque<Output>,
    proposals: BTreeMap<CasToken, Vec<PgId>>,
    /// Payload bytes of client writes that are not committed yet.
    pub(crate) bytes_in_flight: usize,
    /// Members that are being recovered, over all PGs.
    reservations: BTreeSet<(PgId, OsdId)>,
    /// How fast recovery copies beside clients.
    pub(crate) pace: Pace,
    /// PGs that are being scrubbed by this OSD as their primary.
    scrubs: BTreeSet<PgId>,
    /// PGs whose clients wait because of a split.
    splits: BTreeSet<PgId>,
    /// When a client asked something last.
    pub(crate) client_at: Time,
}

impl Outbox {
    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }

    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(crate) fn persist(&mut self, now: Time, transaction: Transaction, durable: Durable) {
        let token = PersistToken(self.token());
        self.persists.insert(token, (now, PersistFor::Pg(transaction.pg, durable)));
        self.push(Output::Persist { token, transaction: Box::new(transaction) });
    }

    pub(crate) fn persist_epoch(&mut self, now: Time, epoch: Epoch) {
        let token = PersistToken(self.token());
        self.persists.insert(token, (now, PersistFor::Epoch(epoch)));
        self.push(Output::PersistEpoch { token, epoch });
    }

    pub(crate) fn persisted(&mut self, token: PersistToken) -> Option<PersistFor> {
        self.persists.remove(&token).map(|(_, what)| what)
    }

    pub(crate) fn read(&mut self, now: Time, pg: PgId, object: ObjectId, range: (u32, u32), what: ReadFor) {
        let token = ReadToken(self.token());
        self.reads.insert(token, (now, pg, what));
        self.push(Output::Read { token, pg, object, offset: range.0, len: range.1 });
    }

    pub(crate) fn read_done(&mut self, now: Time, token: ReadToken) -> Option<(PgId, ReadFor)> {
        let (began, pg, what) = self.reads.remove(&token)?;
        if matches!(what, ReadFor::Client { .. }) {
            self.pace.client(now, began);
        }
        Some((pg, what))
    }

    pub(crate) fn list(&mut self, pg: PgId, after: Option<ObjectKey>, limit: usize, what: ListFor) {
        let token = ListToken(self.token());
        self.lists.insert(token, (pg, what));
        self.push(Output::List { token, pg, after, limit });
    }

    pub(crate) fn list_done(&mut self, token: ListToken) -> Option<(PgId, ListFor)> {
        self.lists.remove(&token)
    }

    /// Only so many are at the store at once. They are background work: their age is not the disk's.
    pub(crate) fn inspect(&mut self, pg: PgId, object: ObjectId, range: (u32, u32), deep: bool, what: InspectFor) {
        let token = InspectToken(self.token());
        self.inspections.insert(token, (pg, what));
        let order = Output::Inspect { token, pg, object, offset: range.0, len: range.1, deep };
        if self.inspections.len() - self.waiting_inspections.len() <= INSPECTIONS {
            self.push(order);
        } else {
            self.waiting_inspections.push_back(order);
        }
    }

    pub(crate) fn inspected(&mut self, token: InspectToken) -> Option<(PgId, InspectFor)> {
        let done = self.inspections.remove(&token)?;
        if let Some(next) = self.waiting_inspections.pop_front() {
            self.push(next);
        }
        Some(done)
    }

    /// A place among the PGs that may be scrubbed at once.
    pub(crate) fn reserve_scrub(&mut self, pg: PgId, most: usize) -> bool {
        self.scrubs.contains(&pg) || (self.scrubs.len() < most && self.scrubs.insert(pg))
    }

    /// Gives that place back.
    pub(crate) fn release_scrub(&mut self, pg: PgId) {
        self.scrubs.remove(&pg);
    }

    /// A place among the PGs that may split at once.
    pub(crate) fn reserve_split(&mut self, pg: PgId, most: usize) -> bool {
        self.splits.contains(&pg) || (self.splits.len() < most && self.splits.insert(pg))
    }

    /// Gives that place back.
    pub(crate) fn release_split(&mut self, pg: PgId) {
        self.splits.remove(&pg);
    }

    /// Gives back the places of those that lead no more.
    pub(crate) fn keep_splits(&mut self, used: impl Fn(PgId) -> bool) {
        self.splits.retain(|pg| used(*pg));
    }

    pub(crate) fn propose(&mut self, changes: Vec<PgChange>) -> CasToken {
        let token = CasToken(self.token());
        self.proposals.insert(token, changes.iter().map(|change| change.pg).collect());
        self.push(Output::ProposePgs { token, changes });
        token
    }

    pub(crate) fn proposal_done(&mut self, token: CasToken) -> Option<Vec<PgId>> {
        self.proposals.remove(&token)
    }

    pub(crate) fn send(&mut self, to: OsdId, pg: PgId, c: ConfVersion, attempt: u64, body: PgMessage) {
        self.push(Output::SendPeer { to, message: PeerMessage::Pg { pg, c, attempt, body } });
    }

    pub(crate) fn reply(&mut self, conn: ConnId, id: RequestId, result: Result<ReplyBody, Refusal>) {
        self.push(Output::Reply { conn, reply: ClientReply { id, result } });
    }

    /// A place among the members that may be recovered at once; kept until `keep_reservations` finds it unused.
    pub(crate) fn reserve(&mut self, pg: PgId, osd: OsdId, most: usize) -> bool {
        let have = self.reservations.contains(&(pg, osd));
        have || (self.reservations.len() < most && self.reservations.insert((pg, osd)))
    }

    /// Gives back the places that are not used any more.
    pub(crate) fn keep_reservations(&mut self, used: impl Fn(PgId, OsdId) -> bool) {
        self.reservations.retain(|(pg, osd)| used(*pg, *osd));
    }

    /// Age of the oldest unfinished disk operation, milliseconds.
    pub(crate) fn oldest_io_ms(&self, now: Time) -> u64 {
        let persist = self.persists.values().next().map(|(at, _)| *at);
        let read = self.reads.values().next().map(|(at, _, _)| *at);
        persist.into_iter().chain(read).min().map_or(0, |at| now.ms_since(at))
    }
}
