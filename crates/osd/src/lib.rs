//! The object storage daemon: joins the replication core, the store and the network.
//!
//! One thread, the shard's loop, owns the core, the store and every connection; everything that arrived in one turn
//! is handled, then submitted and sent together. Disk I/O is performed by helper threads, the metadata service is
//! spoken to from a tokio task; both hand their results to the loop through queues and its waker. The loop decides
//! nothing: it carries the core's orders to the store and the network, and their facts back.

#![forbid(unsafe_code)]

mod carrier;
mod control;
mod disk_io;
mod faults;
mod figures;
mod net;
mod requests;
mod shard;
mod socket;
mod start;

pub use start::{Config, Error, run};
