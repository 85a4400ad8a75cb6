//! What is on this node of pods' volumes, and how it is undone. Needs the records on disk and the drivers, and not the
//! API server: a node can always be cleared.

use std::collections::BTreeSet;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::error::VolumeError;
use super::in_use::InUse;
use super::mounted::{CsiVolumes, Locks};
use super::record::Layout;
use crate::drivers::Drivers;
use crate::mounts;

/// A driver that is not registered yet is waited for.
const TIDY_RETRY: std::time::Duration = std::time::Duration::from_secs(3);

/// See the module's words.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(super) layout: Layout,
    pub(super) csi: CsiVolumes,
}

impl Kept {
    /// Finds what an earlier agent left beneath `root`; the volumes in use start with it.
    pub(crate) fn open(root: &Path, node: &str, drivers: Drivers) -> std::io::Result<Kept> {
        let layout = Layout { root: root.to_owned() };
        let mut names = BTreeSet::new();
        for (_, record) in layout.staged()? {
            names.insert(record.volume.unique_name());
        }
        for uid in layout.pod_uids() {
            names.extend(layout.csi_volumes(&uid)?.into_iter().map(|(_, record)| record.volume.unique_name()));
        }
        let csi = CsiVolumes {
            layout: layout.clone(),
            node: node.to_owned(),
            drivers,
            in_use: InUse::new(names),
            locks: Locks::default(),
        };
        Ok(Kept { layout, csi })
    }

    /// Uids of pods of which something is on this node's disk.
    pub(crate) fn pods(&self) -> Vec<String> {
        self.layout.pod_uids()
    }

    /// Names of the drivers whose volumes are here.
    pub(crate) fn drivers(&self) -> std::io::Result<BTreeSet<String>> {
        let mut names: BTreeSet<String> =
            self.layout.staged()?.into_iter().map(|(_, record)| record.volume.driver).collect();
        for uid in self.layout.pod_uids() {
            names.extend(self.layout.csi_volumes(&uid)?.into_iter().map(|(_, record)| record.volume.driver));
        }
        Ok(names)
    }

    /// Takes everything of a pod off this node: subPaths, CSI volumes, memory filesystems, its directory.
    pub(crate) async fn unmount(&self, uid: &str) -> Result<(), VolumeError> {
        let doing = || VolumeError::io("unmounting a pod's volumes");
        for point in mounts::beneath(&self.layout.subpaths(uid)).map_err(doing())? {
            mounts::detach(&point).map_err(doing())?;
        }
        mounts::remove_tree(&self.layout.subpaths(uid)).map_err(doing())?;
        self.csi.unmount_all(uid).await?;
        for kind in ["empty-dir", "secret", "projected"] {
            let dir = self.layout.volumes(uid).join(format!("kubernetes.io~{kind}"));
            for point in mounts::beneath(&dir).map_err(doing())? {
                mounts::detach(&point).map_err(doing())?;
            }
        }
        mounts::remove_tree(&self.layout.pod(uid)).map_err(VolumeError::io("removing a pod's directory"))
    }

    /// Unstages what is staged although no pod has it.
    pub(crate) async fn unstage_orphans(&self) -> Result<(), VolumeError> {
        self.csi.unstage_orphans().await
    }

    /// Unstages what an earlier agent left staged and no pod has any more; tried until it is done once.
    pub(crate) async fn tidy(&self, shutdown: CancellationToken) {
        while let Err(error) = self.csi.unstage_orphans().await {
            tracing::warn!(%error, "a volume without pods stays staged for now");
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(TIDY_RETRY) => {}
            }
        }
    }
}
