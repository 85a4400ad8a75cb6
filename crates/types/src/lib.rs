//! The nouns of Cairn: identifiers, epochs, sizes, the cluster map, volumes, and the requests of the data path.
//!
//! Everybody may stand on this crate; it stands on nothing of ours. It knows no I/O, no clock and no wire
//! format: `wire` and `proto` turn these types into bytes. A value of one of these types has been checked where
//! it was made, so that no room behind the doors has to check it again.

#![forbid(unsafe_code)]

pub mod id;
pub mod io;
pub mod map;
pub mod peer;
pub mod scrub;
pub mod size;
pub mod volume;

pub use id::{
    ConfVersion, Epoch, Generation, Incarnation, NodeName, ObjectId, OsdId, PgId, PoolId, RequestId, SessionId, SnapId,
    TraceId, Version, VolumeId,
};
pub use size::{BLOCK_SIZE, BLOCKS_PER_OBJECT, Bytes4k, MAX_PAYLOAD, OBJECT_SIZE};
