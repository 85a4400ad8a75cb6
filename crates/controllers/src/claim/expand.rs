//! Makes a claim's volume larger: the volume by CSI, then its filesystem by the node, if the driver says so.

use std::sync::Arc;

use cairn_events::Severity;
use cairn_proto::csi;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::attach::shape_of;
use crate::matching::capacity;
use crate::quantity;
use crate::reconcile::{Context, Obstacle, patch, patch_status};

/// Grows the volume to `to` bytes. Says on the claim what is left for its node to do.
pub(crate) async fn expand(
    context: &Context,
    claim: &Arc<PersistentVolumeClaim>,
    volume: &Arc<PersistentVolume>,
    to: u64,
) -> Result<(), Obstacle> {
    let driver = context.csi.driver().await?;
    if !driver.expands {
        let message = format!("the driver {} cannot grow volumes", driver.name);
        context.say(claim.as_ref(), Severity::Warning, "VolumeResizeFailed", &message).await;
        return Ok(());
    }
    let wanted = csi::ControllerExpandVolumeRequest {
        volume_id: volume.spec.as_ref().and_then(|s| s.csi.as_ref()).map_or(String::new(), |c| c.volume_handle.clone()),
        capacity_range: Some(csi::CapacityRange {
            required_bytes: i64::try_from(to).unwrap_or(i64::MAX),
            limit_bytes: 0,
        }),
        volume_capability: Some(shape_of(volume).widest(driver.fine_modes)),
        ..Default::default()
    };
    let grown = match context.csi.expand(wanted).await {
        Ok(grown) => grown,
        Err(error) => {
            let message = format!("resize volume {} failed: {}", volume.name_any(), error.message);
            context.say(claim.as_ref(), Severity::Warning, "VolumeResizeFailed", &message).await;
            return Err(error.into());
        }
    };
    let size = u64::try_from(grown.capacity_bytes).unwrap_or(0).max(to);
    if capacity(volume) < size {
        let change = json!({"spec": {"capacity": {"storage": quantity::quantity(size)}}});
        patch(&context.cluster::<PersistentVolume>(), volume.as_ref(), change).await?;
    }
    let claims = context.within::<PersistentVolumeClaim>(&claim.namespace().unwrap_or_default());
    let change = claim_status(claim, size, grown.node_expansion_required);
    patch_status(&claims, claim.as_ref(), change).await?;
    let (reason, message) = match grown.node_expansion_required {
        true => ("FileSystemResizeRequired", "the filesystem grows on the node that uses the volume"),
        false => ("VolumeResizeSuccessful", "Resize volume succeeded"),
    };
    context.say(claim.as_ref(), Severity::Normal, reason, message).await;
    Ok(())
}

/// What the claim says afterwards: its new size, or that its node has something left to do.
fn claim_status(claim: &PersistentVolumeClaim, size: u64, node_has_work: bool) -> Value {
    let conditions = claim.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let others = conditions.iter().filter(|one| !matches!(one.type_.as_str(), "Resizing" | "FileSystemResizePending"));
    let mut conditions: Vec<Value> =
        others.map(|one| serde_json::to_value(one).expect("a condition is plain data")).collect();
    if !node_has_work {
        return json!({"status": {"capacity": {"storage": quantity::quantity(size)}, "conditions": conditions}});
    }
    conditions.push(json!({
        "type": "FileSystemResizePending", "status": "True",
        "message": "the filesystem is grown by the node that uses the volume",
    }));
    json!({"status": {"allocatedResources": {"storage": quantity::quantity(size)}, "conditions": conditions}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::given::object;

    #[test]
    fn the_claim_says_what_is_left_to_do() {
        let claim: Arc<PersistentVolumeClaim> = object(json!({"metadata": {"name": "c"}, "status": {
            "conditions": [{"type": "Resizing", "status": "True"}, {"type": "Other", "status": "True"}]}}));
        let change = claim_status(&claim, 2 << 30, false);
        assert_eq!(change["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(change["status"]["conditions"].as_array().map(Vec::len), Some(1));
        let change = claim_status(&claim, 2 << 30, true);
        assert!(change["status"].get("capacity").is_none(), "not before the filesystem has grown");
        assert_eq!(change["status"]["conditions"][1]["type"], "FileSystemResizePending");
    }
}
