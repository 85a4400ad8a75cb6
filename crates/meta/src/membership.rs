//! What the leader thinks of a change of members: whether a majority would be left, who must lead first, and what is to be
//! done next for a member that was added. A decision only: the facts come in as a `View`.
//!
//! Members are added one at a time, as learners, and vote when they have caught up. A replacement begins to vote in the
//! same step in which the old one goes, so that a dead member never counts beside its successor.

use cairn_meta_core::Refusal;
use cairn_meta_raft::Following;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::{AddMember, ErrorCode, MemberRecord, MembersRecord, PromoteMember};

/// A learner this close to the end of the log has caught up.
const CLOSE: u64 = 256;

/// What the leader sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) leader: u64,
    pub(crate) members: MembersRecord,
    pub(crate) reachable: Vec<u64>,
    pub(crate) following: Vec<Following>,
    /// The end of the log.
    pub(crate) last: u64,
    /// Another change is under way.
    pub(crate) changing: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Propose this.
    Change(Change),
    /// Somebody else must lead before.
    Transfer { to: u64 },
}

impl View {
    fn member(&self, id: u64) -> Option<&MemberRecord> {
        self.members.members.iter().find(|m| m.id == id)
    }

    fn voters(&self) -> Vec<u64> {
        self.members.members.iter().filter(|m| !m.learner).map(|m| m.id).collect()
    }

    fn matched(&self, id: u64) -> u64 {
        self.following.iter().find(|f| f.id == id).map_or(0, |f| f.matched)
    }

    fn has_caught_up(&self, id: u64) -> bool {
        self.reachable.contains(&id) && self.matched(id) > 0 && self.matched(id) + CLOSE >= self.last
    }

    /// Whom to give the lead to, if it is not to be `not`.
    fn heir(&self, not: u64) -> Option<u64> {
        let others = self.voters().into_iter().filter(|id| *id != not && self.reachable.contains(id));
        others.max_by_key(|id| self.matched(*id))
    }

    /// A change asked for by somebody.
    pub(crate) fn judge(&self, change: &Change) -> Result<Step, Refusal> {
        match change {
            Change::Add(add) => self.judge_add(add),
            Change::Remove(id) => self.judge_removal(*id),
            Change::Promote(promote) => match self.member(promote.id).filter(|m| m.learner) {
                Some(learner) if !self.has_caught_up(learner.id) => {
                    let words = format!(
                        "member {} has not caught up: it has the log through {} of {}",
                        learner.id,
                        self.matched(learner.id),
                        self.last
                    );
                    Err(precondition(words, "start it, and wait: it votes by itself once it has caught up"))
                }
                Some(learner) => self.promotion(learner),
                None => Ok(Step::Change(change.clone())),
            },
            Change::Update(_) => Ok(Step::Change(change.clone())),
        }
    }

    fn judge_add(&self, add: &AddMember) -> Result<Step, Refusal> {
        if let Some(old) = self.member(add.replaces).filter(|m| m.learner) {
            let words = format!("member {} is a learner, and has no vote that another could take over", old.id);
            return Err(precondition(words, &format!("cairn meta remove {}", old.id)));
        }
        Ok(Step::Change(Change::Add(AddMember { id: self.members.next_id, ..add.clone() })))
    }

    fn judge_removal(&self, id: u64) -> Result<Step, Refusal> {
        let left: Vec<u64> = self.voters().into_iter().filter(|voter| *voter != id).collect();
        if self.member(id).is_none_or(|m| m.learner) || left.is_empty() {
            return Ok(Step::Change(Change::Remove(id)));
        }
        self.keeps_majority(&left, &format!("without member {id}"))?;
        match (id == self.leader).then(|| self.heir(id)).flatten() {
            Some(to) => Ok(Step::Transfer { to }),
            None => Ok(Step::Change(Change::Remove(id))),
        }
    }

    fn promotion(&self, learner: &MemberRecord) -> Result<Step, Refusal> {
        let id = learner.id;
        let replaced = self.member(learner.replaces).map_or(0, |m| m.id);
        if replaced == self.leader
            && let Some(to) = self.heir(replaced)
        {
            return Ok(Step::Transfer { to });
        }
        // The only voter cannot go before the new one votes: it goes in a second step.
        let instead_of = if replaced == self.leader { 0 } else { replaced };
        let voters: Vec<u64> = self.voters().into_iter().filter(|v| *v != instead_of).chain([id]).collect();
        self.keeps_majority(&voters, &format!("with member {id}"))?;
        Ok(Step::Change(Change::Promote(PromoteMember { id, instead_of })))
    }

    fn keeps_majority(&self, voters: &[u64], when: &str) -> Result<(), Refusal> {
        let reachable = voters.iter().filter(|id| self.reachable.contains(id)).count();
        let needed = voters.len() / 2 + 1;
        if reachable >= needed {
            return Ok(());
        }
        let silent: Vec<String> =
            voters.iter().filter(|id| !self.reachable.contains(id)).map(|id| format!("member {id}")).collect();
        let silent = silent.join(", ");
        let words = format!(
            "{when} only {reachable} of {} voting members could be reached, and a majority is {needed}: nothing could \
             be decided any more (not reachable: {silent})",
            voters.len()
        );
        Err(precondition(words, "bring these back first, or replace them: cairn meta replace ID ADDRESS"))
    }

    /// What is due for members that were added, without anybody asking again.
    pub(crate) fn next_step(&self) -> Option<Step> {
        if self.changing {
            return None;
        }
        let learners = self.members.members.iter().filter(|m| m.learner && !m.stay_learner);
        if let Some(ready) = learners.into_iter().find(|m| self.has_caught_up(m.id)) {
            return self.promotion(ready).ok();
        }
        let successor = self.members.members.iter().find(|m| !m.learner && self.member(m.replaces).is_some())?;
        match successor.replaces == self.leader {
            true => Some(Step::Transfer { to: successor.id }),
            false => self.judge_removal(successor.replaces).ok(),
        }
    }

    /// Whether [`View::next_step`] could have anything to say.
    pub(crate) fn is_unsettled(members: &[MemberRecord]) -> bool {
        members.iter().any(|m| m.learner && !m.stay_learner || m.replaces != 0)
    }
}

fn precondition(words: String, remedy: &str) -> Refusal {
    Refusal::new(ErrorCode::FailedPrecondition, words).remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, learner: bool, replaces: u64) -> MemberRecord {
        MemberRecord { id, learner, replaces, address: format!("h:{id}"), ..MemberRecord::default() }
    }

    fn view(members: &[MemberRecord], reachable: &[u64]) -> View {
        let next_id = members.iter().map(|m| m.id).max().unwrap_or(0) + 1;
        let following = members.iter().map(|m| Following { id: m.id, voter: !m.learner, matched: 1000 }).collect();
        let members = MembersRecord { members: members.to_vec(), next_id, ..MembersRecord::default() };
        View { leader: 1, members, reachable: reachable.to_vec(), following, last: 1000, changing: false }
    }

    fn voters(count: u64) -> Vec<MemberRecord> {
        (1..=count).map(|id| member(id, false, 0)).collect()
    }

    fn refused(step: Result<Step, Refusal>) -> String {
        step.unwrap_err().message
    }

    #[test]
    fn a_removal_that_would_lose_the_majority_is_refused_in_words() {
        let three = view(&voters(3), &[1, 2]);
        let words = refused(three.judge(&Change::Remove(2)));
        assert!(words.contains("only 1 of 2") && words.contains("member 3"), "{words}");
        assert_eq!(three.judge(&Change::Remove(3)), Ok(Step::Change(Change::Remove(3))), "the dead one may go");
        assert_eq!(view(&voters(3), &[1, 2, 3]).judge(&Change::Remove(2)), Ok(Step::Change(Change::Remove(2))));
    }

    #[test]
    fn a_leader_hands_over_before_it_goes() {
        let three = view(&voters(3), &[1, 2, 3]);
        assert!(matches!(three.judge(&Change::Remove(1)), Ok(Step::Transfer { to: 2 | 3 })));
    }

    #[test]
    fn a_replacement_votes_in_the_step_in_which_the_old_one_goes() {
        let mut members = voters(3);
        members.push(member(4, true, 2));
        let replacing = view(&members, &[1, 3, 4]);
        let swap = Step::Change(Change::Promote(PromoteMember { id: 4, instead_of: 2 }));
        assert_eq!(replacing.next_step(), Some(swap));
        let behind = View { last: 5000, ..replacing.clone() };
        assert_eq!(behind.next_step(), None);
        assert!(
            refused(behind.judge(&Change::Promote(PromoteMember { id: 4, instead_of: 0 }))).contains("1000 of 5000")
        );
        members[3].replaces = 1;
        assert!(matches!(view(&members, &[1, 2, 3, 4]).next_step(), Some(Step::Transfer { .. })));
    }

    #[test]
    fn a_cluster_of_one_is_replaced_in_two_steps() {
        let one = view(&[member(1, false, 0), member(2, true, 1)], &[1, 2]);
        assert_eq!(one.next_step(), Some(Step::Change(Change::Promote(PromoteMember { id: 2, instead_of: 0 }))));
        let both = view(&[member(1, false, 0), member(2, false, 1)], &[1, 2]);
        assert_eq!(both.next_step(), Some(Step::Transfer { to: 2 }));
        let moved = View { leader: 2, ..both };
        assert_eq!(moved.next_step(), Some(Step::Change(Change::Remove(1))));
    }

    #[test]
    fn nothing_is_begun_while_a_change_is_under_way() {
        let learner = view(&[member(1, false, 0), member(2, true, 0)], &[1, 2]);
        assert!(learner.next_step().is_some() && View { changing: true, ..learner.clone() }.next_step().is_none());
        assert!(View { reachable: vec![1], ..learner }.next_step().is_none(), "and nobody votes unseen");
    }
}
