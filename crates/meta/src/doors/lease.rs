//! etcd's Lease service. Which leases exist is replicated; how long each still has is asked of the leader.

use std::pin::Pin;

use cairn_meta_core::kv;
use cairn_proto::etcdserverpb::lease_server::Lease;
use cairn_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus, LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta_raft::{LeaseQuestion, LeaseTime};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::errors::etcd_status;
use super::kv::mixed_up;
use super::{Headers, request_id};
use crate::gateway::Gateway;
use crate::leader::{Leader, command};
use crate::own_session::random;

/// Answers of one keep-alive stream on their way.
const ANSWERS: usize = 16;

#[derive(Clone)]
pub(crate) struct LeaseDoor {
    pub(crate) gateway: Gateway,
    pub(crate) leader: Leader,
    pub(crate) headers: Headers,
    pub(crate) stop: CancellationToken,
}

impl LeaseDoor {
    async fn time(&self, id: i64, renew: bool) -> Result<Option<LeaseTime>, Status> {
        let question = LeaseQuestion { ids: vec![id], renew };
        let times = self.leader.lease_times(question).await.map_err(etcd_status)?;
        Ok(times.times.into_iter().find(|time| time.id == id))
    }

    async fn revision(&self) -> Result<i64, Status> {
        self.gateway.local(|machine, _| machine.kv_revision()).await.map_err(etcd_status)
    }

    async fn keep_alive(&self, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
        let time = self.time(id, true).await?;
        let header = self.headers.at(self.revision().await?);
        Ok(LeaseKeepAliveResponse { header, id, ttl: time.map_or(0, |t| t.granted_s) })
    }
}

#[tonic::async_trait]
impl Lease for LeaseDoor {
    async fn lease_grant(&self, request: Request<LeaseGrantRequest>) -> Result<Response<LeaseGrantResponse>, Status> {
        let name = request_id(&request);
        let mut request = request.into_inner();
        if request.id == 0 {
            request.id = i64::try_from(random() >> 1).unwrap_or(1).max(1);
        }
        let command = command(Payload::LeaseGrant(request), name);
        let answer = self.gateway.propose_once(command).await.map_err(etcd_status)?;
        let Answer::LeaseGrant(mut response) = answer else { return Err(mixed_up()) };
        response.header = self.headers.at(response.header.map_or(0, |h| h.revision));
        Ok(Response::new(response))
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let name = request_id(&request);
        let command = command(Payload::LeaseRevoke(request.into_inner()), name);
        let answer = self.gateway.propose_once(command).await.map_err(etcd_status)?;
        let Answer::LeaseRevoke(mut response) = answer else { return Err(mixed_up()) };
        response.header = self.headers.at(response.header.map_or(0, |h| h.revision));
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<LeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let mut requests = request.into_inner();
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let door = self.clone();
        tokio::spawn(async move {
            while let Some(Ok(Some(request))) = door.stop.run_until_cancelled(requests.message()).await {
                let answer = door.keep_alive(request.id).await;
                let failed = answer.is_err();
                if answers.send(answer).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        let time = self.time(id, false).await?;
        let attached = self.gateway.read(move |machine, state| {
            let attached = if keys { kv::lease_keys(state, id) } else { Vec::new() };
            (machine.kv_revision(), attached)
        });
        let (revision, keys) = attached.await.map_err(etcd_status)?;
        let (left_s, granted_ttl) = time.map_or((-1, 0), |t| (t.left_ms.max(0) / 1000, t.granted_s));
        let header = self.headers.at(revision);
        Ok(Response::new(LeaseTimeToLiveResponse { header, id, ttl: left_s, granted_ttl, keys }))
    }

    async fn lease_leases(
        &self,
        _request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let all = self.gateway.query(|machine, state| Ok((machine.kv_revision(), kv::leases(state)?)));
        let (revision, all) = all.await.map_err(etcd_status)?;
        let leases = all.into_iter().map(|lease| LeaseStatus { id: lease.id }).collect();
        Ok(Response::new(LeaseLeasesResponse { header: self.headers.at(revision), leases }))
    }
}
