//! What every controller has at hand, and how the outcome of its step is told: settled, later, or failed with an event.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use cairn_events::{Recorder, Severity, reference};
use cairn_metrics::Outcomes;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use crate::csi::{Csi, CsiError};
use crate::queue::Verdict;
use crate::route::Key;
use crate::world::World;

/// A cause that persists is said again no sooner than this.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// What every controller has at hand.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) world: World,
    pub(crate) csi: Csi,
    recorder: Recorder,
    said: Mutex<BTreeMap<String, (String, Instant)>>,
}

/// Why a step could not be taken. It is taken again, later.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The API server refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The CSI driver refused or could not be reached; its user was told by an event.
    #[error("{}: {}", .0.call, .0.message)]
    Csi(#[from] CsiError),
}

impl Obstacle {
    /// Somebody else wrote first: the next look decides anew, at once.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == 409)
    }

    /// The object is gone.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Api(kube::Error::Api(status)) if status.code == 404)
    }
}

/// What a controller's look at an object gives.
pub(crate) type Look = Result<Verdict, Obstacle>;

impl Context {
    pub(crate) fn new(client: Client, world: World, csi: Csi) -> Self {
        let recorder = Recorder::new(client.clone(), "cairn-controllers", None);
        Self { client, world, csi, recorder, said: Mutex::new(BTreeMap::new()) }
    }

    /// Looks at one object.
    pub(crate) async fn look(&self, key: &Key) -> Verdict {
        let began = Instant::now();
        let result = match key {
            Key::Claim(namespace, name) => crate::claim::look(self, namespace, name).await,
            Key::Volume(name) => crate::volume::look(self, name).await,
            Key::Attachment(name) => crate::attach::look(self, name).await,
            Key::Node(name) => match crate::node::look(self, name).await {
                Ok(verdict) => crate::attach::look_at_node(self, name).await.map(|other| sooner(verdict, other)),
                failed => failed,
            },
            Key::Pod(namespace, name) => crate::pod::look(self, namespace, name).await,
            Key::Namespace(name) => crate::namespace::look(self, name).await,
        };
        if let Some(looks) = looks() {
            let ended = match &result {
                Ok(_) => "ok",
                Err(obstacle) if obstacle.is_gone() => "gone",
                Err(obstacle) if obstacle.is_conflict() => "conflict",
                Err(_) => "failed",
            };
            looks.done(key.kind(), ended, began.elapsed());
        }
        match result {
            Ok(verdict) => verdict,
            Err(obstacle) if obstacle.is_gone() => Verdict::Settled,
            Err(obstacle) if obstacle.is_conflict() => {
                tracing::debug!(?key, %obstacle, "somebody else wrote first");
                Verdict::After(Duration::from_millis(20))
            }
            Err(obstacle) => {
                tracing::info!(?key, %obstacle, "it is tried again");
                Verdict::Failed
            }
        }
    }

    /// An event about an object: at once if the cause is new, otherwise counted from time to time.
    pub(crate) async fn say<K>(&self, about: &K, severity: Severity, reason: &str, message: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = reference(about);
        let cause = format!("{reason}: {message}");
        {
            let mut said = self.said.lock().expect("nothing panics while it holds what was said");
            let object = format!("{:?}/{:?}/{reason}", about.kind, about.uid);
            let now = Instant::now();
            said.retain(|_, (_, at)| now.duration_since(*at) < SAY_AGAIN);
            if said.get(&object).is_some_and(|(last, _)| *last == cause) {
                return;
            }
            said.insert(object, (cause, now));
        }
        self.recorder.record(&about, severity, reason, message).await;
    }

    /// The kind's interface in one namespace.
    pub(crate) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The kind's interface over the whole cluster.
    pub(crate) fn cluster<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }
}

/// What is counted for the metrics page, if the process has one.
fn looks() -> Option<&'static Outcomes> {
    static LOOKS: OnceLock<Option<Outcomes>> = OnceLock::new();
    LOOKS.get_or_init(|| Outcomes::on_page("controllers_looks", "Looks at an object, by kind and outcome")).as_ref()
}

fn sooner(one: Verdict, other: Verdict) -> Verdict {
    match (one, other) {
        (Verdict::After(a), Verdict::After(b)) => Verdict::After(a.min(b)),
        (Verdict::Settled, other) | (other, Verdict::Settled) => other,
        (failed, _) => failed,
    }
}

/// A merge patch on an object as it was read: refused with a conflict if somebody wrote in between.
pub(crate) async fn patch<K>(api: &Api<K>, object: &K, change: Value) -> Result<K, Obstacle>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.meta().name.clone().unwrap_or_default();
    Ok(api.patch(&name, &PatchParams::default(), &Patch::Merge(guarded(object, change))).await?)
}

/// The same on its status.
pub(crate) async fn patch_status<K>(api: &Api<K>, object: &K, change: Value) -> Result<K, Obstacle>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.meta().name.clone().unwrap_or_default();
    Ok(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(guarded(object, change))).await?)
}

fn guarded<K: Resource>(object: &K, mut change: Value) -> Value {
    if let Some(version) = &object.meta().resource_version {
        change["metadata"]["resourceVersion"] = Value::String(version.clone());
    }
    change
}

/// The finalizers of an object with one more.
pub(crate) fn with_finalizer<K: Resource>(object: &K, finalizer: &str) -> Vec<String> {
    let mut all = object.meta().finalizers.clone().unwrap_or_default();
    if !all.iter().any(|one| one == finalizer) {
        all.push(finalizer.to_owned());
    }
    all
}

/// The finalizers of an object without some.
pub(crate) fn without_finalizers<K: Resource>(object: &K, gone: &[&str]) -> Vec<String> {
    let all = object.meta().finalizers.iter().flatten();
    all.filter(|one| !gone.contains(&one.as_str())).cloned().collect()
}

/// Whether an object has a finalizer.
pub(crate) fn has_finalizer<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.meta().finalizers.iter().flatten().any(|one| one == finalizer)
}

/// What every test of a decision shares: typed objects from JSON.
#[cfg(test)]
pub(crate) mod given {
    use std::sync::Arc;

    use serde::de::DeserializeOwned;
    use serde_json::Value;

    /// An object from its manifest.
    pub(crate) fn object<K: DeserializeOwned>(manifest: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(manifest).expect("the manifest is one of this kind"))
    }
}
