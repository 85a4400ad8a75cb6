//! Why the store cannot be opened, or cannot go on.

use crate::codec::Malformed;

/// An error that ends the use of the store: the OSD stops, and what the next life believes is only what the disk
/// says (I14).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Disk(#[from] cairn_disk::Error),
    /// The device was never formatted.
    #[error("there is no Cairn superblock on this device; format it first")]
    NotFormatted,
    /// The device has a superblock already.
    #[error("this device holds OSD data of cluster {cluster} already; it is not formatted again unless forced")]
    AlreadyFormatted {
        /// Whose.
        cluster: uuid::Uuid,
    },
    /// The device was in use, and neither copy of its superblock is whole.
    #[error(
        "this device was in use, and both copies of its superblock are corrupt; replace this OSD, its peers have the data"
    )]
    CorruptSuperblock,
    /// The device holds something that is not ours.
    #[error(
        "this device is not blank (byte {at} is not zero): it may hold a filesystem or a partition table; wipe its \
         first MiB if nobody needs what is on it"
    )]
    NotBlank {
        /// The first byte that is not zero.
        at: u64,
    },
    /// The device is too small for what it must hold, or became smaller.
    #[error("the device has {found} bytes; {needed} are needed")]
    TooSmall {
        /// Its size.
        found: u64,
        /// At least this.
        needed: u64,
    },
    /// Bytes off the disk that this program must not or cannot use.
    #[error("{place} cannot be used: {malformed}")]
    Malformed {
        /// Which structure.
        place: String,
        /// What is wrong.
        malformed: Malformed,
    },
    /// A node of the index does not match the checksum its parent holds.
    #[error("the index is corrupt: the node at block {block} has checksum {found:08x}, its parent says {expected:08x}")]
    CorruptIndex {
        /// Where.
        block: u64,
        /// What the parent says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// The newest superblock is gone, and what the one before it leads to is not whole any more.
    #[error(
        "the newest copy of the superblock is corrupt, and block {block} of the index that the older one leads to was \
         used again since; replace this OSD, its peers have the data"
    )]
    StaleSuperblock {
        /// Which.
        block: u64,
    },
    /// Two rows, or a row and a node, claim the same block, or one outside the area.
    #[error("the index is corrupt: block {block} is claimed twice or does not exist")]
    CorruptExtent {
        /// Which.
        block: u64,
    },
    /// A record in the middle of the log is bad although its flush had completed: this is rot, not a torn tail, and
    /// what it held may have been acknowledged. Nothing is cut off.
    #[error(
        "the log is corrupt: record {lsn} at ring offset {ring_pos} is bad, but record {witness} says that it was \
         durable; replace this OSD, its peers have the data"
    )]
    CorruptLog {
        /// The bad record.
        lsn: u64,
        /// Where it should be.
        ring_pos: u64,
        /// The later record that proves it.
        witness: u64,
    },
    /// No room for index nodes: the reserve was used up, which is a bug.
    #[error("no space left for the index")]
    NoIndexSpace,
}
