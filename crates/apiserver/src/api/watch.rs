//! Watching: what is there first where it is asked for, then every change, from one shared cache.
//!
//! A watcher holds a place in the cache's ring and nothing else; it sleeps until the cache moves.

use super::list::{Selection, number};
use super::view::View;
use super::{Api, Call, Served};
use crate::error::{ApiError, Cause, Subject};
use crate::http::respond::{self, Body};
use crate::store::Stored;
use crate::store::cache::{Change, Cursor};
use bytes::{BufMut, Bytes, BytesMut};
use http::Response;
use http::header::ACCEPT;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without a limit of its own ends after this and up to as much again.
const DEFAULT_SECONDS: u64 = 1800;
/// As much as is put into one chunk before the connection gets its turn.
const CHUNK: usize = 256 << 10;

struct Watcher {
    api: Arc<Api>,
    at: usize,
    selection: Selection,
    view: View,
    cursor: Cursor,
    moved: Receiver<(u64, u64)>,
    /// Changes up to here are already known to the client.
    known: i64,
    initial: std::vec::IntoIter<Arc<Stored>>,
    /// The bookmark that ends the initial events is still owed, at this revision.
    initial_end: Option<i64>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    headings: bool,
    over: bool,
    shutdown: CancellationToken,
}

impl Api {
    /// GET of a collection with `watch`.
    pub(super) async fn watch(
        self: &Arc<Self>,
        at: usize,
        namespace: Option<&str>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let served = &self.served[at];
        let selection = Selection::of(served.resource, namespace, call)?;
        let asked = number(call.query.one("resourceVersion"), "resourceVersion")?;
        let with_initial = initial_wanted(call)?;
        served.cache.ready().await;
        let moved = served.cache.subscribe();
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let mut watcher = Watcher {
            api: self.clone(),
            at,
            view: View::choose(call.header(ACCEPT), &call.query),
            cursor: served.cache.snapshot("\0").2,
            moved,
            known: 0,
            initial: Vec::new().into_iter(),
            initial_end: None,
            bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            deadline: Instant::now() + timeout(call)?,
            headings: true,
            over: false,
            shutdown: self.shutdown.clone(),
            selection,
        };
        match (with_initial, asked) {
            (None | Some(false), Some(revision)) if revision > 0 => match served.cache.after(revision) {
                Ok(cursor) => (watcher.cursor, watcher.known) = (cursor, revision),
                Err(_) => {
                    let why = format!("too old resource version: {revision} ({})", served.cache.revision());
                    return Ok(expired(why));
                }
            },
            (Some(false), _) => watcher.known = served.cache.revision(),
            (wanted, asked) => {
                let known = self.initial(served, &mut watcher, asked).await?;
                watcher.known = known;
                watcher.initial_end = Some(known).filter(|_| wanted == Some(true) && bookmarks);
            }
        }
        let stream = futures::stream::unfold(watcher, |mut watcher| async move {
            let chunk = watcher.next().await?;
            Some((chunk, watcher))
        });
        Ok(respond::json_stream(stream))
    }

    /// The state that a watcher starts from: any for revision 0, else one that is new enough.
    async fn initial(&self, served: &Served, watcher: &mut Watcher, asked: Option<i64>) -> Result<i64, ApiError> {
        let (items, seen, cursor) = served.cache.snapshot(&watcher.selection.prefix());
        watcher.cursor = cursor;
        if asked.is_some_and(|asked| seen >= asked) {
            let items = items.into_iter().filter(|item| watcher.selection.matches(served.resource, item));
            watcher.initial = items.collect::<Vec<_>>().into_iter();
            return Ok(seen);
        }
        // Changes from here on are in the ring after `cursor`; those that the list already shows are skipped.
        let listed = self.newest(served, &watcher.selection).await?;
        if asked.is_some_and(|asked| listed.revision < asked) {
            return Err(ApiError::TooLargeResourceVersion { asked: asked.unwrap_or(0), current: listed.revision });
        }
        watcher.initial = listed.items.into_iter();
        Ok(listed.revision)
    }
}

/// `sendInitialEvents`, which goes only with `resourceVersionMatch=NotOlderThan`.
fn initial_wanted(call: &Call) -> Result<Option<bool>, ApiError> {
    let asked = call.query.one("sendInitialEvents");
    let matching = call.query.one("resourceVersionMatch");
    let refused = |field: &str, why: &str| {
        let subject = Subject { group: "meta.k8s.io".to_owned(), kind: "ListOptions".to_owned(), name: String::new() };
        Err(ApiError::Invalid { subject, causes: vec![Cause::forbidden(field, why)] })
    };
    match (asked, matching) {
        (None, None) => Ok(None),
        (None, Some(_)) => refused(
            "resourceVersionMatch",
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (Some(_), Some("NotOlderThan")) => Ok(Some(call.query.flag("sendInitialEvents"))),
        (Some(_), _) => {
            refused("resourceVersionMatch", "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        }
    }
}

fn timeout(call: &Call) -> Result<Duration, ApiError> {
    let asked = number(call.query.one("timeoutSeconds"), "timeoutSeconds")?.filter(|seconds| *seconds > 0);
    let seconds = match asked {
        Some(seconds) => seconds.unsigned_abs(),
        // Spread, so that clients that came together do not come back together.
        None => DEFAULT_SECONDS + u64::from(uuid::Uuid::new_v4().as_bytes()[0]) * DEFAULT_SECONDS / 256,
    };
    Ok(Duration::from_secs(seconds.min(24 * 3600)))
}

/// A watch that begins too far back: as in Kubernetes an event of the stream says so, after which clients list anew.
/// The same as the answer's own status makes kube-rs ask for the same watch for ever.
fn expired(why: String) -> Response<Body> {
    let event = line("ERROR", ApiError::Expired(why).to_status().to_string().as_bytes());
    respond::json_stream(futures::stream::once(async move { event }))
}

enum Woken {
    Moved,
    Bookmark,
    End,
}

impl Watcher {
    /// The next chunk of lines; `None` ends the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.over {
                return None;
            }
            let mut out = BytesMut::new();
            self.drain(&mut out);
            if !out.is_empty() {
                return Some(out.freeze());
            }
            let woken = {
                let bookmark =
                    tokio::time::sleep_until(if self.bookmarks { self.next_bookmark } else { self.deadline });
                tokio::select! {
                    moved = self.moved.changed() => if moved.is_ok() { Woken::Moved } else { Woken::End },
                    () = bookmark, if self.bookmarks => Woken::Bookmark,
                    () = tokio::time::sleep_until(self.deadline) => Woken::End,
                    () = self.shutdown.cancelled() => Woken::End,
                }
            };
            match woken {
                Woken::Moved => {}
                Woken::End => return None,
                Woken::Bookmark => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    let served = &self.api.served[self.at];
                    let revision = served.cache.revision().max(self.known);
                    return Some(line("BOOKMARK", &self.view.bookmark(served.resource, revision, false)));
                }
            }
        }
    }

    /// Puts everything that is due into `out`.
    fn drain(&mut self, out: &mut BytesMut) {
        let api = self.api.clone();
        let served = &api.served[self.at];
        // Marked as seen before reading, so that nothing that comes in between is missed.
        self.moved.borrow_and_update();
        while let Some(stored) = self.initial.next() {
            self.put(out, "ADDED", served, &stored);
            if out.len() > CHUNK {
                return;
            }
        }
        if let Some(revision) = self.initial_end.take() {
            out.extend_from_slice(&line("BOOKMARK", &self.view.bookmark(served.resource, revision, true)));
        }
        match served.cache.read(&mut self.cursor) {
            Ok((changes, _)) => {
                let known = self.known;
                for change in changes.iter().filter(|change| change.revision > known) {
                    self.change(out, served, change);
                }
            }
            Err(_) => {
                let error = ApiError::Expired("The resourceVersion for the provided watch is too old.".to_owned());
                out.extend_from_slice(&line("ERROR", error.to_status().to_string().as_bytes()));
                self.over = true;
            }
        }
    }

    fn change(&mut self, out: &mut BytesMut, served: &Served, change: &Change) {
        let selected = |stored: &&Arc<Stored>| self.selection.matches(served.resource, stored);
        let (before, after) = (change.before.as_ref().filter(selected), change.after.as_ref().filter(selected));
        match (before, after) {
            (None, None) => {}
            (None, Some(after)) => self.put(out, "ADDED", served, after),
            (Some(_), Some(after)) => self.put(out, "MODIFIED", served, after),
            (Some(before), None) => {
                let last = before.at_revision(served.resource, change.revision);
                self.put(out, "DELETED", served, &last);
            }
        }
    }

    fn put(&mut self, out: &mut BytesMut, kind: &str, served: &Served, stored: &Stored) {
        let object = self.view.one(served.resource, stored, self.headings);
        self.headings = false;
        out.extend_from_slice(&line(kind, &object));
    }
}

fn line(kind: &str, object: &[u8]) -> Bytes {
    let mut line = BytesMut::with_capacity(object.len() + kind.len() + 24);
    line.put_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
    line.put_slice(object);
    line.put_slice(b"}\n");
    line.freeze()
}
