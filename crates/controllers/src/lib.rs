//! The controllers: they watch what users ask for and bring it about.
//!
//! - `claim` and `volume`: PersistentVolumeClaims are bound to PersistentVolumes, made by CSI `CreateVolume` or by an admin
//!   beforehand; grown, released, deleted.
//! - `attach`: VolumeAttachments follow pods and nodes, CSI `ControllerPublishVolume` follows VolumeAttachments.
//! - `node`, `pod`, `namespace`: nodes that fell silent, pods whose node is gone, namespaces that are to be emptied.
//!
//! Each has a pure half that decides from a picture of the world what the next step is, and a half that takes it. All of
//! it is level-triggered: a step is decided from what is, not from what happened, so that a restart, a lost event or a
//! repeated one changes nothing. Storage is known only as a CSI driver behind a socket.

#![forbid(unsafe_code)]

mod access;
mod attach;
mod claim;
mod csi;
mod matching;
mod namespace;
mod node;
mod pod;
mod quantity;
mod queue;
mod reconcile;
mod route;
mod run;
mod volume;
mod world;

pub use run::{Config, Error, run};
