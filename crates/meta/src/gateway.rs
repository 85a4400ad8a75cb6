//! What the doors hold of the member: propose a command, read linearizably, read what is here. Each call is bounded
//! in number and time, and answers why when it cannot be carried out.

use std::sync::Arc;
use std::time::Duration;

use cairn_meta_core::{Failure, Machine, Refusal, StateRead};
use cairn_meta_raft::{Position, Role, StoreError};
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{Command, CommandError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::disk::{MemberFile, RocksStore, StateView};

/// Proposals of this member that may wait at once.
const MAX_PROPOSALS: usize = 4096;
/// Reads of this member that may wait at once.
const MAX_READS: usize = 4096;
/// Long reads that go on at once, each on a thread.
const MAX_ASIDES: usize = 8;
/// Bytes of one command: etcd's own limit.
pub(crate) const MAX_COMMAND_BYTES: usize = 1536 << 10;
/// Members that one could ever meet, learners and leaving ones included.
pub(crate) const MOST_MEMBERS: usize = 16;
/// No call waits longer.
pub(crate) const DEADLINE: Duration = Duration::from_secs(8);

pub(crate) type Node = cairn_meta_raft::Node<RocksStore>;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum CallError {
    /// Too much waits already.
    #[error("this member is busy: {waiting} calls wait")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// Nobody leads.
    #[error("no leader; {reachable} of {members} members reachable")]
    NoLeader {
        /// Heard from lately, this one included.
        reachable: usize,
        /// All of them.
        members: usize,
    },
    /// Others follow a leader that this member does not hear.
    #[error("this member is cut off from member {leader}, which leads")]
    CutOff {
        /// As the others say.
        leader: u64,
    },
    /// A proposal was neither seen committed nor refused.
    #[error("the command was proposed but not committed within {waited_s} s; it may still be carried out")]
    Unknown {
        /// How long it waited.
        waited_s: u64,
    },
    /// A read was not confirmed by a quorum.
    #[error("the read was not confirmed by a quorum within {waited_s} s")]
    Unconfirmed {
        /// How long it waited.
        waited_s: u64,
    },
    /// Not even the member's own driver answered.
    #[error("this member did not answer within {waited_s} s: its disk is very slow or stuck")]
    Stalled {
        /// How long it was waited for.
        waited_s: u64,
    },
    /// Larger than the log takes.
    #[error("the request has {bytes} bytes, and the limit is {MAX_COMMAND_BYTES}")]
    TooLarge {
        /// How large.
        bytes: usize,
    },
    /// The state machine said no.
    #[error("{}", .0.message)]
    Refused(CommandError),
    /// The disk failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The member ends.
    #[error("this member is stopping")]
    Stopping,
}

/// Who leads, as the driver last said. Changes rarely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leadership {
    pub(crate) role: Role,
    /// This member leads and knows everything that was committed before.
    pub(crate) surely: bool,
    /// This member follows nobody, and others say whom they follow; otherwise 0. Another member is to be asked: this one
    /// may stay without a leader for as long as the network is as it is.
    pub(crate) cut_off_from: u64,
}

/// How far the member is, as the driver last said. Changes with every command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) applied: Position,
    pub(crate) last_index: u64,
    pub(crate) committed: u64,
    /// Where the newest checkpoint stands; 0: there is none.
    pub(crate) checkpoint: u64,
}

pub(crate) struct Proposal {
    pub(crate) command: Command,
    /// To be made to happen once by the member's own session, as the command has none.
    pub(crate) own_session: bool,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Answer, CallError>>,
}

/// Runs on the driver's thread when the read may be executed, or hears why it will not be.
type Query = Box<dyn FnOnce(Result<&Node, CallError>) + Send>;

pub(crate) struct Read {
    pub(crate) deadline: Instant,
    pub(crate) query: Query,
}

/// What the doors ask of the driver.
pub(crate) enum Call {
    Propose(Box<Proposal>),
    Read(Read),
    Local(Box<dyn FnOnce(&Node) + Send>),
    UpdateMember(Box<dyn FnOnce(&mut MemberFile) + Send>, oneshot::Sender<()>),
    TransferLeader(u64),
}

/// A handle of the member; cheap to clone.
#[derive(Clone)]
pub(crate) struct Gateway {
    calls: mpsc::Sender<Call>,
    leadership: watch::Receiver<Leadership>,
    progress: watch::Receiver<Progress>,
    proposals: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    asides: Arc<Semaphore>,
}

impl Gateway {
    pub(crate) fn new(
        calls: mpsc::Sender<Call>,
        leadership: watch::Receiver<Leadership>,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        let [proposals, reads, asides] =
            [MAX_PROPOSALS, MAX_READS, MAX_ASIDES].map(|permits| Arc::new(Semaphore::new(permits)));
        Self { calls, leadership, progress, proposals, reads, asides }
    }

    /// Who leads now.
    pub(crate) fn leadership(&self) -> Leadership {
        *self.leadership.borrow()
    }

    /// Follows who leads.
    pub(crate) fn leaderships(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// How far the member is now.
    pub(crate) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Follows how far it is: changes with every command.
    pub(crate) fn progresses(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Proposals and reads under way.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let (proposals, reads) = (self.proposals.available_permits(), self.reads.available_permits());
        (MAX_PROPOSALS - proposals, MAX_READS - reads)
    }

    /// Has a command carried out: once if it has a session, perhaps several times if it has none.
    pub(crate) async fn propose(&self, command: Command) -> Result<Answer, CallError> {
        self.submit(command, false).await
    }

    /// Has a command of a client without a session carried out once, under the member's own session.
    pub(crate) async fn propose_once(&self, command: Command) -> Result<Answer, CallError> {
        self.submit(command, true).await
    }

    async fn submit(&self, command: Command, own_session: bool) -> Result<Answer, CallError> {
        let Ok(_permit) = self.proposals.try_acquire() else {
            return Err(CallError::Busy { waiting: MAX_PROPOSALS });
        };
        let bytes = prost::Message::encoded_len(&command);
        if bytes > MAX_COMMAND_BYTES {
            return Err(CallError::TooLarge { bytes });
        }
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal { command, own_session, deadline: Instant::now() + DEADLINE, reply };
        match self.ask(Call::Propose(Box::new(proposal)), answer).await?? {
            Answer::Error(error) => Err(CallError::Refused(error)),
            answer => Ok(answer),
        }
    }

    /// The driver keeps the deadlines; this one is for the case that the driver itself hangs in its disk.
    async fn ask<T>(&self, call: Call, answer: oneshot::Receiver<T>) -> Result<T, CallError> {
        let asked = async {
            self.calls.send(call).await.map_err(|_| CallError::Stopping)?;
            answer.await.map_err(|_| CallError::Stopping)
        };
        let patience = DEADLINE + Duration::from_secs(1);
        let stalled = |_| Err(CallError::Stalled { waited_s: patience.as_secs() });
        tokio::time::timeout(patience, asked).await.unwrap_or_else(stalled)
    }

    /// Reads a state that contains everything acknowledged, anywhere, before this call.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Machine, &dyn StateRead) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.read_node(move |node| sound(node, read(node.machine(), node.state()))).await?
    }

    /// A query of the state machine, linearizable, that may refuse.
    pub(crate) async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Machine, &dyn StateRead) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        self.read_node(move |node| judged(&node.store().view(), query(node.machine(), node.state()))).await?
    }

    /// The same on this member's own state, possibly behind the others.
    pub(crate) async fn query_here<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Machine, &dyn StateRead) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        self.look(move |node| judged(&node.store().view(), query(node.machine(), node.state()))).await?
    }

    /// A query that may take long: on a thread of its own, on the state of one moment, which is not older than any
    /// answer given before (`linearizable`) or than this member's.
    pub(crate) async fn query_aside<T: Send + 'static>(
        &self,
        linearizable: bool,
        query: impl FnOnce(&dyn StateRead) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, CallError> {
        let view = match linearizable {
            true => self.read_node(|node| node.store().view()).await?,
            false => self.look(|node| node.store().view()).await?,
        };
        let Ok(permit) = tokio::time::timeout(DEADLINE, Arc::clone(&self.asides).acquire_owned()).await else {
            return Err(CallError::Busy { waiting: MAX_ASIDES });
        };
        let work = move || {
            let _permit = permit;
            let result = view.frozen(query)?;
            judged(&view, result)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or(Err(CallError::Stopping))
    }

    /// Leave to read for long on a thread of its own, if there is any left.
    pub(crate) fn aside(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.asides).try_acquire_owned().ok()
    }

    /// The same, with all of the member to look at.
    pub(crate) async fn read_node<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let Ok(_permit) = self.reads.try_acquire() else { return Err(CallError::Busy { waiting: MAX_READS }) };
        let (reply, answer) = oneshot::channel();
        let query = Box::new(move |node: Result<&Node, CallError>| {
            let _ = reply.send(node.map(read));
        });
        let call = Call::Read(Read { deadline: Instant::now() + DEADLINE, query });
        self.ask(call, answer).await?
    }

    /// Reads the state of this member as it is: possibly behind the others.
    pub(crate) async fn local<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Machine, &dyn StateRead) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        self.look(move |node| sound(node, read(node.machine(), node.state()))).await?
    }

    /// Looks at the member as it is.
    pub(crate) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        let (reply, answer) = oneshot::channel();
        let query = Box::new(move |node: &Node| {
            let _ = reply.send(look(node));
        });
        self.ask(Call::Local(query), answer).await
    }

    /// Changes what the MEMBER file says, durably.
    pub(crate) async fn update_member(
        &self,
        change: impl FnOnce(&mut MemberFile) + Send + 'static,
    ) -> Result<(), CallError> {
        let (done, answer) = oneshot::channel();
        self.ask(Call::UpdateMember(Box::new(change), done), answer).await
    }

    /// Returns when nobody has led for `patience`, as far as this member knows, or others follow whom it does not hear.
    pub(crate) async fn leader_lost(&self, patience: Duration) {
        let mut leaderships = self.leadership.clone();
        loop {
            if leaderships.wait_for(|l| l.role.leader == 0).await.is_err() {
                return;
            }
            let found = leaderships.wait_for(|l| l.role.leader != 0 || l.cut_off_from != 0);
            match tokio::time::timeout(patience, found).await {
                Ok(Ok(leadership)) if leadership.role.leader != 0 => {}
                _ => return,
            }
        }
    }

    /// Asks raft to hand leadership over.
    pub(crate) async fn transfer_leader(&self, to: u64) -> Result<(), CallError> {
        self.calls.send(Call::TransferLeader(to)).await.map_err(|_| CallError::Stopping)
    }
}

/// An answer is worth something only if every read behind it succeeded.
fn sound<T>(node: &Node, result: T) -> Result<T, CallError> {
    node.store().view().failure().map_or(Ok(result), |failure| Err(failure.into()))
}

fn judged<T>(view: &StateView, result: Result<T, Failure>) -> Result<T, CallError> {
    if let Err(Failure::Corrupt(corrupt)) = &result {
        view.condemn(&corrupt.to_string());
    }
    if let Some(failure) = view.failure() {
        return Err(failure.into());
    }
    result.map_err(|failure| match failure {
        Failure::Refused(refusal) => refusal.into(),
        Failure::Corrupt(_) => CallError::Stopping,
    })
}

impl From<Refusal> for CallError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}
