//! CSI volumes on this node: staged once, published to each pod, and back in the opposite order.
//!
//! Truth is on disk (`record`): what a crash interrupts is resumed or undone from there. One volume is worked on by
//! one task at a time. Nothing is unstaged while a pod still has the volume, and the volume leaves the Node's
//! `volumesInUse` only after it was unstaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cairn_proto::csi;
use csi::volume_capability::access_mode::Mode;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use tokio_util::sync::CancellationToken;

use super::claim::{Claims, CsiSource};
use super::error::VolumeError;
use super::in_use::{InUse, REPORT_LIMIT};
use super::record::{Layout, Record, VolumeId};
use crate::csi_node::{VolumeArgs, new_request_id};
use crate::drivers::{Driver, Drivers};
use crate::mounts;

/// The pod for which a volume is published.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForPod {
    pub(crate) uid: String,
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
    pub(crate) read_only: bool,
}

/// The CSI volumes of a node.
#[derive(Clone)]
pub(crate) struct CsiVolumes {
    pub(crate) layout: Layout,
    pub(crate) node: String,
    pub(crate) drivers: Drivers,
    pub(crate) in_use: InUse,
    pub(crate) locks: Locks,
}

/// One lock for each volume that is being worked on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks(Arc<Mutex<BTreeMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>>);

impl Locks {
    async fn lock(&self, volume: &VolumeId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are forgotten.
            table.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(table.entry(volume.clone()).or_default())
        };
        lock.lock_owned().await
    }
}

impl CsiVolumes {
    /// Makes the volume usable by the pod; the path where it is. Idempotent. `stop` ends the wait for the attachment;
    /// a call to the driver is never interrupted.
    pub(crate) async fn mount(
        &self,
        claims: &Claims,
        source: &CsiSource,
        pod: &ForPod,
        stop: &CancellationToken,
    ) -> Result<PathBuf, VolumeError> {
        let VolumeId { driver, .. } = &source.volume;
        let missing = || VolumeError::NoDriver { driver: driver.clone(), node: self.node.clone() };
        let driver = self.drivers.find(driver).ok_or_else(missing)?;
        let dir = self.layout.volume(&pod.uid, "csi", &source.name);
        let target = dir.join("mount");
        let published = Record::read(&dir).map_err(VolumeError::io("reading a volume's record"))?;
        let is_mounted = mounts::is_mounted(&target).map_err(VolumeError::io("reading the mount table"))?;
        if published.is_some_and(|record| record.done) && is_mounted {
            return Ok(target);
        }
        let request_id = new_request_id();
        let _lock = self.locks.lock(&source.volume).await;
        let _settled = Settled(self, &source.volume);
        if !self.in_use.add(&source.volume.unique_name()).await {
            return Err(VolumeError::NotReported(REPORT_LIMIT));
        }
        let context = match source.attach_required {
            true => tokio::select! {
                context = claims.attached(source) => context?,
                () = stop.cancelled() => return Err(VolumeError::Stopped),
            },
            false => BTreeMap::new(),
        };
        // The pod's record comes before the driver's work: from now on the volume counts as used by it.
        let mut record = Record::new(source.volume.clone(), driver.info.stages, BTreeMap::new());
        record.write(&dir).map_err(VolumeError::io("writing a volume's record"))?;
        let staging = match driver.info.stages {
            true => Some(self.stage(claims, source, &driver, (&context, &request_id)).await?),
            false => None,
        };
        let mut args = arguments(source, &driver, &context, staging.as_deref());
        args.secrets = collected(claims.secret(&source.name, source.publish_secret.as_ref()).await?);
        if source.pod_info {
            args.volume_context.extend(pod_info(pod));
        }
        tracing::info!(request_id, volume = source.name, pod = %pod.name, "publishing a volume");
        let read_only = pod.read_only || source.read_only;
        let failed = |error| VolumeError::Driver { volume: source.name.clone(), error };
        driver.node.publish(args, &target, read_only, &request_id).await.map_err(failed)?;
        record.done = true;
        record.write(&dir).map_err(VolumeError::io("writing a volume's record"))?;
        Ok(target)
    }

    /// Stages the volume unless it is staged under this attachment already.
    async fn stage(
        &self,
        claims: &Claims,
        source: &CsiSource,
        driver: &Driver,
        (context, request_id): (&BTreeMap<String, String>, &str),
    ) -> Result<PathBuf, VolumeError> {
        let dir = self.layout.stage(&source.volume);
        let target = dir.join("globalmount");
        let staged = Record::read(&dir).map_err(VolumeError::io("reading a volume's record"))?;
        let is_mounted = mounts::is_mounted(&target).map_err(VolumeError::io("reading the mount table"))?;
        if staged.is_some_and(|record| record.done && record.publish_context == *context) && is_mounted {
            return Ok(target);
        }
        let mut record = Record::new(source.volume.clone(), true, context.clone());
        record.write(&dir).map_err(VolumeError::io("writing a volume's record"))?;
        std::fs::create_dir_all(&target).map_err(VolumeError::io("making the staging directory"))?;
        let mut args = arguments(source, driver, context, Some(&target));
        args.secrets = collected(claims.secret(&source.name, source.stage_secret.as_ref()).await?);
        tracing::info!(request_id, volume = source.name, "staging a volume");
        let failed = |error| VolumeError::Driver { volume: source.name.clone(), error };
        driver.node.stage(args, request_id).await.map_err(failed)?;
        record.done = true;
        record.write(&dir).map_err(VolumeError::io("writing a volume's record"))?;
        Ok(target)
    }

    /// Takes a pod's volumes away, and unstages what no other pod has.
    pub(crate) async fn unmount_all(&self, uid: &str) -> Result<(), VolumeError> {
        let records = self.layout.csi_volumes(uid).map_err(VolumeError::io("reading a pod's volume records"))?;
        for (dir, record) in records {
            let _lock = self.locks.lock(&record.volume).await;
            let request_id = new_request_id();
            let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let driver = self.driver_of(&record)?;
            let target = dir.join("mount");
            tracing::info!(request_id, volume = name, pod_uid = uid, "unpublishing a volume");
            let failed = |error| VolumeError::Driver { volume: name.clone(), error };
            driver.node.unpublish(&record.volume.handle, &target, &request_id).await.map_err(failed)?;
            if mounts::is_mounted(&target).map_err(VolumeError::io("reading the mount table"))? {
                mounts::detach(&target).map_err(VolumeError::io("unmounting what the driver left mounted"))?;
            }
            // Unstaged before the pod's record goes: a crash in between leaves a record, and the whole is repeated.
            let others = self.layout.is_used(&record.volume, Some(uid));
            if !others.map_err(VolumeError::io("reading the volume records"))? {
                self.unstage(&record.volume, &driver, &request_id).await?;
            }
            mounts::remove_tree(&dir).map_err(VolumeError::io("removing a volume's directory"))?;
            self.settle(&record.volume)?;
        }
        Ok(())
    }

    /// Unstages what is staged although no pod has it: a predecessor of this agent was interrupted.
    pub(crate) async fn unstage_orphans(&self) -> Result<(), VolumeError> {
        let staged = self.layout.staged().map_err(VolumeError::io("reading the stage records"))?;
        for (_, record) in staged {
            let _lock = self.locks.lock(&record.volume).await;
            let used = self.layout.is_used(&record.volume, None);
            if !used.map_err(VolumeError::io("reading the volume records"))? {
                let driver = self.driver_of(&record)?;
                self.unstage(&record.volume, &driver, &new_request_id()).await?;
                self.settle(&record.volume)?;
            }
        }
        Ok(())
    }

    async fn unstage(&self, volume: &VolumeId, driver: &Driver, request_id: &str) -> Result<(), VolumeError> {
        let dir = self.layout.stage(volume);
        if Record::read(&dir).map_err(VolumeError::io("reading a volume's record"))?.is_none() {
            return Ok(());
        }
        let target = dir.join("globalmount");
        tracing::info!(request_id, volume = volume.handle, "unstaging a volume");
        let failed = |error| VolumeError::Driver { volume: volume.handle.clone(), error };
        driver.node.unstage(&volume.handle, &target, request_id).await.map_err(failed)?;
        mounts::remove_tree(&dir).map_err(VolumeError::io("removing a staging directory"))
    }

    /// Takes a volume out of the Node's list when nothing of it is left here.
    fn settle(&self, volume: &VolumeId) -> Result<(), VolumeError> {
        let used = self.layout.is_used(volume, None).map_err(VolumeError::io("reading the volume records"))?;
        let staged = Record::read(&self.layout.stage(volume)).map_err(VolumeError::io("reading a volume's record"))?;
        if !used && staged.is_none() {
            self.in_use.remove(&volume.unique_name());
        }
        Ok(())
    }

    fn driver_of(&self, record: &Record) -> Result<Driver, VolumeError> {
        let name = &record.volume.driver;
        let missing = || VolumeError::NoDriver { driver: name.clone(), node: self.node.clone() };
        self.drivers.find(name).ok_or_else(missing)
    }
}

/// However a mount ends, also when it is cancelled: a volume of which nothing is here leaves the Node's list.
struct Settled<'a>(&'a CsiVolumes, &'a VolumeId);

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.settle(self.1) {
            tracing::warn!(%error, volume = self.1.handle, "stays in the Node's volumesInUse");
        }
    }
}

fn arguments(
    source: &CsiSource,
    driver: &Driver,
    context: &BTreeMap<String, String>,
    staging: Option<&Path>,
) -> VolumeArgs {
    let access_type = match source.block {
        true => AccessType::Block(BlockVolume {}),
        false => AccessType::Mount(MountVolume {
            fs_type: source.fs_type.clone(),
            mount_flags: source.mount_options.clone(),
            volume_mount_group: String::new(),
        }),
    };
    let mode = access_mode(&source.access_modes, driver.info.single_node_multi_writer);
    VolumeArgs {
        volume_id: source.volume.handle.clone(),
        publish_context: collected(context.clone()),
        volume_context: collected(source.attributes.clone()),
        capability: csi::VolumeCapability {
            access_type: Some(access_type),
            access_mode: Some(AccessMode { mode: mode.into() }),
        },
        secrets: Default::default(),
        staging_path: staging.map(|path| path.display().to_string()).unwrap_or_default(),
    }
}

/// The widest mode that the volume allows, in CSI's words.
fn access_mode(modes: &[String], fine: bool) -> Mode {
    let has = |mode: &str| modes.iter().any(|own| own == mode);
    match () {
        () if has("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        () if has("ReadOnlyMany") && !has("ReadWriteOnce") => Mode::MultiNodeReaderOnly,
        () if has("ReadWriteOncePod") && fine => Mode::SingleNodeSingleWriter,
        () if fine => Mode::SingleNodeMultiWriter,
        () => Mode::SingleNodeWriter,
    }
}

fn pod_info(pod: &ForPod) -> [(String, String); 5] {
    let entry = |key: &str, value: &str| (format!("csi.storage.k8s.io/{key}"), value.to_owned());
    [
        entry("pod.name", &pod.name),
        entry("pod.namespace", &pod.namespace),
        entry("pod.uid", &pod.uid),
        entry("serviceAccount.name", &pod.service_account),
        entry("ephemeral", "false"),
    ]
}

fn collected(map: BTreeMap<String, String>) -> std::collections::HashMap<String, String> {
    map.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::{Mode, access_mode};

    #[test]
    fn modes() {
        let mode = |modes: &[&str], fine| access_mode(&modes.iter().map(|&m| m.to_owned()).collect::<Vec<_>>(), fine);
        assert_eq!(mode(&["ReadWriteOnce"], false), Mode::SingleNodeWriter);
        assert_eq!(mode(&["ReadWriteOnce"], true), Mode::SingleNodeMultiWriter);
        assert_eq!(mode(&["ReadWriteOncePod"], true), Mode::SingleNodeSingleWriter);
        assert_eq!(mode(&["ReadOnlyMany"], true), Mode::MultiNodeReaderOnly);
        assert_eq!(mode(&["ReadWriteOnce", "ReadWriteMany"], false), Mode::MultiNodeMultiWriter);
    }
}
