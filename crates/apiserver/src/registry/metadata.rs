//! Rules that every object's metadata obeys, whatever its kind.

use super::Resource;
use crate::error::Cause;
use crate::names;
use crate::object;
use serde_json::{Value, json};

const ANNOTATIONS_LIMIT: usize = 256 << 10;

/// A new or changed object's metadata.
pub(crate) fn check_create(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let name = object::name(object);
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else if let Err(why) = (resource.name_rule)(name) {
        causes.push(Cause::invalid("metadata.name", &json!(name), why));
    }
    check_labels(object, "metadata.labels", "/metadata/labels", causes);
    check_annotations(object, causes);
    for (at, finalizer) in object::finalizers(object).iter().enumerate() {
        let text = finalizer.as_str().unwrap_or_default();
        if let Err(why) = names::qualified(text) {
            causes.push(Cause::invalid(format!("metadata.finalizers[{at}]"), finalizer, why));
        }
    }
    check_owners(object, causes);
}

/// Labels at `pointer`, called `path` in errors.
pub(super) fn check_labels(object: &Value, path: &str, pointer: &str, causes: &mut Vec<Cause>) {
    for (key, value) in object::map(object, pointer).into_iter().flatten() {
        if let Err(why) = names::qualified(key) {
            causes.push(Cause::invalid(path, &json!(key), why));
        }
        if let Err(why) = names::label_value(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(path, value, why));
        }
    }
}

fn check_annotations(object: &Value, causes: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in object::map(object, "/metadata/annotations").into_iter().flatten() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if let Err(why) = names::qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &json!(key), why));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        let message = format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes");
        causes.push(Cause { reason: "FieldValueTooLong", message, field: "metadata.annotations".to_owned() });
    }
}

fn check_owners(object: &Value, causes: &mut Vec<Cause>) {
    let owners = object::list(object, "/metadata/ownerReferences");
    for (at, owner) in owners.iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let why = format!("{} must not be empty", if field == "apiVersion" { "version" } else { field });
                causes.push(Cause::invalid(format!("metadata.ownerReferences[{at}].{field}"), &json!(""), why));
            }
        }
    }
    if owners.iter().filter(|owner| owner["controller"] == true).count() > 1 {
        let why = "Only one reference can have Controller set to true";
        causes.push(Cause::invalid("metadata.ownerReferences", &json!(owners), why));
    }
}

/// What a change may not do to metadata.
pub(crate) fn check_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if object::is_deleting(old) {
        let had = object::finalizers(old);
        let added: Vec<&str> =
            object::finalizers(new).iter().filter(|f| !had.contains(f)).filter_map(Value::as_str).collect();
        if !added.is_empty() {
            let quoted: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                    []string{{{}}}",
                    quoted.join(", ")
                ),
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{check_create, check_update};
    use crate::registry::find;
    use serde_json::json;

    #[test]
    fn names_labels_owners() {
        let pods = find("", "v1", "pods").expect("pods");
        let mut causes = Vec::new();
        let bad = json!({"metadata": {"name": "#%123-invalid-name", "labels": {"a b": "-"}, "finalizers": ["a b"],
            "ownerReferences": [{"kind": "X", "name": "x", "uid": "u"}]}});
        check_create(pods, &bad, &mut causes);
        let fields: Vec<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.labels",
                "metadata.labels",
                "metadata.finalizers[0]",
                "metadata.ownerReferences[0].apiVersion"
            ]
        );
        causes.clear();
        check_create(
            pods,
            &json!({"metadata": {"name": "ok", "labels": {"a/b": "C"}, "annotations": {"Foo.com/X": "y z"}}}),
            &mut causes,
        );
        assert_eq!(causes, []);
    }

    #[test]
    fn no_finalizer_joins_a_deletion() {
        let old = json!({"metadata": {"deletionTimestamp": "2026-11-23T00:00:00Z", "finalizers": ["a"]}});
        let mut causes = Vec::new();
        check_update(&json!({"metadata": {"finalizers": ["a", "b"]}}), &old, &mut causes);
        assert_eq!(causes.len(), 1);
        assert!(causes[0].message.ends_with("[]string{\"b\"}"));
    }
}
