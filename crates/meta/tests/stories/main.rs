//! Stories told to whole members over real sockets and disks.

mod client;
mod cluster;
mod etcd;
mod etcdctl;
mod members;
mod osds;
mod placement;
mod support;
