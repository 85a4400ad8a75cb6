//! Between the messages of `cairn.meta.v1` and the checked nouns of `cairn_types`: OSDs, pools, PGs, volumes, and
//! the cluster map with its deltas.
//!
//! Towards messages it cannot fail. From messages it fails with a sentence, because they came off a wire or a disk.
//! Nothing here decides anything.

use cairn_types::map::{
    Born, ClusterMap, FailureDomain, Location, Osd, PgConfig, Pool, Settings, SnapPhase, UnknownFailureDomain,
    VolumeFence,
};
use cairn_types::peer::LogPoint;
use cairn_types::volume::{AttachMode, Attachment, Volume, VolumeLimits, VolumeSpec};
use cairn_types::{
    ConfVersion, Epoch, Generation, Incarnation, NodeName, OsdId, PgId, PoolId, SessionId, SnapId, Version, VolumeId,
};
use uuid::Uuid;

use crate::meta;

/// Why a message is not what it claims to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field without which the message means nothing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// An identifier of the wrong length.
    #[error("{what} must have 16 bytes and has {len}")]
    NotSixteenBytes {
        /// Which field.
        what: &'static str,
        /// As received.
        len: usize,
    },
    /// A word that names no failure domain.
    #[error(transparent)]
    FailureDomain(#[from] UnknownFailureDomain),
    /// A number outside its range.
    #[error("{what} is {value}, which is out of range")]
    OutOfRange {
        /// Which field.
        what: &'static str,
        /// As received.
        value: u64,
    },
    /// A delta that does not continue the map at hand: ask again from the map's own epoch.
    #[error("the map update is a delta, but there is no map yet to apply it to")]
    DeltaWithoutMap,
}

/// Reads a 16-byte identifier.
///
/// # Errors
/// When it has another length.
pub fn uuid_from(what: &'static str, bytes: &[u8]) -> Result<Uuid, ConvertError> {
    Uuid::from_slice(bytes).map_err(|_| ConvertError::NotSixteenBytes { what, len: bytes.len() })
}

/// Writes a 16-byte identifier.
#[must_use]
pub fn uuid_to(uuid: Uuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(uuid.as_bytes())
}

/// Reads a data session's id: 16 bytes, big endian.
///
/// # Errors
/// When it has another length.
pub fn session_from(bytes: &[u8]) -> Result<SessionId, ConvertError> {
    uuid_from("a session id", bytes).map(|id| SessionId(id.as_u128()))
}

/// Writes a data session's id.
#[must_use]
pub fn session_to(session: SessionId) -> bytes::Bytes {
    uuid_to(Uuid::from_u128(session.0))
}

impl From<PgId> for meta::PgId {
    fn from(pg: PgId) -> Self {
        Self { pool: pg.pool.0, index: pg.index }
    }
}

impl From<meta::PgId> for PgId {
    fn from(pg: meta::PgId) -> Self {
        Self { pool: PoolId(pg.pool), index: pg.index }
    }
}

impl From<&Location> for meta::Location {
    fn from(place: &Location) -> Self {
        Self { zone: place.zone.clone(), rack: place.rack.clone(), host: place.host.clone() }
    }
}

impl From<meta::Location> for Location {
    /// An unnamed level is called "default".
    fn from(place: meta::Location) -> Self {
        let named = |text: String| if text.is_empty() { "default".to_owned() } else { text };
        Self { zone: named(place.zone), rack: named(place.rack), host: named(place.host) }
    }
}

impl From<&Osd> for meta::Osd {
    fn from(osd: &Osd) -> Self {
        Self {
            id: osd.id.0,
            uuid: uuid_to(osd.uuid),
            incarnation: osd.incarnation.0,
            dead_through: osd.dead_through.0,
            addresses: osd.addresses.clone(),
            up: osd.up,
            placed: osd.placed,
            weight: osd.weight,
            location: Some((&osd.location).into()),
            device_class: osd.device_class.clone(),
            capacity: osd.capacity,
            used: osd.used,
            acked_epoch: osd.acked_epoch.0,
        }
    }
}

impl TryFrom<meta::Osd> for Osd {
    type Error = ConvertError;
    fn try_from(osd: meta::Osd) -> Result<Self, ConvertError> {
        Ok(Self {
            id: OsdId(osd.id),
            uuid: uuid_from("an OSD's uuid", &osd.uuid)?,
            incarnation: Incarnation(osd.incarnation),
            dead_through: Incarnation(osd.dead_through),
            addresses: osd.addresses,
            up: osd.up,
            placed: osd.placed,
            weight: osd.weight,
            location: osd.location.ok_or(ConvertError::Missing("an OSD's location"))?.into(),
            device_class: osd.device_class,
            capacity: osd.capacity,
            used: osd.used,
            acked_epoch: Epoch(osd.acked_epoch),
        })
    }
}

impl From<&Pool> for meta::Pool {
    fn from(pool: &Pool) -> Self {
        Self {
            id: pool.id.0,
            name: pool.name.clone(),
            size: pool.size,
            min_size: pool.min_size,
            failure_domain: pool.failure_domain.as_str().to_owned(),
            device_class: pool.device_class.clone().unwrap_or_default(),
            object_size: pool.object_size,
            pg_count: pool.pg_count,
            pg_target: pool.pg_target,
        }
    }
}

impl TryFrom<meta::Pool> for Pool {
    type Error = ConvertError;
    fn try_from(pool: meta::Pool) -> Result<Self, ConvertError> {
        let power = |what, value: u32| match value.is_power_of_two() {
            true => Ok(value),
            false => Err(ConvertError::OutOfRange { what, value: value.into() }),
        };
        Ok(Self {
            id: PoolId(pool.id),
            name: pool.name,
            size: pool.size,
            min_size: pool.min_size,
            failure_domain: pool.failure_domain.parse::<FailureDomain>()?,
            device_class: Some(pool.device_class).filter(|class| !class.is_empty()),
            object_size: power("a pool's object size", pool.object_size)?,
            pg_count: power("a pool's number of PGs", pool.pg_count)?,
            pg_target: power("the number of PGs that a pool is to have", pool.pg_target.max(pool.pg_count))?,
        })
    }
}

fn numbers(osds: &[OsdId]) -> Vec<u32> {
    osds.iter().map(|osd| osd.0).collect()
}

fn osds(numbers: Vec<u32>) -> Vec<OsdId> {
    numbers.into_iter().map(OsdId).collect()
}

impl From<(PgId, &PgConfig)> for meta::Pg {
    fn from((id, pg): (PgId, &PgConfig)) -> Self {
        Self {
            id: Some(id.into()),
            c: pg.c.0,
            interval: pg.interval.0,
            primary: pg.primary.map(|osd| osd.0),
            isr: numbers(&pg.isr),
            acting: numbers(&pg.acting),
            backfill: numbers(&pg.backfill),
            up: numbers(&pg.up),
            born: pg.born.map(Into::into),
        }
    }
}

impl From<Born> for meta::PgBorn {
    fn from(born: Born) -> Self {
        Self { from: born.from, c: born.c.0, at: Some(born.at.into()) }
    }
}

impl From<meta::PgBorn> for Born {
    fn from(born: meta::PgBorn) -> Self {
        Self { from: born.from, c: ConfVersion(born.c), at: born.at.unwrap_or_default().into() }
    }
}

impl From<LogPoint> for meta::LogPoint {
    fn from(point: LogPoint) -> Self {
        Self { c: point.version.c.0, seq: point.version.seq, hash: point.hash }
    }
}

impl From<meta::LogPoint> for LogPoint {
    fn from(point: meta::LogPoint) -> Self {
        Self { version: Version { c: ConfVersion(point.c), seq: point.seq }, hash: point.hash }
    }
}

impl TryFrom<meta::Pg> for (PgId, PgConfig) {
    type Error = ConvertError;
    fn try_from(pg: meta::Pg) -> Result<Self, ConvertError> {
        let id = pg.id.ok_or(ConvertError::Missing("a PG's id"))?.into();
        let config = PgConfig {
            c: ConfVersion(pg.c),
            interval: ConfVersion(pg.interval),
            primary: pg.primary.map(OsdId),
            isr: osds(pg.isr),
            acting: osds(pg.acting),
            backfill: osds(pg.backfill),
            up: osds(pg.up),
            born: pg.born.map(Into::into),
        };
        Ok((id, config))
    }
}

impl From<(VolumeId, &VolumeFence)> for meta::VolumeFence {
    fn from((volume, fence): (VolumeId, &VolumeFence)) -> Self {
        Self {
            volume: volume.0,
            pool: fence.pool.0,
            generations: fence.generations.iter().map(|g| g.0).collect(),
            read_only: fence.read_only.iter().map(|g| g.0).collect(),
            purging: fence.purging,
            snapshots: fence.snapshots.iter().map(|(id, phase)| snapshot_mark(*id, *phase)).collect(),
            limits: Some(fence.limits.into()).filter(|limits| *limits != meta::VolumeLimits::default()),
        }
    }
}

impl From<meta::VolumeFence> for (VolumeId, VolumeFence) {
    fn from(fence: meta::VolumeFence) -> Self {
        let config = VolumeFence {
            pool: PoolId(fence.pool),
            generations: fence.generations.into_iter().map(Generation).collect(),
            read_only: fence.read_only.into_iter().map(Generation).collect(),
            purging: fence.purging,
            snapshots: fence.snapshots.iter().map(|mark| (SnapId(mark.id), snap_phase(mark.phase()))).collect(),
            limits: fence.limits.unwrap_or_default().into(),
        };
        (VolumeId(fence.volume), config)
    }
}

/// A snapshot's place in the list of its volume.
#[must_use]
pub fn snapshot_mark(id: SnapId, phase: SnapPhase) -> meta::SnapshotMark {
    let phase = match phase {
        SnapPhase::Taking => meta::SnapshotPhase::Taking,
        SnapPhase::Ready => meta::SnapshotPhase::Ready,
        SnapPhase::Going => meta::SnapshotPhase::Going,
    };
    meta::SnapshotMark { id: id.0, phase: phase.into() }
}

/// Where a snapshot stands; one of an unknown phase is on its way.
#[must_use]
pub fn snap_phase(phase: meta::SnapshotPhase) -> SnapPhase {
    match phase {
        meta::SnapshotPhase::Unspecified | meta::SnapshotPhase::Taking => SnapPhase::Taking,
        meta::SnapshotPhase::Ready => SnapPhase::Ready,
        meta::SnapshotPhase::Going => SnapPhase::Going,
    }
}

impl From<VolumeLimits> for meta::VolumeLimits {
    fn from(limits: VolumeLimits) -> Self {
        Self { iops: limits.iops, bandwidth: limits.bandwidth, burst_s: limits.burst_s }
    }
}

impl From<meta::VolumeLimits> for VolumeLimits {
    fn from(limits: meta::VolumeLimits) -> Self {
        Self { iops: limits.iops, bandwidth: limits.bandwidth, burst_s: limits.burst_s }
    }
}

impl From<AttachMode> for meta::AttachMode {
    fn from(mode: AttachMode) -> Self {
        match mode {
            AttachMode::Exclusive => Self::Exclusive,
            AttachMode::ReadOnly => Self::ReadOnly,
            AttachMode::Shared => Self::Shared,
        }
    }
}

impl TryFrom<meta::AttachMode> for AttachMode {
    type Error = ConvertError;
    fn try_from(mode: meta::AttachMode) -> Result<Self, ConvertError> {
        match mode {
            meta::AttachMode::Exclusive => Ok(Self::Exclusive),
            meta::AttachMode::ReadOnly => Ok(Self::ReadOnly),
            meta::AttachMode::Shared => Ok(Self::Shared),
            meta::AttachMode::Unspecified => Err(ConvertError::Missing("the attach mode")),
        }
    }
}

/// Reads an attach mode as it lies in a message.
///
/// # Errors
/// When it is unspecified or unknown.
pub fn attach_mode_from(mode: i32) -> Result<AttachMode, ConvertError> {
    meta::AttachMode::try_from(mode)
        .map_err(|_| ConvertError::OutOfRange { what: "the attach mode", value: mode as u64 })?
        .try_into()
}

impl From<&Attachment> for meta::Attachment {
    fn from(attachment: &Attachment) -> Self {
        Self {
            generation: attachment.generation.0,
            node: attachment.node.0.clone(),
            session: session_to(attachment.session),
            mode: meta::AttachMode::from(attachment.mode).into(),
        }
    }
}

impl TryFrom<meta::Attachment> for Attachment {
    type Error = ConvertError;
    fn try_from(attachment: meta::Attachment) -> Result<Self, ConvertError> {
        Ok(Self {
            generation: Generation(attachment.generation),
            node: NodeName(attachment.node),
            session: session_from(&attachment.session)?,
            mode: attach_mode_from(attachment.mode)?,
        })
    }
}

impl TryFrom<meta::Volume> for Volume {
    type Error = ConvertError;
    /// `next_generation` is the metadata service's own business and not in the message: here it is the newest
    /// attachment's successor.
    fn try_from(volume: meta::Volume) -> Result<Self, ConvertError> {
        let attachments: Result<Vec<Attachment>, _> = volume.attachments.into_iter().map(TryInto::try_into).collect();
        let attachments = attachments?;
        let newest = attachments.iter().map(|a| a.generation).max().unwrap_or_default();
        Ok(Self {
            id: VolumeId(volume.id),
            spec: VolumeSpec { name: volume.name, pool: PoolId(volume.pool), size: volume.size, labels: volume.labels },
            snap_context: SnapId(volume.snap_context),
            next_generation: newest.next(),
            attachments,
            created_at_s: volume.created_at_s,
        })
    }
}

impl From<&Settings> for meta::Settings {
    fn from(settings: &Settings) -> Self {
        Self {
            noout: settings.noout,
            norebalance: settings.norebalance,
            noin: settings.noin,
            nobalance: settings.nobalance,
            noautoscale: settings.noautoscale,
            down_out_s: settings.down_out_s,
            backfills: settings.backfills,
            client_latency_ms: settings.client_latency_ms,
        }
    }
}

impl From<meta::Settings> for Settings {
    /// A number that is 0 means its default.
    fn from(settings: meta::Settings) -> Self {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let usual = Self::default();
        Self {
            noout: settings.noout,
            norebalance: settings.norebalance,
            noin: settings.noin,
            nobalance: settings.nobalance,
            noautoscale: settings.noautoscale,
            down_out_s: or(settings.down_out_s, usual.down_out_s),
            backfills: or(settings.backfills, usual.backfills),
            client_latency_ms: or(settings.client_latency_ms, usual.client_latency_ms),
        }
    }
}

impl From<&ClusterMap> for meta::MapUpdate {
    /// The whole map.
    fn from(map: &ClusterMap) -> Self {
        Self {
            epoch: map.epoch.0,
            full: true,
            cluster: uuid_to(map.cluster),
            min_protocol: map.min_protocol.into(),
            osds: map.osds.values().map(Into::into).collect(),
            pools: map.pools.values().map(Into::into).collect(),
            pgs: map.pgs.iter().map(|(id, pg)| (*id, pg).into()).collect(),
            volumes: map.volumes.iter().map(|(id, fence)| (*id, fence).into()).collect(),
            settings: Some((&map.settings).into()),
            ..Self::default()
        }
    }
}

impl TryFrom<meta::MapUpdate> for ClusterMap {
    type Error = ConvertError;
    /// From a full update only.
    fn try_from(update: meta::MapUpdate) -> Result<Self, ConvertError> {
        if !update.full {
            return Err(ConvertError::DeltaWithoutMap);
        }
        let mut map = Self::default();
        apply_update(&mut map, update)?;
        Ok(map)
    }
}

/// Brings a map up to date. An update that is not newer than the map changes nothing: the answer says whether it did.
///
/// # Errors
/// When the update is malformed, or is a delta while the map is empty; the map is then as before.
pub fn apply_update(map: &mut ClusterMap, update: meta::MapUpdate) -> Result<bool, ConvertError> {
    let epoch = Epoch(update.epoch);
    let known = map.epoch != Epoch::default();
    if known && epoch <= map.epoch {
        return Ok(false);
    }
    if !update.full && !known {
        return Err(ConvertError::DeltaWithoutMap);
    }
    let min_protocol = u16::try_from(update.min_protocol).map_err(|_| ConvertError::OutOfRange {
        what: "the lowest data-path protocol",
        value: update.min_protocol.into(),
    })?;
    let cluster = uuid_from("the cluster's uuid", &update.cluster)?;
    let osds: Vec<Osd> = update.osds.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    let pools: Vec<Pool> = update.pools.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    let pgs: Vec<(PgId, PgConfig)> = update.pgs.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;

    if update.full {
        *map = ClusterMap::default();
    }
    map.epoch = epoch;
    map.cluster = cluster;
    map.min_protocol = min_protocol;
    for id in update.removed_osds {
        map.osds.remove(&OsdId(id));
    }
    for id in update.removed_pools {
        map.pools.remove(&PoolId(id));
        map.pgs.retain(|pg, _| pg.pool.0 != id);
    }
    for id in update.removed_volumes {
        map.volumes.remove(&VolumeId(id));
    }
    map.osds.extend(osds.into_iter().map(|osd| (osd.id, osd)));
    map.pools.extend(pools.into_iter().map(|pool| (pool.id, pool)));
    map.pgs.extend(pgs);
    if let Some(settings) = update.settings {
        map.settings = settings.into();
    }
    map.volumes.extend(update.volumes.into_iter().map(<(VolumeId, VolumeFence)>::from));
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn osd(id: u32) -> Osd {
        Osd {
            id: OsdId(id),
            uuid: Uuid::from_u128(u128::from(id) + 1),
            incarnation: Incarnation(3),
            dead_through: Incarnation(2),
            addresses: vec![format!("tcp:127.0.0.1:{}", 7000 + id)],
            up: true,
            placed: true,
            weight: 65536,
            location: Location { zone: "z".into(), rack: "r".into(), host: format!("h{id}") },
            device_class: "ssd".into(),
            capacity: 1 << 40,
            used: 17,
            acked_epoch: Epoch(4),
        }
    }

    fn sample() -> ClusterMap {
        let mut map =
            ClusterMap { epoch: Epoch(5), cluster: Uuid::from_u128(9), min_protocol: 1, ..Default::default() };
        map.osds.extend([0, 1].map(|id| (OsdId(id), osd(id))));
        let pool = Pool {
            id: PoolId(1),
            name: "default".into(),
            size: 2,
            min_size: 1,
            failure_domain: FailureDomain::Osd,
            device_class: None,
            object_size: 4 << 20,
            pg_count: 2,
            pg_target: 4,
        };
        for index in 0..2 {
            let config = PgConfig {
                c: ConfVersion(2),
                interval: ConfVersion(1),
                primary: Some(OsdId(index)),
                isr: vec![OsdId(0), OsdId(1)],
                acting: vec![OsdId(0), OsdId(1)],
                backfill: vec![],
                up: vec![OsdId(1), OsdId(0)],
                born: (index == 1).then_some(Born {
                    from: 0,
                    c: ConfVersion(1),
                    at: LogPoint { version: Version { c: ConfVersion(1), seq: 9 }, hash: 7 },
                }),
            };
            map.pgs.insert(PgId { pool: pool.id, index }, config);
        }
        map.pools.insert(pool.id, pool);
        let fence = VolumeFence {
            pool: PoolId(1),
            generations: [Generation(1), Generation(4)].into(),
            read_only: [Generation(4)].into(),
            purging: false,
            snapshots: [(SnapId(2), SnapPhase::Ready), (SnapId(5), SnapPhase::Taking)].into(),
            limits: VolumeLimits { iops: 100, bandwidth: 1 << 20, burst_s: 5 },
        };
        map.volumes.insert(VolumeId(7), fence);
        map
    }

    #[test]
    fn a_map_survives_the_way_through_messages() {
        let map = sample();
        assert_eq!(ClusterMap::try_from(meta::MapUpdate::from(&map)), Ok(map));
    }

    #[test]
    fn deltas_add_replace_and_remove() {
        let mut map = sample();
        let update = meta::MapUpdate {
            epoch: 6,
            cluster: uuid_to(map.cluster),
            min_protocol: 1,
            osds: vec![meta::Osd::from(&Osd { up: false, ..osd(1) })],
            removed_volumes: vec![7],
            ..Default::default()
        };
        assert_eq!(apply_update(&mut map, update.clone()), Ok(true));
        assert!(!map.osds[&OsdId(1)].up && map.osds[&OsdId(0)].up);
        assert!(map.volumes.is_empty());
        assert_eq!(map.pgs.len(), 2, "what a delta does not name stays");
        assert_eq!(apply_update(&mut map, update), Ok(false), "an epoch never comes back (I7)");
    }

    #[test]
    fn a_malformed_update_changes_nothing() {
        let mut map = sample();
        let before = map.clone();
        let mut update = meta::MapUpdate { epoch: 9, cluster: uuid_to(map.cluster), ..Default::default() };
        update.removed_volumes.push(7);
        update.osds.push(meta::Osd { uuid: bytes::Bytes::from_static(b"short"), ..(&osd(1)).into() });
        let error = apply_update(&mut map, update).unwrap_err();
        assert_eq!(error.to_string(), "an OSD's uuid must have 16 bytes and has 5");
        assert_eq!(map, before);
        let delta = meta::MapUpdate { epoch: 9, ..Default::default() };
        assert_eq!(apply_update(&mut ClusterMap::default(), delta), Err(ConvertError::DeltaWithoutMap));
    }
}
