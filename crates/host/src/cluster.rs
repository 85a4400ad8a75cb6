//! What is decided once, when a cluster is made on this host: how many members and OSDs, their sizes, their ports.
//! Kept in `cluster.json`; a second start reads it and changes nothing.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::Layout;

/// The format of `cluster.json`.
const FORMAT: u32 = 1;

/// What the administrator asks for.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Metadata members: 1 or 3.
    pub members: u32,
    /// OSDs, each backed by a file.
    pub osds: u32,
    /// Bytes of each OSD's file.
    pub osd_size: u64,
    /// First of the ports; 0 takes free ones.
    pub base_port: u16,
    /// Start the orchestrator (API server, controllers, scheduler, agent, containerd) too.
    pub orchestrator: bool,
    /// The name of this node.
    pub node: String,
    /// How long a process that died stays down before it is started again.
    pub restart_delay_ms: u64,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Of this file.
    pub format: u32,
    /// The gRPC ports of the metadata members, in the order of their ids from 1.
    pub meta_ports: Vec<u16>,
    /// OSDs.
    pub osds: u32,
    /// Bytes of each.
    pub osd_size: u64,
    /// The API server's port.
    pub api_port: u16,
    /// The agent's port.
    pub agent_port: u16,
    /// The second octet of the pods' network 10.N.0.0/16; part of the bridge's name too.
    pub pod_network: u8,
    /// Whether the orchestrator runs.
    pub orchestrator: bool,
    /// The name of this node.
    pub node: String,
    /// See [`ClusterOptions`].
    pub restart_delay_ms: u64,
}

/// Why there is no cluster to start.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A count that cannot work.
    #[error("{0}")]
    Refused(String),
    /// A port is taken.
    #[error("port {0} is in use; stop what listens there, or choose other ports with --base-port (0 takes free ones)")]
    PortTaken(u16),
    /// The file cannot be read or written.
    #[error("cannot use {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// The file is not ours, or from another version.
    #[error("{0} is not a cluster description this version reads ({1}); `cairn reset` removes the cluster")]
    Unreadable(PathBuf, String),
}

impl Cluster {
    /// Reads what was decided, or decides it now.
    ///
    /// # Errors
    /// When the options cannot work, a port is taken, or the file is unreadable.
    pub fn load_or_create(layout: &Layout, options: &ClusterOptions) -> Result<Self, ClusterError> {
        if let Some(cluster) = Self::load(layout)? {
            return Ok(cluster);
        }
        let cluster = Self::decide(options)?;
        let file = layout.cluster_file();
        let text = serde_json::to_string_pretty(&cluster).expect("a cluster description is plain data");
        std::fs::write(&file, text).map_err(|error| ClusterError::File(file, error))?;
        Ok(cluster)
    }

    /// Reads what was decided, if anything was.
    ///
    /// # Errors
    /// When the file is unreadable.
    pub fn load(layout: &Layout) -> Result<Option<Self>, ClusterError> {
        let file = layout.cluster_file();
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ClusterError::File(file, error)),
        };
        let cluster: Self =
            serde_json::from_str(&text).map_err(|error| ClusterError::Unreadable(file.clone(), error.to_string()))?;
        if cluster.format != FORMAT {
            let found = format!("format {}, known is {FORMAT}", cluster.format);
            return Err(ClusterError::Unreadable(file, found));
        }
        Ok(Some(cluster))
    }

    fn decide(options: &ClusterOptions) -> Result<Self, ClusterError> {
        let refuse = |why: String| Err(ClusterError::Refused(why));
        if ![1, 3, 5].contains(&options.members) {
            return refuse(format!("{} metadata members cannot agree well; use 1, 3 or 5", options.members));
        }
        if options.osds == 0 || options.osds > 64 {
            return refuse(format!("{} OSDs on one host; use 1 to 64", options.osds));
        }
        if options.osd_size < MIN_OSD_SIZE {
            return refuse(format!(
                "an OSD of {} bytes is too small; give --osd-size at least {} MiB",
                options.osd_size,
                MIN_OSD_SIZE >> 20
            ));
        }
        let mut ports = Ports::new(options.base_port);
        let meta_ports = (0..options.members).map(|_| ports.take()).collect::<Result<Vec<_>, _>>()?;
        let api_port = ports.take()?;
        let agent_port = ports.take()?;
        Ok(Self {
            format: FORMAT,
            osds: options.osds,
            osd_size: options.osd_size,
            api_port,
            agent_port,
            // Clusters side by side on one machine differ in their ports, and so in their pod networks.
            pod_network: 64 + (api_port % 128) as u8,
            meta_ports,
            orchestrator: options.orchestrator,
            node: options.node.clone(),
            restart_delay_ms: options.restart_delay_ms,
        })
    }

    /// The metadata members' addresses, as every role takes them.
    #[must_use]
    pub fn meta_endpoints(&self) -> Vec<String> {
        self.meta_ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    /// The API server's address.
    #[must_use]
    pub fn api_address(&self) -> String {
        format!("127.0.0.1:{}", self.api_port)
    }

    /// The agent's address.
    #[must_use]
    pub fn agent_address(&self) -> String {
        format!("127.0.0.1:{}", self.agent_port)
    }
}

/// Below this an OSD has no room beside its own structures.
const MIN_OSD_SIZE: u64 = 1 << 30;

/// Hands out ports, each bound while the others are looked for, so that no two are the same.
struct Ports {
    next: u16,
    held: Vec<TcpListener>,
}

impl Ports {
    fn new(base: u16) -> Self {
        Self { next: base, held: Vec::new() }
    }

    fn take(&mut self) -> Result<u16, ClusterError> {
        let wanted = self.next;
        if wanted != 0 {
            self.next = wanted.saturating_add(1);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).map_err(|_| ClusterError::PortTaken(wanted))?;
        let port = listener.local_addr().map_err(|_| ClusterError::PortTaken(wanted))?.port();
        self.held.push(listener);
        Ok(port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> ClusterOptions {
        ClusterOptions {
            members: 3,
            osds: 3,
            osd_size: 4 << 30,
            base_port: 0,
            orchestrator: true,
            node: "n".into(),
            restart_delay_ms: 1000,
        }
    }

    #[test]
    fn a_second_start_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        let first = Cluster::load_or_create(&layout, &options()).unwrap();
        let again = Cluster::load_or_create(&layout, &ClusterOptions { osds: 7, ..options() }).unwrap();
        assert_eq!(first, again);
        assert_eq!(first.meta_ports.len(), 3);
    }

    #[test]
    fn counts_that_cannot_work_are_refused_with_the_remedy() {
        let refused = |options: ClusterOptions| Cluster::decide(&options).unwrap_err().to_string();
        assert!(refused(ClusterOptions { members: 2, ..options() }).contains("use 1, 3 or 5"));
        assert!(refused(ClusterOptions { osds: 0, ..options() }).contains("use 1 to 64"));
        assert!(refused(ClusterOptions { osd_size: 4096, ..options() }).contains("--osd-size"));
    }

    #[test]
    fn a_taken_port_is_named() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base_port = taken.local_addr().unwrap().port();
        let error = Cluster::decide(&ClusterOptions { base_port, ..options() }).unwrap_err();
        assert!(error.to_string().contains("--base-port"), "{error}");
    }
}
