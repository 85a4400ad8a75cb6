//! Connections: TLS with client certificates, HTTP/1.1 and HTTP/2, upgrades; ended cleanly at shutdown.

use super::identity::{User, subject};
use super::respond::{self, Body};
use crate::error::ApiError;
use crate::{Error, TlsFiles};
use cairn_metrics::Outcomes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Connections at once.
const CONNECTIONS: usize = 4096;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Requests still running when shutdown begins may take this long.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Streams of one HTTP/2 connection: a client with many informers opens one each.
const STREAMS: u32 = 1000;

/// Answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one; `user` is `None` where no certificate was shown.
    fn handle(&self, user: Option<User>, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |error| Error::Pem { path: path.to_owned(), error };
    CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)
}

pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| Error::Pem { path: path.to_owned(), error })
}

pub(crate) fn roots(path: &Path) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(Error::Tls)?;
    }
    Ok(Arc::new(roots))
}

/// A certificate that is shown must be valid; none at all is answered 401, in words.
pub(crate) fn tls(files: &TlsFiles) -> Result<TlsAcceptor, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&files.ca)?, provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&files.cert)?, private_key(&files.key)?)
        .map_err(Error::Tls)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until `shutdown`, then lets running requests end.
pub(crate) async fn serve<H: Handler>(
    listener: TcpListener,
    tls: TlsAcceptor,
    handler: Arc<H>,
    shutdown: CancellationToken,
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let graceful = GracefulShutdown::new();
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = room.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to come back.
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (tls, handler, watcher, shutdown) = (tls.clone(), handler.clone(), graceful.watcher(), shutdown.clone());
        connections.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = shutdown.cancelled() => {}
                secured = tokio::time::timeout(HANDSHAKE, secure(tls, stream)) => match secured {
                    Ok(Ok(secured)) => connection(secured, handler, watcher).await,
                    Ok(Err(error)) => tracing::debug!(%error, "handshake failed"),
                    Err(_) => tracing::debug!("handshake took too long"),
                },
            }
        });
    }
    drop(listener);
    connections.close();
    let ended = async {
        graceful.shutdown().await;
        connections.wait().await;
    };
    if tokio::time::timeout(LAST_WORDS, ended).await.is_err() {
        tracing::info!("connections left open at shutdown");
    }
}

/// What is counted for the metrics page, if the process has one. A watch counts when it begins.
fn requests() -> Option<&'static Outcomes> {
    static REQUESTS: OnceLock<Option<Outcomes>> = OnceLock::new();
    REQUESTS.get_or_init(|| Outcomes::on_page("apiserver_requests", "Requests by method and status")).as_ref()
}

type Secured = tokio_rustls::server::TlsStream<TcpStream>;

async fn secure(tls: TlsAcceptor, stream: TcpStream) -> std::io::Result<Secured> {
    stream.set_nodelay(true)?;
    tls.accept(stream).await
}

async fn connection<H: Handler>(stream: Secured, handler: Arc<H>, watcher: hyper_util::server::graceful::Watcher) {
    let user = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(|leaf| subject(leaf));
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, user) = (handler.clone(), user.clone());
        async move {
            let (method, began) = (request.method().clone(), Instant::now());
            let response = handler.handle(user, request).await;
            if let Some(requests) = requests() {
                requests.done(method.as_str(), response.status().as_str(), began.elapsed());
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Some(Duration::from_secs(30)));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Some(Duration::from_secs(30)));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended");
    }
}

/// What a request without a certificate gets.
pub(crate) fn unauthorized() -> Response<Body> {
    respond::failure(&ApiError::Unauthorized)
}
