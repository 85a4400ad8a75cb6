//! Pods that nobody can end any more: their node does not exist.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::reflector::ObjectRef;

use crate::queue::Verdict;
use crate::reconcile::{Context, Look};
use crate::world::node_of;

/// A node that was just made may be seen later than its pods.
const PATIENCE: Duration = Duration::from_secs(40);

/// Looks at a pod: one whose node is gone is removed, so that whoever made it can make another.
pub(crate) async fn look(context: &Context, namespace: &str, name: &str) -> Look {
    let world = &context.world;
    let Some(pod) = world.pods.get(&ObjectRef::new(name).within(namespace)) else { return Ok(Verdict::Settled) };
    let orphaned = node_of(&pod).filter(|node| world.node(node).is_none());
    let Some(node) = orphaned else { return Ok(Verdict::Settled) };
    let wait = patience(&pod, Timestamp::now());
    if !wait.is_zero() {
        return Ok(Verdict::After(wait));
    }
    if context.cluster::<Node>().get_opt(node).await?.is_some() {
        return Ok(Verdict::After(PATIENCE));
    }
    tracing::info!(pod = name, namespace, node, "the pod's node does not exist; it is removed");
    let exactly = Preconditions { uid: pod.uid(), resource_version: None };
    let params =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(exactly), ..DeleteParams::default() };
    context.within::<Pod>(namespace).delete(name, &params).await?;
    Ok(Verdict::Settled)
}

/// How long a pod is still given for its node to appear.
fn patience(pod: &Pod, now: Timestamp) -> Duration {
    if pod.metadata.deletion_timestamp.is_some() {
        return Duration::ZERO;
    }
    let born = pod.creation_timestamp().map_or(now, |time| time.0);
    PATIENCE.saturating_sub(Duration::try_from(now.duration_since(born)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::reconcile::given::object;

    #[test]
    fn a_young_pod_may_wait_for_its_node() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let pod = |born: &str| object::<Pod>(json!({"metadata": {"name": "p", "creationTimestamp": born}}));
        assert_eq!(patience(&pod("2026-01-01T00:00:50Z"), now), Duration::from_secs(30));
        assert_eq!(patience(&pod("2026-01-01T00:00:00Z"), now), Duration::ZERO);
    }
}
