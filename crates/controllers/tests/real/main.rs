//! The controllers and the scheduler against the real API server on a real etcd, with a CSI driver in memory.

mod claims;
mod driver;
mod pods;
#[path = "../../../apiserver/tests/real/stand/mod.rs"]
mod stand;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use driver::Driver;
use stand::{PATIENCE, Stand};

/// A cluster without nodes: API server, controllers, scheduler, driver.
pub(crate) struct Cluster {
    pub(crate) stand: Stand,
    pub(crate) client: Client,
    pub(crate) driver: Arc<Driver>,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let stand = Stand::start().await;
        let client = stand.client().await;
        let shutdown = CancellationToken::new();
        let csi_socket = stand.dir.path().join("csi.sock");
        let driver = Arc::new(Driver::default());
        let mut tasks = vec![driver::serve(Arc::clone(&driver), &csi_socket, shutdown.clone())];
        let config = cairn_controllers::Config { kubeconfig: stand.kubeconfig(), csi_socket };
        let token = shutdown.clone();
        tasks.push(tokio::spawn(
            async move { cairn_controllers::run(config, token).await.expect("the controllers run") },
        ));
        let (config, token) = (cairn_scheduler::Config { kubeconfig: stand.kubeconfig() }, shutdown.clone());
        tasks.push(tokio::spawn(async move { cairn_scheduler::run(config, token).await.expect("the scheduler runs") }));
        Self { stand, client, driver, shutdown, tasks }
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            tokio::time::timeout(PATIENCE, task).await.expect("it ends in time").expect("it ends well");
        }
        self.stand.stop().await;
    }

    pub(crate) fn all<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    pub(crate) fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Waits for an event about an object, and gives its message and how often it was counted.
    pub(crate) async fn event(&self, about: &str, reason: &str) -> (String, i32) {
        let events: Api<Event> = self.within("default");
        until(&format!("an event {reason} about {about}"), async || {
            let all = events.list(&ListParams::default()).await.ok()?.items;
            let ours = |event: &&Event| {
                event.involved_object.name.as_deref() == Some(about) && event.reason.as_deref() == Some(reason)
            };
            let found: Vec<&Event> = all.iter().filter(ours).collect();
            assert!(found.len() <= 1, "one event for one cause: {found:?}");
            found.first().map(|event| (event.message.clone().unwrap_or_default(), event.count.unwrap_or(1)))
        })
        .await
    }
}

/// Creates an object from its manifest.
pub(crate) async fn create<K>(api: &Api<K>, manifest: Value) -> K
where
    K: Resource + Clone + DeserializeOwned + serde::Serialize + Debug,
{
    let object: K = serde_json::from_value(manifest).expect("the manifest is one of this kind");
    api.create(&PostParams::default(), &object).await.expect("the server accepts it")
}

/// Asks again and again until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
