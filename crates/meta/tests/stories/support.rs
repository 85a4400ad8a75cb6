//! A cluster of members in this process, each with its own directory and a loopback port, for the stories told beside.

use std::net::SocketAddr;
use std::time::Duration;

use cairn_meta::Config;
use cairn_proto::etcdserverpb::kv_client::KvClient;
use cairn_proto::etcdserverpb::lease_client::LeaseClient;
use cairn_proto::etcdserverpb::watch_client::WatchClient;
use cairn_proto::etcdserverpb::{PutRequest, RangeRequest};
use cairn_proto::meta::meta_client::MetaClient;
use cairn_proto::meta::{Mutation, StatusReply, StatusRequest};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Nothing in a test takes longer, on a busy machine either.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// One member that runs.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), cairn_meta::Error>>,
}

/// Members of one cluster.
pub(crate) struct Cluster {
    dir: TempDir,
    pub(crate) addresses: Vec<SocketAddr>,
    running: Vec<Option<Running>>,
    tune: fn(&mut Config),
    /// With how many it began; later ones joined.
    began_with: usize,
    /// Whom each later one replaces; 0: nobody.
    replaces: Vec<u64>,
}

impl Cluster {
    /// Starts so many members.
    pub(crate) async fn start(members: usize) -> Self {
        Self::start_tuned(members, |_| {}).await
    }

    pub(crate) async fn start_tuned(members: usize, tune: fn(&mut Config)) -> Self {
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..members {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            listeners.push(listener);
        }
        let running = (0..members).map(|_| None).collect();
        let (dir, replaces) = (tempfile::tempdir().unwrap(), vec![0; members]);
        let mut cluster = Self { dir, addresses, running, tune, began_with: members, replaces };
        for (at, listener) in listeners.into_iter().enumerate() {
            cluster.launch(at, listener);
        }
        cluster
    }

    pub(crate) fn config(&self, at: usize) -> Config {
        let all = self.addresses.iter().map(ToString::to_string);
        let members = (1..).zip(all).take(self.began_with).collect();
        let dir = self.dir.path().join(format!("member-{}", at + 1));
        let mut config = Config::new(at as u64 + 1, dir, self.addresses[at].to_string(), members);
        config.heartbeat = Duration::from_millis(50);
        config.election = Duration::from_millis(500);
        if at >= self.began_with {
            let others = (0..self.addresses.len()).filter(|other| *other != at);
            config.join = others.map(|other| self.addresses[other].to_string()).collect();
            (config.id, config.members, config.replace) = (0, Vec::new(), self.replaces[at]);
        }
        (self.tune)(&mut config);
        config
    }

    fn launch(&mut self, at: usize, listener: TcpListener) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(cairn_meta::serve(self.config(at), listener, stop.clone()));
        self.running[at] = Some(Running { stop, task });
    }

    /// A new member joins, at an address of its own or at that of another, in the place of `replaces` or beside all.
    pub(crate) async fn join(&mut self, replaces: u64, address: Option<SocketAddr>) -> usize {
        let address = address.unwrap_or_else(|| "127.0.0.1:0".parse().unwrap());
        let listener = retry("the port is free", async || TcpListener::bind(address).await.ok()).await;
        self.addresses.push(listener.local_addr().unwrap());
        self.running.push(None);
        self.replaces.push(replaces);
        self.launch(self.addresses.len() - 1, listener);
        self.addresses.len() - 1
    }

    /// Waits until a member ended by itself; why.
    pub(crate) async fn ended(&mut self, at: usize) -> String {
        let running = self.running[at].take().expect("it runs");
        let ended = tokio::time::timeout(PATIENCE, running.task).await.expect("it ends in time");
        ended.unwrap().expect_err("it ends with words").to_string()
    }

    /// Waits until the leader counts exactly these as voters.
    pub(crate) async fn voters(&self, expected: &[u64]) {
        retry("the voters", async || {
            for at in (0..self.running.len()).filter(|at| self.running[*at].is_some()) {
                let status = self.status(at).await?;
                if status.leader_id == status.member_id {
                    let voters: Vec<u64> = status.members.iter().filter(|m| !m.learner).map(|m| m.id).collect();
                    return (voters == expected && status.settled).then_some(());
                }
            }
            None
        })
        .await;
    }

    /// Starts a stopped member again, on its old address and directory.
    pub(crate) async fn restart(&mut self, at: usize) {
        let listener = retry("the port is free again", async || TcpListener::bind(self.addresses[at]).await.ok()).await;
        self.launch(at, listener);
    }

    /// Stops a member, and checks that it stopped cleanly.
    pub(crate) async fn stop(&mut self, at: usize) {
        let running = self.running[at].take().expect("it runs");
        running.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, running.task).await.expect("it stops in time");
        ended.unwrap().unwrap();
    }

    pub(crate) fn member_dir(&self, at: usize) -> std::path::PathBuf {
        self.config(at).dir
    }

    pub(crate) fn endpoints(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn channel(&self, at: usize) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.addresses[at])).unwrap();
        endpoint.timeout(PATIENCE).connect_lazy()
    }

    pub(crate) fn kv(&self, at: usize) -> KvClient<Channel> {
        KvClient::new(self.channel(at))
    }

    pub(crate) fn watch(&self, at: usize) -> WatchClient<Channel> {
        WatchClient::new(Endpoint::from_shared(format!("http://{}", self.addresses[at])).unwrap().connect_lazy())
    }

    pub(crate) fn lease(&self, at: usize) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel(at))
    }

    pub(crate) fn meta(&self, at: usize) -> MetaClient<Channel> {
        MetaClient::new(Endpoint::from_shared(format!("http://{}", self.addresses[at])).unwrap().connect_lazy())
    }

    pub(crate) async fn status(&self, at: usize) -> Option<StatusReply> {
        self.running[at].as_ref()?;
        self.meta(at).status(StatusRequest::default()).await.ok().map(tonic::Response::into_inner)
    }

    /// Waits until the running members agree on a running leader of a named cluster; its place.
    pub(crate) async fn leader(&self) -> usize {
        retry("a leader", async || {
            let mut leaders = Vec::new();
            for at in 0..self.running.len() {
                if self.running[at].is_some() {
                    let status = self.status(at).await.filter(|s| !s.cluster_id.is_empty())?;
                    leaders.push(status.leader_id);
                }
            }
            let first = *leaders.first().filter(|l| **l > 0)?;
            let at = first as usize - 1;
            let runs = self.running.get(at).is_some_and(Option::is_some);
            (leaders.iter().all(|l| *l == first) && runs).then_some(at)
        })
        .await
    }

    /// Waits until a member has applied what another one has now.
    pub(crate) async fn caught_up(&self, at: usize, with: usize) {
        let target = self.status(with).await.expect("it answers").applied_index;
        retry("it has caught up", async || self.status(at).await.filter(|s| s.applied_index >= target)).await;
    }

    pub(crate) async fn stop_all(&mut self) {
        let running: Vec<Running> = self.running.iter_mut().filter_map(Option::take).collect();
        running.iter().for_each(|member| member.stop.cancel());
        for member in running {
            let ended = tokio::time::timeout(PATIENCE, member.task).await.expect("it stops in time");
            ended.unwrap().unwrap();
        }
    }
}

/// Asks until there is an answer.
pub(crate) async fn retry<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn put_request(key: &str, value: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() }
}

/// Puts, again while leadership changes.
pub(crate) async fn put(kv: &mut KvClient<Channel>, key: &str, value: &str) -> i64 {
    retry(key, async || kv.put(put_request(key, value)).await.ok()).await.into_inner().header.unwrap().revision
}

pub(crate) async fn get(kv: &mut KvClient<Channel>, key: &str) -> Option<String> {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let response = kv.range(request).await.unwrap().into_inner();
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// The ticket of a client with its own session.
pub(crate) fn ticket(session: u8, seq: u64, acked_through: u64) -> Option<Mutation> {
    Some(Mutation { session: vec![session; 16].into(), seq, acked_through, request_id: format!("test-{seq}") })
}
