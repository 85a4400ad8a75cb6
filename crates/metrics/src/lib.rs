//! What a daemon counts, and the page on which Prometheus reads it: text exposition over HTTP on a loopback port or a
//! unix socket, only where it was asked for.
//!
//! Nothing here runs by itself: a figure is either a counter that its owner adds to, or is asked for when somebody reads
//! the page. An idle daemon costs nothing more with it than without.

#![forbid(unsafe_code)]

mod outcomes;
mod page;
mod process;

pub use outcomes::Outcomes;
pub use page::{Error, Listen, Metrics, install, installed};
