//! A container in the words of CRI: command, environment, mounts, resources, rights. Pure.

use std::collections::HashMap;

use cairn_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext};

use super::env::expand;
use super::sandbox::{self, NodeFacts};
use super::spec::PodKey;
use crate::names::{annotation, label};
use crate::quantity;

/// What was found out for this container before it could be described.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ingredients {
    /// The reference under which the runtime knows the image.
    pub(crate) image: String,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) mounts: Vec<cri::Mount>,
    pub(crate) attempt: u32,
    /// Bytes of memory of the node, for the kernel's choice of victims.
    pub(crate) node_memory: i64,
}

const CPU_PERIOD_US: i64 = 100_000;
/// What the kernel accepts at least.
const CPU_SHARES_MIN: i64 = 2;
const CPU_QUOTA_MIN_US: i64 = 1000;

/// Hidden from a container that is not privileged.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The log file of one life of a container, relative to the pod's log directory.
pub(crate) fn log_path(name: &str, attempt: u32) -> String {
    format!("{name}/{attempt}.log")
}

/// Where a container leaves its last words.
pub(crate) fn termination_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log")
}

/// The container to create.
pub(crate) fn container_config(
    pod: &Pod,
    key: &PodKey,
    container: &Container,
    node: &NodeFacts,
    with: Ingredients,
) -> cri::ContainerConfig {
    let empty = PodSpec::default();
    let pod_spec = pod.spec.as_ref().unwrap_or(&empty);
    let words = |list: &Option<Vec<String>>| {
        list.iter().flatten().map(|word| expand(word, &with.environment)).collect::<Vec<_>>()
    };
    let mut labels: HashMap<String, String> = sandbox::identity(key, node).into_iter().collect();
    labels.insert(label::CONTAINER_NAME.into(), container.name.clone());
    let annotations = HashMap::from([
        (annotation::RESTART_COUNT.to_owned(), with.attempt.to_string()),
        (annotation::TERMINATION_LOG.to_owned(), termination_path(container).to_owned()),
    ]);
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: with.attempt }),
        image: Some(cri::ImageSpec { image: with.image.clone(), ..Default::default() }),
        command: words(&container.command),
        args: words(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: with.environment.iter().map(|(key, value)| entry(key, value)).collect(),
        mounts: with.mounts.clone(),
        devices: Vec::new(),
        labels,
        annotations,
        log_path: log_path(&container.name, with.attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(pod, container, with.node_memory)),
            security_context: Some(rights(pod_spec, container)),
        }),
    }
}

fn entry(key: &str, value: &str) -> cri::KeyValue {
    cri::KeyValue { key: key.to_owned(), value: value.to_owned() }
}

fn resources(pod: &Pod, container: &Container, node_memory: i64) -> cri::LinuxContainerResources {
    let asked = container.resources.as_ref();
    let limits = asked.and_then(|asked| asked.limits.as_ref());
    let requests = asked.and_then(|asked| asked.requests.as_ref());
    let milli = |name: &str, limit: bool| {
        let own = if limit { limits } else { requests.filter(|requests| requests.contains_key(name)).or(limits) };
        own.and_then(|list| list.get(name)).and_then(quantity::milli).and_then(|milli| i64::try_from(milli).ok())
    };
    let bytes = |name: &str, limit: bool| milli(name, limit).map_or(0, |milli| milli / 1000);
    let shares = milli("cpu", false).map_or(CPU_SHARES_MIN, |milli| (milli * 1024 / 1000).max(CPU_SHARES_MIN));
    let quota = milli("cpu", true).map(|milli| (milli * CPU_PERIOD_US / 1000).max(CPU_QUOTA_MIN_US));
    cri::LinuxContainerResources {
        cpu_period: quota.map_or(0, |_| CPU_PERIOD_US),
        cpu_quota: quota.unwrap_or(0),
        cpu_shares: shares,
        memory_limit_in_bytes: bytes("memory", true),
        oom_score_adj: oom_score(pod, bytes("memory", false), node_memory),
        ..Default::default()
    }
}

/// Best-effort pods go first, guaranteed ones last, those in between by how little of the node they asked for.
fn oom_score(pod: &Pod, request: i64, node_memory: i64) -> i64 {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => -997,
        Some("BestEffort") => 1000,
        _ => (1000 - 1000 * request / node_memory.max(1)).clamp(3, 999),
    }
}

fn rights(pod_spec: &PodSpec, container: &Container) -> cri::LinuxContainerSecurityContext {
    let none = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&none);
    let shared = pod_spec.security_context.as_ref();
    let privileged = own.privileged.unwrap_or(false);
    let list =
        |paths: &[&str]| if privileged { Vec::new() } else { paths.iter().map(|&path| path.to_owned()).collect() };
    let capabilities = own.capabilities.as_ref().map(|wanted| cri::Capability {
        add_capabilities: wanted.add.clone().unwrap_or_default(),
        drop_capabilities: wanted.drop.clone().unwrap_or_default(),
    });
    let user = own.run_as_user.or_else(|| shared.and_then(|shared| shared.run_as_user));
    let group = own.run_as_group.or_else(|| shared.and_then(|shared| shared.run_as_group));
    let profile = own.seccomp_profile.as_ref().or_else(|| shared.and_then(|shared| shared.seccomp_profile.as_ref()));
    cri::LinuxContainerSecurityContext {
        capabilities,
        privileged,
        namespace_options: Some(sandbox::namespaces(pod_spec)),
        run_as_user: user.map(sandbox::wrapped),
        // CRI refuses a group without a user.
        run_as_group: user.and(group).map(sandbox::wrapped),
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: sandbox::groups(pod_spec),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: list(&MASKED),
        readonly_paths: list(&READ_ONLY),
        seccomp: Some(sandbox::seccomp(profile.filter(|_| !privileged))),
        run_as_username: String::new(),
    }
}

/// Whether the container demands not to be root, and what user it names itself.
pub(crate) fn non_root(pod_spec: &PodSpec, container: &Container) -> (bool, Option<i64>) {
    let own = container.security_context.as_ref();
    let shared = pod_spec.security_context.as_ref();
    let demanded = own
        .and_then(|own| own.run_as_non_root)
        .or_else(|| shared.and_then(|shared| shared.run_as_non_root))
        .unwrap_or(false);
    let user = own.and_then(|own| own.run_as_user).or_else(|| shared.and_then(|shared| shared.run_as_user));
    (demanded, user)
}

#[cfg(test)]
mod tests {
    use super::{Ingredients, container_config};
    use crate::pod::dns::ClusterDns;
    use crate::pod::sandbox::{NodeFacts, sandbox_config};
    use crate::pod::spec::PodKey;
    use cairn_proto::cri;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn node() -> NodeFacts {
        NodeFacts {
            name: "k1".into(),
            hostname: "host".into(),
            cgroup_parent: "/cairn".into(),
            log_root: "/logs".into(),
            dns: ClusterDns::default(),
            resolv_conf: "nameserver 192.0.2.53".into(),
        }
    }

    fn both(spec: serde_json::Value) -> (cri::PodSandboxConfig, cri::ContainerConfig) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "u", "labels": {"app": "x"}},
            "spec": spec,
        }))
        .expect("a pod");
        let key = PodKey::of(&pod).expect("complete");
        let container = pod.spec.as_ref().expect("a spec").containers[0].clone();
        let with = Ingredients {
            image: "i".into(),
            environment: vec![("A".into(), "1".into())],
            attempt: 2,
            node_memory: 1 << 30,
            ..Default::default()
        };
        (sandbox_config(&pod, &key, 0, &node()), container_config(&pod, &key, &container, &node(), with))
    }

    #[test]
    fn a_plain_pod() {
        let (sandbox, container) = both(json!({"containers": [{
            "name": "c", "command": ["sh", "-c", "echo $(A)"],
            "ports": [{"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}],
            "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"cpu": "500m", "memory": "512Mi"}},
        }]}));
        assert_eq!(sandbox.hostname, "web");
        assert_eq!(sandbox.log_directory, "/logs/n_web_u");
        assert_eq!(sandbox.labels["app"], "x");
        assert_eq!(sandbox.port_mappings.len(), 1);
        assert_eq!(sandbox.dns_config.expect("set").servers, ["192.0.2.53"]);
        assert_eq!(sandbox.linux.expect("set").cgroup_parent, "/cairn/podu");
        assert_eq!(container.command, ["sh", "-c", "echo 1"]);
        assert_eq!(container.log_path, "c/2.log");
        assert_eq!(container.annotations["io.kubernetes.container.restartCount"], "2");
        let resources = container.linux.expect("set").resources.expect("set");
        assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.cpu_period), (256, 50_000, 100_000));
        assert_eq!(resources.memory_limit_in_bytes, 512 << 20);
        assert_eq!(resources.oom_score_adj, 750);
    }

    #[test]
    fn rights_are_the_containers_before_the_pods() {
        let (sandbox, container) = both(json!({
            "hostNetwork": true,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 3000, "fsGroup": 2000, "supplementalGroups": [7]},
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}], "securityContext": {
                "runAsUser": 5, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            }}],
        }));
        assert!(sandbox.port_mappings.is_empty(), "the node's network needs no mapping");
        assert_eq!(sandbox.hostname, "host");
        let rights = container.linux.expect("set").security_context.expect("set");
        assert_eq!(rights.run_as_user.expect("set").value, 5);
        assert_eq!(rights.run_as_group.expect("set").value, 3000);
        assert_eq!(rights.supplemental_groups, [7, 2000]);
        assert!(rights.readonly_rootfs && rights.no_new_privs && !rights.privileged);
        assert_eq!(rights.capabilities.expect("set").drop_capabilities, ["ALL"]);
        assert_eq!(rights.namespace_options.expect("set").network, i32::from(cri::NamespaceMode::Node));
        assert_eq!(rights.seccomp.expect("set").profile_type, 0);
    }

    #[test]
    fn a_privileged_container_sees_everything() {
        let (sandbox, container) =
            both(json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}));
        assert!(sandbox.linux.expect("set").security_context.expect("set").privileged);
        let rights = container.linux.expect("set").security_context.expect("set");
        assert!(rights.privileged && rights.masked_paths.is_empty() && rights.readonly_paths.is_empty());
    }
}
