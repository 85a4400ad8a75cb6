//! The node half of a CSI driver, spoken to over its socket: what it is, stage, publish and back. Each call has a
//! deadline and carries a request id, which the driver hands on.
//!
//! Nothing is decided here. Secrets and mount flags are never printed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_proto::csi;
use csi::node_client::NodeClient;
use csi::node_service_capability::rpc::Type as Ability;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

/// Making a filesystem on a large volume, or checking one after a crash, takes its time.
const WORK: Duration = Duration::from_secs(120);
const ASK: Duration = Duration::from_secs(10);
/// The metadata key under which a request id travels between services.
const REQUEST_ID: &str = "x-request-id";

/// A CSI call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call}: {message}")]
pub(crate) struct CsiError {
    pub(crate) call: &'static str,
    pub(crate) code: tonic::Code,
    pub(crate) message: String,
}

/// What a driver says of itself on this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DriverInfo {
    pub(crate) node_id: String,
    /// 0: no limit of its own.
    pub(crate) max_volumes: i64,
    pub(crate) topology: HashMap<String, String>,
    pub(crate) stages: bool,
    pub(crate) single_node_multi_writer: bool,
}

/// A driver's node service. Clones share the connection, which is made when it is first needed.
#[derive(Clone, Debug)]
pub(crate) struct CsiNode {
    client: NodeClient<Channel>,
}

/// One volume in the words of CSI.
#[derive(Clone, Default)]
pub(crate) struct VolumeArgs {
    pub(crate) volume_id: String,
    pub(crate) publish_context: HashMap<String, String>,
    pub(crate) volume_context: HashMap<String, String>,
    pub(crate) capability: csi::VolumeCapability,
    pub(crate) secrets: HashMap<String, String>,
    /// Empty when the driver does not stage.
    pub(crate) staging_path: String,
}

impl CsiNode {
    pub(crate) fn new(socket: &Path) -> CsiNode {
        let path: PathBuf = socket.to_owned();
        let channel =
            Endpoint::from_static("http://csi.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        CsiNode { client: NodeClient::new(channel) }
    }

    /// Identity, limits, topology and abilities in one.
    pub(crate) async fn info(&self) -> Result<DriverInfo, CsiError> {
        let request = request(csi::NodeGetInfoRequest {}, &new_request_id());
        let info = finish("NodeGetInfo", ASK, self.client.clone().node_get_info(request)).await?;
        let request = self::request(csi::NodeGetCapabilitiesRequest {}, &new_request_id());
        let reply = finish("NodeGetCapabilities", ASK, self.client.clone().node_get_capabilities(request)).await?;
        let able = |ability: Ability| {
            reply.capabilities.iter().any(|capability| match &capability.r#type {
                Some(csi::node_service_capability::Type::Rpc(rpc)) => rpc.r#type() == ability,
                None => false,
            })
        };
        Ok(DriverInfo {
            node_id: info.node_id,
            max_volumes: info.max_volumes_per_node,
            topology: info.accessible_topology.unwrap_or_default().segments,
            stages: able(Ability::StageUnstageVolume),
            single_node_multi_writer: able(Ability::SingleNodeMultiWriter),
        })
    }

    pub(crate) async fn stage(&self, volume: VolumeArgs, request_id: &str) -> Result<(), CsiError> {
        let message = csi::NodeStageVolumeRequest {
            volume_id: volume.volume_id,
            publish_context: volume.publish_context,
            staging_target_path: volume.staging_path,
            volume_capability: Some(volume.capability),
            secrets: volume.secrets,
            volume_context: volume.volume_context,
        };
        let mut client = self.client.clone();
        finish("NodeStageVolume", WORK, client.node_stage_volume(request(message, request_id))).await.map(drop)
    }

    pub(crate) async fn publish(
        &self,
        volume: VolumeArgs,
        target: &Path,
        readonly: bool,
        request_id: &str,
    ) -> Result<(), CsiError> {
        let message = csi::NodePublishVolumeRequest {
            volume_id: volume.volume_id,
            publish_context: volume.publish_context,
            staging_target_path: volume.staging_path,
            target_path: target.display().to_string(),
            volume_capability: Some(volume.capability),
            readonly,
            secrets: volume.secrets,
            volume_context: volume.volume_context,
        };
        let mut client = self.client.clone();
        finish("NodePublishVolume", WORK, client.node_publish_volume(request(message, request_id))).await.map(drop)
    }

    pub(crate) async fn unpublish(&self, volume_id: &str, target: &Path, request_id: &str) -> Result<(), CsiError> {
        let target_path = target.display().to_string();
        let message = csi::NodeUnpublishVolumeRequest { volume_id: volume_id.to_owned(), target_path };
        let mut client = self.client.clone();
        let answer = client.node_unpublish_volume(request(message, request_id));
        absent_is_fine(finish("NodeUnpublishVolume", WORK, answer).await.map(drop))
    }

    pub(crate) async fn unstage(&self, volume_id: &str, staging: &Path, request_id: &str) -> Result<(), CsiError> {
        let staging_target_path = staging.display().to_string();
        let message = csi::NodeUnstageVolumeRequest { volume_id: volume_id.to_owned(), staging_target_path };
        let mut client = self.client.clone();
        let answer = client.node_unstage_volume(request(message, request_id));
        absent_is_fine(finish("NodeUnstageVolume", WORK, answer).await.map(drop))
    }
}

pub(crate) fn new_request_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

fn request<T>(message: T, request_id: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Ok(value) = request_id.parse() {
        request.metadata_mut().insert(REQUEST_ID, value);
    }
    request
}

async fn finish<T>(
    call: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, CsiError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(CsiError { call, code: status.code(), message: status.message().to_owned() }),
        Err(_) => {
            let message = format!("not answered within {limit:?}");
            Err(CsiError { call, code: tonic::Code::DeadlineExceeded, message })
        }
    }
}

/// What the driver does not know is already unpublished or unstaged.
fn absent_is_fine(answer: Result<(), CsiError>) -> Result<(), CsiError> {
    match answer {
        Err(error) if error.code == tonic::Code::NotFound => Ok(()),
        other => other,
    }
}
