//! Performs the steps of a plan. Which steps, and in which order, is decided elsewhere.

use std::time::Duration;

use futures::future::join_all;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::handler::Action;
use super::observe::{Contained, Observed};
use super::plan::Step;
use super::start::{Start, StartProblem};
use super::worker::{Failure, Worker};
use super::{sandbox, spec};
use crate::report::about;
use crate::volumes::VolumeError;

/// A container that cannot be started is tried again at least this often.
const START_LONGEST: SignedDuration = SignedDuration::from_secs(60);
/// Registries are asked at least this often.
const PULL_LONGEST: SignedDuration = SignedDuration::from_secs(300);
const SANDBOX_LONGEST: SignedDuration = SignedDuration::from_secs(10);

impl Worker {
    pub(super) async fn perform(&mut self, step: &Step, pod: &Pod, observed: &Observed) -> Result<(), Failure> {
        tracing::debug!(pod = %self.key, ?step, "step");
        let runtime = &self.context.runtime;
        let teardown = |error: crate::cri::CriError| Failure::teardown(error.to_string());
        match step {
            Step::MountVolumes => self.mount(pod, observed).await,
            Step::RunSandbox { attempt } => self.run_sandbox(pod, *attempt).await,
            Step::StartContainer { name, sandbox, attempt } => {
                self.start_container(pod, observed, (name, sandbox, *attempt)).await
            }
            Step::StopContainers { ids, grace_s } => self.stop_containers(pod, observed, ids, *grace_s).await,
            Step::RemoveContainer { id } => runtime.remove_container(id).await.map_err(teardown),
            Step::StopSandbox { id } => runtime.stop_sandbox(id).await.map_err(teardown),
            Step::RemoveSandbox { id } => {
                // A sandbox that died by itself has not given back its network yet.
                runtime.stop_sandbox(id).await.map_err(teardown)?;
                runtime.remove_sandbox(id).await.map_err(teardown)
            }
            Step::UnmountVolumes => {
                self.mounted = None;
                let unmounted = self.context.volumes.kept().unmount(&self.key.uid).await;
                unmounted.map_err(|error| Failure { event: "FailedUnMount", ..Failure::teardown(error.to_string()) })
            }
            Step::Forget => self.forget().await,
        }
    }

    async fn mount(&mut self, pod: &Pod, observed: &Observed) -> Result<(), Failure> {
        let around = self.context.surroundings(observed, spec::host_network(pod));
        match self.context.volumes.mount(pod, &self.key, &around, &self.stop).await {
            Ok(mounted) => {
                self.mounted = Some(mounted);
                Ok(())
            }
            Err(VolumeError::Stopped) => Err(Failure::interrupted()),
            Err(error) => Err(Failure {
                reason: error.reason(),
                event: error.reason(),
                message: error.to_string(),
                longest: error.patience(),
            }),
        }
    }

    async fn run_sandbox(&mut self, pod: &Pod, attempt: u32) -> Result<(), Failure> {
        let reason = "FailedCreatePodSandBox";
        let failed = |message: String| Failure { reason, event: reason, message, longest: SANDBOX_LONGEST };
        if let Some(class) = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_ref()) {
            let message = format!("runtimeClassName {class:?} is not supported by this agent; leave it out");
            return Err(failed(message));
        }
        let node = &self.context.node;
        let logs = sandbox::log_directory(&node.log_root, &self.key);
        std::fs::create_dir_all(&logs).map_err(|error| failed(format!("making {}: {error}", logs.display())))?;
        let config = sandbox::sandbox_config(pod, &self.key, attempt, node);
        // Written anew with the new address, by the first container that starts.
        let _ = std::fs::remove_file(self.context.volumes.pod_dir(&self.key.uid).join("etc-hosts"));
        self.context.runtime.run_sandbox(config).await.map(drop).map_err(|error| failed(error.to_string()))
    }

    async fn start_container(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        (name, sandbox, attempt): (&str, &str, u32),
    ) -> Result<(), Failure> {
        let pod_spec = pod.spec.as_ref();
        let Some((_, container)) = pod_spec.and_then(|pod_spec| spec::container(pod_spec, name)) else {
            return Ok(());
        };
        let image = tokio::select! {
            image = self.context.image_for(pod, container) => image.map_err(|problem| failure(problem, PULL_LONGEST))?,
            () = self.stop.cancelled() => return Err(Failure::interrupted()),
        };
        let mounted = self.mounted.clone().unwrap_or_default();
        let start = Start { pod, key: &self.key, container, sandbox, attempt, observed, mounted: &mounted };
        let started = self.context.start(&start, image).await;
        self.count_crash(observed, name);
        started.map_err(|problem| failure(problem, START_LONGEST))
    }

    /// All at once: the preStop hook, the stop signal, and after the grace the end. A grace that is shortened meanwhile
    /// counts from now.
    async fn stop_containers(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        ids: &[String],
        grace_s: i64,
    ) -> Result<(), Failure> {
        let lives: Vec<&Contained> = observed.containers.iter().filter(|life| ids.contains(&life.id)).collect();
        for life in &lives {
            let message = format!("Stopping container {}", life.name);
            self.context.events.normal(about(pod, Some(&life.name)), "Killing", message);
        }
        let address = self.context.surroundings(observed, spec::host_network(pod)).pod_addresses;
        let address = address.first().cloned().unwrap_or_default();
        let worker = &*self;
        let all = join_all(lives.iter().map(|life| worker.stop_one(pod, life, &address, grace_s)));
        let mut desired = self.desired.clone();
        let shortened = desired.wait_for(|desired| desired.must_stop() && spec::grace_s(desired.pod()) < grace_s);
        let outcomes = tokio::select! {
            outcomes = all => outcomes,
            Ok(_) = shortened => return Err(Failure::interrupted()),
        };
        let failed = outcomes.into_iter().find_map(Result::err);
        failed.map_or(Ok(()), |error| Err(Failure::teardown(error.to_string())))
    }

    async fn stop_one(
        &self,
        pod: &Pod,
        life: &Contained,
        address: &str,
        grace_s: i64,
    ) -> Result<(), crate::cri::CriError> {
        let begun = Instant::now();
        let grace = Duration::from_secs(grace_s.max(0).unsigned_abs());
        let container = pod.spec.as_ref().and_then(|pod_spec| spec::container(pod_spec, &life.name));
        let hook =
            container.and_then(|(_, container)| Some((container.lifecycle.as_ref()?.pre_stop.as_ref()?, container)));
        if let Some((hook, container)) = hook.filter(|_| grace_s > 0 && life.is_running()) {
            let action = Action::of_hook(hook, container, address);
            let run = action.run(&self.context.runtime, &life.id, grace);
            let outcome =
                tokio::time::timeout(grace, run).await.unwrap_or_else(|_| Err("it outlasted the grace".into()));
            if let Err(message) = outcome {
                let message = format!("PreStopHook failed: {message}");
                self.context.events.warning(about(pod, Some(&life.name)), "FailedPreStopHook", message);
            }
        }
        // The hook's time counts; two seconds remain in any case for a process that wants to end well.
        let left = grace.saturating_sub(begun.elapsed()).as_secs();
        let left = i64::try_from(left).unwrap_or(i64::MAX).max(grace_s.min(2));
        self.context.runtime.stop_container(&life.id, left).await
    }

    async fn forget(&mut self) -> Result<(), Failure> {
        for logs in sandbox::log_directories(&self.context.node.log_root, &self.key.uid) {
            std::fs::remove_dir_all(&logs)
                .map_err(|error| Failure::teardown(format!("removing {}: {error}", logs.display())))?;
        }
        let parent = self.context.node.cgroup_parent.trim_end_matches('/');
        crate::cgroups::remove(&format!("{parent}/pod{}", self.key.uid));
        let present = matches!(*self.desired.borrow(), super::worker::Desired::Present(_));
        if present {
            self.delete().await?;
        }
        self.forgotten = true;
        Ok(())
    }
}

fn failure(problem: StartProblem, longest: SignedDuration) -> Failure {
    let longest = if problem.reason == "ImagePullBackOff" { longest } else { START_LONGEST };
    Failure { reason: problem.reason, event: "Failed", message: problem.message, longest }
}
