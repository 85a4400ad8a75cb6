//! One volume as its holder sees it: reads, writes, zeroes and flushes of any alignment go in, requests to the
//! primaries of placement groups come out, and each operation ends once, with a result that is certain.
//!
//! What this room decides: where an operation is cut (objects, whole blocks, sub-block edges by read-modify-write
//! under the operation's own range), what waits for what, whom a request goes to by the map, and when it is sent
//! again. A request keeps its id for life, so that however often it is sent it is executed once (I6).
//!
//! What it never does: no I/O, no clock (`now` is an argument: time since any fixed moment), no randomness but the
//! seed, no answer that leaves open what happened. An operation waits through failover for as long as it takes;
//! only a fenced session ends everything, for good.
//!
//! Invariants, asserted: no two writes that overlap are in flight at once, and those that wait go in the order in
//! which they came; a read follows every write to its range that came before it; a flush ends after every write
//! that came before it; requests in flight and bytes held are bounded.

#![forbid(unsafe_code)]

mod core;
mod op;
mod order;
pub mod planted;
mod request;
mod running;
mod stripe;
mod throttle;

#[cfg(test)]
mod model;
#[cfg(test)]
mod stories;

pub use crate::core::{Core, Output};
pub use crate::op::{ABSENT, BadAnswer, Config, DATA, IoError, MAX_DATA, MAX_ZERO, Op, OpId, Parent, Timing, ZERO};
pub use crate::throttle::Throttle;
