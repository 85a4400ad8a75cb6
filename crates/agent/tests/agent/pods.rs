//! Pods on a real containerd, through a real agent, from an API server in memory.

use crate::support::{IMAGE, Stand, dial, is_ready, phase};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

async fn get(stand: &Stand, address: &str, path: &str) -> String {
    let mut socket = dial(stand, address, true).await.expect("served");
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    socket.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Runs a command by the protocol of `kubectl exec -i`: stdout, stderr and the final status.
async fn exec(stand: &Stand, address: &str, pod: &str, command: &[&str], stdin: &[u8]) -> (Vec<u8>, Vec<u8>, Value) {
    let socket = dial(stand, address, true).await.expect("served");
    let encoded = |word: &str| word.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
    let words: String = command.iter().map(|word| format!("command={}&", encoded(word))).collect();
    let url = format!("wss://localhost/exec/default/{pod}/main?{words}stdin=true&stdout=true&stderr=true");
    let mut request = url.into_client_request().expect("a URL");
    request.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().expect("a header"));
    let (mut socket, response) = tokio_tungstenite::client_async(request, socket).await.expect("upgraded");
    assert_eq!(response.headers()["sec-websocket-protocol"], "v5.channel.k8s.io");
    for piece in stdin.chunks(30_000) {
        let message = [&[0u8], piece].concat();
        socket.send(Message::Binary(message.into())).await.expect("sent");
    }
    socket.send(Message::Binary(vec![255u8, 0].into())).await.expect("sent");
    let (mut out, mut err, mut status) = (Vec::new(), Vec::new(), Value::Null);
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else { continue };
        match bytes.split_first() {
            Some((1, rest)) => out.extend_from_slice(rest),
            Some((2, rest)) => err.extend_from_slice(rest),
            Some((3, rest)) => status = serde_json::from_slice(rest).expect("a status"),
            other => panic!("{other:?}"),
        }
    }
    (out, err, status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_dies() {
    let mut stand = Stand::start(1).await;
    let address = stand.start_agent().await;
    stand.api.put("/api/v1/namespaces/default/configmaps/cm", json!({"data": {"color": "red"}}));
    stand.api.put("/api/v1/namespaces/default/secrets/s", json!({"data": {"token": "aHVudGVyMg=="}}));
    let script = "cat /data/init; echo color=$COLOR; echo oops >&2; echo $(cat /secret/token); touch /data/ready; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let path = stand.pod("web", json!({
        "initContainers": [{"name": "prep", "image": IMAGE, "command": ["sh", "-c", "echo prepared > /data/init"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [
            {"name": "main", "image": IMAGE, "command": ["sh", "-c", script],
                "env": [{"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "color"}}}],
                "readinessProbe": {"exec": {"command": ["cat", "/data/ready"]}, "periodSeconds": 1},
                "volumeMounts": [
                    {"name": "data", "mountPath": "/data"}, {"name": "secret", "mountPath": "/secret"},
                    {"name": "data", "mountPath": "/part", "subPath": "a/b"},
                ]},
            {"name": "side", "image": IMAGE, "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
                "volumeMounts": [{"name": "data", "mountPath": "/shared", "readOnly": true}]},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "secret", "secret": {"secretName": "s"}}],
    }));
    let pod = stand.api.wait(&path, "ready", is_ready).await.expect("there");
    assert_eq!(phase(Some(&pod)), "Running");
    assert!(pod["status"]["podIP"].as_str().expect("set").starts_with("10.97.1."));
    assert_eq!(pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);

    // Logs: both streams, without the runtime's framing; only with a certificate of the CA.
    let logs = get(&stand, &address, "/containerLogs/default/web/main").await;
    for line in ["prepared\n", "color=red\n", "oops\n", "hunter2"] {
        assert!(logs.contains(line), "{line:?} in {logs}");
    }
    let previous = get(&stand, &address, "/containerLogs/default/web/main?previous=true").await;
    assert!(previous.contains("400 Bad Request") && previous.contains("previous terminated container"), "{previous}");
    let refused = async {
        let mut socket = dial(&stand, &address, false).await?;
        socket.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        socket.read_u8().await
    };
    assert!(refused.await.is_err(), "a client without a certificate is refused");

    // Exec: streams apart, exit code, and stdin to its end, also when more flows both ways than any buffer holds.
    let (out, err, status) = exec(&stand, &address, "web", &["sh", "-c", "echo out; echo err >&2; exit 3"], b"").await;
    assert_eq!((out.as_slice(), err.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(status["details"]["causes"][0]["message"], "3");
    let large: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let (out, _, status) = exec(&stand, &address, "web", &["cat"], &large).await;
    assert!(out == large && status["status"] == "Success", "{status}");

    // The pod shares its volume, and a subPath is a part of it.
    let (out, ..) = exec(&stand, &address, "web", &["sh", "-c", "touch /part/x; ls /data/a/b"], b"").await;
    assert_eq!(out, b"x\n");

    // An agent that is stopped and started again disturbs nothing, and nothing is started twice.
    let before = stand.api.get(&path).expect("there")["status"]["containerStatuses"].clone();
    stand.stop_agent().await;
    let address = stand.start_agent().await;
    let (out, ..) = exec(&stand, &address, "web", &["cat", "/data/init"], b"").await;
    assert_eq!(out, b"prepared\n");
    assert_eq!(stand.api.get(&path).expect("there")["status"]["containerStatuses"], before);

    // So does an API server that comes back without its history: the deletion arrives all the same.
    stand.api.forget_history();
    stand.api.delete_gracefully(&path, 20);
    stand.api.wait(&path, "gone", |object| object.is_none()).await;
    let left: Vec<_> = ["pods", "logs"]
        .iter()
        .flat_map(|name| std::fs::read_dir(stand.dir.join("agent").join(name)))
        .flatten()
        .collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(stand.finish().await, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_are_told_and_crashes_back_off() {
    let mut stand = Stand::start(2).await;
    let address = stand.start_agent().await;
    let crash = stand.pod(
        "crash",
        json!({"containers": [{"name": "main", "image": IMAGE,
        "command": ["sh", "-c", "echo because > /dev/termination-log; echo dying; exit 3"]}]}),
    );
    let never =
        stand.pod("never", json!({"containers": [{"name": "main", "image": "nginx:1", "imagePullPolicy": "Never"}]}));
    let config = stand.pod(
        "config",
        json!({"containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "9"],
        "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "later", "key": "k"}}}]}]}),
    );
    let claim = stand.pod(
        "claim",
        json!({"containers": [{"name": "main", "image": IMAGE}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "gone"}}]}),
    );
    let job = stand.pod(
        "job",
        json!({"restartPolicy": "Never", "containers": [
        {"name": "main", "image": IMAGE, "command": ["true"]}, {"name": "b", "image": IMAGE, "command": ["true"]}]}),
    );
    let reason = |object: Option<&Value>| {
        let status = &object.expect("there")["status"]["containerStatuses"][0];
        status["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    };
    let pod =
        stand.api.wait(&crash, "backing off", |object| reason(object) == "CrashLoopBackOff").await.expect("there");
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1, "the first restart is immediate, the second waits");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["message"], "because\n");
    let previous = get(&stand, &address, "/containerLogs/default/crash/main?previous=true").await;
    assert!(previous.ends_with("dying\n"), "{previous}");
    stand.api.wait(&never, "refused", |object| reason(object) == "ErrImageNeverPull").await;
    stand.api.wait(&config, "refused", |object| reason(object) == "CreateContainerConfigError").await;
    let job = stand.api.wait(&job, "done", |object| phase(object) == "Succeeded").await.expect("there");
    assert_eq!(job["status"]["containerStatuses"][1]["state"]["terminated"]["reason"], "Completed");

    // One event for each cause, with the remedy in it.
    let expected = [
        ("crash", "BackOff", "back-off 10s"),
        ("never", "Failed", "imagePullPolicy IfNotPresent"),
        ("config", "Failed", "create it in namespace default"),
        ("claim", "FailedMount", "persistentvolumeclaim \"gone\" not found"),
    ];
    for (pod, reason, words) in expected {
        let found = stand.event(pod, reason).await;
        assert!(found["message"].as_str().expect("text").contains(words), "{found}");
    }
    // What was missing appears, and the pod starts without anybody's help.
    stand.api.put("/api/v1/namespaces/default/secrets/later", json!({"data": {"k": "dg=="}}));
    stand.api.wait(&config, "running", |object| phase(object) == "Running").await;
    for path in [&claim, &never, &config] {
        stand.api.delete_gracefully(path, 0);
        stand.api.wait(path, "gone", |object| object.is_none()).await;
    }
    // The pod is removed behind the agent's back while the agent is away: it is taken down when it comes back.
    stand.stop_agent().await;
    stand.api.delete(&crash);
    stand.start_agent().await;
    let runtime = cairn_agent::cri::Runtime::new(&stand.settings.socket());
    let started = tokio::time::Instant::now();
    while !runtime.sandboxes(&[("io.kubernetes.pod.name", "crash")]).await.expect("answered").is_empty() {
        assert!(started.elapsed().as_secs() < 20, "the orphan is still there");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(stand.finish().await, [] as [String; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_containerd_leaves_nothing_after_the_sweep() {
    let mut stand = Stand::start(3).await;
    stand.start_agent().await;
    let path = stand.pod(
        "web",
        json!({"containers": [{"name": "main", "image": IMAGE, "command": ["sleep", "1000"],
        "ports": [{"containerPort": 80, "hostPort": 38097}]}]}),
    );
    stand.api.wait(&path, "ready", is_ready).await;
    stand.stop_agent().await;
    let settings = stand.settings.clone();
    // Killed, not stopped: shims, sandboxes and rules stay behind.
    drop(stand.daemon.take());
    assert_eq!(cairn_agent::containerd::sweep(&settings), [] as [String; 0]);
    let rules = std::process::Command::new("iptables").args(["-w", "-t", "nat", "-S"]).output().expect("iptables runs");
    let rules = String::from_utf8_lossy(&rules.stdout).into_owned();
    assert!(!rules.contains(&settings.bridge) && !rules.contains("38097"), "{rules}");
    assert!(!std::path::Path::new("/sys/class/net").join(&settings.bridge).exists());
    assert!(!settings.root.exists());
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    assert!(!table.contains(&settings.root.display().to_string()), "mounts are left");
}
