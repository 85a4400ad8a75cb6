//! Which term each index of the log has, kept in memory as runs: raft asks for terms all the time, and a log has
//! few of them.

/// The terms of the entries after the truncated part. Never empty of meaning: `start` is where it was cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    start: (u64, u64),
    last: u64,
    runs: Vec<(u64, u64)>,
}

impl Terms {
    /// A log that holds nothing after `index` of `term`.
    #[must_use]
    pub fn starting_after(index: u64, term: u64) -> Self {
        Self { start: (index, term), last: index, runs: Vec::new() }
    }

    /// The index and the term of the last truncated entry.
    #[must_use]
    pub fn start(&self) -> (u64, u64) {
        self.start
    }

    /// The index and the term of the last entry.
    #[must_use]
    pub fn last(&self) -> (u64, u64) {
        (self.last, self.runs.last().map_or(self.start.1, |&(_, term)| term))
    }

    /// The term at `index`, if it is kept or is the last truncated one.
    #[must_use]
    pub fn at(&self, index: u64) -> Option<u64> {
        if index == self.start.0 {
            return Some(self.start.1);
        }
        if index < self.start.0 || index > self.last {
            return None;
        }
        let run = self.runs.partition_point(|&(first, _)| first <= index);
        run.checked_sub(1).map(|i| self.runs[i].1)
    }

    /// Writes an entry at `index`, dropping what was there and after it.
    ///
    /// # Panics
    /// When the entry would leave a gap or lies in the truncated part: raft never asks for that.
    pub fn put(&mut self, index: u64, term: u64) {
        assert!(index > self.start.0, "entry {index} lies in the truncated log, which ends at {}", self.start.0);
        assert!(index <= self.last + 1, "entry {index} leaves a gap after {}", self.last);
        self.runs.truncate(self.runs.partition_point(|&(first, _)| first < index));
        if self.runs.last().is_none_or(|&(_, t)| t != term) {
            self.runs.push((index, term));
        }
        self.last = index;
    }

    /// Forgets the entries through `index`.
    pub fn cut(&mut self, index: u64) {
        let Some(term) = self.at(index) else { return };
        let keep = self.at(index + 1);
        self.runs.drain(..self.runs.partition_point(|&(first, _)| first <= index));
        if let Some(next) = keep
            && self.runs.first().is_none_or(|&(first, _)| first > index + 1)
        {
            self.runs.insert(0, (index + 1, next));
        }
        self.start = (index, term);
    }
}

#[cfg(test)]
mod tests {
    use super::Terms;

    #[test]
    fn runs_say_what_a_list_of_terms_says() {
        let mut seed = 7u64;
        let mut next = |n: u64| {
            seed = cairn_types::id::mix(seed);
            seed % n
        };
        let (mut terms, mut model, mut cut, mut term) = (Terms::default(), vec![0u64], 0u64, 1u64);
        for _ in 0..3000 {
            match next(10) {
                0 if cut < model.len() as u64 - 1 => {
                    cut += 1 + next(model.len() as u64 - 1 - cut);
                    terms.cut(cut);
                }
                1 => term += 1,
                2 if model.len() as u64 > cut + 2 => {
                    term += 1;
                    let index = cut + 1 + next(model.len() as u64 - cut - 1);
                    model.truncate(index as usize);
                    model.push(term);
                    terms.put(index, term);
                }
                _ => {
                    model.push(term);
                    terms.put(model.len() as u64 - 1, term);
                }
            }
            assert_eq!(terms.last(), (model.len() as u64 - 1, *model.last().unwrap()));
            for index in 0..model.len() as u64 + 2 {
                let expected = if index < cut { None } else { model.get(index as usize).copied() };
                assert_eq!(terms.at(index), expected, "index {index}, cut at {cut}");
            }
            if model.len() > 60 {
                (terms, model, cut) = (Terms::default(), vec![0], 0);
            }
        }
    }
}
