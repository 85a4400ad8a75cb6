//! The world as the watches show it: one store for each kind, shared by all controllers.
//!
//! A store lags behind what was just written. Decisions made from it must come to nothing when they were made before;
//! what cannot be taken back is checked with the server first.

use cairn_events::WatchBackoff;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::queue::Queue;
use crate::route::{Key, Routed};

/// Where nodes renew their leases.
pub(crate) const NODE_LEASES: &str = "kube-node-lease";

/// One store for each kind.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) claims: Store<PersistentVolumeClaim>,
    pub(crate) volumes: Store<PersistentVolume>,
    pub(crate) classes: Store<StorageClass>,
    pub(crate) attachments: Store<VolumeAttachment>,
    pub(crate) pods: Store<Pod>,
    pub(crate) nodes: Store<Node>,
    pub(crate) namespaces: Store<Namespace>,
    pub(crate) drivers: Store<CSIDriver>,
    pub(crate) csi_nodes: Store<CSINode>,
    pub(crate) leases: Store<Lease>,
}

impl World {
    /// Starts the watches; each change adds what it concerns to the queue.
    pub(crate) fn follow(client: &Client, queue: &Arc<Queue<Key>>, tasks: &mut JoinSet<()>) -> Self {
        let (claims, claims_writer) = reflector::store();
        let (volumes, volumes_writer) = reflector::store();
        let (classes, classes_writer) = reflector::store();
        let (attachments, attachments_writer) = reflector::store();
        let (pods, pods_writer) = reflector::store();
        let (nodes, nodes_writer) = reflector::store();
        let (namespaces, namespaces_writer) = reflector::store();
        let (drivers, drivers_writer) = reflector::store();
        let (csi_nodes, csi_nodes_writer) = reflector::store();
        let (leases, leases_writer) = reflector::store();
        let world = Self { claims, volumes, classes, attachments, pods, nodes, namespaces, drivers, csi_nodes, leases };
        follow(Api::all(client.clone()), claims_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), volumes_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), classes_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), attachments_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), pods_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), nodes_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), namespaces_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), drivers_writer, &world, queue, tasks);
        follow(Api::all(client.clone()), csi_nodes_writer, &world, queue, tasks);
        follow(Api::namespaced(client.clone(), NODE_LEASES), leases_writer, &world, queue, tasks);
        world
    }

    /// Waits until every store was filled once: a decision from half a world could delete what it does not see.
    pub(crate) async fn complete(&self) {
        let stores = (
            self.claims.wait_until_ready(),
            self.volumes.wait_until_ready(),
            self.classes.wait_until_ready(),
            self.attachments.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.nodes.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.drivers.wait_until_ready(),
            self.csi_nodes.wait_until_ready(),
            self.leases.wait_until_ready(),
        );
        let (a, b, c, d, e, f, g, h, i, j) = stores;
        let _ = tokio::join!(a, b, c, d, e, f, g, h, i, j);
    }

    pub(crate) fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.get(&ObjectRef::new(name).within(namespace))
    }

    pub(crate) fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.get(&ObjectRef::new(name))
    }

    pub(crate) fn node(&self, name: &str) -> Option<Arc<Node>> {
        self.nodes.get(&ObjectRef::new(name))
    }

    /// Pods that use a claim and have not ended.
    pub(crate) fn users(&self, namespace: &str, claim: &str) -> Vec<Arc<Pod>> {
        let uses = |pod: &Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && !has_ended(pod)
                && claims_of(pod).any(|name| name == claim)
        };
        self.pods.state().into_iter().filter(uses).collect()
    }

    /// The volume that a claim is bound to, if both say so.
    pub(crate) fn volume_of(&self, namespace: &str, claim: &str) -> Option<Arc<PersistentVolume>> {
        let claim = self.claim(namespace, claim)?;
        let volume = self.volume(claim.spec.as_ref()?.volume_name.as_deref()?)?;
        let bound = volume.spec.as_ref()?.claim_ref.as_ref()?.uid == claim.metadata.uid;
        bound.then_some(volume)
    }
}

/// The claims a pod names, those of its ephemeral volumes too.
pub(crate) fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        named.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{}-{}", pod.name_any(), volume.name)))
    })
}

/// Whether a pod has run to its end.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The node a pod was placed on.
pub(crate) fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

fn follow<K>(
    api: Api<K>,
    mut writer: reflector::store::Writer<K>,
    world: &World,
    queue: &Arc<Queue<Key>>,
    tasks: &mut JoinSet<()>,
) where
    K: Resource<DynamicType = ()>
        + reflector::Lookup<DynamicType = ()>
        + Routed
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (world, queue) = (world.clone(), Arc::clone(queue));
    tasks.spawn(async move {
        let stream = watch(api, watcher::Config::default()).backoff(WatchBackoff::default());
        let mut stream = std::pin::pin!(stream);
        while let Some(event) = stream.next().await {
            let event = match event {
                Ok(event) => event,
                Err(error) => {
                    let kind = <K as Resource>::kind(&());
                    tracing::debug!(%error, %kind, "the watch broke off; it is tried again");
                    continue;
                }
            };
            // The store first: what is routed is decided from it.
            writer.apply_watcher_event(&event);
            match &event {
                Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                    object.concerns(&world).into_iter().for_each(|key| queue.add(key));
                }
                Event::Init => {}
                // After a gap: what vanished meanwhile had no event of its own.
                Event::InitDone => K::all(&world).into_iter().for_each(|key| queue.add(key)),
            }
        }
    });
}
