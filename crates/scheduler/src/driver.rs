//! Watches what decisions depend on, decides for each pod that has no node, and carries it out.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_events::{Recorder, Severity, WatchBackoff, reference};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::decide::{Decision, decide};
use crate::snapshot::{Snapshot, has_ended, node_name};
use crate::volumes::SELECTED_NODE;

/// How the scheduler is started.
#[derive(Clone, Debug)]
pub struct Config {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
}

/// Why it cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The credentials cannot be read.
    #[error("cannot read the credentials in {0}: {1}")]
    Kubeconfig(PathBuf, String),
    /// No client can be made of them.
    #[error("cannot make an API client: {0}")]
    Client(#[from] kube::Error),
}

/// The name pods ask for when they ask for none.
const NAME: &str = "default-scheduler";

/// Pods that found no node are looked at again at least this often, in case a change was missed.
const SECOND_LOOK: Duration = Duration::from_secs(30);

/// Schedules until `shutdown`.
///
/// # Errors
/// When it cannot start; later trouble is logged and tried again.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let unreadable = |error: String| Error::Kubeconfig(config.kubeconfig.clone(), error);
    let kubeconfig = Kubeconfig::read_from(&config.kubeconfig).map_err(|error| unreadable(error.to_string()))?;
    let options = KubeConfigOptions::default();
    let client_config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let client = Client::try_from(client_config.map_err(|error| unreadable(error.to_string()))?)?;
    let mut tasks = JoinSet::new();
    let changed = Arc::new(Notify::new());
    let world = World {
        nodes: follow(&mut tasks, &client, &changed),
        pods: follow(&mut tasks, &client, &changed),
        claims: follow(&mut tasks, &client, &changed),
        volumes: follow(&mut tasks, &client, &changed),
        classes: follow(&mut tasks, &client, &changed),
    };
    let recorder = Recorder::new(client.clone(), NAME, None);
    let mut scheduler = Scheduler { client, world, recorder, assumed: BTreeMap::new(), said: BTreeMap::new() };
    tokio::select! {
        () = scheduler.ready() => {}
        () = shutdown.cancelled() => return Ok(()),
    }
    loop {
        let pending = scheduler.pass().await;
        let second_look =
            async { if pending { tokio::time::sleep(SECOND_LOOK).await } else { std::future::pending().await } };
        tokio::select! {
            () = changed.notified() => {}
            () = second_look => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Keeps a store of all objects of one kind, and says when it changed.
fn follow<K>(tasks: &mut JoinSet<()>, client: &Client, changed: &Arc<Notify>) -> Store<K>
where
    K: Resource<DynamicType = ()>
        + reflector::Lookup<DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let api: Api<K> = Api::all(client.clone());
    let changed = Arc::clone(changed);
    tasks.spawn(async move {
        let stream = watcher(api, watcher::Config::default()).backoff(WatchBackoff::default()).reflect(writer);
        let mut stream = pin!(stream);
        while let Some(event) = stream.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => {
                    let kind = <K as Resource>::kind(&());
                    tracing::debug!(%error, %kind, "the watch broke off; it is tried again");
                }
            }
        }
    });
    store
}

struct World {
    nodes: Store<Node>,
    pods: Store<Pod>,
    claims: Store<PersistentVolumeClaim>,
    volumes: Store<PersistentVolume>,
    classes: Store<StorageClass>,
}

struct Scheduler {
    client: Client,
    world: World,
    recorder: Recorder,
    /// Pods bound by us whose binding the watch has not shown yet, by uid.
    assumed: BTreeMap<String, String>,
    /// What was said last of each pod, by uid: said once, not at every pass.
    said: BTreeMap<String, String>,
}

impl Scheduler {
    async fn ready(&self) {
        let world = &self.world;
        let _ = tokio::join!(
            world.nodes.wait_until_ready(),
            world.pods.wait_until_ready(),
            world.claims.wait_until_ready(),
            world.volumes.wait_until_ready(),
            world.classes.wait_until_ready(),
        );
    }

    fn snapshot(&self, pods: &[Arc<Pod>]) -> Snapshot {
        let key = |claim: &PersistentVolumeClaim| (claim.namespace().unwrap_or_default(), claim.name_any());
        let mut snapshot = Snapshot::new(self.world.nodes.state(), pods, &self.assumed);
        snapshot.claims = self.world.claims.state().into_iter().map(|claim| (key(&claim), claim)).collect();
        snapshot.volumes = self.world.volumes.state().into_iter().map(|volume| (volume.name_any(), volume)).collect();
        snapshot.classes = self.world.classes.state().into_iter().map(|class| (class.name_any(), class)).collect();
        snapshot
    }

    /// Decides for every pod without a node, the most important and oldest first. Whether one is left without.
    async fn pass(&mut self) -> bool {
        let pods = self.world.pods.state();
        let alive = |uid: &String| pods.iter().any(|pod| pod.uid().as_ref() == Some(uid) && node_name(pod).is_none());
        self.assumed.retain(|uid, _| alive(uid));
        self.said.retain(|uid, _| alive(uid));
        let mut snapshot = self.snapshot(&pods);
        let mut waiting: Vec<&Arc<Pod>> = pods.iter().filter(|pod| self.is_ours(pod)).collect();
        waiting.sort_by_key(|pod| {
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            (-i64::from(priority), pod.creation_timestamp().map(|time| time.0), pod.name_any())
        });
        let mut left = false;
        for pod in waiting {
            match decide(&snapshot, pod) {
                Decision::Bind(node) => {
                    if self.bind(pod, &node).await {
                        if let Some(facts) = snapshot.nodes.get_mut(&node) {
                            facts.add(pod);
                        }
                    } else {
                        left = true;
                    }
                }
                Decision::SelectNode { node, claims } => {
                    self.select_node(&node, &claims).await;
                    left = true;
                }
                Decision::Unschedulable(why) => {
                    self.say_why(pod, &why).await;
                    left = true;
                }
            }
        }
        left
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        let name = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(NAME);
        let assumed = pod.uid().is_some_and(|uid| self.assumed.contains_key(&uid));
        name == NAME
            && node_name(pod).is_none()
            && !assumed
            && !has_ended(pod)
            && pod.metadata.deletion_timestamp.is_none()
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default())
    }

    async fn bind(&mut self, pod: &Pod, node: &str) -> bool {
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "namespace": pod.namespace(), "uid": pod.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let answer: Result<serde_json::Value, _> =
            self.pods(pod).create_subresource("binding", &name, &PostParams::default(), &binding).await;
        if let Err(error) = answer {
            tracing::warn!(pod = name, node, %error, "could not bind; the next change tries again");
            return false;
        }
        self.assumed.insert(pod.uid().unwrap_or_default(), node.to_owned());
        let message = format!("Successfully assigned {}/{name} to {node}", pod.namespace().unwrap_or_default());
        self.recorder.record(&reference(pod), Severity::Normal, "Scheduled", &message).await;
        true
    }

    async fn select_node(&self, node: &str, claims: &[(String, String)]) {
        for (namespace, name) in claims {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
            let patch = json!({"metadata": {"annotations": {SELECTED_NODE: node}}});
            if let Err(error) = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                tracing::warn!(claim = name, node, %error, "could not name the node; the next change tries again");
            }
        }
    }

    /// One event and one condition for each new reason.
    async fn say_why(&mut self, pod: &Pod, why: &str) {
        let uid = pod.uid().unwrap_or_default();
        if self.said.get(&uid).is_some_and(|said| said == why) {
            return;
        }
        self.said.insert(uid, why.to_owned());
        self.recorder.record(&reference(pod), Severity::Warning, "FailedScheduling", why).await;
        let condition = json!({"status": {"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
        }]}});
        let pods = self.pods(pod);
        let patch = Patch::Strategic(condition);
        if let Err(error) = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            tracing::debug!(pod = pod.name_any(), %error, "could not write the condition");
        }
    }
}
