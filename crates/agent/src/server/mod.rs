//! The agent's own HTTPS endpoint, which the API server proxies to: logs, exec and attach, the pods, their usage,
//! health.
//!
//! Every client shows a certificate of the cluster's CA. Nothing here changes a pod.

mod logs;
mod session;
mod spdy;
mod stream;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use cairn_proto::cri;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::cri::{CriError, Runtime};
use crate::directory::Directory;
use crate::names::label;
use logs::{LogOptions, LogSource};
use session::Streams;
pub use tls::TlsError;
pub(crate) use tls::server_config;

/// Clients served at a time; more wait in the listen queue.
const CONNECTIONS: usize = 256;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// What the handlers need.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) node: String,
    pub(crate) runtime: Runtime,
    pub(crate) pods: Directory,
}

type Parameters = Vec<(String, String)>;

/// An answer that is an error: the status and one sentence.
struct Refusal(StatusCode, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl From<CriError> for Refusal {
    fn from(error: CriError) -> Refusal {
        Refusal(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

/// Serves until told to stop; sessions that are open then are cut.
pub(crate) async fn serve(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    endpoint: Endpoint,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let service = TowerToHyperService::new(router(endpoint));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut sessions = tokio::task::JoinSet::new();
    loop {
        while sessions.try_join_next().is_some() {}
        let place = tokio::select! {
            () = shutdown.cancelled() => break,
            place = Arc::clone(&places).acquire_owned() => place.expect("never closed"),
        };
        let socket = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let (acceptor, service) = (acceptor.clone(), service.clone());
        sessions.spawn(async move {
            let _place = place;
            let Ok(Ok(socket)) = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket)).await else {
                return;
            };
            let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
            if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(socket), service).await {
                tracing::debug!(%error, "a connection ended badly");
            }
        });
    }
    sessions.shutdown().await;
}

fn router(endpoint: Endpoint) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/stats/summary", get(stats))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .with_state(endpoint)
}

async fn pods(State(endpoint): State<Endpoint>) -> Response {
    let items: Vec<_> = endpoint.pods.all().iter().map(|pod| json!(**pod)).collect();
    axum::Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})).into_response()
}

/// CPU and memory of each container, as the kubelet's summary shapes it.
async fn stats(State(endpoint): State<Endpoint>) -> Result<Response, Refusal> {
    let mut pods = Vec::new();
    for pod in endpoint.pods.all() {
        let Some(uid) = pod.metadata.uid.as_deref() else { continue };
        let mut containers = Vec::new();
        for container in endpoint.runtime.containers(&[(label::POD_UID, uid)]).await? {
            let Ok(stats) = endpoint.runtime.stats(&container.id).await else { continue };
            let cpu = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map(|nanos| nanos.value);
            let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map(|bytes| bytes.value);
            containers.push(json!({
                "name": container.metadata.unwrap_or_default().name,
                "cpu": {"usageCoreNanoSeconds": cpu},
                "memory": {"workingSetBytes": memory},
            }));
        }
        let reference = json!({"name": pod.metadata.name, "namespace": pod.metadata.namespace, "uid": uid});
        pods.push(json!({"podRef": reference, "containers": containers}));
    }
    Ok(axum::Json(json!({"node": {"nodeName": endpoint.node}, "pods": pods})).into_response())
}

async fn container_logs(
    State(endpoint): State<Endpoint>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(parameters): Query<Parameters>,
) -> Result<Response, Refusal> {
    let options = log_options(&parameters)?;
    let pod = endpoint.pod(&namespace, &name).await?;
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
    let lives = endpoint.lives(&pod, &container).await?;
    let life = match (options.previous, lives.as_slice()) {
        (false, [newest, ..]) => newest,
        (true, [_, before, ..]) => before,
        (true, _) => {
            return Err(bad(format!("previous terminated container {container:?} in pod {name:?} not found")));
        }
        (false, []) => {
            let reason = waiting_reason(&pod, &container);
            return Err(bad(format!("container {container:?} in pod {name:?} is waiting to start: {reason}")));
        }
    };
    let status = endpoint.runtime.container_status(&life.id).await?;
    let path = std::path::PathBuf::from(status.log_path);
    if !path.exists() {
        return Err(Refusal(StatusCode::NOT_FOUND, format!("container {container:?} has no log file on this node")));
    }
    let source = LogSource { path, container: life.id.clone(), runtime: endpoint.runtime.clone() };
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(logs::stream(source, options, sender));
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver));
    Ok(([("content-type", "text/plain")], body).into_response())
}

async fn exec(
    State(endpoint): State<Endpoint>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let pod = endpoint.pod(&namespace, &name).await?;
    let streams = streams(&parameters);
    let id = endpoint.running(&pod, &container).await?;
    let command = parameters.iter().filter(|(key, _)| key == "command").map(|(_, value)| value.clone()).collect();
    let Streams { stdin, stdout, stderr, tty } = streams;
    let request = cri::ExecRequest { container_id: id, cmd: command, tty, stdin, stdout, stderr };
    if request.cmd.is_empty() {
        return Err(Refusal(StatusCode::BAD_REQUEST, "exec needs at least one command parameter".into()));
    }
    let url = endpoint.runtime.exec_url(request).await?;
    Ok(upgrade.protocols(stream::PROTOCOLS).on_upgrade(move |socket| stream::serve(socket, url, streams)))
}

async fn attach(
    State(endpoint): State<Endpoint>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(parameters): Query<Parameters>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let pod = endpoint.pod(&namespace, &name).await?;
    let mut streams = streams(&parameters);
    let spec = pod.spec.as_ref().and_then(|spec| crate::pod::container(spec, &container));
    // The container's own shape decides: a terminal is there or not.
    streams.tty = spec.is_some_and(|(_, container)| container.tty.unwrap_or(false));
    streams.stdin &= spec.is_some_and(|(_, container)| container.stdin.unwrap_or(false));
    streams.stderr &= !streams.tty;
    let id = endpoint.running(&pod, &container).await?;
    let Streams { stdin, stdout, stderr, tty } = streams;
    let url = endpoint.runtime.attach_url(cri::AttachRequest { container_id: id, stdin, tty, stdout, stderr }).await?;
    Ok(upgrade.protocols(stream::PROTOCOLS).on_upgrade(move |socket| stream::serve(socket, url, streams)))
}

impl Endpoint {
    async fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Refusal> {
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("pod {namespace}/{name} is not on node {}", self.node));
        self.pods.find(namespace, name).await.ok_or_else(missing)
    }

    /// The containers of this name, newest first.
    async fn lives(&self, pod: &Pod, container: &str) -> Result<Vec<cri::Container>, Refusal> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let labels = [(label::POD_UID, uid), (label::CONTAINER_NAME, container)];
        let mut lives = self.runtime.containers(&labels).await?;
        lives.sort_by_key(|life| std::cmp::Reverse(life.created_at));
        Ok(lives)
    }

    async fn running(&self, pod: &Pod, container: &str) -> Result<String, Refusal> {
        let lives = self.lives(pod, container).await?;
        let running = lives.into_iter().find(|life| life.state() == cri::ContainerState::ContainerRunning);
        let missing = || Refusal(StatusCode::NOT_FOUND, format!("container {container:?} is not running"));
        running.map(|life| life.id).ok_or_else(missing)
    }
}

/// Why a container has not started, from the status that we reported ourselves.
fn waiting_reason(pod: &Pod, container: &str) -> String {
    let status = pod.status.as_ref();
    let mut statuses = status
        .into_iter()
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses))
        .flatten();
    let waiting =
        statuses.find(|entry| entry.name == container).and_then(|entry| entry.state.as_ref()?.waiting.as_ref());
    waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "ContainerCreating".into())
}

/// Which streams are wanted, in the words of the API (`stdin`) or of a kubelet (`input`).
fn streams(parameters: &Parameters) -> Streams {
    let flag = |names: [&str; 2]| parameters.iter().any(|(key, value)| names.contains(&key.as_str()) && truth(value));
    let tty = flag(["tty", "tty"]);
    Streams {
        stdin: flag(["stdin", "input"]),
        stdout: flag(["stdout", "output"]),
        stderr: flag(["stderr", "error"]) && !tty,
        tty,
    }
}

fn log_options(parameters: &Parameters) -> Result<LogOptions, Refusal> {
    let mut options = LogOptions::default();
    for (key, value) in parameters {
        let bad = || Refusal(StatusCode::BAD_REQUEST, format!("{key}={value} is not understood"));
        match key.as_str() {
            "follow" => options.follow = truth(value),
            "previous" => options.previous = truth(value),
            "timestamps" => options.timestamps = truth(value),
            "tailLines" => options.tail_lines = Some(value.parse().map_err(|_| bad())?),
            "limitBytes" => options.limit_bytes = Some(value.parse().map_err(|_| bad())?),
            "sinceTime" => options.since = Some(value.parse().map_err(|_| bad())?),
            "sinceSeconds" => {
                let seconds: i64 = value.parse().map_err(|_| bad())?;
                let since = jiff::Timestamp::now().checked_sub(jiff::SignedDuration::from_secs(seconds));
                options.since = Some(since.map_err(|_| bad())?);
            }
            _ => {}
        }
    }
    Ok(options)
}

fn truth(value: &str) -> bool {
    matches!(value, "true" | "1")
}

#[cfg(test)]
mod tests {
    use super::{Streams, log_options, streams};

    fn parameters(pairs: &[(&str, &str)]) -> super::Parameters {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn both_vocabularies_are_understood() {
        let api = streams(&parameters(&[("stdin", "true"), ("stdout", "true"), ("stderr", "true")]));
        let kubelet = streams(&parameters(&[("input", "1"), ("output", "1"), ("error", "1")]));
        assert_eq!(api, Streams { stdin: true, stdout: true, stderr: true, tty: false });
        assert_eq!(api, kubelet);
        let tty = streams(&parameters(&[("stdout", "true"), ("stderr", "true"), ("tty", "true")]));
        assert!(tty.tty && !tty.stderr, "a terminal has no stderr of its own");
    }

    #[test]
    fn a_number_that_is_none_is_refused() {
        assert!(log_options(&parameters(&[("tailLines", "ten")])).is_err());
        assert!(log_options(&parameters(&[("tailLines", "10"), ("pretty", "x")])).is_ok());
    }
}
