//! The worker of one pod: looks at what is, asks for a plan, says how it stands, does the steps, and waits for news.
//!
//! One worker for each pod, one step at a time. It holds nothing that the runtime, the disk or the API does not also
//! hold, but back-offs and last words: an agent that is killed and started again goes on where it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::{Hold, crash_streak};
use super::context::Shared;
use super::observe::Observed;
use super::patch::merge_patch;
use super::plan::{Facts, Gate, Plan, Step, Volumes, plan};
use super::probes::Probes;
use super::spec::{self, PodKey};
use super::status::{self, Report};
use super::words;
use crate::volumes::Mounted;

/// What the API server wants of a pod.
#[derive(Clone, Debug)]
pub(crate) enum Desired {
    /// It exists; its deletion timestamp says whether it has to go.
    Present(Arc<Pod>),
    /// It is not there any more; what is left here has to go.
    Gone(Arc<Pod>),
}

impl Desired {
    pub(crate) fn pod(&self) -> &Arc<Pod> {
        let (Desired::Present(pod) | Desired::Gone(pod)) = self;
        pod
    }

    pub(crate) fn must_stop(&self) -> bool {
        matches!(self, Desired::Gone(_)) || self.pod().metadata.deletion_timestamp.is_some()
    }
}

/// The runtime or the API server did not answer: ask again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Volumes that are files are compared with their sources this often.
const REFRESH: Duration = Duration::from_secs(60);

/// See the module's words.
pub(crate) struct Worker {
    pub(super) context: Shared,
    pub(super) key: PodKey,
    pub(super) desired: watch::Receiver<Desired>,
    pub(super) nudge: Arc<Notify>,
    /// Cancelled when the pod has to go: ends long waits.
    pub(super) stop: CancellationToken,
    pub(super) mounted: Option<Mounted>,
    pub(super) holds: BTreeMap<Gate, Hold>,
    pub(super) streaks: BTreeMap<String, u32>,
    messages: BTreeMap<String, String>,
    /// The attempt whose wait was an event, by container.
    told: BTreeMap<String, u32>,
    pub(super) probes: Probes,
    refreshed: Instant,
    /// The pod as our own last write returned it.
    written: Option<Arc<Pod>>,
    pub(super) forgotten: bool,
}

impl Worker {
    pub(crate) fn new(
        context: Shared,
        key: PodKey,
        desired: watch::Receiver<Desired>,
        nudge: Arc<Notify>,
        stop: CancellationToken,
    ) -> Worker {
        let probes = Probes::new(context.runtime.clone(), context.events.clone(), Arc::clone(&nudge));
        Worker {
            context,
            key,
            desired,
            nudge,
            stop,
            mounted: None,
            holds: BTreeMap::new(),
            streaks: BTreeMap::new(),
            messages: BTreeMap::new(),
            told: BTreeMap::new(),
            probes,
            refreshed: Instant::now(),
            written: None,
            forgotten: false,
        }
    }

    /// Until nothing of the pod is left on this node and in the API.
    pub(crate) async fn run(mut self) {
        let mut last: Option<(Vec<Step>, Observed)> = None;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let pod = self.latest(&desired);
            let observed = match self.context.observe(&self.key).await {
                Ok(observed) => observed,
                Err(error) => {
                    tracing::warn!(pod = %self.key, %error, "the runtime did not answer");
                    self.wait(Some(RETRY)).await;
                    continue;
                }
            };
            self.notice(&pod, &observed);
            let plan = self.plan(&desired, &pod, &observed);
            self.tell_waits(&pod, &observed, &plan);
            let reported = match &desired {
                Desired::Present(_) => self.report(&pod, &observed, &plan).await,
                Desired::Gone(_) => true,
            };
            if plan.steps.is_empty() || (self.forgotten && plan.steps == [Step::Forget]) {
                if self.forgotten && matches!(desired, Desired::Gone(_)) {
                    return;
                }
                let pause = self.pause(&pod, &plan, reported);
                self.wait(pause).await;
                self.refresh(&pod, &observed).await;
                continue;
            }
            // The same steps for the same state: they change nothing, so they are not repeated at full speed.
            let tried = (plan.steps.clone(), observed.clone());
            if last.as_ref() == Some(&tried) {
                self.wait(Some(RETRY)).await;
            }
            last = Some(tried);
            for step in plan.steps {
                if step == Step::Forget && !reported {
                    // The last states are said before the object goes.
                    self.wait(Some(RETRY)).await;
                    break;
                }
                let gate = step.gate();
                let done = self.perform(&step, &pod, &observed).await;
                if !self.settle(gate, done, &pod) {
                    break;
                }
            }
            if self.forgotten && matches!(*self.desired.borrow(), Desired::Gone(_)) {
                return;
            }
        }
    }

    /// The newest pod of what was watched and what our own writes returned.
    fn latest(&self, desired: &Desired) -> Arc<Pod> {
        let version = |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
        match &self.written {
            Some(written) if version(written) > version(desired.pod()) => Arc::clone(written),
            _ => Arc::clone(desired.pod()),
        }
    }

    /// Takes over what an observation tells: last words, probes to start.
    fn notice(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let alive: Vec<&String> = observed.containers.iter().map(|life| &life.id).collect();
        self.messages.retain(|id, _| alive.contains(&id));
        let pod_dir = self.context.volumes.pod_dir(&self.key.uid);
        let logs = super::sandbox::log_directory(&self.context.node.log_root, &self.key);
        let ended = observed.containers.iter().filter_map(|life| Some((life, life.exit()?)));
        for (life, exit) in ended.filter(|(life, _)| !self.messages.contains_key(&life.id)).collect::<Vec<_>>() {
            let container = pod.spec.as_ref().and_then(|pod_spec| spec::container(pod_spec, &life.name));
            let from_log = container.is_some_and(|(_, container)| {
                container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError") && exit.code != 0
            });
            let log = from_log.then(|| logs.join(super::container::log_path(&life.name, life.attempt)));
            if let Some(said) = words::read(&words::file(&pod_dir, &life.name, life.attempt), log.as_deref()) {
                self.messages.insert(life.id.clone(), said);
            }
        }
        let around = self.context.surroundings(observed, spec::host_network(pod));
        self.probes.follow(pod, observed, around.pod_addresses.first().map(String::as_str).unwrap_or_default());
    }

    fn plan(&self, desired: &Desired, pod: &Pod, observed: &Observed) -> Plan {
        let volumes = match &self.mounted {
            Some(_) => Volumes::Mounted,
            None if self.context.volumes.is_present(&self.key.uid) => Volumes::Partial,
            None => Volumes::Gone,
        };
        plan(&Facts {
            pod,
            now: Timestamp::now(),
            observed,
            volumes,
            stop: desired.must_stop().then(|| spec::grace_s(pod)),
            holds: &self.holds,
            streaks: &self.streaks,
            unhealthy: &self.probes.unhealthy(),
            starting: &self.probes.starting(),
        })
    }

    /// One event for each wait after a crash.
    fn tell_waits(&mut self, pod: &Pod, observed: &Observed, plan: &Plan) {
        for (name, waiting) in plan.waiting.iter().filter(|(_, waiting)| waiting.reason == "CrashLoopBackOff") {
            let attempt = observed.newest(name).map(|life| life.attempt);
            if self.told.get(name) != attempt.as_ref() {
                self.told.extend(attempt.map(|attempt| (name.clone(), attempt)));
                let message = waiting.message.clone().unwrap_or_default();
                let message = format!("{message}; `kubectl logs --previous` shows how it ended");
                self.context.events.warning(crate::report::about(pod, Some(name)), "BackOff", message);
            }
        }
    }

    /// Writes the status if it changed. False when it could not be written.
    async fn report(&mut self, pod: &Arc<Pod>, observed: &Observed, plan: &Plan) -> bool {
        let computed = status::status(&Report {
            pod,
            observed,
            waiting: &plan.waiting,
            unready: &self.probes.unready(),
            starting: &self.probes.starting(),
            messages: &self.messages,
            runtime: &self.context.runtime_name,
            host_address: &self.context.host_address,
            stopping: pod.metadata.deletion_timestamp.is_some(),
            now: Timestamp::now(),
        });
        let before = json!(pod.status.clone().unwrap_or_default());
        let Some(change) = merge_patch(&before, &json!(computed)) else { return true };
        // The version makes it a conflict when somebody else wrote a condition meanwhile; we come back with theirs.
        let meta = json!({"uid": self.key.uid, "resourceVersion": pod.metadata.resource_version});
        let patch = Patch::Merge(json!({"metadata": meta, "status": change}));
        let written = self.pods().patch_status(&self.key.name, &PatchParams::default(), &patch).await;
        match written {
            Ok(pod) => {
                self.written = Some(Arc::new(pod));
                true
            }
            // Gone, or newer than what we saw: the watch brings it.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => status.code == 404,
            Err(error) => {
                tracing::warn!(pod = %self.key, %error, "the status could not be written");
                false
            }
        }
    }

    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    /// Books a step's outcome: a failure holds its gate. True when the next step may follow.
    fn settle(&mut self, gate: Gate, done: Result<(), Failure>, pod: &Pod) -> bool {
        let Err(failure) = done else {
            self.holds.remove(&gate);
            return true;
        };
        if failure.reason == Failure::INTERRUPTED {
            return false;
        }
        tracing::warn!(pod = %self.key, reason = failure.reason, message = failure.message, "a step failed");
        let container = if let Gate::Container(name) = &gate { Some(name.as_str()) } else { None };
        let whom = crate::report::about(pod, container);
        self.context.events.warning(whom, failure.event, failure.message.clone());
        let previous = self.holds.get(&gate);
        let hold = Hold::after(previous, Timestamp::now(), failure.longest, failure.reason, failure.message);
        // One container's failure does not keep the others waiting.
        let go_on = container.is_some();
        self.holds.insert(gate, hold);
        go_on
    }

    /// How long to wait without news.
    fn pause(&self, pod: &Pod, plan: &Plan, reported: bool) -> Option<Duration> {
        let until = plan.wake_at.map(|at| at.duration_since(Timestamp::now()).max(SignedDuration::from_millis(1)));
        let until = until.and_then(|wait| Duration::try_from(wait).ok());
        let has_files = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| {
            volume.config_map.is_some()
                || volume.secret.is_some()
                || volume.projected.is_some()
                || volume.downward_api.is_some()
        });
        let refresh = (has_files && self.mounted.is_some()).then_some(REFRESH);
        let retry = (!reported).then_some(RETRY);
        [until, refresh, retry].into_iter().flatten().min()
    }

    async fn wait(&mut self, limit: Option<Duration>) {
        let timer = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.desired.changed() => if changed.is_err() {
                // Whoever steers the workers is gone, and this task with it in a moment.
                std::future::pending::<()>().await;
            },
            () = self.nudge.notified() => {}
            () = timer => {}
        }
    }

    /// Brings volumes that are files up to date.
    async fn refresh(&mut self, pod: &Pod, observed: &Observed) {
        let due = self.refreshed.elapsed() >= REFRESH;
        if !due || self.mounted.is_none() || self.desired.borrow().must_stop() {
            return;
        }
        self.refreshed = Instant::now();
        let around = self.context.surroundings(observed, spec::host_network(pod));
        match self.context.volumes.refresh(pod, &self.key, &around).await {
            Ok(()) => {}
            Err(error) => tracing::debug!(pod = %self.key, %error, "a volume was not refreshed"),
        }
    }

    /// A container that ended is started again: counts its crashes in a row.
    pub(super) fn count_crash(&mut self, observed: &Observed, name: &str) {
        let Some(last) = observed.newest(name) else { return };
        let Some(exit) = last.exit() else { return };
        let ran = match (exit.started, exit.finished) {
            (Some(started), Some(finished)) => finished.duration_since(started),
            _ => SignedDuration::ZERO,
        };
        let streak = self.streaks.get(name).copied().unwrap_or(last.attempt);
        self.streaks.insert(name.to_owned(), crash_streak(streak, ran));
    }

    /// Removes the object, this life of it and no other.
    pub(super) async fn delete(&self) -> Result<(), Failure> {
        let preconditions = Preconditions { uid: Some(self.key.uid.clone()), resource_version: None };
        let params =
            DeleteParams { grace_period_seconds: Some(0), preconditions: Some(preconditions), ..Default::default() };
        match self.pods().delete(&self.key.name, &params).await {
            Ok(_) => Ok(()),
            // Gone already, or another life of the name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Failure::teardown(format!("deleting the pod's object: {error}"))),
        }
    }
}

/// A step that did not succeed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// For the container's status, and what the hold carries.
    pub(super) reason: &'static str,
    /// The event's reason.
    pub(super) event: &'static str,
    pub(super) message: String,
    /// The longest pause before the next try.
    pub(super) longest: SignedDuration,
}

impl Failure {
    /// Not a failure: the pod has to go, so the step was left.
    pub(super) const INTERRUPTED: &'static str = "Interrupted";

    pub(super) fn interrupted() -> Failure {
        let longest = SignedDuration::ZERO;
        Failure { reason: Failure::INTERRUPTED, event: "", message: String::new(), longest }
    }

    pub(super) fn teardown(message: String) -> Failure {
        Failure { reason: "FailedKillPod", event: "FailedKillPod", message, longest: SignedDuration::from_secs(10) }
    }
}
