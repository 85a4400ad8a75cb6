//! The metadata client against real members: one goes, and neither calls nor the map's followers notice more than a pause.

use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::meta::CreateVolumeRequest;
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
    let MetaError::Refused { code, message, remedy } = &error else { panic!("{error:?}") };
    assert_eq!(*code, Code::NotFound);
    assert!(message.contains("`nowhere`") && message.ends_with(remedy.as_str()), "{message} / {remedy}");
    cluster.stop_all().await;
}
