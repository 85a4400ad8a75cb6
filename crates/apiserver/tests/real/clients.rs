//! What programs do: informers, optimistic writes, protobuf bodies, pages, and clients that are not let in.

use crate::stand::{PATIENCE, Server, Stand};
use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Binding, ConfigMap, Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"n": name}}, "data": {"count": "0"}}))
        .expect("a map")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("in time")
}

async fn raw(client: &kube::Client, request: http::Request<Vec<u8>>) -> (u16, Value) {
    let (parts, body) = request.into_parts();
    let response =
        client.send(http::Request::from_parts(parts, kube::client::Body::from(body))).await.expect("an answer");
    let code = response.status().as_u16();
    let body = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn informers_of_both_kinds() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    maps.create(&PostParams::default(), &map("first")).await.expect("made");
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut stream = watcher(maps.clone(), config.labels("n in (first,second)")).boxed();
        let mut names = Vec::new();
        while names.is_empty() || !matches!(names.last(), Some(name) if name == "done") {
            match soon(stream.next()).await.expect("open").expect("an event") {
                watcher::Event::InitApply(object) => names.push(object.metadata.name.expect("named")),
                watcher::Event::InitDone => names.push("done".to_owned()),
                _ => {}
            }
        }
        assert_eq!(names, ["first", "done"]);
        let mut live = stream.touched_objects();
        maps.create(&PostParams::default(), &map("second")).await.expect("made");
        let seen = soon(live.next()).await.expect("open").expect("an event");
        assert_eq!(seen.metadata.name.as_deref(), Some("second"));
        // What leaves the selection is seen to go.
        let relabel = json!({"metadata": {"labels": {"n": "elsewhere"}}});
        maps.patch("second", &PatchParams::default(), &Patch::Merge(relabel)).await.expect("patched");
        let gone = soon(live.next()).await.expect("open").expect("an event");
        assert_eq!(gone.metadata.labels.and_then(|l| l.get("n").cloned()).as_deref(), Some("second"));
        maps.delete("second", &DeleteParams::default()).await.expect("deleted");
    }
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_resumes_where_it_was() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let made = maps.create(&PostParams::default(), &map("a")).await.expect("made");
    let from = made.metadata.resource_version.expect("a revision");
    maps.delete("a", &DeleteParams::default()).await.expect("deleted");
    let events: Vec<String> = maps
        .watch(&WatchParams::default().timeout(1), &from)
        .await
        .expect("a watch")
        .map(|event| match event.expect("an event") {
            WatchEvent::Deleted(object) => format!("deleted {}", object.metadata.resource_version.expect("a revision")),
            other => format!("{other:?}"),
        })
        .collect()
        .await;
    let after: i64 = from.parse::<i64>().expect("a number") + 1;
    assert_eq!(events, [format!("deleted {after}")], "the revision of the deletion, and an end when time is up");
    let request =
        http::Request::get("/api/v1/configmaps?watch=true&sendInitialEvents=true").body(Vec::new()).expect("a request");
    assert_eq!(raw(&client, request).await.0, 422, "sendInitialEvents needs resourceVersionMatch");
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_do_not_lose_each_others_changes() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let made = maps.create(&PostParams::default(), &map("m")).await.expect("made");
    // Each adds a key of its own, unconditionally: all must be there.
    let writers = (0..20).map(|n| {
        let maps = maps.clone();
        async move {
            let patch = json!({"data": {format!("k{n}"): "x"}});
            maps.patch("m", &PatchParams::default(), &Patch::Merge(patch)).await
        }
    });
    for result in futures::future::join_all(writers).await {
        result.expect("patched");
    }
    let now = maps.get("m").await.expect("there");
    assert_eq!(now.data.as_ref().map(BTreeMap::len), Some(21));
    let stale = maps.replace("m", &PostParams::default(), &made).await;
    assert!(matches!(stale, Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "Conflict"));
    // A write that changes nothing makes no revision.
    let same =
        maps.patch("m", &PatchParams::default(), &Patch::Merge(json!({"data": {"k1": "x"}}))).await.expect("patched");
    assert_eq!(same.metadata.resource_version, now.metadata.resource_version);
    let twice = maps.create(&PostParams::default(), &map("m")).await;
    assert!(matches!(twice, Err(kube::Error::Api(status)) if status.reason == "AlreadyExists"));
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_at_one_revision() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for n in 0..7 {
        maps.create(&PostParams::default(), &map(&format!("m{n}"))).await.expect("made");
    }
    let first = maps.list(&ListParams::default().limit(3)).await.expect("a page");
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (3, Some(4)));
    maps.create(&PostParams::default(), &map("m35")).await.expect("made");
    let (mut names, mut next) = (Vec::new(), first.metadata.continue_.clone());
    while let Some(token) = next {
        let page = maps.list(&ListParams::default().limit(3).continue_token(&token)).await.expect("a page");
        assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
        names.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
        next = page.metadata.continue_.filter(|token| !token.is_empty());
    }
    assert_eq!(names, ["m3", "m4", "m5", "m6"], "what came later is not on a later page");
    let one = maps.list(&ListParams::default().fields("metadata.name=m35")).await.expect("a list");
    assert_eq!(one.items.len(), 1);
    assert!(maps.list(&ListParams::default().fields("spec.bogus=1")).await.is_err());
    maps.delete_collection(&DeleteParams::default(), &ListParams::default().labels("n!=m35")).await.expect("deleted");
    assert_eq!(maps.list(&ListParams::default()).await.expect("a list").items.len(), 1);
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_from_node_to_grave() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let nodes: Api<Node> = Api::all(client.clone());
    let node = json!({"metadata": {"name": "n1"}, "status": {"capacity": {"cpu": "2"}}});
    let node =
        nodes.create(&PostParams::default(), &serde_json::from_value(node).expect("a node")).await.expect("made");
    assert_eq!(node.status.and_then(|status| status.allocatable).map(|a| a.len()), Some(1));
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let pod = json!({"metadata": {"generateName": "p-"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let pod = pods.create(&PostParams::default(), &serde_json::from_value(pod).expect("a pod")).await.expect("made");
    let name = pod.metadata.name.expect("named");
    assert!(name.starts_with("p-") && name.len() == 7);

    let binding: Binding =
        serde_json::from_value(json!({"metadata": {"name": name}, "target": {"kind": "Node", "name": "n1"}}))
            .expect("a binding");
    let params = PostParams::default();
    let bind = || pods.create_subresource::<Binding, Value>("binding", &name, &params, &binding);
    bind().await.expect("bound");
    assert!(matches!(bind().await, Err(kube::Error::Api(status)) if status.code == 409));
    let on_node = pods.list(&ListParams::default().fields("spec.nodeName=n1")).await.expect("a list");
    assert_eq!(on_node.items.len(), 1);

    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.9"}, "spec": {"hostNetwork": true}});
    let running = pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await.expect("patched");
    assert_eq!(running.status.and_then(|s| s.phase).as_deref(), Some("Running"));
    assert_eq!(running.spec.and_then(|s| s.host_network), None, "the status door does not write the spec");

    let going = pods.delete(&name, &DeleteParams::default()).await.expect("begun").left().expect("a pod");
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    assert!(pods.get(&name).await.is_ok(), "stays until its node has stopped it");
    pods.delete(&name, &DeleteParams::default().grace_period(0)).await.expect("gone");
    assert!(matches!(pods.get(&name).await, Err(kube::Error::Api(status)) if status.code == 404));

    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let event = json!({"metadata": {"name": "e.1"}, "involvedObject": {"kind": "Pod", "name": name, "namespace": "default"},
        "reason": "Gone", "message": "it is gone", "type": "Normal", "count": 1});
    events.create(&PostParams::default(), &serde_json::from_value(event).expect("an event")).await.expect("made");
    assert!(
        stand.kubectl(&format!("get events --field-selector=involvedObject.name={name}")).await.contains("it is gone")
    );
    assert!(stand.kubectl("describe node n1").await.contains("Capacity:"));
    stand.stop().await;
}

fn chunk(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2, u8::try_from(body.len()).expect("a short body")];
    out.extend_from_slice(body);
    out
}

fn protobuf(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [chunk(1, api_version.as_bytes()), chunk(2, kind.as_bytes())].concat();
    [b"k8s\0".to_vec(), chunk(1, &meta), chunk(2, raw)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_and_options_in_protobuf() {
    let stand = Stand::start().await;
    let client = stand.client().await;
    let post = |method: &str, path: &str, body: Vec<u8>| {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/vnd.kubernetes.protobuf");
        request.body(body).expect("a request")
    };
    let path = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let spec = [chunk(1, b"me"), vec![2 << 3, 15]].concat();
    let lease = [chunk(1, &chunk(1, b"leader")), chunk(2, &spec)].concat();
    let (code, made) = raw(&client, post("POST", path, protobuf("coordination.k8s.io/v1", "Lease", &lease))).await;
    assert_eq!((code, made["spec"]["holderIdentity"].as_str()), (201, Some("me")));
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    assert_eq!(leases.get("leader").await.expect("there").spec.and_then(|spec| spec.lease_duration_seconds), Some(15));
    let options = protobuf("coordination.k8s.io/v1", "DeleteOptions", &[chunk(2, &chunk(1, b"another uid"))].concat());
    let (code, refused) = raw(&client, post("DELETE", &format!("{path}/leader"), options)).await;
    assert_eq!((code, refused["reason"].as_str()), (409, Some("Conflict")), "{refused}");
    let (code, unknown) = raw(&client, post("POST", path, protobuf("x/v1", "Widget", &[]))).await;
    assert_eq!((code, unknown["reason"].as_str()), (415, Some("UnsupportedMediaType")));
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_certificate_gets_nothing() {
    let stand = Stand::start().await;
    let mut config = kube::config::Kubeconfig::read_from(stand.kubeconfig()).expect("a kubeconfig");
    config.auth_infos[0].auth_info = Some(Default::default());
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a config");
    let nobody = kube::Client::try_from(config).expect("a client");
    let request = http::Request::get("/api/v1/secrets").body(Vec::new()).expect("a request");
    let (code, status) = raw(&nobody, request).await;
    assert_eq!((code, status["reason"].as_str()), (401, Some("Unauthorized")));

    // A certificate of another authority ends at the handshake.
    let other = tempfile::TempDir::new().expect("a directory");
    crate::stand::certificates::certificates(other.path()).expect("certificates");
    let mut config = kube::config::Kubeconfig::read_from(stand.kubeconfig()).expect("a kubeconfig");
    let forged = config.auth_infos[0].auth_info.as_mut().expect("a user");
    forged.client_certificate = Some(other.path().join("admin.crt").display().to_string());
    forged.client_key = Some(other.path().join("admin.key").display().to_string());
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.expect("a config");
    let forger = kube::Client::try_from(config).expect("a client");
    assert!(forger.apiserver_version().await.is_err());

    let open = cairn_apiserver::Config {
        listen: "0.0.0.0:0".parse().expect("an address"),
        insecure_listen: false,
        etcd: vec![],
        tls: cairn_apiserver::TlsFiles { cert: "a".into(), key: "b".into(), ca: "c".into() },
        agent: None,
    };
    assert!(matches!(cairn_apiserver::bind(&open).await, Err(cairn_apiserver::Error::NotLoopback(_))));
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_and_a_restart_see_the_same() {
    let stand = Stand::start().await;
    let first = stand.client().await;
    let maps: Api<ConfigMap> = Api::namespaced(first, "default");
    maps.create(&PostParams::default(), &map("kept")).await.expect("made");
    let Stand { dir, etcd, server } = stand;
    let second = Server::start(dir.path(), &etcd.url).await;
    let stand = Stand { dir, etcd, server: second };
    stand.ready().await;
    let others: Api<ConfigMap> = Api::namespaced(stand.client().await, "default");
    let kept = others.get("kept").await.expect("there");
    let version = kept.metadata.resource_version.expect("a revision");
    let mut watch = others.watch(&WatchParams::default(), &version).await.expect("a watch").boxed();
    let mut old = others.watch(&WatchParams::default(), "1").await.expect("a watch that says why it ends").boxed();
    let end = soon(old.next()).await.expect("open").expect("an event");
    assert!(
        matches!(end, WatchEvent::Error(status) if status.code == 410),
        "history before its start is not known to it"
    );
    // Written through one, seen through the other.
    maps.patch("kept", &PatchParams::default(), &Patch::Merge(json!({"data": {"x": "y"}}))).await.expect("patched");
    let seen = soon(watch.next()).await.expect("open").expect("an event");
    assert!(
        matches!(seen, WatchEvent::Modified(object) if object.data.as_ref().is_some_and(|data| data.contains_key("x")))
    );
    // A watch ends when its server stops, and stopping does not wait for it.
    let begun = std::time::Instant::now();
    server.stop().await;
    stand.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(8));
}
