//! The keeper: a process that does nothing but hold descriptors, so that a killed `attach` finds its devices again.
//!
//! A FUSE connection lives as long as anybody has its descriptor open. `attach` gives the keeper a duplicate of each,
//! under a name and with a few bytes of metadata; its successor fetches them and has the kernel send again what was
//! in flight. The keeper never looks into descriptors or metadata, never reads from a descriptor, and keeps nothing
//! on disk. It is one thread and so small that there is no reason to restart it: only `cairn reset` ends it.
//!
//! Each request is one connection on a unix seqpacket socket (mode 0600), one packet each way; see [`packet`].

mod client;
mod packet;
mod server;

pub use client::KeeperClient;
pub use server::{KeeperConfig, run_keeper};

/// Descriptors kept at once: volumes on one node.
pub const MAX_ENTRIES: usize = 512;
/// Bytes of a name.
pub const MAX_NAME: usize = 64;
/// Bytes of metadata of one entry.
pub const MAX_METADATA: usize = 192;

/// A descriptor's name with the metadata that its owner left beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As given.
    pub name: String,
    /// As given.
    pub metadata: Vec<u8>,
}

/// Why the keeper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The socket does not answer.
    #[error("{socket}: {source}")]
    Unreachable {
        /// The socket's path.
        socket: String,
        /// What the machine said.
        source: std::io::Error,
    },
    /// It answered something that is not an answer.
    #[error("the keeper's packet is corrupt: {0}")]
    Corrupt(&'static str),
    /// It speaks another version.
    #[error("the keeper speaks version {found} of its protocol, this program version {expected}; restart the keeper")]
    Version {
        /// The peer's.
        found: u16,
        /// Ours.
        expected: u16,
    },
    /// All places are taken.
    #[error("the keeper holds {MAX_ENTRIES} descriptors already; unexport a volume first")]
    Full,
    /// Name or metadata exceed their bounds.
    #[error("name or metadata are longer than the keeper takes")]
    TooLong,
    /// The keeper itself could not work.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The machine's answer.
        source: std::io::Error,
    },
}

impl KeeperError {
    /// Whether it says that no keeper runs at all.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        use std::io::ErrorKind;
        matches!(self, Self::Unreachable { source, .. }
            if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound))
    }
}
