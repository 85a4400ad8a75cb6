//! What a pod must obey, and what of it may change.

use super::metadata::check_labels;
use crate::error::Cause;
use crate::names;
use crate::object::{list, text};
use crate::quantity::Quantity;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// The spec as a whole.
pub(super) fn validate(pod: &Value, causes: &mut Vec<Cause>) {
    let spec = &pod["spec"];
    let volumes = validate_volumes(spec, causes);
    if list(spec, "/containers").is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut seen = BTreeSet::new();
    for group in ["initContainers", "containers"] {
        for (at, container) in list(spec, &format!("/{group}")).iter().enumerate() {
            let path = format!("spec.{group}[{at}]");
            if !seen.insert(text(container, "/name")) {
                causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
            }
            validate_container(container, &path, &volumes, causes);
        }
    }
    for (field, allowed) in [
        ("restartPolicy", &["Always", "OnFailure", "Never"][..]),
        ("dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]),
        ("preemptionPolicy", &["PreemptLowerPriority", "Never"]),
    ] {
        if let Some(value) = spec.get(field).filter(|value| !allowed.contains(&value.as_str().unwrap_or_default())) {
            causes.push(Cause::not_supported(format!("spec.{field}"), value, allowed));
        }
    }
    for field in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        if spec[field].as_i64().is_some_and(|seconds| seconds < 0) {
            causes.push(Cause::invalid(format!("spec.{field}"), &spec[field], "must be greater than or equal to 0"));
        }
    }
    for field in ["nodeName", "serviceAccountName", "priorityClassName"] {
        let name = text(spec, &format!("/{field}"));
        if !name.is_empty()
            && let Err(why) = names::subdomain(name)
        {
            causes.push(Cause::invalid(format!("spec.{field}"), &json!(name), why));
        }
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, &format!("/{field}"));
        if !name.is_empty()
            && let Err(why) = names::label(name)
        {
            causes.push(Cause::invalid(format!("spec.{field}"), &json!(name), why));
        }
    }
    check_labels(spec, "spec.nodeSelector", "/nodeSelector", causes);
    validate_tolerations(spec, causes);
}

fn validate_volumes<'a>(spec: &'a Value, causes: &mut Vec<Cause>) -> BTreeSet<&'a str> {
    let mut names_seen = BTreeSet::new();
    for (at, volume) in list(spec, "/volumes").iter().enumerate() {
        let path = format!("spec.volumes[{at}]");
        let name = text(volume, "/name");
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if let Err(why) = names::label(name) {
            causes.push(Cause::invalid(format!("{path}.name"), &json!(name), why));
        } else if !names_seen.insert(name) {
            causes.push(Cause::duplicate(format!("{path}.name"), &json!(name)));
        }
        let sources: Vec<&String> =
            volume.as_object().into_iter().flatten().map(|(key, _)| key).filter(|key| *key != "name").collect();
        for source in sources.iter().skip(1) {
            causes.push(Cause::forbidden(format!("{path}.{source}"), "may not specify more than 1 volume type"));
        }
        for (source, field) in [
            ("persistentVolumeClaim", "claimName"),
            ("hostPath", "path"),
            ("secret", "secretName"),
            ("configMap", "name"),
            ("csi", "driver"),
        ] {
            if volume.get(source).is_some_and(|given| text(given, &format!("/{field}")).is_empty()) {
                causes.push(Cause::required(format!("{path}.{source}.{field}"), ""));
            }
        }
        for field in ["/secret/items", "/configMap/items"] {
            for (at, item) in list(volume, field).iter().enumerate() {
                check_relative(text(item, "/path"), &format!("{path}{}[{at}].path", field.replace('/', ".")), causes);
            }
        }
        if let Some(size) = volume.pointer("/emptyDir/sizeLimit")
            && size.as_str().and_then(Quantity::parse).is_some_and(|size| size.is_negative())
        {
            causes.push(Cause::forbidden(
                format!("{path}.emptyDir.sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            ));
        }
    }
    names_seen
}

fn check_relative(path: &str, field: &str, causes: &mut Vec<Cause>) {
    if path.is_empty() {
        causes.push(Cause::required(field, ""));
    } else if path.starts_with('/') {
        causes.push(Cause::invalid(field, &json!(path), "must be a relative path"));
    } else if path.split('/').any(|part| part == "..") {
        causes.push(Cause::invalid(field, &json!(path), "must not contain '..'"));
    }
}

fn validate_container(container: &Value, path: &str, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let name = text(container, "/name");
    if name.is_empty() {
        causes.push(Cause::required(format!("{path}.name"), ""));
    } else if let Err(why) = names::label(name) {
        causes.push(Cause::invalid(format!("{path}.name"), &json!(name), why));
    }
    let image = text(container, "/image");
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image != image.trim() {
        causes.push(Cause::invalid(
            format!("{path}.image"),
            &json!(image),
            "must not have leading or trailing whitespace",
        ));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    if let Some(policy) =
        container.get("imagePullPolicy").filter(|p| !policies.contains(&p.as_str().unwrap_or_default()))
    {
        causes.push(Cause::not_supported(format!("{path}.imagePullPolicy"), policy, &policies));
    }
    validate_mounts(container, path, volumes, causes);
    validate_ports(container, path, causes);
    validate_env(container, path, causes);
    validate_resources(container, path, causes);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(given) = container.get(probe) {
            validate_probe(given, &format!("{path}.{probe}"), probe == "readinessProbe", causes);
        }
    }
}

fn validate_mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let mut taken = BTreeSet::new();
    for (group, place) in [("volumeMounts", "mountPath"), ("volumeDevices", "devicePath")] {
        for (at, mount) in list(container, &format!("/{group}")).iter().enumerate() {
            let path = format!("{path}.{group}[{at}]");
            let name = text(mount, "/name");
            if name.is_empty() {
                causes.push(Cause::required(format!("{path}.name"), ""));
            } else if !volumes.contains(name) {
                causes.push(Cause::not_found(format!("{path}.name"), &json!(name)));
            }
            let target = text(mount, &format!("/{place}"));
            if target.is_empty() {
                causes.push(Cause::required(format!("{path}.{place}"), ""));
            } else if !taken.insert(target) {
                causes.push(Cause::invalid(format!("{path}.{place}"), &json!(target), "must be unique"));
            }
            let sub_path = text(mount, "/subPath");
            if !sub_path.is_empty() {
                check_relative(sub_path, &format!("{path}.subPath"), causes);
            }
        }
    }
}

fn validate_ports(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (at, port) in list(container, "/ports").iter().enumerate() {
        let path = format!("{path}.ports[{at}]");
        match port["containerPort"].as_i64() {
            None | Some(0) => causes.push(Cause::required(format!("{path}.containerPort"), "")),
            Some(1..=65535) => {}
            Some(_) => causes.push(Cause::invalid(
                format!("{path}.containerPort"),
                &port["containerPort"],
                "must be between 1 and 65535, inclusive",
            )),
        }
        let protocols = ["SCTP", "TCP", "UDP"];
        if let Some(protocol) = port.get("protocol").filter(|p| !protocols.contains(&p.as_str().unwrap_or_default())) {
            causes.push(Cause::not_supported(format!("{path}.protocol"), protocol, &protocols));
        }
    }
}

fn validate_env(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    for (at, variable) in list(container, "/env").iter().enumerate() {
        let path = format!("{path}.env[{at}]");
        let name = text(variable, "/name");
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if let Err(why) = names::env_name(name) {
            causes.push(Cause::invalid(format!("{path}.name"), &json!(name), why));
        }
        if variable.get("valueFrom").is_some() && !text(variable, "/value").is_empty() {
            causes.push(Cause::invalid(
                format!("{path}.valueFrom"),
                &json!(""),
                "may not be specified when `value` is not empty",
            ));
        }
    }
}

fn validate_resources(container: &Value, path: &str, causes: &mut Vec<Cause>) {
    let resources = &container["resources"];
    for half in ["limits", "requests"] {
        for (name, amount) in resources[half].as_object().into_iter().flatten() {
            let parsed = amount.as_str().and_then(Quantity::parse);
            if parsed.is_some_and(|amount| amount.is_negative()) {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(format!("{path}.resources.{half}[{name}]"), amount, why));
            }
            let limit = resources["limits"].get(name).and_then(Value::as_str).and_then(Quantity::parse);
            if half == "requests" && parsed.zip(limit).is_some_and(|(request, limit)| request > limit) {
                let why = format!(
                    "must be less than or equal to {name} limit of {}",
                    text(&resources["limits"], &format!("/{}", name.replace('/', "~1")))
                );
                causes.push(Cause::invalid(format!("{path}.resources.requests"), amount, why));
            }
        }
    }
}

fn validate_probe(probe: &Value, path: &str, may_need_several: bool, causes: &mut Vec<Cause>) {
    let actions = ["exec", "httpGet", "tcpSocket", "grpc"];
    match actions.iter().filter(|action| probe.get(**action).is_some()).count() {
        0 => causes.push(Cause::required(path, "must specify a handler type")),
        1 => {}
        _ => causes.push(Cause::forbidden(path, "may not specify more than 1 handler type")),
    }
    for field in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if probe[field].as_i64().is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(format!("{path}.{field}"), &probe[field], "must be greater than or equal to 0"));
        }
    }
    if !may_need_several && probe["successThreshold"].as_i64().is_some_and(|times| times != 1) {
        causes.push(Cause::invalid(format!("{path}.successThreshold"), &probe["successThreshold"], "must be 1"));
    }
}

fn validate_tolerations(spec: &Value, causes: &mut Vec<Cause>) {
    for (at, toleration) in list(spec, "/tolerations").iter().enumerate() {
        let path = format!("spec.tolerations[{at}]");
        let (key, operator) = (text(toleration, "/key"), text(toleration, "/operator"));
        if !key.is_empty()
            && let Err(why) = names::qualified(key)
        {
            causes.push(Cause::invalid(format!("{path}.key"), &json!(key), why));
        }
        if key.is_empty() && operator != "Exists" {
            let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.push(Cause::invalid(format!("{path}.operator"), &json!(operator), why));
        }
        if operator == "Exists" && !text(toleration, "/value").is_empty() {
            let why = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(format!("{path}.operator"), &toleration["value"], why));
        }
        if !matches!(operator, "" | "Exists" | "Equal") {
            causes.push(Cause::not_supported(format!("{path}.operator"), &json!(operator), &["Equal", "Exists"]));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if let Some(effect) =
            toleration.get("effect").filter(|e| !effects.contains(&e.as_str().unwrap_or_default()) && *e != "")
        {
            causes.push(Cause::not_supported(format!("{path}.effect"), effect, &effects));
        }
    }
}

/// Of a pod's spec only images, the deadline and more tolerations change here; binding sets the node by its own way.
pub(super) fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let (mut now, before) = (new["spec"].clone(), &old["spec"]);
    let Some(fields) = now.as_object_mut() else { return };
    for group in ["containers", "initContainers"] {
        let old_containers = list(before, &format!("/{group}"));
        let new_containers = fields.get_mut(group).and_then(Value::as_array_mut);
        for (container, was) in new_containers.into_iter().flatten().zip(old_containers) {
            if let Some(image) = was.get("image").filter(|_| !text(container, "/image").is_empty()) {
                container["image"] = image.clone();
            }
        }
    }
    let had = list(before, "/tolerations");
    if list(&new["spec"], "/tolerations").get(..had.len()).is_some_and(|kept| kept == had) {
        put_back(fields, before, "tolerations");
    }
    put_back(fields, before, "activeDeadlineSeconds");
    if now != *before {
        let changed: Vec<&str> = now
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| before.get(key.as_str()) != Some(value))
            .map(|(key, _)| key.as_str())
            .chain(
                before
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(key, _)| key.as_str())
                    .filter(|key| now.get(key).is_none()),
            )
            .collect();
        causes.push(Cause::forbidden("spec", format!(
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\nchanged: {}",
            changed.iter().map(|field| format!("spec.{field}")).collect::<Vec<_>>().join(", ")
        )));
    }
}

fn put_back(fields: &mut serde_json::Map<String, Value>, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.shift_remove(field),
    };
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
