//! No acknowledged write is lost: no read, begun after a write was acknowledged, sees something that was over before
//! that write began. Linearizability says the same and more; this says it of the one thing that must never happen.

use super::{Check, Violation};
use crate::history::{BlockOp, History};

/// The first read that misses an acknowledged write.
pub(crate) fn check(history: &History) -> Result<(), Violation> {
    for (block, ops) in &history.blocks {
        if let Some((read, write)) = first_lost(ops) {
            let what = format!("block {block:?}: the acknowledged {write:?} is lost: {read:?}");
            return Err(Violation::new(Check::NothingLost, what));
        }
    }
    Ok(())
}

fn first_lost(ops: &[BlockOp]) -> Option<(&BlockOp, &BlockOp)> {
    ops.iter().filter(|op| !op.is_write && op.ended.is_some()).find_map(|read| {
        let lost = ops.iter().filter(|op| op.is_write).find(|write| misses(ops, read, write));
        lost.map(|write| (read, write))
    })
}

/// Everything that the value read may come from was over before this acknowledged write began.
fn misses(ops: &[BlockOp], read: &BlockOp, write: &BlockOp) -> bool {
    let acked_before = write.ended.is_some_and(|ended| ended < read.begun);
    acked_before
        && write.value != read.value
        && !ops
            .iter()
            .filter(|other| other.is_write && other.value == read.value)
            .any(|source| source.ended.is_none_or(|ended| ended >= write.begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(is_write: bool, value: u64, begun: u64, ended: Option<u64>) -> BlockOp {
        BlockOp { value, is_write, begun, ended, fenced: false }
    }

    #[test]
    fn an_older_value_after_an_acknowledgement_is_a_loss() {
        let (first, second) = (op(true, 1, 0, Some(1)), op(true, 2, 2, Some(3)));
        assert!(first_lost(&[first.clone(), second.clone(), op(false, 1, 4, Some(5))]).is_some());
        assert!(first_lost(&[first.clone(), op(false, 0, 4, Some(5))]).is_some(), "the beginning is older than all");
        assert!(first_lost(&[first.clone(), second.clone(), op(false, 1, 2, Some(5))]).is_none(), "still under way");
        let unknown = op(true, 1, 0, None);
        assert!(first_lost(&[unknown, second, op(false, 1, 4, Some(5))]).is_none(), "it may have come later");
    }
}
