//! What a new pod gets where its author said nothing.

use crate::object::{child, default, list, text};
use serde_json::{Map, Value, json};

/// A new pod waits, with its quality of service known.
pub(super) fn new_pod(pod: &mut Value) {
    let class = quality(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
}

/// `Guaranteed`: every container's cpu and memory limits equal its requests; `BestEffort`: nothing is asked for.
fn quality(pod: &Value) -> &'static str {
    let containers: Vec<&Value> =
        list(pod, "/spec/containers").iter().chain(list(pod, "/spec/initContainers")).collect();
    let part = |container: &Value, half: &str, of: &str| container["resources"][half].get(of).cloned();
    let asked = |container: &&Value| {
        ["requests", "limits"].iter().any(|half| ["cpu", "memory"].iter().any(|of| part(container, half, of).is_some()))
    };
    let exact = |container: &&Value| {
        ["cpu", "memory"]
            .iter()
            .all(|of| part(container, "limits", of).is_some_and(|limit| part(container, "requests", of) == Some(limit)))
    };
    match (containers.iter().any(asked), containers.iter().all(exact)) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Every default of the pod's spec.
pub(super) fn default_pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("priority", json!(0)),
    ] {
        default(spec, field, value);
    }
    tolerate(spec);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for group in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec.get_mut(group).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = container.as_object_mut() {
                default_container(container, host_network);
            }
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(volume) = volume.as_object_mut() {
            default_volume(volume);
        }
    }
}

/// A pod stays five minutes on a node that is not ready or not reachable, unless it says otherwise.
fn tolerate(spec: &mut Map<String, Value>) {
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    let Some(tolerations) = tolerations.as_array_mut() else { return };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = tolerations.iter().any(|toleration| {
            let matches_key = matches!(text(toleration, "/key"), own if own == key || own.is_empty());
            matches_key && matches!(text(toleration, "/effect"), "NoExecute" | "")
        });
        if !covered {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

fn default_container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
    let policy = if is_latest(image) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    if let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() {
        let requests = child(resources, "requests");
        for (name, amount) in limits {
            default(requests, &name, amount);
        }
    }
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            default(port, "protocol", "TCP");
            if let Some(number) = port.get("containerPort").filter(|_| host_network).cloned() {
                default(port, "hostPort", number);
            }
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef").and_then(Value::as_object_mut) {
            default(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) {
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                default(probe, field, value);
            }
            default_action(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        if let Some(hook) = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook)).and_then(Value::as_object_mut)
        {
            default_action(hook);
        }
    }
}

fn default_action(action: &mut Map<String, Value>) {
    if let Some(http) = action.get_mut("httpGet").and_then(Value::as_object_mut) {
        default(http, "path", "/");
        default(http, "scheme", "HTTP");
    }
    if let Some(grpc) = action.get_mut("grpc").and_then(Value::as_object_mut) {
        default(grpc, "service", "");
    }
}

/// Whether an image without a digest has the tag `latest`, or none.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn default_volume(volume: &mut Map<String, Value>) {
    if volume.len() == 1 && volume.contains_key("name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).and_then(Value::as_object_mut) {
            default(source, "defaultMode", 0o644);
        }
    }
    if let Some(host) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        default(host, "type", "");
    }
    if let Some(own) = volume.get_mut("downwardAPI") {
        default_items(own);
    }
    let sources = volume.get_mut("projected").and_then(|p| p.get_mut("sources")).and_then(Value::as_array_mut);
    for source in sources.into_iter().flatten() {
        if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
            default(token, "expirationSeconds", 3600);
        }
        if let Some(inner) = source.get_mut("downwardAPI") {
            default_items(inner);
        }
    }
}

fn default_items(downward: &mut Value) {
    for item in downward.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            default(field, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{default_pod, is_latest, new_pod};
    use serde_json::json;

    #[test]
    fn a_small_pod_is_completed() {
        let mut pod = json!({"spec": {"containers": [{"name": "a", "image": "busybox", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1"}}, "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}]}});
        default_pod(&mut pod);
        new_pod(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["restartPolicy"], "Always");
        assert_eq!(spec["terminationGracePeriodSeconds"], 30);
        assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
        let container = &spec["containers"][0];
        assert_eq!(container["imagePullPolicy"], "Always");
        assert_eq!(container["ports"][0]["protocol"], "TCP");
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(container["livenessProbe"]["httpGet"], json!({"port": 80, "path": "/", "scheme": "HTTP"}));
        assert_eq!(spec["volumes"][0]["emptyDir"], json!({}));
        assert_eq!(spec["volumes"][1]["secret"]["defaultMode"], 420);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
        let before = pod.clone();
        default_pod(&mut pod);
        assert_eq!(pod, before, "defaults do not move what is there");
    }

    #[test]
    fn tags() {
        for (image, latest) in [
            ("busybox", true),
            ("busybox:latest", true),
            ("busybox:1.36", false),
            ("host:5000/busybox", true),
            ("host:5000/busybox:1", false),
            ("busybox@sha256:00", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }
}
