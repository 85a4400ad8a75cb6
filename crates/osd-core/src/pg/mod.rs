//! One placement group on one OSD: what every role shares, and who handles which fact. The roles are rooms of
//! their own: `order` and `activate` for a primary's life, `replica` for a member's, `read`, `recover`, `propose`,
//! `purge`, `join` for what a primary does besides, `fence` for whom it lets in.

mod absent;
mod activate;
mod config;
mod dups;
mod fence;
mod inspect;
mod join;
mod load;
mod log;
mod member;
mod missing;
mod order;
mod propose;
mod purge;
mod read;
mod record;
mod recover;
mod repair;
mod replica;
mod scrub;
mod split;
mod store;

use std::collections::VecDeque;

use cairn_types::io::{ClientRequest, ReadData};
use cairn_types::map::{Born, ClusterMap, PgConfig};
use cairn_types::peer::{PeerMessage, PgMessage, PgState, PgStatus};
use cairn_types::scrub::BlockCopy;
use cairn_types::{ConfVersion, Epoch, Incarnation, ObjectId, OsdId, PgId};

use crate::Time;
use crate::fills::Fills;
use crate::outbox::Outbox;
use crate::output::{Config, ConnId, ReadFailure};
use crate::peers::Peers;
use crate::planted::{Bug, planted};
use crate::upkeep::Upkeep;

pub(crate) use inspect::InspectFor;
pub use load::{LoadError, Remembered, remembered};
pub use log::BrokenLog;
pub use record::BadRecord;

/// Peer messages of a newer configuration that wait for the map, per PG.
const MAX_PARKED: usize = 128;

/// What a PG works with, lent for one event.
pub(crate) struct Ctx<'a> {
    pub(crate) now: Time,
    pub(crate) own: &'a Config,
    pub(crate) map: &'a ClusterMap,
    pub(crate) peers: &'a Peers,
    pub(crate) fills: &'a mut Fills,
    pub(crate) upkeep: &'a Upkeep,
    pub(crate) out: &'a mut Outbox,
    /// This OSD's store has no room.
    pub(crate) full: bool,
    /// Numbers the activations and queries of this life.
    pub(crate) attempts: &'a mut u64,
}

impl Ctx<'_> {
    /// A number no query of any life of this OSD had before.
    fn next_attempt(&mut self) -> u64 {
        *self.attempts += 1;
        (self.own.incarnation.0 << 32) | *self.attempts
    }
}

/// What it means to a PG that a transaction is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    /// This member has taken part in this configuration from then on.
    c: Option<ConfVersion>,
    /// The log is durable: in which lineage, through which position.
    log: Option<(u64, u64)>,
    /// A push is durable: of which attempt, which number.
    push: Option<(u64, u64)>,
    /// A slice of the old content is gone, in which attempt.
    emptied: Option<u64>,
    /// A step of a split.
    split: bool,
}

impl Durable {
    pub(crate) fn is_split_step(self) -> bool {
        self.split
    }
}

/// Whom a read is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadFor {
    /// A client.
    Client { serial: u64, read: read::ClientRead },
    /// A member that lacks the blocks.
    Push { to: OsdId, attempt: u64, id: u64 },
    /// A layer that is joined with the one below.
    Join { serial: u64, number: u64 },
    /// Another member, whose copy is bad.
    Pull { to: OsdId, attempt: u64, id: u64, object: ObjectId, offset: u32, len: u32 },
}

/// Whom a listing is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListFor {
    /// A member that is filled from nothing, in which attempt.
    Fill { to: OsdId, attempt: u64 },
    /// This member empties itself, in which attempt.
    Empty { attempt: u64 },
    /// The removal of deleted volumes; numbered, because one that was given up may be followed by another.
    Purge { number: u64 },
    /// The joining of layers above going snapshots, likewise.
    Join { number: u64 },
    /// This member's part in a scrub.
    Inspect { serial: u64 },
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Pg {
    id: PgId,
    me: OsdId,
    object_size: u32,
    size: usize,
    min_size: usize,
    /// In how many parts the pool lies, of which this is one.
    parts: u32,
    /// How far a split is that this member has heard of.
    split: split::Split,
    /// The split that what this member has came of; on its disk for a metadata service that has forgotten it.
    born: Option<Born>,
    /// In force here; the newest that a map brought.
    config: PgConfig,
    /// `config.c` is on this disk (I1).
    durable_c: ConfVersion,
    log: log::Log,
    dups: dups::Dups,
    absents: absent::Absents,
    missing: missing::Missing,
    /// The content up to the commit point is whole but for what `missing` names.
    usable: bool,
    /// This life has seen that nothing is left of it, since it had a part in it last.
    cleared: bool,
    /// The commit point that the store was told last.
    stored_commit: u64,
    /// When that was.
    stored_at: Time,
    primary: Option<Box<order::Primary>>,
    replica: replica::Replica,
    /// Repairs of this OSD's own bad blocks.
    repair: repair::Repair,
    /// This member's part in a scrub, and how many there were.
    inspection: Option<inspect::Inspection>,
    inspections: u64,
    scrub: scrub::Scrub,
    parked: VecDeque<(OsdId, Incarnation, PeerMessage)>,
    /// Rows of the dup table whose end goes with the next transaction.
    dropped: Vec<record::Attribute>,
    /// Something happened since the last `advance`.
    touched: bool,
}

impl Pg {
    /// A PG this OSD has never had.
    pub(crate) fn new(id: PgId, me: OsdId) -> Self {
        Self {
            id,
            me,
            object_size: cairn_types::OBJECT_SIZE,
            size: 1,
            min_size: 1,
            parts: 1,
            split: split::Split::default(),
            born: None,
            config: PgConfig::default(),
            durable_c: ConfVersion(0),
            log: log::Log::default(),
            dups: dups::Dups::default(),
            absents: absent::Absents::default(),
            missing: missing::Missing::default(),
            usable: true,
            cleared: false,
            stored_commit: 0,
            stored_at: Time(0),
            primary: None,
            replica: replica::Replica::default(),
            repair: repair::Repair::default(),
            inspection: None,
            inspections: 0,
            scrub: scrub::Scrub::default(),
            parked: VecDeque::new(),
            dropped: Vec::new(),
            touched: false,
        }
    }

    /// Something happened: `advance` is due.
    pub(crate) fn is_touched(&self) -> bool {
        self.touched
    }

    /// Everybody with a part in this PG, or who may get one.
    pub(crate) fn others(&self) -> impl Iterator<Item = OsdId> + '_ {
        let all = self.config.acting.iter().chain(&self.config.isr).chain(&self.config.backfill);
        let wanted = self.config.up.iter().filter(|_| self.is_primary());
        all.chain(wanted).copied().filter(|osd| *osd != self.me)
    }

    /// Whether this OSD has a part in it.
    pub(crate) fn is_member(&self) -> bool {
        is_member(&self.config, self.me)
    }

    /// Whether this OSD orders its writes.
    pub(crate) fn is_primary(&self) -> bool {
        self.primary.is_some()
    }

    /// Whether this primary wants that OSD's lease.
    pub(crate) fn wants_lease_of(&self, osd: OsdId) -> bool {
        self.is_primary() && self.config.acting.iter().chain(&self.config.backfill).any(|id| *id == osd)
    }

    /// A client's request that carries no newer configuration or epoch than this OSD knows.
    pub(crate) fn handle_client(&mut self, ctx: &mut Ctx<'_>, conn: ConnId, request: ClientRequest) {
        self.touched = true;
        self.take_request(ctx, conn, request);
    }

    /// What another OSD says about this PG.
    pub(crate) fn handle_peer(&mut self, ctx: &mut Ctx<'_>, from: OsdId, life: Incarnation, message: PeerMessage) {
        let PeerMessage::Pg { c, attempt, body, .. } = message else { return };
        if c < self.config.c {
            if let (true, PgMessage::Replicate { entries, .. }) = (planted(Bug::AckOldConfiguration), &body)
                && let Some(last) = entries.last()
            {
                let body = PgMessage::Ack { persisted: last.entry.point(), gap: false };
                ctx.out.send(from, self.id, c, attempt, body);
            }
            return;
        }
        if c > self.config.c {
            if self.parked.len() < MAX_PARKED {
                let message = PeerMessage::Pg { pg: self.id, c, attempt, body };
                self.parked.push_back((from, life, message));
            }
            return;
        }
        if self.is_splitting() {
            return;
        }
        self.touched = true;
        let from_primary = self.config.primary == Some(from);
        match body {
            PgMessage::QueryLog if from_primary => self.handle_query(ctx, from, attempt),
            PgMessage::FetchLog { after, through } if from_primary => {
                self.handle_fetch(ctx, from, attempt, after, through);
            }
            PgMessage::Align { at } if from_primary => self.handle_align(ctx, attempt, at),
            PgMessage::Replicate { commit, entries } if from_primary => {
                self.handle_replicate(ctx, attempt, commit, entries);
            }
            PgMessage::StartRecovery(start) if from_primary => self.handle_start_recovery(ctx, attempt, *start),
            PgMessage::Push(push) if from_primary => self.handle_push(ctx, attempt, push),
            PgMessage::Ack { persisted, gap } => self.handle_ack(ctx, from, attempt, persisted, gap),
            PgMessage::Fenced { seq, epoch } => self.handle_fenced(ctx, from, attempt, seq, epoch),
            PgMessage::LogReport(report) => self.handle_report(ctx, from, attempt, report),
            PgMessage::LogEntries { entries } => self.handle_fetched(ctx, from, attempt, entries),
            PgMessage::PushAck { id } => self.handle_push_ack(ctx, from, attempt, id),
            PgMessage::Pull { id, object, offset, len } => {
                self.handle_pull(ctx, from, attempt, id, object, (offset, len))
            }
            PgMessage::PullReply { id, runs } => self.handle_pull_reply(ctx, from, id, runs),
            PgMessage::ScrubAsk(ask) if from_primary => self.handle_scrub_ask(ctx, from, attempt, ask),
            PgMessage::ScrubFound(found) => self.handle_scrub_found(ctx, from, attempt, found),
            PgMessage::Mend(mend) if from_primary => self.handle_mend(attempt, &mend),
            // Only the primary of the present configuration is listened to (I1).
            PgMessage::QueryLog
            | PgMessage::FetchLog { .. }
            | PgMessage::Align { .. }
            | PgMessage::Replicate { .. }
            | PgMessage::StartRecovery(_)
            | PgMessage::Push(_)
            | PgMessage::ScrubAsk(_)
            | PgMessage::Mend(_) => {}
        }
    }

    /// A transaction of this PG is durable.
    pub(crate) fn handle_durable(&mut self, ctx: &mut Ctx<'_>, durable: Durable) {
        self.touched = true;
        if let Some(c) = durable.c {
            self.durable_c = self.durable_c.max(c);
        }
        if let Some((lineage, seq)) = durable.log {
            self.log.mark_persisted(lineage, seq);
        }
        if durable.log.is_some() || durable.c.is_some() {
            self.note_durable();
        }
        if let Some((attempt, id)) = durable.push {
            self.push_durable(ctx, attempt, id);
        }
        if durable.split {
            self.split.step_is_durable();
        }
        if let Some(attempt) = durable.emptied {
            self.empty_more(ctx, attempt);
        }
    }

    /// A read's result.
    pub(crate) fn handle_read(&mut self, ctx: &mut Ctx<'_>, what: ReadFor, result: Result<ReadData, ReadFailure>) {
        self.touched = true;
        match what {
            ReadFor::Client { serial, read } => self.client_read_done(ctx, serial, read, result),
            ReadFor::Push { to, attempt, id } => self.push_read_done(to, attempt, id, result),
            ReadFor::Join { serial, number } => self.join_read_done(ctx, serial, number, result),
            ReadFor::Pull { to, attempt, id, object, offset, len } => {
                self.pull_read_done(ctx, (to, attempt, id), (object, offset, len), result);
            }
        }
    }

    /// A listing's result.
    pub(crate) fn handle_list(&mut self, ctx: &mut Ctx<'_>, what: ListFor, objects: Vec<ObjectId>) {
        self.touched = true;
        match what {
            ListFor::Fill { to, attempt } => self.fill_listed(ctx, to, attempt, objects),
            ListFor::Empty { attempt } => self.empty_listed(ctx, attempt, objects),
            ListFor::Purge { number } => self.purge_listed(ctx, number, objects),
            ListFor::Join { number } => self.join_listed(ctx, number, objects),
            ListFor::Inspect { serial } => self.inspect_listed(ctx, serial, objects),
        }
    }

    /// An inspection's result.
    pub(crate) fn handle_inspected(&mut self, ctx: &mut Ctx<'_>, what: InspectFor, copies: &[BlockCopy]) {
        self.touched = true;
        match what {
            InspectFor::Client { serial, read } => self.client_inspected(ctx, serial, *read, copies),
            InspectFor::Scrub { serial } => self.piece_inspected(ctx, serial, copies),
            InspectFor::Repair { c, object, offset } => self.repair_inspected(c, (object, offset), copies),
        }
    }

    /// A tick: resends, deadlines, what is due.
    pub(crate) fn handle_tick(&mut self, ctx: &mut Ctx<'_>) {
        self.touched = true;
        self.resend(ctx);
        self.store_idle_commit(ctx);
        self.clear_stray(ctx);
    }

    /// Carries on with whatever the events since the last call made possible.
    pub(crate) fn advance(&mut self, ctx: &mut Ctx<'_>) {
        self.touched = false;
        if self.primary.is_some() {
            self.advance_primary(ctx);
        } else {
            self.advance_replica(ctx);
        }
        self.advance_repair(ctx);
        self.advance_scrub(ctx);
    }

    /// When something is due that no event will bring.
    pub(crate) fn deadline(&self, ctx: &Ctx<'_>) -> Option<Time> {
        self.primary_deadline(ctx).into_iter().chain(self.scrub_deadline(ctx)).min()
    }

    /// As this OSD sees it.
    pub(crate) fn status(&self) -> PgStatus {
        PgStatus {
            pg: self.id,
            c: self.config.c,
            state: self.state(),
            end: self.log.end(),
            committed: self.log.commit_point(),
            missing_blocks: self.missing.count(),
            recovering: self.recovering(),
            requests: self.requests(),
            scrubbing: self.scrub.under_way(),
            damaged_blocks: self.scrub.damaged(),
        }
    }

    fn state(&self) -> PgState {
        match &self.primary {
            Some(primary) if !primary.is_active() => PgState::Activating,
            Some(_) if self.is_held() => PgState::Held,
            Some(_) => PgState::Active,
            None if self.is_member() => PgState::Replica,
            None => PgState::Stray,
        }
    }

    /// Fewer members are in sync than the pool demands, or may be.
    fn is_held(&self) -> bool {
        self.in_force().any(|isr| isr.len() < self.min_size)
    }

    /// Asserts what must hold between any two events.
    pub(crate) fn invariants(&self) {
        assert!(self.stored_commit <= self.log.commit(), "the store never knows more than the core");
        assert!(self.log.persisted() <= self.log.end().seq());
        assert!(self.durable_c <= self.config.c);
        if let Some(primary) = &self.primary {
            assert_eq!(self.config.primary, Some(self.me), "I1");
            primary.invariants(&self.log);
        }
    }
}

/// Whether an OSD has a part in a configuration.
fn is_member(config: &PgConfig, osd: OsdId) -> bool {
    config.acting.contains(&osd) || config.isr.contains(&osd) || config.backfill.contains(&osd)
}

/// The newest epoch a message or request speaks of decides whether it must wait for the map.
pub(crate) fn is_ahead(request: &ClientRequest, epoch: Epoch, config: Option<&PgConfig>) -> bool {
    request.epoch > epoch || config.is_some_and(|config| request.c > config.c)
}
