//! Takes off the machine what a private containerd and its pods made: sandboxes, shims, network namespaces, the
//! bridge, firewall rules, cgroups, mounts, files.
//!
//! First [`remove_pods`] while containerd serves, the orderly way; then stop it; then [`sweep`], which also finds what
//! a crash left. Everything is recognised by this cluster's own paths and names; nothing of anybody else is touched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use super::Settings;
use crate::cgroups;
use crate::cri::{CriError, Runtime};
use crate::mounts;

/// Stops and removes every sandbox of this containerd, which gives back addresses, rules and namespaces.
pub async fn remove_pods(settings: &Settings) -> Result<(), CriError> {
    let runtime = Runtime::new(&settings.socket());
    for sandbox in runtime.sandboxes(&[]).await? {
        runtime.stop_sandbox(&sandbox.id).await?;
        runtime.remove_sandbox(&sandbox.id).await?;
    }
    Ok(())
}

/// Removes what is left once containerd is stopped. Idempotent; what cannot be removed is logged and named in the
/// answer, so that nothing remains unseen.
pub fn sweep(settings: &Settings) -> Vec<String> {
    let mut left = Vec::new();
    let bundles = bundles(settings);
    kill_shims(settings);
    for bundle in &bundles {
        bundle.kill();
    }
    for bundle in &bundles {
        bundle.drop_network_namespace();
    }
    for point in mounts::beneath(&settings.root).unwrap_or_default() {
        note(&mut left, &point, mounts::detach(&point));
    }
    drop_rules(settings);
    if Path::new("/sys/class/net").join(&settings.bridge).exists() {
        let removed = run("ip", &["link", "delete", &settings.bridge]);
        if let Err(message) = removed {
            left.push(format!("bridge {}: {message}", settings.bridge));
        }
    }
    cgroups::remove(&settings.cgroup_parent);
    note(&mut left, &settings.root, mounts::remove_tree(&settings.root));
    // libcni keeps results there per network and container; they go with the container, the directories do not.
    for dir in ["/var/lib/cni/results", "/var/lib/cni"] {
        let _ = std::fs::remove_dir(dir);
    }
    for line in &left {
        tracing::warn!(left = line, "could not be removed");
    }
    left
}

fn note(left: &mut Vec<String>, path: &Path, result: std::io::Result<()>) {
    if let Err(error) = result {
        left.push(format!("{}: {error}", path.display()));
    }
}

/// A container's bundle: the only witness of its process and namespaces once containerd is gone.
struct Bundle {
    id: String,
    pid: Option<Pid>,
    network: Option<PathBuf>,
}

fn bundles(settings: &Settings) -> Vec<Bundle> {
    let dir = settings.state_dir().join("io.containerd.runtime.v2.task/k8s.io");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| Bundle::read(&entry.path())).collect()
}

impl Bundle {
    fn read(dir: &Path) -> Bundle {
        let pid = std::fs::read_to_string(dir.join("init.pid")).ok();
        let config: serde_json::Value = std::fs::read(dir.join("config.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let namespaces = config["linux"]["namespaces"].as_array().cloned().unwrap_or_default();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network");
        Bundle {
            id: dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            pid: pid.and_then(|text| text.trim().parse().ok()).and_then(Pid::from_raw),
            network: network.and_then(|namespace| namespace["path"].as_str()).map(PathBuf::from),
        }
    }

    /// Ends the container's first process, if that number is still its own: its cgroup says so.
    fn kill(&self) {
        let Some(pid) = self.pid else { return };
        let cgroup = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
        if cgroup.contains(&self.id) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }

    fn drop_network_namespace(&self) {
        // Only namespaces that the runtime pinned for a pod; a host-network pod has none.
        let Some(path) = self.network.as_deref() else { return };
        let pinned = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cni-"));
        if pinned && mounts::detach(path).is_ok() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Shims outlive containerd. Ours carry our socket as an argument.
fn kill_shims(settings: &Settings) {
    let socket = settings.socket().display().to_string();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut args = command.split(|&byte| byte == 0);
        let is_shim = args.next().is_some_and(|program| {
            Path::new(&*String::from_utf8_lossy(program))
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("containerd-shim"))
        });
        if is_shim && args.any(|arg| arg == socket.as_bytes()) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Firewall rules that the CNI plugins made for our network, and the plugins' shared chains once they are empty.
fn drop_rules(settings: &Settings) {
    let mine = format!("\\\"{}\\\"", settings.network_name());
    let Ok(listing) = run("iptables", &["-w", "-t", "nat", "-S"]) else { return };
    let mut chains = BTreeSet::new();
    for line in listing.lines().filter(|line| line.starts_with("-A ") && line.contains(&mine)) {
        let args = split_rule(line);
        let target = args.iter().position(|arg| arg == "-j").and_then(|at| args.get(at + 1));
        chains.extend(target.filter(|chain| chain.starts_with("CNI-")).cloned());
        delete_rule(&args);
    }
    for chain in chains.iter().filter(|chain| !chain.starts_with("CNI-HOSTPORT")) {
        let _ = run("iptables", &["-w", "-t", "nat", "-F", chain]);
        let _ = run("iptables", &["-w", "-t", "nat", "-X", chain]);
    }
    drop_shared_chains();
}

/// The chains that the portmap plugin leaves behind: removed when no pod of any network has a host port.
fn drop_shared_chains() {
    let Ok(listing) = run("iptables", &["-w", "-t", "nat", "-S"]) else { return };
    if !listing.contains("CNI-HOSTPORT-DNAT") || listing.lines().any(|line| line.starts_with("-A CNI-HOSTPORT-DNAT ")) {
        return;
    }
    for line in listing.lines().filter(|line| line.starts_with("-A ") && line.contains("-j CNI-HOSTPORT-")) {
        delete_rule(&split_rule(line));
    }
    for chain in ["CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"] {
        let _ = run("iptables", &["-w", "-t", "nat", "-F", chain]);
        let _ = run("iptables", &["-w", "-t", "nat", "-X", chain]);
    }
}

fn delete_rule(args: &[String]) {
    let mut command = vec!["-w", "-t", "nat", "-D"];
    command.extend(args.iter().skip(1).map(String::as_str));
    let _ = run("iptables", &command);
}

/// Splits a line of `iptables -S` into arguments: blanks separate, double quotes group, a backslash escapes.
fn split_rule(line: &str) -> Vec<String> {
    let (mut args, mut word, mut quoted) = (Vec::new(), String::new(), false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' => word.extend(letters.next()),
            ' ' if !quoted => args.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    args.push(word);
    args
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::split_rule;

    #[test]
    fn rules_are_split_as_a_shell_would() {
        let line = r#"-A POSTROUTING -s 10.88.0.2/32 -m comment --comment "name: \"cairn-c0\" id: \"ab\"" -j CNI-9f"#;
        let args = split_rule(line);
        assert_eq!(args[6..], ["--comment", "name: \"cairn-c0\" id: \"ab\"", "-j", "CNI-9f"]);
    }
}
