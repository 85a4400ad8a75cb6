//! Checkpoints: copies of the state that were read back whole, so that the log before them may go and others may
//! be sent them. Made by a thread of their own: the member goes on meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use cairn_meta_raft::{Position, SNAPSHOT_FORMAT, StoreError, digest_records, position_of};
use cairn_proto::meta_raft::SnapshotManifest;
use prost::Message;
use rocksdb::DB;

use super::database::{self, APPLIED, CONF, corrupt_record, damaged};
use super::{io, replace_file, sync_dir};

const PREFIX: &str = "checkpoint-";
/// While it is being made; a crash leaves it behind, and the next start removes it.
const UNFINISHED: &str = "checkpoint-unfinished";
const MANIFEST: &str = "SNAPSHOT";
/// The newest, and the one before it for whoever is still being sent it.
const KEPT: usize = 2;

type Outcome = Result<SnapshotManifest, StoreError>;

/// The checkpoints of one directory.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    /// Oldest first.
    kept: Vec<SnapshotManifest>,
    running: Option<Receiver<Outcome>>,
    /// The one that is being read at the moment.
    reader: Option<(Position, Arc<DB>)>,
}

impl Checkpoints {
    /// Finds those that were finished, and removes the rest, and those that are ahead of `applied`: left by an
    /// installation that did not come to its end.
    pub(crate) fn open(dir: &Path, applied: Position) -> Result<Self, StoreError> {
        let mut kept = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(io("cannot list the directory"))? {
            let entry = entry.map_err(io("cannot list the directory"))?;
            if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
                continue;
            }
            let manifest = match load_manifest(&entry.path()) {
                Err(damage @ StoreError::Corrupt { .. }) => {
                    tracing::warn!("a checkpoint is damaged, and made anew from the state: {damage}");
                    None
                }
                manifest => manifest?,
            };
            match manifest {
                Some(manifest) if manifest.index <= applied.index => kept.push(manifest),
                _ => std::fs::remove_dir_all(entry.path()).map_err(io("cannot remove a checkpoint"))?,
            }
        }
        kept.sort_by_key(|m| m.index);
        Ok(Self { dir: dir.to_owned(), kept, running: None, reader: None })
    }

    pub(crate) fn newest(&self) -> Option<&SnapshotManifest> {
        self.kept.last()
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn start(&mut self, db: &Arc<DB>) -> Result<(), StoreError> {
        if self.running.is_some() {
            return Ok(());
        }
        let (db, dir) = (Arc::clone(db), self.dir.clone());
        let (send, receive) = sync_channel(1);
        let work = move || {
            let _ = send.send(make(&db, &dir));
        };
        let spawned = std::thread::Builder::new().name("checkpoint".to_owned()).spawn(work);
        spawned.map_err(io("cannot start a thread for a checkpoint"))?;
        self.running = Some(receive);
        Ok(())
    }

    pub(crate) fn poll(&mut self) -> Result<Option<SnapshotManifest>, StoreError> {
        let Some(running) = &self.running else { return Ok(None) };
        match running.try_recv() {
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => {
                self.running = None;
                Err(StoreError::Io { what: "making a checkpoint", cause: "its thread died".to_owned() })
            }
            Ok(outcome) => {
                self.running = None;
                let manifest = outcome?;
                self.keep(manifest.clone())?;
                Ok(Some(manifest))
            }
        }
    }

    /// Waits for one that is being made, and drops it: the state it shows is about to be replaced.
    pub(crate) fn cancel(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.recv();
        }
    }

    /// Makes one here and now.
    pub(crate) fn make_now(&mut self, db: &DB) -> Result<(), StoreError> {
        let manifest = make(db, &self.dir)?;
        self.keep(manifest)
    }

    fn keep(&mut self, manifest: SnapshotManifest) -> Result<(), StoreError> {
        self.kept.retain(|m| m.index != manifest.index);
        self.kept.push(manifest);
        while self.kept.len() > KEPT {
            let old = position_of(&self.kept.remove(0));
            if self.reader.as_ref().is_some_and(|(at, _)| *at == old) {
                self.reader = None;
            }
            std::fs::remove_dir_all(self.path(old)).map_err(io("cannot remove an old checkpoint"))?;
        }
        Ok(())
    }

    /// A checkpoint, opened for reading, if it is still kept.
    pub(crate) fn reader(&mut self, at: Position) -> Result<Option<Arc<DB>>, StoreError> {
        if !self.kept.iter().any(|m| position_of(m) == at) {
            return Ok(None);
        }
        if self.reader.as_ref().is_none_or(|(open, _)| *open != at) {
            self.reader = Some((at, Arc::new(database::open_read_only(&self.path(at))?)));
        }
        Ok(self.reader.as_ref().map(|(_, db)| Arc::clone(db)))
    }

    /// Removes one that cannot be read.
    pub(crate) fn drop_damaged(&mut self, at: Position) -> Result<(), StoreError> {
        self.reader = None;
        self.kept.retain(|m| position_of(m) != at);
        std::fs::remove_dir_all(self.path(at)).map_err(io("cannot remove a damaged checkpoint"))
    }

    /// Nobody reads at the moment: gives the memory back.
    pub(crate) fn close_reader(&mut self) {
        self.reader = None;
    }

    fn path(&self, at: Position) -> PathBuf {
        self.dir.join(name_of(at))
    }
}

/// The thread holds the database open: whoever opens the directory next must not find it locked.
impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.cancel();
    }
}

fn name_of(at: Position) -> String {
    format!("{PREFIX}{:020}-{:010}", at.index, at.term)
}

fn make(db: &DB, dir: &Path) -> Outcome {
    let unfinished = dir.join(UNFINISHED);
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(io("cannot remove an unfinished checkpoint"))?;
    }
    let checkpoint = rocksdb::checkpoint::Checkpoint::new(db).map_err(|e| damaged(dir, &e))?;
    checkpoint.create_checkpoint(&unfinished).map_err(|e| damaged(&unfinished, &e))?;
    let manifest = {
        let copy = database::open_read_only(&unfinished)?;
        describe(&copy)?
    };
    replace_file(&unfinished, MANIFEST, &with_crc(&manifest))?;
    let finished = dir.join(name_of(position_of(&manifest)));
    if finished.exists() {
        std::fs::remove_dir_all(&finished).map_err(io("cannot replace a checkpoint"))?;
    }
    std::fs::rename(&unfinished, &finished).map_err(io("cannot name a checkpoint"))?;
    sync_dir(dir)?;
    Ok(manifest)
}

/// Reads a whole state, every checksum verified, and says what it is.
pub(crate) fn describe(db: &DB) -> Outcome {
    let at = database::position(db, APPLIED)?.unwrap_or_default();
    let conf_state = database::record(db, CONF)?.unwrap_or_default().into();
    let (format, index, term) = (SNAPSHOT_FORMAT, at.index, at.term);
    let mut manifest = SnapshotManifest { format, index, term, conf_state, ..SnapshotManifest::default() };
    database::each_state_record(db, &mut |key, value| {
        manifest.records += 1;
        manifest.bytes += (key.len() + value.len()) as u64;
        manifest.digest = digest_records(manifest.digest, [(key, value)]);
    })?;
    Ok(manifest)
}

fn with_crc(manifest: &SnapshotManifest) -> Vec<u8> {
    let mut bytes = manifest.encode_to_vec();
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// `None`: the checkpoint was not finished.
fn load_manifest(dir: &Path) -> Result<Option<SnapshotManifest>, StoreError> {
    let path = dir.join(MANIFEST);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("cannot read a checkpoint's manifest")(error)),
    };
    let place = path.display().to_string();
    let bad = |found: &str| corrupt_record(&place, "a manifest with its checksum", found);
    let (manifest, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("too few bytes"))?;
    if crc32c::crc32c(manifest) != u32::from_le_bytes(*crc) {
        return Err(bad("a wrong checksum"));
    }
    let manifest = SnapshotManifest::decode(manifest).map_err(|e| bad(&e.to_string()))?;
    if manifest.format != SNAPSHOT_FORMAT {
        return Err(StoreError::NewerFormat { place, found: manifest.format, known: SNAPSHOT_FORMAT });
    }
    Ok(Some(manifest))
}
