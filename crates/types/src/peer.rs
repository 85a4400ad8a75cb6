//! What OSDs say to each other: replication, leases, activation and recovery, before `wire` makes frames of it.
//!
//! The log's nouns live here too, because they cross the network and the disk unchanged: an entry that a replica
//! stores is the entry its primary ordered. Nothing in this file decides anything; `osd-core` does.
//! All of it is one room, so that what two OSDs agree on is read, and changed, in one place.

use bytes::Bytes;

use crate::id::mix;
use crate::scrub::{Mend, ScrubAsk, ScrubFound};
use crate::{
    BLOCK_SIZE, ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, RequestId, SessionId, SnapId,
    Version, VolumeId,
};

/// The most log entries one message carries.
pub const MAX_ENTRIES: usize = 1024;

/// The most objects a dirty map names; a member that missed more is filled from nothing.
pub const MAX_DIRTY_OBJECTS: usize = 4096;

// ---------------------------------------------------------------------------------------------------- the log

/// A position in a PG's log together with the hash of everything up to it (I4): two logs that agree in one point
/// agree in all earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LogPoint {
    /// The entry's version; the default is "before the first entry".
    pub version: Version,
    /// The chain's hash after that entry.
    pub hash: u64,
}

impl LogPoint {
    /// The position within the PG.
    #[must_use]
    pub fn seq(&self) -> u64 {
        self.version.seq
    }
}

/// One entry of a PG's log. The data of a write travels beside it, see [`Logged`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Strictly +1 in `seq` from entry to entry; `c` is the configuration it was ordered under.
    pub version: Version,
    /// The chain's hash before this entry.
    pub prev: u64,
    /// The epoch at which the primary found the generation valid.
    pub epoch: Epoch,
    /// Whose request this executes; the default for what the primary does of its own accord.
    pub request: RequestId,
    /// The session's acked-through mark (I6).
    pub acked_through: u64,
    /// The volume's holding; every replica checks it (I8). 0 for what the primary does of its own accord.
    pub generation: Generation,
    /// The snapshot context of the write.
    pub snap_context: SnapId,
    /// What changes.
    pub op: EntryOp,
}

/// What one log entry does. Offsets and lengths are bytes within the object, in whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryOp {
    /// Replaces whole blocks; the length is that of `crcs`.
    Write {
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// crc32c of each block, as the client made it.
        crcs: Vec<u32>,
    },
    /// Makes blocks explicit zeros, or absent.
    Zero {
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// The blocks become absent, as if never written.
        unmap: bool,
    },
    /// Removes the whole object: its volume is deleted.
    Remove {
        /// Which object.
        object: ObjectId,
    },
}

impl EntryOp {
    /// The object it changes.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        match self {
            Self::Write { object, .. } | Self::Zero { object, .. } | Self::Remove { object } => *object,
        }
    }

    /// The byte range it changes: (offset, length). A removal covers every offset.
    #[must_use]
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Write { offset, crcs, .. } => (*offset, crcs.len() as u32 * BLOCK_SIZE),
            Self::Zero { offset, len, .. } => (*offset, *len),
            Self::Remove { .. } => (0, u32::MAX - (u32::MAX % BLOCK_SIZE)),
        }
    }

    /// The byte range it changes in an object of this many bytes: (offset, length).
    #[must_use]
    pub fn span(&self, object_size: u32) -> (u32, u32) {
        match self {
            Self::Remove { .. } => (0, object_size),
            Self::Write { .. } | Self::Zero { .. } => self.range(),
        }
    }

    /// Whether it touches a block of the range in any layer of the object.
    #[must_use]
    pub fn touches_beside(&self, object: ObjectId, offset: u32, len: u32) -> bool {
        self.object().is_beside(object) && self.touches(self.object(), offset, len)
    }

    /// Whether the two touch a common block.
    #[must_use]
    pub fn touches(&self, object: ObjectId, offset: u32, len: u32) -> bool {
        let (from, own) = self.range();
        self.object() == object && from < offset.saturating_add(len) && offset < from.saturating_add(own)
    }
}

impl LogEntry {
    /// The volume it changes.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.op.object().volume
    }

    /// The point in the log after this entry.
    #[must_use]
    pub fn point(&self) -> LogPoint {
        LogPoint { version: self.version, hash: self.hash() }
    }

    /// The chain's hash after this entry: over the hash before it and every field. It detects accidents and
    /// divergence, not malice. Part of the format.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let object = self.op.object();
        let (offset, len) = self.op.range();
        let kind = match &self.op {
            EntryOp::Write { .. } => 1u64,
            EntryOp::Zero { unmap: false, .. } => 2,
            EntryOp::Zero { unmap: true, .. } => 3,
            EntryOp::Remove { .. } => 4,
        };
        let fields = [
            self.version.c.0,
            self.version.seq,
            self.epoch.0,
            (self.request.session.0 >> 64) as u64,
            self.request.session.0 as u64,
            self.request.seq,
            self.acked_through,
            self.generation.0,
            self.snap_context.0,
            kind,
            u64::from(object.pool.0),
            object.volume.0,
            object.index,
            object.snapshot.0,
            u64::from(offset),
            u64::from(len),
        ];
        let mut hash = fields.iter().fold(mix(self.prev), |hash, field| mix(hash ^ field));
        if let EntryOp::Write { crcs, .. } = &self.op {
            hash = crcs.iter().fold(hash, |hash, crc| mix(hash ^ u64::from(*crc)));
        }
        hash
    }
}

/// A log entry with the data it writes; the data of anything but a write is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// The entry.
    pub entry: LogEntry,
    /// Whole blocks, as many as the entry has checksums.
    pub data: Bytes,
}

// ------------------------------------------------------------------------------------------------ object state

/// A run of neighbouring blocks in the same state: how recovery describes the content of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes from the object's start.
    pub offset: u32,
    /// Bytes, whole blocks.
    pub len: u32,
    /// What the blocks are.
    pub content: RunContent,
}

/// The state of every block of a [`Run`] (I10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunContent {
    /// Never written, or discarded.
    Absent,
    /// Explicit zeros.
    Zero,
    /// Data, with one crc32c per block.
    Data {
        /// `len` bytes.
        data: Bytes,
        /// One per block.
        crcs: Vec<u32>,
    },
}

/// A set of blocks of one object, one bit each, lowest block first. Trailing empty words are cut, so that equal
/// sets compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSet {
    words: Vec<u64>,
}

impl BlockSet {
    /// From the bits as [`BlockSet::words`] gives them.
    #[must_use]
    pub fn from_words(words: Vec<u64>) -> Self {
        let mut set = Self { words };
        set.cut();
        set
    }

    /// All blocks of an object of this many bytes.
    #[must_use]
    pub fn full(object_size: u32) -> Self {
        let mut set = Self::default();
        set.insert(0, object_size);
        set
    }

    /// The bits, 64 blocks a word.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Whether no block is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many blocks are in it.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether the block that starts at byte `offset` is in it.
    #[must_use]
    pub fn contains(&self, offset: u32) -> bool {
        let block = offset / BLOCK_SIZE;
        self.words.get(block as usize / 64).is_some_and(|word| word >> (block % 64) & 1 == 1)
    }

    /// Adds a byte range of whole blocks.
    pub fn insert(&mut self, offset: u32, len: u32) {
        for block in offset / BLOCK_SIZE..(offset + len) / BLOCK_SIZE {
            let word = block as usize / 64;
            if self.words.len() <= word {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= 1 << (block % 64);
        }
    }

    /// Takes a byte range of whole blocks out.
    pub fn remove(&mut self, offset: u32, len: u32) {
        let end = (u64::from(offset) + u64::from(len)).min(self.words.len() as u64 * 64 * u64::from(BLOCK_SIZE));
        for block in u64::from(offset / BLOCK_SIZE)..end / u64::from(BLOCK_SIZE) {
            self.words[block as usize / 64] &= !(1 << (block % 64));
        }
        self.cut();
    }

    /// Adds all of another set.
    pub fn merge(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// The byte ranges it is made of, as (offset, length), each as long as it can be.
    pub fn ranges(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let blocks = self.words.len() as u32 * 64;
        let has = |block: u32| self.contains(block * BLOCK_SIZE);
        let mut next = 0;
        std::iter::from_fn(move || {
            let start = (next..blocks).find(|block| has(*block))?;
            let end = (start..blocks).find(|block| !has(*block)).unwrap_or(blocks);
            next = end;
            Some((start * BLOCK_SIZE, (end - start) * BLOCK_SIZE))
        })
    }

    fn cut(&mut self) {
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }
}

// ---------------------------------------------------------------------------------------------------- messages

/// Everything one OSD says to another. A connection is bound to one incarnation at each end; what arrives from an
/// earlier incarnation than the newest one known is dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerMessage {
    /// "I live", and a request for a lease.
    Heartbeat(Heartbeat),
    /// The answer, sent at once: "so do I", and the grant.
    HeartbeatReply(HeartbeatReply),
    /// About one PG.
    Pg {
        /// Which.
        pg: PgId,
        /// The sender's configuration of it. An older one than the receiver's is dropped, a newer one waits for
        /// the receiver's map (I1).
        c: ConfVersion,
        /// The primary's activation this belongs to: unique over all activations of all incarnations of one OSD.
        attempt: u64,
        /// What.
        body: PgMessage,
    },
}

/// Sent every 250 ms to each OSD that shares a PG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The sender's clock, nanoseconds; meaningless to the receiver, who echoes it. The lease counts from here.
    pub sent_at: u64,
    /// The sender's map.
    pub epoch: Epoch,
    /// The sender is primary of a PG whose in-sync set has the receiver, and wants its lease.
    pub want_lease: bool,
    /// Age of the sender's oldest unfinished disk operation, milliseconds.
    pub oldest_io_ms: u32,
    /// The sender has no room for writes.
    pub full: bool,
    /// Commit points of PGs that the sender is primary of and shares with the receiver, where they moved.
    pub commits: Vec<PgCommit>,
}

/// The commit point of one PG, as its primary knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PgCommit {
    /// Which PG.
    pub pg: PgId,
    /// Under which configuration.
    pub c: ConfVersion,
    /// The activation in which the receiver was aligned.
    pub attempt: u64,
    /// Everything up to and including this position is committed.
    pub commit: u64,
}

/// Sent at once on each [`Heartbeat`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeartbeatReply {
    /// `sent_at` of the heartbeat that is answered.
    pub echo: u64,
    /// The incarnation that sent that heartbeat: a grant is for one life only.
    pub echo_incarnation: Incarnation,
    /// The grantor's map. The holder applies it before it uses the grant.
    pub epoch: Epoch,
    /// A lease was asked for and is granted.
    pub lease: bool,
    /// Age of the sender's oldest unfinished disk operation, milliseconds.
    pub oldest_io_ms: u32,
    /// The sender has no room for writes.
    pub full: bool,
}

/// What OSDs say about one PG.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PgMessage {
    // ---- order
    /// Primary to member: persist these, in this order, directly after what you have.
    Replicate {
        /// Everything up to here is committed.
        commit: u64,
        /// In order, without gaps.
        entries: Vec<Logged>,
    },
    /// Member to primary: everything up to here is persisted. Cumulative.
    Ack {
        /// The last persisted entry.
        persisted: LogPoint,
        /// Entries are missing after it: send again from there.
        gap: bool,
    },
    /// Member to primary: this entry's generation is fenced at my epoch, I will not persist it.
    Fenced {
        /// The entry.
        seq: u64,
        /// The epoch that fences it.
        epoch: Epoch,
    },

    // ---- activation
    /// Primary to member: where does your log end?
    QueryLog,
    /// Member to primary.
    LogReport(LogReport),
    /// Primary to member: send the entries after one position through another.
    FetchLog {
        /// Exclusive.
        after: u64,
        /// Inclusive.
        through: u64,
    },
    /// Member to primary: some or all of what was asked for, in order, from its beginning.
    LogEntries {
        /// In order, without gaps.
        entries: Vec<Logged>,
    },
    /// Primary to member of the in-sync set: cut your log back to this point, which is where it ends already unless
    /// it diverged above every commit point; then acknowledge it, and take what follows.
    Align {
        /// The point at which both logs agree.
        at: LogPoint,
    },

    // ---- recovery
    /// Primary to member outside the in-sync set: rewind, continue the log at `base`, and take note of what you
    /// miss. Acknowledged by an [`PgMessage::Ack`] of `base`.
    StartRecovery(Box<StartRecovery>),
    /// Primary to member: content of blocks that the member misses. Lands only where they are still missing.
    Push(Push),
    /// Member to primary: the push is persisted.
    PushAck {
        /// Of the [`Push`].
        id: u64,
    },
    /// To any member of the in-sync set: what do you have here? For repair of a block that rotted.
    Pull {
        /// Echoed.
        id: u64,
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// The answer; `None` where the copy asked for does not match its checksums either.
    PullReply {
        /// Of the [`PgMessage::Pull`].
        id: u64,
        /// The whole range asked for, in order.
        runs: Option<Vec<Run>>,
    },

    // ---- scrub
    /// Primary to member of the in-sync set: describe your copies.
    ScrubAsk(ScrubAsk),
    /// Member to primary: the description.
    ScrubFound(ScrubFound),
    /// Primary to member of the in-sync set: these blocks of yours are not what the log says.
    Mend(Mend),
}

/// The state of a member's log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogReport {
    /// The highest entry the member knows to be committed; everything up to here is applied.
    pub commit: LogPoint,
    /// The entries above it, in order; the last one is the log's end.
    pub tail: Vec<LogPoint>,
    /// The content up to `commit` is whole but for what recovery still owes. False: the content is worth nothing.
    pub usable: bool,
    /// Blocks are still missing from an unfinished recovery.
    pub missing: bool,
}

impl LogReport {
    /// Where the log ends.
    #[must_use]
    pub fn end(&self) -> LogPoint {
        self.tail.last().copied().unwrap_or(self.commit)
    }
}

/// The beginning of one member's recovery; see [`PgMessage::StartRecovery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRecovery {
    /// The member's log is cut back to here first.
    pub rewind_to: LogPoint,
    /// The log continues after this point: committed, and at or above `rewind_to`.
    pub base: LogPoint,
    /// What the member misses at `base`.
    pub missing: Missing,
    /// The dup table at `base` (I6).
    pub dups: Vec<SessionDups>,
    /// What every other absent member misses, which each member of the in-sync set keeps.
    pub absent: Vec<AbsentMember>,
}

/// What a member lacks at the base of its recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// These blocks of these objects.
    Blocks(Vec<(ObjectId, BlockSet)>),
    /// All of it: the member empties the PG first and is then filled in key order.
    Everything,
}

/// The executed requests of one session that its client may still resend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionDups {
    /// Whose.
    pub session: SessionId,
    /// The volume the session writes to.
    pub volume: VolumeId,
    /// The generation the session writes under; when it leaves the valid set the entry goes.
    pub generation: Generation,
    /// Requests at or below are refused without being executed.
    pub acked_through: u64,
    /// Executed requests above it: (request sequence, log position).
    pub executed: Vec<(u64, u64)>,
}

/// What is known of a member that left the in-sync set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbsentMember {
    /// Who.
    pub osd: OsdId,
    /// The log from the commit point to the end when it left: it had everything up to the first of these.
    pub anchor: Vec<LogPoint>,
    /// The dirty map: blocks changed after the anchor's first point.
    pub dirty: Vec<(ObjectId, BlockSet)>,
}

/// Content for a member that misses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// Echoed in the acknowledgement; unique within the attempt.
    pub id: u64,
    /// Which object.
    pub object: ObjectId,
    /// In order, not overlapping.
    pub runs: Vec<Run>,
    /// In a fill from nothing: this and every object before it (in key order) is complete with this push.
    pub cursor: Option<BackfillCursor>,
}

/// How far a fill from nothing has come, in the store's key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackfillCursor {
    /// Everything up to and including this object.
    Through(ObjectKey),
    /// Everything.
    End,
}

/// An object in the store's key order: bit-reversed hash first, then the id, so that a PG is one range and an
/// object's snapshots lie beside its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    hash: u64,
    object: ObjectId,
}

impl ObjectKey {
    /// The key of an object.
    #[must_use]
    pub fn new(object: ObjectId) -> Self {
        Self { hash: object.hash().reverse_bits(), object }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        self.object
    }
}

// ------------------------------------------------------------------------------------------------------ status

/// One PG as its OSD sees it: for status views and tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgStatus {
    /// Which.
    pub pg: PgId,
    /// The configuration in force here.
    pub c: ConfVersion,
    /// What this OSD does for it.
    pub state: PgState,
    /// The log's end.
    pub end: LogPoint,
    /// Committed through here.
    pub committed: LogPoint,
    /// Blocks that this OSD itself misses.
    pub missing_blocks: u64,
    /// Members that are being recovered by this primary.
    pub recovering: Vec<OsdId>,
    /// Client requests waiting or in flight.
    pub requests: u32,
    /// A scrub that this primary has under way: whether it reads data.
    pub scrubbing: Option<bool>,
    /// Blocks of which the last scrub of this primary knew no good copy.
    pub damaged_blocks: u64,
}

/// What an OSD does for a PG.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PgState {
    /// No member any more; the data is kept until it is told otherwise.
    Stray,
    /// Member, not the primary.
    Replica,
    /// Primary that has not finished its activation.
    Activating,
    /// Primary that serves.
    Active,
    /// Primary that may not serve: fewer members are in sync than the pool demands.
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolId;

    fn object(index: u64) -> ObjectId {
        ObjectId { pool: PoolId(1), volume: VolumeId(2), index, snapshot: SnapId::HEAD }
    }

    fn write(seq: u64, prev: u64) -> LogEntry {
        LogEntry {
            version: Version { c: ConfVersion(3), seq },
            prev,
            epoch: Epoch(4),
            request: RequestId { session: SessionId(5), seq: 6 },
            acked_through: 1,
            generation: Generation(7),
            snap_context: SnapId(0),
            op: EntryOp::Write { object: object(9), offset: 4096, crcs: vec![1, 2] },
        }
    }

    #[test]
    fn the_chain_is_part_of_the_format_and_every_field_counts() {
        let entry = write(1, 0);
        assert_eq!(entry.hash(), write(1, 0).hash());
        assert_ne!(entry.hash(), write(2, 0).hash());
        assert_ne!(entry.hash(), write(1, 1).hash());
        let mut other = write(1, 0);
        other.op = EntryOp::Write { object: object(9), offset: 4096, crcs: vec![1, 3] };
        assert_ne!(entry.hash(), other.hash());
    }

    #[test]
    fn entries_touch_where_blocks_are_common() {
        let op = write(1, 0).op;
        assert_eq!(op.range(), (4096, 8192));
        assert!(op.touches(object(9), 8192, 4096));
        assert!(!op.touches(object(9), 12288, 4096));
        assert!(!op.touches(object(8), 4096, 4096));
        assert!(EntryOp::Remove { object: object(9) }.touches(object(9), 0, 4096));
    }

    #[test]
    fn block_sets_give_back_their_ranges() {
        let mut set = BlockSet::default();
        set.insert(0, 8192);
        set.insert(63 * 4096, 3 * 4096);
        set.remove(4096, 4096);
        assert_eq!(set.ranges().collect::<Vec<_>>(), vec![(0, 4096), (63 * 4096, 3 * 4096)]);
        assert_eq!(set.count(), 4);
        set.remove(0, u32::MAX - 4095);
        assert!(set.is_empty());
        assert_eq!(BlockSet::full(4 << 20).count(), 1024);
    }
}
