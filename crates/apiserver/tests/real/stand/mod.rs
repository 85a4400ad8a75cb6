//! A real etcd, a server in this process and the real kubectl, in a directory of their own; all gone at the end.
//!
//! `KUBECTL` names another kubectl than the one on the PATH.

#![allow(dead_code)]

pub(crate) mod certificates;

use cairn_apiserver::{Config, TlsFiles, bind, serve};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// An etcd, killed when dropped.
pub(crate) struct Etcd {
    process: Child,
    pub(crate) url: String,
}

impl Etcd {
    /// Starts one and waits until it listens; another port where somebody was faster.
    pub(crate) fn start(dir: &Path) -> Etcd {
        for attempt in 0..5 {
            let free = || TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port");
            let (client, peer) = (free(), free());
            let (url, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let log = std::fs::File::create(dir.join("etcd.log")).expect("a log");
            let process = Command::new("etcd")
                .args(["--data-dir", &dir.join(format!("etcd{attempt}")).display().to_string()])
                .args(["--listen-client-urls", &url, "--advertise-client-urls", &url])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("default={peer}"), "--unsafe-no-fsync"])
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("etcd runs (Debian's etcd-server)");
            let mut etcd = Etcd { process, url };
            while etcd.process.try_wait().expect("is a child").is_none() {
                if TcpStream::connect(client).is_ok() {
                    return etcd;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("etcd does not start: {}", std::fs::read_to_string(dir.join("etcd.log")).unwrap_or_default());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), cairn_apiserver::Error>>,
}

impl Server {
    pub(crate) async fn start(dir: &Path, etcd: &str) -> Server {
        let files = |name: &str| TlsFiles {
            cert: dir.join(format!("{name}.crt")),
            key: dir.join(format!("{name}.key")),
            ca: dir.join("ca.crt"),
        };
        let config = Config {
            listen: "127.0.0.1:0".parse().expect("an address"),
            insecure_listen: false,
            etcd: vec![etcd.to_owned()],
            tls: files("server"),
            agent: Some(files("admin")),
        };
        let listener = bind(&config).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let kubeconfig = certificates::kubeconfig(dir, &address.to_string());
        std::fs::write(dir.join("kubeconfig"), kubeconfig).expect("written");
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, config, shutdown.clone()));
        Server { address, shutdown, task }
    }

    /// Stops cleanly; anything else is a failure.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("stops in time");
        ended.expect("no panic").expect("no error");
    }
}

/// Everything together.
pub(crate) struct Stand {
    pub(crate) dir: TempDir,
    pub(crate) etcd: Etcd,
    pub(crate) server: Server,
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) ok: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Stand {
    pub(crate) async fn start() -> Stand {
        let dir = TempDir::new().expect("a directory");
        certificates::certificates(dir.path()).expect("certificates");
        let etcd = Etcd::start(dir.path());
        let server = Server::start(dir.path(), &etcd.url).await;
        let stand = Stand { dir, etcd, server };
        stand.ready().await;
        stand
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    /// Waits until the server says that it is ready.
    pub(crate) async fn ready(&self) {
        let client = self.client().await;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            match client.request_text(request).await {
                Ok(_) => return,
                Err(error) => assert!(tokio::time::Instant::now() < deadline, "not ready: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A client of the library that the controllers use.
    pub(crate) async fn client(&self) -> kube::Client {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig()).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.expect("a config");
        kube::Client::try_from(config).expect("a client")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let program = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = tokio::process::Command::new(program);
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Runs kubectl with `input`.
    pub(crate) async fn kubectl_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("is piped");
        stdin.write_all(input.as_bytes()).await.expect("is read");
        drop(stdin);
        let output =
            tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time").expect("ran");
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs kubectl (words are split at spaces) and gives what it printed; it must succeed.
    pub(crate) async fn kubectl(&self, arguments: &str) -> String {
        self.kubectl_in(arguments, "").await
    }

    /// The same with `input`.
    pub(crate) async fn kubectl_in(&self, arguments: &str, input: &str) -> String {
        let words: Vec<&str> = arguments.split(' ').collect();
        let said = self.kubectl_with(&words, input).await;
        assert!(said.ok, "kubectl {arguments}\n{}{}", said.out, said.err);
        said.out
    }

    /// Runs kubectl and gives its complaint; it must fail.
    pub(crate) async fn refused(&self, arguments: &str, input: &str) -> String {
        let words: Vec<&str> = arguments.split(' ').collect();
        let said = self.kubectl_with(&words, input).await;
        assert!(!said.ok, "kubectl {arguments} should fail\n{}{}", said.out, said.err);
        said.err
    }

    pub(crate) async fn stop(self) {
        self.server.stop().await;
    }
}
