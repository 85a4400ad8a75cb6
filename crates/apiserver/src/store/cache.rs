//! One etcd watch per resource, kept as the newest state plus a bounded ring of changes. Any number of watchers read
//! the ring at their own pace: a change is stored once and each watcher holds only a position.
//!
//! A watcher that falls out of the ring, or that asks for history older than it, is told so and lists again.

use super::Stored;
use super::etcd::{Etcd, StoreError};
use crate::registry::Resource;
use cairn_proto::mvccpb::event::EventType;
use cairn_proto::mvccpb::{Event, KeyValue};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Changes kept.
const RING_CHANGES: usize = 2048;
/// Their text together, in bytes.
const RING_BYTES: usize = 4 << 20;
const LOAD_PAGE: i64 = 500;

/// One change of one object.
#[derive(Debug)]
pub(crate) struct Change {
    /// The object before, if there was one.
    pub(crate) before: Option<Arc<Stored>>,
    /// The object after, or `None` where it was deleted.
    pub(crate) after: Option<Arc<Stored>>,
    /// When.
    pub(crate) revision: i64,
}

impl Change {
    fn size(&self) -> usize {
        self.after.as_ref().map_or(64, |object| object.json.len())
    }
}

/// A watcher's place in the ring.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    epoch: u64,
    next: u64,
}

/// The history between a cursor and now is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Gone;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Arc<Stored>>,
    ring: VecDeque<Arc<Change>>,
    ring_bytes: usize,
    /// Number of the ring's first change.
    first: u64,
    /// Changes up to this revision are not in the ring.
    floor: i64,
    /// Everything up to this revision has been seen.
    revision: i64,
    /// The newest change taken, or the revision loaded. Apart from `revision`, which a report of progress may raise.
    taken: i64,
    /// Counts reloads; history does not reach across one.
    epoch: u64,
}

/// The newest state of one resource and its recent past.
pub(crate) struct Cache {
    resource: &'static Resource,
    state: Mutex<State>,
    moved: watch::Sender<(u64, u64)>,
}

impl Cache {
    /// Empty, until `follow` runs.
    pub(crate) fn new(resource: &'static Resource) -> Cache {
        Cache { resource, state: Mutex::default(), moved: watch::Sender::new((0, 0)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the first load is done.
    pub(crate) fn is_ready(&self) -> bool {
        self.state().epoch > 0
    }

    /// Waits for the first load.
    pub(crate) async fn ready(&self) {
        let mut moved = self.moved.subscribe();
        // The sender lives in self, so this fails only when self is gone.
        let _ = moved.wait_for(|(epoch, _)| *epoch > 0).await;
    }

    /// Tells of every change from now on.
    pub(crate) fn subscribe(&self) -> watch::Receiver<(u64, u64)> {
        self.moved.subscribe()
    }

    /// Everything up to this revision has been seen.
    pub(crate) fn revision(&self) -> i64 {
        self.state().revision
    }

    /// The object under `key`, as far as has been seen.
    pub(crate) fn peek(&self, key: &str) -> Option<Arc<Stored>> {
        self.state().objects.get(key).cloned()
    }

    /// All objects whose key starts with `prefix`, as far as has been seen, with the place where later changes begin.
    pub(crate) fn snapshot(&self, prefix: &str) -> (Vec<Arc<Stored>>, i64, Cursor) {
        let state = self.state();
        let objects = state.objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let objects = objects.map(|(_, object)| object.clone()).collect();
        (objects, state.revision, Cursor { epoch: state.epoch, next: state.first + state.ring.len() as u64 })
    }

    /// The place of the first change after `revision`.
    pub(crate) fn after(&self, revision: i64) -> Result<Cursor, Gone> {
        let state = self.state();
        if revision < state.floor {
            return Err(Gone);
        }
        let skip = state.ring.partition_point(|change| change.revision <= revision);
        Ok(Cursor { epoch: state.epoch, next: state.first + skip as u64 })
    }

    /// The changes since `cursor`, which moves on, and the revision that they reach.
    pub(crate) fn read(&self, cursor: &mut Cursor) -> Result<(Vec<Arc<Change>>, i64), Gone> {
        let state = self.state();
        if cursor.epoch != state.epoch || cursor.next < state.first {
            return Err(Gone);
        }
        let skip = usize::try_from(cursor.next - state.first).unwrap_or(usize::MAX);
        let changes: Vec<Arc<Change>> = state.ring.iter().skip(skip).cloned().collect();
        cursor.next += changes.len() as u64;
        Ok((changes, state.revision))
    }

    /// A value from the store as an object, without parsing it where memory has it already.
    pub(crate) fn resolve(&self, kv: &KeyValue) -> Result<Arc<Stored>, crate::error::ApiError> {
        let key = self.relative(&kv.key);
        if let Some(known) = self.peek(&key).filter(|known| known.revision == kv.mod_revision) {
            return Ok(known);
        }
        Stored::new(self.resource, key, kv.mod_revision, &kv.value).map(Arc::new)
    }

    fn relative(&self, key: &[u8]) -> String {
        let prefix = self.resource.prefix().len();
        String::from_utf8_lossy(key.get(prefix..).unwrap_or_default()).into_owned()
    }

    /// Keeps the cache up to date until it is dropped by its task.
    pub(crate) async fn follow(&self, etcd: &Etcd) {
        let mut pause = Duration::from_millis(50);
        let mut reload = true;
        loop {
            let attempt = async {
                if reload {
                    self.load(etcd).await?;
                    reload = false;
                    pause = Duration::from_millis(50);
                }
                self.stream(etcd).await
            };
            match attempt.await {
                Ok(()) => {}
                Err(StoreError::Compacted | StoreError::Future) => reload = true,
                Err(error) => {
                    tracing::warn!(resource = self.resource.plural, %error, "watch of the store broke, resuming")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    async fn load(&self, etcd: &Etcd) -> Result<(), StoreError> {
        let prefix = self.resource.prefix();
        let end = prefix_end(&prefix);
        let (mut objects, mut start, mut revision) = (BTreeMap::new(), prefix.clone(), 0);
        loop {
            let page = etcd.range(&start, &end, LOAD_PAGE, revision).await?;
            revision = if revision == 0 { page.revision } else { revision };
            for kv in &page.kvs {
                match Stored::new(self.resource, self.relative(&kv.key), kv.mod_revision, &kv.value) {
                    Ok(object) => drop(objects.insert(object.key.clone(), Arc::new(object))),
                    Err(error) => tracing::error!(%error, "left out"),
                }
            }
            match page.kvs.last() {
                Some(last) if page.more => start = format!("{}\0", String::from_utf8_lossy(&last.key)),
                _ => break,
            }
        }
        let mut state = self.state();
        let epoch = state.epoch + 1;
        *state = State { objects, floor: revision, revision, taken: revision, epoch, ..State::default() };
        self.moved.send_replace((epoch, 0));
        Ok(())
    }

    async fn stream(&self, etcd: &Etcd) -> Result<(), StoreError> {
        let prefix = self.resource.prefix();
        let broken = |status: tonic::Status| StoreError::Unavailable(status.message().to_owned());
        let from = self.state().taken + 1;
        let mut watching = etcd.watch(&prefix, &prefix_end(&prefix), from).await.map_err(broken)?;
        while let Some(reply) = watching.next().await.map_err(broken)? {
            if reply.compact_revision > 0 {
                return Err(StoreError::Compacted);
            }
            if reply.canceled {
                return Err(StoreError::Unavailable(reply.cancel_reason));
            }
            // The header of a "created" reply may be ahead of changes still to come.
            let reached = reply.header.filter(|_| !reply.created).map_or(0, |header| header.revision);
            self.take(&reply.events, reached);
        }
        Err(StoreError::Unavailable("the watch ended".to_owned()))
    }

    fn take(&self, events: &[Event], reached: i64) {
        let mut state = self.state();
        for event in events {
            let Some(kv) = &event.kv else { continue };
            // A resumed watch may repeat what was seen; the mark rises only after the whole batch.
            if kv.mod_revision > state.taken {
                self.take_one(&mut state, event.r#type() == EventType::Delete, kv);
            }
        }
        // With events, the header may be ahead of them in a split batch: only an empty reply is proof of progress.
        let last = events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
        state.taken = state.taken.max(last.unwrap_or(0));
        state.revision = state.revision.max(last.unwrap_or(reached));
        let mark = (state.epoch, state.first + state.ring.len() as u64);
        drop(state);
        self.moved.send_if_modified(|old| std::mem::replace(old, mark) != mark);
    }

    fn take_one(&self, state: &mut State, deleted: bool, kv: &KeyValue) {
        let key = self.relative(&kv.key);
        let before = state.objects.get(&key).cloned();
        let after = if deleted {
            state.objects.remove(&key);
            None
        } else {
            match Stored::new(self.resource, key.clone(), kv.mod_revision, &kv.value) {
                Ok(object) => {
                    let object = Arc::new(object);
                    state.objects.insert(key, object.clone());
                    Some(object)
                }
                Err(error) => return tracing::error!(%error, "left out"),
            }
        };
        if before.is_none() && after.is_none() {
            return;
        }
        let change = Arc::new(Change { before, after, revision: kv.mod_revision });
        state.ring_bytes += change.size();
        state.ring.push_back(change);
        while state.ring.len() > RING_CHANGES || (state.ring_bytes > RING_BYTES && state.ring.len() > 1) {
            let Some(old) = state.ring.pop_front() else { break };
            state.ring_bytes -= old.size();
            state.first += 1;
            state.floor = old.revision;
        }
    }
}

/// The first key beyond all that start with `prefix`.
pub(crate) fn prefix_end(prefix: &str) -> String {
    let mut bytes = prefix.as_bytes().to_vec();
    *bytes.last_mut().expect("prefixes end in a slash") += 1;
    String::from_utf8(bytes).expect("the byte after a slash is ASCII")
}

#[cfg(test)]
mod tests {
    use super::{Cache, Gone, RING_CHANGES, prefix_end};
    use crate::registry::find;
    use bytes::Bytes;
    use cairn_proto::mvccpb::event::EventType;
    use cairn_proto::mvccpb::{Event, KeyValue};

    fn cache() -> Cache {
        let cache = Cache::new(find("", "v1", "configmaps").expect("configmaps"));
        cache.state().epoch = 1;
        cache
    }

    fn event(kind: EventType, name: &str, revision: i64) -> Event {
        let value = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}}}}"#);
        let kv = KeyValue {
            key: Bytes::from(format!("/registry/core/configmaps/ns/{name}")),
            mod_revision: revision,
            value: if kind == EventType::Put { Bytes::from(value) } else { Bytes::new() },
            ..Default::default()
        };
        Event { r#type: kind.into(), kv: Some(kv), prev_kv: None }
    }

    #[test]
    fn watchers_read_at_their_own_pace() {
        let cache = cache();
        let mut slow = cache.after(0).expect("from the start");
        cache.take(&[event(EventType::Put, "a", 5)], 5);
        let mut late = cache.after(5).expect("from five");
        cache.take(&[event(EventType::Put, "a", 7), event(EventType::Delete, "a", 9)], 9);
        let (all, revision) = cache.read(&mut slow).expect("kept");
        assert_eq!((all.len(), revision), (3, 9));
        assert!(all[2].after.is_none() && all[2].before.as_ref().is_some_and(|b| b.revision == 7));
        assert_eq!(cache.read(&mut late).expect("kept").0.len(), 2);
        assert_eq!(cache.read(&mut late).expect("kept").0.len(), 0);
        assert!(cache.snapshot("ns/").0.is_empty());
    }

    #[test]
    fn what_left_the_ring_is_gone() {
        let cache = cache();
        let mut asleep = cache.after(0).expect("from the start");
        for revision in 1..=(RING_CHANGES as i64 + 10) {
            cache.take(&[event(EventType::Put, "a", revision)], revision);
        }
        assert_eq!(cache.read(&mut asleep).map(|_| ()), Err(Gone));
        assert_eq!(cache.after(9).map(|_| ()), Err(Gone));
        let mut kept = cache.after(10).expect("the floor itself is enough");
        assert_eq!(cache.read(&mut kept).expect("kept").0.len(), RING_CHANGES);
    }

    #[test]
    fn a_transaction_with_two_keys_is_seen_whole() {
        let cache = cache();
        let mut cursor = cache.after(0).expect("from the start");
        cache.take(&[event(EventType::Put, "a", 3), event(EventType::Put, "b", 3)], 3);
        assert_eq!(cache.read(&mut cursor).expect("kept").0.len(), 2);
        // A resumed watch may repeat what was seen.
        cache.take(&[event(EventType::Put, "z", 2)], 3);
        assert_eq!(cache.read(&mut cursor).expect("kept").0.len(), 0);
    }

    #[test]
    fn prefixes_end() {
        assert_eq!(prefix_end("/registry/core/pods/"), "/registry/core/pods0");
    }
}
