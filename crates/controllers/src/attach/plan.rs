//! What should be attached to a node, against what is: a pure function.
//!
//! A volume for one node at a time goes to the next node when the attachment to the one before is gone. It goes when no pod
//! there wants it and the node no longer says that it uses it; a node that is gone or silent is not waited for, because
//! detaching fences it: the storage refuses whatever it may still write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;

use super::unique_name;
use crate::access::is_shared;

/// A node in use says so with its next report; it is looked at again after this.
const IN_USE: Duration = Duration::from_secs(5);

/// A pod on the node and a volume it needs.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub(super) pod: Arc<Pod>,
    pub(super) volume: Arc<PersistentVolume>,
}

/// The picture from which the plan is made.
pub(super) struct Facts<'a> {
    pub(super) name: &'a str,
    pub(super) node: Option<&'a Node>,
    pub(super) wanted: &'a [Want],
    /// Of all nodes.
    pub(super) attachments: &'a [Arc<VolumeAttachment>],
    pub(super) volumes: &'a [Arc<PersistentVolume>],
    /// Drivers whose volumes need no attaching.
    pub(super) optional: &'a BTreeSet<String>,
}

/// An attachment to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct New {
    pub(super) volume: String,
    pub(super) driver: String,
    pub(super) handle: String,
}

/// What is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) attach: Vec<New>,
    /// Names of attachments.
    pub(super) detach: Vec<String>,
    /// Pods that must wait, and why.
    pub(super) blocked: Vec<(Arc<Pod>, String)>,
    /// What the node's status should list, if it lists something else.
    pub(super) report: Option<Vec<String>>,
    pub(super) look_again: Option<Duration>,
}

fn volume_name(attachment: &VolumeAttachment) -> &str {
    attachment.spec.source.persistent_volume_name.as_deref().unwrap_or_default()
}

/// Whether a node can still act on what it is told.
fn is_responsive(node: Option<&Node>) -> bool {
    let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
    let ready = conditions.and_then(|conditions| conditions.iter().find(|one| one.type_ == "Ready"));
    node.is_some() && ready.is_none_or(|ready| ready.status != "Unknown")
}

/// Makes the plan.
pub(super) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let mut seen = BTreeSet::new();
    let leaving = facts.node.is_none_or(|node| node.metadata.deletion_timestamp.is_some());
    for want in facts.wanted.iter().filter(|_| !leaving) {
        let Some(csi) = want.volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()) else { continue };
        let volume = want.volume.name_any();
        if facts.optional.contains(&csi.driver) || !seen.insert(volume.clone()) {
            continue;
        }
        let mut holders = facts.attachments.iter().filter(|one| volume_name(one) == volume);
        if holders.clone().any(|one| one.spec.node_name == facts.name) {
            continue;
        }
        let modes = want.volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
        match holders.next().filter(|_| !is_shared(modes)) {
            Some(holder) => plan.blocked.push((
                Arc::clone(&want.pod),
                format!(
                    "Multi-Attach error for volume \"{volume}\": it is attached to node {} and can be attached to one node at \
                     a time; it follows when no pod uses it there",
                    holder.spec.node_name
                ),
            )),
            None => plan.attach.push(New {
                volume,
                driver: csi.driver.clone(),
                handle: csi.volume_handle.clone(),
            }),
        }
    }
    detach(facts, &seen, &mut plan);
    plan.report = report(facts);
    plan
}

fn detach(facts: &Facts<'_>, wanted: &BTreeSet<String>, plan: &mut Plan) {
    let handles: BTreeMap<String, String> =
        facts.volumes.iter().filter_map(|v| Some((v.name_any(), unique(v)?))).collect();
    let in_use = facts.node.and_then(|node| node.status.as_ref()?.volumes_in_use.clone()).unwrap_or_default();
    for attachment in facts.attachments.iter().filter(|one| one.spec.node_name == facts.name) {
        let unwanted = !wanted.contains(volume_name(attachment));
        if !unwanted || attachment.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let used = handles.get(volume_name(attachment)).is_some_and(|name| in_use.contains(name));
        if used && is_responsive(facts.node) {
            plan.look_again = Some(IN_USE);
        } else {
            plan.detach.push(attachment.name_any());
        }
    }
}

fn unique(volume: &PersistentVolume) -> Option<String> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some(unique_name(&csi.driver, &csi.volume_handle))
}

/// What is attached to the node, if its status says otherwise.
fn report(facts: &Facts<'_>) -> Option<Vec<String>> {
    let attached = |one: &&Arc<VolumeAttachment>| {
        one.spec.node_name == facts.name && one.status.as_ref().is_some_and(|status| status.attached)
    };
    let volume = |one: &Arc<VolumeAttachment>| {
        facts.volumes.iter().find(|volume| volume.name_any() == volume_name(one)).and_then(|volume| unique(volume))
    };
    let mut is: Vec<String> = facts.attachments.iter().filter(attached).filter_map(volume).collect();
    is.sort();
    let status = facts.node?.status.as_ref();
    let mut says: Vec<String> =
        status.and_then(|s| s.volumes_attached.as_ref()).into_iter().flatten().map(|one| one.name.clone()).collect();
    says.sort();
    (is != says).then_some(is)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::reconcile::given::object;

    fn node(status: Value) -> Arc<Node> {
        object(json!({"metadata": {"name": "n1"}, "status": status}))
    }

    fn volume(name: &str, mode: &str) -> Arc<PersistentVolume> {
        object(json!({"metadata": {"name": name}, "spec": {"accessModes": [mode],
            "csi": {"driver": "d", "volumeHandle": format!("h-{name}")}}}))
    }

    fn attachment(name: &str, volume: &str, node: &str, attached: bool) -> Arc<VolumeAttachment> {
        object(json!({"metadata": {"name": name}, "status": {"attached": attached},
            "spec": {"attacher": "d", "nodeName": node, "source": {"persistentVolumeName": volume}}}))
    }

    struct Case {
        node: Option<Arc<Node>>,
        wanted: Vec<Want>,
        attachments: Vec<Arc<VolumeAttachment>>,
        volumes: Vec<Arc<PersistentVolume>>,
        optional: BTreeSet<String>,
    }

    impl Case {
        fn new(modes: &[(&str, &str)]) -> Self {
            let pod: Arc<Pod> = object(json!({"metadata": {"name": "p", "namespace": "ns"}}));
            let volumes: Vec<_> = modes.iter().map(|(name, mode)| volume(name, mode)).collect();
            let wanted = volumes.iter().map(|volume| Want { pod: Arc::clone(&pod), volume: Arc::clone(volume) });
            Self {
                node: Some(node(json!({}))),
                wanted: wanted.collect(),
                attachments: vec![],
                volumes,
                optional: BTreeSet::new(),
            }
        }

        fn plan(&self) -> Plan {
            plan(&Facts {
                name: "n1",
                node: self.node.as_deref(),
                wanted: &self.wanted,
                attachments: &self.attachments,
                volumes: &self.volumes,
                optional: &self.optional,
            })
        }
    }

    #[test]
    fn what_pods_want_is_attached_once() {
        let mut case = Case::new(&[("a", "ReadWriteOnce"), ("a", "ReadWriteOnce")]);
        let new = New { volume: "a".into(), driver: "d".into(), handle: "h-a".into() };
        assert_eq!(case.plan().attach, [new]);
        case.attachments.push(attachment("x", "a", "n1", false));
        assert_eq!(case.plan().attach, []);
        case.optional.insert("d".into());
        case.attachments.clear();
        assert_eq!(case.plan().attach, [], "its driver needs no attaching");
    }

    #[test]
    fn one_node_at_a_time_unless_it_is_shared() {
        let mut case = Case::new(&[("a", "ReadWriteOnce"), ("b", "ReadWriteMany")]);
        case.attachments = vec![attachment("x", "a", "n2", true), attachment("y", "b", "n2", true)];
        let plan = case.plan();
        assert_eq!(plan.attach.iter().map(|new| new.volume.as_str()).collect::<Vec<_>>(), ["b"]);
        assert!(plan.blocked[0].1.starts_with("Multi-Attach error for volume \"a\": it is attached to node n2"));
    }

    #[test]
    fn what_no_pod_wants_is_detached_when_the_node_lets_go() {
        let mut case = Case::new(&[("a", "ReadWriteOnce")]);
        case.wanted.clear();
        case.attachments = vec![attachment("x", "a", "n1", true)];
        assert_eq!(case.plan().detach, ["x"]);
        let in_use = json!({"volumesInUse": ["kubernetes.io/csi/d^h-a"]});
        case.node = Some(node(in_use.clone()));
        let plan = case.plan();
        assert!(plan.detach.is_empty() && plan.look_again.is_some());
        let mut silent = in_use;
        silent["conditions"] = json!([{"type": "Ready", "status": "Unknown"}]);
        case.node = Some(node(silent));
        assert_eq!(case.plan().detach, ["x"], "a silent node is fenced, not waited for");
        case.node = None;
        assert_eq!(case.plan().detach, ["x"]);
    }

    #[test]
    fn the_node_is_told_what_is_attached() {
        let mut case = Case::new(&[("a", "ReadWriteOnce")]);
        case.attachments = vec![attachment("x", "a", "n1", true)];
        assert_eq!(case.plan().report, Some(vec!["kubernetes.io/csi/d^h-a".to_owned()]));
        let told = json!({"volumesAttached": [{"name": "kubernetes.io/csi/d^h-a", "devicePath": ""}]});
        case.node = Some(node(told));
        assert_eq!(case.plan().report, None);
    }
}
