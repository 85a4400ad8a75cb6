//! The pods of this node: one worker for each, steered by the watch of the API server and by what the runtime shows.
//!
//! What the runtime or the disk holds of a pod that the API server does not know is taken down, but only after the
//! first complete list: an agent that cannot reach the API server touches nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cri::own;
use crate::directory::Directory;
use crate::names::label;
use crate::pod::{Desired, PodKey, Shared, Worker, log_owner};
use crate::rotate;

/// How often the runtime is asked what runs. One list of each kind for the whole node.
const RELIST: Duration = Duration::from_secs(1);
/// Every so many lists the sizes of the logs are looked at.
const LOGS_EVERY: u32 = 10;
/// An API server that is away is asked again after this (at the next list of the runtime).
const WATCH_RETRY: Duration = Duration::from_millis(500);

struct Handle {
    key: PodKey,
    desired: watch::Sender<Desired>,
    nudge: Arc<Notify>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// See the module's words.
pub(crate) struct Pods {
    context: Shared,
    directory: Directory,
    workers: BTreeMap<String, Handle>,
    /// Ids and states by pod, as last listed.
    shown: BTreeMap<String, Vec<(String, i32)>>,
    /// Uids in the list that is coming in; None outside of one.
    listing: Option<BTreeSet<String>>,
    complete: bool,
}

/// The version to go on from is too old, for example because the API server was restarted. The watcher starts over when
/// it is told so within a watch, but asks for the same version for ever when the watch itself is refused.
fn is_expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 410)
}

impl Pods {
    pub(crate) fn new(context: Shared, directory: Directory) -> Pods {
        Pods { context, directory, workers: BTreeMap::new(), shown: BTreeMap::new(), listing: None, complete: false }
    }

    /// From when the Node is registered until told to stop. The containers keep running.
    pub(crate) async fn run(mut self, mut node_uid: watch::Receiver<Option<String>>, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => return,
            registered = node_uid.wait_for(Option::is_some) => drop(registered),
        }
        let api: Api<Pod> = Api::all(self.context.client.clone());
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.context.node.name));
        let watch = || watcher(api.clone(), mine.clone()).boxed();
        let mut events = watch();
        let mut relist = tokio::time::interval(RELIST);
        relist.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0u32;
        let mut again = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                event = events.next(), if Instant::now() >= again => match event {
                    Some(Ok(event)) => self.event(event),
                    Some(Err(error)) => {
                        tracing::debug!(%error, "the watch of pods was interrupted");
                        if is_expired(&error) {
                            events = watch();
                        }
                        // The watcher lists again when it is asked again; meanwhile the workers go on.
                        again = Instant::now() + WATCH_RETRY;
                    }
                    None => break,
                },
                _ = relist.tick() => {
                    count = count.wrapping_add(1);
                    self.relist(count.is_multiple_of(LOGS_EVERY)).await;
                }
            }
        }
        for handle in self.workers.values() {
            handle.task.abort();
        }
    }

    fn event(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(pod) => {
                if let (Some(listing), Some(uid)) = (&mut self.listing, &pod.metadata.uid) {
                    listing.insert(uid.clone());
                }
                self.present(pod);
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                let gone: Vec<Arc<Pod>> = self
                    .workers
                    .iter()
                    .filter(|(uid, _)| !listed.contains(*uid))
                    .map(|(_, handle)| Arc::clone(handle.desired.borrow().pod()))
                    .collect();
                gone.into_iter().for_each(|pod| self.gone(pod));
                self.complete = true;
                let logs = std::fs::read_dir(&self.context.node.log_root).into_iter().flatten().flatten();
                let owners = logs.filter_map(|entry| log_owner(&entry.path()).map(str::to_owned));
                let known: BTreeSet<String> = self.context.volumes.kept().pods().into_iter().chain(owners).collect();
                for uid in known {
                    self.orphan(&uid, "", "");
                }
            }
            Event::Apply(pod) => self.present(pod),
            Event::Delete(pod) => self.gone(Arc::new(pod)),
        }
    }

    fn present(&mut self, pod: Pod) {
        let bound = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        if bound != Some(&self.context.node.name) {
            return;
        }
        let Some(key) = PodKey::of(&pod) else { return };
        let pod = Arc::new(pod);
        self.directory.put(&key, Arc::clone(&pod));
        self.steer(key, Desired::Present(pod));
    }

    fn gone(&mut self, pod: Arc<Pod>) {
        let Some(key) = PodKey::of(&pod) else { return };
        self.directory.remove(&key);
        if self.workers.contains_key(&key.uid) {
            self.steer(key, Desired::Gone(pod));
        }
    }

    fn steer(&mut self, key: PodKey, desired: Desired) {
        let stops = desired.must_stop();
        match self.workers.get(&key.uid) {
            Some(handle) => {
                handle.desired.send_replace(desired);
                if stops {
                    handle.stop.cancel();
                }
            }
            None => self.hire(key, desired),
        }
    }

    fn hire(&mut self, key: PodKey, desired: Desired) {
        let stop = CancellationToken::new();
        if desired.must_stop() {
            stop.cancel();
        }
        let nudge = Arc::new(Notify::new());
        let (sender, receiver) = watch::channel(desired);
        let worker = Worker::new(Arc::clone(&self.context), key.clone(), receiver, Arc::clone(&nudge), stop.clone());
        let task = tokio::spawn(worker.run());
        self.workers.insert(key.uid.clone(), Handle { key, desired: sender, nudge, stop, task });
    }

    /// Something is left of a pod that the API server does not have.
    fn orphan(&mut self, uid: &str, namespace: &str, name: &str) {
        if self.workers.contains_key(uid) {
            return;
        }
        tracing::info!(uid, namespace, name, "a pod that is no more is taken down");
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.to_owned()),
            ..Default::default()
        };
        let pod = Arc::new(Pod { metadata, spec: Some(Default::default()), status: None });
        if let Some(key) = PodKey::of(&pod) {
            self.hire(key, Desired::Gone(pod));
        }
    }

    /// Asks the runtime what there is, and nudges the workers whose pods changed.
    async fn relist(&mut self, with_logs: bool) {
        self.replace_finished();
        let runtime = &self.context.runtime;
        let node = self.context.node.name.clone();
        let labels = own(&node);
        let Ok((sandboxes, containers)) = tokio::try_join!(runtime.sandboxes(&labels), runtime.containers(&labels))
        else {
            return;
        };
        let mut shown: BTreeMap<String, Vec<(String, i32)>> = BTreeMap::new();
        let mut names: BTreeMap<String, (String, String)> = BTreeMap::new();
        for sandbox in sandboxes {
            let metadata = sandbox.metadata.unwrap_or_default();
            names.insert(metadata.uid.clone(), (metadata.namespace, metadata.name));
            shown.entry(metadata.uid).or_default().push((sandbox.id, sandbox.state));
        }
        for container in &containers {
            let uid = container.labels.get(label::POD_UID).cloned().unwrap_or_default();
            shown.entry(uid).or_default().push((container.id.clone(), container.state));
        }
        shown.values_mut().for_each(|list| list.sort());
        for (uid, handle) in &self.workers {
            if shown.get(uid) != self.shown.get(uid) {
                handle.nudge.notify_one();
            }
        }
        if self.complete {
            for (uid, (namespace, name)) in &names {
                self.orphan(uid, namespace, name);
            }
        }
        self.shown = shown;
        if with_logs {
            rotate::rotate_large(&self.context.runtime, &self.context.node.log_root, &containers).await;
        }
    }

    /// A worker ends when its pod is forgotten; one that ended otherwise had a bug, and its pod gets another.
    fn replace_finished(&mut self) {
        let finished: Vec<String> =
            self.workers.iter().filter(|(_, handle)| handle.task.is_finished()).map(|(uid, _)| uid.clone()).collect();
        for uid in finished {
            let Some(handle) = self.workers.remove(&uid) else { continue };
            let desired = handle.desired.borrow().clone();
            if matches!(desired, Desired::Present(_)) {
                tracing::error!(pod = %handle.key, "its worker ended unexpectedly and is replaced");
                self.hire(handle.key, desired);
            }
        }
    }
}
