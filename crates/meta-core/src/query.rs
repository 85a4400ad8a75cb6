//! Questions about the present state, answered without changing it: volumes, pools, nodes, usage, and whether a fence
//! holds. A driver that wants linearizable answers asks after a read index.

use std::collections::BTreeSet;

use cairn_proto::meta::{
    GetSnapshotReply, ListSnapshotsReply, ListSnapshotsRequest, ListVolumesReply, ListVolumesRequest, Location, Node,
    PoolStatus, Snapshot, SnapshotPhase, SnapshotRecord, SnapshotRef, Usage, Volume, VolumeRecord, VolumeRef,
    volume_ref,
};
use cairn_types::map::{ClusterMap, PgConfig, Pool};
use cairn_types::{Epoch, OsdId, PgId, PoolId, SnapId, VolumeId};

use crate::capacity::available;
use crate::machine::Machine;
use crate::pg::is_up;
use crate::plan;
use crate::pool::target_pgs;
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;
use crate::{keys, record, snapshot, volume};

/// The most volumes on one page.
pub const PAGE: usize = 1000;

/// What a fence still waits for. While anything is left, a holder fenced in that epoch might still be served somewhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FencePending {
    /// OSDs that are up, are members of the pool's PGs, and have not durably acknowledged the epoch. One that is down is
    /// not waited for: what it would take, it cannot commit without an in-sync member that knows.
    pub osds: Vec<OsdId>,
    /// PGs of which no in-sync member has durably acknowledged it. That a member is marked down is nothing here: it may
    /// be alive, and commit.
    pub pgs: Vec<PgId>,
}

impl FencePending {
    /// Nothing is left.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.osds.is_empty() && self.pgs.is_empty()
    }
}

/// What stands between a pool and a fence that was set up in `epoch`.
#[must_use]
pub fn fence_pending(map: &ClusterMap, pool: PoolId, epoch: Epoch) -> FencePending {
    let knows = |osd: &OsdId| map.osds.get(osd).is_some_and(|osd| osd.acked_epoch >= epoch);
    let mut late = BTreeSet::new();
    let mut pending = FencePending::default();
    for (id, pg) in pgs_of(map, pool) {
        late.extend(pg.acting.iter().chain(&pg.backfill).filter(|osd| is_up(map, **osd) && !knows(osd)));
        if !pg.isr.iter().any(knows) {
            pending.pgs.push(*id);
        }
    }
    pending.osds = late.into_iter().collect();
    pending
}

/// A volume by id or name. One that is in the trash, or being purged, is gone.
///
/// # Errors
/// When its record cannot be read.
pub fn volume(state: &dyn StateRead, by: &VolumeRef) -> Result<Option<Volume>, Corrupt> {
    Ok(volume::find(state, Some(by))?.map(|record| volume::shown(&record)))
}

/// The same; one that is missing is refused in words.
///
/// # Errors
/// When there is none, or its record cannot be read.
pub fn required_volume(state: &dyn StateRead, by: Option<&VolumeRef>) -> Outcome<Volume> {
    Ok(volume::shown(&volume::required(state, by)?))
}

/// Volumes in the order of their ids, a page at a time. A token names the last id of its page, so that it stays good
/// whatever is created or deleted meanwhile.
///
/// # Errors
/// When the token or the pool is unknown.
pub fn volumes(machine: &Machine, state: &dyn StateRead, request: &ListVolumesRequest) -> Outcome<ListVolumesReply> {
    let after = match request.page_token.as_str() {
        "" => 0,
        token => {
            let bad = |_| Refusal::invalid(format!("`{token}` is no page token")).remedy("start from the first page");
            token.parse::<u64>().map_err(bad)?
        }
    };
    let pool = match request.pool.as_str() {
        "" => None,
        name => {
            let found = machine.map.pools.values().find(|pool| pool.name == name);
            Some(found.ok_or_else(|| Refusal::not_found(format!("there is no pool `{name}`")))?.id)
        }
    };
    let asked = if request.page_size == 0 { PAGE } else { request.page_size as usize };
    let most = asked.min(PAGE);
    let mut reply = ListVolumesReply::default();
    let from = keys::volume(VolumeId(after.saturating_add(1)));
    record::each(state, keys::VOLUMES, &from, &mut |_, record: VolumeRecord| {
        let shown = volume::shown(&record);
        let has = |(key, value): (&String, &String)| shown.labels.get(key) == Some(value);
        if record.deleting
            || record.retired
            || shown.trashed.is_some() != request.trash
            || pool.is_some_and(|pool| pool.0 != shown.pool)
            || !request.labels.iter().all(has)
        {
            return Ok(true);
        }
        if reply.volumes.len() == most {
            reply.next_page_token = reply.volumes.last().map_or(String::new(), |last| last.id.to_string());
            return Ok(false);
        }
        reply.volumes.push(shown);
        Ok(true)
    })?;
    Ok(reply)
}

/// A snapshot by id or name.
///
/// # Errors
/// When its record cannot be read.
pub fn snapshot(
    machine: &Machine,
    state: &dyn StateRead,
    by: &SnapshotRef,
) -> Result<Option<GetSnapshotReply>, Corrupt> {
    let Some(record) = snapshot::find(state, Some(by))? else { return Ok(None) };
    let shown = snapshot::shown(&record);
    let object_size = machine.map().pools.get(&PoolId(shown.pool)).map_or(0, |pool| pool.object_size);
    let epoch = machine.map().epoch.0;
    Ok(Some(GetSnapshotReply { snapshot: Some(shown), parents: record.parents, object_size, epoch }))
}

/// A snapshot by id, whatever becomes of it, and whether it still waits for a writer.
///
/// # Errors
/// When its record cannot be read.
pub fn snapshot_on_its_way(state: &dyn StateRead, id: SnapId) -> Result<Option<(Snapshot, bool)>, Corrupt> {
    Ok(record::snapshot(state, id)?.map(|record| (snapshot::shown(&record), !record.awaited.is_empty())))
}

/// Snapshots in the order of their ids, of one volume or of all, a page at a time.
///
/// # Errors
/// When the token or the volume is unknown.
pub fn snapshots(state: &dyn StateRead, request: &ListSnapshotsRequest) -> Outcome<ListSnapshotsReply> {
    let after = match request.page_token.as_str() {
        "" => 0,
        token => {
            let bad = |_| Refusal::invalid(format!("`{token}` is no page token")).remedy("start from the first page");
            token.parse::<u64>().map_err(bad)?
        }
    };
    let volume = match &request.volume {
        None => None,
        // One that is deleted may have snapshots still.
        Some(VolumeRef { by: Some(volume_ref::By::Id(id)) }) => Some(*id),
        by => Some(volume::shown(&volume::required(state, by.as_ref())?).id),
    };
    let asked = if request.page_size == 0 { PAGE } else { request.page_size as usize };
    let most = asked.min(PAGE);
    let mut reply = ListSnapshotsReply::default();
    let from = keys::snapshot(SnapId(after.saturating_add(1)));
    record::each(state, keys::SNAPSHOTS, &from, &mut |_, record: SnapshotRecord| {
        let shown = snapshot::shown(&record);
        let hidden = record.retired || shown.phase() == SnapshotPhase::Going;
        if hidden || volume.is_some_and(|volume| volume != shown.volume) {
            return Ok(true);
        }
        if reply.snapshots.len() == most {
            reply.next_page_token = reply.snapshots.last().map_or(String::new(), |last| last.id.to_string());
            return Ok(false);
        }
        reply.snapshots.push(shown);
        Ok(true)
    })?;
    Ok(reply)
}

/// Whether a PG serves reads and writes, as far as the map shows.
pub(crate) fn is_active(map: &ClusterMap, pool: &Pool, pg: &PgConfig) -> bool {
    let living = pg.isr.iter().filter(|osd| is_up(map, **osd)).count();
    living >= pool.min_size as usize && pg.primary.is_some_and(|osd| is_up(map, osd))
}

/// Whether a PG has fewer in-sync copies than its pool wants.
pub(crate) fn is_degraded(map: &ClusterMap, pool: &Pool, pg: &PgConfig) -> bool {
    pg.isr.iter().filter(|osd| is_up(map, **osd)).count() < pool.size as usize
}

/// The PGs of a pool.
pub(crate) fn pgs_of(map: &ClusterMap, pool: PoolId) -> impl Iterator<Item = (&PgId, &PgConfig)> {
    map.pgs.range(PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX })
}

/// Every pool with what is in it and how its PGs are.
#[must_use]
pub fn pools(machine: &Machine) -> Vec<PoolStatus> {
    let map = &machine.map;
    let status = |pool: &Pool| {
        let tally = machine.tallies.get(&pool.id).copied().unwrap_or_default();
        let count = |test: &dyn Fn(&PgConfig) -> bool| pgs_of(map, pool.id).filter(|(_, pg)| test(pg)).count() as u32;
        PoolStatus {
            pool: Some(pool.into()),
            volumes: tally.volumes,
            provisioned: tally.provisioned,
            available: machine.allowed(pool).min(available(map, pool)),
            active_pgs: count(&|pg| is_active(map, pool, pg)),
            degraded_pgs: count(&|pg| is_degraded(map, pool, pg)),
            misplaced_pgs: count(&|pg| plan::is_misplaced(map, pool.size, pg)),
            target_pgs: target_pgs(map, pool),
            rules: Some(machine.rules.get(&pool.id).copied().unwrap_or_default()),
            trashed: tally.trashed,
            trashed_bytes: tally.trashed_bytes,
        }
    };
    map.pools.values().map(status).collect()
}

/// Sums over the cluster.
#[must_use]
pub fn usage(machine: &Machine) -> Usage {
    let placed = || machine.map.osds.values().filter(|osd| osd.placed);
    Usage {
        capacity: placed().map(|osd| osd.capacity).sum(),
        used: placed().map(|osd| osd.used).sum(),
        provisioned: machine.tallies.values().map(|tally| tally.provisioned).sum(),
        volumes: machine.tallies.values().map(|tally| tally.volumes).sum(),
    }
}

/// The nodes that `attach` runs on, with the OSDs on the same host.
///
/// # Errors
/// When a volume's record cannot be read.
pub fn nodes(machine: &Machine, state: &dyn StateRead) -> Result<Vec<Node>, Corrupt> {
    let mut nodes: Vec<Node> = machine
        .nodes
        .values()
        .map(|node| {
            let host = node.location.as_ref().map_or("", |place: &Location| &place.host);
            let here = machine.map.osds.values().filter(|osd| osd.location.host == host);
            Node {
                name: node.name.clone(),
                location: node.location.clone(),
                attached_volumes: 0,
                osds: here.map(|osd| osd.id.0).collect(),
                max_volumes: crate::attach::most_volumes(Some(node)),
            }
        })
        .collect();
    record::each(state, keys::VOLUMES, keys::VOLUMES, &mut |_, record: VolumeRecord| {
        for attachment in record.volume.iter().flat_map(|volume| &volume.attachments) {
            if let Ok(index) = nodes.binary_search_by(|node| node.name.cmp(&attachment.node)) {
                nodes[index].attached_volumes += 1;
            }
        }
        Ok(true)
    })?;
    Ok(nodes)
}
