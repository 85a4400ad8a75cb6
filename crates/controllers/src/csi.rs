//! The controller half of the CSI driver, spoken to over its socket. Every call is idempotent, has a deadline and carries a
//! request id, which the driver hands on.
//!
//! Secrets and mount flags are never printed.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_proto::csi;
use csi::controller_client::ControllerClient;
use csi::controller_service_capability::rpc::Type as Ability;
use csi::identity_client::IdentityClient;
use csi::plugin_capability::service::Type as Service;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::OnceCell;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// How long a call may take. It goes on in the driver; the next try finds it done.
const DEADLINE: Duration = Duration::from_secs(30);
/// The metadata key under which a request id travels between services.
const REQUEST_ID: &str = "x-request-id";

/// A CSI call that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CsiError {
    pub(crate) call: &'static str,
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl CsiError {
    fn of(call: &'static str, status: &Status) -> Self {
        let message = match status.code() {
            Code::Unavailable => format!("the CSI driver does not answer ({call}): {}", status.message()),
            code if status.message().is_empty() => format!("{call}: {code}"),
            _ => status.message().to_owned(),
        };
        Self { call, code: status.code(), message }
    }
}

/// What a driver says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) publishes: bool,
    pub(crate) publishes_read_only: bool,
    pub(crate) expands: bool,
    /// Tells one writer on a node from several.
    pub(crate) fine_modes: bool,
    /// Its volumes cannot be reached from everywhere.
    pub(crate) topology: bool,
}

/// A driver's controller service; the connection is made when it is first needed, and again when it broke.
#[derive(Debug)]
pub(crate) struct Csi {
    channel: Channel,
    driver: OnceCell<Driver>,
}

impl Csi {
    pub(crate) fn new(socket: &Path) -> Self {
        let path: PathBuf = socket.to_owned();
        let channel =
            Endpoint::from_static("http://csi.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Self { channel, driver: OnceCell::new() }
    }

    /// Who the driver is. Asked once; a driver that is not there yet is asked again by the next call.
    pub(crate) async fn driver(&self) -> Result<&Driver, CsiError> {
        self.driver.get_or_try_init(|| self.ask()).await
    }

    /// Who the driver is, if it has said so.
    pub(crate) fn known_driver(&self) -> Option<&Driver> {
        self.driver.get()
    }

    async fn ask(&self) -> Result<Driver, CsiError> {
        let mut identity = IdentityClient::new(self.channel.clone());
        let info = identity.get_plugin_info(request(csi::GetPluginInfoRequest {}));
        let name = finish("GetPluginInfo", info).await?.name;
        let mut identity = IdentityClient::new(self.channel.clone());
        let services = identity.get_plugin_capabilities(request(csi::GetPluginCapabilitiesRequest {}));
        let services = finish("GetPluginCapabilities", services).await?.capabilities;
        let mut controller = self.controller();
        let abilities = controller.controller_get_capabilities(request(csi::ControllerGetCapabilitiesRequest {}));
        let abilities = finish("ControllerGetCapabilities", abilities).await?.capabilities;
        let able = |ability: Ability| {
            abilities.iter().any(|capability| match &capability.r#type {
                Some(csi::controller_service_capability::Type::Rpc(rpc)) => rpc.r#type() == ability,
                None => false,
            })
        };
        let topology = services.iter().any(|capability| match &capability.r#type {
            Some(csi::plugin_capability::Type::Service(service)) => {
                service.r#type() == Service::VolumeAccessibilityConstraints
            }
            _ => false,
        });
        Ok(Driver {
            name,
            publishes: able(Ability::PublishUnpublishVolume),
            publishes_read_only: able(Ability::PublishReadonly),
            expands: able(Ability::ExpandVolume),
            fine_modes: able(Ability::SingleNodeMultiWriter),
            topology,
        })
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub(crate) async fn create(&self, wanted: csi::CreateVolumeRequest) -> Result<csi::Volume, CsiError> {
        let mut controller = self.controller();
        let reply = finish("CreateVolume", controller.create_volume(request(wanted))).await?;
        reply.volume.ok_or(CsiError {
            call: "CreateVolume",
            code: Code::Internal,
            message: "the CSI driver made a volume and did not say which".to_owned(),
        })
    }

    pub(crate) async fn delete(&self, volume_id: &str) -> Result<(), CsiError> {
        let wanted = csi::DeleteVolumeRequest { volume_id: volume_id.to_owned(), ..Default::default() };
        let mut controller = self.controller();
        finish("DeleteVolume", controller.delete_volume(request(wanted))).await.map(drop)
    }

    pub(crate) async fn publish(
        &self,
        wanted: csi::ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, CsiError> {
        let mut controller = self.controller();
        let call = controller.controller_publish_volume(request(wanted));
        finish("ControllerPublishVolume", call).await.map(|reply| reply.publish_context)
    }

    /// A volume that is gone is unpublished.
    pub(crate) async fn unpublish(&self, volume_id: &str, node_id: &str) -> Result<(), CsiError> {
        let wanted = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume_id.to_owned(),
            node_id: node_id.to_owned(),
            ..Default::default()
        };
        let mut controller = self.controller();
        match finish("ControllerUnpublishVolume", controller.controller_unpublish_volume(request(wanted))).await {
            Err(error) if error.code == Code::NotFound => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) async fn expand(
        &self,
        wanted: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, CsiError> {
        let mut controller = self.controller();
        finish("ControllerExpandVolume", controller.controller_expand_volume(request(wanted))).await
    }
}

fn request<M>(message: M) -> Request<M> {
    let mut request = Request::new(message);
    let id = uuid::Uuid::new_v4().simple().to_string();
    request.metadata_mut().insert(REQUEST_ID, id.parse().expect("hexadecimal digits are ASCII"));
    request
}

async fn finish<M>(
    call: &'static str,
    reply: impl Future<Output = Result<Response<M>, Status>>,
) -> Result<M, CsiError> {
    match tokio::time::timeout(DEADLINE, reply).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(CsiError::of(call, &status)),
        Err(_) => Err(CsiError {
            call,
            code: Code::DeadlineExceeded,
            message: format!("the CSI driver did not finish {call} within {} s; it is asked again", DEADLINE.as_secs()),
        }),
    }
}
