//! Three members in one process, over real sockets and disks: the leader goes and writes go on, members come back from
//! disk or by snapshot, retries are carried out once, and whoever lost its directory stays out.

use crate::support::{Cluster, get, put, retry, ticket};
use cairn_meta::Config;
use cairn_proto::meta::{
    CreatePoolRequest, CreateVolumeRequest, DeleteVolumeRequest, GetVolumeRequest, Location, Pool, RegisterOsdRequest,
    VolumeRef, volume_ref,
};
use tonic::Code;

pub(crate) fn osd(seq: u64, name: u8) -> RegisterOsdRequest {
    RegisterOsdRequest {
        mutation: ticket(77, seq, 0),
        uuid: vec![name; 16].into(),
        addresses: vec![format!("tcp:127.0.0.1:{}", 7000 + u16::from(name))],
        location: Some(Location { host: "h1".into(), ..Location::default() }),
        device_class: "ssd".into(),
        capacity: 1 << 40,
        protocol: 1,
        ..RegisterOsdRequest::default()
    }
}

pub(crate) fn pool(seq: u64) -> CreatePoolRequest {
    let pool = Pool {
        name: "default".into(),
        size: 1,
        min_size: 1,
        failure_domain: "osd".into(),
        pg_count: 4,
        ..Pool::default()
    };
    CreatePoolRequest { mutation: ticket(77, seq, 0), pool: Some(pool), allow_degraded: false, expected_osds: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_goes_and_writes_go_on_and_it_comes_back_from_disk() {
    let mut cluster = Cluster::start(3).await;
    let first = cluster.leader().await;
    let mut kv = cluster.kv((first + 1) % 3);
    for n in 0..20 {
        put(&mut kv, &format!("before-{n}"), "x").await;
    }
    cluster.stop(first).await;
    let second = cluster.leader().await;
    assert_ne!(first, second);
    for n in 0..20 {
        put(&mut kv, &format!("after-{n}"), "y").await;
    }
    cluster.restart(first).await;
    cluster.caught_up(first, second).await;
    let mut back = cluster.kv(first);
    assert_eq!(get(&mut back, "before-7").await.as_deref(), Some("x"));
    assert_eq!(get(&mut back, "after-19").await.as_deref(), Some("y"), "a linearizable read at a follower");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_gets_a_snapshot() {
    let tune = |config: &mut Config| config.checkpoint_entries = 50;
    let mut cluster = Cluster::start_tuned(3, tune).await;
    let leader = cluster.leader().await;
    let away = (leader + 1) % 3;
    let mut kv = cluster.kv(leader);
    put(&mut kv, "old", "1").await;
    cluster.caught_up(away, leader).await;
    cluster.stop(away).await;
    let large = "v".repeat(20_000);
    for n in 0..160 {
        put(&mut kv, &format!("key-{n:03}"), &large).await;
    }
    retry("the leader has truncated its log", async || checkpoints(&cluster, leader).pop()).await;
    let before = state_dir(&cluster, away);
    cluster.restart(away).await;
    cluster.caught_up(away, leader).await;
    assert_ne!(state_dir(&cluster, away), before, "it switched to another directory");
    let mut back = cluster.kv(away);
    assert_eq!(get(&mut back, "key-159").await, Some(large));
    assert_eq!(get(&mut back, "old").await.as_deref(), Some("1"));
    // It is a full member again: it can lead, and starts from what it installed.
    put(&mut kv, "new", "2").await;
    cluster.caught_up(away, leader).await;
    cluster.stop(away).await;
    cluster.restart(away).await;
    cluster.stop(leader).await;
    cluster.leader().await;
    assert_eq!(get(&mut back, "new").await.as_deref(), Some("2"));
    cluster.stop_all().await;
}

fn checkpoints(cluster: &Cluster, at: usize) -> Vec<String> {
    names(cluster, at).into_iter().filter(|n| n.starts_with("checkpoint-0")).collect()
}

fn state_dir(cluster: &Cluster, at: usize) -> Vec<String> {
    names(cluster, at).into_iter().filter(|n| n.starts_with("state-")).collect()
}

fn names(cluster: &Cluster, at: usize) -> Vec<String> {
    let entries = std::fs::read_dir(cluster.member_dir(at)).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_command_is_carried_out_once_whoever_is_asked() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut meta = cluster.meta(leader);
    meta.register_osd(osd(1, 1)).await.unwrap();
    meta.create_pool(pool(2)).await.unwrap();
    let create = |name: &str, seq| CreateVolumeRequest {
        mutation: ticket(5, seq, 0),
        name: name.into(),
        size: 1 << 20,
        ..CreateVolumeRequest::default()
    };
    let made = meta.create_volume(create("one", 1)).await.unwrap().into_inner();
    let by = VolumeRef { by: Some(volume_ref::By::Name("one".into())) };
    let delete = DeleteVolumeRequest { mutation: ticket(5, 2, 0), volume: Some(by.clone()), now: false };
    assert!(meta.delete_volume(delete.clone()).await.unwrap().into_inner().existed);
    cluster.stop(leader).await;
    cluster.leader().await;
    let mut other = cluster.meta((leader + 1) % 3);
    // The very same commands, after both were done: the old answers, and nothing happens.
    let again = retry("an answer", async || other.clone().create_volume(create("one", 1)).await.ok()).await;
    assert_eq!(again.into_inner(), made);
    assert!(other.delete_volume(delete).await.unwrap().into_inner().existed);
    let gone = other.get_volume(GetVolumeRequest { volume: Some(by) }).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "there is no volume `one`"));
    // What was acknowledged cannot be asked for again.
    let acked = CreateVolumeRequest { mutation: ticket(5, 4, 3), ..create("two", 4) };
    other.create_volume(acked).await.unwrap();
    assert_eq!(other.create_volume(create("one", 1)).await.unwrap_err().code(), Code::Aborted);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_hangs_and_the_reason_is_told() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for at in (0..3).filter(|at| *at != leader) {
        cluster.stop(at).await;
    }
    let asked = tokio::time::Instant::now();
    let mut kv = cluster.kv(leader);
    let status = kv.put(crate::support::put_request("a", "b")).await.unwrap_err();
    assert!(asked.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!(status.code(), Code::Unavailable);
    let words = status.message();
    assert!(words.contains("no leader (1 of 3 members reachable)") || words.contains("timed out"), "{words}");
    let status = cluster.meta(leader).health(cairn_proto::meta::HealthRequest {}).await.unwrap_err();
    assert!(status.message().contains("no leader; 1 of 3 members reachable"), "{}", status.message());
    assert!(asked.elapsed() < std::time::Duration::from_secs(15));
    // With a majority again the same member takes the same calls: what was given up on left nothing behind.
    cluster.restart((leader + 1) % 3).await;
    cluster.leader().await;
    put(&mut kv, "a", "c").await;
    assert_eq!(get(&mut kv, "a").await.as_deref(), Some("c"));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_before_the_first_leader_do_no_harm() {
    let mut cluster = Cluster::start(3).await;
    // Asked at once, when the cluster has neither leader nor name: the calls wait for both.
    let mut askers = tokio::task::JoinSet::new();
    for at in [0, 0, 1, 1, 2, 2] {
        let mut kv = cluster.kv(at);
        askers.spawn(async move { kv.put(crate::support::put_request("early", "1")).await });
    }
    while let Some(asked) = askers.join_next().await {
        asked.unwrap().expect("it was carried out when the cluster had begun");
    }
    cluster.leader().await;
    for at in 0..3 {
        cluster.kv(at).put(crate::support::put_request("late", "1")).await.expect("nothing stands in the way");
    }
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_directory_was_wiped_stays_out() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let wiped = (leader + 1) % 3;
    let mut kv = cluster.kv(leader);
    put(&mut kv, "a", "1").await;
    cluster.caught_up(wiped, leader).await;
    cluster.stop(wiped).await;
    std::fs::remove_dir_all(cluster.member_dir(wiped)).unwrap();
    cluster.restart(wiped).await;
    put(&mut kv, "a", "2").await;
    // It gets neither votes nor entries: the others know its directory, and tell it.
    let words = cluster.ended(wiped).await;
    assert!(words.contains("remember another directory") && words.contains("--replace"), "{words}");
    // That holds when nobody is there to tell it: with another one that forgot, it could begin a second cluster.
    let other = (leader + 2) % 3;
    cluster.stop(leader).await;
    cluster.stop(other).await;
    std::fs::remove_dir_all(cluster.member_dir(other)).unwrap();
    cluster.restart(wiped).await;
    let words = cluster.ended(wiped).await;
    assert!(words.contains("never votes"), "{words}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_is_a_cluster_too() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut kv = cluster.kv(0);
    put(&mut kv, "a", "1").await;
    cluster.stop(0).await;
    cluster.restart(0).await;
    cluster.leader().await;
    assert_eq!(get(&mut kv, "a").await.as_deref(), Some("1"));
    cluster.stop_all().await;
}
