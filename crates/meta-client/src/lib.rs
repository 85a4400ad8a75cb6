//! The way to the metadata service: finds a member that answers, retries what may be retried with the same
//! (session, seq), so that it is applied once, and follows the map.
//!
//! Any member answers any call, so this keeps to one until it fails and then asks the next. Every call has a deadline;
//! none hangs. It decides nothing: what a refusal means is the caller's business.

#![forbid(unsafe_code)]

mod calls;
mod endpoints;
mod error;
mod map_watch;
mod mutations;

pub use calls::MetaClient;
pub use error::MetaError;
pub use map_watch::MapWatch;
