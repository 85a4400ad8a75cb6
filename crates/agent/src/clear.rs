//! Clears a node without an API server: stops the agent's pods, takes their volumes back through the drivers, removes
//! what is left beneath the agent's root. For taking a cluster off a machine.

use std::path::PathBuf;
use std::time::Duration;

use cairn_proto::registration::InfoRequest;

use crate::cri::{Runtime, own};
use crate::drivers::Drivers;
use crate::mounts;
use crate::plugins;
use crate::volumes::Kept;

/// How long a driver is waited for.
const DRIVER_LIMIT: Duration = Duration::from_secs(5);

/// The node to clear: the fields of the agent's configuration of the same names.
#[derive(Clone, Debug)]
pub struct Clear {
    /// The Node's name.
    pub node_name: String,
    /// The container runtime's socket.
    pub cri_socket: PathBuf,
    /// The agent's root.
    pub root: PathBuf,
    /// Where CSI drivers have their registration sockets.
    pub plugin_registry: PathBuf,
    /// The cgroup of the pods.
    pub cgroup_parent: String,
}

impl Clear {
    /// Does it; what could not be undone in order is undone by force and said. The agent must not be running.
    pub async fn run(&self) -> Vec<String> {
        let mut left = Vec::new();
        if let Err(error) = self.stop_pods().await {
            left.push(format!("pods: {error}"));
        }
        let Ok(root) = std::fs::canonicalize(&self.root) else { return left };
        let drivers = Drivers::default();
        match Kept::open(&root, &self.node_name, drivers.clone()) {
            Ok(kept) => {
                // Without volumes no driver is needed, and none may be running.
                if kept.drivers().is_ok_and(|names| !names.is_empty()) {
                    self.find_drivers(&drivers).await;
                }
                for uid in kept.pods() {
                    if let Err(error) = kept.unmount(&uid).await {
                        left.push(format!("volumes of pod {uid}: {error}"));
                    }
                }
                if let Err(error) = kept.unstage_orphans().await {
                    left.push(format!("staged volumes: {error}"));
                }
            }
            Err(error) => left.push(format!("{}: {error}", root.display())),
        }
        for point in mounts::beneath(&root).unwrap_or_default() {
            if let Err(error) = mounts::detach(&point) {
                left.push(format!("{}: {error}", point.display()));
            }
        }
        if let Err(error) = mounts::remove_tree(&root) {
            left.push(format!("{}: {error}", root.display()));
        }
        crate::cgroups::remove(&self.cgroup_parent);
        left
    }

    async fn stop_pods(&self) -> Result<(), crate::cri::CriError> {
        let runtime = Runtime::new(&self.cri_socket);
        for sandbox in runtime.sandboxes(&own(&self.node_name)).await? {
            runtime.stop_sandbox(&sandbox.id).await?;
            runtime.remove_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    /// Asks every plugin what it is, without registering it anywhere.
    async fn find_drivers(&self, drivers: &Drivers) {
        for socket in plugins::sockets(&self.plugin_registry).into_keys() {
            let mut plugin = plugins::client(&socket);
            let asked = tokio::time::timeout(DRIVER_LIMIT, plugin.get_info(InfoRequest {})).await;
            let Ok(Ok(info)) = asked else { continue };
            let info = info.into_inner();
            if let Ok(driver) = plugins::driver(&socket, &info).await {
                drivers.put(&info.name, driver);
            }
        }
    }
}
