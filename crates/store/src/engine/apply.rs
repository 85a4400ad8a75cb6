//! Durable transactions take effect, in log order. Nothing before this stage changes what a checkpoint would write.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cairn_types::PgId;
use cairn_types::peer::LogEntry;

use super::view::{Wait, split};
use super::{Delta, LogPosition, Planned, Row, Store};
use crate::error::Error;
use crate::key::{Key, Part, RowKey};
use crate::planted::{Bug, planted};
use crate::record::Origin;
use crate::segment::{MAX_SEGMENTS, ObjectInfo, Segment};

/// One durable record.
#[derive(Debug)]
pub(super) struct Durable {
    /// The end of the record.
    pub(super) position: LogPosition,
    /// Those that have not taken effect.
    pub(super) transactions: VecDeque<Planned>,
}

impl Store {
    pub(super) fn apply_ready(&mut self) {
        while let Some(mut record) = self.apply.pop_front() {
            while let Some(planned) = record.transactions.pop_front() {
                if self.try_apply(&planned).is_err() {
                    record.transactions.push_front(planned);
                    self.apply.push_front(record);
                    return;
                }
            }
            self.ring.applied = record.position;
            // Whoever waits because too much is under way looks again.
            self.wake();
        }
    }

    /// All of a transaction's effects, or none while a node is missing.
    pub(super) fn try_apply(&mut self, planned: &Planned) -> Result<(), Wait> {
        if planned.relog.is_some() {
            self.checkpoint_relogged();
            return Ok(());
        }
        self.gather(planned)?;
        self.take_unapplied(planned);
        self.free_forgotten(&planned.forgotten);
        for (_, entry, delta) in &planned.committed {
            self.merge(delta, Some(entry));
        }
        if let Some(pg) = planned.scope {
            self.apply_log(pg, planned);
        }
        for delta in &planned.direct {
            self.merge(delta, None);
        }
        for (name, value) in &planned.attributes {
            self.apply_attribute(planned.scope, name, value.as_ref());
        }
        self.planned_rows -= planned.rows;
        Ok(())
    }

    /// Makes sure that everything the effects need is in memory.
    fn gather(&mut self, planned: &Planned) -> Result<(), Wait> {
        let committed = planned.committed.iter().map(|(_, _, delta)| delta);
        let mut waiting = false;
        let forgotten = planned.forgotten.iter().map(|(_, delta)| delta);
        for delta in committed.chain(&planned.direct).chain(forgotten) {
            let Ok(info) = self.object(delta.key) else {
                waiting = true;
                continue;
            };
            let whole = if delta.remove { info.map_or(0, |info| info.segments) } else { 0 };
            let touched = delta.changes.iter().fold(whole, |mask, change| mask | 1 << split(change.block).0);
            for segment in segments_in(touched) {
                waiting |= self.segment(delta.key, segment).is_err();
            }
        }
        if waiting { Err(Wait) } else { Ok(()) }
    }

    /// From here on no checkpoint logs these entries again.
    fn take_unapplied(&mut self, planned: &Planned) {
        let Some(pg) = planned.scope.and_then(|id| self.pgs.get_mut(&id)) else { return };
        let committed = planned.committed.iter().map(|(seq, _, delta)| (*seq, delta));
        for (seq, delta) in committed.chain(planned.forgotten.iter().map(|(seq, delta)| (*seq, delta))) {
            let all = (seq, Origin::default())..=(seq, Origin { lsn: u64::MAX, index: u32::MAX });
            let mut found = pg.unapplied.range(all);
            if let Some(key) = found.find(|(_, p)| Arc::ptr_eq(&p.delta, delta)).map(|(key, _)| *key) {
                pg.unapplied.remove(&key);
            }
        }
    }

    fn gathered(&mut self, key: Key, segment: u16) -> Arc<Segment> {
        self.segment(key, segment).expect("gathered before the first effect")
    }

    /// Blocks that only forgotten entries refer to.
    fn free_forgotten(&mut self, forgotten: &[(u64, Arc<Delta>)]) {
        for (_, delta) in forgotten {
            if let Some(above) = self.above.get_mut(&delta.key) {
                above.leaving.retain(|leaving| !Arc::ptr_eq(leaving, delta));
            }
        }
        let mut freed = BTreeSet::new();
        for (_, delta) in forgotten {
            for change in &delta.changes {
                let Some(at) = change.to.at() else { continue };
                let (segment, slot) = split(change.block);
                let now = self.gathered(delta.key, segment).blocks[slot].at();
                if now != Some(at) && !self.is_planned(delta.key, change.block, at) {
                    freed.insert(at);
                }
            }
            self.forget_above(delta.key);
        }
        freed.into_iter().for_each(|at| self.free_block(at));
    }

    fn is_planned(&self, key: Key, block: u32, at: u64) -> bool {
        self.above.get(&key).is_some_and(|above| above.refers_to(block, at))
    }

    fn forget_above(&mut self, key: Key) {
        if self.above.get(&key).is_some_and(super::Above::is_empty) {
            self.above.remove(&key);
        }
    }

    /// One object's change takes effect.
    fn merge(&mut self, delta: &Arc<Delta>, entry: Option<&LogEntry>) {
        let key = delta.key;
        let first = self.above.get_mut(&key).and_then(|above| above.bottom.pop_front());
        assert!(first.is_some_and(|first| Arc::ptr_eq(&first, delta)), "effects come in the order of planning");
        let info = self.object(key).expect("gathered before the first effect");
        let mut replaced: Vec<(u32, u64)> = Vec::new();
        let mut mask = info.map_or(0, |info| info.segments);
        if delta.remove {
            for segment in segments_in(mask) {
                let old = self.gathered(key, segment);
                let blocks = old.blocks.iter().enumerate();
                replaced.extend(blocks.filter_map(|(slot, b)| Some((u32::from(segment) * 64 + slot as u32, b.at()?))));
                self.put_row(RowKey::segment(key, segment), Row::Gone);
            }
            mask = 0;
        } else {
            for changes in delta.changes.chunk_by(|a, b| split(a.block).0 == split(b.block).0) {
                let segment = split(changes[0].block).0;
                let mut blocks = Segment::clone(&self.gathered(key, segment));
                for change in changes {
                    let slot = &mut blocks.blocks[split(change.block).1];
                    if let Some(at) = slot.at().filter(|at| change.to.at() != Some(*at)) {
                        replaced.push((change.block, at));
                    }
                    *slot = change.to;
                }
                let gone = blocks.is_absent();
                mask = if gone { mask & !(1 << segment) } else { mask | 1 << segment };
                let row = if gone { Row::Gone } else { Row::Segment(Arc::new(blocks)) };
                self.put_row(RowKey::segment(key, segment), row);
            }
        }
        self.put_info(delta, info, mask, entry);
        for (block, at) in replaced {
            if !self.is_planned(key, block, at) {
                self.free_block(at);
            }
        }
        self.forget_above(key);
        for change in delta.changes.iter().filter(|change| change.inline) {
            if let (Some(at), Some(data)) = (change.to.at(), &change.data) {
                self.deferred.put(at, data.clone(), self.epoch);
            }
        }
    }

    fn put_info(&mut self, delta: &Delta, old: Option<ObjectInfo>, segments: u64, entry: Option<&LogEntry>) {
        let row = RowKey::Object(delta.key, Part::Info);
        if delta.remove || (old.is_none() && segments == 0) {
            if old.is_some() {
                self.put_row(row, Row::Gone);
            }
            return;
        }
        let context = entry.map(|entry| entry.snap_context);
        let mut info = old.unwrap_or(ObjectInfo { birth: context.unwrap_or_default(), ..ObjectInfo::default() });
        info.segments = segments;
        info.snap_context = info.snap_context.max(context.unwrap_or_default());
        info.version = entry.map_or(info.version, |entry| entry.version);
        self.put_row(row, Row::Object(info));
    }

    fn apply_log(&mut self, id: PgId, planned: &Planned) {
        let pg = self.pgs.entry(id).or_default();
        let before = pg.row;
        let mut row = pg.row;
        let frozen = pg.frozen_commit;
        let mut rows: BTreeMap<u64, Row> = BTreeMap::new();
        for (seq, entry, _) in &planned.committed {
            rows.insert(*seq, Row::Log(Arc::clone(entry)));
            row.commit = *seq;
        }
        if let Some(point) = planned.restart {
            (row.kept_from..=row.commit).for_each(|seq| {
                rows.insert(seq, Row::Gone);
            });
            row = super::PgRow { commit: point.seq(), kept_from: point.seq() + 1 };
        }
        if let Some(trim) = planned.trim {
            let through = trim.min(row.commit);
            (row.kept_from..=through).for_each(|seq| {
                rows.insert(seq, Row::Gone);
            });
            row.kept_from = row.kept_from.max(through + 1);
        }
        pg.row = row;
        for (seq, value) in rows {
            let key = RowKey::Log(id, seq);
            // A row that no checkpoint has seen needs no removal from the index.
            if value == Row::Gone && seq > frozen {
                self.dirty.forget(&key);
            } else {
                self.put_row(key, value);
            }
        }
        if row != before {
            self.put_row(RowKey::Pg(id), Row::Pg(row));
        }
    }

    fn apply_attribute(&mut self, scope: Option<PgId>, name: &Bytes, value: Option<&Bytes>) {
        let attributes = match scope {
            Some(pg) => &mut self.pgs.entry(pg).or_default().attributes,
            None => &mut self.own_attributes,
        };
        match value {
            Some(value) => attributes.insert(name.clone(), value.clone()),
            None => attributes.remove(name),
        };
        let row = value.map_or(Row::Gone, |value| Row::Attribute(value.clone()));
        self.put_row(RowKey::attribute(scope, name.clone()), row);
    }

    /// A block that nothing refers to any more. It can be taken again when a checkpoint that froze this state is
    /// durable.
    fn free_block(&mut self, at: u64) {
        self.deferred.forget(at);
        if planted(Bug::ReuseBeforeCheckpoint) && self.free.free_blocks() > 0 {
            return self.free.give(at, 1);
        }
        if !self.quarantine.insert(at) {
            self.fail(Error::CorruptExtent { block: at });
        }
    }
}

fn segments_in(mask: u64) -> impl Iterator<Item = u16> {
    (0..MAX_SEGMENTS as u16).filter(move |segment| mask >> segment & 1 == 1)
}
