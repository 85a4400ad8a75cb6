//! kill -9 on real processes: a writer of the store that dies between two syncs, and members of a cluster that die while
//! clients write. What was acknowledged is there afterwards, once.
//!
//! The program runs itself again as those processes, so it has its own `main` and not the test harness's.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cairn_meta::Config;
use cairn_meta::disk::{Beginning, RocksStore};
use cairn_meta_core::{Batch, Change};
use cairn_meta_raft::{Position, Store};
use cairn_proto::etcdserverpb::kv_client::KvClient;
use cairn_proto::etcdserverpb::{PutRequest, RangeRequest};
use cairn_proto::meta::meta_client::MetaClient;
use cairn_proto::meta::{StatusReply, StatusRequest};
use raft::eraftpb::{Entry, HardState};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(20);
const VOTERS: [u64; 3] = [1, 2, 3];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("writer") => writer(Path::new(&args[2])),
        Some("member") => member(&args[2], &args[3..]),
        // What a harness would be asked for; the stories are always told whole.
        Some("--list") => println!("kill: test"),
        _ => {
            story("a store killed between two syncs keeps what was synced", a_killed_store_keeps_what_was_synced);
            story("killed members lose nothing acknowledged", killed_members_lose_nothing);
            story("lost members are replaced while others are killed", lost_members_are_replaced);
        }
    }
}

fn story(name: &str, tell: fn()) {
    let began = Instant::now();
    tell();
    println!("story: {name} ... ok ({:.1} s)", began.elapsed().as_secs_f32());
}

/// A child process that does not survive its test.
struct Process(Child);

impl Process {
    fn start(args: &[&str], dir: &Path, stdout: Stdio) -> Self {
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new(program);
        command.arg(args[0]).arg(dir).args(&args[1..]).stdin(Stdio::null()).stdout(stdout);
        Self(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

// ---- the store

/// Appends and applies for ever, and says each index only after its sync.
fn writer(dir: &Path) {
    let mut store = RocksStore::open(dir, 1, &Beginning::of(&VOTERS)).unwrap();
    // The life before may have died between an append and its apply.
    (store.applied().index + 1..=store.last().index).for_each(|index| apply(&mut store, index));
    loop {
        let index = store.last().index + 1;
        let entry = Entry { index, term: 1 + index / 100, data: payload(index).into(), ..Entry::default() };
        let hard_state = HardState { term: entry.term, vote: 1 + index % 3, commit: index, ..HardState::default() };
        store.append(std::slice::from_ref(&entry), Some(&hard_state), true).unwrap();
        apply(&mut store, index);
        if index.is_multiple_of(200) {
            store.start_checkpoint().unwrap();
        }
        if let Some(manifest) = store.poll_checkpoint().unwrap() {
            store.truncate(manifest.index).unwrap();
        }
        println!("{index}");
    }
}

fn apply(store: &mut RocksStore, index: u64) {
    let change = Change::Put(format!("key-{}", index % 50).into(), index.to_be_bytes().to_vec().into());
    store.apply(Position { term: 1 + index / 100, index }, &Batch { changes: vec![change] }).unwrap();
}

fn payload(index: u64) -> Vec<u8> {
    vec![(index % 251) as u8; 50 + (index % 400) as usize]
}

fn a_killed_store_keeps_what_was_synced() {
    let dir = tempfile::tempdir().unwrap();
    let mut known = 0;
    for round in 0..6u64 {
        let mut process = Process::start(&["writer"], dir.path(), Stdio::piped());
        let mut lines = BufReader::new(process.0.stdout.take().unwrap()).lines();
        for _ in 0..130 + round * 37 {
            known = lines.next().expect("it goes on").unwrap().parse().unwrap();
        }
        process.kill();
        // What it said between the last line read here and its death.
        for line in lines.map_while(Result::ok) {
            known = line.parse().unwrap_or(known);
        }
        let store = RocksStore::open(dir.path(), 1, &Beginning::of(&VOTERS)).unwrap();
        let last = store.last().index;
        assert!(last >= known, "entry {known} was synced, and the log ends at {last}");
        assert!(store.hard_state().commit >= known, "so was the hard state");
        let first = store.truncated().index + 1;
        let entries = store.entries(first, last + 1, u64::MAX).unwrap();
        assert_eq!(entries.len() as u64, last + 1 - first);
        assert!(entries.iter().all(|e| e.data == payload(e.index) && e.term == 1 + e.index / 100));
        // The state is that of its applied index, whichever that is; the newest apply of each key through it.
        let applied = store.applied().index;
        assert!(applied <= last && applied + 1 >= known, "applies before a sync survive it");
        for slot in 0..50u64.min(applied) {
            let newest = applied - (applied - slot) % 50;
            let value = store.state().get(format!("key-{slot}").as_bytes());
            let expected = (newest > 0).then(|| newest.to_be_bytes().to_vec());
            assert_eq!(value.map(|v| v.to_vec()), expected, "key-{slot} at {applied}");
        }
    }
    assert!(known > 1000, "something was written: {known}");
}

// ---- members

fn member(dir: &str, args: &[String]) {
    let id: u64 = args[0].parse().unwrap();
    let members: Vec<(u64, String)> = (1..).zip(args[1].split(',').map(str::to_owned)).collect();
    let mut config = match args.get(2) {
        // A new one: where it listens, and whose place it takes. The others are whom it asks.
        Some(listen) => {
            let mut config = Config::new(0, dir.into(), listen.clone(), Vec::new());
            config.join = members.into_iter().map(|(_, address)| address).collect();
            config.replace = args[3].parse().unwrap();
            config
        }
        None => Config::new(id, dir.into(), members[id as usize - 1].1.clone(), members),
    };
    config.heartbeat = Duration::from_millis(50);
    config.election = config.heartbeat * 10;
    config.checkpoint_entries = 300;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(cairn_meta::run(config, CancellationToken::new())) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

struct Cluster {
    dir: tempfile::TempDir,
    addresses: Vec<String>,
    processes: Vec<Process>,
}

impl Cluster {
    fn start() -> Self {
        // Ports that were free a moment ago; a member that finds its own taken says so and the story fails.
        let sockets: Vec<std::net::TcpListener> =
            (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<SocketAddr> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        drop(sockets);
        let addresses = addresses.iter().map(ToString::to_string).collect();
        let mut cluster = Self { dir: tempfile::tempdir().unwrap(), addresses, processes: Vec::new() };
        cluster.processes = (0..3).map(|at| cluster.launch(at)).collect();
        cluster
    }

    fn launch(&self, at: usize) -> Process {
        let id = (at + 1).to_string();
        let dir: PathBuf = self.dir.path().join(&id);
        Process::start(&["member", &id, &self.addresses.join(",")], &dir, Stdio::null())
    }

    /// A new member on a directory of its own at the address of the one that it replaces.
    fn launch_instead_of(&self, at: usize) -> Process {
        let dir = self.dir.path().join(format!("instead-of-{}", at + 1));
        let lost = (at + 1).to_string();
        let others: Vec<String> =
            (0..3).filter(|other| *other != at).map(|other| self.addresses[other].clone()).collect();
        Process::start(&["member", "0", &others.join(","), &self.addresses[at], &lost], &dir, Stdio::null())
    }

    /// Waits until these vote, and one of them may be lost, as the leader says.
    async fn voters(&self, expected: &[u64]) {
        let deadline = Instant::now() + PATIENCE * 2;
        loop {
            let leader = self.leader().await;
            if let Ok(status) = MetaClient::new(self.channel(leader)).status(StatusRequest::default()).await {
                let StatusReply { members, settled, .. } = status.into_inner();
                let voters: Vec<u64> = members.iter().filter(|m| !m.learner).map(|m| m.id).collect();
                if voters == expected && settled {
                    return;
                }
                assert!(Instant::now() < deadline, "waited in vain for {expected:?}: {members:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn channel(&self, at: usize) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses[at])).unwrap();
        endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
    }

    async fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for at in 0..3 {
                if let Ok(status) = MetaClient::new(self.channel(at)).status(StatusRequest::default()).await {
                    let status = status.into_inner();
                    if status.leader_id == status.member_id && !status.cluster_id.is_empty() {
                        return at;
                    }
                }
            }
            assert!(Instant::now() < deadline, "waited in vain for a leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn killed_members_lose_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::start();
        cluster.leader().await;
        let stop = CancellationToken::new();
        let writers: Vec<_> =
            (0..6).map(|w| tokio::spawn(write_until(stop.clone(), w, cluster.addresses.clone()))).collect();
        for round in 0..4 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            // The leader twice, a follower twice.
            let victim = (cluster.leader().await + round % 2) % 3;
            cluster.processes[victim].kill();
            tokio::time::sleep(Duration::from_millis(700)).await;
            cluster.processes[victim] = cluster.launch(victim);
        }
        stop.cancel();
        cluster.leader().await;
        for (writer, task) in writers.into_iter().enumerate() {
            let (acked, stall) = task.await.unwrap();
            assert!(acked > 50, "writer {writer} got on: {acked}");
            assert!(stall < Duration::from_secs(8), "writer {writer} was held up for {stall:?}");
            for at in 0..3 {
                let found = read(&cluster, at, writer).await;
                assert!(found >= acked, "member {} has {found} of writer {writer}, which had {acked}", at + 1);
                assert!(found <= acked + 1, "and nothing that was never asked for");
            }
        }
    });
}

/// Each in turn loses its directory for good, and is replaced at its own address while writers go on; then a new one is
/// killed, and comes back from its own disk.
fn lost_members_are_replaced() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut cluster = Cluster::start();
        cluster.leader().await;
        let stop = CancellationToken::new();
        let writers: Vec<_> =
            (0..4).map(|w| tokio::spawn(write_until(stop.clone(), w, cluster.addresses.clone()))).collect();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut voters = vec![1, 2, 3];
        for lost in 0..3u64 {
            let at = lost as usize;
            cluster.processes[at].kill();
            std::fs::remove_dir_all(cluster.dir.path().join((lost + 1).to_string())).unwrap();
            cluster.processes[at] = cluster.launch_instead_of(at);
            voters.retain(|id| *id != lost + 1);
            voters.push(lost + 4);
            cluster.voters(&voters).await;
        }
        // A new member is one like the others: kill -9, and it comes back from its own disk.
        let victim = cluster.leader().await;
        cluster.processes[victim].kill();
        assert_ne!(cluster.leader().await, victim, "the other two go on");
        cluster.processes[victim] = cluster.launch_instead_of(victim);
        stop.cancel();
        for (writer, task) in writers.into_iter().enumerate() {
            let (acked, stall) = task.await.unwrap();
            assert!(acked > 50, "writer {writer} got on: {acked}");
            assert!(stall < Duration::from_secs(8), "writer {writer} was held up for {stall:?}");
            for at in 0..3 {
                let found = read(&cluster, at, writer).await;
                assert!(found >= acked && found <= acked + 1, "member at {at} has {found} of {writer}'s {acked}");
            }
        }
    });
}

/// Writes 1, 2, 3.. under one key, each only after the one before was acknowledged.
async fn write_until(stop: CancellationToken, writer: usize, addresses: Vec<String>) -> (u64, Duration) {
    let (mut acked, mut at, mut stall) = (0u64, writer, Duration::ZERO);
    while !stop.is_cancelled() {
        let began = Instant::now();
        loop {
            let endpoint = Endpoint::from_shared(format!("http://{}", addresses[at % 3])).unwrap();
            let endpoint = endpoint.connect_timeout(Duration::from_secs(1)).timeout(Duration::from_secs(3));
            let value = (acked + 1).to_string();
            let request = PutRequest { key: key_of(writer).into(), value: value.into(), ..PutRequest::default() };
            if KvClient::new(endpoint.connect_lazy()).put(request).await.is_ok() {
                break;
            }
            at += 1;
            assert!(began.elapsed() < PATIENCE, "writer {writer} waits in vain");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        acked += 1;
        stall = stall.max(began.elapsed());
    }
    (acked, stall)
}

fn key_of(writer: usize) -> String {
    format!("writer-{writer}")
}

async fn read(cluster: &Cluster, at: usize, writer: usize) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = RangeRequest { key: key_of(writer).into(), ..RangeRequest::default() };
        if let Ok(found) = KvClient::new(cluster.channel(at)).range(request).await {
            let found = found.into_inner();
            return String::from_utf8_lossy(&found.kvs[0].value).parse().unwrap();
        }
        assert!(Instant::now() < deadline, "member {} does not answer", at + 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
