//! Members come, go and are replaced while clients write; backups become new clusters.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_meta::backup::Writer;
use cairn_meta::disk::{Beginning, RocksStore};
use cairn_meta::restore;
use cairn_meta_raft::Store;
use cairn_proto::etcdserverpb::kv_client::KvClient;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::{
    AddMember, BackupRequest, ChangeMemberReply, ChangeMemberRequest, HealthRequest, StatusRequest,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Endpoint;

use crate::support::{Cluster, PATIENCE, get, put, put_request, retry};

async fn change(cluster: &Cluster, at: usize, change: Change) -> Result<ChangeMemberReply, Status> {
    let request = ChangeMemberRequest { change: Some(change), ..ChangeMemberRequest::default() };
    cluster.meta(at).change_member(request).await.map(tonic::Response::into_inner)
}

/// Clients that count up, each under a key of its own, for as long as they may, asking whoever answers.
struct Writers {
    /// Who can be asked, as it is known by now.
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    /// How far each got.
    acked: Vec<Arc<AtomicU64>>,
    tasks: tokio::task::JoinSet<()>,
    stop: CancellationToken,
}

impl Writers {
    fn start(cluster: &Cluster, count: usize) -> Self {
        let addresses = Arc::new(Mutex::new(cluster.addresses.clone()));
        let (stop, mut tasks, mut acked) = (CancellationToken::new(), tokio::task::JoinSet::new(), Vec::new());
        for number in 0..count {
            let mine = Arc::new(AtomicU64::new(0));
            acked.push(Arc::clone(&mine));
            tasks.spawn(count_up(number, mine, Arc::clone(&addresses), stop.clone()));
        }
        Self { addresses, acked, tasks, stop }
    }

    fn may_ask(&self, addresses: &[SocketAddr]) {
        *self.addresses.lock().unwrap() = addresses.to_vec();
    }

    fn sum(&self) -> u64 {
        self.acked.iter().map(|acked| acked.load(Ordering::SeqCst)).sum()
    }

    /// Waits until every one of them got on.
    async fn get_on(&self) {
        let before: Vec<u64> = self.acked.iter().map(|acked| acked.load(Ordering::SeqCst)).collect();
        retry("every writer gets on", async || {
            let on = self.acked.iter().zip(&before).all(|(acked, before)| acked.load(Ordering::SeqCst) > *before);
            on.then_some(())
        })
        .await;
    }

    /// Ends them; all that they were told must be known at `at`.
    async fn judge(mut self, cluster: &Cluster, at: usize) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
        for (number, acked) in self.acked.iter().enumerate() {
            let acked = acked.load(Ordering::SeqCst);
            let found: u64 = get(&mut cluster.kv(at), &format!("counter-{number}")).await.unwrap().parse().unwrap();
            assert!(found >= acked, "member {} has {found} of {acked} of writer {number}", at + 1);
        }
    }
}

async fn count_up(
    number: usize,
    acked: Arc<AtomicU64>,
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    stop: CancellationToken,
) {
    for turn in number.. {
        let address = {
            let addresses = addresses.lock().unwrap();
            addresses[turn % addresses.len()]
        };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        // As patient as the service: an answer says what became of the one before.
        let mut kv = KvClient::new(endpoint.timeout(PATIENCE).connect_lazy());
        loop {
            if stop.is_cancelled() {
                return;
            }
            let next = acked.load(Ordering::SeqCst) + 1;
            if kv.put(put_request(&format!("counter-{number}"), &next.to_string())).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
                break;
            }
            acked.store(next, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_to_five_and_shrinks_again_under_load() {
    let tune = |config: &mut cairn_meta::Config| config.checkpoint_entries = 60;
    let mut cluster = Cluster::start_tuned(1, tune).await;
    cluster.leader().await;
    let writers = Writers::start(&cluster, 8);
    for expected in 2..=5u64 {
        let at = cluster.join(0, None).await;
        assert_eq!(at as u64, expected - 1);
        let voters: Vec<u64> = (1..=expected).collect();
        cluster.voters(&voters).await;
        writers.may_ask(&cluster.addresses);
    }
    assert!(writers.sum() > 50, "the writers got on: {}", writers.sum());
    // The first one goes, which led when it began; then two more. Whoever asked it asks the others.
    for gone in [1u64, 2, 3] {
        writers.get_on().await;
        let asked = (gone as usize + 1) % 5;
        let reply = change(&cluster, asked, Change::Remove(gone)).await.unwrap();
        assert!(reply.words.contains("never used again"), "{}", reply.words);
        let words = cluster.ended(gone as usize - 1).await;
        assert!(words.contains("was removed from the cluster"), "{words}");
        writers.may_ask(&cluster.addresses[gone as usize..]);
        let voters: Vec<u64> = (gone + 1..=5).collect();
        cluster.voters(&voters).await;
    }
    writers.get_on().await;
    writers.judge(&cluster, 3).await;
    // A removed member does not come back by being started again.
    cluster.restart(0).await;
    assert!(cluster.ended(0).await.contains("which was removed from its cluster"));
    // And a majority of the two is both of them.
    let last = change(&cluster, 3, Change::Remove(4)).await.unwrap();
    assert_eq!(last.members.len(), 1);
    cluster.ended(3).await;
    let refused = change(&cluster, 4, Change::Remove(5)).await.unwrap_err();
    assert!(refused.message().contains("the last one that votes"), "{}", refused.message());
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_disk_is_replaced_at_its_own_address() {
    let tune = |config: &mut cairn_meta::Config| config.checkpoint_entries = 60;
    let mut cluster = Cluster::start_tuned(3, tune).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let mut kv = cluster.kv(leader);
    for n in 0..100 {
        put(&mut kv, &format!("key-{n}"), "x").await;
    }
    cluster.caught_up(lost, leader).await;
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.member_dir(lost)).unwrap();
    let old = lost as u64 + 1;
    // Neither its number nor its vote comes back: it is another member, in the same step in which the old one goes.
    let at = cluster.join(old, Some(cluster.addresses[lost])).await;
    let mut voters: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    cluster.voters(&voters).await;
    assert_eq!(get(&mut cluster.kv(at), "key-77").await.as_deref(), Some("x"));
    let health = cluster.meta(at).health(HealthRequest {}).await.unwrap().into_inner();
    assert!(health.checks.iter().all(|check| check.code != "META_DOWN"), "{health:?}");
    // The leader too, while it lives: it hands over first.
    let next = cluster.join(leader as u64 + 1, None).await;
    voters.retain(|id| *id != leader as u64 + 1);
    voters.push(5);
    cluster.voters(&voters).await;
    assert!(cluster.ended(leader).await.contains("was removed"));
    put(&mut cluster.kv(next), "after", "y").await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_announced_first_begins_under_that_number() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for (id, replaces) in [(4u64, 0u64), (5, (leader as u64 + 1) % 3 + 1)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let add = AddMember { address: address.to_string(), replaces, ..AddMember::default() };
        let announced = change(&cluster, leader, Change::Add(add)).await.unwrap();
        assert_eq!(announced.member.unwrap().id, id);
        cluster.join(0, Some(address)).await;
        let voters: Vec<u64> = (1..=id).filter(|voter| id == 4 || *voter != replaces).collect();
        cluster.voters(&voters).await;
    }
    assert!(cluster.ended((leader + 1) % 3).await.contains("was removed"));
    // raft knows nobody else: whoever is asked says so, and the next one has the next number.
    let at = cluster.join(0, None).await;
    assert_eq!(at + 1, 6);
    retry("the next one votes", async || {
        let status = cluster.status(at).await?;
        status.members.iter().any(|m| m.id == 6 && !m.learner).then_some(())
    })
    .await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_join_at_once_are_taken_one_after_the_other() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    cluster.join(0, None).await;
    cluster.join(0, None).await;
    cluster.voters(&[1, 2, 3]).await;
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_directory_was_emptied_gets_its_number_back_on_no_way() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let at = cluster.join(0, None).await;
    cluster.voters(&[1, 2]).await;
    let third = cluster.join(0, None).await;
    cluster.voters(&[1, 2, 3]).await;
    put(&mut cluster.kv(0), "a", "1").await;
    cluster.caught_up(at, 0).await;
    cluster.stop(at).await;
    let dir = cluster.member_dir(at);
    let member = std::fs::read_to_string(dir.join("MEMBER")).unwrap();
    assert!(!dir.join("JOINING").exists(), "the name has done its service");
    // The one small file alone: the log beside it still speaks.
    std::fs::remove_file(dir.join("MEMBER")).unwrap();
    cluster.restart(at).await;
    let words = cluster.ended(at).await;
    assert!(words.contains("MEMBER is damaged") || words.contains("has the address"), "{words}");
    assert!(dir.join("state-1").exists(), "nothing was cleared away");
    // Everything, and it asks under the name that it had.
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    let name = member.lines().find_map(|line| line.strip_prefix("directory ")).unwrap();
    std::fs::write(dir.join("JOINING"), name).unwrap();
    cluster.restart(at).await;
    let words = cluster.ended(at).await;
    assert!(words.contains("member 2 votes already") && words.contains("--replace 2"), "{words}");
    // And under a new one.
    std::fs::remove_dir_all(&dir).unwrap();
    cluster.restart(at).await;
    let words = cluster.ended(at).await;
    assert!(words.contains("cairn meta replace 2"), "{words}");
    let status = cluster.status(third).await.unwrap();
    let voters: Vec<u64> = status.members.iter().filter(|m| !m.learner).map(|m| m.id).collect();
    assert_eq!(voters, [1, 2, 3]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_member_stops_and_the_others_lose_nothing() {
    let tune = |config: &mut cairn_meta::Config| config.checkpoint_entries = 60;
    let mut cluster = Cluster::start_tuned(3, tune).await;
    let leader = cluster.leader().await;
    let damaged = (leader + 1) % 3;
    let mut kv = cluster.kv(leader);
    for n in 0..40 {
        put(&mut kv, &format!("key-{n}"), &"v".repeat(500)).await;
    }
    cluster.caught_up(damaged, leader).await;
    cluster.stop(damaged).await;
    let log = std::fs::read_dir(cluster.member_dir(damaged).join("state-1")).unwrap().map(|e| e.unwrap().path());
    let log = log.filter(|p| p.extension().is_some_and(|e| e == "log" || e == "sst"));
    let log = log.max_by_key(|p| std::fs::metadata(p).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::remove_file(&log).unwrap();
    std::fs::write(&log, bytes).unwrap();
    cluster.restart(damaged).await;
    let words = cluster.ended(damaged).await;
    assert!(words.contains("is damaged") && words.contains("--replace"), "{words}");
    put(&mut kv, "after", "1").await;
    // It heals as another one, from the others.
    let old = damaged as u64 + 1;
    let at = cluster.join(old, Some(cluster.addresses[damaged])).await;
    let voters: Vec<u64> = (1..=4).filter(|id| *id != old).collect();
    cluster.voters(&voters).await;
    assert_eq!(get(&mut cluster.kv(at), "key-39").await, Some("v".repeat(500)));
    assert_eq!(get(&mut cluster.kv(at), "after").await.as_deref(), Some("1"));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_call_leave_a_bounded_trace() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let cluster_id = cluster.status(0).await.unwrap().cluster_id;
    let channel = Endpoint::from_shared(format!("http://{}", cluster.addresses[0])).unwrap().connect_lazy();
    let mut raft = cairn_proto::meta_raft::raft_client::RaftClient::new(channel);
    let mut refused = 0;
    for from in 2..40u64 {
        let hello = cairn_proto::meta_raft::Hello {
            format: 1,
            cluster: uuid::Uuid::parse_str(&cluster_id).unwrap().as_bytes().to_vec().into(),
            from,
            to: 1,
            directory: vec![from as u8; 16].into(),
            members: "1".into(),
            ..Default::default()
        };
        let welcome = raft.greet(hello).await.unwrap().into_inner();
        refused += usize::from(welcome.refused.contains("not known here"));
    }
    let member = std::fs::read_to_string(cluster.member_dir(0).join("MEMBER")).unwrap();
    let peers = member.lines().filter(|line| line.starts_with("peer ")).count();
    assert_eq!((peers, refused), (8, 30));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_lose_the_majority_is_refused_in_words() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (one, two) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(two).await;
    let (alive, dead) = (one as u64 + 1, two as u64 + 1);
    retry("the silence is noticed", async || {
        let status = cluster.status(leader).await?;
        status.members.iter().find(|m| m.id == dead).filter(|m| !m.healthy).map(|_| ())
    })
    .await;
    let refused = change(&cluster, one, Change::Remove(alive)).await.unwrap_err();
    let words = refused.message();
    assert!(words.contains("only 1 of 2") && words.contains("cairn meta replace"), "{words}");
    let unknown = change(&cluster, one, Change::Remove(9)).await.unwrap_err();
    assert!(unknown.message().contains("there is no member 9"), "{}", unknown.message());
    // Rehearsed, nothing happens; done, the dead one goes.
    let add = AddMember { address: "127.0.0.1:9".into(), ..AddMember::default() };
    let request = ChangeMemberRequest { dry_run: true, change: Some(Change::Add(add)), ..Default::default() };
    let would = cluster.meta(one).change_member(request).await.unwrap().into_inner();
    assert!(would.words.contains("member 4 at 127.0.0.1:9 is a learner"), "{}", would.words);
    assert_eq!(cluster.status(leader).await.unwrap().members.len(), 3);
    change(&cluster, one, Change::Remove(dead)).await.unwrap();
    let mut left = [leader as u64 + 1, alive];
    left.sort_unstable();
    cluster.voters(&left).await;
    // It did not hear of it; the others tell it.
    cluster.restart(two).await;
    assert!(cluster.ended(two).await.contains("was removed from the cluster"));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_becomes_a_cluster_that_the_old_one_does_not_listen_to() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut kv = cluster.kv(leader);
    for n in 0..60 {
        put(&mut kv, &format!("key-{n}"), &"v".repeat(9000)).await;
    }
    let registered = cluster.meta(leader).register_osd(crate::cluster::osd(1, 1)).await.unwrap();
    let osd = registered.into_inner().id;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let mut writer = Writer::create(&file).unwrap();
    let mut pieces = cluster.meta((leader + 1) % 3).backup(BackupRequest {}).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(piece) = pieces.message().await.unwrap() {
        count += 1;
        if writer.take(piece).unwrap() {
            break;
        }
    }
    assert!(count > 1, "it comes in pieces");
    writer.finish().unwrap();
    put(&mut kv, "later", "not in it").await;
    let old = cluster.status(leader).await.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let options = restore::Options {
        file,
        dir: dir.path().join("restored"),
        id: 1,
        members: vec![(1, address.clone())],
        lost_osds: Vec::new(),
    };
    // Another state is another line: members that hold the two never vote together.
    let lines = [(1, vec![]), (2, vec![]), (3, vec![osd])].map(|(id, lost_osds)| {
        let members = (1..=3).map(|id| (id, format!("127.0.0.1:{}", 60000 + id))).collect();
        let dir = dir.path().join(format!("of-three-{id}"));
        let one = restore::Options { dir: dir.clone(), id, members, lost_osds, ..options.clone() };
        restore::restore(&one).unwrap();
        let store = RocksStore::open(&dir, id, &Beginning::default()).unwrap();
        cairn_meta_core::Machine::open(store.state()).unwrap().members().lineage.clone()
    });
    assert!(lines[0] == lines[1] && lines[0] != lines[2], "{lines:?}");
    let head = restore::restore(&options).unwrap();
    assert!(restore::restore(&options).unwrap_err().to_string().contains("not empty"));
    assert!(head.index <= old.applied_index && head.members.len() == 3);
    let stop = CancellationToken::new();
    let config = cairn_meta::Config::new(1, options.dir.clone(), address.clone(), Vec::new());
    let task = tokio::spawn(cairn_meta::serve(config, listener, stop.clone()));
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut restored = KvClient::new(channel.clone());
    put(&mut restored, "new", "1").await;
    assert_eq!(get(&mut restored, "key-59").await, Some("v".repeat(9000)));
    assert_eq!(get(&mut restored, "later").await, None);
    let mut meta = cairn_proto::meta::meta_client::MetaClient::new(channel);
    let status = meta.status(StatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.cluster_id, old.cluster_id, "to its OSDs it is the same cluster");
    assert!(status.epoch > old.epoch + (1 << 31), "nothing that was given since the backup is given again");
    // It is another line of members: raft messages of one never reach the other.
    let hello = cairn_proto::meta_raft::Hello {
        format: 1,
        cluster: uuid::Uuid::parse_str(&old.cluster_id).unwrap().as_bytes().to_vec().into(),
        from: 2,
        to: 1,
        directory: vec![5; 16].into(),
        members: "1".into(),
        lineage: vec![7; 16].into(),
        ..Default::default()
    };
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let mut raft = cairn_proto::meta_raft::raft_client::RaftClient::new(channel);
    let welcome = raft.greet(hello).await.unwrap().into_inner();
    assert!(welcome.refused.contains("restored from a backup"), "{}", welcome.refused);
    stop.cancel();
    task.await.unwrap().unwrap();
    cluster.stop_all().await;
}
