//! What waits to be written on one connection: bounded, batched, and never copied.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};

use bytes::{Buf, Bytes};
use cairn_wire::{EncodedFrame, FrameBuilder, Message};

/// The most pieces handed to one system call; well below IOV_MAX.
const MAX_SLICES: usize = 64;

/// A message that was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The handshake is not done, or the connection is over.
    #[error("the connection is not open")]
    NotOpen,
    /// As much is waiting as may wait.
    #[error("the connection's send queue is full")]
    Full,
}

/// Frames to be written. Messages are gathered into one frame until somebody writes.
#[derive(Debug)]
pub(crate) struct Outbox {
    pieces: VecDeque<Bytes>,
    pieces_len: usize,
    open: Option<FrameBuilder>,
    limit: usize,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { pieces: VecDeque::new(), pieces_len: 0, open: None, limit }
    }

    /// Bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.pieces_len + self.open.as_ref().map_or(0, FrameBuilder::len)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.open.is_none()
    }

    pub(crate) fn clear(&mut self) {
        self.pieces.clear();
        self.pieces_len = 0;
        self.open = None;
    }

    /// Adds a message to the frame in the making. A queue that is within its bound takes one whole message more.
    pub(crate) fn push(&mut self, version: u16, shard: u16, message: &Message) -> Result<(), QueueError> {
        if self.len() >= self.limit {
            return Err(QueueError::Full);
        }
        let builder = self.open.get_or_insert_with(|| FrameBuilder::new(version, shard));
        if builder.push(message).is_err() {
            self.seal();
            let mut fresh = FrameBuilder::new(version, shard);
            fresh.push(message).expect("an empty frame takes any message, or push panics");
            self.open = Some(fresh);
        }
        Ok(())
    }

    pub(crate) fn push_frame(&mut self, frame: EncodedFrame) {
        self.seal();
        self.pieces_len += frame.len();
        self.pieces.push_back(frame.head);
        self.pieces.extend(frame.payload);
    }

    fn seal(&mut self) {
        if let Some(builder) = self.open.take() {
            self.push_frame(builder.finish());
        }
    }

    /// Writes until everything is written or `to` would block.
    pub(crate) fn write(&mut self, to: &mut impl Write) -> io::Result<()> {
        self.seal();
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            for (slot, piece) in slices.iter_mut().zip(&self.pieces) {
                *slot = IoSlice::new(piece);
                count += 1;
            }
            match to.write_vectored(&slices[..count]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        self.pieces_len -= written;
        while written > 0 {
            let front = self.pieces.front_mut().expect("no more was written than waited");
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.pieces.pop_front();
        }
    }
}
