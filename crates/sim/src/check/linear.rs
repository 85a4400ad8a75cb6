//! Each block is a register: is there an order of its operations that respects real time and in which every read sees
//! the write before it? A search with memory (Wing and Gong 1993, Lowe 2017): histories of one block are short.

use std::collections::BTreeSet;

use super::{Check, Violation};
use crate::history::{Block, BlockOp, History};

/// The first block whose history has no such order.
pub(crate) fn check(history: &History) -> Result<(), Violation> {
    for (block, ops) in &history.blocks {
        no_fenced_effects(*block, ops).map_err(|what| Violation::new(Check::Fence, what))?;
        if !is_linearizable(ops) {
            let what = format!("block {block:?} is not linearizable:\n{}", print(ops));
            return Err(Violation::new(Check::Linearizable, what));
        }
    }
    Ok(())
}

/// A session that was told that it holds the volume alone never meets a write that another began after that.
fn no_fenced_effects(block: Block, ops: &[BlockOp]) -> Result<(), String> {
    for op in ops.iter().filter(|op| op.fenced && op.is_write) {
        if op.ended.is_some() {
            return Err(format!("block {block:?}: a fenced write was acknowledged: {op:?}"));
        }
        if let Some(read) = ops.iter().find(|read| !read.is_write && op.value != 0 && read.value == op.value) {
            return Err(format!("block {block:?}: a fenced write was seen: {op:?} by {read:?}"));
        }
    }
    Ok(())
}

fn print(ops: &[BlockOp]) -> String {
    let mut lines = ops.to_vec();
    lines.sort_by_key(|op| op.begun);
    let line = |op: &BlockOp| {
        let kind = if op.is_write { "write" } else { "read " };
        let ended = op.ended.map_or("never".to_owned(), |at| format!("{:.4}", at as f64 / 1e9));
        format!("  {kind} {:>6}  {:.4} .. {ended}", op.value, op.begun as f64 / 1e9)
    };
    lines.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn is_linearizable(ops: &[BlockOp]) -> bool {
    // Reads that never ended say nothing, nor do writes that never ended and nobody saw.
    let seen = ops.iter().filter(|op| !op.is_write && op.ended.is_some()).map(|op| op.value).collect::<BTreeSet<_>>();
    let mut ops = ops
        .iter()
        .filter(|op| if op.is_write { op.ended.is_some() || seen.contains(&op.value) } else { op.ended.is_some() })
        .map(|op| BlockOp { ended: op.over(), ..op.clone() })
        .collect::<Vec<_>>();
    ops.sort_by_key(|op| (op.begun, op.ended));
    let mut done = vec![false; ops.len()];
    let mut visited = BTreeSet::new();
    search(&ops, &mut done, 0, 0, &mut visited)
}

/// Depth first over what could come next: anything begun before the earliest end among what is left.
fn search(
    ops: &[BlockOp],
    done: &mut Vec<bool>,
    first: usize,
    value: u64,
    visited: &mut BTreeSet<(Vec<usize>, usize, u64)>,
) -> bool {
    let mut first = first;
    while first < ops.len() && done[first] {
        first += 1;
    }
    if first == ops.len() {
        return true;
    }
    let horizon = (first..ops.len()).filter(|i| !done[*i]).filter_map(|i| ops[i].ended).min().unwrap_or(u64::MAX);
    if horizon == u64::MAX {
        return true;
    }
    let ahead = (first + 1..ops.len()).take_while(|i| ops[*i].begun <= horizon).filter(|i| done[*i]);
    if !visited.insert((ahead.collect(), first, value)) {
        return false;
    }
    let candidates = (first..ops.len()).take_while(|i| ops[*i].begun <= horizon).filter(|i| !done[*i]);
    let candidates = candidates.collect::<Vec<_>>();
    // A read that fits the present value can always go first.
    if let Some(read) = candidates.iter().find(|i| !ops[**i].is_write && ops[**i].value == value) {
        done[*read] = true;
        let found = search(ops, done, first, value, visited);
        done[*read] = false;
        return found;
    }
    for index in candidates.into_iter().filter(|i| ops[*i].is_write) {
        done[index] = true;
        let found = search(ops, done, first, ops[index].value, visited);
        done[index] = false;
        if found {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(is_write: bool, value: u64, begun: u64, ended: Option<u64>) -> BlockOp {
        BlockOp { value, is_write, begun, ended, until: None, fenced: false }
    }
    fn w(value: u64, begun: u64, ended: u64) -> BlockOp {
        op(true, value, begun, Some(ended))
    }
    fn r(value: u64, begun: u64, ended: u64) -> BlockOp {
        op(false, value, begun, Some(ended))
    }

    #[test]
    fn histories_that_are_fine() {
        for fine in [
            vec![r(0, 0, 1), w(1, 2, 3), r(1, 4, 5)],
            vec![w(1, 0, 10), w(2, 0, 10), r(1, 11, 12), r(1, 13, 14)],
            vec![w(1, 0, 10), r(0, 1, 2), r(1, 3, 4)],
            vec![op(true, 1, 0, None), r(0, 1, 2), r(1, 3, 4), r(1, 5, 6)],
            vec![op(true, 1, 0, None), w(2, 1, 2), r(2, 3, 4)],
            vec![w(1, 0, 1), w(0, 2, 3), w(2, 4, 5), w(0, 6, 7), r(0, 8, 9)],
        ] {
            assert!(is_linearizable(&fine), "{fine:?}");
        }
    }

    #[test]
    fn histories_that_are_not() {
        for wrong in [
            vec![w(1, 0, 1), r(0, 2, 3)],
            vec![w(1, 0, 1), w(2, 2, 3), r(1, 4, 5)],
            vec![w(1, 0, 10), r(1, 1, 2), r(0, 3, 4)],
            vec![w(1, 0, 10), w(2, 0, 10), r(1, 11, 12), r(2, 13, 14)],
            vec![r(7, 0, 1)],
        ] {
            assert!(!is_linearizable(&wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_write_of_a_session_that_is_over_happened_before_that_or_never() {
        let late = BlockOp { until: Some(4), ..op(true, 1, 0, None) };
        assert!(is_linearizable(&[late.clone(), r(0, 1, 2), r(1, 5, 6)]));
        assert!(is_linearizable(&[late.clone(), r(0, 5, 6)]), "never");
        assert!(!is_linearizable(&[late.clone(), r(0, 5, 6), r(1, 7, 8)]), "after its session was over");
        assert!(!is_linearizable(&[late, w(2, 5, 6), r(1, 7, 8)]));
        let zeros = BlockOp { until: Some(4), ..op(true, 0, 0, None) };
        assert!(is_linearizable(&[w(1, 0, 1), zeros, r(1, 5, 6), w(0, 7, 8), r(0, 9, 10)]), "zeros say nothing");
    }

    #[test]
    fn a_fenced_write_may_not_be_seen() {
        let mut late = op(true, 9, 0, None);
        late.fenced = true;
        let mut history = History::default();
        history.blocks.insert((cairn_types::VolumeId(1), 0), vec![late.clone()]);
        assert!(check(&history).is_ok());
        history.blocks.insert((cairn_types::VolumeId(1), 0), vec![late, r(9, 5, 6)]);
        assert!(check(&history).is_err());
    }
}
