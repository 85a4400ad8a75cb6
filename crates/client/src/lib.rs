//! A volume as an async object: open it under a holding, read, write, zero and flush it, close it.
//!
//! One task owns the state machine of `client-core` and the connections to the OSDs; handles talk to that task. An
//! operation waits through failover: it returns when its outcome is certain, unless the caller set a deadline. A
//! future that is dropped does not take its operation back; the volume finishes it in its place in the order.
//!
//! This room decides nothing about requests (the core does) and nothing about who may hold a volume (the metadata
//! service does).

#![forbid(unsafe_code)]

mod driver;
mod holding;
mod volume;

pub use cairn_client_core::{ABSENT, DATA, IoError, MAX_DATA, MAX_ZERO, Parent, Timing, ZERO};
pub use cairn_rpc::{Address, Backoff};
pub use holding::{AttachError, Claim, Holding};
pub use volume::{Options, Volume, VolumeError};
