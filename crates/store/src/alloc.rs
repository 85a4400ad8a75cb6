//! Free space of the area, in blocks. It lives in memory only: what the index and the pending entries do not refer
//! to is free, and opening the store finds that out anew, so that it can never disagree with them.

use std::collections::{BTreeMap, BTreeSet};

/// A run of blocks: (first, count).
pub(crate) type Run = (u64, u64);

/// Free runs, by place and by size.
#[derive(Debug, Default, Clone)]
pub(crate) struct Allocator {
    by_start: BTreeMap<u64, u64>,
    by_len: BTreeSet<(u64, u64)>,
    free: u64,
}

impl Allocator {
    /// Blocks that can be taken.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.free
    }

    /// Takes `count` blocks in as few runs as the smallest fitting hole allows; `None` when there are not as many.
    pub(crate) fn take(&mut self, count: u64) -> Option<Vec<Run>> {
        if count > self.free {
            return None;
        }
        let mut out = Vec::new();
        let mut left = count;
        while left > 0 {
            let best = self.by_len.range((left, 0)..).next().or_else(|| self.by_len.last());
            let (len, start) = *best.expect("the free count says that there is a run");
            self.remove(start, len);
            let taken = len.min(left);
            if taken < len {
                self.insert(start + taken, len - taken);
            }
            out.push((start, taken));
            left -= taken;
        }
        out.sort_unstable();
        Some(out)
    }

    /// Gives a run back. It must not be free already: that would be a bug that loses data, so it is asserted.
    pub(crate) fn give(&mut self, start: u64, count: u64) {
        if count == 0 {
            return;
        }
        let (mut first, mut end) = (start, start + count);
        if let Some((s, l)) = self.by_start.range(..=start).next_back().map(|(s, l)| (*s, *l)) {
            assert!(s + l <= start, "block {start} is freed twice");
            if s + l == start {
                self.remove(s, l);
                first = s;
            }
        }
        if let Some((s, l)) = self.by_start.range(start..).next().map(|(s, l)| (*s, *l)) {
            assert!(s >= end, "block {s} is freed twice");
            if s == end {
                self.remove(s, l);
                end = s + l;
            }
        }
        self.insert(first, end - first);
    }

    fn insert(&mut self, start: u64, len: u64) {
        self.by_start.insert(start, len);
        self.by_len.insert((len, start));
        self.free += len;
    }

    fn remove(&mut self, start: u64, len: u64) {
        self.by_start.remove(&start);
        self.by_len.remove(&(len, start));
        self.free -= len;
    }
}

/// Which blocks of the area are referred to: built by walking the index, then turned into free space.
#[derive(Debug)]
pub(crate) struct UsedMap {
    first: u64,
    words: Vec<u64>,
}

impl UsedMap {
    /// Of blocks `first .. first + count`, none used.
    pub(crate) fn new(first: u64, count: u64) -> Self {
        Self { first, words: vec![0; count.div_ceil(64) as usize] }
    }

    /// Marks a block; false when it lies outside or is marked already.
    #[must_use]
    pub(crate) fn mark(&mut self, block: u64) -> bool {
        let Some(i) = block.checked_sub(self.first) else { return false };
        let Some(word) = self.words.get_mut((i / 64) as usize) else { return false };
        let bit = 1 << (i % 64);
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    pub(crate) fn is_used(&self, block: u64) -> bool {
        block
            .checked_sub(self.first)
            .and_then(|i| self.words.get((i / 64) as usize).map(|word| word >> (i % 64) & 1 == 1))
            .unwrap_or(false)
    }

    /// The highest marked block.
    pub(crate) fn highest(&self) -> Option<u64> {
        let word = self.words.iter().rposition(|word| *word != 0)?;
        Some(self.first + word as u64 * 64 + 63 - u64::from(self.words[word].leading_zeros()))
    }

    /// The unmarked blocks below `end` as free space.
    pub(crate) fn free_below(&self, end: u64) -> Allocator {
        let mut free = Allocator::default();
        let mut start = self.next(self.first, end, false);
        while start < end {
            let stop = self.next(start, end, true);
            free.give(start, stop - start);
            start = self.next(stop, end, false);
        }
        free
    }

    /// The first block from `from` on that is used, or is not; `end` when there is none before.
    fn next(&self, from: u64, end: u64, used: bool) -> u64 {
        let mut block = from;
        while block < end {
            let i = block - self.first;
            let word = self.words.get((i / 64) as usize).copied().unwrap_or(u64::MAX);
            let wanted = (if used { word } else { !word }) >> (i % 64);
            if wanted != 0 {
                return (block + u64::from(wanted.trailing_zeros())).min(end);
            }
            block += 64 - i % 64;
        }
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_comes_back_whole() {
        let mut free = Allocator::default();
        free.give(100, 1000);
        let a = free.take(10).unwrap();
        let b = free.take(20).unwrap();
        let c = free.take(5).unwrap();
        assert_eq!((a.as_slice(), b.as_slice()), (&[(100, 10)][..], &[(110, 20)][..]));
        b.iter().for_each(|(s, l)| free.give(*s, *l));
        assert_eq!(free.take(20).unwrap(), [(110, 20)], "the hole that fits is taken first");
        for (s, l) in a.into_iter().chain(c).chain([(110, 20)]) {
            free.give(s, l);
        }
        assert_eq!(free.free_blocks(), 1000);
        assert_eq!(free.take(1000).unwrap(), [(100, 1000)]);
        assert!(free.take(1).is_none());
    }

    #[test]
    fn fragments_serve_a_large_request() {
        let mut free = Allocator::default();
        for i in 0..10 {
            free.give(i * 10, 5);
        }
        let runs = free.take(12).unwrap();
        assert_eq!(runs.iter().map(|(_, l)| l).sum::<u64>(), 12);
        assert_eq!(free.free_blocks(), 38);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_a_bug() {
        let mut free = Allocator::default();
        free.give(0, 10);
        free.give(5, 1);
    }

    #[test]
    fn the_used_map_knows_the_rest() {
        let mut used = UsedMap::new(256, 1000);
        assert!(used.mark(256) && used.mark(300) && !used.mark(300) && !used.mark(10_000));
        assert_eq!(used.highest(), Some(300));
        let mut free = used.free_below(400);
        assert_eq!(free.free_blocks(), 144 - 2);
        assert_eq!(free.take(99).unwrap(), [(301, 99)]);
    }
}
