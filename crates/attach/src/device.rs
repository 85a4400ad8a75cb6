//! What an exporter exports: a block device as a plain trait, so that exporters know neither the cluster nor each
//! other, and are tested over a file or over memory.
//!
//! An acknowledged write is durable; there is no volatile cache behind this trait, so `flush` is only a barrier.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// A device of bytes. Every call may run concurrently with every other; the implementation orders overlapping
/// writes in the order in which they were called.
#[async_trait]
pub trait BlockDevice: Send + Sync + 'static {
    /// Bytes, at this moment: it grows when the volume does.
    fn size(&self) -> u64;

    /// Exactly `len` bytes from `offset`.
    ///
    /// # Errors
    /// [`IoError`]; nothing was returned.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError>;

    /// Durable when it returns.
    ///
    /// # Errors
    /// [`IoError`]; any part of the range may or may not have been written.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError>;

    /// The range reads as zeros afterwards; `unmap` also gives the space back.
    ///
    /// # Errors
    /// [`IoError`]; any part of the range may or may not have been zeroed.
    async fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), IoError>;

    /// Everything acknowledged before is durable.
    ///
    /// # Errors
    /// [`IoError`].
    async fn flush(&self) -> Result<(), IoError>;
}

/// An exporter shares its device with the requests in flight.
pub type SharedDevice = Arc<dyn BlockDevice>;

/// Why a request to the device failed for good. Weather (a dead OSD, a new leader) is waited out below this trait
/// and never surfaces here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// Another holder took the volume over: nothing will succeed under this session again.
    #[error("another holder took the volume over")]
    Fenced,
    /// The holding may only read.
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// No copy with a matching checksum could be found.
    #[error("no copy of the data has a matching checksum")]
    Corrupt,
    /// The cluster is full.
    #[error("the cluster has no space left; add capacity or delete volumes")]
    NoSpace,
    /// The range ends beyond the device.
    #[error("the range ends beyond the device")]
    OutOfRange,
    /// The session was closed while the request was on its way.
    #[error("the session was closed")]
    Closed,
    /// An OSD answered what no OSD may answer.
    #[error("an OSD broke the data-path protocol")]
    Protocol,
}

impl IoError {
    /// The errno that the kernel is told.
    #[must_use]
    pub fn errno(self) -> i32 {
        match self {
            Self::Fenced | Self::Corrupt | Self::Closed | Self::Protocol => libc::EIO,
            Self::ReadOnly => libc::EROFS,
            Self::NoSpace => libc::ENOSPC,
            Self::OutOfRange => libc::EINVAL,
        }
    }
}
