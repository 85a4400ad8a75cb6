//! Members come, go and are replaced while clients write; backups become new clusters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cairn_meta::backup::Writer;
use cairn_meta::restore;
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

/// Counts up under one key for as long as it may, asking whoever answers; how far it got.
fn writer(cluster: &Cluster, stop: &CancellationToken) -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let acked = Arc::new(AtomicU64::new(0));
    let addresses = cluster.addresses.clone();
    let (count, stop) = (Arc::clone(&acked), stop.clone());
    let work = async move {
        for at in (0..addresses.len()).cycle() {
            let endpoint = Endpoint::from_shared(format!("http://{}", addresses[at])).unwrap();
            // As patient as the service: an answer says what became of the one before.
            let mut kv = KvClient::new(endpoint.timeout(PATIENCE).connect_lazy());
            loop {
                if stop.is_cancelled() {
                    return;
                }
                let next = count.load(Ordering::SeqCst) + 1;
                if kv.put(put_request("counter", &next.to_string())).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    break;
                }
                count.store(next, Ordering::SeqCst);
            }
        }
    };
    (acked, tokio::spawn(work))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_to_five_and_shrinks_again_under_load() {
    let tune = |config: &mut cairn_meta::Config| config.checkpoint_entries = 60;
    let mut cluster = Cluster::start_tuned(1, tune).await;
    cluster.leader().await;
    let stop = CancellationToken::new();
    let (acked, task) = writer(&cluster, &stop);
    for expected in 2..=5u64 {
        let at = cluster.join(0, None).await;
        assert_eq!(at as u64, expected - 1);
        let voters: Vec<u64> = (1..=expected).collect();
        cluster.voters(&voters).await;
    }
    let grown = acked.load(Ordering::SeqCst);
    assert!(grown > 50, "the writer got on: {grown}");
    // The first one goes, which led when it began; then two more.
    for gone in [1u64, 2, 3] {
        let asked = (gone as usize + 1) % 5;
        let reply = change(&cluster, asked, Change::Remove(gone)).await.unwrap();
        assert!(reply.words.contains("never used again"), "{}", reply.words);
        let words = cluster.ended(gone as usize - 1).await;
        assert!(words.contains("was removed from the cluster"), "{words}");
        let voters: Vec<u64> = (gone + 1..=5).collect();
        cluster.voters(&voters).await;
    }
    stop.cancel();
    task.await.unwrap();
    // The writer only knew the first one, which is gone: the others know everything it was told.
    let acked = acked.load(Ordering::SeqCst);
    for at in [3, 4] {
        let found: u64 = get(&mut cluster.kv(at), "counter").await.unwrap().parse().unwrap();
        assert!(found >= acked, "member {} has {found} of {acked}", at + 1);
    }
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
    let head = restore::restore(&options).unwrap();
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
    let status = meta.status(StatusRequest {}).await.unwrap().into_inner();
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
