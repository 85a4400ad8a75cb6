//! Pods that are refused, and why.

use super::{validate, validate_update};
use crate::error::Cause;
use serde_json::{Value, json};

fn found(check: impl FnOnce(&mut Vec<Cause>)) -> Vec<String> {
    let mut causes = Vec::new();
    check(&mut causes);
    causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

fn pod(spec: Value) -> Value {
    json!({"metadata": {"name": "p"}, "spec": spec})
}

#[test]
fn refused_with_their_paths() {
    let good = json!({"name": "a", "image": "i"});
    for (spec, expect) in [
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (json!({"containers": [good, good]}), "spec.containers[1].name: Duplicate value: \"a\""),
        (
            json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"containers": [good], "restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [good], "volumes": [{"name": "v", "persistentVolumeClaim": {}}]}),
            "spec.volumes[0].persistentVolumeClaim.claimName: Required value",
        ),
        (
            json!({"containers": [good], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {"periodSeconds": 1}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ] {
        assert_eq!(found(|causes| validate(&pod(spec), causes)), [expect]);
    }
}

#[test]
fn little_of_a_pod_changes() {
    let old = pod(
        json!({"containers": [{"name": "a", "image": "i:1"}], "tolerations": [{"key": "a", "operator": "Exists"}]}),
    );
    let change = |edit: fn(&mut Value)| {
        let mut new = old.clone();
        edit(&mut new);
        found(|causes| validate_update(&new, &old, causes))
    };
    assert!(change(|pod| pod["spec"]["containers"][0]["image"] = json!("i:2")).is_empty());
    assert_eq!(change(|pod| pod["spec"]["nodeName"] = json!("n")).len(), 1);
    assert!(
        change(|pod| pod["spec"]["tolerations"]
            .as_array_mut()
            .expect("list")
            .push(json!({"key": "b", "operator": "Exists"})))
        .is_empty()
    );
    assert_eq!(change(|pod| pod["spec"]["tolerations"] = json!([])).len(), 1);
    let verdict = change(|pod| pod["spec"]["hostNetwork"] = json!(true));
    assert!(verdict[0].ends_with("changed: spec.hostNetwork"), "{verdict:?}");
}
