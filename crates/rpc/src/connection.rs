//! One framed connection as a state machine over a non-blocking byte stream: no threads, no clock, no socket of its
//! own. An event loop calls [`Connection::on_readable`] and [`Connection::on_writable`] when its poller says so.

use std::io::{self, Read, Write};

use cairn_types::{Epoch, Incarnation, OsdId};
use cairn_wire::{
    CloseReason, Decoder, Frame, Hello, Message, PROTOCOL, PayloadCheck, Welcome, WireError, encode_close,
    encode_hello, encode_welcome,
};
use uuid::Uuid;

use crate::outbox::{Outbox, QueueError};

/// Payload of which at least this much is missing is received straight into its place.
const DIRECT_MIN: usize = 16 << 10;
/// The most received by one system call.
const RECEIVE_MAX: usize = 256 << 10;

/// Bounds of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that may wait to be sent; one more whole message is taken below it.
    pub queue_bytes: usize,
    /// Bytes received in one turn before others get theirs.
    pub turn_bytes: usize,
    /// Bytes received ahead of decoding.
    pub staging_bytes: usize,
    /// Who compares data with its checksums.
    pub payload_check: PayloadCheck,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue_bytes: 64 << 20,
            turn_bytes: 4 << 20,
            staging_bytes: 64 << 10,
            payload_check: PayloadCheck::AtDecode,
        }
    }
}

/// What the accepting side says of itself.
#[derive(Clone, Copy, Debug)]
pub struct Local {
    /// Its cluster.
    pub cluster: Uuid,
    /// Its number.
    pub osd: OsdId,
    /// Its life.
    pub incarnation: Incarnation,
    /// Its shards.
    pub shards: u16,
    /// The map epoch it knows.
    pub epoch: Epoch,
    /// Its optional features.
    pub features: u64,
}

impl Local {
    /// Whether this hello can be answered, and how. Whether the dialler's incarnation still lives is for the
    /// caller to know.
    ///
    /// # Errors
    /// The reason to hang up.
    pub fn answer(&self, hello: &Hello) -> Result<Welcome, CloseReason> {
        let ours = CloseReason::NoCommonVersion { min: PROTOCOL.min, max: PROTOCOL.max };
        let version = PROTOCOL.newest_common(hello.versions).ok_or(ours)?;
        let missing = hello.required & !self.features;
        if missing != 0 {
            return Err(CloseReason::MissingFeatures { missing });
        }
        if hello.cluster != self.cluster {
            return Err(CloseReason::WrongCluster);
        }
        if hello.to != self.osd || hello.shard >= self.shards {
            return Err(CloseReason::WrongOsd { found: self.osd });
        }
        Ok(Welcome {
            version,
            features: hello.features & self.features,
            cluster: self.cluster,
            osd: self.osd,
            incarnation: self.incarnation,
            shards: self.shards,
            epoch: self.epoch,
        })
    }
}

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Accepting side: who dialled. The welcome is queued; [`Connection::close`] takes it back.
    Hello(Hello),
    /// Dialling side: the connection is open.
    Welcome(Welcome),
    /// One operation.
    Message(Message),
}

impl Event {
    /// The operation, if it is one.
    #[must_use]
    pub fn into_message(self) -> Option<Message> {
        match self {
            Self::Message(message) => Some(message),
            Self::Hello(_) | Self::Welcome(_) => None,
        }
    }
}

/// Whether a turn of reading emptied the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Yes: wait for readiness.
    Drained,
    /// No: the turn's share is used up; call again without waiting for readiness.
    More,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The stream ended.
    #[error("the connection was closed")]
    Ended,
    /// The other side said why.
    #[error("the connection was closed: {0}")]
    ClosedByPeer(CloseReason),
    /// This side hung up.
    #[error("hung up: {0}")]
    HungUp(CloseReason),
    /// What came is no valid frame.
    #[error("bad bytes on the connection: {0}")]
    Wire(#[from] WireError),
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
enum State {
    AwaitHello(Local),
    AwaitWelcome(Hello),
    Open { version: u16 },
    Closing(CloseReason),
}

/// One framed connection. After an error, [`Connection::on_writable`] once more tells the other side why, as far as
/// that can be written; then it is of no further use.
#[derive(Debug)]
pub struct Connection {
    state: State,
    shard: u16,
    decoder: Decoder,
    outbox: Outbox,
    staging: Vec<u8>,
    turn_bytes: usize,
}

impl Connection {
    /// The dialling side; the hello is queued.
    #[must_use]
    pub fn dial(hello: Hello, limits: Limits) -> Self {
        let mut connection = Self::new(State::AwaitWelcome(hello), hello.shard, limits);
        connection.outbox.push_frame(encode_hello(&hello));
        connection
    }

    /// The accepting side.
    #[must_use]
    pub fn accept(local: Local, limits: Limits) -> Self {
        Self::new(State::AwaitHello(local), 0, limits)
    }

    fn new(state: State, shard: u16, limits: Limits) -> Self {
        Self {
            state,
            shard,
            decoder: Decoder::new(limits.payload_check),
            outbox: Outbox::new(limits.queue_bytes),
            staging: vec![0; limits.staging_bytes.max(cairn_wire::HEADER_LEN)],
            turn_bytes: limits.turn_bytes,
        }
    }

    /// Whether the handshake is done and nobody hung up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Queues an operation. All that is queued before the next write goes in as few frames as possible and in one
    /// system call.
    ///
    /// # Errors
    /// When the connection is not open, or its queue is full.
    pub fn queue(&mut self, message: &Message) -> Result<(), QueueError> {
        let State::Open { version } = self.state else { return Err(QueueError::NotOpen) };
        self.outbox.push(version, self.shard, message)
    }

    /// Bytes that wait to be written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.outbox.len()
    }

    /// Whether there is something to write: ask the poller for writability only after a write left this true.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Hangs up: what waits is dropped, and the reason is queued as the last frame. Write it, then drop the
    /// connection.
    pub fn close(&mut self, reason: CloseReason) {
        self.outbox.clear();
        self.outbox.push_frame(encode_close(reason));
        self.state = State::Closing(reason);
    }

    /// Writes what is queued, until all is written or `to` would block.
    ///
    /// # Errors
    /// When the stream failed.
    pub fn on_writable(&mut self, to: &mut impl Write) -> Result<(), ConnectionError> {
        Ok(self.outbox.write(to)?)
    }

    /// Reads what is there and appends what it means to `events`, of which those before an error count.
    ///
    /// # Errors
    /// When the connection is over.
    pub fn on_readable(&mut self, from: &mut impl Read, events: &mut Vec<Event>) -> Result<Reading, ConnectionError> {
        let result = self.read_turn(from, events);
        if let Err(ConnectionError::Wire(error)) = &result {
            self.close(CloseReason::from(*error));
        }
        result
    }

    fn read_turn(&mut self, from: &mut impl Read, events: &mut Vec<Event>) -> Result<Reading, ConnectionError> {
        let mut share = self.turn_bytes;
        while share > 0 {
            if let State::Closing(reason) = self.state {
                return Err(ConnectionError::HungUp(reason));
            }
            let received = match self.receive(from, events) {
                Ok(received) => received,
                Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Reading::Drained);
                }
                Err(ConnectionError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if received == 0 {
                return Err(ConnectionError::Ended);
            }
            share = share.saturating_sub(received);
        }
        Ok(Reading::More)
    }

    /// One read, and what it completed. A short read is not taken for an empty stream: behind it the end of the
    /// stream may already wait, for which an edge-triggered poller gives no second event.
    fn receive(&mut self, from: &mut impl Read, events: &mut Vec<Event>) -> Result<usize, ConnectionError> {
        if self.decoder.payload_missing() >= DIRECT_MIN {
            let asked = self.decoder.payload_missing().min(RECEIVE_MAX);
            let received = self.decoder.payload_space(asked, |space| from.read(space))?;
            self.decode(0, events)?;
            return Ok(received);
        }
        let received = from.read(&mut self.staging)?;
        self.decode(received, events)?;
        Ok(received)
    }

    /// Decodes the first `len` staged bytes.
    fn decode(&mut self, len: usize, events: &mut Vec<Event>) -> Result<(), ConnectionError> {
        let staging = std::mem::take(&mut self.staging);
        let mut input = &staging[..len];
        let result = loop {
            match self.decoder.decode(&mut input) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.handle(frame, events) {
                        break Err(error);
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        self.staging = staging;
        result
    }

    fn handle(&mut self, frame: Frame, events: &mut Vec<Event>) -> Result<(), ConnectionError> {
        match (frame, &self.state) {
            (Frame::Close(reason), _) => return Err(ConnectionError::ClosedByPeer(reason)),
            (Frame::Operations { messages, .. }, State::Open { .. }) => {
                events.extend(messages.into_iter().map(Event::Message));
            }
            (Frame::Hello(hello), State::AwaitHello(local)) => match local.answer(&hello) {
                Ok(welcome) => {
                    self.outbox.push_frame(encode_welcome(&welcome));
                    self.open(welcome.version);
                    events.push(Event::Hello(hello));
                }
                Err(reason) => return Err(self.hang_up(reason)),
            },
            (Frame::Welcome(welcome), State::AwaitWelcome(hello)) => {
                if welcome.cluster != hello.cluster {
                    return Err(self.hang_up(CloseReason::WrongCluster));
                }
                if welcome.osd != hello.to {
                    return Err(self.hang_up(CloseReason::WrongOsd { found: welcome.osd }));
                }
                if !(hello.versions.min..=hello.versions.max).contains(&welcome.version) {
                    return Err(self.hang_up(CloseReason::UnknownVersion { found: welcome.version }));
                }
                self.open(welcome.version);
                events.push(Event::Welcome(welcome));
            }
            (Frame::Hello(_) | Frame::Welcome(_) | Frame::Operations { .. }, _) => {
                return Err(WireError::OutOfPlace { what: "this frame" }.into());
            }
        }
        Ok(())
    }

    fn open(&mut self, version: u16) {
        self.decoder.establish(version);
        self.state = State::Open { version };
    }

    fn hang_up(&mut self, reason: CloseReason) -> ConnectionError {
        self.close(reason);
        ConnectionError::HungUp(reason)
    }
}
