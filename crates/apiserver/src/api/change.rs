//! PUT and PATCH: from the object that is there to the one that shall be.
//!
//! Every change is computed from the newest object and written only if that is still the newest; where somebody was
//! faster it is computed again, unless the client named the revision it meant.

use super::create::{accept, place};
use super::{Api, Call, Served};
use crate::error::ApiError;
use crate::http::body;
use crate::http::respond::{self, Body};
use crate::object;
use crate::owners::{self, Manager};
use crate::patch::{self, PatchError};
use crate::registry::{self, Deletion, Resource};
use crate::store::etcd::Written;
use crate::store::{Stored, encode};
use http::Response;
use serde_json::{Value, json};
use std::sync::Arc;

const TRIES: usize = 32;

/// Which part of an object a change may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but a status that has a door of its own.
    Main,
    /// The status (and metadata).
    Status,
    /// What the server itself has decided: no rule about changes applies.
    Decided,
}

/// Who changes what, and how.
pub(super) struct Edit<'a> {
    pub(super) key: String,
    pub(super) part: Part,
    pub(super) manager: Option<&'a Manager>,
    pub(super) dry_run: bool,
}

impl Api {
    /// PUT of an object or its status.
    pub(super) async fn replace(
        &self,
        served: &Served,
        namespace: Option<&str>,
        name: &str,
        part: Part,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let resource = served.resource;
        let mut wanted = body::parse(call.media_type(), &call.body)?;
        let warnings = accept(resource, &mut wanted, call)?;
        place(resource, &mut wanted, namespace)?;
        let manager = call.manager(resource, subresource(part));
        let key = resource.key(namespace.unwrap_or_default(), name);
        let edit = Edit { key, part, manager: Some(&manager), dry_run: call.dry_run()? };
        let changed = self.change(served, &edit, |_| Ok(wanted.clone())).await?;
        answer(&changed, &warnings)
    }

    /// PATCH of an object or its status.
    pub(super) async fn patch(
        &self,
        served: &Served,
        namespace: Option<&str>,
        name: &str,
        part: Part,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let resource = served.resource;
        let key = resource.key(namespace.unwrap_or_default(), name);
        let manager = call.manager(resource, subresource(part));
        if call.media_type() == "application/apply-patch+yaml" {
            return self.apply(served, namespace, key, part, &manager, call).await;
        }
        let patch: Value = serde_json::from_slice(&call.body)
            .map_err(|error| ApiError::BadRequest(format!("the patch is not JSON: {error}")))?;
        let kind = call.media_type().to_owned();
        let version = resource.api_version();
        let mut warnings = Vec::new();
        let edit = Edit { key, part, manager: Some(&manager), dry_run: call.dry_run()? };
        let changed = self
            .change(served, &edit, |old| {
                let mut new = old.clone();
                let applied = match kind.as_str() {
                    "application/json-patch+json" => patch::json_patch(&mut new, &patch),
                    "application/merge-patch+json" => {
                        patch::merge(&mut new, &patch);
                        Ok(())
                    }
                    "application/strategic-merge-patch+json" => patch::strategic_merge(resource.message(), &mut new, &patch),
                    other => {
                        return Err(ApiError::UnsupportedMediaType(format!(
                            "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml; got {other:?}"
                        )));
                    }
                };
                applied.map_err(|error| refused(resource, name, error))?;
                warnings = body::conform(resource.message(), &version, &mut new, &call.query)?;
                Ok(new)
            })
            .await?;
        answer(&changed, &warnings)
    }

    /// Server-side apply: makes the object, or merges into the one that is there.
    async fn apply(
        &self,
        served: &Served,
        namespace: Option<&str>,
        key: String,
        part: Part,
        manager: &Manager,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let resource = served.resource;
        if call.query.one("fieldManager").is_none() {
            return Err(ApiError::BadRequest(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
                    .to_owned(),
            ));
        }
        let mut config = body::parse(call.media_type(), &call.body)?;
        let warnings = accept(resource, &mut config, call)?;
        place(resource, &mut config, namespace)?;
        if config.pointer("/metadata/managedFields").is_some() {
            return Err(ApiError::BadRequest("metadata.managedFields must be nil".to_owned()));
        }
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        if object::name(&config) != name {
            object::metadata(&mut config).insert("name".to_owned(), json!(name));
        }
        let force = call.query.flag("force");
        let dry_run = call.dry_run()?;
        let merge = |live: Option<&Value>| {
            owners::apply(resource.message(), live, &config, manager, force)
                .map_err(|causes| ApiError::ApplyConflict { causes })
        };
        for _ in 0..TRIES {
            // The apply itself says who owns what, so the change notes no manager.
            let edit = Edit { key: key.clone(), part, manager: None, dry_run };
            match self.change(served, &edit, |old| merge(Some(old))).await {
                Err(ApiError::NotFound { .. }) if part == Part::Main => {}
                Err(error) => return Err(error),
                Ok(changed) => return answer(&changed, &warnings),
            }
            let fresh = merge(None)?;
            match self.insert(served, fresh, None, dry_run).await {
                Err(ApiError::AlreadyExists { .. }) => {}
                result => {
                    let mut response = respond::json_text(201, result?.json);
                    respond::warn(&mut response, &warnings);
                    return Ok(response);
                }
            }
        }
        Err(busy(resource, &name))
    }

    /// Changes one object by `compute`, which gets the newest and gives the wanted one.
    pub(super) async fn change(
        &self,
        served: &Served,
        edit: &Edit<'_>,
        mut compute: impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Arc<Stored>, ApiError> {
        let resource = served.resource;
        let full = format!("{}{}", resource.prefix(), edit.key);
        let mut current = self.load(served, &edit.key).await?;
        for _ in 0..TRIES {
            let old = current.object();
            let wanted = compute(&old)?;
            check_identity(resource, &old, &wanted)?;
            let mut new = settle(resource, edit.part, &old, wanted);
            let given = new.clone();
            (resource.defaults)(&mut new);
            count_generation(resource, &old, &mut new);
            if let Some(manager) = edit.manager.filter(|_| resource.field_owners) {
                owners::note_update(resource.message(), Some(&old), &given, &mut new, manager);
            }
            check(resource, edit.part, &old, &new)?;
            if edit.part == Part::Main && resource.gate.looks_at_update(&new, &old) {
                resource.gate.update(&new, &old, &self.facts(resource.gate).await?)?;
            }
            if new == old {
                return Ok(current);
            }
            if edit.dry_run {
                return Ok(Arc::new(Stored::new(resource, edit.key.clone(), current.revision, &encode(&new))?));
            }
            let written = if is_finished(resource, &new) {
                let written = self.etcd.delete_if(&full, current.revision).await?;
                if let Written::Done(revision) = written {
                    return Ok(Arc::new(Stored::new(resource, edit.key.clone(), revision, &encode(&new))?));
                }
                written
            } else {
                let value = encode(&new);
                let lease = self.lease(resource).await?;
                let written = self.etcd.put_if(&full, current.revision, value.clone(), lease).await?;
                if let Written::Done(revision) = written {
                    return Ok(Arc::new(Stored::new(resource, edit.key.clone(), revision, &value)?));
                }
                written
            };
            let name = object::name(&old);
            current = match written {
                Written::Lost(Some(kv)) => served.cache.resolve(&kv)?,
                _ => return Err(ApiError::NotFound { subject: resource.subject(name) }),
            };
        }
        Err(busy(resource, edit.key.rsplit('/').next().unwrap_or_default()))
    }
}

fn subresource(part: Part) -> &'static str {
    if part == Part::Status { "status" } else { "" }
}

fn answer(changed: &Stored, warnings: &[String]) -> Result<Response<Body>, ApiError> {
    let mut response = respond::json_text(200, changed.json.clone());
    respond::warn(&mut response, warnings);
    Ok(response)
}

fn refused(resource: &Resource, name: &str, error: PatchError) -> ApiError {
    match error {
        PatchError::Malformed(why) => ApiError::BadRequest(why),
        PatchError::DoesNotApply(why) => {
            let cause = crate::error::Cause { reason: "FieldValueInvalid", message: why, field: String::new() };
            ApiError::Invalid { subject: resource.kind_subject(name), causes: vec![cause] }
        }
    }
}

fn busy(resource: &Resource, name: &str) -> ApiError {
    ApiError::Conflict {
        subject: resource.subject(name),
        why: "the object is being changed by others all the time; please try again".to_owned(),
    }
}

/// The same object, at the revision that the client meant.
fn check_identity(resource: &Resource, old: &Value, wanted: &Value) -> Result<(), ApiError> {
    let name = object::name(old);
    let given = object::name(wanted);
    if given != name {
        return Err(ApiError::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    let conflict = |why: String| Err(ApiError::Conflict { subject: resource.subject(name), why });
    let (uid, wanted_uid) = (object::uid(old), object::uid(wanted));
    if !wanted_uid.is_empty() && wanted_uid != uid {
        return conflict(format!("Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {uid}"));
    }
    let meant = object::text(wanted, "/metadata/resourceVersion");
    if !meant.is_empty() && meant != object::text(old, "/metadata/resourceVersion") {
        return conflict(
            "the object has been modified; please apply your changes to the latest version and try again".to_owned(),
        );
    }
    Ok(())
}

/// `wanted`, with everything put back that this part may not touch.
fn settle(resource: &Resource, part: Part, old: &Value, wanted: Value) -> Value {
    let mut new = match part {
        Part::Main => {
            let mut new = wanted;
            if resource.status {
                object::copy_member(&mut new, old, "status");
            }
            new
        }
        Part::Status => {
            let mut new = old.clone();
            object::copy_member(&mut new, &wanted, "status");
            object::copy_member(&mut new, &wanted, "metadata");
            new
        }
        Part::Decided => return wanted,
    };
    if resource.kind == "Namespace" {
        // Only /finalize takes the last hold off a namespace.
        let held = old.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
        object::child(&mut new, "spec").insert("finalizers".to_owned(), held);
    }
    let kept = old["metadata"].as_object();
    let metadata = object::metadata(&mut new);
    let fixed = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "namespace",
        "generateName",
    ];
    for field in fixed {
        match kept.and_then(|kept| kept.get(field)) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.shift_remove(field),
        };
    }
    if !resource.field_owners {
        metadata.shift_remove("managedFields");
    }
    new
}

fn count_generation(resource: &Resource, old: &Value, new: &mut Value) {
    if resource.generation && old.get("spec") != new.get("spec") {
        let next = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object::metadata(new).insert("generation".to_owned(), json!(next));
    }
}

fn check(resource: &Resource, part: Part, old: &Value, new: &Value) -> Result<(), ApiError> {
    let mut causes = Vec::new();
    if part != Part::Decided {
        registry::check_metadata(resource, new, &mut causes);
        registry::check_metadata_update(new, old, &mut causes);
    }
    if part == Part::Main {
        (resource.validate)(new, &mut causes);
        (resource.validate_update)(new, old, &mut causes);
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::Invalid { subject: resource.kind_subject(object::name(old)), causes })
    }
}

/// Whether an object that is being deleted is held by nothing any more.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let free = object::is_deleting(object) && object::finalizers(object).is_empty();
    free && match resource.deletion {
        Deletion::Immediate => true,
        Deletion::Graceful => object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64) == Some(0),
        Deletion::Namespace => object::list(object, "/spec/finalizers").is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Part, check_identity, is_finished, settle};
    use crate::registry::find;
    use serde_json::json;

    #[test]
    fn spec_and_status_have_doors_of_their_own() {
        let claims = find("", "v1", "persistentvolumeclaims").expect("claims");
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5"}, "spec": {"x": 1}, "status": {"y": 1}});
        let wanted = json!({"metadata": {"name": "a", "labels": {"l": "m"}}, "spec": {"x": 2}, "status": {"y": 2}});
        let main = settle(claims, Part::Main, &old, wanted.clone());
        assert_eq!(
            (&main["spec"]["x"], &main["status"]["y"], &main["metadata"]["uid"]),
            (&json!(2), &json!(1), &json!("1"))
        );
        let status = settle(claims, Part::Status, &old, wanted);
        assert_eq!(
            (&status["spec"]["x"], &status["status"]["y"], &status["metadata"]["labels"]["l"]),
            (&json!(1), &json!(2), &json!("m"))
        );
    }

    #[test]
    fn the_client_may_name_what_it_means() {
        let claims = find("", "v1", "persistentvolumeclaims").expect("claims");
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5"}});
        let verdict = |metadata| check_identity(claims, &old, &json!({"metadata": metadata}));
        assert!(verdict(json!({"name": "a"})).is_ok());
        assert!(verdict(json!({"name": "a", "uid": "1", "resourceVersion": "5"})).is_ok());
        let stale = verdict(json!({"name": "a", "resourceVersion": "4"})).expect_err("stale");
        assert_eq!(
            stale.to_string(),
            "Operation cannot be fulfilled on persistentvolumeclaims \"a\": the object has been modified; please apply your changes to the latest version and try again"
        );
        assert_eq!(verdict(json!({"name": "a", "uid": "2"})).map_err(|e| e.code()), Err(409));
        assert_eq!(verdict(json!({"name": "b"})).map_err(|e| e.code()), Err(400));
    }

    #[test]
    fn nothing_goes_before_its_time() {
        let pods = find("", "v1", "pods").expect("pods");
        let pod = |grace, finalizers| {
            json!({"metadata": {"deletionTimestamp": "t",
            "deletionGracePeriodSeconds": grace, "finalizers": finalizers}})
        };
        assert!(is_finished(pods, &pod(0, json!([]))));
        assert!(!is_finished(pods, &pod(30, json!([]))));
        assert!(!is_finished(pods, &pod(0, json!(["x"]))));
        let namespaces = find("", "v1", "namespaces").expect("namespaces");
        let namespace = |held| json!({"metadata": {"deletionTimestamp": "t"}, "spec": {"finalizers": held}});
        assert!(!is_finished(namespaces, &namespace(json!(["kubernetes"]))));
        assert!(is_finished(namespaces, &namespace(json!([]))));
    }
}
