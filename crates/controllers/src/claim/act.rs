//! Takes the step that was decided for a claim.

use std::sync::Arc;
use std::time::Duration;

use cairn_events::{Severity, reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::Step;
use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, PROTECTION, PROVISIONER, PROVISIONER_BETA, SELECTED_NODE};
use super::{expand, provision};
use crate::queue::Verdict;
use crate::reconcile::{Context, Look, Obstacle, patch, patch_status, with_finalizer, without_finalizers};

/// Whoever waits for something that no watch shows is looked at again after this.
const SECOND_LOOK: Duration = Duration::from_secs(60);

/// Takes a step. Steps that change the claim itself bring it back by its watch.
pub(crate) async fn take(context: &Context, claim: &Arc<PersistentVolumeClaim>, step: Step<'_>) -> Look {
    let claims = context.within::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
    match step {
        Step::Rest => {}
        Step::Protect => {
            let change = json!({"metadata": {"finalizers": with_finalizer(claim.as_ref(), PROTECTION)}});
            patch(&claims, claim.as_ref(), change).await?;
        }
        Step::LetGo => let_go(context, claim).await?,
        Step::SetClass(name) => {
            patch(&claims, claim.as_ref(), json!({"spec": {"storageClassName": name}})).await?;
        }
        Step::Bind(volume) => bind(context, claim, volume).await?,
        Step::Lose(message) => {
            patch_status(&claims, claim.as_ref(), json!({"status": {"phase": "Lost"}})).await?;
            context.say(claim.as_ref(), Severity::Warning, "ClaimLost", &message).await;
        }
        Step::Unselect => {
            patch(&claims, claim.as_ref(), json!({"metadata": {"annotations": {SELECTED_NODE: null}}})).await?;
        }
        Step::MeetDriver => match context.csi.driver().await {
            Ok(_) => return Ok(Verdict::After(Duration::ZERO)),
            Err(error) => {
                context.say(claim.as_ref(), Severity::Warning, "ProvisioningFailed", &error.message).await;
                return Err(error.into());
            }
        },
        Step::Announce(driver) => {
            let annotations = json!({PROVISIONER: driver, PROVISIONER_BETA: driver});
            patch(&claims, claim.as_ref(), json!({"metadata": {"annotations": annotations}})).await?;
        }
        Step::Provision(class) => {
            let volume = provision::provision(context, claim, class).await?;
            bind(context, claim, &volume).await?;
        }
        Step::Expand(volume, to) => expand::expand(context, claim, volume, to).await?,
        Step::Wait { severity, reason, message } => {
            context.say(claim.as_ref(), severity, reason, &message).await;
            return Ok(Verdict::After(SECOND_LOOK));
        }
    }
    Ok(Verdict::Settled)
}

/// The store may not know of a pod that was made a moment ago: the server is asked before the hold is lifted.
async fn let_go(context: &Context, claim: &PersistentVolumeClaim) -> Result<(), Obstacle> {
    let namespace = claim.namespace().unwrap_or_default();
    let pods = context.within::<k8s_openapi::api::core::v1::Pod>(&namespace).list(&Default::default()).await?;
    let name = claim.name_any();
    let used = pods
        .items
        .iter()
        .any(|pod| !crate::world::has_ended(pod) && crate::world::claims_of(pod).any(|used| used == name));
    if !used {
        let claims = context.within::<PersistentVolumeClaim>(&namespace);
        let finalizers = without_finalizers(claim, &[PROTECTION]);
        patch(&claims, claim, json!({"metadata": {"finalizers": finalizers}})).await?;
    }
    Ok(())
}

/// Ties claim and volume together: volume first, so that no other claim can take it, then its phase, then the claim.
/// Each write is left out when it was made before, so that a bind that broke off is finished by the next look.
pub(crate) async fn bind(
    context: &Context,
    claim: &PersistentVolumeClaim,
    volume: &PersistentVolume,
) -> Result<(), Obstacle> {
    let volumes = context.cluster::<PersistentVolume>();
    let mut volume = volume.clone();
    if let Some(change) = volume_side(claim, &volume) {
        volume = patch(&volumes, &volume, change).await?;
    }
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Bound") {
        let change = json!({"status": {"phase": "Bound", "message": null, "reason": null}});
        volume = patch_status(&volumes, &volume, change).await?;
    }
    let claims = context.within::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
    let mut claim = claim.clone();
    if let Some(change) = claim_side(&claim, &volume) {
        claim = patch(&claims, &claim, change).await?;
    }
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase != Some("Bound") {
        let spec = volume.spec.unwrap_or_default();
        let status = json!({"phase": "Bound", "accessModes": spec.access_modes, "capacity": spec.capacity});
        patch_status(&claims, &claim, json!({"status": status})).await?;
    }
    Ok(())
}

/// What the volume must still say.
fn volume_side(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let present = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if present.is_some_and(|present| present.uid == claim.metadata.uid) {
        return None;
    }
    let mut change = json!({"spec": {"claimRef": reference(claim)}});
    if present.is_none() {
        change["metadata"] = json!({"annotations": {BOUND_BY_CONTROLLER: "yes"}});
    }
    Some(change)
}

/// What the claim must still say.
fn claim_side(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Value> {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    let completed = claim.annotations().get(BIND_COMPLETED).is_some_and(|value| value == "yes");
    if named.is_some() && completed {
        return None;
    }
    let mut annotations = json!({BIND_COMPLETED: "yes"});
    if named.is_none() {
        annotations[BOUND_BY_CONTROLLER] = json!("yes");
    }
    Some(json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.name_any()}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::given::object;

    #[test]
    fn each_side_says_only_what_it_lacks() {
        let claim: Arc<PersistentVolumeClaim> =
            object(json!({"metadata": {"name": "c", "namespace": "ns", "uid": "u"}, "spec": {}}));
        let free: Arc<PersistentVolume> = object(json!({"metadata": {"name": "v"}, "spec": {}}));
        let change = volume_side(&claim, &free).unwrap();
        assert_eq!(change["spec"]["claimRef"]["uid"], "u");
        assert_eq!(change["spec"]["claimRef"]["kind"], "PersistentVolumeClaim");
        assert_eq!(change["metadata"]["annotations"][BOUND_BY_CONTROLLER], "yes");
        let reserved: Arc<PersistentVolume> =
            object(json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"name": "c", "namespace": "ns"}}}));
        assert!(volume_side(&claim, &reserved).unwrap().get("metadata").is_none(), "the admin tied them");
        let tied: Arc<PersistentVolume> = object(
            json!({"metadata": {"name": "v"}, "spec": {"claimRef": {"name": "c", "namespace": "ns", "uid": "u"}}}),
        );
        assert_eq!(volume_side(&claim, &tied), None);
        assert_eq!(claim_side(&claim, &tied).unwrap()["spec"]["volumeName"], "v");
        let done: Arc<PersistentVolumeClaim> = object(json!({
            "metadata": {"name": "c", "namespace": "ns", "annotations": {BIND_COMPLETED: "yes"}},
            "spec": {"volumeName": "v"}}));
        assert_eq!(claim_side(&done, &tied), None);
    }
}
