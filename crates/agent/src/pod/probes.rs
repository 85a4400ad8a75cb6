//! Liveness, readiness and startup probes of running containers. Each container with probes has a task; what it finds
//! is read by the planning (unhealthy) and by the status (ready, started).
//!
//! The counting is pure (`Count`), the running is not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::handler::Action;
use super::observe::Observed;
use super::spec;
use crate::cri::Runtime;
use crate::report::{Events, about};

/// A probe that keeps failing in the same way is an event this often.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What the probes of one container say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Health {
    started: bool,
    ready: bool,
    dead: bool,
}

/// The probes of one pod.
pub(crate) struct Probes {
    runtime: Runtime,
    events: Events,
    nudge: Arc<Notify>,
    watched: BTreeMap<String, Watched>,
}

struct Watched {
    health: Arc<Mutex<Health>>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Probes {
    /// `nudge` is rung when something changed.
    pub(crate) fn new(runtime: Runtime, events: Events, nudge: Arc<Notify>) -> Probes {
        Probes { runtime, events, nudge, watched: BTreeMap::new() }
    }

    /// Starts probing what runs, stops probing what does not.
    pub(crate) fn follow(&mut self, pod: &Arc<Pod>, observed: &Observed, address: &str) {
        let running: BTreeSet<&str> =
            observed.containers.iter().filter(|life| life.is_running()).map(|life| life.id.as_str()).collect();
        self.watched.retain(|id, _| running.contains(id.as_str()));
        let Some(pod_spec) = pod.spec.as_ref() else { return };
        for life in observed.containers.iter().filter(|life| life.is_running()) {
            let Some((_, container)) = spec::container(pod_spec, &life.name) else { continue };
            let any = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
            if any.iter().all(|probe| probe.is_none()) || self.watched.contains_key(&life.id) {
                continue;
            }
            // What an agent before this one found out goes on until a probe says otherwise: a restart of the agent does
            // not take a pod out of service.
            let (was_started, was_ready) = recorded(pod, &life.id);
            let started = container.startup_probe.is_none() || was_started;
            let ready = container.readiness_probe.is_none() || was_ready;
            let health = Arc::new(Mutex::new(Health { started, ready, dead: false }));
            let prober = Prober {
                runtime: self.runtime.clone(),
                events: self.events.clone(),
                nudge: Arc::clone(&self.nudge),
                pod: Arc::clone(pod),
                container: container.clone(),
                id: life.id.clone(),
                address: address.to_owned(),
                health: Arc::clone(&health),
            };
            let task = tokio::spawn(prober.run()).abort_handle();
            self.watched.insert(life.id.clone(), Watched { health, task });
        }
    }

    /// Containers to be restarted.
    pub(crate) fn unhealthy(&self) -> BTreeSet<String> {
        self.those(|health| health.dead)
    }

    /// Containers that get no traffic.
    pub(crate) fn unready(&self) -> BTreeSet<String> {
        self.those(|health| !health.ready || !health.started)
    }

    /// Containers whose startup probe has not passed.
    pub(crate) fn starting(&self) -> BTreeSet<String> {
        self.those(|health| !health.started)
    }

    fn those(&self, wanted: impl Fn(&Health) -> bool) -> BTreeSet<String> {
        let found = self
            .watched
            .iter()
            .filter(|(_, watched)| wanted(&watched.health.lock().unwrap_or_else(PoisonError::into_inner)));
        found.map(|(id, _)| id.clone()).collect()
    }
}

/// Whether the API has this life of a container as started and as ready.
fn recorded(pod: &Pod, id: &str) -> (bool, bool) {
    let status = pod.status.as_ref();
    let mut entries = status
        .into_iter()
        .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses))
        .flatten();
    let same = |own: &Option<String>| own.as_ref().is_some_and(|own| own.ends_with(&format!("://{id}")));
    let entry = entries.find(|entry| same(&entry.container_id));
    entry.map_or((false, false), |entry| (entry.started == Some(true), entry.ready))
}

/// Counts answers against the thresholds of a probe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    good: i32,
    bad: i32,
}

/// What an answer decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Passes,
    Fails,
}

impl Count {
    fn answer(&mut self, good: bool, probe: &Probe) -> Option<Decision> {
        if good {
            *self = Count { good: self.good.saturating_add(1), bad: 0 };
            (self.good >= probe.success_threshold.unwrap_or(1)).then_some(Decision::Passes)
        } else {
            *self = Count { good: 0, bad: self.bad.saturating_add(1) };
            (self.bad >= probe.failure_threshold.unwrap_or(3)).then_some(Decision::Fails)
        }
    }
}

struct Prober {
    runtime: Runtime,
    events: Events,
    nudge: Arc<Notify>,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    address: String,
    health: Arc<Mutex<Health>>,
}

impl Prober {
    async fn run(self) {
        let unstarted = !self.health().started;
        if let Some(probe) = self.container.startup_probe.as_ref().filter(|_| unstarted) {
            self.watch(probe, "Startup", |health, decision| {
                match decision {
                    Decision::Passes => health.started = true,
                    Decision::Fails => health.dead = true,
                }
                ControlFlow::Break(())
            })
            .await;
            if self.health().dead {
                return;
            }
        }
        let liveness = async {
            let Some(probe) = &self.container.liveness_probe else { return };
            let apply = |health: &mut Health, decision| {
                health.dead = decision == Decision::Fails;
                if health.dead { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            self.watch(probe, "Liveness", apply).await;
        };
        let readiness = async {
            let Some(probe) = &self.container.readiness_probe else { return };
            let apply = |health: &mut Health, decision| {
                health.ready = decision == Decision::Passes;
                ControlFlow::Continue(())
            };
            self.watch(probe, "Readiness", apply).await;
        };
        tokio::join!(liveness, readiness);
    }

    /// Probes in the probe's rhythm; each decision is applied, until one ends it.
    async fn watch(&self, probe: &Probe, name: &str, apply: impl Fn(&mut Health, Decision) -> ControlFlow<()>) {
        let seconds = |value: Option<i32>, otherwise: i32| {
            Duration::from_secs(value.unwrap_or(otherwise).max(0).unsigned_abs().into())
        };
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let limit = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        let action = Action::of_probe(probe, &self.container, &self.address);
        let mut count = Count::default();
        let mut said: Option<(String, Instant)> = None;
        tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
        loop {
            let answer = action.run(&self.runtime, &self.id, limit).await;
            if let Err(message) = answer.as_ref().map_err(String::clone) {
                // The same words again are said again only after a while.
                if said.as_ref().is_none_or(|(words, at)| *words != message || at.elapsed() >= SAY_AGAIN) {
                    let event = format!("{name} probe failed: {message}");
                    self.events.warning(about(&self.pod, Some(&self.container.name)), "Unhealthy", event);
                    said = Some((message, Instant::now()));
                }
            }
            if let Some(decision) = count.answer(answer.is_ok(), probe) {
                let before = *self.health();
                let flow = apply(&mut self.health(), decision);
                if *self.health() != before {
                    self.nudge.notify_one();
                }
                if flow.is_break() {
                    return;
                }
            }
            tokio::time::sleep(period).await;
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Count, Decision};
    use k8s_openapi::api::core::v1::Probe;

    #[test]
    fn thresholds_count_in_a_row() {
        let probe = Probe { failure_threshold: Some(2), success_threshold: Some(2), ..Default::default() };
        let mut count = Count::default();
        let mut answers = |list: &[bool]| list.iter().map(|&good| count.answer(good, &probe)).collect::<Vec<_>>();
        assert_eq!(answers(&[true, false, true, true]), [None, None, None, Some(Decision::Passes)]);
        assert_eq!(answers(&[false, true, false, false]), [None, None, None, Some(Decision::Fails)]);
    }
}
