//! The one owner of the member: a thread that feeds the node ticks, messages and calls, and carries out its orders.
//!
//! It waits for input, takes everything that waits, and then drains the node: what arrived together shares one sync of
//! the disk. A proposal is kept until it is seen applied here, and proposed again after a change of leadership; the
//! state machine applies it once. No call outlives its deadline.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cairn_meta_core::Event;
use cairn_meta_raft::{NodeError, Output, Role, Store, Ticket, membership};
use cairn_proto::meta::{Command, ErrorCode};
use cairn_proto::meta_raft::PeerMessage;
use prost::Message;
use raft::eraftpb::ConfChangeV2;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::figures::{Counts, count};
use crate::gateway::{Call, CallError, Gateway, Leadership, Node, Progress, Proposal, Read};
use crate::own_session::{Name, OwnSessions};
use crate::peers::{End, Peers};
use cairn_proto::meta::command_reply::Result as Answer;

/// Calls and messages that wait for the driver.
const CALLS: usize = 8192;
const PEER_INPUTS: usize = 1024;
/// Inputs taken in one turn, of each kind.
const TURN: usize = 512;
/// Ticks without a leader after which waiting calls are told so. Longer than an election.
const LEADERLESS_TICKS: u32 = 30;
/// Ticks without a leader after which the others' word that there is one counts. An election long: where the leader is
/// gone, the others have noticed by then.
const CUT_OFF_TICKS: u32 = 10;
/// Ticks after which a proposal that was not seen is proposed again.
const AGAIN_TICKS: u32 = 20;
/// Ticks between looks for what can be given back.
const TIDY_TICKS: u64 = 50;

/// Something from another member.
pub(crate) enum FromPeer {
    Messages {
        from: u64,
        messages: Vec<PeerMessage>,
    },
    Unreachable(u64),
    /// The others say that this member never comes back.
    Ended(End),
}

/// Whoever must hear what was applied.
pub(crate) trait Audience: Send {
    /// In order, on the driver's thread: must be quick.
    fn applied(&mut self, events: Vec<Event>);
    /// The state was replaced: earlier events are missing.
    fn replaced(&mut self, node: &Node);
}

pub(crate) struct Driver<A> {
    node: Node,
    heartbeat: Duration,
    peers: Arc<Peers>,
    calls: mpsc::Receiver<Call>,
    from_peers: mpsc::Receiver<FromPeer>,
    leadership: watch::Sender<Leadership>,
    progress: watch::Sender<Progress>,
    audience: A,
    sessions: OwnSessions,
    next_ticket: Ticket,
    proposals: BTreeMap<Ticket, Waiting>,
    reads: BTreeMap<Ticket, Read>,
    leaderless_ticks: u32,
    ticks: u64,
    /// Leadership changed: what waits is to be proposed again.
    renew: bool,
    counts: Arc<Counts>,
}

/// What leads into the driver.
pub(crate) struct Inlets {
    pub(crate) gateway: Gateway,
    pub(crate) from_peers: mpsc::Sender<FromPeer>,
}

/// A proposal that was not yet seen applied.
struct Waiting {
    command: Vec<u8>,
    /// What it changes in raft's configuration.
    change: Option<ConfChangeV2>,
    own: Option<Name>,
    deadline: Instant,
    reply: oneshot::Sender<Result<Answer, CallError>>,
    /// Ticks since it was proposed; `None`: it was not taken yet, or is to be proposed again.
    proposed: Option<u32>,
    /// How often it was taken.
    times: u32,
}

impl<A: Audience> Driver<A> {
    pub(crate) fn new(node: Node, heartbeat: Duration, peers: Arc<Peers>, audience: A) -> (Self, Inlets) {
        let (to_calls, calls) = mpsc::channel(CALLS);
        let (to_peers, from_peers) = mpsc::channel(PEER_INPUTS);
        let (leadership, leaderships) = watch::channel(Leadership::default());
        let (progress, progresses) = watch::channel(Progress::default());
        let inlets = Inlets { gateway: Gateway::new(to_calls, leaderships, progresses), from_peers: to_peers };
        let driver = Self {
            node,
            heartbeat,
            peers,
            calls,
            from_peers,
            leadership,
            progress,
            audience,
            sessions: OwnSessions::new(),
            next_ticket: 1,
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
            leaderless_ticks: 0,
            ticks: 0,
            renew: false,
            counts: Arc::default(),
        };
        (driver, inlets)
    }

    /// What it counts.
    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Until it is told to stop, or cannot go on. A member that never comes back writes that down.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), NodeError> {
        let ended = self.turn_after_turn(shutdown).await;
        match &ended {
            Err(NodeError::Removed { .. }) => self.node.store_mut().update_member(|file| file.removed = true)?,
            Err(NodeError::LostMemory { .. }) => self.node.store_mut().update_member(|file| file.lost_memory = true)?,
            _ => {}
        }
        ended
    }

    async fn turn_after_turn(&mut self, shutdown: CancellationToken) -> Result<(), NodeError> {
        let mut clock = tokio::time::interval(self.heartbeat);
        // After a pause of the process time went by once, not many times.
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut messages, mut calls) = (Vec::with_capacity(TURN), Vec::with_capacity(TURN));
        self.peers.in_joint(self.node.is_joint());
        self.audience.replaced(&self.node);
        self.drain()?;
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                _ = clock.tick() => self.tick()?,
                _ = self.from_peers.recv_many(&mut messages, TURN) => {}
                _ = self.calls.recv_many(&mut calls, TURN) => {}
            }
            // Whatever else waits by now shares the sync.
            while messages.len() < TURN
                && let Ok(message) = self.from_peers.try_recv()
            {
                messages.push(message);
            }
            while calls.len() < TURN
                && let Ok(call) = self.calls.try_recv()
            {
                calls.push(call);
            }
            for message in messages.drain(..) {
                self.hear(message)?;
            }
            for call in calls.drain(..) {
                self.take(call)?;
            }
            self.drain()?;
        }
    }

    fn tick(&mut self) -> Result<(), NodeError> {
        self.node.handle_tick()?;
        self.ticks += 1;
        if self.ticks.is_multiple_of(TIDY_TICKS) {
            self.node.store_mut().tidy()?;
            if cairn_metrics::installed().is_some() {
                self.counts.db_bytes.store(self.node.store().bytes(), Ordering::Relaxed);
            }
        }
        self.check_state()?;
        self.peers.in_joint(self.node.is_joint());
        match self.node.role().leader {
            0 => self.leaderless_ticks = self.leaderless_ticks.saturating_add(1),
            _ => self.leaderless_ticks = 0,
        }
        self.end_late_calls();
        for waiting in self.proposals.values_mut() {
            waiting.proposed = waiting.proposed.map(|ticks| ticks + 1).filter(|ticks| *ticks < AGAIN_TICKS);
        }
        self.propose_waiting();
        Ok(())
    }

    /// A member that cannot read its own state must not go on with it.
    fn check_state(&self) -> Result<(), NodeError> {
        self.node.store().view().failure().map_or(Ok(()), |failure| Err(failure.into()))
    }

    fn hear(&mut self, input: FromPeer) -> Result<(), NodeError> {
        match input {
            FromPeer::Unreachable(member) => self.node.handle_unreachable(member),
            FromPeer::Ended(end) => {
                let id = self.node.store().member().member;
                return Err(match end {
                    End::Removed => NodeError::Removed { id },
                    End::LostMemory => NodeError::LostMemory { id },
                });
            }
            FromPeer::Messages { from, messages } => {
                for message in messages {
                    self.node.handle_message(from, message)?;
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, call: Call) -> Result<(), NodeError> {
        match call {
            Call::Propose(proposal) => self.take_proposal(*proposal),
            Call::Read(read) => {
                count(&self.counts.reads);
                let ticket = self.ticket();
                self.node.read_index(ticket);
                self.reads.insert(ticket, read);
            }
            Call::Local(query) => {
                query(&self.node);
                self.check_state()?;
            }
            Call::UpdateMember(change, done) => {
                self.node.store_mut().update_member(change)?;
                let _ = done.send(());
            }
            Call::TransferLeader(to) => self.node.transfer_leader(to),
        }
        Ok(())
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn take_proposal(&mut self, proposal: Proposal) {
        let Proposal { mut command, own_session, deadline, reply } = proposal;
        count(&self.counts.proposals);
        let own = own_session.then(|| self.sessions.name());
        if let Some(name) = own {
            sign(&mut command, name);
        }
        let ticket = self.ticket();
        let (change, command) = (membership::conf_change(&command), command.encode_to_vec());
        self.proposals.insert(ticket, Waiting { command, change, own, deadline, reply, proposed: None, times: 0 });
        self.propose(ticket);
    }

    fn propose(&mut self, ticket: Ticket) {
        if let Some(waiting) = self.proposals.get_mut(&ticket) {
            let command = waiting.command.clone();
            let taken = match &waiting.change {
                Some(change) => self.node.propose_change(ticket, change, command),
                None => self.node.propose(ticket, command),
            };
            waiting.times += u32::from(taken.is_ok());
            waiting.proposed = taken.is_ok().then_some(0);
        }
    }

    fn propose_waiting(&mut self) {
        if self.node.role().leader != 0 {
            let idle = self.proposals.iter().filter(|(_, w)| w.proposed.is_none());
            let tickets: Vec<Ticket> = idle.map(|(ticket, _)| *ticket).collect();
            tickets.into_iter().for_each(|ticket| self.propose(ticket));
        }
    }

    /// Nothing may be waited for beyond its deadline, nor for long while nobody leads.
    fn end_late_calls(&mut self) {
        let leaderless = self.leaderless_ticks >= LEADERLESS_TICKS || self.cut_off_from() != 0;
        let now = Instant::now();
        let late = |deadline: Instant| leaderless || deadline <= now;
        let tickets: Vec<Ticket> =
            self.proposals.iter().filter(|(_, w)| late(w.deadline)).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            let error = self.reason(|waited_s| CallError::Unknown { waited_s });
            self.give_up(ticket, error);
        }
        let tickets: Vec<Ticket> =
            self.reads.iter().filter(|(_, r)| late(r.deadline)).map(|(ticket, _)| *ticket).collect();
        for ticket in tickets {
            let error = self.reason(|waited_s| CallError::Unconfirmed { waited_s });
            if let Some(read) = self.reads.remove(&ticket) {
                (read.query)(Err(error));
            }
        }
        let reads = &self.reads;
        self.node.forget_reads(|ticket| !reads.contains_key(&ticket));
    }

    fn reason(&self, otherwise: impl FnOnce(u64) -> CallError) -> CallError {
        match (self.node.role().leader, self.cut_off_from()) {
            (0, leader) if leader != 0 => CallError::CutOff { leader },
            (0, _) => CallError::NoLeader { reachable: self.peers.reachable(), members: self.node.voters().len() },
            _ => otherwise(crate::gateway::DEADLINE.as_secs()),
        }
    }

    /// The leader that others follow and that this member does not hear; 0: there is none, as far as is known.
    fn cut_off_from(&self) -> u64 {
        if self.leaderless_ticks < CUT_OFF_TICKS { 0 } else { self.peers.leader_of_others() }
    }

    fn give_up(&mut self, ticket: Ticket, error: CallError) {
        if let Some(waiting) = self.proposals.remove(&ticket) {
            if let Some(name) = waiting.own {
                self.sessions.abandon(name);
            }
            let _ = waiting.reply.send(Err(error));
        }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let Some(mut waiting) = self.proposals.remove(&ticket) else { return };
        // The first leader is about to name the cluster, and this refusal is not remembered: again at the next tick.
        if has_code(&answer, ErrorCode::NotInitialised) {
            (waiting.proposed, waiting.times) = (None, 0);
            self.proposals.insert(ticket, waiting);
            return;
        }
        let Some(name) = waiting.own else {
            let _ = waiting.reply.send(Ok(answer));
            return;
        };
        // A session of ours that was idle for long may be forgotten for the sake of others. What was taken once only
        // was surely not carried out: once more, under another session.
        if has_code(&answer, ErrorCode::SessionExpired) {
            self.sessions.abandon(name);
            if waiting.times == 1 && self.sign_again(&mut waiting) {
                self.proposals.insert(ticket, waiting);
                self.renew = true;
                return;
            }
        } else {
            self.sessions.close(name);
        }
        let _ = waiting.reply.send(Ok(answer));
    }

    fn sign_again(&mut self, waiting: &mut Waiting) -> bool {
        let Ok(mut command) = Command::decode(waiting.command.as_slice()) else { return false };
        let name = self.sessions.name();
        sign(&mut command, name);
        (waiting.command, waiting.own, waiting.proposed) = (command.encode_to_vec(), Some(name), None);
        true
    }

    // ---- carrying out orders

    fn drain(&mut self) -> Result<(), NodeError> {
        loop {
            while let Some(output) = self.node.poll_output()? {
                self.carry_out(output);
            }
            if !std::mem::take(&mut self.renew) {
                break;
            }
            self.propose_waiting();
        }
        self.publish();
        Ok(())
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Send { to, message } => self.peers.send(to, message),
            Output::Applied { ticket, applied, .. } => {
                count(&self.counts.applied);
                if !applied.events.is_empty() {
                    // First: who leaves is not to be told so while it is still needed.
                    self.peers.in_joint(self.node.is_joint());
                    self.audience.applied(applied.events);
                }
                if let (Some(ticket), Some(answer)) = (ticket, applied.reply.result) {
                    self.answer(ticket, answer);
                }
            }
            Output::ReadReady { ticket } => {
                if let Some(read) = self.reads.remove(&ticket) {
                    (read.query)(Ok(&self.node));
                }
            }
            Output::Role(role) => self.notice(role),
            Output::StateReplaced { .. } => {
                count(&self.counts.snapshots_installed);
                self.peers.in_joint(self.node.is_joint());
                self.audience.replaced(&self.node);
            }
        }
    }

    /// After a change of leadership nobody knows which proposals the old leader had: all are made again.
    fn notice(&mut self, role: Role) {
        count(&self.counts.leader_changes);
        tracing::info!(leader = role.leader, term = role.term, leading = role.leading, "leadership");
        for waiting in self.proposals.values_mut() {
            waiting.proposed = None;
        }
        self.renew = true;
    }

    fn publish(&mut self) {
        let leadership =
            Leadership { role: self.node.role(), surely: self.node.leads_surely(), cut_off_from: self.cut_off_from() };
        set_if_new(&self.leadership, leadership);
        let progress = Progress {
            applied: self.node.applied(),
            last_index: self.node.last().index,
            committed: self.node.committed(),
            checkpoint: self.node.store().checkpoint().map_or(0, |m| m.index),
        };
        set_if_new(&self.progress, progress);
    }
}

fn set_if_new<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|old| {
        let changed = *old != value;
        *old = value;
        changed
    });
}

fn has_code(answer: &Answer, code: ErrorCode) -> bool {
    matches!(answer, Answer::Error(error) if error.code() == code)
}

fn sign(command: &mut Command, name: Name) {
    command.session = name.session.as_bytes().to_vec().into();
    command.seq = name.seq;
    command.acked_through = name.acked_through;
}
