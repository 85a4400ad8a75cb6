//! The node's data daemon: shows volumes as block devices (FUSE + loop) or as NBD sockets, and survives restarts of
//! everything around it, itself included.
//!
//! `csi/` asks it over a unix socket. It never decides who may hold a volume (the metadata service does), never
//! formats and never mounts anything for a user. `unsafe` is confined to the loop device's ioctls
//! and to registering the FUSE descriptor with the runtime.

pub mod cluster;
mod daemon;
pub mod device;
pub mod exporter;
pub mod fuse;
pub mod keeper;
pub mod loop_device;
mod mounts;
pub mod process;
mod record;
mod resume;
mod run;
mod service;
mod socket;
pub mod source;
mod status;

pub use keeper::{KeeperConfig, run_keeper};
pub use run::{Config, Error, run, run_with, teardown};
