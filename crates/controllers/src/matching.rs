//! Which existing volume fits a claim: the smallest that does.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::ResourceExt;

use crate::access::is_block;
use crate::quantity;

/// The bytes a claim asks for.
pub(crate) fn requested(claim: &PersistentVolumeClaim) -> u64 {
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    requests.and_then(|requests| requests.get("storage")).and_then(quantity::bytes).unwrap_or(0)
}

/// The bytes a volume has.
pub(crate) fn capacity(volume: &PersistentVolume) -> u64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    capacity.and_then(|capacity| capacity.get("storage")).and_then(quantity::bytes).unwrap_or(0)
}

/// Whether a volume is reserved for this claim: its reference names it, and its uid if it says one.
pub(crate) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    let named = reference.name.as_ref() == claim.metadata.name.as_ref()
        && reference.namespace.as_ref() == claim.metadata.namespace.as_ref();
    named && reference.uid.as_deref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// Why a volume cannot serve a claim; `None` when it can. `node` is where it must be reachable, if that is settled.
pub(crate) fn misfit(claim: &PersistentVolumeClaim, volume: &PersistentVolume, node: Option<&Node>) -> Option<String> {
    let (Some(wants), Some(has)) = (claim.spec.as_ref(), volume.spec.as_ref()) else {
        return Some("it has no specification".to_owned());
    };
    if volume.metadata.deletion_timestamp.is_some() {
        return Some("it is being deleted".to_owned());
    }
    let (asked, there) = (requested(claim), capacity(volume));
    if there < asked {
        return Some(format!("it has {} and not {}", quantity::quantity(there).0, quantity::quantity(asked).0));
    }
    let class = |name: Option<&String>| name.cloned().unwrap_or_default();
    if class(wants.storage_class_name.as_ref()) != class(has.storage_class_name.as_ref()) {
        return Some(format!("its class is \"{}\"", class(has.storage_class_name.as_ref())));
    }
    if is_block(wants.volume_mode.as_deref()) != is_block(has.volume_mode.as_deref()) {
        return Some(format!("its volume mode is {}", has.volume_mode.as_deref().unwrap_or("Filesystem")));
    }
    let offers = has.access_modes.as_deref().unwrap_or_default();
    let missing = wants.access_modes.iter().flatten().find(|mode| !offers.contains(mode));
    if let Some(mode) = missing {
        return Some(format!("it does not offer {mode}"));
    }
    if let Some(selector) = &wants.selector
        && !selects(selector, volume.labels())
    {
        return Some("its labels are not those that the claim selects".to_owned());
    }
    let affinity = has.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    if let (Some(required), Some(node)) = (affinity, node)
        && !required.node_selector_terms.iter().any(|term| reaches(term, node))
    {
        return Some(format!("it cannot be reached from node {}", node.name_any()));
    }
    None
}

/// The volume that a claim should be bound to: one reserved for it, or else the smallest free one that fits.
pub(crate) fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    node: Option<&Node>,
) -> Option<&'a Arc<PersistentVolume>> {
    let reserved = volumes.iter().find(|volume| is_for(volume, claim) && misfit(claim, volume, node).is_none());
    let free = |volume: &&Arc<PersistentVolume>| {
        volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none()) && misfit(claim, volume, node).is_none()
    };
    reserved.or_else(|| volumes.iter().filter(free).min_by_key(|volume| (capacity(volume), volume.name_any())))
}

/// One requirement of a label or node selector.
fn holds(operator: &str, values: &[String], actual: Option<&String>) -> bool {
    match (operator, actual) {
        ("In", actual) => actual.is_some_and(|value| values.contains(value)),
        ("NotIn", actual) => actual.is_none_or(|value| !values.contains(value)),
        ("Exists", actual) => actual.is_some(),
        ("DoesNotExist", actual) => actual.is_none(),
        ("Gt" | "Lt", Some(actual)) => {
            let (Ok(actual), Some(Ok(bound))) = (actual.parse::<i64>(), values.first().map(|v| v.parse::<i64>()))
            else {
                return false;
            };
            if operator == "Gt" { actual > bound } else { actual < bound }
        }
        _ => false,
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let values = requirement.values.as_deref().unwrap_or_default();
            holds(&requirement.operator, values, labels.get(&requirement.key))
        })
}

fn reaches(term: &k8s_openapi::api::core::v1::NodeSelectorTerm, node: &Node) -> bool {
    let labels = node.labels();
    let name = node.metadata.name.as_ref();
    let by_label = term.match_expressions.iter().flatten().all(|requirement| {
        let values = requirement.values.as_deref().unwrap_or_default();
        holds(&requirement.operator, values, labels.get(&requirement.key))
    });
    let by_field = term.match_fields.iter().flatten().all(|requirement| {
        let values = requirement.values.as_deref().unwrap_or_default();
        requirement.key == "metadata.name" && holds(&requirement.operator, values, name)
    });
    by_label && by_field
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut full = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}},
            "storageClassName": "slow"});
        merge(&mut full, spec);
        from_value(json!({"metadata": {"name": "data", "namespace": "ns", "uid": "u1"}, "spec": full})).unwrap()
    }

    fn volume(name: &str, spec: Value) -> Arc<PersistentVolume> {
        let mut full = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"], "capacity": {"storage": "10Gi"},
            "storageClassName": "slow"});
        merge(&mut full, spec);
        let labels = json!({"tier": "gold"});
        Arc::new(from_value(json!({"metadata": {"name": name, "labels": labels}, "spec": full})).unwrap())
    }

    fn merge(into: &mut Value, more: Value) {
        for (key, value) in more.as_object().unwrap() {
            into[key] = value.clone();
        }
    }

    #[test]
    fn each_reason_is_named() {
        let node: Node = from_value(json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}})).unwrap();
        let elsewhere = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["b"]}]}]}}});
        for (wants, has, why) in [
            (json!({}), json!({}), None),
            (json!({}), json!({"capacity": {"storage": "1Gi"}}), Some("it has 1Gi and not 5Gi")),
            (json!({}), json!({"storageClassName": ""}), Some("its class is \"\"")),
            (json!({"volumeMode": "Block"}), json!({}), Some("its volume mode is Filesystem")),
            (json!({"accessModes": ["ReadWriteMany"]}), json!({}), Some("it does not offer ReadWriteMany")),
            (json!({"selector": {"matchLabels": {"tier": "gold"}}}), json!({}), None),
            (
                json!({"selector": {"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["gold"]}]}}),
                json!({}),
                Some("its labels are not those that the claim selects"),
            ),
            (json!({}), elsewhere, Some("it cannot be reached from node n1")),
        ] {
            assert_eq!(misfit(&claim(wants), &volume("v", has), Some(&node)).as_deref(), why);
        }
    }

    #[test]
    fn the_smallest_free_one_wins_and_a_reserved_one_before_it() {
        let large = volume("a-large", json!({}));
        let small = volume("b-small", json!({"capacity": {"storage": "6Gi"}}));
        let taken = volume(
            "taken",
            json!({"claimRef": {"name": "other", "namespace": "ns"},
            "capacity": {"storage": "5Gi"}}),
        );
        let mut volumes = vec![large, small, taken];
        let name = |found: Option<&Arc<PersistentVolume>>| found.map(|volume| volume.name_any());
        assert_eq!(name(best(&claim(json!({})), &volumes, None)).as_deref(), Some("b-small"));
        volumes.push(volume("mine", json!({"claimRef": {"name": "data", "namespace": "ns"}})));
        assert_eq!(name(best(&claim(json!({})), &volumes, None)).as_deref(), Some("mine"));
        let foreign = volume("mine", json!({"claimRef": {"name": "data", "namespace": "ns", "uid": "u0"}}));
        assert!(!is_for(&foreign, &claim(json!({}))), "an earlier claim of the same name");
        assert_eq!(best(&claim(json!({"storageClassName": "x"})), &volumes, None), None);
    }
}
