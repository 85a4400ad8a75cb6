//! The metadata daemon: one member of the Raft-replicated service that holds the cluster map, volumes, attachments and
//! the key-value space of API objects.
//!
//! One thread drives the member (`driver`), which itself knows no I/O beyond its store (`meta-raft`); RocksDB stands
//! behind it (`disk`); one TCP listener serves Cairn's own API, the etcd v3 API and the other members (`doors`).
//!
//! It decides nothing that the state machine (`meta-core`) should: a door checks, proposes, reads and answers.

#![forbid(unsafe_code)]

pub mod backup;
mod clock;
mod config;
pub mod disk;
mod doors;
mod driver;
mod figures;
mod gateway;
mod identity;
mod join;
mod kv_hub;
mod leader;
mod leases;
mod liveness;
mod membership;
mod own_session;
mod peers;
mod raft_log;
pub mod restore;
mod server;
mod tend;

pub use config::{Config, ConfigError};
pub use join::JoinError;
pub use server::{Error, run, serve};
