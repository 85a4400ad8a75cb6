//! A pod's claims: what must be true of them before the pod can have a node, and on which nodes its volumes can be.

use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};

use crate::affinity;
use crate::snapshot::{Snapshot, claims_of};

/// What the pod's claims say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    /// Why the pod must wait or cannot run; a sentence.
    pub(crate) obstacle: Option<String>,
    /// Volumes the pod's node must reach.
    pub(crate) volumes: Vec<String>,
    /// Unbound claims that wait for a node to be chosen: (namespace, name, the node chosen before, if any).
    pub(crate) waiting: Vec<(String, String, Option<String>)>,
}

/// The annotation by which a scheduler tells the provisioner which node a claim's volume must be reachable from.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// Looks at every claim of the pod.
pub(crate) fn claims(snapshot: &Snapshot, pod: &Pod) -> Claims {
    let mut found = Claims::default();
    for (namespace, name) in claims_of(pod) {
        let Some(claim) = snapshot.claims.get(&(namespace.clone(), name.clone())) else {
            found
                .obstacle
                .get_or_insert(format!("persistentvolumeclaim \"{name}\" not found; create it, or correct the pod"));
            continue;
        };
        if claim.metadata.deletion_timestamp.is_some() {
            found.obstacle.get_or_insert(format!("persistentvolumeclaim \"{name}\" is being deleted"));
        } else if is_lost(claim) {
            found.obstacle.get_or_insert(format!("persistentvolumeclaim \"{name}\" lost its volume"));
        } else if let Some(volume) = bound_volume(claim) {
            found.volumes.push(volume.to_owned());
        } else if waits_for_consumer(snapshot, claim) {
            let annotations = claim.metadata.annotations.as_ref();
            let chosen = annotations.and_then(|annotations| annotations.get(SELECTED_NODE)).cloned();
            found.waiting.push((namespace, name, chosen));
        } else {
            let why = format!(
                "pod has unbound immediate PersistentVolumeClaims: \"{name}\"; its events say why (kubectl describe pvc {name})"
            );
            found.obstacle.get_or_insert(why);
        }
    }
    found
}

fn is_lost(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost")
}

fn bound_volume(claim: &PersistentVolumeClaim) -> Option<&str> {
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| bound && !name.is_empty())
}

fn waits_for_consumer(snapshot: &Snapshot, claim: &PersistentVolumeClaim) -> bool {
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    let class = class.and_then(|class| snapshot.classes.get(class));
    class.and_then(|class| class.volume_binding_mode.as_deref()) == Some("WaitForFirstConsumer")
}

/// Whether every volume can be used on this node.
pub(crate) fn reachable(snapshot: &Snapshot, volumes: &[String], node: &Node) -> bool {
    volumes.iter().filter_map(|name| snapshot.volumes.get(name)).all(|volume| {
        let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
        affinity.is_none_or(|selector| affinity::matches_any(selector, node))
    })
}

/// A claim with ReadWriteOncePod that another pod uses.
pub(crate) fn taken_by_another_pod(snapshot: &Snapshot, pod: &Pod) -> Option<String> {
    let in_use = |claim: &(String, String)| snapshot.nodes.values().any(|facts| facts.claims.contains(claim));
    claims_of(pod).into_iter().find_map(|claim| {
        let modes = snapshot.claims.get(&claim)?.spec.as_ref()?.access_modes.as_ref()?;
        let exclusive = modes.iter().any(|mode| mode == "ReadWriteOncePod");
        (exclusive && in_use(&claim)).then_some(claim.1)
    })
}
