//! What the next step for a volume is: a pure function of what is known of it.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use super::{PROTECTION, PROVISIONER_FINALIZER};
use crate::claim::{BOUND_BY_CONTROLLER, PROVISIONED_BY};

/// The picture from which a step is decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) volume: &'a PersistentVolume,
    /// The claim of the name that the volume's reference has, whatever its uid.
    pub(crate) claim: Option<&'a PersistentVolumeClaim>,
    /// A node it is attached to.
    pub(crate) attached_to: Option<&'a str>,
    /// The CSI driver at hand, once it has said its name.
    pub(crate) driver: Option<&'a str>,
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing is left to do.
    Rest,
    /// Keep it from vanishing under its claim.
    Protect,
    /// Nobody has it.
    Offer,
    /// Its claim is gone.
    Release,
    /// Its claim took another volume: take the reference back; `whole`: the controller had set it.
    Untie {
        /// Remove the reference; otherwise only the uid, because an admin reserved the volume for that name.
        whole: bool,
    },
    /// Ask the driver who it is, then decide again.
    MeetDriver,
    /// Have the driver delete what it stands for, then the object.
    Destroy,
    /// It is being deleted and nothing holds it any more.
    LetGo,
    /// Somebody must do something, and this is what.
    Complain(String),
}

/// Decides.
pub(crate) fn decide(facts: &Facts<'_>) -> Step {
    let volume = facts.volume;
    let Some(spec) = volume.spec.as_ref() else { return Step::Rest };
    let bond = bond(facts);
    if volume.metadata.deletion_timestamp.is_some() {
        return deleting(facts, bond);
    }
    if !volume.finalizers().iter().any(|one| one == PROTECTION) {
        return Step::Protect;
    }
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    match bond {
        Bond::None | Bond::Reserved => if phase == "Available" { Step::Rest } else { Step::Offer },
        Bond::Claim => Step::Rest,
        Bond::Elsewhere => {
            if is_made_by_driver(volume) && policy(facts) == "Delete" {
                return destroy(facts);
            }
            Step::Untie { whole: volume.annotations().contains_key(BOUND_BY_CONTROLLER) }
        }
        Bond::Gone if phase != "Released" && phase != "Failed" => Step::Release,
        Bond::Gone => match policy(facts) {
            "Retain" => Step::Rest,
            "Delete" if spec.csi.is_some() => destroy(facts),
            "Delete" => Step::Complain(
                "the volume was made by hand and there is no driver to delete it; delete it yourself, and then this object"
                    .to_owned(),
            ),
            other => Step::Complain(format!("the reclaim policy {other} is not supported; use Retain or Delete")),
        },
    }
}

/// How a volume and the claim it refers to stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bond {
    /// It refers to none.
    None,
    /// It is reserved for a claim by name.
    Reserved,
    /// The claim is bound to it, or about to be.
    Claim,
    /// The claim is bound to another volume.
    Elsewhere,
    /// The claim does not exist any more.
    Gone,
}

fn bond(facts: &Facts<'_>) -> Bond {
    let Some(reference) = facts.volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return Bond::None;
    };
    let Some(uid) = reference.uid.as_deref().filter(|uid| !uid.is_empty()) else { return Bond::Reserved };
    match facts.claim.filter(|claim| claim.metadata.uid.as_deref() == Some(uid)) {
        None => Bond::Gone,
        Some(claim) => {
            let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
            match named.is_empty() || Some(named) == facts.volume.metadata.name.as_deref() {
                true => Bond::Claim,
                false => Bond::Elsewhere,
            }
        }
    }
}

fn policy<'a>(facts: &Facts<'a>) -> &'a str {
    let spec = facts.volume.spec.as_ref();
    spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()).unwrap_or("Retain")
}

fn is_made_by_driver(volume: &PersistentVolume) -> bool {
    volume.annotations().contains_key(PROVISIONED_BY)
}

/// A volume whose bytes are to go: not while a node has it, and only by its own driver.
fn destroy(facts: &Facts<'_>) -> Step {
    let theirs = facts.volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.driver.as_str());
    match facts.driver {
        _ if facts.attached_to.is_some() => Step::Rest,
        None => Step::MeetDriver,
        ours if ours == theirs => Step::Destroy,
        _ => Step::Rest,
    }
}

fn deleting(facts: &Facts<'_>, bond: Bond) -> Step {
    let volume = facts.volume;
    if bond == Bond::Claim || facts.attached_to.is_some() {
        return Step::Rest;
    }
    let ours_to_delete = volume.finalizers().iter().any(|one| one == PROVISIONER_FINALIZER);
    if ours_to_delete && policy(facts) == "Delete" {
        return destroy(facts);
    }
    match volume.finalizers().iter().any(|one| one == PROTECTION || one == PROVISIONER_FINALIZER) {
        true => Step::LetGo,
        false => Step::Rest,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::reconcile::given::object;

    fn volume(change: Value) -> Arc<PersistentVolume> {
        let mut manifest = json!({
            "metadata": {"name": "v", "finalizers": [PROTECTION, PROVISIONER_FINALIZER], "annotations": {PROVISIONED_BY: "d"}},
            "spec": {"claimRef": {"namespace": "ns", "name": "c", "uid": "u"}, "csi": {"driver": "d", "volumeHandle": "7"},
                "persistentVolumeReclaimPolicy": "Delete"},
            "status": {"phase": "Released"},
        });
        json_patch(&mut manifest, change);
        object(manifest)
    }

    fn json_patch(into: &mut Value, change: Value) {
        for (key, value) in change.as_object().unwrap() {
            match (into.get_mut(key), value) {
                (Some(old), Value::Object(_)) if old.is_object() => json_patch(old, value.clone()),
                _ => into[key] = value.clone(),
            }
        }
    }

    fn claim(uid: &str, volume: &str) -> Arc<PersistentVolumeClaim> {
        object(json!({"metadata": {"name": "c", "namespace": "ns", "uid": uid}, "spec": {"volumeName": volume}}))
    }

    fn step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>, attached_to: Option<&str>) -> Step {
        decide(&Facts { volume, claim, attached_to, driver: Some("d") })
    }

    #[test]
    fn a_free_volume_is_offered() {
        let unprotected = volume(json!({"metadata": {"finalizers": []}}));
        assert_eq!(step(&unprotected, None, None), Step::Protect);
        let free = volume(json!({"spec": {"claimRef": null}, "status": {"phase": "Pending"}}));
        assert_eq!(step(&free, None, None), Step::Offer);
        let offered = volume(json!({"spec": {"claimRef": null}, "status": {"phase": "Available"}}));
        assert_eq!(step(&offered, None, None), Step::Rest);
        let reserved = volume(json!({"spec": {"claimRef": {"uid": ""}}}));
        assert_eq!(step(&reserved, None, None), Step::Offer);
    }

    #[test]
    fn a_claim_that_is_gone_releases_its_volume_and_the_policy_decides() {
        let bound = volume(json!({"status": {"phase": "Bound"}}));
        assert_eq!(step(&bound, Some(&claim("u", "v")), None), Step::Rest);
        assert_eq!(step(&bound, None, None), Step::Release);
        assert_eq!(step(&bound, Some(&claim("another", "v")), None), Step::Release, "a new claim of the same name");
        let released = volume(json!({}));
        assert_eq!(step(&released, None, Some("n1")), Step::Rest, "not under a node that has it");
        assert_eq!(step(&released, None, None), Step::Destroy);
        let kept = volume(json!({"spec": {"persistentVolumeReclaimPolicy": "Retain"}}));
        assert_eq!(step(&kept, None, None), Step::Rest);
        let foreign = volume(json!({"spec": {"csi": {"driver": "other"}}}));
        assert_eq!(step(&foreign, None, None), Step::Rest);
        let recycled = volume(json!({"spec": {"persistentVolumeReclaimPolicy": "Recycle"}}));
        assert!(matches!(step(&recycled, None, None), Step::Complain(_)));
        let by_hand = volume(json!({"spec": {"csi": null, "hostPath": {"path": "/x"}}}));
        assert!(matches!(step(&by_hand, None, None), Step::Complain(_)));
    }

    #[test]
    fn a_volume_whose_claim_took_another_is_freed_or_removed() {
        let elsewhere = claim("u", "w");
        assert_eq!(step(&volume(json!({})), Some(&elsewhere), None), Step::Destroy, "made for nothing");
        let mut by_admin = volume(json!({"metadata": {"annotations": null}}));
        assert_eq!(step(&by_admin, Some(&elsewhere), None), Step::Untie { whole: false });
        let annotations = json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes", PROVISIONED_BY: "d"}},
            "spec": {"persistentVolumeReclaimPolicy": "Retain"}});
        by_admin = volume(annotations);
        assert_eq!(step(&by_admin, Some(&elsewhere), None), Step::Untie { whole: true });
    }

    #[test]
    fn a_deleted_volume_waits_for_its_claim_its_node_and_its_driver() {
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        let volume_ = volume(deleted.clone());
        assert_eq!(step(&volume_, Some(&claim("u", "v")), None), Step::Rest);
        assert_eq!(step(&volume_, None, Some("n1")), Step::Rest);
        assert_eq!(step(&volume_, None, None), Step::Destroy);
        assert_eq!(decide(&Facts { volume: &volume_, claim: None, attached_to: None, driver: None }), Step::MeetDriver);
        let mut kept = deleted;
        kept["spec"] = json!({"persistentVolumeReclaimPolicy": "Retain"});
        assert_eq!(step(&volume(kept), None, None), Step::LetGo);
    }
}
