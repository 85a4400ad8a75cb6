//! How long to wait before trying again: containers that crash, and steps that fail. Pure arithmetic over times that
//! are given.

use jiff::{SignedDuration, Timestamp};

const FIRST: SignedDuration = SignedDuration::from_secs(10);
const LONGEST: SignedDuration = SignedDuration::from_secs(300);
/// A container that ran this long has recovered: its next crash counts as the first.
const RECOVERED: SignedDuration = SignedDuration::from_secs(600);

/// The wait before restart number `streak` (0 = the first, at once): 0, 10, 20, 40 .. 300 s.
pub(crate) fn crash_delay(streak: u32) -> SignedDuration {
    match streak {
        0 => SignedDuration::ZERO,
        1..=5 => FIRST * (1 << (streak - 1)),
        _ => LONGEST,
    }
}

/// The number of crashes in a row, counted up by one that ran for `ran`.
pub(crate) fn crash_streak(streak: u32, ran: SignedDuration) -> u32 {
    if ran >= RECOVERED { 1 } else { streak.saturating_add(1) }
}

/// A step that failed and is tried again later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) until: Timestamp,
    pub(crate) failures: u32,
    /// For a container status: `ImagePullBackOff`, `CreateContainerConfigError`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Hold {
    /// After one more failure: 0.5 s, doubled each time up to `longest`.
    pub(crate) fn after(
        previous: Option<&Hold>,
        now: Timestamp,
        longest: SignedDuration,
        reason: &'static str,
        message: String,
    ) -> Hold {
        let failures = previous.map_or(0, |hold| hold.failures).saturating_add(1);
        let wait = (SignedDuration::from_millis(500) * (1 << failures.min(16).saturating_sub(1))).min(longest);
        Hold { until: now.saturating_add(wait).unwrap_or(now), failures, reason, message }
    }
}

#[cfg(test)]
mod tests {
    use super::{Hold, crash_delay, crash_streak};
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn crashes_wait_longer_each_time_and_at_most_five_minutes() {
        let waits: Vec<i64> = (0..9).map(|streak| crash_delay(streak).as_secs()).collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_good_minutes_are_forgiveness() {
        assert_eq!(crash_streak(4, SignedDuration::from_secs(599)), 5);
        assert_eq!(crash_streak(4, SignedDuration::from_secs(600)), 1);
    }

    #[test]
    fn holds_double_up_to_their_limit() {
        let now = Timestamp::UNIX_EPOCH;
        let longest = SignedDuration::from_secs(4);
        let mut hold = None;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let next = Hold::after(hold.as_ref(), now, longest, "x", String::new());
            waits.push(next.until.duration_since(now).as_millis());
            hold = Some(next);
        }
        assert_eq!(waits, [500, 1000, 2000, 4000, 4000, 4000]);
    }
}
