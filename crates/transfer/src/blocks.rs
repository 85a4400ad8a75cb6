//! What a volume, or a snapshot, is here: bytes with states. The cluster's volumes are one; tests have another.

use async_trait::async_trait;
use bytes::Bytes;
use cairn_client::{Volume, VolumeError};
use cairn_types::SnapId;

/// A volume or a snapshot. Ranges lie within it, and are of at most 32 MiB; of states, 4 GiB.
#[async_trait]
pub trait Blocks: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Exactly these bytes.
    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, VolumeError>;
    /// Durable when it returns.
    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError>;
    /// Reads as zeros from then on, and takes no space where that can be.
    async fn discard(&self, offset: u64, len: u64) -> Result<(), VolumeError>;
    /// A byte for each block: [`cairn_client::ABSENT`], [`cairn_client::ZERO`] or [`cairn_client::DATA`].
    async fn status(&self, offset: u64, len: u64, since: SnapId, parents: bool) -> Result<Bytes, VolumeError>;
    /// Makes what it reads from parents its own.
    async fn copy_up(&self, offset: u64, len: u64) -> Result<(), VolumeError>;
}

#[async_trait]
impl Blocks for Volume {
    fn size(&self) -> u64 {
        Self::size(self)
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, VolumeError> {
        self.read_at(offset, len).await
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.write_at(offset, data).await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.zero_at(offset, len, true).await
    }

    async fn status(&self, offset: u64, len: u64, since: SnapId, parents: bool) -> Result<Bytes, VolumeError> {
        self.status_at(offset, len, since, parents).await
    }

    async fn copy_up(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.copy_up_at(offset, len).await
    }
}
