//! Logs, exec and attach: found here, streamed by the pod's node.
//!
//! The node's agent answers `/containerLogs/NS/POD/CONTAINER`, `/exec/..` and `/attach/..` over HTTPS and speaks the
//! same WebSocket subprotocol as kubectl. So an upgrade is passed on with its own key, and from then on bytes are
//! copied both ways: no frame is looked into here.

use super::Api;
use crate::Error;
use crate::error::ApiError;
use crate::http::respond::{self, Body, BoxError};
use crate::http::server::{certificates, private_key, roots};
use crate::http::target::Query;
use crate::object::{list, map, name, text};
use crate::store::etcd::REQUEST_ID;
use bytes::Bytes;
use futures::StreamExt;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const CONNECT: Duration = Duration::from_secs(3);
/// How long a node may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
const ERROR_TEXT: usize = 16 << 10;
const WEBSOCKET_HEADERS: [&str; 4] =
    ["sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol", "sec-websocket-extensions"];

/// A refusal is remembered this long, and so many of them.
const REMEMBERED: (Duration, usize) = (Duration::from_secs(10), 64);

/// How this server shows itself to nodes.
pub(crate) struct AgentDoor {
    tls: TlsConnector,
    refused: Mutex<VecDeque<(Instant, String, ApiError)>>,
}

impl AgentDoor {
    pub(crate) fn new(files: &crate::TlsFiles) -> Result<AgentDoor, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_root_certificates(roots(&files.ca)?)
            .with_client_auth_cert(certificates(&files.cert)?, private_key(&files.key)?)
            .map_err(Error::Tls)?;
        Ok(AgentDoor { tls: TlsConnector::from(Arc::new(config)), refused: Mutex::default() })
    }
}

impl AgentDoor {
    /// kubectl asks again by SPDY where a WebSocket was refused, and shows only the second answer. The node is not
    /// asked twice (it might run the command): the second answer is the first.
    fn remember(&self, path: &str, error: &ApiError) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.truncate(REMEMBERED.1 - 1);
        refused.push_front((Instant::now(), path.to_owned(), error.clone()));
    }

    fn remembered(&self, path: &str) -> Option<ApiError> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = refused.iter().take_while(|(at, _, _)| at.elapsed() < REMEMBERED.0);
        recent.into_iter().find(|(_, of, _)| of == path).map(|(_, _, error)| error.clone())
    }
}

/// Where a pod's node listens.
struct Place {
    node: String,
    address: String,
    port: u16,
}

impl Api {
    /// `log`, `exec` or `attach` of a pod.
    pub(super) async fn stream(
        &self,
        sub: &str,
        namespace: &str,
        pod_name: &str,
        query: &Query,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let posting = request.method() == Method::POST && sub != "log";
        if request.method() != Method::GET && !posting {
            return Err(ApiError::MethodNotAllowed);
        }
        let pods = self.core("pods");
        let pod = self.load(pods, &pods.resource.key(namespace, pod_name)).await?.object();
        let container = container_of(&pod, query)?;
        check_phase(&pod, sub)?;
        let place = self.place_of(&pod).await?;
        let path = match sub {
            "log" => format!("/containerLogs/{namespace}/{pod_name}/{container}?{}", log_query(query)),
            _ => format!("/{sub}/{namespace}/{pod_name}/{container}?{}", exec_query(query)),
        };
        if sub == "log" {
            return self.log(&place, &path).await;
        }
        let websocket =
            request.headers().get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"));
        if !websocket || request.version() != Version::HTTP_11 {
            if let Some(error) = self.agent.as_ref().and_then(|door| door.remembered(&path)) {
                return Err(error);
            }
            return Err(ApiError::BadRequest(
                "streaming needs a WebSocket upgrade with the subprotocol v5.channel.k8s.io over HTTP/1.1".to_owned(),
            ));
        }
        let tunnel = self.tunnel(&place, &path, request).await;
        if let (Some(door), Err(error)) = (&self.agent, &tunnel) {
            door.remember(&path, error);
        }
        tunnel
    }

    async fn place_of(&self, pod: &Value) -> Result<Place, ApiError> {
        let node_name = text(pod, "/spec/nodeName");
        if node_name.is_empty() {
            return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", name(pod))));
        }
        let nodes = self.core("nodes");
        let node = self.load(nodes, node_name).await?.object();
        let addresses = list(&node, "/status/addresses");
        let address = ["InternalIP", "Hostname", "ExternalIP"]
            .iter()
            .find_map(|kind| addresses.iter().find(|address| address["type"] == *kind))
            .map(|address| text(address, "/address").to_owned());
        let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
        match (address, port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0)) {
            (Some(address), Some(port)) => Ok(Place { node: node_name.to_owned(), address, port }),
            _ => Err(ApiError::Internal(format!(
                "node {node_name:?} has not said where its agent listens (status.addresses and status.daemonEndpoints)"
            ))),
        }
    }

    async fn connect(
        &self,
        place: &Place,
    ) -> Result<hyper::client::conn::http1::SendRequest<UnsyncBoxBody<Bytes, BoxError>>, ApiError> {
        let Some(door) = &self.agent else {
            return Err(ApiError::Internal(
                "this server has no certificate for nodes, so logs and exec are not to be had".to_owned(),
            ));
        };
        let unreachable = |why: String| {
            ApiError::Internal(format!(
                "node {:?} does not answer at {}:{}: {why}",
                place.node, place.address, place.port
            ))
        };
        let connecting = async {
            let stream =
                TcpStream::connect((place.address.as_str(), place.port)).await.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            let server = ServerName::try_from(place.address.clone()).map_err(|error| error.to_string())?;
            let stream = door.tls.connect(server, stream).await.map_err(|error| error.to_string())?;
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await;
        let (sender, connection) =
            connected.unwrap_or_else(|_| Err("no connection in time".to_owned())).map_err(unreachable)?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a node ended");
            }
        });
        Ok(sender)
    }

    async fn ask(&self, place: &Place, path: &str, headers: HeaderMap) -> Result<Response<Incoming>, ApiError> {
        let mut sender = self.connect(place).await?;
        let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::builder()
            .uri(path)
            .header(HOST, format!("{}:{}", place.address, place.port))
            .body(empty)
            .map_err(|error| ApiError::BadRequest(error.to_string()))?;
        request.headers_mut().extend(headers);
        if let Some(id) = REQUEST_ID.try_with(|id| HeaderValue::from_str(id).ok()).ok().flatten() {
            request.headers_mut().insert("x-request-id", id);
        }
        let answered = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
        let failed = |why: String| ApiError::Internal(format!("node {:?} broke off: {why}", place.node));
        answered.map_err(|_| failed("no answer in time".to_owned()))?.map_err(|error| failed(error.to_string()))
    }

    async fn log(&self, place: &Place, path: &str) -> Result<Response<Body>, ApiError> {
        let answer = self.ask(place, path, HeaderMap::new()).await?;
        if answer.status() != StatusCode::OK {
            return Err(explained(answer).await);
        }
        let frames = BodyStream::new(answer.into_body()).map(|frame| frame.map_err(BoxError::from));
        let frames = frames.take_until(self.shutdown.clone().cancelled_owned());
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }

    async fn tunnel(
        &self,
        place: &Place,
        path: &str,
        mut request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let mut headers = HeaderMap::new();
        for header in WEBSOCKET_HEADERS {
            for value in request.headers().get_all(header) {
                headers.append(header, value.clone());
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        let mut answer = self.ask(place, path, headers).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(explained(answer).await);
        }
        let (client, node) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
        tokio::spawn(copy(client, node, self.shutdown.clone()));
        let mut response = Response::new(respond::whole(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (key, value) in answer.headers() {
            if matches!(*key, CONNECTION | UPGRADE) || key.as_str().starts_with("sec-websocket-") {
                response.headers_mut().append(key.clone(), value.clone());
            }
        }
        Ok(response)
    }
}

async fn copy(client: OnUpgrade, node: OnUpgrade, shutdown: CancellationToken) {
    let work = async {
        let (client, node) = (client.await?, node.await?);
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        tokio::io::copy_bidirectional(&mut client, &mut node).await.map_err(BoxError::from)
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        result = work => if let Err(error) = result {
            tracing::debug!(%error, "stream to a node ended");
        }
    }
}

/// The node's refusal, in its own words.
async fn explained(answer: Response<Incoming>) -> ApiError {
    let code = answer.status();
    let body = Limited::new(answer.into_body(), ERROR_TEXT).collect().await.map(http_body_util::Collected::to_bytes);
    let said = String::from_utf8_lossy(&body.unwrap_or_default()).trim().to_owned();
    // A node may answer with a Status of its own.
    let said =
        serde_json::from_str::<Value>(&said).ok().map(|status| text(&status, "/message").to_owned()).unwrap_or(said);
    let said = if said.is_empty() { code.to_string() } else { said };
    if code.is_client_error() { ApiError::BadRequest(said) } else { ApiError::Internal(said) }
}

/// The container meant: the one named, the one marked as default, or the only one.
fn container_of(pod: &Value, query: &Query) -> Result<String, ApiError> {
    let groups = ["/spec/containers", "/spec/initContainers", "/spec/ephemeralContainers"];
    let all: Vec<&str> =
        groups.iter().flat_map(|group| list(pod, group)).map(|container| text(container, "/name")).collect();
    if let Some(asked) = query.one("container") {
        if all.contains(&asked) {
            return Ok(asked.to_owned());
        }
        return Err(ApiError::BadRequest(format!("container {asked} is not valid for pod {}", name(pod))));
    }
    let annotations = map(pod, "/metadata/annotations");
    let marked = annotations.and_then(|all| all.get("kubectl.kubernetes.io/default-container")).and_then(Value::as_str);
    if let Some(marked) = marked.filter(|marked| all.contains(marked)) {
        return Ok(marked.to_owned());
    }
    match list(pod, "/spec/containers") {
        [only] => Ok(text(only, "/name").to_owned()),
        _ => Err(ApiError::BadRequest(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            name(pod),
            all.join(" ")
        ))),
    }
}

fn check_phase(pod: &Value, sub: &str) -> Result<(), ApiError> {
    let phase = text(pod, "/status/phase");
    match (sub, phase) {
        ("exec" | "attach", "Succeeded" | "Failed") => Err(ApiError::BadRequest(format!(
            "cannot {sub} into a container in a completed pod; current phase is {phase}"
        ))),
        ("exec" | "attach", "Pending") if !text(pod, "/spec/nodeName").is_empty() => {
            Err(ApiError::BadRequest(format!("pod {} is not running yet; current phase is {phase}", name(pod))))
        }
        _ => Ok(()),
    }
}

fn encoded(pairs: impl IntoIterator<Item = (String, String)>) -> String {
    let escape = |text: &str| -> String {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
        text.bytes()
            .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
            .collect()
    };
    let parts: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={}", escape(&value))).collect();
    parts.join("&")
}

fn log_query(query: &Query) -> String {
    let names = ["follow", "previous", "sinceSeconds", "sinceTime", "timestamps", "tailLines", "limitBytes"];
    encoded(names.into_iter().filter_map(|name| query.one(name).map(|value| (name.to_owned(), value.to_owned()))))
}

/// kubectl's names and the kubelet's for the streams, so that an agent may read either.
fn exec_query(query: &Query) -> String {
    let commands = query.all("command").map(|command| ("command".to_owned(), command.to_owned()));
    let streams = [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
        .into_iter()
        .filter(|(name, _)| query.flag(name))
        .flat_map(|(name, other)| {
            let both = [(name.to_owned(), "true".to_owned()), (other.to_owned(), "1".to_owned())];
            both.into_iter().take(if name == other { 1 } else { 2 })
        });
    encoded(commands.chain(streams))
}

#[cfg(test)]
mod tests {
    use super::{check_phase, container_of, exec_query, log_query};
    use crate::http::target::Query;
    use serde_json::json;

    #[test]
    fn the_container_is_found_or_asked_for() {
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}],
            "initContainers": [{"name": "i"}]}});
        let found = |query: &str| container_of(&two, &Query::parse(query)).map_err(|error| error.to_string());
        assert_eq!(found("container=i"), Ok("i".to_owned()));
        assert_eq!(found("container=x"), Err("container x is not valid for pod p".to_owned()));
        assert_eq!(found(""), Err("a container name must be specified for pod p, choose one of: [a b i]".to_owned()));
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container_of(&one, &Query::default()).ok().as_deref(), Some("a"));
    }

    #[test]
    fn queries_are_passed_on() {
        let query = Query::parse(
            "container=c&command=sh&command=-c&command=echo%20%22a%26b%22&stdin=true&stdout=true&tty=false",
        );
        assert_eq!(
            exec_query(&query),
            "command=sh&command=-c&command=echo%20%22a%26b%22&stdin=true&input=1&stdout=true&output=1"
        );
        assert_eq!(log_query(&Query::parse("follow=true&container=c&tailLines=5")), "follow=true&tailLines=5");
    }

    #[test]
    fn only_running_pods_run_commands() {
        let pod =
            |phase: &str| json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}, "status": {"phase": phase}});
        assert!(check_phase(&pod("Running"), "exec").is_ok());
        assert!(check_phase(&pod("Succeeded"), "exec").is_err() && check_phase(&pod("Succeeded"), "log").is_ok());
        assert!(check_phase(&pod("Pending"), "exec").is_err());
    }
}
