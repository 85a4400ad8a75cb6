//! What happens beside requests: the first namespaces, the caches, and forgetting old history.

use super::Api;
use crate::error::ApiError;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// Namespaces that are always there. Nodes' leases live in the last.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];
/// History older than this, and up to twice as old, is compacted away.
const HISTORY: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_millis(500);

impl Api {
    /// Starts everything that runs until shutdown.
    pub(crate) fn start(self: &Arc<Self>, tasks: &TaskTracker) {
        for at in 0..self.served.len() {
            let api = self.clone();
            self.run(tasks, async move { api.served[at].cache.follow(&api.etcd).await });
        }
        let api = self.clone();
        self.run(tasks, async move { api.prepare_namespaces().await });
        let api = self.clone();
        self.run(tasks, async move { api.compact().await });
    }

    fn run(&self, tasks: &TaskTracker, work: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn prepare_namespaces(&self) {
        for name in NAMESPACES {
            while let Err(error) = self.ensure_namespace(name).await {
                tracing::warn!(namespace = name, %error, "cannot be made yet");
                tokio::time::sleep(RETRY).await;
            }
        }
        self.bootstrapped.store(true, Ordering::Release);
    }

    async fn ensure_namespace(&self, name: &str) -> Result<(), ApiError> {
        let namespaces = self.core("namespaces");
        match self.load(namespaces, name).await {
            Err(ApiError::NotFound { .. }) => {}
            found => return found.map(drop),
        }
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}});
        match self.insert(namespaces, object, None, false).await {
            Ok(_) | Err(ApiError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Compacts to the revision of one interval ago. Several servers may do so: a revision already gone is no error.
    async fn compact(&self) {
        let mut before = None;
        loop {
            let now = self.served.iter().map(|served| served.cache.revision()).max().unwrap_or(0);
            if let Some(revision) = before.filter(|revision| *revision > 0 && now > *revision)
                && let Err(error) = self.etcd.compact(revision).await
            {
                tracing::debug!(%error, revision, "not compacted");
            }
            before = Some(now);
            tokio::time::sleep(HISTORY).await;
        }
    }
}
