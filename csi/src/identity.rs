//! Who the driver is, and which services it has.

use cairn_proto::csi::identity_server::Identity;
use cairn_proto::csi::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use cairn_proto::csi::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use crate::DRIVER;

/// Serves `csi.v1.Identity`.
pub(crate) struct IdentityService {
    /// A mounted filesystem can grow; otherwise it grows when it is staged next.
    pub(crate) grows_mounted: bool,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: [("csi".to_owned(), crate::CSI_VERSION.to_owned())].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let controller = Service { r#type: service::Type::ControllerService.into() };
        let growth = if self.grows_mounted { volume_expansion::Type::Online } else { volume_expansion::Type::Offline };
        let growth = VolumeExpansion { r#type: growth.into() };
        let kinds = [Type::Service(controller), Type::VolumeExpansion(growth)];
        let capabilities = kinds.map(|kind| PluginCapability { r#type: Some(kind) }).to_vec();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    /// Serving is ready. Whether the services behind it answer is for their own probes to say: restarting this
    /// process would not help them.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
