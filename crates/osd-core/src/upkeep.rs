//! What the map asks of every primary of a pool besides serving: which volumes are to be emptied, and of which volumes
//! snapshots are going. Sorted out once for each map, because every primary looks at it in each of its steps.

use std::collections::{BTreeMap, BTreeSet};

use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::{PoolId, SnapId, VolumeId};

/// What there is to be done for the volumes of one pool.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    /// Volumes that are deleted.
    pub(crate) purging: BTreeSet<VolumeId>,
    /// Snapshots that are going, of volumes that stay.
    pub(crate) going: BTreeMap<VolumeId, BTreeSet<SnapId>>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Upkeep(BTreeMap<PoolId, Chores>);

impl Upkeep {
    /// As the map shows it.
    pub(crate) fn of(map: &ClusterMap) -> Self {
        let mut upkeep = BTreeMap::<PoolId, Chores>::new();
        for (volume, fence) in &map.volumes {
            if fence.purging {
                upkeep.entry(fence.pool).or_default().purging.insert(*volume);
                continue;
            }
            for (id, _) in fence.snapshots.iter().filter(|(_, phase)| **phase == SnapPhase::Going) {
                upkeep.entry(fence.pool).or_default().going.entry(*volume).or_default().insert(*id);
            }
        }
        Self(upkeep)
    }

    /// Of one pool; `None` when there is nothing to be done.
    pub(crate) fn chores(&self, pool: PoolId) -> Option<&Chores> {
        self.0.get(&pool)
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::map::VolumeFence;

    use super::*;

    #[test]
    fn a_pool_without_work_has_no_chores() {
        let fence = |pool, purging, phases: &[(u64, SnapPhase)]| VolumeFence {
            pool: PoolId(pool),
            purging,
            snapshots: phases.iter().map(|(id, phase)| (SnapId(*id), *phase)).collect(),
            ..VolumeFence::default()
        };
        let map = ClusterMap {
            volumes: BTreeMap::from([
                (VolumeId(1), fence(1, false, &[(4, SnapPhase::Ready), (5, SnapPhase::Taking)])),
                (VolumeId(2), fence(2, false, &[(6, SnapPhase::Going), (7, SnapPhase::Ready), (8, SnapPhase::Going)])),
                (VolumeId(3), fence(2, true, &[(9, SnapPhase::Going)])),
            ]),
            ..ClusterMap::default()
        };
        let upkeep = Upkeep::of(&map);
        assert!(upkeep.chores(PoolId(1)).is_none());
        let chores = upkeep.chores(PoolId(2)).expect("two of its volumes are at work");
        assert_eq!(chores.purging, BTreeSet::from([VolumeId(3)]));
        assert_eq!(chores.going, BTreeMap::from([(VolumeId(2), BTreeSet::from([SnapId(6), SnapId(8)]))]));
    }
}
