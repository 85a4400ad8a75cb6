//! Starting and stopping the driver.

use std::path::{Path, PathBuf};

use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::csi::controller_server::ControllerServer;
use cairn_proto::csi::identity_server::IdentityServer;
use cairn_proto::csi::node_server::NodeServer;
use cairn_proto::registration::registration_server::RegistrationServer;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::controller::ControllerService;
use crate::identity::IdentityService;
use crate::node::{self, NodeService};
use crate::registration::{self, RegistrationService};
use crate::socket::listen_private;

/// Calls of one connection at once; more wait.
const CALLS: usize = 128;
/// How long calls in progress may take once the driver shall stop.
const STOP_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// Which services are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Once per cluster.
    Controller,
    /// On every node.
    Node,
    /// Both on one socket: Cairn's own orchestrator.
    Both,
}

/// Where the driver works.
#[derive(Clone, Debug)]
pub struct Config {
    /// The unix socket that it serves: a path, or `unix://` and a path. Mode 0600.
    pub endpoint: PathBuf,
    /// This node's name, as `attach` registered it.
    pub node: String,
    /// `host:port` of the metadata members; for the controller half.
    pub meta: Vec<String>,
    /// The socket of the node's attach daemon; for the node half.
    pub attach: PathBuf,
    /// The plugin registry of the agent or kubelet; without one the driver announces itself to nobody.
    pub registration_dir: Option<PathBuf>,
    /// Which halves.
    pub mode: Mode,
}

/// Why the driver ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metadata endpoint is not one.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A socket could not be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the machine said.
        source: std::io::Error,
    },
    /// A socket stopped serving.
    #[error("serving {} ended: {source}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

/// Serves until `shutdown`. No disk notices when it stops.
///
/// # Errors
/// [`Error`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let endpoint = path_of(&config.endpoint);
    let services = services(&config)?;
    let driver = serve(endpoint.clone(), services, shutdown.clone());
    let announced = match config.registration_dir.filter(|_| config.mode != Mode::Controller) {
        None => return driver?.await,
        Some(directory) => registration::socket_in(&directory),
    };
    // Announced once the driver listens: whoever sees the announcement may call it.
    let driver = driver?;
    let router = Server::builder().add_service(RegistrationServer::new(RegistrationService { endpoint }));
    let registration = serve(announced, router, shutdown.clone())?;
    let (driver, registration) = tokio::join!(ends_both(driver, &shutdown), ends_both(registration, &shutdown));
    driver.and(registration)
}

fn services(config: &Config) -> Result<Router, Error> {
    let identity = IdentityService { grows_mounted: config.mode == Mode::Controller || node::grows_mounted() };
    let mut router =
        Server::builder().concurrency_limit_per_connection(CALLS).add_service(IdentityServer::new(identity));
    if config.mode != Mode::Node {
        let meta = MetaClient::new(&config.meta)?;
        router = router.add_service(ControllerServer::new(ControllerService::new(meta)));
    }
    if config.mode != Mode::Controller {
        let service = NodeService::new(config.node.clone(), config.attach.clone());
        router = router.add_service(NodeServer::new(service));
    }
    Ok(router)
}

/// Listens at once; the future serves until told to stop and removes the socket.
fn serve(
    path: PathBuf,
    router: Router,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = Result<(), Error>>, Error> {
    let listener = listen_private(&path).map_err(|source| Error::Listen { path: path.clone(), source })?;
    tracing::info!(socket = %path.display(), "listening");
    Ok(async move {
        let stop = shutdown.clone().cancelled_owned();
        let serving = router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop);
        let served = tokio::select! {
            served = serving => served.map_err(|source| Error::Serve { path: path.clone(), source }),
            () = async { shutdown.cancelled().await; tokio::time::sleep(STOP_PATIENCE).await } => Ok(()),
        };
        drop(std::fs::remove_file(&path));
        served
    })
}

/// One socket's end is the end of both.
async fn ends_both(
    serving: impl Future<Output = Result<(), Error>>,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let served = serving.await;
    shutdown.cancel();
    served
}

fn path_of(endpoint: &Path) -> PathBuf {
    let text = endpoint.to_string_lossy();
    text.strip_prefix("unix://").map_or_else(|| endpoint.to_owned(), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_path_or_a_url_of_one() {
        assert_eq!(path_of(Path::new("unix:///run/csi.sock")), PathBuf::from("/run/csi.sock"));
        assert_eq!(path_of(Path::new("/run/csi.sock")), PathBuf::from("/run/csi.sock"));
    }
}
