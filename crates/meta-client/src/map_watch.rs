//! Follows the cluster map: deltas as they come, the whole map after a gap, another member when one fails.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cairn_proto::convert::apply_update;
use cairn_proto::meta::meta_client::MetaClient as Stub;
use cairn_proto::meta::{StatusRequest, WatchMapRequest};
use cairn_types::Epoch;
use cairn_types::map::ClusterMap;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::endpoints::Endpoints;

/// The newest map that is known; empty, at epoch 0, until the first has arrived.
pub type MapWatch = watch::Receiver<Arc<ClusterMap>>;

/// Between looks at who the members are.
const LEARN_EVERY: Duration = Duration::from_secs(30);
const ASK: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

pub(crate) fn start(endpoints: Endpoints) -> MapWatch {
    let (sender, receiver) = watch::channel(Arc::new(ClusterMap::default()));
    tokio::spawn(async move {
        tokio::select! {
            () = follow(endpoints, &sender) => {}
            () = sender.closed() => {}
        }
    });
    receiver
}

async fn follow(endpoints: Endpoints, sender: &watch::Sender<Arc<ClusterMap>>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let before = sender.borrow().epoch;
        let (at, stub) = endpoints.current();
        let why = tokio::select! {
            why = one_stream(stub.clone(), sender) => why,
            never = follow_members(stub, &endpoints) => match never {},
        };
        endpoints.pass_over(at);
        tracing::debug!(why, "the map's stream ended");
        if sender.borrow().epoch > before {
            pause = FIRST_PAUSE;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Members come and go while the stream stands: whoever is to be asked next is learnt in time.
async fn follow_members(mut stub: Stub<Channel>, endpoints: &Endpoints) -> Infallible {
    loop {
        if let Ok(Ok(status)) = tokio::time::timeout(ASK, stub.status(StatusRequest::default())).await {
            let members = status.into_inner().members.into_iter().filter(|member| !member.learner);
            let named: Vec<String> = members.map(|member| member.address).collect();
            if !named.is_empty() {
                endpoints.learn(named);
            }
        }
        tokio::time::sleep(LEARN_EVERY).await;
    }
}

/// Follows one member until its stream ends; why it did.
async fn one_stream(mut stub: Stub<Channel>, sender: &watch::Sender<Arc<ClusterMap>>) -> String {
    let since_epoch = sender.borrow().epoch.0;
    let mut stream = match stub.watch_map(WatchMapRequest { since_epoch }).await {
        Ok(reply) => reply.into_inner(),
        Err(status) => return status.message().to_owned(),
    };
    loop {
        let update = match stream.message().await {
            Ok(Some(update)) => update,
            Ok(None) => return "it was closed".to_owned(),
            Err(status) => return status.message().to_owned(),
        };
        let mut map = ClusterMap::clone(&sender.borrow());
        let known = map.epoch;
        match apply_update(&mut map, update) {
            Ok(true) => publish(sender, known, map),
            Ok(false) => {}
            Err(error) => {
                // A delta that does not fit: the next stream starts from the whole map.
                tracing::warn!(%error, "an unreadable update of the map");
                return error.to_string();
            }
        }
    }
}

/// Epochs never go back, whichever member they come from.
fn publish(sender: &watch::Sender<Arc<ClusterMap>>, known: Epoch, map: ClusterMap) {
    if map.epoch > known {
        sender.send_replace(Arc::new(map));
    }
}
