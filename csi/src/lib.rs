//! The CSI driver `csi.cairn.dev`: Identity, Controller and Node services, and the kubelet's plugin registration.
//!
//! The controller half asks the metadata service; the node half asks the node's `attach` daemon over its socket and
//! mounts what that exports. It never links the client or the store, and holds nothing that a restart could lose:
//! killing it drops no disk. It advertises only what works.

#![forbid(unsafe_code)]

mod call;
mod capability;
mod capacity;
mod controller;
mod error;
mod fields;
mod filesystem;
mod identity;
mod node;
mod parameters;
mod registration;
mod run;
mod socket;
mod turns;

pub use run::{Config, Error, Mode, run};

/// The driver's name, as StorageClasses and CSIDriver objects spell it.
pub const DRIVER: &str = "csi.cairn.dev";
/// The newest CSI version that is spoken.
pub const CSI_VERSION: &str = "1.12.0";
