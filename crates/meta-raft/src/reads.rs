//! Linearizable reads (Raft thesis 6.4): gathers reads into rounds, asks raft for a read index per round, and lets a
//! round go when that index is applied.
//!
//! raft drops a request silently when there is no leader or the leader has not committed in its term yet; a round
//! without an answer is asked again under a new name. A read waits until then: deadlines are its caller's.

use std::collections::{BTreeMap, VecDeque};

/// Names one read or proposal of this member towards its driver.
pub type Ticket = u64;

/// Rounds that may be under way at once: more would only share the same heartbeats.
const MAX_ROUNDS: usize = 4;
/// Ticks after which an unanswered round is asked again.
const ASK_AGAIN_TICKS: u32 = 3;

#[derive(Debug)]
struct Round {
    tickets: Vec<Ticket>,
    ticks: u32,
}

/// The reads of one member.
#[derive(Debug)]
pub(crate) struct Reads {
    /// Makes the names of rounds unique among members and their lives.
    prefix: [u8; 16],
    next_round: u64,
    waiting: Vec<Ticket>,
    asked: BTreeMap<u64, Round>,
    confirmed: VecDeque<(u64, Vec<Ticket>)>,
}

impl Reads {
    pub(crate) fn new(member: u64, life: u64) -> Self {
        let mut prefix = [0; 16];
        prefix[..8].copy_from_slice(&member.to_be_bytes());
        prefix[8..].copy_from_slice(&life.to_be_bytes());
        Self { prefix, next_round: 1, waiting: Vec::new(), asked: BTreeMap::new(), confirmed: VecDeque::new() }
    }

    pub(crate) fn add(&mut self, ticket: Ticket) {
        self.waiting.push(ticket);
    }

    /// The name of a round to ask raft about now, if there is one.
    pub(crate) fn next_to_ask(&mut self) -> Option<Vec<u8>> {
        if self.waiting.is_empty() || self.asked.len() >= MAX_ROUNDS {
            return None;
        }
        let number = self.next_round;
        self.next_round += 1;
        self.asked.insert(number, Round { tickets: std::mem::take(&mut self.waiting), ticks: 0 });
        Some([&self.prefix[..], &number.to_be_bytes()].concat())
    }

    /// raft says: what was committed when the round was asked lies at or below `index`.
    pub(crate) fn confirm(&mut self, name: &[u8], index: u64) {
        let Some(number) = name.strip_prefix(&self.prefix).and_then(|n| n.try_into().ok()) else { return };
        if let Some(round) = self.asked.remove(&u64::from_be_bytes(number)) {
            self.confirmed.push_back((index, round.tickets));
        }
    }

    /// The reads that may be executed, now that everything through `applied` is applied.
    pub(crate) fn ready(&mut self, applied: u64) -> Vec<Ticket> {
        let mut ready = Vec::new();
        self.confirmed.retain_mut(|(index, tickets)| {
            let go = *index <= applied;
            if go {
                ready.append(tickets);
            }
            !go
        });
        ready
    }

    /// Time passed: unanswered rounds wait to be asked again.
    pub(crate) fn tick(&mut self) {
        let mut late = Vec::new();
        self.asked.retain(|_, round| {
            round.ticks += 1;
            let again = round.ticks >= ASK_AGAIN_TICKS;
            if again {
                late.append(&mut round.tickets);
            }
            !again
        });
        self.waiting.append(&mut late);
    }

    /// The leader changed: no earlier question will be answered.
    pub(crate) fn ask_all_again(&mut self) {
        for (_, mut round) in std::mem::take(&mut self.asked) {
            self.waiting.append(&mut round.tickets);
        }
    }

    /// Nobody waits any more for these.
    pub(crate) fn forget(&mut self, gone: impl Fn(Ticket) -> bool) {
        self.waiting.retain(|t| !gone(*t));
        self.asked.values_mut().for_each(|round| round.tickets.retain(|t| !gone(*t)));
        self.confirmed.iter_mut().for_each(|(_, tickets)| tickets.retain(|t| !gone(*t)));
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
            + self.asked.values().map(|r| r.tickets.len()).sum::<usize>()
            + self.confirmed.iter().map(|(_, t)| t.len()).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::{ASK_AGAIN_TICKS, Reads};

    #[test]
    fn a_round_goes_when_its_index_is_applied() {
        let mut reads = Reads::new(1, 9);
        reads.add(1);
        reads.add(2);
        let name = reads.next_to_ask().expect("two reads wait");
        assert!(reads.next_to_ask().is_none(), "both are in one round");
        reads.confirm(&name, 7);
        assert!(reads.ready(6).is_empty());
        assert_eq!(reads.ready(7), [1, 2]);
        assert_eq!(reads.len(), 0);
    }

    #[test]
    fn an_unanswered_round_is_asked_again_under_a_new_name() {
        let mut reads = Reads::new(1, 9);
        reads.add(1);
        let first = reads.next_to_ask().unwrap();
        (0..ASK_AGAIN_TICKS).for_each(|_| reads.tick());
        let second = reads.next_to_ask().expect("it is late");
        assert_ne!(first, second);
        reads.confirm(&first, 1);
        assert!(reads.ready(10).is_empty(), "a late answer to the old name counts for nothing");
        reads.confirm(&second, 1);
        assert_eq!(reads.ready(10), [1]);
    }

    #[test]
    fn an_answer_meant_for_an_earlier_life_is_ignored() {
        let mut old = Reads::new(1, 8);
        old.add(1);
        let name = old.next_to_ask().unwrap();
        let mut reads = Reads::new(1, 9);
        reads.add(1);
        reads.next_to_ask().unwrap();
        reads.confirm(&name, 1);
        assert!(reads.ready(10).is_empty());
    }
}
