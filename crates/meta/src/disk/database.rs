//! One RocksDB directory: its column families, its tuning for small memory, and the records of its own.
//!
//! | family | key | value |
//! |---|---|---|
//! | `default` | `hard`, `conf`, `truncated`, `batch`, `applied`, `install` | format byte, checksum, record |
//! | `log` | index, 8 bytes big endian | format byte, checksum, raft entry |
//! | `state` | the state machine's | the state machine's, then a checksum |
//!
//! Every checksum is a crc32c, 4 bytes little endian, over key and record: RocksDB's own are per block and end where a
//! block is cached, compacted or copied. A member that finds one wrong stops: it must not act on what it cannot trust.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use cairn_meta_core::StateRead;
use cairn_meta_raft::{Position, StoreError};
use protobuf::Message;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode,
    LogLevel, Options, ReadOptions, WriteBatch,
};

pub(crate) const LOG: &str = "log";
pub(crate) const STATE: &str = "state";
pub(crate) const HARD: &[u8] = b"hard";
pub(crate) const CONF: &[u8] = b"conf";
pub(crate) const TRUNCATED: &[u8] = b"truncated";
pub(crate) const BATCH: &[u8] = b"batch";
pub(crate) const APPLIED: &[u8] = b"applied";
pub(crate) const INSTALL: &[u8] = b"install";

/// The version of every record of `default` and `log`.
const RECORD_FORMAT: u8 = 2;
const CRC_BYTES: usize = 4;
const BLOCK_CACHE_BYTES: usize = 4 << 20;
const WAL_BYTES: u64 = 32 << 20;

/// Opens a database, or makes an empty one.
pub(crate) fn open(dir: &Path) -> Result<DB, StoreError> {
    let mut options = options();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, dir, families()).map_err(|e| damaged(dir, &e))
}

/// Opens one that is only read.
pub(crate) fn open_read_only(dir: &Path) -> Result<DB, StoreError> {
    DB::open_cf_descriptors_read_only(&options(), dir, families(), false).map_err(|e| damaged(dir, &e))
}

pub(crate) fn family<'a>(db: &'a DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name).expect("every family is made when the database is opened")
}

fn options() -> Options {
    let mut options = Options::default();
    // An incomplete record at the end is a crash; anything else is rot, and the member must not start on it.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_paranoid_checks(true);
    options.set_max_background_jobs(2);
    options.set_max_open_files(64);
    options.set_table_cache_num_shard_bits(2);
    options.set_max_total_wal_size(WAL_BYTES);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_manifest_file_size(4 << 20);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    let of = |name: &str, memtable_bytes: usize| {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        blocks.set_bloom_filter(10.0, false);
        blocks.set_block_size(8 << 10);
        let mut options = Options::default();
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(memtable_bytes);
        options.set_max_write_buffer_number(2);
        ColumnFamilyDescriptor::new(name, options)
    };
    vec![of("default", 1 << 20), of(LOG, 4 << 20), of(STATE, 8 << 20)]
}

/// What a database that does not open, or cannot be read, means to the admin.
pub(crate) fn damaged(dir: &Path, error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => StoreError::Corrupt {
            place: dir.display().to_string(),
            expected: "a database that reads back as it was written".to_owned(),
            found: error.to_string(),
        },
        // RocksDB has no code of its own for this.
        _ if error.as_ref().contains("/LOCK") => {
            StoreError::Io { what: "another process has this directory; stop it first", cause: error.to_string() }
        }
        _ => StoreError::Io { what: "the database failed", cause: error.to_string() },
    }
}

// ---- records

pub(crate) fn put_record(batch: &mut WriteBatch, key: &[u8], record: &[u8]) {
    batch.put(key, framed(key, record));
}

fn crc_of(key: &[u8], record: &[u8]) -> [u8; CRC_BYTES] {
    crc32c::crc32c_append(crc32c::crc32c(key), record).to_le_bytes()
}

pub(crate) fn framed(key: &[u8], record: &[u8]) -> Vec<u8> {
    [&[RECORD_FORMAT], &crc_of(key, record)[..], record].concat()
}

/// Takes format byte and checksum off.
pub(crate) fn unframed<'a>(
    dir: &Path,
    name: &dyn std::fmt::Display,
    key: &[u8],
    value: &'a [u8],
) -> Result<&'a [u8], StoreError> {
    let place = || format!("{name} in {}", dir.display());
    match value.split_first() {
        Some((&RECORD_FORMAT, sealed)) => match sealed.split_first_chunk::<CRC_BYTES>() {
            Some((crc, record)) if *crc == crc_of(key, record) => Ok(record),
            Some(_) => Err(corrupt_record(&place(), "a record with its checksum", "another checksum")),
            None => Err(corrupt_record(&place(), "a record with its checksum", "too few bytes")),
        },
        Some((&found, _)) if found > RECORD_FORMAT => {
            Err(StoreError::NewerFormat { place: place(), found: found.into(), known: RECORD_FORMAT.into() })
        }
        Some((found, _)) => Err(corrupt_record(&place(), format!("format {RECORD_FORMAT}"), format!("format {found}"))),
        None => Err(corrupt_record(&place(), "a record", "nothing")),
    }
}

/// A value of the state with its checksum behind it.
pub(crate) fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    [value, &crc_of(key, value)].concat()
}

/// The value of a sealed one; `None`: it is not what was written.
pub(crate) fn unsealed<'a>(key: &[u8], stored: &'a [u8]) -> Option<&'a [u8]> {
    stored.split_last_chunk::<CRC_BYTES>().filter(|(value, crc)| **crc == crc_of(key, value)).map(|(value, _)| value)
}

pub(crate) fn corrupt_record(place: &str, expected: impl ToString, found: impl ToString) -> StoreError {
    StoreError::Corrupt { place: place.to_owned(), expected: expected.to_string(), found: found.to_string() }
}

/// A record of `default`, if it is there.
pub(crate) fn record(db: &DB, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let value = db.get(key).map_err(|e| damaged(db.path(), &e))?;
    let name = String::from_utf8_lossy(key);
    value.map(|v| unframed(db.path(), &name, key, &v).map(<[u8]>::to_vec)).transpose()
}

pub(crate) fn message<M: Message>(db: &DB, key: &[u8]) -> Result<Option<M>, StoreError> {
    let parse = |bytes: Vec<u8>| {
        let place = format!("`{}` in {}", String::from_utf8_lossy(key), db.path().display());
        M::parse_from_bytes(&bytes).map_err(|e| corrupt_record(&place, "a readable record", e))
    };
    record(db, key)?.map(parse).transpose()
}

pub(crate) fn encode_position(at: Position) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&at.index.to_be_bytes());
    bytes[8..].copy_from_slice(&at.term.to_be_bytes());
    bytes
}

pub(crate) fn position(db: &DB, key: &[u8]) -> Result<Option<Position>, StoreError> {
    let stored = db.get(key).map_err(|e| damaged(db.path(), &e))?;
    stored.map(|stored| parse_position(db.path(), key, &stored)).transpose()
}

fn parse_position(dir: &Path, key: &[u8], stored: &[u8]) -> Result<Position, StoreError> {
    let name = format!("`{}`", String::from_utf8_lossy(key));
    let bytes = unframed(dir, &name, key, stored)?;
    let place = format!("{name} in {}", dir.display());
    let bytes: [u8; 16] = bytes.try_into().map_err(|_| corrupt_record(&place, "16 bytes", bytes.len()))?;
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Ok(Position { index: number(0), term: number(8) })
}

// ---- the state, for reading

/// The applied state, readable from any thread. It sees each write whole and at once; who needs several reads of one
/// moment takes [`StateView::frozen`].
#[derive(Clone)]
pub struct StateView {
    db: Arc<DB>,
    failure: Arc<OnceLock<String>>,
}

impl StateView {
    pub(crate) fn new(db: Arc<DB>) -> Self {
        Self { db, failure: Arc::default() }
    }

    /// What the disk said when a read failed. An answer made from reads is worth nothing then, and the member stops.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.failure.get().map(|found| {
            corrupt_record(&self.db.path().display().to_string(), "a state that reads back as it was written", found)
        })
    }

    /// Runs reads on the state of one moment.
    ///
    /// # Errors
    /// When a read failed.
    pub fn frozen<T>(&self, read: impl FnOnce(&dyn StateRead) -> T) -> Result<T, StoreError> {
        let snapshot = self.db.snapshot();
        let result = read(&Frozen { view: self, snapshot: &snapshot });
        self.failure().map_or(Ok(result), Err)
    }

    /// The same, with the position that the state of that moment stands at.
    ///
    /// # Errors
    /// When a read failed.
    pub fn frozen_at<T>(&self, read: impl FnOnce(&dyn StateRead, Position) -> T) -> Result<T, StoreError> {
        let snapshot = self.db.snapshot();
        let frozen = Frozen { view: self, snapshot: &snapshot };
        let stored = self.db.get_opt(APPLIED, &frozen.options()).map_err(|e| damaged(self.db.path(), &e))?;
        let at = stored.map(|stored| parse_position(self.db.path(), APPLIED, &stored)).transpose()?;
        let result = read(&frozen, at.unwrap_or_default());
        self.failure().map_or(Ok(result), Err)
    }

    /// Says that the state makes no sense to its reader: the member stops, as after a failed read.
    pub fn condemn(&self, found: &str) {
        let _ = self.failure.set(found.to_owned());
    }

    fn note(&self, error: &rocksdb::Error) {
        let _ = self.failure.set(error.to_string());
    }

    fn get_with(&self, key: &[u8], options: &ReadOptions) -> Option<Bytes> {
        match self.db.get_cf_opt(family(&self.db, STATE), key, options) {
            Ok(None) => None,
            Ok(Some(mut stored)) => match unsealed(key, &stored).map(<[u8]>::len) {
                Some(length) => {
                    stored.truncate(length);
                    Some(Bytes::from(stored))
                }
                None => {
                    self.condemn(&not_as_written(key));
                    None
                }
            },
            Err(error) => {
                self.note(&error);
                None
            }
        }
    }

    fn scan_with(&self, options: ReadOptions, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        let mut cursor = self.db.raw_iterator_cf_opt(family(&self.db, STATE), options);
        if reverse {
            cursor.seek_for_prev(from)
        } else {
            cursor.seek(from)
        }
        while let Some((key, value)) = cursor.item() {
            // Going down starts strictly below `from`.
            let passed_over = reverse && key == from;
            let Some(value) = unsealed(key, value) else {
                self.condemn(&not_as_written(key));
                break;
            };
            if !passed_over && !visit(key, value) {
                break;
            }
            if reverse { cursor.prev() } else { cursor.next() }
        }
        if let Err(error) = cursor.status() {
            self.note(&error);
        }
    }
}

impl StateRead for StateView {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.get_with(key, &ReadOptions::default())
    }

    fn scan(&self, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.scan_with(ReadOptions::default(), from, reverse, visit);
    }
}

struct Frozen<'a> {
    view: &'a StateView,
    snapshot: &'a rocksdb::Snapshot<'a>,
}

impl Frozen<'_> {
    fn options(&self) -> ReadOptions {
        let mut options = ReadOptions::default();
        options.set_snapshot(self.snapshot);
        options
    }
}

impl StateRead for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.view.get_with(key, &self.options())
    }

    fn scan(&self, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        self.view.scan_with(self.options(), from, reverse, visit);
    }
}

fn not_as_written(key: &[u8]) -> String {
    format!("a wrong checksum of the value under `{}`", key.escape_ascii())
}

/// All records of the `state` family in key order, checksums verified.
pub(crate) fn each_state_record(db: &DB, visit: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_verify_checksums(true);
    let start = IteratorMode::From(b"", Direction::Forward);
    for item in db.iterator_cf_opt(family(db, STATE), options, start) {
        let (key, value) = item.map_err(|e| damaged(db.path(), &e))?;
        let corrupt = || corrupt_record(&db.path().display().to_string(), "values as written", not_as_written(&key));
        visit(&key, unsealed(&key, &value).ok_or_else(corrupt)?);
    }
    Ok(())
}
