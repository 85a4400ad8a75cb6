//! The directory of a new member from a backup, for the day on which all members are lost.
//!
//! Run once for each member that the restored cluster begins with, with the same file and the same list: all of them
//! then hold the same state under the same new lineage. The lineage keeps whoever is left of the old members away, so
//! that the two never vote with each other; `cairn_meta_core::restore` says what becomes of the state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairn_meta_core::restore::{Restoration, awaited, transform};
use cairn_meta_core::{Corrupt, Machine};
use cairn_meta_raft::{Position, Store, StoreError};
use uuid::Uuid;

use crate::backup::{self, BackupError};
use crate::disk::{Beginning, OpenError, RocksStore};

/// What is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The backup.
    pub file: PathBuf,
    /// The new member's directory: not there yet, or empty.
    pub dir: PathBuf,
    /// The new member.
    pub id: u64,
    /// All members that the restored cluster begins with.
    pub members: Vec<(u64, String)>,
    /// OSDs that are lost for ever, so that nobody waits for them.
    pub lost_osds: Vec<u32>,
}

/// Why nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// What the backup says makes no sense.
    #[error("the backup makes no sense: {0}; use another one")]
    Nonsense(#[from] Corrupt),
    /// The directory is in use.
    #[error("{} is not empty; give a new member a new directory", .0.display())]
    NotEmpty(PathBuf),
    /// The list of members.
    #[error("{0}")]
    Members(String),
    /// The directory cannot be written.
    #[error("{}: {cause}", dir.display())]
    Directory {
        /// Which.
        dir: PathBuf,
        /// Why.
        cause: OpenError,
    },
}

/// Makes the directory; what the backup was of.
///
/// # Errors
/// In words. The directory then has no MEMBER file, and can be deleted.
pub fn restore(options: &Options) -> Result<cairn_proto::meta::BackupHead, RestoreError> {
    check(options)?;
    let (mut osds, mut unreadable) = (Vec::new(), None);
    let (head, tail) = backup::read(&options.file, &mut |record| match awaited(&record.key, &record.value) {
        Ok(osd) => osds.extend(osd.filter(|osd| !options.lost_osds.contains(osd))),
        Err(corrupt) => unreadable = Some(corrupt),
    })?;
    if let Some(corrupt) = unreadable {
        return Err(corrupt.into());
    }
    let lineage = lineage_of(tail.digest, &options.members);
    let restoration = Restoration { members: options.members.clone(), lineage, awaited: osds };
    let addresses: BTreeMap<u64, String> = options.members.iter().cloned().collect();
    let beginning = Beginning {
        genesis: addresses.keys().copied().collect(),
        addresses,
        cluster: Uuid::from_slice(&head.cluster).unwrap_or_default(),
        directory: None,
    };
    let at = Position { term: head.term, index: head.index };
    let directory = |cause: OpenError| RestoreError::Directory { dir: options.dir.clone(), cause };
    let mut filling = crate::disk::Filling::create(&options.dir, options.id, &beginning).map_err(directory)?;
    let mut failed: Option<RestoreError> = None;
    backup::read(&options.file, &mut |record| {
        if failed.is_none() {
            let put = transform(&restoration, &record.key, &record.value)
                .map_err(RestoreError::from)
                .and_then(|value: Bytes| filling.put(&record.key, &value).map_err(|e| directory(e.into())));
            failed = put.err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    filling.finish(at).map_err(|error| directory(error.into()))?;
    // Opened as the member itself will open it: what cannot be read is told now.
    let store = RocksStore::open(&options.dir, options.id, &beginning).map_err(directory)?;
    Machine::open(store.state())?;
    let failure: Option<StoreError> = store.view().failure();
    failure.map_or(Ok(head), |failure| Err(directory(failure.into())))
}

/// What a restore would be of; nothing is made.
///
/// # Errors
/// As [`restore`], as far as that can be known.
pub fn rehearse(options: &Options) -> Result<cairn_proto::meta::BackupHead, RestoreError> {
    check(options)?;
    Ok(backup::read(&options.file, &mut |_| {})?.0)
}

fn check(options: &Options) -> Result<(), RestoreError> {
    let wrong = |words: String| Err(RestoreError::Members(words));
    let ids: Vec<u64> = options.members.iter().map(|(id, _)| *id).collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    if sorted.len() != ids.len() || ids.contains(&0) {
        return wrong("members are numbered from 1, each once: --members 1=host:port,2=host:port".to_owned());
    }
    if !ids.contains(&options.id) {
        return wrong(format!("member {} is not among the members {sorted:?}; list all of them", options.id));
    }
    let empty = std::fs::read_dir(&options.dir).map_or(true, |mut entries| entries.next().is_none());
    if empty { Ok(()) } else { Err(RestoreError::NotEmpty(Path::new(&options.dir).to_owned())) }
}

/// The same for all who restore the same backup for the same members, and for nobody else.
fn lineage_of(digest: u32, members: &[(u64, String)]) -> [u8; 16] {
    let mut members: Vec<String> = members.iter().map(|(id, address)| format!("{id}={address}")).collect();
    members.sort();
    let text = members.join(",");
    let mut lineage = [0; 16];
    for (part, bytes) in lineage.chunks_mut(4).enumerate() {
        let crc = crc32c::crc32c_append(digest ^ (part as u32).wrapping_mul(0x9e37_79b9), text.as_bytes());
        bytes.copy_from_slice(&crc.to_be_bytes());
    }
    lineage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_backup_for_the_same_members_is_one_lineage() {
        let members = vec![(1, "a:1".to_owned()), (2, "b:1".to_owned())];
        let turned: Vec<_> = members.iter().rev().cloned().collect();
        assert_eq!(lineage_of(7, &members), lineage_of(7, &turned));
        assert_ne!(lineage_of(7, &members), lineage_of(8, &members));
        assert_ne!(lineage_of(7, &members), lineage_of(7, &members[..1]));
    }

    #[test]
    fn what_cannot_be_made_is_refused_before_anything_is() {
        let dir = tempfile::tempdir().unwrap();
        let options = |id, members: &[(u64, &str)]| Options {
            file: dir.path().join("nothing"),
            dir: dir.path().join("member"),
            id,
            members: members.iter().map(|(id, address)| (*id, (*address).to_owned())).collect(),
            lost_osds: Vec::new(),
        };
        assert!(restore(&options(3, &[(1, "a:1")])).unwrap_err().to_string().contains("not among"));
        assert!(restore(&options(1, &[(1, "a:1"), (1, "b:1")])).unwrap_err().to_string().contains("each once"));
        assert!(restore(&options(1, &[(1, "a:1")])).unwrap_err().to_string().contains("nothing"));
        let full = Options { dir: dir.path().to_owned(), ..options(1, &[(1, "a:1")]) };
        std::fs::write(dir.path().join("x"), "").unwrap();
        assert!(restore(&full).unwrap_err().to_string().contains("not empty"));
    }
}
