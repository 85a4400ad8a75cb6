//! The decision for one pod: a node, or one sentence why not.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::affinity;
use crate::filter;
use crate::snapshot::{NodeFacts, Snapshot, requests};
use crate::volumes::{self, Claims};

/// What to do with a pod.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Bind it to this node.
    Bind(String),
    /// Its claims wait for a consumer: tell the provisioner this node; the pod is bound once they are.
    SelectNode {
        /// The node.
        node: String,
        /// The claims, as (namespace, name), that do not name it yet.
        claims: Vec<(String, String)>,
    },
    /// Nothing fits, and this is why.
    Unschedulable(String),
}

/// Decides. The same snapshot and pod always give the same answer.
pub(crate) fn decide(snapshot: &Snapshot, pod: &Pod) -> Decision {
    if let Some(unserved) = asks_for_what_is_not_served(pod) {
        return Decision::Unschedulable(unserved);
    }
    let claims = volumes::claims(snapshot, pod);
    if let Some(obstacle) = claims.obstacle {
        return Decision::Unschedulable(obstacle);
    }
    if let Some(claim) = volumes::taken_by_another_pod(snapshot, pod) {
        let why = format!("persistentvolumeclaim \"{claim}\" has access mode ReadWriteOncePod and another pod uses it");
        return Decision::Unschedulable(why);
    }
    match choose(snapshot, pod, &claims) {
        Ok(node) if claims.waiting.is_empty() => Decision::Bind(node),
        Ok(node) => {
            let untold = claims.waiting.into_iter().filter(|(_, _, chosen)| chosen.as_ref() != Some(&node));
            let claims = untold.map(|(namespace, name, _)| (namespace, name)).collect();
            Decision::SelectNode { node, claims }
        }
        Err(why) => Decision::Unschedulable(why),
    }
}

/// The best node that nothing rejects. A node chosen before for a claim is kept while it fits.
fn choose(snapshot: &Snapshot, pod: &Pod, claims: &Claims) -> Result<String, String> {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut fitting: Vec<(&String, &NodeFacts)> = Vec::new();
    for (name, facts) in &snapshot.nodes {
        let reason = filter::rejects(pod, facts).or_else(|| {
            let reachable = volumes::reachable(snapshot, &claims.volumes, &facts.node);
            (!reachable).then(|| "node(s) had volume node affinity conflict".to_owned())
        });
        match reason {
            Some(reason) => *reasons.entry(reason).or_default() += 1,
            None => fitting.push((name, facts)),
        }
    }
    let chosen_before = |name: &String| claims.waiting.iter().any(|(_, _, chosen)| chosen.as_ref() == Some(name));
    if let Some((name, _)) = fitting.iter().find(|(name, _)| chosen_before(name)) {
        return Ok((*name).clone());
    }
    let best = fitting.into_iter().max_by_key(|(name, facts)| (score(pod, facts), tie(pod, name)));
    best.map(|(name, _)| name.clone()).ok_or_else(|| no_node(snapshot.nodes.len(), &reasons))
}

/// Preferences first, then the node with the most left of what the pod asks for.
fn score(pod: &Pod, facts: &NodeFacts) -> (i64, i128) {
    let mut wanted = requests(pod);
    for resource in ["cpu", "memory"] {
        wanted.entry(resource.to_owned()).or_default();
    }
    let free = wanted.iter().map(|(name, amount)| {
        let offered = facts.allocatable(name);
        let used = facts.requested.get(name).copied().unwrap_or(0) + amount;
        if offered > 0 { (offered - used).max(0) * 1000 / offered } else { 0 }
    });
    (affinity::preference(pod, &facts.node), free.sum::<i128>() - facts.pods as i128)
}

/// Equal nodes are taken in an order that differs from pod to pod, so that load spreads.
fn tie(pod: &Pod, node: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (pod.uid(), node).hash(&mut hasher);
    hasher.finish()
}

fn no_node(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "0/0 nodes are available: no node has registered; start an agent".to_owned();
    }
    let reasons: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

/// What this scheduler does not do is said, not ignored: a pod placed against its own rules would be worse.
fn asks_for_what_is_not_served(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let affinity = spec.affinity.as_ref();
    let between_pods = affinity.is_some_and(|affinity| {
        let required =
            affinity.pod_affinity.as_ref().and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        let apart = affinity
            .pod_anti_affinity
            .as_ref()
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        required.is_some_and(|terms| !terms.is_empty()) || apart.is_some_and(|terms| !terms.is_empty())
    });
    if between_pods {
        let why = "required pod affinity and anti-affinity are not served by this scheduler; remove them, or use \
                   nodeSelector";
        return Some(why.into());
    }
    let spread = spec.topology_spread_constraints.iter().flatten();
    let strict = spread.into_iter().any(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
    strict.then(|| {
        "topologySpreadConstraints with DoNotSchedule are not served by this scheduler; use ScheduleAnyway".into()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim};
    use k8s_openapi::api::storage::v1::StorageClass;
    use serde_json::json;

    use super::*;

    fn node(name: &str, cpu: &str) -> Arc<Node> {
        let value = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {
                "allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(spec: serde_json::Value) -> Pod {
        let value = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": spec});
        serde_json::from_value(value).unwrap()
    }

    fn wants(cpu: &str) -> Pod {
        pod(json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}))
    }

    fn snapshot(nodes: &[Arc<Node>]) -> Snapshot {
        Snapshot::new(nodes.to_vec(), &[], &BTreeMap::new())
    }

    #[test]
    fn a_pod_goes_where_it_fits() {
        let snapshot = snapshot(&[node("small", "1"), node("large", "4")]);
        assert_eq!(decide(&snapshot, &wants("2")), Decision::Bind("large".into()));
    }

    #[test]
    fn why_not_is_one_sentence() {
        let snapshot = snapshot(&[node("a", "1"), node("b", "1")]);
        let why = "0/2 nodes are available: 2 Insufficient cpu.";
        assert_eq!(decide(&snapshot, &wants("2")), Decision::Unschedulable(why.into()));
        let Decision::Unschedulable(why) = decide(&Snapshot::default(), &wants("1")) else {
            panic!("there is no node")
        };
        assert!(why.contains("no node has registered"));
    }

    #[test]
    fn pods_that_are_there_count() {
        let mut running = wants("3");
        running.spec.as_mut().unwrap().node_name = Some("a".into());
        let nodes = vec![node("a", "4"), node("b", "4")];
        let snapshot = Snapshot::new(nodes, &[Arc::new(running)], &BTreeMap::new());
        assert_eq!(decide(&snapshot, &wants("2")), Decision::Bind("b".into()));
    }

    #[test]
    fn a_missing_claim_is_named() {
        let pod = pod(json!({
            "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}],
        }));
        let Decision::Unschedulable(why) = decide(&snapshot(&[node("a", "1")]), &pod) else {
            panic!("it has no claim")
        };
        assert!(why.contains("\"gone\" not found"), "{why}");
    }

    #[test]
    fn a_claim_that_waits_for_its_consumer_gets_a_node() {
        let mut snapshot = snapshot(&[node("a", "1")]);
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "d", "namespace": "default"}, "spec": {"storageClassName": "late"},
        }))
        .unwrap();
        let class: StorageClass = serde_json::from_value(json!({
            "metadata": {"name": "late"}, "provisioner": "p", "volumeBindingMode": "WaitForFirstConsumer",
        }))
        .unwrap();
        snapshot.claims.insert(("default".into(), "d".into()), Arc::new(claim));
        snapshot.classes.insert("late".into(), Arc::new(class));
        let pod = pod(json!({
            "containers": [{"name": "c"}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "d"}}],
        }));
        let claims = vec![("default".to_owned(), "d".to_owned())];
        assert_eq!(decide(&snapshot, &pod), Decision::SelectNode { node: "a".into(), claims });
    }

    #[test]
    fn what_is_not_served_is_said() {
        let pod = pod(json!({
            "containers": [{"name": "c"}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "x"}]}},
        }));
        let Decision::Unschedulable(why) = decide(&snapshot(&[node("a", "1")]), &pod) else {
            panic!("it is not served")
        };
        assert!(why.contains("not served"), "{why}");
    }
}
