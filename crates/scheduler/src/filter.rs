//! Why a node cannot run a pod, in the words Kubernetes uses.

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};

use crate::affinity;
use crate::snapshot::{NodeFacts, requests};

/// The first reason, or none.
pub(crate) fn rejects(pod: &Pod, facts: &NodeFacts) -> Option<String> {
    let node = facts.node.as_ref();
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    if node.metadata.deletion_timestamp.is_some() {
        return Some("node(s) were being deleted".into());
    }
    if is_cordoned(node) && !tolerates_cordon(tolerations) {
        return Some("node(s) were unschedulable".into());
    }
    if !is_ready(node) {
        return Some("node(s) were not ready".into());
    }
    if let Some(taint) = untolerated(node, tolerations) {
        return Some(format!(
            "node(s) had untolerated taint {{{}: {}}}",
            taint.key,
            taint.value.as_deref().unwrap_or("")
        ));
    }
    if !affinity::satisfied(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".into());
    }
    lacks(pod, facts)
}

/// A resource of which too little is left.
fn lacks(pod: &Pod, facts: &NodeFacts) -> Option<String> {
    let pods = facts.allocatable("pods") / 1000;
    if pods > 0 && facts.pods as i128 >= pods {
        return Some("Too many pods".into());
    }
    requests(pod).into_iter().filter(|(_, wanted)| *wanted > 0).find_map(|(name, wanted)| {
        let used = facts.requested.get(&name).copied().unwrap_or(0);
        (used + wanted > facts.allocatable(&name)).then(|| format!("Insufficient {name}"))
    })
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
}

fn tolerates_cordon(tolerations: &[Toleration]) -> bool {
    let cordon =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Taint::default() };
    tolerations.iter().any(|toleration| tolerates(toleration, &cordon))
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn untolerated<'a>(node: &'a Node, tolerations: &[Toleration]) -> Option<&'a Taint> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let keeps_away = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    taints.iter().filter(keeps_away).find(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

/// A toleration without key tolerates everything, one without effect every effect (Kubernetes: taints and tolerations).
fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().filter(|effect| !effect.is_empty());
    let key = toleration.key.as_deref().filter(|key| !key.is_empty());
    let exists = toleration.operator.as_deref() == Some("Exists");
    let value = toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("");
    effect.is_none_or(|effect| effect == taint.effect)
        && key.map_or(exists, |key| key == taint.key)
        && (exists || value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: Option<&str>, operator: &str, value: Option<&str>) -> Toleration {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Toleration { key: owned(key), operator: Some(operator.into()), value: owned(value), ..Toleration::default() }
    }

    #[test]
    fn tolerations_mean_what_kubernetes_says() {
        let taint =
            Taint { key: "gpu".into(), value: Some("yes".into()), effect: "NoSchedule".into(), ..Taint::default() };
        assert!(tolerates(&toleration(Some("gpu"), "Equal", Some("yes")), &taint));
        assert!(!tolerates(&toleration(Some("gpu"), "Equal", Some("no")), &taint));
        assert!(tolerates(&toleration(Some("gpu"), "Exists", None), &taint));
        assert!(tolerates(&toleration(None, "Exists", None), &taint));
        assert!(!tolerates(&toleration(None, "Equal", None), &taint));
    }
}
