//! The real kubectl against the server on a real etcd: what people do all day.

use crate::stand::Stand;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};

const CLAIM: &str = r#"
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}
provisioner: csi.example.com
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data, labels: {app: web}}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers:
  - {name: web, image: "busybox:1", command: [sleep, "1000"], volumeMounts: [{name: d, mountPath: /d}]}
  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]
"#;

#[tokio::test(flavor = "multi_thread")]
async fn apply_read_change_delete() {
    let stand = Stand::start().await;
    assert_eq!(
        stand.kubectl_in("apply -f -", CLAIM).await,
        "storageclass.storage.k8s.io/fast created\npersistentvolumeclaim/data created\npod/web created\n"
    );
    let again = stand.kubectl_in("apply -f -", CLAIM).await;
    assert!(again.lines().all(|line| line.ends_with("unchanged")), "{again}");

    let table = stand.kubectl("get pvc,pods,sc -l app=web").await;
    assert!(table.contains("Pending") && table.contains("0/1") && table.contains("fast"), "{table}");
    let wide = stand.kubectl("get pods -o wide").await;
    assert!(wide.contains("NOMINATED NODE"), "{wide}");
    assert!(stand.kubectl("get sc").await.contains("fast (default)"));
    let fields = "{.spec.storageClassName},{.spec.volumeMode},{.metadata.finalizers[0]},{.status.phase}";
    let claim = stand.kubectl(&format!("get pvc data -o jsonpath={fields}")).await;
    assert_eq!(claim, "fast,Filesystem,kubernetes.io/pvc-protection,Pending");
    assert!(stand.kubectl("get pod web -o yaml").await.contains("imagePullPolicy: IfNotPresent"));
    assert!(stand.kubectl("describe pvc data").await.contains("Used By:       web"));
    assert!(stand.kubectl("describe pod web").await.contains("ClaimName:   data"));
    assert_eq!(stand.kubectl("get pods --field-selector=status.phase!=Pending -o name").await, "");

    stand.kubectl("label pod web tier=front").await;
    stand.kubectl("annotate pvc data note=x").await;
    assert_eq!(stand.kubectl("get pods -l tier=front -o name").await, "pod/web\n");
    stand.kubectl(r#"patch pod web --type json -p [{"op":"remove","path":"/metadata/labels/tier"}]"#).await;
    assert_eq!(stand.kubectl("get pods -l tier -o name").await, "");
    stand.kubectl("set image pod/web web=busybox:2").await;
    assert_eq!(stand.kubectl("get pod web -o jsonpath={.spec.containers[*].image}").await, "busybox:2");

    stand.kubectl("delete pod web").await;
    stand.kubectl("delete pvc data --wait=false").await;
    assert!(stand.kubectl("get pvc data").await.contains("Terminating"));
    let (gone, ()) = tokio::join!(stand.kubectl("wait pvc/data --for=delete --timeout=10s"), async {
        stand.kubectl(r#"patch pvc data --type=merge -p {"metadata":{"finalizers":null}}"#).await;
    });
    assert!(gone.contains("condition met") || gone.is_empty(), "{gone}");
    assert!(stand.refused("get pvc data", "").await.contains("persistentvolumeclaims \"data\" not found"));
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_generators_send_is_read() {
    // `kubectl create KIND` and `auth` send protobuf.
    let stand = Stand::start().await;
    stand.kubectl("create ns team").await;
    stand.kubectl("create cm settings -n team --from-literal=a=b --from-literal=empty=").await;
    assert_eq!(stand.kubectl("get cm settings -n team -o jsonpath={.data}").await, r#"{"a":"b","empty":""}"#);
    stand.kubectl("create secret generic password -n team --from-literal=p=secret").await;
    assert_eq!(stand.kubectl("get secret password -n team -o jsonpath={.data.p},{.type}").await, "c2VjcmV0,Opaque");
    stand.kubectl("run one -n team --image=busybox --restart=Never -- sleep 5").await;
    assert_eq!(
        stand
            .kubectl("get pod one -n team -o jsonpath={.spec.restartPolicy},{.spec.containers[0].imagePullPolicy}")
            .await,
        "Never,Always"
    );
    assert_eq!(stand.kubectl("auth can-i create pods").await.trim(), "yes");
    assert!(stand.kubectl("auth whoami").await.contains("system:masters"));
    assert!(stand.kubectl("version").await.contains("Server Version: v1.32"));
    assert!(stand.kubectl("api-resources").await.contains("persistentvolumeclaims"));
    assert!(stand.refused("create secret generic Bad_Name -n team", "").await.contains("lowercase RFC 1123 subdomain"));
    assert!(stand.refused("create cm x -n nowhere", "").await.contains("namespaces \"nowhere\" not found"));

    // A namespace waits for its contents, and takes nothing new meanwhile.
    stand.kubectl("delete ns team --wait=false").await;
    assert!(stand.kubectl("get ns team").await.contains("Terminating"));
    assert!(stand.refused("create cm late -n team", "").await.contains("because it is being terminated"));
    let finalize = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"team"},"spec":{"finalizers":[]}}"#;
    stand.kubectl_in("replace --raw /api/v1/namespaces/team/finalize -f -", finalize).await;
    assert!(stand.refused("get ns team", "").await.contains("not found"));
    assert!(stand.refused("delete ns default", "").await.contains("this namespace may not be deleted"));
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_ways_to_apply() {
    let stand = Stand::start().await;
    let map = |data: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{{data}}}\n");
    // From the client: what is no longer in the file goes, what others added stays.
    stand.kubectl_in("apply -f -", &map("a: '1', b: '2'")).await;
    stand.kubectl(r#"patch cm m -p {"data":{"other":"x"}}"#).await;
    stand.kubectl_in("apply -f -", &map("a: '1'")).await;
    assert_eq!(stand.kubectl("get cm m -o jsonpath={.data}").await, r#"{"a":"1","other":"x"}"#);
    // A dry run and a diff leave everything as it is.
    let before = stand.kubectl("get cm m -o jsonpath={.metadata.resourceVersion}").await;
    assert!(
        stand.kubectl_in("apply --dry-run=server -f -", &map("a: '9'")).await.contains("configured (server dry run)")
    );
    let diff = stand.kubectl_with(&["diff", "-f", "-"], &map("a: '9'")).await;
    assert!(diff.out.contains("+  a: \"9\""), "{diff:?}");
    assert_eq!(stand.kubectl("get cm m -o jsonpath={.metadata.resourceVersion}").await, before);
    // From the server, by another manager: conflicts are named, force takes over, removal works by ownership.
    let conflict = stand.refused("apply --server-side --field-manager=ci -f -", &map("a: '9'")).await;
    assert!(conflict.contains("Apply failed with 1 conflict") && conflict.contains(".data.a"), "{conflict}");
    stand.kubectl_in("apply --server-side --field-manager=ci --force-conflicts -f -", &map("a: '9', c: '3'")).await;
    stand.kubectl_in("apply --server-side --field-manager=ci -f -", &map("a: '9'")).await;
    assert_eq!(stand.kubectl("get cm m -o jsonpath={.data}").await, r#"{"a":"9","other":"x"}"#);
    // Made by the server-side apply itself.
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: p}\nspec: {accessModes: \
        [ReadWriteOnce], resources: {requests: {storage: 1024Mi}}}\n";
    stand.kubectl_in("apply --server-side -f -", claim).await;
    let first = stand.kubectl("get pvc p -o jsonpath={.metadata.resourceVersion}").await;
    stand.kubectl_in("apply --server-side -f -", claim).await;
    assert_eq!(stand.kubectl("get pvc p -o jsonpath={.metadata.resourceVersion}").await, first, "nothing changed");
    // Replace and edit.
    let object = stand.kubectl("get cm m -o json").await;
    stand.kubectl_in("replace -f -", &object.replace("\"9\"", "\"10\"")).await;
    assert!(stand.refused("replace -f -", &object).await.contains("the object has been modified"));
    let edited = stand.command(&["edit", "cm", "m"]).env("EDITOR", "sed -i s/x$/z/").output().await.expect("ran");
    assert!(edited.status.success(), "{edited:?}");
    assert_eq!(stand.kubectl("get cm m -o jsonpath={.data}").await, r#"{"a":"10","other":"z"}"#);
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_objects_are_refused_in_words() {
    let stand = Stand::start().await;
    let pod = |spec: &str| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
    for (spec, expect) in [
        (
            "{containers: [{name: a, image: b, imagee: c}]}",
            "strict decoding error: unknown field \"spec.containers[0].imagee\"",
        ),
        (
            "{containers: [{name: a, image: b}], restartPolicy: Often}",
            "spec.restartPolicy: Unsupported value: \"Often\"",
        ),
        (
            "{containers: [{name: a, image: 3}]}",
            "cannot unmarshal number into Go struct field Container.spec.containers.image of type string",
        ),
        ("{containers: []}", "spec.containers: Required value"),
    ] {
        let said = stand.refused("create -f -", &pod(spec)).await;
        assert!(said.contains(expect), "{said}");
    }
    let warned = stand
        .kubectl_with(&["create", "--validate=warn", "-f", "-"], &pod("{containers: [{name: a, image: b}], bogus: 1}"))
        .await;
    assert!(warned.ok && warned.err.contains("Warning: unknown field \"spec.bogus\""), "{warned:?}");
    assert!(
        stand
            .refused(r#"patch pod p -p {"spec":{"hostNetwork":true}}"#, "")
            .await
            .contains("pod updates may not change fields")
    );

    stand.kubectl_in("apply -f -", CLAIM).await;
    let grow =
        |size: &str| format!(r#"patch pvc data -p {{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}"#);
    assert!(stand.refused(&grow("2Gi"), "").await.contains("spec is immutable after creation"));
    let status = r#"{"status":{"phase":"Bound","capacity":{"storage":"1Gi"}}}"#;
    let bound = &format!("patch pvc data --subresource=status --type=merge -p {status}");
    stand.kubectl(bound).await;
    assert!(stand.refused(&grow("512Mi"), "").await.contains("field can not be less than status.capacity"));
    assert!(stand.refused(&grow("lots"), "").await.contains("quantities must match the regular expression"));
    assert!(
        stand.refused(&grow("2Gi"), "").await.contains("the storageclass that provisions the pvc must support resize")
    );
    stand.kubectl(r#"patch sc fast -p {"allowVolumeExpansion":true}"#).await;
    stand.kubectl(&grow("2Gi")).await;
    assert!(
        stand
            .refused(r#"patch sc fast -p {"parameters":{"a":"b"}}"#, "")
            .await
            .contains("updates to parameters are forbidden")
    );
    stand.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_changes_as_they_come() {
    let stand = Stand::start().await;
    let mut child = stand.command(&["get", "cm", "-w", "--output-watch-events"]).spawn().expect("kubectl runs");
    let mut lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    stand.kubectl("create cm seen --from-literal=a=b").await;
    stand.kubectl(r#"patch cm seen -p {"data":{"c":"d"}}"#).await;
    stand.kubectl("delete cm seen").await;
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await.expect("in time");
        let line = line.expect("is read").expect("is open");
        if let Some((kind, rest)) = line.split_once(' ').filter(|(kind, _)| *kind != "EVENT") {
            let cells: Vec<&str> = rest.split_whitespace().take(2).collect();
            seen.push(format!("{kind} {}", cells.join(" ")));
        }
    }
    assert_eq!(seen, ["ADDED seen 1", "MODIFIED seen 2", "DELETED seen 2"]);
    child.kill().await.expect("ends");
    stand.stop().await;
}
