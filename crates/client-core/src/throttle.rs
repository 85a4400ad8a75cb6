//! How often, and how much, a holder may read and write: a volume's limits, kept by whoever holds it.
//!
//! Each limit is a bucket that fills with time and from which an operation takes what it costs. An operation is let in
//! when no bucket is overdrawn, and may then overdraw one: so nothing has to be known of an operation before it comes,
//! a large one is never stuck, and what comes after it pays. Over any time the sum is at most what the limit gives, and
//! what was saved up, and one operation.
//!
//! No clock: `now` is an argument, as everywhere in this crate.

use std::time::Duration;

use cairn_types::volume::VolumeLimits;

use crate::op::Op;

/// What a bucket holds beside the burst that was asked for. Timers ring late, by a millisecond and more; without this
/// each would cost a share of the limit.
const SLACK: Duration = Duration::from_millis(100);

/// One limit, in units a second.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// 0: no limit.
    rate: u64,
    /// When the bucket is no longer overdrawn. In the past: so long has been saved up.
    paid_at: Duration,
}

impl Bucket {
    fn full() -> Self {
        Self { rate: 0, paid_at: Duration::ZERO }
    }

    fn take(&mut self, now: Duration, depth: Duration, units: u64) {
        if self.rate > 0 {
            let saved_since = now.saturating_sub(depth);
            self.paid_at = self.paid_at.max(saved_since) + lasting(units, self.rate);
        }
    }

    /// What is overdrawn stays so many units, and is paid off at the new rate. What was saved up under another limit, or
    /// under none, counts no more.
    fn set_rate(&mut self, now: Duration, rate: u64) {
        if rate == self.rate {
            return;
        }
        let debt = self.paid_at.saturating_sub(now);
        let units = debt.as_nanos().saturating_mul(u128::from(self.rate)) / NANOS;
        self.rate = rate;
        self.paid_at = match rate {
            0 => Duration::ZERO,
            rate => now + lasting(u64::try_from(units).unwrap_or(u64::MAX), rate),
        };
    }
}

const NANOS: u128 = 1_000_000_000;

fn lasting(units: u64, rate: u64) -> Duration {
    let nanos = u128::from(units) * NANOS / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// The limits of one holding.
#[derive(Debug)]
pub struct Throttle {
    operations: Bucket,
    bytes: Bucket,
    burst: Duration,
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

impl Throttle {
    /// One that lets everything in.
    #[must_use]
    pub fn new() -> Self {
        Self { operations: Bucket::full(), bytes: Bucket::full(), burst: Duration::ZERO }
    }

    /// These are the limits from now on.
    pub fn set_limits(&mut self, now: Duration, limits: VolumeLimits) {
        self.burst = Duration::from_secs(limits.burst_s.into());
        self.operations.set_rate(now, limits.iops);
        self.bytes.set_rate(now, limits.bandwidth);
    }

    /// When an operation may come: at once, where this is not later than now.
    #[must_use]
    pub fn opens_at(&self) -> Duration {
        self.operations.paid_at.max(self.bytes.paid_at)
    }

    /// Whether an operation may come now.
    #[must_use]
    pub fn is_open(&self, now: Duration) -> bool {
        self.opens_at() <= now
    }

    /// An operation has come. Reads and writes cost one and their bytes; zeroing costs one, because no data is moved for
    /// it; a flush costs nothing, because it stores nothing.
    pub fn count(&mut self, now: Duration, op: &Op) {
        let (operations, bytes) = match op {
            Op::Flush | Op::Status { .. } => return,
            Op::Zero { .. } => (1, 0),
            Op::Read { len, .. } | Op::CopyUp { len, .. } => (1, *len),
            Op::Write { data, .. } => (1, data.len() as u64),
        };
        let depth = self.burst + SLACK;
        self.operations.take(now, depth, operations);
        self.bytes.take(now, depth, bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn limited(iops: u64, bandwidth: u64, burst_s: u32) -> Throttle {
        let mut throttle = Throttle::new();
        throttle.set_limits(SECOND * 100, VolumeLimits { iops, bandwidth, burst_s });
        throttle
    }

    fn read(len: u64) -> Op {
        Op::Read { offset: 0, len }
    }

    /// How many of these are let in from `from` on for so long, by a driver that looks every `tick` only.
    fn admitted(throttle: &mut Throttle, op: &Op, from: Duration, lasting: Duration, tick: Duration) -> u64 {
        let (mut now, mut count) = (from, 0);
        while now < from + lasting {
            while throttle.is_open(now) && count < 1_000_000 {
                throttle.count(now, op);
                count += 1;
            }
            now += tick;
        }
        count
    }

    #[test]
    fn without_limits_everything_comes_at_once() {
        let mut throttle = Throttle::new();
        (0..1000).for_each(|_| throttle.count(SECOND, &read(1 << 20)));
        assert!(throttle.is_open(Duration::ZERO));
    }

    #[test]
    fn the_limit_is_kept_however_late_the_timer_rings() {
        for tick in [MS / 10, MS, MS * 7, MS * 60] {
            let count = admitted(&mut limited(100, 0, 0), &read(4096), SECOND * 100, SECOND * 60, tick);
            assert!((5_940..=6_030).contains(&count), "{count} in a minute at 100 a second, looking every {tick:?}");
        }
        let count = admitted(&mut limited(0, 1 << 20, 0), &read(65536), SECOND * 100, SECOND * 10, MS);
        assert!((159..=164).contains(&count), "{count} of 64 KiB in 10 s at 1 MiB a second");
        let count = admitted(&mut limited(10, 1 << 20, 0), &read(4096), SECOND * 100, SECOND * 10, MS);
        assert!((99..=102).contains(&count), "the tighter limit counts: {count}");
    }

    #[test]
    fn what_an_idle_holder_saves_up_has_a_bound() {
        let mut throttle = limited(100, 0, 5);
        throttle.count(SECOND * 100, &read(1));
        let later = SECOND * 1000;
        let count = admitted(&mut throttle, &read(1), later, MS, MS);
        assert!((505..=515).contains(&count), "5 s and the slack: {count}");
        let count = admitted(&mut throttle, &read(1), later + SECOND, SECOND * 10, MS);
        assert!((1_090..=1_110).contains(&count), "then the limit: {count}");
    }

    #[test]
    fn a_large_operation_passes_and_those_behind_it_pay() {
        let mut throttle = limited(0, 1 << 20, 0);
        let now = SECOND * 200;
        assert!(throttle.is_open(now));
        throttle.count(now, &read(32 << 20));
        assert!(!throttle.is_open(now + SECOND * 31) && throttle.is_open(now + SECOND * 32));
        // Ten times as much is allowed from now on: what is owed is paid ten times faster.
        throttle.set_limits(now, VolumeLimits { bandwidth: 10 << 20, ..VolumeLimits::default() });
        assert!(!throttle.is_open(now + SECOND * 3) && throttle.is_open(now + MS * 3201));
        throttle.set_limits(now, VolumeLimits::default());
        assert!(throttle.is_open(now));
    }

    #[test]
    fn what_moves_no_data_costs_no_bytes() {
        let mut throttle = limited(0, 1 << 20, 0);
        let now = SECOND * 200;
        throttle.count(now, &Op::Zero { offset: 0, len: 4 << 30, unmap: true });
        assert!(throttle.is_open(now));
        let mut throttle = limited(1, 0, 0);
        throttle.count(now, &Op::Flush);
        assert!(throttle.is_open(now));
        throttle.count(now, &Op::Zero { offset: 0, len: 4096, unmap: true });
        assert!(!throttle.is_open(now));
    }

    #[test]
    fn the_same_limit_again_gives_nothing_and_takes_nothing() {
        let mut throttle = limited(10, 0, 0);
        let now = SECOND * 200;
        admitted(&mut throttle, &read(1), now, MS, MS);
        let before = throttle.opens_at();
        throttle.set_limits(now, VolumeLimits { iops: 10, ..VolumeLimits::default() });
        assert_eq!(throttle.opens_at(), before);
    }

    proptest! {
        /// Whenever operations come, in no stretch of time come more than the limit, the burst and one allow.
        #[test]
        fn no_stretch_of_time_sees_more_than_is_allowed(
            iops in 1u64..500, burst_s in 0u32..3, pauses in proptest::collection::vec(0u64..50, 1..200),
        ) {
            let mut throttle = limited(iops, 0, burst_s);
            let mut now = SECOND * 100;
            let mut came = Vec::new();
            for pause in pauses {
                now += MS * pause as u32;
                if throttle.is_open(now) {
                    throttle.count(now, &read(1));
                    came.push(now);
                }
            }
            for (first, from) in came.iter().enumerate() {
                for (last, to) in came.iter().enumerate().skip(first) {
                    let time = (*to - *from) + SLACK + SECOND * burst_s;
                    let most = time.as_secs_f64() * iops as f64 + 1.0 + 1e-6;
                    prop_assert!((last - first + 1) as f64 <= most, "{} came in {:?}", last - first + 1, *to - *from);
                }
            }
        }
    }
}
