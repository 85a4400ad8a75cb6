//! RocksDB as the member's [`Store`].
//!
//! One write-ahead log carries everything, so that a synced log batch makes every earlier state write durable, and a
//! crash takes away only a suffix. Installing a snapshot fills a second database and switches by replacing the
//! MEMBER file.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cairn_meta_core::{Batch, Change, StateRead};
use cairn_meta_raft::{Piece, Position, Store, StoreError, Terms, membership, piece_of, position_of};
use cairn_proto::meta_raft::{Record, SnapshotManifest};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, HardState};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch, WriteOptions};

use super::checkpoints::{self, Checkpoints};
use super::database::{
    self, APPLIED, BATCH, CONF, HARD, INSTALL, LOG, STATE, StateView, TRUNCATED, corrupt_record, damaged,
    encode_position, family, framed, put_record, sealed,
};
use super::member::{MemberFile, forget_announced};
use super::opening::{Beginning, OpenError, batch_number, create, parse_entry, read_log, size_of, state_dir};
use super::witness::{Testimony, Witness};
use super::{io, sync_dir};

/// The latest entries are kept in memory for the members that follow closely.
pub(super) const TAIL_BYTES: usize = 2 << 20;

/// A snapshot that is being received.
struct Install {
    manifest: SnapshotManifest,
    db: DB,
    number: u64,
}

/// The directory of one member.
pub struct RocksStore {
    dir: PathBuf,
    member: MemberFile,
    db: Arc<DB>,
    view: StateView,
    witness: Witness,
    batch: u64,
    terms: Terms,
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    hard_state: HardState,
    conf_state: ConfState,
    applied: Position,
    checkpoints: Checkpoints,
    install: Option<Install>,
    /// Replaced databases that somebody may still be reading.
    retired: Vec<(Arc<DB>, PathBuf)>,
}

impl RocksStore {
    /// Opens the directory, or makes it. What a new one begins with does not matter to an old one: who is a member is
    /// part of its state.
    ///
    /// # Errors
    /// When the directory is another member's, was written by a newer program, lost synced writes, or the disk fails.
    pub fn open(dir: &Path, member: u64, beginning: &Beginning) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir).map_err(io("cannot make the directory"))?;
        let file = match MemberFile::load(dir)? {
            Some(file) if file.removed => {
                return Err(OpenError::Removed { dir: dir.to_owned(), member: file.member });
            }
            Some(file) if file.lost_memory => {
                return Err(OpenError::LostMemory { dir: dir.to_owned(), member: file.member });
            }
            Some(file) if file.member == member => {
                forget_announced(dir)?;
                file
            }
            Some(file) => {
                return Err(OpenError::OtherMember { dir: dir.to_owned(), found: file.member, wanted: member });
            }
            None => create(dir, member, beginning)?,
        };
        Ok(Self::open_existing(dir, file)?)
    }

    fn open_existing(dir: &Path, member: MemberFile) -> Result<Self, StoreError> {
        let (witness, testimony) = Witness::open(dir)?;
        let path = state_dir(dir, member.state);
        if !path.join("CURRENT").exists() {
            return Err(corrupt_record(&path.display().to_string(), "the member's database", "no database"));
        }
        let db = Arc::new(database::open(&path)?);
        let applied = database::position(&db, APPLIED)?.unwrap_or_default();
        let truncated = database::position(&db, TRUNCATED)?.unwrap_or_default();
        let (terms, tail) = read_log(&db, truncated)?;
        let mut store = Self {
            dir: dir.to_owned(),
            batch: batch_number(&db)?,
            hard_state: database::message(&db, HARD)?.unwrap_or_default(),
            conf_state: database::message(&db, CONF)?.unwrap_or_default(),
            checkpoints: Checkpoints::open(dir, applied)?,
            view: StateView::new(Arc::clone(&db)),
            tail_bytes: tail.iter().map(size_of).sum(),
            member,
            db,
            witness,
            terms,
            tail,
            applied,
            install: None,
            retired: Vec::new(),
        };
        store.trim_tail();
        store.check_against(testimony)?;
        // The log before it is gone: who lags is sent a checkpoint.
        let newest = store.checkpoints.newest().map_or(0, |m| m.index);
        if newest < store.truncated().index {
            store.checkpoints.make_now(&store.db)?;
        }
        store.remove_old_states()?;
        Ok(store)
    }

    /// A log that lost what was synced must not vote: it would break its word.
    fn check_against(&self, testimony: Testimony) -> Result<(), StoreError> {
        let place = format!("the log in {}", self.db.path().display());
        if self.batch < testimony.batch {
            let expected = format!(
                "the batch {} (ending with entry {} of term {}), which was synced",
                testimony.batch, testimony.last.index, testimony.last.term
            );
            let last = self.last();
            let found = format!("batch {} (ending with entry {} of term {})", self.batch, last.index, last.term);
            return Err(corrupt_record(&place, expected, found));
        }
        if self.applied.index > self.last().index || self.applied.index < self.truncated().index {
            let expected = format!("entry {}, which was applied", self.applied.index);
            let found = format!("entries {} to {}", self.truncated().index + 1, self.last().index);
            return Err(corrupt_record(&place, expected, found));
        }
        Ok(())
    }

    /// Whose directory it is.
    #[must_use]
    pub fn member(&self) -> &MemberFile {
        &self.member
    }

    /// Changes what the MEMBER file says, durably.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn update_member(&mut self, change: impl FnOnce(&mut MemberFile)) -> Result<(), StoreError> {
        let mut member = self.member.clone();
        change(&mut member);
        if member != self.member {
            member.save()?;
            self.member = member;
        }
        Ok(())
    }

    /// The state, for readers on other threads. It ends when a snapshot is installed: take it anew for each request.
    #[must_use]
    pub fn view(&self) -> StateView {
        self.view.clone()
    }

    /// Gives back what is no longer used; called from time to time.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn tidy(&mut self) -> Result<(), StoreError> {
        let ready = |(db, _): &(Arc<DB>, PathBuf)| Arc::strong_count(db) == 1;
        for (db, path) in self.retired.extract_if(.., |r| ready(r)) {
            drop(db);
            std::fs::remove_dir_all(path).map_err(io("cannot remove a replaced database"))?;
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch, sync: bool) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch, &options).map_err(|e| damaged(self.db.path(), &e))
    }

    fn write_applied(&mut self, at: Position, batch: &Batch, conf_state: Option<&ConfState>) -> Result<(), StoreError> {
        assert_eq!(at.index, self.applied.index + 1, "entries are applied one after the other");
        if let Some(failure) = self.view.failure() {
            return Err(failure);
        }
        let mut writes = WriteBatch::default();
        let state = family(&self.db, STATE);
        for change in &batch.changes {
            match change {
                Change::Put(key, value) => writes.put_cf(state, key, sealed(key, value)),
                Change::Delete(key) => writes.delete_cf(state, key),
            }
        }
        put_record(&mut writes, APPLIED, &encode_position(at));
        if let Some(conf_state) = conf_state {
            put_record(&mut writes, CONF, &membership::encode(conf_state));
        }
        self.write(writes, false)?;
        self.applied = at;
        if let Some(conf_state) = conf_state {
            self.conf_state = conf_state.clone();
        }
        Ok(())
    }

    fn trim_tail(&mut self) {
        while self.tail_bytes > TAIL_BYTES && self.tail.len() > 1 {
            self.tail_bytes -= self.tail.pop_front().as_ref().map_or(0, size_of);
        }
    }

    fn remember(&mut self, entry: &Entry) {
        while self.tail.back().is_some_and(|last| last.index >= entry.index) {
            self.tail_bytes -= self.tail.pop_back().as_ref().map_or(0, size_of);
        }
        self.terms.put(entry.index, entry.term);
        self.tail_bytes += size_of(entry);
        self.tail.push_back(entry.clone());
    }

    /// Directories of earlier and abandoned databases. The next number may hold a half-received snapshot.
    fn remove_old_states(&self) -> Result<(), StoreError> {
        for entry in std::fs::read_dir(&self.dir).map_err(io("cannot list the directory"))? {
            let entry = entry.map_err(io("cannot list the directory"))?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|n| n.strip_prefix("state-")).and_then(|n| n.parse::<u64>().ok());
            if number.is_some_and(|n| n != self.member.state && n != self.member.state + 1) {
                std::fs::remove_dir_all(entry.path()).map_err(io("cannot remove an old database"))?;
            }
        }
        Ok(())
    }

    /// A copy of the state is damaged, and not the state: it is made anew here and now, because the log before it may be
    /// gone. Should the state be damaged too, that says so.
    fn drop_checkpoint(&mut self, at: Position, damage: &StoreError) -> Result<(), StoreError> {
        tracing::warn!("a checkpoint is damaged, and made anew from the state: {damage}");
        self.checkpoints.cancel();
        self.checkpoints.drop_damaged(at)?;
        self.checkpoints.make_now(&self.db)
    }

    fn drop_install(&mut self) -> Result<(), StoreError> {
        self.install = None;
        let path = state_dir(&self.dir, self.member.state + 1);
        match path.exists() {
            true => std::fs::remove_dir_all(path).map_err(io("cannot remove a half-received snapshot")),
            false => Ok(()),
        }
    }

    /// What was received of this snapshot, perhaps by an earlier life, and through where; `None`: nothing.
    fn resume_install(&mut self, manifest: &SnapshotManifest) -> Result<Option<Option<Vec<u8>>>, StoreError> {
        let path = state_dir(&self.dir, self.member.state + 1);
        if self.install.is_none() && path.join("CURRENT").exists() {
            let db = database::open(&path)?;
            let known = database::record(&db, INSTALL)?;
            if known.is_some_and(|k| k == manifest.encode_to_vec()) {
                let number = self.member.state + 1;
                self.install = Some(Install { manifest: manifest.clone(), db, number });
            }
        }
        let Some(Install { db, .. }) = self.install.as_ref().filter(|i| i.manifest == *manifest) else {
            return Ok(None);
        };
        let last = db.iterator_cf(family(db, STATE), IteratorMode::End).next().transpose();
        Ok(Some(last.map_err(|e| damaged(db.path(), &e))?.map(|(key, _)| key.to_vec())))
    }
}

impl Store for RocksStore {
    fn truncated(&self) -> Position {
        let (index, term) = self.terms.start();
        Position { term, index }
    }

    fn last(&self) -> Position {
        let (index, term) = self.terms.last();
        Position { term, index }
    }

    fn term(&self, index: u64) -> Option<u64> {
        self.terms.at(index)
    }

    fn hard_state(&self) -> HardState {
        self.hard_state.clone()
    }

    fn conf_state(&self) -> ConfState {
        self.conf_state.clone()
    }

    fn entries(&self, low: u64, high: u64, max_bytes: u64) -> Result<Vec<Entry>, StoreError> {
        let mut bytes = 0;
        let mut fits = |entry: &Entry| {
            bytes += size_of(entry) as u64;
            bytes <= max_bytes || entry.index == low
        };
        if let Some(first) = self.tail.front().map(|e| e.index).filter(|first| *first <= low) {
            let range = self.tail.range((low - first) as usize..(high - first) as usize);
            return Ok(range.take_while(|e| fits(e)).cloned().collect());
        }
        let mut found: Vec<Entry> = Vec::new();
        let start = low.to_be_bytes();
        for item in self.db.iterator_cf(family(&self.db, LOG), IteratorMode::From(&start, Direction::Forward)) {
            let (key, value) = item.map_err(|e| damaged(self.db.path(), &e))?;
            let entry = parse_entry(&self.db, &key, &value)?;
            let next = low + found.len() as u64;
            if entry.index != next {
                let place = format!("the log in {}", self.db.path().display());
                return Err(corrupt_record(&place, format!("entry {next}"), format!("entry {}", entry.index)));
            }
            if entry.index >= high || !fits(&entry) {
                break;
            }
            found.push(entry);
            if next + 1 == high {
                break;
            }
        }
        Ok(found)
    }

    fn append(&mut self, entries: &[Entry], hard_state: Option<&HardState>, sync: bool) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let log = family(&self.db, LOG);
        for entry in entries {
            let bytes = entry.write_to_bytes().expect("an entry always encodes");
            let key = entry.index.to_be_bytes();
            batch.put_cf(log, key, framed(&key, &bytes));
        }
        if let Some(end) = entries.last() {
            for index in end.index + 1..=self.last().index {
                batch.delete_cf(log, index.to_be_bytes());
            }
        }
        if let Some(hard_state) = hard_state {
            put_record(&mut batch, HARD, &hard_state.write_to_bytes().expect("it encodes"));
        }
        let number = self.batch + 1;
        put_record(&mut batch, BATCH, &number.to_be_bytes());
        self.write(batch, sync)?;
        self.batch = number;
        entries.iter().for_each(|e| self.remember(e));
        self.trim_tail();
        if let Some(hard_state) = hard_state {
            self.hard_state = hard_state.clone();
        }
        if sync {
            self.witness.record(Testimony { batch: number, last: self.last() })?;
        }
        Ok(())
    }

    fn truncate(&mut self, index: u64) -> Result<(), StoreError> {
        let checkpoint = self.checkpoint().map_or(0, |m| m.index);
        if index > checkpoint {
            return Err(StoreError::NotCheckpointed { asked: index, checkpoint });
        }
        let before = self.truncated().index;
        let Some(term) = self.terms.at(index).filter(|_| index > before) else { return Ok(()) };
        let mut batch = WriteBatch::default();
        put_record(&mut batch, TRUNCATED, &encode_position(Position { term, index }));
        let log = family(&self.db, LOG);
        for gone in before + 1..=index {
            batch.delete_cf(log, gone.to_be_bytes());
        }
        self.write(batch, true)?;
        self.terms.cut(index);
        while self.tail.front().is_some_and(|e| e.index <= index) {
            self.tail_bytes -= self.tail.pop_front().as_ref().map_or(0, size_of);
        }
        Ok(())
    }

    fn state(&self) -> &dyn StateRead {
        &self.view
    }

    fn applied(&self) -> Position {
        self.applied
    }

    fn apply(&mut self, at: Position, batch: &Batch) -> Result<(), StoreError> {
        self.write_applied(at, batch, None)
    }

    fn apply_change(&mut self, at: Position, batch: &Batch, conf_state: &ConfState) -> Result<(), StoreError> {
        self.write_applied(at, batch, Some(conf_state))
    }

    fn start_checkpoint(&mut self) -> Result<(), StoreError> {
        self.checkpoints.start(&self.db)
    }

    fn checkpoint_running(&self) -> bool {
        self.checkpoints.is_running()
    }

    fn poll_checkpoint(&mut self) -> Result<Option<SnapshotManifest>, StoreError> {
        self.checkpoints.poll()
    }

    fn checkpoint(&self) -> Option<&SnapshotManifest> {
        self.checkpoints.newest()
    }

    fn read_piece(
        &mut self,
        at: Position,
        after: Option<&[u8]>,
        max_bytes: usize,
    ) -> Result<Option<Piece>, StoreError> {
        let opened = match self.checkpoints.reader(at) {
            Err(damage) => return self.drop_checkpoint(at, &damage).map(|()| None),
            Ok(opened) => opened,
        };
        let Some(db) = opened else { return Ok(None) };
        let view = StateView::new(db);
        let piece = piece_of(&view, after, max_bytes);
        if let Some(failure) = view.failure() {
            drop(view);
            return self.drop_checkpoint(at, &failure).map(|()| None);
        }
        if piece.last {
            self.checkpoints.close_reader();
        }
        Ok(Some(piece))
    }

    fn begin_install(&mut self, manifest: &SnapshotManifest) -> Result<Option<Vec<u8>>, StoreError> {
        let resumed = match self.resume_install(manifest) {
            // Nobody relies on it yet: it is dropped, and received anew. Should the disk have failed, that is told then.
            Err(damage) => {
                tracing::warn!("a half-received snapshot is damaged, and received anew: {damage}");
                None
            }
            Ok(resumed) => resumed,
        };
        if let Some(cursor) = resumed {
            return Ok(cursor);
        }
        self.drop_install()?;
        let number = self.member.state + 1;
        let db = database::open(&state_dir(&self.dir, number))?;
        let record = manifest.encode_to_vec();
        db.put(INSTALL, framed(INSTALL, &record)).map_err(|e| damaged(db.path(), &e))?;
        self.install = Some(Install { manifest: manifest.clone(), db, number });
        Ok(None)
    }

    fn install_piece(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let db = &self.install.as_ref().expect("begin_install came first").db;
        let mut batch = WriteBatch::default();
        let state = family(db, STATE);
        records.iter().for_each(|r| batch.put_cf(state, &r.key, sealed(&r.key, &r.value)));
        db.write(batch).map_err(|e| damaged(db.path(), &e))
    }

    fn verify_install(&mut self) -> Result<bool, StoreError> {
        let Some(install) = &self.install else { return Ok(false) };
        let db = &install.db;
        let mut batch = WriteBatch::default();
        put_record(&mut batch, APPLIED, &encode_position(position_of(&install.manifest)));
        put_record(&mut batch, CONF, &install.manifest.conf_state);
        db.write(batch).map_err(|e| damaged(db.path(), &e))?;
        db.flush_cf(family(db, STATE)).map_err(|e| damaged(db.path(), &e))?;
        let matches = match checkpoints::describe(db) {
            Err(damage @ StoreError::Corrupt { .. }) => {
                tracing::warn!("a received snapshot is damaged, and received anew: {damage}");
                false
            }
            described => described? == install.manifest,
        };
        if !matches {
            self.drop_install()?;
        }
        Ok(matches)
    }

    fn finish_install(&mut self, hard_state: &HardState, conf_state: &ConfState) -> Result<(), StoreError> {
        let Install { manifest, db, number } = self.install.take().expect("a snapshot was verified");
        let at = position_of(&manifest);
        let batch_number = self.batch + 1;
        let mut batch = WriteBatch::default();
        batch.delete(INSTALL);
        put_record(&mut batch, TRUNCATED, &encode_position(at));
        put_record(&mut batch, APPLIED, &encode_position(at));
        put_record(&mut batch, HARD, &hard_state.write_to_bytes().expect("it encodes"));
        put_record(&mut batch, CONF, &membership::encode(conf_state));
        put_record(&mut batch, BATCH, &batch_number.to_be_bytes());
        let mut options = WriteOptions::default();
        options.set_sync(true);
        db.write_opt(batch, &options).map_err(|e| damaged(db.path(), &e))?;
        sync_dir(&self.dir)?;
        self.checkpoints.cancel();
        self.checkpoints.make_now(&db)?;
        // The switch: before it the old state counts with its log, after it the new one.
        self.update_member(|member| member.state = number)?;
        let old_path = self.db.path().to_owned();
        let old = std::mem::replace(&mut self.db, Arc::new(db));
        self.view = StateView::new(Arc::clone(&self.db));
        self.retired.push((old, old_path));
        self.batch = batch_number;
        self.terms = Terms::starting_after(at.index, at.term);
        (self.tail, self.tail_bytes) = (VecDeque::new(), 0);
        self.hard_state = hard_state.clone();
        self.conf_state = conf_state.clone();
        self.applied = at;
        self.witness.record(Testimony { batch: batch_number, last: at })?;
        self.tidy()
    }

    fn bytes(&self) -> u64 {
        let of = |family_name: &str, property: &str| {
            let value = self.db.property_int_value_cf(family(&self.db, family_name), property);
            value.ok().flatten().unwrap_or_default()
        };
        let families = ["default", LOG, STATE];
        families.iter().map(|f| of(f, "rocksdb.total-sst-files-size") + of(f, "rocksdb.cur-size-all-mem-tables")).sum()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
