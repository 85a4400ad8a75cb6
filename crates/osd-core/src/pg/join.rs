//! Snapshots that are going: the primary walks the PG and joins, object by object, the layer above each of them with the
//! layer below, as ordinary log entries, and reports the PG once all of it is committed.
//!
//! A layer above a going snapshot lies between two snapshots that stay, or above the newest that stays. Its content goes down
//! over the next layer that stays, lowest first, so that no view of a snapshot that stays ever changes: whoever sees the
//! lower layer sees the upper one too. Until an object is joined, writes that carry the going snapshot's context go to its
//! layer; from then on to the lower one. That is why the walk must not miss a layer: what lies above hides what
//! lies below.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use cairn_types::io::ReadData;
use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::peer::{EntryOp, Logged, ObjectKey, RunContent};
use cairn_types::{BLOCK_SIZE, ObjectId, PoolId, SnapId, VolumeId};

use super::order::Primary;
use super::read::as_runs;
use super::{Ctx, ListFor, Pg, ReadFor};
use crate::Time;
use crate::output::{Output, ReadFailure};
use crate::planted::{Bug, planted};
use crate::upkeep::Upkeep;

/// An object is read and moved in so many parts.
const SLICES: u32 = 16;
/// A walk that left objects behind is followed by another after this long. It ends where it has left so many.
const AGAIN_MS: u64 = 5000;
const MOST_LEFT: usize = 1024;
/// A report is made again when the map does not show it after this long.
const REPORT_MS: u64 = 15_000;

#[derive(Debug)]
enum Stage {
    /// Waits for the listing of this number. A page holds all layers of an object: `limit` grows until it
    /// does. Layers that are written meanwhile may not be in it.
    Listing { number: u64, limit: usize, written: BTreeSet<ObjectId> },
    /// Through the last key of the page, but for these, every object is joined.
    Page { todo: BTreeMap<ObjectKey, BTreeSet<SnapId>>, through: Option<ObjectKey>, at_end: bool },
    /// Everything is in the log, up to this position.
    End { committed: u64 },
}

/// One object on its way.
#[derive(Debug)]
struct Moving {
    /// Its key as the lowest layer.
    key: ObjectKey,
    /// The layer that goes, and how far it was moved.
    layer: SnapId,
    offset: u32,
    /// A slice is being read, by this number.
    reading: Option<u64>,
}

#[derive(Debug)]
struct Walk {
    volume: VolumeId,
    /// The snapshots that were going when it began.
    going: BTreeSet<SnapId>,
    from: Option<ObjectKey>,
    stage: Stage,
    moving: Option<Moving>,
    /// Goes on when this position is committed: no more than a slice is on its way at once.
    after: u64,
    /// Objects that were passed over because a block of theirs cannot be read now: another walk will come to them.
    left: BTreeSet<ObjectKey>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(super) struct Join {
    walk: Option<Walk>,
    /// Snapshots whose layers are gone from the PG, by a walk of this primary.
    joined: BTreeMap<VolumeId, BTreeSet<SnapId>>,
    reported: BTreeMap<VolumeId, Time>,
    reads: u64,
    /// No walk begins before this instant: the last one left something behind.
    not_before: Time,
    /// Whose turn it was: no volume keeps the others waiting.
    last: VolumeId,
}

/// The key of an object's lowest layer: the same for all of its layers.
fn lowest(object: ObjectId) -> ObjectKey {
    ObjectKey::new(object.at(SnapId(0)))
}

/// Snapshots that are going, of the volumes of one pool.
fn all_going(upkeep: &Upkeep, pool: PoolId) -> &BTreeMap<VolumeId, BTreeSet<SnapId>> {
    static NONE: BTreeMap<VolumeId, BTreeSet<SnapId>> = BTreeMap::new();
    upkeep.chores(pool).map_or(&NONE, |chores| &chores.going)
}

impl Join {
    /// For the same interval after entries may have been cut: a walk under way is not known to have joined anything. What a
    /// finished one has joined is committed; and it may have been reported, which holds for the interval.
    pub(super) fn carry_over(&mut self) -> Self {
        Self { walk: None, ..std::mem::take(self) }
    }

    /// Whether an object has no layer of this going snapshot any more, and gets none.
    fn is_joined(&self, object: ObjectId, layer: SnapId) -> bool {
        if self.joined.get(&object.volume).is_some_and(|joined| joined.contains(&layer)) {
            return true;
        }
        let walk = self.walk.as_ref().filter(|walk| walk.volume == object.volume && walk.going.contains(&layer));
        let Some(walk) = walk else { return false };
        let key = lowest(object);
        if walk.left.contains(&key) {
            return false;
        }
        match &walk.stage {
            Stage::Listing { .. } => walk.from.is_some_and(|from| key <= from),
            Stage::Page { todo, through, at_end } => {
                (*at_end || through.is_some_and(|through| key <= through)) && !todo.contains_key(&key)
            }
            Stage::End { .. } => true,
        }
    }

    /// The layer that a write goes to.
    pub(super) fn layer_of(&self, map: &ClusterMap, object: ObjectId, context: SnapId) -> SnapId {
        let Some(fence) = map.volumes.get(&object.volume) else { return SnapId(0) };
        let mut newest_first = fence.snapshots.range(..=context).rev();
        let layer = newest_first.find(|(id, phase)| match phase {
            SnapPhase::Taking | SnapPhase::Ready => true,
            SnapPhase::Going => !self.is_joined(object, **id) && !planted(Bug::HiddenLayer),
        });
        layer.map_or(SnapId(0), |(id, _)| *id)
    }

    /// A write went to this layer.
    pub(super) fn note_written(&mut self, layer: ObjectId) {
        let Some(walk) = self.walk.as_mut().filter(|walk| walk.volume == layer.volume) else { return };
        match &mut walk.stage {
            Stage::Listing { written, .. } => {
                written.insert(layer);
            }
            Stage::Page { todo, .. } => {
                if let Some(layers) = todo.get_mut(&lowest(layer)) {
                    layers.insert(layer.snapshot);
                }
            }
            Stage::End { .. } => {}
        }
    }

    /// Its layers are being joined: a write waits until they are.
    pub(super) fn holds(&self, object: ObjectId) -> bool {
        let moving = self.walk.as_ref().and_then(|walk| walk.moving.as_ref());
        moving.is_some_and(|moving| moving.key == lowest(object))
    }
}

impl Pg {
    fn may_join(&self) -> bool {
        let may = |primary: &Primary| primary.is_active() && primary.cut_above.is_none() && !primary.is_hushed();
        self.primary.as_deref().is_some_and(may) && !self.is_held()
    }

    /// Joins a little more of what is to be joined.
    pub(super) fn advance_join(&mut self, ctx: &mut Ctx<'_>) {
        // Content needs room below before it gives any back above.
        let (pool, may) = (self.id.pool, self.may_join() && !self.is_full(ctx));
        let Some(primary) = &mut self.primary else { return };
        let join = &mut primary.join;
        if !may {
            // The group may be another one when it goes on: half of it gone, or some entries.
            join.walk = None;
            return;
        }
        if join.walk.is_none() {
            let all = all_going(ctx.upkeep, pool);
            join.joined.retain(|volume, joined| {
                joined.retain(|id| all.get(volume).is_some_and(|going| going.contains(id)));
                !joined.is_empty()
            });
            join.reported.retain(|volume, _| join.joined.contains_key(volume));
            let due = |(volume, going): &(&VolumeId, &BTreeSet<SnapId>)| {
                join.joined.get(*volume).is_none_or(|joined| !joined.is_superset(going))
            };
            let mut next = all.range((Bound::Excluded(join.last), Bound::Unbounded)).chain(all.range(..=join.last));
            if let Some((volume, going)) = next.find(due).filter(|_| join.not_before <= ctx.now) {
                let (volume, going) = (*volume, going.clone());
                let number = ctx.next_attempt();
                let stage = Stage::Listing { number, limit: ctx.own.page, written: BTreeSet::new() };
                join.last = volume;
                join.walk =
                    Some(Walk { volume, going, from: None, stage, moving: None, after: 0, left: BTreeSet::new() });
                ctx.out.list(self.id, None, ctx.own.page, ListFor::Join { number });
            } else {
                self.report_joined(ctx);
            }
            return;
        }
        self.move_on(ctx);
    }

    /// Says what is joined, again and again until the map shows it.
    fn report_joined(&mut self, ctx: &mut Ctx<'_>) {
        let (pg, interval) = (self.id, self.config.interval);
        let Some(primary) = &mut self.primary else { return };
        let join = &mut primary.join;
        for (volume, joined) in &join.joined {
            let waits = join.reported.get(volume).is_some_and(|at| ctx.now.ms_since(*at) < REPORT_MS);
            if !waits {
                let snapshots = joined.iter().copied().collect();
                ctx.out.push(Output::ReportPurged { volume: *volume, pg, snapshots, interval });
                join.reported.insert(*volume, ctx.now);
            }
        }
    }

    /// Some of the PG's objects, in key order.
    pub(super) fn join_listed(&mut self, ctx: &mut Ctx<'_>, number: u64, objects: Vec<ObjectId>) {
        let may = self.may_join();
        let Some(primary) = &mut self.primary else { return };
        let Some(walk) = &mut primary.join.walk else { return };
        let Stage::Listing { number: awaited, limit, written } = &mut walk.stage else { return };
        // One that an earlier walk asked for begins elsewhere.
        if *awaited != number {
            return;
        }
        if !may {
            primary.join.walk = None;
            return;
        }
        let (limit, written) = (*limit, std::mem::take(written));
        let at_end = objects.len() < limit;
        // The last object's other layers may be on the next page.
        let last = objects.last().copied().map(lowest);
        let mut groups: BTreeMap<ObjectKey, BTreeSet<SnapId>> = BTreeMap::new();
        for object in objects.iter().filter(|object| at_end || Some(lowest(**object)) != last) {
            groups.entry(lowest(*object)).or_default().insert(object.snapshot);
        }
        let through = groups.last_key_value().map(|(key, _)| *key);
        if through.is_none() && !at_end {
            let limit = limit * 2;
            let number = ctx.next_attempt();
            walk.stage = Stage::Listing { number, limit, written };
            ctx.out.list(self.id, walk.from, limit, ListFor::Join { number });
            return;
        }
        let within = |key: &ObjectKey| at_end || through.is_some_and(|through| *key <= through);
        for layer in written.into_iter().filter(|layer| within(&lowest(*layer))) {
            groups.entry(lowest(layer)).or_default().insert(layer.snapshot);
        }
        let volume = walk.volume;
        groups.retain(|key, layers| {
            key.object().volume == volume && layers.iter().any(|layer| walk.going.contains(layer))
        });
        walk.stage = Stage::Page { todo: groups, through, at_end };
        self.touched = true;
    }

    /// The next slice, object or page.
    fn move_on(&mut self, ctx: &mut Ctx<'_>) {
        let (commit, slice) = (self.log.commit(), self.slice());
        let Some(primary) = &mut self.primary else { return };
        let Some(walk) = &mut primary.join.walk else { return };
        match &mut walk.stage {
            Stage::Listing { .. } => {}
            Stage::End { committed } => {
                if *committed <= commit {
                    let walk = primary.join.walk.take().expect("matched above");
                    if walk.left.is_empty() {
                        primary.join.joined.entry(walk.volume).or_default().extend(walk.going);
                        primary.join.reported.remove(&walk.volume);
                    } else {
                        primary.join.not_before = ctx.now.plus_ms(AGAIN_MS);
                    }
                    self.touched = true;
                }
            }
            Stage::Page { todo, through, at_end } => {
                if walk.after > commit {
                    return;
                }
                if let Some(moving) = &mut walk.moving {
                    if moving.reading.is_none() {
                        self.read_slice(ctx);
                    }
                    return;
                }
                let Some((key, layers)) = todo.first_key_value() else {
                    if *at_end {
                        walk.stage = Stage::End { committed: self.log.end().seq() };
                    } else {
                        walk.from = through.map(|key| ObjectKey::new(key.object().at(SnapId::HEAD)));
                        let number = ctx.next_attempt();
                        walk.stage = Stage::Listing { number, limit: ctx.own.page, written: BTreeSet::new() };
                        ctx.out.list(self.id, walk.from, ctx.own.page, ListFor::Join { number });
                    }
                    self.touched = true;
                    return;
                };
                let going = all_going(ctx.upkeep, self.id.pool).get(&walk.volume);
                let goes = |layer: &SnapId| going.is_some_and(|going| going.contains(layer));
                let Some(layer) = layers.iter().copied().find(goes) else {
                    let key = *key;
                    todo.remove(&key);
                    self.touched = true;
                    return;
                };
                if ctx.out.pace.take(ctx.now, slice, ctx.map.settings.client_latency_ms).is_err() {
                    return;
                }
                walk.moving = Some(Moving { key: *key, layer, offset: 0, reading: None });
                self.read_slice(ctx);
            }
        }
    }

    fn slice(&self) -> u32 {
        (self.object_size / SLICES).max(BLOCK_SIZE)
    }

    fn read_slice(&mut self, ctx: &mut Ctx<'_>) {
        let (slice, object_size) = (self.slice(), self.object_size);
        let Some(primary) = &mut self.primary else { return };
        let join = &mut primary.join;
        let Some(moving) = join.walk.as_mut().and_then(|walk| walk.moving.as_mut()) else { return };
        let object = moving.key.object().at(moving.layer);
        let len = slice.min(object_size - moving.offset);
        let lacking = self.missing.lacking(object, moving.offset, len);
        if !lacking.is_empty() {
            // A good copy is fetched first, if there is one. Until then nobody waits for it.
            let key = moving.key;
            let Some(walk) = &mut join.walk else { return };
            walk.moving = None;
            walk.left.insert(key);
            if let Stage::Page { todo, .. } = &mut walk.stage {
                todo.remove(&key);
            }
            if walk.left.len() > MOST_LEFT {
                join.walk = None;
                join.not_before = ctx.now.plus_ms(AGAIN_MS);
            }
            self.repair.wait_for(object, &lacking, None);
            self.touched = true;
            return;
        }
        if moving.offset > 0 {
            ctx.out.pace.charge(len);
        }
        join.reads += 1;
        moving.reading = Some(join.reads);
        let what = ReadFor::Join { serial: primary.serial, number: join.reads };
        ctx.out.read(ctx.now, self.id, object, (moving.offset, len), what);
    }

    /// A slice's content: it goes down, and out of its layer.
    pub(super) fn join_read_done(
        &mut self,
        ctx: &mut Ctx<'_>,
        serial: u64,
        number: u64,
        result: Result<ReadData, ReadFailure>,
    ) {
        let may = self.may_join();
        let object_size = self.object_size;
        let Some(primary) = self.primary.as_mut().filter(|primary| primary.serial == serial) else { return };
        let Some(walk) = &mut primary.join.walk else { return };
        let Some(moving) = walk.moving.as_mut().filter(|moving| moving.reading == Some(number)) else { return };
        moving.reading = None;
        if !may {
            primary.join.walk = None;
            return;
        }
        let object = moving.key.object().at(moving.layer);
        let data = match result {
            Ok(data) => data,
            Err(ReadFailure::Corrupt { offsets }) => {
                self.miss_unreadable(object, &offsets);
                return;
            }
        };
        let Stage::Page { todo, .. } = &mut walk.stage else { return };
        let Some(layers) = todo.get_mut(&moving.key) else { return };
        let fence = ctx.map.volumes.get(&walk.volume).filter(|fence| !fence.purging);
        let Some(fence) = fence else {
            primary.join.walk = None;
            return;
        };
        // A lower one may have begun to go meanwhile: it goes first.
        let goes = |layer: &SnapId| fence.snapshots.get(layer) == Some(&SnapPhase::Going);
        if layers.iter().copied().find(goes) != Some(moving.layer) {
            walk.moving = None;
            self.touched = true;
            return;
        }
        let target = object.at(fence.newest_through(moving.layer));
        let offset = moving.offset;
        let len = data.blocks.len() as u32 * BLOCK_SIZE;
        let mut ops = Vec::new();
        for run in as_runs(&data, offset) {
            match run.content {
                RunContent::Absent => continue,
                RunContent::Zero => {
                    let op = EntryOp::Zero { object: target, offset: run.offset, len: run.len, unmap: false };
                    ops.push((op, bytes::Bytes::new()));
                }
                RunContent::Data { data, crcs } => {
                    ops.push((EntryOp::Write { object: target, offset: run.offset, crcs }, data));
                }
            }
        }
        if !ops.is_empty() {
            ops.push((EntryOp::Zero { object, offset, len, unmap: true }, bytes::Bytes::new()));
            // The layer below may not have been there when the page was listed. Should it go too, it goes first.
            layers.insert(target.snapshot);
        }
        if planted(Bug::JoinForgets) {
            ops.clear();
        }
        moving.offset += len;
        if moving.offset >= object_size || len == 0 {
            ops.push((EntryOp::Remove { object }, bytes::Bytes::new()));
            layers.remove(&moving.layer);
            let key = moving.key;
            // With this entry the object is joined: whoever was held writes below from now on.
            if !layers.iter().any(goes) {
                todo.remove(&key);
            }
            walk.moving = None;
        }
        for (op, data) in ops {
            let entry = self.next_entry(ctx, op);
            self.append(ctx, vec![Logged { entry, data }]);
        }
        let end = self.log.end().seq();
        let walk = self.primary.as_mut().and_then(|primary| primary.join.walk.as_mut());
        if let Some(walk) = walk {
            walk.after = end;
        }
        self.touched = true;
    }
}
