//! Volumes: created once per name, grown, deleted (into the trash, see [`crate::trash`], or at once); and when a deleted
//! one is gone from every PG.
//!
//! A volume enters the map with its first attachment: until then no OSD has to know it, and nothing can have been written
//! to it. From then on its fence stays in the map, empty while nobody holds it, until it is purged. Generations are never
//! reused, and neither are ids.

use cairn_proto::convert::{attach_mode_from, snap_phase};
use cairn_proto::meta::{
    CreateVolumeReply, CreateVolumeRequest, DeleteVolumeReply, DeleteVolumeRequest, ErrorCode, ReportPurgedReply,
    ReportPurgedRequest, ResizeVolumeReply, ResizeVolumeRequest, SnapshotPhase, SnapshotRecord, Trashed, Volume,
    VolumeLimits, VolumeRecord, VolumeRef, snapshot_ref, volume_ref,
};
use cairn_types::map::{Pool, VolumeFence};
use cairn_types::volume::AttachMode;
use cairn_types::{BLOCK_SIZE, Generation, Incarnation, OsdId, PgId, PoolId, SnapId, VolumeId};

use crate::capacity::{available, human};
use crate::change;
use crate::machine::{Machine, Turn};
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;
use crate::trash::check_retention;
use crate::{keys, record, snapshot};

/// The largest volume: 1 PiB.
const LARGEST: u64 = 1 << 50;

/// What the OSDs let through for a volume; `None` while nobody ever held it.
pub(crate) fn fence_of(record: &VolumeRecord) -> Option<VolumeFence> {
    let volume = record.volume.as_ref()?;
    if record.next_generation <= 1 && record.snapshots.is_empty() {
        return None;
    }
    let read_only = |mode| attach_mode_from(mode) == Ok(AttachMode::ReadOnly);
    let readers = volume.attachments.iter().filter(|a| read_only(a.mode));
    Some(VolumeFence {
        pool: PoolId(volume.pool),
        generations: volume.attachments.iter().map(|a| Generation(a.generation)).collect(),
        read_only: readers.map(|a| Generation(a.generation)).collect(),
        purging: record.deleting,
        snapshots: record.snapshots.iter().map(|mark| (SnapId(mark.id), snap_phase(mark.phase()))).collect(),
        limits: volume.limits.unwrap_or_default().into(),
    })
}

/// A living volume by id or name, with its record.
pub(crate) fn find(state: &dyn StateRead, by: Option<&VolumeRef>) -> Result<Option<VolumeRecord>, Corrupt> {
    let id = match by.and_then(|by| by.by.as_ref()) {
        Some(volume_ref::By::Id(id)) => Some(VolumeId(*id)),
        Some(volume_ref::By::Name(name)) => record::volume_named(state, name)?,
        None => None,
    };
    let found = id.map(|id| record::volume(state, id)).transpose()?.flatten();
    Ok(found.filter(|record| !record.deleting && !record.retired && trashed(record).is_none()))
}

/// Like [`find`], but a missing one is refused.
pub(crate) fn required(state: &dyn StateRead, by: Option<&VolumeRef>) -> Outcome<VolumeRecord> {
    if let Some(record) = find(state, by)? {
        return Ok(record);
    }
    Err(match by.and_then(|by| by.by.as_ref()) {
        Some(volume_ref::By::Id(id)) => match record::volume(state, VolumeId(*id))? {
            Some(record) if !record.deleting => Refusal::not_found(format!("{} is in the trash", called(&record)))
                .remedy(format!("to have it back: cairn volume undelete id:{id}")),
            _ => Refusal::not_found(format!("there is no volume with id {id}")),
        },
        Some(volume_ref::By::Name(name)) => Refusal::not_found(format!("there is no volume `{}`", name.escape_debug())),
        None => Refusal::invalid("the request names no volume"),
    }
    .into())
}

/// Since when, and until when, a volume is in the trash.
pub(crate) fn trashed(record: &VolumeRecord) -> Option<Trashed> {
    record.volume.as_ref().and_then(|volume| volume.trashed)
}

/// The part of a record that everybody sees.
pub(crate) fn shown(record: &VolumeRecord) -> Volume {
    let mut volume = record.volume.clone().unwrap_or_default();
    volume.published_nodes = record.publications.iter().map(|p| p.node.clone()).collect();
    volume.snapshots = record.snapshots.iter().filter(|mark| mark.phase() != SnapshotPhase::Going).count() as u32;
    volume
}

/// A short name of a volume in a sentence.
pub(crate) fn called(record: &VolumeRecord) -> String {
    format!("volume `{}`", record.volume.as_ref().map_or("", |volume| &volume.name))
}

impl Machine {
    pub(crate) fn create_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: CreateVolumeRequest,
    ) -> Outcome<CreateVolumeReply> {
        check_name("volume", &request.name)?;
        change::check_labels(&request.labels)?;
        check_retention(request.retention_s)?;
        let limits = change::limits(VolumeLimits::default(), request.limits.unwrap_or_default())?;
        let same_source = |existing: &Volume, by: &snapshot_ref::By| match (existing.parents.first(), by) {
            (Some(parent), snapshot_ref::By::Id(id)) => parent.snapshot == *id,
            _ => false,
        };
        // Asked again for a clone whose source is deleted by now.
        if let (Some(by), Some(id)) = (
            request.source.as_ref().and_then(|source| source.by.as_ref()),
            record::volume_named(&turn.state, &request.name)?,
        ) {
            let existing = record::volume(&turn.state, id)?.map(|record| shown(&record)).unwrap_or_default();
            if same_source(&existing, by) && (request.size == 0 || whole_blocks(request.size)? == existing.size) {
                return Ok(CreateVolumeReply { volume: Some(existing), existed: true });
            }
        }
        let source = match &request.source {
            Some(source) => Some(snapshot::known(&turn.state, Some(source))?),
            None => None,
        };
        let source = source.as_ref();
        let pool = match source.and_then(|source| source.snapshot.as_ref()) {
            Some(snapshot) if request.pool.is_empty() => self.pool_for(&snapshot.pool_name)?.clone(),
            _ => self.pool_for(&request.pool)?.clone(),
        };
        let size = match source.and_then(|source| source.snapshot.as_ref()) {
            Some(snapshot) if request.size == 0 => snapshot.size,
            _ => whole_blocks(request.size)?,
        };
        if let Some(id) = record::volume_named(&turn.state, &request.name)? {
            let existing = record::volume(&turn.state, id)?
                .ok_or_else(|| Corrupt::new(record::name_of(&keys::volume(id)), "the named volume", "nothing"))?;
            check_same(&shown(&existing), &request, source.map_or(0, source_id), &pool, size)?;
            return Ok(CreateVolumeReply { volume: Some(shown(&existing)), existed: true });
        }
        let what = format!("volume `{}` asks for {}", request.name, human(size));
        self.check_rules(&pool, 1, size, &what)?;
        self.check_space(&pool, size, &what)?;
        let parents = match source {
            Some(source) => {
                self.check_source(source, &request.name, &pool, size)?;
                self.parents_of(source)?
            }
            None => Vec::new(),
        };
        self.pin(turn, &parents)?;
        let id = VolumeId(self.cluster.next_volume);
        self.cluster.next_volume += 1;
        let volume = Volume {
            id: id.0,
            name: request.name,
            pool: pool.id.0,
            pool_name: pool.name.clone(),
            size,
            labels: request.labels,
            created_at_s: turn.now_s,
            object_size: pool.object_size,
            parents,
            retention_s: request.retention_s,
            limits,
            ..Volume::default()
        };
        turn.state.put(keys::volume_name(&volume.name), id.0.to_be_bytes().to_vec());
        let record = VolumeRecord { volume: Some(volume), next_generation: 1, ..VolumeRecord::default() };
        self.write_volume(turn, &record);
        self.tallies.entry(pool.id).or_default().add(&shown(&record));
        Ok(CreateVolumeReply { volume: record.volume, existed: false })
    }

    fn pool_for(&self, name: &str) -> Result<&Pool, Refusal> {
        let pools = &self.map.pools;
        let named = |name: &str| pools.values().find(|pool| pool.name == name);
        let names = || pools.values().map(|pool| format!("`{}`", pool.name)).collect::<Vec<_>>().join(", ");
        if pools.is_empty() {
            return Err(
                Refusal::precondition("there is no pool to put a volume in").remedy("make one: cairn pool create NAME")
            );
        }
        if !name.is_empty() {
            let missing = || Refusal::not_found(format!("there is no pool `{name}`"));
            return named(name).ok_or_else(|| missing().remedy(format!("the pools are {}", names())));
        }
        let only = pools.values().next().filter(|_| pools.len() == 1);
        only.or_else(|| named("default")).ok_or_else(|| {
            Refusal::invalid("there are several pools and none is called `default`")
                .remedy(format!("name one of {}", names()))
        })
    }

    /// A clone is at least as large as its source, and cut in the same way.
    fn check_source(&self, source: &SnapshotRecord, name: &str, pool: &Pool, size: u64) -> Result<(), Refusal> {
        let snapshot = snapshot::shown(source);
        if size < snapshot.size {
            let message = format!(
                "volume `{name}` would have {} and its source, snapshot `{}`, has {}",
                human(size),
                snapshot.name,
                human(snapshot.size)
            );
            return Err(Refusal::new(ErrorCode::OutOfRange, message).remedy("ask for at least as much"));
        }
        let theirs = self.map.pools.get(&PoolId(snapshot.pool)).map_or(0, |pool| pool.object_size);
        if theirs != pool.object_size {
            let message = format!(
                "pool `{}` has objects of {} bytes, and pool `{}` of snapshot `{}` of {theirs}",
                pool.name, pool.object_size, snapshot.pool_name, snapshot.name
            );
            return Err(Refusal::precondition(message).remedy("clone into a pool with objects of the same size"));
        }
        Ok(())
    }

    /// Volumes are thin, so several may promise the same space; but one that could not be filled even if it were alone
    /// is refused.
    fn check_space(&self, pool: &Pool, more: u64, what: &str) -> Result<(), Refusal> {
        let free = available(&self.map, pool);
        if more <= free {
            return Ok(());
        }
        let message = format!("{what}, but pool `{}` has {} free ({free} bytes)", pool.name, human(free));
        Err(Refusal::new(ErrorCode::NoSpace, message).remedy("ask for less, add OSDs, or delete volumes"))
    }

    pub(crate) fn resize_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ResizeVolumeRequest,
    ) -> Outcome<ResizeVolumeReply> {
        let mut record = required(&turn.state, request.volume.as_ref())?;
        let size = whole_blocks(request.size)?;
        let name = called(&record);
        let volume = record.volume.get_or_insert_default();
        let now = volume.size;
        if size < now {
            let message = format!("{name} has {} and cannot shrink to {}", human(now), human(size));
            return Err(Refusal::precondition(message).remedy("make a smaller volume and copy the data").into());
        }
        if size > now {
            let pool = self.map.pools.get(&PoolId(volume.pool));
            let pool = pool.ok_or_else(|| Refusal::not_found("the pool of the volume is gone"))?;
            let what = format!("{name} would grow by {}", human(size - now));
            self.check_rules(pool, 0, size - now, &what)?;
            self.check_space(pool, size - now, &what)?;
            volume.size = size;
            self.tallies.entry(PoolId(volume.pool)).or_default().provisioned += size - now;
            self.write_volume(turn, &record);
        }
        Ok(ResizeVolumeReply { volume: Some(shown(&record)) })
    }

    pub(crate) fn delete_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: &DeleteVolumeRequest,
    ) -> Outcome<DeleteVolumeReply> {
        let Some(record) = find(&turn.state, request.volume.as_ref())? else {
            return Ok(DeleteVolumeReply::default());
        };
        let volume = shown(&record);
        if let Some(holder) = volume.attachments.first() {
            let message = format!("{} is attached to node `{}`", called(&record), holder.node);
            return Err(Refusal::precondition(message).remedy("detach it first").into());
        }
        if let Some(node) = volume.published_nodes.first() {
            let message = format!("{} is published to node `{node}`", called(&record));
            return Err(Refusal::precondition(message).remedy("unpublish it first").into());
        }
        turn.state.delete(keys::volume_name(&volume.name));
        let retention_s = if request.now { 0 } else { self.retention_of(&volume) };
        if retention_s > 0 {
            let trashed = Some(self.put_in_trash(turn, record, retention_s));
            return Ok(DeleteVolumeReply { existed: true, trashed });
        }
        self.destroy(turn, record)?;
        Ok(DeleteVolumeReply { existed: true, trashed: None })
    }

    /// The volume is gone, its data as soon as every primary has removed it; where it has snapshots, when those have gone.
    /// Its name was taken from it before.
    pub(crate) fn destroy(&mut self, turn: &mut Turn<'_>, mut record: VolumeRecord) -> Outcome<()> {
        let volume = shown(&record);
        self.tallies.entry(PoolId(volume.pool)).or_default().remove(&volume);
        if volume.snapshots > 0 {
            record.retired = true;
            self.write_volume(turn, &record);
        } else {
            self.purge_volume(turn, &mut record);
        }
        // What a retired volume's snapshots read they hold themselves.
        self.unpin(turn, &volume.parents)
    }

    /// Nobody needs anything of it any more.
    pub(crate) fn purge_volume(&mut self, turn: &mut Turn<'_>, record: &mut VolumeRecord) {
        let id = VolumeId(record.volume.as_ref().map_or(0, |volume| volume.id));
        if record.next_generation <= 1 {
            turn.state.delete(keys::volume(id));
            if self.map.volumes.remove(&id).is_some() {
                turn.touched.volumes.insert(id);
            }
        } else {
            record.deleting = true;
            self.write_volume(turn, record);
        }
    }

    pub(crate) fn report_purged(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ReportPurgedRequest,
    ) -> Outcome<ReportPurgedReply> {
        let (id, reporter) = (VolumeId(request.volume), OsdId(request.reporter));
        self.check_alive(reporter, Incarnation(request.incarnation))?;
        let pg: PgId = request.pg.unwrap_or_default().into();
        let Some(mut record) = record::volume(&turn.state, id)? else {
            return Ok(ReportPurgedReply {});
        };
        let pool = PoolId(record.volume.as_ref().map_or(0, |volume| volume.pool));
        if !request.snapshots.is_empty() && !record.deleting {
            self.check_primary(pg, reporter)?;
            self.snapshots_joined(turn, pg, request)?;
            return Ok(ReportPurgedReply {});
        }
        if !record.deleting || pg.pool != pool || !request.snapshots.is_empty() {
            let message = format!("{} is not being purged from placement group {pg}", called(&record));
            return Err(Refusal::precondition(message).into());
        }
        self.check_primary(pg, reporter)?;
        if !record.purged.contains(&pg.index) {
            record.purged.push(pg.index);
            record.purged.sort_unstable();
        }
        let all = PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX };
        if record.purged.len() < self.map.pgs.range(all).count() {
            self.write_volume(turn, &record);
            return Ok(ReportPurgedReply {});
        }
        // Snapshots that were on their way out went with it.
        for mark in &record.snapshots {
            let snapshot = record::snapshot(&turn.state, SnapId(mark.id))?;
            turn.state.delete(keys::snapshot(SnapId(mark.id)));
            self.unpin(turn, &snapshot.unwrap_or_default().parents)?;
        }
        turn.state.delete(keys::volume(id));
        self.map.volumes.remove(&id);
        turn.touched.volumes.insert(id);
        Ok(ReportPurgedReply {})
    }

    fn check_primary(&self, pg: PgId, reporter: OsdId) -> Result<(), Refusal> {
        if self.map.pgs.get(&pg).and_then(|config| config.primary) == Some(reporter) {
            return Ok(());
        }
        Err(Refusal::precondition(format!("{reporter} is not the primary of placement group {pg}")))
    }
}

fn whole_blocks(size: u64) -> Result<u64, Refusal> {
    if size == 0 || size > LARGEST {
        let message = format!("a volume has 1 byte to {}, and not {size} bytes", human(LARGEST));
        return Err(Refusal::new(ErrorCode::OutOfRange, message));
    }
    Ok(size.next_multiple_of(BLOCK_SIZE.into()))
}

pub(crate) fn check_name(what: &str, name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > 128 || name.chars().any(char::is_control) || name.trim() != name {
        let message = format!("`{}` cannot be the name of a {what}", name.escape_debug());
        return Err(Refusal::invalid(message).remedy("use 1 to 128 bytes of printable text"));
    }
    Ok(())
}

fn source_id(source: &SnapshotRecord) -> u64 {
    source.snapshot.as_ref().map_or(0, |snapshot| snapshot.id)
}

/// A name is taken: by the same volume, asked for again, or by another one.
fn check_same(
    existing: &Volume,
    request: &CreateVolumeRequest,
    source: u64,
    pool: &Pool,
    size: u64,
) -> Result<(), Refusal> {
    let theirs = existing.parents.first().map_or(0, |parent| parent.snapshot);
    let differs = if existing.pool != pool.id.0 {
        format!("it is in pool `{}` and not in `{}`", existing.pool_name, pool.name)
    } else if existing.size != size {
        format!("it has {} bytes and not {size}", existing.size)
    } else if theirs != source {
        "it was made of something else".to_owned()
    } else if existing.labels != request.labels {
        "its labels are others".to_owned()
    } else if existing.retention_s != request.retention_s {
        "it is kept for another time once it is deleted".to_owned()
    } else if existing.limits.unwrap_or_default() != request.limits.unwrap_or_default() {
        "its limits are others".to_owned()
    } else {
        return Ok(());
    };
    let message = format!("there is a volume `{}` already, and {differs}", existing.name);
    Err(Refusal::new(ErrorCode::AlreadyExists, message).remedy("choose another name, or ask for the same"))
}
