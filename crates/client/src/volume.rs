//! The handle to an open volume.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cairn_client_core::{Config, IoError, MAX_ZERO, Op, Timing};
use cairn_meta_client::{MapWatch, MetaClient};
use cairn_rpc::Backoff;
use cairn_types::SnapId;
use tokio::sync::{mpsc, oneshot};

use crate::Holding;
use crate::driver::{Command, Driver};

/// Bounds and patience of an open volume.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Operations at once; more wait for their turn.
    pub max_ops: usize,
    /// Bytes that operations hold in memory at once; more wait for their turn.
    pub max_bytes: u64,
    /// Requests to OSDs at once.
    pub max_requests: usize,
    /// When requests are sent again.
    pub timing: Timing,
    /// The time one address of an OSD has for connecting.
    pub dial_deadline: Duration,
    /// Pauses between attempts to connect.
    pub backoff: Backoff,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_ops: 256,
            max_bytes: 64 << 20,
            max_requests: 256,
            timing: Timing::default(),
            dial_deadline: Duration::from_secs(2),
            backoff: Backoff::default(),
        }
    }
}

/// Why an operation returned no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// It failed, for good.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The caller's deadline passed. The volume goes on with the operation: its outcome is open.
    #[error("the operation did not end within {} ms; it goes on", deadline.as_millis())]
    Deadline {
        /// The caller's.
        deadline: Duration,
    },
    /// The volume was closed.
    #[error("the volume is closed")]
    Closed,
}

/// What handles and the task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) size: AtomicU64,
    pub(crate) fatal: OnceLock<IoError>,
}

/// An open volume. Clones are handles to the same session. When the last is dropped the session ends at once; use
/// [`Volume::close`] to let operations finish that nobody waits for.
#[derive(Clone, Debug)]
pub struct Volume {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    deadline: Option<Duration>,
}

impl Volume {
    /// Opens a volume under a holding. Must be called within a tokio runtime; returns at once, and operations wait
    /// for maps and connections. Without `meta` no snapshot of it can be taken.
    #[must_use]
    pub fn open(holding: &Holding, maps: MapWatch, meta: Option<MetaClient>, options: Options) -> Self {
        let config = Config {
            session: holding.session,
            volume: holding.volume,
            pool: holding.pool,
            generation: holding.generation,
            min_epoch: holding.epoch,
            size: holding.size,
            object_size: holding.object_size,
            snap_context: holding.snap_context,
            read_only: holding.read_only,
            view: holding.view,
            parents: holding.parents.clone(),
            max_ops: options.max_ops,
            max_bytes: options.max_bytes,
            max_requests: options.max_requests,
            timing: options.timing,
        };
        let shared = Arc::new(Shared { size: AtomicU64::new(holding.size), fatal: OnceLock::new() });
        let (commands, receiver) = mpsc::channel(options.max_ops.max(1));
        tokio::spawn(Driver::new(config, options, Arc::clone(&shared), receiver, (maps, meta)).run());
        Self { commands, shared, deadline: None }
    }

    /// A handle whose operations give up waiting after this long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..self.clone() }
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.shared.size.load(Ordering::Relaxed)
    }

    /// Why every operation fails from now on, if so.
    #[must_use]
    pub fn failure(&self) -> Option<IoError> {
        self.shared.fatal.get().copied()
    }

    /// Reads bytes of any alignment, at most [`cairn_client_core::MAX_DATA`].
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn read_at(&self, offset: u64, len: u64) -> Result<Bytes, VolumeError> {
        self.run(Op::Read { offset, len }).await
    }

    /// Writes bytes of any alignment, at most [`cairn_client_core::MAX_DATA`]; they are durable when it returns.
    /// Writes that overlap are executed in the order in which their futures were first polled.
    ///
    /// # Errors
    /// [`VolumeError`]; any part of the range may or may not have been written.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<(), VolumeError> {
        self.run(Op::Write { offset, data }).await.map(|_| ())
    }

    /// Makes a range of any length and alignment read as zeros; `unmap` also gives the space back.
    ///
    /// # Errors
    /// [`VolumeError`]; any part of the range may or may not have been zeroed.
    pub async fn zero_at(&self, offset: u64, len: u64, unmap: bool) -> Result<(), VolumeError> {
        let (mut offset, mut left) = (offset, len);
        while left > 0 {
            let len = left.min(MAX_ZERO);
            self.run(Op::Zero { offset, len, unmap }).await?;
            offset += len;
            left -= len;
        }
        Ok(())
    }

    /// What each block of a range is: a byte for each, [`crate::ABSENT`], [`crate::ZERO`] or [`crate::DATA`].
    /// `since`: only what was written after this snapshot; `parents`: what a clone reads there counts, too. At most
    /// [`MAX_ZERO`] bytes.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn status_at(&self, offset: u64, len: u64, since: SnapId, parents: bool) -> Result<Bytes, VolumeError> {
        self.run(Op::Status { offset, len, since, parents }).await
    }

    /// Makes what a clone reads from its parents its own, in a range of at most [`cairn_client_core::MAX_DATA`].
    ///
    /// # Errors
    /// [`VolumeError`]; any part of the range may or may not be its own.
    pub async fn copy_up_at(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        self.run(Op::CopyUp { offset, len }).await.map(|_| ())
    }

    /// Returns when every write that was asked for before it is durable.
    ///
    /// # Errors
    /// [`VolumeError`].
    pub async fn flush(&self) -> Result<(), VolumeError> {
        self.run(Op::Flush).await.map(|_| ())
    }

    /// Takes note that the volume has grown.
    ///
    /// # Errors
    /// When it is closed.
    pub async fn grow_to(&self, size: u64) -> Result<(), VolumeError> {
        let (done, answer) = oneshot::channel();
        self.tell(Command::Grow { size, done }).await?;
        answer.await.map_err(|_| VolumeError::Closed)
    }

    /// Waits for the operations in flight and ends the session; no handle works any more after that. The holding
    /// stays: ending it is the metadata service's business.
    pub async fn close(&self) {
        let (done, answer) = oneshot::channel();
        if self.tell(Command::Close { done }).await.is_ok() {
            // An error means that the task has ended, which is what was asked for.
            let _ = answer.await;
        }
    }

    async fn tell(&self, command: Command) -> Result<(), VolumeError> {
        self.commands.send(command).await.map_err(|_| VolumeError::Closed)
    }

    async fn run(&self, op: Op) -> Result<Bytes, VolumeError> {
        let (done, answer) = oneshot::channel();
        let ended = async {
            self.tell(Command::Run { op, done }).await?;
            answer.await.map_err(|_| VolumeError::Closed)?.map_err(VolumeError::Io)
        };
        match self.deadline {
            None => ended.await,
            Some(deadline) => {
                tokio::time::timeout(deadline, ended).await.unwrap_or(Err(VolumeError::Deadline { deadline }))
            }
        }
    }
}
