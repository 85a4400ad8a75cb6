//! Where the other members come in: their greetings, their streams, and their questions to the leader.

use std::sync::Arc;

use cairn_proto::meta::{ChangeMemberReply, ChangeMemberRequest, ReportOsdReply, ReportOsdRequest};
use cairn_proto::meta_raft::raft_server::Raft;
use cairn_proto::meta_raft::{Hello, LeaseQuestion, LeaseTimes, PeerFrame, SendReply, Welcome};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::errors;
use crate::driver::FromPeer;
use crate::gateway::Gateway;
use crate::leader::Leader;
use crate::peers::{End, Peers, Refused};

pub(crate) struct RaftDoor {
    pub(crate) peers: Arc<Peers>,
    pub(crate) gateway: Gateway,
    pub(crate) leader: Leader,
    pub(crate) driver: mpsc::Sender<FromPeer>,
    pub(crate) stop: CancellationToken,
}

impl RaftDoor {
    async fn admit(&self, hello: &Hello) -> Result<(), Refused> {
        let admitted = self.peers.admit(hello, &self.gateway).await;
        if let Err(refused) = &admitted {
            tracing::warn!(member = hello.from, "refused a member: {}", refused.words);
        }
        admitted
    }
}

#[tonic::async_trait]
impl Raft for RaftDoor {
    async fn greet(&self, request: Request<Hello>) -> Result<Response<Welcome>, Status> {
        let hello = request.into_inner();
        let (refused, end) = self.admit(&hello).await.err().map_or_else(Default::default, |r| (r.words, r.end));
        let (removed, lost_memory) = (end == Some(End::Removed), end == Some(End::LostMemory));
        Ok(Response::new(Welcome { hello: Some(self.peers.hello(hello.from)), refused, removed, lost_memory }))
    }

    async fn send(&self, request: Request<Streaming<PeerFrame>>) -> Result<Response<SendReply>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|frame| frame.hello);
        let hello = first.ok_or_else(|| Status::invalid_argument("the first frame must say who is calling"))?;
        self.admit(&hello).await.map_err(|refused| Status::failed_precondition(refused.words))?;
        let from = hello.from;
        while let Some(Some(frame)) = self.stop.run_until_cancelled(frames.message()).await.transpose()? {
            if self.peers.is_removed(from) {
                return Err(Status::failed_precondition(format!("member {from} was removed from this cluster")));
            }
            self.peers.hear(from, &frame);
            if !frame.messages.is_empty() {
                let input = FromPeer::Messages { from, messages: frame.messages };
                self.driver.send(input).await.map_err(|_| Status::unavailable("this member is stopping"))?;
            }
        }
        Ok(Response::new(SendReply {}))
    }

    async fn ask_leases(&self, request: Request<LeaseQuestion>) -> Result<Response<LeaseTimes>, Status> {
        let question = request.into_inner();
        let times = self.leader.lease_times_here(question).await.map_err(errors::status)?;
        times.map(Response::new).ok_or_else(not_leading)
    }

    async fn report_osd(&self, request: Request<ReportOsdRequest>) -> Result<Response<ReportOsdReply>, Status> {
        let reply = self.leader.hear_osd_here(request.into_inner()).await.map_err(errors::status)?;
        reply.map(Response::new).ok_or_else(not_leading)
    }

    async fn change_member(
        &self,
        request: Request<ChangeMemberRequest>,
    ) -> Result<Response<ChangeMemberReply>, Status> {
        let reply = self.leader.change_member_here(&request.into_inner()).await.map_err(errors::status)?;
        reply.map(Response::new).ok_or_else(not_leading)
    }
}

fn not_leading() -> Status {
    Status::failed_precondition("this member does not lead")
}
