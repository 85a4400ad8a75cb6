//! Runs what probes and lifecycle hooks ask for: a command in the container, an HTTP request, a connection.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ExecAction, HTTPGetAction, LifecycleHandler, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::unverified;
use crate::cri::Runtime;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Action {
    Exec(Vec<String>),
    Http(Request),
    Tcp {
        host: String,
        port: u16,
    },
    Sleep(Duration),
    /// Something this agent does not speak.
    Unknown(&'static str),
}

/// An HTTP request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    host: String,
    port: u16,
    path: String,
    headers: Vec<(String, String)>,
    tls: bool,
}

/// As much of an answer as an event shows.
const ANSWER_MAX: usize = 256;

impl Action {
    /// The action of a probe. `address` is the pod's, for requests that name no host.
    pub(crate) fn of_probe(probe: &Probe, container: &Container, address: &str) -> Action {
        let grpc = probe.grpc.as_ref().map(|_| "a gRPC probe");
        from_parts(probe.exec.as_ref(), probe.http_get.as_ref(), probe.tcp_socket.as_ref(), container, address)
            .unwrap_or(Action::Unknown(grpc.unwrap_or("a probe without an action")))
    }

    /// The action of a lifecycle hook.
    pub(crate) fn of_hook(hook: &LifecycleHandler, container: &Container, address: &str) -> Action {
        if let Some(sleep) = &hook.sleep {
            return Action::Sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs()));
        }
        from_parts(hook.exec.as_ref(), hook.http_get.as_ref(), hook.tcp_socket.as_ref(), container, address)
            .unwrap_or(Action::Unknown("a hook without an action"))
    }

    /// Does it; the error is what to tell the user.
    pub(crate) async fn run(&self, runtime: &Runtime, id: &str, limit: Duration) -> Result<(), String> {
        let outcome = match self {
            Action::Exec(command) => return exec(runtime, id, command, limit).await,
            Action::Http(request) => tokio::time::timeout(limit, request.send()).await,
            Action::Tcp { host, port } => {
                let connect = async { TcpStream::connect((host.as_str(), *port)).await.map(drop) };
                tokio::time::timeout(limit, async { connect.await.map_err(|error| error.to_string()) }).await
            }
            Action::Sleep(time) => {
                tokio::time::sleep(*time).await;
                return Ok(());
            }
            Action::Unknown(what) => return Err(format!("{what} is not supported by this agent")),
        };
        outcome.unwrap_or_else(|_| Err(format!("not answered within {} s", limit.as_secs_f64())))
    }
}

fn from_parts(
    exec: Option<&ExecAction>,
    http: Option<&HTTPGetAction>,
    tcp: Option<&TCPSocketAction>,
    container: &Container,
    address: &str,
) -> Option<Action> {
    let host = |own: Option<&String>| own.filter(|host| !host.is_empty()).map_or(address, |host| host).to_owned();
    if let Some(exec) = exec {
        return Some(Action::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(http) = http {
        let headers = http.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
        return Some(match port(&http.port, container) {
            Some(port) => Action::Http(Request {
                host: host(http.host.as_ref()),
                port,
                path: http.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".into()),
                headers: headers.collect(),
                tls: http.scheme.as_deref() == Some("HTTPS"),
            }),
            None => Action::Unknown("a port name that the container does not define"),
        });
    }
    let tcp = tcp?;
    Some(match port(&tcp.port, container) {
        Some(port) => Action::Tcp { host: host(tcp.host.as_ref()), port },
        None => Action::Unknown("a port name that the container does not define"),
    })
}

fn port(wanted: &IntOrString, container: &Container) -> Option<u16> {
    let number = match wanted {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            named.or_else(|| name.parse().ok())?
        }
    };
    u16::try_from(number).ok()
}

async fn exec(runtime: &Runtime, id: &str, command: &[String], limit: Duration) -> Result<(), String> {
    let reply = runtime.exec_sync(id, command.to_vec(), limit).await.map_err(|error| error.to_string())?;
    if reply.exit_code == 0 {
        return Ok(());
    }
    let said = if reply.stderr.is_empty() { reply.stdout } else { reply.stderr };
    let said = String::from_utf8_lossy(&said[..said.len().min(ANSWER_MAX)]).trim().to_owned();
    Err(format!("exit code {}: {said}", reply.exit_code))
}

impl Request {
    async fn send(&self) -> Result<(), String> {
        let scheme = if self.tls { "https" } else { "http" };
        let url = format!("{scheme}://{}:{}{}", self.host, self.port, self.path);
        let answer = self.first_bytes().await.map_err(|error| format!("GET {url}: {error}"))?;
        let first = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
        let code: Option<u16> = first.split(' ').nth(1).and_then(|code| code.parse().ok());
        match code {
            Some(200..=399) => Ok(()),
            Some(code) => Err(format!("HTTP probe failed with statuscode: {code}")),
            None => Err(format!("GET {url}: no HTTP answer")),
        }
    }

    async fn first_bytes(&self) -> std::io::Result<Vec<u8>> {
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        match self.tls {
            true => ask(unverified::wrap(socket, &self.host).await?, self.head().as_bytes()).await,
            false => ask(socket, self.head().as_bytes()).await,
        }
    }

    fn head(&self) -> String {
        let Request { host, port, path, headers, .. } = self;
        let own = |name: &str| headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let name = own("host").cloned().unwrap_or_else(|| format!("{host}:{port}"));
        let slash = if path.starts_with('/') { "" } else { "/" };
        let mut request = format!("GET {slash}{path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n");
        request.push_str(if own("user-agent").is_some() { "" } else { "User-Agent: kube-probe/cairn\r\n" });
        for (key, value) in headers.iter().filter(|(key, _)| !key.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("{key}: {value}\r\n"));
        }
        request.push_str("\r\n");
        request
    }
}

/// Sends the request; the beginning of the answer.
async fn ask(mut socket: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> std::io::Result<Vec<u8>> {
    socket.write_all(request).await?;
    socket.flush().await?;
    let mut answer = Vec::with_capacity(ANSWER_MAX);
    while answer.len() < ANSWER_MAX && !answer.contains(&b'\n') {
        if socket.read_buf(&mut answer).await? == 0 {
            break;
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::{Action, Request};
    use serde_json::json;

    fn action(probe: serde_json::Value) -> Action {
        let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        let container = serde_json::from_value(container).expect("a container");
        Action::of_probe(&serde_json::from_value(probe).expect("a probe"), &container, "10.0.0.1")
    }

    #[test]
    fn probes_are_read() {
        let http = action(json!({"httpGet": {"port": "web", "httpHeaders": [{"name": "A", "value": "b"}]}}));
        let headers = vec![("A".into(), "b".into())];
        let request = Request { host: "10.0.0.1".into(), port: 8080, path: "/".into(), headers, tls: false };
        assert_eq!(http, Action::Http(request.clone()));
        assert!(request.head().starts_with("GET / HTTP/1.1\r\nHost: 10.0.0.1:8080\r\n"));
        assert!(request.head().ends_with("A: b\r\n\r\n"));
        let tcp = action(json!({"tcpSocket": {"port": 53, "host": "127.0.0.1"}}));
        assert_eq!(tcp, Action::Tcp { host: "127.0.0.1".into(), port: 53 });
        assert_eq!(action(json!({"exec": {"command": ["true"]}})), Action::Exec(vec!["true".into()]));
        assert!(matches!(action(json!({"httpGet": {"port": "nope"}})), Action::Unknown(_)));
        assert!(matches!(action(json!({"grpc": {"port": 1}})), Action::Unknown(_)));
    }
}
