//! Claims, volumes, classes, attachments and what nodes and drivers say of themselves.
//!
//! Only what the object alone shows to be wrong is refused here; what depends on the cluster is an event of the
//! controller that meets it.

use crate::error::Cause;
use crate::names;
use crate::object::{child, default, list, map, metadata, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: [&str; 2] = ["Block", "Filesystem"];
/// The sources that a volume may name; one of them, once.
const SOURCES: [&str; 22] = [
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "csi",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "glusterfs",
    "hostPath",
    "iscsi",
    "local",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = metadata(object).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut().filter(|list| !list.iter().any(|have| have == finalizer)) {
        list.push(json!(finalizer));
    }
}

fn one_of(object: &Value, pointer: &str, path: &str, allowed: &[&str], required: bool, causes: &mut Vec<Cause>) {
    match object.pointer(pointer) {
        None if required => causes.push(Cause::required(path, "")),
        Some(value) if !allowed.contains(&value.as_str().unwrap_or_default()) => {
            causes.push(Cause::not_supported(path, value, allowed));
        }
        _ => {}
    }
}

fn access_modes(object: &Value, causes: &mut Vec<Cause>) {
    let modes = list(object, "/spec/accessModes");
    if modes.is_empty() {
        causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter(|mode| !ACCESS_MODES.contains(&mode.as_str().unwrap_or_default())) {
        causes.push(Cause::not_supported("spec.accessModes", mode, &ACCESS_MODES));
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        causes.push(Cause::forbidden("spec.accessModes", why));
    }
}

fn quantity(object: &Value, pointer: &str) -> Option<Quantity> {
    Quantity::parse(text(object, pointer))
}

/// A claim waits, and is protected while a pod uses it.
pub(super) fn new_claim(claim: &mut Value) {
    add_finalizer(claim, "kubernetes.io/pvc-protection");
    claim["status"] = json!({"phase": "Pending"});
}

/// A filesystem is what most want; a data source is the same in both of its spellings.
pub(super) fn default_claim(claim: &mut Value) {
    let spec = child(claim, "spec");
    default(spec, "volumeMode", "Filesystem");
    let (old, new) = (spec.get("dataSource").cloned(), spec.get("dataSourceRef").cloned());
    match (old, new) {
        (Some(source), None) => drop(spec.insert("dataSourceRef".to_owned(), source)),
        (None, Some(reference)) if reference.get("namespace").is_none() => {
            spec.insert("dataSource".to_owned(), reference);
        }
        _ => {}
    }
}

/// Modes, size and class of a claim.
pub(super) fn validate_claim(claim: &Value, causes: &mut Vec<Cause>) {
    access_modes(claim, causes);
    let path = "spec.resources[storage]";
    match claim.pointer("/spec/resources/requests/storage") {
        None => causes.push(Cause::required(path, "")),
        Some(size) => {
            if !quantity(claim, "/spec/resources/requests/storage").is_some_and(|size| size.is_positive()) {
                causes.push(Cause::invalid(path, size, "must be greater than zero"));
            }
        }
    }
    if let (Some(least), Some(most)) =
        (quantity(claim, "/spec/resources/requests/storage"), quantity(claim, "/spec/resources/limits/storage"))
        && least > most
    {
        let shown = &claim["spec"]["resources"]["requests"]["storage"];
        causes.push(Cause::invalid("spec.resources.requests", shown, "must be less than or equal to storage limit"));
    }
    one_of(claim, "/spec/volumeMode", "spec.volumeMode", &VOLUME_MODES, false, causes);
    let class = text(claim, "/spec/storageClassName");
    if !class.is_empty()
        && let Err(why) = names::subdomain(class)
    {
        causes.push(Cause::invalid("spec.storageClassName", &json!(class), why));
    }
    for (field, pointer) in [("dataSource", "/spec/dataSource"), ("dataSourceRef", "/spec/dataSourceRef")] {
        let Some(source) = claim.pointer(pointer) else { continue };
        for part in ["name", "kind"].into_iter().filter(|part| text(source, &format!("/{part}")).is_empty()) {
            causes.push(Cause::required(format!("spec.{field}.{part}"), ""));
        }
        if text(source, "/apiGroup").is_empty() && !matches!(text(source, "/kind"), "" | "PersistentVolumeClaim") {
            let why = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
            causes.push(Cause::invalid(format!("spec.{field}"), &source["kind"], why));
        }
    }
}

/// Of a claim's spec, what may change: the volume's name while it is unset, the class while it is unset and unbound,
/// the size of a bound claim (never below what it has), the attributes class.
pub(super) fn validate_claim_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let frozen = |claim: &Value| {
        let mut spec = claim["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.shift_remove("volumeAttributesClassName");
            if text(old, "/spec/volumeName").is_empty() {
                spec.shift_remove("volumeName");
            }
            if old.pointer("/spec/storageClassName").is_none() {
                spec.shift_remove("storageClassName");
            }
            if text(old, "/status/phase") == "Bound"
                && let Some(requests) =
                    spec.get_mut("resources").and_then(|r| r.get_mut("requests")).and_then(Value::as_object_mut)
            {
                requests.shift_remove("storage");
            }
        }
        spec
    };
    if frozen(new) != frozen(old) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
        return;
    }
    let size = "/spec/resources/requests/storage";
    if let (Some(now), Some(before)) = (quantity(new, size), quantity(old, size))
        && now < before
        && quantity(old, "/status/capacity/storage").is_none_or(|has| now <= has)
    {
        causes.push(Cause::forbidden("spec.resources.requests.storage", "field can not be less than status.capacity"));
    }
}

/// A volume waits, and is protected while it is bound.
pub(super) fn new_volume(volume: &mut Value) {
    add_finalizer(volume, "kubernetes.io/pv-protection");
    volume["status"] = json!({"phase": "Pending"});
}

/// A volume made by hand is kept, and holds a filesystem.
pub(super) fn default_volume(volume: &mut Value) {
    let spec = child(volume, "spec");
    default(spec, "persistentVolumeReclaimPolicy", "Retain");
    default(spec, "volumeMode", "Filesystem");
    if let Some(host) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
        default(host, "type", "");
    }
    if let Some(claim) = spec.get_mut("claimRef").and_then(Value::as_object_mut)
        && claim.get("name").is_some()
    {
        default(claim, "apiVersion", "v1");
        default(claim, "kind", "PersistentVolumeClaim");
    }
}

/// Size, modes, policy and exactly one source.
pub(super) fn validate_volume(volume: &Value, causes: &mut Vec<Cause>) {
    access_modes(volume, causes);
    match map(volume, "/spec/capacity") {
        None => causes.push(Cause::required("spec.capacity", "")),
        Some(capacity) if capacity.len() != 1 || !capacity.contains_key("storage") => {
            causes.push(Cause::not_supported("spec.capacity", &json!(capacity), &["storage"]));
        }
        Some(capacity) => {
            if !quantity(volume, "/spec/capacity/storage").is_some_and(|size| size.is_positive()) {
                causes.push(Cause::invalid(
                    "spec.capacity[storage]",
                    &capacity["storage"],
                    "must be greater than zero",
                ));
            }
        }
    }
    let policy = "spec.persistentVolumeReclaimPolicy";
    one_of(volume, "/spec/persistentVolumeReclaimPolicy", policy, &["Delete", "Recycle", "Retain"], false, causes);
    one_of(volume, "/spec/volumeMode", "spec.volumeMode", &VOLUME_MODES, false, causes);
    let named: Vec<&str> = SOURCES.into_iter().filter(|source| volume["spec"].get(source).is_some()).collect();
    match named.as_slice() {
        [] => causes.push(Cause::required("spec", "must specify a volume type")),
        [_] => {}
        [_, rest @ ..] => {
            for source in rest {
                causes.push(Cause::forbidden(format!("spec.{source}"), "may not specify more than 1 volume type"));
            }
        }
    }
    for (source, fields) in [
        ("csi", &["driver", "volumeHandle"][..]),
        ("hostPath", &["path"]),
        ("local", &["path"]),
        ("nfs", &["server", "path"]),
    ] {
        let Some(given) = volume["spec"].get(source) else { continue };
        for field in fields.iter().filter(|field| text(given, &format!("/{field}")).is_empty()) {
            causes.push(Cause::required(format!("spec.{source}.{field}"), ""));
        }
    }
    if volume["spec"].get("local").is_some() && volume.pointer("/spec/nodeAffinity/required").is_none() {
        causes.push(Cause::required("spec.nodeAffinity", "Local volume requires node affinity"));
    }
}

/// What a volume is made of stays.
pub(super) fn validate_volume_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if SOURCES.iter().any(|source| new["spec"].get(source) != old["spec"].get(source)) {
        causes.push(Cause::forbidden(
            "spec.persistentvolumesource",
            "spec.persistentvolumesource is immutable after creation",
        ));
    }
    if new["spec"]["volumeMode"] != old["spec"]["volumeMode"] {
        causes.push(Cause::invalid("volumeMode", &new["spec"]["volumeMode"], "field is immutable"));
    }
    if old.pointer("/spec/nodeAffinity").is_some() && new["spec"]["nodeAffinity"] != old["spec"]["nodeAffinity"] {
        causes.push(Cause::invalid("nodeAffinity", &new["spec"]["nodeAffinity"], "field is immutable"));
    }
}

/// Volumes of a class go with their claims and are made at once.
pub(super) fn default_class(class: &mut Value) {
    if let Some(class) = class.as_object_mut() {
        default(class, "reclaimPolicy", "Delete");
        default(class, "volumeBindingMode", "Immediate");
    }
}

/// Who provisions, and how.
pub(super) fn validate_class(class: &Value, causes: &mut Vec<Cause>) {
    match text(class, "/provisioner") {
        "" => causes.push(Cause::required("provisioner", "")),
        name => {
            if let Err(why) = names::qualified(&name.to_lowercase()) {
                causes.push(Cause::invalid("provisioner", &class["provisioner"], why));
            }
        }
    }
    if map(class, "/parameters").is_some_and(|parameters| parameters.contains_key("")) {
        causes.push(Cause::invalid("parameters", &json!(""), "field can not be empty."));
    }
    one_of(class, "/reclaimPolicy", "reclaimPolicy", &["Delete", "Retain"], false, causes);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    one_of(class, "/volumeBindingMode", "volumeBindingMode", &modes, true, causes);
}

/// What volumes have already been made by stays.
pub(super) fn validate_class_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if new.get("parameters").unwrap_or(&json!({})) != old.get("parameters").unwrap_or(&json!({})) {
        causes.push(Cause::forbidden("parameters", "updates to parameters are forbidden."));
    }
    for field in ["provisioner", "reclaimPolicy"] {
        if new[field] != old[field] {
            causes.push(Cause::forbidden(field, format!("updates to {field} are forbidden.")));
        }
    }
    if new["volumeBindingMode"] != old["volumeBindingMode"] {
        causes.push(Cause::invalid("volumeBindingMode", &new["volumeBindingMode"], "field is immutable"));
    }
}

/// Who attaches what to which node.
pub(super) fn validate_attachment(attachment: &Value, causes: &mut Vec<Cause>) {
    let spec = &attachment["spec"];
    if text(spec, "/attacher").is_empty() {
        causes.push(Cause::required("spec.attacher", ""));
    } else if let Err(why) = names::csi_driver(text(spec, "/attacher")) {
        causes.push(Cause::invalid("spec.attacher", &spec["attacher"], why));
    }
    if text(spec, "/nodeName").is_empty() {
        causes.push(Cause::required("spec.nodeName", ""));
    }
    match (spec.pointer("/source/persistentVolumeName"), spec.pointer("/source/inlineVolumeSpec")) {
        (None, None) => causes.push(Cause::required(
            "spec.source",
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        )),
        (Some(_), Some(_)) => causes.push(Cause::forbidden(
            "spec.source",
            "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        )),
        _ => {}
    }
}

/// An attachment's spec stays.
pub(super) fn validate_attachment_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    if new["spec"] != old["spec"] {
        causes.push(Cause::invalid("spec", &new["spec"], "field is immutable"));
    }
}

/// A driver attaches, for the life of its volumes, unless it says otherwise.
pub(super) fn default_driver(driver: &mut Value) {
    let spec = child(driver, "spec");
    default(spec, "attachRequired", true);
    default(spec, "podInfoOnMount", false);
    default(spec, "storageCapacity", false);
    default(spec, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    default(spec, "volumeLifecycleModes", json!(["Persistent"]));
    default(spec, "requiresRepublish", false);
    default(spec, "seLinuxMount", false);
}

/// What a driver may say of itself.
pub(super) fn validate_driver(driver: &Value, causes: &mut Vec<Cause>) {
    let policies = ["ReadWriteOnceWithFSType", "File", "None"];
    one_of(driver, "/spec/fsGroupPolicy", "spec.fsGroupPolicy", &policies, false, causes);
    for (at, mode) in list(driver, "/spec/volumeLifecycleModes").iter().enumerate() {
        if !matches!(mode.as_str(), Some("Persistent" | "Ephemeral")) {
            causes.push(Cause::not_supported(
                format!("spec.volumeLifecycleModes[{at}]"),
                mode,
                &["Ephemeral", "Persistent"],
            ));
        }
    }
}

/// Each driver once, with the node's id in it.
pub(super) fn validate_csi_node(node: &Value, causes: &mut Vec<Cause>) {
    let drivers = list(node, "/spec/drivers");
    for (at, driver) in drivers.iter().enumerate() {
        let path = format!("spec.drivers[{at}]");
        if text(driver, "/name").is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if let Err(why) = names::csi_driver(text(driver, "/name")) {
            causes.push(Cause::invalid(format!("{path}.name"), &driver["name"], why));
        }
        if text(driver, "/nodeID").is_empty() {
            causes.push(Cause::required(format!("{path}.nodeID"), ""));
        }
        if drivers[..at].iter().any(|other| other["name"] == driver["name"]) {
            causes.push(Cause::duplicate(format!("{path}.name"), &driver["name"]));
        }
    }
}

#[cfg(test)]
#[path = "storage_tests.rs"]
mod tests;
