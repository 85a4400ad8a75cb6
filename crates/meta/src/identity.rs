//! Who may speak raft with whom. Two members that disagree about the cluster, its members, or who they are never
//! exchange a raft message; and a member whose directory was wiped is told so instead of voting against its word.
//!
//! A decision only: the words come in as a `Hello`, the answer goes out as words.

use std::collections::BTreeMap;

use cairn_proto::meta_raft::Hello;
use uuid::Uuid;

/// The version of the messages between members.
pub(crate) const PEER_FORMAT: u32 = 1;

/// What a member says of itself, and remembers of the others.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    pub(crate) voters: Vec<u64>,
    pub(crate) directory: Uuid,
    /// Nil until the cluster has a name.
    pub(crate) cluster: Uuid,
    /// The directories of the others, as met first.
    pub(crate) peers: BTreeMap<u64, Uuid>,
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
}

impl Identity {
    pub(crate) fn hello(&self, to: u64) -> Hello {
        Hello {
            format: PEER_FORMAT,
            cluster: if self.cluster.is_nil() { Vec::new() } else { self.cluster.as_bytes().to_vec() }.into(),
            from: self.id,
            to,
            directory: self.directory.as_bytes().to_vec().into(),
            members: list(&self.voters),
        }
    }

    pub(crate) fn judge(&self, hello: &Hello) -> Verdict {
        match self.objection(hello) {
            Some(words) => Verdict::Refused(words),
            None => {
                let directory = Uuid::from_slice(&hello.directory).unwrap_or_default();
                match self.peers.get(&hello.from) {
                    Some(known) if *known == directory => Verdict::Known,
                    _ => Verdict::Met { peer: hello.from, directory },
                }
            }
        }
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
        if hello.to != me || peer == me || !self.voters.contains(&peer) {
            return Some(format!(
                "member {peer} calls for member {}, and this is member {me} of {}; check the addresses of the members",
                hello.to,
                list(&self.voters)
            ));
        }
        if hello.members != list(&self.voters) {
            return Some(format!(
                "member {peer} is configured with the members {}, and member {me} with {}; give both the same list",
                hello.members,
                list(&self.voters)
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
        let directory = match Uuid::from_slice(&hello.directory) {
            Ok(directory) if !directory.is_nil() => directory,
            _ => return Some(format!("member {peer} does not name its directory")),
        };
        // Before the cluster has a name nothing was promised, and a directory may still be made anew.
        let known = self.peers.get(&peer).filter(|_| !self.cluster.is_nil())?;
        (*known != directory).then(|| {
            format!(
                "member {peer} comes with a new directory ({directory}, known was {known}): what it had promised is \
                 lost, and its vote could lose acknowledged writes; bring its directory back, or replace the member"
            )
        })
    }
}

fn list(voters: &[u64]) -> String {
    voters.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(id: u64) -> Identity {
        let directory = Uuid::from_u128(u128::from(id));
        Identity { id, voters: vec![1, 2, 3], directory, cluster: Uuid::from_u128(77), peers: BTreeMap::new() }
    }

    fn refusal(me: &Identity, hello: &Hello) -> String {
        match me.judge(hello) {
            Verdict::Refused(words) => words,
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
        assert!(refusal(&one, &wiped.hello(1)).contains("new directory"));
        one.cluster = Uuid::nil();
        assert!(matches!(one.judge(&wiped.hello(1)), Verdict::Met { .. }), "a cluster without a name remembers nobody");
    }

    #[test]
    fn disagreements_are_told_in_words() {
        let one = identity(1);
        let foreign = Identity { cluster: Uuid::from_u128(5), ..identity(2) };
        assert!(refusal(&one, &foreign.hello(1)).contains("another cluster"));
        let other_list = Identity { voters: vec![1, 2], ..identity(2) };
        assert!(refusal(&one, &other_list.hello(1)).contains("same list"));
        assert!(refusal(&one, &identity(2).hello(3)).contains("addresses"));
        let newer = Hello { format: 2, ..identity(2).hello(1) };
        assert!(refusal(&one, &newer).contains("same version"));
    }
}
