//! One run: the cluster, its clients, what goes wrong, and the checks, from one seed.
//!
//! First safety: anything in the plan happens while clients work. Then everything is healed, and liveness is
//! demanded: within a bound all groups are whole again, all operations end, and everything can be read.
//! It is one room: the order in which the parts take their turns is what makes a run repeatable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    CreatePoolRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest, Pool, RegisterNodeRequest,
    SnapshotRef, VolumeRef, snapshot_ref, volume_ref,
};
use cairn_types::map::{ClusterMap, SnapPhase};
use cairn_types::{BLOCK_SIZE, OsdId, PgId, SnapId, VolumeId};

use crate::bus::{Body, Bus, Event, MS, Nanos, Node, SECOND};
use crate::caller::Caller;
use crate::check::epochs::Epochs;
use crate::check::flush::{Oracle, Synced};
use crate::check::once::Once;
use crate::check::prefix::Prefix;
use crate::check::states::States;
use crate::check::{Check, Violation};
use crate::client::{BLOCKS, ClientHost};
use crate::faults::{Fault, Moment, Pick, Ways, Whom};
use crate::history::History;
use crate::meta::MetaHost;
use crate::osd::{Directory, DiskImage, OsdHost};
use crate::plan::{self, Plan, SHARED};
use crate::profile::Profile;
use crate::rebalance;
use crate::rng::Rng;
use crate::{Options, Report};

const PULSE: Nanos = 200 * MS;
/// Between looks of the checkers at what an OSD says of its groups.
const LOOK: Nanos = 2 * MS;
const OBJECT_SIZE: u32 = 64 << 10;
pub(crate) const BLOCKS_PER_OBJECT: u64 = OBJECT_SIZE as u64 / BLOCK_SIZE as u64;
pub(crate) const PGS: u32 = 8;
/// The last one is deleted on the way.
const VOLUMES: usize = 3;
pub(crate) const DOOMED: usize = VOLUMES - 1;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    Pool,
    Node,
    Volume(usize),
    Delete,
    Other,
}

pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) profile: Profile,
    pub(crate) bus: Bus,
    pub(crate) metas: Vec<MetaHost>,
    pub(crate) osds: Vec<OsdHost>,
    pub(crate) clients: Vec<ClientHost>,
    pub(crate) keeper: Caller<Setup>,
    pub(crate) directory: Directory,
    pub(crate) history: History,
    oracle: Oracle,
    prefix: Prefix,
    once: Once,
    next_look: Vec<Nanos>,
    pub(crate) epochs: Epochs,
    pub(crate) volumes: BTreeMap<usize, VolumeId>,
    pub(crate) lost: BTreeMap<OsdId, Synced>,
    /// A disk was lost and still counts somewhere: nothing else goes wrong until it does not.
    pub(crate) losing: Option<OsdId>,
    /// No message of bad weather is on its way any more from then on.
    pub(crate) calm_from: Nanos,
    /// A disk may turn out to be lost until then: likewise.
    pub(crate) doubtful: Nanos,
    /// The one disk whose blocks rot in this run.
    pub(crate) rotten: Option<usize>,
    /// Disks that may turn out to be lost.
    pub(crate) suspect: BTreeSet<usize>,
    pub(crate) images: BTreeMap<usize, DiskImage>,
    /// What waits for its moment.
    pub(crate) traps: Vec<(Moment, usize, Fault)>,
    setup_done: bool,
    primaries: BTreeMap<PgId, OsdId>,
    /// When each snapshot was taken, as far as its holder said so.
    taken: BTreeMap<(VolumeId, SnapId), Nanos>,
    pub(crate) states: States,
    pub(crate) failure: Option<Violation>,
    pub(crate) healed: bool,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let mut profile = Profile::draw(&mut rng.fork(3));
        profile.writes_until = options.writes_until.unwrap_or(profile.writes_until);
        profile.log_entries = options.log_entries.unwrap_or(profile.log_entries);
        let osds = (0..options.osds).map(|index| OsdHost::new(index, &mut rng, options.model, &profile));
        let osds = osds.collect();
        let bus = Bus::new(rng.fork(1), options.verbose);
        Self {
            bus,
            metas: (0..options.members).map(|index| MetaHost::new(index, options.members)).collect(),
            osds,
            clients: clients_of(&options, &profile),
            profile,
            keeper: Caller::new(Node::Keeper, 0x6b65_6570, options.members),
            directory: Directory::default(),
            history: History::default(),
            oracle: Oracle::default(),
            prefix: Prefix::default(),
            once: Once::default(),
            next_look: vec![0; options.osds],
            epochs: Epochs::default(),
            volumes: BTreeMap::new(),
            lost: BTreeMap::new(),
            losing: None,
            calm_from: 0,
            doubtful: 0,
            rotten: None,
            suspect: BTreeSet::new(),
            images: BTreeMap::new(),
            traps: Vec::new(),
            setup_done: false,
            primaries: BTreeMap::new(),
            taken: BTreeMap::new(),
            states: States::default(),
            failure: None,
            healed: false,
            options,
        }
    }

    /// The whole run.
    pub(crate) fn run(mut self, seed: u64, plan: Option<Plan>) -> Report {
        self.begin();
        let start = plan::START;
        let end = start + self.options.safety;
        let drawn = plan.is_none();
        let plan = match plan {
            Some(plan) => plan.into_iter().map(|(at, fault)| (start + at, fault)).collect(),
            None => plan::of_seed(seed, &self.options),
        };
        let doom = Rng::new(seed).fork(4).between(start, end);
        self.bus.at(doom, Event::Doom);
        for (at, fault) in plan {
            self.bus.at(at, Event::Fault(fault));
        }
        let mut dice = Rng::new(seed).fork(5);
        if drawn && dice.below(3) == 0 {
            let at = dice.between(start, end);
            self.bus.at(at, Event::Fault(Fault::Split));
            if dice.chance(500) {
                // Somebody misses it, and has by then less, or more, than the others.
                let (before, lasts) = (dice.between(20 * MS, 3 * SECOND), dice.between(3 * SECOND, 9 * SECOND));
                let osd = if dice.chance(500) { Pick::HotReplica(0) } else { Pick::HotPrimary(0) };
                let ways = *dice.pick(&[Ways::Both, Ways::Outbound]);
                let cut = Fault::Isolate { osd, with: None, from: Whom::Everybody, ways, lasts };
                self.bus.at(at.saturating_sub(before).max(start), Event::Fault(cut));
            }
        }
        self.until(start, |_| false);
        // How long the first operations wait for the first leases is not what is measured.
        self.bus.stats.slowest = 0;
        self.until(end, |_| false);
        self.heal();
        self.demand_whole();
        self.sweep();
        let limit = self.bus.now + 20 * SECOND;
        if !self.until(limit, Self::is_swept) {
            self.fail(Check::Liveness, |w| format!("reading everything at the end did not end: {}", w.ailments()));
        }
        // Let commit points and idle records settle.
        let rest = self.bus.now + 2 * SECOND;
        self.until(rest, |_| false);
        // What was on its way when all was healed may have been taken for a failure since.
        self.demand_whole();
        self.demand_clean();
        self.check_end();
        self.bus.stats.simulated = self.bus.now;
        let trace = self.bus.trace();
        Report { seed, trace, stats: self.bus.stats, failure: self.failure }
    }

    pub(crate) fn demand_whole(&mut self) {
        let limit = self.bus.now + self.options.liveness;
        if !self.until(limit, Self::is_whole) {
            let seconds = self.options.liveness / SECOND;
            self.fail(Check::Liveness, |w| format!("not whole {seconds} s after healing: {}", w.ailments()));
        }
    }

    pub(crate) fn fail(&mut self, check: Check, what: impl FnOnce(&Self) -> String) {
        if self.failure.is_none() {
            let what = what(self);
            self.demand(Err(Violation::new(check, what)));
        }
    }

    /// The first broken promise ends the run.
    pub(crate) fn demand(&mut self, result: Result<(), Violation>) {
        if let Err(violation) = result
            && self.failure.is_none()
        {
            self.bus.say(|| format!("FAILED: {violation}"));
            self.failure = Some(violation);
        }
    }

    pub(crate) fn begin(&mut self) {
        for member in &mut self.metas {
            member.start(&mut self.bus);
        }
        for index in 0..self.osds.len() - self.options.late {
            self.bus.after(1500 * MS, Event::Restart(Node::Osd(index)));
        }
        self.bus.set_life(Node::Keeper, 1, true);
        for client in &mut self.clients {
            client.start(&mut self.bus);
        }
        self.bus.after(PULSE, Event::Timer { at: Node::Keeper, life: 1, serial: 0 });
    }

    /// Runs until a moment, or until something holds; gives whether it does.
    pub(crate) fn until(&mut self, end: Nanos, holds: impl Fn(&Self) -> bool) -> bool {
        self.bus.at(end, Event::Check);
        let mut next_look = self.bus.now;
        while self.failure.is_none() {
            if self.bus.now >= next_look {
                if holds(self) {
                    return true;
                }
                next_look = self.bus.now + 50 * MS;
            }
            let Some(event) = self.bus.next() else { return false };
            let at_end = matches!(event, Event::Check) && self.bus.now >= end;
            self.handle(event);
            if at_end {
                break;
            }
        }
        self.failure.is_none() && holds(self)
    }

    // ------------------------------------------------------------------------------------------------------ events

    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, from_life, to, to_life, body } => self.deliver(from, from_life, to, to_life, body),
            Event::Refused { at, life, peer } if self.bus.life(at) == Some(life) => self.refused(at, peer),
            Event::Reset { at, life, peer } if self.bus.life(at) == Some(life) => self.reset(at, peer),
            Event::Timer { at, life, serial } if self.bus.life(at) == Some(life) => self.timer(at, life, serial),
            Event::Disk { osd, life, job } if self.osds[osd].life == life && self.osds[osd].alive => {
                if self.osds[osd].paused {
                    self.osds[osd].inbox.push(Event::Disk { osd, life, job });
                } else {
                    self.osds[osd].handle_disk(&mut self.bus, &mut self.directory, job);
                    self.look(osd);
                }
            }
            Event::Fault(fault) => self.inflict(fault),
            Event::Undo(fault) => self.undo(&fault),
            Event::Restart(node) => self.restart(node),
            Event::Resume(Node::Osd(index)) => self.resume(index),
            Event::Doom => self.doom(),
            Event::Work { client } => {
                self.clients[client].handle_work(&mut self.bus, &mut self.history, &self.directory);
            }
            Event::Refused { .. } | Event::Reset { .. } | Event::Timer { .. } | Event::Disk { .. } => {}
            Event::Resume(_) | Event::Check => {}
        }
    }

    fn deliver(&mut self, from: Node, from_life: u32, to: Node, to_life: u32, body: Body) {
        if self.bus.life(to) != Some(to_life) {
            return;
        }
        match to {
            Node::Meta(index) => self.metas[index].handle_body(&mut self.bus, from, body),
            Node::Osd(index) if self.osds[index].paused => {
                self.osds[index].inbox.push(Event::Deliver { from, from_life, to, to_life, body });
            }
            Node::Osd(index) => {
                // A connection is made by one life of one OSD.
                let speaker = match from {
                    Node::Osd(sender) => self.osds[sender].identity_of(from_life),
                    _ => None,
                };
                self.osds[index].handle_body(&mut self.bus, &mut self.directory, from, speaker, body);
                self.look(index);
            }
            Node::Client(index) => {
                self.clients[index].handle_body(&mut self.bus, &mut self.history, &self.directory, from, body);
                self.look_at_client(index);
            }
            Node::Keeper => self.keeper_hears(body),
        }
    }

    fn refused(&mut self, at: Node, peer: Node) {
        match at {
            Node::Osd(index) if !self.osds[index].paused => {
                self.osds[index].handle_refused(&mut self.bus, &mut self.directory, peer);
                self.look(index);
            }
            Node::Client(index) => {
                self.clients[index].handle_reset(&mut self.bus, &mut self.history, &self.directory, peer);
            }
            _ => {}
        }
    }

    fn reset(&mut self, at: Node, peer: Node) {
        match at {
            Node::Osd(index) if !self.osds[index].paused => {
                self.osds[index].handle_reset(&mut self.bus, &mut self.directory, peer);
                self.look(index);
            }
            Node::Client(index) => {
                self.clients[index].handle_reset(&mut self.bus, &mut self.history, &self.directory, peer);
            }
            _ => {}
        }
    }

    fn timer(&mut self, at: Node, life: u32, serial: u64) {
        match at {
            Node::Meta(index) => {
                self.metas[index].handle_timer(&mut self.bus, serial);
                self.follow_failovers(index);
            }
            Node::Osd(index) if self.osds[index].paused => {
                self.osds[index].inbox.push(Event::Timer { at, life, serial });
            }
            Node::Osd(index) => {
                self.osds[index].handle_timer(&mut self.bus, &mut self.directory, serial);
                self.look(index);
            }
            Node::Client(index) => {
                self.clients[index].handle_timer(&mut self.bus, &mut self.history, &self.directory, serial);
                self.look_at_client(index);
            }
            Node::Keeper => {
                self.keeper.tick(&mut self.bus);
                self.set_up();
                self.bus.after(PULSE, Event::Timer { at, life, serial });
            }
        }
    }

    /// What the checkers want to know after an OSD did something.
    fn look(&mut self, index: usize) {
        for (moment, pg, joiner) in std::mem::take(&mut self.osds[index].moments) {
            self.spring(moment, pg, index, joiner);
        }
        let acks = std::mem::take(&mut self.osds[index].acks);
        if !acks.is_empty() {
            let lost = self.lost.iter().map(|(id, synced)| (*id, synced));
            let disks: BTreeMap<OsdId, &Synced> =
                lost.chain(self.osds.iter().filter_map(|osd| Some((osd.id()?, &osd.synced)))).collect();
            let newest = self.metas.iter().map(MetaHost::map).max_by_key(|map| map.epoch).expect("there are members");
            let min_size = self.options.min_size as usize;
            let (oracle, osds) = (&mut self.oracle, &self.osds);
            let result = acks.into_iter().try_for_each(|(request, pg, mut config)| {
                // Who knows that the newest one is in force, and is not in it, keeps nothing for the one before.
                if let Some(now) = newest.pgs.get(&pg).filter(|now| now.c > config.c) {
                    let follows = |osd: &OsdHost| {
                        let known = osd.core.as_ref().and_then(|core| core.map().pgs.get(&pg).map(|config| config.c));
                        known.is_some_and(|c| c >= now.c)
                    };
                    let left = |id: &OsdId| osds.iter().any(|osd| osd.id() == Some(*id) && follows(osd));
                    config.isr.retain(|id| now.isr.contains(id) || !left(id));
                }
                let configs = [Some(&config), newest.pgs.get(&pg)];
                let configs = configs.into_iter().flatten().collect::<Vec<_>>();
                oracle.acked(request, pg, &configs, min_size, &disks)
            });
            self.demand(result);
        }
        if let Some(why) = self.osds[index].unusable.take() {
            return self.give_up_disk(index, &why);
        }
        if self.osds[index].failure.is_none() && !self.osds[index].stopped && self.bus.now < self.next_look[index] {
            return;
        }
        self.next_look[index] = self.bus.now + LOOK;
        let host = &self.osds[index];
        let Some(core) = &host.core else { return };
        let (node, epoch) = (Node::Osd(index), core.map().epoch);
        let (prefix, once, epochs) = (&mut self.prefix, &mut self.once, &mut self.epochs);
        let result = epochs.saw(node, epoch).and(core.status().iter().try_for_each(|status| {
            epochs.takes_part(node, status.pg, status.c)?;
            once.committed(status.pg, status.committed, &host.logs)?;
            prefix.committed(status.pg, status.committed)
        }));
        self.demand(result);
        if let Some(failure) = self.osds[index].failure.take() {
            if std::mem::take(&mut self.osds[index].expects_failure) {
                self.bus.stats.sometimes("an OSD stops because its disk failed");
            } else {
                self.fail(Check::Store, |_| format!("osd {index}: {failure}"));
            }
        }
        if self.osds[index].stopped {
            self.osds[index].kill(&mut self.bus, false);
            self.epochs.restart(Node::Osd(index));
            self.bus.after(300 * MS, Event::Restart(Node::Osd(index)));
        }
    }

    fn look_at_client(&mut self, index: usize) {
        if let Some(failure) = self.clients[index].failure.take() {
            self.fail(Check::Client, |_| format!("client {index}: {failure}"));
        }
        for (volume, snapshot, at) in std::mem::take(&mut self.clients[index].taken) {
            self.taken.insert((volume, snapshot), at);
        }
        let unchanged = std::mem::take(&mut self.clients[index].unchanged);
        if self.states.note(unchanged) {
            self.bus.stats.sometimes("what changed between two snapshots is asked");
        }
        for (block, view, value) in std::mem::take(&mut self.clients[index].viewed) {
            self.states.see(block, view, value);
            // Whoever is ready for a later snapshot was so for the earlier ones at that moment.
            match self.taken.range((block.0, view)..=(block.0, SnapId::HEAD)).next() {
                Some((_, at)) => self.history.held(block, value, *at),
                None => self.fail(Check::Client, |_| format!("{view} is complete although nobody said so")),
            }
        }
        if std::mem::take(&mut self.clients[index].took_over)
            && let Some(volume) = self.clients[index].volume
        {
            let (shared, generation) = (self.clients[index].shared, self.clients[index].generation);
            let mut over = std::mem::take(&mut self.clients[index].orphans);
            for (_, other) in self.clients.iter_mut().enumerate().filter(|(other, _)| *other != index) {
                over.extend(other.supersede(volume, shared, generation));
            }
            over.into_iter().for_each(|(block, at)| self.history.close(block, at, self.bus.now));
        }
    }

    fn follow_failovers(&mut self, member: usize) {
        let map = Arc::clone(self.metas[member].map());
        self.demand(rebalance::check(&map, &self.options));
        for (pg, config) in &map.pgs {
            let Some(primary) = config.primary else { continue };
            if let Some(before) = self.primaries.insert(*pg, primary)
                && before != primary
                && self.metas[member].leads()
            {
                self.bus.stats.failovers += 1;
            }
        }
    }

    // ------------------------------------------------------------------------------------------------------- setup

    pub(crate) fn newest_map(&self) -> &Arc<ClusterMap> {
        let maps = self.metas.iter().map(MetaHost::map);
        maps.max_by_key(|map| map.epoch).expect("there are members")
    }

    /// Makes pool, nodes and volumes once enough OSDs are there.
    fn set_up(&mut self) {
        if self.setup_done || self.newest_map().osds.len() < self.osds.len() - self.options.late {
            return;
        }
        self.setup_done = true;
        let pool = Pool {
            name: "pool".into(),
            size: self.options.size,
            min_size: self.options.min_size,
            failure_domain: "osd".into(),
            object_size: OBJECT_SIZE,
            pg_count: PGS,
            ..Pool::default()
        };
        let request = CreatePoolRequest { mutation: None, pool: Some(pool), allow_degraded: false, expected_osds: 0 };
        self.keeper.call(&mut self.bus, Payload::CreatePool(request), Setup::Pool);
        for index in 0..self.clients.len() {
            let request = RegisterNodeRequest {
                mutation: None,
                name: format!("node{index}"),
                location: None,
                ..Default::default()
            };
            self.keeper.call(&mut self.bus, Payload::RegisterNode(request), Setup::Node);
        }
    }

    fn keeper_hears(&mut self, body: Body) {
        let (session, seq, reply) = match body {
            Body::Answer { session, seq, reply } => (session, seq, reply),
            Body::NotTaken => return self.keeper.turn_away(),
            _ => return,
        };
        match (self.keeper.answered(session, seq), reply.result) {
            (Some(Setup::Pool), Some(Answer::CreatePool(_))) => {
                for index in 0..VOLUMES {
                    let request = CreateVolumeRequest {
                        name: format!("volume{index}"),
                        pool: String::new(),
                        size: BLOCKS * u64::from(BLOCK_SIZE),
                        ..Default::default()
                    };
                    self.keeper.call(&mut self.bus, Payload::CreateVolume(request), Setup::Volume(index));
                }
            }
            (Some(Setup::Volume(index)), Some(Answer::CreateVolume(reply))) => {
                let volume = VolumeId(reply.volume.map_or(0, |volume| volume.id));
                self.volumes.insert(index, volume);
                if index == SHARED.0 {
                    SHARED.1.iter().for_each(|client| self.clients[*client].take(&mut self.bus, volume, true));
                } else {
                    self.clients[index].take(&mut self.bus, volume, false);
                }
            }
            (Some(Setup::Delete), Some(Answer::DeleteVolume(_))) if self.doomed_has_snapshots() => {
                self.bus.after(SECOND, Event::Doom);
            }
            (Some(Setup::Delete), Some(Answer::Error(_))) => {
                // Still held: the detachment is on its way.
                self.bus.after(SECOND, Event::Doom);
            }
            (Some(what @ (Setup::Pool | Setup::Volume(_))), other) => {
                self.fail(Check::Client, |_| format!("{what:?} was refused: {other:?}"));
            }
            _ => {}
        }
    }

    fn doomed_has_snapshots(&self) -> bool {
        let fence = self.volumes.get(&DOOMED).and_then(|volume| self.newest_map().volumes.get(volume));
        fence.is_some_and(|fence| !fence.purging)
    }

    /// The doomed volume is let go and deleted, with its snapshots.
    fn doom(&mut self) {
        let Some(volume) = self.volumes.get(&DOOMED).copied() else { return };
        let fence = self.newest_map().volumes.get(&volume);
        let stays = |(id, phase): (&SnapId, &SnapPhase)| (*phase != SnapPhase::Going).then_some(*id);
        let snapshots =
            fence.into_iter().flat_map(|fence| fence.snapshots.iter().filter_map(stays)).collect::<Vec<_>>();
        for snapshot in snapshots {
            let by = Some(snapshot_ref::By::Id(snapshot.0));
            let request = DeleteSnapshotRequest { mutation: None, snapshot: Some(SnapshotRef { by }) };
            self.keeper.call(&mut self.bus, Payload::DeleteSnapshot(request), Setup::Other);
        }
        if let Some(holder) = self.clients.iter_mut().find(|client| client.volume == Some(volume)) {
            holder.release(&mut self.bus);
        }
        let volume = Some(VolumeRef { by: Some(volume_ref::By::Id(volume.0)) });
        let request = DeleteVolumeRequest { volume, ..Default::default() };
        self.keeper.call(&mut self.bus, Payload::DeleteVolume(request), Setup::Delete);
    }
}

/// The clients of the plan, and one that reads snapshots.
fn clients_of(options: &Options, profile: &Profile) -> Vec<ClientHost> {
    let all = (0..=options.clients).map(|index| ClientHost::new(index, options.members, profile.clone()));
    let mut clients = all.collect::<Vec<_>>();
    clients[options.clients].views = true;
    clients
}
