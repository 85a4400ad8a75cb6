//! Snapshots: taken, deleted, cloned from; and when the layers above a deleted one are joined with those below.
//!
//! Taking one is three steps. The snapshot gets its number and stands in the map as being taken; whoever may write to the
//! volume finishes what it has under way, writes with the new context from then on, and says so; with the last of them the
//! snapshot is complete. Whoever comes or goes meanwhile ends it: what a fenced holder has under way nobody can wait for.
//! Where nobody holds the volume it is complete once a fence holds, which is for the leader to find out.
//!
//! A snapshot that clones were made of, and a volume that has snapshots, lose their names when they are deleted, and go
//! when the last of those has gone.

use cairn_proto::convert::{attach_mode_from, snap_phase, snapshot_mark};
use cairn_proto::meta::{
    CreateSnapshotReply, CreateSnapshotRequest, DeleteSnapshotReply, DeleteSnapshotRequest, ErrorCode, FinishSnapshot,
    FinishSnapshotReply, JoinedPg, Parent, ReportDrainedReply, ReportDrainedRequest, ReportPurgedRequest, Snapshot,
    SnapshotPhase, SnapshotRecord, SnapshotRef, VolumeRecord, snapshot_ref, volume_ref,
};
use cairn_types::map::SnapPhase;
use cairn_types::volume::AttachMode;
use cairn_types::{PgId, PoolId, SnapId, VolumeId};

use crate::machine::{Machine, Turn};
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;
use crate::volume::{called, required};
use crate::{keys, record};

/// The most snapshots of one volume, those on their way included: all of them are in the map.
const SNAPSHOTS: usize = 512;
/// The longest chain of clones of clones.
const GENERATIONS: usize = 16;

/// A snapshot that can be used, by id or name.
pub(crate) fn find(state: &dyn StateRead, by: Option<&SnapshotRef>) -> Result<Option<SnapshotRecord>, Corrupt> {
    let id = match by.and_then(|by| by.by.as_ref()) {
        Some(snapshot_ref::By::Id(id)) => Some(SnapId(*id)),
        Some(snapshot_ref::By::Name(name)) => record::snapshot_named(state, name)?,
        None => None,
    };
    let found = id.map(|id| record::snapshot(state, id)).transpose()?.flatten();
    Ok(found.filter(|record| !record.retired && shown(record).phase() != SnapshotPhase::Going))
}

/// Like [`find`], but a missing one is refused.
pub(crate) fn known(state: &dyn StateRead, by: Option<&SnapshotRef>) -> Outcome<SnapshotRecord> {
    let missing = || match by.and_then(|by| by.by.as_ref()) {
        Some(snapshot_ref::By::Id(id)) => Refusal::not_found(format!("there is no snapshot with id {id}")),
        Some(snapshot_ref::By::Name(name)) => Refusal::not_found(format!("there is no snapshot `{name}`")),
        None => Refusal::invalid("the request names no snapshot"),
    };
    Ok(find(state, by)?.ok_or_else(missing)?)
}

/// The part of a record that everybody sees.
pub(crate) fn shown(record: &SnapshotRecord) -> Snapshot {
    record.snapshot.clone().unwrap_or_default()
}

fn id_of(record: &SnapshotRecord) -> SnapId {
    SnapId(record.snapshot.as_ref().map_or(0, |snapshot| snapshot.id))
}

fn volume_of(record: &SnapshotRecord) -> VolumeId {
    VolumeId(record.snapshot.as_ref().map_or(0, |snapshot| snapshot.volume))
}

/// Whether any OSD may know the volume.
fn was_held(volume: &VolumeRecord) -> bool {
    volume.next_generation > 1
}

fn set_mark(volume: &mut VolumeRecord, id: SnapId, phase: SnapPhase) {
    if let Some(mark) = volume.snapshots.iter_mut().find(|mark| mark.id == id.0) {
        *mark = snapshot_mark(id, phase);
    }
}

fn set_phase(snapshot: &mut SnapshotRecord, phase: SnapPhase) {
    let mark = snapshot_mark(SnapId(0), phase);
    snapshot.snapshot.get_or_insert_default().phase = mark.phase;
}

/// The record of a snapshot that another record speaks of.
fn certain(state: &dyn StateRead, id: SnapId) -> Result<SnapshotRecord, Corrupt> {
    record::snapshot(state, id)?
        .ok_or_else(|| Corrupt::new(record::name_of(&keys::snapshot(id)), "a snapshot of a volume", "nothing"))
}

fn volume_record(state: &dyn StateRead, id: VolumeId) -> Result<VolumeRecord, Corrupt> {
    record::volume(state, id)?
        .ok_or_else(|| Corrupt::new(record::name_of(&keys::volume(id)), "the volume of a snapshot", "nothing"))
}

impl Machine {
    pub(crate) fn create_snapshot(
        &mut self,
        turn: &mut Turn<'_>,
        request: CreateSnapshotRequest,
    ) -> Outcome<CreateSnapshotReply> {
        crate::volume::check_name("snapshot", &request.name)?;
        crate::change::check_labels(&request.labels)?;
        let by = request.volume.as_ref().and_then(|by| by.by.as_ref());
        if let Some(id) = record::snapshot_named(&turn.state, &request.name)? {
            let existing = shown(&certain(&turn.state, id)?);
            // Its volume may be deleted by now.
            let same = match by {
                Some(volume_ref::By::Id(id)) => *id == existing.volume,
                Some(volume_ref::By::Name(name)) => *name == existing.volume_name,
                None => false,
            };
            if same {
                return Ok(CreateSnapshotReply { snapshot: Some(existing), existed: true, epoch: self.map.epoch.0 });
            }
            let message =
                format!("there is a snapshot `{}` already, of volume `{}`", request.name, existing.volume_name);
            return Err(Refusal::new(ErrorCode::AlreadyExists, message).remedy("choose another name").into());
        }
        let mut volume = required(&turn.state, request.volume.as_ref())?;
        let shown_volume = crate::volume::shown(&volume);
        if shown_volume.restoring != 0 {
            return Err(crate::attach::half_restored(&turn.state, &volume).into());
        }
        if volume.snapshots.len() >= SNAPSHOTS {
            let message =
                format!("{} has {SNAPSHOTS} snapshots, those that are being deleted included", called(&volume));
            return Err(Refusal::precondition(message).remedy("delete some, and wait until they have gone").into());
        }
        let mut writers = Vec::new();
        for holder in &shown_volume.attachments {
            match attach_mode_from(holder.mode)? {
                AttachMode::ReadOnly => {}
                AttachMode::Exclusive => writers.push(holder.generation),
                // Its writers would have to stop together, and go on with one context.
                AttachMode::Shared => {
                    let message = format!("{} is attached shared to node `{}`", called(&volume), holder.node);
                    return Err(Refusal::precondition(message)
                        .remedy(
                            "a snapshot needs a volume that one node at most writes to: detach it, or attach it alone",
                        )
                        .into());
                }
            }
        }
        let id = SnapId(self.cluster.next_snapshot.max(1));
        self.cluster.next_snapshot = id.0 + 1;
        let phase = if was_held(&volume) { SnapPhase::Taking } else { SnapPhase::Ready };
        let mark = snapshot_mark(id, phase);
        let snapshot = Snapshot {
            id: id.0,
            name: request.name,
            volume: shown_volume.id,
            volume_name: shown_volume.name.clone(),
            pool: shown_volume.pool,
            pool_name: shown_volume.pool_name.clone(),
            size: shown_volume.size,
            created_at_s: turn.now_s,
            phase: mark.phase,
            labels: request.labels,
            children: 0,
        };
        turn.state.put(keys::snapshot_name(&snapshot.name), id.0.to_be_bytes().to_vec());
        let parents = shown_volume.parents;
        self.pin(turn, &parents)?;
        let made = SnapshotRecord { snapshot: Some(snapshot), awaited: writers, parents, ..SnapshotRecord::default() };
        record::store(&mut turn.state, keys::snapshot(id), &made);
        volume.snapshots.push(mark);
        volume.volume.get_or_insert_default().snap_context = id.0;
        self.write_volume(turn, &volume);
        Ok(CreateSnapshotReply { snapshot: made.snapshot, existed: false, epoch: self.coming_epoch().0 })
    }

    /// One that may write has nothing under way that was begun before this snapshot, or before an older one.
    pub(crate) fn report_drained(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ReportDrainedRequest,
    ) -> Outcome<ReportDrainedReply> {
        let Some(mut volume) = record::volume(&turn.state, VolumeId(request.volume))? else {
            return Ok(ReportDrainedReply {});
        };
        let before = volume.clone();
        for mark in before.snapshots.iter().filter(|mark| mark.id <= request.snapshot) {
            if snap_phase(mark.phase()) != SnapPhase::Taking {
                continue;
            }
            let mut snapshot = certain(&turn.state, SnapId(mark.id))?;
            let count = snapshot.awaited.len();
            snapshot.awaited.retain(|generation| *generation != request.generation);
            if snapshot.awaited.len() == count {
                continue;
            }
            if snapshot.awaited.is_empty() {
                set_phase(&mut snapshot, SnapPhase::Ready);
                set_mark(&mut volume, SnapId(mark.id), SnapPhase::Ready);
            }
            record::store(&mut turn.state, keys::snapshot(SnapId(mark.id)), &snapshot);
        }
        if volume != before {
            self.write_volume(turn, &volume);
        }
        Ok(ReportDrainedReply {})
    }

    /// The leader has waited: for a fence where nobody holds the volume, or for a holder in vain.
    pub(crate) fn finish_snapshot(
        &mut self,
        turn: &mut Turn<'_>,
        request: &FinishSnapshot,
    ) -> Outcome<FinishSnapshotReply> {
        let id = SnapId(request.snapshot);
        let missing = || Refusal::not_found(format!("there is no snapshot with id {}", id.0));
        let mut snapshot = record::snapshot(&turn.state, id)?.ok_or_else(missing)?;
        if shown(&snapshot).phase() == SnapshotPhase::Taking && (!request.taken || snapshot.awaited.is_empty()) {
            let mut volume = volume_record(&turn.state, volume_of(&snapshot))?;
            if request.taken {
                set_phase(&mut snapshot, SnapPhase::Ready);
                set_mark(&mut volume, id, SnapPhase::Ready);
                record::store(&mut turn.state, keys::snapshot(id), &snapshot);
            } else {
                self.let_go(turn, &mut volume, &mut snapshot)?;
            }
            self.write_volume(turn, &volume);
        }
        Ok(FinishSnapshotReply { snapshot: snapshot.snapshot })
    }

    /// Somebody comes or goes who may write: what is being taken is not taken. Gives whether anything was.
    pub(crate) fn give_up_taking(&mut self, turn: &mut Turn<'_>, volume: &mut VolumeRecord) -> Outcome<()> {
        for mark in volume.snapshots.clone() {
            if snap_phase(mark.phase()) == SnapPhase::Taking {
                let mut snapshot = certain(&turn.state, SnapId(mark.id))?;
                self.let_go(turn, volume, &mut snapshot)?;
            }
        }
        Ok(())
    }

    pub(crate) fn delete_snapshot(
        &mut self,
        turn: &mut Turn<'_>,
        request: &DeleteSnapshotRequest,
    ) -> Outcome<DeleteSnapshotReply> {
        let Some(mut snapshot) = find(&turn.state, request.snapshot.as_ref())? else {
            return Ok(DeleteSnapshotReply { existed: false });
        };
        let id = id_of(&snapshot);
        if shown(&snapshot).children > 0 {
            turn.state.delete(keys::snapshot_name(&shown(&snapshot).name));
            snapshot.retired = true;
            record::store(&mut turn.state, keys::snapshot(id), &snapshot);
            return Ok(DeleteSnapshotReply { existed: true });
        }
        let mut volume = volume_record(&turn.state, volume_of(&snapshot))?;
        if volume.volume.as_ref().is_some_and(|volume| volume.restoring == id.0) && !volume.retired {
            return Err(crate::attach::half_restored(&turn.state, &volume).into());
        }
        if was_held(&volume) {
            self.let_go(turn, &mut volume, &mut snapshot)?;
            self.write_volume(turn, &volume);
        } else {
            turn.state.delete(keys::snapshot_name(&shown(&snapshot).name));
            self.forget_snapshot(turn, &mut volume, &snapshot)?;
        }
        Ok(DeleteSnapshotReply { existed: true })
    }

    /// From now on it goes. The volume's record is changed, and not written.
    fn let_go(&mut self, turn: &mut Turn<'_>, volume: &mut VolumeRecord, snapshot: &mut SnapshotRecord) -> Outcome<()> {
        let id = id_of(snapshot);
        if !snapshot.retired {
            turn.state.delete(keys::snapshot_name(&shown(snapshot).name));
        }
        snapshot.awaited.clear();
        set_phase(snapshot, SnapPhase::Going);
        set_mark(volume, id, SnapPhase::Going);
        record::store(&mut turn.state, keys::snapshot(id), &*snapshot);
        Ok(())
    }

    /// Nothing of it is left anywhere.
    fn forget_snapshot(
        &mut self,
        turn: &mut Turn<'_>,
        volume: &mut VolumeRecord,
        snapshot: &SnapshotRecord,
    ) -> Outcome<()> {
        let id = id_of(snapshot);
        turn.state.delete(keys::snapshot(id));
        volume.snapshots.retain(|mark| mark.id != id.0);
        if volume.retired && volume.snapshots.is_empty() {
            self.purge_volume(turn, volume);
        } else {
            self.write_volume(turn, volume);
        }
        self.unpin(turn, &snapshot.parents)
    }

    /// A primary has joined the layers above these snapshots with those below.
    pub(crate) fn snapshots_joined(
        &mut self,
        turn: &mut Turn<'_>,
        pg: PgId,
        request: &ReportPurgedRequest,
    ) -> Outcome<()> {
        let now = self.map.pgs.get(&pg).map(|config| config.interval.0);
        if now != Some(request.interval) {
            let message = format!("placement group {pg} is in another interval than {}", request.interval);
            return Err(Refusal::precondition(message).into());
        }
        for id in request.snapshots.iter().map(|id| SnapId(*id)) {
            let Some(mut snapshot) = record::snapshot(&turn.state, id)? else { continue };
            let pool = PoolId(shown(&snapshot).pool);
            if shown(&snapshot).phase() != SnapshotPhase::Going || pg.pool != pool {
                continue;
            }
            let before = snapshot.joined.clone();
            snapshot.joined.retain(|joined| joined.index != pg.index);
            snapshot.joined.push(JoinedPg { index: pg.index, interval: request.interval });
            snapshot.joined.sort_unstable_by_key(|joined| joined.index);
            // A primary that came after the report does not know of it, and may have written above the snapshot again.
            let joined = |pg: &PgId, interval: u64| {
                snapshot.joined.iter().any(|joined| joined.index == pg.index && joined.interval == interval)
            };
            let all = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
            if self.map.pgs.range(all).all(|(pg, config)| joined(pg, config.interval.0)) {
                let mut volume = volume_record(&turn.state, volume_of(&snapshot))?;
                self.forget_snapshot(turn, &mut volume, &snapshot)?;
            } else if snapshot.joined != before {
                record::store(&mut turn.state, keys::snapshot(id), &snapshot);
            }
        }
        Ok(())
    }

    /// What a clone of a snapshot reads where it knows nothing itself.
    pub(crate) fn parents_of(&self, source: &SnapshotRecord) -> Result<Vec<Parent>, Refusal> {
        let snapshot = shown(source);
        if snapshot.phase() != SnapshotPhase::Ready {
            return Err(Refusal::precondition(format!("snapshot `{}` is not complete", snapshot.name)));
        }
        let nearest =
            Parent { volume: snapshot.volume, pool: snapshot.pool, snapshot: snapshot.id, size: snapshot.size };
        let further = source.parents.iter().map(|parent| Parent { size: parent.size.min(snapshot.size), ..*parent });
        let parents: Vec<Parent> = std::iter::once(nearest).chain(further).collect();
        if parents.len() > GENERATIONS {
            let message = format!("snapshot `{}` is of a clone in the {GENERATIONS}th generation", snapshot.name);
            return Err(Refusal::precondition(message).remedy("copy the data to a volume that is no clone"));
        }
        Ok(parents)
    }

    /// Somebody reads these snapshots.
    pub(crate) fn pin(&mut self, turn: &mut Turn<'_>, parents: &[Parent]) -> Outcome<()> {
        for parent in parents {
            let mut snapshot = certain(&turn.state, SnapId(parent.snapshot))?;
            snapshot.snapshot.get_or_insert_default().children += 1;
            record::store(&mut turn.state, keys::snapshot(SnapId(parent.snapshot)), &snapshot);
        }
        Ok(())
    }

    /// Not any more.
    pub(crate) fn unpin(&mut self, turn: &mut Turn<'_>, parents: &[Parent]) -> Outcome<()> {
        for parent in parents {
            let id = SnapId(parent.snapshot);
            let mut snapshot = certain(&turn.state, id)?;
            let children = &mut snapshot.snapshot.get_or_insert_default().children;
            *children = children.saturating_sub(1);
            let last = *children == 0;
            record::store(&mut turn.state, keys::snapshot(id), &snapshot);
            if last && snapshot.retired {
                let mut volume = volume_record(&turn.state, volume_of(&snapshot))?;
                if was_held(&volume) {
                    self.let_go(turn, &mut volume, &mut snapshot)?;
                    self.write_volume(turn, &volume);
                } else {
                    self.forget_snapshot(turn, &mut volume, &snapshot)?;
                }
            }
        }
        Ok(())
    }
}
