//! etcd's KV service: ranges are read linearizably (or here, where the client says that is enough), everything else is
//! a command under the member's own session.

use cairn_meta_core::kv;
use cairn_proto::etcdserverpb::kv_server::Kv;
use cairn_proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use tonic::{Request, Response, Status};

use super::errors::etcd_status;
use super::{Headers, request_id};
use crate::gateway::{CallError, Gateway};
use crate::leader::command;

pub(crate) struct KvDoor {
    pub(crate) gateway: Gateway,
    pub(crate) headers: Headers,
}

impl KvDoor {
    async fn propose(&self, payload: Payload, request_id: String) -> Result<Answer, Status> {
        self.gateway.propose_once(command(payload, request_id)).await.map_err(etcd_status)
    }

    fn header(&self, from: Option<ResponseHeader>) -> Option<ResponseHeader> {
        self.headers.at(from.map_or(0, |header| header.revision))
    }
}

/// The answer was to another question: a bug, answered as such.
pub(super) fn mixed_up() -> Status {
    Status::internal("the state machine answered another question; this is a bug")
}

fn checked(check: Result<(), cairn_meta_core::Refusal>) -> Result<(), Status> {
    check.map_err(|refusal| etcd_status(CallError::from(refusal)))
}

#[tonic::async_trait]
impl Kv for KvDoor {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        checked(kv::check_range(&request))?;
        let linearizable = !request.serializable;
        let answer = match (request.range_end.is_empty(), linearizable) {
            (true, true) => self.gateway.query(move |machine, state| kv::range(machine, state, &request)).await,
            (true, false) => self.gateway.query_here(move |machine, state| kv::range(machine, state, &request)).await,
            // Many keys: aside, so that the member's own thread is not held up.
            (false, _) => self.gateway.query_aside(linearizable, move |state| kv::range_of(state, &request)).await,
        };
        let mut response = answer.map_err(etcd_status)?;
        response.header = self.header(response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let id = request_id(&request);
        let request = request.into_inner();
        checked(kv::check_put(&request))?;
        let Answer::KvPut(mut response) = self.propose(Payload::KvPut(request), id).await? else {
            return Err(mixed_up());
        };
        response.header = self.header(response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let id = request_id(&request);
        let request = request.into_inner();
        checked(kv::check_delete_range(&request))?;
        let Answer::KvDeleteRange(mut response) = self.propose(Payload::KvDeleteRange(request), id).await? else {
            return Err(mixed_up());
        };
        response.header = self.header(response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let id = request_id(&request);
        let request = request.into_inner();
        checked(kv::check_txn(&request))?;
        let Answer::KvTxn(mut response) = self.propose(Payload::KvTxn(request), id).await? else {
            return Err(mixed_up());
        };
        response.header = self.header(response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let id = request_id(&request);
        let payload = Payload::KvCompact(request.into_inner());
        let Answer::KvCompact(mut response) = self.propose(payload, id).await? else { return Err(mixed_up()) };
        response.header = self.header(response.header);
        Ok(Response::new(response))
    }
}
