//! Announces the driver to the agent (or a kubelet): a socket in its plugin registry, over which it asks who we are.

use std::path::{Path, PathBuf};

use cairn_proto::registration::registration_server::Registration;
use cairn_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tonic::{Request, Response, Status};

use crate::{CSI_VERSION, DRIVER};

/// Serves `pluginregistration.Registration`.
pub(crate) struct RegistrationService {
    /// The socket with the node service.
    pub(crate) endpoint: PathBuf,
}

/// The socket's place in a plugin registry, named as the upstream registrar names it.
pub(crate) fn socket_in(directory: &Path) -> PathBuf {
    directory.join(format!("{DRIVER}-reg.sock"))
}

#[tonic::async_trait]
impl Registration for RegistrationService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: DRIVER.to_owned(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![CSI_VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            tracing::info!("registered with the node's agent");
        } else {
            tracing::error!(error, "the node's agent refused the driver; it will ask again");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
