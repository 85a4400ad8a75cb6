//! A loop device over a FUSE file that we serve: works on every kernel with FUSE and loop, needs no module.
//!
//! What must outlive this process is one descriptor (the FUSE connection), held by the keeper under
//! `fuse-loop/<instance>/<volume>`; the loop device and the detached mount live in the kernel. The file's name
//! carries the instance and the volume, so that a loop device is known as ours whatever state was lost.
//!
//! Order of making: connection, keeper, loop device, keeper again with its number. Order of removal: loop device,
//! connection, keeper. Whatever a crash leaves in between, `sweep` finds by the keeper's list or by the file's name.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use cairn_types::VolumeId;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{Endpoint, Export, ExportError, ExportSpec, ExportState, Exporter, Removal};
use crate::device::SharedDevice;
use crate::fuse::{Connection, Session};
use crate::keeper::{KeeperClient, KeeperError, Kept};
use crate::loop_device::{self, LoopDevice};
use crate::mounts;

/// As requests name it.
pub const NAME: &str = "fuse-loop";

/// How long a device may take to flush before its removal gives up.
const FLUSH_PATIENCE: Duration = Duration::from_secs(30);
/// How long openers that come and go (udev's probes) are waited for.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);
/// The same for a device that is removed whoever has it open.
const FORCE_PATIENCE: Duration = Duration::from_millis(200);
/// How long requests in flight are waited for when the process leaves.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);

/// Shows volumes as `/dev/loopN`.
#[derive(Clone, Debug)]
pub struct FuseLoop {
    instance: String,
    keeper: KeeperClient,
}

/// What the keeper holds beside the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    version: u32,
    /// The kernel's number of the connection.
    connection: u32,
    /// Absent until the loop device is bound.
    loop_number: Option<u32>,
    read_only: bool,
}

const NOTE_VERSION: u32 = 1;

struct FuseLoopExport {
    names: Names,
    keeper: KeeperClient,
    note: Note,
    /// Absent once removed.
    parts: Mutex<Option<Connection>>,
    session: Session,
    device: LoopDevice,
}

/// The names that tie keeper, file and loop device to one volume of one instance.
#[derive(Clone, Debug)]
struct Names {
    volume: VolumeId,
    kept: String,
    file: String,
}

impl FuseLoop {
    /// `instance` tells several daemons on one machine apart: at most 16 characters, the same after a restart.
    #[must_use]
    pub fn new(instance: &str, keeper: KeeperClient) -> Self {
        Self { instance: instance.to_owned(), keeper }
    }

    /// Like `sweep`, and also unmounts what stands on the volume's devices. For taking everything down.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn tear_down(&self, volume: VolumeId) -> Result<(), ExportError> {
        let (this, names) = (self.clone(), self.names(volume));
        blocking(move || {
            // First the connection: a filesystem whose device fails lets itself be unmounted at once.
            present(this.keeper.release(&names.kept))?;
            for device in this.loops_of(volume)? {
                let points = mounts::mounted_from(&device.path()).map_err(ExportError::system("listing mounts"))?;
                for point in points.iter().rev() {
                    tracing::warn!(%volume, mount = %point.display(), "unmounting what was left mounted");
                    rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH)
                        .map_err(ExportError::system("unmounting"))?;
                }
            }
            Ok(())
        })
        .await?;
        self.sweep(volume).await
    }

    fn names(&self, volume: VolumeId) -> Names {
        let kept = format!("{NAME}/{}/{}", self.instance, volume.0);
        Names { volume, kept, file: format!("cairn-{}-{volume}", self.instance) }
    }

    fn volume_of_kept(&self, kept: &str) -> Option<VolumeId> {
        let rest = kept.strip_prefix(NAME)?.strip_prefix('/')?.strip_prefix(&self.instance)?.strip_prefix('/')?;
        rest.parse().ok().map(VolumeId)
    }

    fn volume_of_file(&self, path: &str) -> Option<VolumeId> {
        let file = Path::new(path).file_name()?.to_str()?;
        let rest = file.strip_prefix("cairn-")?.strip_prefix(&self.instance)?.strip_prefix("-vol-")?;
        rest.parse().ok().map(VolumeId)
    }

    fn loops_of(&self, volume: VolumeId) -> Result<Vec<LoopDevice>, ExportError> {
        let bound = loop_device::bound(|path| self.volume_of_file(path) == Some(volume))
            .map_err(ExportError::system("listing loop devices"))?;
        Ok(bound.into_iter().map(|(device, _)| device).collect())
    }

    fn take_over(&self, spec: &ExportSpec, endpoint: &Endpoint) -> Result<(Connection, Note), ExportError> {
        let nothing = |reason: String| ExportError::NothingToResume { volume: spec.volume, reason };
        let names = self.names(spec.volume);
        let fetched = present(self.keeper.fetch(&names.kept))?.flatten();
        let (kept, descriptor) = fetched.ok_or_else(|| nothing("no keeper holds a descriptor of it".into()))?;
        let note = Note::decode(&kept).ok_or_else(|| nothing("the keeper's note is of another version".into()))?;
        let device = note.loop_number.map(|number| LoopDevice { number });
        let device = device.ok_or_else(|| nothing("its export was never finished".into()))?;
        if *endpoint != Endpoint::Device(device.path()) || note.read_only != spec.read_only {
            return Err(nothing(format!("the keeper knows it as {} in another way", device.path().display())));
        }
        if device.backing_file().and_then(|path| self.volume_of_file(&path)) != Some(spec.volume) {
            return Err(nothing(format!("{} is not bound to it any more", device.path().display())));
        }
        Ok((Connection::taken_over(descriptor, note.connection), note))
    }
}

impl Note {
    fn encode(self) -> Vec<u8> {
        serde_json::to_vec(&self).expect("a struct of numbers is JSON")
    }

    fn decode(kept: &Kept) -> Option<Self> {
        serde_json::from_slice(&kept.metadata).ok().filter(|note: &Self| note.version == NOTE_VERSION)
    }
}

#[async_trait]
impl Exporter for FuseLoop {
    fn name(&self) -> &'static str {
        NAME
    }

    fn makes_block_device(&self) -> bool {
        true
    }

    fn probe(&self) -> Result<(), ExportError> {
        let unavailable = |what: &str, error: std::io::Error| ExportError::Unavailable {
            exporter: NAME,
            reason: format!("{what} cannot be opened ({error}); load the module, and run as root"),
        };
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|error| unavailable("/dev/fuse", error))?;
        loop_device::probe().map_err(|error| unavailable("/dev/loop-control", error))
    }

    async fn export(&self, spec: &ExportSpec, device: SharedDevice) -> Result<Box<dyn Export>, ExportError> {
        let names = self.names(spec.volume);
        let making = {
            let source = names.file.clone();
            blocking(move || Connection::make(&source)).await?
        };
        let mut session = Session::start(making.device().clone(), &names.file, spec.read_only, device)?;
        let bound = self.bind(making, &mut session, &names, spec.read_only).await;
        let (connection, note, device) = match bound {
            Ok(bound) => bound,
            Err(error) => {
                session.end();
                if let Err(error) = self.sweep(spec.volume).await {
                    tracing::warn!(volume = %spec.volume, %error, "could not clear away a failed export");
                }
                return Err(error);
            }
        };
        let parts = Mutex::new(Some(connection));
        Ok(Box::new(FuseLoopExport { names, keeper: self.keeper.clone(), note, parts, session, device }))
    }

    async fn resume(
        &self,
        spec: &ExportSpec,
        endpoint: &Endpoint,
        device: SharedDevice,
    ) -> Result<Box<dyn Export>, ExportError> {
        let names = self.names(spec.volume);
        let (this, wanted, at) = (self.clone(), spec.clone(), endpoint.clone());
        let (connection, note) = blocking(move || this.take_over(&wanted, &at)).await?;
        let session = Session::resume(connection.device().clone(), &names.file, spec.read_only, device)?;
        let device = LoopDevice { number: note.loop_number.expect("take_over checked it") };
        let parts = Mutex::new(Some(connection));
        Ok(Box::new(FuseLoopExport { names, keeper: self.keeper.clone(), note, parts, session, device }))
    }

    async fn sweep(&self, volume: VolumeId) -> Result<(), ExportError> {
        let (this, names) = (self.clone(), self.names(volume));
        blocking(move || {
            // The last descriptor of a connection that nobody serves: closing it fails whatever waits in it.
            present(this.keeper.release(&names.kept))?;
            for device in this.loops_of(volume)? {
                if !device.clear(CLOSE_PATIENCE)? {
                    tracing::warn!(%volume, device = %device.path().display(), "dead, and cleared at its last close");
                }
            }
            Ok(())
        })
        .await
    }

    async fn remains(&self) -> Result<Vec<VolumeId>, ExportError> {
        let this = self.clone();
        blocking(move || {
            let kept = present(this.keeper.list())?.unwrap_or_default();
            let bound = loop_device::bound(|path| this.volume_of_file(path).is_some())
                .map_err(ExportError::system("listing loop devices"))?;
            let mut found: Vec<_> = kept.iter().filter_map(|kept| this.volume_of_kept(&kept.name)).collect();
            found.extend(bound.iter().filter_map(|(_, path)| this.volume_of_file(path)));
            found.sort_unstable();
            found.dedup();
            Ok(found)
        })
        .await
    }
}

impl FuseLoop {
    /// From a connection that is served to a bound loop device.
    async fn bind(
        &self,
        mut connection: Connection,
        session: &mut Session,
        names: &Names,
        read_only: bool,
    ) -> Result<(Connection, Note, LoopDevice), ExportError> {
        session.greeted().await?;
        let (keeper, names) = (self.keeper.clone(), names.clone());
        blocking(move || {
            let mut note =
                Note { version: NOTE_VERSION, connection: connection.number(), loop_number: None, read_only };
            let keep = |note: Note, connection: &Connection| {
                let kept = Kept { name: names.kept.clone(), metadata: note.encode() };
                keeper.put(kept, connection.device())
            };
            keep(note, &connection)?;
            let file = connection.open_file(&names.file, read_only)?;
            let device = LoopDevice::bind(&file, &names.file, read_only)?;
            note.loop_number = Some(device.number);
            keep(note, &connection)?;
            Ok((connection, note, device))
        })
        .await
    }
}

impl FuseLoopExport {
    /// Unbinds the loop device while the connection still serves it.
    async fn unbind_idle(&self) -> Result<(), ExportError> {
        let device = self.device;
        let in_use = move || ExportError::InUse { endpoint: device.path().display().to_string() };
        if device.is_claimed() {
            return Err(in_use());
        }
        let flush = blocking(move || device.flush().map_err(ExportError::system("flushing the loop device")));
        let flushed = tokio::time::timeout(FLUSH_PATIENCE, flush).await;
        flushed.map_err(|_| {
            let late = std::io::Error::from(std::io::ErrorKind::TimedOut);
            ExportError::system("flushing the loop device (does the cluster serve I/O? see `cairn health`)")(late)
        })??;
        blocking(move || {
            if device.clear(CLOSE_PATIENCE)? {
                return Ok(());
            }
            device.keep_bound().map_err(ExportError::system("keeping the loop device"))?;
            Err(in_use())
        })
        .await
    }

    /// Fails the connection first, so that nothing waits for us; who has the device open gets errors.
    async fn unbind_by_force(&self, connection: &Connection) -> Result<(), ExportError> {
        connection.abort()?;
        let device = self.device;
        if !blocking(move || device.clear(FORCE_PATIENCE)).await? {
            tracing::warn!(device = %device.path().display(), "aborted, and cleared at its last close");
        }
        Ok(())
    }
}

#[async_trait]
impl Export for FuseLoopExport {
    fn endpoint(&self) -> Endpoint {
        Endpoint::Device(self.device.path())
    }

    fn state(&self) -> ExportState {
        self.session.state()
    }

    fn fence(&self) {
        self.session.fence();
    }

    async fn resize(&self) -> Result<u64, ExportError> {
        let device = self.device;
        blocking(move || device.update_size()).await
    }

    async fn remove(&self, removal: Removal) -> Result<(), ExportError> {
        let mut parts = self.parts.lock().await;
        let Some(connection) = parts.as_ref() else { return Ok(()) };
        match removal {
            Removal::IfIdle if self.session.state() == ExportState::Serving => self.unbind_idle().await?,
            Removal::IfIdle if self.device.is_claimed() => {
                return Err(ExportError::InUse { endpoint: self.device.path().display().to_string() });
            }
            Removal::IfIdle | Removal::Force => self.unbind_by_force(connection).await?,
        }
        // The kernel ends the connection with its last file.
        if !self.session.ended_within(CLOSE_PATIENCE).await {
            connection.abort()?;
        }
        self.session.end();
        let (keeper, name) = (self.keeper.clone(), self.names.kept.clone());
        blocking(move || Ok(keeper.release(&name)?)).await?;
        *parts = None;
        tracing::info!(volume = %self.names.volume, device = %self.device.path().display(), "removed");
        Ok(())
    }

    async fn keep(&self) -> Result<(), ExportError> {
        let parts = self.parts.lock().await;
        let Some(connection) = parts.as_ref() else { return Ok(()) };
        let (keeper, descriptor) = (self.keeper.clone(), connection.device().clone());
        let kept = Kept { name: self.names.kept.clone(), metadata: self.note.encode() };
        blocking(move || {
            if keeper.fetch(&kept.name)?.is_none() {
                tracing::warn!(name = kept.name, "the keeper had lost a descriptor; it holds it again");
                keeper.put(kept, descriptor)?;
            }
            Ok(())
        })
        .await
    }

    async fn leave(&self) {
        self.session.leave(LEAVE_PATIENCE).await;
    }
}

/// `None` when no keeper runs: what it held is closed then, and the kernel has ended those connections.
fn present<T>(answer: Result<T, KeeperError>) -> Result<Option<T>, KeeperError> {
    match answer {
        Err(error) if error.is_absence() => Ok(None),
        other => other.map(Some),
    }
}

async fn blocking<T, F>(work: F) -> Result<T, ExportError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, ExportError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}
