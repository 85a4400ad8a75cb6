//! Planning: what a transaction changes, block by block, and where the new bytes go. The choice made here stands in
//! the record: in place where the block has a place of its own, a fresh extent otherwise; in the record first where
//! it is small, straight to the extent where it is long.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cairn_types::io::BlockState;
use cairn_types::peer::{EntryOp, LogEntry, Run, RunContent};
use cairn_types::{BLOCK_SIZE, ObjectId, PgId};

use super::dirty::{chunks_of, log_rows, nodes_for};
use super::view::{Wait, split};
use super::{BlockChange, Delta, Item, Pending, Planned, Purpose, Store};
use crate::io::IoOp;
use crate::key::{Key, MAX_ATTRIBUTE_NAME};
use crate::planted::{Bug, planted};
use crate::segment::{Block, MAX_SEGMENTS, SEGMENT_BLOCKS, Segment};
use crate::transaction::{Rejection, Token, Transaction, scope_of};

/// Blocks in the largest object.
const MAX_BLOCKS: u32 = MAX_SEGMENTS * SEGMENT_BLOCKS as u32;
/// Block numbers from here on stand for fresh blocks that are not chosen yet.
const PROVISIONAL: u64 = 1 << 60;
/// Transactions that wait for a record at most, in bytes of data; more stay in their queues.
const PLANNED_RECORDS: u64 = 4;
/// The most attribute bytes of one transaction.
const MAX_ATTRIBUTES: usize = 2 << 20;

/// Why an item stays in its queue.
enum Stop {
    Wait,
    Reject(Rejection),
}

impl From<Wait> for Stop {
    fn from(_: Wait) -> Self {
        Self::Wait
    }
}

/// The positions of a PG's log while a transaction is planned.
struct Log {
    /// Where the log ends after forgetting.
    rewind: Option<u64>,
    commit: u64,
    /// Entries above were forgotten.
    keep: u64,
}

/// One object's change before its fresh blocks are chosen.
struct Draft {
    object: ObjectId,
    remove: bool,
    changes: Vec<BlockChange>,
}

/// A transaction's changes before their fresh blocks are chosen.
struct Drafts {
    appended: Vec<Draft>,
    direct: Vec<Draft>,
    /// Rows of the index that they change, at most.
    rows: u64,
}

/// Segments as the steps of one transaction see and change them.
#[derive(Default)]
struct Scratch {
    tip: BTreeMap<(Key, u16), Segment>,
    bottom: BTreeMap<(Key, u16), Segment>,
    fresh: u64,
    /// Segments in which nothing was, and now are zeros: new rows of the index.
    grown: u64,
}

impl Store {
    pub(super) fn plan_ready(&mut self) {
        let bound = PLANNED_RECORDS * self.record_max();
        while self.planned_bytes < bound && self.failed.is_none() {
            let Some(pg) = self.runnable.pop_first() else { break };
            while let Some(item) = self.pgs.get_mut(&pg).and_then(|pg| pg.queue.pop_front()) {
                if let Err(item) = self.plan_item(item) {
                    self.pgs.entry(pg).or_default().queue.push_front(item);
                    self.stalled.insert(pg);
                    break;
                }
                if self.planned_bytes >= bound {
                    self.runnable.insert(pg);
                    break;
                }
            }
        }
    }

    fn plan_item(&mut self, item: Item) -> Result<(), Item> {
        match item {
            Item::Write { number, token, transaction } => match self.plan_transaction(token, &transaction) {
                Err(Stop::Wait) => return Err(Item::Write { number, token, transaction }),
                stop => {
                    self.unplanned.remove(&number);
                    if let Err(Stop::Reject(reason)) = stop {
                        self.reject(token, reason);
                    }
                }
            },
            Item::Read { token, object, offset, len } => {
                if self.start_read(token, object, offset, len).is_err() {
                    return Err(Item::Read { token, object, offset, len });
                }
            }
            Item::Inspect { token, object, offset, len, deep } => {
                if self.start_inspection(token, object, offset, len, deep).is_err() {
                    return Err(Item::Inspect { token, object, offset, len, deep });
                }
            }
            Item::List { token, pg, pg_count, after, limit } => {
                if self.start_list(token, pg, pg_count, after, limit).is_err() {
                    return Err(Item::List { token, pg, pg_count, after, limit });
                }
            }
        }
        Ok(())
    }

    /// The store's own attributes, once everything before them is planned.
    pub(super) fn plan_notes(&mut self) {
        let first_unplanned = self.unplanned.first().copied().unwrap_or(u64::MAX);
        while self.notes.front().is_some_and(|(number, ..)| *number < first_unplanned) {
            let Some((_, token, name, value)) = self.notes.pop_front() else { break };
            let id = self.number().0;
            let attributes = vec![(name, Some(value))];
            self.planned.push_back(Planned { id, token: Some(token), attributes, ..Planned::default() });
        }
    }

    fn plan_transaction(&mut self, token: Token, t: &Transaction) -> Result<(), Stop> {
        let log = self.check_order(t)?;
        check_content(t)?;
        if encoded_estimate(t) > self.ring.len / 8 {
            return Err(Stop::Reject(Rejection::Malformed("the transaction is too large for one record")));
        }
        let rows = self.rows_of(t, &log);
        let mut scratch = self.scratch(t, &log)?;
        let mut inline = 0;
        let mut appended = Vec::new();
        for logged in &t.append {
            let small = self.fits_inline(logged.data.len(), inline);
            inline += if small { logged.data.len() as u64 } else { 0 };
            appended.push(draft_entry(&logged.entry, &self.aligned(&logged.data), small, &mut scratch));
        }
        let mut direct = Vec::new();
        for (object, runs) in &t.content {
            let mut draft = Draft { object: *object, remove: false, changes: Vec::new() };
            for run in runs {
                let small = self.fits_inline(run.len as usize, inline);
                inline += if small { u64::from(run.len) } else { 0 };
                match &run.content {
                    RunContent::Data { data, crcs } => {
                        let (view, fresh) = (&mut scratch.bottom, &mut scratch.fresh);
                        draft_data(&mut draft, run.offset, &self.aligned(data), crcs, small, view, fresh);
                    }
                    RunContent::Absent => {
                        draft_state(&mut draft, run, Block::Absent, &mut scratch.bottom, &mut scratch.grown);
                    }
                    RunContent::Zero => {
                        draft_state(&mut draft, run, Block::Zero, &mut scratch.bottom, &mut scratch.grown);
                    }
                }
            }
            direct.push(draft);
        }
        for object in &t.remove {
            direct.push(draft_remove(*object, &mut scratch.bottom));
        }
        let places = self.take_fresh(scratch.fresh, scratch.grown, rows)?;
        self.register(token, t, &log, Drafts { appended, direct, rows }, &places);
        Ok(())
    }

    /// Rows of the index that change when the transaction takes effect, at most. Neighbouring log entries that are
    /// forgotten leave their leaves together.
    fn rows_of(&self, t: &Transaction, log: &Log) -> u64 {
        let pg = &self.pgs[&t.pg];
        let committed = pg.pending.range(..=log.commit).map(|(_, pending)| {
            let mut segments: Vec<u16> = pending.delta.changes.iter().map(|change| split(change.block).0).collect();
            segments.dedup();
            log_rows(&pending.entry) + 1 + segments.len() as u64
        });
        let runs = t.content.iter().flat_map(|(_, runs)| runs);
        let content: usize = runs.map(|run| segments_of((run.offset, run.len)).count()).sum();
        let objects = t.content.len() as u64 + t.remove.len() as u64 * (1 + u64::from(MAX_SEGMENTS));
        let attributes = t.attributes.iter().map(|(_, value)| chunks_of(value.as_ref().map_or(0, Bytes::len)));
        let forgotten = t.trim.map_or(0, |trim| trim.min(log.commit)).max(t.restart.map_or(0, |_| log.commit));
        let forgotten = (forgotten + 1).saturating_sub(pg.row.kept_from) / 8;
        1 + committed.sum::<u64>() + content as u64 + objects + attributes.sum::<u64>() + forgotten
    }

    /// Whether data goes through the record; otherwise it goes straight to its extent. What the record carries is
    /// bounded, and what pending entries hold in the log and in memory is bounded too.
    ///
    /// Where room is short, longer data goes through the record too: only so does what has a place already need no
    /// other one.
    fn fits_inline(&self, len: usize, inline: u64) -> bool {
        let len = len as u64;
        (len <= self.config.inline_max as u64 || self.is_short_of_room())
            && inline + len <= self.record_max() / 2
            && self.pending_inline + inline + len <= self.ring.len / 8
    }

    fn is_short_of_room(&self) -> bool {
        let unwritten = if self.medium_gives_room() { self.unwritten_blocks() } else { 0 };
        self.free.free_blocks() + unwritten < self.reserve_blocks()
    }

    /// Bytes at which a record closes: several fit in the smallest log.
    pub(super) fn record_max(&self) -> u64 {
        (self.config.record_max as u64).min(self.ring.len / 16)
    }

    /// The same bytes in memory that the disk takes as it is: copied once if need be, and only sliced from here on.
    fn aligned(&self, data: &Bytes) -> Bytes {
        if data.is_empty() || (data.as_ptr() as usize).is_multiple_of(BLOCK_SIZE as usize) {
            return data.clone();
        }
        let mut buffer = self.pool.take(data.len());
        buffer[..data.len()].copy_from_slice(data);
        buffer.freeze().slice(..data.len())
    }

    fn check_order(&self, t: &Transaction) -> Result<Log, Stop> {
        let pg = &self.pgs[&t.pg];
        let (mut commit, mut end) = (pg.planned_commit, pg.planned_end);
        let refuse =
            |what, found, commit, end| Err(Stop::Reject(Rejection::OutOfOrder { what, found, pg: t.pg, commit, end }));
        if let Some(to) = t.rewind {
            end = end.min(to.max(commit));
        }
        let rewind = t.rewind.map(|_| end);
        let mut keep = end;
        commit = commit.max(if planted(Bug::ApplyBeforeCommit) { end } else { t.commit.min(end) });
        if let Some(point) = t.restart {
            if point.seq() < commit {
                return refuse("restart", point.seq(), commit, end);
            }
            keep = commit;
            end = point.seq();
        }
        for logged in &t.append {
            if logged.entry.version.seq != end + 1 {
                return refuse("append", logged.entry.version.seq, commit, end);
            }
            end += 1;
        }
        Ok(Log { rewind, commit, keep })
    }

    /// The segments that the transaction touches, without and with the pending entries that remain.
    fn scratch(&mut self, t: &Transaction, log: &Log) -> Result<Scratch, Stop> {
        let mut wanted: Vec<(Key, u16, bool)> = Vec::new();
        let mut waiting = false;
        let mut whole = Vec::new();
        for logged in &t.append {
            let key = Key::new(logged.entry.op.object());
            match &logged.entry.op {
                EntryOp::Remove { .. } => whole.push((key, true)),
                op => wanted.extend(segments_of(op.range()).map(|segment| (key, segment, true))),
            }
        }
        for (object, runs) in &t.content {
            let key = Key::new(*object);
            let segments = runs.iter().flat_map(|run| segments_of((run.offset, run.len)));
            wanted.extend(segments.map(|segment| (key, segment, false)));
        }
        whole.extend(t.remove.iter().map(|object| (Key::new(*object), false)));
        for (key, gated) in whole {
            match self.object(key) {
                Ok(info) => {
                    let mut mask = info.map_or(0, |info| info.segments);
                    let above = self.above.get(&key).into_iter().flat_map(|above| above.deltas());
                    above.flat_map(|delta| &delta.changes).for_each(|c| mask |= 1 << split(c.block).0);
                    let segments = (0..MAX_SEGMENTS as u16).filter(|segment| mask >> segment & 1 == 1);
                    wanted.extend(segments.map(|segment| (key, segment, gated)));
                }
                Err(Wait) => waiting = true,
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let mut scratch = Scratch::default();
        for (key, segment, gated) in wanted {
            let Ok(stored) = self.segment(key, segment) else {
                waiting = true;
                continue;
            };
            let mut blocks = Segment::clone(&stored);
            if let Some(above) = self.above.get(&key) {
                above.lay_over(segment, &mut blocks, if gated { log.keep } else { log.commit });
            }
            let map = if gated { &mut scratch.tip } else { &mut scratch.bottom };
            map.insert((key, segment), blocks);
        }
        if waiting { Err(Stop::Wait) } else { Ok(scratch) }
    }

    /// Fresh blocks for data, leaving the reserve alone, and as many as the next checkpoint needs for the rows that
    /// wait for it and these. Zeros where nothing was count as data: they need no blocks, but stay in the index for
    /// good. Without either nothing is refused: it waits for a checkpoint if need be, and goes alone when nothing else
    /// waits.
    fn take_fresh(&mut self, count: u64, grown: u64, rows: u64) -> Result<Vec<u64>, Stop> {
        let waiting = self.waiting_rows();
        let nodes = if waiting == 0 { 0 } else { nodes_for(waiting + rows) };
        let needed = count + grown;
        let floor = if needed == 0 { nodes } else { nodes.max(self.floor_blocks()) };
        if needed + floor <= self.free.free_blocks() {
            let runs = self.free.take(count).ok_or(Stop::Wait)?;
            return Ok(runs.into_iter().flat_map(|(start, len)| start..start + len).collect());
        }
        // What an unproven filesystem may give is waited for; it says soon enough.
        let unproven = if self.medium_gives_room() || self.medium_is_full() { 0 } else { self.unwritten_blocks() };
        let available = self.usage().available() / 4096 + unproven;
        if needed > 0 && needed + self.floor_blocks() > available {
            return Err(Stop::Reject(Rejection::NoSpace { blocks: needed }));
        }
        // More of a file is written if that is enough; otherwise a checkpoint gives back what was freed, and takes
        // the rows that wait.
        let unwritten = self.unwritten_blocks();
        if !self.prewrite_now(needed + floor) || self.free.free_blocks() + unwritten < needed + floor {
            self.checkpoint_wanted = true;
        }
        Err(Stop::Wait)
    }

    fn register(&mut self, token: Token, t: &Transaction, log: &Log, drafts: Drafts, places: &[u64]) {
        let Drafts { appended, direct, rows } = drafts;
        let id = self.number().0;
        let mut planned = Planned {
            id,
            token: Some(token),
            scope: scope_of(t.pg),
            rewind: log.rewind,
            commit: log.commit,
            restart: t.restart,
            trim: t.trim,
            rows,
            ..Planned::default()
        };
        let attribute = |(name, value): &(Vec<u8>, Option<Bytes>)| (Bytes::copy_from_slice(name), value.clone());
        planned.attributes = t.attributes.iter().map(attribute).collect();
        for (logged, draft) in t.append.iter().zip(appended) {
            let delta = self.place(id, draft, places);
            planned.append.push((Arc::new(logged.entry.clone()), delta));
        }
        planned.direct = direct.into_iter().map(|draft| self.place(id, draft, places)).collect();
        self.enter(t.pg, &mut planned);
        self.planned_bytes += planned.inline_bytes() + 4096;
        self.planned_rows += rows;
        self.planned.push_back(planned);
    }

    /// Chooses the fresh blocks of a draft and starts the writes that go straight to them.
    fn place(&mut self, planned: u64, draft: Draft, places: &[u64]) -> Arc<Delta> {
        let mut changes = draft.changes;
        for change in &mut changes {
            if let Block::Data { at, .. } = &mut change.to
                && *at >= PROVISIONAL
            {
                *at = places[(*at - PROVISIONAL) as usize];
            }
        }
        let mut run: Option<(u64, Vec<Bytes>)> = None;
        for change in changes.iter().filter(|change| !change.inline) {
            let (Some(at), Some(data)) = (change.to.at(), &change.data) else { continue };
            match &mut run {
                Some((start, pieces)) if *start + pieces.len() as u64 == at => pieces.push(data.clone()),
                _ => {
                    self.issue_placed(planned, run.take());
                    run = Some((at, vec![data.clone()]));
                }
            }
        }
        self.issue_placed(planned, run);
        Arc::new(Delta { key: Key::new(draft.object), remove: draft.remove, changes })
    }

    fn issue_placed(&mut self, planned: u64, run: Option<(u64, Vec<Bytes>)>) {
        if let Some((start, pieces)) = run {
            *self.placed.entry(planned).or_default() += 1;
            self.issue(IoOp::Write { offset: start * 4096, pieces, sync: false }, Purpose::Placed { planned });
        }
    }

    /// Moves the PG's planned state past a transaction. Replay comes through here too.
    pub(super) fn enter(&mut self, id: PgId, planned: &mut Planned) {
        let pg = self.pgs.entry(id).or_default();
        let keep = planned.rewind.map_or(pg.planned_end, |to| to.min(pg.planned_end));
        let mut forgotten = pg.pending.split_off(&(keep + 1));
        pg.planned_end = keep;
        let rest = pg.pending.split_off(&(planned.commit + 1));
        let committed = std::mem::replace(&mut pg.pending, rest);
        pg.planned_commit = pg.planned_commit.max(planned.commit);
        if let Some(point) = planned.restart {
            forgotten.append(&mut pg.pending);
            (pg.planned_commit, pg.planned_end) = (point.seq(), point.seq());
        }
        for (entry, delta) in &planned.append {
            let seq = entry.version.seq;
            let pending = Pending { entry: Arc::clone(entry), delta: Arc::clone(delta) };
            pg.pending.insert(seq, pending);
            pg.planned_end = seq;
            self.pending_inline += inline_bytes(delta);
            self.above.entry(delta.key).or_default().gated.insert(seq, Arc::clone(delta));
        }
        for (seq, pending) in forgotten {
            self.pending_inline -= inline_bytes(&pending.delta);
            let above = self.above.entry(pending.delta.key).or_default();
            above.gated.retain(|at, delta| *at != seq || !Arc::ptr_eq(delta, &pending.delta));
            above.leaving.push(Arc::clone(&pending.delta));
            planned.forgotten.push((seq, pending.delta));
        }
        for (seq, pending) in committed {
            self.pending_inline -= inline_bytes(&pending.delta);
            let above = self.above.entry(pending.delta.key).or_default();
            above.gated.remove(&seq);
            above.bottom.push_back(Arc::clone(&pending.delta));
            planned.committed.push((seq, pending.entry, pending.delta));
        }
        for delta in &planned.direct {
            self.above.entry(delta.key).or_default().bottom.push_back(Arc::clone(delta));
        }
    }
}

impl Planned {
    /// Bytes of data that the record carries.
    pub(super) fn inline_bytes(&self) -> u64 {
        let deltas = self.append.iter().map(|(_, delta)| delta).chain(&self.direct);
        deltas.map(|delta| inline_bytes(delta)).sum()
    }
}

pub(super) fn inline_bytes(delta: &Delta) -> u64 {
    delta.changes.iter().filter(|change| change.inline).count() as u64 * u64::from(BLOCK_SIZE)
}

fn segments_of((offset, len): (u32, u32)) -> impl Iterator<Item = u16> {
    let first = offset / BLOCK_SIZE;
    let last = first + (len / BLOCK_SIZE).max(1) - 1;
    split(first).0..=split(last).0
}

fn check_content(t: &Transaction) -> Result<(), Stop> {
    let bad = |what| Err(Stop::Reject(Rejection::Malformed(what)));
    let range_fits = |offset: u32, len: u32| {
        let aligned = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE) && len > 0;
        aligned && u64::from(offset) + u64::from(len) <= u64::from(MAX_BLOCKS) * u64::from(BLOCK_SIZE)
    };
    for logged in &t.append {
        let remove = matches!(logged.entry.op, EntryOp::Remove { .. });
        let (offset, len) = logged.entry.op.range();
        if !remove && !range_fits(offset, len) {
            return bad("an entry's range is not made of whole blocks of an object");
        }
        let bytes = if let EntryOp::Write { crcs, .. } = &logged.entry.op { crcs.len() } else { 0 };
        if logged.data.len() != bytes * BLOCK_SIZE as usize {
            return bad("an entry has not as much data as it has checksums");
        }
    }
    for (_, runs) in &t.content {
        let mut end = 0;
        for run in runs {
            if !range_fits(run.offset, run.len) || run.offset < end {
                return bad("content is not made of rising runs of whole blocks of an object");
            }
            end = run.offset + run.len;
            if let RunContent::Data { data, crcs } = &run.content
                && (data.len() != run.len as usize || crcs.len() != (run.len / BLOCK_SIZE) as usize)
            {
                return bad("a run has not as much data or checksums as its length says");
            }
        }
    }
    if t.attributes.iter().any(|(name, _)| name.len() > MAX_ATTRIBUTE_NAME) {
        return bad("an attribute's name is too long");
    }
    let size: usize = t.attributes.iter().map(|(_, value)| value.as_ref().map_or(0, Bytes::len)).sum();
    if size > MAX_ATTRIBUTES {
        return bad("the attributes are too large for one record");
    }
    Ok(())
}

/// Bytes of the record without data, at most.
fn encoded_estimate(t: &Transaction) -> u64 {
    let entry = |len: u32| 160 + u64::from(len / BLOCK_SIZE) * 25;
    let appended: u64 = t.append.iter().map(|logged| entry(logged.data.len() as u32)).sum();
    let runs = t.content.iter().flat_map(|(_, runs)| runs);
    let content: u64 = runs.map(|run| entry(run.len)).sum();
    let attribute = |value: &Option<Bytes>| 100 + value.as_ref().map_or(0, Bytes::len) as u64;
    let attributes: u64 = t.attributes.iter().map(|(_, value)| attribute(value)).sum();
    appended + content + attributes + t.remove.len() as u64 * 160 + 4096
}

fn draft_entry(entry: &LogEntry, data: &Bytes, small: bool, scratch: &mut Scratch) -> Draft {
    let object = entry.op.object();
    let mut draft = Draft { object, remove: false, changes: Vec::new() };
    let Scratch { tip, fresh, grown, .. } = scratch;
    match &entry.op {
        EntryOp::Write { offset, crcs, .. } => {
            draft_data(&mut draft, *offset, data, crcs, small, tip, fresh);
        }
        EntryOp::Zero { offset, len, unmap, .. } => {
            let (to, content) = (if *unmap { Block::Absent } else { Block::Zero }, RunContent::Zero);
            draft_state(&mut draft, &Run { offset: *offset, len: *len, content }, to, tip, grown);
        }
        EntryOp::Remove { .. } => return draft_remove(object, tip),
    }
    draft
}

fn draft_data(
    draft: &mut Draft,
    offset: u32,
    data: &Bytes,
    crcs: &[u32],
    small: bool,
    view: &mut BTreeMap<(Key, u16), Segment>,
    fresh: &mut u64,
) {
    let key = Key::new(draft.object);
    for (i, crc) in crcs.iter().enumerate() {
        let block = offset / BLOCK_SIZE + i as u32;
        let (segment, slot) = split(block);
        let now = &mut view.get_mut(&(key, segment)).expect("every touched segment was gathered").blocks[slot];
        let at = match *now {
            Block::Data { at, .. } | Block::Lost { at } if small || planted(Bug::WriteInPlace) => at,
            _ => {
                *fresh += 1;
                PROVISIONAL + *fresh - 1
            }
        };
        let to = Block::Data { at, crc: *crc };
        *now = to;
        let bytes = data.slice(i * BLOCK_SIZE as usize..(i + 1) * BLOCK_SIZE as usize);
        draft.changes.push(BlockChange { block, to, data: Some(bytes), inline: small });
    }
}

fn draft_state(draft: &mut Draft, run: &Run, to: Block, view: &mut BTreeMap<(Key, u16), Segment>, grown: &mut u64) {
    let key = Key::new(draft.object);
    let first = run.offset / BLOCK_SIZE;
    for block in first..(run.offset + run.len) / BLOCK_SIZE {
        let (segment, slot) = split(block);
        let now = view.get_mut(&(key, segment)).expect("every touched segment was gathered");
        if to == Block::Zero && (block == first || slot == 0) {
            *grown += u64::from(now.is_absent());
        }
        now.blocks[slot] = to;
        draft.changes.push(BlockChange { block, to, data: None, inline: false });
    }
}

fn draft_remove(object: ObjectId, view: &mut BTreeMap<(Key, u16), Segment>) -> Draft {
    let key = Key::new(object);
    let mut changes = Vec::new();
    for ((_, segment), blocks) in view.range_mut((key, 0)..=(key, u16::MAX)) {
        for (slot, now) in blocks.blocks.iter_mut().enumerate().filter(|(_, now)| **now != Block::Absent) {
            *now = Block::Absent;
            let block = u32::from(*segment) * SEGMENT_BLOCKS as u32 + slot as u32;
            changes.push(BlockChange { block, to: Block::Absent, data: None, inline: false });
        }
    }
    Draft { object, remove: true, changes }
}

/// What a read says of a block.
pub(super) fn state_of(block: Block) -> BlockState {
    match block {
        Block::Absent | Block::Lost { .. } => BlockState::Absent,
        Block::Zero => BlockState::Zero,
        Block::Data { crc, .. } => BlockState::Data { crc },
    }
}
