//! One metadata member without I/O of its own: raft, the state machine and the store, driven by ticks and messages.
//!
//! Use: call `handle_*`, [`Node::propose`] and [`Node::read_index`], as often as there is something to say, then
//! [`Node::poll_output`] until it answers `None`, carrying out each order as it comes. What was said together is
//! written to disk together. The order is the safety argument: what a leader sends may leave
//! before its own disk has the entries, what a follower or a candidate sends leaves only after (Raft thesis 10.2.1),
//! and the store is written inside `poll_output`, between those orders. An error is final: the member stops, and
//! what it has is read again from disk by the next life.
//!
//! It never looks at a clock and draws no random numbers but those of its seed: election timeouts too are set here,
//! over those that raft draws for itself, so that a simulation replays.

mod members;
mod ready;
mod transfers;

use std::collections::VecDeque;

use cairn_meta_core::{Applied, Machine, StateRead};
use cairn_proto::meta_raft::{PeerMessage, peer_message::Body};
use protobuf::Message as _;
use raft::eraftpb::{Entry, Message, MessageType};
use raft::{RawNode, Ready, StateRole};

pub use members::Following;

use crate::log_view::LogView;
use crate::reads::{Reads, Ticket};
use crate::snapshots::{Incoming, Outgoing};
use crate::store::{Position, Store, StoreError};

/// How many times the usual amount of log may gather while a member is being sent a snapshot.
const PATIENCE_WITH_RECEIVERS: u64 = 8;

/// How one member behaves.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Its number among the members, not 0.
    pub id: u64,
    /// Ticks without a leader after which an election may start: between this and twice this.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Different in every life of every member.
    pub seed: u64,
    /// Entries after which a new checkpoint is made and the log truncated.
    pub checkpoint_entries: u64,
    /// Bytes of entries after which the same is done.
    pub checkpoint_bytes: u64,
    /// Applied entries that are kept in spite of a checkpoint, so that a member that was away for a moment needs no
    /// snapshot.
    pub keep_entries: u64,
    /// Bytes of one piece of a snapshot, about.
    pub chunk_bytes: usize,
}

impl NodeConfig {
    /// The defaults for member `id`: heartbeats each tick, elections after 10 to 20.
    #[must_use]
    pub fn new(id: u64, seed: u64) -> Self {
        Self {
            id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            seed,
            checkpoint_entries: 20_000,
            checkpoint_bytes: 64 << 20,
            keep_entries: 2_000,
            chunk_bytes: 256 << 10,
        }
    }
}

/// Why a member cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Its disk failed, or lied.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// raft refused to work with what it found.
    #[error("raft: {0}")]
    Raft(String),
    /// The state on disk cannot be understood.
    #[error(transparent)]
    State(#[from] cairn_meta_core::Corrupt),
    /// The leader knows of entries that this member once acknowledged and no longer has.
    #[error(
        "this member acknowledged the log through {acknowledged}, as the leader ({leader}) remembers, but has it only \
         through {have}: its directory was wiped, or restored from an older copy; it must not vote again"
    )]
    LostLog {
        /// Who remembers.
        leader: u64,
        /// The end of what was acknowledged.
        acknowledged: u64,
        /// The end of what is there.
        have: u64,
    },
    /// It is no member any more.
    #[error(
        "member {id} was removed from the cluster: its number is never used again, and its directory can be deleted; \
         to have a member here again, start one with a new directory and --join"
    )]
    Removed {
        /// Itself.
        id: u64,
    },
    /// The others know this member by another directory.
    #[error(
        "member {id} begins anew, and the others remember another directory: what it had promised is lost, and its vote \
         could lose acknowledged writes; start a new member in its place, on an empty directory: --join MEMBERS \
         --replace {id}"
    )]
    LostMemory {
        /// Itself.
        id: u64,
    },
    /// raft and the state machine disagree about who the members are.
    #[error(
        "log entry {index} would leave raft with the voters {raft}, and the members' record with {written}: a bug; this \
         member stops before it carries it out"
    )]
    Members {
        /// Where.
        index: u64,
        /// As raft has them.
        raft: String,
        /// As the state machine has them.
        written: String,
    },
    /// The log holds an entry of a kind that this version does not write.
    #[error("log entry {index} is of a kind this version does not know; start this member with a newer version")]
    UnknownEntry {
        /// Where.
        index: u64,
    },
}

/// An order to the driver.
#[derive(Debug)]
pub enum Output {
    /// Hand this to another member; it may be lost, doubled or late, but must be whole.
    Send {
        /// To whom.
        to: u64,
        /// What.
        message: PeerMessage,
    },
    /// A command was applied.
    Applied {
        /// Where in the log.
        at: Position,
        /// As given to [`Node::propose`], where it was this life of this member that proposed it.
        ticket: Option<Ticket>,
        /// What it did and answers; large beside the others.
        applied: Box<Applied>,
    },
    /// The read may be executed on the present state.
    ReadReady {
        /// As given to [`Node::read_index`].
        ticket: Ticket,
    },
    /// Leadership changed, as far as this member knows.
    Role(Role),
    /// The whole state was replaced by a snapshot of another member.
    StateReplaced {
        /// What it contains.
        at: Position,
    },
}

/// Who leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// 0: nobody known.
    pub leader: u64,
    /// The term this member is in.
    pub term: u64,
    /// This member leads.
    pub leading: bool,
}

/// The proposal was not taken: there is no leader, or too much is uncommitted. Nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the proposal was not taken: no leader is known, or too many proposals wait to be committed")]
pub struct NotTaken;

/// What is left to do of a `Ready`.
enum Stage {
    Idle,
    /// The leader's messages are out; committed entries are being applied, then the rest is persisted.
    Begun {
        ready: Box<Ready>,
        entries: VecDeque<Entry>,
    },
    /// Persisted; what became committed by that is being applied.
    Persisted {
        entries: VecDeque<Entry>,
    },
}

/// One member.
pub struct Node<S: Store> {
    config: NodeConfig,
    raw: RawNode<LogView<S>>,
    machine: Machine,
    logger: slog::Logger,
    stage: Stage,
    outputs: VecDeque<Output>,
    reads: Reads,
    incoming: Option<Incoming>,
    outgoing: Outgoing,
    role: Role,
    /// Term and role for which the election timeout was drawn.
    drawn_for: (u64, StateRole),
    timeout: usize,
    draws: u64,
    ticks: u64,
    bytes_since_checkpoint: u64,
    /// The newest checkpoint was made before somebody became a member, and so cannot be sent to it.
    checkpoint_lacks_members: bool,
    /// raft's configuration names this member, or did.
    was_member: bool,
    ticks_removed: u32,
    ticks_joint: u32,
}

impl<S: Store> Node<S> {
    /// A member with what its store has.
    ///
    /// # Errors
    /// When the store's contents cannot be used.
    pub fn open(config: NodeConfig, store: S, logger: slog::Logger) -> Result<Self, NodeError> {
        let machine = Machine::open(store.state())?;
        let raw = RawNode::new(&raft_config(&config, &store), LogView::new(store), &logger)
            .map_err(|e| NodeError::Raft(e.to_string()))?;
        let mut node = Self {
            reads: Reads::new(config.id, config.seed),
            raw,
            machine,
            logger,
            stage: Stage::Idle,
            outputs: VecDeque::new(),
            incoming: None,
            outgoing: Outgoing::default(),
            role: Role::default(),
            drawn_for: (u64::MAX, StateRole::Follower),
            timeout: config.election_ticks,
            draws: 0,
            ticks: 0,
            bytes_since_checkpoint: 0,
            checkpoint_lacks_members: false,
            was_member: false,
            ticks_removed: 0,
            ticks_joint: 0,
            config,
        };
        node.notice_members();
        node.settle_timeout();
        if node.voters() == [node.config.id] {
            node.raw.campaign().map_err(|e| NodeError::Raft(e.to_string()))?;
            node.settle_timeout();
        }
        Ok(node)
    }

    /// One tick of time passed.
    ///
    /// # Errors
    /// When a checkpoint failed.
    pub fn handle_tick(&mut self) -> Result<(), NodeError> {
        self.assert_idle();
        self.ticks += 1;
        self.raw.tick();
        self.hasten_first_election();
        self.settle_timeout();
        self.reads.tick();
        self.tick_transfers();
        self.tick_members()?;
        self.collect_checkpoint()
    }

    /// A message of another member arrived. One that cannot be read is dropped: raft repeats what matters.
    ///
    /// # Errors
    /// When the store fails, or the message proves that this member lost what it had.
    pub fn handle_message(&mut self, from: u64, message: PeerMessage) -> Result<(), NodeError> {
        self.assert_idle();
        match message.body {
            Some(Body::Raft(bytes)) => match Message::parse_from_bytes(&bytes) {
                Ok(message) if message.from == from => self.handle_raft(message)?,
                _ => slog::warn!(self.logger, "dropped a message that cannot be read"; "from" => from),
            },
            Some(Body::Fetch(fetch)) => self.handle_fetch(from, &fetch)?,
            Some(Body::Chunk(chunk)) => self.handle_chunk(from, &chunk)?,
            None => slog::warn!(self.logger, "dropped an empty message"; "from" => from),
        }
        self.settle_timeout();
        Ok(())
    }

    /// The last messages to that member did not go out.
    pub fn handle_unreachable(&mut self, member: u64) {
        self.assert_idle();
        self.raw.report_unreachable(member);
    }

    /// Proposes a command. That it was taken does not mean that it will be committed: a leader may fall. It is
    /// proposed again by its caller, under the same session and sequence, until [`Output::Applied`] answers.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn propose(&mut self, ticket: Ticket, command: Vec<u8>) -> Result<(), NotTaken> {
        self.assert_idle();
        let result = self.raw.propose(self.context(ticket), command).map_err(|_| NotTaken);
        self.settle_timeout();
        result
    }

    /// Asks for a linearizable read: [`Output::ReadReady`] says when.
    pub fn read_index(&mut self, ticket: Ticket) {
        self.assert_idle();
        self.reads.add(ticket);
    }

    /// Nobody waits any more for these reads.
    pub fn forget_reads(&mut self, gone: impl Fn(Ticket) -> bool) {
        self.reads.forget(gone);
    }

    /// Tries to hand leadership to another member.
    pub fn transfer_leader(&mut self, to: u64) {
        self.assert_idle();
        self.raw.transfer_leader(to);
    }

    /// The next order; `None`: nothing to do until something is handled again.
    ///
    /// # Errors
    /// Final ones.
    pub fn poll_output(&mut self) -> Result<Option<Output>, NodeError> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Ok(Some(output));
            }
            match std::mem::replace(&mut self.stage, Stage::Idle) {
                Stage::Idle => {
                    self.ask_reads();
                    if !self.raw.has_ready() {
                        return Ok(None);
                    }
                    self.begin_ready();
                }
                Stage::Begun { ready, mut entries } => match entries.pop_front() {
                    Some(entry) => {
                        self.stage = Stage::Begun { ready, entries };
                        self.apply(&entry)?;
                    }
                    None => self.persist(*ready)?,
                },
                Stage::Persisted { mut entries } => match entries.pop_front() {
                    Some(entry) => {
                        self.stage = Stage::Persisted { entries };
                        self.apply(&entry)?;
                    }
                    None => self.finish_ready()?,
                },
            }
        }
    }

    // ---- what is known

    /// The state machine, as of [`Node::applied`].
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The state it stands on.
    #[must_use]
    pub fn state(&self) -> &dyn StateRead {
        self.store().state()
    }

    /// The disk.
    #[must_use]
    pub fn store(&self) -> &S {
        self.raw.store().store()
    }

    /// The disk, for what the driver keeps there beside log and state. Never to write either of these.
    pub fn store_mut(&mut self) -> &mut S {
        self.raw.mut_store().store_mut()
    }

    /// The disk itself, when the member ends: the simulation takes it into the next life.
    #[must_use]
    pub fn into_store(self) -> S {
        self.raw.raft.r.raft_log.store.into_inner()
    }

    /// Who leads.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// This member leads, and has committed an entry of its own term: it knows all that was committed before.
    #[must_use]
    pub fn leads_surely(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && self.raw.raft.commit_to_current_term()
    }

    /// The last applied position.
    #[must_use]
    pub fn applied(&self) -> Position {
        self.store().applied()
    }

    /// The end of the log.
    #[must_use]
    pub fn last(&self) -> Position {
        self.store().last()
    }

    /// The last index known to be committed.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    /// The members that vote, ascending.
    #[must_use]
    pub fn voters(&self) -> Vec<u64> {
        let mut voters: Vec<u64> = self.raw.raft.prs().conf().voters().ids().iter().collect();
        voters.sort_unstable();
        voters
    }

    /// Reads that wait.
    #[must_use]
    pub fn waiting_reads(&self) -> usize {
        self.reads.len()
    }

    /// A snapshot is being received.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.incoming.is_some()
    }

    /// What must hold at any moment.
    ///
    /// # Panics
    /// When it does not.
    pub fn invariants(&self) {
        let (store, log) = (self.store(), &self.raw.raft.raft_log);
        assert!(store.applied().index <= log.committed, "applied beyond what is committed");
        assert!(store.truncated().index <= store.applied().index, "truncated beyond what is applied");
        assert!(store.truncated().index <= store.last().index, "the log ends before it begins");
        let checkpoint = store.checkpoint().map_or(0, |m| m.index);
        assert!(store.truncated().index <= checkpoint, "truncated beyond the checkpoint");
    }

    // ---- inputs

    fn assert_idle(&self) {
        assert!(matches!(self.stage, Stage::Idle), "poll_output must be drained before the next input");
    }

    fn handle_raft(&mut self, message: Message) -> Result<(), NodeError> {
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.commit > self.raw.raft.raft_log.last_index() => {
                return Err(NodeError::LostLog {
                    leader: message.from,
                    acknowledged: message.commit,
                    have: self.raw.raft.raft_log.last_index(),
                });
            }
            MessageType::MsgSnapshot => return self.handle_offer(message),
            _ => {}
        }
        self.step(message);
        Ok(())
    }

    fn step(&mut self, message: Message) {
        if let Err(error) = self.raw.step(message) {
            slog::debug!(self.logger, "raft did not take a message"; "error" => %error);
        }
    }

    /// Sets the election timeout anew for each term and role: raft's own draw is not repeatable.
    fn settle_timeout(&mut self) {
        let now = (self.raw.raft.term, self.raw.raft.state);
        if now != self.drawn_for {
            self.drawn_for = now;
            self.draws += 1;
            let draw = cairn_types::id::mix(cairn_types::id::mix(self.config.seed ^ self.config.id) ^ self.draws);
            self.timeout = self.config.election_ticks + (draw % self.config.election_ticks as u64) as usize;
        }
        self.raw.raft.set_randomized_election_timeout(self.timeout);
    }

    /// In a cluster that never had a leader nobody can be disturbed: the first member asks for votes at once.
    fn hasten_first_election(&mut self) {
        let fresh = self.raw.raft.term == 0 && self.raw.raft.leader_id == 0;
        if fresh && self.ticks.is_multiple_of(2) && self.voters().first() == Some(&self.config.id) {
            let _ = self.raw.campaign();
        }
    }

    fn ask_reads(&mut self) {
        let raft = &self.raw.raft;
        let can_answer = match raft.state {
            StateRole::Leader => raft.commit_to_current_term(),
            _ => raft.leader_id != 0,
        };
        while can_answer && let Some(name) = self.reads.next_to_ask() {
            self.raw.read_index(name);
        }
    }

    /// Marks an entry as this member's own, so that its reply finds the way back.
    fn context(&self, ticket: Ticket) -> Vec<u8> {
        [self.config.id, self.config.seed, ticket].iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    fn ticket_of(&self, entry: &Entry) -> Option<Ticket> {
        let ticket = entry.context.strip_prefix(&self.context(0)[..16])?;
        ticket.try_into().ok().map(u64::from_be_bytes)
    }
}

fn raft_config<S: Store>(config: &NodeConfig, store: &S) -> raft::Config {
    raft::Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied: store.applied().index,
        max_size_per_msg: 1 << 20,
        max_inflight_msgs: 256,
        check_quorum: true,
        pre_vote: true,
        batch_append: true,
        max_uncommitted_size: 64 << 20,
        max_committed_size_per_ready: 4 << 20,
        ..raft::Config::default()
    }
}
