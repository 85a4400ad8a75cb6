//! OSDs as the metadata service sees them: the map is followed by deltas, silence is noticed, fences are waited for.

use std::time::Duration;

use cairn_meta::Config;
use cairn_proto::convert::apply_update;
use cairn_proto::meta::meta_client::MetaClient;
use cairn_proto::meta::{
    AttachMode, AttachRequest, CreateVolumeRequest, DownEvidence, HealthRequest, MapUpdate, RegisterNodeRequest,
    ReportDownRequest, ReportOsdRequest, VolumeRef, WatchMapRequest, volume_ref,
};
use cairn_types::OsdId;
use cairn_types::map::ClusterMap;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::cluster::{osd, pool};
use crate::support::{Cluster, PATIENCE, retry, ticket};

async fn next(updates: &mut Streaming<MapUpdate>) -> MapUpdate {
    let next = tokio::time::timeout(PATIENCE, updates.message());
    next.await.expect("an update in time").unwrap().expect("the stream goes on")
}

async fn acked(meta: &mut MetaClient<Channel>, id: u32, incarnation: u64) -> u64 {
    let request = ReportOsdRequest { id, incarnation, ..ReportOsdRequest::default() };
    meta.report_osd(request).await.unwrap().into_inner().epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_is_followed_by_deltas_at_any_member() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut meta = cluster.meta(leader);
    let mut follower = cluster.meta((leader + 1) % 3);
    let mut updates = follower.watch_map(WatchMapRequest { since_epoch: 0 }).await.unwrap().into_inner();
    let mut map = ClusterMap::default();
    assert!(apply_update(&mut map, next(&mut updates).await).unwrap());
    meta.register_osd(osd(1, 1)).await.unwrap();
    meta.register_osd(osd(2, 2)).await.unwrap();
    meta.create_pool(pool(3)).await.unwrap();
    while map.pgs.len() < 4 {
        let update = next(&mut updates).await;
        assert!(!update.full, "what is known is not sent again");
        assert!(apply_update(&mut map, update).unwrap());
    }
    assert_eq!(map.osds.len(), 2);
    // Who comes later, with an epoch it knows, gets only what is newer.
    let since_epoch = map.epoch.0 - 1;
    let mut late = meta.watch_map(WatchMapRequest { since_epoch }).await.unwrap().into_inner();
    let update = next(&mut late).await;
    assert!(!update.full && update.epoch == map.epoch.0 && update.osds.is_empty(), "{update:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_osd_is_declared_down_and_comes_back_when_it_reports() {
    let tune = |config: &mut Config| config.osd_silence = Duration::from_millis(600);
    let mut cluster = Cluster::start_tuned(1, tune).await;
    cluster.leader().await;
    let mut meta = cluster.meta(0);
    let id = meta.register_osd(osd(1, 1)).await.unwrap().into_inner();
    let up = async |cluster: &Cluster| {
        let mut updates = cluster.meta(0).watch_map(WatchMapRequest::default()).await.unwrap().into_inner();
        let mut map = ClusterMap::default();
        apply_update(&mut map, next(&mut updates).await).unwrap();
        map.osds[&OsdId(id.id)].up
    };
    assert!(up(&cluster).await);
    retry("it is declared down", async || (!up(&cluster).await).then_some(())).await;
    retry("a report brings it back", async || {
        acked(&mut cluster.meta(0), id.id, id.incarnation).await;
        up(&cluster).await.then_some(())
    })
    .await;
    // Only an OSD may speak of silence from outside, and proof is proof.
    let report = |evidence: DownEvidence| ReportDownRequest {
        mutation: ticket(77, 9, 0),
        osd: id.id,
        incarnation: id.incarnation,
        evidence: evidence.into(),
        ..ReportDownRequest::default()
    };
    assert_eq!(meta.report_down(report(DownEvidence::Silent)).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(meta.report_down(report(DownEvidence::Exited)).await.unwrap().into_inner().applied);
    let request = ReportOsdRequest { id: id.id, incarnation: id.incarnation, ..ReportOsdRequest::default() };
    assert!(meta.report_osd(request).await.unwrap().into_inner().dead);
    let health = meta.health(HealthRequest {}).await.unwrap().into_inner();
    assert!(health.checks.iter().any(|check| check.code == "OSD_DOWN"), "{health:?}");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_waits_until_an_osd_of_every_group_knows_of_it() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let mut meta = cluster.meta((leader + 1) % 3);
    let id = meta.register_osd(osd(1, 1)).await.unwrap().into_inner();
    meta.create_pool(pool(2)).await.unwrap();
    meta.register_node(RegisterNodeRequest { mutation: ticket(77, 3, 0), name: "n1".into(), ..Default::default() })
        .await
        .unwrap();
    let volume = CreateVolumeRequest { mutation: ticket(77, 4, 0), name: "v".into(), size: 4096, ..Default::default() };
    meta.create_volume(volume).await.unwrap();
    let request = AttachRequest {
        mutation: ticket(77, 5, 0),
        volume: Some(VolumeRef { by: Some(volume_ref::By::Name("v".into())) }),
        node: "n1".into(),
        mode: AttachMode::Exclusive.into(),
        data_session: vec![9; 16].into(),
        ..AttachRequest::default()
    };
    let attaching = tokio::spawn({
        let (mut meta, request) = (meta.clone(), request.clone());
        async move { meta.attach(request).await }
    });
    // The OSD learns of epochs by its watch, and acknowledges them.
    let mut updates = cluster.meta(leader).watch_map(WatchMapRequest::default()).await.unwrap().into_inner();
    let mut map = ClusterMap::default();
    while map.volumes.values().all(|fence| fence.generations.is_empty()) {
        apply_update(&mut map, next(&mut updates).await).unwrap();
    }
    assert!(!attaching.is_finished(), "nobody has acknowledged it");
    let report = ReportOsdRequest {
        id: id.id,
        incarnation: id.incarnation,
        acked_epoch: map.epoch.0,
        ..ReportOsdRequest::default()
    };
    meta.report_osd(report).await.unwrap();
    let attached = tokio::time::timeout(PATIENCE, attaching).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!((attached.generation, attached.epoch), (1, map.epoch.0));
    // Asked again, it is the same attachment.
    assert_eq!(meta.attach(request).await.unwrap().into_inner(), attached);
    cluster.stop_all().await;
}
