//! PersistentVolumeClaims: protected, given a class, bound to a volume that exists or is made for them, grown, let go.

mod act;
mod class;
mod decide;
mod expand;
mod provision;

use crate::queue::Verdict;
use crate::reconcile::{Context, Look};

pub(crate) use decide::PROTECTION;

/// Names the driver that shall make the volume: what an external provisioner looks for.
const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// The node from which the volume must be reachable, as the scheduler chose it.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Both sides agreed once: from now on a missing volume is a lost one.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// The controller and not the user tied the two.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Who made a volume.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Looks at a claim: takes steps until nothing is left to do now.
pub(crate) async fn look(context: &Context, namespace: &str, name: &str) -> Look {
    let Some(claim) = context.world.claim(namespace, name) else { return Ok(Verdict::Settled) };
    let volumes = context.world.volumes.state();
    let classes = context.world.classes.state();
    let users = context.world.users(namespace, name);
    let annotation = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
    let node = annotation.map(|name| context.world.node(name));
    let facts = decide::Facts {
        claim: &claim,
        volumes: &volumes,
        classes: &classes,
        users: &users,
        selected: node.as_ref().map(Option::as_deref),
        driver: context.csi.known_driver().map(|driver| driver.name.as_str()),
    };
    act::take(context, &claim, decide::decide(&facts)).await
}
