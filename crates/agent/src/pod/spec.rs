//! Reading a Pod: its identity, its containers in the order they matter, its policies with their defaults.
//!
//! Pure. The API server has defaulted and validated the object; what is missing here all the same gets the value
//! that Kubernetes documents.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Seconds between the stop signal and SIGKILL when the pod does not say.
const GRACE_DEFAULT_S: i64 = 30;

/// What identifies one life of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl PodKey {
    /// None for an object without identity, which no API server sends.
    pub(crate) fn of(pod: &Pod) -> Option<PodKey> {
        let meta = &pod.metadata;
        Some(PodKey { namespace: meta.namespace.clone()?, name: meta.name.clone()?, uid: meta.uid.clone()? })
    }
}

impl std::fmt::Display for PodKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// When a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// To its end, before the next one.
    Init,
    /// Started in order with the init containers, but kept running beside the main ones.
    Sidecar,
    /// All together.
    Main,
}

/// Whether a container that ended is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restart {
    Always,
    OnFailure,
    Never,
}

impl Restart {
    pub(crate) fn wants(self, exit_code: i32) -> bool {
        match self {
            Restart::Always => true,
            Restart::OnFailure => exit_code != 0,
            Restart::Never => false,
        }
    }
}

/// All containers in the order in which they start.
pub(crate) fn containers(spec: &PodSpec) -> impl Iterator<Item = (Role, &Container)> {
    let init = spec.init_containers.iter().flatten().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        (if sidecar { Role::Sidecar } else { Role::Init }, container)
    });
    init.chain(spec.containers.iter().map(|container| (Role::Main, container)))
}

/// A container by its name.
pub(crate) fn container<'a>(spec: &'a PodSpec, name: &str) -> Option<(Role, &'a Container)> {
    containers(spec).find(|(_, container)| container.name == name)
}

pub(crate) fn restart(spec: &PodSpec) -> Restart {
    match spec.restart_policy.as_deref() {
        Some("Never") => Restart::Never,
        Some("OnFailure") => Restart::OnFailure,
        _ => Restart::Always,
    }
}

/// The policy of one container: init containers of a pod that restarts always are retried until they succeed.
pub(crate) fn restart_of(spec: &PodSpec, role: Role) -> Restart {
    match (role, restart(spec)) {
        (Role::Sidecar, _) => Restart::Always,
        (Role::Init, Restart::Always) => Restart::OnFailure,
        (_, policy) => policy,
    }
}

/// Seconds a stopping pod is given: what the deletion asks, else what the pod asks.
pub(crate) fn grace_s(pod: &Pod) -> i64 {
    let asked = pod.metadata.deletion_timestamp.as_ref().and(pod.metadata.deletion_grace_period_seconds);
    let own = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    asked.or(own).unwrap_or(GRACE_DEFAULT_S).max(0)
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// The API already says how the pod ended; it never runs again.
pub(crate) fn ended_in_api(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The attempt that follows what the API records, for a container that the runtime no longer knows.
pub(crate) fn next_attempt(pod: &Pod, name: &str) -> u32 {
    let Some(status) = pod.status.as_ref() else { return 0 };
    let mut statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let ran = statuses.find(|entry| entry.name == name).filter(|entry| entry.container_id.is_some());
    ran.map_or(0, |entry| u32::try_from(entry.restart_count).unwrap_or(0) + 1)
}

/// The exit code that the API records for a container that the runtime no longer knows.
pub(crate) fn recorded_exit(pod: &Pod, name: &str) -> Option<i32> {
    let status = pod.status.as_ref()?;
    let mut statuses = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    Some(statuses.find(|entry| entry.name == name)?.state.as_ref()?.terminated.as_ref()?.exit_code)
}
