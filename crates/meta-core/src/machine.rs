//! The machine: opens the state, applies one command after the other, and remembers in memory what it would otherwise
//! read again and again (the map, the sessions, the counters).
//!
//! `apply` is a function of the state and the command. It knows no clock, no randomness and no I/O, so that every
//! member, and every replay, computes the same bytes. A command that is refused changes nothing but its session.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_placement::Exception;
use cairn_proto::convert::uuid_from;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    ClusterRecord, Command, CommandReply, ErrorCode, InitCluster, InitClusterReply, KvRecord, MapUpdate, MembersRecord,
    MutesRecord, NodeRecord, OsdRecord, Pg, Pool, PoolRules, RaiseClusterVersion, RaiseClusterVersionReply, Suspicion,
    Volume, VolumeRecord,
};
use cairn_proto::mvccpb;
use cairn_types::map::{ClusterMap, Osd, PgConfig};
use cairn_types::{Epoch, OsdId, PgId, PoolId, VolumeId};
use prost::Message;
use uuid::Uuid;

use crate::clock;
use crate::history::{History, Touched};
use crate::keys;
use crate::record::{self, name_of};
use crate::refusal::{Corrupt, Failure, Outcome, Refusal};
use crate::scrub::Scrubs;
use crate::session::{Admission, Sessions};
use crate::state::{Batch, Overlay, StateRead};
use crate::volume;

/// The layout of the state that this code reads and writes.
pub const STATE_FORMAT: u32 = 1;
/// The newest cluster version whose commands this code understands.
pub const SUPPORTED_CLUSTER_VERSION: u32 = 1;

/// What applying one command gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// To be written atomically with the applied index.
    pub batch: Batch,
    /// For whoever proposed the command.
    pub reply: CommandReply,
    /// What watchers must hear, in order.
    pub events: Vec<Event>,
}

/// A change that somebody may be watching.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The cluster map has a new epoch; the delta leads there from the one before.
    Map(MapUpdate),
    /// The metadata members changed. In an entry that changes raft's configuration, this says that it counts.
    Members(MembersRecord),
    /// The key-value half has a new revision. Each event carries the previous value, if there was one.
    Kv {
        /// The new revision.
        revision: i64,
        /// What it did, in order.
        events: Vec<mvccpb::Event>,
    },
    /// A lease began: its time runs from now on the leader's clock.
    LeaseGranted {
        /// Its number.
        id: i64,
        /// Seconds.
        ttl_s: i64,
    },
    /// A lease was revoked or ended.
    LeaseEnded {
        /// Its number.
        id: i64,
    },
}

/// What is remembered about an OSD beside what the map shows.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OsdNotes {
    pub(crate) confirmed: u64,
    pub(crate) oldest_io_ms: u64,
    pub(crate) suspicions: Vec<Suspicion>,
    /// Since when it is down; 0 while it is up.
    pub(crate) down_since_s: u64,
    /// It was taken out because it was down for too long.
    pub(crate) out_by_itself: bool,
    /// The OSD whose place it took.
    pub(crate) stands_for: Option<OsdId>,
}

/// Volumes of one pool, those in its trash too; what is being purged is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) volumes: u64,
    pub(crate) provisioned: u64,
    /// Of these, in the trash.
    pub(crate) trashed: u64,
    pub(crate) trashed_bytes: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, volume: &Volume) {
        let in_trash = u64::from(volume.trashed.is_some());
        self.volumes += 1;
        self.provisioned += volume.size;
        self.trashed += in_trash;
        self.trashed_bytes += in_trash * volume.size;
    }

    pub(crate) fn remove(&mut self, volume: &Volume) {
        let in_trash = u64::from(volume.trashed.is_some());
        self.volumes -= 1;
        self.provisioned -= volume.size;
        self.trashed -= in_trash;
        self.trashed_bytes -= in_trash * volume.size;
    }
}

/// The replicated state machine.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(crate) cluster: ClusterRecord,
    pub(crate) map: ClusterMap,
    pub(crate) notes: BTreeMap<OsdId, OsdNotes>,
    pub(crate) tallies: BTreeMap<PoolId, Tally>,
    pub(crate) rules: BTreeMap<PoolId, PoolRules>,
    pub(crate) nodes: BTreeMap<String, NodeRecord>,
    /// The nodes of every volume that is published.
    pub(crate) published: BTreeMap<VolumeId, Vec<String>>,
    /// What is in the trash, by the second in which its time there ends.
    pub(crate) trash: BTreeSet<(u64, VolumeId)>,
    pub(crate) exceptions: BTreeMap<PgId, Vec<Exception>>,
    pub(crate) kv: KvRecord,
    pub(crate) scrubs: Scrubs,
    pub(crate) members: MembersRecord,
    pub(crate) mutes: MutesRecord,
    sessions: Sessions,
    history: History,
}

/// One command's way through the machine.
pub(crate) struct Turn<'a> {
    pub(crate) state: Overlay<'a>,
    pub(crate) touched: Touched,
    pub(crate) events: Vec<Event>,
    pub(crate) now_s: u64,
}

impl<'a> Turn<'a> {
    /// A turn on this state. Who drops it without taking its batch has only rehearsed.
    pub(crate) fn on(state: &'a dyn StateRead) -> Self {
        Self { state: Overlay::new(state), touched: Touched::default(), events: Vec::new(), now_s: 0 }
    }
}

impl Machine {
    /// Reads the state that earlier batches left; an empty state is a cluster without a name.
    ///
    /// # Errors
    /// When a record cannot be read, or another version of Cairn wrote the state.
    pub fn open(state: &dyn StateRead) -> Result<Self, Corrupt> {
        let cluster: Option<ClusterRecord> = record::load(state, keys::CLUSTER)?;
        let cluster = cluster.unwrap_or(ClusterRecord {
            format: STATE_FORMAT,
            cluster_version: 1,
            next_pool: 1,
            next_volume: 1,
            ..Default::default()
        });
        if cluster.format != STATE_FORMAT {
            let found = format!("format {}", cluster.format);
            return Err(Corrupt::new(name_of(keys::CLUSTER), format!("state format {STATE_FORMAT}"), found));
        }
        let kv = crate::kv::standing(state)?;
        let mut machine = Self {
            map: ClusterMap { epoch: Epoch(cluster.epoch), ..ClusterMap::default() },
            cluster,
            notes: BTreeMap::new(),
            tallies: BTreeMap::new(),
            rules: BTreeMap::new(),
            nodes: BTreeMap::new(),
            published: BTreeMap::new(),
            trash: BTreeSet::new(),
            exceptions: BTreeMap::new(),
            kv,
            scrubs: Scrubs::open(state)?,
            members: record::load(state, keys::MEMBERS)?.unwrap_or_default(),
            mutes: record::load(state, keys::MUTES)?.unwrap_or_default(),
            sessions: Sessions::open(state)?,
            history: History::default(),
        };
        if !machine.cluster.cluster.is_empty() {
            let bad = |error| Corrupt::new(name_of(keys::CLUSTER), "a cluster uuid", error);
            machine.map.cluster = uuid_from("the cluster", &machine.cluster.cluster).map_err(bad)?;
            machine.map.min_protocol = machine.cluster.min_protocol as u16;
        }
        machine.map.settings = machine.cluster.settings.unwrap_or_default().into();
        machine.read_map(state)?;
        Ok(machine)
    }

    fn read_map(&mut self, state: &dyn StateRead) -> Result<(), Corrupt> {
        record::each(state, keys::OSDS, keys::OSDS, &mut |key, record: OsdRecord| {
            let osd: Osd = checked(key, record.osd.unwrap_or_default())?;
            let OsdRecord { confirmed, oldest_io_ms, suspicions, down_since_s, out_by_itself, .. } = record;
            let stands_for = record.stands_for.map(OsdId);
            let notes = OsdNotes { confirmed, oldest_io_ms, suspicions, down_since_s, out_by_itself, stands_for };
            self.notes.insert(osd.id, notes);
            self.map.osds.insert(osd.id, osd);
            Ok(true)
        })?;
        record::each(state, keys::POOLS, keys::POOLS, &mut |key, record: Pool| {
            let pool: cairn_types::map::Pool = checked(key, record)?;
            self.tallies.insert(pool.id, Tally::default());
            self.map.pools.insert(pool.id, pool);
            Ok(true)
        })?;
        record::each(state, keys::PGS, keys::PGS, &mut |key, record: Pg| {
            let (id, pg): (PgId, PgConfig) = checked(key, record)?;
            self.map.pgs.insert(id, pg);
            Ok(true)
        })?;
        self.read_exceptions(state)?;
        self.read_rules(state)?;
        record::each(state, keys::NODES, keys::NODES, &mut |_, record: NodeRecord| {
            self.nodes.insert(record.name.clone(), record);
            Ok(true)
        })?;
        record::each(state, keys::VOLUMES, keys::VOLUMES, &mut |_, record: VolumeRecord| {
            let shown = record.volume.clone().unwrap_or_default();
            self.note_publications(&record);
            if !record.deleting && !record.retired {
                self.tallies.entry(PoolId(shown.pool)).or_default().add(&shown);
                self.trash.extend(shown.trashed.map(|trashed| (trashed.expires_at_s, VolumeId(shown.id))));
            }
            if let Some(fence) = volume::fence_of(&record) {
                self.map.volumes.insert(VolumeId(shown.id), fence);
            }
            Ok(true)
        })
    }

    /// Applies the command at `index`. Commands come in the order of the log, each once, and each sees the state with
    /// the batch of the one before.
    ///
    /// # Errors
    /// When a record of this member's own state cannot be read: the member must stop, its state is not the others'.
    pub fn apply(&mut self, state: &dyn StateRead, index: u64, command: &[u8]) -> Result<Applied, Corrupt> {
        let mut turn = Turn::on(state);
        let command = match Command::decode(command) {
            Ok(command) => command,
            Err(error) => {
                let refusal = Refusal::invalid(format!("the command cannot be read: {error}"));
                return Ok(refuse(index, refusal));
            }
        };
        let session: Option<keys::Session> = match command.session.len() {
            0 => None,
            _ => match command.session.as_ref().try_into() {
                Ok(session) => Some(session),
                Err(_) => return Ok(refuse(index, Refusal::invalid("a session id must have 16 bytes"))),
            },
        };
        if let Some(id) = &session {
            match self.sessions.admit(id, command.seq, command.acked_through) {
                Err(refusal) => return Ok(refuse(index, refusal)),
                Ok(Admission::Repeated) => return self.repeat(state, id, command.seq),
                Ok(Admission::Fresh) => {}
            }
        }
        let (cluster, kv) = (self.cluster.clone(), self.kv);
        let (clock_s, behind_s) = clock::follow(self.cluster.clock_s, self.cluster.behind_s, command.now_s);
        (self.cluster.clock_s, self.cluster.behind_s) = (clock_s, behind_s);
        turn.now_s = self.cluster.clock_s;
        let (seq, acked_through) = (command.seq, command.acked_through);
        // Before the cluster has its name nothing is decided: the same request, sent again later, is a fresh one.
        let decided = self.cluster().is_some() || matches!(command.payload, Some(Payload::InitCluster(_)));
        let reply = match self.perform(&mut turn, command) {
            Ok(answer) => CommandReply { index, result: Some(answer) },
            Err(Failure::Corrupt(corrupt)) => return Err(corrupt),
            Err(Failure::Refused(refusal)) => {
                assert!(turn.state.is_unchanged() && turn.events.is_empty(), "a refusal changes nothing: {refusal}");
                CommandReply { index, result: Some(Answer::Error(refusal.into())) }
            }
        };
        self.publish_map(&mut turn);
        crate::kv::prune(self, &mut turn)?;
        if self.cluster != cluster {
            record::store(&mut turn.state, keys::CLUSTER.to_vec(), &self.cluster);
        }
        if self.kv != kv {
            record::store(&mut turn.state, keys::KV.to_vec(), &self.kv);
        }
        if let Some(id) = session.as_ref().filter(|_| decided) {
            let encoded = Bytes::from(reply.encode_to_vec());
            self.sessions.remember(&mut turn.state, (id, seq, acked_through), index, encoded);
        }
        Ok(Applied { batch: turn.state.into_batch(), reply, events: turn.events })
    }

    fn repeat(&self, state: &dyn StateRead, id: &keys::Session, seq: u64) -> Result<Applied, Corrupt> {
        let key = keys::reply(id, seq);
        let reply = record::load(state, &key)?.ok_or_else(|| Corrupt::new(name_of(&key), "a kept reply", "nothing"))?;
        Ok(Applied { batch: Batch::default(), reply, events: Vec::new() })
    }

    fn perform(&mut self, turn: &mut Turn<'_>, command: Command) -> Outcome<Answer> {
        self.check_version(command.version)?;
        let payload = command.payload.ok_or_else(|| {
            Refusal::new(ErrorCode::UnsupportedVersion, "the command carries nothing that this version knows")
        })?;
        if let Payload::InitCluster(request) = payload {
            return self.init_cluster(turn, &request).map(Answer::InitCluster);
        }
        if self.cluster().is_none() {
            return Err(Refusal::new(ErrorCode::NotInitialised, "the cluster has no name yet")
                .remedy("wait until the first leader is elected")
                .into());
        }
        Ok(match payload {
            Payload::InitCluster(_) => unreachable!("answered above"),
            Payload::RaiseClusterVersion(r) => Answer::RaiseClusterVersion(self.raise_cluster_version(r)?),
            Payload::BeginMembers(r) => Answer::BeginMembers(self.begin_members(turn, r)?),
            Payload::ChangeMember(r) => Answer::ChangeMember(self.change_member(turn, &r)?),
            Payload::MuteHealth(r) => Answer::MuteHealth(self.mute_health(turn, &r)?),
            Payload::RegisterOsd(r) => Answer::RegisterOsd(self.register_osd(turn, r)?),
            Payload::OsdReports(r) => Answer::OsdReports(self.osd_reports(turn, &r)?),
            Payload::ReportDown(r) => Answer::ReportDown(self.report_down(turn, &r)?),
            Payload::ChangePgs(r) => Answer::ChangePgs(self.change_pgs(turn, r)?),
            Payload::ReportPurged(r) => Answer::ReportPurged(self.report_purged(turn, &r)?),
            Payload::OrderScrub(r) => Answer::OrderScrub(self.order_scrub(turn, &r)?),
            Payload::ScheduleScrubs(r) => Answer::ScheduleScrubs(self.schedule_scrubs(turn, &r)?),
            Payload::ReportScrub(r) => Answer::ReportScrub(self.report_scrub(turn, r)?),
            Payload::SetOsdPlaced(r) => Answer::SetOsdPlaced(self.set_osd_placed(turn, &r)?),
            Payload::RemoveOsd(r) => Answer::RemoveOsd(self.remove_osd(turn, &r)?),
            Payload::ChangePlacement(r) => Answer::ChangePlacement(self.change_placement(turn, &r)?),
            Payload::ChangeSettings(r) => Answer::ChangeSettings(self.change_settings(turn, &r)?),
            Payload::CreatePool(r) => Answer::CreatePool(self.create_pool(turn, r)?),
            Payload::CreateVolume(r) => Answer::CreateVolume(self.create_volume(turn, r)?),
            Payload::ResizeVolume(r) => Answer::ResizeVolume(self.resize_volume(turn, &r)?),
            Payload::DeleteVolume(r) => Answer::DeleteVolume(self.delete_volume(turn, &r)?),
            Payload::ChangeVolume(r) => Answer::ChangeVolume(self.change_volume(turn, r)?),
            Payload::UndeleteVolume(r) => Answer::UndeleteVolume(self.undelete_volume(turn, &r)?),
            Payload::PurgeTrash(r) => Answer::PurgeTrash(self.purge_trash(turn, &r)?),
            Payload::ChangePool(r) => Answer::ChangePool(self.change_pool(turn, &r)?),
            Payload::RegisterNode(r) => Answer::RegisterNode(self.register_node(turn, r)?),
            Payload::PublishVolume(r) => Answer::PublishVolume(self.publish_volume(turn, &r)?),
            Payload::UnpublishVolume(r) => Answer::UnpublishVolume(self.unpublish_volume(turn, &r)?),
            Payload::Attach(r) => Answer::Attach(self.attach(turn, &r)?),
            Payload::Detach(r) => Answer::Detach(self.detach(turn, &r)?),
            Payload::CreateSnapshot(r) => Answer::CreateSnapshot(self.create_snapshot(turn, r)?),
            Payload::DeleteSnapshot(r) => Answer::DeleteSnapshot(self.delete_snapshot(turn, &r)?),
            Payload::ReportDrained(r) => Answer::ReportDrained(self.report_drained(turn, &r)?),
            Payload::FinishSnapshot(r) => Answer::FinishSnapshot(self.finish_snapshot(turn, &r)?),
            Payload::KvPut(_)
            | Payload::KvDeleteRange(_)
            | Payload::KvTxn(_)
            | Payload::KvCompact(_)
            | Payload::LeaseGrant(_)
            | Payload::LeaseRevoke(_)
            | Payload::LeaseExpire(_) => return crate::kv::perform(self, turn, payload),
        })
    }

    fn check_version(&self, version: u32) -> Result<(), Refusal> {
        let allowed = self.cluster.cluster_version;
        if version == 0 || version > allowed.min(SUPPORTED_CLUSTER_VERSION) {
            let message = format!("the command has version {version}, and this cluster carries out 1 to {allowed}");
            return Err(Refusal::new(ErrorCode::UnsupportedVersion, message)
                .remedy("upgrade every metadata member first; the cluster version then rises by itself"));
        }
        Ok(())
    }

    fn init_cluster(&mut self, turn: &mut Turn<'_>, request: &InitCluster) -> Outcome<InitClusterReply> {
        if self.cluster().is_none() {
            let cluster = uuid_from("the cluster's uuid", &request.cluster)?;
            let min_protocol = u16::try_from(request.min_protocol)
                .map_err(|_| Refusal::invalid("the lowest protocol version must fit 16 bits"))?;
            if cluster.is_nil() {
                return Err(Refusal::invalid("the nil uuid names no cluster").into());
            }
            self.cluster.cluster = request.cluster.clone();
            self.cluster.min_protocol = min_protocol.into();
            self.map.cluster = cluster;
            self.map.min_protocol = min_protocol;
            self.raise_epoch();
            turn.events.push(Event::Map(self.map_full()));
        }
        Ok(InitClusterReply { cluster: self.cluster.cluster.clone() })
    }

    fn raise_cluster_version(&mut self, request: RaiseClusterVersion) -> Outcome<RaiseClusterVersionReply> {
        if request.version > SUPPORTED_CLUSTER_VERSION {
            let message =
                format!("cluster version {} is unknown; the newest is {SUPPORTED_CLUSTER_VERSION}", request.version);
            return Err(Refusal::new(ErrorCode::UnsupportedVersion, message).into());
        }
        self.cluster.cluster_version = self.cluster.cluster_version.max(request.version);
        Ok(RaiseClusterVersionReply { version: self.cluster.cluster_version })
    }

    fn raise_epoch(&mut self) {
        self.map.epoch = self.map.epoch.next();
        self.cluster.epoch = self.map.epoch.0;
    }

    /// Ends a command that changed the map: one new epoch, one delta.
    fn publish_map(&mut self, turn: &mut Turn<'_>) {
        if turn.touched == Touched::default() {
            return;
        }
        self.raise_epoch();
        let touched = std::mem::take(&mut turn.touched);
        turn.events.push(Event::Map(touched.update(&self.map)));
        self.history.push(self.map.epoch, touched);
    }

    /// The cluster's name; `None` before the first command.
    #[must_use]
    pub fn cluster(&self) -> Option<Uuid> {
        Some(self.map.cluster).filter(|id| !id.is_nil())
    }

    /// The version up to which commands are carried out.
    #[must_use]
    pub fn cluster_version(&self) -> u32 {
        self.cluster.cluster_version
    }

    /// The cluster map.
    #[must_use]
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// The cluster's clock, from the stamps of its commands: seconds since 1970, never going back.
    #[must_use]
    pub fn clock_s(&self) -> u64 {
        self.cluster.clock_s
    }

    /// The newest revision of the key-value half: 1 while nothing was written.
    #[must_use]
    pub fn kv_revision(&self) -> i64 {
        self.kv.revision
    }

    /// History of the key-value half below this revision is gone.
    #[must_use]
    pub fn kv_compacted(&self) -> i64 {
        self.kv.compacted
    }

    /// Client sessions remembered.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// The whole map as one update.
    #[must_use]
    pub fn map_full(&self) -> MapUpdate {
        (&self.map).into()
    }

    /// What leads from `epoch` to the present map: a delta where the history reaches back that far, otherwise the
    /// whole map. `None` when there is nothing newer, or no map at all yet.
    #[must_use]
    pub fn map_since(&self, epoch: Epoch) -> Option<MapUpdate> {
        if epoch >= self.map.epoch {
            return None;
        }
        let delta = if epoch == Epoch::default() { None } else { self.history.since(epoch) };
        Some(delta.map_or_else(|| self.map_full(), |touched| touched.update(&self.map)))
    }
}

fn checked<M, T: TryFrom<M, Error = cairn_proto::convert::ConvertError>>(key: &[u8], message: M) -> Result<T, Corrupt> {
    message.try_into().map_err(|error| Corrupt::new(name_of(key), "a sound record", error))
}

fn refuse(index: u64, refusal: Refusal) -> Applied {
    let reply = CommandReply { index, result: Some(Answer::Error(refusal.into())) };
    Applied { batch: Batch::default(), reply, events: Vec::new() }
}
