//! The parent's testimony: an OSD whose exit its parent saw is dead, and the metadata service may promote others
//! without waiting for leases to run out.

use cairn_meta_client::MetaClient;
use cairn_proto::meta::DownEvidence;
use cairn_types::{Incarnation, OsdId};

/// Speaks to the metadata service; asks it which OSD listens where.
pub(crate) struct Witness {
    endpoints: Vec<String>,
}

impl Witness {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints }
    }

    /// Reports the OSD that listened at `address` dead. When the metadata service cannot be reached, its own silence
    /// is found out by its peers, only later.
    pub(crate) async fn saw_exit(&self, address: &str) {
        let Ok(client) = MetaClient::new(&self.endpoints) else { return };
        let Some((osd, incarnation)) = registered_at(&client, address).await else { return };
        match client.osd_is_down(None, osd, incarnation, DownEvidence::Exited).await {
            Ok(_) => tracing::info!(%osd, %incarnation, "reported dead: its process exited"),
            Err(error) => tracing::warn!(%osd, %error, "could not report its exit"),
        }
    }
}

async fn registered_at(client: &MetaClient, address: &str) -> Option<(OsdId, Incarnation)> {
    let map = client.map_once().await.ok()?;
    // One that lived there before and was taken away is down.
    let osd = map.osds.values().find(|osd| osd.up && osd.addresses.iter().any(|known| known == address))?;
    Some((osd.id, osd.incarnation))
}
