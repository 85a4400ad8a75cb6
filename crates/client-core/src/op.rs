//! What is asked of a volume, under which limits, and how it can fail.

use std::time::Duration;

use bytes::Bytes;
use cairn_types::io::Refusal;
use cairn_types::{BLOCK_SIZE, Bytes4k, Epoch, Generation, PoolId, SessionId, SnapId, VolumeId};

use crate::stripe::cover;

/// The most data one operation reads or writes, bytes.
pub const MAX_DATA: u64 = 32 << 20;
/// The longest range one operation zeroes, or tells the states of, bytes.
pub const MAX_ZERO: u64 = 4 << 30;

/// A block that was never written, or discarded: it reads as zeros.
pub const ABSENT: u8 = 0;
/// A block that was written as zeros, or discarded above an older layer.
pub const ZERO: u8 = 1;
/// A block with data.
pub const DATA: u8 = 2;

/// One operation's number within its core, rising from 1 in the order in which operations came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One operation. Offsets and lengths are bytes of the volume, of any alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Ends with the bytes.
    Read {
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA`].
        len: u64,
    },
    /// Ends when the bytes are durable on every in-sync replica.
    Write {
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA`].
        data: Bytes,
    },
    /// Makes the range read as zeros, durably.
    Zero {
        /// First byte.
        offset: u64,
        /// At most [`MAX_ZERO`].
        len: u64,
        /// Gives the space back, too.
        unmap: bool,
    },
    /// Ends with one byte for each block of the range: [`ABSENT`], [`ZERO`] or [`DATA`].
    Status {
        /// First byte.
        offset: u64,
        /// At most [`MAX_ZERO`].
        len: u64,
        /// Only what was written after this snapshot. 0: everything.
        since: SnapId,
        /// Of a clone: what it reads from its parents counts, too.
        parents: bool,
    },
    /// Of a clone: makes what it reads from its parents its own, so that it does without them. Nothing that is read
    /// changes.
    CopyUp {
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA`].
        len: u64,
    },
    /// Ends when every write that came before it has ended. A write that has ended is durable, so this is all
    /// there is to do.
    Flush,
}

impl Op {
    /// The bytes it is about, as (offset, length).
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Self::Read { offset, len }
            | Self::Zero { offset, len, .. }
            | Self::Status { offset, len, .. }
            | Self::CopyUp { offset, len } => (*offset, *len),
            Self::Write { offset, data } => (*offset, data.len() as u64),
            Self::Flush => (0, 0),
        }
    }

    /// Whether it changes the volume.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Zero { .. } | Self::CopyUp { .. })
    }

    /// Bytes it keeps in memory until it ends.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        match self {
            Self::Read { len, .. } | Self::CopyUp { len, .. } => *len,
            Self::Status { len, .. } => len.div_ceil(u64::from(BLOCK_SIZE)),
            Self::Write { data, .. } => data.len() as u64,
            Self::Zero { .. } | Self::Flush => 0,
        }
    }

    /// The whole blocks that it touches.
    pub(crate) fn blocks(&self) -> Bytes4k {
        let (offset, len) = self.range();
        cover(offset, len)
    }

    /// Why it can never succeed on a volume of this size.
    pub(crate) fn check(&self, config: &Config, size: u64) -> Result<(), IoError> {
        let (offset, len) = self.range();
        let limit = if matches!(self, Self::Zero { .. } | Self::Status { .. }) { MAX_ZERO } else { MAX_DATA };
        if len > limit {
            return Err(IoError::TooLong { len, limit });
        }
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(IoError::OutOfRange { offset, len, size });
        }
        if self.is_write() && (config.read_only || config.view != SnapId::HEAD) {
            return Err(IoError::ReadOnly);
        }
        Ok(())
    }
}

/// What a core is made for.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data session, fresh for this core.
    pub session: SessionId,
    /// The volume.
    pub volume: VolumeId,
    /// The pool that stores it.
    pub pool: PoolId,
    /// The holding. 0: none, only to ask for states, or to read a snapshot.
    pub generation: Generation,
    /// No request leaves under a map older than this: the fence holds from this epoch on.
    pub min_epoch: Epoch,
    /// Bytes of the volume, a multiple of the block size.
    pub size: u64,
    /// Bytes of its objects, a power of two of at least one block.
    pub object_size: u32,
    /// The newest snapshot when the volume was attached.
    pub snap_context: SnapId,
    /// What is read: [`SnapId::HEAD`], or one of the volume's snapshots, which is then all that this core is for.
    pub view: SnapId,
    /// Of a clone: where what it does not know is read, the nearest first.
    pub parents: Vec<Parent>,
    /// Writes are refused here already.
    pub read_only: bool,
    /// Operations taken at once.
    pub max_ops: usize,
    /// Bytes held by operations; one more whole operation is taken below it.
    pub max_bytes: u64,
    /// Requests in flight at once.
    pub max_requests: usize,
    /// When to lose patience.
    pub timing: Timing,
}

/// A snapshot that a clone was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its volume.
    pub volume: VolumeId,
    /// The pool that stores that one, in objects of the same size.
    pub pool: PoolId,
    /// The snapshot.
    pub snapshot: SnapId,
    /// Bytes that the child has of it; beyond there is nothing.
    pub size: u64,
}

/// How long things may take before they are tried again.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A request without an answer is sent again after this.
    pub resend: Duration,
    /// The pause after the first transient refusal; doubles from one to the next.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// For a snapshot, writes are held back so long at most until those before them are done; then it is not taken.
    pub drain: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            resend: Duration::from_secs(5),
            first_pause: Duration::from_millis(10),
            longest_pause: Duration::from_secs(1),
            drain: Duration::from_secs(5),
        }
    }
}

/// Why an operation failed. None of these comes from weather: they do not go away by trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// It reaches beyond the end.
    #[error("{offset}+{len} reaches beyond the end of the volume at {size}")]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Of the volume.
        size: u64,
    },
    /// It is longer than one operation may be.
    #[error("{len} bytes in one operation, at most {limit} are allowed")]
    TooLong {
        /// Bytes.
        len: u64,
        /// At most.
        limit: u64,
    },
    /// The volume is held for reading only.
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// Another holder took the volume over, or it was deleted. Every operation of this session fails from now on.
    #[error("another holder took the volume over")]
    Fenced,
    /// The snapshot that is read is deleted. Every operation of this session fails from now on.
    #[error("the snapshot does not exist any more")]
    NoSnapshot,
    /// The data cannot be read anywhere with a matching checksum.
    #[error("no copy of the data has a matching checksum")]
    Corrupt,
    /// The OSD answered what no OSD may answer.
    #[error("an OSD broke the protocol: {0}")]
    BadAnswer(BadAnswer),
}

/// How an answer was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// A refusal that this request cannot earn.
    #[error("{0}")]
    Refusal(Refusal),
    /// Data for a write, or none for a read, or of the wrong length.
    #[error("an answer that does not fit the request")]
    Shape,
}
