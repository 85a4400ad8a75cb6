//! etcd's Watch service: one task per stream, many watches on it. What is new comes from the hub; what lies in the past,
//! or was missed because the client was slow, is read from the history, so no watch loses an event that compaction left.
//!
//! Events of one watch go out in the order of their revisions, a revision never split.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_meta_core::kv;
use cairn_proto::etcdserverpb::watch_create_request::FilterType;
use cairn_proto::etcdserverpb::watch_request::RequestUnion;
use cairn_proto::etcdserverpb::watch_server::Watch;
use cairn_proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use futures::Stream;
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::Headers;
use super::errors::etcd_status;
use crate::gateway::{CallError, Gateway};
use crate::kv_hub::{Change, Interest, KvHub, WatchKey};

/// Responses on their way into one stream.
const RESPONSES: usize = 8;
/// Bytes of events after which a response is sent.
const RESPONSE_BYTES: usize = 1 << 20;
/// Revisions looked at in one read of the history.
const HISTORY_STEPS: usize = 2000;
/// A watch that asked for progress hears of it this often.
const PROGRESS: Duration = Duration::from_secs(5);
/// A stream at a member that has lost its leader ends after this long, so that the client finds another member.
const LEADERLESS: Duration = Duration::from_secs(5);
/// Watches of one stream.
const MAX_WATCHES: usize = 10_000;

type Responses = mpsc::Sender<Result<WatchResponse, Status>>;

pub(crate) struct WatchDoor {
    pub(crate) gateway: Gateway,
    pub(crate) hub: Arc<KvHub>,
    pub(crate) headers: Headers,
    pub(crate) stop: CancellationToken,
}

#[tonic::async_trait]
impl Watch for WatchDoor {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, receiver) = mpsc::channel(RESPONSES);
        let session = Session {
            gateway: self.gateway.clone(),
            hub: Arc::clone(&self.hub),
            headers: self.headers.clone(),
            responses,
            wake: Arc::default(),
            watches: BTreeMap::new(),
            next_id: 0,
        };
        let (stop, requests) = (self.stop.clone(), request.into_inner());
        tokio::spawn(async move { stop.run_until_cancelled(session.run(requests)).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One watch of a stream.
struct Open {
    key: WatchKey,
    interest: Interest,
    progress: bool,
    /// Something was sent since the last look at the clock.
    spoke: bool,
}

/// One stream.
struct Session {
    gateway: Gateway,
    hub: Arc<KvHub>,
    headers: Headers,
    responses: Responses,
    wake: Arc<Notify>,
    watches: BTreeMap<i64, Open>,
    next_id: i64,
}

/// The client is gone, or the stream must end.
struct Ended;

impl Session {
    async fn run(mut self, mut requests: Streaming<WatchRequest>) {
        let wake = Arc::clone(&self.wake);
        let gateway = self.gateway.clone();
        let lost = gateway.leader_lost(LEADERLESS);
        tokio::pin!(lost);
        let mut clock = tokio::time::interval(PROGRESS);
        clock.reset();
        loop {
            let going = tokio::select! {
                request = requests.message() => match request {
                    Ok(Some(WatchRequest { request_union: Some(request) })) => self.handle(request).await,
                    Ok(Some(_)) => Ok(()),
                    // The client said all it had to say; what it watches goes on until it leaves.
                    Ok(None) => {
                        self.responses.closed().await;
                        Err(Ended)
                    }
                    Err(_) => Err(Ended),
                },
                () = wake.notified() => self.pump_all().await.map(|_| ()),
                _ = clock.tick(), if self.watches.values().any(|w| w.progress) => self.report_progress().await,
                () = &mut lost => {
                    let _ = self.responses.send(Err(Status::unavailable("etcdserver: no leader"))).await;
                    Err(Ended)
                }
                () = self.responses.closed() => Err(Ended),
            };
            if going.is_err() {
                return;
            }
        }
    }

    async fn send(&self, response: WatchResponse) -> Result<(), Ended> {
        self.responses.send(Ok(response)).await.map_err(|_| Ended)
    }

    fn response(&self, watch_id: i64, revision: i64) -> WatchResponse {
        WatchResponse { header: self.headers.at(revision), watch_id, ..WatchResponse::default() }
    }

    async fn handle(&mut self, request: RequestUnion) -> Result<(), Ended> {
        match request {
            RequestUnion::CreateRequest(request) => self.create(request).await,
            RequestUnion::CancelRequest(request) => match self.watches.remove(&request.watch_id) {
                Some(open) => {
                    self.hub.remove(open.key);
                    let response = self.response(request.watch_id, self.hub.revision());
                    self.send(WatchResponse { canceled: true, ..response }).await
                }
                None => Ok(()),
            },
            RequestUnion::ProgressRequest(_) => {
                let level = self.pump_all().await?;
                self.send(self.response(-1, level)).await
            }
        }
    }

    async fn create(&mut self, request: WatchCreateRequest) -> Result<(), Ended> {
        let start = request.start_revision;
        let (wanted, progress) = (request.watch_id, request.progress_notify);
        let interest = interest_of(request);
        let free = wanted == 0 || (wanted > 0 && !self.watches.contains_key(&wanted));
        let refused = match &interest {
            Err(words) => Some(*words),
            _ if !free => Some("mvcc: duplicate watch ID provided on the WatchStream"),
            _ if self.watches.len() >= MAX_WATCHES => Some("etcdserver: too many watches on one stream"),
            Ok(_) => None,
        };
        let Ok(interest) = interest else { return self.refuse(refused.unwrap_or_default()).await };
        if let Some(words) = refused {
            return self.refuse(words).await;
        }
        let id = if wanted == 0 { self.free_id() } else { wanted };
        let (key, level) = self.hub.add(interest.clone(), start.max(0), Arc::clone(&self.wake));
        self.watches.insert(id, Open { key, interest, progress, spoke: true });
        let response = self.response(id, level);
        self.send(WatchResponse { created: true, ..response }).await
    }

    async fn refuse(&self, words: &str) -> Result<(), Ended> {
        let response = self.response(-1, self.hub.revision());
        self.send(WatchResponse { created: true, canceled: true, cancel_reason: words.to_owned(), ..response }).await
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Sends what has come for every watch. Answers the revision that all of them are level with.
    async fn pump_all(&mut self) -> Result<i64, Ended> {
        let mut level = self.hub.revision();
        let ids: Vec<i64> = self.watches.keys().copied().collect();
        for id in ids {
            level = level.min(self.pump(id).await?);
        }
        Ok(level)
    }

    async fn pump(&mut self, id: i64) -> Result<i64, Ended> {
        loop {
            let Some(open) = self.watches.get_mut(&id) else { return Ok(i64::MAX) };
            let found = self.hub.take(open.key);
            open.spoke |= !found.changes.is_empty();
            self.send_changes(id, found.changes, found.level).await?;
            let Some(from) = found.lagging_from else { return Ok(found.level) };
            if !self.send_past(id, from).await? {
                return Ok(i64::MAX);
            }
        }
    }

    async fn send_changes(&self, id: i64, changes: Vec<Change>, level: i64) -> Result<(), Ended> {
        let mut response = self.response(id, level);
        let mut bytes = 0;
        for change in changes {
            bytes += change.events.iter().map(Message::encoded_len).sum::<usize>();
            response.events.extend(change.events);
            if bytes >= RESPONSE_BYTES {
                // The header must not promise what is still to come.
                response.header = self.headers.at(change.revision);
                self.send(std::mem::replace(&mut response, self.response(id, level))).await?;
                bytes = 0;
            }
        }
        if response.events.is_empty() { Ok(()) } else { self.send(response).await }
    }

    /// Reads a piece of the history for a watch that lags. `false`: the watch was cancelled, for the history is gone.
    async fn send_past(&mut self, id: i64, from: i64) -> Result<bool, Ended> {
        let Some(open) = self.watches.get_mut(&id) else { return Ok(false) };
        open.spoke = true;
        let (key, interest) = (open.key, open.interest.clone());
        let range = (interest.key.clone(), interest.range_end.clone());
        let read = self
            .gateway
            .query_aside(false, move |state| kv::history_of(state, (&range.0, &range.1), from, HISTORY_STEPS));
        match read.await {
            Ok(past) => {
                let shaped = |(revision, events): (i64, Vec<_>)| {
                    let events: Vec<_> = events.iter().filter_map(|event| interest.shaped(event)).collect();
                    (!events.is_empty()).then_some(Change { revision, events })
                };
                let changes = past.revisions.into_iter().filter_map(shaped).collect();
                self.send_changes(id, changes, past.through).await?;
                self.hub.catch_up(key, past.through + 1);
                Ok(true)
            }
            Err(CallError::Refused(refused)) => {
                self.watches.remove(&id);
                self.hub.remove(key);
                let (revision, compacted) = self.standing().await;
                let response = self.response(id, revision);
                let cancel_reason = refused.message;
                let canceled = true;
                self.send(WatchResponse { canceled, compact_revision: compacted, cancel_reason, ..response }).await?;
                Ok(false)
            }
            Err(error) => {
                let _ = self.responses.send(Err(etcd_status(error))).await;
                Err(Ended)
            }
        }
    }

    async fn standing(&self) -> (i64, i64) {
        let standing = self.gateway.local(|machine, _| (machine.kv_revision(), machine.kv_compacted())).await;
        standing.unwrap_or_default()
    }

    async fn report_progress(&mut self) -> Result<(), Ended> {
        let level = self.pump_all().await?;
        let quiet = self.watches.iter_mut().filter(|(_, open)| open.progress);
        let quiet: Vec<i64> =
            quiet.filter_map(|(id, open)| (!std::mem::take(&mut open.spoke)).then_some(*id)).collect();
        for id in quiet {
            self.send(self.response(id, level)).await?;
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for open in self.watches.values() {
            self.hub.remove(open.key);
        }
    }
}

/// What etcd makes of the odd cases: an empty key is the first possible one, an empty or reversed range is refused.
fn interest_of(request: WatchCreateRequest) -> Result<Interest, &'static str> {
    let filters: Vec<FilterType> = request.filters().collect();
    let (key, range_end) = (request.key, request.range_end);
    let key = if key.is_empty() { vec![0] } else { key.to_vec() };
    let ends = !range_end.is_empty() && range_end[..] != [0];
    if ends && range_end <= key {
        return Err("mvcc: watcher range is empty");
    }
    Ok(Interest {
        key,
        range_end: range_end.to_vec(),
        no_put: filters.contains(&FilterType::Noput),
        no_delete: filters.contains(&FilterType::Nodelete),
        prev_kv: request.prev_kv,
    })
}
