//! The member's own sessions: commands of clients that have none (etcd's) are made to happen once under these.
//!
//! The state machine keeps a bounded number of unacknowledged replies per session. One slow command would hold back
//! the acknowledgement of all that came after it; so a session with a long tail is left to drain, and a new one begun.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

/// Commands after the oldest unanswered one, at which a new session is begun. Well below the state machine's bound.
const LONGEST_TAIL: u64 = cairn_meta_core::REPLIES as u64 / 2;

#[derive(Debug)]
pub(crate) struct OwnSessions {
    current: Uuid,
    next_seq: u64,
    open: BTreeMap<Uuid, BTreeSet<u64>>,
}

/// Names one command for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) session: Uuid,
    pub(crate) seq: u64,
    pub(crate) acked_through: u64,
}

impl OwnSessions {
    pub(crate) fn new() -> Self {
        Self { current: Uuid::new_v4(), next_seq: 1, open: BTreeMap::new() }
    }

    pub(crate) fn name(&mut self) -> Name {
        let oldest = self.open.get(&self.current).and_then(BTreeSet::first).copied();
        if oldest.is_some_and(|oldest| self.next_seq - oldest >= LONGEST_TAIL) {
            self.begin_another();
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        let open = self.open.entry(self.current).or_default();
        open.insert(seq);
        let oldest = open.first().copied().unwrap_or(seq);
        Name { session: self.current, seq, acked_through: oldest - 1 }
    }

    fn begin_another(&mut self) {
        self.current = Uuid::new_v4();
        self.next_seq = 1;
    }

    /// Nobody waits for the command any more, and whether it was or will be carried out is unknown. Its session
    /// acknowledges nothing further: the state machine may never have heard of it, and takes an acknowledgement from
    /// a session that it does not know for one that it has forgotten.
    pub(crate) fn abandon(&mut self, name: Name) {
        if name.session == self.current {
            self.begin_another();
        }
        self.close(name);
    }

    /// The command was answered: its reply may be forgotten.
    pub(crate) fn close(&mut self, name: Name) {
        if let Some(open) = self.open.get_mut(&name.session) {
            open.remove(&name.seq);
            if open.is_empty() && name.session != self.current {
                self.open.remove(&name.session);
            }
        }
    }
}

/// 64 bits that nobody can foresee, and no other member draws.
pub(crate) fn random() -> u64 {
    // A version 4 uuid has 122 random bits; mixed, the fixed six do not show.
    let (high, low) = Uuid::new_v4().as_u64_pair();
    cairn_types::id::mix(high ^ low.rotate_left(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledges_up_to_the_oldest_open_command() {
        let mut sessions = OwnSessions::new();
        let [a, b, c] = [sessions.name(), sessions.name(), sessions.name()];
        assert_eq!((a.seq, b.seq, c.seq, c.acked_through), (1, 2, 3, 0));
        sessions.close(b);
        assert_eq!(sessions.name().acked_through, 0, "the first is still open");
        sessions.close(a);
        assert_eq!(sessions.name().acked_through, 2);
    }

    #[test]
    fn an_abandoned_command_is_never_acknowledged() {
        let mut sessions = OwnSessions::new();
        let (lost, other) = (sessions.name(), sessions.name());
        sessions.abandon(lost);
        let next = sessions.name();
        assert_ne!(next.session, lost.session);
        assert_eq!((next.seq, next.acked_through), (1, 0));
        sessions.abandon(other);
        assert_eq!(sessions.name().session, next.session, "one new session is enough");
    }

    #[test]
    fn one_slow_command_does_not_stop_the_others() {
        let mut sessions = OwnSessions::new();
        let slow = sessions.name();
        for _ in 0..cairn_meta_core::REPLIES * 3 {
            let name = sessions.name();
            assert!(name.seq - name.acked_through <= LONGEST_TAIL + 1);
            sessions.close(name);
        }
        assert_ne!(sessions.name().session, slow.session);
        sessions.close(slow);
        assert_eq!(sessions.open.len(), 1, "the drained session is forgotten");
    }
}
