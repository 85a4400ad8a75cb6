//! One pod on this node: what it is (`spec`), what is (`observe`), what to do (`plan`), what to say (`status`), and
//! the worker that does it.

mod backoff;
mod container;
mod context;
mod dns;
mod env;
mod handler;
mod image;
mod observe;
mod patch;
mod plan;
#[cfg(test)]
mod plan_tests;
mod probes;
mod sandbox;
mod spec;
mod start;
mod status;
mod steps;
mod unverified;
mod words;
mod worker;

pub(crate) use context::{Context, Shared};
pub(crate) use dns::ClusterDns;
pub(crate) use env::{ConfigError, Surroundings, field, resource};
pub(crate) use image::Images;
pub(crate) use patch::merge_patch;
pub(crate) use sandbox::{NodeFacts, log_owner};
pub(crate) use spec::{PodKey, container};
pub(crate) use worker::{Desired, Worker};
