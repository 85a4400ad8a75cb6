//! What members of a PG tell each other in a scrub, and what comes of it: the state of each block as an index has it,
//! and whether the bytes were found to match. Nothing in this file decides anything; `osd-core` does.

use std::collections::BTreeMap;

use crate::io::BlockState;
use crate::peer::ObjectKey;
use crate::{ObjectId, OsdId, PgId};

/// The most objects of one PG that are compared at once.
pub const MAX_SCRUB_OBJECTS: usize = 64;

/// The most blocks of one PG that are named as damaged; what lies beyond is only counted.
pub const MAX_DAMAGED: usize = 64;

/// One member's copy of one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BlockCopy {
    /// Never written, or discarded.
    #[default]
    Absent,
    /// Explicit zeros.
    Zero,
    /// Data with this checksum in the index; of a deep scrub: and in the bytes.
    Data {
        /// As logged when the block was written.
        crc: u32,
    },
    /// The bytes do not match this checksum, or the medium does not give them.
    Rotten {
        /// As logged when the block was written.
        crc: u32,
    },
    /// The bytes were lost, and the index has no checksum of them either.
    Lost,
}

impl BlockCopy {
    /// What the index says of it.
    #[must_use]
    pub fn state(self) -> Option<BlockState> {
        match self {
            Self::Absent => Some(BlockState::Absent),
            Self::Zero => Some(BlockState::Zero),
            Self::Data { crc } | Self::Rotten { crc } => Some(BlockState::Data { crc }),
            Self::Lost => None,
        }
    }

    /// Nothing is known to be wrong with it.
    #[must_use]
    pub fn is_good(self) -> bool {
        !matches!(self, Self::Rotten { .. } | Self::Lost)
    }
}

/// Primary to member: what do you have of the next objects?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubAsk {
    /// Echoed; unique among the scrubs of the PG by one life of its primary.
    pub id: u64,
    /// Read the data too.
    pub deep: bool,
    /// Only objects after this one, in key order.
    pub after: Option<ObjectKey>,
    /// At most this many objects.
    pub limit: u32,
}

/// The answer to a [`ScrubAsk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubFound {
    /// Of the question.
    pub id: u64,
    /// Every entry up to this position is contained; later ones may be.
    pub at: u64,
    /// In key order; blocks after the last one named are absent.
    pub objects: Vec<(ObjectId, Vec<BlockCopy>)>,
    /// No object follows.
    pub end: bool,
}

/// Primary to member: your index differs from the log in these blocks; fetch them anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mend {
    /// Which object.
    pub object: ObjectId,
    /// Bytes from its start, and what the log says is there. In order.
    pub blocks: Vec<(u32, BlockState)>,
}

/// What one scrub of one PG found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScrubOutcome {
    /// Which PG.
    pub pg: PgId,
    /// Data was read too.
    pub deep: bool,
    /// The order it answers.
    pub order: u64,
    /// Objects compared.
    pub objects: u64,
    /// Blocks compared: those that any member has.
    pub blocks: u64,
    /// Bad copies found, by the OSD that holds them.
    pub found: BTreeMap<OsdId, u64>,
    /// Copies of those that are good again.
    pub repaired: u64,
    /// Blocks of which no good copy is known: the first [`MAX_DAMAGED`].
    pub damaged: Vec<DamagedBlock>,
    /// How many there are in all.
    pub damaged_count: u64,
}

/// A block that cannot be read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DamagedBlock {
    /// Which object.
    pub object: ObjectId,
    /// Bytes from its start.
    pub offset: u32,
    /// What is wrong.
    pub damage: Damage,
}

/// What is wrong with a block that has no good copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Damage {
    /// No copy matches the logged checksum.
    NoGoodCopy,
    /// The indexes differ, and the log does not reach back far enough to tell which is right.
    CopiesDiffer,
}
