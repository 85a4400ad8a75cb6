//! One run: the cluster, its clients, what goes wrong, and the checks, from one seed.
//!
//! First safety: anything in the plan happens while clients work. Then everything is healed, and liveness is
//! demanded: within a bound all groups are whole again, all operations end, and everything can be read.
//! It is one room: the order in which the parts take their turns is what makes a run repeatable.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    CreatePoolRequest, CreateVolumeRequest, DeleteVolumeRequest, DownEvidence, Pool, RegisterNodeRequest,
    ReportDownRequest, SetOsdPlaced, VolumeRef, volume_ref,
};
use cairn_types::map::ClusterMap;
use cairn_types::peer::PgState;
use cairn_types::{BLOCK_SIZE, OsdId, PgId, PoolId, VolumeId};

use crate::bus::{Body, Bus, Event, MS, Nanos, Node, SECOND, Weather};
use crate::caller::Caller;
use crate::check::flush::{Oracle, Synced};
use crate::check::prefix::Prefix;
use crate::check::{linear, replicas};
use crate::client::{BLOCKS, ClientHost};
use crate::faults::{self, Fault, Pick, Ways};
use crate::history::History;
use crate::meta::MetaHost;
use crate::osd::{Directory, OsdHost};
use crate::rng::Rng;
use crate::{Options, Report};

/// What goes wrong, and how long after the beginning.
pub(crate) type Plan = Vec<(Nanos, Fault)>;

const PULSE: Nanos = 200 * MS;
const OBJECT_SIZE: u32 = 64 << 10;
const PGS: u32 = 8;
/// The last one is deleted on the way.
const VOLUMES: usize = 3;
const DOOMED: usize = VOLUMES - 1;

#[derive(Debug, PartialEq, Eq)]
enum Setup {
    Pool,
    Node,
    Volume(usize),
    Delete,
    Other,
}

pub(crate) struct World {
    options: Options,
    bus: Bus,
    metas: Vec<MetaHost>,
    osds: Vec<OsdHost>,
    clients: Vec<ClientHost>,
    keeper: Caller<Setup>,
    directory: Directory,
    history: History,
    oracle: Oracle,
    prefix: Prefix,
    volumes: BTreeMap<usize, VolumeId>,
    lost: BTreeMap<OsdId, Synced>,
    setup_done: bool,
    primaries: BTreeMap<PgId, OsdId>,
    failure: Option<String>,
    healed: bool,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let osds = (0..options.osds).map(|index| OsdHost::new(index, &mut rng, options.model)).collect();
        let bus = Bus::new(rng.fork(1), options.verbose);
        Self {
            bus,
            metas: (0..options.members).map(|index| MetaHost::new(index, options.members)).collect(),
            osds,
            clients: (0..options.clients).map(|index| ClientHost::new(index, options.members)).collect(),
            keeper: Caller::new(Node::Keeper, 0x6b65_6570, options.members),
            directory: Directory::default(),
            history: History::default(),
            oracle: Oracle::default(),
            prefix: Prefix::default(),
            volumes: BTreeMap::new(),
            lost: BTreeMap::new(),
            setup_done: false,
            primaries: BTreeMap::new(),
            failure: None,
            healed: false,
            options,
        }
    }

    /// The whole run.
    pub(crate) fn run(mut self, seed: u64, plan: Option<Plan>) -> Report {
        let mut rng = Rng::new(seed).fork(2);
        self.begin();
        let start = 8 * SECOND;
        let end = start + self.options.safety;
        let plan = match plan {
            Some(plan) => plan.into_iter().map(|(at, fault)| (start + at, fault)).collect(),
            None => faults::plan(&mut rng, self.options.osds, self.options.members, start, end),
        };
        let doom = rng.between(start, end);
        self.bus.at(doom, Event::Doom);
        for (at, fault) in plan {
            self.bus.at(at, Event::Fault(fault));
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
            self.fail(|world| format!("reading everything at the end did not end: {}", world.ailments()));
        }
        // Let commit points and idle records settle.
        let rest = self.bus.now + 2 * SECOND;
        self.until(rest, |_| false);
        // What was on its way when all was healed may have been taken for a failure since.
        self.demand_whole();
        self.check_end();
        self.bus.stats.simulated = self.bus.now;
        let trace = self.bus.trace();
        Report { seed, trace, stats: self.bus.stats, failure: self.failure }
    }

    fn demand_whole(&mut self) {
        let limit = self.bus.now + self.options.liveness;
        if !self.until(limit, Self::is_whole) {
            let seconds = self.options.liveness / SECOND;
            self.fail(|world| format!("not whole {seconds} s after healing: {}", world.ailments()));
        }
    }

    fn fail(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.failure.is_none() {
            let what = what(self);
            self.bus.say(|| format!("FAILED: {what}"));
            self.failure = Some(what);
        }
    }

    fn begin(&mut self) {
        for member in &mut self.metas {
            member.start(&mut self.bus);
        }
        for index in 0..self.osds.len() {
            self.bus.after(1500 * MS, Event::Restart(Node::Osd(index)));
        }
        self.bus.set_life(Node::Keeper, 1, true);
        for client in &mut self.clients {
            client.start(&mut self.bus);
        }
        self.bus.after(PULSE, Event::Timer { at: Node::Keeper, life: 1, serial: 0 });
    }

    /// Runs until a moment, or until something holds; gives whether it does.
    fn until(&mut self, end: Nanos, holds: impl Fn(&Self) -> bool) -> bool {
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

    fn handle(&mut self, event: Event) {
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
        let acks = std::mem::take(&mut self.osds[index].acks);
        if !acks.is_empty() {
            let lost = self.lost.iter().map(|(id, synced)| (*id, synced));
            let disks: BTreeMap<OsdId, &Synced> =
                lost.chain(self.osds.iter().filter_map(|osd| Some((osd.id()?, &osd.synced)))).collect();
            for (request, pg, config) in acks {
                if let Err(failure) = self.oracle.acked(request, pg, &config, &disks) {
                    self.failure.get_or_insert(failure);
                }
            }
        }
        let Some(core) = &self.osds[index].core else { return };
        for status in core.status() {
            if let Err(failure) = self.prefix.committed(status.pg, status.committed) {
                self.failure.get_or_insert(failure);
            }
        }
        if let Some(failure) = self.osds[index].failure.take() {
            self.fail(|_| format!("osd {index}: {failure}"));
        }
        if self.osds[index].stopped {
            self.osds[index].kill(&mut self.bus, false);
            self.bus.after(300 * MS, Event::Restart(Node::Osd(index)));
        }
    }

    fn look_at_client(&mut self, index: usize) {
        if let Some(failure) = self.clients[index].failure.take() {
            self.fail(|_| format!("client {index}: {failure}"));
        }
        if std::mem::take(&mut self.clients[index].took_over)
            && let Some(volume) = self.clients[index].volume
        {
            for (_, other) in self.clients.iter_mut().enumerate().filter(|(other, _)| *other != index) {
                other.supersede(volume);
            }
        }
    }

    fn follow_failovers(&mut self, member: usize) {
        let map = Arc::clone(self.metas[member].map());
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

    fn newest_map(&self) -> &Arc<ClusterMap> {
        let maps = self.metas.iter().map(MetaHost::map);
        maps.max_by_key(|map| map.epoch).expect("there are members")
    }

    /// Makes pool, nodes and volumes once enough OSDs are there.
    fn set_up(&mut self) {
        if self.setup_done || self.newest_map().osds.len() < self.osds.len() {
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
        let request = CreatePoolRequest { mutation: None, pool: Some(pool), allow_degraded: false };
        self.keeper.call(&mut self.bus, Payload::CreatePool(request), Setup::Pool);
        for index in 0..self.clients.len() {
            let request = RegisterNodeRequest { mutation: None, name: format!("node{index}"), location: None };
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
                        mutation: None,
                        name: format!("volume{index}"),
                        pool: String::new(),
                        size: BLOCKS * u64::from(BLOCK_SIZE),
                        labels: Default::default(),
                    };
                    self.keeper.call(&mut self.bus, Payload::CreateVolume(request), Setup::Volume(index));
                }
            }
            (Some(Setup::Volume(index)), Some(Answer::CreateVolume(reply))) => {
                let volume = VolumeId(reply.volume.map_or(0, |volume| volume.id));
                self.volumes.insert(index, volume);
                self.clients[index].take(&mut self.bus, volume);
            }
            (Some(Setup::Delete), Some(Answer::Error(_))) => {
                // Still held: the detachment is on its way.
                self.bus.after(SECOND, Event::Doom);
            }
            (Some(what @ (Setup::Pool | Setup::Volume(_))), other) => {
                self.fail(|_| format!("{what:?} was refused: {other:?}"));
            }
            _ => {}
        }
    }

    /// The doomed volume is let go and deleted.
    fn doom(&mut self) {
        let Some(volume) = self.volumes.get(&DOOMED).copied() else { return };
        if let Some(holder) = self.clients.iter_mut().find(|client| client.volume == Some(volume)) {
            holder.release(&mut self.bus);
        }
        let volume = Some(VolumeRef { by: Some(volume_ref::By::Id(volume.0)) });
        let request = DeleteVolumeRequest { mutation: None, volume };
        self.keeper.call(&mut self.bus, Payload::DeleteVolume(request), Setup::Delete);
    }

    // ------------------------------------------------------------------------------------------------------ faults

    fn choose(&self, pick: Pick) -> usize {
        let map = self.newest_map();
        let config = |index: u32| map.pgs.get(&PgId { pool: PoolId(1), index });
        let id = match pick {
            Pick::Index(index) => return index,
            Pick::PrimaryOf(pg) => config(pg).and_then(|config| config.primary),
            Pick::ReplicaOf(pg) => {
                config(pg).and_then(|config| config.isr.iter().copied().find(|osd| Some(*osd) != config.primary))
            }
        };
        id.and_then(|id| self.directory.index.get(&id).copied()).unwrap_or(0)
    }

    fn inflict(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        self.bus.say(|| format!("fault: {fault:?}"));
        if !matches!(fault, Fault::Lose { .. }) {
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
            Fault::Isolate { osd, from, ways, lasts } => {
                let index = self.choose(osd);
                let fault = Fault::Isolate { osd: Pick::Index(index), from, ways, lasts };
                self.cut(&fault, true);
                self.bus.after(lasts, Event::Undo(fault));
            }
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
                self.bus.after(lasts, Event::Undo(fault));
            }
            Fault::Steal { volume } => {
                let free = self.clients.iter().position(ClientHost::holds_nothing);
                if let (Some(client), Some(volume)) = (free, self.volumes.get(&volume)) {
                    self.clients[client].take(&mut self.bus, *volume);
                }
            }
            Fault::Lose { osd } => {
                let index = self.choose(osd);
                if self.is_spare(index) {
                    self.lose(index);
                }
            }
            Fault::Blackout { back } => {
                for index in 0..self.osds.len() {
                    let later = back + self.bus.rng.below(SECOND);
                    self.kill_osd(index, true, later, None);
                }
            }
        }
    }

    /// Nothing depends on this disk alone: all is well, and every group it belongs to has another copy to spare.
    fn is_spare(&self, index: usize) -> bool {
        let Some(id) = self.osds[index].id() else { return false };
        let map = self.newest_map();
        let rich = |config: &cairn_types::map::PgConfig| {
            !config.isr.contains(&id) || config.isr.len() > self.options.min_size as usize
        };
        let well = self.osds.iter().all(|osd| osd.alive && !osd.paused) && !self.bus.any_cut();
        well && self.metas.iter().all(MetaHost::is_alive) && map.pgs.values().all(rich)
    }

    fn lose(&mut self, index: usize) {
        let id = self.osds[index].id().expect("spare ones are registered");
        *self.bus.stats.faults.entry("loss of a disk").or_default() += 1;
        self.bus.say(|| format!("osd {index} ({id}) loses its disk"));
        self.kill_osd(index, true, 2 * SECOND, Some(0));
        // What was flushed there before counted until it was lost.
        self.lost.insert(id, self.osds[index].synced.clone());
        let mut rng = self.bus.rng.fork(99);
        self.osds[index].replace_disk(&mut rng, self.options.model);
        let request = SetOsdPlaced { id: id.0, placed: false, weight: None };
        self.keeper.call(&mut self.bus, Payload::SetOsdPlaced(request), Setup::Other);
    }

    fn kill_osd(&mut self, index: usize, power: bool, back: Nanos, exited: Option<Nanos>) {
        if !self.osds[index].alive {
            return;
        }
        self.bus.say(|| format!("osd {index} dies"));
        let (id, incarnation) = (self.osds[index].id(), self.osds[index].incarnation());
        let registered = self.osds[index].core.is_some();
        self.osds[index].kill(&mut self.bus, power);
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

    fn cut(&mut self, fault: &Fault, on: bool) {
        let pairs = match fault {
            Fault::Isolate { osd: Pick::Index(index), from, ways, .. } => {
                let me = Node::Osd(*index);
                let (osds, members) = (self.options.osds, self.options.members);
                let others = faults::others(*from, *index, osds, members, self.options.clients);
                others.into_iter().map(|other| (me, other, *ways)).collect::<Vec<_>>()
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

    fn undo(&mut self, fault: &Fault) {
        if self.healed {
            return;
        }
        match fault {
            Fault::Isolate { .. } | Fault::SplitMembers { .. } => self.cut(fault, false),
            Fault::SlowDisk { osd: Pick::Index(index), .. } => self.osds[*index].disk_delay = 0,
            Fault::Weather { .. } => self.bus.weather = Weather::default(),
            _ => {}
        }
    }

    fn restart(&mut self, node: Node) {
        match node {
            Node::Osd(index) if !self.osds[index].alive => {
                self.osds[index].start(&mut self.bus, self.options.members);
            }
            Node::Meta(index) if !self.metas[index].is_alive() => self.metas[index].start(&mut self.bus),
            _ => {}
        }
    }

    fn resume(&mut self, index: usize) {
        if !self.osds[index].paused {
            return;
        }
        self.bus.say(|| format!("osd {index} goes on"));
        self.osds[index].paused = false;
        for event in std::mem::take(&mut self.osds[index].inbox) {
            self.handle(event);
        }
    }

    fn heal(&mut self) {
        self.bus.say(|| "everything is healed".to_owned());
        self.healed = true;
        self.bus.mend_all();
        for index in 0..self.metas.len() {
            self.restart(Node::Meta(index));
        }
        for index in 0..self.osds.len() {
            self.osds[index].disk_delay = 0;
            self.restart(Node::Osd(index));
            self.resume(index);
        }
    }

    // ------------------------------------------------------------------------------------------------------ the end

    /// Every group serves with all the members placement wants, and every client is at work.
    fn is_whole(&self) -> bool {
        let map = self.newest_map();
        let whole = |config: &cairn_types::map::PgConfig| {
            config.primary.is_some() && config.isr.len() == self.options.size as usize && config.backfill.is_empty()
        };
        let purged = self.volumes.get(&DOOMED).is_some_and(|volume| !map.volumes.contains_key(volume));
        !map.pgs.is_empty() && map.pgs.values().all(whole) && purged && self.primaries_serve() && self.sessions_settle()
    }

    fn primaries_serve(&self) -> bool {
        let active = self.osds.iter().filter_map(|osd| osd.core.as_ref()).flat_map(|core| core.status());
        let active = active.filter(|status| status.state == PgState::Active && status.missing_blocks == 0).count();
        active == PGS as usize
    }

    fn sessions_settle(&self) -> bool {
        self.clients.iter().all(|client| client.is_working() || client.holds_nothing())
            && self.clients.iter().any(ClientHost::is_working)
    }

    /// Clients stop making operations and read everything once more.
    fn sweep(&mut self) {
        for index in 0..self.clients.len() {
            self.clients[index].resting = true;
            if self.clients[index].is_working() {
                self.clients[index].sweep = (0..BLOCKS).collect();
                for _ in 0..4 {
                    self.bus.after(MS, Event::Work { client: index });
                }
            }
        }
    }

    fn is_swept(&self) -> bool {
        self.clients.iter().all(|client| client.holds_nothing() || (client.sweep.is_empty() && client.is_idle()))
    }

    fn ailments(&self) -> String {
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
        lines.join("\n  ")
    }

    /// Nothing is left of a deleted volume, nor of groups that live elsewhere now.
    fn check_cleared(&mut self, map: &ClusterMap) -> Result<(), String> {
        let doomed = self.volumes.get(&DOOMED).copied();
        for host in self.osds.iter_mut().filter(|osd| osd.core.is_some()) {
            let Some(id) = host.id() else { continue };
            for (pg, config) in &map.pgs {
                let content = host.medium.content(*pg, PGS);
                let member = config.isr.contains(&id);
                if let Some(left) = content.keys().find(|(object, _)| !member || Some(object.volume) == doomed) {
                    return Err(format!("{id} still has {left:?} of {pg}"));
                }
            }
        }
        Ok(())
    }

    fn check_end(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let map = Arc::clone(self.newest_map());
        let (directory, osds) = (&self.directory, &mut self.osds);
        let content = |id: OsdId, pg: PgId| {
            let host = directory.index.get(&id).map(|index| &mut osds[*index]);
            host.map(|host| host.medium.content(pg, PGS)).unwrap_or_default()
        };
        let equal = replicas::check(&map, content);
        let linear = linear::check(&self.history);
        let cleared = self.check_cleared(&map);
        if let Err(failure) = linear.and(equal).and(cleared) {
            self.fail(|_| failure);
        }
    }
}
