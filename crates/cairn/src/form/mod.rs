//! Forming a cluster of several hosts: `init` on the first, `join TOKEN` on each other, `osd create` for each disk.
//! What `up` does for one host in one step is here the administrator's, host by host.

mod disk;
mod init;
mod join;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use cairn_host::cluster::Network;
use cairn_host::supervisor::State;
use cairn_host::{Cluster, Layout};
use clap::Args;

use crate::admin::Metadata;
use crate::failure::{Code, Failure, Outcome};
use crate::up;

pub(crate) use disk::{OsdCreate, create as create_osd, forget as forget_disk, outside as disks_outside};
pub(crate) use init::{Init, TokenVerb, init, token};
pub(crate) use join::{Join, join};

/// A member that the others do not know after so long is not one of theirs.
const TAKEN_IN: Duration = Duration::from_secs(10);

/// What every host is told, on `init` and on `join`.
#[derive(Args)]
pub(crate) struct HostArgs {
    /// Where this host keeps everything of the cluster.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR)]
    dir: PathBuf,
    /// This host's name; by default the host name.
    #[arg(long)]
    node: Option<String>,
    /// This host's address, as the others reach it; by default the one that it leaves by.
    #[arg(long)]
    address: Option<IpAddr>,
    /// First of the ports to use: the metadata member, the join door, then the OSDs from ten above.
    #[arg(long, default_value_t = 7400, value_parser = clap::value_parser!(u16).range(1024..=65000))]
    base_port: u16,
    /// Its rack, for placement.
    #[arg(long, default_value = "default")]
    rack: String,
    /// Its zone, for placement.
    #[arg(long, default_value = "default")]
    zone: String,
    /// Allow an address that is not loopback: whoever reaches it can do everything.
    #[arg(long)]
    insecure_listen: bool,
    /// Milliseconds until a process that died is started again.
    #[arg(long, default_value_t = cairn_host::cluster::DEFAULT_RESTART_DELAY_MS)]
    restart_delay_ms: u64,
}

impl HostArgs {
    /// The directory must not hold a cluster yet.
    fn check_fresh(&self) -> Outcome {
        if self.dir.join("cluster.json").exists() {
            let message = format!(
                "this host belongs to a cluster already ({}); `cairn up` starts what `cairn down` stopped, `cairn \
                 reset` takes it away",
                self.dir.display()
            );
            return Err(Failure::new(Code::Failed, message));
        }
        Ok(())
    }

    /// Makes the directory, once nothing is left to be refused.
    fn layout(&self) -> Result<Layout, Failure> {
        Layout::at(&self.dir).map_err(|error| Failure::new(Code::Failed, error.to_string()))
    }

    fn node(&self) -> String {
        self.node.clone().unwrap_or_else(up::host_name)
    }

    /// Links are not encrypted yet, and nobody opens them to the world without saying so.
    fn check_exposure(&self, address: IpAddr) -> Outcome {
        if address.is_unspecified() || address.is_multicast() {
            let message = format!("{address} is no address that others reach; name one of this host's with --address");
            return Err(Failure::new(Code::Failed, message));
        }
        if address.is_loopback() || self.insecure_listen {
            return Ok(());
        }
        let message = format!(
            "{address} can be reached from other machines, and the links between daemons are not encrypted yet: say \
             --insecure-listen if that network is closed, or --address 127.0.0.1 for a cluster of this host alone"
        );
        Err(Failure::new(Code::Failed, message))
    }

    fn warn(&self, address: IpAddr) {
        if !address.is_loopback() {
            eprintln!(
                "warning: the links are not encrypted: whoever reaches {address} can read and write every volume"
            );
        }
    }
}

/// The address by which this host leaves for there, if it can. Nothing is sent.
fn address_towards(there: SocketAddr) -> Option<IpAddr> {
    let outward = || -> std::io::Result<IpAddr> {
        let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(there)?;
        Ok(socket.local_addr()?.ip())
    };
    outward().ok()
}

/// Whether this host can listen there, asked before anything is made.
fn check_port(address: SocketAddr) -> Outcome {
    TcpListener::bind(address).map(|_| ()).map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!(
                    "port {} is in use; stop what listens there, or choose other ports with --base-port",
                    address.port()
                )
            }
            std::io::ErrorKind::AddrNotAvailable => {
                format!("no interface of this host has the address {}; name one with --address", address.ip())
            }
            _ => format!("cannot listen on {address}: {error}"),
        };
        Failure::new(Code::Failed, message)
    })
}

fn check_ports(network: &Network, members: &[cairn_host::cluster::Member]) -> Outcome {
    let own = network.meta_address();
    if members.iter().any(|member| member.address == own.to_string()) {
        check_port(own)?;
    }
    if network.door {
        check_port(network.door_address())?;
    }
    Ok(())
}

/// What a host says of itself once its processes run.
async fn settle(layout: &Layout, cluster: &Cluster) -> Outcome {
    up::start_supervisor(layout)?;
    up::wait("the supervisor to start", async || State::load(layout).and_then(|state| state.live_supervisor())).await?;
    for member in cluster.members.iter().filter(|member| cluster.own_members.contains(&member.id)) {
        up::wait(&format!("metadata member {} to listen", member.id), async || answers(&member.address).await).await?;
    }
    let there = reachable(cluster).await;
    if there < cluster.majority() {
        println!(
            "the metadata service waits for members: {there} of {} are there, {} make a majority; `cairn join` the next host",
            cluster.members.len(),
            cluster.majority()
        );
        return Ok(());
    }
    let metadata = Metadata::of_cluster(cluster)?;
    for member in cluster.members.iter().filter(|member| cluster.own_members.contains(&member.id)) {
        if !takes_part(&member.address).await {
            let id = member.id;
            println!(
                "metadata member {id} is not taken in by the others: this host had that place before and has lost what it \
                 knew; `cairn meta replace {id}` here gives it a new one (`cairn meta ls` shows all)"
            );
        }
    }
    up::wait("this host to be known as a node", async || {
        let nodes = metadata.nodes().await.ok()?;
        nodes.contains(&cluster.node).then_some(())
    })
    .await?;
    let map_shows = async |listen: &str| {
        let map = metadata.map().await.ok()?;
        map.osds.values().any(|osd| osd.up && osd.addresses.iter().any(|known| known == listen)).then_some(())
    };
    for disk in &cluster.disks {
        up::wait(&format!("{} to come up", disk.role_name()), async || map_shows(&disk.listen).await).await?;
    }
    Ok(())
}

/// Whether the member itself knows a leader, or comes to within a moment.
async fn takes_part(address: &str) -> bool {
    let Ok(member) = Metadata::at(&[address.to_owned()]) else { return false };
    let follows = async {
        while !member.status().await.is_ok_and(|status| status.leader_id > 0) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(TAKEN_IN, follows).await.is_ok()
}

async fn answers(address: &str) -> Option<()> {
    let dial = tokio::net::TcpStream::connect(address);
    tokio::time::timeout(Duration::from_secs(2), dial).await.ok()?.ok().map(|_| ())
}

async fn reachable(cluster: &Cluster) -> usize {
    let dials = cluster.members.iter().map(|member| answers(&member.address));
    futures::future::join_all(dials).await.into_iter().flatten().count()
}

/// `up` on a host of a formed cluster: what a stopped one left starts again.
pub(crate) async fn resume(layout: &Layout, cluster: &Cluster) -> Outcome {
    settle(layout, cluster).await.map_err(|failure| up::with_log(failure, layout))?;
    println!("host `{}` runs: {}", cluster.node, roles_line(cluster));
    Ok(())
}

fn roles_line(cluster: &Cluster) -> String {
    let mut parts: Vec<String> =
        cluster.own_members.iter().map(|id| format!("metadata member {id} of {}", cluster.members.len())).collect();
    parts.push(match cluster.disks.len() {
        0 => "no OSD yet (`cairn osd create PATH --size 100Gi`)".to_owned(),
        1 => "1 OSD".to_owned(),
        n => format!("{n} OSDs"),
    });
    parts.push("attach".to_owned());
    parts.join(", ")
}
