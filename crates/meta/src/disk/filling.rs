//! A new directory whose state comes from somewhere else, all at once: a restored backup. The MEMBER file comes last.

use std::path::{Path, PathBuf};

use cairn_meta_raft::{Position, StoreError};
use protobuf::Message as _;
use raft::eraftpb::HardState;
use rocksdb::{DB, WriteBatch, WriteOptions};

use super::database::{self, APPLIED, HARD, STATE, TRUNCATED, damaged, encode_position, family, put_record, sealed};
use super::member::MemberFile;
use super::opening::{Beginning, OpenError, lay_out, state_dir};

/// Bytes of one write.
const BATCH_BYTES: usize = 1 << 20;

/// A directory that is being filled.
pub(crate) struct Filling {
    db: DB,
    path: PathBuf,
    batch: WriteBatch,
    file: MemberFile,
}

impl Filling {
    pub(crate) fn create(dir: &Path, member: u64, beginning: &Beginning) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(super::io("cannot make the directory"))?;
        let file = lay_out(dir, member, beginning)?;
        let path = state_dir(dir, 1);
        let db = database::open(&path)?;
        Ok(Self { db, path, batch: WriteBatch::default(), file })
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.batch.put_cf(family(&self.db, STATE), key, sealed(key, value));
        if self.batch.size_in_bytes() < BATCH_BYTES {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.db.write(batch).map_err(|e| damaged(&self.path, &e))
    }

    /// The state stands at this position, and the log begins after it.
    pub(crate) fn finish(mut self, at: Position) -> Result<(), StoreError> {
        let hard_state = HardState { term: at.term, commit: at.index, ..HardState::default() };
        put_record(&mut self.batch, APPLIED, &encode_position(at));
        put_record(&mut self.batch, TRUNCATED, &encode_position(at));
        put_record(&mut self.batch, HARD, &hard_state.write_to_bytes().expect("it encodes"));
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(self.batch, &options).map_err(|e| damaged(&self.path, &e))?;
        drop(self.db);
        self.file.save()
    }
}
