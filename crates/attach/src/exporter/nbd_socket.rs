//! An NBD server on a unix socket: for qemu, libnbd, fio, and for machines without any kernel block driver of use.
//!
//! One socket for each volume, in a directory that only its owner may enter, readable by the owner only. The socket
//! appears under its name when it is ready. There is nothing to take over from a predecessor: a connection dies with
//! the process that served it, and clients dial again.

mod connection;

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cairn_types::VolumeId;
use tokio::net::UnixListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use self::connection::{Connection, Health};
use super::{Endpoint, Export, ExportError, ExportSpec, ExportState, Exporter, Removal};
use crate::device::SharedDevice;

/// As requests name it.
pub const NAME: &str = "nbd-socket";

/// How sockets are named: `vol-7.nbd`.
const SUFFIX: &str = ".nbd";
/// Connections to one export at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// How long requests in flight are waited for when the process leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Shows volumes as NBD sockets in one directory.
#[derive(Clone, Debug)]
pub struct NbdSocket {
    directory: PathBuf,
}

impl NbdSocket {
    /// The directory is made when it is first needed. Keep its path short: a socket's path has at most 107 bytes.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.directory.join(format!("{volume}{SUFFIX}"))
    }

    fn volume_of(file: &str) -> Option<VolumeId> {
        file.strip_suffix(SUFFIX)?.strip_prefix("vol-")?.parse().ok().map(VolumeId)
    }

    /// A listener under the volume's name that nobody but its owner can ever have connected to.
    fn bind(&self, path: &Path) -> Result<UnixListener, ExportError> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory);
        made.map_err(ExportError::system("making the directory of NBD sockets"))?;
        let fresh = path.with_extension("new");
        unlink(&fresh)?;
        let listener = UnixListener::bind(&fresh).map_err(ExportError::system("binding the NBD socket"))?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, path))
            .map_err(ExportError::system("naming the NBD socket"))?;
        Ok(listener)
    }
}

fn unlink(path: &Path) -> Result<(), ExportError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ExportError::system("removing the NBD socket")(error))
        }
        _ => Ok(()),
    }
}

#[async_trait]
impl Exporter for NbdSocket {
    fn name(&self) -> &'static str {
        NAME
    }

    fn makes_block_device(&self) -> bool {
        false
    }

    fn probe(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn export(&self, spec: &ExportSpec, device: SharedDevice) -> Result<Box<dyn Export>, ExportError> {
        let path = self.path(spec.volume);
        let listener = self.bind(&path)?;
        let server = Server {
            spec: spec.clone(),
            device,
            health: Arc::new(Health::default()),
            doors: Arc::new(Mutex::new(Doors { open: 0, shut: false })),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        server.tasks.spawn(server.clone().accept(listener));
        tracing::info!(volume = %spec.volume, socket = %path.display(), "exported");
        Ok(Box::new(NbdExport { path, _abort_on_drop: server.abort.clone().drop_guard(), server }))
    }

    async fn resume(
        &self,
        spec: &ExportSpec,
        _endpoint: &Endpoint,
        _device: SharedDevice,
    ) -> Result<Box<dyn Export>, ExportError> {
        let reason = "NBD connections end with the process that serves them".into();
        Err(ExportError::NothingToResume { volume: spec.volume, reason })
    }

    async fn sweep(&self, volume: VolumeId) -> Result<(), ExportError> {
        let path = self.path(volume);
        unlink(&path.with_extension("new"))?;
        unlink(&path)
    }

    async fn remains(&self) -> Result<Vec<VolumeId>, ExportError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            listed => listed.map_err(ExportError::system("listing the directory of NBD sockets"))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(ExportError::system("listing the directory of NBD sockets"))?;
            found.extend(entry.file_name().to_str().and_then(Self::volume_of));
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// Who is inside, and whether anybody may still come.
#[derive(Debug)]
struct Doors {
    open: usize,
    shut: bool,
}

/// One export's tasks and what they share.
#[derive(Clone)]
struct Server {
    spec: ExportSpec,
    device: SharedDevice,
    health: Arc<Health>,
    doors: Arc<Mutex<Doors>>,
    /// Accept nobody, finish what is in flight.
    stop: CancellationToken,
    /// Hang up at once.
    abort: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn accept(self, listener: UnixListener) {
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let stream = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.abort.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Out of descriptors, most likely: it passes, and waiting is all that helps.
                        tracing::warn!(volume = %self.spec.volume, %error, "cannot accept");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            if self.enter() {
                let server = self.clone();
                self.tasks.spawn(async move {
                    server.serve(stream).await;
                    server.leave();
                    drop(slot);
                });
            }
        }
    }

    async fn serve(&self, stream: tokio::net::UnixStream) {
        let export = cairn_nbd::Export {
            name: self.spec.name.clone(),
            size: self.device.size(),
            read_only: self.spec.read_only,
        };
        let connection = Connection::new(export, Arc::clone(&self.device), Arc::clone(&self.health));
        let ended = tokio::select! {
            () = self.abort.cancelled() => return,
            ended = connection.serve(stream, &self.stop) => ended,
        };
        match ended {
            Ok(()) => tracing::debug!(volume = %self.spec.volume, "a client has gone"),
            Err(error) => tracing::info!(volume = %self.spec.volume, %error, "hung up on a client"),
        }
    }

    fn doors(&self) -> std::sync::MutexGuard<'_, Doors> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> bool {
        let mut doors = self.doors();
        doors.open += usize::from(!doors.shut);
        !doors.shut
    }

    fn leave(&self) {
        self.doors().open -= 1;
    }

    /// Lets nobody in any more, unless somebody is inside.
    fn shut_if_empty(&self) -> bool {
        let mut doors = self.doors();
        doors.shut |= doors.open == 0;
        doors.shut
    }

    async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct NbdExport {
    path: PathBuf,
    server: Server,
    _abort_on_drop: DropGuard,
}

#[async_trait]
impl Export for NbdExport {
    fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.path.clone())
    }

    fn state(&self) -> ExportState {
        if self.server.health.is_fenced() {
            return ExportState::Fenced;
        }
        let ended = self.server.stop.is_cancelled() || self.server.abort.is_cancelled();
        if ended { ExportState::Failed } else { ExportState::Serving }
    }

    fn fence(&self) {
        self.server.health.fence();
    }

    /// Clients learn the size when they connect.
    async fn resize(&self) -> Result<u64, ExportError> {
        Ok(self.server.device.size())
    }

    async fn remove(&self, removal: Removal) -> Result<(), ExportError> {
        match removal {
            Removal::IfIdle if !self.server.shut_if_empty() => {
                return Err(ExportError::InUse { endpoint: self.path.display().to_string() });
            }
            Removal::IfIdle => self.server.stop.cancel(),
            Removal::Force => self.server.abort.cancel(),
        }
        self.server.ended().await;
        // What was answered is durable already: nothing to flush.
        unlink(&self.path)
    }

    async fn keep(&self) -> Result<(), ExportError> {
        Ok(())
    }

    async fn leave(&self) {
        self.server.stop.cancel();
        if tokio::time::timeout(LEAVE_PATIENCE, self.server.ended()).await.is_err() {
            tracing::warn!(volume = %self.server.spec.volume, "left with requests in flight");
        }
    }
}
