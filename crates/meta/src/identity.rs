//! Who may speak raft with whom. Two members that disagree about the cluster, its members, or who they are never
//! exchange a raft message; and a member whose directory was wiped is told so instead of voting against its word.
//!
//! A decision only: the words come in as a `Hello`, the answer goes out as words.

use std::collections::BTreeMap;

use cairn_proto::meta::MembersRecord;
use cairn_proto::meta_raft::Hello;
use uuid::Uuid;

/// The version of the messages between members.
pub(crate) const PEER_FORMAT: u32 = 1;

/// What a member says of itself, and remembers of the others.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    /// Where the others reach it.
    pub(crate) address: String,
    /// Who voted when the log began.
    pub(crate) genesis: Vec<u64>,
    pub(crate) directory: Uuid,
    /// Nil until the cluster has a name.
    pub(crate) cluster: Uuid,
    /// The directories of the others, as met first.
    pub(crate) peers: BTreeMap<u64, Uuid>,
    /// The members as last applied here; empty at the beginning.
    pub(crate) members: MembersRecord,
    /// Two configurations are in force: who leaves is still needed.
    pub(crate) joint: bool,
}

/// What a hello means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As before.
    Known,
    /// Met for the first time: to be written down before anything else is said.
    Met { peer: u64, directory: Uuid },
    /// Never.
    Refused(String),
    /// It was a member.
    Removed(String),
    /// Its number is known by another directory: it lost what it had promised.
    LostMemory(String),
}

impl Identity {
    pub(crate) fn hello(&self, to: u64) -> Hello {
        Hello {
            format: PEER_FORMAT,
            cluster: if self.cluster.is_nil() { Vec::new() } else { self.cluster.as_bytes().to_vec() }.into(),
            from: self.id,
            to,
            directory: self.directory.as_bytes().to_vec().into(),
            members: list(&self.genesis),
            address: self.address.clone(),
            lineage: self.members.lineage.clone(),
        }
    }

    pub(crate) fn judge(&self, hello: &Hello) -> Verdict {
        if self.is_removed(hello.from) && self.is_ours(hello) {
            return Verdict::Removed(format!("member {} was removed from this cluster", hello.from));
        }
        match (self.objection(hello), self.other_directory(hello)) {
            (Some(words), _) => Verdict::Refused(words),
            (None, Some(words)) => {
                // Of a line of members that this one does not know it says nothing for ever.
                let same_line = hello.lineage.is_empty() || hello.lineage == self.members.lineage;
                if same_line { Verdict::LostMemory(words) } else { Verdict::Refused(words) }
            }
            (None, None) => {
                let directory = Uuid::from_slice(&hello.directory).unwrap_or_default();
                match self.peers.get(&hello.from) {
                    Some(known) if *known == directory => Verdict::Known,
                    _ => Verdict::Met { peer: hello.from, directory },
                }
            }
        }
    }

    /// It has a number that was given, and is not among the members: it never will be again.
    pub(crate) fn is_removed(&self, id: u64) -> bool {
        let members = &self.members;
        let leaving = members.leaving.iter().filter(|_| self.joint);
        let listed = members.members.iter().chain(leaving).any(|m| m.id == id);
        id != 0 && id < members.next_id && !listed
    }

    fn is_ours(&self, hello: &Hello) -> bool {
        let cluster = Uuid::from_slice(&hello.cluster).unwrap_or_default();
        cluster == self.cluster && (hello.lineage.is_empty() || hello.lineage == self.members.lineage)
    }

    fn objection(&self, hello: &Hello) -> Option<String> {
        let (me, peer) = (self.id, hello.from);
        if hello.format != PEER_FORMAT {
            return Some(format!(
                "member {peer} speaks version {} of the members' messages, and member {me} version {PEER_FORMAT}; run \
                 the same version on all members",
                hello.format
            ));
        }
        if hello.to != me || peer == me || peer == 0 {
            return Some(format!(
                "member {peer} calls for member {}, and this is member {me}; check the addresses of the members",
                hello.to,
            ));
        }
        if hello.members != list(&self.genesis) {
            return Some(format!(
                "member {peer} began with the members {}, and member {me} with {}; give both the same list",
                hello.members,
                list(&self.genesis)
            ));
        }
        let cluster = Uuid::from_slice(&hello.cluster).unwrap_or_default();
        if !cluster.is_nil() && !self.cluster.is_nil() && cluster != self.cluster {
            return Some(format!(
                "member {peer} belongs to cluster {cluster}, and member {me} to cluster {}; one of them was started \
                 with the directory of another cluster",
                self.cluster
            ));
        }
        let lineage = &self.members.lineage;
        if !hello.lineage.is_empty() && !lineage.is_empty() && hello.lineage != *lineage {
            return Some(format!(
                "member {peer} and member {me} are of the same cluster {cluster}, but one of them was restored from a \
                 backup: they do not continue each other; stop the members that are not wanted any more"
            ));
        }
        // Nobody but those it began with can be met before the members are known.
        if self.cluster.is_nil() && !self.genesis.contains(&peer) {
            return Some(format!("member {peer} is none of {}, with which this cluster began", list(&self.genesis)));
        }
        let unnamed = Uuid::from_slice(&hello.directory).map_or(true, |directory| directory.is_nil());
        unnamed.then(|| format!("member {peer} does not name its directory"))
    }

    /// Whether the number is known by another directory. Votes and acknowledgements come before the cluster has a name:
    /// whoever was met once stays who it was, also for a member that has applied nothing yet.
    fn other_directory(&self, hello: &Hello) -> Option<String> {
        let peer = hello.from;
        let directory = Uuid::from_slice(&hello.directory).unwrap_or_default();
        let begun = self.members.members.iter().find(|m| m.id == peer && !m.directory.is_empty());
        let begun = begun.and_then(|m| Uuid::from_slice(&m.directory).ok());
        let known = begun.or_else(|| self.peers.get(&peer).copied())?;
        (known != directory).then(|| {
            format!(
                "member {peer} comes with a new directory ({directory}, known was {known}): what it had promised is \
                 lost, and its vote could lose acknowledged writes; bring its directory back, or replace it: cairn \
                 meta replace {peer} ADDRESS"
            )
        })
    }
}

fn list(voters: &[u64]) -> String {
    voters.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use cairn_proto::meta::MemberRecord;

    use super::*;

    fn identity(id: u64) -> Identity {
        let directory = Uuid::from_u128(u128::from(id));
        let address = format!("127.0.0.1:740{id}");
        let (cluster, peers) = (Uuid::from_u128(77), BTreeMap::new());
        let members = MembersRecord::default();
        Identity { id, address, genesis: vec![1, 2, 3], directory, cluster, peers, members, joint: false }
    }

    fn refusal(me: &Identity, hello: &Hello) -> String {
        match me.judge(hello) {
            Verdict::Refused(words) => words,
            other => panic!("{other:?}"),
        }
    }

    fn forgotten(me: &Identity, hello: &Hello) -> String {
        match me.judge(hello) {
            Verdict::LostMemory(words) => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_peer_is_met_once_and_known_after() {
        let (mut one, two) = (identity(1), identity(2));
        assert_eq!(one.judge(&two.hello(1)), Verdict::Met { peer: 2, directory: two.directory });
        one.peers.insert(2, two.directory);
        assert_eq!(one.judge(&two.hello(1)), Verdict::Known);
    }

    #[test]
    fn whoever_lost_its_directory_does_not_come_back() {
        let mut one = identity(1);
        one.peers.insert(2, Uuid::from_u128(2));
        let wiped = Identity { directory: Uuid::from_u128(99), cluster: Uuid::nil(), ..identity(2) };
        assert!(forgotten(&one, &wiped.hello(1)).contains("new directory"));
        one.cluster = Uuid::nil();
        assert!(
            forgotten(&one, &wiped.hello(1)).contains("new directory"),
            "it may have voted before there was a name"
        );
        // Of another line of members, which was restored: not for this one to judge for ever.
        let restored = MembersRecord { lineage: vec![3; 16].into(), ..MembersRecord::default() };
        let other_line = Identity { members: restored, ..wiped };
        assert!(refusal(&one, &other_line.hello(1)).contains("new directory"));
    }

    #[test]
    fn disagreements_are_told_in_words() {
        let one = identity(1);
        let foreign = Identity { cluster: Uuid::from_u128(5), ..identity(2) };
        assert!(refusal(&one, &foreign.hello(1)).contains("another cluster"));
        let other_list = Identity { genesis: vec![1, 2], ..identity(2) };
        assert!(refusal(&one, &other_list.hello(1)).contains("same list"));
        assert!(refusal(&one, &identity(2).hello(3)).contains("addresses"));
        let stranger = Identity { cluster: Uuid::nil(), ..identity(1) };
        assert!(refusal(&stranger, &identity(9).hello(1)).contains("none of 1,2,3"));
        let newer = Hello { format: 2, ..identity(2).hello(1) };
        assert!(refusal(&one, &newer).contains("same version"));
    }

    #[test]
    fn removed_members_and_restored_clusters_are_told_apart_from_newcomers() {
        let member = |id| MemberRecord { id, ..MemberRecord::default() };
        let lineage = |byte: u8| vec![byte; 16].into();
        let members = MembersRecord {
            members: vec![member(1), member(4)],
            next_id: 5,
            lineage: lineage(1),
            ..Default::default()
        };
        let one = Identity { members: members.clone(), ..identity(1) };
        assert!(matches!(one.judge(&identity(2).hello(1)), Verdict::Removed(_)));
        assert!(matches!(one.judge(&identity(5).hello(1)), Verdict::Met { peer: 5, .. }), "newer than what is known");
        let restored = MembersRecord { lineage: lineage(2), ..members };
        let restored = Identity { members: restored, ..identity(4) };
        assert!(refusal(&one, &restored.hello(1)).contains("restored from a backup"));
        let mut leaving = one.clone();
        leaving.members.leaving = vec![member(2)];
        assert!(matches!(leaving.judge(&identity(2).hello(1)), Verdict::Removed(_)));
        leaving.joint = true;
        assert!(matches!(leaving.judge(&identity(2).hello(1)), Verdict::Met { .. }), "raft still needs it");
    }

    #[test]
    fn a_member_that_began_with_a_directory_keeps_it() {
        let begun = MemberRecord { id: 4, directory: vec![7; 16].into(), ..MemberRecord::default() };
        let members = MembersRecord { members: vec![begun], next_id: 5, ..MembersRecord::default() };
        let one = Identity { members, ..identity(1) };
        assert!(forgotten(&one, &identity(4).hello(1)).contains("new directory"));
    }
}
