//! One VolumeAttachment: published by the driver when it is made, unpublished before it goes.

use std::sync::Arc;

use cairn_events::Severity;
use cairn_proto::csi;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::{CSINode, VolumeAttachment};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::shape_of;
use crate::csi::{CsiError, Driver};
use crate::queue::Verdict;
use crate::reconcile::{
    Context, Look, Obstacle, has_finalizer, patch, patch_status, with_finalizer, without_finalizers,
};
use crate::world::node_of;

/// The node's name in the driver's words, as it was when the volume was published.
const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";

fn finalizer(driver: &str) -> String {
    format!("external-attacher/{}", driver.replace('.', "-"))
}

/// Looks at an attachment.
pub(crate) async fn look(context: &Context, name: &str) -> Look {
    let Some(attachment) = context.world.attachments.get(&ObjectRef::new(name)) else { return Ok(Verdict::Settled) };
    let driver = context.csi.driver().await?;
    if attachment.spec.attacher != driver.name {
        return Ok(Verdict::Settled);
    }
    let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
    match attachment.metadata.deletion_timestamp.is_some() {
        true => unpublish(context, &attachment, driver).await?,
        false if !attached => publish(context, &attachment, driver).await?,
        false => {}
    }
    Ok(Verdict::Settled)
}

fn volume_of(context: &Context, attachment: &VolumeAttachment) -> Result<Arc<PersistentVolume>, CsiError> {
    let refuse = |message: String| CsiError { call: "attach", code: tonic::Code::FailedPrecondition, message };
    let name = attachment.spec.source.persistent_volume_name.as_deref();
    let name = name.ok_or_else(|| refuse("only persistent volumes can be attached here".to_owned()))?;
    let volume = context.world.volume(name);
    volume.ok_or_else(|| refuse(format!("persistentvolume \"{name}\" not found")))
}

/// What a driver calls a node, as its agent registered it.
fn node_id(context: &Context, attachment: &VolumeAttachment, driver: &Driver) -> Option<String> {
    let node = context.world.csi_nodes.get(&ObjectRef::<CSINode>::new(&attachment.spec.node_name))?;
    node.spec.drivers.iter().find(|one| one.name == driver.name).map(|one| one.node_id.clone())
}

async fn publish(context: &Context, attachment: &VolumeAttachment, driver: &Driver) -> Result<(), Obstacle> {
    let api: Api<VolumeAttachment> = context.cluster();
    let result = async {
        let volume = volume_of(context, attachment)?;
        let node = node_id(context, attachment, driver).ok_or_else(|| CsiError {
            call: "attach",
            code: tonic::Code::FailedPrecondition,
            message: format!(
                "the driver {} is not registered on node {}; is its plugin running there?",
                driver.name, attachment.spec.node_name
            ),
        })?;
        Ok::<_, CsiError>((request(&volume, &node, driver), node))
    }
    .await;
    let (request, node) = match result {
        Ok(ready) => ready,
        Err(error) => return fail(context, attachment, "attachError", error).await,
    };
    let mut current = attachment.clone();
    let finalizer = finalizer(&driver.name);
    if !has_finalizer(attachment, &finalizer) || attachment.annotations().get(NODE_ID) != Some(&node) {
        let finalizers = with_finalizer(attachment, &finalizer);
        let change = json!({"metadata": {"finalizers": finalizers, "annotations": {NODE_ID: node}}});
        current = patch(&api, attachment, change).await?;
    }
    let metadata = if driver.publishes {
        match context.csi.publish(request).await {
            Ok(context) => context,
            Err(error) => return fail(context, &current, "attachError", error).await,
        }
    } else {
        Default::default()
    };
    let status = json!({"attached": true, "attachmentMetadata": metadata, "attachError": null});
    patch_status(&api, &current, json!({"status": status})).await?;
    Ok(())
}

fn request(volume: &PersistentVolume, node: &str, driver: &Driver) -> csi::ControllerPublishVolumeRequest {
    let source = volume.spec.as_ref().and_then(|spec| spec.csi.clone()).unwrap_or_default();
    csi::ControllerPublishVolumeRequest {
        volume_id: source.volume_handle,
        node_id: node.to_owned(),
        volume_capability: Some(shape_of(volume).widest(driver.fine_modes)),
        readonly: driver.publishes_read_only && source.read_only == Some(true),
        volume_context: source.volume_attributes.into_iter().flatten().collect(),
        ..Default::default()
    }
}

async fn unpublish(context: &Context, attachment: &VolumeAttachment, driver: &Driver) -> Result<(), Obstacle> {
    let finalizer = finalizer(&driver.name);
    if !has_finalizer(attachment, &finalizer) {
        return Ok(());
    }
    if driver.publishes
        && let Ok(volume) = volume_of(context, attachment)
    {
        let handle = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| &csi.volume_handle);
        let said = attachment.annotations().get(NODE_ID).cloned();
        let node = said.or_else(|| node_id(context, attachment, driver)).unwrap_or_default();
        // An empty node would unpublish it from every node; without a name nothing was published.
        if !node.is_empty()
            && let Err(error) = context.csi.unpublish(handle, &node).await
        {
            return fail(context, attachment, "detachError", error).await;
        }
    }
    let api: Api<VolumeAttachment> = context.cluster();
    let finalizers = without_finalizers(attachment, &[&finalizer]);
    patch(&api, attachment, json!({"metadata": {"finalizers": finalizers}})).await?;
    Ok(())
}

/// Writes the error where agents and people look: into the attachment, and as an event on the pods that wait.
async fn fail(context: &Context, attachment: &VolumeAttachment, field: &str, error: CsiError) -> Result<(), Obstacle> {
    let message = format!("{}: {}", error.call, error.message);
    let status = attachment.status.clone().unwrap_or_default();
    let known = if field == "attachError" { status.attach_error } else { status.detach_error };
    if known.and_then(|known| known.message).as_deref() != Some(&message) {
        let api: Api<VolumeAttachment> = context.cluster();
        let mut change = Value::Null;
        change["status"] = json!({"attached": status.attached});
        change["status"][field] = json!({"message": message, "time": Timestamp::now()});
        patch_status(&api, attachment, change).await?;
    }
    for pod in waiting(context, attachment).iter().filter(|_| field == "attachError") {
        let volume = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
        let message = format!("AttachVolume.Attach failed for volume \"{volume}\": {}", error.message);
        context.say(pod.as_ref(), Severity::Warning, "FailedAttachVolume", &message).await;
    }
    Err(error.into())
}

/// Pods on the attachment's node that use its volume.
fn waiting(context: &Context, attachment: &VolumeAttachment) -> Vec<Arc<k8s_openapi::api::core::v1::Pod>> {
    let name = attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default();
    let volume = context.world.volume(name);
    let Some(reference) = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref()) else {
        return Vec::new();
    };
    let (namespace, claim) = (reference.namespace.as_deref(), reference.name.as_deref());
    let mut users = context.world.users(namespace.unwrap_or_default(), claim.unwrap_or_default());
    users.retain(|pod| node_of(pod) == Some(attachment.spec.node_name.as_str()));
    users
}
