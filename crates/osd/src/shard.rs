//! The loop: waits for readiness, takes in everything that arrived, lets core and store work until neither has an
//! order left, then submits and sends it all at once. It sleeps until the next event or deadline; it never polls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cairn_osd_core::{InspectToken, ListToken, OsdCore, Output, PersistToken, ReadToken, Time};
use cairn_rpc::Address;
use cairn_store::{Rejection, Store, Token, Usage};
use cairn_types::map::ClusterMap;
use cairn_types::scrub::ScrubOutcome;
use cairn_types::{Incarnation, OsdId};
use mio::{Events, Poll};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use crate::carrier::{core_read, put_epoch, store_transaction};
use crate::control::{Fact, Inbox, Question};
use crate::disk_io::DiskIo;
use crate::figures::Figures;
use crate::net::{Arrival, Network};
use crate::requests::Requests;

/// Readiness events taken in one turn.
const EVENTS: usize = 256;

/// Below this many free bytes, or this part of the device, writes are refused; what is left is for deletes, trims
/// and the index.
const RESERVE: u64 = 64 << 20;
const RESERVE_PART: u64 = 32;

/// How often the disk's use is told, while there is anything to do at all.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// How long a stop waits for what is under way.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How the loop ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// As asked.
    Shutdown,
    /// This life is over; why.
    Failed(String),
}

/// What a token of the store stands for in the core.
enum Purpose {
    Persist(PersistToken),
    Read(ReadToken),
    List(ListToken),
    Inspect(InspectToken),
}

/// Everything the loop owns.
pub(crate) struct Shard {
    own: OsdId,
    poll: Poll,
    network: Network,
    store: Store,
    core: OsdCore,
    disk_io: DiskIo,
    inbox: Arc<Inbox>,
    ask: mpsc::Sender<Question>,
    purposes: BTreeMap<Token, Purpose>,
    requests: Requests,
    told: Option<Instant>,
    told_full: bool,
    stopping: Option<Instant>,
}

/// CLOCK_BOOTTIME: leases must not stand still while the machine sleeps.
pub(crate) fn now() -> Time {
    let time = clock_gettime(ClockId::Boottime);
    Time(time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned())
}

impl Shard {
    #[allow(clippy::too_many_arguments)] // it owns them all, and nobody else makes one
    pub(crate) fn new(
        own: OsdId,
        poll: Poll,
        network: Network,
        store: Store,
        mut core: OsdCore,
        disk_io: DiskIo,
        inbox: Arc<Inbox>,
        ask: mpsc::Sender<Question>,
    ) -> Self {
        // Nothing is let in before there is known to be room for it.
        let told_full = is_full(&store.usage(), false);
        core.handle_space(now(), told_full);
        Self {
            own,
            poll,
            network,
            store,
            core,
            disk_io,
            inbox,
            ask,
            purposes: BTreeMap::new(),
            requests: Requests::counted(Figures::on_page()),
            told: None,
            told_full,
            stopping: None,
        }
    }

    /// Runs until it is told to stop, or must.
    pub(crate) fn run(mut self) -> Ended {
        let mut events = Events::with_capacity(EVENTS);
        let mut more = false;
        loop {
            let wait = if more { Some(Duration::ZERO) } else { self.wait() };
            if let Err(error) = self.poll.poll(&mut events, wait) {
                if error.kind() == std::io::ErrorKind::Interrupted {
                    continue;
                }
                return Ended::Failed(format!("the loop cannot wait for events: {error}"));
            }
            match self.turn(&events) {
                Ok(unfinished) => more = unfinished,
                Err(ended) => return ended,
            }
        }
    }

    /// Until the next deadline of anybody.
    fn wait(&mut self) -> Option<Duration> {
        let deadlines = [self.core.poll_timeout(), self.network.poll_timeout()];
        let next = deadlines.into_iter().flatten().min();
        let until = next.map(|at| Duration::from_nanos(at.0.saturating_sub(now().0)));
        // A stop is waited for in small steps; it happens once.
        if self.stopping.is_some() { Some(Duration::from_millis(10)) } else { until }
    }

    /// One turn; whether connections are left that have more to read.
    fn turn(&mut self, events: &Events) -> Result<bool, Ended> {
        let now = now();
        let mut arrivals = Vec::new();
        for event in events {
            if event.token().0 != 0 {
                self.network.handle_ready(now, event, &mut arrivals);
            }
        }
        let unfinished = self.network.handle_unfinished(now, &mut arrivals);
        self.network.handle_timeout(now, &mut arrivals);
        for fact in self.inbox.take() {
            self.handle_fact(now, fact)?;
        }
        for (id, result) in self.disk_io.take_done() {
            self.store.handle_io(id, result);
        }
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now);
        }
        self.settle(now, arrivals)?;
        self.tell(now);
        self.stopped()?;
        Ok(unfinished)
    }

    /// Core and store work until neither has an order left, and everything is submitted and sent.
    fn settle(&mut self, now: Time, mut arrivals: Vec<Arrival>) -> Result<(), Ended> {
        loop {
            for arrival in std::mem::take(&mut arrivals) {
                self.handle_arrival(now, arrival);
            }
            let mut idle = true;
            while let Some(output) = self.core.poll_output() {
                self.carry_out(now, output, &mut arrivals)?;
                idle = false;
            }
            let mut batch = Vec::new();
            while let Some(io) = self.store.poll_io() {
                batch.push(io);
            }
            if let Some(figures) = self.requests.figures().filter(|_| !batch.is_empty()) {
                figures.submitted(&batch);
            }
            self.disk_io.submit(batch);
            while let Some(output) = self.store.poll_output() {
                self.handle_store(now, output)?;
                idle = false;
            }
            self.network.flush(now, &mut arrivals);
            if idle && arrivals.is_empty() {
                return Ok(());
            }
        }
    }

    fn handle_arrival(&mut self, now: Time, arrival: Arrival) {
        match arrival {
            Arrival::Request(conn, request) => {
                self.requests.begin(now, conn, &request);
                self.core.handle_client(now, conn, *request);
            }
            Arrival::ClientGone(conn) => self.requests.forget(conn),
            Arrival::Peer(osd, incarnation, message) => self.core.handle_peer(now, osd, incarnation, message),
            Arrival::PeerLost(osd) => self.core.handle_connection_lost(now, osd),
            Arrival::PeerRefused(osd) => self.core.handle_connection_refused(now, osd),
        }
    }

    fn handle_fact(&mut self, now: Time, fact: Fact) -> Result<(), Ended> {
        match fact {
            Fact::Map(map) => {
                if let Some(figures) = self.requests.figures() {
                    figures.follow(&map, self.own);
                }
                self.network.handle_peers(map.epoch, peers(&map, self.own));
                self.core.handle_map(now, map);
            }
            Fact::Decided(token, outcome) => self.core.handle_cas(now, token, &outcome),
            Fact::Scrub(orders) => {
                for order in orders {
                    let pg = order.pg.unwrap_or_default().into();
                    self.core.handle_scrub(now, pg, order.deep, order.order);
                }
            }
            Fact::ScrubReported(pg, order) => self.core.handle_scrub_reported(pg, order),
            Fact::Dead => {
                return Err(Ended::Failed("this life was declared dead; a restart registers a new one".into()));
            }
            Fact::Shutdown => {
                self.stopping.get_or_insert_with(Instant::now);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, now: Time, output: Output, arrivals: &mut Vec<Arrival>) -> Result<(), Ended> {
        match output {
            Output::Persist { token, transaction } => {
                let ours = self.store.submit(store_transaction(*transaction));
                self.purposes.insert(ours, Purpose::Persist(token));
            }
            Output::PersistEpoch { token, epoch } => {
                let ours = put_epoch(&mut self.store, epoch);
                self.purposes.insert(ours, Purpose::Persist(token));
            }
            Output::Read { token, pg, object, offset, len } => {
                let ours = self.store.read(pg, object, offset, len);
                self.purposes.insert(ours, Purpose::Read(token));
            }
            Output::Inspect { token, pg, object, offset, len, deep } => {
                let ours = self.store.inspect(pg, object, offset, len, deep);
                self.purposes.insert(ours, Purpose::Inspect(token));
            }
            Output::List { token, pg, after, limit } => {
                let ours = self.store.list(pg, self.core.map().parts(pg), after, limit);
                self.purposes.insert(ours, Purpose::List(token));
            }
            Output::SendPeer { to, message } => self.network.send(now, to, message, arrivals),
            Output::Reply { conn, reply } => {
                self.requests.end(now, conn, &reply);
                self.network.reply(conn, reply, arrivals);
            }
            Output::ProposePgs { token, changes } => self.question(Question::Propose(token, changes)),
            Output::ReportDown { osd, incarnation, evidence } => {
                tracing::warn!(%osd, %incarnation, ?evidence, "does not answer");
                self.question(Question::Down(osd, incarnation, evidence));
            }
            Output::ReportPurged { volume, pg, snapshots, interval } => {
                self.question(Question::Purged(volume, pg, snapshots, interval));
            }
            Output::ReportScrub { outcome } => {
                note_scrub(&outcome);
                self.question(Question::Scrubbed(outcome));
            }
            Output::AckEpoch { epoch } => self.question(Question::Acknowledge(epoch)),
            // The watch delivers every map as it comes; there is nothing faster to ask.
            Output::NeedMap { epoch } => tracing::debug!(%epoch, "waiting for a newer map"),
            Output::Stop { reason } => return Err(Ended::Failed(reason.to_string())),
        }
        Ok(())
    }

    fn handle_store(&mut self, now: Time, output: cairn_store::Output) -> Result<(), Ended> {
        use cairn_store::Output as Stored;
        match output {
            Stored::Persisted { token } => {
                if let Some(Purpose::Persist(token)) = self.purposes.remove(&token) {
                    self.core.handle_persisted(now, token);
                }
            }
            Stored::Read { token, result } => {
                if let Some(Purpose::Read(token)) = self.purposes.remove(&token) {
                    self.core.handle_read(now, token, core_read(result));
                }
            }
            Stored::Inspected { token, blocks } => {
                if let Some(Purpose::Inspect(token)) = self.purposes.remove(&token) {
                    self.core.handle_inspected(now, token, &blocks);
                }
            }
            Stored::Listed { token, objects, .. } => {
                if let Some(Purpose::List(token)) = self.purposes.remove(&token) {
                    self.core.handle_list(now, token, objects);
                }
            }
            Stored::Rejected { reason: reason @ Rejection::NoSpace { .. }, .. } => {
                let why = format!("{reason}, although writes are refused before that; add capacity or delete volumes");
                return Err(Ended::Failed(why));
            }
            Stored::Rejected { reason, .. } => panic!("the core and the store disagree: {reason}"),
            Stored::Failed { error } => {
                return Err(Ended::Failed(format!(
                    "the store failed and believes only the disk from here on: {error}"
                )));
            }
        }
        Ok(())
    }

    /// A question that finds no room is dropped: the channel is long, and the core asks again.
    fn question(&self, question: Question) {
        if let Err(error) = self.ask.try_send(question) {
            tracing::warn!(%error, "the metadata service is too far behind; a question was dropped");
        }
    }

    /// Tells the core whether there is room, and the metadata service how much is used.
    fn tell(&mut self, now: Time) {
        let usage = self.store.usage();
        let full = is_full(&usage, self.told_full);
        if full != self.told_full {
            self.told_full = full;
            let available = usage.available();
            if full {
                tracing::warn!(available, "no room: writes and fills are refused, reads, deletes and discards go on");
            } else {
                tracing::info!(available, "there is room for writes");
            }
            self.core.handle_space(now, full);
        }
        if !self.store.knows_room() {
            return;
        }
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            if full {
                // While nobody may write, nothing else would find out that there is room again.
                self.store.request_checkpoint();
            }
            let used = usage.used.saturating_sub(usage.reclaiming);
            let oldest_io_ms = self.disk_io.oldest_ms();
            if let Some(figures) = self.requests.figures() {
                figures.tell(&usage, self.requests.len(), self.disk_io.waiting(), oldest_io_ms);
            }
            self.question(Question::Disk { used, oldest_io_ms });
        }
    }

    /// A stop waits for what is under way: nothing is lost without it, but the next start has less to replay.
    fn stopped(&mut self) -> Result<(), Ended> {
        let Some(since) = self.stopping else { return Ok(()) };
        if self.store.is_idle() || since.elapsed() >= STOP_PATIENCE {
            return Err(Ended::Shutdown);
        }
        Ok(())
    }
}

/// Whether new data is refused. Once it is, somewhat more room is wanted before it is taken again, so that an OSD at
/// the edge does not change its mind with every delete.
fn is_full(usage: &Usage, already: bool) -> bool {
    let least = RESERVE.max(usage.capacity / RESERVE_PART).min(usage.capacity / 4);
    usage.available() < if already { least + least / 8 } else { least }
}

fn note_scrub(outcome: &ScrubOutcome) {
    let ScrubOutcome { pg, deep, objects, blocks, repaired, damaged_count, .. } = outcome;
    let found = outcome.found.values().sum::<u64>();
    if *damaged_count > 0 {
        tracing::error!(%pg, deep, objects, blocks, found, repaired, damaged = damaged_count, "scrubbed: data is lost");
        for block in &outcome.damaged {
            tracing::error!(%pg, object = %block.object, offset = block.offset, damage = ?block.damage, "no good copy");
        }
    } else if found > 0 {
        tracing::warn!(%pg, deep, objects, blocks, found, repaired, "scrubbed: bad copies");
    } else {
        tracing::info!(%pg, deep, objects, blocks, "scrubbed");
    }
}

/// Every other OSD that may be spoken to.
fn peers(map: &ClusterMap, own: OsdId) -> impl Iterator<Item = (OsdId, Incarnation, Vec<Address>)> + '_ {
    map.osds.values().filter(move |osd| osd.id != own && !map.is_dead(osd.id, osd.incarnation)).map(|osd| {
        let addresses = osd.addresses.iter().filter_map(|text| text.parse().ok()).collect();
        (osd.id, osd.incarnation, addresses)
    })
}
