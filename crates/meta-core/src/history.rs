//! What changed in the cluster map, epoch by epoch, for watchers that know an older one.
//!
//! Only the names of what changed are kept, in memory and bounded; an update carries the present values, so it leads
//! from any known epoch straight to the newest. A watcher older than the history gets the whole map.

use std::collections::{BTreeSet, VecDeque};

use cairn_proto::convert::uuid_to;
use cairn_proto::meta::MapUpdate;
use cairn_types::map::ClusterMap;
use cairn_types::{Epoch, OsdId, PgId, PoolId, VolumeId};

/// The most epochs remembered.
const EPOCHS: usize = 4096;
/// The most names remembered over all epochs.
const NAMES: usize = 200_000;

/// The parts of the map that some epochs touched, those removed too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) osds: BTreeSet<OsdId>,
    pub(crate) pools: BTreeSet<PoolId>,
    pub(crate) pgs: BTreeSet<PgId>,
    pub(crate) volumes: BTreeSet<VolumeId>,
    /// Every update carries the settings: this only makes an epoch of a change of theirs.
    pub(crate) settings: bool,
}

impl Touched {
    fn names(&self) -> usize {
        self.osds.len() + self.pools.len() + self.pgs.len() + self.volumes.len()
    }

    fn add(&mut self, other: &Self) {
        self.osds.extend(&other.osds);
        self.pools.extend(&other.pools);
        self.pgs.extend(&other.pgs);
        self.volumes.extend(&other.volumes);
        self.settings |= other.settings;
    }

    /// The present values of what was touched.
    pub(crate) fn update(&self, map: &ClusterMap) -> MapUpdate {
        let gone = |id: &VolumeId| !map.volumes.contains_key(id);
        MapUpdate {
            epoch: map.epoch.0,
            full: false,
            cluster: uuid_to(map.cluster),
            min_protocol: map.min_protocol.into(),
            osds: self.osds.iter().filter_map(|id| map.osds.get(id)).map(Into::into).collect(),
            pools: self.pools.iter().filter_map(|id| map.pools.get(id)).map(Into::into).collect(),
            pgs: self.pgs.iter().filter_map(|id| map.pgs.get(id).map(|pg| (*id, pg).into())).collect(),
            volumes: self.volumes.iter().filter_map(|id| map.volumes.get(id).map(|v| (*id, v).into())).collect(),
            removed_osds: self.osds.iter().filter(|id| !map.osds.contains_key(id)).map(|id| id.0).collect(),
            removed_pools: self.pools.iter().filter(|id| !map.pools.contains_key(id)).map(|id| id.0).collect(),
            settings: Some((&map.settings).into()),
            removed_volumes: self.volumes.iter().filter(|id| gone(id)).map(|id| id.0).collect(),
        }
    }
}

/// The latest epochs, oldest first, without gaps.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    epochs: VecDeque<(Epoch, Touched)>,
    names: usize,
}

impl History {
    pub(crate) fn push(&mut self, epoch: Epoch, touched: Touched) {
        self.names += touched.names();
        self.epochs.push_back((epoch, touched));
        while self.epochs.len() > EPOCHS || (self.names > NAMES && self.epochs.len() > 1) {
            let (_, oldest) = self.epochs.pop_front().expect("it is not empty");
            self.names -= oldest.names();
        }
    }

    /// Everything touched after `epoch`; `None` when that is not remembered.
    pub(crate) fn since(&self, epoch: Epoch) -> Option<Touched> {
        let (oldest, _) = self.epochs.front()?;
        if epoch.next() < *oldest {
            return None;
        }
        let mut touched = Touched::default();
        for (at, more) in self.epochs.iter().rev() {
            if *at <= epoch {
                break;
            }
            touched.add(more);
        }
        Some(touched)
    }
}
