//! The Kubernetes-shaped API server: one generic registry over the etcd v3 API, for the real kubectl and the stock
//! CSI sidecars.
//!
//! It keeps objects and tells of their changes; it acts on none of them (that is for controllers, scheduler and
//! agents) and knows storage only as the kinds of its table. It speaks to the store through etcd's protocol alone, so
//! a real etcd serves as well as Cairn's metadata service.
//!
//! Rooms: `registry` (what a kind is), `schema` (what its fields are), `api` (the verbs), `store` (etcd and the watch
//! cache), `http` (the door), and pure parts: `decode`, `pb`, `patch`, `owners`, `selector`, `names`, `quantity`.

#![forbid(unsafe_code)]

mod api;
mod decode;
mod error;
mod http;
mod names;
mod object;
mod owners;
mod patch;
mod pb;
mod quantity;
mod registry;
mod schema;
mod selector;
mod store;
mod time;

use api::Api;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A certificate, its key, and the authority that the other side's certificate must come from. PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Own certificate, chain included.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authority of the other side.
    pub ca: PathBuf,
}

/// What the server needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; only a loopback address, unless `insecure_listen`.
    pub listen: SocketAddr,
    /// Allows any address.
    pub insecure_listen: bool,
    /// URLs of the object store's members, `http://127.0.0.1:2379`. Any of them answers.
    pub etcd: Vec<String>,
    /// The server's own certificate, and the authority of its clients: whoever holds one of its certificates (CN the
    /// user, O the groups) may do everything.
    pub tls: TlsFiles,
    /// How the server shows itself to nodes for logs and exec, and the authority of the nodes' certificates, which
    /// name the node's address. `None`: no logs and no exec.
    pub agent: Option<TlsFiles>,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that others can reach needs the administrator's word.
    #[error("{0} is not a loopback address: pass --insecure-listen if the network is trusted")]
    NotLoopback(SocketAddr),
    /// The address is taken, or not ours.
    #[error("cannot listen on {listen}: {error}")]
    Listen {
        /// The address.
        listen: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// A certificate or key cannot be read.
    #[error("{}: {error}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        error: rustls::pki_types::pem::Error,
    },
    /// Certificates that do not fit together.
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    /// No store, or an endpoint that is no URL.
    #[error("object store endpoints: {0}")]
    Endpoint(String),
}

/// Serves until `shutdown`. The port is open once the first poll has run; `/readyz` says when the store has been read.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = bind(&config).await?;
    serve(listener, config, shutdown).await
}

/// Takes the address, or says why not. Apart from `run`, so that a test can ask for any free port.
pub async fn bind(config: &Config) -> Result<TcpListener, Error> {
    if !config.listen.ip().is_loopback() {
        if !config.insecure_listen {
            return Err(Error::NotLoopback(config.listen));
        }
        tracing::warn!(listen = %config.listen, "listening beyond loopback");
    }
    TcpListener::bind(config.listen).await.map_err(|error| Error::Listen { listen: config.listen, error })
}

/// Serves on `listener` until `shutdown`.
pub async fn serve(listener: TcpListener, config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    if config.etcd.is_empty() {
        return Err(Error::Endpoint("none given".to_owned()));
    }
    let etcd = store::etcd::Etcd::new(&config.etcd).map_err(|error| Error::Endpoint(error.to_string()))?;
    let tls = http::server::tls(&config.tls)?;
    let api = Arc::new(Api::new(etcd, api::agent_door(config.agent.as_ref())?, shutdown.clone()));
    let tasks = TaskTracker::new();
    api.start(&tasks);
    http::server::serve(listener, tls, Arc::new(api::Door(api)), shutdown).await;
    tasks.close();
    tasks.wait().await;
    Ok(())
}
