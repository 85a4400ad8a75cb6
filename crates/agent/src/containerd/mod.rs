//! A containerd of our own: its configuration, its pod network, the images that need no registry, starting it and
//! taking everything it made off the machine again.
//!
//! A cluster never touches the machine's containerd: root, state, socket, bridge, subnet and cgroup are its own, so
//! that teardown can remove them whole. Rendering is pure; `daemon` and `teardown` do the I/O.

mod archive;
mod daemon;
mod image;
mod teardown;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

pub use daemon::{Daemon, DaemonError, import_image};
pub(crate) use image::architecture;
pub use image::{BUSYBOX, ImageError, busybox_image, pause_image};
pub use teardown::{remove_pods, sweep};

/// The reference of the pause image that [`pause_image`] builds for a private containerd.
pub const PAUSE_REFERENCE: &str = "cairn.local/pause:1";

/// Where a private containerd lives and what it calls its own.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Everything of it is beneath this directory.
    pub root: PathBuf,
    /// The pod bridge: an interface name (at most 15 characters) that no other cluster uses.
    pub bridge: String,
    /// First address of the pods' /24, for example 10.88.0.0.
    pub subnet: Ipv4Addr,
    /// Where the CNI plugins are (`/usr/lib/cni` on Debian).
    pub cni_bin_dir: PathBuf,
    /// The image of the pause container.
    pub sandbox_image: String,
    /// The cgroup under which pods run, for example `/cairn`; the agent's configuration names the same.
    pub cgroup_parent: String,
}

impl Settings {
    /// The CRI (and `ctr`) socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join("containerd.sock")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.root.join("containerd.toml")
    }

    /// Directory of the network configuration.
    pub fn cni_dir(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// Where containerd's output goes.
    pub fn log_file(&self) -> PathBuf {
        self.root.join("containerd.log")
    }

    /// Content, snapshots, metadata.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.root.join("root")
    }

    /// Run-time state: bundles of running containers.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// The command line that serves this containerd, for whoever supervises processes.
    pub fn command(&self) -> (&'static str, Vec<String>) {
        ("containerd", vec!["--config".into(), self.config_file().display().to_string()])
    }

    /// containerd's configuration (version 2, understood by 1.3 to 2.x).
    pub fn render_config(&self) -> String {
        let Settings { sandbox_image, cni_bin_dir, .. } = self;
        let quoted = |path: &Path| toml_string(&path.display().to_string());
        format!(
            r#"version = 2
root = {root}
state = {state}
# Nothing here needs them, and each costs start-up time or memory.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt",
  "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = {socket}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {sandbox_image}
  # A machine that is itself a container may not lower oom_score_adj; pods still start there.
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  max_container_log_line_size = 16384

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {bin_dir}
    conf_dir = {conf_dir}
"#,
            root = quoted(&self.data_dir()),
            state = quoted(&self.state_dir()),
            socket = quoted(&self.socket()),
            sandbox_image = toml_string(sandbox_image),
            bin_dir = quoted(cni_bin_dir),
            conf_dir = quoted(&self.cni_dir()),
        )
    }

    /// The pod network: a bridge of our own, addresses from a /24, masquerading outwards, host ports.
    pub fn render_conflist(&self) -> String {
        let [a, b, c, _] = self.subnet.octets();
        serde_json::json!({
            "cniVersion": "0.4.0",
            "name": self.network_name(),
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.bridge,
                    "isGateway": true,
                    "ipMasq": true,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.root.join("ipam"),
                        "ranges": [[{"subnet": format!("{a}.{b}.{c}.0/24")}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
        .to_string()
    }

    /// The CNI network's name: caches and firewall chains of the plugins carry it.
    pub(crate) fn network_name(&self) -> String {
        format!("cairn-{}", self.bridge)
    }

    /// Writes the configuration files and the directories they name. Idempotent.
    pub fn write(&self) -> std::io::Result<()> {
        std::fs::create_dir_all(self.cni_dir())?;
        std::fs::create_dir_all(self.data_dir())?;
        std::fs::create_dir_all(self.state_dir())?;
        std::fs::write(self.config_file(), self.render_config())?;
        std::fs::write(self.cni_dir().join("10-pods.conflist"), self.render_conflist())
    }
}

fn toml_string(text: &str) -> String {
    // A JSON string is a TOML basic string, but for \u escapes of surrogates, which paths and images do not hold.
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::Settings;
    use std::net::Ipv4Addr;

    fn settings() -> Settings {
        Settings {
            root: "/var/lib/cairn/c1/containerd".into(),
            bridge: "cairn0".into(),
            subnet: Ipv4Addr::new(10, 88, 3, 0),
            cni_bin_dir: "/usr/lib/cni".into(),
            sandbox_image: super::PAUSE_REFERENCE.into(),
            cgroup_parent: "/cairn".into(),
        }
    }

    #[test]
    fn the_configuration_names_only_its_own_paths() {
        let config = settings().render_config();
        for line in config.lines().filter(|line| line.contains('/') && line.contains(" = \"/")) {
            assert!(line.contains("/var/lib/cairn/c1/containerd") || line.contains("/usr/lib/cni"), "{line}");
        }
        assert!(config.contains("sandbox_image = \"cairn.local/pause:1\""), "{config}");
        assert!(config.contains("restrict_oom_score_adj = true"));
    }

    #[test]
    fn the_network_is_the_clusters_own() {
        let conflist: serde_json::Value = serde_json::from_str(&settings().render_conflist()).expect("JSON");
        let bridge = &conflist["plugins"][0];
        assert_eq!(bridge["bridge"], "cairn0");
        assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.88.3.0/24");
        assert!(bridge["ipam"]["dataDir"].as_str().expect("a path").starts_with("/var/lib/cairn/c1/"));
    }
}
