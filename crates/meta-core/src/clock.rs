//! The cluster's clock: the newest time that a command carried. It never goes back, and does not stand still because one
//! host's clock was ahead.
//!
//! Commands are stamped by whoever proposes them, and one host's clock may have been ahead for a while. What was stamped
//! then holds; from then on the others' stamps are behind, and the clock goes on by as much as theirs do. Otherwise nothing
//! would ever be old enough until they had caught up: no suspicion would fade, no OSD that stays down be taken out. Found
//! by the simulation: an OSD under suspicion stayed down although everybody heard it.

/// Stamps that lie further apart than this are of different clocks, or of one that was set: nothing is learnt from what
/// lies between them. Where those of two clocks come in turns, both behind, the clock waits: slow is safe, fast is not.
const SAME_CLOCK_S: u64 = 60;

/// The clock after a command: what it shows, and the newest stamp among those that lag behind it (0: none does).
pub(crate) fn follow(clock_s: u64, behind_s: u64, stamp_s: u64) -> (u64, u64) {
    if stamp_s >= clock_s {
        return (stamp_s, 0);
    }
    if stamp_s.abs_diff(behind_s) > SAME_CLOCK_S {
        return (clock_s, stamp_s);
    }
    (clock_s + stamp_s.saturating_sub(behind_s), behind_s.max(stamp_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stamps: impl IntoIterator<Item = u64>) -> u64 {
        stamps.into_iter().fold((0, 0), |(clock, behind), stamp| follow(clock, behind, stamp)).0
    }

    #[test]
    fn it_is_the_newest_stamp_while_clocks_agree() {
        assert_eq!(after([1000, 1001, 1005]), 1005);
        // One that is a little slow, in turns with the others.
        assert_eq!(after((1000..2000).flat_map(|now| [now, now - 3])), 1999);
    }

    #[test]
    fn it_goes_on_after_a_clock_was_ahead() {
        let ahead = [1000, 1001, 90_000];
        assert_eq!(after(ahead.into_iter().chain(1002..1102)), 90_000 + 99);
        // Two that lag differently do not make it run faster than one of them.
        assert_eq!(after(ahead.into_iter().chain((1002..1102).flat_map(|now| [now, now - 5]))), 90_000 + 99);
        assert!(after(ahead.into_iter().chain((1002..1102).flat_map(|now| [now, now - 500]))) <= 90_000 + 99);
        // It is the newest stamp again once they have caught up.
        assert_eq!(after(ahead.into_iter().chain([89_990, 89_995, 90_020])), 90_020);
    }

    #[test]
    fn a_pause_is_not_made_up_for() {
        assert_eq!(after([90_000, 1000, 1010, 5000, 5010]), 90_020);
    }
}
