//! The cluster as the scheduler sees it at one moment: plain objects, looked up by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use crate::quantity;

/// Everything a decision may depend on.
#[derive(Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: BTreeMap<String, NodeFacts>,
    pub(crate) claims: BTreeMap<(String, String), Arc<PersistentVolumeClaim>>,
    pub(crate) volumes: BTreeMap<String, Arc<PersistentVolume>>,
    pub(crate) classes: BTreeMap<String, Arc<StorageClass>>,
}

/// A node, and what runs on it.
pub(crate) struct NodeFacts {
    pub(crate) node: Arc<Node>,
    /// Requested by its pods, in thousandths, by resource.
    pub(crate) requested: Resources,
    pub(crate) pods: usize,
    /// Claims that its pods use, as (namespace, name).
    pub(crate) claims: Vec<(String, String)>,
}

/// Amounts in thousandths by resource name.
pub(crate) type Resources = BTreeMap<String, i128>;

impl Snapshot {
    /// Builds one. A pod counts on the node it is bound to unless it has ended.
    pub(crate) fn new(nodes: Vec<Arc<Node>>, pods: &[Arc<Pod>], assumed: &BTreeMap<String, String>) -> Self {
        let facts = |node| NodeFacts { node, requested: Resources::new(), pods: 0, claims: Vec::new() };
        let nodes = nodes.into_iter().map(|node| (node.name_any(), facts(node))).collect();
        let mut snapshot = Self { nodes, ..Self::default() };
        for pod in pods.iter().filter(|pod| !has_ended(pod)) {
            let bound = node_name(pod).map(str::to_owned);
            let node = bound.or_else(|| pod.uid().and_then(|uid| assumed.get(&uid).cloned()));
            if let Some(facts) = node.and_then(|name| snapshot.nodes.get_mut(&name)) {
                facts.add(pod);
            }
        }
        snapshot
    }
}

impl NodeFacts {
    /// Counts one more pod.
    pub(crate) fn add(&mut self, pod: &Pod) {
        self.pods += 1;
        for (name, amount) in requests(pod) {
            *self.requested.entry(name).or_default() += amount;
        }
        self.claims.extend(claims_of(pod));
    }

    /// What the node offers, in thousandths.
    pub(crate) fn allocatable(&self, resource: &str) -> i128 {
        let status = self.node.status.as_ref();
        let offered = status.and_then(|status| status.allocatable.as_ref().or(status.capacity.as_ref()));
        offered.and_then(|offered| offered.get(resource)).map_or(0, |amount| quantity::milli(&amount.0))
    }
}

/// The node a pod is bound to.
pub(crate) fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// Ended pods hold nothing.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a pod asks for: the sum of its containers, or its largest init container, whichever is more.
pub(crate) fn requests(pod: &Pod) -> Resources {
    let Some(spec) = &pod.spec else { return Resources::new() };
    let mut sum = Resources::new();
    for container in &spec.containers {
        for (name, amount) in container_requests(container) {
            *sum.entry(name).or_default() += amount;
        }
    }
    for container in spec.init_containers.iter().flatten() {
        for (name, amount) in container_requests(container) {
            let entry = sum.entry(name).or_default();
            *entry = (*entry).max(amount);
        }
    }
    for (name, amount) in spec.overhead.iter().flatten() {
        *sum.entry(name.clone()).or_default() += quantity::milli(&amount.0);
    }
    sum
}

/// A limit without a request is a request (Kubernetes: defaulting of requests).
fn container_requests(container: &k8s_openapi::api::core::v1::Container) -> Resources {
    let Some(resources) = &container.resources else { return Resources::new() };
    let limits = resources.limits.iter().flatten();
    let requests = resources.requests.iter().flatten();
    limits.chain(requests).map(|(name, amount)| (name.clone(), quantity::milli(&amount.0))).collect()
}

/// The claims a pod mounts, by (namespace, name); a generic ephemeral volume's claim is named after pod and volume.
pub(crate) fn claims_of(pod: &Pod) -> Vec<(String, String)> {
    let namespace = pod.namespace().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let direct = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
            let ephemeral = volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name_any(), volume.name));
            direct.or(ephemeral).map(|name| (namespace.clone(), name))
        })
        .collect()
}
