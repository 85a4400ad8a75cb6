//! Claims through a CSI driver: attach is waited for, staged once, published to each pod, taken away in the opposite
//! order, also across restarts of the agent.

use crate::support::csi::{DRIVER, FakeDriver};
use crate::support::{IMAGE, Stand, is_ready};
use serde_json::{Value, json};

fn in_use(node: Option<&Value>) -> bool {
    node.is_some_and(|node| node["status"]["volumesInUse"] == json!([format!("kubernetes.io/csi/{DRIVER}^vol-1")]))
}

fn writer(claim: &str, script: &str) -> Value {
    json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": IMAGE, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_staged_once_and_outlives_agents() {
    let mut stand = Stand::start(4).await;
    let driver = FakeDriver::start(&stand.dir, &stand.registry());
    stand.start_agent().await;
    let csi_node = stand
        .api
        .wait("/apis/storage.k8s.io/v1/csinodes/k1", "with a driver", |object| {
            object.is_some_and(|object| object["spec"]["drivers"][0]["name"] == DRIVER)
        })
        .await
        .expect("there");
    assert_eq!(csi_node["spec"]["drivers"][0]["nodeID"], "node-7");
    assert_eq!(csi_node["spec"]["drivers"][0]["allocatable"]["count"], 9);
    let node = stand.api.get("/api/v1/nodes/k1").expect("there");
    assert_eq!(node["metadata"]["labels"]["topology.test/host"], "h1");

    let claim = json!({"metadata": {"uid": "claim-1"}, "spec": {"volumeName": "pv-1"}, "status": {"phase": "Bound"}});
    stand.api.put("/api/v1/namespaces/default/persistentvolumeclaims/data", claim);
    stand.api.put(
        "/api/v1/persistentvolumes/pv-1",
        json!({"spec": {
            "claimRef": {"uid": "claim-1"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": DRIVER, "volumeHandle": "vol-1", "fsType": "ext4"},
        }}),
    );
    let endless = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let first = stand.pod("first", writer("data", &format!("echo one > /data/f; {endless}")));

    // Nothing is staged before the Node says that the volume is in use and the attachment is there.
    stand.api.wait("/api/v1/nodes/k1", "using the volume", in_use).await;
    let event = stand.event("first", "FailedAttachVolume").await;
    assert!(event["message"].as_str().expect("text").contains("attach/detach controller"), "{event}");
    assert!(!driver.calls().iter().any(|call| call.starts_with("stage")), "{:?}", driver.calls());
    let hash = {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(format!("vol-1{DRIVER}k1"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    stand.api.put(
        &format!("/apis/storage.k8s.io/v1/volumeattachments/csi-{hash}"),
        json!({
            "spec": {"attacher": DRIVER, "nodeName": "k1", "source": {"persistentVolumeName": "pv-1"}},
            "status": {"attached": true, "attachmentMetadata": {"generation": "5"}},
        }),
    );
    stand.api.wait(&first, "ready", is_ready).await;
    assert_eq!(driver.take_calls(), ["registered true ", "stage vol-1 generation 5", "publish vol-1"]);

    // A second pod of the node shares the stage, and the data.
    let second = stand.pod("second", writer("data", &format!("cat /data/f >> /data/g; {endless}")));
    stand.api.wait(&second, "ready", is_ready).await;
    assert_eq!(driver.take_calls(), ["publish vol-1"]);

    // The agent goes and comes back: the driver registers again and is asked for nothing else.
    stand.stop_agent().await;
    stand.start_agent().await;
    stand.api.delete_gracefully(&first, 1);
    stand.api.wait(&first, "gone", |object| object.is_none()).await;
    assert_eq!(driver.take_calls(), ["registered true ", "unpublish vol-1"], "the second pod still has it");
    assert!(in_use(stand.api.get("/api/v1/nodes/k1").as_ref()));

    // The pod vanishes while the agent is away. What is left is found on disk and undone in order.
    stand.stop_agent().await;
    stand.api.delete(&second);
    stand.start_agent().await;
    let free = |node: Option<&Value>| node.is_some_and(|node| node["status"]["volumesInUse"].is_null());
    stand.api.wait("/api/v1/nodes/k1", "free of volumes", free).await;
    assert_eq!(driver.take_calls(), ["registered true ", "unpublish vol-1", "unstage vol-1"]);

    // A node is cleared without agent and API server: the pod's process, its volume, every file.
    let third = stand.pod("third", writer("data", endless));
    stand.api.wait(&third, "ready", is_ready).await;
    stand.stop_agent().await;
    driver.take_calls();
    assert_eq!(stand.clear().run().await, [] as [String; 0]);
    assert_eq!(driver.take_calls(), ["unpublish vol-1", "unstage vol-1"]);
    assert!(!stand.dir.join("agent").exists());
    assert_eq!(stand.finish().await, [] as [String; 0]);
}
