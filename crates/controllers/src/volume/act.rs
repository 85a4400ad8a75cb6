//! Takes the step that was decided for a volume.

use std::sync::Arc;
use std::time::Duration;

use cairn_events::Severity;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::decide::Step;
use super::{PROTECTION, PROVISIONER_FINALIZER};
use crate::claim::BOUND_BY_CONTROLLER;
use crate::queue::Verdict;
use crate::reconcile::{Context, Look, Obstacle, patch, patch_status, with_finalizer, without_finalizers};

/// Takes a step.
pub(crate) async fn take(context: &Context, volume: &Arc<PersistentVolume>, step: Step) -> Look {
    let volumes = context.cluster::<PersistentVolume>();
    let volume = volume.as_ref();
    match step {
        Step::Rest => {}
        Step::Protect => {
            let change = json!({"metadata": {"finalizers": with_finalizer(volume, PROTECTION)}});
            patch(&volumes, volume, change).await?;
        }
        Step::Offer => {
            patch_status(&volumes, volume, json!({"status": {"phase": "Available"}})).await?;
        }
        Step::Release => {
            if claim_is_gone(context, volume).await? {
                patch_status(&volumes, volume, json!({"status": {"phase": "Released"}})).await?;
            }
        }
        Step::Untie { whole } => {
            let change = match whole {
                true => json!({"spec": {"claimRef": null}, "metadata": {"annotations": {BOUND_BY_CONTROLLER: null}}}),
                false => json!({"spec": {"claimRef": {"uid": null, "resourceVersion": null}}}),
            };
            patch(&volumes, volume, change).await?;
        }
        Step::MeetDriver => {
            context.csi.driver().await?;
            return Ok(Verdict::After(Duration::ZERO));
        }
        Step::Destroy => destroy(context, &volumes, volume).await?,
        Step::LetGo => let_go(&volumes, volume).await?,
        Step::Complain(message) => {
            context.say(volume, Severity::Warning, "VolumeFailedDelete", &message).await;
        }
    }
    Ok(Verdict::Settled)
}

/// The store may lag: before anything is given up the server is asked.
async fn claim_is_gone(context: &Context, volume: &PersistentVolume) -> Result<bool, Obstacle> {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return Ok(true) };
    let claims = context.within::<PersistentVolumeClaim>(reference.namespace.as_deref().unwrap_or_default());
    let claim = claims.get_opt(reference.name.as_deref().unwrap_or_default()).await?;
    Ok(claim.is_none_or(|claim| {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        claim.metadata.uid != reference.uid || !(named.is_empty() || named == volume.name_any())
    }))
}

async fn destroy(
    context: &Context,
    volumes: &Api<PersistentVolume>,
    volume: &PersistentVolume,
) -> Result<(), Obstacle> {
    // What is bound at the server is not what was decided about.
    let current = volumes.get(&volume.name_any()).await?;
    if current.metadata.uid != volume.metadata.uid || !claim_is_gone(context, &current).await? {
        return Ok(());
    }
    let handle = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map_or("", |csi| &csi.volume_handle);
    if let Err(error) = context.csi.delete(handle).await {
        context.say(volume, Severity::Warning, "VolumeFailedDelete", &error.message).await;
        return Err(error.into());
    }
    if current.metadata.deletion_timestamp.is_none() {
        volumes.delete(&volume.name_any(), &DeleteParams::default()).await?;
    }
    let_go(volumes, &volumes.get(&volume.name_any()).await?).await
}

async fn let_go(volumes: &Api<PersistentVolume>, volume: &PersistentVolume) -> Result<(), Obstacle> {
    let finalizers = without_finalizers(volume, &[PROTECTION, PROVISIONER_FINALIZER]);
    patch(volumes, volume, json!({"metadata": {"finalizers": finalizers}})).await.map(drop)
}
