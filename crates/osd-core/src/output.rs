//! The orders a core gives and the answers it takes back: a closed set, so that a driver is one `match`.

use bytes::Bytes;
use cairn_types::io::ClientReply;
use cairn_types::map::PgConfig;
use cairn_types::peer::{LogEntry, LogPoint, Logged, ObjectKey, PeerMessage, Run};
use cairn_types::scrub::ScrubOutcome;
use cairn_types::{ConfVersion, Epoch, Incarnation, ObjectId, OsdId, PgId, SnapId, VolumeId};

/// Who this OSD is, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its number in the map.
    pub osd: OsdId,
    /// This life, as the metadata service registered it.
    pub incarnation: Incarnation,
    /// The epoch at which this life was registered: nothing is served from an older map.
    pub registered: Epoch,
    /// Client requests that may wait or be in flight per PG; more are refused as busy.
    pub requests_per_pg: usize,
    /// Payload bytes of client writes in flight over all PGs; more are refused as busy.
    pub bytes_in_flight: usize,
    /// Log entries kept per PG after they are committed.
    pub log_entries: usize,
    /// Members that are recovered at once, over all PGs this OSD is primary of.
    pub recoveries: usize,
    /// Pushes in flight per recovering member.
    pub recovery_window: usize,
    /// Objects listed at once by what walks a PG: fills, purges, joins of layers, emptying. Not 0.
    pub page: usize,
    /// PGs that this OSD scrubs at once as their primary.
    pub scrubs: usize,
}

impl Config {
    /// The defaults for one life of one OSD.
    #[must_use]
    pub fn new(osd: OsdId, incarnation: Incarnation, registered: Epoch) -> Self {
        Self {
            osd,
            incarnation,
            registered,
            requests_per_pg: 512,
            bytes_in_flight: 64 << 20,
            log_entries: 1024,
            recoveries: 8,
            recovery_window: 4,
            page: 64,
            scrubs: 2,
        }
    }
}

/// A client's connection, as the driver numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

macro_rules! token {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);
    };
}
token!(
    /// Names one transaction until it is durable.
    PersistToken
);
token!(
    /// Names one read until its result is there.
    ReadToken
);
token!(
    /// Names one inspection until its result is there.
    InspectToken
);
token!(
    /// Names one listing until its result is there.
    ListToken
);
token!(
    /// Names one proposal until its outcome is known.
    CasToken
);

/// One order to the driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Make this durable, then `handle_persisted(token)`. Transactions of one PG become durable in order.
    Persist {
        /// Comes back.
        token: PersistToken,
        /// One record.
        transaction: Box<Transaction>,
    },
    /// Make "this OSD has seen this epoch" durable, after every transaction ordered before; then
    /// `handle_persisted(token)`.
    PersistEpoch {
        /// Comes back.
        token: PersistToken,
        /// Never falls.
        epoch: Epoch,
    },
    /// Read whole blocks, verify their checksums, then `handle_read`. What was appended counts, committed or not.
    Read {
        /// Comes back.
        token: ReadToken,
        /// The PG.
        pg: PgId,
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// Describe whole blocks for a scrub, then `handle_inspected`. What was appended counts, committed or not. Reading
    /// for it goes behind everything else, and a block that cannot be read is part of the answer.
    Inspect {
        /// Comes back.
        token: InspectToken,
        /// The PG.
        pg: PgId,
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Read the data and hold it against the index.
        deep: bool,
    },
    /// List the PG's objects in key order, then `handle_list`.
    List {
        /// Comes back.
        token: ListToken,
        /// The PG.
        pg: PgId,
        /// Only objects after this one.
        after: Option<ObjectKey>,
        /// At most this many.
        limit: usize,
    },
    /// Send to another OSD, in order with what was sent to it before.
    SendPeer {
        /// To whom.
        to: OsdId,
        /// What.
        message: PeerMessage,
    },
    /// Answer a client. Dropped when the connection is gone: the client resends.
    Reply {
        /// Its connection.
        conn: ConnId,
        /// The answer.
        reply: ClientReply,
    },
    /// Propose these compare-and-swaps as one command, then `handle_cas`.
    ProposePgs {
        /// Comes back.
        token: CasToken,
        /// At least one; at most one per PG.
        changes: Vec<PgChange>,
    },
    /// Tell the metadata service that an OSD does not answer.
    ReportDown {
        /// Who.
        osd: OsdId,
        /// Which life of it.
        incarnation: Incarnation,
        /// How this is known.
        evidence: DownEvidence,
    },
    /// Tell the metadata service that this PG holds nothing of a deleted volume any more, or nothing that lies above
    /// snapshots that go.
    ReportPurged {
        /// The volume.
        volume: VolumeId,
        /// The PG.
        pg: PgId,
        /// The snapshots; none: the whole volume.
        snapshots: Vec<SnapId>,
        /// It holds as long as this interval of the PG.
        interval: ConfVersion,
    },
    /// Tell the metadata service what a scrub found, then `handle_scrub_reported`. Repeated until then.
    ReportScrub {
        /// All of it.
        outcome: Box<ScrubOutcome>,
    },
    /// This epoch is durable here, with the configurations it brought (I1): the next report may say so.
    AckEpoch {
        /// Rising.
        epoch: Epoch,
    },
    /// Somebody has a newer map: fetch it without waiting for the watch.
    NeedMap {
        /// At least this epoch.
        epoch: Epoch,
    },
    /// Stop this life: nothing more comes out.
    Stop {
        /// Why.
        reason: StopReason,
    },
}

/// Why a life of an OSD must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The map says that this life is proven dead, or that a later one is registered.
    #[error("this incarnation was declared dead; restart to register a new one")]
    DeclaredDead,
    /// The map no longer has this OSD.
    #[error("this OSD was removed from the cluster")]
    Removed,
}

/// How an OSD's failure is known; the weaker forms end no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DownEvidence {
    /// No heartbeat for the limit.
    Silent,
    /// Connection refused or reset.
    Refused,
}

/// One record of one PG. The store carries its steps out in the order of the fields, all or nothing.
///
/// An appended entry is pending until `commit` covers it; only then its data replaces what was there. Reads see
/// pending entries. Nothing in `attributes` means anything to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The PG.
    pub pg: PgId,
    /// Forget the pending entries above this position.
    pub rewind: Option<u64>,
    /// Everything up to here is committed: apply the pending entries up to here. Never falls.
    pub commit: u64,
    /// The log goes on after this point, which lies at or above its end and is committed: the position of the next
    /// append is one higher. The entries kept so far are forgotten.
    pub restart: Option<LogPoint>,
    /// New entries, in order, directly after the log's end.
    pub append: Vec<Logged>,
    /// Content that recovery or repair brings: replaces what was there at once, below every pending entry.
    pub content: Vec<(ObjectId, Vec<Run>)>,
    /// Objects that go at once: the member is emptied before it is filled anew.
    pub remove: Vec<ObjectId>,
    /// Forget the kept entries at or below this position, which is committed.
    pub trim: Option<u64>,
    /// Small keyed values of the PG, in order, the last one of a key counts: put, or deleted where there is none.
    pub attributes: Vec<(Vec<u8>, Option<Bytes>)>,
}

impl Transaction {
    /// One that changes nothing.
    #[must_use]
    pub fn new(pg: PgId, commit: u64) -> Self {
        Self {
            pg,
            rewind: None,
            commit,
            restart: None,
            append: Vec::new(),
            content: Vec::new(),
            remove: Vec::new(),
            trim: None,
            attributes: Vec::new(),
        }
    }
}

/// What the store found of one PG when this life began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedPg {
    /// The highest commit point in any record.
    pub commit: u64,
    /// The kept entries, in order, without gaps: those up to `commit` are applied.
    pub log: Vec<LogEntry>,
    /// The data of the entries above `commit`, by position.
    pub pending: Vec<(u64, Bytes)>,
    /// The attributes, in key order.
    pub attributes: Vec<(Vec<u8>, Bytes)>,
}

/// Why a read has no data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// These blocks do not match their checksums, or their medium does not answer: they count as missing here.
    #[error("{} blocks are unreadable or do not match their checksums", offsets.len())]
    Corrupt {
        /// Byte offsets of the bad blocks.
        offsets: Vec<u32>,
    },
}

/// One compare-and-swap of one PG's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgChange {
    /// The PG.
    pub pg: PgId,
    /// The version it replaces.
    pub expect_c: ConfVersion,
    /// The primary from then on.
    pub primary: Option<OsdId>,
    /// The in-sync set from then on.
    pub isr: Vec<OsdId>,
    /// In-sync and catching-up members.
    pub acting: Vec<OsdId>,
    /// Members being filled from nothing.
    pub backfill: Vec<OsdId>,
    /// The PG is to split in two here, where its log ends: everything through it is committed and on every in-sync
    /// member, and nothing is ordered until the outcome is known. Nothing else changes with it.
    pub split_at: Option<LogPoint>,
}

/// What came of a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CasOutcome {
    /// The command was applied; each change was accepted or refused.
    Decided {
        /// The epoch after it: its configurations are in force from the map of that epoch on.
        epoch: Epoch,
        /// One per change.
        decisions: Vec<PgDecision>,
    },
    /// It may have been applied, may still be, or may never be.
    Unknown,
}

/// What came of one change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgDecision {
    /// The PG.
    pub pg: PgId,
    /// Whether the change was made.
    pub applied: bool,
    /// The configuration in force after the command.
    pub now: PgConfig,
}
