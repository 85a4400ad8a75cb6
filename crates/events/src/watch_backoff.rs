//! How soon a broken watch is tried again. The client library's own choice waits up to 30 s, and a server that has
//! just restarted refuses the first resumption of each watch as too old: a controller would be blind for a minute.

use std::time::Duration;

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// 50 ms, doubled up to a second; from the beginning after each event that arrived.
#[derive(Clone, Debug)]
pub struct WatchBackoff {
    next: Duration,
}

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_tried_again_within_a_second_for_ever() {
        let mut backoff = WatchBackoff::default();
        assert!(backoff.by_ref().take(20).all(|pause| pause <= LONGEST));
        assert_eq!(backoff.next(), Some(LONGEST));
        backoff.reset();
        assert_eq!(backoff.next(), Some(FIRST));
    }
}
