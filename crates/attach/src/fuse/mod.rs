//! A FUSE filesystem of one file, served by ourselves over a `/dev/fuse` descriptor that other processes may hold
//! and take over.
//!
//! Never mounted anywhere: the mount is detached, and lives as long as something has the file open. So nothing of
//! it can be left behind in anybody's mount table. One connection per volume, so that handing one over, failing one
//! or killing one concerns no other.

mod abi;
mod connection;
mod session;

pub use connection::Connection;
pub use session::Session;
