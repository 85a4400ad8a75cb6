//! Node selectors and node affinity: which labels a node must have, or had better have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use kube::ResourceExt;

/// Whether the node satisfies the pod's `nodeSelector` and its required node affinity.
pub(crate) fn satisfied(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let labels = node.labels();
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|selector| matches_any(selector, node))
}

/// The sum of the weights of the preferences that the node meets.
pub(crate) fn preference(pod: &Pod, node: &Node) -> i64 {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let met = preferred.into_iter().flatten().filter(|term| matches_term(&term.preference, node));
    met.map(|term| i64::from(term.weight)).sum()
}

/// Terms are alternatives.
pub(crate) fn matches_any(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| matches_term(term, node))
}

/// Requirements of a term hold together; a term without any matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    let name = BTreeMap::from([("metadata.name".to_owned(), node.name_any())]);
    let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    !empty
        && expressions.into_iter().all(|requirement| holds(requirement, node.labels()))
        && fields.into_iter().all(|requirement| holds(requirement, &name))
}

fn holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.contains(value));
    let compared = |larger: bool| {
        let number = value.and_then(|value| value.parse::<i64>().ok());
        let bound = values.first().and_then(|value| value.parse::<i64>().ok());
        number.zip(bound).is_some_and(|(number, bound)| if larger { number > bound } else { number < bound })
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared(true),
        "Lt" => compared(false),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = Some(values.iter().map(|value| (*value).to_owned()).collect());
        NodeSelectorRequirement { key: "gpus".into(), operator: operator.into(), values }
    }

    #[test]
    fn operators_mean_what_kubernetes_says() {
        let labels = BTreeMap::from([("gpus".to_owned(), "4".to_owned())]);
        let none = BTreeMap::new();
        assert!(holds(&requirement("In", &["2", "4"]), &labels));
        assert!(!holds(&requirement("NotIn", &["4"]), &labels));
        assert!(holds(&requirement("NotIn", &["4"]), &none));
        assert!(holds(&requirement("Gt", &["3"]), &labels));
        assert!(!holds(&requirement("Lt", &["4"]), &labels));
        assert!(holds(&requirement("DoesNotExist", &[]), &none));
        assert!(!holds(&requirement("Sounds", &[]), &labels), "an unknown operator holds for nobody");
    }
}
