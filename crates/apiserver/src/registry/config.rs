//! ConfigMaps, Secrets, Events and Leases.

use crate::error::Cause;
use crate::names;
use crate::object::{map, namespace, text};
use base64::Engine;
use serde_json::{Value, json};

/// A ConfigMap or Secret may carry this many bytes.
const DATA_LIMIT: usize = 1 << 20;

fn check_keys(object: &Value, member: &str, causes: &mut Vec<Cause>) -> usize {
    let mut size = 0;
    for (key, value) in map(object, &format!("/{member}")).into_iter().flatten() {
        size += value.as_str().map_or(0, str::len);
        if let Err(why) = names::config_key(key) {
            causes.push(Cause::invalid(format!("{member}[{key}]"), &json!(key), why));
        }
    }
    size
}

fn check_size(size: usize, field: &str, causes: &mut Vec<Cause>) {
    if size > DATA_LIMIT {
        let message = format!("Too long: may not be more than {DATA_LIMIT} bytes");
        causes.push(Cause { reason: "FieldValueTooLong", message, field: field.to_owned() });
    }
}

/// Keys are file names, no key is in both halves, the whole fits.
pub(super) fn validate_config_map(object: &Value, causes: &mut Vec<Cause>) {
    let size = check_keys(object, "data", causes) + check_keys(object, "binaryData", causes);
    check_size(size, "", causes);
    let binary = map(object, "/binaryData");
    for key in map(object, "/data").into_iter().flatten().map(|(key, _)| key) {
        if binary.is_some_and(|binary| binary.contains_key(key)) {
            causes.push(Cause::invalid(format!("data[{key}]"), &json!(key), "duplicate of key present in binaryData"));
        }
    }
}

fn check_immutable(new: &Value, old: &Value, members: &[&str], causes: &mut Vec<Cause>) {
    if old["immutable"] != true {
        return;
    }
    for member in members.iter().chain(&["immutable"]) {
        if new.get(*member) != old.get(*member) {
            causes.push(Cause::forbidden(*member, "field is immutable when `immutable` is set"));
        }
    }
}

/// An immutable one stays as it is.
pub(super) fn validate_config_map_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    check_immutable(new, old, &["data", "binaryData"], causes);
}

/// The type is Opaque; `stringData` becomes `data`.
pub(super) fn default_secret(secret: &mut Value) {
    let Some(object) = secret.as_object_mut() else { return };
    if object.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
        object.insert("type".to_owned(), json!("Opaque"));
    }
    let Some(Value::Object(plain)) = object.shift_remove("stringData") else { return };
    let data = object.entry("data").or_insert_with(|| json!({}));
    for (key, value) in plain {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
        data[key] = json!(encoded);
    }
}

/// Keys are file names, the whole fits, and known types have their keys.
pub(super) fn validate_secret(secret: &Value, causes: &mut Vec<Cause>) {
    let size = check_keys(secret, "data", causes) / 4 * 3;
    check_size(size, "data", causes);
    let needed: &[&str] = match text(secret, "/type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if secret["data"].get(*key).is_none() {
            causes.push(Cause::required(format!("data[{key}]"), ""));
        }
    }
}

/// The type stays; an immutable one stays as it is.
pub(super) fn validate_secret_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if new["type"] != old["type"] {
        causes.push(Cause::invalid("type", &new["type"], "field is immutable"));
    }
    check_immutable(new, old, &["data"], causes);
}

/// An event lives where its object lives; those of cluster objects live in `default`.
pub(super) fn validate_event(event: &Value, causes: &mut Vec<Cause>) {
    let about = text(event, "/involvedObject/namespace");
    let own = namespace(event);
    let fits = if about.is_empty() { matches!(own, "default" | "kube-system") } else { about == own };
    if !fits {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &json!(about), why));
    }
}

/// Times and counts of a lease are positive.
pub(super) fn validate_lease(lease: &Value, causes: &mut Vec<Cause>) {
    let spec = &lease["spec"];
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|seconds| seconds <= 0) {
        causes.push(Cause::invalid(
            "spec.leaseDurationSeconds",
            &spec["leaseDurationSeconds"],
            "must be greater than 0",
        ));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|count| count < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", &spec["leaseTransitions"], why));
    }
}

#[cfg(test)]
mod tests {
    use super::{default_secret, validate_config_map, validate_config_map_update, validate_event, validate_secret};
    use serde_json::{Value, json};

    fn fields(check: fn(&Value, &mut Vec<super::Cause>), object: Value) -> Vec<String> {
        let mut causes = Vec::new();
        check(&object, &mut causes);
        causes.into_iter().map(|cause| cause.field).collect()
    }

    #[test]
    fn secrets_are_encoded_once() {
        let mut secret = json!({"stringData": {"a": "b"}, "data": {"a": "eA==", "c": "eA=="}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "Yg==", "c": "eA=="}, "type": "Opaque"}));
        assert_eq!(
            fields(validate_secret, json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}})),
            ["data[tls.key]"]
        );
    }

    #[test]
    fn config_maps() {
        assert_eq!(fields(validate_config_map, json!({"data": {"a b": "x"}})), ["data[a b]"]);
        assert_eq!(fields(validate_config_map, json!({"data": {"a": "x"}, "binaryData": {"a": "eA=="}})), ["data[a]"]);
        assert_eq!(fields(validate_config_map, json!({"data": {"a": "x".repeat(1 << 21)}})), [""]);
        let mut causes = Vec::new();
        let old = json!({"data": {"a": "1"}, "immutable": true});
        validate_config_map_update(&json!({"data": {"a": "2"}, "immutable": true}), &old, &mut causes);
        assert_eq!(causes.len(), 1);
    }

    #[test]
    fn events_live_with_their_object() {
        let event =
            |own: &str, about: &str| json!({"metadata": {"namespace": own}, "involvedObject": {"namespace": about}});
        assert!(fields(validate_event, event("a", "a")).is_empty());
        assert!(fields(validate_event, event("default", "")).is_empty());
        assert_eq!(fields(validate_event, event("a", "b")), ["involvedObject.namespace"]);
    }
}
