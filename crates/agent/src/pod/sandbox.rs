//! A pod's sandbox in the words of CRI: identity, network, namespaces, log directory. Pure.

use std::path::{Path, PathBuf};

use cairn_proto::cri;
use k8s_openapi::api::core::v1::{Pod, PodSpec, SeccompProfile};

use super::dns::{self, ClusterDns};
use super::spec::{self, PodKey};
use crate::names::label;

/// What the node adds to a pod.
#[derive(Clone, Debug)]
pub(crate) struct NodeFacts {
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) cgroup_parent: String,
    pub(crate) log_root: PathBuf,
    pub(crate) dns: ClusterDns,
    pub(crate) resolv_conf: String,
}

/// Host names end where Linux ends them.
const HOSTNAME_MAX: usize = 63;

/// The sandbox of this pod.
pub(crate) fn sandbox_config(pod: &Pod, key: &PodKey, attempt: u32, node: &NodeFacts) -> cri::PodSandboxConfig {
    let empty = PodSpec::default();
    let pod_spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut labels: std::collections::HashMap<String, String> =
        pod.metadata.labels.clone().unwrap_or_default().into_iter().collect();
    labels.extend(identity(key, node));
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: key.name.clone(),
            uid: key.uid.clone(),
            namespace: key.namespace.clone(),
            attempt,
        }),
        hostname: hostname(pod, node),
        log_directory: log_directory(&node.log_root, key).display().to_string(),
        dns_config: Some(dns::resolver(&key.namespace, pod_spec, &node.dns, &node.resolv_conf)),
        port_mappings: if spec::host_network(pod) { Vec::new() } else { port_mappings(pod_spec) },
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default().into_iter().collect(),
        linux: Some(linux(pod_spec, key, node)),
    }
}

/// The labels by which everything of this pod is found again.
pub(crate) fn identity(key: &PodKey, node: &NodeFacts) -> [(String, String); 4] {
    [
        (label::POD_NAME.into(), key.name.clone()),
        (label::POD_NAMESPACE.into(), key.namespace.clone()),
        (label::POD_UID.into(), key.uid.clone()),
        (label::NODE.into(), node.name.clone()),
    ]
}

/// Where the logs of a pod's containers are.
pub(crate) fn log_directory(root: &Path, key: &PodKey) -> PathBuf {
    root.join(format!("{}_{}_{}", key.namespace, key.name, key.uid))
}

/// The log directories of a pod of which only the uid is known.
pub(crate) fn log_directories(root: &Path, uid: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| log_owner(path) == Some(uid)).collect()
}

/// The uid of the pod whose logs are in this directory.
pub(crate) fn log_owner(path: &Path) -> Option<&str> {
    Some(path.file_name()?.to_str()?.rsplit_once('_')?.1)
}

/// What the pod calls itself.
pub(crate) fn hostname(pod: &Pod, node: &NodeFacts) -> String {
    if spec::host_network(pod) {
        return node.hostname.clone();
    }
    let own = pod.spec.as_ref().and_then(|spec| spec.hostname.as_deref());
    let name = own.or(pod.metadata.name.as_deref()).unwrap_or_default();
    let cut = &name[..name.len().min(HOSTNAME_MAX)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn port_mappings(pod_spec: &PodSpec) -> Vec<cri::PortMapping> {
    let ports = spec::containers(pod_spec).flat_map(|(_, container)| container.ports.iter().flatten());
    let mapped = ports.filter_map(|port| {
        let host_port = port.host_port.filter(|&port| port > 0)?;
        let protocol = match port.protocol.as_deref() {
            Some("UDP") => cri::Protocol::Udp,
            Some("SCTP") => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        };
        Some(cri::PortMapping {
            protocol: protocol.into(),
            container_port: port.container_port,
            host_port,
            host_ip: port.host_ip.clone().unwrap_or_default(),
        })
    });
    mapped.collect()
}

fn linux(pod_spec: &PodSpec, key: &PodKey, node: &NodeFacts) -> cri::LinuxPodSandboxConfig {
    let context = pod_spec.security_context.as_ref();
    let privileged = spec::containers(pod_spec).any(|(_, container)| {
        container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
    });
    let sysctls = context.and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    cri::LinuxPodSandboxConfig {
        cgroup_parent: format!("{}/pod{}", node.cgroup_parent.trim_end_matches('/'), key.uid),
        security_context: Some(cri::LinuxSandboxSecurityContext {
            namespace_options: Some(namespaces(pod_spec)),
            privileged,
            run_as_user: context.and_then(|context| context.run_as_user).map(wrapped),
            run_as_group: context
                .filter(|context| context.run_as_user.is_some())
                .and_then(|context| context.run_as_group)
                .map(wrapped),
            readonly_rootfs: false,
            supplemental_groups: groups(pod_spec),
            seccomp: Some(seccomp(context.and_then(|context| context.seccomp_profile.as_ref()))),
        }),
        sysctls: sysctls.map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
    }
}

/// Network and IPC are the pod's; processes are each container's own, unless the pod says otherwise.
pub(crate) fn namespaces(pod_spec: &PodSpec) -> cri::NamespaceOption {
    let mode = |host: Option<bool>, otherwise| if host == Some(true) { cri::NamespaceMode::Node } else { otherwise };
    let shared = pod_spec.share_process_namespace == Some(true);
    let processes = if shared { cri::NamespaceMode::Pod } else { cri::NamespaceMode::Container };
    cri::NamespaceOption {
        network: mode(pod_spec.host_network, cri::NamespaceMode::Pod).into(),
        pid: mode(pod_spec.host_pid, processes).into(),
        ipc: mode(pod_spec.host_ipc, cri::NamespaceMode::Pod).into(),
        target_id: String::new(),
    }
}

/// Groups of every process in the pod.
pub(crate) fn groups(pod_spec: &PodSpec) -> Vec<i64> {
    let Some(context) = &pod_spec.security_context else { return Vec::new() };
    context.supplemental_groups.iter().flatten().copied().chain(context.fs_group).collect()
}

pub(crate) fn seccomp(profile: Option<&SeccompProfile>) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, path) = match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, None),
        Some("Localhost") => (ProfileType::Localhost, profile.and_then(|profile| profile.localhost_profile.clone())),
        _ => (ProfileType::Unconfined, None),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.unwrap_or_default() }
}

pub(crate) fn wrapped(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}
