//! After healing: what must be whole again within a bound, and what is compared when all is at rest.

use std::sync::Arc;

use cairn_types::map::{ClusterMap, PgConfig, Pool, SnapPhase};
use cairn_types::peer::PgState;
use cairn_types::{ObjectId, OsdId, PgId};

use crate::bus::{Event, MS};
use crate::check::{Check, Violation, linear, lost, replicas};
use crate::client::{ClientHost, STATES};
use crate::rebalance;
use crate::world::{DOOMED, World};

impl World {
    /// Every group serves with all the members placement wants, and every client is at work.
    pub(crate) fn is_whole(&self) -> bool {
        let map = self.newest_map();
        let whole = |config: &PgConfig| {
            let whole = config.primary.is_some() && config.isr.len() == self.options.size as usize;
            whole && config.backfill.is_empty() && rebalance::is_settled(config)
        };
        let purged = self.volumes.get(&DOOMED).is_some_and(|volume| !map.volumes.contains_key(volume));
        let joined = map.volumes.values().all(|fence| fence.snapshots.values().all(|phase| *phase != SnapPhase::Going));
        let divided = !map.pools.values().any(Pool::is_splitting);
        !map.pgs.is_empty()
            && map.pgs.values().all(whole)
            && divided
            && purged
            && joined
            && self.primaries_serve()
            && self.sessions_settle()
    }

    fn primaries_serve(&self) -> bool {
        let active = self.osds.iter().filter_map(|osd| osd.core.as_ref()).flat_map(|core| core.status());
        let active = active.filter(|status| status.state == PgState::Active && status.missing_blocks == 0).count();
        active == self.newest_map().pgs.len()
    }

    fn sessions_settle(&self) -> bool {
        self.clients.iter().all(|client| client.is_working() || client.holds_nothing())
            && self.clients.iter().any(|client| client.is_working() && !client.views)
    }

    /// Clients stop making operations and read everything once more.
    pub(crate) fn sweep(&mut self) {
        let map = Arc::clone(self.newest_map());
        let all = map.volumes.iter().flat_map(|(volume, fence)| fence.snapshots.iter().map(|s| (*volume, s)));
        let ready = all.filter(|(_, (_, phase))| **phase == SnapPhase::Ready).map(|(volume, (id, _))| (volume, *id));
        let ready = ready.collect::<Vec<_>>();
        for index in 0..self.clients.len() {
            self.clients[index].resting = true;
            if self.clients[index].views {
                self.clients[index].to_view.clone_from(&ready);
            } else if self.clients[index].is_working() {
                self.clients[index].sweep = (0..=STATES).collect();
                for _ in 0..4 {
                    self.bus.after(MS, Event::Work { client: index });
                }
            }
        }
    }

    pub(crate) fn is_swept(&self) -> bool {
        let done = |client: &ClientHost| client.holds_nothing() || (client.sweep.is_empty() && client.is_idle());
        self.clients.iter().all(|client| done(client) && client.to_view.is_empty())
    }

    pub(crate) fn ailments(&self) -> String {
        let map = self.newest_map();
        let mut lines = vec![format!("map {}", map.epoch)];
        for (pg, config) in &map.pgs {
            let osds = |set: &[OsdId]| set.iter().map(|osd| osd.0.to_string()).collect::<Vec<_>>().join(",");
            lines.push(format!(
                "{pg} {} primary {:?} isr [{}] acting [{}] backfill [{}] up [{}]",
                config.c,
                config.primary,
                osds(&config.isr),
                osds(&config.acting),
                osds(&config.backfill),
                osds(&config.up)
            ));
        }
        for osd in &self.osds {
            let Some(core) = &osd.core else {
                lines.push(format!("osd {} has no core", osd.index));
                continue;
            };
            let (id, epoch, unreachable) = (osd.id(), core.map().epoch, core.unreachable());
            lines.push(format!("osd {} {id:?} at {epoch}, unreachable {unreachable:?}", osd.index));
            for status in core.status().iter().filter(|status| status.state != PgState::Replica) {
                lines.push(format!("  {status:?}"));
            }
        }
        let doomed = self.volumes.get(&DOOMED).map(|volume| map.volumes.get(volume));
        lines.push(format!("the volume that is to be deleted: {doomed:?}"));
        for client in self.clients.iter().filter(|client| !client.is_working() && !client.holds_nothing()) {
            lines.push(format!("client {} neither works nor rests: {}", client.index, client.holding()));
        }
        lines.join("\n  ")
    }

    /// Nothing is left of a deleted volume, nor of groups that live elsewhere now.
    fn check_cleared(&mut self, map: &ClusterMap) -> Result<(), Violation> {
        let doomed = self.volumes.get(&DOOMED).copied();
        for host in self.osds.iter_mut().filter(|osd| osd.core.is_some()) {
            let Some(id) = host.id() else { continue };
            for (pg, config) in &map.pgs {
                let content = host.medium.content(*pg, map.parts(*pg));
                let member = config.isr.contains(&id);
                let known = |object: &ObjectId| {
                    let fence = map.volumes.get(&object.volume);
                    object.snapshot.0 == 0 || fence.is_some_and(|fence| fence.snapshots.contains_key(&object.snapshot))
                };
                if let Some((left, _)) = content.blocks.keys().find(|(object, _)| !known(object)) {
                    return Err(Violation::new(
                        Check::Cleared,
                        format!("{id} has {left:?} of {pg}, a layer of nothing"),
                    ));
                }
                if let Some(left) = content.blocks.keys().find(|(object, _)| !member || Some(object.volume) == doomed) {
                    return Err(Violation::new(Check::Cleared, format!("{id} still has {left:?} of {pg}")));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_end(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let map = Arc::clone(self.newest_map());
        let (directory, osds) = (&self.directory, &mut self.osds);
        let content = |id: OsdId, pg: PgId| {
            let host = directory.index.get(&id).map(|index| &mut osds[*index]);
            host.map(|host| host.medium.content(pg, map.parts(pg))).unwrap_or_default()
        };
        let equal = replicas::check(&map, content);
        let (lost, linear) = (lost::check(&self.history), linear::check(&self.history));
        let cleared = self.check_cleared(&map);
        let states = self.states.check();
        self.demand(lost.and(linear).and(states).and(equal).and(cleared));
    }
}
