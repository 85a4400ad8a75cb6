//! The few calls of the etcd v3 API that objects need, with retries over several endpoints.
//!
//! A write is one transaction that compares the key's revision. A reply that was lost is resolved by reading: if the
//! key holds exactly what was to be written, the write was ours.

use bytes::Bytes;
use cairn_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use cairn_proto::etcdserverpb::kv_client::KvClient;
use cairn_proto::etcdserverpb::lease_client::LeaseClient;
use cairn_proto::etcdserverpb::request_op::Request as Op;
use cairn_proto::etcdserverpb::response_op::Response as OpReply;
use cairn_proto::etcdserverpb::watch_client::WatchClient;
use cairn_proto::etcdserverpb::watch_request::RequestUnion;
use cairn_proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    TxnResponse, WatchCreateRequest, WatchRequest, WatchResponse,
};
use cairn_proto::mvccpb::KeyValue;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

/// One attempt may take this long.
const ATTEMPT: Duration = Duration::from_secs(5);
/// All attempts of one call together.
const PATIENCE: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(100);

tokio::task_local! {
    /// The request on whose behalf calls are made; travels as `x-request-id`.
    pub(crate) static REQUEST_ID: String;
}

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The revision asked for has been compacted away.
    #[error("the revision asked for has been compacted")]
    Compacted,
    /// The revision asked for is in the future.
    #[error("the revision asked for is in the future")]
    Future,
    /// No endpoint answered, or none can serve.
    #[error("the object store is unavailable: {0}")]
    Unavailable(String),
}

/// A page of keys and values at one revision.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) more: bool,
    /// Keys in the whole range.
    pub(crate) count: i64,
    /// The store's revision when it was read.
    pub(crate) revision: i64,
}

/// What became of a conditional write.
#[derive(Debug)]
pub(crate) enum Written {
    /// It happened, at this revision.
    Done(i64),
    /// The key was at another revision; this is what it holds now.
    Lost(Option<KeyValue>),
}

/// A connection to each endpoint, one of them in use.
#[derive(Debug)]
pub(crate) struct Etcd {
    channels: Vec<Channel>,
    current: AtomicUsize,
}

fn traced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ATTEMPT);
    if let Some(id) = REQUEST_ID.try_with(|id| id.parse().ok()).ok().flatten() {
        request.metadata_mut().insert("x-request-id", id);
    }
    request
}

impl Etcd {
    /// Connects on first use. `endpoints` are URLs.
    pub(crate) fn new(endpoints: &[String]) -> Result<Etcd, tonic::transport::Error> {
        let mut channels = Vec::new();
        for url in endpoints {
            let endpoint = Endpoint::from_shared(url.clone())?
                .connect_timeout(Duration::from_secs(2))
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(5))
                .tcp_nodelay(true);
            channels.push(endpoint.connect_lazy());
        }
        Ok(Etcd { channels, current: AtomicUsize::new(0) })
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX)
    }

    fn channel(&self) -> Channel {
        self.channels[self.current.load(Ordering::Relaxed) % self.channels.len()].clone()
    }

    /// Calls until it succeeds, fails for good, or patience ends; another endpoint each time.
    async fn retry<T, F, R>(&self, mut call: F) -> Result<T, StoreError>
    where
        F: FnMut() -> R,
        R: Future<Output = Result<T, Status>>,
    {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = match tokio::time::timeout(ATTEMPT, call()).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded("no answer in time"),
            };
            if status.code() == Code::OutOfRange {
                let compacted = status.message().contains("compacted");
                return Err(if compacted { StoreError::Compacted } else { StoreError::Future });
            }
            let transient = matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Unknown
                    | Code::Cancelled
                    | Code::Aborted
                    | Code::Internal
            );
            if !transient || tokio::time::Instant::now() + PAUSE > deadline {
                return Err(StoreError::Unavailable(status.message().to_owned()));
            }
            tracing::debug!(code = ?status.code(), message = status.message(), "store call failed, trying again");
            self.current.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The newest value of `key`, and the store's revision.
    pub(crate) async fn get(&self, key: &str) -> Result<(Option<KeyValue>, i64), StoreError> {
        let page =
            self.page(RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }).await?;
        Ok((page.kvs.into_iter().next(), page.revision))
    }

    /// Keys from `start` up to and without `end`; `limit` 0 is none, `revision` 0 the newest.
    pub(crate) async fn range(&self, start: &str, end: &str, limit: i64, revision: i64) -> Result<Page, StoreError> {
        let (key, range_end) = (Bytes::copy_from_slice(start.as_bytes()), Bytes::copy_from_slice(end.as_bytes()));
        self.page(RangeRequest { key, range_end, limit, revision, ..Default::default() }).await
    }

    async fn page(&self, request: RangeRequest) -> Result<Page, StoreError> {
        let reply = self.retry(|| async { self.kv().range(traced(request.clone())).await }).await?.into_inner();
        let revision = reply.header.map_or(0, |header| header.revision);
        Ok(Page { kvs: reply.kvs, more: reply.more, count: reply.count, revision })
    }

    /// Writes `value` if `key` is at `expected` (0: absent).
    pub(crate) async fn put_if(
        &self,
        key: &str,
        expected: i64,
        value: Bytes,
        lease: i64,
    ) -> Result<Written, StoreError> {
        let put = PutRequest {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: value.clone(),
            lease,
            ..Default::default()
        };
        let (reply, retried) = self.conditional(key, expected, Op::RequestPut(put)).await?;
        match outcome(reply) {
            Written::Lost(Some(kv)) if retried && kv.value == value => Ok(Written::Done(kv.mod_revision)),
            other => Ok(other),
        }
    }

    /// Deletes `key` if it is at `expected`.
    pub(crate) async fn delete_if(&self, key: &str, expected: i64) -> Result<Written, StoreError> {
        let delete = DeleteRangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
        let (reply, retried) = self.conditional(key, expected, Op::RequestDeleteRange(delete)).await?;
        let revision = reply.header.as_ref().map_or(0, |header| header.revision);
        match outcome(reply) {
            Written::Lost(None) if retried => Ok(Written::Done(revision)),
            other => Ok(other),
        }
    }

    async fn conditional(&self, key: &str, expected: i64, op: Op) -> Result<(TxnResponse, bool), StoreError> {
        let key = Bytes::copy_from_slice(key.as_bytes());
        let request = TxnRequest {
            compare: vec![Compare {
                result: CompareResult::Equal.into(),
                target: CompareTarget::Mod.into(),
                key: key.clone(),
                target_union: Some(TargetUnion::ModRevision(expected)),
                ..Default::default()
            }],
            success: vec![RequestOp { request: Some(op) }],
            failure: vec![RequestOp { request: Some(Op::RequestRange(RangeRequest { key, ..Default::default() })) }],
        };
        let attempts = AtomicUsize::new(0);
        let reply = self
            .retry(|| async {
                attempts.fetch_add(1, Ordering::Relaxed);
                self.kv().txn(traced(request.clone())).await
            })
            .await?;
        Ok((reply.into_inner(), attempts.into_inner() > 1))
    }

    /// Forgets history before `revision`.
    pub(crate) async fn compact(&self, revision: i64) -> Result<(), StoreError> {
        let request = CompactionRequest { revision, physical: false };
        self.retry(|| async { self.kv().compact(traced(request)).await }).await.map(drop)
    }

    /// A lease of `seconds`, after which the keys put under it are gone.
    pub(crate) async fn grant(&self, seconds: i64) -> Result<i64, StoreError> {
        let request = LeaseGrantRequest { ttl: seconds, id: 0 };
        let reply =
            self.retry(|| async { LeaseClient::new(self.channel()).lease_grant(traced(request)).await }).await?;
        Ok(reply.into_inner().id)
    }

    /// Changes of keys from `start` up to and without `end`, from revision `from` on. One attempt: the caller resumes.
    pub(crate) async fn watch(&self, start: &str, end: &str, from: i64) -> Result<Watching, Status> {
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        let create = WatchCreateRequest {
            key: Bytes::copy_from_slice(start.as_bytes()),
            range_end: Bytes::copy_from_slice(end.as_bytes()),
            start_revision: from,
            progress_notify: true,
            ..Default::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.try_send(request).expect("the channel has room for one and is new");
        let mut client = WatchClient::new(self.channel()).max_decoding_message_size(usize::MAX);
        let mut request = Request::new(tokio_stream::wrappers::ReceiverStream::new(receiver));
        // A member that has lost its leader ends the watch instead of letting it go stale.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        match client.watch(request).await {
            Ok(reply) => Ok(Watching { replies: reply.into_inner(), _requests: requests }),
            Err(status) => {
                self.current.fetch_add(1, Ordering::Relaxed);
                Err(status)
            }
        }
    }
}

/// An open watch; dropping it ends it.
pub(crate) struct Watching {
    replies: Streaming<WatchResponse>,
    _requests: tokio::sync::mpsc::Sender<WatchRequest>,
}

impl Watching {
    /// The next batch, or the end.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchResponse>, Status> {
        self.replies.message().await
    }
}

fn outcome(reply: TxnResponse) -> Written {
    let revision = reply.header.map_or(0, |header| header.revision);
    if reply.succeeded {
        return Written::Done(revision);
    }
    let now = reply.responses.into_iter().next().and_then(|op| op.response);
    Written::Lost(match now {
        Some(OpReply::ResponseRange(range)) => range.kvs.into_iter().next(),
        _ => None,
    })
}
