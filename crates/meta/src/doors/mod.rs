//! The doors: one file per gRPC service. Each turns a request into a command, a query or a question to the leader, and
//! the answer back; none decides anything. Every reason becomes a status in `errors`.

pub(crate) mod cluster;
pub(crate) mod errors;
pub(crate) mod kv;
pub(crate) mod lease;
pub(crate) mod meta;
pub(crate) mod raft;
pub(crate) mod watch;

use cairn_proto::etcdserverpb::ResponseHeader;
use tokio::sync::watch::Receiver;
use tonic::Request;
use uuid::Uuid;

use crate::gateway::Gateway;

/// The metadata key that carries a request's id from service to service.
const REQUEST_ID: &str = "x-request-id";

/// What every answer of the etcd API begins with.
#[derive(Clone)]
pub(crate) struct Headers {
    pub(crate) member: u64,
    pub(crate) cluster: Receiver<Uuid>,
    pub(crate) gateway: Gateway,
}

impl Headers {
    /// etcd numbers clusters with 64 bits: the first half of the uuid.
    pub(crate) fn at(&self, revision: i64) -> Option<ResponseHeader> {
        let (cluster_id, _) = self.cluster.borrow().as_u64_pair();
        let raft_term = self.gateway.leadership().role.term;
        Some(ResponseHeader { cluster_id, member_id: self.member, revision, raft_term })
    }
}

/// The id a request came with; a new one where it came with none.
pub(crate) fn request_id<T>(request: &Request<T>) -> String {
    let given = request.metadata().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    // What comes from outside goes into the logs: bounded, and printable by its type.
    given.filter(|id| !id.is_empty() && id.len() <= 128).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}
