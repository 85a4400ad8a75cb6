//! The roles as command lines: from flags to each library's configuration, and a runtime to run it on.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use cairn_apiserver::TlsFiles;
use cairn_types::NodeName;
use cairn_types::map::Location;
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::failure::{Code, Failure, Outcome};
use crate::size;

/// Long-running roles. `up` starts them; an operator who wants each under systemd starts them one by one.
#[derive(Subcommand)]
pub(crate) enum Role {
    /// Run the keeper: holds the descriptors of attached devices, so that `attach` can be restarted.
    Keeper(Keeper),
    /// Run the node's data daemon: exports volumes as block devices.
    Attach(Attach),
    /// Run the CSI driver.
    Csi(Csi),
    /// Run the API server.
    Apiserver(Apiserver),
    /// Run the controllers.
    Controllers(Controllers),
    /// Run the scheduler.
    Scheduler(Scheduler),
    /// Run the node agent.
    Agent(Agent),
}

/// The page of a long-running role.
#[derive(Args)]
pub(crate) struct Page {
    /// Serve metrics for Prometheus: 127.0.0.1:PORT or unix:/path. Off where not asked for.
    #[arg(long)]
    metrics: Option<cairn_metrics::Listen>,
}

/// Run an OSD.
#[derive(Args)]
pub(crate) struct OsdDaemon {
    /// Serve metrics for Prometheus: 127.0.0.1:PORT or unix:/path. Off where not asked for.
    // Not the flattened `Page`: clap never finds an optional struct present that has another one in it.
    #[arg(long)]
    metrics: Option<cairn_metrics::Listen>,
    /// Its disk: a block device, or a file that is made when it is not there.
    #[arg(long)]
    device: PathBuf,
    /// Size of a new file: 10Gi.
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// It was formatted before: a blank disk is the wrong one, and stays blank.
    #[arg(long, conflicts_with = "size")]
    formatted: bool,
    /// The metadata members.
    #[arg(long, value_delimiter = ',', required = true)]
    meta: Vec<String>,
    /// Where it listens: unix:/path or tcp:address:port.
    #[arg(long, value_delimiter = ',', required = true)]
    listen: Vec<String>,
    /// The machine it stands on, for placement.
    #[arg(long)]
    host: String,
    /// Its rack.
    #[arg(long, default_value = "default")]
    rack: String,
    /// Its zone.
    #[arg(long, default_value = "default")]
    zone: String,
    /// ssd, hdd, nvme, ...
    #[arg(long, default_value = "ssd")]
    device_class: String,
    /// Allow an address that is not loopback: whoever reaches it can do everything.
    #[arg(long)]
    insecure_listen: bool,
    /// Tests only: what the disk does wrong stands in this file.
    #[arg(long, hide = true)]
    inject_disk_faults: Option<PathBuf>,
}

/// Run a metadata member.
#[derive(Args)]
pub(crate) struct MetaDaemon {
    /// Serve metrics for Prometheus: 127.0.0.1:PORT or unix:/path. Off where not asked for.
    // Not the flattened `Page`: clap never finds an optional struct present that has another one in it.
    #[arg(long)]
    metrics: Option<cairn_metrics::Listen>,
    /// Its number among the members that a new cluster begins with; otherwise the cluster gives it one.
    #[arg(long, default_value_t = 0)]
    id: u64,
    /// Its directory.
    #[arg(long)]
    dir: PathBuf,
    /// host:port of its one listener.
    #[arg(long)]
    listen: String,
    /// Every member that a new cluster begins with: 1=host:port,2=host:port,... An existing directory goes by what it knows.
    #[arg(long, value_delimiter = ',', value_parser = member)]
    members: Vec<(u64, String)>,
    /// Members of a living cluster that a new directory joins, instead of beginning one.
    #[arg(long, value_delimiter = ',', conflicts_with = "members")]
    join: Vec<String>,
    /// With --join: take the place of this member, a dead one or one whose directory is lost.
    #[arg(long, requires = "join", default_value_t = 0)]
    replace: u64,
    /// With --join: the address that the others reach it at, where that is not the one it listens on.
    #[arg(long, requires = "join", default_value = "")]
    advertise: String,
    /// Allow an address that is not loopback: whoever reaches it can do everything.
    #[arg(long)]
    insecure_listen: bool,
}

/// Flags of the keeper.
#[derive(Args)]
pub(crate) struct Keeper {
    #[command(flatten)]
    page: Page,
    /// Its unix socket.
    #[arg(long)]
    socket: PathBuf,
}

/// Flags of the attach daemon.
#[derive(Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    page: Page,
    /// This node's name.
    #[arg(long)]
    node: String,
    /// Its unix socket.
    #[arg(long)]
    socket: PathBuf,
    /// Its directory.
    #[arg(long)]
    dir: PathBuf,
    /// The keeper's unix socket.
    #[arg(long)]
    keeper_socket: PathBuf,
    /// The metadata members.
    #[arg(long, value_delimiter = ',', required = true)]
    meta: Vec<String>,
}

/// Flags of the CSI driver.
#[derive(Args)]
pub(crate) struct Csi {
    #[command(flatten)]
    page: Page,
    /// Its unix socket.
    #[arg(long)]
    endpoint: PathBuf,
    /// This node's name.
    #[arg(long)]
    node: String,
    /// The metadata members.
    #[arg(long, value_delimiter = ',', required = true)]
    meta: Vec<String>,
    /// The attach daemon's unix socket.
    #[arg(long)]
    attach: PathBuf,
    /// Where it announces itself to the agent (or a kubelet).
    #[arg(long)]
    registration_dir: Option<PathBuf>,
}

/// Flags of the API server.
#[derive(Args)]
pub(crate) struct Apiserver {
    #[command(flatten)]
    page: Page,
    /// address:port of its HTTPS listener.
    #[arg(long)]
    listen: SocketAddr,
    /// The members of its store, which speaks etcd's API.
    #[arg(long, value_delimiter = ',', required = true)]
    etcd: Vec<String>,
    /// Its certificate.
    #[arg(long)]
    cert: PathBuf,
    /// Its key.
    #[arg(long)]
    key: PathBuf,
    /// Who signs its clients' certificates.
    #[arg(long)]
    client_ca: PathBuf,
    /// Who signs the agents' certificates.
    #[arg(long)]
    agent_ca: PathBuf,
    /// Its client certificate towards the agents.
    #[arg(long)]
    agent_cert: PathBuf,
    /// And the key.
    #[arg(long)]
    agent_key: PathBuf,
    /// Allow an address that is not loopback.
    #[arg(long)]
    insecure_listen: bool,
}

/// Flags of the controllers.
#[derive(Args)]
pub(crate) struct Controllers {
    #[command(flatten)]
    page: Page,
    /// Credentials.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The CSI driver's unix socket.
    #[arg(long)]
    csi: PathBuf,
}

/// Flags of the scheduler.
#[derive(Args)]
pub(crate) struct Scheduler {
    #[command(flatten)]
    page: Page,
    /// Credentials.
    #[arg(long)]
    kubeconfig: PathBuf,
}

/// Flags of the agent.
#[derive(Args)]
pub(crate) struct Agent {
    #[command(flatten)]
    page: Page,
    /// This node's name.
    #[arg(long)]
    node: String,
    /// Credentials.
    #[arg(long)]
    kubeconfig: PathBuf,
    /// The container runtime's unix socket.
    #[arg(long)]
    cri: PathBuf,
    /// The cgroup under which pods run.
    #[arg(long, default_value = "/cairn")]
    cgroup_parent: String,
    /// Pod volumes and its own state.
    #[arg(long)]
    root: PathBuf,
    /// Where plugins announce themselves.
    #[arg(long)]
    registration_dir: PathBuf,
    /// address:port of its HTTPS listener.
    #[arg(long)]
    listen: SocketAddr,
    /// The address that the node and its host-network pods show; by default the one it listens on.
    #[arg(long)]
    node_address: Option<IpAddr>,
    /// The pods' network, as the Node shows it.
    #[arg(long)]
    pod_cidr: Option<String>,
    /// More labels of the Node: key=value.
    #[arg(long, value_parser = label)]
    label: Vec<(String, String)>,
    /// Its certificate.
    #[arg(long)]
    cert: PathBuf,
    /// Its key.
    #[arg(long)]
    key: PathBuf,
    /// Who signs its clients' certificates.
    #[arg(long)]
    client_ca: PathBuf,
    /// Allow an address that is not loopback.
    #[arg(long)]
    insecure_listen: bool,
}

/// Logs to standard error; `CAIRN_LOG` filters.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("CAIRN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(terminal).with_writer(std::io::stderr).init();
}

/// A runtime with this many worker threads.
pub(crate) fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = if threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(threads);
        builder
    };
    builder.enable_all().build().map_err(Failure::while_("cannot start the runtime"))
}

/// Runs a role until it ends or a signal asks it to.
pub(crate) fn run(role: Role) -> Outcome {
    log_to_stderr();
    match role {
        Role::Keeper(flags) => keeper(flags),
        Role::Attach(flags) => serve(2, "attach", flags.page.metrics.clone(), |stop| attach(flags, stop)),
        Role::Csi(flags) => serve(1, "csi", flags.page.metrics.clone(), |stop| csi(flags, stop)),
        Role::Apiserver(flags) => serve(2, "apiserver", flags.page.metrics.clone(), |stop| apiserver(flags, stop)),
        Role::Controllers(flags) => {
            serve(1, "controllers", flags.page.metrics.clone(), |stop| controllers(flags, stop))
        }
        Role::Scheduler(flags) => serve(1, "scheduler", flags.page.metrics.clone(), |stop| scheduler(flags, stop)),
        Role::Agent(flags) => serve(2, "agent", flags.page.metrics.clone(), |stop| agent(flags, stop)),
    }
}

/// Runs a metadata member.
pub(crate) fn run_meta(flags: MetaDaemon) -> Outcome {
    log_to_stderr();
    serve(2, "meta", flags.metrics.clone(), |stop| meta(flags, stop))
}

/// Runs an OSD.
pub(crate) fn run_osd(flags: OsdDaemon) -> Outcome {
    log_to_stderr();
    serve(1, "osd", flags.metrics.clone(), |stop| osd(flags, stop))
}

/// A role on its runtime; SIGTERM and SIGINT cancel the token it was given.
fn serve<F: Future<Output = Result<(), E>>, E: std::fmt::Display>(
    threads: usize,
    name: &'static str,
    page: Option<cairn_metrics::Listen>,
    role: impl FnOnce(CancellationToken) -> F,
) -> Outcome {
    let runtime = runtime(threads)?;
    let outcome = runtime.block_on(async {
        let stop = CancellationToken::new();
        if let Some(listen) = page {
            let metrics = cairn_metrics::Metrics::new(name);
            cairn_metrics::install(&metrics);
            let served = metrics.serve(listen, stop.clone());
            // A daemon does its work without its page too.
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!("{error}");
                }
            });
        }
        let signals = stop_on_signals(stop.clone()).map_err(|error| error.to_string())?;
        let outcome = role(stop.clone()).await.map_err(|error| error.to_string());
        stop.cancel();
        signals.abort();
        outcome
    });
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.map_err(|error| {
        tracing::error!("{error}");
        Failure::new(Code::Failed, error)
    })
}

fn stop_on_signals(stop: CancellationToken) -> std::io::Result<tokio::task::JoinHandle<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        stop.cancel();
    }))
}

async fn meta(flags: MetaDaemon, stop: CancellationToken) -> Result<(), cairn_meta::Error> {
    let mut config = cairn_meta::Config::new(flags.id, flags.dir, flags.listen, flags.members);
    config.insecure_listen = flags.insecure_listen;
    (config.join, config.replace, config.advertise) = (flags.join, flags.replace, flags.advertise);
    cairn_meta::run(config, stop).await
}

async fn osd(flags: OsdDaemon, stop: CancellationToken) -> Result<(), cairn_osd::Error> {
    let config = cairn_osd::Config {
        device: flags.device,
        size: flags.size,
        formatted: flags.formatted,
        meta: flags.meta,
        listen: flags.listen,
        location: Location { zone: flags.zone, rack: flags.rack, host: flags.host },
        device_class: flags.device_class,
        insecure_listen: flags.insecure_listen,
        disk_faults: flags.inject_disk_faults,
    };
    cairn_osd::run(config, stop).await
}

/// One thread, and another for its page where that is asked for: what it keeps never waits for a reader of figures.
fn keeper(flags: Keeper) -> Outcome {
    if let Some(listen) = flags.page.metrics {
        std::thread::spawn(move || {
            let page = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let served = page.map_err(|error| error.to_string()).and_then(|page| {
                let metrics = cairn_metrics::Metrics::new("keeper");
                page.block_on(metrics.serve(listen, CancellationToken::new())).map_err(|error| error.to_string())
            });
            if let Err(error) = served {
                tracing::error!("{error}");
            }
        });
    }
    let config = cairn_attach::KeeperConfig { socket: flags.socket, stop: None };
    cairn_attach::run_keeper(config).map_err(|error| Failure::new(Code::Failed, error.to_string()))
}

async fn attach(flags: Attach, stop: CancellationToken) -> Result<(), cairn_attach::Error> {
    let config = cairn_attach::Config {
        node: NodeName(flags.node.clone()),
        socket: flags.socket,
        dir: flags.dir,
        keeper_socket: flags.keeper_socket,
        meta: flags.meta,
        location: Location { zone: "default".into(), rack: "default".into(), host: flags.node },
    };
    cairn_attach::run(config, stop).await
}

async fn csi(flags: Csi, stop: CancellationToken) -> Result<(), cairn_csi::Error> {
    let config = cairn_csi::Config {
        endpoint: flags.endpoint,
        node: flags.node,
        meta: flags.meta,
        attach: flags.attach,
        registration_dir: flags.registration_dir,
        mode: cairn_csi::Mode::Both,
    };
    cairn_csi::run(config, stop).await
}

async fn apiserver(flags: Apiserver, stop: CancellationToken) -> Result<(), cairn_apiserver::Error> {
    let config = cairn_apiserver::Config {
        listen: flags.listen,
        insecure_listen: flags.insecure_listen,
        etcd: flags.etcd.iter().map(|member| format!("http://{member}")).collect(),
        tls: TlsFiles { cert: flags.cert, key: flags.key, ca: flags.client_ca },
        agent: Some(TlsFiles { cert: flags.agent_cert, key: flags.agent_key, ca: flags.agent_ca }),
    };
    cairn_apiserver::run(config, stop).await
}

async fn controllers(flags: Controllers, stop: CancellationToken) -> Result<(), cairn_controllers::Error> {
    cairn_controllers::run(cairn_controllers::Config { kubeconfig: flags.kubeconfig, csi_socket: flags.csi }, stop)
        .await
}

async fn scheduler(flags: Scheduler, stop: CancellationToken) -> Result<(), cairn_scheduler::Error> {
    cairn_scheduler::run(cairn_scheduler::Config { kubeconfig: flags.kubeconfig }, stop).await
}

async fn agent(flags: Agent, stop: CancellationToken) -> Result<(), cairn_agent::Error> {
    let config = cairn_agent::Config {
        node_name: flags.node,
        kubeconfig: flags.kubeconfig,
        cri_socket: flags.cri,
        root: flags.root,
        plugin_registry: flags.registration_dir,
        // The API server reaches the agent where it listens.
        node_address: Some(flags.node_address.unwrap_or(flags.listen.ip())),
        listen: flags.listen,
        insecure_listen: flags.insecure_listen,
        tls_certificate: flags.cert,
        tls_key: flags.key,
        client_ca: flags.client_ca,
        pod_cidr: flags.pod_cidr,
        labels: flags.label.into_iter().collect(),
        cgroup_parent: flags.cgroup_parent,
        cluster_dns: Vec::new(),
        cluster_domain: "cluster.local".into(),
    };
    cairn_agent::run(config, stop).await
}

/// `key=value`.
fn label(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or_else(|| format!("`{text}` is not a label; write KEY=VALUE"))?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

/// `1=host:port`.
pub(crate) fn member(text: &str) -> Result<(u64, String), String> {
    let wrong = || format!("`{text}` is not a member; write NUMBER=HOST:PORT");
    let (id, address) = text.split_once('=').ok_or_else(wrong)?;
    Ok((id.parse().map_err(|_| wrong())?, address.to_owned()))
}
