//! The etcd API as its clients use it, at any member.

use std::time::Duration;

use cairn_meta::Config;
use cairn_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use cairn_proto::etcdserverpb::watch_create_request::FilterType;
use cairn_proto::etcdserverpb::watch_request::RequestUnion;
use cairn_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, request_op,
};
use cairn_proto::mvccpb::event::EventType;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::support::{Cluster, PATIENCE, get, put, put_request, retry};

/// One watch stream from the client's side.
struct Watcher {
    requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watcher {
    async fn open(cluster: &Cluster, at: usize) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        let responses = cluster.watch(at).watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        Self { requests, responses }
    }

    async fn ask(&self, request: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(request) }).await.unwrap();
    }

    async fn next(&mut self) -> WatchResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message());
        next.await.expect("something comes in time").unwrap().expect("the stream goes on")
    }

    async fn create(&mut self, request: WatchCreateRequest) -> i64 {
        self.ask(RequestUnion::CreateRequest(request)).await;
        let created = self.next().await;
        assert!(created.created && !created.canceled, "{created:?}");
        created.watch_id
    }

    /// The next events, `type key=value@revision` each.
    async fn events(&mut self, count: usize) -> Vec<String> {
        let mut found = Vec::new();
        while found.len() < count {
            let response = self.next().await;
            let revision = response.header.as_ref().unwrap().revision;
            for event in response.events {
                let kv = event.kv.clone().unwrap();
                assert!(kv.mod_revision <= revision, "the header is not behind its events");
                let kind = if event.r#type() == EventType::Put { "put" } else { "del" };
                let value = String::from_utf8_lossy(&kv.value).into_owned();
                let prev = event.prev_kv.map(|p| format!(" was {}", String::from_utf8_lossy(&p.value)));
                let key = String::from_utf8_lossy(&kv.key).into_owned();
                found.push(format!("{kind} {key}={value}@{}{}", kv.mod_revision, prev.unwrap_or_default()));
            }
        }
        found
    }
}

fn prefix(key: &str) -> WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    WatchCreateRequest { key: key.to_owned().into(), range_end: end.into(), ..WatchCreateRequest::default() }
}

fn range(key: &str, end: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..RangeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_page_and_look_back() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut kv = cluster.kv(0);
    for n in 0..10 {
        put(&mut kv, &format!("k{n}"), "1").await;
    }
    let before = put(&mut kv, "k5", "2").await;
    kv.delete_range(DeleteRangeRequest { key: "k6".into(), ..DeleteRangeRequest::default() }).await.unwrap();
    let page = RangeRequest { limit: 3, ..range("k0", "k9") };
    let page = kv.range(page).await.unwrap().into_inner();
    assert_eq!((page.kvs.len(), page.more, page.count), (3, true, 8));
    let header = page.header.unwrap();
    assert_eq!((header.member_id, header.revision), (1, before + 1));
    assert!(header.cluster_id > 0 && header.raft_term > 0);
    let past = RangeRequest { revision: before - 1, ..range("k0", "l") };
    let past = kv.range(past).await.unwrap().into_inner();
    assert_eq!(past.count, 10);
    assert_eq!(past.kvs[5].value, "1", "as it was before the second put");
    let future = RangeRequest { revision: before + 100, ..range("k0", "l") };
    let error = kv.range(future).await.unwrap_err();
    assert_eq!(error.message(), "etcdserver: mvcc: required revision is a future revision");
    kv.compact(CompactionRequest { revision: before, physical: true }).await.unwrap();
    let error = kv.range(RangeRequest { revision: before - 1, ..range("k0", "l") }).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
    );
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_swaps_only_what_it_expected() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut kv = cluster.kv(0);
    let revision = put(&mut kv, "lock", "free").await;
    let swap = |expected: i64, value: &str| TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: "lock".into(),
            target_union: Some(TargetUnion::ModRevision(expected)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put_request("lock", value))) }],
        failure: vec![RequestOp { request: Some(request_op::Request::RequestRange(range("lock", ""))) }],
    };
    assert!(kv.txn(swap(revision, "mine")).await.unwrap().into_inner().succeeded);
    let late = kv.txn(swap(revision, "yours")).await.unwrap().into_inner();
    assert!(!late.succeeded && late.responses.len() == 1);
    assert_eq!(get(&mut kv, "lock").await.as_deref(), Some("mine"));
    let large = PutRequest { value: vec![0; 2 << 20].into(), ..put_request("large", "") };
    assert_eq!(kv.put(large).await.unwrap_err().message(), "etcdserver: request is too large");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_hear_past_and_present_at_any_member() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut kv = cluster.kv(leader);
    let first = put(&mut kv, "a/1", "x").await;
    put(&mut kv, "b/1", "other").await;
    put(&mut kv, "a/1", "y").await;
    let follower = (leader + 1) % 3;
    cluster.caught_up(follower, leader).await;
    let mut watcher = Watcher::open(&cluster, follower).await;
    let past = watcher.create(WatchCreateRequest { start_revision: first, prev_kv: true, ..prefix("a/") }).await;
    assert_eq!(watcher.events(2).await, [format!("put a/1=x@{first}"), format!("put a/1=y@{} was x", first + 2)]);
    kv.delete_range(DeleteRangeRequest { key: "a/1".into(), ..DeleteRangeRequest::default() }).await.unwrap();
    put(&mut kv, "a/2", "z").await;
    assert_eq!(watcher.events(2).await, [format!("del a/1=@{} was y", first + 3), format!("put a/2=z@{}", first + 4)]);
    // A second watch on the same stream, without deletions, from now on.
    let filters = vec![FilterType::Nodelete.into()];
    let second = watcher.create(WatchCreateRequest { filters, ..prefix("c/") }).await;
    assert_ne!(past, second);
    put(&mut kv, "c/1", "1").await;
    kv.delete_range(DeleteRangeRequest { key: "c/1".into(), ..DeleteRangeRequest::default() }).await.unwrap();
    put(&mut kv, "c/2", "2").await;
    assert_eq!(watcher.events(2).await, [format!("put c/1=1@{}", first + 5), format!("put c/2=2@{}", first + 7)]);
    watcher.ask(RequestUnion::ProgressRequest(WatchProgressRequest {})).await;
    let progress = watcher.next().await;
    assert_eq!((progress.watch_id, progress.events.len(), progress.header.unwrap().revision), (-1, 0, first + 7));
    watcher.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: second })).await;
    let canceled = watcher.next().await;
    assert!(canceled.canceled && canceled.watch_id == second);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_that_asks_for_compacted_history_is_told_where_it_begins() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut kv = cluster.kv(0);
    for n in 0..5 {
        put(&mut kv, "a", &n.to_string()).await;
    }
    let revision = put(&mut kv, "a", "last").await;
    kv.compact(CompactionRequest { revision, physical: false }).await.unwrap();
    let mut watcher = Watcher::open(&cluster, 0).await;
    let late = watcher.create(WatchCreateRequest { start_revision: 2, ..prefix("a") }).await;
    let canceled = watcher.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.compact_revision), (late, true, revision));
    watcher.create(WatchCreateRequest { start_revision: revision, ..prefix("a") }).await;
    assert_eq!(watcher.events(1).await, [format!("put a=last@{revision}")]);
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_misses_nothing() {
    let mut cluster = Cluster::start(1).await;
    cluster.leader().await;
    let mut kv = cluster.kv(0);
    let mut watcher = Watcher::open(&cluster, 0).await;
    watcher.create(prefix("k")).await;
    // More bytes than queues and sockets hold, before anything is read.
    let value = "v".repeat(8 << 10);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let (mut kv, value) = (kv.clone(), value.clone());
        writers.spawn(async move {
            for n in 0..80 {
                kv.put(put_request(&format!("k{writer}"), &format!("{n} {value}"))).await.unwrap();
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    let last = put(&mut kv, "k", "end").await;
    let events = watcher.events(1281).await;
    let revisions: Vec<i64> = events.iter().map(|e| e.rsplit_once('@').unwrap().1.parse().unwrap()).collect();
    let all: Vec<i64> = (last - 1280..=last).collect();
    assert_eq!(revisions, all, "each revision once, in order");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_on_the_leaders_clock_and_live_on_when_kept_alive() {
    let mut cluster = Cluster::start_tuned(3, |config: &mut Config| {
        config.heartbeat = Duration::from_millis(50);
    })
    .await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let (mut kv, mut lease) = (cluster.kv(follower), cluster.lease(follower));
    let short = lease.lease_grant(LeaseGrantRequest { ttl: 1, id: 0 }).await.unwrap().into_inner();
    let long = lease.lease_grant(LeaseGrantRequest { ttl: 600, id: 42 }).await.unwrap().into_inner();
    assert_eq!((long.id, long.ttl), (42, 600));
    kv.put(PutRequest { lease: short.id, ..put_request("short", "1") }).await.unwrap();
    kv.put(PutRequest { lease: 42, ..put_request("long", "1") }).await.unwrap();
    let all = lease.lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner();
    assert_eq!(all.leases.len(), 2);
    retry("the short lease has ended", async || get(&mut cluster.kv(follower), "short").await.is_none().then_some(()))
        .await;
    // Kept alive through a follower, and across a change of leadership.
    cluster.stop(leader).await;
    cluster.leader().await;
    let mut alive = lease
        .lease_keep_alive(tokio_stream::iter([
            LeaseKeepAliveRequest { id: 42 },
            LeaseKeepAliveRequest { id: short.id },
        ]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(alive.message().await.unwrap().unwrap().ttl, 600);
    assert_eq!(alive.message().await.unwrap().unwrap().ttl, 0, "it ended");
    let left = LeaseTimeToLiveRequest { id: 42, keys: true };
    let left = lease.lease_time_to_live(left).await.unwrap().into_inner();
    assert!(left.ttl > 590 && left.granted_ttl == 600 && left.keys == ["long"], "{left:?}");
    lease.lease_revoke(LeaseRevokeRequest { id: 42 }).await.unwrap();
    assert_eq!(get(&mut kv, "long").await, None);
    let gone = LeaseTimeToLiveRequest { id: 42, keys: false };
    assert_eq!(lease.lease_time_to_live(gone).await.unwrap().into_inner().ttl, -1);
    cluster.stop_all().await;
}
