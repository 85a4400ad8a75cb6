//! The store as raft-rs wants to see it: read only, and only the log.
//!
//! It writes nothing; [`crate::Node`] writes through [`LogView::store_mut`] when raft says so. An error of the disk
//! goes to raft as "other", on which raft panics: fail-stop is what is wanted.

use prost::Message;
use raft::eraftpb::{Entry, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::membership;
use crate::store::Store;

/// A [`Store`] under raft-rs.
pub(crate) struct LogView<S>(S);

impl<S: Store> LogView<S> {
    pub(crate) fn new(store: S) -> Self {
        Self(store)
    }

    pub(crate) fn store(&self) -> &S {
        &self.0
    }

    pub(crate) fn into_inner(self) -> S {
        self.0
    }

    pub(crate) fn store_mut(&mut self) -> &mut S {
        &mut self.0
    }
}

impl<S: Store> Storage for LogView<S> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let mut hard_state = self.0.hard_state();
        // The commit index is not always written down; what is applied was committed.
        hard_state.commit = hard_state.commit.max(self.0.applied().index).max(self.0.truncated().index);
        Ok(RaftState::new(hard_state, self.0.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.0.truncated().index {
            return Err(StorageError::Compacted.into());
        }
        if high > self.0.last().index + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let max_bytes = max_size.into().unwrap_or(u64::MAX);
        self.0.entries(low, high, max_bytes).map_err(|e| StorageError::Other(Box::new(e)).into())
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match self.0.term(index) {
            Some(term) => Ok(term),
            None if index < self.0.truncated().index => Err(StorageError::Compacted.into()),
            None => Err(StorageError::Unavailable.into()),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.0.truncated().index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.0.last().index)
    }

    fn snapshot(&self, _request_index: u64, to: u64) -> raft::Result<Snapshot> {
        // One that was made before the receiver became a member would be refused by it; the next one is on its way.
        let fit =
            self.0.checkpoint().map(|m| (m, membership::of_manifest(m))).filter(|(_, c)| membership::names(c, to));
        let Some((manifest, conf_state)) = fit else {
            return Err(StorageError::SnapshotTemporarilyUnavailable.into());
        };
        let mut snapshot = Snapshot::default();
        snapshot.mut_metadata().index = manifest.index;
        snapshot.mut_metadata().term = manifest.term;
        snapshot.mut_metadata().set_conf_state(conf_state);
        snapshot.data = manifest.encode_to_vec().into();
        Ok(snapshot)
    }
}
