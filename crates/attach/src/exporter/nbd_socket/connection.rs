//! One client: many requests in flight, answered as they end.
//!
//! One task does it all. Requests are futures of that task, first polled in the order in which they came; answers
//! that are ready together leave together.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use cairn_nbd::{Command, Errno, Event, PREFERRED_BLOCK, Request, Session, Ticket, Violation};
use futures::future::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::device::{IoError, SharedDevice};

/// Requests of one client in flight.
const MAX_REQUESTS: usize = 128;
/// Bytes that requests and unsent answers of one client hold; one more whole request is taken below it.
const MAX_BYTES: usize = 64 << 20;
/// The most pieces handed to one system call.
const MAX_SLICES: usize = 64;

/// What all connections of an export know of its device.
#[derive(Debug, Default)]
pub(super) struct Health {
    fenced: AtomicBool,
}

impl Health {
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    pub(super) fn fence(&self) {
        self.fenced.store(true, Ordering::Relaxed);
    }
}

/// Why a client was hung up on.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionEnd {
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
}

/// One client's session and what it has in flight.
pub(super) struct Connection {
    session: Session,
    device: SharedDevice,
    health: Arc<Health>,
    input: BytesMut,
    outbox: VecDeque<Bytes>,
    /// Of requests in flight and of unsent answers.
    held_bytes: usize,
    /// The client is done, or we are: no request is taken any more.
    ending: bool,
}

/// A request that has ended.
struct Ended {
    ticket: Ticket,
    held_bytes: usize,
    result: Result<Bytes, Errno>,
}

impl Connection {
    pub(super) fn new(export: cairn_nbd::Export, device: SharedDevice, health: Arc<Health>) -> Self {
        Self {
            session: Session::new(export),
            device,
            health,
            input: BytesMut::new(),
            outbox: VecDeque::new(),
            held_bytes: 0,
            ending: false,
        }
    }

    /// Serves until the client is done, or until `stop`, and what was in flight then is answered.
    pub(super) async fn serve(mut self, mut stream: UnixStream, stop: &CancellationToken) -> Result<(), ConnectionEnd> {
        let (mut reader, mut writer) = stream.split();
        let mut running = FuturesUnordered::new();
        loop {
            let mut hungry = false;
            while !self.ending && !hungry && running.len() < MAX_REQUESTS && self.held_bytes < MAX_BYTES {
                match self.session.handle_input(&mut self.input)? {
                    None => hungry = true,
                    Some(Event::Send(bytes)) => self.send(bytes),
                    Some(Event::Request(request)) => {
                        let held_bytes = cost(&request.command);
                        self.held_bytes += held_bytes;
                        let (device, health) = (Arc::clone(&self.device), Arc::clone(&self.health));
                        running.push(run(request, held_bytes, device, health));
                    }
                    Some(Event::End) => self.ending = true,
                }
            }
            if self.ending && running.is_empty() && self.outbox.is_empty() {
                return Ok(());
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = gather(&self.outbox, &mut slices);
            tokio::select! {
                biased;
                Some(ended) = running.next(), if !running.is_empty() => {
                    self.answer(ended);
                    while let Some(Some(ended)) = running.next().now_or_never() {
                        self.answer(ended);
                    }
                }
                written = writer.write_vectored(&slices[..count]), if count > 0 => self.sent(written?)?,
                received = reader.read_buf(&mut self.input), if hungry => self.ending = received? == 0,
                () = stop.cancelled(), if !self.ending => self.ending = true,
            }
        }
    }

    fn answer(&mut self, ended: Ended) {
        self.held_bytes -= ended.held_bytes;
        let reply = self.session.reply(ended.ticket, ended.result);
        self.send(reply.head);
        self.send(reply.data);
    }

    fn send(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.held_bytes += bytes.len();
            self.outbox.push_back(bytes);
        }
    }

    fn sent(&mut self, mut written: usize) -> io::Result<()> {
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.held_bytes -= written;
        while let Some(piece) = self.outbox.front_mut() {
            if written < piece.len() {
                piece.advance(written);
                break;
            }
            written -= piece.len();
            self.outbox.pop_front();
        }
        Ok(())
    }
}

fn gather<'a>(outbox: &'a VecDeque<Bytes>, slices: &mut [IoSlice<'a>]) -> usize {
    let mut count = 0;
    for (slot, piece) in slices.iter_mut().zip(outbox) {
        *slot = IoSlice::new(piece);
        count += 1;
    }
    count
}

/// Bytes that a request holds while it runs.
fn cost(command: &Command) -> usize {
    match command {
        Command::Read { len, .. } => *len as usize,
        Command::Write { data, .. } => data.len(),
        Command::Flush | Command::Trim { .. } | Command::WriteZeroes { .. } | Command::Cache { .. } => 0,
    }
}

async fn run(request: Request, held_bytes: usize, device: SharedDevice, health: Arc<Health>) -> Ended {
    let result =
        if health.is_fenced() { Err(IoError::Fenced.into()) } else { execute(request.command, &*device).await };
    let result = result.map_err(|failure| match failure {
        Failure::Device(error) => {
            if error == IoError::Fenced {
                health.fence();
            }
            errno(error)
        }
        Failure::NotFast => Errno::NotSupported,
    });
    Ended { ticket: request.ticket, held_bytes, result }
}

enum Failure {
    Device(IoError),
    NotFast,
}

impl From<IoError> for Failure {
    fn from(error: IoError) -> Self {
        Self::Device(error)
    }
}

/// Every change is durable when its call returns, so that what asks for that especially gets what all get.
async fn execute(command: Command, device: &dyn crate::device::BlockDevice) -> Result<Bytes, Failure> {
    match command {
        Command::Read { len: 0, .. } | Command::Cache { .. } => {}
        Command::Read { offset, len } => return Ok(device.read(offset, len).await?),
        Command::Write { offset, data, .. } if !data.is_empty() => device.write(offset, data).await?,
        Command::Write { .. } => {}
        Command::Flush => device.flush().await?,
        Command::Trim { offset, len, .. } => {
            let (offset, len) = whole_blocks(offset, u64::from(len));
            if len > 0 {
                device.zero(offset, len, true).await?;
            }
        }
        Command::WriteZeroes { offset, len, may_unmap, only_if_fast, .. } => {
            let len = u64::from(len);
            if only_if_fast && whole_blocks(offset, len) != (offset, len) {
                return Err(Failure::NotFast);
            }
            if len > 0 {
                device.zero(offset, len, may_unmap).await?;
            }
        }
    }
    Ok(Bytes::new())
}

/// The whole blocks within a range: what a discard may give back without reading first.
fn whole_blocks(offset: u64, len: u64) -> (u64, u64) {
    let block = u64::from(PREFERRED_BLOCK);
    let start = offset.next_multiple_of(block);
    let end = (offset + len) / block * block;
    (start, end.saturating_sub(start))
}

/// What a client is told of a failure of the device.
fn errno(error: IoError) -> Errno {
    match error {
        IoError::Fenced | IoError::Corrupt | IoError::Protocol => Errno::Io,
        IoError::ReadOnly => Errno::NotPermitted,
        IoError::NoSpace => Errno::NoSpace,
        IoError::OutOfRange => Errno::Invalid,
        IoError::Closed => Errno::Shutdown,
    }
}

#[cfg(test)]
mod tests {
    use super::whole_blocks;

    #[test]
    fn a_discard_touches_no_block_that_it_covers_in_part() {
        assert_eq!(whole_blocks(0, 8192), (0, 8192));
        assert_eq!(whole_blocks(1, 8191), (4096, 4096));
        assert_eq!(whole_blocks(100, 200).1, 0);
        assert_eq!(whole_blocks(4000, 4192), (4096, 4096));
    }
}
