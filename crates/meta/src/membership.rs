//! What the leader thinks of a change of members: whether a majority would be left, who must lead first, and what is to be
//! done next for a member that was added. A decision only: the facts come in as a `View`.
//!
//! Members are added one at a time, as learners, and vote when they have caught up. A replacement begins to vote in the
//! same step in which the old one goes, so that a dead member never counts beside its successor.

use cairn_meta_core::Refusal;
use cairn_meta_raft::Following;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::{AddMember, ErrorCode, MemberRecord, MembersRecord, PromoteMember};

/// A member this close to what is committed has caught up; under load, as close as one look of the leader at the members
/// is to the next (Raft thesis 4.2.1: one round).
const CLOSE: u64 = 256;

/// What the leader sees.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) leader: u64,
    pub(crate) members: MembersRecord,
    pub(crate) reachable: Vec<u64>,
    pub(crate) following: Vec<Following>,
    /// What a majority has.
    pub(crate) committed: u64,
    /// How much was committed between the last two looks.
    pub(crate) round: u64,
    /// Another change is under way.
    pub(crate) changing: bool,
    /// Who has carried out every change of members that there was.
    pub(crate) up_to_date: Vec<u64>,
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
        let close = self.matched(id) + CLOSE.max(self.round) >= self.committed;
        self.reachable.contains(&id) && self.matched(id) > 0 && close
    }

    /// Whether it counts towards a majority now, and not only once it has received what it lacks.
    fn stands(&self, id: u64) -> bool {
        id == self.leader || self.has_caught_up(id)
    }

    /// Whether the latest change outlives the loss of any member that may be lost. raft acts on a change only once it knows
    /// it committed: members that have it and do not know decide by the configuration before it, in which the one that
    /// went still counts. Where only such were left, nobody could lead any more.
    pub(crate) fn is_settled(&self) -> bool {
        let voters = self.voters();
        let knowing = voters.iter().filter(|id| **id == self.leader || self.up_to_date.contains(id)).count();
        !self.changing && knowing > voters.len() / 2
    }

    /// Whom to give the lead to, if it is not to be `not`.
    fn heir(&self, not: u64) -> Option<u64> {
        let others = self.voters().into_iter().filter(|id| *id != not && self.reachable.contains(id));
        others.max_by_key(|id| self.matched(*id))
    }

    /// A change asked for by somebody.
    pub(crate) fn judge(&self, change: &Change) -> Result<Step, Refusal> {
        if !self.is_settled() {
            let words = "the change of members before this one is not known to a majority of them yet";
            return Err(precondition(words.to_owned(), "bring back the members that cannot be reached, and try again"));
        }
        match change {
            Change::Add(add) => self.judge_add(add),
            Change::Remove(id) => self.judge_removal(*id),
            Change::Promote(promote) => match self.member(promote.id).filter(|m| m.learner) {
                Some(learner) if !self.has_caught_up(learner.id) => {
                    let words = format!(
                        "member {} has not caught up: it has the log through {} of {}",
                        learner.id,
                        self.matched(learner.id),
                        self.committed
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
        // One that was announced, or asks again, begins under the number it has: raft has nothing to change.
        let known = |m: &MemberRecord| m.learner && m.address == add.address;
        let asks_again = |m: &MemberRecord| !add.directory.is_empty() && m.directory == add.directory;
        let begins = self.members.members.iter().any(|m| known(m) || asks_again(m));
        let id = if begins { 0 } else { self.members.next_id };
        Ok(Step::Change(Change::Add(AddMember { id, ..add.clone() })))
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
        // Both in one step takes a majority of the old voters too, and the one that goes may be gone before it ends. Where
        // the others are none, and where it leads because it is the only one, it goes in a second step.
        let now = self.voters();
        let others = now.iter().filter(|v| **v != replaced && self.stands(**v)).count();
        let at_once = replaced != self.leader && others > now.len() / 2;
        let instead_of = if at_once { replaced } else { 0 };
        let voters: Vec<u64> = now.into_iter().filter(|v| *v != instead_of).chain([id]).collect();
        self.keeps_majority(&voters, &format!("with member {id}"))?;
        Ok(Step::Change(Change::Promote(PromoteMember { id, instead_of })))
    }

    fn keeps_majority(&self, voters: &[u64], when: &str) -> Result<(), Refusal> {
        let standing = voters.iter().filter(|id| self.stands(**id)).count();
        let needed = voters.len() / 2 + 1;
        if standing >= needed {
            return Ok(());
        }
        let why_not = |id: &u64| match self.reachable.contains(id) {
            true => format!("member {id} has the log through {} of {}", self.matched(*id), self.committed),
            false => format!("member {id} cannot be reached"),
        };
        let missing: Vec<String> = voters.iter().filter(|id| !self.stands(**id)).map(why_not).collect();
        let words = format!(
            "{when} only {standing} of {} voting members could decide, and a majority is {needed}: nothing could be \
             decided any more ({})",
            voters.len(),
            missing.join(", ")
        );
        let remedy = "bring these back and let them catch up, or replace them: cairn meta replace ID ADDRESS";
        Err(precondition(words, remedy))
    }

    /// What is due for members that were added, without anybody asking again.
    pub(crate) fn next_step(&self) -> Option<Step> {
        if !self.is_settled() {
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
        let (reachable, up_to_date) = (reachable.to_vec(), reachable.to_vec());
        View { leader: 1, members, reachable, following, committed: 1000, round: 0, changing: false, up_to_date }
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
        assert!(words.contains("only 1 of 2") && words.contains("member 3 cannot be reached"), "{words}");
        assert_eq!(three.judge(&Change::Remove(3)), Ok(Step::Change(Change::Remove(3))), "the dead one may go");
        assert_eq!(view(&voters(3), &[1, 2, 3]).judge(&Change::Remove(2)), Ok(Step::Change(Change::Remove(2))));
    }

    #[test]
    fn the_next_change_waits_until_a_majority_acts_on_the_one_before() {
        let alone = View { up_to_date: Vec::new(), ..view(&voters(3), &[1, 2, 3]) };
        assert!(!alone.is_settled(), "the leader alone knows that it committed");
        let words = refused(alone.judge(&Change::Remove(2)));
        assert!(words.contains("not known to a majority"), "{words}");
        let two = View { up_to_date: vec![3], ..alone };
        assert!(two.is_settled() && two.judge(&Change::Remove(2)).is_ok());
        assert!(!View { changing: true, ..two }.is_settled());
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
        let behind = View { committed: 5000, ..replacing.clone() };
        assert_eq!(behind.next_step(), None);
        assert!(
            refused(behind.judge(&Change::Promote(PromoteMember { id: 4, instead_of: 0 }))).contains("1000 of 5000")
        );
        members[3].replaces = 1;
        assert!(matches!(view(&members, &[1, 2, 3, 4]).next_step(), Some(Step::Transfer { .. })));
    }

    #[test]
    fn who_begins_under_the_number_it_was_announced_with_gets_no_second_one() {
        let mut members = voters(3);
        members.push(MemberRecord { directory: vec![7; 16].into(), ..member(4, true, 0) });
        let view = view(&members, &[1, 2, 3]);
        let asks = |address: &str, directory: u8| {
            let add =
                AddMember { address: address.into(), directory: vec![directory; 16].into(), ..AddMember::default() };
            match view.judge(&Change::Add(add)).unwrap() {
                Step::Change(Change::Add(add)) => add.id,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((asks("h:4", 9), asks("elsewhere:1", 7), asks("h:5", 8)), (0, 0, 5));
    }

    #[test]
    fn a_living_member_is_replaced_in_two_steps_where_the_others_are_no_majority() {
        let mut members = voters(3);
        members.push(member(4, true, 2));
        // 3 is down: with 2 gone in the middle of one step, nobody could end it.
        let first = view(&members, &[1, 2, 4]);
        assert_eq!(first.next_step(), Some(Step::Change(Change::Promote(PromoteMember { id: 4, instead_of: 0 }))));
        members[3].learner = false;
        assert_eq!(view(&members, &[1, 2, 4]).next_step(), Some(Step::Change(Change::Remove(2))));
    }

    #[test]
    fn who_is_far_behind_is_no_part_of_a_majority() {
        let mut three = view(&voters(3), &[1, 2, 3]);
        three.following[2].matched = 10;
        three.committed = 9000;
        three.following[1].matched = 9000;
        let words = refused(three.judge(&Change::Remove(2)));
        assert!(words.contains("member 3 has the log through 10 of 9000"), "{words}");
        assert!(three.judge(&Change::Remove(3)).is_ok());
    }

    #[test]
    fn close_is_as_far_as_the_load_goes_between_two_looks() {
        let mut learner = view(&[member(1, false, 0), member(2, true, 0)], &[1, 2]);
        learner.committed = 4000;
        assert_eq!(learner.next_step(), None);
        learner.round = 3000;
        assert!(learner.next_step().is_some(), "it will never be closer under this load");
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
