//! The HTTP door: connections, who is at the other end, what is asked for, and how answers are written.
//!
//! Nothing here knows a kind or the store.

pub(crate) mod body;
pub(crate) mod identity;
pub(crate) mod respond;
pub(crate) mod server;
pub(crate) mod target;
