//! How fast this OSD copies for recovery and movement, so that clients do not pay for it.
//!
//! While clients work, copying has a rate, and the rate follows what clients feel. It is judged every tenth of a second, by
//! the slowest of their requests: above the bound it is halved; above half the bound it stays; below that it grows,
//! quickly as long as nothing is known of what is too much, and slowly from three quarters of what last was. So it
//! comes near the bound seldom instead of all the time: a bound that one request in a hundred breaks is broken. It begins
//! low for the same reason, nothing grows without a request to show for it, and a pause does not fill a purse that is
//! then spent at once.
//!
//! It never falls below a floor, or an OSD that is always busy would never be emptied. While no client asks for anything
//! there is no rate.

use crate::Time;

/// Bytes per second with which copying begins while clients work.
const BEGIN: u64 = 8 << 20;
/// It never falls below this, and never counts above that.
const FLOOR: u64 = 4 << 20;
const CEILING: u64 = 4 << 30;
/// How long one look at the clients takes.
const WINDOW_MS: u64 = 100;
/// What was not copied for so long may be made up for at once, and no more.
const SAVED_MS: u64 = 20;
/// Without a request for so long there are no clients.
const IDLE_MS: u64 = 500;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Pace {
    rate: u64,
    /// From here on it grows slowly.
    careful: u64,
    /// Bytes that may be copied at once; negative after a piece larger than that.
    room: i64,
    filled_at: Time,
    window: Time,
    /// The slowest request of this window, if one was done in it.
    slowest_ms: Option<u64>,
    heard: Option<Time>,
    /// Something waits for room, until then.
    waits: Option<Time>,
}

impl Default for Pace {
    fn default() -> Self {
        let (filled_at, window) = (Time(0), Time(0));
        Self { rate: BEGIN, careful: CEILING, room: 0, filled_at, window, slowest_ms: None, heard: None, waits: None }
    }
}

impl Pace {
    /// A client's request that began then is done.
    pub(crate) fn client(&mut self, now: Time, began: Time) {
        self.slowest_ms = self.slowest_ms.max(Some(now.ms_since(began)));
        self.heard = Some(now);
    }

    /// A piece goes on that was begun with room: whoever comes next waits the longer.
    pub(crate) fn charge(&mut self, bytes: u32) {
        self.room -= i64::from(bytes);
    }

    /// Takes room for a piece. Otherwise: when to ask again.
    pub(crate) fn take(&mut self, now: Time, bytes: u32, bound_ms: u32) -> Result<(), Time> {
        self.turn(now, u64::from(bound_ms));
        if self.heard.is_none_or(|at| now.ms_since(at) >= IDLE_MS) {
            return Ok(());
        }
        if self.room > 0 {
            self.room -= i64::from(bytes);
            return Ok(());
        }
        let missing = (1 - self.room) as u64;
        let until = now.plus_ms((missing * 1000).div_ceil(self.rate).max(1));
        self.waits = Some(self.waits.map_or(until, |at| at.min(until)));
        Err(until)
    }

    /// When something that was refused may be asked for again.
    pub(crate) fn due(&self, now: Time) -> Option<Time> {
        self.waits.filter(|at| *at > now)
    }

    fn turn(&mut self, now: Time, bound_ms: u64) {
        let since = now.0.saturating_sub(self.filled_at.0);
        let more = u128::from(self.rate) * u128::from(since) / 1_000_000_000;
        let most = (self.rate * SAVED_MS / 1000) as i64;
        self.room = self.room.saturating_add(i64::try_from(more).unwrap_or(i64::MAX)).min(most);
        self.filled_at = now;
        let waited = self.waits.is_some_and(|at| at <= now);
        if waited {
            self.waits = None;
        }
        let age = now.ms_since(self.window);
        if age < WINDOW_MS {
            return;
        }
        // Nothing was copied meanwhile: what clients felt then says nothing about copying.
        if age >= IDLE_MS {
            (self.window, self.slowest_ms) = (now, None);
            return;
        }
        self.judge(bound_ms);
        (self.window, self.slowest_ms) = (now, None);
    }

    fn judge(&mut self, bound_ms: u64) {
        let Some(slowest_ms) = self.slowest_ms else { return };
        if slowest_ms > bound_ms {
            self.careful = self.rate / 4 * 3;
            self.rate = (self.rate / 2).max(FLOOR);
        } else if slowest_ms <= bound_ms / 2 {
            let step = if self.rate < self.careful { self.rate / 4 } else { self.rate / 64 };
            self.rate = (self.rate + step).min(CEILING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: u32 = 512 << 10;

    fn ms(ms: u64) -> Time {
        Time(1_000_000_000 + ms * 1_000_000)
    }

    /// Copies whatever it is allowed for so long, while each request of a client takes what `latency` makes of the rate.
    fn copied(pace: &mut Pace, from: u64, lasts: u64, latency: impl Fn(u64) -> u64) -> u64 {
        let mut bytes = 0;
        for at in from..from + lasts {
            let mut now = 0;
            while now < 1 << 30 && pace.take(ms(at), PIECE, 20).is_ok() {
                now += u64::from(PIECE);
            }
            bytes += now;
            let took = latency(pace.rate);
            pace.client(ms(at), ms(at.saturating_sub(took)));
        }
        bytes
    }

    #[test]
    fn without_clients_nothing_is_held_back() {
        let mut pace = Pace::default();
        assert!((0..10_000).all(|_| pace.take(ms(0), PIECE, 20).is_ok()));
    }

    #[test]
    fn it_settles_below_what_makes_clients_wait() {
        let mut pace = Pace::default();
        // A disk that takes 100 MB/s beside clients, and makes them wait for 50 ms above that.
        let latency = |rate| if rate > 100_000_000 { 50 } else { 1 };
        copied(&mut pace, 0, 2000, latency);
        let bytes = copied(&mut pace, 2000, 10_000, latency) / 10;
        assert!((40_000_000..110_000_000).contains(&bytes), "{bytes} bytes a second");
    }

    #[test]
    fn near_the_bound_it_stays() {
        let mut pace = Pace::default();
        // Within the bound, but only just.
        let latency = |rate| if rate > 50_000_000 { 15 } else { 1 };
        copied(&mut pace, 0, 5000, latency);
        let rate = pace.rate;
        assert!((50_000_001..63_000_000).contains(&rate), "{rate} bytes a second");
        copied(&mut pace, 5000, 5000, latency);
        assert_eq!(pace.rate, rate, "neither faster nor slower");
    }

    #[test]
    fn clients_seldom_feel_where_the_bound_is() {
        let mut pace = Pace::default();
        let felt = std::cell::Cell::new(0);
        let latency = |rate| {
            let slow = rate > 100_000_000;
            felt.set(felt.get() + u32::from(slow));
            if slow { 50 } else { 1 }
        };
        copied(&mut pace, 0, 2000, latency);
        felt.set(0);
        let bytes = copied(&mut pace, 2000, 20_000, latency) / 20;
        assert!(felt.get() <= 20 * 100, "{} of 20000 requests were slow", felt.get());
        assert!(bytes > 60_000_000, "{bytes} bytes a second");
    }

    #[test]
    fn after_a_pause_copying_begins_no_faster() {
        let mut pace = Pace::default();
        pace.client(ms(0), ms(0));
        while pace.take(ms(1), PIECE, 20).is_ok() {}
        // Clients are heard of meanwhile, and nothing is copied.
        pace.client(ms(10_000), ms(10_000));
        let at_once = (0..100).take_while(|_| pace.take(ms(10_000), PIECE, 20).is_ok()).count();
        assert_eq!(at_once, 1);
    }

    #[test]
    fn clients_that_always_wait_do_not_stop_it() {
        let mut pace = Pace::default();
        copied(&mut pace, 0, 2000, |_| 500);
        let bytes = copied(&mut pace, 2000, 10_000, |_| 500) / 10;
        assert!((FLOOR / 2..FLOOR * 2).contains(&bytes), "{bytes} bytes a second");
    }

    #[test]
    fn whoever_is_refused_knows_when_to_ask_again() {
        let mut pace = Pace::default();
        pace.client(ms(0), ms(0));
        while pace.take(ms(1), PIECE, 20).is_ok() {}
        let Err(until) = pace.take(ms(1), PIECE, 20) else { panic!("there is no room") };
        assert_eq!(pace.due(ms(1)), Some(until));
        assert!(pace.take(until, PIECE, 20).is_ok());
    }
}
