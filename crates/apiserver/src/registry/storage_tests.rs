//! What claims, volumes and classes may be, and may become.

use super::{
    default_claim, default_volume, validate_claim, validate_claim_update, validate_class, validate_class_update,
    validate_volume,
};
use crate::error::Cause;
use serde_json::{Value, json};

fn claim(size: &str, phase: &str) -> Value {
    json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "storageClassName": "c"},
        "status": {"phase": phase, "capacity": {"storage": "2Gi"}}})
}

fn found(check: impl FnOnce(&mut Vec<Cause>)) -> Vec<String> {
    let mut causes = Vec::new();
    check(&mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

#[test]
fn claims() {
    let mut good = claim("1Gi", "Pending");
    default_claim(&mut good);
    assert_eq!(good["spec"]["volumeMode"], "Filesystem");
    assert!(found(|causes| validate_claim(&good, causes)).is_empty());
    assert_eq!(
        found(|causes| validate_claim(&json!({"spec": {"accessModes": ["Sometimes"]}}), causes)),
        [
            "spec.accessModes: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            "spec.resources[storage]: Required value"
        ]
    );
    assert_eq!(
        found(|causes| validate_claim(&claim("-1Gi", "Pending"), causes)),
        ["spec.resources[storage]: Invalid value: \"-1Gi\": must be greater than zero"]
    );
}

#[test]
fn claims_grow_only_when_bound_and_never_shrink() {
    let change = |from: Value, to: Value| found(|causes| validate_claim_update(&to, &from, causes));
    assert!(change(claim("2Gi", "Bound"), claim("3Gi", "Bound")).is_empty());
    assert_eq!(
        change(claim("2Gi", "Bound"), claim("1Gi", "Bound")),
        ["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]
    );
    // An expansion that has not happened yet may be taken back in part.
    assert!(change(claim("9Gi", "Bound"), claim("3Gi", "Bound")).is_empty());
    assert_eq!(change(claim("2Gi", "Pending"), claim("3Gi", "Pending")).len(), 1);
    let mut bound = claim("2Gi", "Pending");
    bound["spec"]["volumeName"] = json!("pv-1");
    assert!(change(claim("2Gi", "Pending"), bound.clone()).is_empty());
    let mut moved = bound.clone();
    moved["spec"]["volumeName"] = json!("pv-2");
    assert_eq!(change(bound, moved).len(), 1);
}

#[test]
fn volumes_have_one_source() {
    let mut volume =
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}}});
    default_volume(&mut volume);
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert!(found(|causes| validate_volume(&volume, causes)).is_empty());
    volume["spec"]["csi"] = json!({"driver": "d"});
    assert_eq!(
        found(|causes| validate_volume(&volume, causes)),
        ["spec.hostPath: Forbidden: may not specify more than 1 volume type", "spec.csi.volumeHandle: Required value"]
    );
}

#[test]
fn classes_keep_their_parameters() {
    let class =
        |replicas: &str| json!({"provisioner": "p", "parameters": {"r": replicas}, "volumeBindingMode": "Immediate"});
    assert!(found(|causes| validate_class(&class("1"), causes)).is_empty());
    assert_eq!(
        found(|causes| validate_class_update(&class("2"), &class("1"), causes)),
        ["parameters: Forbidden: updates to parameters are forbidden."]
    );
}
