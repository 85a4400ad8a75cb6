//! Every call of `cairn.meta.v1`, typed, with its deadline and its retries.

use std::sync::Arc;
use std::time::Duration;

use cairn_proto::meta;
use cairn_types::map::ClusterMap;
use cairn_types::{ConfVersion, Epoch, Generation, Incarnation, OsdId, PgId, SnapId, VolumeId};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::endpoints::Endpoints;
use crate::error::{MetaError, is_explained, is_session_expired, is_transient};
use crate::map_watch::{self, MapWatch};
use crate::mutations::Mutations;

/// How long a call keeps trying.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long one attempt may take before another member is asked. Two of them are shorter than the silence after which
/// the metadata service declares an OSD down (5 s): an OSD is not lost with the one member that it happened to talk to.
const ATTEMPT: Duration = Duration::from_secs(2);

/// An attach waits for the fence: every OSD concerned must acknowledge the epoch.
const ATTACH_PATIENCE: Duration = Duration::from_secs(30);
const ATTACH_ATTEMPT: Duration = Duration::from_secs(12);

/// A leader that is to go hands over its lead first.
const MEMBER_PATIENCE: Duration = Duration::from_secs(20);
const MEMBER_ATTEMPT: Duration = Duration::from_secs(10);

/// The pauses between attempts: the first is short, because another member may answer at once.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A client of the metadata service. Cheap to clone; all clones share one session and its connections.
#[derive(Clone)]
pub struct MetaClient {
    endpoints: Endpoints,
    mutations: Arc<Mutations>,
    request_id: Option<Arc<str>>,
}

/// Generates the typed calls: reads as they are, mutations with their ticket.
macro_rules! calls {
    (read $($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty;)*) => {
        $($(#[$doc])*
        ///
        /// # Errors
        /// [`MetaError`].
        pub async fn $name(&self, request: $request) -> Result<$reply, MetaError> {
            let call = |mut stub: Stub, request| async move { stub.$name(request).await };
            Ok(self.attempt(PATIENCE, ATTEMPT, || request.clone(), call).await?)
        })*
    };
    (mutate($patience:expr, $attempt:expr) $($(#[$doc:meta])* $name:ident($request:ty) -> $reply:ty;)*) => {
        $($(#[$doc])*
        ///
        /// # Errors
        /// [`MetaError`].
        pub async fn $name(&self, request: $request) -> Result<$reply, MetaError> {
            let id = self.request_id();
            let call = |mut stub: Stub, request| async move { stub.$name(request).await };
            let ticket = self.mutations.begin();
            let make = || <$request>::clone(&request).clone_with(ticket.mutation(&id));
            match self.attempt($patience, $attempt, make, call).await {
                // Refused at the first attempt, so it was surely not carried out: once more, under a new session.
                Err(Failed { error, session_expired: true, attempts: 1 }) => {
                    tracing::debug!(%error, "the session is renewed");
                    self.mutations.renew(&ticket);
                    let ticket = self.mutations.begin();
                    let make = || <$request>::clone(&request).clone_with(ticket.mutation(&id));
                    Ok(self.attempt($patience, $attempt, make, call).await?)
                }
                Err(failed) => {
                    if failed.session_expired {
                        self.mutations.renew(&ticket);
                    }
                    Err(failed.error)
                }
                Ok(reply) => Ok(reply),
            }
        })*
    };
}

type Stub = meta::meta_client::MetaClient<tonic::transport::Channel>;

/// How attempts ended.
struct Failed {
    error: MetaError,
    session_expired: bool,
    attempts: u32,
}

impl From<Failed> for MetaError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

impl MetaClient {
    /// A client of the members at these `host:port` addresses. Nothing is dialled before the first call. Must be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When an address is not of that form, or none is given.
    pub fn new<S: AsRef<str>>(endpoints: &[S]) -> Result<Self, MetaError> {
        let endpoints = Endpoints::new(endpoints)?;
        Ok(Self { endpoints, mutations: Arc::new(Mutations::new()), request_id: None })
    }

    /// The same client, whose calls carry this request id into the logs of the service.
    #[must_use]
    pub fn with_request_id(&self, id: &str) -> Self {
        Self { request_id: Some(id.into()), ..self.clone() }
    }

    fn request_id(&self) -> String {
        self.request_id.as_deref().unwrap_or_default().to_owned()
    }

    calls! { read
        /// Members, leader, usage.
        status(meta::StatusRequest) -> meta::StatusReply;
        /// What is wrong, and what to do about it.
        health(meta::HealthRequest) -> meta::HealthReply;
        /// An OSD's heartbeat, which also acknowledges the epoch it has persisted.
        report_osd(meta::ReportOsdRequest) -> meta::ReportOsdReply;
        /// All placement groups, with what is known of their scrubs.
        list_pgs(meta::ListPgsRequest) -> meta::ListPgsReply;
        /// All pools with their use.
        list_pools(meta::ListPoolsRequest) -> meta::ListPoolsReply;
        /// One volume.
        get_volume(meta::GetVolumeRequest) -> meta::GetVolumeReply;
        /// A page of volumes.
        list_volumes(meta::ListVolumesRequest) -> meta::ListVolumesReply;
        /// One snapshot.
        get_snapshot(meta::GetSnapshotRequest) -> meta::GetSnapshotReply;
        /// A page of snapshots.
        list_snapshots(meta::ListSnapshotsRequest) -> meta::ListSnapshotsReply;
        /// All nodes.
        list_nodes(meta::ListNodesRequest) -> meta::ListNodesReply;
    }

    calls! { mutate(MEMBER_PATIENCE, MEMBER_ATTEMPT)
        /// A change of the metadata members, or what it would be.
        change_member(meta::ChangeMemberRequest) -> meta::ChangeMemberReply;
    }

    calls! { mutate(PATIENCE, ATTEMPT)
        /// Mutes a health check, or unmutes it.
        mute_health(meta::MuteHealthRequest) -> meta::MuteHealthReply;
        /// A new life of an OSD.
        register_osd(meta::RegisterOsdRequest) -> meta::RegisterOsdReply;
        /// Says that an OSD does not answer, or is dead.
        report_down(meta::ReportDownRequest) -> meta::ReportDownReply;
        /// Compare-and-swap of PG configurations.
        change_pgs(meta::ChangePgsRequest) -> meta::ChangePgsReply;
        /// A PG holds nothing more of a deleted volume.
        report_purged(meta::ReportPurgedRequest) -> meta::ReportPurgedReply;
        /// Changes where data belongs; with `dry_run`, or without a change, only says what is to be moved.
        change_placement(meta::ChangePlacementRequest) -> meta::ChangePlacementReply;
        /// Changes how data may move, and says what is set.
        change_settings(meta::ChangeSettingsRequest) -> meta::ChangeSettingsReply;
        /// Has placement groups scrubbed now.
        order_scrub(meta::OrderScrubRequest) -> meta::OrderScrubReply;
        /// Says when groups are scrubbed by themselves.
        schedule_scrubs(meta::ScheduleScrubsRequest) -> meta::ScheduleScrubsReply;
        /// A primary has scrubbed a group.
        report_scrub(meta::ReportScrubRequest) -> meta::ReportScrubReply;
        /// Makes a pool.
        create_pool(meta::CreatePoolRequest) -> meta::CreatePoolReply;
        /// Makes a volume; the same name and size again finds the same volume.
        create_volume(meta::CreateVolumeRequest) -> meta::CreateVolumeReply;
        /// Grows a volume.
        resize_volume(meta::ResizeVolumeRequest) -> meta::ResizeVolumeReply;
        /// Deletes a volume.
        delete_volume(meta::DeleteVolumeRequest) -> meta::DeleteVolumeReply;
        /// Deletes a snapshot.
        delete_snapshot(meta::DeleteSnapshotRequest) -> meta::DeleteSnapshotReply;
        /// A holder has nothing under way that was begun before a snapshot.
        report_drained(meta::ReportDrainedRequest) -> meta::ReportDrainedReply;
        /// Changes a volume's name, labels, limits, or how long it is kept once deleted.
        change_volume(meta::ChangeVolumeRequest) -> meta::ChangeVolumeReply;
        /// Takes a volume out of the trash.
        undelete_volume(meta::UndeleteVolumeRequest) -> meta::UndeleteVolumeReply;
        /// Deletes what is in the trash for good.
        purge_trash(meta::PurgeTrashRequest) -> meta::PurgeTrashReply;
        /// Changes what is allowed in a pool.
        change_pool(meta::ChangePoolRequest) -> meta::ChangePoolReply;
        /// Makes a node known.
        register_node(meta::RegisterNodeRequest) -> meta::RegisterNodeReply;
        /// Lets a node hold a volume.
        publish_volume(meta::PublishVolumeRequest) -> meta::PublishVolumeReply;
        /// Ends that.
        unpublish_volume(meta::UnpublishVolumeRequest) -> meta::UnpublishVolumeReply;
        /// Ends a data session.
        detach(meta::DetachRequest) -> meta::DetachReply;
    }

    calls! { mutate(ATTACH_PATIENCE, ATTACH_ATTEMPT)
        /// Begins a data session under a new generation; answers when the fence holds.
        attach(meta::AttachRequest) -> meta::AttachReply;
        /// Takes a snapshot; answers when it is complete.
        create_snapshot(meta::CreateSnapshotRequest) -> meta::CreateSnapshotReply;
    }

    /// A volume by its id, as a checked value.
    ///
    /// # Errors
    /// [`MetaError`]; `NotFound` when there is none.
    pub async fn volume(&self, id: VolumeId) -> Result<meta::Volume, MetaError> {
        let by = Some(meta::volume_ref::By::Id(id.0));
        let reply = self.get_volume(meta::GetVolumeRequest { volume: Some(meta::VolumeRef { by }) }).await?;
        reply.volume.ok_or_else(|| MetaError::Unreadable("a volume reply without a volume".into()))
    }

    /// Reports an OSD's life as ended or unanswering; the epoch that says so, and whether it changed anything.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn osd_is_down(
        &self,
        reporter: Option<OsdId>,
        osd: OsdId,
        incarnation: Incarnation,
        evidence: meta::DownEvidence,
    ) -> Result<(Epoch, bool), MetaError> {
        let request = meta::ReportDownRequest {
            mutation: None,
            reporter: reporter.map(|osd| osd.0),
            osd: osd.0,
            incarnation: incarnation.0,
            evidence: evidence.into(),
        };
        let reply = self.report_down(request).await?;
        Ok((Epoch(reply.epoch), reply.applied))
    }

    /// Says that a PG holds nothing more of a deleted volume, or no layer above these snapshots of it for as long as this
    /// interval of the PG lasts.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn purged(
        &self,
        (reporter, incarnation): (OsdId, Incarnation),
        (volume, pg): (VolumeId, PgId),
        snapshots: &[SnapId],
        interval: ConfVersion,
    ) -> Result<(), MetaError> {
        let request = meta::ReportPurgedRequest {
            mutation: None,
            reporter: reporter.0,
            incarnation: incarnation.0,
            volume: volume.0,
            pg: Some(pg.into()),
            snapshots: snapshots.iter().map(|id| id.0).collect(),
            interval: interval.0,
        };
        self.report_purged(request).await.map(|_| ())
    }

    /// Ends the data session of this generation.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn end_session(&self, volume: VolumeId, generation: Generation) -> Result<(), MetaError> {
        let by = Some(meta::volume_ref::By::Id(volume.0));
        let request = meta::DetachRequest {
            volume: Some(meta::VolumeRef { by }),
            generation: generation.0,
            ..Default::default()
        };
        self.detach(request).await.map(|_| ())
    }

    /// Follows the map from now on. The task behind it ends when the last receiver is dropped.
    #[must_use]
    pub fn watch_map(&self) -> MapWatch {
        map_watch::start(self.endpoints.clone())
    }

    /// The map as it is now.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn map_once(&self) -> Result<ClusterMap, MetaError> {
        let update = self
            .attempt(
                PATIENCE,
                ATTEMPT,
                || meta::WatchMapRequest { since_epoch: 0 },
                |mut stub, request| async move {
                    let mut stream = stub.watch_map(request).await?.into_inner();
                    let update = stream.message().await?;
                    let update = update.ok_or_else(|| Status::unavailable("the stream ended before the map"))?;
                    Ok(tonic::Response::new(update))
                },
            )
            .await?;
        ClusterMap::try_from(update).map_err(|error| MetaError::Unreadable(error.to_string()))
    }

    /// A backup of the whole metadata, piece by piece.
    ///
    /// # Errors
    /// [`MetaError`].
    pub async fn backup(&self) -> Result<tonic::Streaming<meta::BackupPiece>, MetaError> {
        let call = |mut stub: Stub, request| async move { stub.backup(request).await };
        Ok(self.attempt(PATIENCE, ATTEMPT, || meta::BackupRequest {}, call).await?)
    }

    /// Tries until there is a final answer or `patience` is over. `make` is called for each attempt.
    async fn attempt<Q, P, F>(
        &self,
        patience: Duration,
        per_attempt: Duration,
        make: impl Fn() -> Q,
        call: impl Fn(Stub, Request<Q>) -> F,
    ) -> Result<P, Failed>
    where
        F: Future<Output = Result<tonic::Response<P>, Status>>,
    {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        for attempts in 1.. {
            let (at, stub) = self.endpoints.current();
            let request = self.labelled(make());
            // The timeout is ours as well as the wire's: a channel that is being dialled counts too.
            let outcome = tokio::time::timeout(per_attempt, call(stub, request)).await;
            let status = match outcome {
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
                Ok(Err(status)) if !is_transient(&status) => {
                    let session_expired = is_session_expired(&status);
                    return Err(Failed { error: status.into(), session_expired, attempts });
                }
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {} ms", per_attempt.as_millis())),
            };
            self.endpoints.pass_over(at);
            tracing::debug!(code = ?status.code(), message = status.message(), "attempt failed");
            if start.elapsed() + pause > patience {
                let error = match is_explained(&status) {
                    true => status.into(),
                    false => MetaError::Unreachable {
                        endpoints: self.endpoints.names(),
                        waited_ms: start.elapsed().as_millis() as u64,
                        last: status.message().to_owned(),
                    },
                };
                return Err(Failed { error, session_expired: false, attempts });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        unreachable!("it ends by patience")
    }

    fn labelled<Q>(&self, message: Q) -> Request<Q> {
        let mut request = Request::new(message);
        if let Some(id) = self.request_id.as_deref()
            && let Ok(value) = MetadataValue::try_from(id)
        {
            request.metadata_mut().insert("x-request-id", value);
        }
        request
    }
}

/// A request that carries a mutation.
trait Mutating {
    fn clone_with(self, mutation: meta::Mutation) -> Self;
}

macro_rules! mutating {
    ($($request:ident),* $(,)?) => {
        $(impl Mutating for meta::$request {
            fn clone_with(mut self, mutation: meta::Mutation) -> Self {
                self.mutation = Some(mutation);
                self
            }
        })*
    };
}

mutating!(
    RegisterOsdRequest,
    ReportDownRequest,
    ChangePgsRequest,
    ReportPurgedRequest,
    ChangePlacementRequest,
    ChangeSettingsRequest,
    OrderScrubRequest,
    ScheduleScrubsRequest,
    ReportScrubRequest,
    CreatePoolRequest,
    CreateVolumeRequest,
    ResizeVolumeRequest,
    DeleteVolumeRequest,
    RegisterNodeRequest,
    PublishVolumeRequest,
    UnpublishVolumeRequest,
    AttachRequest,
    DetachRequest,
    CreateSnapshotRequest,
    DeleteSnapshotRequest,
    ReportDrainedRequest,
    ChangeMemberRequest,
    MuteHealthRequest,
    ChangeVolumeRequest,
    UndeleteVolumeRequest,
    PurgeTrashRequest,
    ChangePoolRequest,
);
