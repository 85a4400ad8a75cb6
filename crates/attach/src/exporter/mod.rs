//! The trait of ways in which a volume shows itself on a node, and what all of them share.
//!
//! An exporter turns a [`BlockDevice`](crate::device::BlockDevice) into a kernel block device or a socket. It knows
//! nothing of the cluster and keeps no list of its exports: the daemon does.

pub mod fuse_loop;
pub mod nbd_socket;

use std::path::PathBuf;

use async_trait::async_trait;
use cairn_types::VolumeId;

use crate::device::SharedDevice;

/// What is to be exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportSpec {
    /// Which volume; one exporter shows a volume at most once.
    pub volume: VolumeId,
    /// Its name, for logs and for clients that ask.
    pub name: String,
    /// Writes are refused.
    pub read_only: bool,
}

/// Where the volume shows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A block device, `/dev/loopN`.
    Device(PathBuf),
    /// A unix socket.
    Socket(PathBuf),
}

/// How an export fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportState {
    /// Requests are answered.
    Serving,
    /// Another holder took the volume over; every request fails at once.
    Fenced,
    /// The kernel or the socket is gone; only removing and exporting again helps.
    Failed,
}

impl ExportState {
    /// The word in `Exported.state`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Fenced => "fenced",
            Self::Failed => "failed",
        }
    }
}

/// Whether an export that is in use may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Refuse with [`ExportError::InUse`] while something has the device open.
    IfIdle,
    /// Fail whatever is in flight, then remove.
    Force,
}

/// One way to show volumes.
#[async_trait]
pub trait Exporter: Send + Sync + 'static {
    /// As `ExportRequest.exporter` names it.
    fn name(&self) -> &'static str;

    /// Whether what it makes is a kernel block device.
    fn makes_block_device(&self) -> bool;

    /// Whether this machine can do it.
    ///
    /// # Errors
    /// [`ExportError::Unavailable`], with what is missing.
    fn probe(&self) -> Result<(), ExportError>;

    /// Shows the volume. When it fails nothing of it is left.
    ///
    /// # Errors
    /// [`ExportError`].
    async fn export(&self, spec: &ExportSpec, device: SharedDevice) -> Result<Box<dyn Export>, ExportError>;

    /// Takes over what a predecessor of this process left, so that whoever uses the endpoint sees a pause and no
    /// error. Requests that the predecessor did not answer are executed again.
    ///
    /// # Errors
    /// [`ExportError::NothingToResume`] when it cannot be taken over; then `sweep` and `export`.
    async fn resume(
        &self,
        spec: &ExportSpec,
        endpoint: &Endpoint,
        device: SharedDevice,
    ) -> Result<Box<dyn Export>, ExportError>;

    /// Removes whatever a predecessor left of a volume that nobody serves, also from the middle of an export.
    ///
    /// # Errors
    /// [`ExportError`].
    async fn sweep(&self, volume: VolumeId) -> Result<(), ExportError>;

    /// The volumes of which a predecessor left something.
    ///
    /// # Errors
    /// [`ExportError`].
    async fn remains(&self) -> Result<Vec<VolumeId>, ExportError>;
}

/// One volume that is shown.
#[async_trait]
pub trait Export: Send + Sync + 'static {
    /// Where.
    fn endpoint(&self) -> Endpoint;

    /// How it fares.
    fn state(&self) -> ExportState;

    /// Fails everything from now on: another holder has the volume.
    fn fence(&self);

    /// The endpoint takes on the device's present size, which it returns.
    ///
    /// # Errors
    /// [`ExportError`].
    async fn resize(&self) -> Result<u64, ExportError>;

    /// Flushes and removes the endpoint; the second call finds nothing to do.
    ///
    /// # Errors
    /// [`ExportError::InUse`] where that was asked for; the export goes on.
    async fn remove(&self, removal: Removal) -> Result<(), ExportError>;

    /// Makes sure that what a successor needs is held by somebody else; called now and then.
    ///
    /// # Errors
    /// [`ExportError::Keeper`].
    async fn keep(&self) -> Result<(), ExportError>;

    /// Finishes what is in flight and stops serving, but leaves the endpoint to a successor where that is possible.
    async fn leave(&self);
}

/// Why a volume could not be shown, or not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// This machine cannot do it.
    #[error("exporter {exporter} cannot work here: {reason}")]
    Unavailable {
        /// Which.
        exporter: &'static str,
        /// What is missing and how to get it.
        reason: String,
    },
    /// Somebody has the endpoint open.
    #[error("{endpoint} is still in use; unmount or close it first")]
    InUse {
        /// Device or socket.
        endpoint: String,
    },
    /// The predecessor's connection is gone.
    #[error("nothing is left to take over of {volume}: {reason}")]
    NothingToResume {
        /// Which volume.
        volume: VolumeId,
        /// Why.
        reason: String,
    },
    /// The process that holds descriptors does not answer.
    #[error("the keeper cannot be used: {0}; is `cairn keeper` running?")]
    Keeper(#[from] crate::keeper::KeeperError),
    /// The machine refused a step.
    #[error("{step}: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// The machine's answer.
        source: std::io::Error,
    },
}

impl ExportError {
    /// For `map_err`: which step the machine refused.
    pub(crate) fn system<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { step, source: source.into() }
    }
}
