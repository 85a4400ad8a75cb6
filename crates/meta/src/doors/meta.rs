//! Cairn's own service. A call that changes something becomes one command under the client's session; a call that asks
//! is answered from a state that contains everything acknowledged before it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_meta_core::{Failure, FencePending, Refusal, fence_pending, health, members, moves, query, scrub};
use cairn_meta_raft::StoreError;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::meta_server::Meta;
use cairn_proto::meta::{
    AttachReply, AttachRequest, BackupPiece, BackupRequest, ChangeMemberReply, ChangeMemberRequest, ChangePgsReply,
    ChangePgsRequest, ChangePlacementReply, ChangePlacementRequest, ChangePoolReply, ChangePoolRequest,
    ChangeSettingsReply, ChangeSettingsRequest, ChangeVolumeReply, ChangeVolumeRequest, CreatePoolReply,
    CreatePoolRequest, CreateSnapshotReply, CreateSnapshotRequest, CreateVolumeReply, CreateVolumeRequest,
    DeleteSnapshotReply, DeleteSnapshotRequest, DeleteVolumeReply, DeleteVolumeRequest, DetachReply, DetachRequest,
    DownEvidence, ErrorCode, FinishSnapshot, GetSnapshotReply, GetSnapshotRequest, GetVolumeReply, GetVolumeRequest,
    HealthCheck, HealthReply, HealthRequest, ListNodesReply, ListNodesRequest, ListPgsReply, ListPgsRequest,
    ListPoolsReply, ListPoolsRequest, ListSnapshotsReply, ListSnapshotsRequest, ListVolumesReply, ListVolumesRequest,
    MapUpdate, Member, MemberRecord, Mutation, MuteHealthReply, MuteHealthRequest, OrderScrubReply, OrderScrubRequest,
    PublishVolumeReply, PublishVolumeRequest, PurgeTrashReply, PurgeTrashRequest, RegisterNodeReply,
    RegisterNodeRequest, RegisterOsdReply, RegisterOsdRequest, ReportDownReply, ReportDownRequest, ReportDrainedReply,
    ReportDrainedRequest, ReportOsdReply, ReportOsdRequest, ReportPurgedReply, ReportPurgedRequest, ReportScrubReply,
    ReportScrubRequest, ResizeVolumeReply, ResizeVolumeRequest, ScheduleScrubsReply, ScheduleScrubsRequest, Snapshot,
    SnapshotPhase, SnapshotRef, StatusReply, StatusRequest, UndeleteVolumeReply, UndeleteVolumeRequest,
    UnpublishVolumeReply, UnpublishVolumeRequest, VolumeRef, WatchMapRequest, snapshot_ref, volume_ref,
};
use cairn_types::{Epoch, PoolId, SnapId};
use futures::Stream;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::errors::{explained, status};
use super::kv::mixed_up;
use super::request_id;
use crate::clock;
use crate::gateway::Gateway;
use crate::leader::{Leader, command};
use crate::peers::Peers;

/// Map updates on their way into one stream; a slow client then gets one larger step.
const UPDATES: usize = 4;
/// How long an attach waits for its fence before it names what is missing. The client asks again.
const FENCE_PATIENCE: Duration = Duration::from_secs(8);
/// How long a snapshot waits for the holder of its volume, which waits a little less for its writes.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(7);
/// Placement groups, or OSDs, that are named in one sentence.
const NAMED: usize = 8;
/// A watch at a member that has lost its leader ends after this long: the client finds another.
const LEADERLESS: Duration = Duration::from_secs(5);

pub(crate) struct MetaDoor {
    pub(crate) me: u64,
    pub(crate) gateway: Gateway,
    pub(crate) leader: Leader,
    pub(crate) peers: Arc<Peers>,
    pub(crate) epochs: watch::Receiver<u64>,
    pub(crate) stop: CancellationToken,
}

type Reply<T> = Result<Response<T>, Status>;

/// Takes the mutation off a request, carries the rest out as one command, and takes the answer of the same name.
macro_rules! mutate {
    ($door:expr, $request:expr, $kind:ident) => {{
        let id = request_id(&$request);
        let mut request = $request.into_inner();
        let mutation = request.mutation.take();
        match $door.carry_out(stringify!($kind), Payload::$kind(request), mutation, id).await? {
            Answer::$kind(reply) => reply,
            _ => return Err(mixed_up()),
        }
    }};
}

impl MetaDoor {
    async fn carry_out(
        &self,
        name: &'static str,
        payload: Payload,
        mutation: Option<Mutation>,
        id: String,
    ) -> Result<Answer, Status> {
        let mut command = command(payload, id);
        let mutation = mutation.unwrap_or_default();
        if !mutation.request_id.is_empty() && mutation.request_id.len() <= 128 {
            command.request_id = mutation.request_id;
        }
        let request_id = command.request_id.clone();
        let answer = match mutation.session.is_empty() {
            true => self.gateway.propose_once(command).await,
            false => {
                command.session = mutation.session;
                command.seq = mutation.seq;
                command.acked_through = mutation.acked_through;
                self.gateway.propose(command).await
            }
        };
        match &answer {
            Ok(_) => tracing::debug!(request_id, command = name, "carried out"),
            Err(error) => tracing::info!(request_id, command = name, "not carried out: {error}"),
        }
        answer.map_err(status)
    }

    async fn wait_for_fence(&self, pool: PoolId, epoch: Epoch) -> Result<(), Status> {
        let deadline = Instant::now() + FENCE_PATIENCE;
        let mut progresses = self.gateway.progresses();
        loop {
            progresses.borrow_and_update();
            let pending = self.gateway.local(move |machine, _| fence_pending(machine.map(), pool, epoch));
            let pending = pending.await.map_err(status)?;
            if pending.holds() {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, progresses.changed()).await.is_err() {
                return Err(unfenced(&pending, epoch));
            }
        }
    }

    /// Waits until a snapshot is complete. One that nobody writes to is so once no earlier holder can write either.
    async fn wait_for_snapshot(&self, reply: &CreateSnapshotReply) -> Result<Snapshot, Status> {
        let snapshot = reply.snapshot.clone().unwrap_or_default();
        let (id, name) = (SnapId(snapshot.id), snapshot.name);
        let deadline = Instant::now() + SNAPSHOT_PATIENCE;
        let mut progresses = self.gateway.progresses();
        loop {
            progresses.borrow_and_update();
            let found = self.gateway.query_here(move |_, state| Ok(query::snapshot_on_its_way(state, id)?));
            match found.await.map_err(status)? {
                Some((found, _)) if found.phase() == SnapshotPhase::Ready => return Ok(found),
                Some((found, waits)) if found.phase() == SnapshotPhase::Taking => {
                    if !waits {
                        self.wait_for_fence(PoolId(found.pool), Epoch(reply.epoch)).await?;
                        self.finish_snapshot(id, true).await?;
                        continue;
                    }
                }
                _ => {
                    let message = format!(
                        "snapshot `{name}` was not taken: the volume was attached, detached or taken over meanwhile"
                    );
                    return Err(explained(Code::Aborted, &message, "take it again"));
                }
            }
            if tokio::time::timeout_at(deadline, progresses.changed()).await.is_err() {
                if let Some(found) =
                    self.finish_snapshot(id, false).await?.filter(|s| s.phase() == SnapshotPhase::Ready)
                {
                    return Ok(found);
                }
                let by = VolumeRef { by: Some(volume_ref::By::Id(snapshot.volume)) };
                let volume = self.gateway.query_here(move |_, state| Ok(query::volume(state, &by)?)).await;
                let volume = volume.ok().flatten().unwrap_or_default();
                let nodes: Vec<&str> = volume.attachments.iter().map(|holder| holder.node.as_str()).collect();
                let message = format!(
                    "snapshot `{name}` was not taken: the holder of volume `{}` on node {} did not finish its writes within \
                     {} s",
                    volume.name,
                    nodes.join(", "),
                    SNAPSHOT_PATIENCE.as_secs()
                );
                let remedy =
                    "see `cairn health` for placement groups that serve no writes, and whether that node is up";
                return Err(explained(Code::Aborted, &message, remedy));
            }
        }
    }

    /// What became of it; `None`: it is gone.
    async fn finish_snapshot(&self, id: SnapId, taken: bool) -> Result<Option<Snapshot>, Status> {
        let payload = Payload::FinishSnapshot(FinishSnapshot { snapshot: id.0, taken });
        match self.gateway.propose_once(command(payload, String::new())).await.map_err(status) {
            Ok(Answer::FinishSnapshot(reply)) => Ok(reply.snapshot),
            Ok(_) => Err(mixed_up()),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn clocks_differ(&self) -> Option<HealthCheck> {
        let skewed = self.peers.skews().into_iter().filter(|(_, ms)| ms.unsigned_abs() > SKEW.as_millis() as u64);
        let details: Vec<String> = skewed
            .map(|(id, ms)| {
                format!("the clock of member {id} is {:+.1} s off that of member {}", ms as f64 / 1e3, self.me)
            })
            .collect();
        let summary =
            format!("the clocks of {} metadata members differ by more than {} s", details.len(), SKEW.as_secs());
        let remedy = "let chrony or another NTP client run on every host";
        (!details.is_empty()).then(|| health::check("META_CLOCK_SKEW", false, summary, remedy, details))
    }

    fn members_down(&self) -> Option<HealthCheck> {
        let members = self.peers.members();
        let is_silent = |m: &&MemberRecord| !self.peers.is_reachable(m.id);
        let silent: Vec<String> =
            members.iter().filter(is_silent).map(|m| format!("member {} at {}", m.id, m.address)).collect();
        if silent.is_empty() {
            return None;
        }
        let summary = format!("{} of {} metadata members not reachable", silent.len(), members.len());
        // One that only learns is no part of what decides.
        let silent_voters = members.iter().filter(is_silent).filter(|m| !m.learner).count();
        let severe = silent_voters * 2 >= self.peers.count();
        let remedy = "start them again; one whose disk is lost is replaced: cairn meta replace ID ADDRESS";
        Some(health::check("META_DOWN", severe, summary, remedy, silent))
    }
}

/// What a fence waits for, in words: OSDs that are up and have not heard of it, or groups of which nobody has.
fn unfenced(pending: &FencePending, epoch: Epoch) -> Status {
    let again = "ask again with the same session and sequence";
    let mut missing = Vec::new();
    let mut remedies = Vec::new();
    if !pending.osds.is_empty() {
        let (verb, have) = if pending.osds.len() == 1 { ("is", "has") } else { ("are", "have") };
        missing.push(format!("{} {verb} up and {have} not acknowledged map {epoch}", named(&pending.osds)));
        remedies.push("wait, or stop what is up and does not answer");
    }
    if !pending.pgs.is_empty() {
        let groups = named(&pending.pgs);
        missing.push(format!("no in-sync OSD of placement groups {groups} has acknowledged map {epoch}"));
        remedies.push("bring back an in-sync OSD of each of the groups");
    }
    let message = format!("the fence does not hold yet: {}", missing.join("; "));
    explained(Code::DeadlineExceeded, &message, &format!("{}, then {again}", remedies.join("; ")))
}

/// The first few, and how many more there are.
fn named<T: ToString>(all: &[T]) -> String {
    let first: Vec<String> = all.iter().take(NAMED).map(ToString::to_string).collect();
    match all.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Pieces of a backup that wait for their client, and how long they do.
const BACKUP_PIECES: usize = 4;
const BACKUP_PATIENCE: Duration = Duration::from_secs(30);

/// Why a backup ended before its end.
enum Unsent {
    /// The client went away, or takes nothing.
    Gone,
    Store(StoreError),
}

impl From<StoreError> for Unsent {
    fn from(failure: StoreError) -> Self {
        Self::Store(failure)
    }
}

/// Clocks further apart than this are worth a word: times in records and leases of the key-value half are theirs.
const SKEW: Duration = Duration::from_secs(2);

#[tonic::async_trait]
impl Meta for MetaDoor {
    async fn status(&self, request: Request<StatusRequest>) -> Reply<StatusReply> {
        if request.get_ref().confirmed {
            self.gateway.read(|_, _| ()).await.map_err(status)?;
        }
        // Otherwise from here, without a quorum: it is what is asked when nothing else answers.
        let seen = self.gateway.local(|machine, _| {
            let cluster = machine.cluster().map(|id| id.to_string()).unwrap_or_default();
            (cluster, machine.map().epoch.0, machine.cluster_version(), query::usage(machine))
        });
        let (cluster_id, epoch, cluster_version, usage) = seen.await.map_err(status)?;
        let (role, progress) = (self.gateway.leadership().role, self.gateway.progress());
        let following = self.gateway.look(cairn_meta_raft::Node::following).await.map_err(status)?;
        let settled = self.leader.has_settled().await.map_err(status)?;
        let member = |m: &MemberRecord| Member {
            healthy: self.peers.is_reachable(m.id),
            matched: following.iter().find(|f| f.id == m.id).map_or(0, |f| f.matched),
            ..members::shown(m)
        };
        Ok(Response::new(StatusReply {
            cluster_id,
            member_id: self.me,
            leader_id: role.leader,
            term: role.term,
            applied_index: progress.applied.index,
            epoch,
            members: self.peers.members().iter().map(member).collect(),
            cluster_version,
            usage: Some(usage),
            settled,
        }))
    }

    async fn health(&self, _request: Request<HealthRequest>) -> Reply<HealthReply> {
        let mut ours: Vec<HealthCheck> = self.members_down().into_iter().chain(self.clocks_differ()).collect();
        let checks = self.gateway.read(move |machine, _| {
            let mut checks = health::health(machine).checks;
            checks.append(&mut ours);
            health::mute(machine, &mut checks, clock::now_s());
            checks
        });
        Ok(Response::new(health::summed_up(checks.await.map_err(status)?)))
    }

    async fn mute_health(&self, request: Request<MuteHealthRequest>) -> Reply<MuteHealthReply> {
        Ok(Response::new(mutate!(self, request, MuteHealth)))
    }

    async fn change_member(&self, request: Request<ChangeMemberRequest>) -> Reply<ChangeMemberReply> {
        let id = request_id(&request);
        let mut request = request.into_inner();
        let mutation = request.mutation.get_or_insert_default();
        if mutation.session.is_empty() {
            // Asked again by this member while the lead changes hands: it is the same change.
            mutation.session = uuid::Uuid::new_v4().as_bytes().to_vec().into();
            mutation.seq = 1;
        }
        if mutation.request_id.is_empty() || mutation.request_id.len() > 128 {
            mutation.request_id = id;
        }
        self.leader.change_member(request).await.map(Response::new).map_err(status)
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<BackupPiece, Status>> + Send>>;

    async fn backup(&self, _request: Request<BackupRequest>) -> Reply<Self::BackupStream> {
        let busy = || {
            let remedy = "try again when one of the backups and large reads that are under way has ended";
            explained(Code::ResourceExhausted, "this member reads for too many others at the moment", remedy)
        };
        let permit = self.gateway.aside().ok_or_else(busy)?;
        let view = self.gateway.read_node(|node| node.store().view()).await.map_err(status)?;
        let (pieces, receiver) = mpsc::channel(BACKUP_PIECES);
        let runtime = tokio::runtime::Handle::current();
        // On a thread of its own: it reads the whole state, as fast as the client takes it. One that takes nothing is
        // given up, because the state as of its beginning is kept for it meanwhile.
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let send = |piece| runtime.block_on(pieces.send_timeout(piece, BACKUP_PATIENCE)).map_err(|_| Unsent::Gone);
            let sent = view.frozen_at(|state, at| {
                crate::backup::pieces(state, at, |piece| match view.failure() {
                    // Reading ended early: this piece may say that it is the last, and is not.
                    Some(failure) => Err(Unsent::Store(failure)),
                    None => send(Ok(piece)),
                })
            });
            if let Err(failure) | Ok(Err(Unsent::Store(failure))) = sent {
                let _ = send(Err(status(crate::gateway::CallError::Store(failure))));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type WatchMapStream = Pin<Box<dyn Stream<Item = Result<MapUpdate, Status>> + Send>>;

    async fn watch_map(&self, request: Request<WatchMapRequest>) -> Reply<Self::WatchMapStream> {
        let mut since = Epoch(request.into_inner().since_epoch);
        let (updates, receiver) = mpsc::channel(UPDATES);
        let (gateway, mut epochs, stop) = (self.gateway.clone(), self.epochs.clone(), self.stop.clone());
        tokio::spawn(async move {
            let following = gateway.clone();
            let lost = following.leader_lost(LEADERLESS);
            tokio::pin!(lost);
            loop {
                epochs.borrow_and_update();
                let update = gateway.local(move |machine, _| machine.map_since(since)).await.map_err(status);
                let ended = update.is_err();
                if let Some(update) = update.transpose() {
                    since = update.as_ref().map_or(since, |update| Epoch(update.epoch));
                    if updates.send(update).await.is_err() || ended {
                        return;
                    }
                }
                tokio::select! {
                    changed = epochs.changed() => if changed.is_err() { return },
                    () = updates.closed() => return,
                    () = stop.cancelled() => return,
                    () = &mut lost => {
                        let words = "this member has no leader, so the map it has may be old";
                        let lost = explained(Code::Unavailable, words, "ask another member");
                        let _ = updates.send(Err(lost)).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn register_osd(&self, request: Request<RegisterOsdRequest>) -> Reply<RegisterOsdReply> {
        Ok(Response::new(mutate!(self, request, RegisterOsd)))
    }

    async fn report_osd(&self, request: Request<ReportOsdRequest>) -> Reply<ReportOsdReply> {
        self.leader.hear_osd(request.into_inner()).await.map(Response::new).map_err(status)
    }

    async fn report_down(&self, request: Request<ReportDownRequest>) -> Reply<ReportDownReply> {
        let report = request.get_ref();
        if report.evidence() != DownEvidence::Exited && report.reporter.is_none() {
            let words = "only another OSD can say that an OSD is silent or refuses connections";
            return Err(explained(Code::InvalidArgument, words, "name the reporting OSD"));
        }
        Ok(Response::new(mutate!(self, request, ReportDown)))
    }

    async fn change_pgs(&self, request: Request<ChangePgsRequest>) -> Reply<ChangePgsReply> {
        Ok(Response::new(mutate!(self, request, ChangePgs)))
    }

    async fn report_purged(&self, request: Request<ReportPurgedRequest>) -> Reply<ReportPurgedReply> {
        Ok(Response::new(mutate!(self, request, ReportPurged)))
    }

    async fn change_placement(&self, request: Request<ChangePlacementRequest>) -> Reply<ChangePlacementReply> {
        if request.get_ref().dry_run || request.get_ref().change.is_none() {
            let request = request.into_inner();
            let plan = self.gateway.query(move |machine, state| moves::dry_run(machine, state, &request));
            return plan.await.map(Response::new).map_err(status);
        }
        Ok(Response::new(mutate!(self, request, ChangePlacement)))
    }

    async fn change_settings(&self, request: Request<ChangeSettingsRequest>) -> Reply<ChangeSettingsReply> {
        Ok(Response::new(mutate!(self, request, ChangeSettings)))
    }

    async fn list_pgs(&self, _request: Request<ListPgsRequest>) -> Reply<ListPgsReply> {
        self.gateway.read(|machine, _| scrub::pgs(machine)).await.map(Response::new).map_err(status)
    }

    async fn order_scrub(&self, request: Request<OrderScrubRequest>) -> Reply<OrderScrubReply> {
        Ok(Response::new(mutate!(self, request, OrderScrub)))
    }

    async fn schedule_scrubs(&self, request: Request<ScheduleScrubsRequest>) -> Reply<ScheduleScrubsReply> {
        Ok(Response::new(mutate!(self, request, ScheduleScrubs)))
    }

    async fn report_scrub(&self, request: Request<ReportScrubRequest>) -> Reply<ReportScrubReply> {
        Ok(Response::new(mutate!(self, request, ReportScrub)))
    }

    async fn create_pool(&self, request: Request<CreatePoolRequest>) -> Reply<CreatePoolReply> {
        Ok(Response::new(mutate!(self, request, CreatePool)))
    }

    async fn list_pools(&self, _request: Request<ListPoolsRequest>) -> Reply<ListPoolsReply> {
        let pools = self.gateway.read(|machine, _| query::pools(machine)).await.map_err(status)?;
        Ok(Response::new(ListPoolsReply { pools }))
    }

    async fn change_pool(&self, request: Request<ChangePoolRequest>) -> Reply<ChangePoolReply> {
        Ok(Response::new(mutate!(self, request, ChangePool)))
    }

    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Reply<CreateVolumeReply> {
        Ok(Response::new(mutate!(self, request, CreateVolume)))
    }

    async fn get_volume(&self, request: Request<GetVolumeRequest>) -> Reply<GetVolumeReply> {
        let by = request.into_inner().volume;
        let found = self.gateway.query(move |_, state| query::required_volume(state, by.as_ref()));
        Ok(Response::new(GetVolumeReply { volume: Some(found.await.map_err(status)?) }))
    }

    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Reply<ListVolumesReply> {
        let request = request.into_inner();
        let page = self.gateway.query(move |machine, state| query::volumes(machine, state, &request));
        page.await.map(Response::new).map_err(status)
    }

    async fn resize_volume(&self, request: Request<ResizeVolumeRequest>) -> Reply<ResizeVolumeReply> {
        Ok(Response::new(mutate!(self, request, ResizeVolume)))
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Reply<DeleteVolumeReply> {
        Ok(Response::new(mutate!(self, request, DeleteVolume)))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Reply<CreateSnapshotReply> {
        let mut reply: CreateSnapshotReply = mutate!(self, request, CreateSnapshot);
        reply.snapshot = Some(self.wait_for_snapshot(&reply).await?);
        Ok(Response::new(reply))
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Reply<GetSnapshotReply> {
        let by = request.into_inner().snapshot.unwrap_or_default();
        let found = self.gateway.query(move |machine, state| {
            let found = query::snapshot(machine, state, &by)?;
            let missing = || Refusal::new(ErrorCode::NotFound, format!("there is no snapshot {}", named_snapshot(&by)));
            found.ok_or_else(|| Failure::from(missing()))
        });
        Ok(Response::new(found.await.map_err(status)?))
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Reply<ListSnapshotsReply> {
        let request = request.into_inner();
        let page = self.gateway.query(move |_, state| query::snapshots(state, &request));
        page.await.map(Response::new).map_err(status)
    }

    async fn delete_snapshot(&self, request: Request<DeleteSnapshotRequest>) -> Reply<DeleteSnapshotReply> {
        Ok(Response::new(mutate!(self, request, DeleteSnapshot)))
    }

    async fn report_drained(&self, request: Request<ReportDrainedRequest>) -> Reply<ReportDrainedReply> {
        Ok(Response::new(mutate!(self, request, ReportDrained)))
    }

    async fn change_volume(&self, request: Request<ChangeVolumeRequest>) -> Reply<ChangeVolumeReply> {
        Ok(Response::new(mutate!(self, request, ChangeVolume)))
    }

    async fn undelete_volume(&self, request: Request<UndeleteVolumeRequest>) -> Reply<UndeleteVolumeReply> {
        Ok(Response::new(mutate!(self, request, UndeleteVolume)))
    }

    async fn purge_trash(&self, request: Request<PurgeTrashRequest>) -> Reply<PurgeTrashReply> {
        Ok(Response::new(mutate!(self, request, PurgeTrash)))
    }

    async fn register_node(&self, request: Request<RegisterNodeRequest>) -> Reply<RegisterNodeReply> {
        Ok(Response::new(mutate!(self, request, RegisterNode)))
    }

    async fn list_nodes(&self, _request: Request<ListNodesRequest>) -> Reply<ListNodesReply> {
        let nodes = self.gateway.query(|machine, state| Ok(query::nodes(machine, state)?));
        Ok(Response::new(ListNodesReply { nodes: nodes.await.map_err(status)? }))
    }

    async fn publish_volume(&self, request: Request<PublishVolumeRequest>) -> Reply<PublishVolumeReply> {
        Ok(Response::new(mutate!(self, request, PublishVolume)))
    }

    async fn unpublish_volume(&self, request: Request<UnpublishVolumeRequest>) -> Reply<UnpublishVolumeReply> {
        Ok(Response::new(mutate!(self, request, UnpublishVolume)))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Reply<AttachReply> {
        let reply: AttachReply = mutate!(self, request, Attach);
        let pool = PoolId(reply.volume.as_ref().map_or(0, |volume| volume.pool));
        self.wait_for_fence(pool, Epoch(reply.epoch)).await?;
        Ok(Response::new(reply))
    }

    async fn detach(&self, request: Request<DetachRequest>) -> Reply<DetachReply> {
        Ok(Response::new(mutate!(self, request, Detach)))
    }
}

/// A snapshot in a sentence.
fn named_snapshot(by: &SnapshotRef) -> String {
    match &by.by {
        Some(snapshot_ref::By::Id(id)) => format!("with id {id}"),
        Some(snapshot_ref::By::Name(name)) => format!("`{name}`"),
        None => "without a name".to_owned(),
    }
}
