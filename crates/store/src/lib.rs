//! The object store engine of one OSD: a log that is the truth, data extents, checksums, and an index, all on one
//! [`cairn_disk::Disk`].
//!
//! It has never heard of the network and never touches the disk while it runs: [`Store`] is a machine that is fed
//! requests and I/O results and names I/O and answers. `docs/design/disk-format.md` describes the bytes.

#![forbid(unsafe_code)]

mod alloc;
mod codec;
mod engine;
mod error;
mod format;
mod io;
mod key;
pub mod planted;
mod record;
mod scan;
pub mod segment;
pub mod superblock;
mod transaction;
mod tree;
mod verify;
mod walk;

#[cfg(test)]
mod tests;

pub use codec::Malformed;
pub use engine::{Config, Opened, Store, open, write_identity};
pub use error::Error;
pub use format::{FormatOptions, MIN_AREA, MIN_RING, format, read_superblock};
pub use io::{Io, IoId, IoOp, IoResult};
pub use key::{Key, MAX_ATTRIBUTE_NAME, Scope};
pub use superblock::Identity;
pub use transaction::{LoadedPg, Output, ReadFailure, ReadReply, Rejection, Token, Transaction, Usage};
pub use tree::NodeRef;
pub use verify::{MAX_PROBLEMS, Problem, Report, verify};
