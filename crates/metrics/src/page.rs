//! The page, and its listener.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::registry::{Metric, Registry};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::process::Process;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Readers at a time; more wait.
const READERS: usize = 8;
/// How long a reader may take over its request.
const PATIENCE: Duration = Duration::from_secs(10);
const PREFIX: &str = "cairn";

/// Where the page is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address: the page is plain text for whoever reaches it.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err("a unix socket needs a path: unix:/run/x.sock".to_owned()),
                false => Ok(Self::Unix(path.into())),
            };
        }
        let wrong = || format!("`{text}` is neither 127.0.0.1:PORT nor unix:/path");
        let address: SocketAddr = text.parse().map_err(|_| wrong())?;
        match address.ip().is_loopback() {
            true => Ok(Self::Tcp(address)),
            false => Err(format!(
                "{address} can be reached from other machines, and the page has no authentication; use a loopback \
                 address or a unix socket, and let an agent on this host read it"
            )),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, or not this machine's.
    #[error("cannot serve metrics on {0}: {1}")]
    Listen(Listen, std::io::Error),
}

/// What one daemon counts. Clones share it.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

/// One process, one page.
static PAGE: OnceLock<Metrics> = OnceLock::new();

/// The page of this process; `None`: nobody asked for one, and nothing need be counted.
#[must_use]
pub fn installed() -> Option<&'static Metrics> {
    PAGE.get()
}

/// Makes this the process' page; a second one changes nothing.
pub fn install(metrics: &Metrics) {
    let _ = PAGE.set(metrics.clone());
}

impl Metrics {
    /// The figures of a daemon of this role, its process' own already among them.
    #[must_use]
    pub fn new(role: &'static str) -> Self {
        let labels = [("role".into(), role.into())].into_iter();
        let mut registry = Registry::with_labels(labels);
        registry.register_collector(Box::new(Process));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Adds one figure under `cairn_<role's part>_<name>`; it is counted where it was made.
    pub fn add(&self, name: &str, help: &str, metric: impl Metric) {
        self.registry(|registry| registry.sub_registry_with_prefix(PREFIX).register(name, help, metric));
    }

    /// Adds figures that are looked up when the page is read.
    pub fn ask(&self, collector: impl Collector + 'static) {
        self.registry(|registry| registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(collector)));
    }

    fn registry<T>(&self, work: impl FnOnce(&mut Registry) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The page as it is now.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.registry(|registry| prometheus_client::encoding::text::encode(&mut text, registry))
            .expect("writing into a string does not fail");
        text
    }

    /// Serves the page until `shutdown`. A socket that an earlier life left is replaced.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub async fn serve(self, listen: Listen, shutdown: CancellationToken) -> Result<(), Error> {
        let failed = |error| Error::Listen(listen.clone(), error);
        let readers = Arc::new(Semaphore::new(READERS));
        tracing::info!(at = %listen, "metrics");
        match &listen {
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
                    self.welcome(&readers, accepted.map(|(stream, _)| stream)).await;
                }
            }
            Listen::Unix(path) => {
                let _ = std::fs::remove_file(path);
                let listener = UnixListener::bind(path).map_err(failed)?;
                while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
                    self.welcome(&readers, accepted.map(|(stream, _)| stream)).await;
                }
                let _ = std::fs::remove_file(path);
            }
        }
        Ok(())
    }

    /// Answers one reader in a task of its own; too many wait for their turn.
    async fn welcome<S>(&self, readers: &Arc<Semaphore>, accepted: std::io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(stream) = accepted else {
            // Out of descriptors, most likely: wait for some to come back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return;
        };
        let permit = Arc::clone(readers).acquire_owned().await;
        let metrics = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(|request| {
                let response = metrics.answer(&request);
                async { Ok::<_, Infallible>(response) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let served = server.serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(PATIENCE, served).await;
        });
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, text) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics") => (StatusCode::OK, self.text()),
            (&Method::GET, _) => (StatusCode::NOT_FOUND, "the page is /metrics\n".to_owned()),
            _ => (StatusCode::METHOD_NOT_ALLOWED, "this page is only read\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        let content_type = header::HeaderValue::from_static(CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn only_loopback_and_sockets_are_listened_on() {
        assert!(matches!("127.0.0.1:9100".parse(), Ok(Listen::Tcp(_))));
        assert!(matches!("unix:/run/x".parse(), Ok(Listen::Unix(_))));
        assert!("0.0.0.0:9100".parse::<Listen>().unwrap_err().contains("no authentication"));
        assert!(["", "9100", "unix:", "localhost:1"].iter().all(|text| text.parse::<Listen>().is_err()));
    }

    #[tokio::test]
    async fn the_page_is_served_on_a_socket_and_the_socket_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.sock");
        std::fs::write(&path, "left by an earlier life").unwrap();
        let (metrics, stop) = (Metrics::new("test"), CancellationToken::new());
        let apples = Counter::<u64>::default();
        metrics.add("apples", "Apples seen", apples.clone());
        apples.inc_by(3);
        let served = tokio::spawn(metrics.serve(Listen::Unix(path.clone()), stop.clone()));
        let mut stream = loop {
            match tokio::net::UnixStream::connect(&path).await {
                Ok(stream) => break stream,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("cairn_apples_total{role=\"test\"} 3"), "{page}");
        assert!(page.contains("process_resident_memory_bytes") && page.trim_end().ends_with("# EOF"), "{page}");
        stop.cancel();
        served.await.unwrap().unwrap();
        assert!(!path.exists());
    }
}
