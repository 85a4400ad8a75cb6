//! What this OSD itself lacks of a PG: blocks named by a delta recovery or found rotten, or everything past the
//! cursor of a fill from nothing. A write clears what it covers once it is committed; a push lands only on what is
//! still missing (I11). A mark goes only with verified content in the same transaction (I12).

use std::collections::BTreeMap;

use cairn_types::peer::{BlockSet, EntryOp, ObjectKey, Run, RunContent};
use cairn_types::{BLOCK_SIZE, ObjectId};

use super::record::{self, Attribute, Fill};
use crate::planted::{Bug, planted};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Missing {
    blocks: BTreeMap<ObjectId, BlockSet>,
    fill: Option<Filling>,
    changes: Vec<Attribute>,
}

#[derive(Debug, Default)]
struct Filling {
    through: Option<ObjectKey>,
    /// Blocks past the cursor that committed writes have put here already.
    fresh: BTreeMap<ObjectId, BlockSet>,
}

impl Missing {
    /// Nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.fill.is_none()
    }

    /// A fill from nothing is under way.
    pub(crate) fn is_filling(&self) -> bool {
        self.fill.is_some()
    }

    /// Blocks known by name to be missing.
    pub(crate) fn count(&self) -> u64 {
        self.blocks.values().map(|blocks| u64::from(blocks.count())).sum()
    }

    /// Whether any block of the range is missing.
    pub(crate) fn lacks(&self, object: ObjectId, offset: u32, len: u32) -> bool {
        !self.lacking(object, offset, len).is_empty()
    }

    /// The missing blocks of the range.
    pub(crate) fn lacking(&self, object: ObjectId, offset: u32, len: u32) -> BlockSet {
        let mut set = BlockSet::default();
        let blocks = self.blocks.get(&object);
        let ahead = self.fill.as_ref().filter(|fill| fill.through.is_none_or(|cursor| ObjectKey::new(object) > cursor));
        if blocks.is_none() && ahead.is_none() {
            return set;
        }
        let fresh = ahead.map(|fill| fill.fresh.get(&object));
        for at in (offset..offset + len).step_by(BLOCK_SIZE as usize) {
            let named = blocks.is_some_and(|blocks| blocks.contains(at));
            let unfilled = fresh.is_some_and(|fresh| !fresh.is_some_and(|fresh| fresh.contains(at)));
            if named || unfilled {
                set.insert(at, BLOCK_SIZE);
            }
        }
        set
    }

    /// Begins a delta recovery, in place of what was known before.
    pub(crate) fn begin_blocks(&mut self, blocks: Vec<(ObjectId, BlockSet)>) {
        self.forget();
        self.blocks = blocks.into_iter().filter(|(_, set)| !set.is_empty()).collect();
        self.changes.extend(self.blocks.iter().map(|(object, set)| record::missing(*object, Some(set))));
    }

    /// Begins a fill from nothing, in place of what was known before.
    pub(crate) fn begin_fill(&mut self) {
        self.forget();
        self.fill = Some(Filling::default());
        self.changes.push(record::fill(Some(Fill { through: None })));
    }

    /// Adds blocks that were found rotten.
    pub(crate) fn add(&mut self, object: ObjectId, offsets: &[u32]) {
        let set = self.blocks.entry(object).or_default();
        for offset in offsets {
            set.insert(*offset, BLOCK_SIZE);
        }
        self.changes.push(record::missing(object, Some(set)));
    }

    /// These blocks were found to be well after all.
    pub(crate) fn found_good(&mut self, object: ObjectId, offset: u32, len: u32) {
        self.clear(object, offset, len);
    }

    /// Some objects with blocks known by name to be missing.
    pub(crate) fn some(&self, most: usize) -> Vec<(ObjectId, BlockSet)> {
        self.blocks.iter().take(most).map(|(object, blocks)| (*object, blocks.clone())).collect()
    }

    /// What is known by name to be missing of some objects.
    pub(crate) fn of(&self, wanted: impl Fn(ObjectId) -> bool) -> Vec<(ObjectId, BlockSet)> {
        let wanted = self.blocks.iter().filter(|(object, _)| wanted(**object));
        wanted.map(|(object, blocks)| (*object, blocks.clone())).collect()
    }

    /// Other objects are not this group's any more.
    pub(crate) fn keep_only(&mut self, ours: impl Fn(ObjectId) -> bool) {
        let gone = self.blocks.keys().copied().filter(|object| !ours(*object)).collect::<Vec<_>>();
        for object in gone {
            self.blocks.remove(&object);
            self.changes.push(record::missing(object, None));
        }
    }

    fn forget(&mut self) {
        let blocks = std::mem::take(&mut self.blocks);
        self.changes.extend(blocks.keys().map(|object| record::missing(*object, None)));
        if let Some(fill) = self.fill.take() {
            self.changes.push(record::fill(None));
            self.changes.extend(fill.fresh.keys().map(|object| record::fresh(*object, None)));
        }
    }

    /// A committed entry covers these blocks: they are here.
    pub(crate) fn written(&mut self, op: &EntryOp, object_size: u32) {
        let (object, (offset, len)) = (op.object(), op.span(object_size));
        self.clear(object, offset, len);
        if let Some(fill) = &mut self.fill
            && fill.through.is_none_or(|cursor| ObjectKey::new(object) > cursor)
        {
            let fresh = fill.fresh.entry(object).or_default();
            fresh.insert(offset, len);
            self.changes.push(record::fresh(object, Some(fresh)));
        }
    }

    fn clear(&mut self, object: ObjectId, offset: u32, len: u32) {
        let Some(set) = self.blocks.get_mut(&object) else { return };
        let before = set.count();
        set.remove(offset, len);
        if set.is_empty() {
            self.blocks.remove(&object);
            self.changes.push(record::missing(object, None));
        } else if set.count() != before {
            self.changes.push(record::missing(object, Some(set)));
        }
    }

    /// The part of pushed content that may land: where the block is missing and no open entry covers it.
    pub(crate) fn landing(&self, object: ObjectId, runs: &[Run], covered: impl Fn(u32) -> bool) -> Vec<Run> {
        let mut landing = Vec::new();
        for run in runs {
            let mut set = self.lacking(object, run.offset, run.len);
            if planted(Bug::PushOverWrites) || (planted(Bug::FillOverWrites) && self.fill.is_some()) {
                set.insert(run.offset, run.len);
            }
            let taken = set.ranges().flat_map(|(o, l)| (o..o + l).step_by(BLOCK_SIZE as usize));
            let taken = taken.filter(|at| covered(*at) && !planted(Bug::PushOverWrites)).collect::<Vec<_>>();
            taken.into_iter().for_each(|at| set.remove(at, BLOCK_SIZE));
            landing.extend(set.ranges().map(|(offset, len)| cut(run, offset, len)));
        }
        landing
    }

    /// Pushed content landed here, in the same transaction.
    pub(crate) fn landed(&mut self, object: ObjectId, runs: &[Run]) {
        for run in runs {
            self.clear(object, run.offset, run.len);
        }
        if let Some(fill) = &mut self.fill
            && fill.through.is_none_or(|cursor| ObjectKey::new(object) > cursor)
            && !runs.is_empty()
        {
            // What landed must not be overwritten by the same push arriving twice around a later write.
            let fresh = fill.fresh.entry(object).or_default();
            runs.iter().for_each(|run| fresh.insert(run.offset, run.len));
            self.changes.push(record::fresh(object, Some(fresh)));
        }
    }

    /// Everything through this object is here; `None` is the end.
    pub(crate) fn filled(&mut self, through: Option<ObjectKey>) {
        let Some(fill) = &mut self.fill else { return };
        let Some(cursor) = through else {
            self.changes.push(record::fill(None));
            self.changes.extend(fill.fresh.keys().map(|object| record::fresh(*object, None)));
            self.fill = None;
            return;
        };
        if fill.through.is_some_and(|have| have >= cursor) {
            return;
        }
        fill.through = Some(cursor);
        let passed = fill.fresh.keys().filter(|object| ObjectKey::new(**object) <= cursor).copied().collect::<Vec<_>>();
        for object in passed {
            fill.fresh.remove(&object);
            self.changes.push(record::fresh(object, None));
        }
        self.changes.push(record::fill(Some(Fill { through })));
    }

    /// What must go with the next transaction.
    pub(crate) fn take_changes(&mut self) -> Vec<Attribute> {
        std::mem::take(&mut self.changes)
    }

    /// From disk.
    pub(crate) fn restore_blocks(&mut self, object: ObjectId, blocks: BlockSet) {
        self.blocks.insert(object, blocks);
    }

    /// From disk.
    pub(crate) fn restore_fill(&mut self, fill: Fill) {
        self.fill.get_or_insert_default().through = fill.through;
    }

    /// From disk.
    pub(crate) fn restore_fresh(&mut self, object: ObjectId, blocks: BlockSet) {
        self.fill.get_or_insert_default().fresh.insert(object, blocks);
    }
}

/// A part of a run.
pub(crate) fn cut(run: &Run, offset: u32, len: u32) -> Run {
    debug_assert!(offset >= run.offset && offset + len <= run.offset + run.len);
    let content = match &run.content {
        RunContent::Absent => RunContent::Absent,
        RunContent::Zero => RunContent::Zero,
        RunContent::Data { data, crcs } => {
            let start = (offset - run.offset) as usize;
            let block = start / BLOCK_SIZE as usize;
            RunContent::Data {
                data: data.slice(start..start + len as usize),
                crcs: crcs[block..block + (len / BLOCK_SIZE) as usize].to_vec(),
            }
        }
    };
    Run { offset, len, content }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cairn_types::{PoolId, SnapId, VolumeId};

    use super::*;

    fn object(index: u64) -> ObjectId {
        ObjectId { pool: PoolId(1), volume: VolumeId(1), index, snapshot: SnapId::HEAD }
    }

    fn run(offset: u32, blocks: u32) -> Run {
        let len = blocks * BLOCK_SIZE;
        let content = RunContent::Data { data: Bytes::from(vec![1; len as usize]), crcs: (0..blocks).collect() };
        Run { offset, len, content }
    }

    fn spots(runs: &[Run]) -> Vec<(u32, u32)> {
        runs.iter().map(|run| (run.offset / BLOCK_SIZE, run.len / BLOCK_SIZE)).collect()
    }

    #[test]
    fn a_push_lands_only_where_a_block_is_missing_and_not_covered() {
        let mut missing = Missing::default();
        let mut set = BlockSet::default();
        set.insert(0, 6 * BLOCK_SIZE);
        missing.begin_blocks(vec![(object(1), set)]);
        missing.written(&EntryOp::Write { object: object(1), offset: BLOCK_SIZE, crcs: vec![0] }, 4 << 20);
        let landing = missing.landing(object(1), &[run(0, 8)], |at| at == 3 * BLOCK_SIZE);
        assert_eq!(spots(&landing), vec![(0, 1), (2, 1), (4, 2)]);
        assert!(matches!(&landing[2].content, RunContent::Data { crcs, .. } if *crcs == vec![4, 5]));
        missing.landed(object(1), &landing);
        assert_eq!(missing.count(), 1, "the covered block stays missing until its write is committed");
        missing.written(&EntryOp::Write { object: object(1), offset: 3 * BLOCK_SIZE, crcs: vec![0] }, 4 << 20);
        assert!(missing.is_empty());
    }

    #[test]
    fn a_fill_never_overwrites_what_was_written_ahead_of_it() {
        let mut missing = Missing::default();
        missing.begin_fill();
        assert!(missing.lacks(object(1), 0, BLOCK_SIZE));
        missing.written(&EntryOp::Write { object: object(1), offset: BLOCK_SIZE, crcs: vec![0] }, 4 << 20);
        let landing = missing.landing(object(1), &[run(0, 3)], |_| false);
        assert_eq!(spots(&landing), vec![(0, 1), (2, 1)]);
        missing.landed(object(1), &landing);
        missing.filled(Some(ObjectKey::new(object(1))));
        assert!(!missing.lacks(object(1), 0, 3 * BLOCK_SIZE));
        assert!(missing.landing(object(1), &[run(0, 3)], |_| false).is_empty(), "the cursor has passed");
        missing.filled(None);
        assert!(missing.is_empty());
    }
}
