//! The node agent: pods through CRI, volumes through CSI.

#![forbid(unsafe_code)]

pub mod containerd;
pub mod cri;
mod directory;
mod mounts;
mod names;
mod pod;
mod quantity;
mod server;
