//! What `kubectl get` prints of each kind: one function per kind from an object to its cells.

use super::Column;
use crate::object::{list, map, name, text};
use crate::time;
use jiff::Timestamp;
use serde_json::{Value, json};

const fn column(name: &'static str) -> Column {
    Column { name, of: "string", wide: false }
}

const fn wide(name: &'static str) -> Column {
    Column { name, of: "string", wide: true }
}

const fn typed(name: &'static str, of: &'static str) -> Column {
    Column { name, of, wide: false }
}

fn age(object: &Value, now: Timestamp) -> Value {
    json!(time::age(object.pointer("/metadata/creationTimestamp").and_then(Value::as_str), now))
}

fn or_unset(text: &str) -> Value {
    json!(if text.is_empty() { "<unset>" } else { text })
}

fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

fn count(object: &Value, member: &str) -> usize {
    map(object, &format!("/{member}")).map_or(0, serde_json::Map::len)
}

pub(super) const NAME_AGE: &[Column] = &[column("Name"), column("Age")];
pub(super) fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), age(object, now)]
}

pub(super) const NAMESPACE: &[Column] = &[column("Name"), column("Status"), column("Age")];
pub(super) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(text(object, "/status/phase")), age(object, now)]
}

pub(super) const CONFIG_MAP: &[Column] = &[column("Name"), typed("Data", "integer"), column("Age")];
pub(super) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(count(object, "data") + count(object, "binaryData")), age(object, now)]
}

pub(super) const SECRET: &[Column] = &[column("Name"), column("Type"), typed("Data", "integer"), column("Age")];
pub(super) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(text(object, "/type")), json!(count(object, "data")), age(object, now)]
}

pub(super) const LEASE: &[Column] = &[column("Name"), column("Holder"), column("Age")];
pub(super) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(text(object, "/spec/holderIdentity")), age(object, now)]
}

pub(super) const NODE: &[Column] = &[
    column("Name"),
    column("Status"),
    column("Roles"),
    column("Age"),
    column("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];
pub(super) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let ready = list(object, "/status/conditions").iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| condition["status"] == "True") {
        None => "Unknown".to_owned(),
        Some(true) => "Ready".to_owned(),
        Some(false) => "NotReady".to_owned(),
    };
    if object["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let mut roles: Vec<&str> = map(object, "/metadata/labels")
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let address = |kind: &str| {
        let found = list(object, "/status/addresses").iter().find(|address| address["type"] == kind);
        or_none(found.map_or("", |address| text(address, "/address")))
    };
    let info = |field: &str| {
        let value = text(object, &format!("/status/nodeInfo/{field}"));
        json!(if value.is_empty() { "<unknown>" } else { value })
    };
    vec![
        json!(name(object)),
        json!(status),
        or_none(&roles.join(",")),
        age(object, now),
        json!(text(object, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

pub(super) const POD: &[Column] = &[
    column("Name"),
    column("Ready"),
    column("Status"),
    column("Restarts"),
    column("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];
pub(super) fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let statuses = list(object, "/status/containerStatuses");
    let ready =
        statuses.iter().filter(|status| status["ready"] == true && status["state"].get("running").is_some()).count();
    let gates = list(object, "/spec/readinessGates");
    let passed = gates.iter().filter(|gate| {
        let conditions = list(object, "/status/conditions");
        conditions.iter().any(|condition| condition["type"] == gate["conditionType"] && condition["status"] == "True")
    });
    let gates_shown =
        if gates.is_empty() { "<none>".to_owned() } else { format!("{}/{}", passed.count(), gates.len()) };
    vec![
        json!(name(object)),
        json!(format!("{ready}/{}", list(object, "/spec/containers").len())),
        json!(pod_status(object)),
        json!(restarts(object, now)),
        age(object, now),
        or_none(text(object, "/status/podIP")),
        or_none(text(object, "/spec/nodeName")),
        or_none(text(object, "/status/nominatedNodeName")),
        json!(gates_shown),
    ]
}

fn restarts(object: &Value, now: Timestamp) -> String {
    let all = || list(object, "/status/containerStatuses").iter().chain(list(object, "/status/initContainerStatuses"));
    let total: i64 = all().filter_map(|status| status["restartCount"].as_i64()).sum();
    let last = all().map(|status| text(status, "/lastState/terminated/finishedAt")).max().filter(|at| !at.is_empty());
    match last {
        Some(at) if total > 0 => format!("{total} ({} ago)", time::age(Some(at), now)),
        _ => total.to_string(),
    }
}

/// One word for the state of a pod: what the first container in trouble says, else its phase.
fn pod_status(object: &Value) -> String {
    let own = text(object, "/status/reason");
    let phase = text(object, "/status/phase");
    let mut shown = if own.is_empty() { phase.to_owned() } else { own.to_owned() };
    let gated = list(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated");
    if gated {
        shown = "SchedulingGated".to_owned();
    }
    let starting = init_status(object);
    if let Some(init) = &starting {
        shown.clone_from(init);
    } else {
        shown = container_status(object).unwrap_or(shown);
    }
    if !text(object, "/metadata/deletionTimestamp").is_empty() {
        return if own == "NodeLost" { "Unknown" } else { "Terminating" }.to_owned();
    }
    shown
}

fn ended(terminated: &Value) -> String {
    match (text(terminated, "/reason"), terminated["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn init_status(object: &Value) -> Option<String> {
    let specs = list(object, "/spec/initContainers");
    for (at, status) in list(object, "/status/initContainerStatuses").iter().enumerate() {
        let sidecar = specs.iter().any(|spec| spec["name"] == status["name"] && spec["restartPolicy"] == "Always");
        if status.pointer("/state/terminated/exitCode").is_some_and(|code| code == 0)
            || (sidecar && status["started"] == true)
        {
            continue;
        }
        let waiting = text(status, "/state/waiting/reason");
        return Some(match status.pointer("/state/terminated") {
            Some(terminated) => format!("Init:{}", ended(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{at}/{}", specs.len()),
        });
    }
    None
}

fn container_status(object: &Value) -> Option<String> {
    let (mut shown, mut running) = (None, false);
    for status in list(object, "/status/containerStatuses").iter().rev() {
        let waiting = text(status, "/state/waiting/reason");
        if !waiting.is_empty() {
            shown = Some(waiting.to_owned());
        } else if let Some(terminated) = status.pointer("/state/terminated") {
            shown = Some(ended(terminated));
        } else if status["ready"] == true && status.pointer("/state/running").is_some() {
            running = true;
        }
    }
    if shown.as_deref() == Some("Completed") && running {
        let ready = list(object, "/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        shown = Some(if ready { "Running" } else { "NotReady" }.to_owned());
    }
    shown
}

fn short_modes(object: &Value, pointer: &str) -> String {
    let short = |mode: &Value| match mode.as_str() {
        Some("ReadWriteOnce") => "RWO",
        Some("ReadOnlyMany") => "ROX",
        Some("ReadWriteMany") => "RWX",
        Some("ReadWriteOncePod") => "RWOP",
        _ => "",
    };
    list(object, pointer).iter().map(short).collect::<Vec<_>>().join(",")
}

fn class_name(object: &Value) -> String {
    let annotations = map(object, "/metadata/annotations");
    let annotated =
        annotations.and_then(|all| all.get("volume.beta.kubernetes.io/storage-class")).and_then(Value::as_str);
    annotated.unwrap_or_else(|| text(object, "/spec/storageClassName")).to_owned()
}

pub(super) const CLAIM: &[Column] = &[
    column("Name"),
    column("Status"),
    column("Volume"),
    column("Capacity"),
    column("Access Modes"),
    column("StorageClass"),
    column("VolumeAttributesClass"),
    column("Age"),
    wide("VolumeMode"),
];
pub(super) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = !text(object, "/metadata/deletionTimestamp").is_empty();
    let bound = !text(object, "/spec/volumeName").is_empty();
    vec![
        json!(name(object)),
        json!(if deleting { "Terminating" } else { text(object, "/status/phase") }),
        json!(text(object, "/spec/volumeName")),
        json!(if bound { text(object, "/status/capacity/storage") } else { "" }),
        json!(if bound { short_modes(object, "/status/accessModes") } else { String::new() }),
        json!(class_name(object)),
        or_unset(text(object, "/spec/volumeAttributesClassName")),
        age(object, now),
        or_unset(text(object, "/spec/volumeMode")),
    ]
}

pub(super) const VOLUME: &[Column] = &[
    column("Name"),
    column("Capacity"),
    column("Access Modes"),
    column("Reclaim Policy"),
    column("Status"),
    column("Claim"),
    column("StorageClass"),
    column("VolumeAttributesClass"),
    column("Reason"),
    column("Age"),
    wide("VolumeMode"),
];
pub(super) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let deleting = !text(object, "/metadata/deletionTimestamp").is_empty();
    let claim = match object.pointer("/spec/claimRef") {
        Some(claim) => format!("{}/{}", text(claim, "/namespace"), text(claim, "/name")),
        None => String::new(),
    };
    vec![
        json!(name(object)),
        json!(text(object, "/spec/capacity/storage")),
        json!(short_modes(object, "/spec/accessModes")),
        json!(text(object, "/spec/persistentVolumeReclaimPolicy")),
        json!(if deleting { "Terminating" } else { text(object, "/status/phase") }),
        json!(claim),
        json!(class_name(object)),
        or_unset(text(object, "/spec/volumeAttributesClassName")),
        json!(text(object, "/status/reason")),
        age(object, now),
        or_unset(text(object, "/spec/volumeMode")),
    ]
}

pub(super) const CLASS: &[Column] = &[
    column("Name"),
    column("Provisioner"),
    column("ReclaimPolicy"),
    column("VolumeBindingMode"),
    typed("AllowVolumeExpansion", "boolean"),
    column("Age"),
];
pub(super) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let annotations = map(object, "/metadata/annotations");
    let default =
        annotations.and_then(|all| all.get("storageclass.kubernetes.io/is-default-class")).is_some_and(|v| v == "true");
    vec![
        json!(if default { format!("{} (default)", name(object)) } else { name(object).to_owned() }),
        json!(text(object, "/provisioner")),
        json!(text(object, "/reclaimPolicy")),
        json!(text(object, "/volumeBindingMode")),
        json!(object["allowVolumeExpansion"] == true),
        age(object, now),
    ]
}

pub(super) const ATTACHMENT: &[Column] =
    &[column("Name"), column("Attacher"), column("PV"), column("Node"), typed("Attached", "boolean"), column("Age")];
pub(super) fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(name(object)),
        json!(text(object, "/spec/attacher")),
        json!(text(object, "/spec/source/persistentVolumeName")),
        json!(text(object, "/spec/nodeName")),
        json!(object["status"]["attached"] == true),
        age(object, now),
    ]
}

pub(super) const DRIVER: &[Column] = &[
    column("Name"),
    typed("AttachRequired", "boolean"),
    typed("PodInfoOnMount", "boolean"),
    typed("StorageCapacity", "boolean"),
    column("TokenRequests"),
    typed("RequiresRepublish", "boolean"),
    column("Modes"),
    column("Age"),
];
pub(super) fn driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &object["spec"];
    let audiences: Vec<&str> = list(spec, "/tokenRequests").iter().map(|request| text(request, "/audience")).collect();
    let modes: Vec<&str> = list(spec, "/volumeLifecycleModes").iter().filter_map(Value::as_str).collect();
    vec![
        json!(name(object)),
        json!(spec["attachRequired"] != false),
        json!(spec["podInfoOnMount"] == true),
        json!(spec["storageCapacity"] == true),
        or_unset(&audiences.join(",")),
        json!(spec["requiresRepublish"] == true),
        json!(modes.join(",")),
        age(object, now),
    ]
}

pub(super) const CSI_NODE: &[Column] = &[column("Name"), typed("Drivers", "integer"), column("Age")];
pub(super) fn csi_node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(name(object)), json!(list(object, "/spec/drivers").len()), age(object, now)]
}

pub(super) const EVENT: &[Column] = &[
    column("Last Seen"),
    column("Type"),
    column("Reason"),
    column("Object"),
    wide("Subobject"),
    wide("Source"),
    column("Message"),
    wide("First Seen"),
    Column { name: "Count", of: "integer", wide: true },
    wide("Name"),
];
pub(super) fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let at = |pointers: &[&str]| {
        let found = pointers.iter().map(|pointer| text(object, pointer)).find(|at| !at.is_empty());
        json!(time::age(found, now))
    };
    let source =
        [text(object, "/source/component"), text(object, "/source/host")].into_iter().filter(|part| !part.is_empty());
    let source = source.collect::<Vec<_>>().join(", ");
    let involved =
        format!("{}/{}", text(object, "/involvedObject/kind").to_lowercase(), text(object, "/involvedObject/name"));
    let times = object.pointer("/series/count").or_else(|| object.get("count")).and_then(Value::as_i64).unwrap_or(1);
    vec![
        at(&["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"]),
        json!(text(object, "/type")),
        json!(text(object, "/reason")),
        json!(involved),
        json!(text(object, "/involvedObject/fieldPath")),
        json!(if source.is_empty() { text(object, "/reportingComponent") } else { &source }),
        json!(text(object, "/message").trim()),
        at(&["/firstTimestamp", "/eventTime"]),
        json!(times.max(1)),
        json!(name(object)),
    ]
}

#[cfg(test)]
#[path = "columns_tests.rs"]
mod tests;
