//! An OSD: the real core, a disk that survives its process, a clock of its own, and its side of the metadata
//! service. It decides nothing. It is one room because each output of the core is carried out beside the state it touches.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_osd_core::{
    CasOutcome, CasToken, Config, ConnId, DownEvidence, InspectToken, ListToken, OsdCore, Output, PersistToken,
    PgChange, PgDecision, ReadToken, Time,
};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    self, ChangePgsRequest, CommandReply, Location, OsdReports, RegisterOsdRequest, ReportDownRequest,
    ReportOsdRequest, ReportPurgedRequest,
};
use cairn_types::io::ReplyBody;
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::peer::PeerMessage;
use cairn_types::scrub::ScrubOutcome;
use cairn_types::{BLOCK_SIZE, Epoch, Incarnation, ObjectId, OsdId, PgId, RequestId};

use crate::bus::{Body, Bus, Event, MS, Nanos, Node, SECOND};
use crate::caller::Caller;
use crate::check::flush::Synced;
use crate::check::once::Logs;
use crate::engine::Engine;
use crate::faults::Moment;
use crate::medium::{Done, Image, Medium};
use crate::profile::Profile;
use crate::rng::Rng;

/// Between looks at the metadata service.
const PULSE: Nanos = 200 * MS;
/// Between reports.
const REPORT: Nanos = SECOND;
/// A proposal without an answer is given up as unknown after this, in some lives.
const GIVE_UP: Nanos = 600 * MS;

/// What a call was for.
#[derive(Debug)]
enum Call {
    Register,
    Report,
    Cas(CasToken, Nanos),
    Other,
}

/// Who is who: OSD numbers are given by the metadata service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory {
    pub(crate) index: BTreeMap<OsdId, usize>,
}

/// What the disk remembers beside the store.
#[derive(Clone, Copy, Debug, Default)]
struct Identity {
    id: Option<OsdId>,
    incarnation: u64,
}

/// A disk as it once was.
#[derive(Clone, Debug)]
pub(crate) struct DiskImage {
    image: Image,
    identity: Identity,
}

/// A clock that runs at a rate of its own, in millionths, since some instant.
#[derive(Clone, Copy, Debug)]
struct Clock {
    rate: u64,
    since: Nanos,
    /// What it showed then.
    then: u64,
}

impl Clock {
    fn local(&self, now: Nanos) -> Time {
        let passed = u128::from(now.saturating_sub(self.since)) * u128::from(self.rate) / 1_000_000;
        Time(self.then + passed as u64)
    }

    fn global(&self, time: Time) -> Nanos {
        let ahead = u128::from(time.0.saturating_sub(self.then)) * 1_000_000;
        self.since + ahead.div_ceil(u128::from(self.rate)) as u64
    }
}

/// See the file's head.
pub(crate) struct OsdHost {
    pub(crate) index: usize,
    pub(crate) uuid: u128,
    pub(crate) life: u32,
    pub(crate) alive: bool,
    pub(crate) paused: bool,
    /// What came while it was paused.
    pub(crate) inbox: Vec<Event>,
    identity: Identity,
    incarnations: BTreeMap<u32, (OsdId, u64)>,
    pub(crate) medium: Medium,
    pub(crate) core: Option<OsdCore>,
    caller: Option<Caller<Call>>,
    clock: Clock,
    /// What its calendar is wrong by, seconds.
    skew: i64,
    timer_serial: u64,
    timer_at: Option<Nanos>,
    pulse_serial: u64,
    conns: BTreeMap<ConnId, (Node, u64)>,
    acked: Epoch,
    next_report: Nanos,
    map_at: Nanos,
    /// A disk operation takes this much longer.
    pub(crate) disk_delay: Nanos,
    gives_up: bool,
    pub(crate) synced: Synced,
    pub(crate) logs: Logs,
    log_entries: usize,
    page: usize,
    persisting: BTreeMap<u64, Vec<crate::check::flush::Effect>>,
    pub(crate) stopped: bool,
    /// Why its store failed.
    pub(crate) failure: Option<String>,
    /// Its disk was made to fail: that the store fails is right.
    pub(crate) expects_failure: bool,
    /// Its disk has broken its promises: what is on it may be damaged.
    pub(crate) ill: bool,
    /// Its disk cannot be used any more, or may not.
    pub(crate) unusable: Option<String>,
    told_full: bool,
    /// The PG of each write that came, by the newest map under which it was sent: a copy of an older frame that comes late
    /// names the whole of what has split since.
    requests: BTreeMap<RequestId, (Epoch, PgId)>,
    /// Acknowledged since the world looked last.
    pub(crate) acks: Vec<(RequestId, PgId, PgConfig)>,
    /// What a fault may have waited for since the world looked last, and who comes to this OSD.
    pub(crate) moments: Vec<(Moment, PgId, OsdId)>,
    /// Scrubs that ended since the world looked last.
    pub(crate) scrubbed: Vec<ScrubOutcome>,
    /// Blocks that were put in place by recovery or repair since the world looked last.
    pub(crate) landed: Vec<(ObjectId, u32)>,
}

impl OsdHost {
    pub(crate) fn new(index: usize, rng: &mut Rng, model: bool, profile: &Profile) -> Self {
        let uuid = 0x05d0_0000 + index as u128;
        let medium = new_medium(uuid, rng, model);
        Self {
            index,
            uuid,
            life: 0,
            alive: false,
            paused: false,
            inbox: Vec::new(),
            identity: Identity::default(),
            incarnations: BTreeMap::new(),
            medium,
            core: None,
            caller: None,
            clock: Clock { rate: rng.between(976_000, 1_024_000), since: 0, then: rng.below(1_000_000) * MS },
            skew: 0,
            timer_serial: 0,
            timer_at: None,
            pulse_serial: 0,
            conns: BTreeMap::new(),
            acked: Epoch(0),
            next_report: 0,
            map_at: 0,
            disk_delay: 0,
            gives_up: rng.chance(700),
            synced: Synced::default(),
            logs: Logs::default(),
            log_entries: profile.log_entries,
            page: profile.page,
            persisting: BTreeMap::new(),
            stopped: false,
            failure: None,
            expects_failure: false,
            ill: false,
            unusable: None,
            told_full: false,
            requests: BTreeMap::new(),
            acks: Vec::new(),
            moments: Vec::new(),
            scrubbed: Vec::new(),
            landed: Vec::new(),
        }
    }

    fn node(&self) -> Node {
        Node::Osd(self.index)
    }

    /// An empty disk, of another identity, for the next life.
    pub(crate) fn replace_disk(&mut self, rng: &mut Rng, model: bool) {
        self.uuid += 0x100;
        self.identity = Identity::default();
        self.synced = Synced::default();
        self.ill = false;
        self.logs = Logs::default();
        self.medium = new_medium(self.uuid, rng, model);
    }

    pub(crate) fn id(&self) -> Option<OsdId> {
        self.identity.id
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// Who a life of this process was, once it was registered.
    pub(crate) fn identity_of(&self, life: u32) -> Option<(OsdId, u64)> {
        self.incarnations.get(&life).copied()
    }

    fn local(&self, now: Nanos) -> Time {
        self.clock.local(now)
    }

    fn global(&self, time: Time) -> Nanos {
        self.clock.global(time)
    }

    /// From now on its clock runs at this rate.
    pub(crate) fn drift(&mut self, now: Nanos, rate: u64) {
        self.clock = Clock { rate, since: now, then: self.clock.local(now).0 };
    }

    /// Its calendar is wrong from now on.
    pub(crate) fn jump(&mut self, seconds: i64) {
        self.skew += seconds;
        if let Some(caller) = &mut self.caller {
            caller.skew = self.skew;
        }
    }

    /// The disk as it is, with what it remembers.
    pub(crate) fn image(&self) -> DiskImage {
        DiskImage { image: self.medium.image(), identity: self.identity }
    }

    /// The disk is an older image of itself.
    pub(crate) fn restore(&mut self, image: &DiskImage) {
        self.medium.restore(&image.image);
        self.identity = image.identity;
    }

    /// Each of two dead OSDs gets the other's disk, with all it remembers.
    pub(crate) fn swap_disks(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.uuid, &mut other.uuid);
        std::mem::swap(&mut self.identity, &mut other.identity);
        std::mem::swap(&mut self.medium, &mut other.medium);
        std::mem::swap(&mut self.synced, &mut other.synced);
        std::mem::swap(&mut self.logs, &mut other.logs);
        std::mem::swap(&mut self.expects_failure, &mut other.expects_failure);
        std::mem::swap(&mut self.ill, &mut other.ill);
    }

    // --------------------------------------------------------------------------------------------- life and death

    pub(crate) fn start(&mut self, bus: &mut Bus, members: usize) {
        self.life += 1;
        self.alive = true;
        self.stopped = false;
        self.timer_at = None;
        bus.set_life(self.node(), self.life, true);
        let session = u128::from(bus.rng.next()) << 64 | u128::from(bus.rng.next());
        let mut caller = Caller::new(self.node(), session, members);
        caller.skew = self.skew;
        self.told_full = false;
        let request = RegisterOsdRequest {
            mutation: None,
            uuid: self.uuid.to_be_bytes().to_vec().into(),
            cluster: self.identity.id.map(|_| vec![7; 16]).unwrap_or_default().into(),
            id: self.identity.id.map(|id| id.0),
            last_incarnation: self.identity.incarnation,
            addresses: vec![format!("unix:/sim/{}", self.index)],
            location: Some(Location { zone: "z".into(), rack: "r".into(), host: format!("h{}", self.index) }),
            device_class: "ssd".into(),
            capacity: 1 << 40,
            protocol: 1,
            ..RegisterOsdRequest::default()
        };
        caller.call(bus, Payload::RegisterOsd(request), Call::Register);
        self.caller = Some(caller);
        self.map_at = bus.now;
        self.arm_pulse(bus);
    }

    /// The process ends. What it had not flushed survives a kill, and a power cut only by chance.
    pub(crate) fn kill(&mut self, bus: &mut Bus, power: bool) {
        let mut rng = bus.rng.fork(self.index as u64);
        self.medium.crash(power, &mut rng);
        self.persisting.clear();
        self.alive = false;
        self.paused = false;
        self.inbox.clear();
        self.core = None;
        self.caller = None;
        self.conns.clear();
        self.acked = Epoch(0);
        bus.set_life(self.node(), self.life, false);
        bus.reset_connections(self.node());
    }

    fn registered(&mut self, bus: &mut Bus, reply: &meta::RegisterOsdReply, directory: &mut Directory) {
        let id = OsdId(reply.id);
        self.identity = Identity { id: Some(id), incarnation: reply.incarnation };
        self.incarnations.insert(self.life, (id, reply.incarnation));
        directory.index.retain(|_, index| *index != self.index);
        directory.index.insert(id, self.index);
        let config = Config {
            requests_per_pg: 64,
            bytes_in_flight: 4 << 20,
            log_entries: self.log_entries,
            page: self.page,
            ..Config::new(id, Incarnation(reply.incarnation), Epoch(reply.epoch))
        };
        let (epoch, pgs) = match self.medium.load() {
            Ok(found) => found,
            Err(error) => {
                bus.say(|| format!("osd {} cannot open its store: {error}", self.index));
                self.unusable = Some(error);
                return;
            }
        };
        for (pg, loaded) in &pgs {
            let log = loaded.log.iter().map(|entry| (entry.version.seq, entry.request));
            self.logs.found(*pg, log.clone());
            self.synced.found(*pg, loaded.log.first().map_or(loaded.commit, |entry| entry.version.seq - 1), log);
        }
        assert!(epoch <= Epoch(reply.epoch), "an OSD has seen an epoch that no registration follows");
        let (core, damaged) = OsdCore::load(config, bus.rng.next(), self.local(bus.now), epoch, pgs);
        if !damaged.is_empty() {
            assert!(self.ill, "a disk that keeps its promises loads: {damaged:?}");
            bus.stats.sometimes("a damaged group is filled anew");
        }
        let mut core = core;
        self.told_full = self.medium.is_full();
        core.handle_space(self.local(bus.now), self.told_full);
        self.core = Some(core);
        bus.say(|| format!("osd {} is {id} i{}", self.index, reply.incarnation));
        self.watch(bus);
    }

    // ------------------------------------------------------------------------------------------------------ events

    pub(crate) fn handle_timer(&mut self, bus: &mut Bus, directory: &mut Directory, serial: u64) {
        if serial == self.pulse_serial | 1 << 63 {
            self.pulse(bus);
            self.arm_pulse(bus);
        } else if serial == self.timer_serial {
            self.timer_at = None;
            let now = self.local(bus.now);
            if let Some(core) = &mut self.core {
                core.handle_timeout(now);
            }
        }
        self.drain(bus, directory);
    }

    fn arm_pulse(&mut self, bus: &mut Bus) {
        self.pulse_serial += 1;
        let serial = self.pulse_serial | 1 << 63;
        bus.after(PULSE, Event::Timer { at: self.node(), life: self.life, serial });
    }

    /// What a daemon does beside its core: calls again, reports, follows the map.
    fn pulse(&mut self, bus: &mut Bus) {
        let now = self.local(bus.now);
        if let Some(core) = &mut self.core
            && self.medium.is_full() != self.told_full
        {
            self.told_full = !self.told_full;
            bus.stats.sometimes("an OSD says that it is full");
            core.handle_space(now, self.told_full);
        }
        if self.told_full {
            self.medium.look_for_room();
        }
        let Some(caller) = &mut self.caller else { return };
        let limit = if self.gives_up { bus.now.saturating_sub(GIVE_UP) } else { 0 };
        for call in caller.abandon(|call| matches!(call, Call::Cas(_, at) if *at < limit)) {
            if let (Call::Cas(token, _), Some(core)) = (call, &mut self.core) {
                bus.stats.sometimes("a proposal's outcome is unknown");
                core.handle_cas(now, token, &CasOutcome::Unknown);
            }
        }
        let caller = self.caller.as_mut().expect("alive");
        caller.tick(bus);
        if self.core.is_some() && bus.now >= self.next_report {
            self.report(bus);
        }
        if bus.now.saturating_sub(self.map_at) > SECOND {
            self.map_at = bus.now;
            self.caller.as_mut().expect("alive").turn_away();
            self.watch(bus);
        }
    }

    fn watch(&mut self, bus: &mut Bus) {
        let since = self.core.as_ref().map_or(Epoch(0), |core| core.map().epoch);
        let member = self.caller.as_ref().expect("alive").member();
        bus.send(self.node(), member, Body::Watch { since });
    }

    fn report(&mut self, bus: &mut Bus) {
        self.next_report = bus.now + REPORT;
        let (Some(core), Some(id)) = (&self.core, self.identity.id) else { return };
        let report = ReportOsdRequest {
            id: id.0,
            incarnation: self.identity.incarnation,
            acked_epoch: self.acked.0,
            used: 0,
            oldest_io_ms: core.oldest_io_ms(self.local(bus.now)),
        };
        let caller = self.caller.as_mut().expect("alive");
        caller.abandon(|call| matches!(call, Call::Report));
        caller.call(bus, Payload::OsdReports(OsdReports { reports: vec![report] }), Call::Report);
    }

    pub(crate) fn handle_disk(&mut self, bus: &mut Bus, directory: &mut Directory, job: u64) {
        self.medium.finish(job);
        self.drain(bus, directory);
    }

    fn take_done(&mut self, bus: &mut Bus, done: Done) {
        let now = self.local(bus.now);
        let Some(core) = &mut self.core else { return };
        match done {
            Done::Persisted(tag) => {
                for effect in self.persisting.remove(&tag).unwrap_or_default() {
                    self.synced.take_in(effect);
                }
                core.handle_persisted(now, PersistToken(tag));
            }
            Done::Read(tag, result) => core.handle_read(now, ReadToken(tag), result),
            Done::Listed(tag, objects) => core.handle_list(now, ListToken(tag), objects),
            Done::Inspected(tag, copies) => core.handle_inspected(now, InspectToken(tag), &copies),
            Done::Failed(error) => {
                bus.say(|| format!("osd {}: its store failed: {error}", self.index));
                bus.stats.sometimes("a store fails");
                self.failure = Some(error);
                self.stopped = true;
            }
        }
    }

    pub(crate) fn handle_refused(&mut self, bus: &mut Bus, directory: &mut Directory, peer: Node) {
        let now = self.local(bus.now);
        if let (Some(core), Some(id)) = (&mut self.core, osd_of(directory, peer)) {
            core.handle_connection_refused(now, id);
        }
        self.drain(bus, directory);
    }

    pub(crate) fn handle_reset(&mut self, bus: &mut Bus, directory: &mut Directory, peer: Node) {
        let now = self.local(bus.now);
        if let (Some(core), Some(id)) = (&mut self.core, osd_of(directory, peer)) {
            core.handle_connection_lost(now, id);
        }
        self.drain(bus, directory);
    }

    pub(crate) fn handle_body(
        &mut self,
        bus: &mut Bus,
        directory: &mut Directory,
        from: Node,
        speaker: Option<(OsdId, u64)>,
        body: Body,
    ) {
        let now = self.local(bus.now);
        match body {
            // Who is meant was settled when the connection was made.
            Body::Peer { to, message } if Some(to) == self.identity.id => {
                if let (Some(core), Some((id, incarnation))) = (&mut self.core, speaker) {
                    core.handle_peer(now, id, Incarnation(incarnation), *message);
                }
            }
            Body::Dial { osd, link } if Some(osd) == self.identity.id => {
                bus.send(self.node(), from, Body::Dialled { link })
            }
            Body::Request { link, request } => {
                let conn = ConnId(match from {
                    Node::Client(index) => link << 16 | index as u64,
                    _ => 0,
                });
                self.conns.insert(conn, (from, link));
                if request.op.is_write() {
                    let sent = self.requests.entry(request.id).or_insert((request.epoch, request.pg));
                    *sent = (*sent).max((request.epoch, request.pg));
                }
                if let Some(core) = &mut self.core {
                    core.handle_client(now, conn, *request);
                }
            }
            Body::Map(map) => self.handle_map(bus, &map),
            Body::Answer { session, seq, reply } => self.handle_answer(bus, directory, session, seq, &reply),
            Body::NotTaken => {
                if let Some(caller) = &mut self.caller {
                    caller.turn_away();
                }
            }
            _ => {}
        }
        self.drain(bus, directory);
    }

    fn handle_map(&mut self, bus: &mut Bus, map: &Arc<ClusterMap>) {
        self.map_at = bus.now;
        let now = self.local(bus.now);
        if let Some(core) = &mut self.core {
            core.handle_map(now, Arc::clone(map));
            let epoch = core.map().epoch;
            let id = self.identity.id;
            bus.say(|| {
                let configs = map.pgs.iter().map(|(pg, config)| {
                    let isr = config.isr.iter().map(|osd| osd.0).collect::<Vec<_>>();
                    let acting = config.acting.iter().map(|osd| osd.0).collect::<Vec<_>>();
                    format!("{pg}:{} p{} {isr:?}/{acting:?}", config.c, config.primary.map_or(99, |osd| osd.0))
                });
                format!("{id:?} map {epoch} {}", configs.collect::<Vec<_>>().join(" "))
            });
        }
    }

    fn handle_answer(
        &mut self,
        bus: &mut Bus,
        directory: &mut Directory,
        session: u128,
        seq: u64,
        reply: &CommandReply,
    ) {
        let Some(call) = self.caller.as_mut().and_then(|caller| caller.answered(session, seq)) else { return };
        let now = self.local(bus.now);
        match (call, &reply.result) {
            (Call::Register, Some(Answer::RegisterOsd(reply))) => self.registered(bus, reply, directory),
            (Call::Register, Some(Answer::Error(error))) if self.identity.id.is_some() => {
                bus.say(|| format!("osd {} may not return: {}", self.index, error.message));
                self.unusable = Some(error.message.clone());
            }
            (Call::Register, _) => {
                // The cluster has no name yet: again, as a new call.
                let members = 3;
                self.life -= 1;
                self.start(bus, members);
            }
            (Call::Cas(token, _), Some(Answer::ChangePgs(reply))) => {
                let decisions = reply.outcomes.iter().filter_map(decision).collect();
                let outcome = CasOutcome::Decided { epoch: Epoch(reply.epoch), decisions };
                bus.say(|| format!("osd {} hears of {token:?}: {outcome:?}", self.index));
                if let Some(core) = &mut self.core {
                    core.handle_cas(now, token, &outcome);
                }
            }
            (Call::Cas(token, _), other) => {
                // The life is over, as its map will say; or else it is as good as unknown.
                bus.say(|| format!("osd {}: a proposal was answered with {other:?}", self.index));
                if let Some(core) = &mut self.core {
                    core.handle_cas(now, token, &CasOutcome::Unknown);
                }
            }
            (Call::Report | Call::Other, _) => {}
        }
    }

    // ------------------------------------------------------------------------------------------------------ orders

    fn drain(&mut self, bus: &mut Bus, directory: &Directory) {
        loop {
            while let Some(output) = self.core.as_mut().and_then(OsdCore::poll_output) {
                self.carry_out(bus, directory, output);
            }
            self.start_jobs(bus);
            let Some(done) = self.medium.take_done() else { break };
            self.take_done(bus, done);
        }
        self.arm(bus);
    }

    fn start_jobs(&mut self, bus: &mut Bus) {
        for (job, is_flush) in self.medium.take_jobs() {
            let base = if is_flush { bus.rng.between(100_000, 900_000) } else { bus.rng.between(20_000, 200_000) };
            bus.stats.flushes += u64::from(is_flush);
            let slow = if self.disk_delay > 0 { bus.rng.between(self.disk_delay / 2, self.disk_delay) } else { 0 };
            bus.after(base + slow, Event::Disk { osd: self.index, life: self.life, job });
        }
    }

    fn arm(&mut self, bus: &mut Bus) {
        let Some(due) = self.core.as_mut().and_then(OsdCore::poll_timeout) else { return };
        let at = self.global(due).max(bus.now);
        if self.timer_at.is_none_or(|set| at < set) {
            self.timer_at = Some(at);
            self.timer_serial += 1;
            bus.at(at, Event::Timer { at: self.node(), life: self.life, serial: self.timer_serial });
        }
    }

    fn carry_out(&mut self, bus: &mut Bus, directory: &Directory, output: Output) {
        let id = self.identity.id.expect("a core has a number");
        match output {
            Output::Persist { token, transaction } => {
                bus.say(|| format!("{id} stores {}", describe(&transaction)));
                self.logs.follow(&transaction);
                self.persisting.insert(token.0, crate::check::flush::effects(&transaction));
                self.landed.extend(crate::scrub::landed(&transaction));
                self.medium.submit(token.0, *transaction);
            }
            Output::PersistEpoch { token, epoch } => self.medium.submit_epoch(token.0, epoch),
            Output::Read { token, pg, object, offset, len } => self.medium.read(token.0, pg, object, offset, len),
            Output::List { token, pg, after, limit } => {
                let parts = self.core.as_ref().expect("alive").map().parts(pg);
                self.medium.list(token.0, pg, parts, after, limit);
            }
            Output::SendPeer { to, message } => {
                if let Some(index) = directory.index.get(&to) {
                    note_peer(bus, &message);
                    self.moments.extend(beginning(&message).map(|(moment, pg)| (moment, pg, to)));
                    bus.send(self.node(), Node::Osd(*index), Body::Peer { to, message: Box::new(message) });
                }
            }
            Output::Reply { conn, reply } => {
                let Some((client, link)) = self.conns.get(&conn).copied() else { return };
                if matches!(reply.result, Ok(ReplyBody::Done)) {
                    bus.stats.sometimes("writes acknowledged");
                    self.acked_write(reply.id);
                }
                bus.send(self.node(), client, Body::Reply { link, reply });
            }
            Output::ProposePgs { token, changes } => {
                bus.say(|| format!("{id} proposes {token:?} {changes:?}"));
                let joiners = self.joiners(&changes);
                self.moments.extend(joiners);
                for _ in changes.iter().filter(|change| change.split_at.is_some()) {
                    bus.stats.sometimes("a group is ready to split");
                }
                for _ in changes.iter().filter(|change| change.isr.len() == 1) {
                    bus.stats.sometimes("a group goes on without who is lost");
                }
                let changes = changes.iter().map(change).collect();
                let request = ChangePgsRequest {
                    mutation: None,
                    reporter: id.0,
                    incarnation: self.identity.incarnation,
                    changes,
                };
                let caller = self.caller.as_mut().expect("alive");
                caller.call(bus, Payload::ChangePgs(request), Call::Cas(token, bus.now));
            }
            Output::ReportDown { osd, incarnation, evidence } => {
                let evidence = match evidence {
                    DownEvidence::Silent => meta::DownEvidence::Silent,
                    DownEvidence::Refused => meta::DownEvidence::Refused,
                };
                bus.say(|| format!("{id} reports {osd} {evidence:?}"));
                let request = ReportDownRequest {
                    mutation: None,
                    reporter: Some(id.0),
                    osd: osd.0,
                    incarnation: incarnation.0,
                    evidence: evidence.into(),
                };
                self.caller.as_mut().expect("alive").call(bus, Payload::ReportDown(request), Call::Other);
            }
            Output::ReportPurged { volume, pg, snapshots, interval } => {
                bus.stats.sometimes(if snapshots.is_empty() {
                    "a group is purged"
                } else {
                    self.moments.push((Moment::Joined, pg, id));
                    "layers of a group are joined"
                });
                let request = ReportPurgedRequest {
                    mutation: None,
                    reporter: id.0,
                    incarnation: self.identity.incarnation,
                    volume: volume.0,
                    pg: Some(pg.into()),
                    snapshots: snapshots.iter().map(|id| id.0).collect(),
                    interval: interval.0,
                };
                self.caller.as_mut().expect("alive").call(bus, Payload::ReportPurged(request), Call::Other);
            }
            Output::Inspect { token, pg, object, offset, len, deep } => {
                self.medium.inspect(token.0, pg, object, (offset, len), deep);
            }
            Output::ReportScrub { outcome } => {
                if let Some(core) = &mut self.core {
                    core.handle_scrub_reported(outcome.pg, outcome.order);
                }
                self.scrubbed.push(*outcome);
            }
            Output::AckEpoch { epoch } => {
                self.acked = self.acked.max(epoch);
                self.report(bus);
            }
            Output::NeedMap { .. } => self.watch(bus),
            Output::Stop { reason } => {
                bus.say(|| format!("{id} stops: {reason}"));
                bus.stats.sometimes("an OSD is told that it is dead");
                self.stopped = true;
            }
        }
    }

    /// Whom these proposals take into in-sync sets, as this OSD knows them.
    fn joiners(&self, changes: &[PgChange]) -> Vec<(Moment, PgId, OsdId)> {
        let pgs = self.core.as_ref().map(|core| &core.map().pgs);
        let joins = |change: &PgChange| {
            let now = pgs.and_then(|pgs| pgs.get(&change.pg));
            let osd = change.isr.iter().find(|osd| now.is_some_and(|now| !now.isr.contains(osd)));
            osd.map(|osd| (Moment::Joins, change.pg, *osd))
        };
        changes.iter().filter_map(joins).collect()
    }

    /// A scrub is due, if this is the primary.
    pub(crate) fn order_scrub(&mut self, bus: &mut Bus, directory: &Directory, pg: PgId, deep: bool, order: u64) {
        let now = self.local(bus.now);
        if let Some(core) = self.core.as_mut().filter(|_| !self.paused) {
            core.handle_scrub(now, pg, deep, order);
            self.drain(bus, directory);
        }
    }

    /// For the oracle: a write is about to be acknowledged, under this configuration.
    fn acked_write(&mut self, request: RequestId) {
        let Some(((_, pg), core)) = self.requests.get(&request).copied().zip(self.core.as_ref()) else { return };
        if let Some(config) = core.map().pgs.get(&pg) {
            self.acks.push((request, pg, config.clone()));
        }
    }
}

fn new_medium(uuid: u128, rng: &mut Rng, model: bool) -> Medium {
    if model { Medium::Model(Box::default()) } else { Medium::Engine(Box::new(Engine::new(uuid, rng))) }
}

fn osd_of(directory: &Directory, node: Node) -> Option<OsdId> {
    let Node::Osd(index) = node else { return None };
    directory.index.iter().rev().find(|(_, i)| **i == index).map(|(id, _)| *id)
}

/// A transaction in one line, for whoever replays a seed.
fn describe(transaction: &cairn_osd_core::Transaction) -> String {
    use std::fmt::Write as _;
    let mut line = format!("{} commit {}", transaction.pg, transaction.commit);
    if let Some(to) = transaction.rewind {
        let _ = write!(line, " rewind {to}");
    }
    if let Some(base) = transaction.restart {
        let _ = write!(line, " restart {}", base.version);
    }
    for logged in &transaction.append {
        let (offset, len) = logged.entry.op.range();
        let object = logged.entry.op.object();
        let _ = write!(line, " +{} {object}[{}+{}]", logged.entry.version, offset / 4096, len / 4096);
    }
    for (object, runs) in &transaction.content {
        for run in runs {
            let _ = write!(line, " content {object}[{}+{}]", run.offset / 4096, run.len / 4096);
        }
    }
    line
}

/// The moment at which this message is sent.
fn beginning(message: &PeerMessage) -> Option<(Moment, PgId)> {
    use cairn_types::peer::{Missing, PgMessage};
    match message {
        PeerMessage::Pg { pg, body: PgMessage::StartRecovery(start), .. } => match start.missing {
            Missing::Everything => Some((Moment::Fills, *pg)),
            Missing::Blocks(_) => Some((Moment::Returns, *pg)),
        },
        _ => None,
    }
}

fn note_peer(bus: &mut Bus, message: &PeerMessage) {
    use cairn_types::peer::PgMessage;
    let PeerMessage::Pg { pg, c, attempt, body } = message else { return };
    let kind = match body {
        PgMessage::Replicate { .. } => 1,
        PgMessage::Ack { .. } => 2,
        PgMessage::Fenced { .. } => {
            bus.stats.sometimes("a replica refuses a fenced entry");
            3
        }
        PgMessage::QueryLog => 4,
        PgMessage::LogReport(_) => 5,
        PgMessage::FetchLog { .. } => {
            bus.stats.sometimes("a primary fetches a longer log");
            6
        }
        PgMessage::LogEntries { .. } => 7,
        PgMessage::Align { .. } => 8,
        PgMessage::StartRecovery(start) => {
            match &start.missing {
                cairn_types::peer::Missing::Blocks(blocks) => {
                    bus.stats.dirty_blocks += blocks.iter().map(|(_, set)| u64::from(set.count())).sum::<u64>();
                    bus.stats.sometimes("a delta recovery");
                }
                cairn_types::peer::Missing::Everything => bus.stats.sometimes("a fill from nothing"),
            }
            9
        }
        PgMessage::Push(push) => {
            bus.stats.pushed_blocks += push.runs.iter().map(|run| u64::from(run.len / BLOCK_SIZE)).sum::<u64>();
            10
        }
        PgMessage::PushAck { .. } => 11,
        PgMessage::Pull { .. } => 12,
        PgMessage::PullReply { .. } => 13,
        PgMessage::ScrubAsk(_) => 14,
        PgMessage::ScrubFound(_) => 15,
        PgMessage::Mend(_) => 16,
    };
    bus.note(&[u64::from(pg.index), c.0, *attempt, kind]);
}

fn change(change: &PgChange) -> meta::PgChange {
    let numbers = |set: &[OsdId]| set.iter().map(|osd| osd.0).collect();
    meta::PgChange {
        pg: Some(change.pg.into()),
        expect_c: change.expect_c.0,
        primary: change.primary.map(|osd| osd.0),
        isr: numbers(&change.isr),
        acting: numbers(&change.acting),
        backfill: numbers(&change.backfill),
        split_at: change.split_at.map(Into::into),
    }
}

fn decision(outcome: &meta::PgOutcome) -> Option<PgDecision> {
    let pg: PgId = outcome.pg?.into();
    let now = outcome.now.clone().and_then(|now| <(PgId, PgConfig)>::try_from(now).ok()).map(|(_, now)| now);
    Some(PgDecision { pg, applied: outcome.applied, now: now? })
}
