//! A small API server in memory, for the agent's tests: objects by path, versions, watches, merge patches, and a pod's
//! two-step deletion. It validates nothing and defaults nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Shared by clones.
#[derive(Clone)]
pub(crate) struct FakeApi {
    state: Arc<Mutex<Objects>>,
    version: Arc<watch::Sender<u64>>,
    pub(crate) address: SocketAddr,
}

#[derive(Default)]
struct Objects {
    /// By path: `/api/v1/namespaces/default/pods/p`.
    now: BTreeMap<String, Value>,
    log: Vec<(u64, &'static str, String, Value)>,
    version: u64,
    /// Watches from before this version are refused.
    oldest: u64,
}

impl FakeApi {
    pub(crate) async fn start() -> FakeApi {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let api = FakeApi { state: Arc::default(), version: Arc::new(watch::Sender::new(0)), address };
        let app = Router::new().fallback(handle).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        api
    }

    pub(crate) fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        })
        .to_string()
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.state.lock().expect("whole").now.get(path).cloned()
    }

    pub(crate) fn under(&self, prefix: &str) -> Vec<Value> {
        let state = self.state.lock().expect("whole");
        state.now.iter().filter(|(path, _)| path.starts_with(prefix)).map(|(_, value)| value.clone()).collect()
    }

    /// Creates or replaces.
    pub(crate) fn put(&self, path: &str, mut object: Value) {
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
        }
        let name = path.rsplit('/').next().expect("a path");
        object["metadata"]["name"] = json!(name);
        if let Some((_, rest)) = path.split_once("/namespaces/")
            && rest.contains('/')
        {
            object["metadata"]["namespace"] = json!(rest.split('/').next());
        }
        self.write(path, object);
    }

    /// Changes an object by a merge patch.
    pub(crate) fn patch(&self, path: &str, patch: &Value) {
        let mut object = self.get(path).expect("it exists");
        merge(&mut object, patch);
        self.write(path, object);
    }

    pub(crate) fn delete(&self, path: &str) {
        let mut state = self.state.lock().expect("whole");
        if let Some(object) = state.now.remove(path) {
            state.note("DELETED", path, object);
            self.version.send_replace(state.version);
        }
    }

    /// What kubectl does to a pod: a deadline, which the agent then meets.
    pub(crate) fn delete_gracefully(&self, path: &str, grace_s: i64) {
        let deletion = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": grace_s});
        self.patch(path, &json!({"metadata": deletion}));
    }

    /// What a restart of an API server does to its clients: watches end, and cannot go on where they were.
    pub(crate) fn forget_history(&self) {
        let mut state = self.state.lock().expect("whole");
        state.version += 1;
        state.oldest = state.version;
        state.log.clear();
        self.version.send_replace(state.version);
    }

    fn write(&self, path: &str, object: Value) -> Value {
        let mut state = self.state.lock().expect("whole");
        let kind = if state.now.contains_key(path) { "MODIFIED" } else { "ADDED" };
        let object = state.note(kind, path, object);
        state.now.insert(path.to_owned(), object.clone());
        self.version.send_replace(state.version);
        object
    }

    /// Waits until the object is as wanted; panics with its last state when it takes too long.
    pub(crate) async fn wait(&self, path: &str, what: &str, wanted: impl Fn(Option<&Value>) -> bool) -> Option<Value> {
        let look = || Some(self.get(path)).filter(|object| wanted(object.as_ref()));
        self.until(look).await.unwrap_or_else(|| panic!("{path} did not become {what}: {:#?}", self.get(path)))
    }

    /// Waits for an object beneath the prefix.
    pub(crate) async fn wait_among(&self, prefix: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let look = || self.under(prefix).into_iter().find(&wanted);
        self.until(look).await.unwrap_or_else(|| panic!("no {what}: {:#?}", self.under(prefix)))
    }

    async fn until<T>(&self, look: impl Fn() -> Option<T>) -> Option<T> {
        let mut versions = self.version.subscribe();
        let seen = async {
            loop {
                versions.borrow_and_update();
                match look() {
                    Some(found) => return found,
                    None => versions.changed().await.expect("the sender lives"),
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), seen).await.ok()
    }
}

impl Objects {
    fn note(&mut self, kind: &'static str, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push((self.version, kind, path.to_owned(), object.clone()));
        object
    }
}

async fn handle(
    State(api): State<FakeApi>,
    Query(query): Query<BTreeMap<String, String>>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let target = path.strip_suffix("/status").unwrap_or(&path).to_owned();
    match parts.method {
        Method::GET if is_collection(&path) && query.get("watch").is_some_and(|watch| watch != "false") => {
            watch_stream(api, path, query)
        }
        Method::GET if is_collection(&path) => {
            let items: Vec<Value> = api
                .under(&format!("{path}/"))
                .into_iter()
                .chain(everywhere(&api, &path))
                .filter(|object| selected(object, &query))
                .collect();
            let version = api.state.lock().expect("whole").version;
            answer(
                200,
                &json!({"kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": version.to_string()}, "items": items}),
            )
        }
        Method::GET => api.get(&target).map_or_else(|| failure(404, "NotFound"), |object| answer(200, &object)),
        Method::POST => {
            let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let path = format!("{path}/{name}");
            if api.get(&path).is_some() {
                return failure(409, "AlreadyExists");
            }
            api.put(&path, body);
            answer(201, &api.get(&path).expect("just made"))
        }
        Method::PATCH => {
            let Some(mut object) = api.get(&target) else { return failure(404, "NotFound") };
            let stale = |field: &str| {
                !body["metadata"][field].is_null() && body["metadata"][field] != object["metadata"][field]
            };
            if stale("resourceVersion") || stale("uid") {
                return failure(409, "Conflict");
            }
            merge(&mut object, &body);
            answer(200, &api.write(&target, object))
        }
        Method::DELETE => {
            let Some(object) = api.get(&target) else { return failure(404, "NotFound") };
            let uid = &body["preconditions"]["uid"];
            if !uid.is_null() && *uid != object["metadata"]["uid"] {
                return failure(409, "Conflict");
            }
            api.delete(&target);
            answer(200, &object)
        }
        _ => failure(405, "MethodNotAllowed"),
    }
}

/// A list of all namespaces, for a namespaced kind.
fn everywhere(api: &FakeApi, path: &str) -> Vec<Value> {
    let (root, plural) = path.rsplit_once('/').expect("a path");
    let state = api.state.lock().expect("whole");
    let inside = |candidate: &str| covers(root, plural, candidate);
    state.now.iter().filter(|(candidate, _)| inside(candidate)).map(|(_, value)| value.clone()).collect()
}

fn covers(root: &str, plural: &str, candidate: &str) -> bool {
    let rest = candidate.strip_prefix(root).and_then(|rest| rest.strip_prefix("/namespaces/"));
    rest.and_then(|rest| rest.split('/').nth(1)) == Some(plural)
}

fn is_collection(path: &str) -> bool {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    matches!(rest, ["namespaces", _, _] | [_])
}

fn selected(object: &Value, query: &BTreeMap<String, String>) -> bool {
    let Some(selector) = query.get("fieldSelector") else { return true };
    selector.split(',').all(|term| {
        let (field, wanted) = term.split_once('=').expect("a term");
        let pointer = format!("/{}", field.replace('.', "/"));
        object.pointer(&pointer).and_then(Value::as_str).unwrap_or_default() == wanted
    })
}

fn watch_stream(api: FakeApi, path: String, query: BTreeMap<String, String>) -> Response {
    let since: u64 = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    if since < api.state.lock().expect("whole").oldest {
        return failure(410, "Expired");
    }
    let versions = api.version.subscribe();
    let stream = futures::stream::unfold((api, since, versions), move |(api, since, mut versions)| {
        let (path, query) = (path.clone(), query.clone());
        async move {
            loop {
                versions.borrow_and_update();
                let news: Vec<_> = {
                    let state = api.state.lock().expect("whole");
                    if since < state.oldest {
                        return None;
                    }
                    state.log.iter().filter(|(version, ..)| *version > since).cloned().collect()
                };
                if let Some((last, ..)) = news.last().cloned() {
                    let (root, plural) = path.rsplit_once('/').expect("a path");
                    let lines: String = news
                        .iter()
                        .filter(|(_, _, at, object)| {
                            (at.starts_with(&format!("{path}/")) || covers(root, plural, at))
                                && selected(object, &query)
                        })
                        .map(|(_, kind, _, object)| json!({"type": kind, "object": object}).to_string() + "\n")
                        .collect();
                    return Some((Ok::<_, std::io::Error>(Bytes::from(lines)), (api, last, versions)));
                }
                versions.changed().await.ok()?;
            }
        }
    });
    Response::new(Body::from_stream(stream))
}

fn answer(code: u16, value: &Value) -> Response {
    (StatusCode::from_u16(code).expect("a code"), axum::Json(value)).into_response()
}

fn failure(code: u16, reason: &str) -> Response {
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
        "reason": reason, "code": code}),
    )
}

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            object.as_object_mut().expect("an object").remove(key);
        } else {
            merge(&mut object[key], change);
        }
    }
}
