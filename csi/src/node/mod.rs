//! The node half: devices from `attach`, filesystems on them, and mounts. Holds nothing itself: what is staged and published
//! is read from the kernel's mount table each time, so that a restart forgets nothing.

mod attach;
mod calls;
mod error;
mod format;
mod mounts;
mod ownership;
mod probe;
mod stats;

use std::path::PathBuf;

use cairn_proto::csi::node_server::Node;
use cairn_proto::csi::node_service_capability::{Rpc, Type, rpc};
use cairn_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse,
};
use rustix::thread::CapabilitySet;
use tonic::{Request, Response, Status};

pub(crate) use error::NodeError;

use crate::call;
use crate::turns::Turns;
use attach::Attach;
use calls::Calls;

/// As many volumes as `attach` exports at once.
const MOST_VOLUMES: i64 = 512;

/// Serves `csi.v1.Node`.
#[derive(Clone)]
pub(crate) struct NodeService {
    node: String,
    attach: Attach,
    turns: Turns,
}

impl NodeService {
    pub(crate) fn new(node: String, attach_socket: PathBuf) -> Self {
        Self { node, attach: Attach::new(attach_socket), turns: Turns::default() }
    }

    fn calls(&self, request_id: &str) -> Calls {
        Calls { attach: self.attach.clone(), turns: self.turns.clone(), request_id: request_id.to_owned() }
    }
}

/// Whether this process may grow a mounted ext4: the kernel wants CAP_SYS_RESOURCE for that.
pub(crate) fn grows_mounted() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE))
}

/// The body of a call: its request id, its volume, and the function in `calls` that does it.
macro_rules! forward {
    ($self:ident, $request:ident, $call:ident) => {{
        let id = call::request_id(&$request);
        let request = $request.into_inner();
        let (volume, calls) = (request.volume_id.clone(), $self.calls(&id));
        call::run(stringify!($call), &id, &volume, async move { calls.$call(request).await }).await
    }};
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        forward!(self, request, stage)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        forward!(self, request, unstage)
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        forward!(self, request, publish)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        forward!(self, request, unpublish)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        forward!(self, request, stats)
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        forward!(self, request, expand)
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let mut able = vec![
            rpc::Type::StageUnstageVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::GetVolumeStats,
            rpc::Type::VolumeCondition,
        ];
        able.extend(grows_mounted().then_some(rpc::Type::ExpandVolume));
        able.extend(ownership::is_possible().then_some(rpc::Type::VolumeMountGroup));
        let capability =
            |able: rpc::Type| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: able.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: able.into_iter().map(capability).collect() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: MOST_VOLUMES,
            accessible_topology: None,
        }))
    }
}
