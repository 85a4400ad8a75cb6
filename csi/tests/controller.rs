//! The controller service over its socket, before a real metadata member with three registered OSDs.

mod support;

use std::collections::HashMap;
use std::time::Duration;

use cairn_csi::Mode;
use cairn_meta_client::MetaClient;
use cairn_proto::csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use cairn_proto::{csi, meta};
use csi::controller_client::ControllerClient;
use csi::identity_client::IdentityClient;
use csi::volume_capability::access_mode::Mode as Access;
use support::{Driver, block, filesystem, mount};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

const GIB: i64 = 1 << 30;

struct Cluster {
    _dir: tempfile::TempDir,
    driver: Driver,
    client: MetaClient,
    /// Numbers and incarnations.
    osds: Vec<(u32, u64)>,
    controller: ControllerClient<Channel>,
    stop: CancellationToken,
    member: tokio::task::JoinHandle<Result<(), cairn_meta::Error>>,
}

impl Cluster {
    /// One member, three OSDs of 10 GiB on one host, the pool `default` of three copies on different OSDs.
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let members = vec![(1, address.clone())];
        let mut config = cairn_meta::Config::new(1, dir.path().join("meta"), address.clone(), members);
        config.heartbeat = Duration::from_millis(20);
        config.election = Duration::from_millis(100);
        config.osd_silence = Duration::from_secs(600);
        let stop = CancellationToken::new();
        let member = tokio::spawn(cairn_meta::run(config, stop.clone()));
        let client = MetaClient::new(&[&address]).unwrap();
        let location = Some(meta::Location { host: "node-1".into(), ..meta::Location::default() });
        let mut osds = Vec::new();
        for number in 0..3u8 {
            let request = meta::RegisterOsdRequest {
                uuid: vec![number + 1; 16].into(),
                addresses: vec![format!("unix:/run/osd-{number}")],
                location: location.clone(),
                device_class: "ssd".into(),
                capacity: 10 << 30,
                protocol: 1,
                ..meta::RegisterOsdRequest::default()
            };
            let registered = client.register_osd(request).await.unwrap();
            osds.push((registered.id, registered.incarnation));
        }
        let pool = meta::Pool {
            name: "default".into(),
            size: 3,
            min_size: 2,
            failure_domain: "osd".into(),
            ..Default::default()
        };
        let request = meta::CreatePoolRequest { pool: Some(pool), ..Default::default() };
        client.create_pool(request).await.unwrap();
        for node in ["node-1", "node-2"] {
            let request = meta::RegisterNodeRequest { name: node.into(), ..Default::default() };
            client.register_node(request).await.unwrap();
        }
        let driver = Driver::start(dir.path(), Mode::Controller, vec![address]).await;
        let controller = ControllerClient::new(driver.channel.clone());
        Self { _dir: dir, driver, client, osds, controller, stop, member }
    }

    async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::Volume, Status> {
        let reply = self.controller.clone().create_volume(request).await?;
        Ok(reply.into_inner().volume.unwrap())
    }

    async fn publish(&self, volume: &str, node: &str) -> Result<HashMap<String, String>, Status> {
        let request = csi::ControllerPublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            volume_capability: Some(mount(Access::SingleNodeWriter)),
            ..Default::default()
        };
        Ok(self.controller.clone().controller_publish_volume(request).await?.into_inner().publish_context)
    }

    async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        self.controller.clone().controller_unpublish_volume(request).await.map(drop)
    }

    async fn one(&self, volume: &str) -> Result<csi::ControllerGetVolumeResponse, Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: volume.into() };
        self.controller.clone().controller_get_volume(request).await.map(tonic::Response::into_inner)
    }

    async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: volume.into(), ..Default::default() };
        self.controller.clone().delete_volume(request).await.map(drop)
    }

    async fn stop(self) {
        drop(self.controller);
        self.driver.stop().await;
        self.stop.cancel();
        self.member.await.unwrap().unwrap();
    }
}

fn wanted(name: &str, bytes: i64) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
        volume_capabilities: vec![mount(Access::SingleNodeWriter)],
        ..Default::default()
    }
}

fn with(name: &str, value: &str) -> csi::CreateVolumeRequest {
    let parameters = [(name.to_owned(), value.to_owned())].into();
    csi::CreateVolumeRequest { parameters, ..wanted("bad", GIB) }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    words.iter().for_each(|word| assert!(status.message().contains(word), "`{word}` is not in: {}", status.message()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_lives_and_every_call_may_come_twice() {
    let cluster = Cluster::start().await;
    let (one, other) = tokio::join!(cluster.create(wanted("pvc-1", GIB)), cluster.create(wanted("pvc-1", GIB)));
    let volume = one.unwrap();
    assert_eq!(volume, other.unwrap(), "the same name is the same volume");
    assert_eq!(volume.capacity_bytes, GIB);
    let id = volume.volume_id.as_str();
    let range = csi::CapacityRange { required_bytes: GIB / 2, limit_bytes: 2 * GIB };
    let looser = csi::CreateVolumeRequest { capacity_range: Some(range), ..wanted("pvc-1", 0) };
    assert_eq!(cluster.create(looser).await.unwrap().volume_id, id, "what there is fits the range");
    refused(cluster.create(wanted("pvc-1", 2 * GIB)).await, Code::AlreadyExists, &["pvc-1", "1073741824 bytes"]);
    let longest = "n".repeat(128);
    cluster.create(wanted(&longest, GIB)).await.unwrap();

    for _ in 0..2 {
        assert_eq!(cluster.publish(id, "node-1").await.unwrap()["attachMode"], "exclusive");
    }
    refused(cluster.publish(id, "node-2").await, Code::FailedPrecondition, &["node-1", "unpublish it"]);
    refused(cluster.publish(id, "node-9").await, Code::NotFound, &["node-9", "cairn attach"]);
    refused(cluster.publish("999", "node-1").await, Code::NotFound, &["999"]);
    refused(cluster.delete(id).await, Code::FailedPrecondition, &["published to node `node-1`"]);

    let list = csi::ListVolumesRequest { max_entries: 1, ..Default::default() };
    let page = cluster.controller.clone().list_volumes(list).await.unwrap().into_inner();
    assert_eq!(page.entries[0].status.as_ref().unwrap().published_node_ids, ["node-1"]);
    let listed = page.entries[0].status.clone().unwrap().volume_condition.unwrap();
    assert!(!listed.abnormal && listed.message.contains("the pool `default` serve I/O"), "{}", listed.message);
    let one = cluster.one(id).await.unwrap();
    let status = one.status.unwrap();
    assert_eq!((one.volume.unwrap(), status.published_node_ids), (volume.clone(), vec!["node-1".to_owned()]));
    assert_eq!(status.volume_condition, Some(listed));
    refused(cluster.one("999").await, Code::NotFound, &["999"]);
    refused(cluster.one("").await, Code::InvalidArgument, &["volume_id"]);
    let list = csi::ListVolumesRequest { max_entries: 1, starting_token: page.next_token };
    let rest = cluster.controller.clone().list_volumes(list).await.unwrap().into_inner();
    assert_eq!((rest.entries.len(), rest.next_token.as_str()), (1, ""));
    let list = csi::ListVolumesRequest { starting_token: "nonsense".into(), ..Default::default() };
    refused(cluster.controller.clone().list_volumes(list).await, Code::Aborted, &["nonsense"]);

    // Two of three OSDs die: fewer copies than a group needs to go on.
    for (osd, incarnation) in &cluster.osds[1..] {
        let request = meta::ReportDownRequest {
            osd: *osd,
            incarnation: *incarnation,
            evidence: meta::DownEvidence::Exited.into(),
            ..Default::default()
        };
        assert!(cluster.client.report_down(request).await.unwrap().applied);
    }
    let condition = cluster.one(id).await.unwrap().status.unwrap().volume_condition.unwrap();
    assert!(condition.abnormal && condition.message.contains("serve no I/O"), "{}", condition.message);

    for _ in 0..2 {
        cluster.unpublish(id, "node-1").await.unwrap();
        cluster.unpublish(id, "node-9").await.unwrap();
    }
    for _ in 0..2 {
        cluster.delete(id).await.unwrap();
    }
    cluster.delete("never-given-out").await.unwrap();
    cluster.unpublish(id, "node-1").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_with_cause_and_remedy() {
    let cluster = Cluster::start().await;
    let create = |request| cluster.create(request);
    refused(create(wanted("", GIB)).await, Code::InvalidArgument, &["name"]);
    refused(create(wanted(&"n".repeat(129), GIB)).await, Code::InvalidArgument, &["128"]);
    let none = csi::CreateVolumeRequest { volume_capabilities: Vec::new(), ..wanted("bad", GIB) };
    refused(create(none).await, Code::InvalidArgument, &["no volume capability"]);
    refused(create(with("repicas", "3")).await, Code::InvalidArgument, &["repicas", "pool, replicas, failureDomain"]);
    refused(create(with("pool", "gold")).await, Code::InvalidArgument, &["gold", "`default` (3 replicas"]);
    refused(create(with("replicas", "2")).await, Code::InvalidArgument, &["2 replicas", "add hosts"]);
    refused(
        create(with("failureDomain", "host")).await,
        Code::InvalidArgument,
        &["on different hosts", "OSDs on 1 host", "failureDomain: osd"],
    );
    refused(create(wanted("bad", 1 << 45)).await, Code::OutOfRange, &["free", "bytes", "add OSDs"]);
    let shared = csi::CreateVolumeRequest {
        volume_capabilities: vec![mount(Access::MultiNodeMultiWriter)],
        ..wanted("bad", GIB)
    };
    refused(create(shared).await, Code::InvalidArgument, &["ReadWriteMany", "use ReadWriteOnce"]);
    let raw = csi::CreateVolumeRequest {
        volume_capabilities: vec![block(Access::MultiNodeMultiWriter)],
        ..wanted("raw", GIB)
    };
    create(raw).await.unwrap();
    let small = csi::CreateVolumeRequest {
        volume_capabilities: vec![filesystem("xfs", Access::SingleNodeWriter)],
        ..wanted("xfs", 1 << 20)
    };
    assert_eq!(create(small).await.unwrap().capacity_bytes, 300 << 20, "the least that xfs takes");
    let volume =
        cluster.create(csi::CreateVolumeRequest { name: "good".into(), ..with("replicas", "3") }).await.unwrap();

    let expand = |bytes: i64, limit: i64| {
        let range = csi::CapacityRange { required_bytes: bytes, limit_bytes: limit };
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: Some(range),
            ..Default::default()
        };
        let mut controller = cluster.controller.clone();
        async move { controller.controller_expand_volume(request).await.map(tonic::Response::into_inner) }
    };
    let grown = expand(2 * GIB, 0).await.unwrap();
    assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (2 * GIB, true));
    assert_eq!(expand(GIB, 0).await.unwrap().capacity_bytes, 2 * GIB, "already larger");
    refused(expand(0, GIB).await, Code::OutOfRange, &["cannot shrink"]);
    refused(expand(1 << 45, 0).await, Code::OutOfRange, &["free"]);

    let validate = |volume_id: &str, capability| {
        let request = csi::ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.into(),
            volume_capabilities: vec![capability],
            ..Default::default()
        };
        let mut controller = cluster.controller.clone();
        async move { controller.validate_volume_capabilities(request).await.map(tonic::Response::into_inner) }
    };
    let id = volume.volume_id.as_str();
    assert!(validate(id, mount(Access::SingleNodeWriter)).await.unwrap().confirmed.is_some());
    let denied = validate(id, mount(Access::MultiNodeMultiWriter)).await.unwrap();
    assert!(denied.confirmed.is_none() && denied.message.contains("ReadWriteMany"));
    refused(validate("77", mount(Access::SingleNodeWriter)).await, Code::NotFound, &["77"]);
    let nameless = cluster.controller.clone().create_snapshot(csi::CreateSnapshotRequest::default()).await;
    refused(nameless, Code::InvalidArgument, &["name"]);
    let capacity = cluster.controller.clone().get_capacity(csi::GetCapacityRequest::default()).await.unwrap();
    assert!((GIB..11 * GIB).contains(&capacity.into_inner().available_capacity));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_volume_with_a_retention_stays_in_the_trash_and_its_name_is_free() {
    let cluster = Cluster::start().await;
    let kept = || {
        let parameters = [("deleteRetention".to_owned(), "24h".to_owned())].into();
        csi::CreateVolumeRequest { parameters, ..wanted("pvc-1", GIB) }
    };
    let first = cluster.create(kept()).await.unwrap();
    refused(cluster.create(wanted("pvc-1", GIB)).await, Code::AlreadyExists, &["kept for another time"]);
    for _ in 0..2 {
        cluster.delete(&first.volume_id).await.unwrap();
    }
    refused(cluster.one(&first.volume_id).await, Code::NotFound, &[&first.volume_id]);
    refused(cluster.publish(&first.volume_id, "node-1").await, Code::NotFound, &["in the trash", "undelete"]);
    let second = cluster.create(kept()).await.unwrap();
    assert_ne!(second.volume_id, first.volume_id, "another volume");
    let list = meta::ListVolumesRequest { trash: true, ..Default::default() };
    let trash = cluster.client.list_volumes(list).await.unwrap().volumes;
    assert_eq!(trash.iter().map(|volume| volume.id.to_string()).collect::<Vec<_>>(), [first.volume_id]);
    let listed = cluster.controller.clone().list_volumes(csi::ListVolumesRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().entries.len(), 1, "what is in the trash is no volume");
    refused(cluster.create(with("deleteRetention", "soon")).await, Code::InvalidArgument, &["deleteRetention", "24h"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_pool_or_a_node_may_have_no_more_of_is_exhausted() {
    let cluster = Cluster::start().await;
    let rules = |quota, max_volumes| {
        let (quota, max_volumes) = (Some(quota), Some(max_volumes));
        meta::ChangePoolRequest { pool: "default".into(), quota, max_volumes, ..Default::default() }
    };
    let capacity = async || {
        let reply = cluster.controller.clone().get_capacity(csi::GetCapacityRequest::default()).await.unwrap();
        reply.into_inner().available_capacity
    };
    cluster.client.change_pool(rules(3 << 30, 0)).await.unwrap();
    assert_eq!(capacity().await, 3 * GIB);
    let volume = cluster.create(wanted("one", 2 * GIB)).await.unwrap();
    assert_eq!(capacity().await, GIB);
    refused(cluster.create(wanted("two", 2 * GIB)).await, Code::ResourceExhausted, &["quota of 3 GiB", "--quota"]);
    let expand = csi::ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 4 * GIB, limit_bytes: 0 }),
        ..Default::default()
    };
    let grown = cluster.controller.clone().controller_expand_volume(expand).await;
    refused(grown, Code::ResourceExhausted, &["would grow by 2 GiB", "quota"]);
    cluster.client.change_pool(rules(0, 1)).await.unwrap();
    assert_eq!(capacity().await, 0);
    refused(
        cluster.create(wanted("two", GIB)).await,
        Code::ResourceExhausted,
        &["may have 1 volumes", "--max-volumes"],
    );
    cluster.client.change_pool(rules(0, 0)).await.unwrap();

    let other = cluster.create(wanted("two", GIB)).await.unwrap();
    let node = meta::RegisterNodeRequest { name: "node-1".into(), max_volumes: 1, ..Default::default() };
    cluster.client.register_node(node).await.unwrap();
    cluster.publish(&volume.volume_id, "node-1").await.unwrap();
    cluster.publish(&volume.volume_id, "node-1").await.unwrap();
    let words = &["`node-1` has 1 volumes", "another node"];
    refused(cluster.publish(&other.volume_id, "node-1").await, Code::ResourceExhausted, words);
    cluster.publish(&other.volume_id, "node-2").await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_at_the_beginning_and_changed_later() {
    let cluster = Cluster::start().await;
    let mutable = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>()
    };
    let limited = || {
        let mutable_parameters = mutable(&[("iops", "100"), ("bandwidth", "50Mi")]);
        csi::CreateVolumeRequest { mutable_parameters, ..wanted("pvc-1", GIB) }
    };
    let volume = cluster.create(limited()).await.unwrap();
    assert_eq!(cluster.create(limited()).await.unwrap(), volume);
    refused(cluster.create(wanted("pvc-1", GIB)).await, Code::AlreadyExists, &["its limits are others"]);
    let limits = async || {
        let by = Some(meta::volume_ref::By::Name("pvc-1".into()));
        let request = meta::GetVolumeRequest { volume: Some(meta::VolumeRef { by }) };
        let limits = cluster.client.get_volume(request).await.unwrap().volume.unwrap().limits.unwrap_or_default();
        (limits.iops, limits.bandwidth, limits.burst_s)
    };
    assert_eq!(limits().await, (100, 50 << 20, 0));
    let modify = |volume_id: &str, pairs: &[(&str, &str)]| {
        let (volume_id, mutable_parameters) = (volume_id.to_owned(), mutable(pairs));
        let request = csi::ControllerModifyVolumeRequest { volume_id, mutable_parameters, ..Default::default() };
        let mut controller = cluster.controller.clone();
        async move { controller.controller_modify_volume(request).await.map(drop) }
    };
    let id = volume.volume_id.as_str();
    for _ in 0..2 {
        modify(id, &[("iops", "200"), ("burst", "5")]).await.unwrap();
        assert_eq!(limits().await, (200, 50 << 20, 5), "what is not named stays");
    }
    refused(
        modify(id, &[("iops", "200"), ("size", "1")]).await,
        Code::InvalidArgument,
        &["size", "iops, bandwidth, burst"],
    );
    refused(modify(id, &[("bandwidth", "1k")]).await, Code::InvalidArgument, &["1000 bytes a second", "1 MiB"]);
    refused(modify("999", &[("iops", "1")]).await, Code::NotFound, &["999"]);
    refused(modify("", &[("iops", "1")]).await, Code::InvalidArgument, &["volume_id"]);
    modify(id, &[("iops", "none"), ("bandwidth", "none"), ("burst", "0")]).await.unwrap();
    assert_eq!(limits().await, (0, 0, 0));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_driver_says_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let driver = Driver::start(dir.path(), Mode::Controller, vec!["127.0.0.1:1".into()]).await;
    let mut identity = IdentityClient::new(driver.channel.clone());
    let info = identity.get_plugin_info(csi::GetPluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.name, "csi.cairn.dev");
    assert_eq!(identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready, Some(true));
    let services = identity.get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await.unwrap();
    assert_eq!(services.into_inner().capabilities.len(), 2);
    drop(identity);
    driver.stop().await;
    assert!(!dir.path().join("csi/csi.sock").exists());
}

/// A volume that is made of something.
fn made_of(name: &str, source: Source) -> csi::CreateVolumeRequest {
    let source = csi::VolumeContentSource { r#type: Some(source) };
    csi::CreateVolumeRequest { volume_content_source: Some(source), ..wanted(name, GIB) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_may_be_asked_for_again_when_its_source_is_gone() {
    let cluster = Cluster::start().await;
    let volume = cluster.create(wanted("source", GIB)).await.unwrap().volume_id;
    let take = |name: &str, volume: &str| {
        let (name, source_volume_id) = (name.to_owned(), volume.to_owned());
        let request = csi::CreateSnapshotRequest { name, source_volume_id, ..Default::default() };
        let mut controller = cluster.controller.clone();
        async move { controller.create_snapshot(request).await.map(|reply| reply.into_inner().snapshot.unwrap()) }
    };
    let list = |request: csi::ListSnapshotsRequest| {
        let mut controller = cluster.controller.clone();
        async move { controller.list_snapshots(request).await.unwrap().into_inner() }
    };
    let snapshot = take("first", &volume).await.unwrap();
    assert!(snapshot.ready_to_use && snapshot.size_bytes == GIB && snapshot.source_volume_id == volume);
    assert_eq!(take("first", &volume).await.unwrap(), snapshot, "the same name is the same snapshot");
    let other = cluster.create(wanted("other", GIB)).await.unwrap().volume_id;
    refused(take("first", &other).await, Code::AlreadyExists, &["first", "source"]);
    refused(take("second", "77").await, Code::NotFound, &["77"]);

    let by_snapshot =
        |name: &str| made_of(name, Source::Snapshot(SnapshotSource { snapshot_id: snapshot.snapshot_id.clone() }));
    let by_volume = |name: &str| made_of(name, Source::Volume(VolumeSource { volume_id: volume.clone() }));
    let restored = cluster.create(by_snapshot("restored")).await.unwrap();
    assert!(restored.content_source.is_some());
    let cloned = cluster.create(by_volume("cloned")).await.unwrap();
    assert_eq!(
        list(csi::ListSnapshotsRequest::default()).await.entries.len(),
        1,
        "what was taken for a clone is not shown"
    );
    let small = csi::CapacityRange { required_bytes: 0, limit_bytes: GIB / 2 };
    let small = csi::CreateVolumeRequest { capacity_range: Some(small), ..by_volume("small") };
    refused(cluster.create(small).await, Code::OutOfRange, &[]);
    let all = cluster.client.list_snapshots(meta::ListSnapshotsRequest::default()).await.unwrap().snapshots;
    assert_eq!(all.len(), 1, "nor does one stay of a clone that could not be made: {all:?}");
    refused(
        cluster.create(made_of("none", Source::Snapshot(SnapshotSource { snapshot_id: "77".into() }))).await,
        Code::NotFound,
        &["77"],
    );

    // Volume and snapshot go; who did not hear that the clones were made asks again.
    cluster.delete(&volume).await.unwrap();
    let gone = csi::DeleteSnapshotRequest { snapshot_id: snapshot.snapshot_id.clone(), ..Default::default() };
    for _ in 0..2 {
        cluster.controller.clone().delete_snapshot(gone.clone()).await.unwrap();
    }
    assert_eq!(cluster.create(by_snapshot("restored")).await.unwrap().volume_id, restored.volume_id);
    assert_eq!(cluster.create(by_volume("cloned")).await.unwrap().volume_id, cloned.volume_id);
    refused(cluster.create(by_snapshot("late")).await, Code::NotFound, &[&snapshot.snapshot_id]);
    assert_eq!(list(csi::ListSnapshotsRequest::default()).await.entries, []);
    cluster.stop().await;
}
