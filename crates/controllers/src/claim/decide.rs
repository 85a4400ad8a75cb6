//! What the next step for a claim is: a pure function of what is known of it.

use std::sync::Arc;

use cairn_events::Severity;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use super::class::{self, Class};
use super::{BIND_COMPLETED, PROVISIONER};
use crate::matching::{best, capacity, is_for, misfit, requested};
use crate::quantity;

/// Held by a claim until no pod uses it.
pub(crate) const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// The picture from which a step is decided.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) claim: &'a Arc<PersistentVolumeClaim>,
    pub(crate) volumes: &'a [Arc<PersistentVolume>],
    pub(crate) classes: &'a [Arc<StorageClass>],
    /// Pods that use the claim and have not ended.
    pub(crate) users: &'a [Arc<Pod>],
    /// The node that the scheduler chose: none chosen, chosen and gone, or there.
    pub(crate) selected: Option<Option<&'a Node>>,
    /// The CSI driver at hand, once it has said its name.
    pub(crate) driver: Option<&'a str>,
}

/// The next step.
#[derive(Debug)]
pub(crate) enum Step<'a> {
    /// Nothing is left to do.
    Rest,
    /// Keep it from vanishing under its pods.
    Protect,
    /// No pod uses it any more.
    LetGo,
    /// Write the default class into it.
    SetClass(String),
    /// Make both sides say that they belong together.
    Bind(&'a Arc<PersistentVolume>),
    /// Its volume is gone or somebody else's.
    Lose(String),
    /// The node chosen for it is gone: let the scheduler choose again.
    Unselect,
    /// Ask the driver who it is, then decide again.
    MeetDriver,
    /// Leave it to the provisioner of its class, which is not ours.
    Announce(String),
    /// Make a volume.
    Provision(&'a Arc<StorageClass>),
    /// Make its volume larger.
    Expand(&'a Arc<PersistentVolume>, u64),
    /// Something must happen first, and this is what.
    Wait {
        /// Whether somebody should look.
        severity: Severity,
        /// For programs.
        reason: &'static str,
        /// For people: cause and remedy.
        message: String,
    },
}

fn warn<'a>(reason: &'static str, message: String) -> Step<'a> {
    Step::Wait { severity: Severity::Warning, reason, message }
}

fn note<'a>(reason: &'static str, message: String) -> Step<'a> {
    Step::Wait { severity: Severity::Normal, reason, message }
}

/// Decides.
pub(crate) fn decide<'a>(facts: &Facts<'a>) -> Step<'a> {
    let claim = facts.claim;
    let protected = claim.finalizers().iter().any(|one| one == PROTECTION);
    if claim.metadata.deletion_timestamp.is_some() {
        return match (protected, facts.users.first()) {
            (true, None) => Step::LetGo,
            (true, Some(pod)) => {
                let message = format!("deleted when pod {} no longer uses it", pod.name_any());
                note("InUse", message)
            }
            (false, _) => Step::Rest,
        };
    }
    if !protected {
        return Step::Protect;
    }
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).filter(|name| !name.is_empty());
    match named {
        Some(name) => with_volume(facts, name),
        None => without_volume(facts),
    }
}

fn is_marked(claim: &PersistentVolumeClaim, annotation: &str) -> bool {
    claim.annotations().get(annotation).is_some_and(|value| value == "yes")
}

fn phase(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// The claim names its volume: the user did, or we bound the two.
fn with_volume<'a>(facts: &Facts<'a>, name: &str) -> Step<'a> {
    let claim = facts.claim;
    let completed = is_marked(claim, BIND_COMPLETED);
    let Some(volume) = facts.volumes.iter().find(|volume| volume.metadata.name.as_deref() == Some(name)) else {
        return match (completed, phase(claim)) {
            (true, "Lost") => Step::Rest,
            (true, _) => Step::Lose(format!("Bound claim has lost its PersistentVolume: \"{name}\" does not exist")),
            (false, _) => warn(
                "FailedBinding",
                format!(
                    "volume \"{name}\" that the claim names does not exist; make it, or leave spec.volumeName empty"
                ),
            ),
        };
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.is_some() && !is_for(volume, claim) {
        let other = reference.map(|r| {
            format!("{}/{}", r.namespace.as_deref().unwrap_or_default(), r.name.as_deref().unwrap_or_default())
        });
        let other = other.unwrap_or_default();
        return match (completed, phase(claim)) {
            (true, "Lost") => Step::Rest,
            (true, _) => Step::Lose(format!("the claim's volume \"{name}\" is bound to another claim, {other}")),
            (false, _) => warn("FailedBinding", format!("volume \"{name}\" already belongs to claim {other}")),
        };
    }
    if !completed && let Some(why) = misfit(claim, volume, None) {
        return warn("FailedBinding", format!("volume \"{name}\" does not fit the claim: {why}"));
    }
    let agreed = reference.is_some_and(|reference| reference.uid == claim.metadata.uid);
    let volume_phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if !completed || !agreed || phase(claim) != "Bound" || volume_phase != Some("Bound") {
        return Step::Bind(volume);
    }
    grown(facts, volume)
}

/// Both are bound; does the claim ask for more than it has?
fn grown<'a>(facts: &Facts<'a>, volume: &'a Arc<PersistentVolume>) -> Step<'a> {
    let claim = facts.claim;
    let (asked, status) = (requested(claim), claim.status.as_ref());
    let has = status.and_then(|s| s.capacity.as_ref()?.get("storage")).and_then(quantity::bytes).unwrap_or(0);
    if asked <= has {
        return Step::Rest;
    }
    let waits_for_node = status.and_then(|s| s.conditions.as_ref()).is_some_and(|conditions| {
        conditions.iter().any(|one| one.type_ == "FileSystemResizePending" && one.status == "True")
    });
    if waits_for_node && capacity(volume) >= asked {
        return Step::Rest;
    }
    let driver = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.driver.as_str());
    match (driver, facts.driver) {
        (None, _) => {
            return warn("VolumeResizeFailed", "the claim's volume was made by hand and cannot be grown".to_owned());
        }
        (Some(_), None) => return Step::MeetDriver,
        (Some(theirs), Some(ours)) if theirs != ours => return Step::Rest,
        _ => {}
    }
    match class::of(claim, facts.classes) {
        Class::Known(class) if class.allow_volume_expansion == Some(true) => Step::Expand(volume, asked),
        Class::Known(class) => {
            let name = class.name_any();
            let message = format!(
                "storage class \"{name}\" does not allow volumes to grow; set allowVolumeExpansion: true on it, \
                 or set the claim back to {}",
                quantity::quantity(has).0
            );
            warn("VolumeResizeFailed", message)
        }
        _ => {
            let message = "without a storage class that allows it, a volume cannot be grown".to_owned();
            warn("VolumeResizeFailed", message)
        }
    }
}

/// The claim has no volume: one that exists, or one that is made.
fn without_volume<'a>(facts: &Facts<'a>) -> Step<'a> {
    let claim = facts.claim;
    let class = match class::of(claim, facts.classes) {
        Class::Default(name) => return Step::SetClass(name),
        class => class,
    };
    if is_marked(claim, BIND_COMPLETED) {
        return match phase(claim) {
            "Lost" => Step::Rest,
            _ => Step::Lose("the claim no longer names the volume it was bound to".to_owned()),
        };
    }
    let late = matches!(&class, Class::Known(class) if is_late(class));
    // A volume that is reserved for the claim is bound at once; free ones wait for the node as new ones do.
    let reserved = || facts.volumes.iter().find(|v| is_for(v, claim) && misfit(claim, v, None).is_none());
    if late && facts.selected.is_none() {
        if let Some(volume) = reserved() {
            return Step::Bind(volume);
        }
        return match facts.users.first() {
            None => note("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
            Some(pod) => note("WaitForPodScheduled", format!("waiting for pod {} to be scheduled", pod.name_any())),
        };
    }
    if late && facts.selected == Some(None) {
        return Step::Unselect;
    }
    if let Some(volume) = best(claim, facts.volumes, facts.selected.flatten()) {
        return Step::Bind(volume);
    }
    match class {
        Class::Known(class) => make(facts, class),
        Class::Unknown(name) => warn(
            "ProvisioningFailed",
            format!(
                "storageclass.storage.k8s.io \"{name}\" not found; there are: {}. Create it, or name another class",
                class::names(facts.classes)
            ),
        ),
        Class::Refused => warn(
            "FailedBinding",
            "no persistent volume fits this claim, and it wants no storage class (storageClassName: \"\"); make a volume \
             that fits, or name a class"
                .to_owned(),
        ),
        Class::Undecided | Class::Default(_) => warn(
            "FailedBinding",
            format!(
                "no persistent volumes available for this claim and no storage class is set; name one (there are: {}) \
                 or mark one as the default",
                class::names(facts.classes)
            ),
        ),
    }
}

fn is_late(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// The class can make a volume, if its provisioner is ours.
fn make<'a>(facts: &Facts<'a>, class: &'a Arc<StorageClass>) -> Step<'a> {
    if class.provisioner == "kubernetes.io/no-provisioner" {
        let message = format!(
            "no persistent volume fits this claim, and storage class \"{}\" makes none; make one by hand",
            class.name_any()
        );
        return warn("FailedBinding", message);
    }
    let Some(ours) = facts.driver else { return Step::MeetDriver };
    if facts.claim.annotations().get(PROVISIONER) != Some(&class.provisioner) {
        return Step::Announce(class.provisioner.clone());
    }
    if class.provisioner != ours {
        let message = format!(
            "Waiting for a volume to be created by the external provisioner '{}'; this cluster runs '{ours}'. Start the \
             other, or use a class whose provisioner is '{ours}'",
            class.provisioner
        );
        return note("ExternalProvisioning", message);
    }
    let spec = facts.claim.spec.as_ref();
    if spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some()) {
        let message = "a volume cannot be made from a data source here; remove spec.dataSource".to_owned();
        return warn("ProvisioningFailed", message);
    }
    if spec.is_some_and(|spec| spec.selector.is_some()) {
        let message = "a selector chooses among existing volumes and none fits; make one, or remove spec.selector";
        return warn("ProvisioningFailed", message.to_owned());
    }
    Step::Provision(class)
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
