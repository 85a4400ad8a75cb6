//! The dialling side under tokio: a connection that comes back.
//!
//! A [`Link`] is polled by the task that owns it. It dials, reports that it is up, delivers what comes, reports that
//! it is down, and dials again after a pause that doubles from failure to failure. What was queued on a connection
//! that failed is lost; whoever queued it decides what to send again.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use cairn_wire::{CloseReason, Hello, Message, Welcome};
use tokio::time::{Sleep, sleep, timeout};

use crate::connection::{Connection, ConnectionError, Event, Limits, Reading};
use crate::{Address, QueueError, Stream};

/// Pauses between attempts to dial.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// Never longer than this.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(20), longest: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The pause after so many failures in a row, of which at least one.
    #[must_use]
    pub fn pause(&self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.longest)
    }
}

/// Whom to dial, and how.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Tried in this order.
    pub addresses: Vec<Address>,
    /// Who dials.
    pub hello: Hello,
    /// The time one address has for connecting and the handshake.
    pub deadline: Duration,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Bounds of the connection.
    pub limits: Limits,
}

/// What happened on a link.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection is open: messages can be sent.
    Up(Welcome),
    /// An operation came.
    Message(Message),
    /// No connection any more, or none could be made. Dialling goes on.
    Down(LinkError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It was open, and ended.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// Nothing listens there, or it cannot be reached.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where.
        address: Address,
        /// What the system says.
        source: std::io::Error,
    },
    /// The deadline passed before the handshake was done.
    #[error("no answer from {address} within {} ms", deadline.as_millis())]
    Deadline {
        /// Who was silent.
        address: Address,
        /// How long.
        deadline: Duration,
    },
    /// The owner asked for a fresh connection.
    #[error("hung up, to dial again")]
    Reset,
    /// There is no address to dial.
    #[error("no address is known")]
    NoAddress,
}

/// A connection that was just made.
#[derive(Debug)]
pub struct Dialled {
    /// The socket.
    pub stream: Stream,
    /// Open.
    pub connection: Connection,
    /// What the other side said of itself.
    pub welcome: Welcome,
    /// What came right behind the welcome.
    pub early: Vec<Message>,
}

/// Connects and shakes hands within a deadline.
///
/// # Errors
/// Why not.
pub async fn dial(address: &Address, hello: Hello, limits: Limits, deadline: Duration) -> Result<Dialled, LinkError> {
    let attempt = async {
        let connected = Stream::connect(address).await;
        let mut stream = connected.map_err(|source| LinkError::Connect { address: address.clone(), source })?;
        let mut connection = Connection::dial(hello, limits);
        let (welcome, early) = poll_fn(|cx| poll_welcome(&mut stream, &mut connection, cx)).await?;
        Ok(Dialled { stream, connection, welcome, early })
    };
    timeout(deadline, attempt).await.unwrap_or_else(|_| Err(LinkError::Deadline { address: address.clone(), deadline }))
}

fn poll_welcome(
    stream: &mut Stream,
    connection: &mut Connection,
    cx: &mut Context<'_>,
) -> Poll<Result<(Welcome, Vec<Message>), ConnectionError>> {
    connection.on_writable(&mut stream.polled(cx))?;
    let mut events = Vec::new();
    let read = connection.on_readable(&mut stream.polled(cx), &mut events);
    let mut events = events.into_iter();
    if let Some(Event::Welcome(welcome)) = events.next() {
        return Poll::Ready(Ok((welcome, events.filter_map(Event::into_message).collect())));
    }
    if read.is_err() {
        // Tells the other side why, if it still listens; that it does not is no news.
        let _ = connection.on_writable(&mut stream.polled(cx));
    }
    read?;
    Poll::Pending
}

type Dialling = Pin<Box<dyn Future<Output = Result<Dialled, LinkError>> + Send>>;

enum State {
    Idle,
    Pausing(Pin<Box<Sleep>>),
    Dialling(Dialling),
    Open { stream: Stream, connection: Box<Connection> },
}

/// A connection that comes back. Poll it with [`Link::poll_event`] from one task.
pub struct Link {
    config: LinkConfig,
    state: State,
    failures: u32,
    received: VecDeque<LinkEvent>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("to", &self.config.hello.to).field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Link {
    /// A link that dials when it is first polled.
    #[must_use]
    pub fn new(config: LinkConfig) -> Self {
        Self { config, state: State::Idle, failures: 0, received: VecDeque::new() }
    }

    /// Whether messages can be sent.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// Where it dials.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.config.addresses
    }

    /// Queues a message; it leaves at the next poll, with all that was queued before that.
    ///
    /// # Errors
    /// When no connection is open, or its queue is full.
    pub fn send(&mut self, message: &Message) -> Result<(), QueueError> {
        match &mut self.state {
            State::Open { connection, .. } => connection.queue(message),
            State::Idle | State::Pausing(_) | State::Dialling(_) => Err(QueueError::NotOpen),
        }
    }

    /// Hangs up and dials again at once, perhaps elsewhere.
    pub fn reset(&mut self, addresses: Vec<Address>) {
        self.config.addresses = addresses;
        self.failures = 0;
        if self.is_open() {
            self.received.push_back(LinkEvent::Down(LinkError::Reset));
        }
        self.state = State::Idle;
    }

    /// Writes what is queued, reads what has come, dials when there is no connection, and returns what happened
    /// next.
    pub fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<LinkEvent> {
        loop {
            if let Some(event) = self.received.pop_front() {
                return Poll::Ready(event);
            }
            match &mut self.state {
                State::Idle => self.state = State::Dialling(Box::pin(dial_any(self.config.clone()))),
                State::Pausing(pause) => match pause.as_mut().poll(cx) {
                    Poll::Ready(()) => self.state = State::Idle,
                    Poll::Pending => return Poll::Pending,
                },
                State::Dialling(dialling) => match dialling.as_mut().poll(cx) {
                    Poll::Ready(Ok(Dialled { stream, connection, welcome, early })) => {
                        self.failures = 0;
                        self.received.extend(early.into_iter().map(LinkEvent::Message));
                        self.state = State::Open { stream, connection: Box::new(connection) };
                        return Poll::Ready(LinkEvent::Up(welcome));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(self.fail(error)),
                    Poll::Pending => return Poll::Pending,
                },
                State::Open { stream, connection } => match poll_open(stream, connection, &mut self.received, cx) {
                    Ok(Reading::Drained) if self.received.is_empty() => return Poll::Pending,
                    Ok(_) => {}
                    Err(error) => {
                        let down = self.fail(error.into());
                        self.received.push_back(down);
                    }
                },
            }
        }
    }

    /// Writes what is queued and reads nothing. A failure shows at the next [`Link::poll_event`].
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) {
        if let State::Open { stream, connection } = &mut self.state
            && connection.wants_write()
        {
            let _ = connection.on_writable(&mut stream.polled(cx));
        }
    }

    fn fail(&mut self, error: LinkError) -> LinkEvent {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Pausing(Box::pin(sleep(self.config.backoff.pause(self.failures))));
        LinkEvent::Down(error)
    }

    /// Says goodbye and drops the connection, if one is open.
    pub fn shut_down(&mut self, cx: &mut Context<'_>) {
        if let State::Open { stream, connection } = &mut self.state {
            connection.close(CloseReason::ShuttingDown);
            // The other side sees the stream end even when this does not reach it.
            let _ = connection.on_writable(&mut stream.polled(cx));
        }
        self.state = State::Idle;
    }
}

fn poll_open(
    stream: &mut Stream,
    connection: &mut Connection,
    received: &mut VecDeque<LinkEvent>,
    cx: &mut Context<'_>,
) -> Result<Reading, ConnectionError> {
    connection.on_writable(&mut stream.polled(cx))?;
    let mut events = Vec::new();
    let read = connection.on_readable(&mut stream.polled(cx), &mut events);
    received.extend(events.into_iter().filter_map(Event::into_message).map(LinkEvent::Message));
    if read.is_err() {
        let _ = connection.on_writable(&mut stream.polled(cx));
    }
    read
}

async fn dial_any(config: LinkConfig) -> Result<Dialled, LinkError> {
    let mut last = LinkError::NoAddress;
    for address in &config.addresses {
        match dial(address, config.hello, config.limits, config.deadline).await {
            Ok(open) => return Ok(open),
            Err(error) => last = error,
        }
    }
    Err(last)
}
