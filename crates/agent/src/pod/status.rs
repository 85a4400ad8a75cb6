//! What the agent says about a pod: phase, conditions, container states. A pure function of what it knows; whether
//! that differs from what the API has is somebody else's question.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::observe::{Contained, Exit, Observed, State};
use super::plan::Waiting;
use super::spec::{self, Restart, Role};

/// Everything a status rests on.
pub(crate) struct Report<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) observed: &'a Observed,
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    /// Running containers that a readiness or startup probe holds back, by id.
    pub(crate) unready: &'a BTreeSet<String>,
    /// Running containers whose startup probe has not passed, by id.
    pub(crate) starting: &'a BTreeSet<String>,
    /// Last words of ended containers, by id.
    pub(crate) messages: &'a BTreeMap<String, String>,
    pub(crate) runtime: &'a str,
    pub(crate) host_address: &'a str,
    pub(crate) stopping: bool,
    pub(crate) now: Timestamp,
}

/// The pod's status, grown from the one it has.
pub(crate) fn status(report: &Report<'_>) -> PodStatus {
    let mut status = report.pod.status.clone().unwrap_or_default();
    let empty = PodSpec::default();
    let pod_spec = report.pod.spec.as_ref().unwrap_or(&empty);
    let (mut init, mut main) = (Vec::new(), Vec::new());
    for (role, container) in spec::containers(pod_spec) {
        let entry = container_status(report, role, container);
        if role == Role::Main { main.push(entry) } else { init.push(entry) }
    }
    status.start_time.get_or_insert(Time(report.now));
    status.host_ip = Some(report.host_address.to_owned());
    status.host_ips = Some(vec![HostIP { ip: report.host_address.to_owned() }]);
    set_addresses(report, &mut status);
    status.phase = Some(phase(report, pod_spec, &init, &main).to_owned());
    let conditions = conditions(report, pod_spec, &status, &init, &main);
    status.conditions = Some(conditions);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = Some(main);
    status
}

fn set_addresses(report: &Report<'_>, status: &mut PodStatus) {
    let addresses = match report.observed.ready_sandbox() {
        Some(_) if spec::host_network(report.pod) => vec![report.host_address.to_owned()],
        Some(sandbox) => sandbox.addresses.clone(),
        // A pod that ended keeps the address it had in its record.
        None => return,
    };
    status.pod_ip = addresses.first().cloned();
    status.pod_ips = Some(addresses.into_iter().map(|ip| PodIP { ip }).collect());
}

fn container_status(report: &Report<'_>, role: Role, container: &Container) -> ContainerStatus {
    let name = &container.name;
    let old = old_status(report.pod, name);
    let Some(newest) = report.observed.newest(name) else {
        return unseen(report, container, old);
    };
    let waiting = report.waiting.get(name);
    let state = match (waiting, &newest.state) {
        (Some(waiting), _) => waiting_state(waiting.clone()),
        (None, State::Created) => waiting_state(creating(report)),
        (None, _) => ended_or_running(report, newest),
    };
    // A waiting container shows how its last life ended; any other shows the life before.
    let last = if waiting.is_some() { Some(newest) } else { report.observed.previous(name) };
    let last = last.filter(|life| life.exit().is_some()).map(|life| ended_or_running(report, life));
    let started = newest.is_running() && waiting.is_none() && !report.starting.contains(&newest.id);
    let ready = match role {
        Role::Init => newest.exit().is_some_and(|exit| exit.code == 0),
        Role::Sidecar | Role::Main => started && !report.unready.contains(&newest.id),
    };
    ContainerStatus {
        name: name.clone(),
        image: if newest.image.is_empty() { container.image.clone().unwrap_or_default() } else { newest.image.clone() },
        image_id: newest.image_id.clone(),
        container_id: Some(format!("{}://{}", report.runtime, newest.id)),
        ready,
        started: Some(started),
        restart_count: i32::try_from(newest.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.or_else(|| old.and_then(|old| old.last_state.clone())).unwrap_or_default()),
        ..Default::default()
    }
}

/// A container that the runtime does not know: not made yet, or removed after its end.
fn unseen(report: &Report<'_>, container: &Container, old: Option<&ContainerStatus>) -> ContainerStatus {
    let before = old.cloned().unwrap_or_default();
    let state = before.state.clone().unwrap_or_default();
    let is_final = report.stopping || spec::ended_in_api(report.pod);
    let waiting = || waiting_state(report.waiting.get(&container.name).cloned().unwrap_or_else(|| creating(report)));
    let state = match (&state.terminated, &state.running) {
        (Some(_), _) if !report.waiting.contains_key(&container.name) => state,
        (None, Some(running)) if is_final => ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".into()),
                message: Some("the container was gone from the runtime before its end was seen".into()),
                started_at: running.started_at.clone(),
                container_id: before.container_id.clone(),
                ..Default::default()
            }),
            ..Default::default()
        },
        _ => waiting(),
    };
    ContainerStatus {
        name: container.name.clone(),
        image: if before.image.is_empty() { container.image.clone().unwrap_or_default() } else { before.image },
        image_id: before.image_id,
        container_id: before.container_id,
        ready: false,
        started: Some(false),
        restart_count: before.restart_count,
        state: Some(state),
        last_state: Some(before.last_state.unwrap_or_default()),
        ..Default::default()
    }
}

fn old_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.find(|entry| entry.name == name)
}

fn creating(report: &Report<'_>) -> Waiting {
    let has_init = report.pod.spec.as_ref().is_some_and(|spec| spec.init_containers.iter().flatten().next().is_some());
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    Waiting { reason: reason.into(), message: None }
}

fn waiting_state(waiting: Waiting) -> ContainerState {
    let waiting = ContainerStateWaiting { reason: Some(waiting.reason), message: waiting.message };
    ContainerState { waiting: Some(waiting), ..Default::default() }
}

fn ended_or_running(report: &Report<'_>, life: &Contained) -> ContainerState {
    match &life.state {
        State::Exited(exit) => {
            ContainerState { terminated: Some(terminated(report, life, exit)), ..Default::default() }
        }
        State::Running { started } => {
            let running = ContainerStateRunning { started_at: started.or(life.created).map(Time) };
            ContainerState { running: Some(running), ..Default::default() }
        }
        State::Created | State::Unknown => waiting_state(creating(report)),
    }
}

fn terminated(report: &Report<'_>, life: &Contained, exit: &Exit) -> ContainerStateTerminated {
    let reason = match (exit.reason.as_str(), exit.code) {
        ("", 0) => "Completed",
        ("", _) => "Error",
        (reason, _) => reason,
    };
    let id = format!("{}://{}", report.runtime, life.id);
    let said = report.messages.get(&life.id).cloned().or_else(|| said_before(report.pod, &life.name, &id));
    ContainerStateTerminated {
        exit_code: exit.code,
        reason: Some(reason.to_owned()),
        message: said.or_else(|| (!exit.message.is_empty()).then(|| exit.message.clone())),
        started_at: exit.started.or(life.created).map(Time),
        finished_at: exit.finished.map(Time),
        container_id: Some(id),
        ..Default::default()
    }
}

/// The message already on record for this life: its file may be gone with the pod's volumes.
fn said_before(pod: &Pod, name: &str, id: &str) -> Option<String> {
    let old = old_status(pod, name)?;
    let states = [&old.state, &old.last_state].into_iter().flatten();
    let ended = states.filter_map(|state| state.terminated.as_ref());
    ended.into_iter().find(|ended| ended.container_id.as_deref() == Some(id))?.message.clone()
}

fn exit_code(status: &ContainerStatus) -> Option<i32> {
    Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
}

fn phase(report: &Report<'_>, pod_spec: &PodSpec, init: &[ContainerStatus], main: &[ContainerStatus]) -> &'static str {
    match report.pod.status.as_ref().and_then(|status| status.phase.as_deref()) {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    let policy = spec::restart(pod_spec);
    if policy == Restart::Never && init.iter().any(|status| exit_code(status).is_some_and(|code| code != 0)) {
        return "Failed";
    }
    let is = |status: &ContainerStatus, which: fn(&ContainerState) -> bool| status.state.as_ref().is_some_and(which);
    let running = main.iter().filter(|status| is(status, |state| state.running.is_some())).count();
    let crashed = |status: &&ContainerStatus| {
        let before = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
        is(status, |state| state.waiting.is_some()) && before
    };
    let codes: Vec<i32> = main.iter().filter_map(exit_code).collect();
    let stopped = codes.len() + main.iter().filter(crashed).count();
    let all_well = codes.len() == main.len() && codes.iter().all(|&code| code == 0);
    if report.stopping && !report.observed.containers.iter().any(Contained::may_run) {
        return if all_well { "Succeeded" } else { "Failed" };
    }
    if running + stopped < main.len() {
        return "Pending";
    }
    match policy {
        _ if running > 0 => "Running",
        Restart::Always => "Running",
        _ if all_well => "Succeeded",
        Restart::Never => "Failed",
        Restart::OnFailure => "Running",
    }
}

fn conditions(
    report: &Report<'_>,
    pod_spec: &PodSpec,
    status: &PodStatus,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Vec<PodCondition> {
    let mut list = status.conditions.clone().unwrap_or_default();
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let completed = status.phase.as_deref() == Some("Succeeded");
    let names = |statuses: Vec<&ContainerStatus>| {
        statuses.iter().map(|status| status.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let verdict = |missing: Vec<&ContainerStatus>, reason: &str, words: &str| match missing.is_empty() {
        true => Verdict::yes(),
        false => Verdict::no(reason, format!("containers with {words} status: [{}]", names(missing))),
    };
    // An init container is through when it succeeded, a sidecar when it runs, both when a main container was started.
    let begun = main.iter().any(|status| status.container_id.is_some());
    let missing = init.iter().filter(|status| !status.ready && !begun).collect();
    let initialized = verdict(missing, "ContainersNotInitialized", "incomplete");
    let unready = main.iter().chain(init.iter().filter(|status| is_sidecar(pod_spec, &status.name)));
    let unready: Vec<_> = unready.filter(|status| !status.ready).collect();
    let containers_ready = match (over, completed) {
        (true, true) => Verdict::no("PodCompleted", String::new()),
        (true, false) => Verdict::no("PodFailed", String::new()),
        _ => verdict(unready, "ContainersNotReady", "unready"),
    };
    let gate_open = |gate: &&k8s_openapi::api::core::v1::PodReadinessGate| {
        list.iter().any(|condition| condition.type_ == gate.condition_type && condition.status == "True")
    };
    let closed = pod_spec.readiness_gates.iter().flatten().find(|gate| !gate_open(gate));
    let ready = match closed {
        Some(gate) if containers_ready.holds => {
            Verdict::no("ReadinessGatesNotReady", format!("condition {:?} is not \"True\"", gate.condition_type))
        }
        _ => containers_ready.clone(),
    };
    let sandbox = match report.observed.ready_sandbox() {
        Some(_) => Verdict::yes(),
        None => Verdict { holds: false, reason: None, message: None },
    };
    for (kind, verdict) in [
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
        ("PodScheduled", Verdict::yes()),
    ] {
        upsert(&mut list, kind, verdict, report.now);
    }
    list
}

fn is_sidecar(pod_spec: &PodSpec, name: &str) -> bool {
    matches!(spec::container(pod_spec, name), Some((Role::Sidecar, _)))
}

#[derive(Clone, Debug)]
struct Verdict {
    holds: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn yes() -> Verdict {
        Verdict { holds: true, reason: None, message: None }
    }

    fn no(reason: &str, message: String) -> Verdict {
        Verdict { holds: false, reason: Some(reason.into()), message: (!message.is_empty()).then_some(message) }
    }
}

/// Sets a condition; its time moves only when its status does.
fn upsert(list: &mut Vec<PodCondition>, kind: &str, verdict: Verdict, now: Timestamp) {
    let status = if verdict.holds { "True" } else { "False" };
    let index = list.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        list.push(PodCondition { type_: kind.into(), ..Default::default() });
        list.len() - 1
    });
    let condition = &mut list[index];
    if condition.status != status {
        condition.status = status.into();
        condition.last_transition_time = Some(Time(now));
    }
    condition.reason = verdict.reason;
    condition.message = verdict.message;
}

#[cfg(test)]
mod tests {
    use super::{Report, status};
    use crate::pod::observe::{Contained, Exit, Observed, Sandbox, State};
    use crate::pod::plan::Waiting;
    use jiff::Timestamp;
    use k8s_openapi::api::core::v1::{Pod, PodStatus};
    use serde_json::json;
    use std::collections::{BTreeMap, BTreeSet};

    struct Scene {
        pod: Pod,
        observed: Observed,
        waiting: BTreeMap<String, Waiting>,
        unready: BTreeSet<String>,
        stopping: bool,
    }

    fn scene(spec: serde_json::Value) -> Scene {
        let pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}));
        let sandbox = Sandbox { id: "s".into(), attempt: 0, ready: true, addresses: vec!["10.88.0.7".into()] };
        let observed = Observed { sandboxes: vec![sandbox], containers: vec![] };
        Scene {
            pod: pod.expect("a pod"),
            observed,
            waiting: BTreeMap::new(),
            unready: BTreeSet::new(),
            stopping: false,
        }
    }

    impl Scene {
        fn with(mut self, name: &str, attempt: u32, state: State) -> Scene {
            self.observed.containers.push(Contained {
                id: format!("{name}{attempt}"),
                name: name.into(),
                sandbox: "s".into(),
                attempt,
                state,
                created: None,
                image: "docker.io/library/busybox:1".into(),
                image_id: "sha256:1".into(),
            });
            self.observed.sort();
            self
        }

        fn status(&self) -> PodStatus {
            status(&Report {
                pod: &self.pod,
                observed: &self.observed,
                waiting: &self.waiting,
                unready: &self.unready,
                starting: &BTreeSet::new(),
                messages: &BTreeMap::new(),
                runtime: "containerd",
                host_address: "192.0.2.1",
                stopping: self.stopping,
                now: Timestamp::from_second(1_000).expect("in range"),
            })
        }

        fn phase(&self) -> String {
            self.status().phase.expect("always set")
        }
    }

    fn running() -> State {
        State::Running { started: Timestamp::from_second(900).ok() }
    }

    fn exited(code: i32) -> State {
        State::Exited(Exit { code, ..Default::default() })
    }

    fn condition(status: &PodStatus, kind: &str) -> String {
        let list = status.conditions.as_ref().expect("set");
        list.iter().find(|condition| condition.type_ == kind).expect("set").status.clone()
    }

    #[test]
    fn phases() {
        let spec = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
        let two = |policy: &str, a, b| scene(spec(policy)).with("a", 0, a).with("b", 0, b).phase();
        assert_eq!(scene(spec("Always")).with("a", 0, running()).phase(), "Pending");
        assert_eq!(two("Always", running(), running()), "Running");
        assert_eq!(two("Always", exited(1), exited(0)), "Running");
        assert_eq!(two("Never", exited(0), running()), "Running");
        assert_eq!(two("Never", exited(0), exited(0)), "Succeeded");
        assert_eq!(two("Never", exited(0), exited(3)), "Failed");
        assert_eq!(two("OnFailure", exited(0), exited(3)), "Running");
        let mut stopping = scene(spec("Always")).with("a", 0, exited(0)).with("b", 0, exited(143));
        stopping.stopping = true;
        assert_eq!(stopping.phase(), "Failed");
    }

    #[test]
    fn a_ready_pod() {
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let mut scene = scene(spec).with("i", 0, exited(0)).with("a", 2, running());
        let status = scene.status();
        assert_eq!(status.pod_ip.as_deref(), Some("10.88.0.7"));
        for kind in ["Initialized", "Ready", "ContainersReady", "PodScheduled", "PodReadyToStartContainers"] {
            assert_eq!(condition(&status, kind), "True", "{kind}");
        }
        let entry = &status.container_statuses.as_ref().expect("set")[0];
        assert_eq!((entry.restart_count, entry.ready), (2, true));
        assert_eq!(entry.container_id.as_deref(), Some("containerd://a2"));
        scene.unready.insert("a2".into());
        let status = scene.status();
        assert_eq!((condition(&status, "Ready"), condition(&status, "Initialized")), ("False".into(), "True".into()));
    }

    #[test]
    fn a_crash_loop_shows_both_lives() {
        let mut scene = scene(json!({"containers": [{"name": "a"}]})).with("a", 4, exited(7));
        scene.waiting.insert("a".into(), Waiting { reason: "CrashLoopBackOff".into(), message: Some("m".into()) });
        let status = scene.status();
        let entry = &status.container_statuses.as_ref().expect("set")[0];
        let state = entry.state.as_ref().and_then(|state| state.waiting.as_ref()).expect("waiting");
        assert_eq!(state.reason.as_deref(), Some("CrashLoopBackOff"));
        let last = entry.last_state.as_ref().and_then(|state| state.terminated.as_ref()).expect("ended before");
        assert_eq!((last.exit_code, last.reason.as_deref()), (7, Some("Error")));
        assert_eq!((entry.restart_count, status.phase.as_deref()), (4, Some("Running")));
    }

    #[test]
    fn the_end_stays_on_record_when_the_runtime_forgot() {
        let mut scene = scene(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]})).with("a", 0, exited(0));
        let first = scene.status();
        assert_eq!(condition(&first, "Ready"), "False");
        scene.pod.status = Some(first.clone());
        scene.observed = Observed::default();
        let second = scene.status();
        assert_eq!(second, first_without_sandbox(first));
    }

    fn first_without_sandbox(mut status: PodStatus) -> PodStatus {
        for condition in status.conditions.iter_mut().flatten() {
            if condition.type_ == "PodReadyToStartContainers" {
                condition.status = "False".into();
            }
        }
        status
    }

    #[test]
    fn other_peoples_conditions_and_times_stay() {
        let mut scene = scene(json!({"containers": [{"name": "a"}]})).with("a", 0, running());
        scene.pod.status = serde_json::from_value(json!({"qosClass": "Burstable", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "example.com/gate", "status": "False"},
        ]}))
        .expect("a status");
        let status = scene.status();
        let conditions = status.conditions.as_ref().expect("set");
        assert_eq!(conditions[1].type_, "example.com/gate");
        let scheduled = conditions[0].last_transition_time.as_ref().expect("kept");
        assert_eq!(scheduled.0.to_string(), "2020-01-01T00:00:00Z");
        assert_eq!(status.qos_class.as_deref(), Some("Burstable"));
    }
}
