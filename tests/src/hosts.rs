//! A cluster of several hosts on this machine, formed by the commands an administrator types. Each host is a directory
//! and a network namespace; the processors, the disks and the kernel they share.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::leftovers;
use crate::netns::{Cut, Network, address};
use crate::{cluster, interrupt, shell};

/// The cluster. Dropping it takes everything away.
pub struct Hosts {
    root: PathBuf,
    binary: PathBuf,
    network: Network,
    names: Vec<String>,
    mounts: Vec<PathBuf>,
    gone: bool,
}

/// Numbers the clusters of one process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Where all of them lie: short, for the sockets below it.
const PLACE: &str = "/var/tmp/cairn-hosts-";

/// Signals, as kill(1) takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// -KILL.
    Kill,
    /// -STOP.
    Stop,
    /// -CONT.
    Continue,
}

impl Hosts {
    /// Hosts without a cluster, named a, b, c, ...
    ///
    /// # Errors
    /// When the binary or the rights for namespaces are missing.
    pub fn bare(count: usize) -> Result<Self> {
        sweep();
        let root = PathBuf::from(format!("{PLACE}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        let names = (b'a'..).take(count).map(|letter| char::from(letter).to_string()).collect();
        let (binary, network) = (cluster::binary()?, Network::of(count)?);
        std::fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
        Ok(Self { root, binary, network, names, mounts: Vec::new(), gone: false })
    }

    /// A formed cluster: the first `members` hosts are metadata members and carry an OSD each, the others attach only.
    /// One pool, `default`, of three copies on different hosts.
    ///
    /// # Errors
    /// When a command fails or the cluster does not become healthy.
    pub fn form(count: usize, members: usize) -> Result<Self> {
        let mut hosts = Self::bare(count)?;
        hosts.init(members)?;
        let token = hosts.token()?;
        for host in 1..count {
            hosts.join(host, &token)?;
        }
        for host in 0..members {
            hosts.create_osd(host)?;
        }
        shell::run(&mut hosts.cairn(0, &["pool", "create", "default", "--pg-count", "16"]))?;
        hosts.healthy(0, 60)?;
        Ok(hosts)
    }

    /// `cairn init` on the first host.
    ///
    /// # Errors
    /// When it fails.
    pub fn init(&self, members: usize) -> Result<()> {
        let all: Vec<String> = (0..members).map(|host| address(host).to_string()).collect();
        let (own, all) = (address(0).to_string(), all.join(","));
        let args = ["init", "--node", "a", "--address", &own, "--members", &all, "--insecure-listen"];
        quietly(&mut self.cairn(0, &args))
    }

    /// `cairn token create` on the first host.
    ///
    /// # Errors
    /// When it fails.
    pub fn token(&self) -> Result<String> {
        Ok(shell::capture(&mut self.cairn(0, &["token", "create"]))?.trim().to_owned())
    }

    /// `cairn join` on another.
    ///
    /// # Errors
    /// When it fails.
    pub fn join(&self, host: usize, token: &str) -> Result<()> {
        quietly(&mut self.cairn(host, &["join", token, "--node", &self.names[host], "--insecure-listen"]))
    }

    /// `cairn osd create` on a host, with a file outside of its directory. The second host's lies on a small
    /// filesystem of its own, for tests of a full one.
    ///
    /// # Errors
    /// When it fails.
    pub fn create_osd(&mut self, host: usize) -> Result<()> {
        let folder = self.disk_folder(host);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        if host == SMALL_DISK {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", SMALL_DISK_SIZE, "cairn-test"]).arg(&folder);
            shell::capture(&mut mount)?;
            self.mounts.push(folder.clone());
        }
        let device = folder.join("osd.img");
        let faults = self.disk_faults(host);
        let mut create = self.cairn(host, &["osd", "create", "--size", "2Gi"]);
        shell::run(create.arg("--inject-disk-faults").arg(faults).arg(device))
    }

    /// What the disk of a host's OSD does wrong, in the words of that file; none at first.
    #[must_use]
    pub fn disk_faults(&self, host: usize) -> PathBuf {
        self.root.join(format!("faults-{}", self.names[host]))
    }

    /// Where the OSD files of a host lie.
    #[must_use]
    pub fn disk_folder(&self, host: usize) -> PathBuf {
        self.root.join(format!("disk-{}", self.names[host]))
    }

    /// A host's name.
    #[must_use]
    pub fn name(&self, host: usize) -> &str {
        &self.names[host]
    }

    /// A host's directory.
    #[must_use]
    pub fn dir(&self, host: usize) -> PathBuf {
        self.root.join(&self.names[host])
    }

    /// The directory of all.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The network between them.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// A `cairn` command on a host.
    #[must_use]
    pub fn cairn(&self, host: usize, args: &[&str]) -> Command {
        let mut command = self.network.enter(host, &self.binary);
        // Ctrl-C is for us alone: what it starts and stops must come to its end.
        command.args(args).arg("--dir").arg(self.dir(host)).current_dir(&self.root).process_group(0);
        command
    }

    /// `cairn <args> -o json` on a host, parsed, whatever its exit code.
    ///
    /// # Errors
    /// When it prints no JSON; the sentence quotes what it said.
    pub fn json(&self, host: usize, args: &[&str]) -> Result<Value> {
        let output = shell::output(self.cairn(host, args).args(["-o", "json"]))?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        serde_json::from_slice(&output.stdout).with_context(|| format!("cairn {}: {said}", args.join(" ")))
    }

    /// Waits until a host finds the cluster healthy. How many seconds that took.
    ///
    /// # Errors
    /// When it does not become so, with what is wrong.
    pub fn healthy(&self, host: usize, seconds: u64) -> Result<f64> {
        let start = std::time::Instant::now();
        loop {
            interrupt::check()?;
            let health = self.json(host, &["health"]);
            if health.as_ref().is_ok_and(|health| health["status"] == "OK") {
                return Ok(start.elapsed().as_secs_f64());
            }
            if start.elapsed().as_secs() >= seconds {
                bail!(
                    "the cluster is not healthy after {seconds} s: {}",
                    health.map_or_else(|e| e.to_string(), |h| h.to_string())
                );
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }

    /// The host on which the metadata leader runs, and its role's name, as a host sees it.
    ///
    /// # Errors
    /// When there is none.
    pub fn leader(&self, seen_from: usize) -> Result<(usize, String)> {
        let leader = self.json(seen_from, &["status"])?["leader_id"].as_u64().filter(|id| *id > 0);
        let leader = leader.context("there is no metadata leader")?;
        // Members are numbered in the order of their hosts.
        Ok((leader as usize - 1, format!("meta-{leader}")))
    }

    /// The pid of a role on a host; `None` between two lives.
    ///
    /// # Errors
    /// When the supervisor does not run.
    pub fn pid(&self, host: usize, role: &str) -> Result<Option<u32>> {
        Ok(self.state(host)?["processes"][role]["process"]["pid"].as_u64().map(|pid| pid as u32))
    }

    /// Sends a signal to a role's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, host: usize, role: &str, signal: Signal) -> Result<()> {
        let pid = self.pid(host, role)?.with_context(|| format!("{role} does not run on {}", self.names[host]))?;
        kill(signal, &[u64::from(pid)])
    }

    /// The host loses power: every process of it dies at once, and nobody says so to the others, not even its kernel.
    /// What the kernel had not written yet is written all the same. Returns when all are gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn crash(&self, host: usize) -> Result<()> {
        self.network.cut(host, Cut::Both, None)?;
        let state = self.state(host)?;
        let mut pids: Vec<u64> = state["supervisor"]["pid"].as_u64().into_iter().collect();
        for role in state["processes"].as_object().into_iter().flatten() {
            pids.extend(role.1["process"]["pid"].as_u64());
        }
        kill(Signal::Kill, &pids)?;
        shell::until("the end of every process of the host", 30, || {
            let gone = |pid: &u64| !Path::new("/proc").join(pid.to_string()).exists();
            Ok(pids.iter().all(gone).then_some(()))
        })
    }

    /// `cairn up` on a host, after a crash or a stop.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn up(&self, host: usize) -> Result<()> {
        self.network.heal(host)?;
        quietly(&mut self.cairn(host, &["up"]))
    }

    fn state(&self, host: usize) -> Result<Value> {
        let file = self.dir(host).join("run/state.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).context("the state file is not JSON")
    }

    /// Takes everything away and checks that it is gone.
    ///
    /// # Errors
    /// With what is left.
    pub fn reset(&mut self) -> Result<()> {
        self.take_away()?;
        self.gone = true;
        let attach: Vec<PathBuf> = (0..self.names.len()).map(|host| self.dir(host).join("attach")).collect();
        leftovers::check(&self.root, &attach)
    }

    /// Whatever was done to the hosts ends: lost packets, sleeping processes, bad and full disks.
    pub fn end_all_faults(&self) {
        for host in 0..self.names.len() {
            let _ = self.network.heal(host);
            let _ = std::fs::remove_file(self.disk_faults(host));
            let _ = std::fs::remove_file(self.ballast(host));
            let roles = self.state(host).ok().and_then(|state| state["processes"].as_object().cloned());
            for role in roles.into_iter().flatten() {
                let _ = self.signal(host, &role.0, Signal::Continue);
            }
        }
    }

    /// A file that fills the filesystem of a host's OSD.
    #[must_use]
    pub fn ballast(&self, host: usize) -> PathBuf {
        self.disk_folder(host).join("ballast")
    }

    /// Every host's part, the ones that attach first; what fails is tried no further, and the rest goes on.
    fn take_away(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        self.end_all_faults();
        for host in (0..self.names.len()).rev() {
            if !self.dir(host).join("cluster.json").exists() {
                continue;
            }
            if quietly(&mut self.cairn(host, &["reset", "--yes"])).is_ok() {
                continue;
            }
            // Nothing that hangs outlives this, and a dead host is taken away too.
            let _ = self.crash(host);
            let _ = self.network.heal(host);
            if let Err(error) = quietly(&mut self.cairn(host, &["reset", "--yes"])) {
                outcome = Err(error);
            }
        }
        for mount in self.mounts.drain(..) {
            if let Err(error) = shell::capture(Command::new("umount").arg(&mount)) {
                outcome = Err(error);
            }
        }
        outcome?;
        std::fs::remove_dir_all(&self.root).with_context(|| format!("cannot delete {}", self.root.display()))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // After a failure: leave the machine clean, keep the logs.
        let logs = PathBuf::from(format!("/var/tmp/cairn-logs-{}", std::process::id()));
        for host in &self.names {
            let _ = std::fs::create_dir_all(&logs);
            let from = self.root.join(host).join("log");
            let _ = Command::new("cp").arg("-rT").arg(from).arg(logs.join(host)).status();
        }
        println!("the logs are kept in {}", logs.display());
        if let Err(error) = self.take_away() {
            println!("something is left in {}: {error:#}", self.root.display());
        }
    }
}

/// The host whose OSD lies on a small filesystem.
pub const SMALL_DISK: usize = 1;

/// Its size, as mount(8) takes it.
const SMALL_DISK_SIZE: &str = "size=1g";

/// Runs to the end, and shows what it said only when it fails.
fn quietly(command: &mut Command) -> Result<()> {
    shell::capture(command).map(|_| ())
}

fn kill(signal: Signal, pids: &[u64]) -> Result<()> {
    let name = match signal {
        Signal::Kill => "-KILL",
        Signal::Stop => "-STOP",
        Signal::Continue => "-CONT",
    };
    shell::capture(Command::new("kill").arg(name).args(pids.iter().map(u64::to_string))).map(|_| ())
}

/// What a run that was killed itself left: its hosts are stopped and deleted.
fn sweep() {
    let Ok(binary) = cluster::binary() else { return };
    for entry in std::fs::read_dir("/var/tmp").into_iter().flatten().flatten() {
        let root = entry.path();
        let Some(rest) = root.to_str().and_then(|path| path.strip_prefix(PLACE)) else { continue };
        let owner = rest.split('-').next().unwrap_or_default();
        if Path::new("/proc").join(owner).exists() {
            continue;
        }
        // Anybody may write there, and this is done with the rights of root.
        if !root
            .symlink_metadata()
            .is_ok_and(|found| found.is_dir() && found.uid() == rustix::process::getuid().as_raw())
        {
            continue;
        }
        println!("taking away what a run that was killed left in {}", root.display());
        let hosts: Vec<_> = std::fs::read_dir(&root).into_iter().flatten().flatten().collect();
        for host in &hosts {
            if host.path().join("cluster.json").exists() {
                let _ = Command::new(&binary).args(["reset", "--yes", "--dir"]).arg(host.path()).status();
            }
        }
        // The one small filesystem; nothing else is mounted here.
        for host in &hosts {
            let _ = Command::new("umount").arg(host.path()).stderr(std::process::Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&root);
    }
}
