//! A stand for the agent's tests: a private containerd with its images, an API server in memory, certificates, and the
//! agent itself in this process. Everything is taken down again, also when a test fails.

pub(crate) mod api;
pub(crate) mod csi;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_agent::containerd::{
    BUSYBOX, Daemon, PAUSE_REFERENCE, Settings, busybox_image, import_image, pause_image, remove_pods, sweep,
};
use cairn_agent::{Clear, Config};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::api::FakeApi;

pub(crate) const IMAGE: &str = "docker.io/library/busybox:1.36";
pub(crate) const NODE: &str = "k1";

pub(crate) struct Stand {
    pub(crate) dir: PathBuf,
    pub(crate) api: FakeApi,
    pub(crate) settings: Settings,
    pub(crate) daemon: Option<Daemon>,
    agent: Option<(CancellationToken, JoinHandle<Result<(), cairn_agent::Error>>)>,
    _dir: tempfile::TempDir,
}

impl Stand {
    /// `number` keeps the bridges and addresses of tests apart.
    pub(crate) async fn start(number: u8) -> Stand {
        for (program, package) in [("containerd", "containerd"), ("runc", "runc"), ("ip", "iproute2")] {
            let found =
                std::env::var("PATH").expect("a PATH").split(':').any(|dir| Path::new(dir).join(program).exists());
            assert!(found, "this test needs {program}: apt-get install {package}");
        }
        assert!(
            Path::new("/usr/lib/cni/bridge").exists(),
            "this test needs: apt-get install containernetworking-plugins"
        );
        assert!(Path::new(BUSYBOX).exists(), "this test needs: apt-get install busybox-static");
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = std::fs::canonicalize(temporary.path()).expect("there");
        let tag = std::process::id() % 10_000;
        let settings = Settings {
            root: dir.join("containerd"),
            bridge: format!("cat{number}x{tag}"),
            subnet: [10, 97, number, 0].into(),
            cni_bin_dir: "/usr/lib/cni".into(),
            sandbox_image: PAUSE_REFERENCE.into(),
            cgroup_parent: format!("/cairn-test-{number}-{tag}"),
        };
        let daemon = Daemon::spawn(settings.clone()).await.expect("containerd runs (this test needs root)");
        let pause = pause_image(BUSYBOX.as_ref(), &[PAUSE_REFERENCE]).expect("built");
        import_image(&settings, pause, PAUSE_REFERENCE).await.expect("imported");
        let busybox = busybox_image(BUSYBOX.as_ref(), &[IMAGE]).expect("built");
        import_image(&settings, busybox, IMAGE).await.expect("imported");
        let api = FakeApi::start().await;
        certificates(&dir);
        std::fs::write(dir.join("kubeconfig"), api.kubeconfig()).expect("written");
        Stand { dir, api, settings, daemon: Some(daemon), agent: None, _dir: temporary }
    }

    pub(crate) fn registry(&self) -> PathBuf {
        self.dir.join("registry")
    }

    /// Starts the agent and waits until its Node is ready; the address of its endpoint.
    pub(crate) async fn start_agent(&mut self) -> String {
        let config = Config {
            node_name: NODE.into(),
            kubeconfig: self.dir.join("kubeconfig"),
            cri_socket: self.settings.socket(),
            root: self.dir.join("agent"),
            plugin_registry: self.registry(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            insecure_listen: false,
            tls_certificate: self.dir.join("server.crt"),
            tls_key: self.dir.join("server.key"),
            client_ca: self.dir.join("ca.crt"),
            node_address: Some([127, 0, 0, 1].into()),
            pod_cidr: None,
            labels: Default::default(),
            cgroup_parent: self.settings.cgroup_parent.clone(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
        };
        // A predecessor's endpoint must not be taken for this one's.
        if self.api.get("/api/v1/nodes/k1").is_some() {
            self.api.patch("/api/v1/nodes/k1", &json!({"status": {"daemonEndpoints": null}}));
        }
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(cairn_agent::run(config, shutdown.clone()));
        self.agent = Some((shutdown, task));
        let ready = |node: Option<&Value>| {
            let Some(node) = node else { return false };
            let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").is_some();
            port && condition(node, "Ready").as_deref() == Some("True")
        };
        let node = self.api.wait("/api/v1/nodes/k1", "ready", ready).await.expect("there");
        format!("127.0.0.1:{}", node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])
    }

    pub(crate) async fn stop_agent(&mut self) {
        if let Some((shutdown, task)) = self.agent.take() {
            shutdown.cancel();
            task.await.expect("no panic").expect("a clean stop");
        }
    }

    /// Makes a pod on this node; its path.
    pub(crate) fn pod(&self, name: &str, spec: Value) -> String {
        let mut spec = spec;
        spec["nodeName"] = json!(NODE);
        let path = format!("/api/v1/namespaces/default/pods/{name}");
        self.api.put(&path, json!({"metadata": {}, "spec": spec}));
        path
    }

    /// The event of a pod with this reason, once it is there.
    pub(crate) async fn event(&self, pod: &str, reason: &str) -> Value {
        let fits = |event: &Value| event["involvedObject"]["name"] == pod && event["reason"] == reason;
        self.api.wait_among("/api/v1/namespaces/default/events/", &format!("{reason} about {pod}"), fits).await
    }

    /// The node's clearing, as `cairn reset` does it.
    pub(crate) fn clear(&self) -> Clear {
        Clear {
            node_name: NODE.into(),
            cri_socket: self.settings.socket(),
            root: self.dir.join("agent"),
            plugin_registry: self.registry(),
            cgroup_parent: self.settings.cgroup_parent.clone(),
        }
    }

    /// Takes everything down and says what is left on the machine.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        self.stop_agent().await;
        self.take_down().await
    }

    async fn take_down(&mut self) -> Vec<String> {
        if let Some(daemon) = self.daemon.take() {
            let _ = remove_pods(&self.settings).await;
            daemon.stop().await;
        }
        let left = sweep(&self.settings);
        unmount_beneath(&self.dir);
        left
    }
}

impl Drop for Stand {
    /// After a failed assertion: the same, but without waiting for anything asynchronous.
    fn drop(&mut self) {
        if let Some((_, task)) = self.agent.take() {
            task.abort();
        }
        // Dropping it kills it; its pods are then found by their bundles.
        drop(self.daemon.take());
        sweep(&self.settings);
        unmount_beneath(&self.dir);
    }
}

fn unmount_beneath(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let mut points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points.into_iter().filter(|point| Path::new(point).starts_with(dir)) {
        let _ = std::process::Command::new("umount").args(["-l", point]).status();
    }
}

pub(crate) fn condition(object: &Value, kind: &str) -> Option<String> {
    let list = object["status"]["conditions"].as_array()?;
    Some(list.iter().find(|condition| condition["type"] == kind)?["status"].as_str()?.to_owned())
}

pub(crate) fn phase(object: Option<&Value>) -> &str {
    object.and_then(|object| object["status"]["phase"].as_str()).unwrap_or_default()
}

pub(crate) fn is_ready(object: Option<&Value>) -> bool {
    object.is_some_and(|object| condition(object, "Ready").as_deref() == Some("True"))
}

fn certificates(dir: &Path) {
    let ca_key = rcgen::KeyPair::generate().expect("a key");
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).expect("signed");
    std::fs::write(dir.join("ca.crt"), ca_certificate.pem()).expect("written");
    let issuer = rcgen::Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &issuer).expect("signed");
        std::fs::write(dir.join(format!("{name}.crt")), certificate.pem()).expect("written");
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }
}

/// A TLS connection to the agent; with the client's certificate or without any.
pub(crate) async fn dial(
    stand: &Stand,
    address: &str,
    with_certificate: bool,
) -> std::io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    let pem = |name: &str| CertificateDer::from_pem_file(stand.dir.join(name)).expect("a certificate");
    roots.add(pem("ca.crt")).expect("a root");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match with_certificate {
        true => {
            let key = PrivateKeyDer::from_pem_file(stand.dir.join("client.key")).expect("a key");
            builder.with_client_auth_cert(vec![pem("client.crt")], key).expect("they fit")
        }
        false => builder.with_no_client_auth(),
    };
    let socket = tokio::net::TcpStream::connect(address).await?;
    let name = "localhost".try_into().expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await
}
