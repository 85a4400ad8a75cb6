//! The names that tie runtime objects, API objects and paths together, and nothing else.

/// Sandbox and container labels, the same that every kubelet writes, so that `crictl` and log collectors work.
pub(crate) mod label {
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// The node whose agent made it: an agent touches nothing that carries another value or none.
    pub(crate) const NODE: &str = "cairn.dev/node";
}

/// Container annotations: what an agent that comes back must know and only its predecessor knew.
pub(crate) mod annotation {
    pub(crate) const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
    pub(crate) const TERMINATION_LOG: &str = "io.kubernetes.container.terminationMessagePath";
    /// On a Node: attachments are made by the attach/detach controller, not by this agent.
    pub(crate) const CONTROLLER_ATTACH: &str = "volumes.kubernetes.io/controller-managed-attach-detach";
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
