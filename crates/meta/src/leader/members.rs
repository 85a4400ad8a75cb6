//! The leader and the members: changes that are asked for, and what is due for a member that was added.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use cairn_meta_core::Refusal;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{ChangeMemberReply, ChangeMemberRequest, ErrorCode};
use cairn_proto::meta_raft::raft_client::RaftClient;
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{Leader, command};
use crate::gateway::CallError;
use crate::membership::{Step, View};

/// How long a new leader takes to hear from everybody, and how often it looks.
const SETTLING: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How much is committed between two looks at the members.
#[derive(Default)]
pub(super) struct Pace {
    last: u64,
    round: u64,
}

impl Pace {
    fn look(&mut self, committed: u64) {
        // At the first look nothing is known of the time before.
        self.round = if self.last == 0 { 0 } else { committed.saturating_sub(self.last) };
        self.last = committed;
    }
}

impl Leader {
    /// A change of members, judged and carried out by the leader.
    pub(crate) async fn change_member(&self, request: ChangeMemberRequest) -> Result<ChangeMemberReply, CallError> {
        let here = || self.change_member_here(&request);
        let there = |mut leader: RaftClient<Channel>| {
            let request = request.clone();
            async move { leader.change_member(request).await.map(|r| r.into_inner()) }
        };
        self.ask(here, there).await
    }

    /// The same, if this member leads.
    pub(crate) async fn change_member_here(
        &self,
        request: &ChangeMemberRequest,
    ) -> Result<Option<ChangeMemberReply>, CallError> {
        if !self.gateway.leadership().surely {
            return Ok(None);
        }
        let change = request.change.clone();
        let change = change.ok_or_else(|| Refusal::new(ErrorCode::InvalidArgument, "the request names no change"))?;
        let Some(judged) = self.judge(&change).await? else { return Ok(None) };
        let step = match judged? {
            Step::Transfer { .. } if request.dry_run => Step::Change(change),
            step => step,
        };
        match step {
            Step::Transfer { to } => {
                tracing::info!(to, "hands over the lead, because this member is to go");
                self.gateway.transfer_leader(to).await?;
                Ok(None)
            }
            Step::Change(change) => {
                let request = ChangeMemberRequest { change: Some(change), ..request.clone() };
                if request.dry_run {
                    let rehearsed = self.gateway.query(move |machine, state| machine.rehearse_member(state, &request));
                    return rehearsed.await.map(Some);
                }
                self.carry_out(request).await.map(Some)
            }
        }
    }

    /// What is to be done about a change that is asked for; `None`: this member does not lead any more. A leader that is new
    /// has not heard from everybody yet: what it would refuse it looks at again for a moment.
    async fn judge(&self, change: &Change) -> Result<Option<Result<Step, Refusal>>, CallError> {
        let deadline = Instant::now() + SETTLING;
        loop {
            let Some(view) = self.view().await? else { return Ok(None) };
            let judged = view.judge(change);
            if judged.is_ok() || Instant::now() >= deadline {
                return Ok(Some(judged));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn carry_out(&self, mut request: ChangeMemberRequest) -> Result<ChangeMemberReply, CallError> {
        let mutation = request.mutation.take().unwrap_or_default();
        let mut command = command(Payload::ChangeMember(request), mutation.request_id);
        let answer = match mutation.session.is_empty() {
            true => self.gateway.propose_once(command).await?,
            false => {
                (command.session, command.seq) = (mutation.session, mutation.seq);
                command.acked_through = mutation.acked_through;
                self.gateway.propose(command).await?
            }
        };
        match answer {
            Answer::ChangeMember(reply) => {
                tracing::info!("members: {}", reply.words);
                Ok(reply)
            }
            _ => Err(CallError::Stopping),
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this member sees, if it leads.
    async fn view(&self) -> Result<Option<View>, CallError> {
        let seen = self.gateway.look(|node| {
            let changes = (node.is_changing(), node.changed_through());
            (node.machine().members().clone(), node.following(), node.committed(), changes)
        });
        let (members, following, committed, (changing, changed_through)) = seen.await?;
        if following.is_empty() {
            return Ok(None);
        }
        let ids = members.members.iter().map(|m| m.id);
        let reachable = ids.filter(|id| self.peers.is_reachable(*id)).collect();
        let round = self.pace().round;
        let up_to_date = self.peers.have_applied(changed_through);
        Ok(Some(View { leader: self.me, members, reachable, following, committed, round, changing, up_to_date }))
    }

    /// Whether a majority of the voters acts on the latest change of members; no, unless this member leads.
    pub(crate) async fn has_settled(&self) -> Result<bool, CallError> {
        Ok(self.view().await?.is_some_and(|view| view.is_settled()))
    }

    /// Members that were added vote once they have caught up; those that they replace go.
    pub(super) async fn tend_members(&self) {
        let committed = self.gateway.progress().committed;
        self.pace().look(committed);
        if !View::is_unsettled(&self.peers.members()) {
            return;
        }
        let Ok(Some(view)) = self.view().await else { return };
        match view.next_step() {
            Some(Step::Transfer { to }) => {
                tracing::info!(to, "hands over the lead, because this member is being replaced");
                let _ = self.gateway.transfer_leader(to).await;
            }
            Some(Step::Change(change)) => {
                let request = ChangeMemberRequest { change: Some(change), ..ChangeMemberRequest::default() };
                if let Err(error) = self.carry_out(request).await {
                    tracing::debug!("a change of members waits: {error}");
                }
            }
            None => {}
        }
    }
}
