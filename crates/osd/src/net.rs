//! The loop's connections: those that clients and other OSDs dialled to us, and one that we dial to each OSD we speak
//! to. An OSD pair has two, one for each direction, so that nobody has to agree on who dials.
//!
//! This knows nothing of PGs. It turns readiness into messages and messages into bytes, and says when an OSD refused
//! or broke off. What is queued for an OSD is dropped with its connection: the core's protocol sends anew.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use cairn_osd_core::{ConnId, Time};
use cairn_rpc::{Address, Connection, ConnectionError, Event, Limits, Local, Reading};
use cairn_types::io::{ClientReply, ClientRequest};
use cairn_types::peer::PeerMessage;
use cairn_types::{Epoch, Incarnation, OsdId};
use cairn_wire::{CloseReason, Hello, Identity, Message, PROTOCOL};
use mio::{Interest, Registry, Token};

use crate::socket::{Listener, Socket};

/// The first token of connections; below are the waker and the listeners.
const FIRST: usize = 1024;

/// Connections beyond this are refused: each may hold buffers.
const MOST_CONNECTIONS: usize = 4096;

/// An OSD whose connection failed is dialled again after this, doubled up to the longest pause.
const FIRST_PAUSE_MS: u64 = 20;
const LONGEST_PAUSE_MS: u64 = 1000;

/// A dial that is not decided in this time has failed.
const DIAL_MS: u64 = 1000;

/// Messages that wait for a connection to an OSD to open.
const MOST_WAITING: usize = 4096;

/// What came in.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A client's request.
    Request(ConnId, Box<ClientRequest>),
    /// An OSD's message.
    Peer(OsdId, Incarnation, PeerMessage),
    /// The connection to an OSD broke.
    PeerLost(OsdId),
    /// An OSD refused the connection.
    PeerRefused(OsdId),
    /// A client's connection is gone: its requests get no replies.
    ClientGone(ConnId),
}

/// All connections.
pub(crate) struct Network {
    registry: Registry,
    listeners: Vec<Listener>,
    local: Local,
    next: usize,
    connections: BTreeMap<usize, Open>,
    peers: BTreeMap<OsdId, Peer>,
    /// Connections whose turn ended before they were drained.
    unfinished: VecDeque<usize>,
}

struct Open {
    socket: Socket,
    connection: Connection,
    side: Side,
    /// Registered for writability.
    writing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// Accepted, not introduced yet.
    Unknown,
    Client,
    PeerIn(OsdId, Incarnation),
    PeerOut(OsdId),
}

struct Peer {
    addresses: Vec<Address>,
    incarnation: Incarnation,
    state: Dial,
    failures: u32,
    waiting: VecDeque<PeerMessage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dial {
    Idle { not_before: Time },
    Dialling { token: usize, deadline: Time },
    Open { token: usize },
}

impl Network {
    pub(crate) fn new(registry: Registry, mut listeners: Vec<Listener>, local: Local) -> io::Result<Self> {
        for (at, listener) in listeners.iter_mut().enumerate() {
            listener.register(&registry, Token(at + 1))?;
        }
        Ok(Self {
            registry,
            listeners,
            local,
            next: FIRST,
            connections: BTreeMap::new(),
            peers: BTreeMap::new(),
            unfinished: VecDeque::new(),
        })
    }

    /// The map's view of the other OSDs: where they listen now, in which life. A new life is dialled anew.
    pub(crate) fn handle_peers(
        &mut self,
        epoch: Epoch,
        osds: impl Iterator<Item = (OsdId, Incarnation, Vec<Address>)>,
    ) {
        self.local.epoch = epoch;
        let mut known = BTreeMap::new();
        for (osd, incarnation, addresses) in osds {
            let same = |peer: &Peer| peer.incarnation == incarnation && peer.addresses == addresses;
            match self.peers.remove(&osd) {
                Some(peer) if same(&peer) => known.insert(osd, peer),
                other => {
                    if let Some(peer) = other {
                        self.drop_dialled(&peer);
                    }
                    let state = Dial::Idle { not_before: Time(0) };
                    known.insert(osd, Peer { addresses, incarnation, state, failures: 0, waiting: VecDeque::new() })
                }
            };
        }
        for peer in std::mem::replace(&mut self.peers, known).into_values() {
            self.drop_dialled(&peer);
        }
    }

    /// Queues a message for an OSD, dialling it if need be.
    pub(crate) fn send(&mut self, now: Time, to: OsdId, message: PeerMessage, arrivals: &mut Vec<Arrival>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        match peer.state {
            Dial::Open { token } => {
                let open = self.connections.get_mut(&token).expect("an open peer has its connection");
                if open.connection.queue(&Message::from(message)).is_err() {
                    // Its queue is full: it does not read. What is lost is sent anew on the next connection.
                    self.fail_peer(now, to, arrivals);
                }
            }
            Dial::Dialling { .. } => wait(&mut peer.waiting, message),
            Dial::Idle { not_before } => {
                wait(&mut peer.waiting, message);
                if now >= not_before {
                    self.dial(now, to, arrivals);
                }
            }
        }
    }

    /// Queues a reply; without its connection it is dropped, and the client resends.
    pub(crate) fn reply(&mut self, conn: ConnId, reply: ClientReply, arrivals: &mut Vec<Arrival>) {
        let token = conn.0 as usize;
        let Some(open) = self.connections.get_mut(&token) else { return };
        if open.connection.queue(&Message::from(reply)).is_err() {
            tracing::warn!(conn = conn.0, "a client does not read its replies; hanging up");
            self.close(token);
            arrivals.push(Arrival::ClientGone(conn));
        }
    }

    /// Writes everything that was queued in this turn.
    pub(crate) fn flush(&mut self, now: Time, arrivals: &mut Vec<Arrival>) {
        let ready: Vec<usize> = self
            .connections
            .iter()
            .filter(|(_, open)| open.connection.wants_write())
            .map(|(token, _)| *token)
            .collect();
        for token in ready {
            self.write(now, token, arrivals);
        }
    }

    /// Handles one readiness event.
    pub(crate) fn handle_ready(&mut self, now: Time, event: &mio::event::Event, arrivals: &mut Vec<Arrival>) {
        let token = event.token().0;
        if token < FIRST {
            self.accept(token - 1);
            return;
        }
        if event.is_writable() {
            self.writable(now, token, arrivals);
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(now, token, arrivals);
        }
    }

    /// Gives connections that used up their share another turn. Whether any is left unfinished.
    pub(crate) fn handle_unfinished(&mut self, now: Time, arrivals: &mut Vec<Arrival>) -> bool {
        for _ in 0..self.unfinished.len() {
            let Some(token) = self.unfinished.pop_front() else { break };
            self.read(now, token, arrivals);
        }
        !self.unfinished.is_empty()
    }

    /// Dials that took too long fail; peers with waiting messages are dialled again.
    pub(crate) fn handle_timeout(&mut self, now: Time, arrivals: &mut Vec<Arrival>) {
        let due: Vec<OsdId> =
            self.peers.iter().filter(|(_, peer)| peer.due().is_some_and(|at| at <= now)).map(|(osd, _)| *osd).collect();
        for osd in due {
            match self.peers[&osd].state {
                Dial::Dialling { .. } => self.fail_peer(now, osd, arrivals),
                Dial::Idle { .. } => self.dial(now, osd, arrivals),
                Dial::Open { .. } => {}
            }
        }
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        self.peers.values().filter_map(Peer::due).min()
    }

    fn accept(&mut self, listener: usize) {
        loop {
            let socket = match self.listeners[listener].accept() {
                Ok(socket) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    return;
                }
            };
            if self.connections.len() >= MOST_CONNECTIONS {
                tracing::warn!("{MOST_CONNECTIONS} connections are open; one more was refused");
                continue;
            }
            let connection = Connection::accept(self.local, Limits::default());
            if let Err(error) = self.open(socket, connection, Side::Unknown) {
                tracing::warn!(%error, "cannot watch a connection");
            }
        }
    }

    fn open(&mut self, mut socket: Socket, connection: Connection, side: Side) -> io::Result<usize> {
        let token = self.next;
        self.next += 1;
        let dialled = matches!(side, Side::PeerOut(_));
        let interest = if dialled { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.registry.register(&mut socket, Token(token), interest)?;
        self.connections.insert(token, Open { socket, connection, side, writing: dialled });
        Ok(token)
    }

    fn dial(&mut self, now: Time, osd: OsdId, arrivals: &mut Vec<Arrival>) {
        let hello = Hello {
            versions: PROTOCOL,
            features: self.local.features,
            required: 0,
            cluster: self.local.cluster,
            identity: Identity::Osd { id: self.local.osd, incarnation: self.local.incarnation },
            to: osd,
            shard: 0,
        };
        // Each attempt takes the next address: the first that works is the best one for both sides.
        let address = self.peers.get(&osd).and_then(|peer| {
            let turn = peer.failures as usize % peer.addresses.len().max(1);
            peer.addresses.get(turn).cloned()
        });
        let Some(address) = address else { return };
        let opened = Socket::connect(&address)
            .and_then(|socket| self.open(socket, Connection::dial(hello, Limits::default()), Side::PeerOut(osd)));
        match opened {
            Ok(token) => {
                let peer = self.peers.get_mut(&osd).expect("looked up above");
                peer.state = Dial::Dialling { token, deadline: now.plus_ms(DIAL_MS) };
            }
            Err(error) => {
                if is_refusal(&error) {
                    arrivals.push(Arrival::PeerRefused(osd));
                }
                self.pause(now, osd);
            }
        }
    }

    fn writable(&mut self, now: Time, token: usize, arrivals: &mut Vec<Arrival>) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        if let (Side::PeerOut(osd), Err(error)) = (open.side, open.socket.connected()) {
            if is_refusal(&error) {
                arrivals.push(Arrival::PeerRefused(osd));
            }
            self.fail_peer(now, osd, arrivals);
            return;
        }
        self.write(now, token, arrivals);
    }

    fn write(&mut self, now: Time, token: usize, arrivals: &mut Vec<Arrival>) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        let result = open.connection.on_writable(&mut open.socket);
        if let Err(error) = result {
            self.over(now, token, &error, arrivals);
            return;
        }
        let more = open.connection.wants_write();
        if more != open.writing {
            let interest = if more { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            if let Err(error) = self.registry.reregister(&mut open.socket, Token(token), interest) {
                self.over(now, token, &ConnectionError::Io(error), arrivals);
                return;
            }
            open.writing = more;
        }
    }

    fn read(&mut self, now: Time, token: usize, arrivals: &mut Vec<Arrival>) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        let mut events = Vec::new();
        let result = open.connection.on_readable(&mut open.socket, &mut events);
        for event in events {
            self.handle_event(now, token, event, arrivals);
        }
        match result {
            Ok(Reading::Drained) => {}
            Ok(Reading::More) => self.unfinished.push_back(token),
            Err(error) => self.over(now, token, &error, arrivals),
        }
    }

    fn handle_event(&mut self, now: Time, token: usize, event: Event, arrivals: &mut Vec<Arrival>) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        match (event, open.side) {
            (Event::Hello(Hello { identity: Identity::Osd { id, incarnation }, .. }), Side::Unknown)
                if self.peers.get(&id).is_some_and(|peer| incarnation < peer.incarnation) =>
            {
                tracing::info!(osd = %id, %incarnation, "an earlier life dialled; hanging up");
                open.connection.close(CloseReason::DeadIncarnation);
                // It learns the reason if it still listens; the map tells it as well.
                let _ = open.connection.on_writable(&mut open.socket);
                self.close(token);
            }
            (Event::Hello(hello), Side::Unknown) => {
                open.side = match hello.identity {
                    Identity::Client { .. } => Side::Client,
                    Identity::Osd { id, incarnation } => Side::PeerIn(id, incarnation),
                };
            }
            (Event::Welcome(welcome), Side::PeerOut(osd)) => {
                self.peer_opened(now, token, osd, welcome.incarnation, arrivals)
            }
            (Event::Message(Message::Request(request)), Side::Client) => {
                arrivals.push(Arrival::Request(ConnId(token as u64), Box::new(request)));
            }
            (Event::Message(Message::Peer(message)), Side::PeerIn(osd, incarnation)) => {
                arrivals.push(Arrival::Peer(osd, incarnation, message));
            }
            (event, side) => {
                tracing::warn!(?side, "a message out of place; hanging up: {event:?}");
                self.close(token);
                if side == Side::Client {
                    arrivals.push(Arrival::ClientGone(ConnId(token as u64)));
                }
            }
        }
    }

    /// The life that answers must be the one the map names: messages are for one life only.
    fn peer_opened(
        &mut self,
        now: Time,
        token: usize,
        osd: OsdId,
        incarnation: Incarnation,
        arrivals: &mut Vec<Arrival>,
    ) {
        let Some(peer) = self.peers.get_mut(&osd) else {
            self.close(token);
            return;
        };
        if peer.incarnation != incarnation {
            tracing::debug!(%osd, %incarnation, "another life answers than the map names; waiting for the map");
            self.fail_peer(now, osd, arrivals);
            return;
        }
        peer.state = Dial::Open { token };
        peer.failures = 0;
        let waiting = std::mem::take(&mut peer.waiting);
        for message in waiting {
            self.send(now, osd, message, arrivals);
        }
    }

    fn over(&mut self, now: Time, token: usize, error: &ConnectionError, arrivals: &mut Vec<Arrival>) {
        let Some(open) = self.connections.get_mut(&token) else { return };
        let side = open.side;
        tracing::debug!(?side, %error, "a connection is over");
        // The reason for hanging up, as far as it can still be written.
        let _ = open.connection.on_writable(&mut open.socket);
        match side {
            Side::PeerOut(osd) => self.fail_peer(now, osd, arrivals),
            Side::PeerIn(osd, _) => {
                self.close(token);
                arrivals.push(Arrival::PeerLost(osd));
            }
            Side::Client => {
                self.close(token);
                arrivals.push(Arrival::ClientGone(ConnId(token as u64)));
            }
            Side::Unknown => self.close(token),
        }
    }

    /// The connection to an OSD failed: what waited is dropped, and it is dialled again after a pause.
    fn fail_peer(&mut self, now: Time, osd: OsdId, arrivals: &mut Vec<Arrival>) {
        let Some(peer) = self.peers.get(&osd) else { return };
        if let Dial::Open { .. } = peer.state {
            arrivals.push(Arrival::PeerLost(osd));
        }
        if let Dial::Open { token } | Dial::Dialling { token, .. } = peer.state {
            self.close(token);
        }
        self.pause(now, osd);
    }

    fn pause(&mut self, now: Time, osd: OsdId) {
        let Some(peer) = self.peers.get_mut(&osd) else { return };
        let pause = (FIRST_PAUSE_MS << peer.failures.min(10)).min(LONGEST_PAUSE_MS);
        peer.failures = peer.failures.saturating_add(1);
        peer.waiting.clear();
        peer.state = Dial::Idle { not_before: now.plus_ms(pause) };
    }

    fn drop_dialled(&mut self, peer: &Peer) {
        if let Dial::Open { token } | Dial::Dialling { token, .. } = peer.state {
            self.close(token);
        }
    }

    fn close(&mut self, token: usize) {
        if let Some(mut open) = self.connections.remove(&token) {
            let _ = self.registry.deregister(&mut open.socket);
        }
    }
}

impl Peer {
    fn due(&self) -> Option<Time> {
        match self.state {
            Dial::Dialling { deadline, .. } => Some(deadline),
            Dial::Idle { not_before } if !self.waiting.is_empty() => Some(not_before),
            Dial::Idle { .. } | Dial::Open { .. } => None,
        }
    }
}

/// The oldest are the first to have lost their meaning.
fn wait(waiting: &mut VecDeque<PeerMessage>, message: PeerMessage) {
    if waiting.len() >= MOST_WAITING {
        waiting.clear();
    }
    waiting.push_back(message);
}

/// Nobody listens there: a process that lives would.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}
