//! Placement through the door: dry runs at any member, refusals in words, and what the leader does by itself.

use std::time::Duration;

use cairn_meta::Config;
use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::{
    BalancePgs, ChangePlacementRequest, ChangeSettingsRequest, CreatePoolRequest, DownEvidence, PlaceOsd,
    ReportDownRequest,
};
use tonic::Code;

use crate::cluster::{osd, pool};
use crate::support::{Cluster, retry, ticket};

fn out(id: u32, seq: u64, dry_run: bool) -> ChangePlacementRequest {
    let change = Some(Change::Place(PlaceOsd { id, placed: Some(false), weight: None }));
    ChangePlacementRequest { mutation: ticket(90, seq, 0), dry_run, change, ..ChangePlacementRequest::default() }
}

/// A pool of which every OSD has a part.
fn spread() -> CreatePoolRequest {
    let mut request = pool(5);
    request.pool.as_mut().expect("it describes one").pg_count = 64;
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing_and_says_what_the_command_would() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (mut meta, mut follower) = (cluster.meta(leader), cluster.meta((leader + 1) % 3));
    for name in 1..=4 {
        meta.register_osd(osd(name.into(), name)).await.unwrap();
    }
    meta.create_pool(spread()).await.unwrap();
    let before = meta.change_placement(ChangePlacementRequest::default()).await.unwrap().into_inner();
    assert!(before.moves.is_empty(), "everything is where it belongs");
    let dry = follower.change_placement(out(0, 1, true)).await.unwrap().into_inner();
    assert!(!dry.moves.is_empty());
    assert_eq!(meta.change_placement(ChangePlacementRequest::default()).await.unwrap().into_inner(), before);
    meta.change_placement(out(0, 1, false)).await.unwrap();
    let after = follower.change_placement(ChangePlacementRequest::default()).await.unwrap().into_inner();
    assert_eq!(after.moves, dry.moves);
    let refused = meta.change_placement(out(77, 2, true)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "there is no osd-77"));
    let balance = Some(Change::Balance(BalancePgs::default()));
    let request = ChangePlacementRequest { dry_run: true, change: balance, ..ChangePlacementRequest::default() };
    meta.change_placement(request).await.expect("a balance can be tried too");
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_osd_that_stays_down_is_taken_out_by_the_leader() {
    let tune = |config: &mut Config| config.osd_silence = Duration::from_secs(600);
    let mut cluster = Cluster::start_tuned(1, tune).await;
    cluster.leader().await;
    let mut meta = cluster.meta(0);
    for name in 1..=4 {
        meta.register_osd(osd(name.into(), name)).await.unwrap();
    }
    meta.create_pool(spread()).await.unwrap();
    let shortest = ChangeSettingsRequest {
        mutation: ticket(90, 1, 0),
        down_out_s: Some(1),
        noout: Some(true),
        ..ChangeSettingsRequest::default()
    };
    let set = meta.change_settings(shortest).await.unwrap().into_inner().settings.unwrap();
    assert!(set.noout && set.down_out_s == 1);
    let evidence = DownEvidence::Exited.into();
    let request = ReportDownRequest { mutation: ticket(90, 2, 0), reporter: None, osd: 3, incarnation: 1, evidence };
    meta.report_down(request).await.unwrap();
    let unset =
        ChangeSettingsRequest { mutation: ticket(90, 3, 0), noout: Some(false), ..ChangeSettingsRequest::default() };
    meta.change_settings(unset).await.unwrap();
    // Once it is out, placement wants its groups elsewhere.
    retry("the OSD to be taken out", async || {
        let standing = meta.clone().change_placement(ChangePlacementRequest::default()).await.ok()?.into_inner();
        (!standing.moves.is_empty()).then_some(())
    })
    .await;
    cluster.stop_all().await;
}
