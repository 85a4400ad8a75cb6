//! What each controller call does.

use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use cairn_proto::{csi, meta};
use cairn_types::volume::AttachMode;
use cairn_types::{SnapId, VolumeId};
use tonic::Code;

use super::pools;
use super::snapshots;
use crate::capability::{Access, Capability};
use crate::capacity::Bounds;
use crate::error::CsiError;
use crate::fields::{ATTACH_MODE, checked_name, known, number, present};
use crate::parameters::{Changes, Parameters};
use crate::turns::Turns;

pub(super) type Outcome<T> = Result<T, CsiError>;

/// One call's view: the metadata service under its request id.
pub(super) struct Calls {
    pub(super) meta: MetaClient,
    pub(super) turns: Turns,
}

impl Calls {
    pub(super) async fn create_volume(&self, request: csi::CreateVolumeRequest) -> Outcome<csi::CreateVolumeResponse> {
        let name = checked_name(&request.name)?;
        let capabilities = Capability::parse_all(&request.volume_capabilities)?;
        let wanted = Parameters::parse(&request.parameters)?;
        let limits = limits(Changes::parse(&request.mutable_parameters)?);
        let bounds = Bounds::of(request.capacity_range.as_ref())?;
        let least = capabilities.iter().map(Capability::least).max().unwrap_or_default();
        let source = request.volume_content_source;
        let _turn = self.turns.take(name).await;
        if let Some(existing) = self.made_of(name, source.as_ref()).await?
            && bounds.fits(existing.size)
        {
            self.release(name, source.as_ref()).await?;
            return Ok(csi::CreateVolumeResponse { volume: Some(shown_with(&existing, source)) });
        }
        let content = self.content(name, source.as_ref()).await?;
        let made = self.make(name, wanted, limits, (bounds, least), content.as_ref()).await;
        // What was taken for a clone that cannot be made is not wanted either.
        let released = self.release(name, source.as_ref()).await;
        let volume = made?;
        released?;
        tracing::info!(volume = volume.id, pool = volume.pool_name, size = volume.size, "created");
        Ok(csi::CreateVolumeResponse { volume: Some(shown_with(&volume, source)) })
    }

    async fn make(
        &self,
        name: &str,
        wanted: Parameters,
        limits: Option<meta::VolumeLimits>,
        (bounds, least): (Bounds, u64),
        content: Option<&meta::Snapshot>,
    ) -> Outcome<meta::Volume> {
        let least = content.map_or(least, |snapshot| least.max(snapshot.size));
        let size = bounds.size(least)?;
        let pool = match content {
            // Where nothing else is said, a clone lies beside its source.
            Some(snapshot) if wanted.is_silent() => snapshot.pool_name.clone(),
            _ => self.pool(&wanted).await?,
        };
        let create = meta::CreateVolumeRequest {
            name: name.to_owned(),
            pool,
            size,
            labels: wanted.labels.into_iter().collect(),
            retention_s: wanted.retention_s,
            limits,
            source: content.map(|snapshot| snapshots::by_id(SnapId(snapshot.id))),
            ..Default::default()
        };
        match self.meta.create_volume(create.clone()).await {
            Ok(reply) => reply.volume.ok_or(CsiError::Unreadable("volume")),
            // The metadata service wants the very same size; a range is met by others too.
            Err(error) if error.code() == Code::AlreadyExists => self.existing(&create, bounds).await,
            Err(error) => Err(error.into()),
        }
    }

    /// A clone of that name that was made of this source before. The source may be gone by now.
    async fn made_of(&self, name: &str, source: Option<&csi::VolumeContentSource>) -> Outcome<Option<meta::Volume>> {
        let Some(source) = source.and_then(|source| source.r#type.as_ref()) else { return Ok(None) };
        let by = Some(meta::volume_ref::By::Name(name.to_owned()));
        let found = self.meta.get_volume(meta::GetVolumeRequest { volume: Some(meta::VolumeRef { by }) }).await;
        let found = match found {
            Ok(found) => found.volume,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error.into()),
        };
        let same = |volume: &meta::Volume| {
            volume.parents.first().is_some_and(|parent| match source {
                Source::Volume(VolumeSource { volume_id }) => parent.volume.to_string() == *volume_id,
                Source::Snapshot(SnapshotSource { snapshot_id }) => parent.snapshot.to_string() == *snapshot_id,
            })
        };
        Ok(found.filter(same))
    }

    /// The name of the pool that is meant.
    async fn pool(&self, wanted: &Parameters) -> Outcome<String> {
        let (pools, nodes) = self.pools_and_nodes().await?;
        let chosen = pools::choose(&pools, &nodes, wanted)?;
        Ok(chosen.pool.as_ref().ok_or(CsiError::Unreadable("pool"))?.name.clone())
    }

    async fn pools_and_nodes(&self) -> Outcome<(Vec<meta::PoolStatus>, Vec<meta::Node>)> {
        let pools = self.meta.list_pools(meta::ListPoolsRequest {}).await?.pools;
        let nodes = self.meta.list_nodes(meta::ListNodesRequest {}).await?.nodes;
        Ok((pools, nodes))
    }

    /// A volume of that name, if it is what is asked for.
    async fn existing(&self, wanted: &meta::CreateVolumeRequest, bounds: Bounds) -> Outcome<meta::Volume> {
        let by = Some(meta::volume_ref::By::Name(wanted.name.clone()));
        let found = self.meta.get_volume(meta::GetVolumeRequest { volume: Some(meta::VolumeRef { by }) }).await?;
        let volume = found.volume.ok_or(CsiError::Unreadable("volume"))?;
        let differs = if !bounds.fits(volume.size) {
            format!("it has {} bytes", volume.size)
        } else if volume.pool_name != wanted.pool {
            format!("it is in pool `{}` and not in `{}`", volume.pool_name, wanted.pool)
        } else if volume.parents.first().map(|parent| parent.snapshot) != source_of(wanted) {
            "it was made of something else".to_owned()
        } else if volume.limits != wanted.limits {
            "its limits are others".to_owned()
        } else if volume.retention_s != wanted.retention_s {
            "it is kept for another time once it is deleted".to_owned()
        } else {
            return Ok(volume);
        };
        Err(CsiError::Taken { name: wanted.name.clone(), differs })
    }

    pub(super) async fn delete_volume(&self, request: csi::DeleteVolumeRequest) -> Outcome<csi::DeleteVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let _turn = self.turns.take(text).await;
        // An id that is none was never given out: whatever it meant is gone.
        if let Some(volume) = number(text) {
            let request = meta::DeleteVolumeRequest { volume: Some(by_id(volume)), ..Default::default() };
            match self.meta.delete_volume(request).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(csi::DeleteVolumeResponse {})
    }

    pub(super) async fn publish(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Outcome<csi::ControllerPublishVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let node = present("node_id", &request.node_id)?.to_owned();
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let volume = known(text)?;
        let _turn = self.turns.take(text).await;
        let mode = capability.attach_mode(request.readonly);
        let (word, in_meta) = match mode {
            AttachMode::Exclusive => ("exclusive", meta::AttachMode::Exclusive),
            AttachMode::ReadOnly => ("read-only", meta::AttachMode::ReadOnly),
            AttachMode::Shared => ("shared", meta::AttachMode::Shared),
        };
        let publish =
            meta::PublishVolumeRequest { mutation: None, volume: Some(by_id(volume)), node, mode: in_meta.into() };
        self.meta.publish_volume(publish).await?;
        let publish_context = [(ATTACH_MODE.to_owned(), word.to_owned())].into();
        Ok(csi::ControllerPublishVolumeResponse { publish_context })
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Outcome<csi::ControllerUnpublishVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let _turn = self.turns.take(text).await;
        if let Some(volume) = number(text) {
            let volume = Some(by_id(volume));
            let request = meta::UnpublishVolumeRequest { mutation: None, volume, node: request.node_id };
            match self.meta.unpublish_volume(request).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(csi::ControllerUnpublishVolumeResponse {})
    }

    pub(super) async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Outcome<csi::ValidateVolumeCapabilitiesResponse> {
        let volume = present("volume_id", &request.volume_id)?;
        if request.volume_capabilities.is_empty() {
            return Err(crate::capability::CapabilityError::Missing.into());
        }
        self.volume(known(volume)?).await?;
        let refused = |message: String| csi::ValidateVolumeCapabilitiesResponse { confirmed: None, message };
        if let Err(error) = Capability::parse_all(&request.volume_capabilities) {
            return Ok(refused(error.to_string()));
        }
        let parameters = Parameters::parse(&request.parameters);
        if let Err(error) = parameters.and_then(|_| Changes::parse(&request.mutable_parameters)) {
            return Ok(refused(error.to_string()));
        }
        let confirmed = csi::validate_volume_capabilities_response::Confirmed {
            volume_context: request.volume_context,
            volume_capabilities: request.volume_capabilities,
            parameters: request.parameters,
            mutable_parameters: request.mutable_parameters,
        };
        Ok(csi::ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
    }

    pub(super) async fn list(&self, request: csi::ListVolumesRequest) -> Outcome<csi::ListVolumesResponse> {
        let negative = |_| CsiError::Capacity(crate::capacity::CapacityError::Negative(request.max_entries.into()));
        let page_size = u32::try_from(request.max_entries).map_err(negative)?;
        let page_token = request.starting_token.clone();
        let list = meta::ListVolumesRequest { page_size, page_token, ..meta::ListVolumesRequest::default() };
        let reply = self.meta.list_volumes(list).await.map_err(|error| match error.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound if !request.starting_token.is_empty() => {
                CsiError::PageToken(request.starting_token.clone())
            }
            _ => error.into(),
        })?;
        let pools = self.meta.list_pools(meta::ListPoolsRequest {}).await?.pools;
        let entry = |volume: &meta::Volume| csi::list_volumes_response::Entry {
            volume: Some(shown(volume)),
            status: Some(csi::list_volumes_response::VolumeStatus {
                published_node_ids: volume.published_nodes.clone(),
                volume_condition: Some(pools::condition(&pools, volume.pool)),
            }),
        };
        let entries = reply.volumes.iter().map(entry).collect();
        Ok(csi::ListVolumesResponse { entries, next_token: reply.next_page_token })
    }

    pub(super) async fn one(
        &self,
        request: csi::ControllerGetVolumeRequest,
    ) -> Outcome<csi::ControllerGetVolumeResponse> {
        let volume = self.volume(known(present("volume_id", &request.volume_id)?)?).await?;
        let pools = self.meta.list_pools(meta::ListPoolsRequest {}).await?.pools;
        let status = csi::controller_get_volume_response::VolumeStatus {
            published_node_ids: volume.published_nodes.clone(),
            volume_condition: Some(pools::condition(&pools, volume.pool)),
        };
        Ok(csi::ControllerGetVolumeResponse { volume: Some(shown(&volume)), status: Some(status) })
    }

    pub(super) async fn capacity(&self, request: csi::GetCapacityRequest) -> Outcome<csi::GetCapacityResponse> {
        let wanted = Parameters::parse(&request.parameters)?;
        for capability in &request.volume_capabilities {
            // For what cannot be had there is no room.
            if Capability::parse(Some(capability)).is_err() {
                return Ok(csi::GetCapacityResponse::default());
            }
        }
        let (pools, nodes) = self.pools_and_nodes().await?;
        let available = pools::choose(&pools, &nodes, &wanted)?.available;
        let available = i64::try_from(available).unwrap_or(i64::MAX);
        Ok(csi::GetCapacityResponse {
            available_capacity: available,
            maximum_volume_size: Some(available),
            minimum_volume_size: None,
        })
    }

    pub(super) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Outcome<csi::ControllerExpandVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let range = request.capacity_range.as_ref().ok_or(CsiError::Missing("capacity_range"))?;
        let bounds = Bounds::of(Some(range))?;
        let access = request.volume_capability.as_ref().map(|given| Capability::parse(Some(given))).transpose()?;
        let id = known(text)?;
        let _turn = self.turns.take(text).await;
        let mut volume = self.volume(id).await?;
        let size = bounds.grown(volume.size)?;
        if size > volume.size {
            let request = meta::ResizeVolumeRequest { mutation: None, volume: Some(by_id(id)), size };
            volume = self.meta.resize_volume(request).await?.volume.ok_or(CsiError::Unreadable("volume"))?;
        }
        // A raw device that is not attached has nothing to be told; one that is learns it from the node too.
        let node_expansion_required =
            access.is_none_or(|capability| capability.access != Access::Block) || !volume.published_nodes.is_empty();
        Ok(csi::ControllerExpandVolumeResponse { capacity_bytes: signed(volume.size), node_expansion_required })
    }

    /// Limits reach whoever holds the volume by the map: the node is not asked.
    pub(super) async fn modify(
        &self,
        request: csi::ControllerModifyVolumeRequest,
    ) -> Outcome<csi::ControllerModifyVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let Changes { iops, bandwidth, burst_s } = Changes::parse(&request.mutable_parameters)?;
        let id = known(text)?;
        let _turn = self.turns.take(text).await;
        let volume = Some(by_id(id));
        let change = meta::ChangeVolumeRequest { volume, iops, bandwidth, burst_s, ..Default::default() };
        match self.meta.change_volume(change).await {
            Err(error) if error.is_not_found() => Err(CsiError::NoVolume(text.to_owned())),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(csi::ControllerModifyVolumeResponse {}),
        }
    }

    async fn volume(&self, id: VolumeId) -> Outcome<meta::Volume> {
        self.meta.volume(id).await.map_err(|error: MetaError| match error.is_not_found() {
            true => CsiError::NoVolume(id.0.to_string()),
            false => error.into(),
        })
    }
}

/// The limits of a new volume; none where nothing is asked for.
fn limits(changes: Changes) -> Option<meta::VolumeLimits> {
    let limits = meta::VolumeLimits {
        iops: changes.iops.unwrap_or(0),
        bandwidth: changes.bandwidth.unwrap_or(0),
        burst_s: changes.burst_s.unwrap_or(0),
    };
    Some(limits).filter(|limits| *limits != meta::VolumeLimits::default())
}

fn by_id(volume: VolumeId) -> meta::VolumeRef {
    meta::VolumeRef { by: Some(meta::volume_ref::By::Id(volume.0)) }
}

fn source_of(wanted: &meta::CreateVolumeRequest) -> Option<u64> {
    match wanted.source.as_ref().and_then(|source| source.by.as_ref()) {
        Some(meta::snapshot_ref::By::Id(id)) => Some(*id),
        _ => None,
    }
}

fn shown_with(volume: &meta::Volume, content_source: Option<csi::VolumeContentSource>) -> csi::Volume {
    csi::Volume { content_source, ..shown(volume) }
}

fn shown(volume: &meta::Volume) -> csi::Volume {
    csi::Volume {
        capacity_bytes: signed(volume.size),
        volume_id: volume.id.to_string(),
        volume_context: [("pool".to_owned(), volume.pool_name.clone())].into(),
        content_source: None,
        accessible_topology: Vec::new(),
    }
}

pub(super) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
