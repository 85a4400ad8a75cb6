//! One pod on this node: what it is (`spec`), what is (`observe`), what to do (`plan`), what to say (`status`), and
//! the worker that does it.

mod backoff;
mod container;
mod dns;
mod env;
mod observe;
mod plan;
#[cfg(test)]
mod plan_tests;
mod sandbox;
mod spec;
mod status;

pub(crate) use dns::ClusterDns;
pub(crate) use sandbox::NodeFacts;
pub(crate) use spec::{PodKey, container};
