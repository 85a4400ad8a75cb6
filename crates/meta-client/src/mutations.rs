//! The client's side of exactly-once: a random session, a sequence for each mutation, and the mark below which every
//! reply has been received.

use std::collections::BTreeSet;
use std::sync::Mutex;

use cairn_proto::convert::session_to;
use cairn_proto::meta::Mutation;
use cairn_types::SessionId;

/// Hands out sequence numbers and knows which are under way.
pub(crate) struct Mutations {
    session: SessionId,
    state: Mutex<State>,
}

struct State {
    next: u64,
    in_flight: BTreeSet<u64>,
}

/// One mutation under way; its sequence counts as received once this is dropped.
pub(crate) struct Ticket<'a> {
    mutations: &'a Mutations,
    seq: u64,
}

impl Mutations {
    pub(crate) fn new() -> Self {
        let session = SessionId(uuid::Uuid::new_v4().as_u128());
        Self { session, state: Mutex::new(State { next: 1, in_flight: BTreeSet::new() }) }
    }

    pub(crate) fn begin(&self) -> Ticket<'_> {
        let mut state = self.state.lock().expect("no holder panics");
        let seq = state.next;
        state.next += 1;
        state.in_flight.insert(seq);
        Ticket { mutations: self, seq }
    }
}

impl Ticket<'_> {
    /// What goes into the request; the same on every attempt but for the mark.
    pub(crate) fn mutation(&self, request_id: &str) -> Mutation {
        let state = self.mutations.state.lock().expect("no holder panics");
        let oldest = *state.in_flight.first().expect("this ticket is in flight");
        Mutation {
            session: session_to(self.mutations.session),
            seq: self.seq,
            acked_through: oldest - 1,
            request_id: request_id.to_owned(),
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.mutations.state.lock().expect("no holder panics").in_flight.remove(&self.seq);
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
}
