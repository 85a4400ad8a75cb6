//! Makes a volume for a claim: CSI `CreateVolume`, then the PersistentVolume that stands for it.
//!
//! Both carry the claim's uid in their names, so that repeating either finds what the first try made. If the claim goes
//! away in between, the volume's own controller sees a volume whose claim is gone and removes it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cairn_events::{Severity, reference};
use cairn_proto::csi;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use kube::ResourceExt;
use kube::api::PostParams;
use kube::runtime::reflector::ObjectRef;
use serde_json::{Value, json};
use tonic::Code;

use super::{PROVISIONED_BY, SELECTED_NODE};
use crate::access::{Shape, is_block};
use crate::csi::{CsiError, Driver};
use crate::matching::requested;
use crate::quantity;
use crate::reconcile::{Context, Obstacle, patch};
use crate::volume::{PROTECTION, PROVISIONER_FINALIZER};

/// Parameters with this prefix are for the provisioner and not for the driver.
const RESERVED: &str = "csi.storage.k8s.io/";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const DEFAULT_FS_TYPE: &str = "ext4";

/// Makes the volume and its object.
pub(crate) async fn provision(
    context: &Context,
    claim: &Arc<PersistentVolumeClaim>,
    class: &StorageClass,
) -> Result<PersistentVolume, Obstacle> {
    let driver = context.csi.driver().await?;
    let result = match wanted(claim, class, driver) {
        Ok(mut wanted) => {
            wanted.accessibility_requirements = reach(context, claim, driver);
            context.csi.create(wanted).await
        }
        Err(message) => Err(CsiError { call: "CreateVolume", code: Code::InvalidArgument, message }),
    };
    let made = match result {
        Ok(made) => made,
        Err(error) => {
            complain(context, claim, class, &error).await?;
            return Err(error.into());
        }
    };
    let volume: PersistentVolume = serde_json::from_value(described(claim, class, &driver.name, &made))
        .expect("the manifest is written below, field by field");
    let volumes = context.cluster::<PersistentVolume>();
    let volume = match volumes.create(&PostParams::default(), &volume).await {
        Err(kube::Error::Api(status)) if status.code == 409 => volumes.get(&volume.name_any()).await?,
        other => other?,
    };
    let message = format!("Successfully provisioned volume {}", volume.name_any());
    context.say(claim.as_ref(), Severity::Normal, "ProvisioningSucceeded", &message).await;
    Ok(volume)
}

async fn complain(
    context: &Context,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    error: &CsiError,
) -> Result<(), Obstacle> {
    let message = format!("failed to provision volume with StorageClass \"{}\": {}", class.name_any(), error.message);
    context.say(claim, Severity::Warning, "ProvisioningFailed", &message).await;
    // No room where the pod would run: the scheduler may know another node.
    if error.code == Code::ResourceExhausted && claim.annotations().contains_key(SELECTED_NODE) {
        let claims = context.within::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
        patch(&claims, claim, json!({"metadata": {"annotations": {SELECTED_NODE: null}}})).await?;
    }
    Ok(())
}

fn name_of(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

fn shape(claim: &PersistentVolumeClaim, class: &StorageClass) -> Shape {
    let spec = claim.spec.clone().unwrap_or_default();
    let fs_type = class.parameters.as_ref().and_then(|parameters| parameters.get(FS_TYPE));
    Shape {
        modes: spec.access_modes.unwrap_or_default(),
        block: is_block(spec.volume_mode.as_deref()),
        fs_type: fs_type.map_or(DEFAULT_FS_TYPE, String::as_str).to_owned(),
        mount_flags: class.mount_options.clone().unwrap_or_default(),
    }
}

/// What the driver is asked for, or why it cannot be asked.
fn wanted(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    driver: &Driver,
) -> Result<csi::CreateVolumeRequest, String> {
    let parameters = class.parameters.clone().unwrap_or_default();
    if let Some(unknown) = parameters.keys().find(|name| name.starts_with(RESERVED) && *name != FS_TYPE) {
        return Err(format!("the parameter {unknown} is not supported; remove it from the class"));
    }
    let limits = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.limits.as_ref());
    let limit = limits.and_then(|limits| limits.get("storage")).and_then(quantity::bytes).unwrap_or(0);
    let too_large = |_| "the size does not fit 63 bits".to_owned();
    Ok(csi::CreateVolumeRequest {
        name: name_of(claim),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: i64::try_from(requested(claim)).map_err(too_large)?,
            limit_bytes: i64::try_from(limit).map_err(too_large)?,
        }),
        volume_capabilities: shape(claim, class).all(driver.fine_modes),
        parameters: parameters.into_iter().filter(|(name, _)| !name.starts_with(RESERVED)).collect(),
        ..csi::CreateVolumeRequest::default()
    })
}

/// From where the volume must be reachable: the node that was chosen, in the driver's own terms.
fn reach(context: &Context, claim: &PersistentVolumeClaim, driver: &Driver) -> Option<csi::TopologyRequirement> {
    let name = claim.annotations().get(SELECTED_NODE).filter(|_| driver.topology)?;
    let (node, csi_node) = (context.world.node(name)?, context.world.csi_nodes.get(&ObjectRef::<CSINode>::new(name))?);
    let own = csi_node.spec.drivers.iter().find(|one| one.name == driver.name)?;
    let keys = own.topology_keys.iter().flatten();
    let segments: HashMap<String, String> =
        keys.filter_map(|key| Some((key.clone(), node.labels().get(key)?.clone()))).collect();
    let topology = vec![csi::Topology { segments }];
    Some(csi::TopologyRequirement { requisite: topology.clone(), preferred: topology })
}

/// The PersistentVolume of a volume that was made for a claim, tied to it from the beginning.
fn described(claim: &PersistentVolumeClaim, class: &StorageClass, driver: &str, made: &csi::Volume) -> Value {
    let spec = claim.spec.clone().unwrap_or_default();
    let shape = shape(claim, class);
    let size = u64::try_from(made.capacity_bytes).ok().filter(|size| *size > 0).unwrap_or_else(|| requested(claim));
    let attributes: BTreeMap<&String, &String> = made.volume_context.iter().collect();
    let mut source = json!({"driver": driver, "volumeHandle": made.volume_id, "volumeAttributes": attributes});
    if !shape.block {
        source["fsType"] = json!(shape.fs_type);
    }
    let mut manifest = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name_of(claim),
            "annotations": {PROVISIONED_BY: driver},
            "finalizers": [PROTECTION, PROVISIONER_FINALIZER],
        },
        "spec": {
            "capacity": {"storage": quantity::quantity(size)},
            "accessModes": spec.access_modes,
            "volumeMode": spec.volume_mode,
            "claimRef": reference(claim),
            "csi": source,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name_any(),
            "mountOptions": class.mount_options,
        },
    });
    let terms: Vec<Value> = made.accessible_topology.iter().map(term).collect();
    if !terms.is_empty() {
        manifest["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
    }
    manifest
}

fn term(topology: &csi::Topology) -> Value {
    let segments: BTreeMap<&String, &String> = topology.segments.iter().collect();
    let one = |(key, value)| json!({"key": key, "operator": "In", "values": [value]});
    json!({"matchExpressions": segments.into_iter().map(one).collect::<Vec<_>>()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::given::object;

    fn claim() -> Arc<PersistentVolumeClaim> {
        object(json!({
            "metadata": {"name": "data", "namespace": "ns", "uid": "1234"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }))
    }

    fn class(parameters: Value) -> Arc<StorageClass> {
        object(json!({"metadata": {"name": "fast"}, "provisioner": "d", "parameters": parameters,
            "mountOptions": ["noatime"], "reclaimPolicy": "Retain"}))
    }

    #[test]
    fn a_claim_becomes_a_request() {
        let class = class(json!({"pool": "p", "csi.storage.k8s.io/fstype": "xfs"}));
        let wanted = wanted(&claim(), &class, &Driver::default()).unwrap();
        assert_eq!(wanted.name, "pvc-1234");
        assert_eq!(wanted.capacity_range.unwrap().required_bytes, 1 << 30);
        assert_eq!(wanted.parameters, [("pool".to_owned(), "p".to_owned())].into());
        let Some(csi::volume_capability::AccessType::Mount(mount)) = &wanted.volume_capabilities[0].access_type else {
            panic!("a filesystem was asked for")
        };
        assert_eq!((mount.fs_type.as_str(), mount.mount_flags.as_slice()), ("xfs", &["noatime".to_owned()][..]));
    }

    #[test]
    fn parameters_of_the_provisioner_that_are_unknown_are_refused() {
        let class = class(json!({"csi.storage.k8s.io/provisioner-secret-name": "s"}));
        let error = wanted(&claim(), &class, &Driver::default()).unwrap_err();
        assert!(error.contains("provisioner-secret-name is not supported"), "{error}");
    }

    #[test]
    fn a_made_volume_becomes_an_object() {
        let made = csi::Volume {
            volume_id: "7".into(),
            capacity_bytes: 2 << 30,
            accessible_topology: vec![csi::Topology { segments: [("zone".to_owned(), "a".to_owned())].into() }],
            ..Default::default()
        };
        let manifest = described(&claim(), &class(json!({})), "d", &made);
        let volume: PersistentVolume = serde_json::from_value(manifest).unwrap();
        let spec = volume.spec.unwrap();
        assert_eq!(volume.metadata.name.as_deref(), Some("pvc-1234"));
        assert_eq!(spec.capacity.unwrap()["storage"].0, "2Gi");
        assert_eq!(spec.claim_ref.unwrap().uid.as_deref(), Some("1234"));
        assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Retain"));
        let csi = spec.csi.unwrap();
        assert_eq!((csi.volume_handle.as_str(), csi.fs_type.as_deref()), ("7", Some("ext4")));
        let terms = spec.node_affinity.unwrap().required.unwrap().node_selector_terms;
        assert_eq!(terms[0].match_expressions.as_ref().unwrap()[0].key, "zone");
    }
}
