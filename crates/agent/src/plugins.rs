//! Plugin registration, as a kubelet does it: a plugin puts a socket into the registry directory, is asked what it is,
//! and is told how that went. A CSI driver thereby enters the node's CSINode, and its topology the Node's labels.
//!
//! The directory is watched by inotify, and looked through now and then in case a message was missed. A socket that
//! disappears takes its driver along; one that cannot be registered yet is tried again.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_proto::registration::registration_client::RegistrationClient;
use cairn_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::csi_node::{CsiError, CsiNode, DriverInfo};
use crate::drivers::{Driver, Drivers};

const RESCAN: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_secs(1);
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Why a plugin was not registered.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("{socket} does not answer: {message}")]
    Mute { socket: PathBuf, message: String },
    #[error("it is a {0}, and only CSIPlugin is known here")]
    Kind(String),
    #[error("it supports the versions {0}, and only 1.x is spoken here")]
    Version(String),
    #[error("the driver's node service failed: {0}")]
    Driver(#[from] CsiError),
    #[error("the API server did not take the driver: {0}")]
    Api(#[from] kube::Error),
}

/// See the module's words.
pub(crate) struct Registry {
    pub(crate) client: Client,
    pub(crate) node: String,
    pub(crate) directory: PathBuf,
    pub(crate) drivers: Drivers,
    /// The Node's uid: nothing is registered before the Node is.
    pub(crate) node_uid: watch::Receiver<Option<String>>,
}

/// A socket that was registered: which file it was, and the driver behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    inode: (u64, i64),
    driver: String,
}

impl Registry {
    /// Until told to stop.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&mut self) {
        if self.node_uid.wait_for(Option::is_some).await.is_err() {
            return;
        }
        if let Err(error) = std::fs::create_dir_all(&self.directory) {
            tracing::error!(%error, directory = %self.directory.display(), "the plugin registry cannot be made");
        }
        let messages = subscribe(&self.directory);
        self.node_uid.mark_unchanged();
        let mut known: BTreeMap<PathBuf, Known> = BTreeMap::new();
        loop {
            let settled = self.scan(&mut known).await;
            let pause = if settled { RESCAN } else { RETRY };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = news(messages.as_ref()) => {}
                // Another Node under our name: its labels and its CSINode are written again.
                changed = self.node_uid.changed() => match changed {
                    Ok(()) => known.values_mut().for_each(|entry| entry.inode = (0, 0)),
                    Err(_) => return,
                },
            }
        }
    }

    /// Compares the directory with what is registered. False when something has to be tried again.
    async fn scan(&self, known: &mut BTreeMap<PathBuf, Known>) -> bool {
        let present = sockets(&self.directory);
        let mut settled = true;
        let gone: Vec<PathBuf> = known.keys().filter(|path| !present.contains_key(*path)).cloned().collect();
        for path in gone {
            if let Some(Known { driver, .. }) = known.remove(&path) {
                tracing::info!(driver, "its registration socket is gone");
                self.drivers.remove(&driver);
            }
        }
        for (path, inode) in present {
            if known.get(&path).is_some_and(|entry| entry.inode == inode) {
                continue;
            }
            match self.register(&path).await {
                Ok(driver) => drop(known.insert(path, Known { inode, driver })),
                Err(error) => {
                    tracing::warn!(socket = %path.display(), %error, "a plugin was not registered");
                    settled = false;
                }
            }
        }
        // The CSINode is there from the start, also without drivers, and comes back when somebody removes it.
        settled & self.write_csi_node().await.is_ok()
    }

    async fn register(&self, socket: &Path) -> Result<String, PluginError> {
        let mut plugin = client(socket);
        let mute = |message: String| PluginError::Mute { socket: socket.to_owned(), message };
        let info = tokio::time::timeout(CALL_LIMIT, plugin.get_info(InfoRequest {}))
            .await
            .map_err(|_| mute(format!("nothing within {CALL_LIMIT:?}")))?
            .map_err(|status| mute(status.message().to_owned()))?
            .into_inner();
        let outcome = self.admit(socket, &info).await;
        let error = outcome.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let status = RegistrationStatus { plugin_registered: outcome.is_ok(), error };
        let told = tokio::time::timeout(CALL_LIMIT, plugin.notify_registration_status(status)).await;
        if !matches!(told, Ok(Ok(_))) {
            tracing::debug!(socket = %socket.display(), "the plugin did not take its registration status");
        }
        outcome.map(|()| info.name)
    }

    /// Takes a driver in: asks its node service, then writes CSINode and labels.
    async fn admit(&self, socket: &Path, info: &PluginInfo) -> Result<(), PluginError> {
        if info.r#type != "CSIPlugin" {
            return Err(PluginError::Kind(info.r#type.clone()));
        }
        let spoken = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
        if !info.supported_versions.is_empty() && !info.supported_versions.iter().any(spoken) {
            return Err(PluginError::Version(info.supported_versions.join(", ")));
        }
        let driver = driver(socket, info).await?;
        tracing::info!(driver = info.name, node_id = driver.info.node_id, "a CSI driver");
        self.label(&driver.info).await?;
        self.drivers.put(&info.name, driver);
        self.write_csi_node().await?;
        Ok(())
    }

    async fn label(&self, about: &DriverInfo) -> Result<(), kube::Error> {
        if about.topology.is_empty() {
            return Ok(());
        }
        let labels: BTreeMap<&String, &String> = about.topology.iter().collect();
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        Api::<Node>::all(self.client.clone()).patch(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }

    /// The CSINode with all drivers that are registered now.
    async fn write_csi_node(&self) -> Result<(), kube::Error> {
        let api: Api<CSINode> = Api::all(self.client.clone());
        let drivers: Vec<CSINodeDriver> = self.drivers.all().into_iter().map(entry).collect();
        let Some(old) = api.get_opt(&self.node).await? else {
            let uid = self.node_uid.borrow().clone().unwrap_or_default();
            return api.create(&PostParams::default(), &csi_node(&self.node, uid, drivers)).await.map(drop);
        };
        if old.spec.drivers == drivers {
            return Ok(());
        }
        let patch = Patch::Merge(json!({"spec": {"drivers": drivers}}));
        api.patch(&self.node, &PatchParams::default(), &patch).await.map(drop)
    }
}

/// The driver behind a registration socket, which may be its own socket too.
pub(crate) async fn driver(socket: &Path, info: &PluginInfo) -> Result<Driver, CsiError> {
    let endpoint = match info.endpoint.strip_prefix("unix://").unwrap_or(&info.endpoint) {
        "" => socket.to_owned(),
        path => PathBuf::from(path),
    };
    let node = CsiNode::new(&endpoint);
    let info = node.info().await?;
    Ok(Driver { node, info })
}

fn entry((name, info): (String, DriverInfo)) -> CSINodeDriver {
    let mut keys: Vec<String> = info.topology.into_keys().collect();
    keys.sort();
    let count = i32::try_from(info.max_volumes).ok().filter(|&count| count > 0);
    CSINodeDriver {
        name,
        node_id: info.node_id,
        topology_keys: (!keys.is_empty()).then_some(keys),
        allocatable: count.map(|count| VolumeNodeResources { count: Some(count) }),
    }
}

fn csi_node(node: &str, uid: String, drivers: Vec<CSINodeDriver>) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid,
        ..Default::default()
    };
    CSINode {
        metadata: ObjectMeta { name: Some(node.to_owned()), owner_references: Some(vec![owner]), ..Default::default() },
        spec: CSINodeSpec { drivers },
    }
}

/// A client for a registration socket; dials on first use.
pub(crate) fn client(socket: &Path) -> RegistrationClient<Channel> {
    let path = socket.to_owned();
    let channel =
        Endpoint::from_static("http://plugin.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }));
    RegistrationClient::new(channel)
}

/// The sockets in the directory, each with what tells it from a successor under the same name.
pub(crate) fn sockets(directory: &Path) -> BTreeMap<PathBuf, (u64, i64)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        let nanos = meta.ctime().wrapping_mul(1_000_000_000).wrapping_add(meta.ctime_nsec());
        meta.file_type().is_socket().then(|| (entry.path(), (meta.ino(), nanos)))
    });
    found.collect()
}

fn subscribe(directory: &Path) -> Option<Receiver> {
    let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
    let flags = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM;
    inotify::add_watch(&fd, directory, flags).ok()?;
    // Not a pipe, but read like one: readiness, then bytes without blocking.
    Receiver::from_owned_fd_unchecked(fd).ok()
}

/// Returns when something happened in the directory; never, when it cannot be watched.
async fn news(messages: Option<&Receiver>) {
    let Some(messages) = messages else { return std::future::pending().await };
    if messages.readable().await.is_err() {
        return std::future::pending().await;
    }
    // What happened is found by looking; the messages are only taken away.
    let mut buffer = [0u8; 4096];
    while messages.try_read(&mut buffer).is_ok_and(|length| length > 0) {}
}

#[cfg(test)]
mod tests {
    use super::{entry, news, sockets, subscribe};
    use crate::csi_node::DriverInfo;

    #[tokio::test]
    async fn a_new_socket_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let messages = subscribe(dir.path());
        assert!(messages.is_some(), "inotify works here");
        std::fs::write(dir.path().join("file"), "").expect("written");
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("d.sock")).expect("bound");
        news(messages.as_ref()).await;
        let first = sockets(dir.path());
        assert_eq!(first.len(), 1, "files are not sockets");
        drop(listener);
        std::fs::remove_file(dir.path().join("d.sock")).expect("removed");
        news(messages.as_ref()).await;
        let _again = std::os::unix::net::UnixListener::bind(dir.path().join("d.sock")).expect("bound");
        assert_ne!(sockets(dir.path()), first, "a successor is another socket");
    }

    #[test]
    fn a_driver_without_limit_has_no_count() {
        let topology = [("b".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())].into();
        let info = DriverInfo { node_id: "n".into(), topology, ..Default::default() };
        let made = entry(("d".into(), info.clone()));
        assert_eq!(made.topology_keys.expect("set"), ["a", "b"]);
        assert_eq!(made.allocatable, None);
        let limited = entry(("d".into(), DriverInfo { max_volumes: 16, ..info }));
        assert_eq!(limited.allocatable.expect("set").count, Some(16));
    }
}
