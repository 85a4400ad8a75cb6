//! Cells as kubectl's users know them.

use super::{claim, event, node, pod, volume};
use jiff::Timestamp;
use serde_json::{Value, json};

fn cells(row: fn(&Value, Timestamp) -> Vec<Value>, object: Value) -> Vec<String> {
    let now: Timestamp = "2026-11-23T00:10:00Z".parse().expect("a time");
    row(&object, now).into_iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect()
}

fn meta(name: &str) -> Value {
    json!({"name": name, "creationTimestamp": "2026-11-23T00:08:30Z"})
}

#[test]
fn pods_in_every_state() {
    let with = |status: Value| {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}], "nodeName": "n1"});
        cells(pod, json!({"metadata": meta("p"), "spec": spec, "status": status}))
    };
    assert_eq!(
        with(json!({"phase": "Pending"})),
        ["p", "0/1", "Pending", "0", "90s", "<none>", "n1", "<none>", "<none>"]
    );
    for (status, expect) in [
        (json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}), "Init:0/1"),
        (
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}),
            "ErrImagePull",
        ),
        (json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}), "ExitCode:3"),
        (
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}),
            "Completed",
        ),
        (json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}), "Running"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
    ] {
        assert_eq!(with(status)[2], expect);
    }
    let restarted = json!({"phase": "Running", "containerStatuses": [{"restartCount": 2, "ready": true, "state": {"running": {}},
        "lastState": {"terminated": {"finishedAt": "2026-11-23T00:09:00Z"}}}]});
    let row = with(restarted);
    assert_eq!((row[1].as_str(), row[3].as_str()), ("1/1", "2 (60s ago)"));
}

#[test]
fn storage() {
    let row = cells(
        claim,
        json!({"metadata": meta("c"), "spec": {"volumeName": "pv", "storageClassName": "fast", "volumeMode": "Filesystem"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"]}}),
    );
    assert_eq!(row, ["c", "Bound", "pv", "1Gi", "RWO,ROX", "fast", "<unset>", "90s", "Filesystem"]);
    let row = cells(
        volume,
        json!({"metadata": meta("v"), "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOncePod"],
        "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"namespace": "ns", "name": "c"}}, "status": {"phase": "Bound"}}),
    );
    assert_eq!(row, ["v", "1Gi", "RWOP", "Delete", "Bound", "ns/c", "", "<unset>", "", "90s", "<unset>"]);
}

#[test]
fn nodes_and_events() {
    let row = cells(
        node,
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
        "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}], "nodeInfo": {"kubeletVersion": "v1.32.0"}}}),
    );
    assert_eq!(row[..6], ["n", "Ready,SchedulingDisabled", "control-plane", "<unknown>", "v1.32.0", "10.0.0.1"]);
    let row = cells(
        event,
        json!({"metadata": meta("e"), "type": "Warning", "reason": "Failed", "message": "no \n",
        "involvedObject": {"kind": "Pod", "name": "p"}, "lastTimestamp": "2026-11-23T00:09:50Z", "count": 4, "source": {"component": "agent", "host": "n"}}),
    );
    assert_eq!(row, ["10s", "Warning", "Failed", "pod/p", "", "agent, n", "no", "<unknown>", "4", "e"]);
}
