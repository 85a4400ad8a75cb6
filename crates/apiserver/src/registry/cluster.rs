//! Namespaces and nodes.

use crate::error::Cause;
use crate::names;
use crate::object::{child, list, metadata, name, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};

/// A namespace is Active, carries its name as a label and is held until its contents are gone.
pub(super) fn new_namespace(namespace: &mut Value) {
    let own_name = name(namespace).to_owned();
    let labels = metadata(namespace).entry("labels").or_insert_with(|| json!({}));
    labels["kubernetes.io/metadata.name"] = json!(own_name);
    child(namespace, "spec").insert("finalizers".to_owned(), json!(["kubernetes"]));
    namespace["status"] = json!({"phase": "Active"});
}

/// What can be allocated is the capacity, until somebody says otherwise.
pub(super) fn default_node(node: &mut Value) {
    if let Some(status) = node.get_mut("status").and_then(Value::as_object_mut)
        && let (Some(capacity), None) = (status.get("capacity").cloned(), status.get("allocatable"))
    {
        status.insert("allocatable".to_owned(), capacity);
    }
}

/// Taints are whole, quantities are not negative.
pub(super) fn validate_node(node: &Value, causes: &mut Vec<Cause>) {
    for (at, taint) in list(node, "/spec/taints").iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        if let Err(why) = names::qualified(text(taint, "/key")) {
            causes.push(Cause::invalid(format!("{path}.key"), &taint["key"], why));
        }
        if let Err(why) = names::label_value(text(taint, "/value")) {
            causes.push(Cause::invalid(format!("{path}.value"), &taint["value"], why));
        }
        match text(taint, "/effect") {
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            "" => causes.push(Cause::required(format!("{path}.effect"), "")),
            _ => causes.push(Cause::not_supported(
                format!("{path}.effect"),
                &taint["effect"],
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            )),
        }
    }
    for part in ["capacity", "allocatable"] {
        for (resource, amount) in node["status"][part].as_object().into_iter().flatten() {
            if Quantity::parse(amount.as_str().unwrap_or_default()).is_some_and(|amount| amount.is_negative()) {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(format!("status.{part}.{resource}"), amount, why));
            }
        }
    }
}
