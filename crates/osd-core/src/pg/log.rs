//! The log of one PG: entries in order, each chained to the one before; the commit point; what is durable here.
//!
//! Entries above the commit point carry their data, so that they can be sent again and rolled forward by whoever
//! becomes primary. Invariants, asserted: positions rise by one, the chain holds, the commit point never moves
//! back and is never rewound over (I4).

use std::collections::VecDeque;

use bytes::Bytes;
use cairn_types::ObjectId;
use cairn_types::peer::{EntryOp, LogEntry, LogPoint, Logged};

/// One entry that is still kept.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The entry.
    pub(crate) entry: LogEntry,
    /// The chain after it.
    hash: u64,
    /// What it writes, while it may have to be sent.
    data: Option<Bytes>,
}

impl Kept {
    fn point(&self) -> LogPoint {
        LogPoint { version: self.entry.version, hash: self.hash }
    }

    /// The entry with its data, if the data is still here.
    pub(crate) fn logged(&self) -> Option<Logged> {
        Some(Logged { entry: self.entry.clone(), data: self.data.clone()? })
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The point before the first kept entry.
    base: LogPoint,
    kept: VecDeque<Kept>,
    commit: u64,
    persisted: u64,
    /// Changes whenever positions may be used anew, so that a late "durable" is not taken for the wrong entry.
    lineage: u64,
    /// The newest lineage of which something is durable.
    settled: u64,
    /// Entries at or below have no data any more.
    data_from: u64,
    data_bytes: usize,
}

/// Why loaded entries are no log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log on disk breaks after position {after}: expected the entry that continues it")]
pub struct BrokenLog {
    /// The last position that holds.
    pub after: u64,
}

impl Log {
    /// From what the store found. Everything found is durable.
    pub(crate) fn load(
        base: LogPoint,
        commit: u64,
        entries: Vec<LogEntry>,
        pending: Vec<(u64, Bytes)>,
    ) -> Result<Self, BrokenLog> {
        let mut log =
            Self { base, commit: base.seq(), persisted: base.seq(), data_from: base.seq(), ..Self::default() };
        let mut data = pending.into_iter().collect::<std::collections::BTreeMap<_, _>>();
        for entry in entries.into_iter().filter(|entry| entry.version.seq > base.seq()) {
            let end = log.end();
            if entry.version.seq != end.seq() + 1 || entry.prev != end.hash {
                return Err(BrokenLog { after: end.seq() });
            }
            let seq = entry.version.seq;
            let data = if seq > commit { Some(data.remove(&seq).unwrap_or_default()) } else { None };
            let blocks = matches!(entry.op, EntryOp::Write { .. }).then(|| entry.op.range().1).unwrap_or(0);
            if data.as_ref().is_some_and(|data| data.len() != blocks as usize) {
                return Err(BrokenLog { after: end.seq() });
            }
            log.data_bytes += data.as_ref().map_or(0, Bytes::len);
            log.kept.push_back(Kept { hash: entry.hash(), entry, data });
        }
        if commit > log.end().seq() {
            return Err(BrokenLog { after: log.end().seq() });
        }
        log.commit = commit.max(base.seq());
        log.data_from = log.commit;
        log.persisted = log.end().seq();
        Ok(log)
    }

    /// The point before the first kept entry.
    pub(crate) fn base(&self) -> LogPoint {
        self.base
    }

    /// The last point.
    pub(crate) fn end(&self) -> LogPoint {
        self.kept.back().map_or(self.base, Kept::point)
    }

    /// Committed through here.
    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    /// The commit point with its hash.
    pub(crate) fn commit_point(&self) -> LogPoint {
        self.point_at(self.commit).expect("the commit point is at or above the base and at or below the end")
    }

    /// Durable here through here.
    pub(crate) fn persisted(&self) -> u64 {
        self.persisted
    }

    /// Nothing that was cut off can come back with a power cut.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled == self.lineage
    }

    /// See [`Log::mark_persisted`].
    pub(crate) fn lineage(&self) -> u64 {
        self.lineage
    }

    /// Kept entries that are committed.
    pub(crate) fn committed_kept(&self) -> usize {
        (self.commit - self.base.seq()) as usize
    }

    /// Payload bytes held for entries that may still have to be sent.
    pub(crate) fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// The kept entry at a position.
    pub(crate) fn at(&self, seq: u64) -> Option<&Kept> {
        self.kept.get(seq.checked_sub(self.base.seq() + 1)? as usize)
    }

    /// The point at a position that is kept, or the base.
    pub(crate) fn point_at(&self, seq: u64) -> Option<LogPoint> {
        if seq == self.base.seq() { Some(self.base) } else { self.at(seq).map(Kept::point) }
    }

    /// Whether this point lies on this log's chain, as far as is kept.
    pub(crate) fn holds(&self, point: LogPoint) -> bool {
        self.point_at(point.seq()) == Some(point)
    }

    /// Kept entries after a position, in order.
    pub(crate) fn after(&self, seq: u64) -> impl Iterator<Item = &Kept> {
        self.kept.iter().skip(seq.saturating_sub(self.base.seq()) as usize)
    }

    /// Kept entries up to a position, in order.
    pub(crate) fn through(&self, seq: u64) -> impl DoubleEndedIterator<Item = &Kept> {
        self.kept.iter().take(seq.saturating_sub(self.base.seq()) as usize)
    }

    /// The points after a position, in order.
    pub(crate) fn points_after(&self, seq: u64) -> Vec<LogPoint> {
        self.after(seq).map(Kept::point).collect()
    }

    /// The highest uncommitted position that touches this range.
    pub(crate) fn touched_by(&self, object: ObjectId, offset: u32, len: u32) -> Option<u64> {
        let start = (self.commit - self.base.seq()) as usize;
        let open = self.kept.iter().skip(start).rev();
        open.map(|kept| &kept.entry).find(|entry| entry.op.touches(object, offset, len)).map(|entry| entry.version.seq)
    }

    /// The same in all layers of the object.
    pub(crate) fn touched_beside(&self, object: ObjectId, offset: u32, len: u32) -> Option<u64> {
        let start = (self.commit - self.base.seq()) as usize;
        let open = self.kept.iter().skip(start).rev().map(|kept| &kept.entry);
        open.into_iter().find(|entry| entry.op.touches_beside(object, offset, len)).map(|entry| entry.version.seq)
    }

    /// Adds the next entry.
    pub(crate) fn append(&mut self, logged: Logged) {
        let end = self.end();
        assert_eq!(logged.entry.version.seq, end.seq() + 1, "positions rise by one");
        assert!(logged.entry.version >= end.version, "versions rise");
        assert_eq!(logged.entry.prev, end.hash, "the chain holds");
        self.data_bytes += logged.data.len();
        self.kept.push_back(Kept { hash: logged.entry.hash(), entry: logged.entry, data: Some(logged.data) });
    }

    /// Everything that was appended in this lineage through `seq` is durable.
    pub(crate) fn mark_persisted(&mut self, lineage: u64, seq: u64) {
        if lineage == self.lineage {
            self.settled = lineage;
            self.persisted = self.persisted.max(seq);
            assert!(self.persisted <= self.end().seq(), "what is durable was appended");
        }
    }

    /// Cuts the log back; gives what was cut, in order.
    pub(crate) fn rewind(&mut self, to: u64) -> Vec<Kept> {
        assert!(to >= self.commit, "a log is never rewound below a known commit point (I5)");
        let keep = (to - self.base.seq()) as usize;
        let cut = self.kept.drain(keep.min(self.kept.len())..).collect::<Vec<_>>();
        if !cut.is_empty() {
            self.lineage += 1;
            self.persisted = self.persisted.min(to);
            self.data_bytes -= cut.iter().filter_map(|kept| kept.data.as_ref()).map(Bytes::len).sum::<usize>();
        }
        cut
    }

    /// Forgets all entries and goes on after a committed point.
    pub(crate) fn restart(&mut self, base: LogPoint) {
        assert!(base.seq() >= self.commit, "the commit point never moves back (I4)");
        self.kept.clear();
        self.base = base;
        self.commit = base.seq();
        self.persisted = base.seq();
        self.data_from = base.seq();
        self.data_bytes = 0;
        self.lineage += 1;
    }

    /// Moves the commit point; gives how far it came.
    pub(crate) fn commit_through(&mut self, seq: u64) {
        assert!(seq >= self.commit, "the commit point never moves back (I4)");
        assert!(seq <= self.end().seq(), "only what is in the log is committed");
        self.commit = seq;
    }

    /// Drops the data of entries at or below a committed position.
    pub(crate) fn drop_data(&mut self, through: u64) {
        let through = through.min(self.commit);
        let start = self.data_from.max(self.base.seq());
        for seq in start + 1..=through {
            let index = (seq - self.base.seq() - 1) as usize;
            if let Some(data) = self.kept.get_mut(index).and_then(|kept| kept.data.take()) {
                self.data_bytes -= data.len();
            }
        }
        self.data_from = self.data_from.max(through);
    }

    /// Forgets committed entries at or below a position; gives them.
    pub(crate) fn trim(&mut self, through: u64) -> Vec<Kept> {
        assert!(through <= self.commit, "only committed entries are forgotten");
        self.drop_data(through);
        let base = self.point_at(through).expect("what is trimmed is kept");
        let gone = self.kept.drain(..(through - self.base.seq()) as usize).collect();
        self.base = base;
        gone
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cairn_types::{ConfVersion, Epoch, Generation, PoolId, RequestId, SnapId, Version, VolumeId};

    use super::*;

    fn next(log: &Log, c: u64) -> Logged {
        let end = log.end();
        let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: end.seq(), snapshot: SnapId::HEAD };
        let entry = LogEntry {
            version: Version { c: ConfVersion(c), seq: end.seq() + 1 },
            prev: end.hash,
            epoch: Epoch(1),
            request: RequestId::default(),
            acked_through: 0,
            generation: Generation(1),
            snap_context: SnapId(0),
            op: EntryOp::Write { object, offset: 0, crcs: vec![1] },
        };
        Logged { entry, data: Bytes::from(vec![7; 4096]) }
    }

    fn filled(count: u64) -> Log {
        let mut log = Log::default();
        for _ in 0..count {
            log.append(next(&log, 1));
        }
        log
    }

    #[test]
    fn a_late_durability_is_not_taken_for_a_new_entry() {
        let mut log = filled(5);
        let old = log.lineage();
        log.mark_persisted(old, 3);
        log.rewind(2);
        assert_eq!(log.persisted(), 2);
        log.append(next(&log, 2));
        log.mark_persisted(old, 5);
        assert_eq!(log.persisted(), 2, "the old third entry says nothing about the new one");
        log.mark_persisted(log.lineage(), 3);
        assert_eq!(log.persisted(), 3);
    }

    #[test]
    #[should_panic(expected = "never rewound below a known commit point")]
    fn committed_entries_are_never_rewound() {
        let mut log = filled(5);
        log.commit_through(4);
        log.rewind(3);
    }

    #[test]
    fn data_is_held_until_it_is_committed_and_dropped() {
        let mut log = filled(4);
        assert_eq!(log.data_bytes(), 4 * 4096);
        log.commit_through(3);
        log.drop_data(2);
        assert_eq!(log.data_bytes(), 2 * 4096);
        assert!(log.at(2).unwrap().logged().is_none());
        assert!(log.at(3).unwrap().logged().is_some());
        assert_eq!(log.trim(3).len(), 3);
        assert_eq!((log.base().seq(), log.end().seq(), log.data_bytes()), (3, 4, 4096));
    }

    #[test]
    fn only_uncommitted_entries_hold_a_read_back() {
        let mut log = filled(3);
        let object = |index| ObjectId { pool: PoolId(1), volume: VolumeId(1), index, snapshot: SnapId::HEAD };
        assert_eq!(log.touched_by(object(1), 0, 4096), Some(2));
        assert_eq!(log.touched_by(object(1), 4096, 4096), None);
        log.commit_through(2);
        assert_eq!(log.touched_by(object(1), 0, 4096), None);
        assert_eq!(log.touched_by(object(2), 0, 4096), Some(3));
    }

    #[test]
    fn a_log_from_disk_with_a_hole_is_an_error_and_no_panic() {
        let log = filled(3);
        let mut entries = log.after(0).map(|kept| kept.entry.clone()).collect::<Vec<_>>();
        let whole = Log::load(LogPoint::default(), 2, entries.clone(), vec![(3, Bytes::from(vec![7; 4096]))]).unwrap();
        assert_eq!((whole.end(), whole.commit(), whole.data_bytes()), (log.end(), 2, 4096));
        entries.remove(1);
        assert_eq!(Log::load(LogPoint::default(), 1, entries, vec![]).unwrap_err(), BrokenLog { after: 1 });
    }
}
