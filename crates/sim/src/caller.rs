//! Calls to the metadata service as every daemon makes them: the same command under the same number until some
//! member answers, so that it is carried out once.

use std::collections::BTreeMap;

use cairn_proto::meta::Command;
use cairn_proto::meta::command::Payload;
use prost::Message as _;

use crate::bus::{Body, Bus, MS, Nanos, Node};

/// Asked again, of the next member, after this long.
const PATIENCE: Nanos = 400 * MS;

/// A place that makes calls.
#[derive(Debug)]
pub(crate) struct Caller<T> {
    node: Node,
    session: u128,
    members: usize,
    target: usize,
    next: u64,
    open: BTreeMap<u64, (Vec<u8>, Nanos, T)>,
    /// What this place's calendar is wrong by, seconds.
    pub(crate) skew: i64,
}

impl<T> Caller<T> {
    pub(crate) fn new(node: Node, session: u128, members: usize) -> Self {
        let target = (session % members as u128) as usize;
        Self { node, session, members, target, next: 0, open: BTreeMap::new(), skew: 0 }
    }

    /// Begins a call; `what` comes back with the answer.
    pub(crate) fn call(&mut self, bus: &mut Bus, payload: Payload, what: T) {
        self.next += 1;
        let seq = self.next;
        let acked_through = self.open.keys().next().map_or(seq - 1, |first| first - 1);
        let command = Command {
            version: 1,
            session: self.session.to_be_bytes().to_vec().into(),
            seq,
            acked_through,
            request_id: String::new(),
            now_s: (1_700_000_000 + bus.now / 1_000_000_000).saturating_add_signed(self.skew),
            payload: Some(payload),
        };
        let bytes = command.encode_to_vec();
        bus.send(self.node, self.member(), Body::Ask { session: self.session, seq, command: bytes.clone() });
        self.open.insert(seq, (bytes, bus.now, what));
    }

    /// The member that is asked now.
    pub(crate) fn member(&self) -> Node {
        Node::Meta(self.target)
    }

    /// Asks the next member from now on.
    pub(crate) fn turn_away(&mut self) {
        self.target = (self.target + 1) % self.members;
    }

    /// An answer came; gives what the call was.
    pub(crate) fn answered(&mut self, session: u128, seq: u64) -> Option<T> {
        if session != self.session {
            return None;
        }
        self.open.remove(&seq).map(|(_, _, what)| what)
    }

    /// A call has taken too long: gives up on it without knowing what came of it.
    pub(crate) fn abandon(&mut self, pick: impl Fn(&T) -> bool) -> Vec<T> {
        let gone = self.open.iter().filter(|(_, (_, _, what))| pick(what)).map(|(seq, _)| *seq).collect::<Vec<_>>();
        gone.into_iter().filter_map(|seq| self.open.remove(&seq)).map(|(_, _, what)| what).collect()
    }

    /// Asks again what was not answered.
    pub(crate) fn tick(&mut self, bus: &mut Bus) {
        let due = |at: Nanos| bus.now.saturating_sub(at) >= PATIENCE;
        if !self.open.values().any(|(_, at, _)| due(*at)) {
            return;
        }
        self.turn_away();
        let member = self.member();
        let now = bus.now;
        for (seq, (bytes, at, _)) in &mut self.open {
            if now.saturating_sub(*at) >= PATIENCE {
                *at = now;
                bus.send(self.node, member, Body::Ask { session: self.session, seq: *seq, command: bytes.clone() });
            }
        }
    }
}
