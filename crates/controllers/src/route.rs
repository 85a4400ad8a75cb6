//! Which objects must be looked at again when another one changed.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use kube::ResourceExt;

use crate::world::{World, claims_of, node_of};

/// An object that a controller looks after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    /// A claim: namespace and name.
    Claim(String, String),
    /// A persistent volume.
    Volume(String),
    /// A volume attachment.
    Attachment(String),
    /// A node: its attachments and its life.
    Node(String),
    /// A pod: namespace and name.
    Pod(String, String),
    /// A namespace.
    Namespace(String),
}

impl Key {
    /// What kind of object it names.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Claim(..) => "claim",
            Self::Volume(_) => "volume",
            Self::Attachment(_) => "attachment",
            Self::Node(_) => "node",
            Self::Pod(..) => "pod",
            Self::Namespace(_) => "namespace",
        }
    }
}

/// A kind whose changes concern others.
pub(crate) trait Routed {
    /// What must be looked at when this object came, changed or went.
    fn concerns(&self, world: &World) -> Vec<Key>;

    /// Everything that may depend on objects of this kind: looked at after a gap in the watch.
    fn all(world: &World) -> Vec<Key>;
}

fn claim_key(claim: &PersistentVolumeClaim) -> Key {
    Key::Claim(claim.namespace().unwrap_or_default(), claim.name_any())
}

fn pod_key(pod: &Pod) -> Key {
    Key::Pod(pod.namespace().unwrap_or_default(), pod.name_any())
}

fn all_claims(world: &World) -> Vec<Key> {
    world.claims.state().iter().map(|claim| claim_key(claim)).collect()
}

fn all_volumes(world: &World) -> Vec<Key> {
    world.volumes.state().iter().map(|volume| Key::Volume(volume.name_any())).collect()
}

fn all_nodes(world: &World) -> Vec<Key> {
    world.nodes.state().iter().map(|node| Key::Node(node.name_any())).collect()
}

fn all_attachments(world: &World) -> Vec<Key> {
    world.attachments.state().iter().map(|attachment| Key::Attachment(attachment.name_any())).collect()
}

/// Claims that have no volume yet.
fn open_claims(world: &World) -> Vec<Key> {
    let open = |claim: &PersistentVolumeClaim| {
        claim.spec.as_ref().is_none_or(|spec| spec.volume_name.as_deref().unwrap_or_default().is_empty())
    };
    world.claims.state().iter().filter(|claim| open(claim)).map(|claim| claim_key(claim)).collect()
}

impl Routed for PersistentVolumeClaim {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let mut keys = vec![claim_key(self)];
        keys.extend(self.spec.as_ref().and_then(|spec| spec.volume_name.clone()).map(Key::Volume));
        let namespace = self.namespace().unwrap_or_default();
        let uid = self.metadata.uid.as_ref();
        let theirs = world.volumes.state().into_iter().filter(|volume| {
            let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            reference.is_some_and(|reference| uid.is_some() && reference.uid.as_ref() == uid)
        });
        keys.extend(theirs.map(|volume| Key::Volume(volume.name_any())));
        for pod in world.users(&namespace, &self.name_any()) {
            keys.extend(node_of(&pod).map(|node| Key::Node(node.to_owned())));
        }
        keys.extend((self.metadata.deletion_timestamp.is_some()).then_some(Key::Namespace(namespace)));
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        [all_claims(world), all_volumes(world), all_nodes(world)].concat()
    }
}

impl Routed for PersistentVolume {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let mut keys = vec![Key::Volume(self.name_any())];
        match self.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
            Some(reference) => {
                let (namespace, name) = (reference.namespace.clone(), reference.name.clone());
                keys.push(Key::Claim(namespace.unwrap_or_default(), name.unwrap_or_default()));
            }
            None => keys.extend(open_claims(world)),
        }
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        PersistentVolumeClaim::all(world)
    }
}

impl Routed for StorageClass {
    fn concerns(&self, world: &World) -> Vec<Key> {
        open_claims(world)
    }

    fn all(world: &World) -> Vec<Key> {
        all_claims(world)
    }
}

impl Routed for VolumeAttachment {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let mut keys = vec![Key::Attachment(self.name_any()), Key::Node(self.spec.node_name.clone())];
        if let Some(name) = self.spec.source.persistent_volume_name.clone() {
            let volume = world.volume(&name);
            let claim = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
            // Pods elsewhere may be waiting for it.
            for pod in claim.map_or_else(Vec::new, |claim| {
                world.users(claim.namespace.as_deref().unwrap_or_default(), claim.name.as_deref().unwrap_or_default())
            }) {
                keys.extend(node_of(&pod).map(|node| Key::Node(node.to_owned())));
            }
            keys.push(Key::Volume(name));
        }
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        [all_attachments(world), all_nodes(world), all_volumes(world)].concat()
    }
}

impl Routed for Pod {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let namespace = self.namespace().unwrap_or_default();
        let mut keys = vec![pod_key(self)];
        keys.extend(node_of(self).map(|node| Key::Node(node.to_owned())));
        for claim in claims_of(self) {
            // Another node may be waiting for this pod to let go.
            if let Some(volume) = world.volume_of(&namespace, &claim) {
                let holders = world.attachments.state().into_iter().filter(|attachment| {
                    attachment.spec.source.persistent_volume_name.as_ref() == volume.metadata.name.as_ref()
                });
                keys.extend(holders.map(|attachment| Key::Node(attachment.spec.node_name.clone())));
            }
            keys.push(Key::Claim(namespace.clone(), claim));
        }
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        let pods = world.pods.state().iter().map(|pod| pod_key(pod)).collect();
        [all_claims(world), all_nodes(world), pods].concat()
    }
}

impl Routed for Node {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let name = self.name_any();
        let mut keys = vec![Key::Node(name.clone())];
        if world.node(&name).is_none() {
            let here = world.pods.state().into_iter().filter(|pod| node_of(pod) == Some(name.as_str()));
            keys.extend(here.map(|pod| pod_key(&pod)));
        }
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        Pod::all(world)
    }
}

impl Routed for Namespace {
    fn concerns(&self, _: &World) -> Vec<Key> {
        vec![Key::Namespace(self.name_any())]
    }

    fn all(world: &World) -> Vec<Key> {
        world.namespaces.state().iter().map(|namespace| Key::Namespace(namespace.name_any())).collect()
    }
}

impl Routed for CSIDriver {
    fn concerns(&self, world: &World) -> Vec<Key> {
        all_nodes(world)
    }

    fn all(world: &World) -> Vec<Key> {
        all_nodes(world)
    }
}

impl Routed for CSINode {
    fn concerns(&self, world: &World) -> Vec<Key> {
        let name = self.name_any();
        let here = world.attachments.state().into_iter().filter(|attachment| attachment.spec.node_name == name);
        let mut keys: Vec<Key> = here.map(|attachment| Key::Attachment(attachment.name_any())).collect();
        keys.push(Key::Node(name));
        keys
    }

    fn all(world: &World) -> Vec<Key> {
        [all_attachments(world), all_nodes(world)].concat()
    }
}

impl Routed for Lease {
    /// A renewed lease matters only while its node is thought to be silent; silence itself is noticed by time.
    fn concerns(&self, _: &World) -> Vec<Key> {
        vec![Key::Node(self.name_any())]
    }

    fn all(world: &World) -> Vec<Key> {
        all_nodes(world)
    }
}
