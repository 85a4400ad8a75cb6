//! Each row is a picture of the world and the step that follows from it.

use serde_json::{Value, json};

use super::*;
use crate::reconcile::given::object;

struct Case {
    claim: Value,
    volumes: Vec<Value>,
    classes: Vec<Value>,
    users: Vec<&'static str>,
    selected: Option<Option<&'static str>>,
    driver: Option<&'static str>,
}

impl Case {
    /// A protected claim of 1Gi of class "fast", which is known and ours.
    fn new() -> Self {
        Self {
            claim: json!({
                "metadata": {"name": "data", "namespace": "ns", "uid": "u", "finalizers": [PROTECTION],
                    "annotations": {PROVISIONER: "d"}},
                "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"],
                    "resources": {"requests": {"storage": "1Gi"}}},
            }),
            volumes: vec![],
            classes: vec![json!({"metadata": {"name": "fast"}, "provisioner": "d"})],
            users: vec![],
            selected: None,
            driver: Some("d"),
        }
    }

    fn claim(mut self, pointer: &str, value: Value) -> Self {
        set(&mut self.claim, pointer, value);
        self
    }

    fn class(mut self, pointer: &str, value: Value) -> Self {
        set(&mut self.classes[0], pointer, value);
        self
    }

    /// A free volume of 2Gi of the same class, changed.
    fn volume(mut self, name: &str, changes: &[(&str, Value)]) -> Self {
        let mut volume = json!({
            "metadata": {"name": name},
            "spec": {"storageClassName": "fast", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"},
                "csi": {"driver": "d", "volumeHandle": "7"}},
            "status": {"phase": "Available"},
        });
        changes.iter().for_each(|(pointer, value)| set(&mut volume, pointer, value.clone()));
        self.volumes.push(volume);
        self
    }

    /// Bound to volume "v" of this size on both sides.
    fn bound(self, size: &str) -> Self {
        self.claim("/spec/volumeName", json!("v"))
            .claim("/metadata/annotations", json!({BIND_COMPLETED: "yes", PROVISIONER: "d"}))
            .claim("/status", json!({"phase": "Bound", "capacity": {"storage": size}}))
            .volume(
                "v",
                &[
                    ("/spec/claimRef", json!({"namespace": "ns", "name": "data", "uid": "u"})),
                    ("/spec/capacity/storage", json!(size)),
                    ("/status/phase", json!("Bound")),
                ],
            )
    }

    fn step(&self) -> String {
        let claim = object(self.claim.clone());
        let volumes: Vec<_> = self.volumes.iter().cloned().map(object).collect();
        let classes: Vec<_> = self.classes.iter().cloned().map(object).collect();
        let user = |name: &&str| object(json!({"metadata": {"name": name}}));
        let users: Vec<_> = self.users.iter().map(user).collect();
        let node: Option<Option<Arc<Node>>> =
            self.selected.map(|node| node.map(|name| object(json!({"metadata": {"name": name}}))));
        let facts = Facts {
            claim: &claim,
            volumes: &volumes,
            classes: &classes,
            users: &users,
            selected: node.as_ref().map(Option::as_deref),
            driver: self.driver,
        };
        match decide(&facts) {
            Step::Bind(volume) => format!("bind {}", volume.name_any()),
            Step::Provision(class) => format!("provision {}", class.name_any()),
            Step::Expand(volume, to) => format!("expand {} to {to}", volume.name_any()),
            Step::Wait { severity, reason, message } => format!("{severity} {reason}: {message}"),
            other => format!("{other:?}"),
        }
    }
}

/// Sets a field, making the objects on the way.
fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for part in pointer.trim_start_matches('/').split('/') {
        at = &mut at[part];
    }
    *at = value;
}

#[test]
fn a_new_claim_is_protected_given_its_class_and_a_volume() {
    assert_eq!(Case::new().claim("/metadata/finalizers", json!([])).step(), "Protect");
    let classless = || Case::new().claim("/spec/storageClassName", Value::Null);
    let default = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    assert_eq!(classless().class("/metadata/annotations", default).step(), "SetClass(\"fast\")");
    assert_eq!(
        classless().step(),
        "Warning FailedBinding: no persistent volumes available for this claim and no storage class is set; name one \
         (there are: \"fast\") or mark one as the default"
    );
    assert_eq!(Case::new().claim("/metadata/annotations", json!({})).step(), "Announce(\"d\")");
    assert_eq!(Case::new().step(), "provision fast");
    assert_eq!(Case { driver: None, ..Case::new() }.step(), "MeetDriver");
}

#[test]
fn what_cannot_be_made_says_why() {
    let starts = |case: Case, text: &str| {
        let step = case.step();
        assert!(step.starts_with(text), "{step}");
    };
    starts(
        Case::new().claim("/spec/storageClassName", json!("gold")),
        "Warning ProvisioningFailed: storageclass.storage.k8s.io \"gold\" not found; there are: \"fast\". Create it",
    );
    starts(
        Case::new().claim("/spec/storageClassName", json!("")),
        "Warning FailedBinding: no persistent volume fits this claim, and it wants no storage class",
    );
    starts(
        Case::new().class("/provisioner", json!("kubernetes.io/no-provisioner")),
        "Warning FailedBinding: no persistent volume fits this claim, and storage class \"fast\" makes none",
    );
    starts(Case::new().class("/provisioner", json!("x")), "Announce(\"x\")");
    starts(
        Case::new().class("/provisioner", json!("x")).claim("/metadata/annotations", json!({PROVISIONER: "x"})),
        "Normal ExternalProvisioning: Waiting for a volume to be created by the external provisioner 'x'",
    );
    starts(
        Case::new().claim("/spec/dataSource", json!({"kind": "VolumeSnapshot", "name": "s"})),
        "Warning ProvisioningFailed: a volume cannot be made from a data source here",
    );
    starts(
        Case::new().claim("/spec/selector", json!({"matchLabels": {"a": "b"}})),
        "Warning ProvisioningFailed: a selector",
    );
}

#[test]
fn a_volume_that_an_admin_made_comes_before_a_new_one() {
    assert_eq!(Case::new().volume("v", &[]).step(), "bind v");
    assert_eq!(Case::new().volume("small", &[("/spec/capacity/storage", json!("1Mi"))]).step(), "provision fast");
    let reserved = [("/spec/claimRef", json!({"namespace": "ns", "name": "data"}))];
    assert_eq!(Case::new().volume("a", &[]).volume("mine", &reserved).step(), "bind mine");
    let named = || Case::new().claim("/spec/volumeName", json!("v"));
    assert_eq!(named().volume("a", &[]).volume("v", &[]).step(), "bind v");
    assert_eq!(
        named().step(),
        "Warning FailedBinding: volume \"v\" that the claim names does not exist; make it, or leave spec.volumeName empty"
    );
    let others = [("/spec/claimRef", json!({"namespace": "ns", "name": "other", "uid": "x"}))];
    assert_eq!(
        named().volume("v", &others).step(),
        "Warning FailedBinding: volume \"v\" already belongs to claim ns/other"
    );
    assert_eq!(
        named().volume("v", &[("/spec/accessModes", json!(["ReadOnlyMany"]))]).step(),
        "Warning FailedBinding: volume \"v\" does not fit the claim: it does not offer ReadWriteOnce"
    );
}

#[test]
fn a_late_class_waits_for_its_first_consumer() {
    let late = || Case::new().class("/volumeBindingMode", json!("WaitForFirstConsumer"));
    assert_eq!(late().step(), "Normal WaitForFirstConsumer: waiting for first consumer to be created before binding");
    assert_eq!(late().volume("v", &[]).step(), late().step(), "free volumes wait too");
    let reserved = [("/spec/claimRef", json!({"namespace": "ns", "name": "data"}))];
    assert_eq!(late().volume("v", &reserved).step(), "bind v");
    let used = Case { users: vec!["p"], ..late() };
    assert_eq!(used.step(), "Normal WaitForPodScheduled: waiting for pod p to be scheduled");
    assert_eq!(Case { selected: Some(None), ..late() }.step(), "Unselect");
    assert_eq!(Case { selected: Some(Some("n1")), ..late() }.step(), "provision fast");
    assert_eq!(Case { selected: Some(Some("n1")), ..late().volume("v", &[]) }.step(), "bind v");
}

#[test]
fn a_bind_that_broke_off_is_finished() {
    assert_eq!(Case::new().bound("1Gi").step(), "Rest");
    assert_eq!(Case::new().bound("1Gi").claim("/status", json!({"phase": "Pending"})).step(), "bind v");
    assert_eq!(Case::new().bound("1Gi").claim("/metadata/annotations", json!({})).step(), "bind v");
    let mut half = Case::new().bound("1Gi");
    set(&mut half.volumes[0], "/status/phase", json!("Pending"));
    assert_eq!(half.step(), "bind v");
    let mut reserved = Case::new().bound("1Gi");
    set(&mut reserved.volumes[0], "/spec/claimRef/uid", Value::Null);
    assert_eq!(reserved.step(), "bind v");
}

#[test]
fn a_bound_claim_can_lose_its_volume() {
    let mut gone = Case::new().bound("1Gi");
    gone.volumes.clear();
    assert!(gone.step().starts_with("Lose(\"Bound claim has lost its PersistentVolume"), "{}", gone.step());
    assert_eq!(gone.claim("/status/phase", json!("Lost")).step(), "Rest");
    let mut stolen = Case::new().bound("1Gi");
    set(&mut stolen.volumes[0], "/spec/claimRef", json!({"namespace": "ns", "name": "other", "uid": "x"}));
    assert_eq!(stolen.step(), "Lose(\"the claim's volume \\\"v\\\" is bound to another claim, ns/other\")");
    let unnamed = Case::new().bound("1Gi").claim("/spec/volumeName", Value::Null);
    assert!(unnamed.step().starts_with("Lose("), "{}", unnamed.step());
}

#[test]
fn a_claim_grows_where_its_class_allows_it() {
    let larger = || Case::new().bound("1Gi").claim("/spec/resources/requests/storage", json!("3Gi"));
    assert_eq!(
        larger().step(),
        "Warning VolumeResizeFailed: storage class \"fast\" does not allow volumes to grow; set allowVolumeExpansion: \
         true on it, or set the claim back to 1Gi"
    );
    let allowed = || larger().class("/allowVolumeExpansion", json!(true));
    assert_eq!(allowed().step(), format!("expand v to {}", 3u64 << 30));
    assert_eq!(Case { driver: None, ..allowed() }.step(), "MeetDriver");
    assert_eq!(Case { driver: Some("other"), ..allowed() }.step(), "Rest");
    let pending = json!([{"type": "FileSystemResizePending", "status": "True"}]);
    let mut waiting = allowed().claim("/status/conditions", pending);
    set(&mut waiting.volumes[0], "/spec/capacity/storage", json!("3Gi"));
    assert_eq!(waiting.step(), "Rest", "the node has something left to do");
    let again = waiting.claim("/spec/resources/requests/storage", json!("4Gi"));
    assert_eq!(again.step(), format!("expand v to {}", 4u64 << 30));
}

#[test]
fn a_deleted_claim_waits_for_its_pods() {
    let deleted = || Case::new().claim("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"));
    assert_eq!(deleted().step(), "LetGo");
    let used = Case { users: vec!["p"], ..deleted() };
    assert_eq!(used.step(), "Normal InUse: deleted when pod p no longer uses it");
    assert_eq!(deleted().claim("/metadata/finalizers", json!([])).step(), "Rest");
}
