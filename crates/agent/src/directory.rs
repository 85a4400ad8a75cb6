//! The pods that the API server has bound to this node, as last seen. Written by the watch, read by everybody.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;

use crate::pod::PodKey;

/// Shared by clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Directory(Arc<RwLock<BTreeMap<(String, String), Arc<Pod>>>>);

impl Directory {
    pub(crate) fn put(&self, key: &PodKey, pod: Arc<Pod>) {
        self.write().insert((key.namespace.clone(), key.name.clone()), pod);
    }

    /// Removes this life of the pod; a successor under the same name stays.
    pub(crate) fn remove(&self, key: &PodKey) {
        let mut pods = self.write();
        let name = (key.namespace.clone(), key.name.clone());
        if pods.get(&name).is_some_and(|pod| pod.metadata.uid.as_deref() == Some(&key.uid)) {
            pods.remove(&name);
        }
    }

    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Pod>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<(String, String), Arc<Pod>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
