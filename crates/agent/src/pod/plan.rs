//! What to do next for one pod: a pure function from what is wanted and what is to a short list of steps.
//!
//! It is asked again after every step and every change, so it remembers nothing; whoever restarts the agent loses
//! nothing. Volumes come before the sandbox, the sandbox before init containers, those before the main ones; on the
//! way out everything in reverse, and only then does the object go. It never performs anything.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::backoff::{Hold, crash_delay};
use super::observe::{Contained, Observed, Sandbox, State};
use super::spec::{self, Restart, Role};

/// Everything the decision rests on.
pub(crate) struct Facts<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) now: Timestamp,
    pub(crate) observed: &'a Observed,
    pub(crate) volumes: Volumes,
    /// Seconds of grace, once the pod has to go.
    pub(crate) stop: Option<i64>,
    /// Steps that failed and wait for their next try.
    pub(crate) holds: &'a BTreeMap<Gate, Hold>,
    /// Crashes in a row by container name; unknown names count their restarts.
    pub(crate) streaks: &'a BTreeMap<String, u32>,
    /// Containers whose liveness or startup probe failed for good, by id.
    pub(crate) unhealthy: &'a BTreeSet<String>,
    /// Containers whose startup probe has not passed yet, by id.
    pub(crate) starting: &'a BTreeSet<String>,
}

/// How far the pod's volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Volumes {
    /// Nothing of them is on this node.
    Gone,
    /// Something is: mounts from before a restart, or a mount that failed half way.
    Partial,
    /// All can be used.
    Mounted,
}

/// What can be held back after a failure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Gate {
    Volumes,
    Sandbox,
    Container(String),
    Teardown,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    MountVolumes,
    RunSandbox {
        attempt: u32,
    },
    StartContainer {
        name: String,
        sandbox: String,
        attempt: u32,
    },
    /// All of them at once, each with this grace.
    StopContainers {
        ids: Vec<String>,
        grace_s: i64,
    },
    RemoveContainer {
        id: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    UnmountVolumes,
    /// Nothing is left on this node: the object may go.
    Forget,
}

impl Step {
    /// What a failure of this step holds back.
    pub(crate) fn gate(&self) -> Gate {
        match self {
            Step::MountVolumes => Gate::Volumes,
            Step::RunSandbox { .. } => Gate::Sandbox,
            Step::StartContainer { name, .. } => Gate::Container(name.clone()),
            _ => Gate::Teardown,
        }
    }
}

/// Why a container does not run although it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    /// When to ask again although nothing changed.
    pub(crate) wake_at: Option<Timestamp>,
    pub(crate) waiting: BTreeMap<String, Waiting>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides the next steps.
pub(crate) fn plan(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let Some(pod_spec) = facts.pod.spec.as_ref() else { return plan };
    if let Some(hold) = facts.held(&Gate::Teardown) {
        plan.wake(hold.until);
        return plan;
    }
    match facts.stop {
        Some(grace_s) => wind_down(facts, pod_spec, grace_s, &mut plan),
        None if is_over(facts.pod, pod_spec, facts.observed) => rest(facts, &mut plan),
        None => keep_running(facts, pod_spec, &mut plan),
    }
    plan
}

impl Facts<'_> {
    /// The hold on a gate, while it lasts.
    fn held(&self, gate: &Gate) -> Option<&Hold> {
        self.holds.get(gate).filter(|hold| hold.until > self.now)
    }

    fn streak(&self, container: &Contained) -> u32 {
        self.streaks.get(&container.name).copied().unwrap_or(container.attempt)
    }
}

/// Whether the pod has done what it was to do and nothing of it starts again.
pub(crate) fn is_over(pod: &Pod, pod_spec: &PodSpec, observed: &Observed) -> bool {
    if spec::ended_in_api(pod) {
        return true;
    }
    // What runs is not over, and what an agent before us recorded in the API counts as much as what the runtime knows.
    let exit = |name: &str| match observed.newest(name) {
        Some(container) => container.exit().map(|exit| exit.code),
        None => spec::recorded_exit(pod, name),
    };
    let never = spec::restart(pod_spec) == Restart::Never;
    let mut done = true;
    for (role, container) in spec::containers(pod_spec) {
        let code = exit(&container.name);
        match role {
            Role::Init if never && code.is_some_and(|code| code != 0) => return true,
            Role::Init | Role::Sidecar => {}
            Role::Main => {
                let policy = spec::restart_of(pod_spec, role);
                done &= code.is_some_and(|code| !policy.wants(code));
            }
        }
    }
    done
}

/// A finished pod keeps its containers for their logs, but no process, no network and no volume.
fn rest(facts: &Facts<'_>, plan: &mut Plan) {
    let running = running_ids(facts, |_| true);
    if !running.is_empty() {
        plan.steps.push(Step::StopContainers { ids: running, grace_s: spec::grace_s(facts.pod) });
        return;
    }
    stop_sandboxes(facts, None, plan);
    if facts.volumes != Volumes::Gone {
        plan.steps.push(Step::UnmountVolumes);
    }
}

/// A pod that has to go: main containers, then sidecars, then the network, the volumes, the remains, the object.
fn wind_down(facts: &Facts<'_>, pod_spec: &PodSpec, grace_s: i64, plan: &mut Plan) {
    let is_sidecar = |name: &str| matches!(spec::container(pod_spec, name), Some((Role::Sidecar, _)));
    let mut running = running_ids(facts, |container| !is_sidecar(&container.name));
    if running.is_empty() {
        running = running_ids(facts, |_| true);
    }
    if !running.is_empty() {
        plan.steps.push(Step::StopContainers { ids: running, grace_s });
        return;
    }
    stop_sandboxes(facts, None, plan);
    if facts.volumes != Volumes::Gone {
        plan.steps.push(Step::UnmountVolumes);
    }
    // The last states are reported between two plans, so remains go only when nothing else is left to do.
    if !plan.steps.is_empty() {
        return;
    }
    plan.steps
        .extend(facts.observed.containers.iter().map(|container| Step::RemoveContainer { id: container.id.clone() }));
    plan.steps.extend(facts.observed.sandboxes.iter().map(|sandbox| Step::RemoveSandbox { id: sandbox.id.clone() }));
    if plan.steps.is_empty() {
        plan.steps.push(Step::Forget);
    }
}

fn keep_running(facts: &Facts<'_>, pod_spec: &PodSpec, plan: &mut Plan) {
    collect_garbage(facts, plan);
    if facts.volumes != Volumes::Mounted {
        match facts.held(&Gate::Volumes) {
            Some(hold) => plan.wake(hold.until),
            None => plan.steps.push(Step::MountVolumes),
        }
        return;
    }
    let Some(sandbox) = facts.observed.ready_sandbox() else {
        if let Some(hold) = facts.held(&Gate::Sandbox) {
            plan.wake(hold.until);
            return;
        }
        // The network of a dead sandbox is given back before a new one asks for it.
        plan.steps.extend(facts.observed.sandboxes.iter().map(|sandbox| Step::StopSandbox { id: sandbox.id.clone() }));
        let attempt = facts.observed.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
        plan.steps.push(Step::RunSandbox { attempt });
        return;
    };
    stop_sandboxes(facts, Some(sandbox), plan);
    let main_started = spec::containers(pod_spec).any(|(role, container)| {
        role == Role::Main && facts.observed.newest_in(&sandbox.id, &container.name).is_some()
    });
    for (role, container) in spec::containers(pod_spec) {
        if role == Role::Init && main_started {
            continue;
        }
        let settled = tend(facts, pod_spec, sandbox, (role, &container.name), plan);
        if !settled && role != Role::Main && !main_started {
            return;
        }
    }
}

/// Brings one container closer to running (or, for an init container, to its end). True when the next may start.
fn tend(facts: &Facts<'_>, pod_spec: &PodSpec, sandbox: &Sandbox, who: (Role, &str), plan: &mut Plan) -> bool {
    let (role, name) = who;
    let Some(container) = facts.observed.newest_in(&sandbox.id, name) else {
        // A container that ended in an earlier sandbox counts: its policy says whether there is another.
        let before = facts.observed.newest(name);
        let finished = match before {
            Some(container) => container.exit().map(|exit| exit.code),
            None => spec::recorded_exit(facts.pod, name),
        };
        if role == Role::Main && finished.is_some_and(|code| !spec::restart_of(pod_spec, role).wants(code)) {
            return true;
        }
        let attempt = before.map_or_else(|| spec::next_attempt(facts.pod, name), |container| container.attempt + 1);
        start(facts, sandbox, name, attempt, plan);
        return false;
    };
    match &container.state {
        State::Running { .. } if facts.unhealthy.contains(&container.id) => {
            let grace_s = spec::grace_s(facts.pod);
            plan.steps.push(Step::StopContainers { ids: vec![container.id.clone()], grace_s });
            false
        }
        State::Running { .. } => role == Role::Sidecar && !facts.starting.contains(&container.id),
        // The agent died between making and starting it.
        State::Created => {
            plan.steps.push(Step::RemoveContainer { id: container.id.clone() });
            false
        }
        State::Unknown => {
            let grace_s = spec::grace_s(facts.pod);
            plan.steps.push(Step::StopContainers { ids: vec![container.id.clone()], grace_s });
            false
        }
        State::Exited(exit) => {
            if !spec::restart_of(pod_spec, role).wants(exit.code) {
                return true;
            }
            let delay = crash_delay(facts.streak(container));
            let ready = exit.finished.and_then(|at| at.saturating_add(delay).ok()).unwrap_or(facts.now);
            if ready <= facts.now {
                start(facts, sandbox, name, container.attempt + 1, plan);
            } else {
                plan.wake(ready);
                plan.waiting.insert(name.to_owned(), crash_loop(facts.pod, name, delay));
            }
            false
        }
    }
}

fn start(facts: &Facts<'_>, sandbox: &Sandbox, name: &str, attempt: u32, plan: &mut Plan) {
    match facts.held(&Gate::Container(name.to_owned())) {
        Some(hold) => {
            plan.wake(hold.until);
            let waiting = Waiting { reason: hold.reason.to_owned(), message: Some(hold.message.clone()) };
            plan.waiting.insert(name.to_owned(), waiting);
        }
        None => plan.steps.push(Step::StartContainer { name: name.to_owned(), sandbox: sandbox.id.clone(), attempt }),
    }
}

fn crash_loop(pod: &Pod, name: &str, delay: SignedDuration) -> Waiting {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let message =
        format!("back-off {}s restarting failed container={name} pod={pod_name}_{namespace}", delay.as_secs());
    Waiting { reason: "CrashLoopBackOff".into(), message: Some(message) }
}

fn running_ids(facts: &Facts<'_>, mut wanted: impl FnMut(&Contained) -> bool) -> Vec<String> {
    let running = facts.observed.containers.iter().filter(|container| container.may_run() && wanted(container));
    running.map(|container| container.id.clone()).collect()
}

fn stop_sandboxes(facts: &Facts<'_>, but: Option<&Sandbox>, plan: &mut Plan) {
    let ready = facts.observed.sandboxes.iter().filter(|sandbox| sandbox.ready);
    let others = ready.filter(|sandbox| but.is_none_or(|keep| keep.id != sandbox.id));
    plan.steps.extend(others.map(|sandbox| Step::StopSandbox { id: sandbox.id.clone() }));
}

/// Of each container the newest two stay (the last one's log is asked for), of the sandboxes the newest two.
fn collect_garbage(facts: &Facts<'_>, plan: &mut Plan) {
    let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
    for container in &facts.observed.containers {
        let count = seen.entry(&container.name).or_default();
        *count += 1;
        if *count > 2 && !container.may_run() {
            plan.steps.push(Step::RemoveContainer { id: container.id.clone() });
        }
    }
    for sandbox in facts.observed.sandboxes.iter().skip(2).filter(|sandbox| !sandbox.ready) {
        plan.steps.push(Step::RemoveSandbox { id: sandbox.id.clone() });
    }
}
