//! Stories of several managers and one object.

use super::{Manager, apply, note_update};
use crate::schema::message;
use serde_json::{Value, json};

fn manager(name: &str) -> Manager {
    Manager { name: name.to_owned(), api_version: "v1".to_owned(), subresource: "" }
}

fn by(name: &str, live: Option<&Value>, config: Value) -> Result<Value, Vec<String>> {
    let result = apply(message("Pod").expect("Pod"), live, &config, &manager(name), false);
    result.map_err(|causes| causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect())
}

fn labels(object: &Value) -> Value {
    object["metadata"].get("labels").cloned().unwrap_or_default()
}

#[test]
fn what_is_no_longer_applied_goes() {
    let made = by(
        "me",
        None,
        json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "2"}},
        "spec": {"containers": [{"name": "c", "image": "x"}]}}),
    )
    .expect("made");
    let next = by(
        "me",
        Some(&made),
        json!({"metadata": {"name": "p", "labels": {"a": "1"}}, "spec": {"containers": [{"name": "c", "image": "y"}]}}),
    )
    .expect("applied");
    assert_eq!(labels(&next), json!({"a": "1"}));
    assert_eq!(next["spec"]["containers"], json!([{"name": "c", "image": "y"}]));
    let fields = &next["metadata"]["managedFields"][0]["fieldsV1"];
    assert_eq!(
        *fields,
        json!({"f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": {".": {}, "f:image": {}, "f:name": {}}}}})
    );
}

#[test]
fn others_fields_stay_and_differing_values_conflict() {
    let made = by("one", None, json!({"metadata": {"name": "p", "labels": {"a": "1"}}})).expect("made");
    let both = by("two", Some(&made), json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "2"}}}))
        .expect("the same value is shared");
    // One lets go of a; two still holds it.
    let left = by("one", Some(&both), json!({"metadata": {"name": "p", "labels": {}}})).expect("applied");
    assert_eq!(labels(&left), json!({"a": "1", "b": "2"}));
    let refused = by("one", Some(&left), json!({"metadata": {"name": "p", "labels": {"b": "9"}}}));
    assert_eq!(refused, Err(vec![".metadata.labels.b: conflict with \"two\"".to_owned()]));
    let config = json!({"metadata": {"name": "p", "labels": {"b": "9"}}});
    let forced = apply(message("Pod").expect("Pod"), Some(&left), &config, &manager("one"), true).expect("forced");
    assert_eq!(labels(&forced), json!({"a": "1", "b": "9"}));
    assert!(by("one", Some(&forced), config).is_ok(), "two has lost the field");
}

#[test]
fn an_edit_takes_the_field() {
    let made = by("me", None, json!({"metadata": {"name": "p", "labels": {"a": "1", "b": "1"}}})).expect("made");
    let mut edited = made.clone();
    edited["metadata"]["labels"]["a"] = json!("2");
    note_update(message("Pod").expect("Pod"), Some(&made), &edited.clone(), &mut edited, &manager("kubectl-edit"));
    let owners = edited["metadata"]["managedFields"].as_array().expect("owners");
    assert_eq!(owners.len(), 2);
    assert_eq!(owners[0]["fieldsV1"], json!({"f:metadata": {"f:labels": {"f:b": {}}}}));
    assert_eq!(owners[1]["fieldsV1"], json!({"f:metadata": {"f:labels": {"f:a": {}}}}));
    let refused =
        by("me", Some(&edited), json!({"metadata": {"name": "p", "labels": {"a": "1"}}})).expect_err("conflict");
    assert!(refused[0].starts_with(".metadata.labels.a: conflict with \"kubectl-edit\" using v1 at "), "{refused:?}");
}

#[test]
fn nothing_changed_changes_nothing() {
    let config = json!({"metadata": {"name": "p", "labels": {"a": "1"}}});
    let made = by("me", None, config.clone()).expect("made");
    assert_eq!(by("me", Some(&made), config), Ok(made.clone()));
    let mut same = made.clone();
    note_update(message("Pod").expect("Pod"), Some(&made), &made, &mut same, &manager("x"));
    assert_eq!(same, made);
}

#[test]
fn keyed_elements_go_one_by_one() {
    let config =
        |ports: Value| json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "ports": ports}]}});
    let made = by("me", None, config(json!([{"containerPort": 80}, {"containerPort": 81}]))).expect("made");
    let next = by("me", Some(&made), config(json!([{"containerPort": 81}]))).expect("applied");
    assert_eq!(next["spec"]["containers"][0]["ports"], json!([{"containerPort": 81}]));
}

#[test]
fn metadata_outlives_its_last_label() {
    let made = by("me", None, json!({"metadata": {"name": "p", "labels": {"a": "1"}}})).expect("made");
    let next = by("me", Some(&made), json!({"metadata": {"name": "p"}, "spec": {"hostname": "h"}})).expect("applied");
    assert_eq!(next["metadata"]["name"], "p");
    assert!(next["metadata"].get("labels").is_none());
}

#[test]
fn names_of_managers() {
    assert_eq!(Manager::name_from(Some("kubectl"), "x/1"), "kubectl");
    assert_eq!(Manager::name_from(None, "csi-attacher/v4.12 (linux)"), "csi-attacher");
    assert_eq!(Manager::name_from(None, ""), "unknown");
}
