//! The members among themselves: one outgoing stream to each, with a bounded queue. A message that finds the queue full
//! or the stream broken is lost, and raft repeats what matters; it is told, so that it slows down.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cairn_proto::meta_raft::raft_client::RaftClient;
use cairn_proto::meta_raft::{Hello, PeerFrame, PeerMessage};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::driver::FromPeer;
use crate::gateway::Gateway;
use crate::identity::{Identity, Verdict};

/// Messages that wait for one peer.
const QUEUE: usize = 4096;
/// Messages of one frame, and about how many bytes.
const FRAME_MESSAGES: usize = 256;
const FRAME_BYTES: usize = 1 << 20;
/// Frames on their way into the stream.
const FRAMES: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LAST: Duration = Duration::from_millis(1000);
/// A stream that has nothing to say says so.
const QUIET: Duration = Duration::from_secs(1);
/// The largest frame that is accepted: an entry may be as large as a command, and a frame holds one at least.
pub(crate) const MAX_FRAME_BYTES: usize = 16 << 20;

struct Peer {
    queue: mpsc::Sender<PeerMessage>,
    channel: Channel,
    address: String,
    heard: Mutex<Option<Instant>>,
}

/// The other members.
pub(crate) struct Peers {
    me: u64,
    peers: BTreeMap<u64, Peer>,
    identity: Mutex<Identity>,
    /// Without a word for this long a member counts as not reachable.
    patience: Duration,
}

/// The receiving ends of the queues, for [`run`].
pub(crate) type Queues = Vec<(u64, mpsc::Receiver<PeerMessage>)>;

impl Peers {
    /// # Errors
    /// When an address cannot be parsed.
    pub(crate) fn new(
        identity: Identity,
        members: &[(u64, String)],
        patience: Duration,
    ) -> Result<(Self, Queues), tonic::transport::Error> {
        let (mut peers, mut queues) = (BTreeMap::new(), Vec::new());
        for (id, address) in members.iter().filter(|(id, _)| *id != identity.id) {
            let (queue, receiver) = mpsc::channel(QUEUE);
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(2));
            let channel = endpoint.connect_lazy();
            peers.insert(*id, Peer { queue, channel, address: address.clone(), heard: Mutex::new(None) });
            queues.push((*id, receiver));
        }
        Ok((Self { me: identity.id, peers, identity: Mutex::new(identity), patience }, queues))
    }

    /// Queues a message; a full queue drops it.
    pub(crate) fn send(&self, to: u64, message: PeerMessage) {
        if let Some(peer) = self.peers.get(&to) {
            let _ = peer.queue.try_send(message);
        }
    }

    /// A connection to a member, for calls.
    pub(crate) fn channel(&self, member: u64) -> Option<Channel> {
        self.peers.get(&member).map(|peer| peer.channel.clone())
    }

    pub(crate) fn heard_from(&self, member: u64) {
        if let Some(peer) = self.peers.get(&member) {
            *lock(&peer.heard) = Some(Instant::now());
        }
    }

    /// Whether a member was heard from lately; this one always was.
    pub(crate) fn is_reachable(&self, member: u64) -> bool {
        let lately = |peer: &Peer| lock(&peer.heard).is_some_and(|at| at.elapsed() < self.patience);
        member == self.me || self.peers.get(&member).is_some_and(lately)
    }

    /// How many were, this one included.
    pub(crate) fn reachable(&self) -> usize {
        1 + self.peers.keys().filter(|id| self.is_reachable(**id)).count()
    }

    /// All members, this one included.
    pub(crate) fn count(&self) -> usize {
        1 + self.peers.len()
    }

    pub(crate) fn hello(&self, to: u64) -> Hello {
        lock(&self.identity).hello(to)
    }

    /// The cluster has this name.
    pub(crate) fn name_cluster(&self, cluster: uuid::Uuid) {
        lock(&self.identity).cluster = cluster;
    }

    /// Whether the words of a peer are acceptable. Whom it meets for the first time it writes down.
    pub(crate) async fn admit(&self, hello: &Hello, gateway: &Gateway) -> Result<(), String> {
        let verdict = lock(&self.identity).judge(hello);
        match verdict {
            Verdict::Known => Ok(()),
            Verdict::Refused(words) => Err(words),
            Verdict::Met { peer, directory } => {
                let saved = gateway.update_member(move |file| {
                    file.peers.insert(peer, directory);
                });
                saved.await.map_err(|error| error.to_string())?;
                lock(&self.identity).peers.insert(peer, directory);
                Ok(())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing is left half done under these locks, so a panic elsewhere does not spoil what they guard.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the stream to one member alive until shutdown.
pub(crate) async fn run(
    peers: std::sync::Arc<Peers>,
    to: u64,
    mut queue: mpsc::Receiver<PeerMessage>,
    gateway: Gateway,
    driver: mpsc::Sender<FromPeer>,
    shutdown: CancellationToken,
) {
    let Some(peer) = peers.peers.get(&to) else { return };
    let mut client = RaftClient::new(peer.channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
    let (mut pause, mut complained) = (RETRY_FIRST, String::new());
    loop {
        let streamed = tokio::select! {
            () = shutdown.cancelled() => return,
            streamed = stream(&peers, to, &mut client, &mut queue, &gateway, &mut pause) => streamed,
        };
        let words = streamed.err().unwrap_or_default();
        if words != complained {
            tracing::warn!(member = to, address = %peer.address, "no stream to a member: {words}");
            complained = words;
        }
        // What waited is out of date by the time the stream stands again.
        while queue.try_recv().is_ok() {}
        let _ = driver.send(FromPeer::Unreachable(to)).await;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_LAST),
        }
    }
}

/// One stream, until it breaks. The words say why.
async fn stream(
    peers: &Peers,
    to: u64,
    client: &mut RaftClient<Channel>,
    queue: &mut mpsc::Receiver<PeerMessage>,
    gateway: &Gateway,
    pause: &mut Duration,
) -> Result<(), String> {
    let greeting = tokio::time::timeout(CONNECT_TIMEOUT * 2, client.greet(peers.hello(to)));
    let welcome = greeting.await.map_err(|_| "it does not answer".to_owned())?;
    let welcome = welcome.map_err(|status| status.message().to_owned())?.into_inner();
    if !welcome.refused.is_empty() {
        return Err(welcome.refused);
    }
    peers.admit(&welcome.hello.unwrap_or_default(), gateway).await?;
    peers.heard_from(to);
    *pause = RETRY_FIRST;
    let (frames, receiver) = mpsc::channel(FRAMES);
    let first = PeerFrame { hello: Some(peers.hello(to)), messages: Vec::new() };
    frames.send(first).await.map_err(|_| "the stream ended".to_owned())?;
    let sending = client.send(ReceiverStream::new(receiver));
    tokio::pin!(sending);
    tracing::debug!(member = to, "stream opened");
    loop {
        tokio::select! {
            ended = &mut sending => {
                return Err(ended.err().map_or("the stream ended".to_owned(), |s| s.message().to_owned()));
            }
            frame = next_frame(queue) => {
                let Some(frame) = frame else { return Ok(()) };
                tokio::select! {
                    ended = &mut sending => {
                        return Err(ended.err().map_or("the stream ended".to_owned(), |s| s.message().to_owned()));
                    }
                    sent = frames.send(frame) => sent.map_err(|_| "the stream ended".to_owned())?,
                }
            }
        }
    }
}

/// What waits in the queue, as one frame; an empty one when it is quiet for long. `None`: the member ends.
async fn next_frame(queue: &mut mpsc::Receiver<PeerMessage>) -> Option<PeerFrame> {
    let mut frame = PeerFrame::default();
    let Ok(first) = tokio::time::timeout(QUIET, queue.recv()).await else { return Some(frame) };
    let first = first?;
    let mut bytes = first.encoded_len();
    frame.messages.push(first);
    while frame.messages.len() < FRAME_MESSAGES && bytes < FRAME_BYTES {
        let Ok(message) = queue.try_recv() else { break };
        bytes += message.encoded_len();
        frame.messages.push(message);
    }
    Some(frame)
}
