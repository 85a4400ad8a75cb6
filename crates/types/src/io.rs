//! What clients ask of OSDs and what they are answered: the data path's nouns, before `wire` makes frames of them.

use bytes::Bytes;

use crate::{BLOCK_SIZE, ConfVersion, Epoch, Generation, ObjectId, PgId, RequestId, SnapId, TraceId, VolumeId};

/// One request to the primary of one PG, about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRequest {
    /// Same on every resend.
    pub id: RequestId,
    /// Every request of the session with a sequence at or below this one has been answered and will not be
    /// resent: replies up to here may be forgotten (I6).
    pub acked_through: u64,
    /// Ties log lines together.
    pub trace: TraceId,
    /// The PG the client computed from the map.
    pub pg: PgId,
    /// The configuration of that PG the client knows.
    pub c: ConfVersion,
    /// The map epoch the client knows.
    pub epoch: Epoch,
    /// The volume.
    pub volume: VolumeId,
    /// The holding under which the client acts.
    pub generation: Generation,
    /// The snapshot context of the write: the newest snapshot the client knows of.
    pub snap_context: SnapId,
    /// What to do.
    pub op: ClientOp,
}

/// What a client can ask. Offsets are within the object; offset and length are whole blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOp {
    /// Answered with data and its checksums; absent blocks read as zeros and are marked so.
    Read {
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
    },
    /// Replaces whole blocks.
    Write {
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Whole blocks.
        data: Bytes,
        /// crc32c of each block of `data`, made by the client.
        crcs: Vec<u32>,
    },
    /// Makes the range read as zeros; `unmap` also gives the space back and forgets that it was ever written.
    Zero {
        /// Which object.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Discard: the blocks become absent. Otherwise they become explicit zeros.
        unmap: bool,
    },
    /// Answered with what each block is, and without its data.
    Status {
        /// Which object, as it is in which view.
        object: ObjectId,
        /// Bytes from its start.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Only what was written after this snapshot: blocks that did not change since are absent. 0: everything.
        since: SnapId,
    },
}

impl ClientOp {
    /// The object it is about.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        match self {
            Self::Read { object, .. }
            | Self::Write { object, .. }
            | Self::Zero { object, .. }
            | Self::Status { object, .. } => *object,
        }
    }

    /// The byte range within the object.
    #[must_use]
    pub fn range(&self) -> (u32, u32) {
        match self {
            Self::Read { offset, len, .. } | Self::Zero { offset, len, .. } | Self::Status { offset, len, .. } => {
                (*offset, *len)
            }
            Self::Write { offset, data, .. } => (*offset, data.len() as u32),
        }
    }

    /// Whether it changes the object.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Status { .. })
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientReply {
    /// Whose answer.
    pub id: RequestId,
    /// What came of it.
    pub result: Result<ReplyBody, Refusal>,
}

/// What a successful request returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyBody {
    /// The write is durable on every in-sync replica.
    Done,
    /// The blocks of the range, in order.
    Data(ReadData),
    /// The states of the blocks of the range, in order. A block that is being repaired counts as data.
    Status(Vec<BlockState>),
}

/// Data that was read, with the checksum that was stored for each block.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ReadData {
    /// Whole blocks; absent and zero blocks are zeros here. Nothing at all where only states are asked for.
    pub data: Bytes,
    /// One per block.
    pub blocks: Vec<BlockState>,
}

impl ReadData {
    /// This where it knows what is there, and elsewhere what lies below; `below` begins at this block of it.
    #[must_use]
    pub fn over(self, below: &Self, first: u32) -> Self {
        let Self { data, mut blocks } = self;
        let mut data = bytes::BytesMut::from(data);
        for (index, state) in below.blocks.iter().enumerate() {
            let at = first as usize + index;
            if blocks.get(at) == Some(&BlockState::Absent) {
                blocks[at] = *state;
                if matches!(state, BlockState::Data { .. }) && !data.is_empty() {
                    let size = BLOCK_SIZE as usize;
                    data[at * size..(at + 1) * size].copy_from_slice(&below.data[index * size..(index + 1) * size]);
                }
            }
        }
        Self { data: data.freeze(), blocks }
    }
}

/// What one 4 KiB block is, by an explicit record (I10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockState {
    /// Never written, or discarded; a clone reads its parent here.
    Absent,
    /// Written as zeros; or discarded where an older layer may know the block.
    Zero,
    /// Data with this crc32c.
    Data {
        /// Of the stored bytes.
        crc: u32,
    },
}

/// Why a request was not executed, and what the client does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// This OSD is not the primary in the PG's present interval: wait for the map at `epoch`, then resend.
    #[error("not the primary of this PG at {epoch}")]
    NotPrimary {
        /// The epoch the OSD has.
        epoch: Epoch,
    },
    /// The client's map is older than the primary's interval: wait for the map at `epoch`, then resend.
    #[error("the request was made for an older interval than {epoch} has")]
    StaleMap {
        /// The epoch the OSD has.
        epoch: Epoch,
    },
    /// Too many requests wait at this OSD: resend after a while.
    #[error("the OSD is busy")]
    Busy,
    /// Another holder took the volume over: this session is finished for good.
    #[error("another holder took the volume over")]
    Fenced,
    /// The generation may only read.
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// The volume has a newer snapshot: the map says which.
    #[error("the snapshot context is older than the volume's newest snapshot")]
    StaleSnapContext,
    /// The snapshot that is to be read does not exist, or not any more.
    #[error("there is no such snapshot")]
    NoSnapshot,
    /// No copy with a matching checksum could be found.
    #[error("no copy of the block has a matching checksum")]
    Corrupt,
    /// The OSDs of this PG have no room left.
    #[error("the OSDs of this placement group are full; add capacity or delete volumes")]
    NoSpace,
    /// At or below the session's acked-through mark: it was executed, and its reply is forgotten.
    #[error("the request was acknowledged before")]
    AlreadyAcked,
    /// The request itself is wrong: unaligned, too long, checksums that do not fit the data.
    #[error("the request is malformed")]
    Malformed,
}

impl Refusal {
    /// Whether the same request, resent later, may succeed.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NotPrimary { .. } | Self::StaleMap { .. } | Self::Busy | Self::NoSpace)
    }
}
