//! What is decided once, when a cluster is made or joined on this host: who the metadata members are and which of them
//! run here, which disks carry OSDs, and on which ports. Kept in `cluster.json`; a second start reads it and changes
//! nothing, `osd create` adds to it, and the metadata members in it follow those that the cluster really has.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Layout, roles};

/// The format of `cluster.json`.
const FORMAT: u32 = 2;

/// What the administrator asks for when a whole cluster shall stand on this host.
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
    /// The name of this node.
    pub node: String,
    /// Where this host stands.
    pub rack: String,
    /// Where this host stands.
    pub zone: String,
    /// Every metadata member of the cluster.
    pub members: Vec<Member>,
    /// Those that run on this host.
    pub own_members: Vec<u64>,
    /// Those of them that join a cluster which lives already.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joining: Vec<u64>,
    /// The cluster's name, once it has one. From then on no member is told with whom the cluster began: its directory
    /// knows, and one that does not is no member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formed: Option<String>,
    /// The OSDs of this host.
    pub disks: Vec<OsdDisk>,
    /// Present on a host of a cluster of several; absent where `up` made all of it on one.
    pub network: Option<Network>,
    /// Present where the orchestrator runs.
    pub orchestrator: Option<Orchestrator>,
    /// See [`ClusterOptions`].
    pub restart_delay_ms: u64,
}

/// One metadata member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// From 1.
    pub id: u64,
    /// host:port of its one listener.
    pub address: String,
}

/// One OSD of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdDisk {
    /// Its number on this host, which names its process; its number in the cluster stands on the disk.
    pub slot: u32,
    /// A block device or a file.
    pub device: PathBuf,
    /// Bytes of the file, when its process makes it. Without: it was made before, and one that is not there, or blank,
    /// is another disk than the one that was meant.
    pub size: Option<u64>,
    /// What the disk calls itself, where it was formatted before it was described.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// By which address it is known in the map.
    pub listen: String,
    /// ssd, hdd, nvme, ...
    pub device_class: String,
    /// Tests only: what the disk does wrong stands in this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject_disk_faults: Option<PathBuf>,
}

/// How the hosts of a cluster reach this one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// This host's address.
    pub address: IpAddr,
    /// First of its ports: the metadata member, the join door, then the OSDs.
    pub base_port: u16,
    /// Daemons may listen on an address that is not loopback.
    pub insecure_listen: bool,
    /// Whether this host lets others join: it keeps the authority's key.
    pub door: bool,
}

/// The orchestrator's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orchestrator {
    /// The API server's port.
    pub api_port: u16,
    /// The agent's port.
    pub agent_port: u16,
    /// The second octet of the pods' network 10.N.0.0/16; part of the bridge's name too.
    pub pod_network: u8,
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

/// Between the first port of a host and that of its first OSD.
const OSD_PORTS: u16 = 10;

impl Network {
    /// Where the metadata member listens.
    #[must_use]
    pub fn meta_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.base_port)
    }

    /// Where other hosts knock.
    #[must_use]
    pub fn door_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.base_port + 1)
    }

    fn osd_address(&self, slot: u32) -> String {
        let port = self.base_port + OSD_PORTS + slot as u16;
        format!("tcp:{}", SocketAddr::new(self.address, port))
    }
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
        let cluster = Self::decide(layout, options)?;
        cluster.save(layout)?;
        Ok(cluster)
    }

    /// A host of a cluster of several, with no OSD yet.
    #[must_use]
    pub fn of_host(node: String, place: (String, String), members: Vec<Member>, network: Network) -> Self {
        let own_address = network.meta_address().to_string();
        let own_members = members.iter().filter(|member| member.address == own_address).map(|member| member.id);
        Self {
            format: FORMAT,
            node,
            zone: place.0,
            rack: place.1,
            own_members: own_members.collect(),
            joining: Vec::new(),
            formed: None,
            members,
            disks: Vec::new(),
            network: Some(network),
            orchestrator: None,
            restart_delay_ms: DEFAULT_RESTART_DELAY_MS,
        }
    }

    /// Writes the file: beside it, then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, layout: &Layout) -> Result<(), ClusterError> {
        let file = layout.cluster_file();
        let text = serde_json::to_string_pretty(self).expect("a cluster description is plain data");
        let beside = file.with_extension("new");
        std::fs::write(&beside, text)
            .and_then(|()| std::fs::rename(&beside, &file))
            .map_err(|error| ClusterError::File(file, error))
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
        let unreadable = |why: String| ClusterError::Unreadable(file.clone(), why);
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
        if value["format"] != FORMAT {
            return Err(unreadable(format!("format {}, known is {FORMAT}", value["format"])));
        }
        serde_json::from_value(value).map(Some).map_err(|error| unreadable(error.to_string()))
    }

    /// Waits until nobody else changes the file; nobody does until what this returns is dropped.
    ///
    /// # Errors
    /// When the lock's file cannot be used.
    pub fn lock(layout: &Layout) -> Result<File, ClusterError> {
        let path = layout.run().join("cluster.lock");
        let failed = |error| ClusterError::File(path.clone(), error);
        let file = File::create(&path).map_err(failed)?;
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// The same without waiting; `None`: somebody changes it now.
    #[must_use]
    pub fn try_lock(layout: &Layout) -> Option<File> {
        let file = File::create(layout.run().join("cluster.lock")).ok()?;
        file.try_lock().ok().map(|()| file)
    }

    fn decide(layout: &Layout, options: &ClusterOptions) -> Result<Self, ClusterError> {
        let refuse = |why: String| Err(ClusterError::Refused(why));
        if ![1, 3, 5].contains(&options.members) {
            return refuse(format!("{} metadata members cannot agree well; use 1, 3 or 5", options.members));
        }
        if options.osds == 0 || options.osds > MOST_OSDS {
            return refuse(format!("{} OSDs on one host; use 1 to {MOST_OSDS}", options.osds));
        }
        check_osd_size(options.osd_size)?;
        let mut ports = Ports::new(options.base_port);
        let mut members = Vec::new();
        for id in 1..=u64::from(options.members) {
            members.push(Member { id, address: format!("127.0.0.1:{}", ports.take()?) });
        }
        let (api_port, agent_port) = (ports.take()?, ports.take()?);
        // Clusters side by side on one machine differ in their ports, and so in their pod networks.
        let pod_network = 64 + (api_port % 128) as u8;
        let disks = (0..options.osds).map(|slot| OsdDisk {
            slot,
            device: layout.osd_device(slot),
            size: Some(options.osd_size),
            uuid: None,
            listen: roles::osd_socket(layout, slot),
            device_class: DEFAULT_CLASS.into(),
            inject_disk_faults: None,
        });
        Ok(Self {
            format: FORMAT,
            node: options.node.clone(),
            rack: DEFAULT_PLACE.into(),
            zone: DEFAULT_PLACE.into(),
            own_members: members.iter().map(|member| member.id).collect(),
            joining: Vec::new(),
            formed: None,
            members,
            disks: disks.collect(),
            network: None,
            orchestrator: options.orchestrator.then_some(Orchestrator { api_port, agent_port, pod_network }),
            restart_delay_ms: options.restart_delay_ms,
        })
    }

    /// Adds an OSD on a formatted disk; its process starts when the supervisor reads the file again.
    ///
    /// # Errors
    /// When the disk carries one already, or the host is full.
    pub fn add_disk(
        &mut self,
        layout: &Layout,
        device: PathBuf,
        device_class: String,
    ) -> Result<&mut OsdDisk, ClusterError> {
        if let Some(known) = self.disks.iter().find(|disk| disk.device == device) {
            let message = format!("{} is {} of this host already", device.display(), known.role_name());
            return Err(ClusterError::Refused(message));
        }
        let free = (0..MOST_OSDS).find(|slot| self.disks.iter().all(|disk| disk.slot != *slot));
        let slot = free.ok_or_else(|| ClusterError::Refused(format!("this host has {MOST_OSDS} OSDs already")))?;
        let listen = match &self.network {
            Some(network) => network.osd_address(slot),
            None => roles::osd_socket(layout, slot),
        };
        let disk = OsdDisk { slot, device, size: None, uuid: None, listen, device_class, inject_disk_faults: None };
        self.disks.push(disk);
        Ok(self.disks.last_mut().expect("it was just put there"))
    }

    /// The metadata members' addresses, as every role takes them.
    #[must_use]
    pub fn meta_endpoints(&self) -> Vec<String> {
        self.members.iter().map(|member| member.address.clone()).collect()
    }

    /// Members without whom nothing is decided.
    #[must_use]
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }
}

impl OsdDisk {
    /// The name of its process on this host.
    #[must_use]
    pub fn role_name(&self) -> String {
        format!("osd-{}", self.slot)
    }
}

impl Orchestrator {
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

/// Refuses an OSD without room beside its own structures.
///
/// # Errors
/// In words.
pub fn check_osd_size(size: u64) -> Result<(), ClusterError> {
    if size >= MIN_OSD_SIZE {
        return Ok(());
    }
    let message = format!("an OSD of {size} bytes is too small; give it at least {} MiB", MIN_OSD_SIZE >> 20);
    Err(ClusterError::Refused(message))
}

/// Below this an OSD has no room beside its own structures.
const MIN_OSD_SIZE: u64 = 1 << 30;

/// OSDs of one host.
const MOST_OSDS: u32 = 64;

/// How long a process that died stays down.
pub const DEFAULT_RESTART_DELAY_MS: u64 = 1000;

const DEFAULT_CLASS: &str = "ssd";
const DEFAULT_PLACE: &str = "default";

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

    fn layout(folder: &tempfile::TempDir) -> Layout {
        Layout::at(&folder.path().join("c")).unwrap()
    }

    #[test]
    fn a_second_start_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&folder);
        let first = Cluster::load_or_create(&layout, &options()).unwrap();
        let again = Cluster::load_or_create(&layout, &ClusterOptions { osds: 7, ..options() }).unwrap();
        assert_eq!(first, again);
        assert_eq!((first.members.len(), first.own_members.len(), first.disks.len()), (3, 3, 3));
    }

    #[test]
    fn counts_that_cannot_work_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&folder);
        let refused = |options: ClusterOptions| Cluster::decide(&layout, &options).unwrap_err().to_string();
        assert!(refused(ClusterOptions { members: 2, ..options() }).contains("use 1, 3 or 5"));
        assert!(refused(ClusterOptions { osds: 0, ..options() }).contains("use 1 to 64"));
        assert!(refused(ClusterOptions { osd_size: 4096, ..options() }).contains("at least 1024 MiB"));
    }

    #[test]
    fn a_taken_port_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base_port = taken.local_addr().unwrap().port();
        let error = Cluster::decide(&layout(&folder), &ClusterOptions { base_port, ..options() }).unwrap_err();
        assert!(error.to_string().contains("--base-port"), "{error}");
    }

    #[test]
    fn a_host_knows_which_member_it_is_and_gives_each_disk_a_slot() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&folder);
        let network = Network { address: [10, 0, 0, 2].into(), base_port: 7400, insecure_listen: true, door: false };
        let members = [1, 2, 3].map(|id| Member { id, address: format!("10.0.0.{id}:7400") }).to_vec();
        let mut cluster = Cluster::of_host("b".into(), ("z".into(), "r".into()), members, network);
        assert_eq!((cluster.own_members.clone(), cluster.majority()), (vec![2], 2));
        let mut add = |device: &str| cluster.add_disk(&layout, device.into(), "ssd".into()).map(|disk| disk.clone());
        assert_eq!(add("/dev/x").unwrap().listen, "tcp:10.0.0.2:7410");
        assert_eq!(add("/dev/y").unwrap().role_name(), "osd-1");
        assert!(add("/dev/x").unwrap_err().to_string().contains("osd-0 of this host already"));
        cluster.save(&layout).unwrap();
        assert_eq!(Cluster::load(&layout).unwrap(), Some(cluster));
    }

    #[test]
    fn a_file_of_another_format_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(&folder);
        std::fs::write(layout.cluster_file(), r#"{"format": 1, "meta_ports": [1]}"#).unwrap();
        assert!(Cluster::load(&layout).unwrap_err().to_string().contains("format 1, known is 2"));
    }
}
