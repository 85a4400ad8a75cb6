//! One thing at a time per volume: a second call about the same volume waits for the first, and then usually finds it
//! done. Nobody is ever told that an operation is under way already.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard};

/// Hands out turns by key. Bounded by the calls in progress: a key that nobody waits for is forgotten.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns {
    keys: Arc<Mutex<HashMap<String, Arc<TurnMutex<()>>>>>,
}

/// Held while something is done to a volume.
pub(crate) struct Turn {
    keys: Arc<Mutex<HashMap<String, Arc<TurnMutex<()>>>>>,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// Waits for the turn of this key.
    pub(crate) async fn take(&self, key: &str) -> Turn {
        let turn = {
            let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.entry(key.to_owned()).or_default().clone()
        };
        Turn { keys: self.keys.clone(), key: key.to_owned(), guard: Some(turn.lock_owned().await) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's own is the last one: nobody waits. Taking another happens under the same lock.
        if keys.get(&self.key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn calls_about_one_volume_follow_each_other_and_leave_nothing() {
        let (turns, inside) = (Turns::default(), Arc::new(AtomicUsize::new(0)));
        let calls = (0..64).map(|_| {
            let (turns, inside) = (turns.clone(), inside.clone());
            tokio::spawn(async move {
                let _turn = turns.take("7").await;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, Ordering::SeqCst);
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        assert!(turns.keys.lock().unwrap().is_empty());
    }
}
