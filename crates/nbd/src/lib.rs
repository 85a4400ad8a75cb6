//! The NBD protocol, server side, without I/O: fixed newstyle negotiation and transmission with simple and
//! structured replies, as the protocol's document describes them
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>).
//!
//! A [`Session`] is one connection. Bytes that were received are put before it, and it says what they mean: something
//! to send, a [`Request`] to execute, or the end. Requests are answered in any order.
//!
//! It never executes anything, and holds nothing but what the last bytes left unfinished. Every length that a client
//! declares is checked before it is waited for.

#![forbid(unsafe_code)]

mod errno;
mod number;
mod option;
mod session;
mod transmission;

pub use errno::Errno;
pub use session::{Event, Export, Session, Violation};
pub use transmission::{Command, MAX_DATA, Reply, Request, Ticket};

/// What clients should align to, bytes: what the storage underneath is made of.
pub const PREFERRED_BLOCK: u32 = 4096;
