//! The volumes of pods: makes each usable under a path of this node, and takes all of them away again.
//!
//! Everything is idempotent and found again after a restart, from the directories and records beneath the agent's
//! root. Never removes a tree in which something is still mounted.

mod claim;
mod error;
mod files;
mod in_use;
mod mounted;
mod record;
mod subpath;

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, EmptyDirVolumeSource, HostPathVolumeSource, Pod, Secret, Volume};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::drivers::Drivers;
use crate::mounts;
use crate::pod::{PodKey, Surroundings};
use crate::quantity;
use claim::{Behind, Claims};
pub(crate) use error::VolumeError;
use files::Referents;
pub(crate) use in_use::InUse;
use mounted::{CsiVolumes, ForPod, Locks};
use record::Layout;
pub(crate) use subpath::pin;

/// A driver that is not registered yet is waited for.
const TIDY_RETRY: std::time::Duration = std::time::Duration::from_secs(3);

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
    csi: CsiVolumes,
}

impl Volumes {
    /// Finds what an earlier agent left beneath `root`; `in_use` starts with it.
    pub(crate) fn open(root: &Path, node: &str, client: Client, drivers: Drivers) -> std::io::Result<Volumes> {
        let layout = Layout { root: root.to_owned() };
        let mut names = std::collections::BTreeSet::new();
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
            claims: Claims { client: client.clone(), node: node.to_owned() },
            in_use: InUse::new(names),
            locks: Locks::default(),
        };
        Ok(Volumes { layout, client, csi })
    }

    /// The list that the Node object shows.
    pub(crate) fn in_use(&self) -> &InUse {
        &self.csi.in_use
    }

    /// A pod's own directory.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.layout.pod(uid)
    }

    /// Where the subPath mounts of a pod are pinned.
    pub(crate) fn subpaths(&self, uid: &str) -> PathBuf {
        self.layout.subpaths(uid)
    }

    /// Uids of pods of which something is on this node's disk.
    pub(crate) fn known_pods(&self) -> Vec<String> {
        self.layout.pod_uids()
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
            return self.empty_dir(pod, key, name, source);
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
        match self.csi.claims.behind(&key.namespace, &claim).await? {
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
                let path = self.csi.mount(&source, &for_pod, stop).await?;
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

    fn empty_dir(
        &self,
        pod: &Pod,
        key: &PodKey,
        name: &str,
        source: &EmptyDirVolumeSource,
    ) -> Result<Place, VolumeError> {
        let path = self.layout.volume(&key.uid, "empty-dir", name);
        let place = Place { path: path.clone(), read_only: false };
        let in_memory = match source.medium.as_deref() {
            None | Some("") => false,
            Some("Memory") => true,
            Some(_) => {
                let what = "an emptyDir on huge pages";
                return Err(VolumeError::Unsupported { volume: name.to_owned(), what, remedy: "; use medium Memory" });
            }
        };
        let doing = || VolumeError::io(format!("making emptyDir \"{name}\""));
        if path.exists() && (!in_memory || mounts::is_mounted(&path).map_err(doing())?) {
            return Ok(place);
        }
        std::fs::create_dir_all(&path).map_err(doing())?;
        if in_memory {
            let size = source.size_limit.as_ref().and_then(quantity::units).and_then(|size| u64::try_from(size).ok());
            mounts::mount_tmpfs(&path, size, 0o777).map_err(doing())?;
        }
        let group = fs_group(pod);
        std::os::unix::fs::chown(&path, None, group).map_err(doing())?;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(doing())?;
        Ok(place)
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

fn service_account(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    name.unwrap_or_else(|| "default".into())
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    context.and_then(|context| context.fs_group).and_then(|group| u32::try_from(group).ok())
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

/// Gives a tree to a group, readable and writable for it, unless its top shows that this was done before.
fn give_to(tree: &Path, group: u32) -> std::io::Result<()> {
    const SET_GID: u32 = 0o2000;
    let top = std::fs::metadata(tree)?;
    if top.gid() == group && top.permissions().mode() & SET_GID != 0 {
        return Ok(());
    }
    let mut todo = vec![tree.to_owned()];
    let mut dirs = Vec::new();
    while let Some(path) = todo.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        std::os::unix::fs::lchown(&path, None, Some(group))?;
        if meta.is_dir() {
            todo.extend(std::fs::read_dir(&path)?.flatten().map(|entry| entry.path()));
            dirs.push(path);
        } else if meta.is_file() {
            let mode = meta.permissions().mode() | 0o660;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        }
    }
    // The top comes last: it is the sign that all is done.
    for dir in dirs.iter().rev() {
        let mode = std::fs::metadata(dir)?.permissions().mode() | 0o770 | SET_GID;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// A path of the node, checked or made as its type says.
fn host_path(name: &str, source: &HostPathVolumeSource) -> Result<PathBuf, VolumeError> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let doing = || VolumeError::io(format!("making {} for volume \"{name}\"", path.display()));
    match kind {
        "DirectoryOrCreate" => std::fs::create_dir_all(&path).map_err(doing())?,
        "FileOrCreate" if !path.exists() => drop(std::fs::File::create(&path).map_err(doing())?),
        _ => {}
    }
    let problem = |problem| VolumeError::HostPath { volume: name.to_owned(), path: path.clone(), problem };
    let meta = match std::fs::metadata(&path) {
        // Without a type nothing is checked: the runtime makes a directory where nothing is.
        Err(_) if kind.is_empty() => return Ok(path),
        Err(_) => return Err(problem("does not exist on this node")),
        Ok(meta) => meta.file_type(),
    };
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => meta.is_dir(),
        "File" | "FileOrCreate" => meta.is_file(),
        "Socket" => meta.is_socket(),
        "CharDevice" => meta.is_char_device(),
        "BlockDevice" => meta.is_block_device(),
        _ => true,
    };
    if fits { Ok(path) } else { Err(problem("is not what the volume's type says it is")) }
}

#[cfg(test)]
mod tests {
    use super::{give_to, host_path};
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn host_paths_are_what_they_claim() {
        let dir = tempfile::tempdir().expect("a directory");
        let check = |name: &str, kind: &str| {
            let source = serde_json::json!({"path": dir.path().join(name), "type": kind});
            host_path("v", &serde_json::from_value(source).expect("a source"))
        };
        assert!(check("missing", "").is_ok());
        let error = check("missing", "Directory").expect_err("not there");
        assert!(error.to_string().contains("does not exist on this node"), "{error}");
        assert!(check("made", "DirectoryOrCreate").is_ok());
        assert!(check("made", "Directory").is_ok());
        assert!(check("made", "File").is_err());
        assert!(check("file", "FileOrCreate").is_ok());
        assert!(check("file", "Socket").is_err());
    }

    #[test]
    fn a_group_gets_the_whole_tree_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = dir.path().join("v/sub");
        std::fs::create_dir_all(&inner).expect("made");
        std::fs::write(inner.join("f"), "x").expect("written");
        std::os::unix::fs::symlink("/etc/passwd", inner.join("link")).expect("linked");
        let passwd = std::fs::metadata("/etc/passwd").expect("there").gid();
        give_to(&dir.path().join("v"), 2000).expect("given (this test needs root)");
        let meta = |name: &str| std::fs::symlink_metadata(dir.path().join(name)).expect("there");
        for name in ["v", "v/sub", "v/sub/f", "v/sub/link"] {
            assert_eq!(meta(name).gid(), 2000, "{name}");
        }
        assert_eq!(meta("v/sub").mode() & 0o7777, 0o2775);
        assert_eq!(std::fs::metadata("/etc/passwd").expect("there").gid(), passwd, "links are not followed");
        std::fs::write(inner.join("later"), "x").expect("written");
        std::os::unix::fs::lchown(inner.join("later"), None, Some(7)).expect("changed");
        give_to(&dir.path().join("v"), 2000).expect("given");
        assert_eq!(meta("v/sub/later").gid(), 7, "done before, so it is not walked again");
    }
}
