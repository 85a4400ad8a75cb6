//! What a status says has no content, or has not changed since a snapshot: it has none, and has not. That it has some may be
//! said of anything.

use std::collections::BTreeMap;

use cairn_types::SnapId;

use super::{Check, Violation};
use crate::history::Block;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct States {
    seen: BTreeMap<(Block, SnapId), u64>,
    unchanged: Vec<(Block, SnapId, SnapId)>,
}

impl States {
    /// A block of a snapshot was read.
    pub(crate) fn see(&mut self, block: Block, view: SnapId, value: u64) {
        self.seen.insert((block, view), value);
    }

    /// A block of the later snapshot is said to be as in the earlier one. Gives whether anything was said.
    pub(crate) fn note(&mut self, unchanged: Vec<(Block, SnapId, SnapId)>) -> bool {
        let any = !unchanged.is_empty();
        self.unchanged.extend(unchanged);
        any
    }

    pub(crate) fn check(&self) -> Result<(), Violation> {
        for (block, earlier, later) in &self.unchanged {
            let value = |view: &SnapId| self.seen.get(&(*block, *view));
            if let (Some(before), Some(after)) = (value(earlier), value(later))
                && before != after
            {
                let what = format!(
                    "{block:?} did not change between {earlier} and {later}, it was said, but is {after} after {before}"
                );
                return Err(Violation::new(Check::States, what));
            }
        }
        Ok(())
    }
}
