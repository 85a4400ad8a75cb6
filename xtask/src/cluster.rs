//! A cluster on this machine, driven from outside the way a person drives it: `cairn` and `kubectl`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::shell;

/// A running cluster. Dropping it takes everything away.
pub(crate) struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    kubectl: Option<PathBuf>,
    keep: bool,
    gone: bool,
}

impl Cluster {
    /// Starts one in a new directory and returns when `cairn up` says it is healthy.
    pub(crate) fn up(binary: &Path, keep: bool) -> Result<Self> {
        let dir = PathBuf::from(format!("/var/tmp/cairn-{}", std::process::id()));
        let kubectl = std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| shell::find_program("kubectl"));
        let cluster = Self { binary: binary.to_owned(), dir, kubectl, keep, gone: false };
        shell::run(cluster.cairn(&["up", "--base-port", "0", "--osd-size", "4Gi", "--restart-delay-ms", "4000"]).arg(
            // Said on the command line, because a person would do the same to look at it.
            "--quiet",
        ))?;
        Ok(cluster)
    }

    /// The cluster's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which program applies manifests here.
    pub(crate) fn client_name(&self) -> &'static str {
        if self.kubectl.is_some() { "kubectl" } else { "cairn" }
    }

    /// Whether kubectl is here.
    pub(crate) fn has_kubectl(&self) -> bool {
        self.kubectl.is_some()
    }

    /// A `cairn` command for this cluster.
    pub(crate) fn cairn(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--dir").arg(&self.dir).current_dir(shell::root());
        command
    }

    /// A `kubectl` command for this cluster; `cairn`, which has the verbs the demo needs, where kubectl is missing.
    pub(crate) fn kube(&self, args: &[&str]) -> Command {
        let mut command = match &self.kubectl {
            Some(kubectl) => Command::new(kubectl),
            None => Command::new(&self.binary),
        };
        command.args(args).env("KUBECONFIG", self.dir.join("kubeconfig")).env("HOME", &self.dir);
        command.env_remove("HTTPS_PROXY").env_remove("https_proxy").current_dir(shell::root());
        command
    }

    /// An object of the API as JSON; `None` when there is none.
    pub(crate) fn object(&self, kind: &str, name: &str) -> Result<Option<Value>> {
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
    pub(crate) fn cairn_json(&self, args: &[&str]) -> Result<Value> {
        let text = shell::capture(self.cairn(args).args(["-o", "json"]))?;
        serde_json::from_str(&text).with_context(|| format!("cairn {}: not JSON", args.join(" ")))
    }

    /// The pid of a role's process, from the supervisor's state file.
    pub(crate) fn pid(&self, role: &str) -> Result<Option<u32>> {
        let file = self.dir.join("run/state.json");
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let state: Value = serde_json::from_str(&text).context("the state file is not JSON")?;
        Ok(state["processes"][role]["process"]["pid"].as_u64().map(|pid| pid as u32))
    }

    /// kill -9 of one role's process.
    pub(crate) fn kill(&self, role: &str) -> Result<u32> {
        let pid = self.pid(role)?.with_context(|| format!("{role} does not run"))?;
        shell::capture(Command::new("kill").args(["-9", &pid.to_string()]))?;
        Ok(pid)
    }

    /// Resident bytes of all of the cluster's processes but containerd and its shims.
    pub(crate) fn resident_mib(&self) -> Result<u64> {
        let file = self.dir.join("run/state.json");
        let state: Value = serde_json::from_str(&std::fs::read_to_string(file)?).context("the state file")?;
        let mut pids: Vec<u64> = state["supervisor"]["pid"].as_u64().into_iter().collect();
        for (name, role) in state["processes"].as_object().into_iter().flatten() {
            if name != "containerd" {
                pids.extend(role["process"]["pid"].as_u64());
            }
        }
        Ok(pids.into_iter().map(resident_kib).sum::<u64>() / 1024)
    }

    /// Takes everything away and checks that it is gone.
    pub(crate) fn reset(&mut self) -> Result<()> {
        self.gone = true;
        shell::run(&mut self.cairn(&["reset", "--yes"]))?;
        self.check_nothing_left()
    }

    fn check_nothing_left(&self) -> Result<()> {
        let dir = self.dir.to_string_lossy().into_owned();
        if self.dir.exists() {
            bail!("{dir} is still there");
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some(line) = mounts.lines().find(|line| line.contains(&dir)) {
            bail!("a mount is left: {line}");
        }
        for device in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let backing = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
            if backing.contains(&dir) {
                bail!("a loop device is left: {}", device.path().display());
            }
        }
        if let Some(left) = processes_naming(&dir) {
            bail!("a process is left: {left}");
        }
        Ok(())
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

fn resident_kib(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// A process other than ours whose command line names the directory.
fn processes_naming(dir: &str) -> Option<String> {
    let own = std::process::id().to_string();
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(dir) {
            return Some(format!("{pid}: {line}"));
        }
    }
    None
}

/// Asks every 50 ms; long waits of the story all go through here.
pub(crate) fn until<T>(what: &str, seconds: u64, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    shell::wait_for(what, Duration::from_secs(seconds), ask)
}
