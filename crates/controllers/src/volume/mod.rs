//! PersistentVolumes: available, bound, released when their claim is gone, and then kept or deleted as they say.

mod act;
mod decide;

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::queue::Verdict;
use crate::reconcile::{Context, Look};

/// Held by a volume while a claim is bound to it.
pub(crate) const PROTECTION: &str = "kubernetes.io/pv-protection";
/// Held by a volume until the driver has deleted what it stands for.
pub(crate) const PROVISIONER_FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";

/// Looks at a volume and takes the next step.
pub(crate) async fn look(context: &Context, name: &str) -> Look {
    let Some(volume) = context.world.volume(name) else { return Ok(Verdict::Settled) };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let claim: Option<Arc<PersistentVolumeClaim>> = reference
        .and_then(|reference| context.world.claim(reference.namespace.as_deref()?, reference.name.as_deref()?));
    let attachments = context.world.attachments.state();
    let attached = attachments.iter().find(|one| one.spec.source.persistent_volume_name.as_deref() == Some(name));
    let facts = decide::Facts {
        volume: &volume,
        claim: claim.as_deref(),
        attached_to: attached.map(|one| one.spec.node_name.as_str()),
        driver: context.csi.known_driver().map(|driver| driver.name.as_str()),
    };
    act::take(context, &volume, decide::decide(&facts)).await
}
