//! The cluster map: who stores what. One value of it is one epoch; Raft decides the next.
//!
//! The map is a plain value. Placement reads it as a pure function; OSDs and clients follow it by watch.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::peer::LogPoint;
use crate::volume::VolumeLimits;
use crate::{ConfVersion, Epoch, Generation, Incarnation, OsdId, PgId, PoolId, SnapId, VolumeId};

/// Everything an OSD or a client must know to find data and to refuse what is stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Rises with every change.
    pub epoch: Epoch,
    /// Fixed for the life of the cluster.
    pub cluster: Uuid,
    /// The lowest data-path protocol version that may still be spoken.
    pub min_protocol: u16,
    /// All OSDs that exist, dead ones too until they are removed.
    pub osds: BTreeMap<OsdId, Osd>,
    /// All pools.
    pub pools: BTreeMap<PoolId, Pool>,
    /// The configuration of every PG of every pool.
    pub pgs: BTreeMap<PgId, PgConfig>,
    /// What each volume's fence lets through; a volume without attachments has an empty set.
    pub volumes: BTreeMap<VolumeId, VolumeFence>,
    /// What the administrator set for the whole cluster.
    pub settings: Settings,
}

/// How data may move, for the whole cluster. The flags are for maintenance: each stops something the cluster does by
/// itself, until it is unset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// An OSD that stays down stays in placement.
    pub noout: bool,
    /// A PG that has all its copies stays where it is.
    pub norebalance: bool,
    /// An OSD that joins stays out of placement.
    pub noin: bool,
    /// The balancer makes no exceptions by itself.
    pub nobalance: bool,
    /// A pool that has too few PGs for its OSDs keeps them.
    pub noautoscale: bool,
    /// After this many seconds a down OSD is taken out of placement.
    pub down_out_s: u32,
    /// The most PGs that may be filled from nothing at one OSD, and by one primary. PGs that have all their copies and
    /// only move get half of it.
    pub backfills: u32,
    /// Recovery and movement give way when clients wait longer than this, in milliseconds.
    pub client_latency_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            noout: false,
            norebalance: false,
            noin: false,
            nobalance: false,
            noautoscale: false,
            down_out_s: 600,
            backfills: 8,
            client_latency_ms: 20,
        }
    }
}

impl Settings {
    /// How many PGs may be filled at one OSD. `urgent`: of those that lack a copy.
    #[must_use]
    pub fn fills(&self, urgent: bool) -> u32 {
        if urgent { self.backfills.max(1) } else { (self.backfills / 2).max(1) }
    }

    /// The flags that are set, by the words that set them.
    #[must_use]
    pub fn flags(&self) -> Vec<&'static str> {
        let all = [
            (self.noout, "noout"),
            (self.norebalance, "norebalance"),
            (self.noin, "noin"),
            (self.nobalance, "nobalance"),
            (self.noautoscale, "noautoscale"),
        ];
        all.into_iter().filter(|(set, _)| *set).map(|(_, word)| word).collect()
    }
}

/// One OSD as the map knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Osd {
    /// Its number.
    pub id: OsdId,
    /// The identity written on its disk (I16).
    pub uuid: Uuid,
    /// The life that is registered now.
    pub incarnation: Incarnation,
    /// The highest incarnation proven dead: it exited, or a later one registered.
    pub dead_through: Incarnation,
    /// Where it listens: `unix:/path` or `tcp:address:port`; a dialler takes the first it can use.
    pub addresses: Vec<String>,
    /// Serving, as far as is known.
    pub up: bool,
    /// Placement counts it. Out = its data moves elsewhere.
    pub placed: bool,
    /// Placement weight, 1.0 = 1 TiB, in 1/65536.
    pub weight: u32,
    /// Where it stands.
    pub location: Location,
    /// "ssd", "hdd", "nvme", ...; pools may ask for one.
    pub device_class: String,
    /// Bytes it can store.
    pub capacity: u64,
    /// Bytes it said it stores, at its last report.
    pub used: u64,
    /// The newest epoch it has durably acknowledged.
    pub acked_epoch: Epoch,
}

/// Weight of an OSD of 1 TiB.
pub const WEIGHT_ONE: u32 = 1 << 16;

/// The place of an OSD in the failure-domain tree root > zone > rack > host > osd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    /// Default "default".
    pub zone: String,
    /// Default "default".
    pub rack: String,
    /// The machine.
    pub host: String,
}

/// The level at which two replicas of one object must differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FailureDomain {
    /// Different daemons are enough: survives a disk, not a machine.
    Osd,
    /// Different machines: the default.
    Host,
    /// Different racks.
    Rack,
    /// Different zones.
    Zone,
}

impl FailureDomain {
    /// The word users write.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Osd => "osd",
            Self::Host => "host",
            Self::Rack => "rack",
            Self::Zone => "zone",
        }
    }
}

impl std::str::FromStr for FailureDomain {
    type Err = UnknownFailureDomain;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "osd" => Ok(Self::Osd),
            "host" => Ok(Self::Host),
            "rack" => Ok(Self::Rack),
            "zone" => Ok(Self::Zone),
            other => Err(UnknownFailureDomain(other.to_owned())),
        }
    }
}

/// A failure domain that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a failure domain; use one of osd, host, rack, zone")]
pub struct UnknownFailureDomain(pub String);

/// A pool: redundancy and placement shared by many volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its number.
    pub id: PoolId,
    /// Unique.
    pub name: String,
    /// Copies of each object.
    pub size: u32,
    /// Copies without which the pool serves no I/O.
    pub min_size: u32,
    /// Where copies must differ.
    pub failure_domain: FailureDomain,
    /// Only OSDs of this class, if any is named.
    pub device_class: Option<String>,
    /// Bytes per object, a power of two.
    pub object_size: u32,
    /// PGs, a power of two; splits only double it.
    pub pg_count: u32,
    /// What `pg_count` is to be. While it is more, each PG splits in two by itself, when it is ready; when all have, there
    /// are twice as many.
    pub pg_target: u32,
}

impl Pool {
    /// The PGs split at present.
    #[must_use]
    pub fn is_splitting(&self) -> bool {
        self.pg_target > self.pg_count
    }

    /// How many PGs there are when all have split that do so at present.
    #[must_use]
    pub fn next_pg_count(&self) -> u32 {
        if self.is_splitting() { self.pg_count * 2 } else { self.pg_count }
    }
}

/// Who serves one PG, as one compare-and-swap in Raft left it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgConfig {
    /// Its version.
    pub c: ConfVersion,
    /// The `c` at which the present primary's interval began. A request is refused as stale only when it knows
    /// an older interval (I7).
    pub interval: ConfVersion,
    /// The one member that orders writes. None: no member of the in-sync set is up.
    pub primary: Option<OsdId>,
    /// The in-sync set: every member has every acknowledged write.
    pub isr: Vec<OsdId>,
    /// The in-sync set and the members catching up by log or dirty extents: these receive every write.
    pub acting: Vec<OsdId>,
    /// Members that are being filled from nothing.
    pub backfill: Vec<OsdId>,
    /// What placement wants.
    pub up: Vec<OsdId>,
    /// Where this PG was split off another, for ever.
    pub born: Option<Born>,
}

/// How a PG began that was split off another: with what every in-sync member of that one had, and it had nothing open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Born {
    /// The number of the PG that it was split off, in the same pool.
    pub from: u32,
    /// The first configuration of both after the split.
    pub c: ConfVersion,
    /// The end of the log at the split: everything through it is committed, and on every in-sync member.
    pub at: LogPoint,
}

/// What the OSDs let through for one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFence {
    /// The pool that holds its objects.
    pub pool: PoolId,
    /// Requests carry one of these or are refused (I8).
    pub generations: BTreeSet<Generation>,
    /// The subset that may only read.
    pub read_only: BTreeSet<Generation>,
    /// The volume is deleted: primaries remove its objects and report each PG purged.
    pub purging: bool,
    /// Its snapshots, those that are being taken and those that are going included.
    pub snapshots: BTreeMap<SnapId, SnapPhase>,
    /// What its holders keep to. OSDs do not look at it.
    pub limits: VolumeLimits,
}

/// Where a snapshot stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SnapPhase {
    /// Its holders are finishing what they have under way; from then on they write with its context.
    Taking,
    /// It holds what was acknowledged before; nobody writes with an older context any more.
    Ready,
    /// It is deleted, or could not be taken: what was written after it is joined with what was written before.
    Going,
}

impl VolumeFence {
    /// The context that every writer has at least.
    #[must_use]
    pub fn oldest_context(&self) -> SnapId {
        let ready = self.snapshots.iter().rev().find(|(_, phase)| **phase == SnapPhase::Ready);
        ready.map_or(SnapId(0), |(id, _)| *id)
    }

    /// The newest snapshot that is or will be, of those up to this one; 0 when there is none.
    #[must_use]
    pub fn newest_through(&self, through: SnapId) -> SnapId {
        let mut older = self.snapshots.range(..=through).rev();
        older.find(|(_, phase)| **phase != SnapPhase::Going).map_or(SnapId(0), |(id, _)| *id)
    }

    /// The layers that an object may have below a view, lowest first: what was written before the first snapshot, and
    /// what was written after each of them.
    pub fn layers_below(&self, view: SnapId) -> impl Iterator<Item = SnapId> + '_ {
        std::iter::once(SnapId(0)).chain(self.snapshots.range(..view).map(|(id, _)| *id))
    }
}

impl ClusterMap {
    /// The configuration of the PG that an object lies in, with its id.
    ///
    /// `None` when the pool is unknown at this epoch.
    #[must_use]
    pub fn pg_of(&self, pool: PoolId, hash: u64) -> Option<(PgId, &PgConfig)> {
        let of = |count| {
            let pg = PgId { pool, index: pg_index(hash, count) };
            self.pgs.get(&pg).map(|config| (pg, config))
        };
        let pool = self.pools.get(&pool)?;
        // A half that is not there yet is still in the whole.
        of(pool.next_pg_count()).or_else(|| of(pool.pg_count))
    }

    /// In how many parts the pool's objects lie, of which this PG is one: its objects are those whose hash leaves the PG's
    /// number when it is divided by this.
    #[must_use]
    pub fn parts(&self, pg: PgId) -> u32 {
        let Some(pool) = self.pools.get(&pg.pool) else { return 1 };
        let half = PgId { index: pg.index + pool.pg_count, ..pg };
        let is_split = pg.index >= pool.pg_count || self.pgs.contains_key(&half);
        if is_split { pool.next_pg_count() } else { pool.pg_count }
    }

    /// Whether an OSD is down, and out of placement besides: nobody counts on its disk any more.
    #[must_use]
    pub fn is_gone(&self, osd: OsdId) -> bool {
        self.osds.get(&osd).is_none_or(|osd| !osd.placed && (!osd.up || osd.incarnation <= osd.dead_through))
    }

    /// Whether this incarnation of an OSD is proven dead.
    #[must_use]
    pub fn is_dead(&self, osd: OsdId, incarnation: Incarnation) -> bool {
        self.osds.get(&osd).is_none_or(|o| incarnation <= o.dead_through)
    }
}

/// The PG of a hash: its low bits, so that doubling `pg_count` splits each PG in two.
#[must_use]
pub fn pg_index(hash: u64, pg_count: u32) -> u32 {
    debug_assert!(pg_count.is_power_of_two());
    (hash & u64::from(pg_count - 1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_the_pgs_splits_each_in_two() {
        for hash in [0u64, 7, 0xdead_beef, u64::MAX] {
            let coarse = pg_index(hash, 16);
            let fine = pg_index(hash, 32);
            assert_eq!(fine % 16, coarse);
        }
    }

    #[test]
    fn an_unknown_failure_domain_names_the_choices() {
        let error = "node".parse::<FailureDomain>().unwrap_err();
        assert_eq!(error.to_string(), "`node` is not a failure domain; use one of osd, host, rack, zone");
    }
}
