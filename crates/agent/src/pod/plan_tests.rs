//! Stories of the planning function: a pod, what the runtime shows, and the steps that must follow.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::backoff::Hold;
use super::observe::{Contained, Exit, Observed, Sandbox, State};
use super::plan::{Facts, Gate, Plan, Step, Volumes, plan};

/// A story's stage; every test changes what it is about.
struct Stage {
    pod: Pod,
    observed: Observed,
    volumes: Volumes,
    stop: Option<i64>,
    holds: BTreeMap<Gate, Hold>,
    streaks: BTreeMap<String, u32>,
    unhealthy: BTreeSet<String>,
    starting: BTreeSet<String>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + second).expect("in range")
}

fn stage(spec: serde_json::Value) -> Stage {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": spec,
    }))
    .expect("a pod");
    Stage {
        pod,
        observed: Observed::default(),
        volumes: Volumes::Mounted,
        stop: None,
        holds: BTreeMap::new(),
        streaks: BTreeMap::new(),
        unhealthy: BTreeSet::new(),
        starting: BTreeSet::new(),
    }
}

impl Stage {
    fn sandbox(mut self, attempt: u32, ready: bool) -> Stage {
        let sandbox = Sandbox { id: format!("s{attempt}"), attempt, ready, addresses: vec![] };
        self.observed.sandboxes.push(sandbox);
        self.observed.sort();
        self
    }

    /// A container in the newest sandbox.
    fn container(mut self, name: &str, attempt: u32, state: State) -> Stage {
        let sandbox = self.observed.sandboxes.first().map(|sandbox| sandbox.id.clone()).unwrap_or_default();
        self.observed.containers.push(Contained {
            id: format!("{name}{attempt}"),
            name: name.into(),
            sandbox,
            attempt,
            state,
            created: None,
            image: String::new(),
            image_id: String::new(),
        });
        self.observed.sort();
        self
    }

    fn at(&self, now: Timestamp) -> Plan {
        plan(&Facts {
            pod: &self.pod,
            now,
            observed: &self.observed,
            volumes: self.volumes,
            stop: self.stop,
            holds: &self.holds,
            streaks: &self.streaks,
            unhealthy: &self.unhealthy,
            starting: &self.starting,
        })
    }

    fn steps(&self) -> Vec<Step> {
        self.at(at(0)).steps
    }
}

fn running() -> State {
    State::Running { started: Some(at(-5)) }
}

fn exited(code: i32) -> State {
    State::Exited(Exit { code, finished: Some(at(0)), started: Some(at(-5)), ..Default::default() })
}

fn start(name: &str, sandbox: &str, attempt: u32) -> Step {
    Step::StartContainer { name: name.into(), sandbox: sandbox.into(), attempt }
}

fn stop(ids: &[&str], grace_s: i64) -> Step {
    Step::StopContainers { ids: ids.iter().map(|id| (*id).to_owned()).collect(), grace_s }
}

fn one() -> serde_json::Value {
    json!({"containers": [{"name": "a"}]})
}

#[test]
fn volumes_then_sandbox_then_containers() {
    let mut stage = stage(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    stage.volumes = Volumes::Gone;
    assert_eq!(stage.steps(), [Step::MountVolumes]);
    stage.volumes = Volumes::Mounted;
    assert_eq!(stage.steps(), [Step::RunSandbox { attempt: 0 }]);
    let stage = stage.sandbox(0, true);
    assert_eq!(stage.steps(), [start("a", "s0", 0), start("b", "s0", 0)]);
    let stage = stage.container("a", 0, running());
    assert_eq!(stage.steps(), [start("b", "s0", 0)]);
    assert_eq!(stage.container("b", 0, running()).steps(), []);
}

#[test]
fn init_containers_run_one_after_the_other() {
    let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let stage = stage(spec.clone()).sandbox(0, true);
    assert_eq!(stage.steps(), [start("i", "s0", 0)]);
    let stage = stage.container("i", 0, running());
    assert_eq!(stage.steps(), []);
    let fresh = || super::plan_tests::stage(spec.clone()).sandbox(0, true);
    let failed = fresh().container("i", 0, exited(1));
    assert_eq!(failed.steps(), [start("i", "s0", 1)], "a failed init container is retried");
    let first_done = fresh().container("i", 0, exited(0));
    assert_eq!(first_done.steps(), [start("j", "s0", 0)]);
    let both_done = first_done.container("j", 0, exited(0));
    assert_eq!(both_done.steps(), [start("a", "s0", 0)]);
    let up = both_done.container("a", 0, running());
    assert_eq!(up.steps(), []);
    // Init containers that were collected since do not run again.
    let later = fresh().container("a", 0, running());
    assert_eq!(later.steps(), []);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let stage = stage(spec).sandbox(0, true).container("i", 0, exited(2));
    assert_eq!(stage.steps(), [Step::StopSandbox { id: "s0".into() }, Step::UnmountVolumes]);
}

#[test]
fn sidecars_start_in_order_and_stop_last() {
    let spec = json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "a"}],
    });
    let mut stage = stage(spec).sandbox(0, true);
    assert_eq!(stage.steps(), [start("s", "s0", 0)]);
    stage = stage.container("s", 0, running());
    stage.starting.insert("s0".into());
    assert_eq!(stage.steps(), [], "its startup probe has not passed");
    stage.starting.clear();
    assert_eq!(stage.steps(), [start("i", "s0", 0)]);
    stage = stage.container("i", 0, exited(0)).container("a", 0, running());
    assert_eq!(stage.steps(), []);
    stage.stop = Some(7);
    assert_eq!(stage.steps(), [stop(&["a0"], 7)]);
    stage.observed.containers.retain(|container| container.name != "a");
    assert_eq!(stage.steps(), [stop(&["s0"], 7)]);
}

#[test]
fn a_crash_restarts_at_once_then_ever_later() {
    let stage = stage(one()).sandbox(0, true).container("a", 0, exited(1));
    assert_eq!(stage.steps(), [start("a", "s0", 1)]);
    let stage = stage.container("a", 1, exited(1));
    let plan = stage.at(at(9));
    assert_eq!(plan.steps, []);
    assert_eq!(plan.wake_at, Some(at(10)));
    assert_eq!(plan.waiting["a"].reason, "CrashLoopBackOff");
    assert_eq!(plan.waiting["a"].message.as_deref(), Some("back-off 10s restarting failed container=a pod=p_n"));
    assert_eq!(stage.at(at(10)).steps, [start("a", "s0", 2)]);
}

#[test]
fn old_attempts_are_collected_and_the_last_one_kept() {
    let stage = stage(one()).sandbox(0, true).container("a", 0, exited(1)).container("a", 1, exited(1)).container(
        "a",
        2,
        running(),
    );
    assert_eq!(stage.steps(), [Step::RemoveContainer { id: "a0".into() }]);
}

#[test]
fn policies_decide_who_starts_again() {
    for (policy, code, again) in
        [("Always", 0, true), ("Always", 1, true), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Never", 1, false)]
    {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let stage = stage(spec).sandbox(0, true).container("a", 0, exited(code));
        let expected = match again {
            true => vec![start("a", "s0", 1)],
            false => vec![Step::StopSandbox { id: "s0".into() }, Step::UnmountVolumes],
        };
        assert_eq!(stage.steps(), expected, "{policy} {code}");
    }
}

#[test]
fn a_finished_container_of_a_running_pod_stays_finished() {
    let spec = json!({"restartPolicy": "OnFailure", "containers": [{"name": "a"}, {"name": "b"}]});
    let stage = stage(spec).sandbox(0, true).container("a", 0, exited(0)).container("b", 0, running());
    assert_eq!(stage.steps(), []);
}

#[test]
fn a_dead_sandbox_is_replaced_and_the_count_goes_on() {
    let stage = stage(one()).sandbox(0, false).container("a", 3, exited(255));
    assert_eq!(stage.steps(), [Step::StopSandbox { id: "s0".into() }, Step::RunSandbox { attempt: 1 }]);
    let stage = stage.sandbox(1, true);
    assert_eq!(stage.steps(), [start("a", "s1", 4)]);
}

#[test]
fn what_the_api_recorded_is_not_repeated() {
    let mut stage = stage(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    stage.volumes = Volumes::Gone;
    stage.pod.status = serde_json::from_value(json!({
        "phase": "Running",
        "containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0}}}],
    }))
    .expect("a status");
    assert_eq!(stage.steps(), [], "it ended while nobody looked, and its container was removed");
}

#[test]
fn deletion_goes_backwards_and_forgets_last() {
    let mut stage = stage(one()).sandbox(0, true).container("a", 0, running());
    stage.stop = Some(30);
    assert_eq!(stage.steps(), [stop(&["a0"], 30)]);
    stage.observed.containers[0].state = exited(143);
    assert_eq!(stage.steps(), [Step::StopSandbox { id: "s0".into() }, Step::UnmountVolumes]);
    stage.observed.sandboxes[0].ready = false;
    stage.volumes = Volumes::Partial;
    assert_eq!(stage.steps(), [Step::UnmountVolumes], "nothing is removed while a volume is mounted");
    stage.volumes = Volumes::Gone;
    let remains = [Step::RemoveContainer { id: "a0".into() }, Step::RemoveSandbox { id: "s0".into() }];
    assert_eq!(stage.steps(), remains);
    stage.observed = Observed::default();
    assert_eq!(stage.steps(), [Step::Forget]);
}

#[test]
fn a_failed_step_waits_for_its_turn_and_says_why() {
    let hold = |reason: &'static str| Hold { until: at(4), failures: 2, reason, message: "no such image".into() };
    let mut stage = stage(one()).sandbox(0, true);
    stage.holds.insert(Gate::Container("a".into()), hold("ImagePullBackOff"));
    let plan = stage.at(at(0));
    assert_eq!((plan.steps.as_slice(), plan.wake_at), ([].as_slice(), Some(at(4))));
    assert_eq!(plan.waiting["a"].reason, "ImagePullBackOff");
    assert_eq!(stage.at(at(4)).steps, [start("a", "s0", 0)]);
    stage.holds.insert(Gate::Volumes, hold("FailedMount"));
    stage.volumes = Volumes::Partial;
    assert_eq!(stage.at(at(0)).wake_at, Some(at(4)));
    stage.stop = Some(1);
    assert_eq!(stage.steps(), [Step::StopSandbox { id: "s0".into() }, Step::UnmountVolumes], "deletion does not wait");
}

#[test]
fn an_unhealthy_container_is_stopped() {
    let mut stage = stage(json!({"terminationGracePeriodSeconds": 3, "containers": [{"name": "a"}]}))
        .sandbox(0, true)
        .container("a", 0, running());
    stage.unhealthy.insert("a0".into());
    assert_eq!(stage.steps(), [stop(&["a0"], 3)]);
}

#[test]
fn what_was_made_but_never_started_is_made_anew() {
    let stage = stage(one()).sandbox(0, true).container("a", 0, State::Created);
    assert_eq!(stage.steps(), [Step::RemoveContainer { id: "a0".into() }]);
}

#[test]
fn long_good_service_does_not_shorten_the_next_wait_by_itself() {
    let mut stage = stage(one()).sandbox(0, true).container("a", 6, exited(1));
    stage.streaks.insert("a".into(), 1);
    assert_eq!(stage.at(at(0)).wake_at, Some(at(0).saturating_add(SignedDuration::from_secs(10)).expect("in range")));
}
