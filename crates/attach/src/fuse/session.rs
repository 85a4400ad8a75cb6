//! Serves one FUSE connection over a [`BlockDevice`](crate::device::BlockDevice): reads requests, answers each in a
//! task of its own, at most [`IN_FLIGHT`] at once.
//!
//! A process that is killed here must not fail a request. The kernel copies requests into our memory and replies out
//! of it; with pages that are absent such a copy fails once the process is dying, and the request with it. So the
//! landing buffer is touched before it is used (and locked, see [`crate::process`]).

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;

use super::abi::{self, Attributes, FILE, Op, READ_BUFFER, ROOT, Request};
use crate::device::{IoError, SharedDevice};
use crate::exporter::{ExportError, ExportState};

/// Requests that are answered at once; the kernel keeps the rest.
const IN_FLIGHT: usize = 256;
/// Of these, reads and writes: the rest is left to flushes and questions, which must not wait behind stuck I/O.
const KERNEL_BACKGROUND: u16 = 192;

/// A connection that the kernel ended is in error, and not readable.
const INTEREST: Interest = Interest::READABLE.add(Interest::ERROR);

const SERVING: u8 = 0;
const FENCED: u8 = 1;
const GONE: u8 = 2;

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Greeting {
    Awaited,
    Done,
    /// The kernel lacks what we need.
    Refused,
}

/// A connection that is being served, until it ends or is left.
#[derive(Debug)]
pub struct Session {
    server: Arc<Server>,
    greeting: watch::Receiver<Greeting>,
    ended: watch::Receiver<bool>,
}

struct Server {
    fd: AsyncFd<SharedFd>,
    file: String,
    read_only: bool,
    device: SharedDevice,
    state: AtomicU8,
    permits: Arc<Semaphore>,
    /// No further request is read.
    stop: CancellationToken,
    /// Requests in flight are dropped unanswered.
    kill: CancellationToken,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("file", &self.file).finish_non_exhaustive()
    }
}

struct SharedFd(Arc<OwnedFd>);

impl AsRawFd for SharedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Session {
    /// Serves a new connection.
    ///
    /// # Errors
    /// When the descriptor cannot be polled.
    pub fn start(fd: Arc<OwnedFd>, file: &str, read_only: bool, device: SharedDevice) -> Result<Self, ExportError> {
        Self::serve(fd, file, read_only, device, Greeting::Awaited)
    }

    /// Serves on after a predecessor. What it read and did not answer comes again, and comes first: nothing is read
    /// before, so that no old write can overtake a newer one.
    ///
    /// # Errors
    /// When the connection is dead.
    pub fn resume(fd: Arc<OwnedFd>, file: &str, read_only: bool, device: SharedDevice) -> Result<Self, ExportError> {
        rustix::io::write(&fd, &abi::resend()).map_err(ExportError::system("having the kernel resend"))?;
        Self::serve(fd, file, read_only, device, Greeting::Done)
    }

    fn serve(
        fd: Arc<OwnedFd>,
        file: &str,
        read_only: bool,
        device: SharedDevice,
        greeted: Greeting,
    ) -> Result<Self, ExportError> {
        // SAFETY: the descriptor is owned by what is registered and stays open as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(SharedFd(fd), INTEREST) }
            .map_err(ExportError::system("polling the FUSE connection"))?;
        let server = Arc::new(Server {
            fd,
            file: file.to_owned(),
            read_only,
            device,
            state: AtomicU8::new(SERVING),
            permits: Arc::new(Semaphore::new(IN_FLIGHT)),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        let (greet, greeting) = watch::channel(greeted);
        let (end, ended) = watch::channel(false);
        let reader = server.clone();
        tokio::spawn(async move {
            reader.read_requests(&greet).await;
            end.send_replace(true);
        });
        Ok(Self { server, greeting, ended })
    }

    /// Waits until the kernel and we agreed on the protocol.
    ///
    /// # Errors
    /// When the kernel lacks what we need, or the connection ended.
    pub async fn greeted(&mut self) -> Result<(), ExportError> {
        let unavailable = |reason: &str| ExportError::Unavailable { exporter: "fuse-loop", reason: reason.to_owned() };
        match self.greeting.wait_for(|greeting| *greeting != Greeting::Awaited).await.map(|greeting| *greeting) {
            Ok(Greeting::Done) => Ok(()),
            Ok(Greeting::Refused | Greeting::Awaited) => {
                Err(unavailable("the kernel cannot resend FUSE requests; Linux 6.9 or later is needed"))
            }
            Err(_) => Err(unavailable("the kernel closed the connection before its first request")),
        }
    }

    /// How it fares.
    #[must_use]
    pub fn state(&self) -> ExportState {
        match self.server.state.load(Ordering::Acquire) {
            SERVING => ExportState::Serving,
            FENCED => ExportState::Fenced,
            _ => ExportState::Failed,
        }
    }

    /// Fails every request from now on.
    pub fn fence(&self) {
        self.server.fence();
    }

    /// Waits until the kernel has ended the connection, or for `patience`; whether it has.
    pub async fn ended_within(&self, patience: Duration) -> bool {
        let mut ended = self.ended.clone();
        tokio::time::timeout(patience, ended.wait_for(|ended| *ended)).await.is_ok()
    }

    /// Reads no further request, answers what is in flight, and stops. What cannot be answered within `patience` is
    /// dropped: the successor gets it again.
    pub async fn leave(&self, patience: Duration) {
        self.server.stop.cancel();
        let all = self.server.permits.acquire_many(IN_FLIGHT as u32);
        let drained = tokio::time::timeout(patience, all).await.is_ok();
        self.end();
        if !drained {
            tracing::warn!(file = self.server.file, "left with requests in flight; the successor gets them again");
        }
    }

    /// Stops at once; what is in flight is dropped unanswered.
    pub fn end(&self) {
        self.server.stop.cancel();
        self.server.kill.cancel();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

impl Server {
    async fn read_requests(self: Arc<Self>, greet: &watch::Sender<Greeting>) {
        let mut landing = vec![0u8; READ_BUFFER];
        // Zeroed memory may not be present yet; written memory is.
        landing.iter_mut().step_by(4096).for_each(|byte| *std::hint::black_box(byte) = 1);
        loop {
            let permit = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                permit = self.permits.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            };
            let read = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                read = self.fd.async_io(INTEREST, |fd| {
                    rustix::io::readv(&fd.0, &mut [IoSliceMut::new(&mut landing)]).map_err(Into::into)
                }) => read,
            };
            match read {
                Ok(len) => self.accept(&landing[..len], permit, greet),
                Err(error) => match Errno::from_io_error(&error) {
                    // Interrupted before it was read, or by a signal.
                    Some(Errno::NOENT | Errno::INTR) => {}
                    _ => return self.gone(&error),
                },
            }
        }
    }

    fn gone(&self, error: &std::io::Error) {
        self.state.store(GONE, Ordering::Release);
        if Errno::from_io_error(error) == Some(Errno::NODEV) {
            tracing::debug!(file = self.file, "the kernel ended the FUSE connection");
        } else {
            tracing::error!(file = self.file, %error, "reading from the FUSE connection failed");
        }
    }

    fn accept(self: &Arc<Self>, bytes: &[u8], permit: OwnedSemaphorePermit, greet: &watch::Sender<Greeting>) {
        let request = match Request::decode(bytes) {
            Ok(request) => request,
            Err(error) => return tracing::error!(file = self.file, %error, "ignored a FUSE request"),
        };
        let unique = request.unique;
        match request.op {
            Op::Init { major, minor, flags } => self.greet(unique, (major, minor), flags, greet),
            Op::Lookup { name } if request.node == ROOT && name == self.file.as_bytes() => {
                self.answer(unique, Ok(&abi::entry_reply(self.attributes(FILE))));
            }
            Op::Lookup { .. } => self.answer(unique, Err(libc::ENOENT)),
            Op::Attributes => self.answer(unique, Ok(&abi::attributes_reply(self.attributes(request.node)))),
            Op::Open { directory } => self.answer(unique, Ok(&abi::open_reply(directory))),
            Op::Statfs => self.answer(unique, Ok(&abi::statfs_reply(self.device.size()))),
            Op::Release | Op::Destroy => self.answer(unique, Ok(&[])),
            Op::Silent => {}
            Op::Read { offset, len } => self.spawn(unique, permit, Work::Read { offset, len }),
            Op::Write { offset, data } => {
                self.spawn(unique, permit, Work::Write { offset, data: Bytes::copy_from_slice(data) });
            }
            Op::Allocate { offset, len, mode } => match Work::of_allocate(offset, len, mode) {
                Some(work) => self.spawn(unique, permit, work),
                None => self.answer(unique, Err(libc::EOPNOTSUPP)),
            },
            Op::Sync => self.spawn(unique, permit, Work::Flush),
            Op::Other { opcode } => {
                tracing::trace!(file = self.file, opcode, "not served");
                self.answer(unique, Err(libc::ENOSYS));
            }
        }
    }

    fn greet(&self, unique: u64, version: (u32, u32), flags: u64, greet: &watch::Sender<Greeting>) {
        if version.0 == 7 && abi::can_resend(flags) {
            self.answer(unique, Ok(&abi::init_reply(flags, KERNEL_BACKGROUND)));
            greet.send_replace(Greeting::Done);
        } else {
            tracing::error!(?version, "the kernel's FUSE is too old");
            self.answer(unique, Err(libc::EPROTO));
            greet.send_replace(Greeting::Refused);
        }
    }

    fn attributes(&self, node: u64) -> Attributes {
        Attributes { node, size: self.device.size(), read_only: self.read_only }
    }

    fn spawn(self: &Arc<Self>, unique: u64, permit: OwnedSemaphorePermit, work: Work) {
        let server = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = server.perform(unique, work) => {}
                () = server.kill.cancelled() => {}
            }
            drop(permit);
        });
    }

    async fn perform(&self, unique: u64, work: Work) {
        if self.state.load(Ordering::Acquire) == FENCED {
            return self.answer(unique, Err(libc::EIO));
        }
        match work.perform(&self.device, self.read_only).await {
            Ok(body) => self.answer(unique, Ok(&body)),
            Err(error) => {
                if error == IoError::Fenced {
                    self.fence();
                } else {
                    tracing::error!(file = self.file, %error, ?work, "a request failed");
                }
                self.answer(unique, Err(error.errno()));
            }
        }
    }

    fn fence(&self) {
        if self.state.swap(FENCED, Ordering::AcqRel) != FENCED {
            tracing::error!(file = self.file, "fenced: another holder took the volume over; I/O fails now");
        }
    }

    /// Replies are written at once: the kernel never makes this descriptor wait.
    fn answer(&self, unique: u64, reply: Result<&[u8], i32>) {
        let (errno, body) = match reply {
            Ok(body) => (0, body),
            Err(errno) => (errno, &[][..]),
        };
        let header = abi::header(unique, errno, body.len());
        match rustix::io::writev(&self.fd.get_ref().0, &[IoSlice::new(&header), IoSlice::new(body)]) {
            Ok(_) => {}
            // The request was aborted or interrupted meanwhile.
            Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::error!(file = self.file, %error, "a reply was refused by the kernel"),
        }
    }
}

/// A request that takes its time.
enum Work {
    Read { offset: u64, len: u32 },
    Write { offset: u64, data: Bytes },
    Zero { offset: u64, len: u64, unmap: bool },
    Flush,
}

impl std::fmt::Debug for Work {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { offset, len } => write!(f, "read {offset}+{len}"),
            Self::Write { offset, data } => write!(f, "write {offset}+{}", data.len()),
            Self::Zero { offset, len, unmap } => write!(f, "zero {offset}+{len} unmap={unmap}"),
            Self::Flush => f.write_str("flush"),
        }
    }
}

impl Work {
    /// The loop driver makes discards and unmapping write-zeroes into PUNCH_HOLE, other write-zeroes into
    /// ZERO_RANGE, always with KEEP_SIZE. Both must read as zeros afterwards.
    fn of_allocate(offset: u64, len: u64, mode: u32) -> Option<Self> {
        const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
        const PUNCH: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32 | KEEP_SIZE;
        const ZERO: u32 = libc::FALLOC_FL_ZERO_RANGE as u32 | KEEP_SIZE;
        match mode {
            PUNCH => Some(Self::Zero { offset, len, unmap: true }),
            ZERO => Some(Self::Zero { offset, len, unmap: false }),
            _ => None,
        }
    }

    async fn perform(&self, device: &SharedDevice, read_only: bool) -> Result<Bytes, IoError> {
        match self {
            Self::Read { offset, len } => {
                // As at the end of any file: fewer bytes than asked for.
                let rest = device.size().saturating_sub(*offset);
                let len = u64::from(*len).min(rest) as u32;
                if len == 0 { Ok(Bytes::new()) } else { device.read(*offset, len).await }
            }
            Self::Write { .. } | Self::Zero { .. } if read_only => Err(IoError::ReadOnly),
            Self::Write { offset, data } => {
                device.write(*offset, data.clone()).await?;
                Ok(abi::write_reply(data.len() as u32).into())
            }
            Self::Zero { offset, len, unmap } => {
                device.zero(*offset, *len, *unmap).await?;
                Ok(Bytes::new())
            }
            Self::Flush => {
                device.flush().await?;
                Ok(Bytes::new())
            }
        }
    }
}
