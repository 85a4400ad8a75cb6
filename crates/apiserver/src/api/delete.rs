//! DELETE: at once, with grace, or when the last finalizer goes.

use super::change::{Edit, Part};
use super::list::Selection;
use super::{Api, Call, Served};
use crate::error::{ApiError, Subject};
use crate::http::body;
use crate::http::respond::{self, Body};
use crate::object;
use crate::registry::{Deletion, Resource};
use crate::store::Stored;
use crate::store::etcd::Written;
use crate::time;
use http::Response;
use serde_json::{Value, json};
use std::sync::Arc;

const PERMANENT: [&str; 3] = ["default", "kube-system", "kube-public"];
const TRIES: usize = 32;

/// What the client says about a deletion.
#[derive(Debug, Default)]
pub(super) struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

impl Options {
    /// From the body, else from the query.
    pub(super) fn of(call: &Call) -> Result<Options, ApiError> {
        let body = if call.body.is_empty() { json!({}) } else { body::parse(call.media_type(), &call.body)? };
        let query_grace = call.query.one("gracePeriodSeconds").map(|text| {
            text.parse::<i64>().map_err(|_| {
                ApiError::BadRequest(format!("gracePeriodSeconds: Invalid value: {text:?}: must be a number"))
            })
        });
        let policy = body["propagationPolicy"].as_str().or(call.query.one("propagationPolicy"));
        if let Some(policy) = policy.filter(|policy| !matches!(*policy, "Background" | "Foreground" | "Orphan")) {
            return Err(ApiError::BadRequest(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
            )));
        }
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        Ok(Options {
            grace: body["gracePeriodSeconds"].as_i64().or(query_grace.transpose()?),
            uid: text("/preconditions/uid"),
            revision: text("/preconditions/resourceVersion"),
            dry_run: call.dry_run()? || object::list(&body, "/dryRun").iter().any(|part| part == "All"),
        })
    }

    fn check(&self, resource: &Resource, old: &Value) -> Result<(), ApiError> {
        let why = match (&self.uid, &self.revision) {
            (Some(uid), _) if uid != object::uid(old) => {
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", object::uid(old))
            }
            (_, Some(revision)) if revision != object::text(old, "/metadata/resourceVersion") => format!(
                "the ResourceVersion in the precondition ({revision}) does not match the ResourceVersion in record ({}). The object might have been modified",
                object::text(old, "/metadata/resourceVersion")
            ),
            _ => return Ok(()),
        };
        Err(ApiError::Conflict { subject: resource.subject(object::name(old)), why })
    }
}

/// What becomes of an object that is deleted now.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It goes.
    Gone,
    /// It stays as this for a while.
    Stays(Value),
}

impl Api {
    /// DELETE of one object.
    pub(super) async fn delete(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let options = Options::of(call)?;
        let resource = served.resource;
        let (last, gone) = self.remove(served, resource.key(namespace, name), &options).await?;
        if gone && resource.deletion != Deletion::Graceful {
            let mut details = json!({"name": name, "kind": resource.plural, "uid": object::uid(&last.object())});
            if !resource.group.is_empty() {
                details["group"] = json!(resource.group);
            }
            let status =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            return Ok(respond::json(200, &status));
        }
        Ok(respond::json_text(200, last.json.clone()))
    }

    /// DELETE of a collection.
    pub(super) async fn delete_many(
        &self,
        served: &Served,
        namespace: Option<&str>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let options = Options::of(call)?;
        let selection = Selection::of(served.resource, namespace, call)?;
        let listed = self.newest(served, &selection).await?;
        let mut items = Vec::new();
        for item in listed.items {
            match self.remove(served, item.key.clone(), &options).await {
                Ok((last, _)) => items.push(last),
                Err(ApiError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let metadata = json!({"resourceVersion": listed.revision.to_string()});
        Ok(respond::json_text(200, super::view::View::Plain.many(served.resource, &items, metadata)))
    }

    /// Deletes one object, or begins to. The second half says whether it is gone.
    pub(super) async fn remove(
        &self,
        served: &Served,
        key: String,
        options: &Options,
    ) -> Result<(Arc<Stored>, bool), ApiError> {
        let resource = served.resource;
        for _ in 0..TRIES {
            let current = self.load(served, &key).await?;
            let old = current.object();
            options.check(resource, &old)?;
            match fate(resource, &old, options)? {
                Fate::Gone if options.dry_run => return Ok((current, true)),
                Fate::Gone => {
                    let full = format!("{}{key}", resource.prefix());
                    if let Written::Done(revision) = self.etcd.delete_if(&full, current.revision).await? {
                        return Ok((Arc::new(current.at_revision(resource, revision)), true));
                    }
                }
                Fate::Stays(new) => {
                    let edit = Edit { key: key.clone(), part: Part::Decided, manager: None, dry_run: options.dry_run };
                    // The wanted object carries the revision that it was made from: a conflict means to look again.
                    match self.change(served, &edit, |_| Ok(new.clone())).await {
                        Err(ApiError::Conflict { .. }) => {}
                        result => return result.map(|stored| (stored, false)),
                    }
                }
            }
        }
        let name = key.rsplit('/').next().unwrap_or_default();
        Err(ApiError::Conflict {
            subject: resource.subject(name),
            why: "the object is being changed by others all the time; please try again".to_owned(),
        })
    }
}

fn fate(resource: &Resource, old: &Value, options: &Options) -> Result<Fate, ApiError> {
    let held = !object::finalizers(old).is_empty();
    let begun = object::is_deleting(old);
    match resource.deletion {
        Deletion::Immediate if !held => Ok(Fate::Gone),
        Deletion::Immediate => Ok(Fate::Stays(begin(old, 0, 0))),
        Deletion::Graceful => Ok(pod_fate(old, options.grace, held, begun)),
        Deletion::Namespace => {
            let name = object::name(old);
            let subject = || Subject { group: String::new(), kind: "namespaces".to_owned(), name: name.to_owned() };
            if PERMANENT.contains(&name) {
                return Err(ApiError::Forbidden {
                    subject: subject(),
                    why: "this namespace may not be deleted".to_owned(),
                });
            }
            match (begun, held || !object::list(old, "/spec/finalizers").is_empty()) {
                (_, false) => Ok(Fate::Gone),
                (false, true) => {
                    let mut new = begin(old, 0, 0);
                    object::metadata(&mut new).shift_remove("deletionGracePeriodSeconds");
                    object::child(&mut new, "status").insert("phase".to_owned(), json!("Terminating"));
                    Ok(Fate::Stays(new))
                }
                (true, true) => Err(ApiError::Conflict {
                    subject: subject(),
                    why: format!(
                        "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace {name} will automatically be purged by the system."
                    ),
                }),
            }
        }
    }
}

/// A pod on a node stays until the node has stopped it; a later deletion may only shorten its time.
fn pod_fate(old: &Value, asked: Option<i64>, held: bool, begun: bool) -> Fate {
    let scheduled = !object::text(old, "/spec/nodeName").is_empty();
    let ended = matches!(object::text(old, "/status/phase"), "Succeeded" | "Failed");
    let own = old.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    let grace = match asked.unwrap_or(own) {
        _ if !scheduled || ended => 0,
        negative if negative < 0 => 1,
        grace => grace,
    };
    if grace == 0 && !held {
        return Fate::Gone;
    }
    let running = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if begun && running.is_some_and(|running| running <= grace) {
        return Fate::Stays(old.clone());
    }
    Fate::Stays(begin(old, grace, grace))
}

/// `old` with its deletion begun, to end in `seconds`.
fn begin(old: &Value, seconds: i64, grace: i64) -> Value {
    let mut new = old.clone();
    let begun = object::is_deleting(old);
    let metadata = object::metadata(&mut new);
    if !begun
        || grace > 0
        || seconds > 0
        || metadata.get("deletionGracePeriodSeconds").is_some_and(|running| *running != json!(grace))
    {
        let end = jiff::Timestamp::now().saturating_add(jiff::SignedDuration::from_secs(seconds));
        metadata.insert("deletionTimestamp".to_owned(), json!(end.map_or_else(|_| time::now(), time::seconds)));
        metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(grace));
    }
    new
}

#[cfg(test)]
mod tests {
    use super::{Fate, Options, fate};
    use crate::registry::find;
    use serde_json::{Value, json};

    fn pod(spec: Value, metadata: Value, grace: Option<i64>) -> Fate {
        let pods = find("", "v1", "pods").expect("pods");
        let pod = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Running"}});
        fate(pods, &pod, &Options { grace, ..Options::default() }).expect("a fate")
    }

    #[test]
    fn pods_get_their_time() {
        let on_node = json!({"nodeName": "n", "terminationGracePeriodSeconds": 30});
        assert_eq!(pod(json!({}), json!({}), None), Fate::Gone, "nobody runs it");
        assert_eq!(pod(on_node.clone(), json!({}), Some(0)), Fate::Gone, "the node says it is over");
        let Fate::Stays(begun) = pod(on_node.clone(), json!({"name": "p"}), None) else { panic!("stays") };
        assert_eq!(begun["metadata"]["deletionGracePeriodSeconds"], 30);
        let Fate::Stays(again) = pod(on_node.clone(), begun["metadata"].clone(), Some(60)) else { panic!("stays") };
        assert_eq!(again["metadata"], begun["metadata"], "longer is not granted");
        let Fate::Stays(shorter) = pod(on_node, begun["metadata"].clone(), Some(1)) else { panic!("stays") };
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 1);
    }

    #[test]
    fn finalizers_hold() {
        let maps = find("", "v1", "configmaps").expect("configmaps");
        let held = json!({"metadata": {"name": "a", "finalizers": ["x"]}});
        let Ok(Fate::Stays(begun)) = fate(maps, &held, &Options::default()) else { panic!("stays") };
        assert_eq!(begun["metadata"]["deletionGracePeriodSeconds"], 0);
        let Ok(Fate::Stays(again)) = fate(maps, &begun, &Options::default()) else { panic!("stays") };
        assert_eq!(again, begun);
    }

    #[test]
    fn namespaces_wait_for_their_contents() {
        let namespaces = find("", "v1", "namespaces").expect("namespaces");
        let of = |namespace: Value| fate(namespaces, &namespace, &Options::default());
        let active =
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Ok(Fate::Stays(going)) = of(active) else { panic!("stays") };
        assert_eq!(going["status"]["phase"], "Terminating");
        assert_eq!(of(going.clone()).map_err(|error| error.code()), Err(409));
        let mut empty = going;
        empty["spec"]["finalizers"] = json!([]);
        assert_eq!(of(empty), Ok(Fate::Gone));
        assert_eq!(of(json!({"metadata": {"name": "default"}})).map_err(|error| error.code()), Err(403));
    }
}
