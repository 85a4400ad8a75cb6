//! One OSD's replication as a state machine without I/O: facts come in through `handle_*`, orders go out through
//! `poll_output`, the next wake-up is `poll_timeout`.
//!
//! Never here: a clock, a socket, a thread, randomness that is not the seed's, a decision left to the driver. The
//! metadata service decides who is a member; the store makes bytes durable; this crate decides when a write is
//! committed, when a read may be answered, and what a member that was away still lacks.
//!
//! The driver's duties: it carries out outputs in the order in which it takes them; transactions of one PG become
//! durable in that order (a later one never without an earlier one); messages of one connection arrive in order,
//! whole or not at all, and are dropped when they come from or go to a life of an OSD that has ended.

#![forbid(unsafe_code)]

mod core;
mod fills;
mod outbox;
pub mod output;
mod pace;
mod peers;
mod pg;
pub mod planted;
pub mod time;
mod upkeep;

pub use core::OsdCore;
pub use output::{
    CasOutcome, CasToken, Config, ConnId, DownEvidence, InspectToken, ListToken, LoadedPg, Output, PersistToken,
    PgChange, PgDecision, ReadFailure, ReadToken, StopReason, Transaction,
};
pub use pg::{BadRecord, BrokenLog, LoadError, Remembered, remembered};
pub use time::Time;
