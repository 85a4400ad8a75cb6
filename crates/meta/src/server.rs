//! Puts one member together: its directory, its driver's thread, its links to the others, its doors on one listener;
//! and takes it apart again.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cairn_meta_core::{Event, kv};
use cairn_meta_raft::{NodeConfig, NodeError, StoreError};
use cairn_proto::etcdserverpb::auth_server::AuthServer;
use cairn_proto::etcdserverpb::cluster_server::ClusterServer;
use cairn_proto::etcdserverpb::kv_server::KvServer;
use cairn_proto::etcdserverpb::lease_server::LeaseServer;
use cairn_proto::etcdserverpb::maintenance_server::MaintenanceServer;
use cairn_proto::etcdserverpb::watch_server::WatchServer;
use cairn_proto::meta::MembersRecord;
use cairn_proto::meta::meta_server::MetaServer;
use cairn_proto::meta_raft::raft_server::RaftServer;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use uuid::Uuid;

use crate::config::{Config, ConfigError};
use crate::disk::{Beginning, MemberFile, OpenError, RocksStore};
use crate::doors::Headers;
use crate::doors::cluster::ClusterDoor;
use crate::doors::kv::KvDoor;
use crate::doors::lease::LeaseDoor;
use crate::doors::meta::MetaDoor;
use crate::doors::raft::RaftDoor;
use crate::doors::watch::WatchDoor;
use crate::driver::{Audience, Driver, FromPeer, Inlets};
use crate::figures::MemberFigures;
use crate::gateway::{Gateway, Node};
use crate::identity::Identity;
use crate::join::{JoinError, join};
use crate::kv_hub::KvHub;
use crate::leader::Leader;
use crate::leases::Leases;
use crate::own_session::random;
use crate::peers::{self, MAX_FRAME_BYTES, Peers};
use crate::raft_log;

/// Requests that one client connection may have under way.
const STREAMS: u32 = 1024;
/// A client's request: a command, with room for what surrounds it.
const MAX_REQUEST_BYTES: usize = 4 << 20;
/// How long open calls may take to end when the member stops.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Why a member did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory cannot be used.
    #[error("{}: {cause}{}", dir.display(), remedy_of_opening(cause))]
    Directory {
        /// Which.
        dir: std::path::PathBuf,
        /// Why.
        cause: OpenError,
    },
    /// The cluster did not take it.
    #[error("{}: {cause}", dir.display())]
    Join {
        /// Its directory.
        dir: std::path::PathBuf,
        /// Why.
        cause: JoinError,
    },
    /// The address is taken, or not this machine's.
    #[error("cannot listen on {address}: {cause}; choose a free port of this machine, or stop who has it")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The listener or a member's address failed.
    #[error("the network failed: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The member cannot go on.
    #[error("member {id} stops: {cause}{}", remedy(*id, cause))]
    Node {
        /// Itself.
        id: u64,
        /// Why.
        cause: NodeError,
    },
    /// No thread could be started, or it died.
    #[error("member {id} stops: its driver {what}")]
    Driver {
        /// Itself.
        id: u64,
        /// What happened.
        what: String,
    },
}

/// What to do where the cause itself, which lies deeper, cannot know it.
fn remedy(id: u64, cause: &NodeError) -> String {
    let replace = format!("--replace {id}");
    match cause {
        NodeError::Store(StoreError::Corrupt { .. }) | NodeError::State(_) | NodeError::LostLog { .. } => {
            replacement(&replace)
        }
        _ => String::new(),
    }
}

fn remedy_of_opening(cause: &OpenError) -> String {
    match cause {
        OpenError::Store(StoreError::Corrupt { .. }) => replacement("--replace ID"),
        _ => String::new(),
    }
}

fn replacement(replace: &str) -> String {
    format!(
        "; the other members go on: leave this directory as it is, and start a new member on an empty one with --join \
         MEMBERS {replace} (of a cluster with one member: cairn meta restore FILE)"
    )
}

/// Runs one member until `shutdown`, or until it cannot go on. It serves once this has begun to be polled and the port
/// accepts connections; it has stopped cleanly when this returns `Ok`.
///
/// # Errors
/// In words, each with what to do.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let address = config.check()?;
    let listener = TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })?;
    serve(config, listener, shutdown).await
}

/// The same on a listener that is already bound.
///
/// # Errors
/// As [`run`].
pub async fn serve(config: Config, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
    if let Ok(address) = listener.local_addr()
        && !address.ip().is_loopback()
    {
        if !config.insecure_listen {
            return Err(ConfigError::Exposed(address).into());
        }
        tracing::warn!(%address, "listening without authentication where other machines can reach it");
    }
    let mut config = config;
    let beginning = begin(&mut config).await?;
    let id = config.id;
    let store = RocksStore::open(&config.dir, id, &beginning)
        .map_err(|cause| Error::Directory { dir: config.dir.clone(), cause })?;
    let file = store.member();
    let mut addresses: BTreeMap<u64, String> = config.members.iter().cloned().collect();
    addresses.extend(file.addresses.clone());
    let identity = Identity {
        id,
        address: addresses.get(&id).unwrap_or(&config.listen).clone(),
        genesis: file.genesis.clone(),
        directory: file.directory,
        cluster: file.cluster,
        peers: file.peers.clone(),
        members: MembersRecord::default(),
        joint: false,
    };
    let peers = Peers::new(identity, addresses, config.election * 4);
    let node = cairn_meta_raft::Node::open(node_config(&config), store, raft_log::logger());
    let node = node.map_err(|cause| Error::Node { id, cause })?;
    // Before anybody greets: whoever is judged while nothing is known here could be taken for another.
    peers.know(node.machine().members().clone());
    tracing::info!(member = id, dir = %config.dir.display(), applied = node.applied().index, "metadata member starts");
    Member::assemble(config, Arc::new(peers), node).run(listener, shutdown).await
}

/// What a new directory begins with; an old one says by itself who it is.
async fn begin(config: &mut Config) -> Result<Beginning, Error> {
    let dir = config.dir.clone();
    let known = MemberFile::load(&dir).map_err(|cause| Error::Directory { dir: dir.clone(), cause: cause.into() })?;
    if let Some(file) = known {
        if config.id == 0 {
            config.id = file.member;
        }
        return Ok(Beginning::default());
    }
    if !config.join.is_empty() {
        let (id, beginning) = join(config).await.map_err(|cause| Error::Join { dir, cause })?;
        config.id = id;
        return Ok(beginning);
    }
    if config.members.is_empty() {
        return Err(ConfigError::NoBeginning.into());
    }
    let addresses = config.members.iter().cloned().collect();
    Ok(Beginning { genesis: config.voters(), addresses, ..Beginning::default() })
}

fn node_config(config: &Config) -> NodeConfig {
    NodeConfig {
        election_ticks: config.election_ticks(),
        checkpoint_entries: config.checkpoint_entries,
        keep_entries: (config.checkpoint_entries / 10).max(1),
        ..NodeConfig::new(config.id, random())
    }
}

/// Everybody who hears what was applied.
struct Hubs {
    kv: Arc<KvHub>,
    leases: Arc<Leases>,
    epoch: watch::Sender<u64>,
    cluster: watch::Sender<Uuid>,
    peers: Arc<Peers>,
    /// Where the members are, to be written down.
    addresses: watch::Sender<BTreeMap<u64, String>>,
}

impl Hubs {
    fn know(&self, members: MembersRecord) {
        if members.members.is_empty() {
            return;
        }
        let addresses = members.members.iter().map(|m| (m.id, m.address.clone())).collect();
        self.addresses.send_if_modified(|known| {
            let new = *known != addresses;
            *known = addresses;
            new
        });
        self.peers.know(members);
    }

    fn name_cluster(&self, name: Uuid) {
        self.cluster.send_if_modified(|known| {
            let new = known.is_nil() && !name.is_nil();
            if new {
                *known = name;
            }
            new
        });
    }
}

impl Audience for Hubs {
    fn applied(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Map(update) => {
                    self.name_cluster(Uuid::from_slice(&update.cluster).unwrap_or_default());
                    self.epoch.send_replace(update.epoch);
                }
                Event::Kv { revision, events } => self.kv.publish(revision, &events),
                Event::LeaseGranted { id, ttl_s } => self.leases.granted(id, ttl_s, Instant::now()),
                Event::LeaseEnded { id } => self.leases.ended(id),
                Event::Members(members) => self.know(members),
            }
        }
    }

    fn replaced(&mut self, node: &Node) {
        let machine = node.machine();
        self.name_cluster(machine.cluster().unwrap_or_default());
        self.know(machine.members().clone());
        match kv::leases(node.state()) {
            Ok(all) => self.leases.replace(all.into_iter().map(|l| (l.id, l.ttl_s)), Instant::now()),
            Err(corrupt) => node.store().view().condemn(&corrupt.to_string()),
        }
        self.kv.jump(machine.kv_revision());
        self.epoch.send_replace(machine.map().epoch.0);
    }
}

/// One member, ready to run.
struct Member {
    config: Config,
    peers: Arc<Peers>,
    gateway: Gateway,
    leader: Leader,
    driver: Driver<Hubs>,
    to_driver: mpsc::Sender<FromPeer>,
    kv: Arc<KvHub>,
    epochs: watch::Receiver<u64>,
    cluster: watch::Receiver<Uuid>,
    addresses: watch::Receiver<BTreeMap<u64, String>>,
}

impl Member {
    fn assemble(config: Config, peers: Arc<Peers>, node: Node) -> Self {
        let (epoch, epochs) = watch::channel(0);
        let (cluster, clusters) = watch::channel(node.store().member().cluster);
        let (kv, leases) = (Arc::<KvHub>::default(), Arc::<Leases>::default());
        let (address, addresses) = watch::channel(node.store().member().addresses.clone());
        let hubs = Hubs {
            kv: Arc::clone(&kv),
            leases: Arc::clone(&leases),
            epoch,
            cluster,
            peers: Arc::clone(&peers),
            addresses: address,
        };
        let (driver, Inlets { gateway, from_peers }) = Driver::new(node, config.heartbeat, Arc::clone(&peers), hubs);
        if let Some(page) = cairn_metrics::installed() {
            let (gateway, peers, counts) = (gateway.clone(), Arc::clone(&peers), driver.counts());
            page.ask(MemberFigures { gateway, peers, counts });
        }
        let leader = Leader::new(config.id, gateway.clone(), Arc::clone(&peers), leases);
        let to_driver = from_peers;
        Self { config, peers, gateway, leader, driver, to_driver, kv, epochs, cluster: clusters, addresses }
    }

    async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), Error> {
        let id = self.config.id;
        // Ends everything else when the driver ends, and is ended by the caller's.
        let stop = shutdown.child_token();
        let _stopped_with_me = stop.clone().drop_guard();
        let server = self.server(listener, stop.clone());
        let mut links = tokio::task::JoinSet::new();
        let tended = peers::tend(Arc::clone(&self.peers), self.gateway.clone(), self.to_driver.clone(), stop.clone());
        links.spawn(tended);
        links.spawn(remember_addresses(self.addresses, self.gateway.clone(), stop.clone()));
        links.spawn(self.leader.clone().run(self.config.osd_silence, stop.clone()));
        links.spawn(remember_cluster(self.cluster, Arc::clone(&self.peers), self.gateway.clone(), stop.clone()));
        // The driver outlives the doors: calls that are open are answered before it goes.
        let driver_stop = CancellationToken::new();
        let _driver_stopped_with_me = driver_stop.clone().drop_guard();
        let mut driver = spawn_driver(id, self.driver, driver_stop.clone())?;
        let mut server = tokio::spawn(server);
        let ended = tokio::select! {
            ended = &mut driver => ended,
            served = &mut server => {
                stop.cancel();
                driver_stop.cancel();
                let ended = flatten(id, driver.await);
                while links.join_next().await.is_some() {}
                return served.unwrap_or(Ok(())).map_err(Error::from).and(ended);
            }
        };
        stop.cancel();
        let _ = tokio::time::timeout(STOP_PATIENCE, server).await;
        while links.join_next().await.is_some() {}
        flatten(id, ended)
    }

    fn server(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> impl Future<Output = Result<(), tonic::transport::Error>> + Send + use<> {
        let (gateway, leader) = (self.gateway.clone(), self.leader.clone());
        let headers = Headers { member: self.config.id, cluster: self.cluster.clone(), gateway: gateway.clone() };
        let kv = KvDoor { gateway: gateway.clone(), headers: headers.clone() };
        // Streams would not end by themselves: the doors end theirs when the member stops.
        let hub = Arc::clone(&self.kv);
        let watch = WatchDoor { gateway: gateway.clone(), hub, headers: headers.clone(), stop: stop.clone() };
        let lease = LeaseDoor {
            gateway: gateway.clone(),
            leader: leader.clone(),
            headers: headers.clone(),
            stop: stop.clone(),
        };
        let cluster =
            ClusterDoor { gateway: gateway.clone(), headers, peers: Arc::clone(&self.peers), leader: leader.clone() };
        let meta = MetaDoor {
            me: self.config.id,
            gateway: gateway.clone(),
            leader: leader.clone(),
            peers: Arc::clone(&self.peers),
            epochs: self.epochs.clone(),
            stop: stop.clone(),
        };
        let raft = RaftDoor {
            peers: Arc::clone(&self.peers),
            gateway,
            leader,
            driver: self.to_driver.clone(),
            stop: stop.clone(),
        };
        let router = Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .add_service(RaftServer::new(raft).max_decoding_message_size(MAX_FRAME_BYTES))
            .add_service(MetaServer::new(meta).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(KvServer::new(kv).max_decoding_message_size(MAX_REQUEST_BYTES))
            .add_service(WatchServer::new(watch))
            .add_service(LeaseServer::new(lease))
            .add_service(ClusterServer::new(cluster.clone()))
            .add_service(MaintenanceServer::new(cluster.clone()))
            .add_service(AuthServer::new(cluster));
        let ended = stop.clone();
        async move {
            // On the listener: the builder's own switch counts only for listeners that it makes itself, and without it
            // every answer waits for a delayed acknowledgement, 40 ms.
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let graceful = router.serve_with_incoming_shutdown(incoming, async move { stop.cancelled().await });
            // A client that does not take its answers is not waited for.
            let patience = async move {
                ended.cancelled().await;
                tokio::time::sleep(STOP_PATIENCE / 2).await;
            };
            tokio::select! {
                served = graceful => served,
                () = patience => Ok(()),
            }
        }
    }
}

/// What a driver's thread came to.
type Ended = Result<std::thread::Result<Result<(), NodeError>>, oneshot::error::RecvError>;

/// The driver has a thread of its own: its syncs of the disk must not hold up the network, nor the other way round.
fn spawn_driver(
    id: u64,
    driver: Driver<Hubs>,
    stop: CancellationToken,
) -> Result<oneshot::Receiver<std::thread::Result<Result<(), NodeError>>>, Error> {
    let (done, ended) = oneshot::channel();
    let cannot = |e: std::io::Error| Error::Driver { id, what: format!("cannot be started: {e}") };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(cannot)?;
    let work = move || {
        // raft panics where it finds what must not be; the member then ends, in words.
        let run = std::panic::AssertUnwindSafe(|| runtime.block_on(driver.run(stop)));
        let _ = done.send(std::panic::catch_unwind(run));
    };
    std::thread::Builder::new().name("meta-driver".to_owned()).spawn(work).map_err(cannot)?;
    Ok(ended)
}

fn flatten(id: u64, ended: Ended) -> Result<(), Error> {
    match ended {
        Ok(Ok(result)) => result.map_err(|cause| Error::Node { id, cause }),
        Ok(Err(panic)) => {
            let words = panic.downcast_ref::<String>().map(String::as_str);
            let words = words.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word");
            Err(Error::Driver { id, what: format!("panicked: {words}") })
        }
        Err(_) => Err(Error::Driver { id, what: "ended without a word".to_owned() }),
    }
}

/// The cluster's name goes into the MEMBER file and into greetings as soon as it is known.
async fn remember_cluster(
    mut cluster: watch::Receiver<Uuid>,
    peers: Arc<Peers>,
    gateway: Gateway,
    stop: CancellationToken,
) {
    let named = async {
        let Ok(name) = cluster.wait_for(|name| !name.is_nil()).await.map(|name| *name) else { return };
        if gateway.update_member(move |file| file.cluster = name).await.is_ok() {
            peers.name_cluster(name);
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = named => {}
    }
}

/// Where the members are goes into the MEMBER file, so that they are found again whatever became of the first ones.
async fn remember_addresses(
    mut addresses: watch::Receiver<BTreeMap<u64, String>>,
    gateway: Gateway,
    stop: CancellationToken,
) {
    let follow = async {
        while addresses.changed().await.is_ok() {
            let known = addresses.borrow_and_update().clone();
            let _ = gateway.update_member(move |file| file.addresses = known).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = follow => {}
    }
}
