//! raft's side of who is a member: from a command to the change of raft's configuration, and the encoding of that
//! configuration in the store and in snapshots.
//!
//! One member is added as a learner, and votes in a second step; only a replacement changes two at once, through a joint
//! configuration. The command travels in the change's own entry, and whether it counts is the state machine's word.

use bytes::Bytes;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{ChangeMemberRequest, Command};
use cairn_proto::meta_raft::SnapshotManifest;
use protobuf::Message;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState};

/// What a command changes in raft's configuration; `None`: nothing, and it is proposed as an ordinary entry.
#[must_use]
pub fn conf_change(command: &Command) -> Option<ConfChangeV2> {
    let Some(Payload::ChangeMember(ChangeMemberRequest { change: Some(change), .. })) = &command.payload else {
        return None;
    };
    let one = |kind, node_id| ConfChangeSingle { change_type: kind, node_id, ..ConfChangeSingle::default() };
    let changes = match change {
        Change::Add(add) if add.id != 0 => vec![one(ConfChangeType::AddLearnerNode, add.id)],
        Change::Remove(id) => vec![one(ConfChangeType::RemoveNode, *id)],
        Change::Promote(promote) => {
            let add = one(ConfChangeType::AddNode, promote.id);
            let remove = (promote.instead_of != 0).then(|| one(ConfChangeType::RemoveNode, promote.instead_of));
            std::iter::once(add).chain(remove).collect()
        }
        Change::Add(_) | Change::Update(_) => return None,
    };
    Some(ConfChangeV2 { changes: changes.into(), ..ConfChangeV2::default() })
}

/// Everybody that the configuration names: voters of both halves, and learners.
pub fn ids(conf_state: &ConfState) -> impl Iterator<Item = u64> {
    let lists = [&conf_state.voters, &conf_state.voters_outgoing, &conf_state.learners, &conf_state.learners_next];
    lists.into_iter().flatten().copied()
}

/// Whether the configuration names this member.
#[must_use]
pub fn names(conf_state: &ConfState, member: u64) -> bool {
    ids(conf_state).any(|id| id == member)
}

/// Two configurations are in force.
#[must_use]
pub fn is_joint(conf_state: &ConfState) -> bool {
    !conf_state.voters_outgoing.is_empty()
}

/// The same configuration in the one order in which it is stored: raft keeps sets.
#[must_use]
pub fn ordered(mut conf_state: ConfState) -> ConfState {
    conf_state.voters.sort_unstable();
    conf_state.voters_outgoing.sort_unstable();
    conf_state.learners.sort_unstable();
    conf_state.learners_next.sort_unstable();
    conf_state
}

/// As snapshots carry it.
#[must_use]
pub fn encode(conf_state: &ConfState) -> Bytes {
    ordered(conf_state.clone()).write_to_bytes().expect("a configuration always encodes").into()
}

/// The members as of a snapshot. An unreadable one names nobody, and so is sent to nobody.
#[must_use]
pub fn of_manifest(manifest: &SnapshotManifest) -> ConfState {
    ConfState::parse_from_bytes(&manifest.conf_state).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cairn_proto::meta::{AddMember, PromoteMember};

    use super::*;

    fn of(change: Change) -> Option<Vec<(ConfChangeType, u64)>> {
        let request = ChangeMemberRequest { change: Some(change), ..ChangeMemberRequest::default() };
        let command = Command { payload: Some(Payload::ChangeMember(request)), ..Command::default() };
        conf_change(&command).map(|c| c.changes.iter().map(|one| (one.change_type, one.node_id)).collect())
    }

    #[test]
    fn only_a_replacement_changes_two_at_once() {
        use ConfChangeType::{AddLearnerNode, AddNode, RemoveNode};
        let add = AddMember { id: 4, ..AddMember::default() };
        assert_eq!(of(Change::Add(add)), Some(vec![(AddLearnerNode, 4)]));
        assert_eq!(of(Change::Remove(2)), Some(vec![(RemoveNode, 2)]));
        assert_eq!(of(Change::Promote(PromoteMember { id: 4, instead_of: 0 })), Some(vec![(AddNode, 4)]));
        let replace = Change::Promote(PromoteMember { id: 4, instead_of: 2 });
        assert_eq!(of(replace), Some(vec![(AddNode, 4), (RemoveNode, 2)]));
        assert_eq!(of(Change::Update(Default::default())), None);
    }

    #[test]
    fn the_order_of_sets_does_not_matter() {
        let one = ConfState { voters: vec![3, 1, 2], learners: vec![5, 4], ..ConfState::default() };
        let other = ConfState { voters: vec![1, 2, 3], learners: vec![4, 5], ..ConfState::default() };
        assert_eq!(encode(&one), encode(&other));
        assert!(names(&one, 5) && !names(&one, 6) && !is_joint(&one));
    }
}
