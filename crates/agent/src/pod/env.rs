//! A container's environment and command line: references resolved, `$(NAME)` expanded. Pure: the config maps and
//! secrets it may need are given.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::spec;
use crate::quantity;

/// Config maps and secrets of the pod's namespace that exist, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// What the pod's own fields cannot tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) pod_addresses: Vec<String>,
    pub(crate) host_address: String,
    /// What "no limit" means on this node.
    pub(crate) cpu_milli: i128,
    pub(crate) memory_bytes: i128,
}

/// A reference that leads nowhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{kind} \"{name}\" not found; create it in namespace {namespace}, or mark the reference optional")]
    Missing { kind: &'static str, name: String, namespace: String },
    #[error("{kind} \"{name}\" has no key \"{key}\"; add it, or mark the reference optional")]
    MissingKey { kind: &'static str, name: String, key: String },
    #[error("{kind} \"{name}\": the value of \"{key}\" is not text")]
    NotText { kind: &'static str, name: String, key: String },
    #[error("fieldPath \"{0}\" is not supported in an environment variable")]
    Field(String),
    #[error("resource \"{0}\" is not supported in an environment variable")]
    Resource(String),
}

/// Names of the config maps and secrets that a container's environment refers to.
pub(crate) fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|reference| reference.name.clone()));
    }
    (config_maps, secrets)
}

/// The environment in the order of its definition; a later definition of a name wins.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    around: &Surroundings,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut variables: Vec<(String, String)> = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in bulk(pod, from, sources)? {
            set(&mut variables, format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &variables)),
            (None, Some(source)) => lookup(pod, container, source, sources, around)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut variables, variable.name.clone(), value);
        }
    }
    Ok(variables)
}

fn set(variables: &mut Vec<(String, String)>, name: String, value: String) {
    variables.retain(|(old, _)| *old != name);
    variables.push((name, value));
}

/// Every key of a config map or secret.
fn bulk(
    pod: &Pod,
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    sources: &Sources,
) -> Result<BTreeMap<String, String>, ConfigError> {
    if let Some(reference) = &from.config_map_ref {
        return match sources.config_maps.get(&reference.name) {
            Some(map) => Ok(map.data.clone().unwrap_or_default()),
            None if reference.optional == Some(true) => Ok(BTreeMap::new()),
            None => Err(missing(pod, "configmap", &reference.name)),
        };
    }
    let Some(reference) = &from.secret_ref else { return Ok(BTreeMap::new()) };
    match sources.secrets.get(&reference.name) {
        Some(secret) => {
            let data = secret.data.iter().flatten();
            Ok(data.filter_map(|(key, value)| Some((key.clone(), String::from_utf8(value.0.clone()).ok()?))).collect())
        }
        None if reference.optional == Some(true) => Ok(BTreeMap::new()),
        None => Err(missing(pod, "secret", &reference.name)),
    }
}

fn lookup(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
    around: &Surroundings,
) -> Result<Option<String>, ConfigError> {
    if let Some(reference) = &source.field_ref {
        return field(pod, reference, around).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        return resource(pod, container, reference, around).map(Some);
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = sources.config_maps.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(missing(pod, "configmap", &reference.name)) };
        };
        let value = map.data.as_ref().and_then(|data| data.get(&reference.key)).cloned();
        return keyed(value, optional, "configmap", &reference.name, &reference.key);
    }
    let Some(reference) = &source.secret_key_ref else { return Ok(Some(String::new())) };
    let optional = reference.optional == Some(true);
    let Some(secret) = sources.secrets.get(&reference.name) else {
        return if optional { Ok(None) } else { Err(missing(pod, "secret", &reference.name)) };
    };
    let value = match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
        Some(bytes) => Some(String::from_utf8(bytes.0.clone()).map_err(|_| ConfigError::NotText {
            kind: "secret",
            name: reference.name.clone(),
            key: reference.key.clone(),
        })?),
        None => None,
    };
    keyed(value, optional, "secret", &reference.name, &reference.key)
}

fn keyed(
    value: Option<String>,
    optional: bool,
    kind: &'static str,
    name: &str,
    key: &str,
) -> Result<Option<String>, ConfigError> {
    match value {
        None if !optional => Err(ConfigError::MissingKey { kind, name: name.to_owned(), key: key.to_owned() }),
        value => Ok(value),
    }
}

fn missing(pod: &Pod, kind: &'static str, name: &str) -> ConfigError {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    ConfigError::Missing { kind, name: name.to_owned(), namespace }
}

/// A field of the pod, for environment variables and downward files.
pub(crate) fn field(pod: &Pod, reference: &ObjectFieldSelector, around: &Surroundings) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let pod_spec = pod.spec.as_ref();
    let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
    let path = reference.field_path.as_str();
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
        Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default())
    };
    match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => Ok(listing(meta.labels.as_ref())),
        "metadata.annotations" => Ok(listing(meta.annotations.as_ref())),
        "spec.nodeName" => text(pod_spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(pod_spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" | "status.hostIPs" => Ok(around.host_address.clone()),
        "status.podIP" => Ok(around.pod_addresses.first().cloned().unwrap_or_default()),
        "status.podIPs" => Ok(around.pod_addresses.join(",")),
        _ => {
            let inside = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
            if let Some(key) = inside("metadata.labels['") {
                return entry(&meta.labels, key);
            }
            if let Some(key) = inside("metadata.annotations['") {
                return entry(&meta.annotations, key);
            }
            Err(ConfigError::Field(path.to_owned()))
        }
    }
}

fn listing(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}\n"));
    lines.collect()
}

/// A request or limit of a container, in units of the divisor, rounded up.
pub(crate) fn resource(
    pod: &Pod,
    container: &Container,
    reference: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, ConfigError> {
    let named = reference.container_name.as_deref().and_then(|name| {
        let pod_spec = pod.spec.as_ref()?;
        Some(spec::container(pod_spec, name)?.1)
    });
    let unknown = || ConfigError::Resource(reference.resource.clone());
    let (group, kind) = reference.resource.split_once('.').ok_or_else(unknown)?;
    let resources = named.unwrap_or(container).resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let list = match group {
        "limits" => limits,
        "requests" => resources.and_then(|resources| resources.requests.as_ref()).or(limits),
        _ => return Err(unknown()),
    };
    let all = match kind {
        "cpu" => around.cpu_milli,
        "memory" => around.memory_bytes * 1000,
        _ => 0,
    };
    let asked = list.and_then(|list| list.get(kind)).and_then(quantity::milli);
    let value = asked.unwrap_or(if group == "limits" { all } else { 0 });
    let whole = Quantity("1".into());
    let divisor = reference.divisor.as_ref().filter(|divisor| divisor.0 != "0").unwrap_or(&whole);
    let divisor = quantity::milli(divisor).filter(|&divisor| divisor > 0).ok_or_else(unknown)?;
    Ok((value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)).to_string())
}

/// `$(NAME)` becomes the variable's value; unknown names and `$$(NAME)` stay, the latter without its first dollar.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            out.push('$');
            rest = tail;
            continue;
        }
        let name = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name.and_then(|(name, tail)| Some((variables.iter().find(|(known, _)| known == name)?, tail))) {
            Some(((_, value), tail)) => {
                out.push_str(value);
                rest = tail;
            }
            None => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::{ConfigError, Sources, Surroundings, environment, expand};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "k1", "containers": [container]},
        }))
        .expect("a pod")
    }

    fn resolve(container: serde_json::Value) -> Result<Vec<(String, String)>, ConfigError> {
        let pod = pod(container);
        let mut sources = Sources::default();
        let map = json!({"data": {"color": "red", "size": "9"}});
        sources.config_maps.insert("cm".into(), serde_json::from_value(map).expect("a config map"));
        let secret = json!({"data": {"token": "aHVudGVyMg=="}});
        sources.secrets.insert("s".into(), serde_json::from_value(secret).expect("a secret"));
        let around = Surroundings {
            pod_addresses: vec!["10.88.0.9".into()],
            host_address: "192.0.2.1".into(),
            cpu_milli: 2000,
            memory_bytes: 1 << 30,
        };
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        environment(&pod, container, &sources, &around)
    }

    fn values(pairs: Vec<(String, String)>) -> Vec<String> {
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn references_and_expansion() {
        let variables = resolve(json!({
            "name": "a",
            "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}],
            "env": [
                {"name": "PLAIN", "value": "x"},
                {"name": "BOTH", "value": "$(PLAIN)-$(CM_color)-$(NONE)-$$(PLAIN)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
                {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k", "optional": true}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
            ],
        }))
        .expect("all found");
        assert_eq!(
            values(variables),
            [
                "CM_color=red",
                "CM_size=9",
                "PLAIN=x",
                "BOTH=x-red-$(NONE)-$(PLAIN)",
                "IP=10.88.0.9",
                "APP=web",
                "TOKEN=hunter2",
                "CPU=2000",
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let missing = json!({"name": "a", "env": [{"name": "X",
            "valueFrom": {"configMapKeyRef": {"name": "gone", "key": "k"}}}]});
        let error = resolve(missing).expect_err("it is not there");
        assert!(error.to_string().contains("configmap \"gone\" not found; create it in namespace n"), "{error}");
        let key =
            json!({"name": "a", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]});
        assert!(matches!(resolve(key), Err(ConfigError::MissingKey { .. })));
    }

    #[test]
    fn dollars_that_mean_nothing_stay() {
        let variables = [("A".to_owned(), "1".to_owned())];
        for (text, expected) in [("$(A)$A$", "1$A$"), ("$$(A)", "$(A)"), ("$(A", "$(A"), ("$$$(A)", "$1")] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }
}
