//! POST: a new object, from its body to the store.

use super::{Api, Call, Served};
use crate::error::{ApiError, Cause, Subject};
use crate::http::body;
use crate::http::respond::{self, Body};
use crate::object;
use crate::owners;
use crate::registry::{self, Resource};
use crate::store::etcd::Written;
use crate::store::{Stored, encode};
use crate::time;
use http::Response;
use serde_json::{Value, json};

const NAME_TRIES: usize = 8;

impl Api {
    /// POST of a collection.
    pub(super) async fn create(
        &self,
        served: &Served,
        namespace: Option<&str>,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let resource = served.resource;
        let mut object = body::parse(call.media_type(), &call.body)?;
        let warnings = accept(resource, &mut object, call)?;
        place(resource, &mut object, namespace)?;
        let manager = call.manager(resource, "");
        let created = self.insert(served, object, Some(&manager), call.dry_run()?).await?;
        let mut response = respond::json_text(201, created.json.clone());
        respond::warn(&mut response, &warnings);
        Ok(response)
    }

    /// Makes `object`, which has its kind's shape and its namespace. `manager` owns all of its fields.
    pub(super) async fn insert(
        &self,
        served: &Served,
        mut object: Value,
        manager: Option<&owners::Manager>,
        dry_run: bool,
    ) -> Result<Stored, ApiError> {
        let resource = served.resource;
        self.check_namespace(resource, object::namespace(&object)).await?;
        if !object::text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(ApiError::BadRequest("resourceVersion should not be set on objects to be created".to_owned()));
        }
        let generated =
            object::name(&object).is_empty().then(|| object::text(&object, "/metadata/generateName").to_owned());
        let generated = generated.filter(|prefix| !prefix.is_empty());
        for attempt in 0.. {
            if let Some(prefix) = &generated {
                object::metadata(&mut object).insert("name".to_owned(), json!(generate(prefix)));
            }
            let ready = self.prepare(served, object.clone(), manager).await?;
            let key = resource.key(object::namespace(&ready), object::name(&ready));
            if dry_run {
                return Stored::new(resource, key, 0, &encode(&ready)).map(without_revision);
            }
            let value = encode(&ready);
            let lease = self.lease(resource).await?;
            match self.etcd.put_if(&format!("{}{key}", resource.prefix()), 0, value.clone(), lease).await? {
                Written::Done(revision) => return Stored::new(resource, key, revision, &value),
                Written::Lost(_) if generated.is_some() && attempt < NAME_TRIES => {}
                Written::Lost(_) => {
                    return Err(ApiError::AlreadyExists { subject: resource.subject(object::name(&ready)) });
                }
            }
        }
        unreachable!("the loop above returns")
    }

    /// Everything that the server adds to a new object, and the checks.
    async fn prepare(
        &self,
        served: &Served,
        mut object: Value,
        manager: Option<&owners::Manager>,
    ) -> Result<Value, ApiError> {
        let resource = served.resource;
        let metadata = object::metadata(&mut object);
        for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            metadata.shift_remove(field);
        }
        metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
        metadata.insert("creationTimestamp".to_owned(), json!(time::now()));
        if resource.generation {
            metadata.insert("generation".to_owned(), json!(1));
        }
        let given = object.clone();
        (resource.defaults)(&mut object);
        if resource.gate.looks_at_create(&object) {
            resource.gate.create(&mut object, &self.facts(resource.gate).await?);
        }
        if let Some(manager) = manager.filter(|_| resource.field_owners) {
            let mut given = given;
            if resource.status {
                given.as_object_mut().map(|given| given.shift_remove("status"));
            }
            owners::note_update(resource.message(), None, &given, &mut object, manager);
        } else if !resource.field_owners {
            object::metadata(&mut object).shift_remove("managedFields");
        }
        (resource.on_create)(&mut object);
        let mut causes = Vec::new();
        registry::check_metadata(resource, &object, &mut causes);
        (resource.validate)(&object, &mut causes);
        if causes.is_empty() {
            return Ok(object);
        }
        Err(ApiError::Invalid { subject: resource.kind_subject(object::name(&object)), causes })
    }

    /// Nothing new in a namespace that is absent or going.
    async fn check_namespace(&self, resource: &Resource, namespace: &str) -> Result<(), ApiError> {
        if !resource.namespaced {
            return Ok(());
        }
        let namespaces = self.core("namespaces");
        let known = namespaces.cache.peek(namespace);
        let found = match known {
            Some(found) => found,
            None => self.load(namespaces, namespace).await?,
        };
        if found.field(namespaces.resource, "status.phase") != "Terminating" {
            return Ok(());
        }
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let subject =
            Subject { group: resource.group.to_owned(), kind: resource.plural.to_owned(), name: String::new() };
        Err(ApiError::Forbidden { subject, why })
    }
}

fn without_revision(mut stored: Stored) -> Stored {
    let mut object = stored.object();
    object::metadata(&mut object).shift_remove("resourceVersion");
    stored.json = object.to_string().into();
    stored
}

/// Checks that a body is of the kind that the path names, and brings it into its shape. Returns warnings.
pub(super) fn accept(resource: &Resource, object: &mut Value, call: &Call) -> Result<Vec<String>, ApiError> {
    if !object.is_object() {
        return Err(ApiError::BadRequest(format!("the body is no {} object", resource.kind)));
    }
    let version = resource.api_version();
    let given = object::text(object, "/apiVersion");
    if !given.is_empty() && given != version {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({given}) does not match the expected API version ({version})"
        )));
    }
    let kind = object::text(object, "/kind");
    if !kind.is_empty() && kind != resource.kind {
        return Err(ApiError::BadRequest(format!(
            "the kind in the data ({kind}) does not match the expected kind ({})",
            resource.kind
        )));
    }
    object["apiVersion"] = json!(version);
    object["kind"] = json!(resource.kind);
    body::conform(resource.message(), &version, object, &call.query)
}

/// Puts an object into the namespace of its path.
pub(super) fn place(resource: &Resource, object: &mut Value, namespace: Option<&str>) -> Result<(), ApiError> {
    let given = object::namespace(object).to_owned();
    match namespace.filter(|_| resource.namespaced) {
        None => {
            object::metadata(object).shift_remove("namespace");
            if resource.namespaced {
                let causes = vec![Cause::required(
                    "metadata.namespace",
                    "an object of this kind is in a namespace: post it there",
                )];
                return Err(ApiError::Invalid { subject: resource.kind_subject(object::name(object)), causes });
            }
        }
        Some(namespace) if given.is_empty() || given == namespace => {
            object::metadata(object).insert("namespace".to_owned(), json!(namespace));
        }
        Some(namespace) => {
            return Err(ApiError::BadRequest(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {given:?} is not {namespace:?}"
            )));
        }
    }
    Ok(())
}

/// A name from a prefix: five characters without vowels, so that no words come out.
fn generate(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random = uuid::Uuid::new_v4();
    let suffix = random.as_bytes()[..5].iter().map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
    let prefix: String = prefix.chars().take(58).collect();
    prefix.chars().chain(suffix).collect()
}

#[cfg(test)]
mod tests {
    use super::{generate, place};
    use crate::names;
    use crate::registry::find;
    use serde_json::json;

    #[test]
    fn generated_names_are_names() {
        let name = generate(&"csisc-".repeat(20));
        assert_eq!(name.len(), 63);
        assert!(names::subdomain(&generate("csisc-")).is_ok());
        assert_ne!(generate("a-"), generate("a-"));
    }

    #[test]
    fn objects_go_where_the_path_says() {
        let maps = find("", "v1", "configmaps").expect("configmaps");
        let mut object = json!({"metadata": {"name": "a"}});
        assert!(place(maps, &mut object, Some("ns")).is_ok());
        assert_eq!(object["metadata"]["namespace"], "ns");
        assert!(place(maps, &mut object, Some("other")).is_err());
        assert!(place(maps, &mut object, None).is_err());
    }
}
