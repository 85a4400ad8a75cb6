//! The metadata client against real members: one goes, and neither calls nor the map's followers notice more than a pause.

use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::meta::{CreateVolumeRequest, DeleteVolumeRequest, ListVolumesRequest, VolumeRef, volume_ref};
use tonic::Code;

use crate::cluster::{osd, pool};
use crate::support::{Cluster, PATIENCE};

fn volume(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest { name: name.into(), size: 4096, ..CreateVolumeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_the_map_survive_the_loss_of_any_member() {
    let mut cluster = Cluster::start(3).await;
    let endpoints: Vec<String> = cluster.addresses.iter().map(ToString::to_string).collect();
    let client = MetaClient::new(&endpoints).unwrap().with_request_id("story-1");
    let mut map = client.watch_map();
    client.register_osd(osd(1, 1)).await.unwrap();
    client.create_pool(pool(2)).await.unwrap();
    for round in 0..2u8 {
        let made = client.create_volume(volume(&format!("v{round}"))).await.unwrap();
        assert!(!made.existed);
        let victim = cluster.leader().await;
        cluster.stop(victim).await;
        // The very next calls: whoever is asked first may be the one that is gone.
        let again = client.create_volume(volume(&format!("v{round}"))).await.unwrap();
        assert!(again.existed && again.volume == made.volume);
        client.register_osd(osd(1, round + 2)).await.unwrap();
        let heard = map.wait_for(|map| map.osds.len() == usize::from(round) + 2);
        tokio::time::timeout(PATIENCE, heard).await.expect("the map is followed").unwrap();
        cluster.restart(victim).await;
        cluster.leader().await;
    }
    let error = client.create_volume(CreateVolumeRequest { pool: "nowhere".into(), ..volume("x") }).await.unwrap_err();
    let MetaError::Refused { code, message, remedy, reason } = &error else { panic!("{error:?}") };
    assert_eq!(*code, Code::NotFound);
    assert!(message.contains("`nowhere`") && message.ends_with(remedy.as_str()), "{message} / {remedy}");
    assert_eq!(reason, "NOT_FOUND");
    cluster.stop_all().await;
}

/// The leader's own timer asks for the purge, whoever leads by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_kept_for_long_enough_is_purged_by_itself() {
    let mut cluster = Cluster::start(3).await;
    let endpoints: Vec<String> = cluster.addresses.iter().map(ToString::to_string).collect();
    let client = MetaClient::new(&endpoints).unwrap().with_request_id("story-2");
    client.register_osd(osd(1, 1)).await.unwrap();
    client.create_pool(pool(1)).await.unwrap();
    for (name, retention_s) in [("soon", 3), ("late", 3600)] {
        let request = CreateVolumeRequest { retention_s: Some(retention_s), ..volume(name) };
        let made = client.create_volume(request).await.unwrap().volume.unwrap();
        let volume = Some(VolumeRef { by: Some(volume_ref::By::Id(made.id)) });
        let deleted = client.delete_volume(DeleteVolumeRequest { volume, ..Default::default() }).await.unwrap();
        let trashed = deleted.trashed.unwrap().trashed.unwrap();
        assert_eq!(trashed.expires_at_s - trashed.deleted_at_s, retention_s);
    }
    let victim = cluster.leader().await;
    cluster.stop(victim).await;
    let in_trash = async || {
        let list = ListVolumesRequest { trash: true, ..Default::default() };
        let volumes = client.list_volumes(list).await.unwrap().volumes;
        volumes.into_iter().map(|volume| volume.name).collect::<Vec<_>>()
    };
    let purged = async {
        while in_trash().await != ["late"] {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, purged).await.expect("what has expired goes, and nothing else");
    let usage = client.status(Default::default()).await.unwrap().usage.unwrap();
    assert_eq!((usage.volumes, usage.provisioned), (1, 4096), "what is in the trash is counted");
    cluster.stop_all().await;
}
