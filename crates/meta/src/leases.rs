//! Leases on the leader's clock. The replicated state knows which leases exist and how long they are; when they end is
//! the leader's memory only. A new leader gives every lease its whole time again, so none ends early.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::meta_raft::LeaseTime;
use tokio::time::Instant;

/// Leases ended by one command.
const EXPIRED_AT_ONCE: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Lease {
    ttl: Duration,
    ends: Instant,
}

#[derive(Default)]
struct State {
    leases: BTreeMap<i64, Lease>,
    by_end: BTreeSet<(Instant, i64)>,
}

impl State {
    fn set(&mut self, id: i64, ttl: Duration, now: Instant) {
        self.remove(id);
        let ends = now + ttl;
        self.leases.insert(id, Lease { ttl, ends });
        self.by_end.insert((ends, id));
    }

    fn remove(&mut self, id: i64) {
        if let Some(lease) = self.leases.remove(&id) {
            self.by_end.remove(&(lease.ends, id));
        }
    }
}

/// The leases of the cluster, as this member's state has them. Their times mean something only while it leads.
#[derive(Default)]
pub(crate) struct Leases {
    state: Mutex<State>,
}

impl Leases {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All there are, after the state was opened or replaced.
    pub(crate) fn replace(&self, all: impl IntoIterator<Item = (i64, i64)>, now: Instant) {
        let mut state = self.lock();
        *state = State::default();
        for (id, ttl_s) in all {
            state.set(id, seconds(ttl_s), now);
        }
    }

    pub(crate) fn granted(&self, id: i64, ttl_s: i64, now: Instant) {
        self.lock().set(id, seconds(ttl_s), now);
    }

    pub(crate) fn ended(&self, id: i64) {
        self.lock().remove(id);
    }

    /// This member begins to lead: every lease gets its whole time.
    pub(crate) fn renew_all(&self, now: Instant) {
        let mut state = self.lock();
        let all: Vec<(i64, Duration)> = state.leases.iter().map(|(id, lease)| (*id, lease.ttl)).collect();
        for (id, ttl) in all {
            state.set(id, ttl, now);
        }
    }

    /// The times of those that exist; with `renew` they begin again.
    pub(crate) fn times(&self, ids: &[i64], renew: bool, now: Instant) -> Vec<LeaseTime> {
        let mut state = self.lock();
        let mut times = Vec::new();
        for id in ids {
            let Some(lease) = state.leases.get(id).copied() else { continue };
            if renew {
                state.set(*id, lease.ttl, now);
            }
            let left = if renew { lease.ttl } else { lease.ends.saturating_duration_since(now) };
            times.push(LeaseTime { id: *id, granted_s: lease.ttl.as_secs() as i64, left_ms: left.as_millis() as i64 });
        }
        times
    }

    /// Those whose time is over, the longest over first, bounded.
    pub(crate) fn expired(&self, now: Instant) -> Vec<i64> {
        let state = self.lock();
        let over = state.by_end.iter().take_while(|(ends, _)| *ends <= now);
        over.take(EXPIRED_AT_ONCE).map(|(_, id)| *id).collect()
    }
}

fn seconds(ttl_s: i64) -> Duration {
    Duration::from_secs(u64::try_from(ttl_s).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_end_in_their_order_and_renewal_moves_them() {
        let (leases, start) = (Leases::default(), Instant::now());
        leases.replace([(7, 10)], start);
        leases.granted(8, 5, start);
        let after = |s| start + Duration::from_secs(s);
        assert!(leases.expired(after(4)).is_empty());
        assert_eq!(leases.expired(after(11)), [8, 7]);
        let times = leases.times(&[8, 99], true, after(4));
        assert_eq!(times, [LeaseTime { id: 8, granted_s: 5, left_ms: 5000 }]);
        assert!(leases.expired(after(8)).is_empty());
        leases.ended(8);
        assert_eq!(leases.expired(after(60)), [7]);
        leases.renew_all(after(60));
        assert!(leases.expired(after(69)).is_empty());
    }
}
