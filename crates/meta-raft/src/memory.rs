//! A disk in memory that forgets what was not synced: what the simulation runs on, and the model of what RocksDB
//! promises. One journal orders log and state writes; a crash keeps a prefix of what was not synced.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cairn_meta_core::{Batch, MemoryState, StateRead};
use cairn_proto::meta_raft::{Record, SnapshotManifest};
use raft::eraftpb::{ConfState, Entry, HardState};

use crate::membership;
use crate::snapshots::{SNAPSHOT_FORMAT, digest_records};
use crate::store::{Piece, Position, Store, StoreError, position_of};
use crate::terms::Terms;

/// Checkpoints that are kept: the newest, and the one before it for whoever is still reading it.
const KEPT_CHECKPOINTS: usize = 2;

/// Everything that a disk holds of log and state.
#[derive(Clone, Debug, Default)]
struct Image {
    terms: Terms,
    entries: VecDeque<Entry>,
    hard_state: HardState,
    conf_state: ConfState,
    state: MemoryState,
    applied: Position,
}

#[derive(Clone, Debug)]
enum Write {
    Append(Vec<Entry>, Option<HardState>),
    Apply(Position, Batch, Option<ConfState>),
    Truncate(u64),
}

impl Image {
    fn write(&mut self, write: &Write) {
        match write {
            Write::Append(entries, hard_state) => {
                for entry in entries {
                    let kept = entry.index - self.terms.start().0 - 1;
                    self.terms.put(entry.index, entry.term);
                    self.entries.truncate(kept as usize);
                    self.entries.push_back(entry.clone());
                }
                if let Some(hard_state) = hard_state {
                    self.hard_state = hard_state.clone();
                }
            }
            Write::Apply(at, batch, conf_state) => {
                self.state.write(batch);
                self.applied = *at;
                if let Some(conf_state) = conf_state {
                    self.conf_state = conf_state.clone();
                }
            }
            Write::Truncate(index) => {
                let cut = index - self.terms.start().0;
                self.terms.cut(*index);
                self.entries.drain(..cut as usize);
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Install {
    manifest: SnapshotManifest,
    records: BTreeMap<Bytes, Bytes>,
}

/// A [`Store`] in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    now: Image,
    durable: Image,
    unsynced: Vec<Write>,
    checkpoints: Vec<(SnapshotManifest, Arc<MemoryState>)>,
    finished_checkpoint: Option<SnapshotManifest>,
    install: Option<Install>,
    syncs: u64,
}

impl MemoryStore {
    /// The empty disk of a member of a cluster with these voters.
    #[must_use]
    pub fn new(voters: &[u64]) -> Self {
        let image =
            Image { conf_state: ConfState { voters: voters.to_vec(), ..ConfState::default() }, ..Image::default() };
        Self { now: image.clone(), durable: image, ..Self::default() }
    }

    /// Writes that a crash may take away.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// How often the disk was synced.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// The disk after a power failure that let the first `keep` of the unsynced writes through. Of a snapshot that
    /// was being received the first half is left.
    #[must_use]
    pub fn crash(mut self, keep: usize) -> Self {
        for write in self.unsynced.iter().take(keep) {
            self.durable.write(write);
        }
        if let Some(install) = &mut self.install {
            let half = install.records.len() / 2;
            install.records = std::mem::take(&mut install.records).into_iter().take(half).collect();
        }
        self.unsynced.clear();
        self.now = self.durable.clone();
        self.finished_checkpoint = None;
        self
    }

    fn write(&mut self, write: Write) {
        self.now.write(&write);
        self.unsynced.push(write);
    }

    fn sync(&mut self) {
        for write in self.unsynced.drain(..) {
            self.durable.write(&write);
        }
        self.syncs += 1;
    }
}

impl Store for MemoryStore {
    fn truncated(&self) -> Position {
        let (index, term) = self.now.terms.start();
        Position { term, index }
    }

    fn last(&self) -> Position {
        let (index, term) = self.now.terms.last();
        Position { term, index }
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.now.terms.at(index)
    }

    fn hard_state(&self) -> HardState {
        self.now.hard_state.clone()
    }

    fn conf_state(&self) -> ConfState {
        self.now.conf_state.clone()
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StoreError> {
        let first = self.truncated().index + 1;
        let range = self.now.entries.range((low - first) as usize..(high - first) as usize);
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len() as u64 + 32;
            bytes <= max_bytes || entry.index == low
        };
        Ok(range.take_while(fits).cloned().collect())
    }

    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StoreError> {
        self.write(Write::Append(entries.to_vec(), hard_state.cloned()));
        if sync {
            self.sync();
        }
        Ok(())
    }

    fn truncate(&mut self, index: u64) -> Result<(), StoreError> {
        let checkpoint = self.checkpoint().map_or(0, |m| m.index);
        if index > checkpoint {
            return Err(StoreError::NotCheckpointed { asked: index, checkpoint });
        }
        if index > self.truncated().index {
            self.write(Write::Truncate(index));
            self.sync();
        }
        Ok(())
    }

    fn state(&self) -> &dyn StateRead {
        &self.now.state
    }

    fn applied(&self) -> Position {
        self.now.applied
    }

    fn apply(&mut self, at: Position, batch: &Batch) -> Result<(), StoreError> {
        assert_eq!(at.index, self.now.applied.index + 1, "entries are applied one after the other");
        self.write(Write::Apply(at, batch.clone(), None));
        Ok(())
    }

    fn apply_change(&mut self, at: Position, batch: &Batch, conf_state: &ConfState) -> Result<(), StoreError> {
        assert_eq!(at.index, self.now.applied.index + 1, "entries are applied one after the other");
        self.write(Write::Apply(at, batch.clone(), Some(conf_state.clone())));
        Ok(())
    }

    fn start_checkpoint(&mut self) -> Result<(), StoreError> {
        self.sync();
        let state = Arc::new(self.now.state.clone());
        let records = state.records().map(|(k, v)| (k.as_ref(), v.as_ref()));
        let manifest = manifest_of(self.now.applied, &self.now.conf_state, records);
        self.checkpoints.push((manifest.clone(), Arc::clone(&state)));
        let old = self.checkpoints.len().saturating_sub(KEPT_CHECKPOINTS);
        self.checkpoints.drain(..old);
        self.finished_checkpoint = Some(manifest);
        Ok(())
    }

    fn checkpoint_running(&self) -> bool {
        self.finished_checkpoint.is_some()
    }

    fn poll_checkpoint(&mut self) -> Result<Option<SnapshotManifest>, StoreError> {
        Ok(self.finished_checkpoint.take())
    }

    fn checkpoint(&self) -> Option<&SnapshotManifest> {
        self.checkpoints.last().map(|(manifest, _)| manifest)
    }

    fn read_piece(
        &mut self,
        at: Position,
        after: Option<&[u8]>,
        max_bytes: usize,
    ) -> Result<Option<Piece>, StoreError> {
        let Some((_, state)) = self.checkpoints.iter().find(|(m, _)| position_of(m) == at) else { return Ok(None) };
        Ok(Some(piece_of(state.as_ref(), after, max_bytes)))
    }

    fn begin_install(&mut self, manifest: &SnapshotManifest) -> Result<Option<Vec<u8>>, StoreError> {
        if self.install.as_ref().is_none_or(|i| i.manifest != *manifest) {
            self.install = Some(Install { manifest: manifest.clone(), records: BTreeMap::new() });
        }
        let last = self.install.as_ref().and_then(|i| i.records.last_key_value());
        Ok(last.map(|(key, _)| key.to_vec()))
    }

    fn install_piece(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let install = self.install.as_mut().expect("begin_install came first");
        install.records.extend(records.iter().map(|r| (r.key.clone(), r.value.clone())));
        Ok(())
    }

    fn verify_install(&mut self) -> Result<bool, StoreError> {
        let Some(install) = &self.install else { return Ok(false) };
        let records = install.records.iter().map(|(k, v)| (k.as_ref(), v.as_ref()));
        let found = manifest_of(position_of(&install.manifest), &ConfState::default(), records);
        let matches = SnapshotManifest { conf_state: install.manifest.conf_state.clone(), ..found } == install.manifest;
        if !matches {
            self.install = None;
        }
        Ok(matches)
    }

    fn finish_install(&mut self, hard_state: &HardState, conf_state: &ConfState) -> Result<(), StoreError> {
        let install = self.install.take().expect("a snapshot was verified");
        let at = position_of(&install.manifest);
        let state: MemoryState = install.records.into_iter().collect();
        self.checkpoints = vec![(install.manifest, Arc::new(state.clone()))];
        self.finished_checkpoint = None;
        self.unsynced.clear();
        self.now = Image {
            terms: Terms::starting_after(at.index, at.term),
            entries: VecDeque::new(),
            hard_state: hard_state.clone(),
            conf_state: conf_state.clone(),
            state,
            applied: at,
        };
        self.durable = self.now.clone();
        self.syncs += 1;
        Ok(())
    }

    fn bytes(&self) -> u64 {
        let log: usize = self.now.entries.iter().map(|e| e.data.len() + 32).sum();
        let state: usize = self.now.state.records().map(|(k, v)| k.len() + v.len()).sum();
        (log + state) as u64
    }
}

/// The manifest of a state: counts and digests all its records, and names the members as of it.
pub fn manifest_of<'a>(
    at: Position,
    conf_state: &ConfState,
    records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> SnapshotManifest {
    let mut manifest = SnapshotManifest {
        format: SNAPSHOT_FORMAT,
        index: at.index,
        term: at.term,
        conf_state: membership::encode(conf_state),
        ..SnapshotManifest::default()
    };
    for (key, value) in records {
        manifest.records += 1;
        manifest.bytes += (key.len() + value.len()) as u64;
        manifest.digest = digest_records(manifest.digest, [(key, value)]);
    }
    manifest
}

/// The records of a state after a key: at least one, until `max_bytes` are reached.
#[must_use]
pub fn piece_of(state: &dyn StateRead, after: Option<&[u8]>, max_bytes: usize) -> Piece {
    let mut piece = Piece { records: Vec::new(), last: true };
    let mut bytes = 0;
    state.scan(after.unwrap_or_default(), false, &mut |key, value| {
        if after == Some(key) {
            return true;
        }
        if bytes >= max_bytes {
            piece.last = false;
            return false;
        }
        bytes += key.len() + value.len();
        piece.records.push(Record { key: Bytes::copy_from_slice(key), value: Bytes::copy_from_slice(value) });
        true
    });
    piece
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;
    use crate::suite::{self, Rig};

    struct InMemory;

    impl Rig for InMemory {
        type Store = MemoryStore;
        fn fresh(&mut self) -> MemoryStore {
            MemoryStore::new(&[1, 2, 3])
        }
        fn crash(&mut self, store: MemoryStore, dice: u64) -> MemoryStore {
            let keep = dice as usize % (store.unsynced() + 1);
            store.crash(keep)
        }
    }

    #[test]
    fn the_memory_store_passes_the_suite() {
        for seed in 0..40 {
            suite::run(&mut InMemory, seed, 300);
        }
    }

    #[test]
    #[should_panic(expected = "survive")]
    fn the_suite_notices_a_disk_that_lies_about_syncing() {
        struct Liar;
        impl Rig for Liar {
            type Store = MemoryStore;
            fn fresh(&mut self) -> MemoryStore {
                MemoryStore::new(&[1, 2, 3])
            }
            fn crash(&mut self, _: MemoryStore, _: u64) -> MemoryStore {
                MemoryStore::new(&[1, 2, 3])
            }
        }
        suite::run(&mut Liar, 1, 300);
    }
}
