//! What is to be looked at: each object at most once in the queue and at most once in hand.
//!
//! An object that changes while it is in hand is looked at again afterwards. One whose step failed comes back after a
//! delay that doubles. The queue is bounded by the number of objects there are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The first delay after a failure, and the longest.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// What came of looking at an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing more until something changes.
    Settled,
    /// Look again after this time.
    After(Duration),
    /// It failed: again after a delay.
    Failed,
}

#[derive(Debug)]
struct State<K> {
    ready: VecDeque<K>,
    queued: BTreeSet<K>,
    in_hand: BTreeSet<K>,
    again: BTreeSet<K>,
    later: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
}

/// The queue. Shared by those who add and the one who takes.
#[derive(Debug)]
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

impl<K: Clone + Ord> Queue<K> {
    pub(crate) fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            in_hand: BTreeSet::new(),
            again: BTreeSet::new(),
            later: BTreeSet::new(),
            failures: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().expect("nothing panics while it holds the queue")
    }

    /// Something about this object changed.
    pub(crate) fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// The next object to look at; whoever takes it must say [`Self::done`].
    pub(crate) async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.lock();
                state.wake(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.in_hand.insert(key.clone());
                    return key;
                }
                state.later.first().map(|(due, _)| *due)
            };
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep => {}
            }
        }
    }

    /// An object is out of hand.
    pub(crate) fn done(&self, key: &K, verdict: Verdict) {
        let mut state = self.lock();
        state.in_hand.remove(key);
        let delay = match verdict {
            Verdict::Settled => None,
            Verdict::After(delay) => Some(delay),
            Verdict::Failed => {
                let failures = state.failures.entry(key.clone()).or_insert(0);
                let delay = FIRST_DELAY.saturating_mul(1 << (*failures).min(10)).min(LONGEST_DELAY);
                *failures += 1;
                Some(delay)
            }
        };
        if verdict != Verdict::Failed {
            state.failures.remove(key);
        }
        if state.again.remove(key) && verdict != Verdict::Failed {
            state.add(key.clone());
        } else if let Some(delay) = delay {
            state.later.retain(|(_, other)| other != key);
            state.later.insert((Instant::now() + delay, key.clone()));
        }
        drop(state);
        self.changed.notify_one();
    }
}

impl<K: Clone + Ord> State<K> {
    fn add(&mut self, key: K) {
        if self.in_hand.contains(&key) {
            self.again.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn wake(&mut self, now: Instant) {
        while self.later.first().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, key)) = self.later.pop_first() {
                self.add(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_in_hand_is_looked_at_again_if_it_changed() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        queue.done(&"b", Verdict::Settled);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err(), "never twice in hand");
        queue.done(&"a", Verdict::Settled);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Verdict::Settled);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_ever_later() {
        let queue = Queue::new();
        queue.add(());
        let mut delays = Vec::new();
        for _ in 0..10 {
            let before = Instant::now();
            queue.next().await;
            delays.push(before.elapsed().as_millis());
            queue.done(&(), Verdict::Failed);
        }
        assert_eq!(delays[..4], [0, 250, 500, 1000]);
        assert_eq!(delays[9], 30_000);
        queue.next().await;
        queue.done(&(), Verdict::After(Duration::from_secs(5)));
        let before = Instant::now();
        queue.next().await;
        assert_eq!(before.elapsed().as_secs(), 5);
    }
}
