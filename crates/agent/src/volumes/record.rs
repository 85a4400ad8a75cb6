//! What is on disk about volumes, so that an agent that comes back, or one that died half way, knows what it owes.
//!
//! A record is written before the call that it describes and removed after the call that undoes it: a record without
//! a mount is harmless, a mount without a record would be a leak. Layout beneath the agent's root:
//!
//! ```text
//! pods/<uid>/volumes/kubernetes.io~csi/<pv>/{record.json, mount}
//! plugins/kubernetes.io/csi/<driver>/<sha256 of the handle>/{record.json, globalmount}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::names::hex;

const RECORD: &str = "record.json";
const VERSION: u32 = 1;

/// A CSI volume: the driver and the driver's name for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct VolumeId {
    pub(crate) driver: String,
    pub(crate) handle: String,
}

impl VolumeId {
    /// Its name in a Node's `volumesInUse` and `volumesAttached`.
    pub(crate) fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// Its VolumeAttachment on a node.
    pub(crate) fn attachment_name(&self, node: &str) -> String {
        format!("csi-{}", hex(&Sha256::digest(format!("{}{}{node}", self.handle, self.driver))))
    }
}

/// A volume of a pod, or a volume staged on the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    pub(crate) volume: VolumeId,
    /// The call succeeded; until then it may have been made or not.
    pub(crate) done: bool,
    /// The attachment it was staged under; empty for a pod's record.
    #[serde(default)]
    pub(crate) publish_context: BTreeMap<String, String>,
    /// The driver stages its volumes.
    #[serde(default)]
    pub(crate) stages: bool,
}

impl Record {
    pub(crate) fn new(volume: VolumeId, stages: bool, publish_context: BTreeMap<String, String>) -> Record {
        Record { version: VERSION, volume, done: false, publish_context, stages }
    }

    /// The record in this directory; None when there is none.
    pub(crate) fn read(dir: &Path) -> std::io::Result<Option<Record>> {
        let bytes = match std::fs::read(dir.join(RECORD)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let record: Record = serde_json::from_slice(&bytes)?;
        if record.version != VERSION {
            let message = format!("{} has version {}, and only {VERSION} is known", dir.display(), record.version);
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, message));
        }
        Ok(Some(record))
    }

    /// Writes it durably: it must survive the power failing right after the call it announces.
    pub(crate) fn write(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let temporary = dir.join(".record.json");
        let file = std::fs::File::create(&temporary)?;
        serde_json::to_writer(&file, self)?;
        file.sync_all()?;
        std::fs::rename(&temporary, dir.join(RECORD))?;
        std::fs::File::open(dir)?.sync_all()
    }
}

/// Paths beneath the agent's root.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

impl Layout {
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    pub(crate) fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// A volume of a pod by the kind of its source.
    pub(crate) fn volume(&self, uid: &str, kind: &str, name: &str) -> PathBuf {
        self.volumes(uid).join(format!("kubernetes.io~{kind}")).join(name)
    }

    pub(crate) fn subpaths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// Where a node keeps what it has staged of one volume.
    pub(crate) fn stage(&self, volume: &VolumeId) -> PathBuf {
        let name = hex(&Sha256::digest(&volume.handle));
        self.stages().join(&volume.driver).join(name)
    }

    fn stages(&self) -> PathBuf {
        self.root.join("plugins/kubernetes.io/csi")
    }

    /// Uids of pods that have a directory here.
    pub(crate) fn pod_uids(&self) -> Vec<String> {
        children(&self.pods()).filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
    }

    /// The CSI volumes of a pod: directory and record. A record that cannot be read is an error, not an absence.
    pub(crate) fn csi_volumes(&self, uid: &str) -> std::io::Result<Vec<(PathBuf, Record)>> {
        with_records(children(&self.volumes(uid).join("kubernetes.io~csi")))
    }

    /// Everything staged on this node.
    pub(crate) fn staged(&self) -> std::io::Result<Vec<(PathBuf, Record)>> {
        with_records(children(&self.stages()).flat_map(|driver| children(&driver).collect::<Vec<_>>()))
    }

    /// Whether any pod but `except` has this volume.
    pub(crate) fn is_used(&self, volume: &VolumeId, except: Option<&str>) -> std::io::Result<bool> {
        for uid in self.pod_uids() {
            if Some(uid.as_str()) != except
                && self.csi_volumes(&uid)?.iter().any(|(_, record)| record.volume == *volume)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn children(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn with_records(dirs: impl Iterator<Item = PathBuf>) -> std::io::Result<Vec<(PathBuf, Record)>> {
    let mut found = Vec::new();
    for dir in dirs {
        if let Some(record) = Record::read(&dir)? {
            found.push((dir, record));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Layout, Record, VolumeId};
    use std::collections::BTreeMap;

    #[test]
    fn names_are_those_that_other_controllers_compute() {
        let volume = VolumeId { driver: "csi.cairn.dev".into(), handle: "42".into() };
        assert_eq!(volume.unique_name(), "kubernetes.io/csi/csi.cairn.dev^42");
        // sha256("42csi.cairn.devk1")
        let hash = "044676cb7910909fa5dd146920376ccd0df104bac0d98ee08b13b74c06e7784e";
        assert_eq!(volume.attachment_name("k1"), format!("csi-{hash}"));
    }

    #[test]
    fn records_survive_and_count_users() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout { root: dir.path().to_owned() };
        let volume = VolumeId { driver: "d".into(), handle: "h/with/slashes".into() };
        let record = Record::new(volume.clone(), true, BTreeMap::from([("generation".into(), "3".into())]));
        record.write(&layout.stage(&volume)).expect("written");
        assert_eq!(layout.staged().expect("readable")[0].1, record);
        for uid in ["u1", "u2"] {
            record.write(&layout.volume(uid, "csi", "pv-1")).expect("written");
        }
        assert!(layout.is_used(&volume, Some("u1")).expect("readable"));
        std::fs::remove_dir_all(layout.pod("u2")).expect("removed");
        assert!(!layout.is_used(&volume, Some("u1")).expect("readable"));
        assert!(layout.is_used(&volume, None).expect("readable"));
        let dir = layout.stage(&volume);
        let newer =
            std::fs::read_to_string(dir.join("record.json")).expect("there").replace("\"version\":1", "\"version\":2");
        std::fs::write(dir.join("record.json"), newer).expect("written");
        assert!(layout.staged().is_err(), "an unknown version is refused, not taken for nothing");
    }
}
