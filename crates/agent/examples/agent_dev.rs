//! Runs the agent by hand against an API server, with a containerd of its own and images made from busybox.
//!
//! ```text
//! cargo run -p cairn-apiserver --example apiserver_dev -- /tmp/x/api http://127.0.0.1:2379 127.0.0.1:6443 &
//! cargo run -p cairn-agent --example agent_dev -- /tmp/x/agent /tmp/x/api k1 127.0.0.1:10250
//! kubectl --kubeconfig /tmp/x/api/kubeconfig get nodes
//! ```
//!
//! Arguments: a directory (made if absent), the API server's directory (`kubeconfig`, `ca.crt`, `agent.{crt,key}`), the
//! node's name, the address to listen on. SIGTERM or ctrl-c ends the agent and leaves the pods running, so that a
//! second start finds them; with `--teardown` instead of the last two arguments everything is taken off the machine.

use std::error::Error;
use std::path::PathBuf;

use cairn_agent::containerd::{
    BUSYBOX, Daemon, PAUSE_REFERENCE, Settings, busybox_image, import_image, pause_image, remove_pods, sweep,
};
use cairn_agent::{Clear, Config};
use tokio_util::sync::CancellationToken;

const BUSYBOX_REFERENCE: &str = "docker.io/library/busybox:latest";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, api, rest @ ..] = arguments.as_slice() else {
        return Err("usage: agent_dev DIR APISERVER_DIR (NODE LISTEN | --teardown)".into());
    };
    let (dir, api) = (PathBuf::from(dir), PathBuf::from(api));
    let settings = Settings {
        root: dir.join("containerd"),
        bridge: "cairndev0".into(),
        subnet: [10, 88, 77, 0].into(),
        cni_bin_dir: "/usr/lib/cni".into(),
        sandbox_image: PAUSE_REFERENCE.into(),
        cgroup_parent: "/cairn-dev".into(),
    };
    let daemon = Daemon::spawn(settings.clone()).await?;
    let [node, listen] = rest else {
        let clear = Clear {
            node_name: std::fs::read_to_string(dir.join("node"))?,
            cri_socket: settings.socket(),
            root: dir.join("agent"),
            plugin_registry: dir.join("plugins_registry"),
            cgroup_parent: settings.cgroup_parent.clone(),
        };
        let mut left = clear.run().await;
        remove_pods(&settings).await?;
        daemon.stop().await;
        left.extend(sweep(&settings));
        return if left.is_empty() { Ok(()) } else { Err(left.join("; ").into()) };
    };
    std::fs::write(dir.join("node"), node)?;
    let busybox = busybox_image(BUSYBOX.as_ref(), &[BUSYBOX_REFERENCE, "docker.io/library/busybox:1.36"])?;
    import_image(&settings, pause_image(BUSYBOX.as_ref(), &[PAUSE_REFERENCE])?, PAUSE_REFERENCE).await?;
    import_image(&settings, busybox, BUSYBOX_REFERENCE).await?;
    let config = Config {
        node_name: node.clone(),
        kubeconfig: api.join("kubeconfig"),
        cri_socket: settings.socket(),
        root: dir.join("agent"),
        plugin_registry: dir.join("plugins_registry"),
        listen: listen.parse()?,
        insecure_listen: false,
        tls_certificate: api.join("agent.crt"),
        tls_key: api.join("agent.key"),
        client_ca: api.join("ca.crt"),
        node_address: Some([127, 0, 0, 1].into()),
        pod_cidr: Some("10.88.77.0/24".into()),
        labels: [("topology.kubernetes.io/zone".to_owned(), "here".to_owned())].into(),
        cgroup_parent: settings.cgroup_parent.clone(),
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".into(),
    };
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        stop.cancel();
    });
    let outcome = cairn_agent::run(config, shutdown).await;
    daemon.stop().await;
    Ok(outcome?)
}
