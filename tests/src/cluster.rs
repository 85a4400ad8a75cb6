//! A cluster on this machine, driven from outside the way a person drives it: `cairn` and `kubectl`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::leftovers;
use crate::shell;

/// A running cluster. Dropping it takes everything away.
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    kubectl: Option<PathBuf>,
    keep: bool,
    osds: Option<u32>,
    gone: bool,
}

/// How to start one.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpOptions {
    /// Leave it running when it is dropped.
    pub keep: bool,
    /// No orchestrator.
    pub storage_only: bool,
    /// Drive it as if kubectl were not here.
    pub without_kubectl: bool,
    /// How many OSDs, where not as many as by default.
    pub osds: Option<u32>,
}

/// Numbers the clusters of one process.
static NEXT: AtomicU32 = AtomicU32::new(0);

impl Cluster {
    /// Starts one in a new directory and returns when `cairn up` says it is healthy.
    ///
    /// # Errors
    /// When the binary is missing or the cluster does not become healthy.
    pub fn up(options: UpOptions) -> Result<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Outside the checkout and short: unix sockets below it have at most 107 bytes.
        let dir = PathBuf::from(format!("/var/tmp/cairn-{}-{number}", std::process::id()));
        let kubectl = std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| shell::find_program("kubectl"));
        let kubectl = kubectl.filter(|_| !options.without_kubectl);
        let cluster = Self { binary: binary()?, dir, kubectl, keep: options.keep, osds: options.osds, gone: false };
        cluster.start(options.storage_only)?;
        Ok(cluster)
    }

    /// `cairn up`: for the first time, or again after a stop.
    ///
    /// # Errors
    /// When it does not become healthy.
    pub fn start(&self, storage_only: bool) -> Result<()> {
        let mut command =
            self.cairn(&["up", "--base-port", "0", "--osd-size", "4Gi", "--restart-delay-ms", "4000", "--quiet"]);
        if storage_only {
            command.arg("--storage-only");
        }
        if let Some(osds) = self.osds {
            command.args(["--osds", &osds.to_string()]);
        }
        shell::run(&mut command)
    }

    /// The cluster's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which program applies manifests here.
    #[must_use]
    pub fn client_name(&self) -> &'static str {
        if self.kubectl.is_some() { "kubectl" } else { "cairn" }
    }

    /// Whether kubectl is here.
    #[must_use]
    pub fn has_kubectl(&self) -> bool {
        self.kubectl.is_some()
    }

    /// A `cairn` command for this cluster.
    #[must_use]
    pub fn cairn(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--dir").arg(&self.dir).current_dir(shell::root());
        command
    }

    /// A `kubectl` command for this cluster; `cairn`, which has the verbs the demo needs, where kubectl is missing.
    #[must_use]
    pub fn kube(&self, args: &[&str]) -> Command {
        let mut command = match &self.kubectl {
            Some(kubectl) => Command::new(kubectl),
            None => Command::new(&self.binary),
        };
        command.args(args).env("KUBECONFIG", self.dir.join("kubeconfig")).env("HOME", &self.dir);
        command.env_remove("HTTPS_PROXY").env_remove("https_proxy").current_dir(shell::root());
        command
    }

    /// The metrics of a process, in the text format of Prometheus.
    ///
    /// # Errors
    /// When it has no page, or does not answer with one.
    pub fn metrics(&self, role: &str) -> Result<String> {
        let socket = self.dir.join(format!("run/{role}.metrics.sock"));
        let mut stream = UnixStream::connect(&socket).with_context(|| format!("{role} has no page"))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(text.starts_with("HTTP/1.1 200"), "{role}: {text}");
        Ok(text)
    }

    /// The example's StorageClass under another name and with parameters of its own, and the example's claim of it, in
    /// one manifest whose path is returned.
    ///
    /// # Errors
    /// When the examples cannot be read, or the manifest not written.
    pub fn class_and_claim(&self, name: &str, parameters: &str) -> Result<String> {
        let example = |file: &str| {
            let file = shell::root().join("examples").join(file);
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
        };
        let class = example("storage-class.yaml")?.replace("cairn-block", name).replace("\"true\"", "\"false\"");
        let claim = example("claim.yaml")?.replace("cairn-block", name);
        let file = self.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, format!("{class}\nparameters:\n  {parameters}\n---\n{claim}"))
            .context("cannot write the manifest")?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// An object of the API as JSON; `None` when there is none.
    ///
    /// # Errors
    /// When a command fails; the sentence quotes it.
    pub fn object(&self, kind: &str, name: &str) -> Result<Option<Value>> {
        let output = shell::output(&mut self.kube(&["get", kind, name, "-o", "json"]))?;
        if output.status.success() {
            return Ok(Some(serde_json::from_slice(&output.stdout).context("the API's answer is not JSON")?));
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("NotFound") || stderr.contains("not found") {
            return Ok(None);
        }
        bail!("get {kind} {name}: {}", stderr.trim())
    }

    /// `cairn <args> -o json`, parsed.
    ///
    /// # Errors
    /// When a command fails; the sentence quotes it.
    pub fn cairn_json(&self, args: &[&str]) -> Result<Value> {
        let text = shell::capture(self.cairn(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("cairn {}: not JSON", args.join(" ")))
    }

    /// The pid of a role's process, from the supervisor's state file; `None` between two lives.
    ///
    /// # Errors
    /// When there is no state file: the supervisor does not run.
    pub fn pid(&self, role: &str) -> Result<Option<u32>> {
        Ok(self.state()?["processes"][role]["process"]["pid"].as_u64().map(|pid| pid as u32))
    }

    fn state(&self) -> Result<Value> {
        let file = self.dir.join("run/state.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).context("the state file is not JSON")
    }

    /// Power cut: kill -9 of the supervisor and of every process at once. Containers and shims stay, as no power cut
    /// would leave them, but the storage below them is what is tested.
    ///
    /// # Errors
    /// When there is no state file.
    pub fn cut_power(&self) -> Result<()> {
        let state = self.state()?;
        let mut pids: Vec<u64> = state["supervisor"]["pid"].as_u64().into_iter().collect();
        for role in state["processes"].as_object().into_iter().flatten() {
            pids.extend(role.1["process"]["pid"].as_u64());
        }
        let pids: Vec<String> = pids.iter().map(u64::to_string).collect();
        shell::capture(Command::new("kill").arg("-9").args(&pids))?;
        shell::wait_for("every process is gone", Duration::from_secs(30), || {
            Ok((!pids.iter().any(|pid| Path::new("/proc").join(pid).exists())).then_some(()))
        })
    }

    /// kill -9 of one role's process.
    ///
    /// # Errors
    /// When a command fails; the sentence quotes it.
    pub fn kill(&self, role: &str) -> Result<u32> {
        let pid = self.pid(role)?.with_context(|| format!("{role} does not run"))?;
        shell::capture(Command::new("kill").args(["-9", &pid.to_string()]))?;
        Ok(pid)
    }

    /// Resident bytes of all of the cluster's processes but containerd and its shims.
    ///
    /// # Errors
    /// When a command fails; the sentence quotes it.
    pub fn resident_mib(&self) -> Result<u64> {
        let state = self.state()?;
        let mut pids: Vec<u64> = state["supervisor"]["pid"].as_u64().into_iter().collect();
        for (name, role) in state["processes"].as_object().into_iter().flatten() {
            if name != "containerd" {
                pids.extend(role["process"]["pid"].as_u64());
            }
        }
        Ok(pids.into_iter().map(resident_kib).sum::<u64>() / 1024)
    }

    /// Takes everything away and checks that it is gone.
    ///
    /// # Errors
    /// When a command fails; the sentence quotes it.
    pub fn reset(&mut self) -> Result<()> {
        self.gone = true;
        shell::run(&mut self.cairn(&["reset", "--yes"]))?;
        leftovers::check(&self.dir, &[self.attach()])
    }

    /// A loop device over one of the cluster's volumes, by its folder in `/sys/block`.
    #[must_use]
    pub fn volume_loop(&self) -> Option<String> {
        leftovers::volume_loop(&self.attach())
    }

    fn attach(&self) -> PathBuf {
        self.dir.join("attach")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            println!("\nThe cluster stays: KUBECONFIG={}", self.dir.join("kubeconfig").display());
            println!("Take it away with: {} reset --yes --dir {}", self.binary.display(), self.dir.display());
        } else if !self.gone {
            // After a failure: leave the machine clean, keep the logs.
            let logs = PathBuf::from(format!("{}-logs", self.dir.display()));
            let _ = Command::new("cp").arg("-r").arg(self.dir.join("log")).arg(&logs).status();
            println!("the logs are kept in {}", logs.display());
            let _ = self.cairn(&["reset", "--yes"]).status();
        }
    }
}

/// The finished binary: what `CAIRN_BIN` names, or what cargo built last.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CAIRN_BIN") {
        return Ok(named.into());
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    let binary = target.join("debug/cairn");
    binary.exists().then_some(binary).context("there is no target/debug/cairn; run `cargo build`, or set CAIRN_BIN")
}

fn resident_kib(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
