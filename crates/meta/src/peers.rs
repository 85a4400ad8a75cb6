//! The members among themselves: one outgoing stream to each, with a bounded queue. A message that finds the queue full
//! or the stream broken is lost, and raft repeats what matters; it is told, so that it slows down.
//!
//! Links come and go with the members. Whom this member does not know yet, because it lags behind the change that added
//! it, says in its greeting where it is reached.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::meta::{MemberRecord, MembersRecord};
use cairn_proto::meta_raft::raft_client::RaftClient;
use cairn_proto::meta_raft::{Hello, PeerFrame, PeerMessage};
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::clock;
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
/// What was said before that may be out of date.
const LATELY: Duration = Duration::from_millis(1500);
/// The largest frame that is accepted: an entry may be as large as a command, and a frame holds one at least.
pub(crate) const MAX_FRAME_BYTES: usize = 16 << 20;
/// Members that are known by their greeting only.
const MOST_UNKNOWN: usize = 8;

/// The way to one other member.
struct Link {
    queue: mpsc::Sender<PeerMessage>,
    channel: Channel,
    address: String,
    heard: Option<Instant>,
    /// How far it has carried out the log, as it last said.
    applied: u64,
    /// Whom it follows, as it last said.
    leader: u64,
    /// Its clock minus ours, as its last word from the queue's end told.
    skew_ms: i64,
    /// Ends its task; dropped with the link.
    _end: tokio_util::sync::DropGuard,
}

/// A link whose task is to be started.
struct NewLink {
    to: u64,
    channel: Channel,
    address: String,
    queue: mpsc::Receiver<PeerMessage>,
    end: CancellationToken,
}

struct State {
    identity: Identity,
    links: BTreeMap<u64, Link>,
    fresh: Vec<NewLink>,
    /// Known before the members are written down: as configured, or as they were when this member began.
    beginning: BTreeMap<u64, String>,
}

/// The other members.
pub(crate) struct Peers {
    me: u64,
    state: Mutex<State>,
    changed: Notify,
    /// Without a word for this long a member counts as not reachable.
    patience: Duration,
}

impl State {
    fn is_member(&self, id: u64) -> bool {
        let members = &self.identity.members.members;
        members.iter().any(|m| m.id == id) || members.is_empty() && self.beginning.contains_key(&id)
    }

    /// Whose directories are remembered, and who are no members as far as is known here.
    fn unknown_peers(&self) -> Vec<u64> {
        self.identity
            .peers
            .keys()
            .copied()
            .filter(|id| !self.is_member(*id) && !self.identity.is_removed(*id))
            .collect()
    }

    fn removed_peers(&self) -> Vec<u64> {
        self.identity.peers.keys().copied().filter(|id| self.identity.is_removed(*id)).collect()
    }
}

impl Peers {
    pub(crate) fn new(identity: Identity, beginning: BTreeMap<u64, String>, patience: Duration) -> Self {
        let me = identity.id;
        let state = State { identity, links: BTreeMap::new(), fresh: Vec::new(), beginning };
        let peers = Self { me, state: Mutex::new(state), changed: Notify::new(), patience };
        peers.settle(&mut peers.state());
        peers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under this lock, so a panic elsewhere does not spoil what it guards.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The members are these now. The links follow in the task that tends them: connections belong to its runtime.
    pub(crate) fn know(&self, members: MembersRecord) {
        self.state().identity.members = members;
        self.changed.notify_one();
    }

    /// Whether two configurations are in force.
    pub(crate) fn in_joint(&self, joint: bool) {
        let changed = std::mem::replace(&mut self.state().identity.joint, joint) != joint;
        if changed {
            self.changed.notify_one();
        }
    }

    /// Makes the links those of the members.
    fn settle(&self, state: &mut State) {
        let wanted: BTreeMap<u64, String> = match state.identity.members.members.is_empty() {
            true => state.beginning.clone(),
            false => {
                let members = &state.identity.members;
                let leaving = members.leaving.iter().filter(|_| state.identity.joint);
                let all = leaving.chain(&members.members);
                all.map(|m| (m.id, m.address.clone())).collect()
            }
        };
        let next_id = state.identity.members.next_id;
        state.links.retain(|id, link| match wanted.get(id) {
            Some(address) => *address == link.address,
            None => *id >= next_id,
        });
        for (id, address) in wanted {
            if id != self.me && !state.links.contains_key(&id) {
                self.open(state, id, address);
            }
        }
        if let Some(mine) = state.identity.members.members.iter().find(|m| m.id == self.me) {
            state.identity.address = mine.address.clone();
        }
    }

    fn open(&self, state: &mut State, to: u64, address: String) {
        let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
            Ok(endpoint) => endpoint,
            Err(error) => {
                tracing::warn!(member = to, address, "no way to a member: {error}");
                return;
            }
        };
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2));
        let (channel, end) = (endpoint.connect_lazy(), CancellationToken::new());
        let (sender, queue) = mpsc::channel(QUEUE);
        state.fresh.push(NewLink { to, channel: channel.clone(), address: address.clone(), queue, end: end.clone() });
        let link = Link {
            queue: sender,
            channel,
            address,
            heard: None,
            applied: 0,
            leader: 0,
            skew_ms: 0,
            _end: end.drop_guard(),
        };
        state.links.insert(to, link);
        self.changed.notify_one();
    }

    /// Queues a message; a full queue drops it.
    pub(crate) fn send(&self, to: u64, message: PeerMessage) {
        let queue = self.state().links.get(&to).map(|link| link.queue.clone());
        if let Some(queue) = queue {
            let _ = queue.try_send(message);
        }
    }

    /// A connection to a member, for calls.
    pub(crate) fn channel(&self, member: u64) -> Option<Channel> {
        self.state().links.get(&member).map(|link| link.channel.clone())
    }

    /// It answered.
    fn heard_from(&self, member: u64) {
        if let Some(link) = self.state().links.get_mut(&member) {
            link.heard = Some(Instant::now());
        }
    }

    /// It spoke just now. What it says it has applied, it may have lost a little of since, where it lost its power.
    pub(crate) fn hear(&self, member: u64, frame: &PeerFrame) {
        if let Some(link) = self.state().links.get_mut(&member) {
            link.heard = Some(Instant::now());
            (link.applied, link.leader) = (frame.applied, frame.leader);
            if frame.now_ms != 0 {
                link.skew_ms = frame.now_ms as i64 - clock::now_ms() as i64;
            }
        }
    }

    /// The member that another one follows, which said so lately; 0: nobody did.
    pub(crate) fn leader_of_others(&self) -> u64 {
        let lately = |link: &&Link| link.heard.is_some_and(|at| at.elapsed() < LATELY);
        let state = self.state();
        let leaders = state.links.values().filter(lately).map(|link| link.leader);
        leaders.filter(|leader| *leader != self.me).max().unwrap_or(0)
    }

    /// Which of the others have carried out the log through `index`.
    pub(crate) fn have_applied(&self, index: u64) -> Vec<u64> {
        self.state().links.iter().filter(|(_, link)| link.applied >= index).map(|(id, _)| *id).collect()
    }

    /// How far the clocks of the others are off this one's, as of their last words.
    pub(crate) fn skews(&self) -> Vec<(u64, i64)> {
        self.state().links.iter().map(|(id, link)| (*id, link.skew_ms)).collect()
    }

    /// Whether a member was heard from lately; this one always was.
    pub(crate) fn is_reachable(&self, member: u64) -> bool {
        let lately = |link: &Link| link.heard.is_some_and(|at| at.elapsed() < self.patience);
        member == self.me || self.state().links.get(&member).is_some_and(lately)
    }

    /// How many were, this one included.
    pub(crate) fn reachable(&self) -> usize {
        self.members().iter().filter(|m| !m.learner && self.is_reachable(m.id)).count()
    }

    /// All that vote, this one included.
    pub(crate) fn count(&self) -> usize {
        self.members().iter().filter(|m| !m.learner).count()
    }

    /// The members as far as they are known here.
    pub(crate) fn members(&self) -> Vec<MemberRecord> {
        let state = self.state();
        match state.identity.members.members.is_empty() {
            false => state.identity.members.members.clone(),
            true => {
                let named = |(id, address): (&u64, &String)| MemberRecord {
                    id: *id,
                    address: address.clone(),
                    learner: !state.identity.genesis.contains(id),
                    ..MemberRecord::default()
                };
                state.beginning.iter().map(named).collect()
            }
        }
    }

    pub(crate) fn hello(&self, to: u64) -> Hello {
        self.state().identity.hello(to)
    }

    /// The cluster has this name.
    pub(crate) fn name_cluster(&self, cluster: uuid::Uuid) {
        self.state().identity.cluster = cluster;
    }

    /// Whether this member may go on speaking.
    pub(crate) fn is_removed(&self, member: u64) -> bool {
        self.state().identity.is_removed(member)
    }

    /// Whether the words of a peer are acceptable. Whom it meets for the first time it writes down.
    pub(crate) async fn admit(&self, hello: &Hello, gateway: &Gateway) -> Result<(), Refused> {
        let verdict = self.state().identity.judge(hello);
        match verdict {
            Verdict::Known => {}
            Verdict::Refused(words) => return Err(weather(words)),
            Verdict::Removed(words) => return Err(Refused { words, end: Some(End::Removed) }),
            Verdict::LostMemory(words) => return Err(Refused { words, end: Some(End::LostMemory) }),
            Verdict::Met { peer, directory } => {
                let unknown = self.state().unknown_peers();
                if unknown.len() >= MOST_UNKNOWN && !self.state().is_member(peer) {
                    return Err(weather("too many members have called that are not known here"));
                }
                let gone = self.state().removed_peers();
                let saved = gateway.update_member(move |file| {
                    file.peers.retain(|id, _| !gone.contains(id));
                    file.peers.insert(peer, directory);
                });
                saved.await.map_err(|error| weather(error.to_string()))?;
                self.state().identity.peers.insert(peer, directory);
            }
        }
        let mut state = self.state();
        let (from, room) = (hello.from, state.links.len() < MOST_UNKNOWN + crate::gateway::MOST_MEMBERS);
        if room && !state.links.contains_key(&from) && !hello.address.is_empty() {
            self.open(&mut state, from, hello.address.clone());
        }
        Ok(())
    }
}

/// Why somebody is not listened to.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) words: String,
    /// Absent where it is no matter of for ever.
    pub(crate) end: Option<End>,
}

/// Why a member never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was a member, and never will be again.
    Removed,
    /// Its directory is another one than its number's.
    LostMemory,
}

/// Keeps a stream to each member alive until shutdown.
pub(crate) async fn tend(
    peers: Arc<Peers>,
    gateway: Gateway,
    driver: mpsc::Sender<FromPeer>,
    shutdown: CancellationToken,
) {
    let mut links = JoinSet::new();
    loop {
        let fresh = {
            let mut state = peers.state();
            peers.settle(&mut state);
            std::mem::take(&mut state.fresh)
        };
        for link in fresh {
            let (peers, gateway, driver) = (Arc::clone(&peers), gateway.clone(), driver.clone());
            let (end, shutdown) = (link.end.clone(), shutdown.clone());
            links.spawn(async move {
                tokio::select! {
                    () = end.cancelled() => {}
                    () = shutdown.cancelled() => {}
                    () = run(peers, link, gateway, driver) => {}
                }
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = peers.changed.notified() => {}
            Some(_) = links.join_next() => {}
        }
    }
    while links.join_next().await.is_some() {}
}

async fn run(peers: Arc<Peers>, mut link: NewLink, gateway: Gateway, driver: mpsc::Sender<FromPeer>) {
    let to = link.to;
    let mut client = RaftClient::new(link.channel.clone()).max_decoding_message_size(MAX_FRAME_BYTES);
    let (mut pause, mut complained) = (RETRY_FIRST, String::new());
    loop {
        let streamed = stream(&peers, to, &mut client, &mut link.queue, &gateway, &mut pause).await;
        let refused = streamed.err().unwrap_or_else(|| weather(""));
        if refused.words != complained {
            tracing::warn!(member = to, address = %link.address, "no stream to a member: {}", refused.words);
            complained = refused.words;
        }
        if let Some(end) = refused.end {
            let _ = driver.send(FromPeer::Ended(end)).await;
        }
        // What waited is out of date by the time the stream stands again.
        while link.queue.try_recv().is_ok() {}
        let _ = driver.send(FromPeer::Unreachable(to)).await;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_LAST);
    }
}

fn weather(words: impl Into<String>) -> Refused {
    Refused { words: words.into(), end: None }
}

/// One stream, until it breaks. The words say why.
async fn stream(
    peers: &Peers,
    to: u64,
    client: &mut RaftClient<Channel>,
    queue: &mut mpsc::Receiver<PeerMessage>,
    gateway: &Gateway,
    pause: &mut Duration,
) -> Result<(), Refused> {
    let greeting = tokio::time::timeout(CONNECT_TIMEOUT * 2, client.greet(peers.hello(to)));
    let welcome = greeting.await.map_err(|_| weather("it does not answer"))?;
    let welcome = welcome.map_err(|status| weather(status.message()))?.into_inner();
    if !welcome.refused.is_empty() {
        let end = match (welcome.removed, welcome.lost_memory) {
            (true, _) => Some(End::Removed),
            (_, true) => Some(End::LostMemory),
            _ => None,
        };
        return Err(Refused { words: welcome.refused, end });
    }
    // What the other is not is for it to hear, not for this member.
    let admitted = peers.admit(&welcome.hello.unwrap_or_default(), gateway).await;
    admitted.map_err(|refused| weather(refused.words))?;
    peers.heard_from(to);
    *pause = RETRY_FIRST;
    let (frames, receiver) = mpsc::channel(FRAMES);
    let first = PeerFrame { hello: Some(peers.hello(to)), ..said_now(gateway) };
    frames.send(first).await.map_err(|_| weather("the stream ended"))?;
    let sending = client.send(ReceiverStream::new(receiver));
    tokio::pin!(sending);
    tracing::debug!(member = to, "stream opened");
    loop {
        tokio::select! {
            ended = &mut sending => {
                return Err(weather(ended.err().map_or("the stream ended".to_owned(), |s| s.message().to_owned())));
            }
            frame = next_frame(queue, gateway) => {
                let Some(frame) = frame else { return Ok(()) };
                tokio::select! {
                    ended = &mut sending => {
                        let words = ended.err().map_or("the stream ended".to_owned(), |s| s.message().to_owned());
                        return Err(weather(words));
                    }
                    sent = frames.send(frame) => sent.map_err(|_| weather("the stream ended"))?,
                }
            }
        }
    }
}

/// What waits in the queue, as one frame; an empty one when it is quiet for long. `None`: the member ends.
async fn next_frame(queue: &mut mpsc::Receiver<PeerMessage>, gateway: &Gateway) -> Option<PeerFrame> {
    let Ok(first) = tokio::time::timeout(QUIET, queue.recv()).await else { return Some(said_now(gateway)) };
    let first = first?;
    let mut bytes = first.encoded_len();
    let mut messages = vec![first];
    while messages.len() < FRAME_MESSAGES && bytes < FRAME_BYTES {
        let Ok(message) = queue.try_recv() else { break };
        bytes += message.encoded_len();
        messages.push(message);
    }
    Some(PeerFrame { messages, ..said_now(gateway) })
}

/// What every frame says of this member.
fn said_now(gateway: &Gateway) -> PeerFrame {
    let (applied, leader) = (gateway.progress().applied.index, gateway.leadership().role.leader);
    PeerFrame { now_ms: clock::now_ms(), applied, leader, ..PeerFrame::default() }
}
