//! The replicated state machine of the metadata service: the cluster map, PG configurations, pools, volumes, attachments,
//! nodes, and a key-value space with etcd's semantics.
//!
//! A driver feeds it the committed commands of the Raft log in order and writes what it answers: [`Machine::apply`]
//! turns a command into a batch, a reply and events. The same code runs in the daemon (over RocksDB) and in the
//! simulation (over [`MemoryState`]).
//!
//! It never does I/O, never reads a clock, never draws a random number, never iterates in an order that another member
//! would not have. Times and random ids come in the command.
//!
//! Queries ([`query`], [`health`], [`kv`]) are plain functions of the machine and the state.

#![forbid(unsafe_code)]

mod attach;
mod capacity;
mod change;
mod clock;
mod fills;
pub mod health;
mod health_placement;
mod history;
mod keys;
pub mod kv;
mod machine;
pub mod members;
pub mod moves;
mod mutes;
mod osd;
mod pg;
mod placing;
mod plan;
mod pool;
pub mod query;
mod record;
mod refusal;
pub mod restore;
mod rules;
pub mod scrub;
mod session;
mod settings;
mod snapshot;
mod split;
mod state;
pub mod trash;
mod volume;
mod writes;

pub use machine::{Applied, Event, Machine, STATE_FORMAT, SUPPORTED_CLUSTER_VERSION};
pub use query::{FencePending, fence_pending};
pub use refusal::{Corrupt, Failure, Refusal};
pub use session::{REPLIES, SESSIONS};
pub use state::{Batch, Change, MemoryState, StateRead};
