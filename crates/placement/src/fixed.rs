//! Fixed-point draws: hashes, logarithms and the weights that make draws fair. Integers only, so that every machine and
//! every compiler computes the same placement. Part of the format.

use cairn_types::id::mix;

/// Fractional bits of a logarithm.
const FRACTION: u32 = 40;

/// A hash of two values.
pub(crate) fn hash(a: u64, b: u64) -> u64 {
    mix(mix(a) ^ b.rotate_left(32))
}

/// A hash of a name below a parent.
pub(crate) fn hash_name(parent: u64, name: &str) -> u64 {
    let mut state = hash(parent, name.len() as u64);
    for chunk in name.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = hash(state, u64::from_le_bytes(word));
    }
    state
}

/// `-log2(value / 2^64)` with 40 fractional bits; `value` above 0. One bit per squaring, exact to the last bit but one
/// or two: the classic digit-by-digit logarithm, which needs no table.
pub(crate) fn neglog2(value: u64) -> u64 {
    debug_assert!(value > 0);
    let zeros = value.leading_zeros();
    // The mantissa in [1, 2) with 63 fractional bits.
    let mut mantissa = value << zeros;
    let mut log = 0u64;
    for _ in 0..FRACTION {
        let square = u128::from(mantissa) * u128::from(mantissa);
        log <<= 1;
        if square >> 127 == 1 {
            log |= 1;
            mantissa = (square >> 64) as u64;
        } else {
            mantissa = (square >> 63) as u64;
        }
    }
    // value / 2^64 = 2^-(zeros + 1) * mantissa
    (u64::from(zeros + 1) << FRACTION) - log
}

/// The straw of an item for a PG: an exponential variate with rate `weight`. Shorter wins.
pub(crate) fn draw(pg: u64, item: u64, weight: u64) -> u128 {
    let uniform = hash(pg, item).max(1);
    (u128::from(neglog2(uniform)) << 64) / u128::from(weight.max(1))
}

/// How a domain competes for one of the copies of a PG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chance {
    /// Its share is at least one whole copy of everything.
    Always,
    /// For the only copy: by weight.
    Weight(u64),
    /// For one of several: by the logarithm of the odds (to base 2, 40 fractional bits) that its share is.
    Odds(i64),
}

/// The straw of a domain: shorter wins. A domain's straw changes only with its own chance.
pub(crate) fn straw(pg: u64, item: u64, chance: Chance) -> i128 {
    match chance {
        Chance::Always => i128::MIN,
        Chance::Weight(weight) => draw(pg, item, weight) as i128,
        Chance::Odds(odds) => i128::from(log_odds(hash(pg, item))) - i128::from(odds),
    }
}

/// The logarithm of `p / (1 - p)` for `p = value / 2^64`, kept off 0 and 1.
fn log_odds(value: u64) -> i64 {
    let value = value.clamp(1, u64::MAX - 1);
    neglog2(value.wrapping_neg()) as i64 - neglog2(value) as i64
}

/// The chances by which domains of these weights must compete so that each wins one of `n` copies in proportion to its
/// weight.
///
/// For one copy exponential straws are exact. For several they are not, because none can win twice: there the straws
/// are `odds(u) / odds(p)` for the wanted chance `p` (Pareto sampling, Rosen 1997), kept as logarithms; their error is
/// far below the spread of the hash.
pub(crate) fn fair(weights: &[u64], n: usize) -> Vec<Chance> {
    if n <= 1 {
        return weights.iter().map(|weight| Chance::Weight(*weight)).collect();
    }
    let mut always = vec![false; weights.len()];
    loop {
        let copies = n.saturating_sub(always.iter().filter(|taken| **taken).count()) as u128;
        let free = || (0..weights.len()).filter(|i| !always[*i]);
        let total: u128 = free().map(|i| u128::from(weights[i])).sum();
        let whole = free().find(|i| u128::from(weights[*i]) * copies >= total);
        match whole {
            Some(index) if copies > 0 => always[index] = true,
            _ => {
                let odds = |i: usize| log_odds((((u128::from(weights[i]) * copies) << 64) / total.max(1)) as u64);
                let chance = |i| if always[i] { Chance::Always } else { Chance::Odds(odds(i)) };
                return (0..weights.len()).map(chance).collect();
            }
        }
    }
}

/// What [`fair`] aims at: for each domain, how much of a copy it gets of every PG, in 1/2^32.
pub(crate) fn shares(weights: &[u64], n: usize) -> Vec<u64> {
    let whole = 1u64 << 32;
    let mut shares = vec![0; weights.len()];
    let mut copies = n.min(weights.len()) as u128;
    loop {
        let free: Vec<usize> = (0..weights.len()).filter(|i| shares[*i] != whole).collect();
        let total: u128 = free.iter().map(|i| u128::from(weights[*i])).sum();
        match free.iter().find(|i| u128::from(weights[**i]) * copies >= total) {
            Some(index) if copies > 0 => {
                shares[*index] = whole;
                copies -= 1;
            }
            _ => {
                for index in free {
                    shares[index] = (((u128::from(weights[index]) * copies) << 32) / total.max(1)) as u64;
                }
                return shares;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn the_logarithm_is_one(value in 1u64..) {
            let exact = 64.0 - (value as f64).log2();
            let ours = neglog2(value) as f64 / f64::from(FRACTION).exp2();
            prop_assert!((exact - ours).abs() < 1e-9, "{exact} {ours}");
        }
    }

    #[test]
    fn draws_are_part_of_the_format() {
        assert_eq!(neglog2(1 << 63), 1 << FRACTION);
        assert_eq!(
            neglog2(0xb504_f333_f9de_6484),
            0x80_0000_0001,
            "the square root of a half, rounded down before its logarithm"
        );
        assert_eq!(hash_name(7, "host-a"), hash_name(7, "host-a"));
        assert_ne!(hash_name(7, "host-a"), hash_name(8, "host-a"));
        assert_ne!(hash_name(7, "ab"), hash_name(7, "ab\0"));
    }

    #[test]
    fn an_item_with_more_than_its_share_always_wins() {
        assert_eq!(fair(&[10, 1, 1], 2)[0], Chance::Always);
        assert_eq!(fair(&[1, 1, 1], 3), [Chance::Always; 3]);
        assert!(fair(&[2, 1, 1, 1], 2).iter().all(|chance| matches!(chance, Chance::Odds(_))));
        assert_eq!(fair(&[], 3), []);
    }
}
