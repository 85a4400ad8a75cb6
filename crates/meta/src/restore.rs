//! The directory of a new member from a backup, for the day on which all members are lost.
//!
//! Run once for each member that the restored cluster begins with, with the same file and the same list: all of them
//! then hold the same state under the same new lineage. The lineage keeps whoever is left of the old members away, so
//! that the two never vote with each other; `cairn_meta_core::restore` says what becomes of the state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairn_meta_core::restore::{Restoration, awaited, has_lineage, needed, transform};
use cairn_meta_core::{Corrupt, Machine};
use cairn_meta_raft::{Position, Store, StoreError};
use cairn_types::id::mix;
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

impl Options {
    /// A directory that holds something is never filled.
    ///
    /// # Errors
    /// When it does.
    pub fn refuse_if_used(&self) -> Result<(), RestoreError> {
        let empty = std::fs::read_dir(&self.dir).map_or(true, |mut entries| entries.next().is_none());
        if empty { Ok(()) } else { Err(RestoreError::NotEmpty(self.dir.clone())) }
    }
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

/// Makes the directory; what the backup was of. It is made under another name beside, and has its own only once it has
/// been read as the member itself will read it.
///
/// # Errors
/// In words. Then nothing is there that was not there before.
pub fn restore(options: &Options) -> Result<cairn_proto::meta::BackupHead, RestoreError> {
    check(options)?;
    options.refuse_if_used()?;
    let unfinished = beside(&options.dir);
    let made = clear(&unfinished).and_then(|()| fill(options, &unfinished));
    let named = made.and_then(|head| {
        std::fs::rename(&unfinished, &options.dir).map_err(|cause| failed_at(&options.dir)(cause))?;
        let parent = options.dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        crate::disk::sync_dir(parent.unwrap_or(Path::new("."))).map_err(|e| directory(&options.dir)(e.into()))?;
        Ok(head)
    });
    if named.is_err() {
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    named
}

fn fill(options: &Options, dir: &Path) -> Result<cairn_proto::meta::BackupHead, RestoreError> {
    let (mut osds, mut unreadable) = (Vec::new(), None);
    let (head, _) = backup::read(&options.file, &mut |record| match awaited(&record.key, &record.value) {
        Ok(osd) => osds.extend(osd.filter(|osd| !options.lost_osds.contains(osd))),
        Err(corrupt) => unreadable = Some(corrupt),
    })?;
    if let Some(corrupt) = unreadable {
        return Err(corrupt.into());
    }
    let mut lost = options.lost_osds.clone();
    lost.sort_unstable();
    let mut restoration = Restoration { members: options.members.clone(), lineage: [0; 16], awaited: osds, lost };
    let addresses: BTreeMap<u64, String> = options.members.iter().cloned().collect();
    let beginning = Beginning {
        genesis: addresses.keys().copied().collect(),
        addresses,
        cluster: Uuid::from_slice(&head.cluster).unwrap_or_default(),
        directory: None,
    };
    let at = Position { term: head.term, index: head.index };
    let directory = |cause: OpenError| directory(&options.dir)(cause);
    let mut filling = crate::disk::Filling::create(dir, options.id, &beginning).map_err(directory)?;
    let mut lineage = Lineage::default();
    let mut needed: BTreeMap<Bytes, Bytes> = needed().into_iter().collect();
    let mut last: Vec<(Bytes, Bytes)> = Vec::new();
    let mut failed: Option<RestoreError> = None;
    backup::read(&options.file, &mut |record| {
        needed.remove(&record.key);
        if has_lineage(&record.key) {
            last.push((record.key.clone(), record.value.clone()));
        } else if failed.is_none() {
            failed = put(&restoration, &record.key, &record.value, &mut lineage, &mut filling, &directory).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    for (key, value) in needed {
        put(&restoration, &key, &value, &mut lineage, &mut filling, &directory)?;
    }
    lineage.members(&options.members, at);
    restoration.lineage = lineage.name();
    for (key, value) in last {
        put(&restoration, &key, &value, &mut lineage, &mut filling, &directory)?;
    }
    filling.finish(at).map_err(|error| directory(error.into()))?;
    // Opened as the member itself will open it: what cannot be read is told now.
    let store = RocksStore::open(dir, options.id, &beginning).map_err(directory)?;
    Machine::open(store.state())?;
    let failure: Option<StoreError> = store.view().failure();
    failure.map_or(Ok(head), |failure| Err(directory(failure.into())))
}

fn put(
    restoration: &Restoration,
    key: &[u8],
    value: &Bytes,
    lineage: &mut Lineage,
    filling: &mut crate::disk::Filling,
    directory: &impl Fn(OpenError) -> RestoreError,
) -> Result<(), RestoreError> {
    let value = transform(restoration, key, value)?;
    lineage.record(key, &value);
    filling.put(key, &value).map_err(|error| directory(error.into()))
}

fn directory(dir: &Path) -> impl Fn(OpenError) -> RestoreError + '_ {
    |cause| RestoreError::Directory { dir: dir.to_owned(), cause }
}

fn failed_at(dir: &Path) -> impl Fn(std::io::Error) -> RestoreError + '_ {
    |cause| {
        let what = "cannot give a restored directory its name";
        directory(dir)(StoreError::Io { what, cause: cause.to_string() }.into())
    }
}

fn beside(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".unfinished");
    dir.with_file_name(name)
}

/// What an attempt left that was killed.
fn clear(unfinished: &Path) -> Result<(), RestoreError> {
    match std::fs::remove_dir_all(unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed_at(unfinished)(error)),
        _ => Ok(()),
    }
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
    Ok(())
}

/// The name of a new line of members: the same for all who made the same state for the same members, and for nobody
/// else. raft takes two members of one line with the same position for equal, so everything that decides what is in
/// the state goes into it: the records as they were written, not the backup's.
struct Lineage([u64; 2]);

impl Default for Lineage {
    fn default() -> Self {
        Self([mix(0x6c69_6e65_6167_6531), mix(0x6c69_6e65_6167_6532)])
    }
}

impl Lineage {
    fn number(&mut self, number: u64) {
        for (lane, state) in self.0.iter_mut().enumerate() {
            *state = mix(*state ^ number.rotate_left(lane as u32 * 23)).wrapping_add(number);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        for piece in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..piece.len()].copy_from_slice(piece);
            self.number(u64::from_le_bytes(word));
        }
    }

    fn record(&mut self, key: &[u8], value: &[u8]) {
        self.bytes(key);
        self.bytes(value);
    }

    fn members(&mut self, members: &[(u64, String)], at: Position) {
        let mut sorted: Vec<&(u64, String)> = members.iter().collect();
        sorted.sort();
        for (id, address) in sorted {
            self.number(*id);
            self.bytes(address.as_bytes());
        }
        self.number(at.term);
        self.number(at.index);
    }

    fn name(&self) -> [u8; 16] {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.0[0].to_be_bytes());
        name[8..].copy_from_slice(&self.0[1].to_be_bytes());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_state_for_the_same_members_is_one_lineage() {
        let members = vec![(1, "a:1".to_owned()), (2, "b:1".to_owned())];
        let turned: Vec<_> = members.iter().rev().cloned().collect();
        let name = |value: &[u8], members: &[(u64, String)]| {
            let mut lineage = Lineage::default();
            lineage.record(b"key", value);
            lineage.members(members, Position { term: 2, index: 9 });
            lineage.name()
        };
        assert_eq!(name(b"7", &members), name(b"7", &turned));
        assert_ne!(name(b"7", &members), name(b"8", &members));
        assert_ne!(name(b"7", &members), name(b"7", &members[..1]));
        assert_ne!(name(b"7", &members)[..8], name(b"7", &members)[8..], "two halves that do not follow each other");
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
