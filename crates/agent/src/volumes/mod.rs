//! The volumes of pods: makes each usable under a path of this node, and takes all of them away again.
//!
//! Everything is idempotent and found again after a restart, from the directories and records beneath the agent's
//! root. Never removes a tree in which something is still mounted.

mod claim;
mod error;
mod files;
mod in_use;
mod kept;
mod local;
mod mounted;
mod record;
mod subpath;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Volume};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::mounts;
use crate::pod::{PodKey, Surroundings};
use claim::{Behind, Claims};
pub(crate) use error::VolumeError;
use files::Referents;
pub(crate) use in_use::InUse;
pub(crate) use kept::Kept;
use local::{fs_group, give_to, host_path};
use mounted::ForPod;
use record::Layout;
pub(crate) use subpath::pin;

/// Where a pod's volumes are, by their names in the pod.
pub(crate) type Mounted = BTreeMap<String, Place>;

/// One usable volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
}

/// All volumes of a node's pods.
#[derive(Clone)]
pub(crate) struct Volumes {
    layout: Layout,
    client: Client,
    claims: Claims,
    kept: Kept,
}

impl Volumes {
    /// Volumes of pods, on top of what is kept on this node.
    pub(crate) fn new(kept: Kept, node: &str, client: Client) -> Volumes {
        let claims = Claims { client: client.clone(), node: node.to_owned() };
        Volumes { layout: kept.layout.clone(), client, claims, kept }
    }

    /// What is on this node, with or without the API server.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The list that the Node object shows.
    pub(crate) fn in_use(&self) -> &InUse {
        &self.kept.csi.in_use
    }

    /// A pod's own directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.layout.pod(uid)
    }

    /// Where the subPath mounts of a pod are pinned.
    pub(crate) fn subpaths(&self, uid: &str) -> PathBuf {
        self.layout.subpaths(uid)
    }

    /// Whether anything of this pod is left here.
    pub(crate) fn is_present(&self, uid: &str) -> bool {
        self.layout.pod(uid).exists()
    }

    /// Makes all volumes of the pod usable. `stop` interrupts the waiting, never a call.
    pub(crate) async fn mount(
        &self,
        pod: &Pod,
        key: &PodKey,
        around: &Surroundings,
        stop: &CancellationToken,
    ) -> Result<Mounted, VolumeError> {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        let mut mounted = Mounted::new();
        for volume in volumes {
            if stop.is_cancelled() {
                return Err(VolumeError::Stopped);
            }
            mounted.insert(volume.name.clone(), self.mount_one(pod, key, volume, around, stop).await?);
        }
        Ok(mounted)
    }

    async fn mount_one(
        &self,
        pod: &Pod,
        key: &PodKey,
        volume: &Volume,
        around: &Surroundings,
        stop: &CancellationToken,
    ) -> Result<Place, VolumeError> {
        let name = &volume.name;
        if let Some(source) = &volume.empty_dir {
            let path = self.layout.volume(&key.uid, "empty-dir", name);
            local::empty_dir(&path, name, source, fs_group(pod))?;
            return Ok(Place { path, read_only: false });
        }
        if let Some(source) = &volume.host_path {
            return host_path(name, source).map(|path| Place { path, read_only: false });
        }
        if let Some(kind) = files::kind(volume) {
            return self.files(pod, key, volume, kind, around).await;
        }
        let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => Some((source.claim_name.clone(), source.read_only.unwrap_or(false))),
            (None, Some(_)) => Some((format!("{}-{name}", key.name), false)),
            (None, None) => None,
        };
        let Some((claim, read_only)) = claim else {
            let what = "a volume of this type";
            let remedy = "; use emptyDir, hostPath, configMap, secret, downwardAPI, projected or a claim";
            return Err(VolumeError::Unsupported { volume: name.clone(), what, remedy });
        };
        match self.claims.behind(&key.namespace, &claim).await? {
            Behind::HostPath(path) => Ok(Place { path: path.into(), read_only }),
            Behind::Csi(source) if source.block => {
                let what = "a claim with volumeMode Block";
                Err(VolumeError::Unsupported { volume: name.clone(), what, remedy: "; use volumeMode Filesystem" })
            }
            Behind::Csi(source) => {
                let for_pod = ForPod {
                    uid: key.uid.clone(),
                    name: key.name.clone(),
                    namespace: key.namespace.clone(),
                    service_account: service_account(pod),
                    read_only,
                };
                let path = self.kept.csi.mount(&self.claims, &source, &for_pod, stop).await?;
                let group = fs_group(pod).filter(|_| !read_only && owns(&source));
                if let Some(group) = group {
                    let tree = path.clone();
                    let given = tokio::task::spawn_blocking(move || give_to(&tree, group)).await;
                    let doing = format!("giving volume \"{name}\" to group {group}");
                    given.map_err(std::io::Error::other).flatten().map_err(VolumeError::io(doing))?;
                }
                Ok(Place { path, read_only: read_only || source.read_only })
            }
        }
    }

    /// A volume that is files: written now, and rewritten when what it comes from has changed.
    async fn files(
        &self,
        pod: &Pod,
        key: &PodKey,
        volume: &Volume,
        kind: &str,
        around: &Surroundings,
    ) -> Result<Place, VolumeError> {
        let name = &volume.name;
        let referents = self.referents(&key.namespace, volume).await?;
        let failed = |error| VolumeError::Files { volume: name.clone(), error };
        let payload = files::payload(pod, volume, &referents, around).map_err(failed)?;
        let path = self.layout.volume(&key.uid, kind, name);
        let doing = || VolumeError::io(format!("writing volume \"{name}\""));
        std::fs::create_dir_all(&path).map_err(doing())?;
        // Secrets stay in memory: they must not reach a disk.
        let holds_secrets = !files::references(volume).1.is_empty();
        if holds_secrets && !mounts::is_mounted(&path).map_err(doing())? {
            mounts::mount_tmpfs(&path, None, 0o755).map_err(doing())?;
        }
        files::write(&path, &payload, fs_group(pod)).map_err(doing())?;
        Ok(Place { path, read_only: true })
    }

    async fn referents(&self, namespace: &str, volume: &Volume) -> Result<Referents, VolumeError> {
        let (config_maps, secrets) = files::references(volume);
        let mut referents = Referents::default();
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        for name in config_maps {
            let found = api.get_opt(&name).await.map_err(|error| claim::api("configmap", &name, &error))?;
            referents.config_maps.insert(name, found);
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        for name in secrets {
            let found = api.get_opt(&name).await.map_err(|error| claim::api("secret", &name, &error))?;
            referents.secrets.insert(name, found);
        }
        Ok(referents)
    }

    /// Rewrites the volumes that are files where what they come from has changed.
    pub(crate) async fn refresh(&self, pod: &Pod, key: &PodKey, around: &Surroundings) -> Result<(), VolumeError> {
        let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
        for volume in volumes {
            if let Some(kind) = files::kind(volume) {
                self.files(pod, key, volume, kind, around).await?;
            }
        }
        Ok(())
    }
}

fn service_account(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    name.unwrap_or_else(|| "default".into())
}

/// Whether files of the volume are given to the pod's group: the driver's policy, by default for volumes with a
/// filesystem that one node writes.
fn owns(source: &claim::CsiSource) -> bool {
    match source.fs_group_policy.as_deref() {
        Some("None") => false,
        Some("File") => true,
        _ => !source.access_modes.iter().any(|mode| mode == "ReadWriteMany" || mode == "ReadOnlyMany"),
    }
}
