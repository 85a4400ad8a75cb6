//! What this node exports, on its own disk: so that a restart exports exactly these again.
//!
//! One small JSON file with a format version, replaced as a whole (write, sync, rename, sync the directory). It is no
//! authority: who holds a volume is the metadata service's to say, and what the kernel has is the keeper's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cairn_types::volume::AttachMode;
use cairn_types::{Generation, VolumeId};
use serde::{Deserialize, Serialize};

/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
const FILE: &str = "exports.json";

/// One export as it was last known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The volume's name.
    pub(crate) name: String,
    /// Which exporter.
    pub(crate) exporter: String,
    /// How it is held.
    pub(crate) mode: AttachMode,
    /// The generation it is held under.
    pub(crate) generation: Generation,
    /// Bytes.
    pub(crate) size: u64,
    /// Where it shows itself; absent while it is being made or has been removed.
    pub(crate) endpoint: Option<RecordedEndpoint>,
}

/// Where a volume shows itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RecordedEndpoint {
    /// A block device.
    Device(PathBuf),
    /// A unix socket.
    Socket(PathBuf),
}

/// All of them.
pub(crate) type Records = BTreeMap<VolumeId, Record>;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    exports: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    volume: VolumeId,
    #[serde(flatten)]
    record: Record,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// The machine said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// It is not what was written.
    #[error("{} is corrupt: {reason}; move it away to start without exports", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where.
        reason: String,
    },
    /// A newer program wrote it.
    #[error("{} has format version {found}, this program reads version {VERSION}; run the version that wrote it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
}

/// Reads the file; a missing one is empty.
///
/// # Errors
/// [`RecordError`].
pub(crate) fn load(dir: &Path) -> Result<Records, RecordError> {
    let path = dir.join(FILE);
    let text = match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Records::new()),
        other => other.map_err(|source| RecordError::Io { path: path.clone(), source })?,
    };
    let corrupt = |error: serde_json::Error| RecordError::Corrupt { path: path.clone(), reason: error.to_string() };
    let Versioned { version } = serde_json::from_slice(&text).map_err(corrupt)?;
    if version != VERSION {
        return Err(RecordError::Version { path, found: version });
    }
    let document: Document = serde_json::from_slice(&text).map_err(corrupt)?;
    Ok(document.exports.into_iter().map(|entry| (entry.volume, entry.record)).collect())
}

/// Replaces the file; durable when it returns.
///
/// # Errors
/// [`RecordError::Io`].
pub(crate) fn store(dir: &Path, records: &Records) -> Result<(), RecordError> {
    let entry = |(volume, record): (&VolumeId, &Record)| Entry { volume: *volume, record: record.clone() };
    let document = Document { version: VERSION, exports: records.iter().map(entry).collect() };
    let text = serde_json::to_vec_pretty(&document).expect("records are JSON");
    let (path, fresh) = (dir.join(FILE), dir.join("exports.json.new"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|source| RecordError::Io { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            name: "pvc-1".into(),
            exporter: "fuse-loop".into(),
            mode: AttachMode::Exclusive,
            generation: Generation(3),
            size: 1 << 20,
            endpoint: Some(RecordedEndpoint::Device("/dev/loop9".into())),
        }
    }

    #[test]
    fn what_is_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_empty());
        let records = Records::from([(VolumeId(7), record())]);
        store(dir.path(), &records).unwrap();
        assert_eq!(load(dir.path()).unwrap(), records);
    }

    #[test]
    fn a_newer_file_and_a_broken_one_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), r#"{"version": 2, "exports": "something new"}"#).unwrap();
        assert!(matches!(load(dir.path()), Err(RecordError::Version { found: 2, .. })));
        std::fs::write(dir.path().join(FILE), r#"{"version": 1, "exp"#).unwrap();
        assert!(matches!(load(dir.path()), Err(RecordError::Corrupt { .. })));
    }
}
