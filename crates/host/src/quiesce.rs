//! The orderly way down: pods leave their volumes, volumes leave the node, and only then do the daemons stop.
//!
//! Each step is tried whatever became of the one before; `reset` removes what is left by force.

use std::time::Duration;

use cairn_agent::containerd;
use cairn_proto::attach::attach_daemon_client::AttachDaemonClient;
use cairn_proto::attach::{ListRequest, UnexportRequest};

use crate::{Cluster, Layout, mounts, runtime};

/// What each step gets.
const PATIENCE: Duration = Duration::from_secs(30);

/// Removes every pod and every exported device of this host.
pub(crate) async fn pods_and_devices(layout: &Layout, cluster: &Cluster) {
    if let Some(orchestrator) = &cluster.orchestrator {
        let settings = runtime::settings(layout, orchestrator);
        within(PATIENCE, "removing the pods", async {
            containerd::remove_pods(&settings).await.map_err(|error| error.to_string())
        })
        .await;
    }
    for point in mounts::beneath(&layout.agent()) {
        mounts::unmount(&point);
    }
    within(PATIENCE, "removing the devices", unexport_all(layout)).await;
}

async fn unexport_all(layout: &Layout) -> Result<(), String> {
    let endpoint = format!("unix://{}", layout.socket("attach").display());
    let mut daemon = AttachDaemonClient::connect(endpoint).await.map_err(|error| error.to_string())?;
    let exports = daemon.list(ListRequest {}).await.map_err(|status| status.message().to_owned())?.into_inner().exports;
    for export in exports {
        let request = UnexportRequest { volume: export.volume, request_id: "down".into(), force: false };
        daemon.unexport(request).await.map_err(|status| status.message().to_owned())?;
    }
    Ok(())
}

async fn within(limit: Duration, what: &str, step: impl Future<Output = Result<(), String>>) {
    match tokio::time::timeout(limit, step).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(what, error, "left for the teardown by force"),
        Err(_) => tracing::warn!(what, "took too long; left for the teardown by force"),
    }
}
