//! The controller half: volumes of the cluster, by way of the metadata service. Holds nothing itself; every call may
//! be repeated, at any time and by any instance.

mod calls;
mod pools;
mod snapshots;

use cairn_meta_client::MetaClient;
use cairn_proto::csi::controller_server::Controller;
use cairn_proto::csi::controller_service_capability::{Rpc, Type, rpc};
use cairn_proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetCapabilitiesRequest,
    ControllerGetCapabilitiesResponse, ControllerGetVolumeRequest, ControllerGetVolumeResponse,
    ControllerModifyVolumeRequest, ControllerModifyVolumeResponse, ControllerPublishVolumeRequest,
    ControllerPublishVolumeResponse, ControllerServiceCapability, ControllerUnpublishVolumeRequest,
    ControllerUnpublishVolumeResponse, CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest,
    CreateVolumeResponse, DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    GetCapacityRequest, GetCapacityResponse, GetSnapshotRequest, GetSnapshotResponse, ListSnapshotsRequest,
    ListSnapshotsResponse, ListVolumesRequest, ListVolumesResponse, ValidateVolumeCapabilitiesRequest,
    ValidateVolumeCapabilitiesResponse,
};
use tonic::{Request, Response, Status};

pub(crate) use pools::PoolError;

use crate::call;
use crate::turns::Turns;
use calls::Calls;

/// Serves `csi.v1.Controller`.
#[derive(Clone)]
pub(crate) struct ControllerService {
    meta: MetaClient,
    turns: Turns,
}

impl ControllerService {
    pub(crate) fn new(meta: MetaClient) -> Self {
        Self { meta, turns: Turns::default() }
    }

    fn calls(&self, request_id: &str) -> Calls {
        Calls { meta: self.meta.with_request_id(request_id), turns: self.turns.clone() }
    }
}

/// The body of a call: its request id, what it is about, and the function in `calls` that does it.
macro_rules! forward {
    ($self:ident, $request:ident, $call:ident, $subject:ident) => {{
        let id = call::request_id(&$request);
        let request = $request.into_inner();
        let (subject, calls) = (request.$subject.clone(), $self.calls(&id));
        call::run(stringify!($call), &id, &subject, async move { calls.$call(request).await }).await
    }};
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        forward!(self, request, create_volume, name)
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        forward!(self, request, delete_volume, volume_id)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<ControllerPublishVolumeRequest>,
    ) -> Result<Response<ControllerPublishVolumeResponse>, Status> {
        forward!(self, request, publish, volume_id)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<ControllerUnpublishVolumeRequest>,
    ) -> Result<Response<ControllerUnpublishVolumeResponse>, Status> {
        forward!(self, request, unpublish, volume_id)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        forward!(self, request, validate, volume_id)
    }

    async fn list_volumes(
        &self,
        request: Request<ListVolumesRequest>,
    ) -> Result<Response<ListVolumesResponse>, Status> {
        forward!(self, request, list, starting_token)
    }

    async fn get_capacity(
        &self,
        request: Request<GetCapacityRequest>,
    ) -> Result<Response<GetCapacityResponse>, Status> {
        let id = call::request_id(&request);
        let (calls, request) = (self.calls(&id), request.into_inner());
        call::run("capacity", &id, "", async move { calls.capacity(request).await }).await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Result<Response<ControllerExpandVolumeResponse>, Status> {
        forward!(self, request, expand, volume_id)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        let able = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::GetVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::GetCapacity,
            rpc::Type::PublishReadonly,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            // GetSnapshot is served; its capability is alpha, and callers that check the list do not know it yet.
            rpc::Type::CloneVolume,
            rpc::Type::ModifyVolume,
        ];
        let capability =
            |able: rpc::Type| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: able.into() })) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: able.map(capability).to_vec() }))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        forward!(self, request, create_snapshot, name)
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        forward!(self, request, delete_snapshot, snapshot_id)
    }

    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        forward!(self, request, list_snapshots, starting_token)
    }

    async fn get_snapshot(
        &self,
        request: Request<GetSnapshotRequest>,
    ) -> Result<Response<GetSnapshotResponse>, Status> {
        forward!(self, request, get_snapshot, snapshot_id)
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Result<Response<ControllerGetVolumeResponse>, Status> {
        forward!(self, request, one, volume_id)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<ControllerModifyVolumeRequest>,
    ) -> Result<Response<ControllerModifyVolumeResponse>, Status> {
        forward!(self, request, modify, volume_id)
    }
}
