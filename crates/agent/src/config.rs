//! What the agent is told when it starts, and why it may refuse to.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::server::TlsError;

/// The agent's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The Node's name, and the value of its `kubernetes.io/hostname` label.
    pub node_name: String,
    /// How to reach the API server: address, CA and client certificate.
    pub kubeconfig: PathBuf,
    /// The container runtime's socket.
    pub cri_socket: PathBuf,
    /// Everything of the agent is beneath this directory: pods' volumes, logs, staging paths.
    pub root: PathBuf,
    /// Where CSI drivers put their registration sockets.
    pub plugin_registry: PathBuf,
    /// The HTTPS endpoint for logs, exec and attach. Port 0 takes any free one; the Node object names it.
    pub listen: SocketAddr,
    /// Allows an address that is not loopback.
    pub insecure_listen: bool,
    /// PEM: the endpoint's certificate chain.
    pub tls_certificate: PathBuf,
    /// PEM: its private key.
    pub tls_key: PathBuf,
    /// PEM: the CA of the clients.
    pub client_ca: PathBuf,
    /// The address that the Node and host-network pods show; None: the one that routes outwards.
    pub node_address: Option<IpAddr>,
    /// Shown as the Node's `spec.podCIDR`.
    pub pod_cidr: Option<String>,
    /// More labels of the Node: zone, rack.
    pub labels: BTreeMap<String, String>,
    /// Pods run beneath this cgroup.
    pub cgroup_parent: String,
    /// Servers of the cluster's name service; without any, pods use the node's.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain, usually `cluster.local`.
    pub cluster_domain: String,
}

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that others can reach, without leave.
    #[error("refusing to listen on {0}: it is not loopback; --insecure-listen allows it")]
    NotLoopback(SocketAddr),
    /// The port is taken.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The root directory or the records in it cannot be used.
    #[error("cannot use {path}: {source}")]
    Root {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The kubeconfig cannot be used.
    #[error("cannot use the kubeconfig {path}: {reason}")]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

impl Config {
    pub(crate) fn check_listen(&self) -> Result<(), Error> {
        match (self.listen.ip().is_loopback(), self.insecure_listen) {
            (true, _) => Ok(()),
            (false, true) => {
                tracing::warn!(listen = %self.listen, "listening where others can reach it");
                Ok(())
            }
            (false, false) => Err(Error::NotLoopback(self.listen)),
        }
    }

    /// Makes the root directory; its real path, as the mount table will show it.
    pub(crate) fn prepare_root(&self) -> Result<PathBuf, Error> {
        let failed = |source| Error::Root { path: self.root.clone(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o750).create(&self.root).map_err(failed)?;
        std::fs::canonicalize(&self.root).map_err(failed)
    }

    pub(crate) async fn client(&self) -> Result<Client, Error> {
        let failed = |reason: String| Error::Kubeconfig { path: self.kubeconfig.clone(), reason };
        let file = Kubeconfig::read_from(&self.kubeconfig).map_err(|error| failed(error.to_string()))?;
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(|error| failed(error.to_string()))?;
        Client::try_from(config).map_err(|error| failed(error.to_string()))
    }
}
