//! The owner of one OSD's placement groups: routes facts to them, holds what they share, keeps time.
//!
//! Every event marks the groups it touches; `poll_output` lets those carry on once all events of the driver's turn
//! are in, so that what arrived together leaves together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use cairn_types::io::{ClientReply, ClientRequest, ReadData, Refusal};
use cairn_types::map::ClusterMap;
use cairn_types::peer::{Heartbeat, HeartbeatReply, PeerMessage, PgStatus};
use cairn_types::scrub::BlockCopy;
use cairn_types::{Epoch, Incarnation, ObjectId, OsdId, PgId};

use crate::Time;
use crate::fills::Fills;
use crate::outbox::{Outbox, PersistFor};
use crate::output::{
    CasOutcome, CasToken, Config, ConnId, InspectToken, ListToken, LoadedPg, Output, PersistToken, ReadFailure,
    ReadToken, StopReason,
};
use crate::peers::{HEARTBEAT_MS, Peers};
use crate::pg::{Ctx, LoadError, Pg, is_ahead};
use crate::upkeep::Upkeep;

/// Client requests that wait for a newer map.
const MAX_WAITING: usize = 1024;
/// Peer messages about groups that the map does not show yet.
const MAX_EARLY: usize = 256;

/// One OSD's replication. See the crate's head for what the driver owes it.
#[derive(Debug)]
pub struct OsdCore {
    config: Config,
    map: Arc<ClusterMap>,
    pgs: BTreeMap<PgId, Pg>,
    peers: Peers,
    fills: Fills,
    upkeep: Upkeep,
    out: Outbox,
    attempts: u64,
    now: Time,
    touched: BTreeSet<PgId>,
    next_tick: Option<Time>,
    /// Spreads the first tick, so that OSDs that start together do not beat together.
    phase_ms: u64,
    waiting: VecDeque<(ConnId, ClientRequest)>,
    early: VecDeque<(OsdId, Incarnation, PeerMessage)>,
    needed: Epoch,
    full: bool,
    stopped: bool,
    /// Some groups have heard of a split and are on their way through it.
    splitting: bool,
}

impl OsdCore {
    /// An OSD without content, at its start.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: Time) -> Self {
        let peers = Peers::new(config.osd, config.incarnation, now);
        Self {
            config,
            map: Arc::default(),
            pgs: BTreeMap::new(),
            peers,
            fills: Fills::default(),
            upkeep: Upkeep::default(),
            out: Outbox::default(),
            attempts: 0,
            now,
            touched: BTreeSet::new(),
            next_tick: None,
            phase_ms: cairn_types::id::mix(seed) % HEARTBEAT_MS,
            waiting: VecDeque::new(),
            early: VecDeque::new(),
            needed: Epoch(0),
            full: false,
            stopped: false,
            splitting: false,
        }
    }

    /// An OSD at its start with what its store found. Groups whose records make no sense are kept as members
    /// without usable content, to be filled anew; they are returned for the log.
    #[must_use]
    pub fn load(
        config: Config,
        seed: u64,
        now: Time,
        epoch: Epoch,
        pgs: Vec<(PgId, LoadedPg)>,
    ) -> (Self, Vec<(PgId, LoadError)>) {
        let mut core = Self::new(config, seed, now);
        let mut damaged = Vec::new();
        let mut seen = epoch;
        for (id, loaded) in pgs {
            let pg = match Pg::load(id, core.config.osd, loaded) {
                Ok((pg, epoch)) => {
                    seen = seen.max(epoch);
                    pg
                }
                Err(error) => {
                    damaged.push((id, error));
                    Pg::unusable(id, core.config.osd)
                }
            };
            core.pgs.insert(id, pg);
        }
        // Nothing is served from a map older than what this disk has seen (I7).
        core.config.registered = core.config.registered.max(seen);
        (core, damaged)
    }

    // ------------------------------------------------------------------------------------------------- facts

    /// A map. Older ones, and ones older than this life's registration, are ignored (I7).
    pub fn handle_map(&mut self, now: Time, map: Arc<ClusterMap>) {
        self.now = self.now.max(now);
        if self.stopped || map.epoch <= self.map.epoch || map.epoch < self.config.registered {
            return;
        }
        let Some(own) = map.osds.get(&self.config.osd) else { return self.stop(StopReason::Removed) };
        if own.incarnation > self.config.incarnation || own.dead_through >= self.config.incarnation {
            return self.stop(StopReason::DeclaredDead);
        }
        self.map = map;
        let me = self.config.osd;
        let map = Arc::clone(&self.map);
        self.peers.handle_map(self.now, &map, watched(&map, me));
        self.fills = Fills::of(&map, me);
        self.upkeep = Upkeep::of(&map);
        self.follow_map();
        self.out.persist_epoch(self.now, map.epoch);
        if self.pgs.is_empty() {
            self.next_tick = None;
        } else if self.next_tick.is_none() {
            self.next_tick = Some(self.now.plus_ms(self.phase_ms));
        }
        self.hear_what_waited();
    }

    /// What came before the map, or the half of a group, that it is about.
    fn hear_what_waited(&mut self) {
        for (from, life, message) in std::mem::take(&mut self.early) {
            self.handle_peer(self.now, from, life, message);
        }
        for (conn, request) in std::mem::take(&mut self.waiting) {
            self.handle_client(self.now, conn, request);
        }
    }

    /// A client's request. Every one is answered in the end, unless its connection goes first.
    pub fn handle_client(&mut self, now: Time, conn: ConnId, request: ClientRequest) {
        self.now = self.now.max(now);
        if self.stopped {
            return;
        }
        let epoch = self.map.epoch;
        let unready = epoch < self.config.registered;
        if unready || is_ahead(&request, epoch, self.map.pgs.get(&request.pg)) {
            if self.waiting.len() >= MAX_WAITING {
                self.refuse(conn, &request, Refusal::Busy);
            } else {
                self.need_map(request.epoch);
                self.waiting.push_back((conn, request));
            }
        } else if self.pgs.contains_key(&request.pg) {
            self.out.client_at = self.now;
            self.with(request.pg, |pg, ctx| pg.handle_client(ctx, conn, request));
        } else {
            self.refuse(conn, &request, Refusal::NotPrimary { epoch });
        }
    }

    /// What another OSD says. `incarnation` is the life that the connection is bound to.
    pub fn handle_peer(&mut self, now: Time, from: OsdId, incarnation: Incarnation, message: PeerMessage) {
        self.now = self.now.max(now);
        if self.stopped {
            return;
        }
        let before = self.peers.incarnation(from);
        if !self.peers.handle_heard(self.now, from, incarnation) {
            if !self.map.osds.contains_key(&from) {
                self.keep_early(from, incarnation, message);
            }
            return;
        }
        if before != incarnation {
            self.touch_shared(from);
        }
        match message {
            PeerMessage::Heartbeat(beat) => self.handle_heartbeat(from, &beat),
            PeerMessage::HeartbeatReply(reply) => {
                self.need_map(reply.epoch);
                self.peers.handle_heartbeat_reply(from, &reply, self.map.epoch);
                self.touch_shared(from);
            }
            PeerMessage::Pg { pg, .. } if self.pgs.contains_key(&pg) => {
                self.with(pg, |pg, ctx| pg.handle_peer(ctx, from, incarnation, message));
            }
            PeerMessage::Pg { .. } => self.keep_early(from, incarnation, message),
        }
    }

    /// A transaction, or an epoch, is durable.
    pub fn handle_persisted(&mut self, now: Time, token: PersistToken) {
        self.now = self.now.max(now);
        match self.out.persisted(token) {
            _ if self.stopped => {}
            Some(PersistFor::Pg(id, durable)) => {
                self.with(id, |pg, ctx| pg.handle_durable(ctx, durable));
                if self.splitting && durable.is_split_step() {
                    self.follow_map();
                    self.hear_what_waited();
                }
            }
            Some(PersistFor::Epoch(epoch)) => self.out.push(Output::AckEpoch { epoch }),
            None => {}
        }
    }

    /// A read's result: data of exactly the range asked for, with the state of each block.
    pub fn handle_read(&mut self, now: Time, token: ReadToken, result: Result<ReadData, ReadFailure>) {
        self.now = self.now.max(now);
        if let Some((id, what)) = self.out.read_done(self.now, token).filter(|_| !self.stopped) {
            self.with(id, |pg, ctx| pg.handle_read(ctx, what, result));
        }
    }

    /// A listing's result: fewer objects than asked for means that there are no more.
    pub fn handle_list(&mut self, now: Time, token: ListToken, objects: Vec<ObjectId>) {
        self.now = self.now.max(now);
        if let Some((id, what)) = self.out.list_done(token).filter(|_| !self.stopped) {
            self.with(id, |pg, ctx| pg.handle_list(ctx, what, objects));
        }
    }

    /// An inspection's result: one per block of the range asked for, as far as an object can reach.
    pub fn handle_inspected(&mut self, now: Time, token: InspectToken, copies: &[BlockCopy]) {
        self.now = self.now.max(now);
        if let Some((id, what)) = self.out.inspected(token).filter(|_| !self.stopped) {
            self.with(id, |pg, ctx| pg.handle_inspected(ctx, what, copies));
        }
    }

    /// A scrub is due. Ignored where this OSD is not the PG's active primary, and where this order was taken before:
    /// whoever orders repeats until the outcome of this order is reported.
    pub fn handle_scrub(&mut self, now: Time, pg: PgId, deep: bool, order: u64) {
        self.now = self.now.max(now);
        self.with(pg, |pg, _| pg.order_scrub(deep, order));
    }

    /// The metadata service has taken the outcome of this order in.
    pub fn handle_scrub_reported(&mut self, pg: PgId, order: u64) {
        self.with(pg, |pg, _| pg.scrub_reported(order));
    }

    /// A connection to or from an OSD broke.
    pub fn handle_connection_lost(&mut self, now: Time, osd: OsdId) {
        self.now = self.now.max(now);
        self.peers.handle_lost(self.now, osd);
        // Whoever lives answers at once, on a new connection.
        self.beat(osd);
    }

    /// Nobody listens at an OSD's address.
    pub fn handle_connection_refused(&mut self, now: Time, osd: OsdId) {
        self.now = self.now.max(now);
        self.peers.handle_refused(osd);
        self.report_failures();
        self.touch_shared(osd);
    }

    /// What came of a proposal.
    pub fn handle_cas(&mut self, now: Time, token: CasToken, outcome: &CasOutcome) {
        self.now = self.now.max(now);
        let Some(pgs) = self.out.proposal_done(token) else { return };
        for id in pgs {
            match outcome {
                CasOutcome::Unknown => self.with(id, |pg, ctx| pg.handle_cas(ctx, token, Epoch(0), None)),
                CasOutcome::Decided { epoch, decisions } => {
                    // A change that nothing is said about is as unknown as one that was lost.
                    let decision = decisions.iter().find(|decision| decision.pg == id);
                    self.with(id, |pg, ctx| pg.handle_cas(ctx, token, *epoch, decision));
                }
            }
        }
    }

    /// The store has room for writes, or has none.
    pub fn handle_space(&mut self, now: Time, full: bool) {
        self.now = self.now.max(now);
        if std::mem::replace(&mut self.full, full) != full && !self.stopped {
            // Whoever sends data here learns it at once, not with the next heartbeat.
            for osd in self.peers.watched().collect::<Vec<_>>() {
                self.say_beat(osd);
            }
        }
    }

    /// When `handle_timeout` is due; `None` while this OSD has nothing of any group.
    #[must_use]
    pub fn poll_timeout(&mut self) -> Option<Time> {
        if self.stopped {
            return None;
        }
        let ids = self.pgs.keys().copied().collect::<Vec<_>>();
        let due = ids.into_iter().filter_map(|id| self.with(id, |pg, ctx| pg.deadline(ctx))).min();
        self.next_tick.into_iter().chain(due).chain(self.out.pace.due(self.now)).min()
    }

    /// Time has come.
    pub fn handle_timeout(&mut self, now: Time) {
        self.now = self.now.max(now);
        if self.stopped {
            return;
        }
        if let Some(due) = self.next_tick.filter(|due| *due <= self.now) {
            self.next_tick = Some(self.now.plus_ms(HEARTBEAT_MS));
            self.peers.handle_lag(self.now, self.now.ms_since(due));
            // What was asked for and refused since the last map holds no place.
            self.fills = Fills::of(&self.map, self.config.osd);
            let awaited = self.pgs.values().flat_map(Pg::awaited);
            for osd in self.peers.watched().chain(awaited).collect::<BTreeSet<_>>() {
                self.say_beat(osd);
            }
            for id in self.pgs.keys().copied().collect::<Vec<_>>() {
                self.with(id, |pg, ctx| pg.handle_tick(ctx));
            }
            self.report_failures();
            let pgs = &self.pgs;
            self.out.keep_reservations(|id, osd| pgs.get(&id).is_some_and(|pg| pg.recovering().contains(&osd)));
            self.out.keep_splits(|id| pgs.get(&id).is_some_and(Pg::is_about_to_split));
        }
        self.touched.extend(self.pgs.iter().filter(|(_, pg)| pg.is_primary()).map(|(id, _)| *id));
    }

    // ------------------------------------------------------------------------------------------------ orders

    /// The next order, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        loop {
            if let Some(output) = self.out.pop() {
                return Some(output);
            }
            if self.touched.is_empty() || self.stopped {
                return None;
            }
            for id in std::mem::take(&mut self.touched) {
                self.with(id, |pg, ctx| pg.advance(ctx));
                if let Some(pg) = self.pgs.get(&id) {
                    pg.invariants();
                }
            }
            self.propose();
        }
    }

    /// The map this OSD follows.
    #[must_use]
    pub fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    /// Age of the oldest unfinished disk operation, milliseconds: for the report to the metadata service.
    #[must_use]
    pub fn oldest_io_ms(&self, now: Time) -> u64 {
        self.out.oldest_io_ms(now)
    }

    /// Every group this OSD has content of or a part in.
    #[must_use]
    pub fn status(&self) -> Vec<PgStatus> {
        self.pgs.values().map(Pg::status).collect()
    }

    /// OSDs that share a group with this one and cannot be counted on, as far as this one knows.
    #[must_use]
    pub fn unreachable(&self) -> Vec<OsdId> {
        self.peers.watched().filter(|osd| self.peers.is_down(self.now, *osd)).collect()
    }

    /// Asserts what must hold between any two events.
    pub fn invariants(&self) {
        self.pgs.values().for_each(Pg::invariants);
    }

    // ---------------------------------------------------------------------------------------------- the rest

    /// Groups that have split since the last map: what this OSD has of one is in two from now on, step by step. Gives those
    /// that are not yet ready for the map.
    fn split_groups(&mut self) -> BTreeSet<PgId> {
        let map = Arc::clone(&self.map);
        let mut unready = BTreeSet::new();
        // In ascending order, so that a half is there before it is split itself.
        for (id, born) in map.pgs.iter().filter_map(|(id, config)| Some((*id, config.born.as_ref()?))) {
            let whole = PgId { pool: id.pool, index: born.from };
            // What is two splits behind comes to the second after the first.
            if unready.contains(&whole) {
                unready.insert(id);
                continue;
            }
            if !self.pgs.get(&whole).is_some_and(|pg| pg.is_ahead_of(born)) {
                continue;
            }
            if let Some(half) = self.pgs.get(&id).filter(|half| half.is_born_as(born)) {
                if !half.split_step_is_durable() {
                    unready.extend([whole, id]);
                }
                continue;
            }
            if !self.with(whole, |pg, ctx| pg.clear_for_split(ctx, born)) {
                unready.extend([whole, id]);
            } else if !self.pgs.contains_key(&id)
                && let Some(half) = self.with(whole, |pg, ctx| pg.split_off(ctx, id, born))
            {
                self.pgs.insert(id, half);
                unready.extend([whole, id]);
            }
        }
        unready
    }

    /// Every group follows the map, as soon as it has split.
    fn follow_map(&mut self) {
        let led = self.led();
        let unready = self.split_groups();
        let me = self.config.osd;
        for (id, config) in self.map.pgs.iter().filter(|(id, _)| !unready.contains(id)) {
            if [&config.acting, &config.isr, &config.backfill].iter().any(|set| set.contains(&me)) {
                self.pgs.entry(*id).or_insert_with(|| Pg::new(*id, me));
            }
        }
        for id in self.pgs.keys().copied().filter(|id| !unready.contains(id)).collect::<Vec<_>>() {
            self.with(id, |pg, ctx| pg.handle_map(ctx));
        }
        self.tell_of_the_lead(&led);
        self.splitting = !unready.is_empty();
    }

    /// Lends a group what it works with, and remembers whether it must carry on.
    fn with<R: Default>(&mut self, id: PgId, event: impl FnOnce(&mut Pg, &mut Ctx<'_>) -> R) -> R {
        let Some(pg) = self.pgs.get_mut(&id) else { return R::default() };
        let mut ctx = Ctx {
            now: self.now,
            own: &self.config,
            map: &self.map,
            peers: &self.peers,
            fills: &mut self.fills,
            upkeep: &self.upkeep,
            out: &mut self.out,
            full: self.full,
            attempts: &mut self.attempts,
        };
        let result = event(pg, &mut ctx);
        if pg.is_touched() {
            self.touched.insert(id);
        }
        result
    }

    fn handle_heartbeat(&mut self, from: OsdId, beat: &Heartbeat) {
        self.need_map(beat.epoch);
        let own = HeartbeatReply {
            echo: 0,
            echo_incarnation: Incarnation(0),
            epoch: self.map.epoch,
            lease: false,
            oldest_io_ms: self.out.oldest_io_ms(self.now) as u32,
            full: self.full,
        };
        let reply = self.peers.handle_heartbeat(self.now, from, beat, own);
        self.out.push(Output::SendPeer { to: from, message: PeerMessage::HeartbeatReply(reply) });
        for news in &beat.commits {
            self.with(news.pg, |pg, _| pg.handle_commit(from, news));
        }
        self.touch_shared(from);
    }

    fn beat(&mut self, osd: OsdId) {
        if !self.stopped && self.peers.watched().any(|other| other == osd) {
            self.say_beat(osd);
        }
    }

    /// The groups that this OSD orders.
    fn led(&self) -> BTreeSet<PgId> {
        self.pgs.iter().filter(|(_, pg)| pg.is_primary()).map(|(id, _)| *id).collect()
    }

    /// A lead that changes hands on purpose must not wait for a heartbeat: whoever lost it says at once that it knows,
    /// whoever got it asks at once for leases, and asks those that may still hold a lease of its own.
    fn tell_of_the_lead(&mut self, led: &BTreeSet<PgId>) {
        let now = self.led();
        let lost = led.difference(&now).filter_map(|id| self.map.pgs.get(id)?.primary);
        let got = now.difference(led).filter_map(|id| self.pgs.get(id)).flat_map(|pg| pg.others().chain(pg.awaited()));
        for osd in lost.chain(got).filter(|osd| *osd != self.config.osd).collect::<BTreeSet<_>>() {
            self.say_beat(osd);
        }
    }

    fn say_beat(&mut self, osd: OsdId) {
        let want_lease = self.pgs.values().any(|pg| pg.wants_lease_of(osd));
        let commits = self.pgs.values_mut().filter_map(|pg| pg.commit_news(osd)).collect();
        let beat = Heartbeat {
            sent_at: self.now.0,
            epoch: self.map.epoch,
            want_lease,
            oldest_io_ms: self.out.oldest_io_ms(self.now) as u32,
            full: self.full,
            commits,
        };
        self.out.push(Output::SendPeer { to: osd, message: PeerMessage::Heartbeat(beat) });
    }

    fn report_failures(&mut self) {
        for (osd, incarnation, evidence) in self.peers.reports_due(self.now) {
            self.out.push(Output::ReportDown { osd, incarnation, evidence });
        }
    }

    /// All changes that groups wish for, as one command.
    fn propose(&mut self) {
        let changes = self.pgs.values().filter_map(Pg::wanted_change).collect::<Vec<_>>();
        if changes.is_empty() {
            return;
        }
        let ids = changes.iter().map(|change| change.pg).collect::<Vec<_>>();
        let token = self.out.propose(changes);
        for id in ids {
            self.with(id, |pg, _| pg.note_proposed(token));
        }
    }

    fn touch_shared(&mut self, osd: OsdId) {
        let concerns = |pg: &Pg| pg.others().chain(pg.awaited()).any(|other| other == osd);
        let shared = self.pgs.iter().filter(|(_, pg)| pg.is_primary() && concerns(pg));
        self.touched.extend(shared.map(|(id, _)| *id));
    }

    fn need_map(&mut self, epoch: Epoch) {
        if epoch > self.map.epoch && epoch > self.needed {
            self.needed = epoch;
            self.out.push(Output::NeedMap { epoch });
        }
    }

    fn keep_early(&mut self, from: OsdId, life: Incarnation, message: PeerMessage) {
        if matches!(message, PeerMessage::Pg { .. }) && self.early.len() < MAX_EARLY {
            self.early.push_back((from, life, message));
        }
    }

    fn refuse(&mut self, conn: ConnId, request: &ClientRequest, refusal: Refusal) {
        self.out.push(Output::Reply { conn, reply: ClientReply { id: request.id, result: Err(refusal) } });
    }

    fn stop(&mut self, reason: StopReason) {
        self.stopped = true;
        self.out.push(Output::Stop { reason });
    }
}

/// Everybody who shares a group with an OSD, or may get a part in one that it leads.
fn watched(map: &ClusterMap, me: OsdId) -> BTreeSet<OsdId> {
    let mut all = BTreeSet::new();
    for config in map.pgs.values() {
        let members = config.acting.iter().chain(&config.isr).chain(&config.backfill);
        if members.clone().any(|osd| *osd == me) {
            all.extend(members.copied());
            all.extend(config.up.iter().filter(|_| config.primary == Some(me)).copied());
        }
    }
    all
}
