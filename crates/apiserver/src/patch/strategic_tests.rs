//! Patches as kubectl and the sidecars send them.

use super::apply;
use crate::schema::message;
use serde_json::{Value, json};

fn patched(kind: &str, mut target: Value, patch: Value) -> Value {
    apply(message(kind).expect(kind), &mut target, &patch).expect("applies");
    target
}

#[test]
fn lists_merge_by_their_keys() {
    let pod = json!({"spec": {"containers": [{"name": "a", "image": "x:1", "env": [{"name": "K",
        "value": "1"}]}, {"name": "b", "image": "y"}]}});
    let patch = json!({"spec": {"containers": [{"name": "a", "image": "x:2", "env": [{"name": "L", "value": "2"}]}],
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}});
    assert_eq!(
        patched("Pod", pod, patch)["spec"]["containers"],
        json!([{"name": "b", "image": "y"},
            {"name": "a", "image": "x:2", "env": [{"name": "K", "value": "1"}, {"name": "L", "value": "2"}]}])
    );
}

#[test]
fn elements_are_deleted_and_lists_replaced() {
    let pod = json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}]}});
    let gone = patched("Pod", pod.clone(), json!({"spec": {"volumes": [{"name": "v", "$patch": "delete"}]}}));
    assert_eq!(gone["spec"]["volumes"], json!([{"name": "w", "emptyDir": {}}]));
    let whole = patched("Pod", pod.clone(), json!({"spec": {"volumes": [{"name": "z"}, {"$patch": "replace"}]}}));
    assert_eq!(whole["spec"]["volumes"], json!([{"name": "z"}]));
    let retained =
        json!({"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}});
    assert_eq!(
        patched("Pod", pod, retained)["spec"]["volumes"],
        json!([{"name": "v", "hostPath": {"path": "/x"}}, {"name": "w", "emptyDir": {}}])
    );
}

#[test]
fn finalizers_as_the_provisioner_removes_them() {
    let volume = json!({"metadata": {"finalizers": ["a", "b", "c"]}});
    let patch =
        json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"], "$setElementOrder/finalizers": ["a", "c"]}});
    assert_eq!(patched("PersistentVolume", volume.clone(), patch)["metadata"]["finalizers"], json!(["a", "c"]));
    let add = json!({"metadata": {"finalizers": ["d"], "$setElementOrder/finalizers": ["d", "a", "b", "c"]}});
    assert_eq!(patched("PersistentVolume", volume, add)["metadata"]["finalizers"], json!(["d", "a", "b", "c"]));
}

#[test]
fn conditions_as_the_resizer_sets_them() {
    let claim =
        json!({"status": {"conditions": [{"type": "Resizing", "status": "True"}], "capacity": {"storage": "1Gi"}}});
    let patch = json!({"status": {"conditions": [{"type": "FileSystemResizePending", "status": "True"},
        {"type": "Resizing", "status": "False"}]}});
    assert_eq!(
        patched("PersistentVolumeClaim", claim.clone(), patch)["status"]["conditions"],
        json!([{"type": "Resizing", "status": "False"}, {"type": "FileSystemResizePending", "status": "True"}])
    );
    let gone = patched("PersistentVolumeClaim", claim, json!({"status": {"conditions": null}}));
    assert_eq!(gone["status"], json!({"capacity": {"storage": "1Gi"}}));
}

#[test]
fn what_has_no_key_is_replaced_and_maps_merge() {
    let pod = json!({"spec": {"tolerations": [{"key": "a"}], "nodeSelector": {"x": "1", "y": "2"}}});
    let patch = json!({"spec": {"tolerations": [{"key": "b"}], "nodeSelector": {"x": null, "z": "3"}}});
    assert_eq!(
        patched("Pod", pod, patch)["spec"],
        json!({"tolerations": [{"key": "b"}], "nodeSelector": {"y": "2", "z": "3"}})
    );
    let map = patched("ConfigMap", json!({"data": {"a": "1"}}), json!({"data": {"$patch": "replace", "b": "2"}}));
    assert_eq!(map["data"], json!({"b": "2"}));
}

#[test]
fn order_keeps_what_the_server_added() {
    let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "injected"}, {"name": "b"}]}});
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}, {"name": "c"}],
        "containers": [{"name": "c"}]}});
    let names: Vec<Value> = patched("Pod", pod, patch)["spec"]["containers"]
        .as_array()
        .expect("list")
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names, [json!("b"), json!("a"), json!("injected"), json!("c")]);
}

#[test]
fn nonsense_is_refused() {
    let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
    for patch in [json!([]), json!({"spec": {"containers": [{"image": "x"}]}}), json!({"$patch": "frob"})] {
        assert!(apply(message("Pod").expect("Pod"), &mut pod, &patch).is_err(), "{patch}");
    }
}
