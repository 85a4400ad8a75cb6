//! Places pods on nodes.
//!
//! The decision is a pure function over a snapshot of the cluster: filter the nodes that cannot run the pod, score the
//! rest, and say in one sentence why when none is left. The driver watches, decides and binds; it decides nothing by
//! itself. Pods that name another scheduler are left to it.

#![forbid(unsafe_code)]

mod affinity;
mod decide;
mod driver;
mod filter;
mod quantity;
mod snapshot;
mod volumes;

pub use driver::{Config, Error, run};
