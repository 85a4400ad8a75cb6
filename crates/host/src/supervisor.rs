//! Keeps a cluster's processes running: starts them in order, starts again what dies, and says to the metadata
//! service that an OSD is dead when it saw it exit. Ends with all of them stopped, on SIGTERM or SIGINT.
//!
//! One task for each process; none knows of another. What runs is written to the state file after each change, so
//! that a person, a test or the next supervisor can tell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::process::ProcessId;
use crate::roles::{self, Role, RoleKind};
use crate::witness::Witness;
use crate::{Cluster, Layout, join, members, quiesce, runtime};

/// What runs, as the state file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Of this file.
    pub format: u32,
    /// The supervisor itself.
    pub supervisor: Option<ProcessId>,
    /// By role name.
    pub processes: BTreeMap<String, Running>,
}

/// One role's present life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// Absent between two lives.
    pub process: Option<ProcessId>,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last life ended.
    pub last_exit: Option<String>,
}

/// The format of the state file.
const FORMAT: u32 = 1;

/// A process that lived this long is started again after the shortest pause.
const SETTLED: Duration = Duration::from_secs(10);

/// The longest pause before a process is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What a process gets to stop by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a dead process gets to be gone from the kernel's table.
const REAPED_WITHIN: Duration = Duration::from_secs(1);

/// A log file beyond this size is put aside when its process starts again.
const LONGEST_LOG: u64 = 16 << 20;

/// Why the supervisor cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Another one runs already.
    #[error("this cluster is running already (supervisor pid {0}); `cairn down` stops it")]
    AlreadyRunning(u32),
    /// The state file cannot be written.
    #[error("cannot write {0}: {1}")]
    State(PathBuf, std::io::Error),
    /// A signal handler cannot be installed.
    #[error("cannot listen for signals: {0}")]
    Signal(std::io::Error),
    /// The container runtime cannot be prepared.
    #[error("cannot prepare the container runtime: {0}")]
    Containerd(String),
}

impl State {
    /// Reads the state file; nothing when there is none that can be read.
    #[must_use]
    pub fn load(layout: &Layout) -> Option<Self> {
        let text = std::fs::read_to_string(layout.state_file()).ok()?;
        serde_json::from_str(&text).ok().filter(|state: &Self| state.format == FORMAT)
    }

    /// The supervisor, if it lives.
    #[must_use]
    pub fn live_supervisor(&self) -> Option<ProcessId> {
        self.supervisor.filter(|process| process.is_alive())
    }
}

/// Runs the cluster until `shutdown` (or a signal), then stops everything in the reverse order of its start.
///
/// # Errors
/// When it cannot start; what happens to the processes later is handled, logged and shown in the state file.
pub async fn supervise(
    layout: Layout,
    cluster: Cluster,
    binary: PathBuf,
    shutdown: CancellationToken,
) -> Result<(), SuperviseError> {
    if let Some(other) = State::load(&layout).and_then(|state| state.live_supervisor()) {
        return Err(SuperviseError::AlreadyRunning(other.pid));
    }
    stop_on_signals(&shutdown)?;
    // Before the state file names this process: who reads it may send the signal at once.
    let mut reread = signal(SignalKind::hangup()).map_err(SuperviseError::Signal)?;
    let board = Arc::new(Board::new(&layout));
    board.write()?;
    if let Some(orchestrator) = &cluster.orchestrator {
        let settings = runtime::settings(&layout, orchestrator);
        settings.write().map_err(|error| SuperviseError::Containerd(error.to_string()))?;
    }
    let door = open_door(&layout, &cluster, &shutdown);
    let changed = Arc::new(Notify::new());
    let following = tokio::spawn(members::follow(layout.clone(), Arc::clone(&changed), shutdown.clone()));
    let mut house = House { layout, cluster, binary, board, keepers: Vec::new() };
    house.start_missing(&shutdown).await;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = reread.recv() => house.reread(&shutdown).await,
            () = changed.notified() => house.reread(&shutdown).await,
        }
    }
    let _ = following.await;
    stop_all(&house.layout, &house.cluster, house.keepers).await;
    if let Some(door) = door {
        door.abort();
    }
    let _ = std::fs::remove_file(house.layout.state_file());
    Ok(())
}

/// Lets other hosts join, where this is the first one.
fn open_door(layout: &Layout, cluster: &Cluster, shutdown: &CancellationToken) -> Option<tokio::task::JoinHandle<()>> {
    let network = cluster.network.clone().filter(|network| network.door)?;
    let serving = join::serve(layout.clone(), network, shutdown.clone());
    Some(tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error);
        }
    }))
}

/// Everything that runs here, and what shall.
struct House {
    layout: Layout,
    cluster: Cluster,
    binary: PathBuf,
    board: Arc<Board>,
    keepers: Vec<Keeper>,
}

impl House {
    /// The description has changed: what was added to it starts, a metadata member or an OSD that is no more in it ends, and
    /// what else runs hears of the change when it is started the next time.
    async fn reread(&mut self, shutdown: &CancellationToken) {
        match Cluster::load(&self.layout) {
            Ok(Some(cluster)) => self.cluster = cluster,
            Ok(None) => tracing::error!("there is no cluster description any more; going on with the last one"),
            Err(error) => tracing::error!(%error, "going on with the last cluster description"),
        }
        self.stop_removed().await;
        for role in roles::all(&self.layout, &self.cluster) {
            if let Some((known, ..)) = self.keepers.iter().find(|(known, ..)| named(known).name == role.name) {
                *known.lock().expect("no holder panics") = role;
            }
        }
        self.start_missing(shutdown).await;
    }

    /// Those that were removed, or moved to another host.
    async fn stop_removed(&mut self) {
        let roles = roles::all(&self.layout, &self.cluster);
        let may_go = |role: &Role| matches!(role.kind, RoleKind::Meta | RoleKind::Osd);
        let is_gone = |role: &Role| may_go(role) && roles.iter().all(|other| other.name != role.name);
        let gone: Vec<Keeper> = self.keepers.extract_if(.., |(role, ..)| is_gone(&named(role))).collect();
        let names: Vec<String> = gone.iter().map(|(role, ..)| named(role).name).collect();
        stop_group(gone).await;
        names.iter().for_each(|name| self.board.forget(name));
    }

    async fn start_missing(&mut self, shutdown: &CancellationToken) {
        let witness = Arc::new(Witness::new(self.cluster.meta_endpoints()));
        for role in roles::all(&self.layout, &self.cluster) {
            if self.keepers.iter().any(|(known, ..)| named(known).name == role.name) {
                continue;
            }
            wait_for_what_it_needs(role.kind, &self.cluster, shutdown).await;
            if let (RoleKind::Agent, Some(orchestrator)) = (role.kind, &self.cluster.orchestrator) {
                // A pod whose image is missing would ask a registry for it.
                prepare_images(runtime::settings(&self.layout, orchestrator)).await;
            }
            if shutdown.is_cancelled() {
                return;
            }
            let stop = CancellationToken::new();
            let (name, osd_address) = (role.name.clone(), (role.kind == RoleKind::Osd).then(|| osd_address(&role)));
            let pause = pause_before(role.kind, Duration::from_millis(self.cluster.restart_delay_ms));
            let role = Arc::new(Mutex::new(role));
            let keep = Keep {
                name,
                role: Arc::clone(&role),
                binary: self.binary.clone(),
                log: self.layout.log(),
                pause,
                osd_address,
                board: Arc::clone(&self.board),
                witness: Arc::clone(&witness),
                stop: stop.clone(),
            };
            self.keepers.push((role, stop, tokio::spawn(keep.run())));
        }
    }
}

async fn prepare_images(settings: cairn_agent::containerd::Settings) {
    if let Err(error) = runtime::import_images(&settings).await {
        tracing::error!(error, "pods cannot start: their images could not be prepared");
    }
}

/// What it keeps running, as it is to be started the next time.
type Shared = Arc<Mutex<Role>>;

fn named(role: &Shared) -> Role {
    role.lock().expect("no holder panics").clone()
}

type Keeper = (Shared, CancellationToken, tokio::task::JoinHandle<()>);

/// Clients of the API first, so that nothing brings back what is taken away; then pods and devices; then the rest.
async fn stop_all(layout: &Layout, cluster: &Cluster, keepers: Vec<Keeper>) {
    let (clients, mut rest): (Vec<Keeper>, Vec<Keeper>) =
        keepers.into_iter().partition(|(role, ..)| named(role).kind >= RoleKind::Client);
    stop_group(clients).await;
    quiesce::pods_and_devices(layout, cluster).await;
    while !rest.is_empty() {
        let last = rest.iter().map(|(role, ..)| named(role).kind).max().expect("not empty");
        let (group, others): (Vec<Keeper>, Vec<Keeper>) =
            rest.into_iter().partition(|(role, ..)| named(role).kind == last);
        rest = others;
        stop_group(group).await;
    }
}

async fn stop_group(group: Vec<Keeper>) {
    for (_, stop, _) in &group {
        stop.cancel();
    }
    for (role, _, task) in group {
        if task.await.is_err() {
            tracing::error!(role = named(&role).name, "its keeper ended badly");
        }
    }
}

fn stop_on_signals(shutdown: &CancellationToken) -> Result<(), SuperviseError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(SuperviseError::Signal)?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            signals.recv().await;
            shutdown.cancel();
        });
    }
    Ok(())
}

/// Everything retries by itself; this only spares the log the sight of it.
async fn wait_for_what_it_needs(kind: RoleKind, cluster: &Cluster, shutdown: &CancellationToken) {
    let addresses = match kind {
        RoleKind::Meta | RoleKind::Keeper | RoleKind::Containerd => return,
        RoleKind::Osd | RoleKind::Attach | RoleKind::Csi | RoleKind::ApiServer => own_members(cluster),
        RoleKind::Client | RoleKind::Agent => {
            cluster.orchestrator.iter().map(|orchestrator| orchestrator.api_address()).collect()
        }
    };
    let all_listen = async {
        for address in addresses {
            while tokio::net::TcpStream::connect(&address).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::select! {
        () = all_listen => {}
        () = tokio::time::sleep(Duration::from_secs(10)) => {}
        () = shutdown.cancelled() => {}
    }
}

/// The metadata members of this host; those of others may not have joined yet.
fn own_members(cluster: &Cluster) -> Vec<String> {
    let own = cluster.members.iter().filter(|member| cluster.own_members.contains(&member.id));
    own.map(|member| member.address.clone()).collect()
}

fn osd_address(role: &Role) -> String {
    let listen = role.args.iter().position(|arg| arg == "--listen").expect("an OSD is told where to listen");
    role.args[listen + 1].clone()
}

/// The state, shared by the tasks, and its file.
struct Board {
    file: PathBuf,
    state: Mutex<State>,
}

impl Board {
    fn new(layout: &Layout) -> Self {
        let state = State { format: FORMAT, supervisor: Some(ProcessId::own()), processes: BTreeMap::new() };
        Self { file: layout.state_file(), state: Mutex::new(state) }
    }

    fn set(&self, name: &str, running: Running) {
        self.state.lock().expect("no holder panics").processes.insert(name.to_owned(), running);
        if let Err(error) = self.write() {
            tracing::error!(%error, "the state file is out of date");
        }
    }

    fn forget(&self, name: &str) {
        self.state.lock().expect("no holder panics").processes.remove(name);
        if let Err(error) = self.write() {
            tracing::error!(%error, "the state file is out of date");
        }
    }

    /// Beside the file, then renamed, so that a reader never sees half of it.
    fn write(&self) -> Result<(), SuperviseError> {
        let state = self.state.lock().expect("no holder panics");
        let text = serde_json::to_string_pretty(&*state).expect("the state is plain data");
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, &self.file))
            .map_err(|error| SuperviseError::State(self.file.clone(), error))
    }
}

/// Devices wait for their attach daemon, so it comes back at once; for others somebody else steps in.
fn pause_before(kind: RoleKind, asked: Duration) -> Duration {
    if kind == RoleKind::Attach { asked.min(Duration::from_millis(20)) } else { asked }
}

/// One role, kept running.
struct Keep {
    name: String,
    role: Shared,
    binary: PathBuf,
    log: PathBuf,
    pause: Duration,
    osd_address: Option<String>,
    board: Arc<Board>,
    witness: Arc<Witness>,
    stop: CancellationToken,
}

impl Keep {
    async fn run(self) {
        let mut pause = self.pause;
        let mut running = Running { process: None, restarts: 0, last_exit: None };
        while !self.stop.is_cancelled() {
            let born = tokio::time::Instant::now();
            match self.spawn() {
                Ok(child) => self.one_life(child, &mut running).await,
                Err(error) => running.last_exit = Some(format!("cannot start: {error}")),
            }
            running.process = None;
            self.board.set(&self.name, running.clone());
            if self.stop.is_cancelled() {
                return;
            }
            // What died young waits longer each time; what lived is started again soon.
            let settled = born.elapsed() >= SETTLED;
            if settled {
                pause = self.pause;
            }
            let why = running.last_exit.as_deref().unwrap_or("unknown");
            tracing::warn!(role = self.name, why, pause_ms = pause.as_millis() as u64, "ended; starting it again");
            self.report_exit().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return,
            }
            if !settled {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            running.restarts += 1;
        }
    }

    async fn one_life(&self, mut child: Child, running: &mut Running) {
        running.process = child.id().and_then(ProcessId::of);
        self.board.set(&self.name, running.clone());
        tokio::select! {
            exit = child.wait() => running.last_exit = Some(describe(exit)),
            () = self.stop.cancelled() => {
                if let Some(process) = running.process {
                    // The wait reaps it, so that "gone" is seen.
                    let reaper = tokio::spawn(async move { child.wait().await });
                    process.stop(PATIENCE).await;
                    // A dead attach daemon may have a thread that waits for a device it served itself; only the
                    // keeper's end frees it, and the keeper is stopped after this.
                    let _ = tokio::time::timeout(REAPED_WITHIN, reaper).await;
                }
            }
        }
    }

    /// An OSD's exit, seen by its parent, proves its incarnation dead.
    async fn report_exit(&self) {
        if let Some(address) = &self.osd_address {
            self.witness.saw_exit(address).await;
        }
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = open_log(&self.log, &self.name)?;
        let role = named(&self.role);
        let mut command = Command::new(role.program.as_ref().unwrap_or(&self.binary));
        command
            .args(&role.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Its own group, so that Ctrl-C at the terminal reaches the supervisor alone.
            .process_group(0);
        command.spawn()
    }
}

fn open_log(folder: &Path, name: &str) -> std::io::Result<std::fs::File> {
    let file = folder.join(format!("{name}.log"));
    if std::fs::metadata(&file).is_ok_and(|metadata| metadata.len() > LONGEST_LOG) {
        std::fs::rename(&file, folder.join(format!("{name}.old.log")))?;
    }
    std::fs::OpenOptions::new().create(true).append(true).open(file)
}

fn describe(exit: std::io::Result<std::process::ExitStatus>) -> String {
    exit.map_or_else(|error| format!("cannot be waited for: {error}"), |status| status.to_string())
}
