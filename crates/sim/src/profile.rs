//! What a run's work is like: drawn from the seed, so that runs differ in more than their faults. Where all the work
//! is on a few blocks, one group's log is forgotten early and clients meet each other; where it is spread, many groups
//! move at once. In some runs the writing ends early: what is wrong by then is not covered up by what is written later.

use crate::bus::{MS, Nanos, SECOND};
use crate::client::BLOCKS;
use crate::rng::Rng;
use crate::world::BLOCKS_PER_OBJECT;

/// See the file's head.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    /// Blocks that are worked on more than others.
    pub(crate) hot: Vec<u64>,
    /// Per mille of operations that go there.
    pub(crate) hot_share: u64,
    /// Per mille of operations that read.
    pub(crate) reads: u64,
    /// The longest pause between an operation and the next.
    pub(crate) think: Nanos,
    /// Log entries that an OSD keeps.
    pub(crate) log_entries: usize,
    /// Objects that an OSD lists at once.
    pub(crate) page: usize,
    /// From then on clients only read.
    pub(crate) writes_until: Nanos,
}

impl Profile {
    /// Those of the hot blocks that lie in one object with the first.
    pub(crate) fn same_object(&self) -> &[u64] {
        let object = |block: &u64| block / BLOCKS_PER_OBJECT;
        let others = self.hot.iter().position(|block| object(block) != object(&self.hot[0]));
        &self.hot[..others.unwrap_or(self.hot.len())]
    }

    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let start = rng.below(BLOCKS / 16) * 16;
        let hot = match rng.below(4) {
            0 => (start..start + 8).collect(),
            1 => vec![start, start + 1],
            2 => vec![start, (start + 16) % BLOCKS, (start + 33) % BLOCKS],
            _ => (0..BLOCKS).step_by(11).collect(),
        };
        Self {
            hot,
            hot_share: rng.between(300, 900),
            reads: rng.between(250, 550),
            think: rng.between(80 * MS, 400 * MS),
            log_entries: *rng.pick(&[8, 16, 48]),
            page: *rng.pick(&[1, 2, 3, 64]),
            writes_until: if rng.chance(350) { rng.between(11 * SECOND, 22 * SECOND) } else { Nanos::MAX },
        }
    }
}
