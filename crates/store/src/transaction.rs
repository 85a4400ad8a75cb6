//! What is asked of the store, and what it answers. The shapes are those of a replicated log: a transaction is one
//! record of one PG, its appended entries stay pending until a later commit point covers them.

use bytes::Bytes;
use cairn_types::io::BlockState;
use cairn_types::peer::{LogEntry, LogPoint, Logged, Run};
use cairn_types::scrub::BlockCopy;
use cairn_types::{ObjectId, PgId};

use crate::key::Scope;

/// Names one request until its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// One record of one PG. Its steps happen in the order of the fields, all or nothing. Transactions of one PG become
/// durable in the order in which they were submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// The PG.
    pub pg: PgId,
    /// Forget the pending entries above this position; entries that took effect stay.
    pub rewind: Option<u64>,
    /// Everything up to here is committed: the pending entries up to here take effect. A lower one than before
    /// means nothing.
    pub commit: u64,
    /// The log goes on after this point, which is not below the commit point; kept entries are forgotten, pending
    /// ones too.
    pub restart: Option<LogPoint>,
    /// New entries, in order, directly after the log's end.
    pub append: Vec<Logged>,
    /// Content that replaces what was there at once, below every pending entry.
    pub content: Vec<(ObjectId, Vec<Run>)>,
    /// Objects that go at once, below every pending entry.
    pub remove: Vec<ObjectId>,
    /// Forget the kept entries at or below this position, as far as they are committed.
    pub trim: Option<u64>,
    /// Small keyed values of the PG: put, or deleted where there is none.
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

/// One answer of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// The transaction, and every earlier one of its PG, is durable.
    Persisted {
        /// From [`crate::Store::submit`].
        token: Token,
    },
    /// The transaction cannot be taken and did nothing. Later ones of its PG are still taken if they fit.
    Rejected {
        /// From [`crate::Store::submit`].
        token: Token,
        /// Why.
        reason: Rejection,
    },
    /// A read is done.
    Read {
        /// From [`crate::Store::read`].
        token: Token,
        /// What is there.
        result: Result<ReadReply, ReadFailure>,
    },
    /// An inspection is done.
    Inspected {
        /// From [`crate::Store::inspect`].
        token: Token,
        /// One per block.
        blocks: Vec<BlockCopy>,
    },
    /// A listing is done.
    Listed {
        /// From [`crate::Store::list`].
        token: Token,
        /// In key order; fewer than asked for only at the end.
        objects: Vec<ObjectId>,
        /// Nothing follows.
        done: bool,
    },
    /// The store has failed and takes no more part in anything: restart and believe only the disk (I14).
    Failed {
        /// The first error.
        error: crate::Error,
    },
}

/// Data that was read and whose checksums were found right.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReadReply {
    /// Whole blocks; absent and zero blocks are zeros here.
    pub data: Bytes,
    /// One per block.
    pub blocks: Vec<BlockState>,
}

/// Why a read has no data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} blocks of {object} are unreadable or do not match their checksums, the first at {}", offsets.len(), offsets[0])]
pub struct ReadFailure {
    /// Which object.
    pub object: ObjectId,
    /// Byte offsets of the bad blocks within the object.
    pub offsets: Vec<u32>,
}

/// Why a transaction was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No room for its data, or for zeros where nothing was, even when everything that is freed comes back.
    #[error("no space left on the device for {blocks} blocks of 4 KiB")]
    NoSpace {
        /// What it needs at most.
        blocks: u64,
    },
    /// It does not continue the log, or goes below the commit point. A bug of the caller.
    #[error("{what} {found} does not fit a log of {pg} that is committed through {commit} and ends at {end}")]
    OutOfOrder {
        /// Which field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The PG.
        pg: PgId,
        /// Its commit point.
        commit: u64,
        /// Its last entry.
        end: u64,
    },
    /// Offsets, lengths or checksums contradict each other, or a bound is passed. A bug of the caller.
    #[error("the transaction is malformed: {0}")]
    Malformed(&'static str),
}

/// What the store found of one PG when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadedPg {
    /// The highest commit point in any record.
    pub commit: u64,
    /// Where the log ends, pending entries included: the position of the next append is one higher.
    pub end: u64,
    /// The kept entries, in order, without gaps: those up to `commit` have taken effect.
    pub log: Vec<LogEntry>,
    /// The data of the entries above `commit`, by position. A write whose data rotted in the log is missing here.
    pub pending: Vec<(u64, Bytes)>,
    /// The attributes, in key order.
    pub attributes: Vec<(Vec<u8>, Bytes)>,
}

/// Room on the device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Usage {
    /// What the area can hold.
    pub capacity: u64,
    /// Data and index, and what was freed but cannot be reused yet.
    pub used: u64,
    /// The part of `used` that comes back by itself.
    pub reclaiming: u64,
}

impl Usage {
    /// What is left for new data.
    #[must_use]
    pub fn available(&self) -> u64 {
        self.capacity.saturating_sub(self.used).saturating_add(self.reclaiming)
    }
}

/// The store's own attributes and those of PGs live in one place.
pub(crate) fn scope_of(pg: PgId) -> Scope {
    Some(pg)
}
