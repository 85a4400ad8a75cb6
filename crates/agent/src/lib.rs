//! The node agent: pods through CRI, volumes through CSI.

#![forbid(unsafe_code)]

pub mod containerd;
pub mod cri;
mod mounts;
mod names;
