//! The pods that the API server has bound to this node, as last seen. Written by the watch, read by everybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::pod::PodKey;

type Pods = BTreeMap<(String, String), Arc<Pod>>;

/// A pod that a client asks for may be a moment ahead of the watch, above all when the agent has just started.
const PATIENCE: Duration = Duration::from_secs(3);

/// Shared by clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Arc<watch::Sender<Pods>>);

impl Directory {
    pub(crate) fn put(&self, key: &PodKey, pod: Arc<Pod>) {
        let name = (key.namespace.clone(), key.name.clone());
        self.0.send_modify(|pods| drop(pods.insert(name, pod)));
    }

    /// Removes this life of the pod; a successor under the same name stays.
    pub(crate) fn remove(&self, key: &PodKey) {
        let name = (key.namespace.clone(), key.name.clone());
        self.0.send_if_modified(|pods| {
            let same = pods.get(&name).is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&key.uid));
            same && pods.remove(&name).is_some()
        });
    }

    /// The pod of this name; waits a little for one that is not there yet.
    pub(crate) async fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut pods = self.0.subscribe();
        let found = tokio::time::timeout(PATIENCE, pods.wait_for(|pods| pods.contains_key(&key))).await;
        found.ok()?.ok()?.get(&key).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.borrow().values().cloned().collect()
    }
}
