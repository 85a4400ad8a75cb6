//! How a fault is done to the world, and undone.

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{ChangePlacementRequest, DownEvidence, ReportDownRequest, SetOsdPlaced, SetPgs};
use cairn_types::map::PgConfig;
use cairn_types::{ObjectId, OsdId, PgId, PoolId, SnapId};

use crate::bus::{Event, MS, Nanos, Node, SECOND, Weather};
use crate::check::Check;
use crate::faults::{self, Fault, Ill, Moment, Pick, Ways, Whom};
use crate::meta::MetaHost;
use crate::osd::OsdHost;
use crate::world::{BLOCKS_PER_OBJECT, PGS, Setup, World};

impl World {
    pub(crate) fn choose(&self, pick: Pick) -> usize {
        let map = self.newest_map();
        let config = |index: u32| map.pgs.get(&PgId { pool: PoolId(1), index });
        let id = match pick {
            Pick::Index(index) => return index,
            Pick::PrimaryOf(pg) => config(pg).and_then(|config| config.primary),
            Pick::ReplicaOf(pg) => {
                config(pg).and_then(|config| config.isr.iter().copied().find(|osd| Some(*osd) != config.primary))
            }
            Pick::HotPrimary(volume) => self.hot_group(volume).and_then(|config| config.primary),
            Pick::HotReplica(volume) => self.hot_group(volume).and_then(|config| {
                // Not always the same one.
                let others = config.isr.iter().copied().filter(|osd| Some(*osd) != config.primary).collect::<Vec<_>>();
                others.get((self.bus.now / SECOND) as usize % others.len().max(1)).copied()
            }),
            Pick::HotHeir(volume) => self.hot_group(volume).and_then(|config| {
                let heir = |osd: &&OsdId| config.isr.contains(osd) && Some(**osd) != config.primary;
                config.up.iter().chain(&config.isr).find(heir).copied()
            }),
            Pick::Source | Pick::Joiner => None,
        };
        id.and_then(|id| self.directory.index.get(&id).copied()).unwrap_or(0)
    }

    fn hot_group(&self, volume: usize) -> Option<&PgConfig> {
        self.newest_map().pgs.get(&self.hot_pg(volume)?)
    }

    /// The group in which a volume's work is concentrated.
    fn hot_pg(&self, volume: usize) -> Option<PgId> {
        let block = *self.profile.hot.first()?;
        let volume = *self.volumes.get(&volume)?;
        let (pool, index) = (PoolId(1), block / BLOCKS_PER_OBJECT);
        let object = ObjectId { pool, volume, index, snapshot: SnapId::HEAD };
        self.newest_map().pg_of(pool, object.hash()).map(|(pg, _)| pg)
    }

    pub(crate) fn inflict(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        if self.is_precarious() && !matches!(fault, Fault::Steal { .. } | Fault::Renew { .. }) {
            self.bus.after(300 * MS, Event::Fault(fault));
            return;
        }
        self.bus.say(|| format!("fault: {fault:?}"));
        if !matches!(fault, Fault::Lose { .. } | Fault::Disk { .. } | Fault::Swap { .. } | Fault::When { .. }) {
            *self.bus.stats.faults.entry(fault.kind()).or_default() += 1;
        }
        match fault {
            Fault::Kill { osd, power, back, exited } => {
                let index = self.choose(osd);
                self.kill_osd(index, power, back, exited);
            }
            Fault::Pause { osd, lasts } => {
                let index = self.choose(osd);
                if self.osds[index].alive && !self.osds[index].paused {
                    self.bus.say(|| format!("osd {index} stands still"));
                    self.osds[index].paused = true;
                    self.bus.after(lasts, Event::Resume(Node::Osd(index)));
                }
            }
            Fault::KillMember { leader, member, back } => {
                let leading = self.metas.iter().position(MetaHost::leads).filter(|_| leader);
                let index = leading.unwrap_or(member);
                if self.metas[index].is_alive() {
                    self.metas[index].kill(&mut self.bus);
                    self.bus.after(back, Event::Restart(Node::Meta(index)));
                }
            }
            Fault::Isolate { osd, with, from, ways, lasts } => {
                let index = self.choose(osd);
                let fault = Fault::Isolate { osd: Pick::Index(index), with, from, ways, lasts };
                self.cut(&fault, true);
                self.bus.after(lasts, Event::Undo(fault));
            }
            Fault::Lag { osd, from, ways, delay, lasts } => {
                let fault = Fault::Lag { osd: Pick::Index(self.choose(osd)), from, ways, delay, lasts };
                self.slow_down(&fault, delay);
                self.calm_from = self.calm_from.max(self.bus.now + lasts + delay + 2 * SECOND);
                self.bus.after(lasts, Event::Undo(fault));
            }
            Fault::When { moment, volume, then } => self.traps.push((moment, volume, *then)),
            Fault::SplitMembers { lasts, .. } => {
                self.cut(&fault, true);
                self.bus.after(lasts, Event::Undo(fault));
            }
            Fault::SlowDisk { osd, delay, lasts } => {
                let index = self.choose(osd);
                self.osds[index].disk_delay = delay;
                self.bus.after(lasts, Event::Undo(Fault::SlowDisk { osd: Pick::Index(index), delay, lasts }));
            }
            Fault::Weather { drop, twice, reorder, delay, delay_max, lasts } => {
                self.bus.weather = Weather { drop, twice, reorder, delay, delay_max };
                self.calm_from = self.calm_from.max(self.bus.now + lasts + delay_max + 2 * SECOND);
                self.bus.after(lasts, Event::Undo(fault));
            }
            Fault::Steal { volume, shared } => {
                let free = self.clients.iter().position(|client| client.holds_nothing() && !client.views);
                if let (Some(client), Some(volume)) = (free, self.volumes.get(&volume)) {
                    self.clients[client].take(&mut self.bus, *volume, shared);
                }
            }
            Fault::Split => {
                let set = SetPgs { pool: "pool".to_owned(), pgs: PGS * 2 };
                let change = ChangePlacementRequest { change: Some(Change::SetPgs(set)), ..Default::default() };
                self.keeper.call(&mut self.bus, Payload::ChangePlacement(change), Setup::Other);
            }
            Fault::Renew { client } => self.clients[client].renew(&mut self.bus),
            Fault::Lose { osd } => {
                let index = self.choose(osd);
                // Another in-sync member is enough, though no group has a copy to spare.
                if self.is_spare(index, 2) {
                    self.lose(index);
                } else {
                    // Later, when all is well.
                    self.bus.after(300 * MS, Event::Fault(Fault::Lose { osd }));
                }
            }
            Fault::Disk { osd, what } => {
                let index = self.choose(osd);
                self.sicken(index, what);
            }
            Fault::Refuse { osd } => {
                let peer = Node::Osd(self.choose(osd));
                self.bus.forge_refusal(peer);
            }
            Fault::Swap { one, other } => self.swap(one, other),
            Fault::Drift { osd, rate } => {
                let (index, now) = (self.choose(osd), self.bus.now);
                self.osds[index].drift(now, rate);
            }
            Fault::Jump { osd, seconds } => {
                let index = self.choose(osd);
                self.osds[index].jump(seconds);
            }
            Fault::Move(change) => self.move_data(&change),
            Fault::Blackout { back } => {
                for index in 0..self.osds.len() {
                    let later = back + self.bus.rng.below(SECOND);
                    self.kill_osd(index, true, later, None);
                }
            }
        }
    }

    /// A disk is gone for good and not yet replaced in every in-sync set: another failure now could leave a group with
    /// one copy, which only a person may call the truth.
    fn is_precarious(&mut self) -> bool {
        if self.bus.now < self.doubtful {
            return true;
        }
        let Some(id) = self.losing else { return false };
        let counts = self.newest_map().pgs.values().any(|config| config.isr.contains(&id));
        if !counts {
            self.losing = None;
        }
        counts
    }

    /// Nothing depends on this disk alone: all is well, and every group it belongs to has so many copies.
    fn is_spare(&self, index: usize, copies: usize) -> bool {
        let Some(id) = self.osds[index].id() else { return false };
        let map = self.newest_map();
        // A copy with bad blocks does not count: what they were may be on the others only.
        let ill = |osd: &OsdId| self.osds.iter().any(|host| host.id() == Some(*osd) && host.ill);
        let copies_of = |config: &PgConfig| config.isr.iter().filter(|osd| **osd == id || !ill(osd)).count();
        let rich = |config: &PgConfig| !config.isr.contains(&id) || copies_of(config) >= copies;
        let works = |osd: &OsdHost| osd.alive && !osd.paused && osd.disk_delay == 0;
        let well = self.osds.iter().all(works) && !self.bus.any_cut() && self.bus.now >= self.calm_from;
        well && self.metas.iter().all(MetaHost::is_alive) && map.pgs.values().all(rich)
    }

    /// A disk breaks its promises, within what the other copies can repair: blocks go bad on one disk of a run only, and
    /// whatever may cost a whole disk waits until every group has a copy to spare.
    fn sicken(&mut self, index: usize, what: Ill) {
        let fault = Fault::Disk { osd: Pick::Index(index), what };
        let mut rng = self.bus.rng.fork(77);
        match what {
            Ill::Rot(_) | Ill::Unreadable(_) | Ill::Misdirected | Ill::Dropped => {
                let index = *self.rotten.get_or_insert(index);
                self.osds[index].ill = true;
                self.osds[index].medium.sicken(what, &mut rng);
            }
            Ill::WriteError | Ill::SyncError => {
                // One that has not opened its store yet would take the failure for a disk that cannot be used.
                if !self.osds[index].alive || self.osds[index].core.is_none() {
                    return;
                }
                self.osds[index].expects_failure = true;
                self.osds[index].medium.sicken(what, &mut rng);
            }
            Ill::Full(lasts) => {
                self.osds[index].medium.sicken(what, &mut rng);
                self.bus.after(lasts, Event::Undo(fault.clone()));
            }
            Ill::RolledBack(age) if age > 0 => {
                self.images.insert(index, self.osds[index].image());
                let again = Fault::Disk { osd: Pick::Index(index), what: Ill::RolledBack(0) };
                self.bus.after(age, Event::Fault(again));
                return;
            }
            Ill::RottenLog | Ill::RolledBack(_) => {
                if !self.is_spare(index, self.options.min_size as usize + 1) {
                    return;
                }
                let back = self.bus.rng.between(200 * MS, 2 * SECOND);
                self.kill_osd(index, false, back, Some(0));
                self.suspect.insert(index);
                self.osds[index].ill = true;
                self.doubtful = self.bus.now + back + 4 * SECOND;
                match self.images.remove(&index) {
                    Some(image) if what != Ill::RottenLog => self.osds[index].restore(&image),
                    _ => self.osds[index].medium.sicken(what, &mut rng),
                }
            }
        }
        *self.bus.stats.faults.entry(fault.kind()).or_default() += 1;
    }

    /// A disk that cannot be opened, or that the metadata service refuses, is wiped and joins as a new one.
    pub(crate) fn give_up_disk(&mut self, index: usize, why: &str) {
        if !self.suspect.remove(&index) {
            return self.fail(Check::Store, |_| format!("osd {index}: {why}"));
        }
        self.bus.stats.sometimes("a damaged or rolled-back disk is refused");
        self.lose(index);
    }

    fn swap(&mut self, one: usize, other: usize) {
        if one == other || !self.osds[one].alive || !self.osds[other].alive {
            return;
        }
        *self.bus.stats.faults.entry("swapped disks").or_default() += 1;
        for index in [one, other] {
            let back = self.bus.rng.between(300 * MS, 2 * SECOND);
            self.kill_osd(index, true, back, Some(0));
            self.epochs.forget(Node::Osd(index));
        }
        let (low, high) = self.osds.split_at_mut(one.max(other));
        low[one.min(other)].swap_disks(&mut high[0]);
        self.rotten = self.rotten.map(|index| match index {
            _ if index == one => other,
            _ if index == other => one,
            _ => index,
        });
        for (index, lone) in [(one, other), (other, one)] {
            if self.suspect.contains(&index) && !self.suspect.contains(&lone) {
                self.suspect.insert(lone);
            }
        }
    }

    fn lose(&mut self, index: usize) {
        // What the disk calls itself may be what it was before it was rolled back; the map knows it by its uuid.
        let known = self.newest_map().osds.values().find(|osd| osd.uuid.as_u128() == self.osds[index].uuid);
        let Some(id) = known.map(|osd| osd.id).or(self.osds[index].id()) else { return };
        *self.bus.stats.faults.entry("loss of a disk").or_default() += 1;
        self.bus.say(|| format!("osd {index} ({id}) loses its disk"));
        self.kill_osd(index, true, 2 * SECOND, Some(0));
        // What was flushed there before counted until it was lost.
        self.lost.insert(id, self.osds[index].synced.clone());
        self.losing = Some(id);
        let mut rng = self.bus.rng.fork(99);
        self.osds[index].replace_disk(&mut rng, self.options.model);
        self.epochs.forget(Node::Osd(index));
        let request = SetOsdPlaced { id: id.0, placed: false, weight: None };
        self.keeper.call(&mut self.bus, Payload::SetOsdPlaced(request), Setup::Other);
    }

    pub(crate) fn kill_osd(&mut self, index: usize, power: bool, back: Nanos, exited: Option<Nanos>) {
        if !self.osds[index].alive {
            return;
        }
        self.bus.say(|| format!("osd {index} dies"));
        let (id, incarnation) = (self.osds[index].id(), self.osds[index].incarnation());
        let registered = self.osds[index].core.is_some();
        self.osds[index].kill(&mut self.bus, power);
        self.epochs.restart(Node::Osd(index));
        self.bus.after(back, Event::Restart(Node::Osd(index)));
        if let (Some(_), Some(id), true) = (exited, id, registered) {
            let request = ReportDownRequest {
                mutation: None,
                reporter: None,
                osd: id.0,
                incarnation,
                evidence: DownEvidence::Exited.into(),
            };
            self.keeper.call(&mut self.bus, Payload::ReportDown(request), Setup::Other);
        }
    }

    /// A moment that was waited for: what waited happens.
    pub(crate) fn spring(&mut self, moment: Moment, pg: PgId, source: usize, joiner: OsdId) {
        let Some(joiner) = self.directory.index.get(&joiner).copied() else { return };
        for (awaited, volume, fault) in std::mem::take(&mut self.traps) {
            if awaited == moment && self.hot_pg(volume) == Some(pg) {
                self.bus.after(0, Event::Fault(fault.aimed(source, joiner)));
            } else {
                self.traps.push((awaited, volume, fault));
            }
        }
    }

    fn slow_down(&mut self, fault: &Fault, delay: Nanos) {
        let Fault::Lag { osd: Pick::Index(index), from, ways, .. } = fault else { return };
        let me = Node::Osd(*index);
        for other in self.others(*from, *index) {
            if *ways != Ways::Outbound {
                self.bus.lag(other, me, delay);
            }
            if *ways != Ways::Inbound {
                self.bus.lag(me, other, delay);
            }
        }
    }

    fn others(&self, whom: Whom, index: usize) -> Vec<Node> {
        faults::others(whom, index, self.options.osds, self.options.members, self.options.clients)
    }

    fn cut(&mut self, fault: &Fault, on: bool) {
        let pairs = match fault {
            Fault::Isolate { osd: Pick::Index(index), with, from, ways, .. } => {
                let others = self.others(*from, *index);
                let group = [Some(Node::Osd(*index)), with.map(Node::Client)];
                let outside = |node: &Node| !group.contains(&Some(*node));
                let others = others.into_iter().filter(outside).collect::<Vec<_>>();
                let pairs = group.iter().flatten().flat_map(|me| others.iter().map(|other| (*me, *other, *ways)));
                pairs.collect::<Vec<_>>()
            }
            Fault::SplitMembers { one, other, ways, .. } => vec![(Node::Meta(*one), Node::Meta(*other), *ways)],
            _ => Vec::new(),
        };
        for (me, other, ways) in pairs {
            let directions = match ways {
                Ways::Both => vec![(me, other), (other, me)],
                Ways::Inbound => vec![(other, me)],
                Ways::Outbound => vec![(me, other)],
            };
            for (from, to) in directions {
                if on { self.bus.cut(from, to) } else { self.bus.mend(from, to) }
            }
        }
    }

    pub(crate) fn undo(&mut self, fault: &Fault) {
        if self.healed {
            return;
        }
        match fault {
            Fault::Isolate { .. } | Fault::SplitMembers { .. } => self.cut(fault, false),
            Fault::Lag { .. } => self.slow_down(fault, 0),
            Fault::SlowDisk { osd: Pick::Index(index), .. } => self.osds[*index].disk_delay = 0,
            Fault::Weather { .. } => self.bus.weather = Weather::default(),
            Fault::Disk { osd: Pick::Index(index), .. } => self.osds[*index].medium.make_room(),
            _ => {}
        }
    }

    pub(crate) fn restart(&mut self, node: Node) {
        match node {
            Node::Osd(index) if !self.osds[index].alive => {
                self.osds[index].start(&mut self.bus, self.options.members);
            }
            Node::Meta(index) if !self.metas[index].is_alive() => self.metas[index].start(&mut self.bus),
            _ => {}
        }
    }

    pub(crate) fn resume(&mut self, index: usize) {
        if !self.osds[index].paused {
            return;
        }
        self.bus.say(|| format!("osd {index} goes on"));
        self.osds[index].paused = false;
        for event in std::mem::take(&mut self.osds[index].inbox) {
            self.handle(event);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.bus.say(|| "everything is healed".to_owned());
        self.healed = true;
        self.bus.mend_all();
        for index in 0..self.metas.len() {
            self.restart(Node::Meta(index));
        }
        for index in 0..self.osds.len() {
            self.osds[index].disk_delay = 0;
            self.osds[index].medium.make_room();
            self.restart(Node::Osd(index));
            self.resume(index);
        }
    }
}
