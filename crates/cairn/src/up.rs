//! `up`, `down`, `reset` and the supervisor behind them: a whole cluster on this host for who has the binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cairn_host::cluster::Orchestrator;
use cairn_host::supervisor::State;
use cairn_host::{Cluster, ClusterOptions, Layout, pki, reset};
use clap::Args;
use kube::Api;
use tokio_util::sync::CancellationToken;

use crate::admin::Metadata;
use crate::failure::{Code, Failure, Outcome};
use crate::kube::Scope;
use crate::{form, kube as verbs, size};

/// What `up` applies when the orchestrator serves: the driver and the default class.
const MANIFESTS: &str = concat!(
    include_str!("../../../deploy/csi-driver.yaml"),
    "---\n",
    include_str!("../../../examples/storage-class.yaml")
);

/// How long each phase of `up` may take before it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub(crate) struct Up {
    /// Where the cluster keeps everything.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
    dir: PathBuf,
    /// Metadata members: 1, 3 or 5.
    #[arg(long, default_value_t = 3)]
    members: u32,
    /// OSDs, each in a file of its own.
    #[arg(long, default_value_t = 3)]
    osds: u32,
    /// Size of each OSD's file (thin).
    #[arg(long, default_value = "10Gi", value_parser = size::parse)]
    osd_size: u64,
    /// First of the loopback ports to use; 0 takes free ones.
    #[arg(long, default_value_t = 7400)]
    base_port: u16,
    /// This node's name; by default the host name.
    #[arg(long)]
    node: Option<String>,
    /// Only storage: no API server, controllers, scheduler, agent or containers.
    #[arg(long)]
    storage_only: bool,
    /// Milliseconds until a process that died is started again.
    #[arg(long, default_value_t = 1000)]
    restart_delay_ms: u64,
    /// Print only the last line.
    #[arg(long)]
    quiet: bool,
}

#[derive(Args)]
pub(crate) struct Down {
    /// The cluster's directory.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
    dir: PathBuf,
}

#[derive(Args)]
pub(crate) struct Reset {
    /// The cluster's directory.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
    dir: PathBuf,
    /// Do it: every volume and everything else of this cluster is deleted.
    #[arg(long)]
    yes: bool,
    /// Say what would be deleted; delete nothing.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

#[derive(Args)]
pub(crate) struct Supervise {
    /// The cluster's directory.
    #[arg(long)]
    dir: PathBuf,
}

/// Starts a cluster (or what a stopped one left) and returns when it is healthy.
pub(crate) async fn up(options: Up) -> Outcome {
    let start = Instant::now();
    let say = |line: &str| {
        if !options.quiet {
            println!("{:>6.2} s  {line}", start.elapsed().as_secs_f64());
        }
    };
    let layout = Layout::at(&options.dir).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    if let Some(supervisor) = State::load(&layout).and_then(|state| state.live_supervisor()) {
        let message =
            format!("this cluster is running already (supervisor pid {}); `cairn down` stops it", supervisor.pid);
        return Err(Failure::new(Code::Failed, message));
    }
    let cluster = decide(&layout, &options)?;
    if cluster.network.is_some() {
        return form::resume(&layout, &cluster).await;
    }
    start_supervisor(&layout)?;
    let metadata = Metadata::of_cluster(&cluster)?;
    storage(&layout, &metadata, &cluster, &say).await.map_err(|failure| with_log(failure, &layout))?;
    if let Some(part) = &cluster.orchestrator {
        orchestrator(&layout, &cluster, part, &say).await.map_err(|failure| with_log(failure, &layout))?;
    }
    println!("HEALTHY after {:.2} s", start.elapsed().as_secs_f64());
    if !options.quiet {
        next_steps(&layout, &cluster);
    }
    Ok(())
}

fn decide(layout: &Layout, options: &Up) -> Result<Cluster, Failure> {
    let wanted = ClusterOptions {
        members: options.members,
        osds: options.osds,
        osd_size: options.osd_size,
        base_port: options.base_port,
        orchestrator: !options.storage_only,
        node: options.node.clone().unwrap_or_else(host_name),
        restart_delay_ms: options.restart_delay_ms,
    };
    let cluster =
        Cluster::load_or_create(layout, &wanted).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    if let Some(orchestrator) = &cluster.orchestrator {
        pki::ensure(layout, &cluster.node, &orchestrator.api_address())
            .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    }
    Ok(cluster)
}

/// What the machine calls itself.
pub(crate) fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_lowercase()
}

/// Its own process group and no terminal: it outlives this command.
pub(crate) fn start_supervisor(layout: &Layout) -> Outcome {
    use std::os::unix::process::CommandExt;
    let log_file = layout.log().join("supervisor.log");
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&log_file);
    let log = log.map_err(Failure::while_(format!("cannot write {}", log_file.display())))?;
    let errors = log.try_clone().map_err(Failure::while_("cannot share the log"))?;
    let binary = std::env::current_exe().map_err(Failure::while_("cannot find this binary"))?;
    Command::new(binary)
        .arg("supervise")
        .arg("--dir")
        .arg(layout.root())
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(Failure::while_("cannot start the supervisor"))?;
    Ok(())
}

async fn storage(layout: &Layout, metadata: &Metadata, cluster: &Cluster, say: &impl Fn(&str)) -> Outcome {
    let leader = wait("the metadata members to elect a leader", async || {
        metadata.status().await.ok().filter(|status| status.leader_id != 0).map(|status| status.leader_id)
    })
    .await?;
    say(&format!("metadata: member {leader} leads {} members", cluster.members.len()));
    let osds = cluster.disks.len();
    wait("the OSDs to join", async || {
        let map = metadata.map().await.ok()?;
        (map.osds.values().filter(|osd| osd.up).count() >= osds).then_some(())
    })
    .await?;
    say(&format!("storage: {osds} OSDs are up"));
    if metadata.create_default_pool(osds as u32).await? {
        say("storage: made pool `default`; its copies lie on different OSDs of this one host (failure domain osd)");
    }
    wait("the placement groups to become active", async || {
        metadata.health().await.ok().filter(|health| health.status == "OK").map(|_| ())
    })
    .await?;
    say("storage: every placement group is active and clean");
    // Or else who attaches a volume at once would be told that nobody answers.
    let socket = layout.socket("attach");
    wait("the attach daemon to answer", async || tokio::net::UnixStream::connect(&socket).await.ok()).await?;
    Ok(())
}

async fn orchestrator(layout: &Layout, cluster: &Cluster, part: &Orchestrator, say: &impl Fn(&str)) -> Outcome {
    let scope = Scope { namespace: None, kubeconfig: Some(layout.kubeconfig()), dir: layout.root().into() };
    let (client, namespace) = verbs::client(&scope).await?;
    wait("the API server to answer", async || client.apiserver_version().await.ok().map(|_| ())).await?;
    say(&format!("orchestrator: the API server answers on {}", part.api_address()));
    let mut lines = Vec::new();
    verbs::apply_text(&client, &namespace, MANIFESTS, false, &mut |line| lines.push(line)).await?;
    lines.iter().for_each(|line| say(&format!("orchestrator: {line}")));
    // What the API says of the node may be from the cluster's last run; the agent itself is not.
    wait("the agent to serve", async || tokio::net::TcpStream::connect(part.agent_address()).await.ok()).await?;
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let drivers: Api<k8s_openapi::api::storage::v1::CSINode> = Api::all(client);
    wait("the node to become Ready", async || {
        let node = nodes.get(&cluster.node).await.ok()?;
        let conditions = node.status?.conditions.unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True").then_some(())
    })
    .await?;
    wait("the CSI driver to register on the node", async || {
        let drivers = drivers.get(&cluster.node).await.ok()?.spec.drivers;
        drivers.iter().any(|driver| driver.name == "csi.cairn.dev").then_some(())
    })
    .await?;
    say(&format!("orchestrator: node {} is Ready", cluster.node));
    Ok(())
}

/// Asks every 20 ms until there is an answer.
pub(crate) async fn wait<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> Result<T, Failure> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if tokio::time::Instant::now() > deadline {
            let message = format!("waited {} s for {what}", PATIENCE.as_secs());
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn with_log(failure: Failure, layout: &Layout) -> Failure {
    let hint = format!("the logs in {} say more; `cairn reset` takes the cluster away", layout.log().display());
    Failure::new(failure.code, format!("{failure}; {hint}"))
}

fn next_steps(layout: &Layout, cluster: &Cluster) {
    let dir = layout.root().display();
    println!("\nNext:");
    println!("  cairn status --dir {dir}");
    println!("  cairn health --dir {dir}");
    if cluster.orchestrator.is_some() {
        println!("  export KUBECONFIG={}", layout.kubeconfig().display());
        println!("  kubectl get nodes          (or: cairn get nodes)");
    }
    let measured = cluster.own_members.first().map_or_else(|| "csi".to_owned(), |id| format!("meta-{id}"));
    let page = cairn_host::roles::metrics_socket(layout, &measured);
    println!("  curl --unix-socket {} http://localhost/metrics      (every role has such a page)", page.display());
    println!("  cairn down --dir {dir}       stops it, and keeps its data");
    println!("  cairn reset --dir {dir} --yes");
}

/// Stops a cluster; its data stays.
pub(crate) async fn down(options: Down) -> Outcome {
    let layout = existing(&options.dir)?;
    let ran = reset::down(&layout).await.map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    println!("{}", if ran { "stopped" } else { "it did not run" });
    Ok(())
}

/// Stops a cluster and deletes it.
pub(crate) async fn take_away(options: Reset) -> Outcome {
    let layout = existing(&options.dir)?;
    let root = layout.root().display().to_string();
    // A description that cannot be read is no reason to keep it.
    let cluster = Cluster::load(&layout).ok().flatten();
    let outside = cluster.as_ref().map(|cluster| form::disks_outside(&layout, cluster)).unwrap_or_default();
    if !options.yes {
        if cluster.is_some_and(|cluster| cluster.network.is_some()) {
            println!(
                "would stop this host's part of the cluster and remove {root}: its metadata, and its copies of the data"
            );
        } else {
            println!("would stop the cluster in {root}, delete every volume, and remove the directory");
        }
        if options.dry_run {
            return Ok(());
        }
        return Err(Failure::new(Code::Failed, "nothing was deleted; say --yes to do it"));
    }
    reset::reset(&layout).await.map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    println!("{root} is gone");
    for device in outside {
        println!("{} is left as it is; wipe its first MiB to use it for something else", device.display());
    }
    Ok(())
}

/// The process behind `up`.
pub(crate) async fn supervise(options: Supervise) -> Outcome {
    let layout = existing(&options.dir)?;
    let cluster = described(&layout)?;
    let binary = std::env::current_exe().map_err(Failure::while_("cannot find this binary"))?;
    cairn_host::supervise(layout, cluster, binary, CancellationToken::new())
        .await
        .map_err(|error| Failure::new(Code::Failed, error.to_string()))
}

/// What was decided for this host.
pub(crate) fn described(layout: &Layout) -> Result<Cluster, Failure> {
    let cluster = Cluster::load(layout).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    cluster.ok_or_else(|| Failure::new(Code::NotFound, "there is no cluster; `cairn up` or `cairn init` makes one"))
}

/// The layout of a cluster that must be there already.
pub(crate) fn existing(dir: &Path) -> Result<Layout, Failure> {
    if !dir.join("cluster.json").exists() {
        let message = format!("there is no cluster in {}; name its directory with --dir", dir.display());
        return Err(Failure::new(Code::NotFound, message));
    }
    Layout::at(dir).map_err(|error| Failure::new(Code::Failed, error.to_string()))
}
