//! Framed data-path connections: handshake, batching, bounded queues, and for clients dialling with a deadline and
//! again after a failure.
//!
//! Two layers. [`Connection`] is a state machine over anything that reads and writes without blocking: an OSD's
//! loop drives it from readiness events. [`Link`] drives one from a tokio task and keeps dialling; it is polled by
//! its owner and spawns nothing, so that no operation passes from task to task.
//!
//! This room knows frames, not what they mean: it never retries an operation and never looks at the map.

#![forbid(unsafe_code)]

mod address;
mod connection;
mod link;
mod outbox;
mod stream;

pub use address::{Address, AddressError};
pub use connection::{Connection, ConnectionError, Event, Limits, Local, Reading};
pub use link::{Backoff, Dialled, Link, LinkConfig, LinkError, LinkEvent, dial};
pub use outbox::QueueError;
pub use stream::{Stream, tune};
