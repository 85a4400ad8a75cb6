//! The life of nodes: one whose lease is not renewed is silent, and no pod is placed there until it speaks again.

use std::time::Duration;

use cairn_events::Severity;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::queue::Verdict;
use crate::reconcile::{Context, Look, patch};
use crate::world::NODE_LEASES;

/// A node that did not renew its lease for this long is silent.
const GRACE: Duration = Duration::from_secs(40);

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// What is to be done about a node.
#[derive(Debug, PartialEq)]
struct Step {
    /// Its Ready condition becomes Unknown.
    silence: bool,
    /// Its taints become these.
    taints: Option<Vec<Taint>>,
    /// When it must be looked at again, if nothing is heard of it.
    again: Duration,
}

/// Looks at a node.
pub(crate) async fn look(context: &Context, name: &str) -> Look {
    let Some(node) = context.world.node(name) else { return Ok(Verdict::Settled) };
    let lease = context.world.leases.get(&ObjectRef::new(name).within(NODE_LEASES));
    let step = decide(&node, lease.as_deref(), Timestamp::now());
    let nodes: Api<Node> = context.cluster();
    if step.silence {
        let change = Patch::Strategic(json!({"status": {"conditions": [condition()]}}));
        nodes.patch_status(name, &PatchParams::default(), &change).await?;
        let message =
            format!("Node {name} status is now: NodeNotReady; its agent stopped renewing its lease, start it again");
        context.say(node.as_ref(), Severity::Warning, "NodeNotReady", &message).await;
    } else if let Some(taints) = step.taints {
        patch(&nodes, node.as_ref(), json!({"spec": {"taints": taints}})).await?;
    }
    Ok(Verdict::After(step.again))
}

fn condition() -> Value {
    let now = Timestamp::now();
    let message = "the node's agent stopped renewing its lease";
    json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": message,
        "lastTransitionTime": now, "lastHeartbeatTime": now})
}

fn decide(node: &Node, lease: Option<&Lease>, now: Timestamp) -> Step {
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref()).map(|time| time.0);
    let heard = renewed.or_else(|| node.creation_timestamp().map(|time| time.0)).unwrap_or(now);
    let age = Duration::try_from(now.duration_since(heard)).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|one| one.type_ == "Ready").map_or("", |one| one.status.as_str());
    let silent = age >= GRACE;
    let again = if silent { GRACE } else { GRACE - age + Duration::from_millis(100) };
    let wanted = match ready {
        "Unknown" => Some(UNREACHABLE),
        "False" => Some(NOT_READY),
        _ => None,
    };
    Step { silence: silent && ready != "Unknown", taints: taints(node, wanted), again }
}

/// The node's taints with the one that fits its condition, if they differ from what it has.
fn taints(node: &Node, wanted: Option<&str>) -> Option<Vec<Taint>> {
    let has = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let ours = |taint: &Taint| taint.key == UNREACHABLE || taint.key == NOT_READY;
    let mut should: Vec<Taint> =
        has.iter().filter(|taint| !ours(taint) || Some(taint.key.as_str()) == wanted).cloned().collect();
    if let Some(key) = wanted
        && !should.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule")
    {
        should.push(Taint { key: key.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() });
    }
    (should != has).then_some(should)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reconcile::given::object;

    fn node(ready: &str, taints: Value) -> Arc<Node> {
        object(
            json!({"metadata": {"name": "n", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
        )
    }

    fn lease(at: &str) -> Arc<Lease> {
        object(json!({"metadata": {"name": "n"}, "spec": {"renewTime": at}}))
    }

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().unwrap()
    }

    #[test]
    fn a_stale_lease_silences_a_node_once() {
        let fresh = lease("2026-01-01T00:09:50.000000Z");
        let stale = lease("2026-01-01T00:09:00.000000Z");
        let step = decide(&node("True", json!([])), Some(&fresh), now());
        assert!(!step.silence && step.again > Duration::from_secs(29) && step.again < Duration::from_secs(31));
        assert!(decide(&node("True", json!([])), Some(&stale), now()).silence);
        assert!(decide(&node("True", json!([])), None, now()).silence, "it never renewed one");
        assert!(!decide(&node("Unknown", json!([])), Some(&stale), now()).silence);
    }

    #[test]
    fn taints_follow_the_condition_and_leave_others_alone() {
        let fresh = lease("2026-01-01T00:09:50.000000Z");
        let other = json!({"key": "gpu", "effect": "NoSchedule"});
        let taints = |ready: &str, has: Value| {
            let step = decide(&node(ready, has), Some(&fresh), now());
            step.taints.map(|all| all.into_iter().map(|taint| taint.key).collect::<Vec<_>>())
        };
        assert_eq!(taints("True", json!([other])), None);
        assert_eq!(taints("Unknown", json!([other])).unwrap(), ["gpu", UNREACHABLE]);
        let unreachable = json!({"key": UNREACHABLE, "effect": "NoSchedule"});
        assert_eq!(taints("Unknown", json!([unreachable])), None);
        assert_eq!(taints("False", json!([other, unreachable])).unwrap(), ["gpu", NOT_READY]);
        assert_eq!(taints("True", json!([other, unreachable])).unwrap(), ["gpu"]);
    }
}
