//! A volume over real sockets against OSDs that share one store in memory, die, hang up and lose the primary role.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cairn_client::{Backoff, Holding, IoError, Options, Timing, Volume, VolumeError};
use cairn_rpc::{Connection, Event, Limits, Local};
use cairn_types::io::{BlockState, ClientOp, ClientReply, ClientRequest, ReadData, Refusal, ReplyBody};
use cairn_types::map::{ClusterMap, FailureDomain, Location, Osd, PgConfig, Pool, VolumeFence};
use cairn_types::volume::VolumeLimits;
use cairn_types::{
    ConfVersion, Epoch, Generation, Incarnation, ObjectId, OsdId, PgId, PoolId, SessionId, SnapId, TraceId, VolumeId,
};
use cairn_wire::Message;
use tokio::sync::watch;
use uuid::Uuid;

const OBJECT: u32 = 64 << 10;
const SIZE: u64 = 1 << 20;
const CLUSTER: Uuid = Uuid::from_u128(42);

/// What the OSDs have in common: everything but the role.
#[derive(Default)]
struct Store {
    objects: BTreeMap<ObjectId, Vec<u8>>,
    /// Sequences whose write was executed.
    executed: BTreeSet<u64>,
    /// How often each piece of each operation was executed, under whatever sequence.
    pieces: BTreeMap<(TraceId, ObjectId, u32), u32>,
    map: Arc<ClusterMap>,
    /// Connections are cut after so many requests each.
    cut_after: Option<usize>,
}

impl Store {
    fn handle(&mut self, osd: OsdId, request: &ClientRequest) -> Result<ReplyBody, Refusal> {
        let epoch = self.map.epoch;
        let pg = &self.map.pgs[&request.pg];
        if pg.primary != Some(osd) {
            return Err(Refusal::NotPrimary { epoch });
        }
        if request.c < pg.interval {
            return Err(Refusal::StaleMap { epoch });
        }
        if !self.map.volumes[&request.volume].generations.contains(&request.generation) {
            return Err(Refusal::Fenced);
        }
        let (offset, len) = request.op.range();
        let range = offset as usize..(offset + len) as usize;
        let content = self.objects.entry(request.op.object()).or_insert_with(|| vec![0; OBJECT as usize]);
        if let ClientOp::Read { .. } = request.op {
            let data = Bytes::copy_from_slice(&content[range]);
            let blocks = data.chunks(4096).map(|block| BlockState::Data { crc: crc32c::crc32c(block) }).collect();
            return Ok(ReplyBody::Data(ReadData { data, blocks }));
        }
        if !self.executed.insert(request.id.seq) {
            return Ok(ReplyBody::Done);
        }
        *self.pieces.entry((request.trace, request.op.object(), offset)).or_default() += 1;
        match &request.op {
            ClientOp::Write { data, .. } => content[range].copy_from_slice(data),
            ClientOp::Zero { .. } => content[range].fill(0),
            ClientOp::Read { .. } | ClientOp::Status { .. } => unreachable!("reads are answered above"),
        }
        Ok(ReplyBody::Done)
    }
}

/// One OSD's event loop on a thread.
struct Server {
    waker: mio::Waker,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(osd: OsdId, path: PathBuf, store: Arc<Mutex<Store>>) -> Self {
        const STOP: mio::Token = mio::Token(0);
        let _ = std::fs::remove_file(&path);
        let mut listener = mio::net::UnixListener::bind(path).expect("binds");
        let mut poll = mio::Poll::new().expect("epoll");
        let waker = mio::Waker::new(poll.registry(), STOP).expect("eventfd");
        poll.registry().register(&mut listener, mio::Token(1), mio::Interest::READABLE).expect("registers");
        let local =
            Local { cluster: CLUSTER, osd, incarnation: Incarnation(1), shards: 1, epoch: Epoch(1), features: 0 };
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
                    open.push((stream, Connection::accept(local, Limits::default()), 0));
                }
                open.retain_mut(|(stream, connection, count)| {
                    let mut events = Vec::new();
                    let alive = connection.on_readable(stream, &mut events).is_ok();
                    let mut store = store.lock().expect("no thread panicked");
                    for message in events.into_iter().filter_map(Event::into_message) {
                        let Message::Request(request) = message else { panic!("clients send requests") };
                        let result = store.handle(osd, &request);
                        *count += 1;
                        // Executed, and the answer lost with the connection.
                        if store.cut_after.is_none_or(|limit| *count <= limit) {
                            let reply = ClientReply { id: request.id, result };
                            connection.queue(&reply.into()).expect("there is room");
                        }
                    }
                    let cut = store.cut_after.is_some_and(|limit| *count > limit);
                    connection.on_writable(stream).is_ok() && alive && !cut
                });
            }
        };
        Self { waker, thread: Some(std::thread::spawn(serve)) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.waker.wake().expect("wakes");
        self.thread.take().expect("joined once").join().expect("the loop does not panic");
    }
}

struct Cluster {
    directory: tempfile::TempDir,
    store: Arc<Mutex<Store>>,
    maps: watch::Sender<Arc<ClusterMap>>,
    servers: BTreeMap<OsdId, Server>,
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let map = Arc::new(first_map(directory.path()));
        let store = Arc::new(Mutex::new(Store { map: Arc::clone(&map), ..Store::default() }));
        let mut cluster = Self { directory, store, maps: watch::channel(map).0, servers: BTreeMap::new() };
        (0..3).for_each(|osd| cluster.start_osd(OsdId(osd)));
        cluster
    }

    fn start_osd(&mut self, osd: OsdId) {
        let path = self.directory.path().join(format!("osd.{osd}"));
        self.servers.insert(osd, Server::start(osd, path, Arc::clone(&self.store)));
    }

    fn open(&self) -> Volume {
        Volume::open(&holding(), self.maps.subscribe(), None, options())
    }

    /// The OSDs learn it at once, the client a moment later.
    fn change(&self, change: impl FnOnce(&mut ClusterMap)) {
        let mut map = ClusterMap::clone(&self.maps.borrow());
        map.epoch = map.epoch.next();
        change(&mut map);
        let map = Arc::new(map);
        self.store.lock().expect("no thread panicked").map = Arc::clone(&map);
        self.maps.send_replace(map);
    }

    fn move_primaries(&self, to: OsdId) {
        self.change(|map| {
            for config in map.pgs.values_mut() {
                config.c = config.c.next();
                config.interval = config.c;
                config.primary = Some(to);
            }
        });
    }

    fn cut_after(&self, requests: Option<usize>) {
        self.store.lock().expect("no thread panicked").cut_after = requests;
    }

    fn check_executed_once(&self) {
        assert!(self.store.lock().expect("no thread panicked").pieces.values().all(|count| *count == 1));
    }
}

fn first_map(directory: &std::path::Path) -> ClusterMap {
    let osd = |id: u32| Osd {
        id: OsdId(id),
        uuid: Uuid::from_u128(u128::from(id)),
        incarnation: Incarnation(1),
        dead_through: Incarnation(0),
        addresses: vec!["carrier-pigeon:7".into(), format!("unix:{}/osd.osd-{id}", directory.display())],
        up: true,
        placed: true,
        weight: 1,
        location: Location { zone: "z".into(), rack: "r".into(), host: "h".into() },
        device_class: String::new(),
        capacity: 0,
        used: 0,
        acked_epoch: Epoch(0),
    };
    let pool = Pool {
        id: PoolId(1),
        name: "p".into(),
        size: 3,
        min_size: 2,
        failure_domain: FailureDomain::Osd,
        device_class: None,
        object_size: OBJECT,
        pg_count: 4,
        pg_target: 4,
    };
    let pg = |index: u32| {
        let config = PgConfig {
            c: ConfVersion(1),
            interval: ConfVersion(1),
            primary: Some(OsdId(index % 3)),
            ..PgConfig::default()
        };
        (PgId { pool: PoolId(1), index }, config)
    };
    let fence = VolumeFence { pool: PoolId(1), generations: BTreeSet::from([Generation(3)]), ..VolumeFence::default() };
    ClusterMap {
        epoch: Epoch(5),
        cluster: CLUSTER,
        min_protocol: 1,
        osds: (0..3).map(|id| (OsdId(id), osd(id))).collect(),
        pools: BTreeMap::from([(PoolId(1), pool)]),
        pgs: (0..4).map(pg).collect(),
        volumes: BTreeMap::from([(VolumeId(1), fence)]),
        ..ClusterMap::default()
    }
}

fn holding() -> Holding {
    Holding {
        volume: VolumeId(1),
        pool: PoolId(1),
        size: SIZE,
        object_size: OBJECT,
        snap_context: SnapId(0),
        session: SessionId(9),
        generation: Generation(3),
        epoch: Epoch(5),
        read_only: false,
        view: SnapId::HEAD,
        parents: Vec::new(),
    }
}

fn options() -> Options {
    Options {
        max_ops: 32,
        timing: Timing {
            resend: Duration::from_secs(10),
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(10),
            ..Timing::default()
        },
        backoff: Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(10) },
        ..Options::default()
    }
}

fn pattern(seed: u64, len: usize) -> Bytes {
    (0..len as u64).map(|i| cairn_types::id::mix(seed ^ (i / 8)).to_le_bytes()[(i % 8) as usize]).collect()
}

/// Writes of many sizes all over the volume, at once; afterwards the volume reads as they left it.
async fn scribble(volume: &Volume, seed: u64) {
    let mut expected = volume.read_at(0, SIZE).await.expect("reads").to_vec();
    let mut writes = Vec::new();
    for i in 0..150 {
        let random = cairn_types::id::mix(seed + i);
        let len = [100, 4096, 5000, 16384, 100_000][random as usize % 5];
        let mut offset = (random >> 20) % (SIZE - len as u64);
        if random.is_multiple_of(2) {
            offset -= offset % 4096;
        }
        let data = if random % 16 == 1 { Bytes::from(vec![0; len]) } else { pattern(random, len) };
        expected[offset as usize..offset as usize + len].copy_from_slice(&data);
        let volume = volume.clone();
        writes.push(async move {
            if data[0] == 0 && data[data.len() - 1] == 0 && random % 16 == 1 {
                volume.zero_at(offset, data.len() as u64, random.is_multiple_of(3)).await
            } else {
                volume.write_at(offset, data).await
            }
        });
    }
    // All at once, first polled in order: that is the order in which overlapping ones are executed.
    let tasks: Vec<_> = writes.into_iter().map(tokio::spawn).collect();
    for task in tasks {
        task.await.expect("no panic").expect("writes");
    }
    volume.flush().await.expect("flushes");
    let read = volume.read_at(0, SIZE).await.expect("reads");
    assert!(read == expected, "the volume does not read as it was written");
    assert_eq!(volume.read_at(4095, 3).await.expect("reads"), expected[4095..4098]);
}

#[tokio::test]
async fn what_was_written_is_read() {
    let cluster = Cluster::start();
    let volume = cluster.open();
    scribble(&volume, 1).await;
    volume.close().await;
    assert_eq!(volume.read_at(0, 1).await, Err(VolumeError::Closed));
    cluster.check_executed_once();
}

#[tokio::test]
async fn lost_answers_and_cut_connections_are_not_seen() {
    let cluster = Cluster::start();
    cluster.cut_after(Some(7));
    let volume = cluster.open();
    scribble(&volume, 2).await;
    cluster.check_executed_once();
}

#[tokio::test]
async fn primaries_that_move_and_osds_that_die_are_not_seen() {
    let mut cluster = Cluster::start();
    let volume = cluster.open();
    let scribbler = tokio::spawn({
        let volume = volume.clone();
        async move {
            for seed in 10..16 {
                scribble(&volume, seed).await;
            }
        }
    });
    for round in 0u32.. {
        if scribbler.is_finished() {
            break;
        }
        cluster.servers.remove(&OsdId(round % 3));
        cluster.move_primaries(OsdId((round + 1) % 3));
        tokio::task::yield_now().await;
        cluster.start_osd(OsdId(round % 3));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    scribbler.await.expect("every scribble held");
    cluster.check_executed_once();
}

#[tokio::test]
async fn a_deadline_gives_up_waiting_but_the_write_keeps_its_place() {
    let mut cluster = Cluster::start();
    cluster.servers.clear();
    let volume = cluster.open();
    let deadline = Duration::from_millis(20);
    let hasty = volume.with_deadline(deadline);
    assert_eq!(hasty.write_at(0, pattern(1, 4096)).await, Err(VolumeError::Deadline { deadline }));
    // Given up likewise, by dropping the future.
    let second = tokio::time::timeout(deadline, volume.write_at(0, pattern(2, 8192))).await;
    assert!(second.is_err());
    let third = tokio::spawn({
        let volume = volume.clone();
        async move { volume.write_at(4096, pattern(3, 4096)).await }
    });
    (0..3).for_each(|osd| cluster.start_osd(OsdId(osd)));
    third.await.expect("no panic").expect("writes");
    assert_eq!(volume.read_at(0, 4096).await.expect("reads"), pattern(2, 8192)[..4096]);
    assert_eq!(volume.read_at(4096, 4096).await.expect("reads"), pattern(3, 4096));
}

#[tokio::test]
async fn a_taken_volume_fails_everything() {
    let mut cluster = Cluster::start();
    let volume = cluster.open();
    volume.write_at(0, pattern(1, 4096)).await.expect("writes");
    cluster.servers.clear();
    let waiting = tokio::spawn({
        let volume = volume.clone();
        async move { volume.write_at(0, pattern(2, 4096)).await }
    });
    cluster.change(|map| {
        let fence = map.volumes.get_mut(&VolumeId(1)).expect("the volume");
        fence.generations = BTreeSet::from([Generation(4)]);
    });
    assert_eq!(waiting.await.expect("no panic"), Err(VolumeError::Io(IoError::Fenced)));
    assert_eq!(volume.failure(), Some(IoError::Fenced));
    assert_eq!(volume.flush().await, Err(VolumeError::Io(IoError::Fenced)));
    volume.close().await;
}

#[tokio::test]
async fn close_waits_for_what_is_in_flight_and_growth_is_seen() {
    let cluster = Cluster::start();
    let volume = cluster.open();
    assert!(matches!(volume.read_at(SIZE, 1).await, Err(VolumeError::Io(IoError::OutOfRange { .. }))));
    volume.grow_to(SIZE + 4096).await.expect("open");
    assert_eq!(volume.size(), SIZE + 4096);
    let write = volume.write_at(SIZE, pattern(1, 4096));
    let (written, ()) = tokio::join!(biased; write, volume.close());
    assert_eq!(written, Ok(()));
    let again = Volume::open(
        &Holding { session: SessionId(10), size: SIZE + 4096, ..holding() },
        cluster.maps.subscribe(),
        None,
        options(),
    );
    assert_eq!(again.read_at(SIZE, 4096).await.expect("reads"), pattern(1, 4096));
}

#[tokio::test]
async fn limits_come_with_the_map_and_go_with_it() {
    let cluster = Cluster::start();
    let limited = |map: &mut ClusterMap, iops| {
        let fence = map.volumes.get_mut(&VolumeId(1)).expect("the volume");
        fence.limits = VolumeLimits { iops, ..VolumeLimits::default() };
    };
    let volume = cluster.open();
    volume.write_at(0, pattern(1, 4096)).await.expect("writes");
    let ten_reads = async || {
        let begun = std::time::Instant::now();
        let reads: Vec<_> = (0..10u64)
            .map(|_| {
                let volume = volume.clone();
                tokio::spawn(async move { volume.read_at(0, 4096).await })
            })
            .collect();
        for read in reads {
            assert_eq!(read.await.expect("no panic").expect("reads"), pattern(1, 4096));
        }
        begun.elapsed()
    };
    cluster.change(|map| limited(map, 20));
    // The map comes before the reads, the first of which is let in: nine pauses of 50 ms, less the slack.
    let took = ten_reads().await;
    assert!(took >= Duration::from_millis(340), "10 reads at 20 a second took {took:?}");
    cluster.change(|map| limited(map, 1));
    let waiting = tokio::time::timeout(Duration::from_millis(300), ten_reads()).await;
    assert!(waiting.is_err(), "one read a second");
    // Nobody who waits has to wait on.
    let reading = volume.read_at(0, 4096);
    cluster.change(|map| limited(map, 0));
    tokio::time::timeout(Duration::from_secs(5), reading).await.expect("the limit is gone").expect("reads");
    tokio::time::timeout(Duration::from_secs(5), ten_reads()).await.expect("the limit is gone");
}
