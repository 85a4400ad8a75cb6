//! This node in the API: registers its Node, keeps a Lease alive, writes the status when something about it changes.
//!
//! The heartbeat is the Lease alone; the Node object is left as it is for as long as nothing changed, so that a large
//! cluster is not kept busy by nodes that are fine.

pub(crate) mod facts;
pub(crate) mod object;

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cri::Runtime;
use crate::pod::merge_patch;
use crate::volumes::InUse;
use facts::Machine;
use object::{Identity, Readiness};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Of the heartbeat.
const BEAT: Duration = Duration::from_secs(10);
/// A node is unreachable when its lease is older than this.
const LEASE_SECONDS: i32 = 40;
/// The status is written at least this often, as a sign that somebody looks after it.
const STATUS_LONGEST: Duration = Duration::from_secs(300);
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the Node object.
pub(crate) struct Registrar {
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
    pub(crate) identity: Identity,
    pub(crate) machine: Machine,
    pub(crate) in_use: InUse,
    /// The Node's uid, once it is registered.
    pub(crate) uid: watch::Sender<Option<String>>,
}

impl Registrar {
    /// Until told to stop. The Node stays; it becomes unreachable when its lease runs out.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut wanted = self.in_use.wanted();
        let (mut lease_due, mut status_written) = (Instant::now(), None::<Instant>);
        loop {
            let names = wanted.borrow_and_update().clone();
            let result = self.round(&names, &mut lease_due, &mut status_written).await;
            let pause = match result {
                Ok(()) => lease_due.saturating_duration_since(Instant::now()),
                Err(error) => {
                    tracing::warn!(%error, node = self.identity.name, "the Node could not be kept up to date");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = wanted.changed() => {}
            }
        }
    }

    /// One look: registration, lease when it is due, status when it differs.
    async fn round(
        &self,
        names: &BTreeSet<String>,
        lease_due: &mut Instant,
        status_written: &mut Option<Instant>,
    ) -> Result<(), kube::Error> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = match nodes.get_opt(&self.identity.name).await? {
            Some(node) => self.adopt(&nodes, node).await?,
            None => {
                tracing::info!(node = self.identity.name, "registering");
                nodes.create(&PostParams::default(), &object::node(&self.identity, &self.machine)).await?
            }
        };
        if Instant::now() >= *lease_due {
            self.renew(node.metadata.uid.as_deref().unwrap_or_default()).await?;
            *lease_due = Instant::now() + BEAT;
        }
        let old = node.status.clone().unwrap_or_default();
        let in_use = names.iter().cloned().collect();
        let new =
            object::status(&old, &self.identity, &self.machine, &self.readiness().await, in_use, Timestamp::now());
        let stale = status_written.is_none_or(|at| at.elapsed() >= STATUS_LONGEST);
        if stale || object::differs(&old, &new) {
            if let Some(change) = merge_patch(&json!(old), &json!(new)) {
                let patch = Patch::Merge(json!({"status": change}));
                nodes.patch_status(&self.identity.name, &PatchParams::default(), &patch).await?;
            }
            *status_written = Some(Instant::now());
        }
        self.in_use.confirm(names.clone());
        self.uid.send_if_modified(|uid| {
            let changed = *uid != node.metadata.uid;
            uid.clone_from(&node.metadata.uid);
            changed
        });
        Ok(())
    }

    /// A Node that is there keeps what others put on it; our labels and annotations are set again.
    async fn adopt(&self, nodes: &Api<Node>, node: Node) -> Result<Node, kube::Error> {
        let ours = object::node(&self.identity, &self.machine).metadata;
        let missing = |own: &Option<std::collections::BTreeMap<String, String>>, there: &Option<_>| {
            own.iter().flatten().any(|(key, value)| {
                there.as_ref().and_then(|there: &std::collections::BTreeMap<String, String>| there.get(key))
                    != Some(value)
            })
        };
        if !missing(&ours.labels, &node.metadata.labels) && !missing(&ours.annotations, &node.metadata.annotations) {
            return Ok(node);
        }
        let patch = json!({"metadata": {"labels": ours.labels, "annotations": ours.annotations}});
        nodes.patch(&self.identity.name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    async fn renew(&self, uid: &str) -> Result<(), kube::Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.identity.name;
        let now = MicroTime(Timestamp::now());
        let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": name}}));
        match leases.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            other => return other.map(drop),
        }
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: name.clone(),
            uid: uid.to_owned(),
            ..Default::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASE_NAMESPACE.into()),
                owner_references: Some(vec![owner]),
                ..Default::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(now),
                ..Default::default()
            }),
        };
        match leases.create(&PostParams::default(), &lease).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let namespace = Namespace {
                    metadata: ObjectMeta { name: Some(LEASE_NAMESPACE.into()), ..Default::default() },
                    ..Default::default()
                };
                Api::<Namespace>::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
                leases.create(&PostParams::default(), &lease).await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// The node is ready when the runtime and its network are.
    async fn readiness(&self) -> Readiness {
        let no = |message: String| Readiness { ready: false, reason: "KubeletNotReady".into(), message };
        match self.runtime.conditions().await {
            Err(error) => no(error.to_string()),
            Ok(conditions) => match conditions.into_iter().find(|condition| !condition.status) {
                Some(condition) => {
                    no(format!("{} is false in the container runtime: {}", condition.r#type, condition.message))
                }
                None => {
                    let message = "the container runtime and its network are ready".into();
                    Readiness { ready: true, reason: "KubeletReady".into(), message }
                }
            },
        }
    }
}
