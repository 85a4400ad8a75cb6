//! Attachments: pods on nodes want volumes there (`plan`), VolumeAttachments say so, and the driver publishes what they say.

mod plan;
mod publish;

use std::collections::BTreeSet;
use std::sync::Arc;

use cairn_events::Severity;
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::access::{Shape, is_block};
use crate::queue::Verdict;
use crate::reconcile::{Context, Look, Obstacle};
use crate::world::{claims_of, has_ended, node_of};

pub(crate) use publish::look;

/// How a volume is known to node status and kubelets.
fn unique_name(driver: &str, handle: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The name of the attachment of one volume to one node; agents compute the same.
fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    let digest = Sha256::digest(format!("{handle}{driver}{node}"));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("csi-{hex}")
}

/// What the driver must be asked for to use a volume as it is.
pub(crate) fn shape_of(volume: &PersistentVolume) -> Shape {
    let spec = volume.spec.clone().unwrap_or_default();
    Shape {
        modes: spec.access_modes.unwrap_or_default(),
        block: is_block(spec.volume_mode.as_deref()),
        fs_type: spec.csi.and_then(|csi| csi.fs_type).unwrap_or_default(),
        mount_flags: spec.mount_options.unwrap_or_default(),
    }
}

/// Looks at what a node's pods want attached, and at what is.
pub(crate) async fn look_at_node(context: &Context, name: &str) -> Look {
    let world = &context.world;
    let node = world.node(name);
    let attachments = world.attachments.state();
    let optional: BTreeSet<String> = world
        .drivers
        .state()
        .iter()
        .filter(|driver| driver.spec.attach_required == Some(false))
        .map(|driver| driver.name_any())
        .collect();
    let mut wanted = Vec::new();
    for pod in world.pods.state() {
        if node_of(&pod) != Some(name) || has_ended(&pod) {
            continue;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let volumes = claims_of(&pod).filter_map(|claim| world.volume_of(&namespace, &claim));
        wanted.extend(volumes.map(|volume| plan::Want { pod: Arc::clone(&pod), volume }));
    }
    let volumes = world.volumes.state();
    let facts = plan::Facts {
        name,
        node: node.as_deref(),
        wanted: &wanted,
        attachments: &attachments,
        volumes: &volumes,
        optional: &optional,
    };
    carry_out(context, name, node.as_deref(), plan::plan(&facts)).await
}

async fn carry_out(context: &Context, name: &str, node: Option<&Node>, plan: plan::Plan) -> Look {
    let api: Api<VolumeAttachment> = context.cluster();
    for new in plan.attach {
        let attachment = serde_json::from_value(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
            "metadata": {"name": attachment_name(&new.handle, &new.driver, name)},
            "spec": {"attacher": new.driver, "nodeName": name, "source": {"persistentVolumeName": new.volume}},
        }))
        .expect("the manifest is an attachment's");
        match api.create(&PostParams::default(), &attachment).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => drop(other?),
        }
    }
    for gone in plan.detach {
        match api.delete(&gone, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => drop(other?),
        }
    }
    for (pod, message) in plan.blocked {
        context.say(pod.as_ref(), Severity::Warning, "FailedAttachVolume", &message).await;
    }
    if let (Some(node), Some(attached)) = (node, plan.report) {
        report(context, node, &attached).await?;
    }
    Ok(plan.look_again.map_or(Verdict::Settled, Verdict::After))
}

/// Tells the node what is attached to it. The field is ours alone, so that the node's own heartbeats are no conflict.
async fn report(context: &Context, node: &Node, attached: &[String]) -> Result<(), Obstacle> {
    let list: Vec<_> = attached.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
    let nodes: Api<Node> = context.cluster();
    let change = json!({"status": {"volumesAttached": list}});
    nodes.patch_status(&node.name_any(), &PatchParams::default(), &Patch::Merge(change)).await?;
    Ok(())
}
