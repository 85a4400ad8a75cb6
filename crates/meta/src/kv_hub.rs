//! Watches of the key-value half. The driver's thread puts each new revision into the queues of the watches it concerns;
//! the stream that owns a watch takes them out at its own pace.
//!
//! A queue is bounded. A watch whose queue overflows is marked as lagging from that revision on, and hears nothing more
//! until its stream has read what it missed from the history and asked to be put level again. So a slow watcher costs
//! memory to nobody, and misses nothing that compaction leaves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cairn_proto::mvccpb::{Event, event::EventType};
use tokio::sync::Notify;

/// Events that may wait for one watch, and about how many bytes of them.
const QUEUE_EVENTS: usize = 4096;
const QUEUE_BYTES: usize = 4 << 20;

/// Which changes a watch wants to hear of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    pub(crate) key: Vec<u8>,
    /// As in etcd: empty for one key, one zero byte for all from `key` on, else the end.
    pub(crate) range_end: Vec<u8>,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
    pub(crate) prev_kv: bool,
}

impl Interest {
    pub(crate) fn wants_key(&self, key: &[u8]) -> bool {
        match self.range_end.as_slice() {
            [] => key == self.key,
            [0] => key >= self.key.as_slice(),
            end => key >= self.key.as_slice() && key < end,
        }
    }

    /// The event as this watch wants it, if it does.
    pub(crate) fn shaped(&self, event: &Event) -> Option<Event> {
        let unwanted = match event.r#type() {
            EventType::Put => self.no_put,
            EventType::Delete => self.no_delete,
        };
        let kv = event.kv.as_ref().filter(|kv| !unwanted && self.wants_key(&kv.key))?;
        let prev_kv = event.prev_kv.clone().filter(|_| self.prev_kv);
        Some(Event { r#type: event.r#type, kv: Some(kv.clone()), prev_kv })
    }
}

/// The changes of one revision, as one watch wants them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) revision: i64,
    pub(crate) events: Vec<Event>,
}

/// Names a watch in the hub.
pub(crate) type WatchKey = u64;

/// What a stream finds when it looks at one of its watches.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Found {
    pub(crate) changes: Vec<Change>,
    /// Everything from this revision on is missing here and must be read from the history.
    pub(crate) lagging_from: Option<i64>,
    /// Everything through this revision has been in the queue.
    pub(crate) level: i64,
}

struct Watch {
    interest: Interest,
    queue: VecDeque<Change>,
    queued: usize,
    queued_bytes: usize,
    /// Changes before this revision are not wanted.
    start: i64,
    lagging_from: Option<i64>,
    wake: Arc<Notify>,
}

#[derive(Default)]
struct State {
    revision: i64,
    next_key: WatchKey,
    watches: BTreeMap<WatchKey, Watch>,
}

/// All watches of this member.
#[derive(Default)]
pub(crate) struct KvHub {
    state: Mutex<State>,
}

impl KvHub {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch from `start` on; 0: from the next revision. Answers its name and the revision it is level with: what
    /// lies between `start` and that is to be read from the history.
    pub(crate) fn add(&self, interest: Interest, start: i64, wake: Arc<Notify>) -> (WatchKey, i64) {
        let mut state = self.lock();
        state.next_key += 1;
        let (key, level) = (state.next_key, state.revision);
        let lagging_from = (start > 0 && start <= level).then_some(start);
        let watch = Watch { interest, queue: VecDeque::new(), queued: 0, queued_bytes: 0, start, lagging_from, wake };
        if lagging_from.is_some() {
            watch.wake.notify_one();
        }
        state.watches.insert(key, watch);
        (key, level)
    }

    pub(crate) fn remove(&self, key: WatchKey) {
        self.lock().watches.remove(&key);
    }

    /// What came for a watch since the last look.
    pub(crate) fn take(&self, key: WatchKey) -> Found {
        let mut state = self.lock();
        let level = state.revision;
        let Some(watch) = state.watches.get_mut(&key) else { return Found { level, ..Found::default() } };
        (watch.queued, watch.queued_bytes) = (0, 0);
        Found { changes: watch.queue.drain(..).collect(), lagging_from: watch.lagging_from, level }
    }

    /// The stream has read everything before `next` from the history. `true`: the watch hears of new changes again;
    /// otherwise more came meanwhile, and is to be read too.
    pub(crate) fn catch_up(&self, key: WatchKey, next: i64) -> bool {
        let mut state = self.lock();
        let level = state.revision;
        let Some(watch) = state.watches.get_mut(&key) else { return true };
        // The history may have been read beyond what was published: that is not to be said twice.
        watch.start = watch.start.max(next);
        watch.lagging_from = (next <= level).then_some(next);
        watch.lagging_from.is_none()
    }

    /// The newest revision heard of.
    pub(crate) fn revision(&self) -> i64 {
        self.lock().revision
    }

    /// A new revision was applied.
    pub(crate) fn publish(&self, revision: i64, events: &[Event]) {
        let mut state = self.lock();
        state.revision = revision;
        for watch in state.watches.values_mut() {
            if watch.lagging_from.is_some() || revision < watch.start {
                continue;
            }
            let events: Vec<Event> = events.iter().filter_map(|event| watch.interest.shaped(event)).collect();
            if events.is_empty() {
                continue;
            }
            let bytes: usize = events.iter().map(size_of).sum();
            let full = watch.queued + events.len() > QUEUE_EVENTS || watch.queued_bytes + bytes > QUEUE_BYTES;
            if full && watch.queued > 0 {
                watch.lagging_from = Some(revision);
            } else {
                watch.queued += events.len();
                watch.queued_bytes += bytes;
                watch.queue.push_back(Change { revision, events });
            }
            watch.wake.notify_one();
        }
    }

    /// The whole state was replaced and stands at `revision`: what lies between is only in the history.
    pub(crate) fn jump(&self, revision: i64) {
        let mut state = self.lock();
        let missed_from = state.revision + 1;
        state.revision = revision;
        for watch in state.watches.values_mut() {
            let from = missed_from.max(watch.start);
            if watch.lagging_from.is_none() && from <= revision {
                watch.lagging_from = Some(from);
                watch.wake.notify_one();
            }
        }
    }
}

fn size_of(event: &Event) -> usize {
    let kvs = event.kv.iter().chain(&event.prev_kv);
    kvs.map(|kv| kv.key.len() + kv.value.len() + 64).sum()
}

#[cfg(test)]
mod tests {
    use cairn_proto::mvccpb::KeyValue;

    use super::*;

    fn put(key: &str, revision: i64) -> Event {
        let kv = |revision| KeyValue { key: key.to_owned().into(), mod_revision: revision, ..KeyValue::default() };
        Event { r#type: EventType::Put.into(), kv: Some(kv(revision)), prev_kv: Some(kv(revision - 1)) }
    }

    fn prefix(key: &str, end: &str) -> Interest {
        Interest { key: key.into(), range_end: end.into(), ..Interest::default() }
    }

    fn revisions(found: &Found) -> Vec<i64> {
        found.changes.iter().map(|c| c.revision).collect()
    }

    #[test]
    fn a_watch_hears_what_it_asked_for() {
        let hub = KvHub::default();
        let (range, _) = hub.add(prefix("a", "b"), 0, Arc::default());
        let (one, _) = hub.add(prefix("b", ""), 0, Arc::default());
        let (from, _) = hub.add(prefix("b", "\0"), 0, Arc::default());
        let (none, _) = hub.add(Interest { no_put: true, ..prefix("a", "\0") }, 0, Arc::default());
        for (revision, key) in [(2, "a1"), (3, "b"), (4, "b1")] {
            hub.publish(revision, &[put(key, revision)]);
        }
        assert_eq!(revisions(&hub.take(range)), [2]);
        assert_eq!(revisions(&hub.take(one)), [3]);
        assert_eq!(revisions(&hub.take(from)), [3, 4]);
        assert_eq!(hub.take(none), Found { level: 4, ..Found::default() });
    }

    #[test]
    fn previous_values_come_only_when_asked_for() {
        let with = Interest { prev_kv: true, ..prefix("a", "") };
        assert!(with.shaped(&put("a", 5)).unwrap().prev_kv.is_some());
        assert!(prefix("a", "").shaped(&put("a", 5)).unwrap().prev_kv.is_none());
    }

    #[test]
    fn an_overflowing_watch_is_told_from_where_it_lags_and_comes_level_again() {
        let hub = KvHub::default();
        let (key, _) = hub.add(prefix("a", ""), 0, Arc::default());
        let last = QUEUE_EVENTS as i64 + 10;
        for revision in 1..=last {
            hub.publish(revision, &[put("a", revision)]);
        }
        let found = hub.take(key);
        assert_eq!(found.changes.len(), QUEUE_EVENTS);
        assert_eq!(found.lagging_from, Some(QUEUE_EVENTS as i64 + 1), "nothing between queue and history is lost");
        assert!(!hub.catch_up(key, last), "the last one was not read yet");
        assert!(hub.catch_up(key, last + 1));
        hub.publish(last + 1, &[put("a", last + 1)]);
        assert_eq!(revisions(&hub.take(key)), [last + 1]);
    }

    #[test]
    fn what_the_history_showed_early_is_not_said_again() {
        let hub = KvHub::default();
        hub.publish(5, &[put("a", 5)]);
        let (key, _) = hub.add(prefix("a", ""), 5, Arc::default());
        assert!(hub.catch_up(key, 8), "the history already had 6 and 7");
        (6..=8).for_each(|revision| hub.publish(revision, &[put("a", revision)]));
        assert_eq!(revisions(&hub.take(key)), [8]);
    }

    #[test]
    fn a_start_in_the_past_begins_in_the_history_and_one_in_the_future_waits() {
        let hub = KvHub::default();
        hub.publish(7, &[put("a", 7)]);
        let (past, level) = hub.add(prefix("a", ""), 5, Arc::default());
        assert_eq!(level, 7);
        assert_eq!(hub.take(past).lagging_from, Some(5));
        let (future, _) = hub.add(prefix("a", ""), 9, Arc::default());
        hub.publish(8, &[put("a", 8)]);
        hub.publish(9, &[put("a", 9)]);
        assert_eq!(revisions(&hub.take(future)), [9]);
    }

    #[test]
    fn a_replaced_state_sends_everybody_to_the_history() {
        let hub = KvHub::default();
        hub.publish(7, &[put("a", 7)]);
        let (key, _) = hub.add(prefix("a", ""), 0, Arc::default());
        hub.jump(20);
        assert_eq!(hub.take(key).lagging_from, Some(8));
    }
}
