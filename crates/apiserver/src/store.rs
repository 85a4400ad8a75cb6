//! Objects in the key-value store: what is written where, what is kept in memory, and how a change reaches watchers.
//!
//! Everything goes through the etcd v3 gRPC API, so a real etcd serves as well as our metadata service. The store's
//! revision is the `resourceVersion`: it is never written into the value, but put into the text on the way out.

pub(crate) mod cache;
pub(crate) mod etcd;

use crate::error::ApiError;
use crate::object;
use crate::registry::Resource;
use bytes::Bytes;
use serde_json::Value;
use std::collections::BTreeMap;

/// One object as clients see it, with what selectors look at drawn out.
#[derive(Debug)]
pub(crate) struct Stored {
    /// `namespace/name`, or `name`.
    pub(crate) key: String,
    /// The revision of the change that made it so.
    pub(crate) revision: i64,
    /// The object as JSON text, `resourceVersion` included.
    pub(crate) json: Bytes,
    /// `metadata.labels`.
    pub(crate) labels: BTreeMap<String, String>,
    /// The resource's selectable fields, in its order.
    fields: Vec<String>,
}

impl Stored {
    /// From the value in the store.
    pub(crate) fn new(resource: &Resource, key: String, revision: i64, value: &[u8]) -> Result<Stored, ApiError> {
        let mut object: Value = serde_json::from_slice(value)
            .map_err(|error| ApiError::Internal(format!("stored {} {key:?} is not JSON: {error}", resource.plural)))?;
        let json = match splice(value, revision) {
            Some(json) => json,
            None => {
                object::metadata(&mut object).insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
                Bytes::from(object.to_string())
            }
        };
        Ok(Stored::of(resource, key, revision, json, &object))
    }

    fn of(resource: &Resource, key: String, revision: i64, json: Bytes, object: &Value) -> Stored {
        let fields = resource.selectable.iter().map(|(_, pointer)| scalar(object.pointer(pointer))).collect();
        Stored { key, revision, json, labels: object::labels(object), fields }
    }

    /// The same object under another revision: what a deletion shows.
    pub(crate) fn at_revision(&self, resource: &Resource, revision: i64) -> Stored {
        let mut object = self.object();
        object::metadata(&mut object).insert("resourceVersion".to_owned(), Value::String(revision.to_string()));
        Stored::of(resource, self.key.clone(), revision, Bytes::from(object.to_string()), &object)
    }

    /// The object, parsed.
    pub(crate) fn object(&self) -> Value {
        serde_json::from_slice(&self.json).expect("was parsed or printed when it was made")
    }

    /// The value of a selectable field; empty where there is none.
    pub(crate) fn field<'a>(&'a self, resource: &Resource, name: &str) -> &'a str {
        let (namespace, own) = self.key.split_once('/').unwrap_or(("", &self.key));
        match name {
            "metadata.name" => own,
            "metadata.namespace" => namespace,
            other => {
                let at = resource.selectable.iter().position(|(field, _)| *field == other);
                at.and_then(|at| self.fields.get(at)).map_or("", String::as_str)
            }
        }
    }
}

fn scalar(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Puts the revision into text that `encode` made, without printing it anew.
fn splice(value: &[u8], revision: i64) -> Option<Bytes> {
    const OPENING: &[u8] = b"\"metadata\":{";
    let head = value.get(..value.len().min(400))?;
    let at = head.windows(OPENING.len()).position(|window| window == OPENING)? + OPENING.len();
    let opens_with_kind = value.starts_with(b"{\"apiVersion\":\"") && !value[1..at - OPENING.len()].contains(&b'{');
    if !opens_with_kind || value.get(at)? == &b'}' {
        return None;
    }
    let inserted = format!("\"resourceVersion\":\"{revision}\",");
    Some(Bytes::from([&value[..at], inserted.as_bytes(), &value[at..]].concat()))
}

/// The value to store: `apiVersion`, `kind`, `metadata` first, without `resourceVersion`.
pub(crate) fn encode(object: &Value) -> Bytes {
    let mut object = object::in_order(object.clone());
    object::metadata(&mut object).shift_remove("resourceVersion");
    Bytes::from(object.to_string())
}

#[cfg(test)]
mod tests {
    use super::{Stored, encode};
    use crate::registry::find;
    use serde_json::json;

    #[test]
    fn revision_is_spliced_in_and_never_stored() {
        let pods = find("", "v1", "pods").expect("pods are served");
        let pod = json!({"kind": "Pod", "spec": {"nodeName": "n1"}, "metadata": {"name": "a",
            "resourceVersion": "3", "labels": {"x": "y"}},
            "apiVersion": "v1"});
        let value = encode(&pod);
        assert!(!String::from_utf8_lossy(&value).contains("resourceVersion"));
        let stored = Stored::new(pods, "ns/a".into(), 42, &value).expect("stored");
        assert_eq!(stored.object()["metadata"]["resourceVersion"], "42");
        assert_eq!(stored.object()["spec"], pod["spec"]);
        assert_eq!(stored.field(pods, "spec.nodeName"), "n1");
        assert_eq!(stored.field(pods, "metadata.namespace"), "ns");
        assert_eq!(stored.at_revision(pods, 50).object()["metadata"]["resourceVersion"], "50");
    }

    #[test]
    fn text_of_others_is_read_too() {
        let maps = find("", "v1", "configmaps").expect("configmaps are served");
        for text in [
            r#"{"data":{"x":"\"metadata\":{"},"metadata":{"name":"a"},"apiVersion":"v1","kind":"ConfigMap"}"#,
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{}}"#,
            r#"{"apiVersion":"v1","data":{"m":"n"},"kind":"ConfigMap","metadata":{"name":"a"}}"#,
        ] {
            let stored = Stored::new(maps, "ns/a".into(), 7, text.as_bytes()).expect("stored");
            assert_eq!(stored.object()["metadata"]["resourceVersion"], "7", "{text}");
        }
        assert!(Stored::new(maps, "ns/a".into(), 7, b"not json").is_err());
    }
}
