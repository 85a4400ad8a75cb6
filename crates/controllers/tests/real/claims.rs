//! Claims from their first event to their last byte.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::driver::NAME;
use crate::{Cluster, create, until};

pub(crate) fn class(name: &str, more: Value) -> Value {
    let mut class = json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": NAME, "parameters": {"pool": "fast"}, "allowVolumeExpansion": true});
    for (key, value) in more.as_object().into_iter().flatten() {
        class[key] = value.clone();
    }
    class
}

pub(crate) fn claim(name: &str, class: Option<&str>, size: &str) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}});
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = json!(class);
    }
    claim
}

pub(crate) async fn bound(cluster: &Cluster, name: &str) -> (PersistentVolumeClaim, PersistentVolume) {
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    let claim = until(&format!("claim {name} to be bound"), async || {
        let claim = claims.get(name).await.ok()?;
        (claim.status.as_ref()?.phase.as_deref()? == "Bound").then_some(claim)
    })
    .await;
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).expect("a bound claim names its volume");
    let volume = cluster.all::<PersistentVolume>().get(&volume).await.expect("the volume exists");
    (claim, volume)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_bound_grown_and_removed() {
    let cluster = Cluster::start().await;
    let default = json!({"name": "block", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}});
    create(&cluster.all::<StorageClass>(), class("block", json!({"metadata": default}))).await;
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    create(&claims, claim("data", None, "1Gi")).await;
    let (claim, volume) = bound(&cluster, "data").await;
    assert_eq!(claim.spec.unwrap().storage_class_name.as_deref(), Some("block"));
    assert_eq!(claim.status.unwrap().capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(claim.metadata.finalizers.unwrap(), ["kubernetes.io/pvc-protection"]);
    assert_eq!(volume.status.as_ref().unwrap().phase.as_deref(), Some("Bound"));
    let made = cluster.driver.volumes();
    assert_eq!(made["1"].name, format!("pvc-{}", claim.metadata.uid.unwrap()));
    assert_eq!(made["1"].parameters, [("pool".to_owned(), "fast".to_owned())].into());

    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    claims.patch("data", &PatchParams::default(), &Patch::Merge(larger)).await.expect("the class allows it");
    until("the node to be told to grow the filesystem", async || {
        let conditions = claims.get("data").await.ok()?.status?.conditions?;
        conditions.into_iter().find(|one| one.type_ == "FileSystemResizePending")
    })
    .await;
    assert_eq!(cluster.driver.volumes()["1"].size, 2 << 30);
    let volume = cluster.all::<PersistentVolume>().get(&volume.metadata.name.unwrap()).await.unwrap();
    assert_eq!(volume.spec.unwrap().capacity.unwrap()["storage"].0, "2Gi");

    claims.delete("data", &DeleteParams::default()).await.unwrap();
    until("everything to be gone", async || {
        let volumes = cluster.all::<PersistentVolume>().list(&ListParams::default()).await.ok()?;
        (volumes.items.is_empty() && cluster.driver.volumes().is_empty()).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_one_event_with_cause_and_remedy() {
    let cluster = Cluster::start().await;
    create(&cluster.all::<StorageClass>(), class("block", json!({}))).await;
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    let begin = tokio::time::Instant::now();
    create(&claims, claim("unknown", Some("gold"), "1Gi")).await;
    create(&claims, claim("large", Some("block"), "200Gi")).await;
    create(&claims, claim("classless", None, "1Gi")).await;
    let (message, _) = cluster.event("unknown", "ProvisioningFailed").await;
    assert_eq!(
        message,
        "storageclass.storage.k8s.io \"gold\" not found; there are: \"block\". Create it, or name another class"
    );
    let (message, _) = cluster.event("large", "ProvisioningFailed").await;
    assert!(message.contains("volume asks for more than the pool has free; ask for less"), "{message}");
    let (message, _) = cluster.event("classless", "FailedBinding").await;
    assert!(message.contains("name one (there are: \"block\") or mark one as the default"), "{message}");
    assert!(begin.elapsed() < Duration::from_secs(50), "ten times what it may take: {:?}", begin.elapsed());

    // What was missing comes: nothing has to be asked for again.
    create(&cluster.all::<StorageClass>(), class("gold", json!({}))).await;
    bound(&cluster, "unknown").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_admin_are_matched_kept_and_given_back() {
    let cluster = Cluster::start().await;
    let volume = |name: &str, size: &str| {
        json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
            "persistentVolumeReclaimPolicy": "Retain", "csi": {"driver": NAME, "volumeHandle": name}}})
    };
    let volumes = cluster.all::<PersistentVolume>();
    for (name, size) in [("large", "10Gi"), ("small", "2Gi"), ("tiny", "1Mi")] {
        create(&volumes, volume(name, size)).await;
    }
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    create(&claims, claim("data", Some("manual"), "1Gi")).await;
    let (claim, bound_to) = bound(&cluster, "data").await;
    assert_eq!(bound_to.metadata.name.as_deref(), Some("small"), "the smallest that fits");
    assert_eq!(claim.status.unwrap().capacity.unwrap()["storage"].0, "2Gi");
    let phase = async |name: &str| volumes.get(name).await.ok()?.status?.phase;
    until("the others to be offered", async || {
        (phase("large").await? == "Available" && phase("tiny").await? == "Available").then_some(())
    })
    .await;
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    until("the volume to be released", async || (phase("small").await? == "Released").then_some(())).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_claims_at_once_are_all_bound() {
    let cluster = Cluster::start().await;
    create(&cluster.all::<StorageClass>(), class("block", json!({}))).await;
    let claims = cluster.within::<PersistentVolumeClaim>("default");
    let begin = tokio::time::Instant::now();
    let names: Vec<String> = (0..100).map(|n| format!("claim-{n}")).collect();
    futures::future::join_all(names.iter().map(|name| create(&claims, claim(name, Some("block"), "1Gi")))).await;
    until("all of them to be bound", async || {
        let all = claims.list(&ListParams::default()).await.ok()?.items;
        let is_bound = |claim: &PersistentVolumeClaim| {
            claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound")
        };
        (all.iter().filter(|claim| is_bound(claim)).count() == 100).then_some(())
    })
    .await;
    println!("100 claims bound in {:?}", begin.elapsed());
    assert_eq!(cluster.driver.volumes().len(), 100, "one volume each");
    cluster.stop().await;
}
