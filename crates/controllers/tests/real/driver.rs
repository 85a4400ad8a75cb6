//! A CSI driver that keeps its volumes in memory: idempotent, with 100 GiB of room, and everything it was told to be seen.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use cairn_proto::csi::controller_server::{Controller, ControllerServer};
use cairn_proto::csi::controller_service_capability::rpc::Type as Ability;
use cairn_proto::csi::identity_server::{Identity, IdentityServer};
use cairn_proto::csi::{self, controller_service_capability};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

pub(crate) const NAME: &str = "test.cairn.dev";
const ROOM: i64 = 100 << 30;

/// A volume as the driver knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) size: i64,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) nodes: Vec<String>,
}

/// The driver.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    volumes: Mutex<BTreeMap<String, Volume>>,
}

impl Driver {
    pub(crate) fn volumes(&self) -> BTreeMap<String, Volume> {
        self.volumes.lock().unwrap().clone()
    }
}

/// Serves the driver on a socket until `shutdown`.
pub(crate) fn serve(driver: Arc<Driver>, socket: &Path, shutdown: CancellationToken) -> JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("a socket");
    tokio::spawn(async move {
        let server = tonic::transport::Server::builder()
            .add_service(IdentityServer::from_arc(Arc::clone(&driver)))
            .add_service(ControllerServer::from_arc(driver));
        let stop = shutdown.cancelled_owned();
        server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop).await.expect("it serves");
    })
}

type Reply<M> = Result<Response<M>, Status>;

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(&self, _: Request<csi::GetPluginInfoRequest>) -> Reply<csi::GetPluginInfoResponse> {
        Ok(Response::new(csi::GetPluginInfoResponse { name: NAME.into(), ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Reply<csi::GetPluginCapabilitiesResponse> {
        Ok(Response::new(csi::GetPluginCapabilitiesResponse::default()))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Reply<csi::ProbeResponse> {
        Ok(Response::new(csi::ProbeResponse::default()))
    }
}

#[tonic::async_trait]
impl Controller for Driver {
    async fn create_volume(&self, request: Request<csi::CreateVolumeRequest>) -> Reply<csi::CreateVolumeResponse> {
        assert!(request.metadata().contains_key("x-request-id"), "every call carries a request id");
        let request = request.into_inner();
        let size = request.capacity_range.map_or(0, |range| range.required_bytes);
        if size > ROOM {
            return Err(Status::resource_exhausted("volume asks for more than the pool has free; ask for less"));
        }
        let mut volumes = self.volumes.lock().unwrap();
        let known = volumes.iter().find(|(_, volume)| volume.name == request.name).map(|(id, _)| id.clone());
        let id = known.unwrap_or_else(|| (volumes.len() + 1).to_string());
        let parameters = request.parameters.into_iter().collect();
        volumes.entry(id.clone()).or_insert(Volume { name: request.name, size, parameters, nodes: vec![] });
        let volume = csi::Volume { volume_id: id, capacity_bytes: size, ..Default::default() };
        Ok(Response::new(csi::CreateVolumeResponse { volume: Some(volume) }))
    }

    async fn delete_volume(&self, request: Request<csi::DeleteVolumeRequest>) -> Reply<csi::DeleteVolumeResponse> {
        let mut volumes = self.volumes.lock().unwrap();
        let id = request.into_inner().volume_id;
        if volumes.get(&id).is_some_and(|volume| !volume.nodes.is_empty()) {
            return Err(Status::failed_precondition("the volume is published"));
        }
        volumes.remove(&id);
        Ok(Response::new(csi::DeleteVolumeResponse {}))
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Reply<csi::ControllerPublishVolumeResponse> {
        let request = request.into_inner();
        let mut volumes = self.volumes.lock().unwrap();
        let volume = volumes.get_mut(&request.volume_id).ok_or_else(|| Status::not_found("no such volume"))?;
        assert!(volume.nodes.iter().all(|node| *node == request.node_id), "never on two nodes: {volume:?}");
        if volume.nodes.is_empty() {
            volume.nodes.push(request.node_id);
        }
        let publish_context = [("device".to_owned(), request.volume_id)].into();
        Ok(Response::new(csi::ControllerPublishVolumeResponse { publish_context }))
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Reply<csi::ControllerUnpublishVolumeResponse> {
        let request = request.into_inner();
        assert!(!request.node_id.is_empty(), "never from every node");
        if let Some(volume) = self.volumes.lock().unwrap().get_mut(&request.volume_id) {
            volume.nodes.retain(|node| *node != request.node_id);
        }
        Ok(Response::new(csi::ControllerUnpublishVolumeResponse {}))
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Reply<csi::ControllerExpandVolumeResponse> {
        let request = request.into_inner();
        let mut volumes = self.volumes.lock().unwrap();
        let volume = volumes.get_mut(&request.volume_id).ok_or_else(|| Status::not_found("no such volume"))?;
        volume.size = request.capacity_range.map_or(0, |range| range.required_bytes);
        let capacity_bytes = volume.size;
        Ok(Response::new(csi::ControllerExpandVolumeResponse { capacity_bytes, node_expansion_required: true }))
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Reply<csi::ControllerGetCapabilitiesResponse> {
        let able = [Ability::CreateDeleteVolume, Ability::PublishUnpublishVolume, Ability::ExpandVolume];
        let capability = |ability: Ability| csi::ControllerServiceCapability {
            r#type: Some(controller_service_capability::Type::Rpc(controller_service_capability::Rpc {
                r#type: ability.into(),
            })),
        };
        let capabilities = able.into_iter().map(capability).collect();
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn validate_volume_capabilities(
        &self,
        _: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Reply<csi::ValidateVolumeCapabilitiesResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_volumes(&self, _: Request<csi::ListVolumesRequest>) -> Reply<csi::ListVolumesResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn get_capacity(&self, _: Request<csi::GetCapacityRequest>) -> Reply<csi::GetCapacityResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn create_snapshot(&self, _: Request<csi::CreateSnapshotRequest>) -> Reply<csi::CreateSnapshotResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn delete_snapshot(&self, _: Request<csi::DeleteSnapshotRequest>) -> Reply<csi::DeleteSnapshotResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_snapshots(&self, _: Request<csi::ListSnapshotsRequest>) -> Reply<csi::ListSnapshotsResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn get_snapshot(&self, _: Request<csi::GetSnapshotRequest>) -> Reply<csi::GetSnapshotResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn controller_get_volume(
        &self,
        _: Request<csi::ControllerGetVolumeRequest>,
    ) -> Reply<csi::ControllerGetVolumeResponse> {
        Err(Status::unimplemented("not needed"))
    }

    async fn controller_modify_volume(
        &self,
        _: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Reply<csi::ControllerModifyVolumeResponse> {
        Err(Status::unimplemented("not needed"))
    }
}
