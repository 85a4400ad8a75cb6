//! Runs a cluster's processes on one host: where its files lie, the certificates they trust, the order in which they
//! start, what happens when one dies, and how all of it is taken away again.
//!
//! This is the parent process of every OSD it starts, and so the one witness whose word proves an OSD dead: it saw
//! it exit. It knows the roles only by their command lines.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod join;
pub mod layout;
mod members;
mod mounts;
pub mod pki;
pub mod process;
mod quiesce;
pub mod reset;
pub mod roles;
pub mod runtime;
pub mod supervisor;
mod witness;

pub use cluster::{Cluster, ClusterOptions};
pub use layout::Layout;
pub use supervisor::supervise;
