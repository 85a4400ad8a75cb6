//! Starting and stopping the daemon, and clearing away what it left when nobody will start it again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::attach::attach_daemon_server::AttachDaemonServer;
use cairn_types::NodeName;
use cairn_types::map::Location;
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Runtime;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::daemon::{Daemon, DaemonError};
use crate::exporter::Exporter;
use crate::exporter::fuse_loop::FuseLoop;
use crate::exporter::nbd_socket::NbdSocket;
use crate::keeper::KeeperClient;
use crate::service::Service;
use crate::source::VolumeSource;
use crate::{process, socket};

/// How long a predecessor may take to die.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(30);
/// How long calls in progress may take once the daemon shall stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where the daemon works.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name, as the orchestrator calls it.
    pub node: NodeName,
    /// The unix socket that it serves (mode 0600).
    pub socket: PathBuf,
    /// Its own directory: records, and the sockets of NBD exports. Made if missing.
    pub dir: PathBuf,
    /// The keeper's socket.
    pub keeper_socket: PathBuf,
    /// `host:port` of the metadata members.
    pub meta: Vec<String>,
    /// Where the node stands.
    pub location: Location,
}

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A metadata endpoint is not one.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// The machine refused a step.
    #[error("{step} ({}): {source}", path.display())]
    System {
        /// What was being done.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// Two daemons cannot share a directory.
    #[error("another attach daemon works in {}; stop it first", .0.display())]
    AlreadyRunning(PathBuf),
    /// What an earlier run left cannot be read or cleared away.
    #[error("cannot start: {0}")]
    Start(String),
    /// The socket stopped serving.
    #[error("serving {} ended: {source}", path.display())]
    Serve {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
}

impl From<DaemonError> for Error {
    fn from(error: DaemonError) -> Self {
        Self::Start(error.to_string())
    }
}

/// Serves the cluster's volumes until `shutdown`. Devices stay then, for the next run to go on with.
///
/// # Errors
/// [`Error`].
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    on_own_threads(async move {
        let meta = MetaClient::new(&config.meta)?;
        let source = Arc::new(Cluster::new(config.node.clone(), config.location.clone(), meta));
        serve(config, source, shutdown).await
    })
    .await
}

/// Like [`run`], with volumes from elsewhere than the cluster.
///
/// # Errors
/// [`Error`].
pub async fn run_with(config: Config, source: Arc<dyn VolumeSource>, shutdown: CancellationToken) -> Result<(), Error> {
    on_own_threads(serve(config, source, shutdown)).await
}

/// Threads that serve block I/O are marked as such when they start, so they cannot be those of any runtime.
async fn on_own_threads<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    struct Background(Option<Runtime>);
    impl Drop for Background {
        fn drop(&mut self) {
            self.0.take().into_iter().for_each(Runtime::shutdown_background);
        }
    }
    process::protect("attach");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8)))
        .thread_name("attach")
        .on_thread_start(process::mark_io_thread)
        .enable_all()
        .build()
        .map_err(|source| Error::System { step: "making threads", path: PathBuf::new(), source })?;
    let runtime = Background(Some(runtime));
    let task = runtime.0.as_ref().expect("it was just made").spawn(work);
    task.await.unwrap_or_else(|error| Err(Error::Start(format!("a bug: {error}"))))
}

async fn serve(config: Config, source: Arc<dyn VolumeSource>, shutdown: CancellationToken) -> Result<(), Error> {
    let _lock = own_directory(&config.dir, &shutdown).await?;
    let exporters = exporters(&config.dir, &config.keeper_socket)?;
    let daemon = Daemon::new(config.node.0.clone(), config.dir.clone(), source, exporters, shutdown.clone())?;
    daemon.unusable.iter().for_each(|why| tracing::warn!(why, "an exporter is not offered"));
    let daemon = Arc::new(daemon);
    if !register(&daemon).await {
        return Ok(());
    }
    daemon.start().await?;
    daemon.tasks.spawn(daemon.clone().keep());

    let failed = |source| Error::System { step: "listening", path: config.socket.clone(), source };
    let listener = socket::listen_private(&config.socket).map_err(failed)?;
    tracing::info!(socket = %config.socket.display(), node = %config.node, "attach ready");
    let server = tonic::transport::Server::builder()
        .add_service(AttachDaemonServer::new(Service(daemon.clone())))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let served = tokio::select! {
        served = server => served.map_err(|source| Error::Serve { path: config.socket.clone(), source }),
        () = async { shutdown.cancelled().await; tokio::time::sleep(STOP_PATIENCE).await } => Ok(()),
    };
    shutdown.cancel();
    daemon.leave().await;
    drop(std::fs::remove_file(&config.socket));
    served
}

/// Tells the metadata service of this node, however long that takes; false when told to stop meanwhile.
async fn register(daemon: &Daemon) -> bool {
    let mut pause = Duration::from_millis(100);
    loop {
        let registered = tokio::select! {
            () = daemon.shutdown.cancelled() => return false,
            registered = daemon.source.register_node() => registered,
        };
        match registered {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%error, "the metadata service does not take this node's registration yet"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

fn exporters(dir: &Path, keeper: &Path) -> Result<Vec<Arc<dyn Exporter>>, Error> {
    Ok(vec![Arc::new(fuse_loop(dir, keeper)?), Arc::new(NbdSocket::new(dir.join("nbd")))])
}

fn fuse_loop(dir: &Path, keeper: &Path) -> Result<FuseLoop, Error> {
    let failed = |source| Error::System { step: "resolving the directory", path: dir.to_owned(), source };
    let dir = dir.canonicalize().map_err(failed)?;
    Ok(FuseLoop::new(&instance(&dir), KeeperClient::new(keeper)))
}

/// Tells the daemons of one machine apart, in the same way after each restart: FNV-1a of the directory's path.
fn instance(dir: &Path) -> String {
    let bytes = dir.as_os_str().as_encoded_bytes();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{:012x}", hash >> 16)
}

/// Makes the directory and locks it. A predecessor that was just killed may still be on its way out.
async fn own_directory(dir: &Path, shutdown: &CancellationToken) -> Result<std::fs::File, Error> {
    use std::os::unix::fs::DirBuilderExt;
    let failed = |step| move |source| Error::System { step, path: dir.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("making the directory"))?;
    let lock = std::fs::File::create(dir.join("lock")).map_err(failed("opening the lock file"))?;
    let deadline = tokio::time::Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::AlreadyRunning(dir.to_owned())),
            Err(error) => return Err(failed("locking the directory")(error.into())),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(Error::AlreadyRunning(dir.to_owned())),
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
}

/// Removes whatever a daemon that no longer runs left of its devices: connections, loop devices, filesystems mounted
/// from them, its directory. For taking a cluster down; data that was not written out is lost with the mounts.
///
/// # Errors
/// [`Error::AlreadyRunning`] while the daemon lives; otherwise what could not be removed.
pub async fn teardown(dir: &Path, keeper_socket: &Path) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    let failed = |step| move |source| Error::System { step, path: dir.to_owned(), source };
    let lock = std::fs::File::create(dir.join("lock")).map_err(failed("opening the lock file"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| Error::AlreadyRunning(dir.to_owned()))?;
    let exporter = fuse_loop(dir, keeper_socket)?;
    let start = |error: crate::exporter::ExportError| Error::Start(error.to_string());
    for volume in exporter.remains().await.map_err(start)? {
        exporter.tear_down(volume).await.map_err(start)?;
    }
    std::fs::remove_dir_all(dir).map_err(failed("removing the directory"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_short_and_stays() {
        assert_eq!(instance(Path::new("/var/lib/cairn/attach")), instance(Path::new("/var/lib/cairn/attach")));
        assert_ne!(instance(Path::new("/a")), instance(Path::new("/b")));
        assert_eq!(instance(Path::new("/a")).len(), 12);
    }
}
