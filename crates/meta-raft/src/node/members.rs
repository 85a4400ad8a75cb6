//! Who is a member: proposing a change, and what follows when one was applied. raft leaves a joint configuration by itself
//! unless its leader falls at the wrong moment; whoever leads later sees to it here.

use raft::StateRole;
use raft::eraftpb::ConfChangeV2;

use super::{Node, NodeError, NotTaken};
use crate::membership;
use crate::reads::Ticket;
use crate::store::Store;

/// How long a removed member stays: its last messages, and who leads now, still go out.
const FAREWELL_TICKS: u32 = 10;
/// Ticks in a joint configuration after which the leader ends it itself.
const JOINT_TICKS: u32 = 20;

/// How far another member is, as its leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Following {
    /// Its number.
    pub id: u64,
    /// It votes.
    pub voter: bool,
    /// Its log is the leader's through here.
    pub matched: u64,
}

impl<S: Store> Node<S> {
    /// Proposes a command together with the change of raft's configuration that belongs to it: see
    /// [`membership::conf_change`]. raft drops it where another change is under way; the caller proposes again.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn propose_change(&mut self, ticket: Ticket, change: &ConfChangeV2, command: Vec<u8>) -> Result<(), NotTaken> {
        self.assert_idle();
        let change = ConfChangeV2 { context: command.into(), ..change.clone() };
        let result = self.raw.propose_conf_change(self.context(ticket), change).map_err(|_| NotTaken);
        self.settle_timeout();
        result
    }

    /// How far the members are, this one included; empty unless it leads.
    #[must_use]
    pub fn following(&self) -> Vec<Following> {
        let raft = &self.raw.raft;
        if raft.state != StateRole::Leader {
            return Vec::new();
        }
        let conf = raft.prs().conf();
        let mut all: Vec<Following> = raft
            .prs()
            .iter()
            .map(|(id, progress)| Following { id: *id, voter: conf.voters().contains(*id), matched: progress.matched })
            .collect();
        all.sort_unstable_by_key(|f| f.id);
        all
    }

    /// A change is under way, or two configurations are in force.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        self.raw.raft.pending_conf_index > self.applied().index || membership::is_joint(&self.store().conf_state())
    }

    /// Nothing that changes the members stands in the log after this; where it leads.
    #[must_use]
    pub fn changed_through(&self) -> u64 {
        self.raw.raft.pending_conf_index
    }

    /// Two configurations are in force.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        membership::is_joint(&self.store().conf_state())
    }

    pub(super) fn notice_members(&mut self) {
        let conf_state = self.store().conf_state();
        self.was_member |= membership::names(&conf_state, self.config.id);
        let newest = self.store().checkpoint().map(membership::of_manifest);
        let lacks =
            |made: raft::eraftpb::ConfState| membership::ids(&conf_state).any(|id| !membership::names(&made, id));
        self.checkpoint_lacks_members = newest.is_some_and(lacks);
    }

    pub(super) fn tick_members(&mut self) -> Result<(), NodeError> {
        let conf_state = self.store().conf_state();
        let removed = self.was_member && !membership::names(&conf_state, self.config.id);
        self.ticks_removed = if removed { self.ticks_removed + 1 } else { 0 };
        if self.ticks_removed > FAREWELL_TICKS {
            return Err(NodeError::Removed { id: self.config.id });
        }
        self.ticks_joint = if membership::is_joint(&conf_state) { self.ticks_joint + 1 } else { 0 };
        if self.ticks_joint >= JOINT_TICKS && self.leads_surely() {
            self.ticks_joint = 0;
            let _ = self.raw.propose_conf_change(Vec::new(), ConfChangeV2::default());
        }
        Ok(())
    }
}
