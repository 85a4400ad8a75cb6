//! Pods with claims: placed, attached, moved, and what becomes of them when their node or namespace goes.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSINode, StorageClass, VolumeAttachment};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::claims::{bound, claim, class};
use crate::driver::NAME;
use crate::{Cluster, create, until};

async fn node(cluster: &Cluster, name: &str) {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    create(&cluster.all::<Node>(), node).await;
    let status = json!({"status": {
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.all::<Node>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.expect("its status");
    let csi = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name},
        "spec": {"drivers": [{"name": NAME, "nodeID": format!("id-{name}")}]}});
    create(&cluster.all::<CSINode>(), csi).await;
}

fn pod(name: &str, claim: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "c", "image": "busybox"}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]}})
}

async fn placed(cluster: &Cluster, name: &str) -> String {
    let pods = cluster.within::<Pod>("default");
    until(&format!("pod {name} to be placed"), async || pods.get(name).await.ok()?.spec?.node_name).await
}

async fn attached(cluster: &Cluster, node: &str) -> VolumeAttachment {
    let attachments = cluster.all::<VolumeAttachment>();
    until(&format!("an attachment to {node}"), async || {
        let all = attachments.list(&ListParams::default()).await.ok()?.items;
        let here = |one: &VolumeAttachment| {
            one.spec.node_name == node && one.status.as_ref().is_some_and(|status| status.attached)
        };
        all.into_iter().find(here)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_claim_follows_its_pod_and_the_volume_follows_from_node_to_node() {
    let cluster = Cluster::start().await;
    let late = json!({"volumeBindingMode": "WaitForFirstConsumer"});
    create(&cluster.all::<StorageClass>(), class("late", late)).await;
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    create(&claims, claim("data", Some("late"), "1Gi")).await;
    let (message, _) = cluster.event("data", "WaitForFirstConsumer").await;
    assert_eq!(message, "waiting for first consumer to be created before binding");

    node(&cluster, "n1").await;
    let pods = cluster.within::<Pod>("default");
    create(&pods, pod("first", "data")).await;
    let (claim, volume) = bound(&cluster, "data").await;
    assert_eq!(claim.metadata.annotations.unwrap()["volume.kubernetes.io/selected-node"], "n1");
    assert_eq!(placed(&cluster, "first").await, "n1");
    let attachment = attached(&cluster, "n1").await;
    assert!(attachment.metadata.name.as_deref().is_some_and(|name| name.len() == "csi-".len() + 64));
    assert_eq!(attachment.status.unwrap().attachment_metadata.unwrap()["device"], "1");
    assert_eq!(cluster.driver.volumes()["1"].nodes, ["id-n1"]);
    let nodes = cluster.all::<Node>();
    until("the node to be told", async || {
        let told = nodes.get("n1").await.ok()?.status?.volumes_attached?;
        told.into_iter().find(|one| one.name == format!("kubernetes.io/csi/{NAME}^1"))
    })
    .await;

    // A second pod elsewhere waits, is told why, and gets the volume when the first is gone.
    node(&cluster, "n2").await;
    let mut second = pod("second", "data");
    second["spec"]["nodeName"] = json!("n2");
    create(&pods, second).await;
    let (message, _) = cluster.event("second", "FailedAttachVolume").await;
    assert!(message.starts_with("Multi-Attach error for volume"), "{message}");
    pods.delete("first", &DeleteParams::default().grace_period(0)).await.unwrap();
    attached(&cluster, "n2").await;
    assert_eq!(cluster.driver.volumes()["1"].nodes, ["id-n2"]);

    // A claim in use outlives its deletion; then everything goes.
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    cluster.event("data", "InUse").await;
    assert!(claims.get("data").await.unwrap().metadata.deletion_timestamp.is_some());
    pods.delete("second", &DeleteParams::default().grace_period(0)).await.unwrap();
    until("everything to be gone", async || {
        let volumes = cluster.all::<PersistentVolume>().list(&ListParams::default()).await.ok()?.items;
        let attachments = cluster.all::<VolumeAttachment>().list(&ListParams::default()).await.ok()?.items;
        (volumes.is_empty() && attachments.is_empty() && cluster.driver.volumes().is_empty()).then_some(())
    })
    .await;
    assert_eq!(volume.spec.unwrap().csi.unwrap().volume_handle, "1");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_takes_everything_in_it_along() {
    let cluster = Cluster::start().await;
    create(&cluster.all::<StorageClass>(), class("block", json!({}))).await;
    let namespaces = cluster.all::<Namespace>();
    create(&namespaces, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gone"}})).await;
    create(&cluster.within::<PersistentVolumeClaim>("gone"), claim("data", Some("block"), "1Gi")).await;
    cluster.stand.kubectl("create configmap settings --from-literal=a=b -n gone").await;
    until("the volume to be made", async || (!cluster.driver.volumes().is_empty()).then_some(())).await;
    namespaces.delete("gone", &DeleteParams::default()).await.unwrap();
    until("the namespace to be gone", async || namespaces.get_opt("gone").await.ok()?.is_none().then_some(())).await;
    until("its volume to be gone", async || cluster.driver.volumes().is_empty().then_some(())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_fell_silent_is_told_of() {
    let cluster = Cluster::start().await;
    node(&cluster, "n1").await;
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "n1", "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": "n1", "renewTime": "2026-01-01T00:00:00.000000Z"}});
    create(&cluster.within::<Lease>("kube-node-lease"), lease).await;
    let nodes = cluster.all::<Node>();
    let silent = until("the node to be unreachable", async || {
        let node = nodes.get("n1").await.ok()?;
        let taints = node.spec.as_ref()?.taints.as_ref()?;
        taints.iter().any(|taint| taint.key == "node.kubernetes.io/unreachable").then_some(node)
    })
    .await;
    let conditions = silent.status.unwrap().conditions.unwrap();
    let ready = conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("Unknown", Some("NodeStatusUnknown")));
    let (message, count) = cluster.event("n1", "NodeNotReady").await;
    assert!(message.contains("start it again") && count == 1, "{message} {count}");
    cluster.stop().await;
}
