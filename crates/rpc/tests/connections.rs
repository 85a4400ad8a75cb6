//! Connections over an in-memory pipe that gives and takes what it likes, and links over real sockets against an
//! event loop of the shape an OSD has.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairn_rpc::{
    Address, Backoff, Connection, ConnectionError, Event, Limits, Link, LinkConfig, LinkError, LinkEvent, Local,
    QueueError,
};
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, ReplyBody};
use cairn_types::{
    ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, RequestId, SessionId, SnapId, TraceId,
    VolumeId,
};
use cairn_wire::{CloseReason, Hello, Identity, Message, PROTOCOL, VersionRange};
use uuid::Uuid;

fn local() -> Local {
    Local {
        cluster: Uuid::from_u128(1),
        osd: OsdId(3),
        incarnation: Incarnation(2),
        shards: 1,
        epoch: Epoch(10),
        features: 1,
    }
}

fn hello() -> Hello {
    Hello {
        versions: PROTOCOL,
        features: 3,
        required: 0,
        cluster: Uuid::from_u128(1),
        identity: Identity::Client { session: SessionId(1), volume: VolumeId(1), generation: Generation(1) },
        to: OsdId(3),
        shard: 0,
    }
}

fn write(seq: u64, blocks: usize) -> Message {
    let data = Bytes::from(vec![seq as u8; blocks * 4096]);
    let crcs = data.chunks(4096).map(crc32c::crc32c).collect();
    Message::Request(ClientRequest {
        id: RequestId { session: SessionId(1), seq },
        acked_through: 0,
        trace: TraceId(0),
        pg: PgId { pool: PoolId(1), index: 0 },
        c: ConfVersion(1),
        epoch: Epoch(1),
        volume: VolumeId(1),
        generation: Generation(1),
        snap_context: SnapId(0),
        op: ClientOp::Write {
            object: ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 0, snapshot: SnapId::HEAD },
            offset: 0,
            data,
            crcs,
        },
    })
}

/// Echoes what was written.
fn answer(message: &Message) -> Message {
    let Message::Request(request) = message else { panic!("only requests are sent") };
    let ClientOp::Write { data, crcs, .. } = &request.op else { panic!("only writes are sent") };
    let blocks = crcs.iter().map(|&crc| BlockState::Data { crc }).collect();
    let read = ReadData { data: data.clone(), blocks };
    Message::Reply(ClientReply { id: request.id, result: Ok(ReplyBody::Data(read)) })
}

/// One direction of a byte stream; takes and gives at most `piece` bytes at a time and `room` in all.
struct Pipe {
    bytes: VecDeque<u8>,
    piece: usize,
    room: usize,
    writes: usize,
    ended: bool,
}

impl Pipe {
    fn new(piece: usize, room: usize) -> Self {
        Self { bytes: VecDeque::new(), piece, room, writes: 0, ended: false }
    }
}

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let len = self.piece.min(into.len());
        self.bytes.read(&mut into[..len])
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[io::IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut left = self.piece.min(self.room - self.bytes.len());
        if left == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.writes += 1;
        let before = self.bytes.len();
        for slice in slices {
            let len = left.min(slice.len());
            self.bytes.extend(&slice[..len]);
            left -= len;
        }
        Ok(self.bytes.len() - before)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Pair {
    dialler: Connection,
    acceptor: Connection,
    there: Pipe,
    back: Pipe,
}

impl Pair {
    fn new(hello: Hello, limits: Limits, piece: usize, room: usize) -> Self {
        Self {
            dialler: Connection::dial(hello, limits),
            acceptor: Connection::accept(local(), limits),
            there: Pipe::new(piece, room),
            back: Pipe::new(piece, room),
        }
    }

    /// Moves bytes until nothing moves any more. Returns what each side saw.
    fn settle(&mut self) -> (Result<Vec<Event>, ConnectionError>, Result<Vec<Event>, ConnectionError>) {
        let (mut at_dialler, mut at_acceptor) = (Vec::new(), Vec::new());
        loop {
            let there = carry(&mut self.dialler, &mut self.there, &mut self.acceptor, &mut at_acceptor);
            let back = carry(&mut self.acceptor, &mut self.back, &mut self.dialler, &mut at_dialler);
            if there.is_err() || back.is_err() {
                return (back.map(|()| at_dialler), there.map(|()| at_acceptor));
            }
            let moving = [&self.there, &self.back].iter().any(|pipe| !pipe.bytes.is_empty());
            if !moving && !self.dialler.wants_write() && !self.acceptor.wants_write() {
                return (Ok(at_dialler), Ok(at_acceptor));
            }
        }
    }

    fn open(limits: Limits, piece: usize, room: usize) -> Self {
        let mut pair = Self::new(hello(), limits, piece, room);
        let (at_dialler, at_acceptor) = pair.settle();
        assert_eq!(at_acceptor.expect("open"), [Event::Hello(hello())]);
        let [Event::Welcome(welcome)] = at_dialler.expect("open")[..] else { panic!("a welcome was due") };
        assert_eq!((welcome.osd, welcome.features, welcome.epoch), (OsdId(3), 1, Epoch(10)));
        pair
    }
}

/// Writes and reads in one direction until neither side makes progress.
fn carry(
    from: &mut Connection,
    pipe: &mut Pipe,
    to: &mut Connection,
    events: &mut Vec<Event>,
) -> Result<(), ConnectionError> {
    while from.wants_write() || !pipe.bytes.is_empty() {
        from.on_writable(pipe)?;
        to.on_readable(pipe, events)?;
    }
    Ok(())
}

#[test]
fn messages_of_any_size_pass_in_any_pieces() {
    for (piece, room) in [(1, 7), (50, 100), (4096, 8192), (1 << 20, 1 << 20), (16 << 20, 64 << 20)] {
        let mut pair = Pair::open(Limits::default(), piece, room);
        let blocks: &[usize] = if room < 1000 { &[1, 0] } else { &[1, 3, 1024, 0, 40] };
        let sent: Vec<Message> = blocks.iter().enumerate().map(|(i, blocks)| write(i as u64, *blocks)).collect();
        sent.iter().for_each(|message| pair.dialler.queue(message).expect("there is room"));
        let (_, at_acceptor) = pair.settle();
        let got: Vec<Message> = at_acceptor.expect("valid").into_iter().filter_map(Event::into_message).collect();
        assert!(got == sent, "pieces of {piece}");
    }
}

#[test]
fn what_is_queued_together_leaves_together() {
    let mut pair = Pair::open(Limits::default(), 16 << 20, 64 << 20);
    pair.there.writes = 0;
    for seq in 0..20 {
        pair.dialler.queue(&write(seq, 1)).expect("there is room");
    }
    pair.dialler.on_writable(&mut pair.there).expect("the pipe does not fail");
    assert!(!pair.dialler.wants_write());
    assert_eq!(pair.there.writes, 1, "twenty writes, one system call");
}

#[test]
fn the_queue_is_bounded() {
    let limits = Limits { queue_bytes: 100_000, ..Limits::default() };
    let mut pair = Pair::open(limits, 16 << 20, 64 << 20);
    let accepted = (0..1000).take_while(|seq| pair.dialler.queue(&write(*seq, 2)).is_ok()).count();
    assert!((100_000 / 8192..=100_000 / 8192 + 1).contains(&accepted), "{accepted}");
    assert!((100_000..100_000 + 2 * 8192).contains(&pair.dialler.queued_bytes()));
    assert_eq!(pair.dialler.queue(&write(0, 0)), Err(QueueError::Full));
    pair.dialler.on_writable(&mut pair.there).expect("the pipe does not fail");
    assert_eq!(pair.dialler.queued_bytes(), 0);
    assert_eq!(pair.dialler.queue(&write(0, 0)), Ok(()));
}

#[test]
fn nothing_is_queued_before_the_welcome() {
    let mut dialler = Connection::dial(hello(), Limits::default());
    assert_eq!(dialler.queue(&write(1, 1)), Err(QueueError::NotOpen));
    assert!(dialler.wants_write(), "the hello");
}

#[test]
fn each_mismatch_is_refused_by_name_and_the_dialler_learns_it() {
    let cases = [
        (Hello { cluster: Uuid::from_u128(2), ..hello() }, CloseReason::WrongCluster),
        (Hello { to: OsdId(4), ..hello() }, CloseReason::WrongOsd { found: OsdId(3) }),
        (Hello { shard: 1, ..hello() }, CloseReason::WrongOsd { found: OsdId(3) }),
        (Hello { required: 6, ..hello() }, CloseReason::MissingFeatures { missing: 6 }),
        (
            Hello { versions: VersionRange { min: 7, max: 9 }, ..hello() },
            CloseReason::NoCommonVersion { min: PROTOCOL.min, max: PROTOCOL.max },
        ),
    ];
    for (hello, expected) in cases {
        let (at_dialler, at_acceptor) = Pair::new(hello, Limits::default(), 4096, 8192).settle();
        assert!(matches!(at_acceptor, Err(ConnectionError::HungUp(reason)) if reason == expected));
        assert!(matches!(at_dialler, Err(ConnectionError::ClosedByPeer(reason)) if reason == expected));
    }
}

#[test]
fn noise_is_answered_with_a_reason() {
    let mut acceptor = Connection::accept(local(), Limits::default());
    let (mut noise, mut back) = (Pipe::new(4096, 8192), Pipe::new(4096, 8192));
    noise.bytes.extend(b"GET / HTTP/1.1\r\nHost: somewhere else\r\n\r\n");
    let error = acceptor.on_readable(&mut noise, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, ConnectionError::Wire(_)), "{error}");
    acceptor.on_writable(&mut back).expect("the pipe does not fail");
    let mut dialler = Connection::dial(hello(), Limits::default());
    let told = dialler.on_readable(&mut back, &mut Vec::new()).unwrap_err();
    assert!(matches!(told, ConnectionError::ClosedByPeer(CloseReason::BadFrame)));
}

#[test]
fn what_came_before_the_end_still_counts() {
    let mut pair = Pair::open(Limits::default(), 16 << 20, 64 << 20);
    pair.dialler.queue(&write(1, 1)).expect("there is room");
    pair.dialler.on_writable(&mut pair.there).expect("the pipe does not fail");
    pair.there.ended = true;
    let mut events = Vec::new();
    let error = pair.acceptor.on_readable(&mut pair.there, &mut events).unwrap_err();
    assert!(matches!(error, ConnectionError::Ended));
    assert_eq!(events, [Event::Message(write(1, 1))]);
}

/// An accepting event loop: echoes, and drops a connection after so many messages.
struct Echo {
    waker: Arc<mio::Waker>,
    served: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Echo {
    fn start(mut listener: mio::net::UnixListener, drop_after: usize) -> Self {
        const STOP: mio::Token = mio::Token(0);
        const LISTENER: mio::Token = mio::Token(1);
        let mut poll = mio::Poll::new().expect("epoll");
        let waker = Arc::new(mio::Waker::new(poll.registry(), STOP).expect("eventfd"));
        poll.registry().register(&mut listener, LISTENER, mio::Interest::READABLE).expect("registers");
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        let serve = move || {
            let mut open: Vec<(mio::net::UnixStream, Connection, usize)> = Vec::new();
            let mut ready = mio::Events::with_capacity(16);
            loop {
                poll.poll(&mut ready, None).expect("polls");
                if ready.iter().any(|event| event.token() == STOP) {
                    return;
                }
                while let Ok((mut stream, _)) = listener.accept() {
                    let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
                    poll.registry().register(&mut stream, mio::Token(2), both).expect("registers");
                    open.push((stream, Connection::accept(local(), Limits::default()), 0));
                }
                open.retain_mut(|(stream, connection, count)| {
                    let mut events = Vec::new();
                    let alive = connection.on_readable(stream, &mut events).is_ok();
                    for message in events.into_iter().filter_map(Event::into_message) {
                        connection.queue(&answer(&message)).expect("there is room");
                        *count += 1;
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    let written = connection.on_writable(stream).is_ok();
                    alive && written && (*count < drop_after || connection.wants_write())
                });
            }
        };
        Self { waker, served, thread: Some(std::thread::spawn(serve)) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.waker.wake().expect("wakes");
        self.thread.take().expect("joined once").join().expect("the loop does not panic");
    }
}

fn link(address: Address) -> Link {
    Link::new(LinkConfig {
        addresses: vec!["unix:/nonexistent/first".parse().expect("an address"), address],
        hello: hello(),
        deadline: Duration::from_secs(20),
        backoff: Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(5) },
        limits: Limits::default(),
    })
}

async fn next(link: &mut Link) -> LinkEvent {
    let event = tokio::time::timeout(Duration::from_secs(20), poll_fn(|cx| link.poll_event(cx)));
    event.await.expect("something happens")
}

#[tokio::test]
async fn a_link_carries_comes_back_and_says_so() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("osd");
    let echo = Echo::start(mio::net::UnixListener::bind(&path).expect("binds"), 3);
    let mut link = link(Address::Unix(path));
    for round in 0..2u64 {
        assert!(matches!(next(&mut link).await, LinkEvent::Up(welcome) if welcome.osd == OsdId(3)));
        for seq in 0..3 {
            link.send(&write(round * 10 + seq, 300)).expect("open");
        }
        for seq in 0..3 {
            let LinkEvent::Message(reply) = next(&mut link).await else { panic!("a reply was due") };
            assert!(reply == answer(&write(round * 10 + seq, 300)));
        }
        assert!(matches!(next(&mut link).await, LinkEvent::Down(LinkError::Connection(ConnectionError::Ended))));
        assert_eq!(link.send(&write(1, 1)), Err(QueueError::NotOpen));
    }
    assert_eq!(echo.served.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn a_link_without_anybody_there_says_why_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("osd");
    let mut link = link(Address::Unix(path.clone()));
    for _ in 0..3 {
        assert!(matches!(next(&mut link).await, LinkEvent::Down(LinkError::Connect { .. })));
    }
    let _echo = Echo::start(mio::net::UnixListener::bind(&path).expect("binds"), 1);
    while !matches!(next(&mut link).await, LinkEvent::Up(_)) {}
    link.reset(vec![Address::Unix(path)]);
    assert!(matches!(next(&mut link).await, LinkEvent::Down(LinkError::Reset)));
    assert!(matches!(next(&mut link).await, LinkEvent::Up(_)));
}

#[tokio::test]
async fn a_silent_listener_meets_the_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = Address::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().expect("bound").port() };
    let error = cairn_rpc::dial(&address, hello(), Limits::default(), Duration::from_millis(50)).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no answer from {address} within 50 ms"));
}

#[test]
fn pauses_double_up_to_a_bound() {
    let backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_secs(1) };
    let pauses: Vec<u128> = (1..9).map(|failures| backoff.pause(failures).as_millis()).collect();
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
    assert_eq!(backoff.pause(u32::MAX), Duration::from_secs(1));
}
