//! Volumes of the cluster: attached through the metadata service, read and written through the client.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use cairn_client::{AttachError, Claim, Holding, Options, Volume, VolumeError};
use cairn_meta_client::{MapWatch, MetaClient, MetaError};
use cairn_proto::meta;
use cairn_types::map::Location;
use cairn_types::{Generation, NodeName, VolumeId};
use tonic::Code;

use crate::device::{BlockDevice, IoError};
use crate::source::{Held, HeldDevice, SourceError, VolumeSource, Want};

/// The cluster behind a metadata client.
pub struct Cluster {
    node: NodeName,
    location: Location,
    meta: MetaClient,
    maps: MapWatch,
}

impl Cluster {
    /// Follows the map from here on. Must be called within a runtime.
    #[must_use]
    pub fn new(node: NodeName, location: Location, meta: MetaClient) -> Self {
        let maps = meta.watch_map();
        Self { node, location, meta, maps }
    }

    fn holds(&self, volume: &meta::Volume) -> bool {
        volume.attachments.iter().any(|attachment| attachment.node == self.node.0)
    }
}

#[async_trait]
impl VolumeSource for Cluster {
    async fn register_node(&self) -> Result<(), SourceError> {
        let location = Some((&self.location).into());
        let (name, max_volumes) = (self.node.0.clone(), crate::daemon::MAX_EXPORTS as u32);
        let request = meta::RegisterNodeRequest { mutation: None, name, location, max_volumes };
        self.meta.register_node(request).await?;
        Ok(())
    }

    async fn attach(&self, want: &Want) -> Result<Held, SourceError> {
        let service = self.meta.with_request_id(&want.request_id);
        let volume = service.volume(want.volume).await?;
        if want.continues.is_some() && !self.holds(&volume) {
            return Err(SourceError::Ended { volume: want.volume });
        }
        // Published to this node alone: whoever else still has a session (a node that died, say) has lost it.
        let steal = want.steal || volume.published_nodes == [self.node.0.clone()];
        let (node, mode) = (self.node.0.clone(), want.mode);
        let claim = Claim { volume: want.volume, node, mode, steal, replaces: want.continues, restores: None };
        let holding = Holding::attach(&service, &claim).await?;
        tracing::info!(
            volume = %want.volume, generation = %holding.generation, session = %holding.session, epoch = %holding.epoch,
            "attached"
        );
        let opened = Volume::open(&holding, self.maps.clone(), Some(self.meta.clone()), Options::default());
        let device = Arc::new(ClusterDevice { id: want.volume, volume: opened, meta: self.meta.clone() });
        Ok(Held { name: volume.name, generation: holding.generation, device })
    }

    async fn holds(&self, volume: VolumeId, generation: Generation, request_id: &str) -> Result<bool, SourceError> {
        let volume = self.meta.with_request_id(request_id).volume(volume).await?;
        Ok(volume.attachments.iter().any(|attachment| attachment.generation == generation.0))
    }

    async fn detach(&self, volume: VolumeId, generation: Generation, request_id: &str) -> Result<(), SourceError> {
        match self.meta.with_request_id(request_id).end_session(volume, generation).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

struct ClusterDevice {
    id: VolumeId,
    volume: Volume,
    meta: MetaClient,
}

#[async_trait]
impl BlockDevice for ClusterDevice {
    fn size(&self) -> u64 {
        self.volume.size()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoError> {
        self.volume.read_at(offset, u64::from(len)).await.map_err(io_error)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), IoError> {
        self.volume.write_at(offset, data).await.map_err(io_error)
    }

    async fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), IoError> {
        self.volume.zero_at(offset, len, unmap).await.map_err(io_error)
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.volume.flush().await.map_err(io_error)
    }
}

#[async_trait]
impl HeldDevice for ClusterDevice {
    async fn refresh(&self, request_id: &str) -> Result<u64, SourceError> {
        let size = self.meta.with_request_id(request_id).volume(self.id).await?.size;
        // A closed session has no size to take on; its export says so itself.
        let _ = self.volume.grow_to(size).await;
        Ok(self.volume.size())
    }

    async fn close(&self) {
        self.volume.close().await;
    }
}

fn io_error(error: VolumeError) -> IoError {
    match error {
        VolumeError::Closed | VolumeError::Deadline { .. } => IoError::Closed,
        VolumeError::Io(error) => match error {
            cairn_client::IoError::OutOfRange { .. } | cairn_client::IoError::TooLong { .. } => IoError::OutOfRange,
            cairn_client::IoError::ReadOnly => IoError::ReadOnly,
            cairn_client::IoError::Fenced | cairn_client::IoError::NoSnapshot => IoError::Fenced,
            cairn_client::IoError::Corrupt => IoError::Corrupt,
            cairn_client::IoError::BadAnswer(_) => IoError::Protocol,
        },
    }
}

impl From<MetaError> for SourceError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::Unreachable { .. } => Self::Unreachable(error.to_string()),
            other => Self::Refused { code: other.code(), message: other.to_string() },
        }
    }
}

impl From<AttachError> for SourceError {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Meta(error) => error.into(),
            unusable => Self::Refused { code: Code::Internal, message: unusable.to_string() },
        }
    }
}
