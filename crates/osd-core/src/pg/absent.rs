//! What members that left the in-sync set lack: for each an anchor (the log it had for certain) and a dirty map,
//! kept by every member of the in-sync set, so that any of them can bring the absent one back by copying only what
//! changed. Losing a map costs a fill from nothing and never correctness (I12).

use std::collections::{BTreeMap, BTreeSet};

use cairn_types::peer::{AbsentMember, BlockSet, EntryOp, LogEntry, LogPoint, MAX_DIRTY_OBJECTS};
use cairn_types::{ObjectId, OsdId};

use super::record::{self, Attribute};
use crate::planted::{Bug, planted};

/// Absent members that are remembered per PG; the lowest number goes when there are more.
const MAX_ABSENT: usize = 8;

/// What one absent member lacks.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    /// From the commit point to the log's end at its departure.
    pub(crate) anchor: Vec<LogPoint>,
    /// Blocks changed after the anchor's first point. May name more than that, never less.
    pub(crate) dirty: BTreeMap<ObjectId, BlockSet>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Absents {
    members: BTreeMap<OsdId, Absent>,
    changes: Vec<Attribute>,
}

impl Absents {
    /// What is known of one.
    pub(crate) fn of(&self, osd: OsdId) -> Option<&Absent> {
        self.members.get(&osd).filter(|absent| !absent.anchor.is_empty())
    }

    /// A member left with everything up to the first of these points. What is `open` above it, it may lack.
    pub(crate) fn depart<'a>(
        &mut self,
        osd: OsdId,
        anchor: Vec<LogPoint>,
        open: impl Iterator<Item = &'a LogEntry>,
        object_size: u32,
    ) {
        if self.members.contains_key(&osd) {
            return;
        }
        self.changes.push(record::anchor(osd, Some(&anchor)));
        let mut dirty: BTreeMap<ObjectId, BlockSet> = BTreeMap::new();
        for entry in open {
            let (offset, len) = entry.op.span(object_size);
            dirty.entry(entry.op.object()).or_default().insert(offset, len);
        }
        self.members.insert(osd, Absent { anchor, dirty });
        while self.members.len() > MAX_ABSENT {
            let oldest = *self.members.keys().find(|id| **id != osd).expect("more than one");
            self.forget(oldest);
        }
    }

    /// A member is in sync again, or of no use any more.
    pub(crate) fn forget(&mut self, osd: OsdId) {
        if let Some(absent) = self.members.remove(&osd) {
            self.changes.push(record::anchor(osd, None));
            self.changes.extend(absent.dirty.keys().map(|object| record::dirty(osd, *object, None)));
        }
    }

    /// Forgets all: this OSD is not in sync itself.
    pub(crate) fn clear(&mut self) {
        for osd in self.members.keys().copied().collect::<Vec<_>>() {
            self.forget(osd);
        }
    }

    /// An entry was appended: everybody absent lacks it.
    pub(crate) fn fold(&mut self, entry: &LogEntry, object_size: u32) {
        if planted(Bug::ForgetZeros) && matches!(entry.op, EntryOp::Zero { .. }) {
            return;
        }
        let (offset, len) = entry.op.span(object_size);
        let mut full = Vec::new();
        for (osd, absent) in &mut self.members {
            absent.dirty.entry(entry.op.object()).or_default().insert(offset, len);
            if absent.dirty.len() > MAX_DIRTY_OBJECTS {
                full.push(*osd);
            }
        }
        for osd in full {
            self.forget(osd);
        }
    }

    /// The log forgets these entries: the rows they changed must be kept.
    pub(crate) fn keep(&mut self, objects: &BTreeSet<ObjectId>) {
        for (osd, absent) in &self.members {
            for object in objects {
                if let Some(blocks) = absent.dirty.get(object) {
                    self.changes.push(record::dirty(*osd, *object, Some(blocks)));
                }
            }
        }
    }

    /// What must go with the next transaction.
    pub(crate) fn take_changes(&mut self) -> Vec<Attribute> {
        std::mem::take(&mut self.changes)
    }

    /// For a member that joins: everybody else's.
    pub(crate) fn snapshot(&self, but: OsdId) -> Vec<AbsentMember> {
        let others = self.members.iter().filter(|(osd, _)| **osd != but);
        others
            .map(|(osd, absent)| AbsentMember {
                osd: *osd,
                anchor: absent.anchor.clone(),
                dirty: absent.dirty.iter().map(|(object, blocks)| (*object, blocks.clone())).collect(),
            })
            .collect()
    }

    /// Takes over what the primary sent.
    pub(crate) fn replace(&mut self, all: Vec<AbsentMember>) {
        self.clear();
        for one in all {
            self.changes.push(record::anchor(one.osd, Some(&one.anchor)));
            self.changes.extend(one.dirty.iter().map(|(object, blocks)| record::dirty(one.osd, *object, Some(blocks))));
            self.members.insert(one.osd, Absent { anchor: one.anchor, dirty: one.dirty.into_iter().collect() });
        }
    }

    /// From disk.
    pub(crate) fn restore_anchor(&mut self, osd: OsdId, anchor: Vec<LogPoint>) {
        self.members.entry(osd).or_default().anchor = anchor;
    }

    /// From disk.
    pub(crate) fn restore_dirty(&mut self, osd: OsdId, object: ObjectId, blocks: BlockSet) {
        self.members.entry(osd).or_default().dirty.insert(object, blocks);
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::{ConfVersion, Epoch, Generation, PoolId, RequestId, SnapId, Version, VolumeId};

    use super::*;

    fn write(index: u64, offset: u32) -> LogEntry {
        let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index, snapshot: SnapId::HEAD };
        LogEntry {
            version: Version { c: ConfVersion(1), seq: 1 },
            prev: 0,
            epoch: Epoch(1),
            request: RequestId::default(),
            acked_through: 0,
            generation: Generation(1),
            snap_context: SnapId(0),
            op: EntryOp::Write { object, offset, crcs: vec![0] },
        }
    }

    #[test]
    fn what_changes_after_a_departure_is_dirty_until_the_return() {
        let mut absents = Absents::default();
        absents.fold(&write(1, 0), 4 << 20);
        // Found by the simulation: what was open when it left was not counted.
        absents.depart(OsdId(3), vec![LogPoint::default()], [&write(2, 4096)].into_iter(), 4 << 20);
        absents.fold(&write(2, 8192), 4 << 20);
        let absent = absents.of(OsdId(3)).unwrap();
        assert_eq!(absent.dirty.len(), 1);
        assert_eq!(absent.dirty.values().next().unwrap().ranges().collect::<Vec<_>>(), vec![(4096, 8192)]);
        assert_eq!(absents.snapshot(OsdId(3)), vec![]);
        absents.forget(OsdId(3));
        assert!(absents.of(OsdId(3)).is_none());
    }

    #[test]
    fn a_map_that_grows_too_large_is_lost_and_not_the_memory() {
        let mut absents = Absents::default();
        absents.depart(OsdId(3), vec![LogPoint::default()], std::iter::empty(), 4 << 20);
        for index in 0..=MAX_DIRTY_OBJECTS as u64 {
            absents.fold(&write(index, 0), 4 << 20);
        }
        assert!(absents.of(OsdId(3)).is_none());
    }

    #[test]
    fn a_removal_dirties_the_whole_object_and_no_more() {
        let mut absents = Absents::default();
        absents.depart(OsdId(3), vec![LogPoint::default()], std::iter::empty(), 4 << 20);
        let mut removal = write(1, 0);
        removal.op = EntryOp::Remove { object: removal.op.object() };
        absents.fold(&removal, 4 << 20);
        assert_eq!(absents.of(OsdId(3)).unwrap().dirty.values().next().unwrap().count(), 1024);
    }
}
