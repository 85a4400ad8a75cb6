//! etcd's Cluster, Maintenance and Auth services, as far as they mean something here. What does not is refused in
//! words, so that nobody believes in a backup that was not made.

use std::pin::Pin;
use std::sync::Arc;

use cairn_meta_core::members;
use cairn_meta_raft::Store;
use cairn_proto::etcdserverpb::auth_server::Auth;
use cairn_proto::etcdserverpb::cluster_server::Cluster;
use cairn_proto::etcdserverpb::maintenance_server::Maintenance;
use cairn_proto::etcdserverpb::{
    AlarmRequest, AlarmResponse, AuthEnableRequest, AuthEnableResponse, AuthStatusRequest, AuthStatusResponse,
    AuthenticateRequest, AuthenticateResponse, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse,
    HashRequest, HashResponse, Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest,
    MemberUpdateResponse, MoveLeaderRequest, MoveLeaderResponse, ResponseHeader, SnapshotRequest, SnapshotResponse,
    StatusRequest, StatusResponse, alarm_request::AlarmAction,
};
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::{AddMember, ChangeMemberReply, ChangeMemberRequest, Mutation, PromoteMember, UpdateMember};
use futures::Stream;
use tonic::{Request, Response, Status};

use super::Headers;
use super::errors::{etcd_status, status};
use crate::gateway::Gateway;
use crate::leader::Leader;
use crate::peers::Peers;

/// The version of etcd's API that is spoken.
const API_VERSION: &str = "3.4.0";

#[derive(Clone)]
pub(crate) struct ClusterDoor {
    pub(crate) gateway: Gateway,
    pub(crate) headers: Headers,
    pub(crate) peers: Arc<Peers>,
    pub(crate) leader: Leader,
}

impl ClusterDoor {
    async fn revision(&self) -> Result<i64, Status> {
        self.gateway.local(|machine, _| machine.kv_revision()).await.map_err(etcd_status)
    }
}

impl ClusterDoor {
    async fn change(&self, change: Change) -> Result<(Option<ResponseHeader>, ChangeMemberReply), Status> {
        let session = uuid::Uuid::new_v4().as_bytes().to_vec().into();
        let mutation = Some(Mutation { session, seq: 1, ..Mutation::default() });
        let request = ChangeMemberRequest { mutation, dry_run: false, change: Some(change) };
        // Our own words: etcd has none for most of what is refused here.
        let reply = self.leader.change_member(request).await.map_err(status)?;
        Ok((self.headers.at(self.revision().await?), reply))
    }
}

fn listed(reply: &ChangeMemberReply) -> Vec<Member> {
    reply.members.iter().map(in_etcds_words).collect()
}

fn in_etcds_words(member: &cairn_proto::meta::Member) -> Member {
    let url = format!("http://{}", member.address);
    Member {
        id: member.id,
        name: format!("member-{}", member.id),
        peer_ur_ls: vec![url.clone()],
        client_ur_ls: vec![url],
        is_learner: member.learner,
    }
}

fn address_of(urls: &[String]) -> Result<String, Status> {
    let [url] = urls else {
        return Err(Status::invalid_argument("give a member exactly one peer URL: clients and members share its port"));
    };
    Ok(url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/').to_owned())
}

#[tonic::async_trait]
impl Cluster for ClusterDoor {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        if request.into_inner().linearizable {
            self.gateway.read(|_, _| ()).await.map_err(etcd_status)?;
        }
        let members = self.peers.members().iter().map(members::shown).map(|m| in_etcds_words(&m)).collect();
        Ok(Response::new(MemberListResponse { header: self.headers.at(self.revision().await?), members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        let request = request.into_inner();
        // Everybody begins as a learner here: one that was to vote at once does so as soon as it has caught up.
        let add = AddMember {
            address: address_of(&request.peer_ur_ls)?,
            stay_learner: request.is_learner,
            ..AddMember::default()
        };
        let (header, reply) = self.change(Change::Add(add)).await?;
        let member = reply.member.as_ref().map(in_etcds_words);
        Ok(Response::new(MemberAddResponse { header, member, members: listed(&reply) }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let (header, reply) = self.change(Change::Remove(request.into_inner().id)).await?;
        Ok(Response::new(MemberRemoveResponse { header, members: listed(&reply) }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let request = request.into_inner();
        let update = UpdateMember { id: request.id, address: address_of(&request.peer_ur_ls)? };
        let (header, reply) = self.change(Change::Update(update)).await?;
        Ok(Response::new(MemberUpdateResponse { header, members: listed(&reply) }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let promote = PromoteMember { id: request.into_inner().id, instead_of: 0 };
        let (header, reply) = self.change(Change::Promote(promote)).await?;
        Ok(Response::new(MemberPromoteResponse { header, members: listed(&reply) }))
    }
}

#[tonic::async_trait]
impl Maintenance for ClusterDoor {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        match request.into_inner().action() {
            AlarmAction::Activate => Err(Status::unimplemented("alarms cannot be raised by hand here")),
            AlarmAction::Get | AlarmAction::Deactivate => {
                let header = self.headers.at(self.revision().await?);
                Ok(Response::new(AlarmResponse { header, alarms: Vec::new() }))
            }
        }
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let look = self.gateway.look(|node| (node.machine().kv_revision(), node.store().bytes()));
        let (revision, bytes) = look.await.map_err(etcd_status)?;
        let (role, progress) = (self.gateway.leadership().role, self.gateway.progress());
        let errors = match role.leader {
            0 => vec!["etcdserver: no leader".to_owned()],
            _ => Vec::new(),
        };
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            header: self.headers.at(revision),
            version: API_VERSION.to_owned(),
            db_size: bytes,
            leader: role.leader,
            raft_index: progress.last_index,
            raft_term: role.term,
            raft_applied_index: progress.applied.index,
            errors,
            db_size_in_use: bytes,
            is_learner: false,
        }))
    }

    async fn defragment(&self, _request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        Err(Status::unimplemented("there is nothing to defragment: the store compacts itself in the background"))
    }

    async fn hash(&self, _request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        Err(Status::unimplemented("members compare their states by checkpoints, not by this hash"))
    }

    async fn hash_kv(&self, _request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        Err(Status::unimplemented("members compare their states by checkpoints, not by this hash"))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(&self, _request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        let words = "this is not an etcd database, so no etcd snapshot can be made of it: nothing was saved";
        Err(Status::unimplemented(words))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        let target = request.into_inner().target_id;
        if !self.peers.members().iter().any(|m| m.id == target && !m.learner) {
            return Err(Status::not_found("etcdserver: member not found"));
        }
        self.gateway.transfer_leader(target).await.map_err(etcd_status)?;
        let header = self.headers.at(self.revision().await?);
        let mut leaderships = self.gateway.leaderships();
        let moved = leaderships.wait_for(|l| l.role.leader == target);
        match tokio::time::timeout(crate::gateway::DEADLINE, moved).await {
            Ok(Ok(_)) => Ok(Response::new(MoveLeaderResponse { header })),
            _ => Err(Status::unavailable("etcdserver: request timed out, leader transfer took too long")),
        }
    }
}

#[tonic::async_trait]
impl Auth for ClusterDoor {
    async fn auth_status(&self, _request: Request<AuthStatusRequest>) -> Result<Response<AuthStatusResponse>, Status> {
        let header = self.headers.at(self.revision().await?);
        Ok(Response::new(AuthStatusResponse { header, enabled: false, auth_revision: 1 }))
    }

    async fn auth_enable(&self, _request: Request<AuthEnableRequest>) -> Result<Response<AuthEnableResponse>, Status> {
        Err(Status::unimplemented("there are no users and passwords here; who may reach the address may call it"))
    }

    async fn authenticate(
        &self,
        _request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        // The very text that etcd's clients know: they then go on without a token.
        Err(Status::failed_precondition("etcdserver: authentication is not enabled"))
    }
}
