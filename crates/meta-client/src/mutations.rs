//! The client's side of exactly-once: a random session, a sequence for each mutation, and the mark below which every
//! reply has been received.

use std::collections::BTreeSet;
use std::sync::Mutex;

use cairn_proto::convert::session_to;
use cairn_proto::meta::Mutation;
use cairn_types::SessionId;

/// Hands out sequence numbers and knows which are under way.
pub(crate) struct Mutations {
    state: Mutex<State>,
}

struct State {
    session: SessionId,
    next: u64,
    in_flight: BTreeSet<u64>,
}

impl State {
    fn new() -> Self {
        Self { session: SessionId(uuid::Uuid::new_v4().as_u128()), next: 1, in_flight: BTreeSet::new() }
    }
}

/// One mutation under way; its sequence counts as received once this is dropped.
pub(crate) struct Ticket<'a> {
    mutations: &'a Mutations,
    session: SessionId,
    seq: u64,
}

impl Mutations {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new(State::new()) }
    }

    pub(crate) fn begin(&self) -> Ticket<'_> {
        let mut state = self.state.lock().expect("no holder panics");
        let seq = state.next;
        state.next += 1;
        state.in_flight.insert(seq);
        Ticket { mutations: self, session: state.session, seq }
    }

    /// The service has forgotten the ticket's session: later mutations go under a new one. (One that was idle for
    /// long, in a cluster of many clients, is forgotten for the others' sake.)
    pub(crate) fn renew(&self, expired: &Ticket<'_>) {
        let mut state = self.state.lock().expect("no holder panics");
        if state.session == expired.session {
            *state = State::new();
        }
    }
}

impl Ticket<'_> {
    /// What goes into the request; the same on every attempt but for the mark.
    pub(crate) fn mutation(&self, request_id: &str) -> Mutation {
        let state = self.mutations.state.lock().expect("no holder panics");
        // A session that was given up tells no more marks.
        let oldest = state.in_flight.first().filter(|_| state.session == self.session);
        Mutation {
            session: session_to(self.session),
            seq: self.seq,
            acked_through: oldest.map_or(0, |oldest| oldest - 1),
            request_id: request_id.to_owned(),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.mutations.state.lock().expect("no holder panics");
        if state.session == self.session {
            state.in_flight.remove(&self.seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stays_below_the_oldest_in_flight() {
        let mutations = Mutations::new();
        let first = mutations.begin();
        let second = mutations.begin();
        assert_eq!(second.mutation("r").acked_through, 0);
        drop(first);
        assert_eq!(second.mutation("r").acked_through, 1);
        assert_eq!(second.mutation("r").seq, 2);
        drop(second);
        assert_eq!(mutations.begin().mutation("r").acked_through, 2);
    }

    #[test]
    fn a_forgotten_session_is_followed_by_a_new_one_that_starts_afresh() {
        let mutations = Mutations::new();
        let (old, other) = (mutations.begin(), mutations.begin());
        mutations.renew(&old);
        let new = mutations.begin();
        assert_eq!((new.seq, new.mutation("r").acked_through), (1, 0));
        assert_ne!(new.mutation("r").session, old.mutation("r").session);
        assert_eq!(other.mutation("r").seq, 2, "what is under way keeps its name");
        mutations.renew(&other);
        drop(old);
        drop(other);
        assert_eq!(mutations.begin().seq, 2, "the session is renewed once, and old tickets do not touch it");
    }
}
