//! No acknowledged write is lost: no read, begun after a write was acknowledged, sees something that was over before
//! that write began. Linearizability says the same and more; this says it of the one thing that must never happen.

use std::collections::BTreeMap;

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
    // When the last write of each value was over; of what was there at the beginning, at once.
    let mut over = BTreeMap::from([(0, 0)]);
    for op in ops.iter().filter(|op| op.is_write) {
        let end = over.entry(op.value).or_default();
        *end = op.over().unwrap_or(u64::MAX).max(*end);
    }
    // Acknowledged writes in the order of their ends; of each and those before it, the one that began last.
    let mut acked = ops.iter().filter(|op| op.is_write && op.ended.is_some()).collect::<Vec<_>>();
    acked.sort_by_key(|op| op.ended);
    let ends = acked.iter().filter_map(|op| op.ended).collect::<Vec<_>>();
    let latest = acked.iter().scan(None::<&BlockOp>, |latest, op| {
        *latest = Some(latest.filter(|known| known.begun >= op.begun).unwrap_or(op));
        *latest
    });
    let latest = latest.collect::<Vec<_>>();
    ops.iter().filter(|op| !op.is_write && op.ended.is_some()).find_map(|read| {
        let before = ends.partition_point(|end| *end < read.begun);
        let write = *latest.get(before.checked_sub(1)?)?;
        let known = over.get(&read.value).copied().unwrap_or_default();
        (write.begun > known && write.value != read.value).then_some((read, write))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(is_write: bool, value: u64, begun: u64, ended: Option<u64>) -> BlockOp {
        BlockOp { value, is_write, begun, ended, until: None, fenced: false }
    }

    #[test]
    fn an_older_value_after_an_acknowledgement_is_a_loss() {
        let (first, second) = (op(true, 1, 1, Some(2)), op(true, 2, 3, Some(4)));
        assert!(first_lost(&[first.clone(), second.clone(), op(false, 1, 5, Some(6))]).is_some());
        assert!(first_lost(&[first.clone(), op(false, 0, 5, Some(6))]).is_some(), "the beginning is older than all");
        assert!(first_lost(&[first.clone(), second.clone(), op(false, 1, 3, Some(6))]).is_none(), "still under way");
        let unknown = op(true, 1, 1, None);
        assert!(first_lost(&[unknown, second, op(false, 1, 5, Some(6))]).is_none(), "it may have come later");
    }
}
