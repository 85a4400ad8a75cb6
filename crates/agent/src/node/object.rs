//! The Node object: what is declared when the node registers, and its status. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::facts::Machine;
use crate::containerd::architecture;
use crate::names::annotation;

/// The Kubernetes version that clients are told, with our own behind it.
const VERSION: &str = concat!("v1.32.0+cairn-", env!("CARGO_PKG_VERSION"));

/// What a node is, apart from the machine.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) port: u16,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) pod_cidr: Option<String>,
    /// `containerd://1.6.20`
    pub(crate) runtime: String,
}

/// Whether pods can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) ready: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Labels that the agent keeps on its Node.
pub(crate) fn labels(identity: &Identity, machine: &Machine) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), identity.name.clone()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
        ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ("cairn.dev/machine".to_owned(), machine.hostname.clone()),
    ]);
    labels.extend(identity.labels.clone());
    labels
}

/// The object to register.
pub(crate) fn node(identity: &Identity, machine: &Machine) -> Node {
    let pod_cidrs = identity.pod_cidr.clone().map(|cidr| vec![cidr]);
    Node {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            labels: Some(labels(identity, machine)),
            annotations: Some(BTreeMap::from([(annotation::CONTROLLER_ATTACH.to_owned(), "true".to_owned())])),
            ..Default::default()
        },
        spec: Some(NodeSpec { pod_cidr: identity.pod_cidr.clone(), pod_cidrs, ..Default::default() }),
        status: None,
    }
}

/// The status, grown from the one it has: conditions keep their times, fields of others stay.
pub(crate) fn status(
    old: &NodeStatus,
    identity: &Identity,
    machine: &Machine,
    readiness: &Readiness,
    in_use: Vec<String>,
    now: Timestamp,
) -> NodeStatus {
    let mut status = old.clone();
    let resources = resources(machine);
    status.capacity = Some(resources.clone());
    status.allocatable = Some(resources);
    status.addresses = Some(vec![address("InternalIP", &identity.address), address("Hostname", &identity.name)]);
    let endpoint = DaemonEndpoint { port: i32::from(identity.port) };
    status.daemon_endpoints = Some(NodeDaemonEndpoints { kubelet_endpoint: Some(endpoint) });
    status.node_info = Some(NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: machine.boot_id.clone(),
        container_runtime_version: identity.runtime.clone(),
        kernel_version: machine.kernel.clone(),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        machine_id: machine.machine_id.clone(),
        operating_system: "linux".into(),
        os_image: machine.os_image.clone(),
        system_uuid: machine.system_uuid.clone(),
        ..Default::default()
    });
    status.volumes_in_use = (!in_use.is_empty()).then_some(in_use);
    let mut conditions = status.conditions.take().unwrap_or_default();
    for (kind, reason, message) in [
        ("MemoryPressure", "KubeletHasSufficientMemory", "the node has memory to give"),
        ("DiskPressure", "KubeletHasNoDiskPressure", "the node has disk to give"),
        ("PIDPressure", "KubeletHasSufficientPID", "the node has process ids to give"),
    ] {
        set(&mut conditions, kind, false, (reason, message), now);
    }
    set(&mut conditions, "Ready", readiness.ready, (&readiness.reason, &readiness.message), now);
    status.conditions = Some(conditions);
    status
}

fn resources(machine: &Machine) -> BTreeMap<String, Quantity> {
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", machine.memory_bytes / 1024))),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", machine.disk_bytes / 1024))),
        ("pods".to_owned(), Quantity(machine.pods.to_string())),
    ])
}

fn address(kind: &str, address: &str) -> NodeAddress {
    NodeAddress { type_: kind.to_owned(), address: address.to_owned() }
}

fn set(list: &mut Vec<NodeCondition>, kind: &str, holds: bool, (reason, message): (&str, &str), now: Timestamp) {
    let status = if holds { "True" } else { "False" };
    let index = list.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        list.push(NodeCondition { type_: kind.into(), ..Default::default() });
        list.len() - 1
    });
    let condition = &mut list[index];
    if condition.status != status {
        condition.status = status.into();
        condition.last_transition_time = Some(Time(now));
    }
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message.to_owned());
    condition.last_heartbeat_time = Some(Time(now));
}

/// Whether two statuses differ in more than the time of the heartbeat.
pub(crate) fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let calm = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    calm(old) != calm(new)
}

#[cfg(test)]
mod tests {
    use super::{Identity, Readiness, differs, node, status};
    use crate::node::facts::Machine;
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::NodeStatus;

    fn identity() -> Identity {
        Identity {
            name: "k1".into(),
            address: "192.0.2.7".into(),
            port: 10250,
            labels: [("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into(),
            pod_cidr: Some("10.88.0.0/24".into()),
            runtime: "containerd://1.6.20".into(),
        }
    }

    fn machine() -> Machine {
        Machine { cpus: 2, memory_bytes: 4 << 30, ..Machine::look(std::path::Path::new("/tmp")) }
    }

    #[test]
    fn heartbeats_change_nothing_that_counts() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let ready = Readiness { ready: true, reason: "KubeletReady".into(), message: "m".into() };
        let first = status(&NodeStatus::default(), &identity(), &machine(), &ready, vec![], at(10));
        let second = status(&first, &identity(), &machine(), &ready, vec![], at(20));
        assert!(!differs(&first, &second));
        let conditions = second.conditions.as_ref().expect("set");
        let condition = conditions.iter().find(|condition| condition.type_ == "Ready").expect("set");
        assert_eq!(condition.last_transition_time.as_ref().expect("set").0, at(10));
        assert_eq!(condition.last_heartbeat_time.as_ref().expect("set").0, at(20));
        let not = Readiness { ready: false, ..ready.clone() };
        assert!(differs(&second, &status(&second, &identity(), &machine(), &not, vec![], at(30))));
        let used = status(&second, &identity(), &machine(), &ready, vec!["v".into()], at(30));
        assert!(differs(&second, &used));
        assert_eq!(used.capacity.expect("set")["memory"].0, "4194304Ki");
    }

    #[test]
    fn the_node_says_where_it_is() {
        let node = node(&identity(), &machine());
        let labels = node.metadata.labels.expect("set");
        assert_eq!(labels["kubernetes.io/hostname"], "k1");
        assert_eq!(labels["topology.kubernetes.io/zone"], "a");
        let annotations = node.metadata.annotations.expect("set");
        assert_eq!(annotations["volumes.kubernetes.io/controller-managed-attach-detach"], "true");
        assert_eq!(node.spec.expect("set").pod_cidr.as_deref(), Some("10.88.0.0/24"));
    }
}
