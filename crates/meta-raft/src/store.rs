//! What a member keeps on its disk, as a trait: the log with its hard state, the applied state, verified
//! checkpoints of that state, and the installation of somebody else's.
//!
//! Two implementations stand behind it: RocksDB (in `meta`) and [`crate::MemoryStore`], which loses what was not
//! synced. Both pass the suite in `suite.rs`. The rules that it checks:
//! - after [`Store::append`] returns, entries and hard state survive a crash;
//! - [`Store::apply`] is atomic with its index but may be lost, always a suffix of the applies;
//! - the log is truncated only up to an index that a durable, verified checkpoint contains;
//! - [`Store::finish_install`] replaces state, log bounds and hard state together, or not at all.

use cairn_meta_core::{Batch, StateRead};
use cairn_proto::meta_raft::{Record, SnapshotManifest};
use raft::eraftpb::{ConfState, Entry, HardState};

/// A place in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The term of the entry there.
    pub term: u64,
    /// From 1; 0 is before the first entry.
    pub index: u64,
}

/// Why the store could not do what it was asked. Every one of them stops the member: it believes only a disk that
/// it has read again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The device or the file system failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        cause: String,
    },
    /// What was read is not what was written.
    #[error("{place} is damaged: expected {expected}, found {found}")]
    Corrupt {
        /// Which record or file.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Written by a newer program.
    #[error("{place} has format {found}, and this program knows formats up to {known}; start it with a newer version")]
    NewerFormat {
        /// Which record or file.
        place: String,
        /// Its version.
        found: u32,
        /// The newest known here.
        known: u32,
    },
    /// The log was to be cut where no checkpoint stands for what would be lost.
    #[error("the log cannot be truncated through {asked}: the newest verified checkpoint stands at {checkpoint}")]
    NotCheckpointed {
        /// The index asked for.
        asked: u64,
        /// The index of the newest checkpoint, 0: none.
        checkpoint: u64,
    },
}

/// Keys and values of a snapshot that follow one another, and whether they are the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// In key order.
    pub records: Vec<Record>,
    /// Nothing follows.
    pub last: bool,
}

/// The disk of one member. All calls are made by the one owner of the member.
pub trait Store {
    // ---- the log

    /// The place before the first entry that is kept: (0, 0), or the end of what was truncated.
    fn truncated(&self) -> Position;
    /// The place of the last entry, or [`Store::truncated`] where there is none.
    fn last(&self) -> Position;
    /// The term of the entry at `index`; `None` outside of what is kept.
    fn term(&self, index: u64) -> Option<u64>;
    /// Term, vote and commit index as last persisted.
    fn hard_state(&self) -> HardState;
    /// Who votes and who learns, as of [`Store::applied`].
    fn conf_state(&self) -> ConfState;
    /// The entries `low..high`, which are kept; the first ones of them, once `max_bytes` are reached (at least one).
    ///
    /// # Errors
    /// When the disk fails or the entries are not there whole.
    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StoreError>;
    /// Writes entries and hard state as one. Entries from the first new index on are replaced. With `sync` it
    /// returns when all of it, and everything before it, is on stable storage.
    ///
    /// # Errors
    /// When the disk fails; then nothing may be acknowledged any more.
    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StoreError>;
    /// Forgets the entries through `index`, durably.
    ///
    /// # Errors
    /// [`StoreError::NotCheckpointed`], or when the disk fails.
    fn truncate(&mut self, index: u64) -> Result<(), StoreError>;

    // ---- the state

    /// The applied state, for reading.
    fn state(&self) -> &dyn StateRead;
    /// The last position whose effects the state has.
    fn applied(&self) -> Position;
    /// Writes the effects of one entry and its position as one; not synced.
    ///
    /// # Errors
    /// When the disk fails, or a read since the last call did.
    fn apply(&mut self, at: Position, batch: &Batch) -> Result<(), StoreError>;
    /// The same, and the members that the entry leads to: all of it as one.
    ///
    /// # Errors
    /// As [`Store::apply`].
    fn apply_change(&mut self, at: Position, batch: &Batch, conf_state: &ConfState) -> Result<(), StoreError>;

    // ---- checkpoints of the state

    /// Starts making a checkpoint of the state at its applied index or later. One at a time; while one is being
    /// made this does nothing.
    ///
    /// # Errors
    /// When the disk fails.
    fn start_checkpoint(&mut self) -> Result<(), StoreError>;
    /// Whether one is being made.
    fn checkpoint_running(&self) -> bool;
    /// A checkpoint that became durable and was read back whole since the last call.
    ///
    /// # Errors
    /// When it could not be made or does not read back.
    fn poll_checkpoint(&mut self) -> Result<Option<SnapshotManifest>, StoreError>;
    /// The newest durable and verified one.
    fn checkpoint(&self) -> Option<&SnapshotManifest>;
    /// The records after `after` of the checkpoint at `at`, about `max_bytes` of them, at least one. `None`: this
    /// checkpoint is no longer kept.
    ///
    /// # Errors
    /// When the disk fails.
    fn read_piece(&mut self, at: Position, after: Option<&[u8]>, max_bytes: usize)
    -> Result<Option<Piece>, StoreError>;

    // ---- installing a snapshot

    /// Prepares to receive the snapshot. What was received of the same one before (also before a restart) is
    /// kept: the answer is the last key of it. What was received of another is dropped.
    ///
    /// # Errors
    /// When the disk fails.
    fn begin_install(&mut self, manifest: &SnapshotManifest) -> Result<Option<Vec<u8>>, StoreError>;
    /// Adds records, which follow the last key received.
    ///
    /// # Errors
    /// When the disk fails.
    fn install_piece(&mut self, records: &[Record]) -> Result<(), StoreError>;
    /// Compares what was received with the manifest.
    ///
    /// # Errors
    /// When the disk fails; what does not match is no error but `false`, and is dropped.
    fn verify_install(&mut self) -> Result<bool, StoreError>;
    /// In one synced switch: the received state replaces the old one, the log is empty and begins after it, and
    /// the hard state is this one.
    ///
    /// # Errors
    /// When the disk fails.
    fn finish_install(&mut self, hard_state: &HardState, conf_state: &ConfState) -> Result<(), StoreError>;

    /// Bytes on disk, about.
    fn bytes(&self) -> u64;
}

/// Where the snapshot of a manifest stands.
#[must_use]
pub fn position_of(manifest: &SnapshotManifest) -> Position {
    Position { term: manifest.term, index: manifest.index }
}
