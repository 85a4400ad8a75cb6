//! One member of the metadata service without I/O: raft-rs, the state machine, and what it keeps on disk as a trait.
//! The daemon drives it with RocksDB, sockets and a clock; the simulation with [`MemoryStore`] and a virtual network.
//!
//! It never opens a file or a socket, never looks at a clock, and knows no tokio.

#![forbid(unsafe_code)]

mod log_view;
pub mod membership;
mod memory;
mod node;
mod reads;
mod snapshots;
mod store;
#[cfg(any(test, feature = "suite"))]
pub mod suite;
mod terms;

pub use memory::{MemoryStore, manifest_of, piece_of};
pub use node::{Following, Node, NodeConfig, NodeError, NotTaken, Output, Role};
pub use reads::Ticket;
pub use snapshots::{SNAPSHOT_FORMAT, digest_records};
pub use store::{Piece, Position, Store, StoreError, position_of};
pub use terms::Terms;
