//! What the runtime says about one pod, in the words the planning uses. Conversions only.

use cairn_proto::cri;
use jiff::Timestamp;

use crate::names::annotation;

/// A pod's sandboxes and containers, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Observed {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) containers: Vec<Contained>,
}

/// One sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    pub(crate) attempt: u32,
    pub(crate) ready: bool,
    /// Empty when the pod uses the node's network.
    pub(crate) addresses: Vec<String>,
}

/// One container, running or not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Contained {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) sandbox: String,
    /// Which container of this name it is, from 0: the restart count.
    pub(crate) attempt: u32,
    pub(crate) state: State,
    pub(crate) created: Option<Timestamp>,
    pub(crate) image: String,
    pub(crate) image_id: String,
}

/// Where in its life a container is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    Created,
    Running {
        started: Option<Timestamp>,
    },
    Exited(Exit),
    /// The runtime lost track of it.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Default)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Option<Timestamp>,
}

impl Observed {
    /// The sandbox in which containers may be started.
    pub(crate) fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.iter().find(|sandbox| sandbox.ready)
    }

    /// The newest container of this name, in any sandbox.
    pub(crate) fn newest(&self, name: &str) -> Option<&Contained> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest container of this name in this sandbox.
    pub(crate) fn newest_in(&self, sandbox: &str, name: &str) -> Option<&Contained> {
        self.containers.iter().find(|container| container.name == name && container.sandbox == sandbox)
    }

    /// The container of this name before the newest.
    pub(crate) fn previous(&self, name: &str) -> Option<&Contained> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }

    /// Puts the newest first; attempts only grow.
    pub(crate) fn sort(&mut self) {
        self.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.attempt));
        self.containers.sort_by(|a, b| b.attempt.cmp(&a.attempt).then_with(|| a.name.cmp(&b.name)));
    }
}

impl Contained {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Something may still execute in it.
    pub(crate) fn may_run(&self) -> bool {
        matches!(self.state, State::Running { .. } | State::Unknown)
    }

    pub(crate) fn exit(&self) -> Option<&Exit> {
        match &self.state {
            State::Exited(exit) => Some(exit),
            _ => None,
        }
    }
}

impl From<cri::PodSandboxStatus> for Sandbox {
    fn from(status: cri::PodSandboxStatus) -> Sandbox {
        let ready = status.state() == cri::PodSandboxState::SandboxReady;
        let network = status.network.unwrap_or_default();
        let others = network.additional_ips.into_iter().map(|more| more.ip);
        let addresses = std::iter::once(network.ip).chain(others).filter(|ip| !ip.is_empty()).collect();
        Sandbox { id: status.id, attempt: status.metadata.unwrap_or_default().attempt, ready, addresses }
    }
}

impl From<cri::ContainerStatus> for Contained {
    fn from(status: cri::ContainerStatus) -> Contained {
        let state = match status.state() {
            cri::ContainerState::ContainerCreated => State::Created,
            cri::ContainerState::ContainerRunning => State::Running { started: timestamp(status.started_at) },
            cri::ContainerState::ContainerExited => State::Exited(Exit {
                code: status.exit_code,
                reason: status.reason.clone(),
                message: status.message.clone(),
                started: timestamp(status.started_at),
                finished: timestamp(status.finished_at),
            }),
            cri::ContainerState::ContainerUnknown => State::Unknown,
        };
        let metadata = status.metadata.unwrap_or_default();
        let restarts = status.annotations.get(annotation::RESTART_COUNT).and_then(|count| count.parse().ok());
        Contained {
            id: status.id,
            name: metadata.name,
            sandbox: String::new(),
            attempt: restarts.unwrap_or(metadata.attempt),
            state,
            created: timestamp(status.created_at),
            image: status.image.unwrap_or_default().image,
            image_id: status.image_ref,
        }
    }
}

/// Nanoseconds since the epoch; 0 and less mean never.
fn timestamp(nanos: i64) -> Option<Timestamp> {
    (nanos > 0).then(|| Timestamp::from_nanosecond(i128::from(nanos)).ok()).flatten()
}
