//! The node's data daemon: shows volumes as block devices (FUSE + loop) or as NBD sockets, and survives restarts of
//! everything around it, itself included.
//!
//! `csi/` asks it over a unix socket. It never decides who may hold a volume (the metadata service does), never
//! formats and never mounts anything for a user. `unsafe` is confined to the loop device's ioctls
//! and to registering the FUSE descriptor with the runtime.

pub mod device;
pub mod exporter;
pub mod fuse;
pub mod keeper;
pub mod loop_device;
pub mod process;
