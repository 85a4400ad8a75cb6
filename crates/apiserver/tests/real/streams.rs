//! Logs and exec: kubectl at one end, a node's HTTPS door (made here) at the other, the server in between.

use crate::stand::Stand;
use futures::{SinkExt, StreamExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

fn acceptor(dir: &Path) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.crt")).expect("a certificate")).expect("an authority");
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(
            vec![CertificateDer::from_pem_file(dir.join("agent.crt")).expect("a certificate")],
            PrivateKeyDer::from_pem_file(dir.join("agent.key")).expect("a key"),
        )
        .expect("a server");
    TlsAcceptor::from(Arc::new(config))
}

/// Answers `/containerLogs` with a text and `/exec` with an echo of its query and its input, upper-cased.
async fn node(listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let tls = tls.clone();
        tokio::spawn(async move {
            let stream = tls.accept(stream).await.expect("the server's certificate is good");
            answer(stream).await;
        });
    }
}

async fn answer(mut stream: TlsStream<TcpStream>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let text = String::from_utf8(head.clone()).expect("text");
    let path = text.split(' ').nth(1).expect("a path").to_owned();
    if path.starts_with("/containerLogs/default/web/main") {
        let body = format!("line of {path}\n");
        let reply =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        stream.write_all(reply.as_bytes()).await.expect("written");
        return;
    }
    if !path.starts_with("/exec/default/web/main?") {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 11\r\n\r\nno such pod").await.expect("written");
        return;
    }
    let joined = tokio::io::join(std::io::Cursor::new(head), tokio::io::empty());
    let (reader, _) = tokio::io::split(joined);
    let (rest, writer) = tokio::io::split(stream);
    let whole = tokio::io::join(AsyncReadExt::chain(reader, rest), writer);
    #[allow(clippy::result_large_err)]
    let choose = |_: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        response.headers_mut().insert("sec-websocket-protocol", http::HeaderValue::from_static("v5.channel.k8s.io"));
        Ok(response)
    };
    let mut socket = tokio_tungstenite::accept_hdr_async(whole, choose).await.expect("a WebSocket");
    let say = |channel: u8, text: &str| Message::binary([&[channel], text.as_bytes()].concat());
    socket.send(say(1, &format!("{}\n", path.split_once('?').expect("a query").1))).await.expect("sent");
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(frame) = message else { continue };
        match frame.as_ref() {
            [0, input @ ..] => {
                let text = String::from_utf8_lossy(input).to_uppercase();
                socket.send(say(1, &text)).await.expect("sent");
            }
            [255, 0] => break,
            _ => {}
        }
    }
    let status = json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": "exit 3",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}});
    socket.send(say(3, &status.to_string())).await.expect("sent");
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = socket.close(Some(normal)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_exec_reach_the_node() {
    let stand = Stand::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(node(listener, acceptor(stand.dir.path())));
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "main", "image": "i"}]}});
    stand.kubectl_in("create -f -", &node.to_string()).await;
    stand.kubectl_in("create -f -", &pod.to_string()).await;
    assert!(stand.refused("logs web", "").await.contains("pod web does not have a host assigned"));
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"},
        "target": {"kind": "Node", "name": "n1"}});
    stand.kubectl_in("create --raw /api/v1/namespaces/default/pods/web/binding -f -", &binding.to_string()).await;
    stand.kubectl(r#"patch pod web --subresource=status --type=merge -p {"status":{"phase":"Running"}}"#).await;

    assert_eq!(stand.kubectl("logs web --tail=7").await, "line of /containerLogs/default/web/main?tailLines=7\n");
    let said = stand.kubectl_with(&["exec", "-i", "web", "--", "cat", "a b"], "shout\n").await;
    assert_eq!(
        said.out, "command=cat&command=a%20b&stdin=true&input=1&stdout=true&output=1&stderr=true&error=1\nSHOUT\n",
        "{said:?}"
    );
    assert!(!said.ok && said.err.contains("exit code 3"), "{said:?}");
    let attach = stand.refused("attach web", "").await;
    assert!(attach.contains("no such pod"), "the node's own words: {attach}");

    serving.abort();
    let _ = serving.await;
    let gone = stand.refused("logs web", "").await;
    assert!(gone.contains("node \"n1\" does not answer at 127.0.0.1"), "{gone}");
    let gone = stand.refused("exec web -- ls", "").await;
    assert!(gone.contains("node \"n1\" does not answer at 127.0.0.1"), "{gone}");
    assert!(stand.refused("logs web -c other", "").await.contains("container other is not valid for pod web"));
    stand.kubectl(r#"patch pod web --subresource=status --type=merge -p {"status":{"phase":"Succeeded"}}"#).await;
    assert!(stand.refused("exec web -- ls", "").await.contains("completed pod; current phase is Succeeded"));
    stand.stop().await;
}
