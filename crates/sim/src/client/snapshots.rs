//! What a client does with snapshots: takes and deletes those of the volume it holds; or, if that is all it is for, reads
//! them.

use std::sync::Arc;
use std::time::Duration;

use cairn_client_core::{Config, Core, Timing};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    CreateSnapshotRequest, DeleteSnapshotRequest, SnapshotRef, VolumeRef, snapshot_ref, volume_ref,
};
use cairn_types::map::SnapPhase;
use cairn_types::{BLOCK_SIZE, Generation, PoolId, SessionId, SnapId, VolumeId};

use super::{Asked, BLOCKS, ClientHost, Holding, STATES, WINDOW};
use crate::bus::{Bus, Event, MS};
use crate::rng::Rng;

impl ClientHost {
    /// A snapshot of what it holds is taken, or one that was taken before is deleted.
    pub(super) fn snapshot(&mut self, bus: &mut Bus, volume: VolumeId) {
        let known = self.map.volumes.get(&volume).map(|fence| &fence.snapshots);
        let ready = known.into_iter().flatten().filter(|(_, phase)| **phase == SnapPhase::Ready).map(|(id, _)| *id);
        let ready = ready.collect::<Vec<_>>();
        if ready.len() >= 3 || (!ready.is_empty() && bus.rng.chance(300)) {
            let by = Some(snapshot_ref::By::Id(bus.rng.pick(&ready).0));
            let request = DeleteSnapshotRequest { mutation: None, snapshot: Some(SnapshotRef { by }) };
            self.caller.call(bus, Payload::DeleteSnapshot(request), Asked::Other);
        } else if !self.taking {
            self.taking = true;
            self.snapshots += 1;
            let request = CreateSnapshotRequest {
                mutation: None,
                name: format!("{}-{}", self.index, self.snapshots),
                volume: Some(VolumeRef { by: Some(volume_ref::By::Id(volume.0)) }),
                labels: Default::default(),
            };
            self.caller.call(bus, Payload::CreateSnapshot(request), Asked::Snapshot);
        }
    }

    /// The next snapshot to be read: at the end each of them whole, before that some of a few.
    pub(super) fn view_next(&mut self, bus: &mut Bus) {
        if self.is_working() && self.sweep.is_empty() && self.ops.is_empty() {
            self.holding = Holding::Nothing;
            self.volume = None;
            self.links.clear();
        }
        if !self.holds_nothing() {
            return;
        }
        let all = self.map.volumes.iter().flat_map(|(volume, fence)| fence.snapshots.iter().map(|s| (*volume, s)));
        let ready = all.filter(|(_, (_, phase))| **phase == SnapPhase::Ready).map(|(volume, (id, _))| (volume, *id));
        let ready = ready.collect::<Vec<_>>();
        let next = if self.resting {
            self.sweep = (0..=STATES).collect();
            self.to_view.pop()
        } else if ready.is_empty() {
            None
        } else {
            let hot = &self.profile.hot;
            let block = |rng: &mut Rng| if rng.chance(500) { *rng.pick(hot) } else { rng.below(BLOCKS) };
            self.sweep = (0..16).map(|_| block(&mut bus.rng)).collect();
            Some(*bus.rng.pick(&ready))
        };
        let Some((volume, view)) = next else {
            self.sweep.clear();
            return;
        };
        let pool = self.map.volumes.get(&volume).map_or(PoolId(0), |fence| fence.pool);
        self.session = u128::from(bus.rng.next()) << 64 | u128::from(bus.rng.next());
        self.volume = Some(volume);
        self.view = view;
        let older = ready.iter().rev().find(|(of, id)| *of == volume && *id < view);
        self.since = older.map_or(SnapId(0), |(_, id)| *id);
        let config = Config {
            session: SessionId(self.session),
            volume,
            pool,
            generation: Generation(0),
            min_epoch: self.map.epoch,
            size: BLOCKS * u64::from(BLOCK_SIZE),
            object_size: self.map.pools.get(&pool).map_or(BLOCK_SIZE, |pool| pool.object_size),
            snap_context: SnapId(0),
            view,
            parents: Vec::new(),
            read_only: true,
            max_ops: 64,
            max_bytes: 16 << 20,
            max_requests: 64,
            timing: Timing { resend: Duration::from_secs(2), ..Timing::default() },
        };
        let mut core = Box::new(Core::new(config, bus.rng.next()));
        core.handle_map(Duration::from_nanos(bus.now), Arc::clone(&self.map));
        self.links.clear();
        self.ops.clear();
        self.holding = Holding::Working { core };
        for _ in 0..WINDOW {
            bus.after(MS, Event::Work { client: self.index });
        }
    }
}
