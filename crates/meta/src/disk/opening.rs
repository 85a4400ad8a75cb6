//! What a directory is made of when it is new, and what is read of it once when it is opened: every log entry, so that a
//! damaged or unknown one is refused before the member says a word.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use cairn_meta_raft::{Position, StoreError, Terms, membership};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry};
use rocksdb::{DB, IteratorMode, WriteBatch, WriteOptions};
use uuid::Uuid;

use super::database::{self, BATCH, CONF, LOG, corrupt_record, damaged, family, put_record, unframed};
use super::member::{MemberFile, forget_announced};
use super::store::TAIL_BYTES;
use super::witness::Witness;
use super::{io, sync_dir};

/// Why the directory cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The disk failed or lied.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is somebody else's.
    #[error(
        "{} is the directory of member {found}, and this is member {wanted}; give each member its own directory",
        dir.display()
    )]
    OtherMember {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asked.
        wanted: u64,
    },
    /// It is that of a member which was removed.
    #[error(
        "{} is the directory of member {member}, which was removed from its cluster and never comes back: delete it, \
         and start a new member with another directory and --join",
        dir.display()
    )]
    Removed {
        /// The directory.
        dir: PathBuf,
        /// Who it was.
        member: u64,
    },
    /// It was made after the member's own was lost.
    #[error(
        "{} is not the directory that the others know member {member} by: what that one promised is lost, and this one \
         never votes; delete it, and start a new member in its place, on an empty directory: --join MEMBERS --replace \
         {member}",
        dir.display()
    )]
    LostMemory {
        /// The directory.
        dir: PathBuf,
        /// Whom it claimed to be.
        member: u64,
    },
}

/// What a new directory begins with.
#[derive(Clone, Debug, Default)]
pub struct Beginning {
    /// Who voted when the log began.
    pub genesis: Vec<u64>,
    /// Where members are reached, as far as that is known.
    pub addresses: BTreeMap<u64, String>,
    /// Nil where the cluster is new.
    pub cluster: Uuid,
    /// The directory's name, if it was announced under one already.
    pub directory: Option<Uuid>,
}

impl Beginning {
    /// A new cluster of these members.
    #[must_use]
    pub fn of(voters: &[u64]) -> Self {
        Self { genesis: voters.to_vec(), ..Self::default() }
    }
}

pub(super) fn state_dir(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("state-{number}"))
}

pub(super) fn size_of(entry: &Entry) -> usize {
    entry.data.len() + entry.context.len() + 96
}

/// A new directory. The MEMBER file comes last: without it nothing before counts.
pub(super) fn create(dir: &Path, member: u64, beginning: &Beginning) -> Result<MemberFile, StoreError> {
    let file = lay_out(dir, member, beginning)?;
    file.save()?;
    forget_announced(dir)?;
    Ok(file)
}

/// Only what a creation left that did not come to its end may be cleared: then no log was synced, and the first database
/// is the only one. Anything else is a member whose MEMBER file is lost, and with it the word of what it promised.
fn refuse_lost_member_file(dir: &Path) -> Result<(), StoreError> {
    let mut databases = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io("cannot list the directory"))? {
        let path = entry.map_err(io("cannot list the directory"))?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_prefix("state-")?.parse::<u64>().ok());
        databases.extend(number.filter(|_| path.join("CURRENT").exists()));
    }
    let lost = |found: String| Err(corrupt_record(&dir.join("MEMBER").display().to_string(), "the member file", found));
    if let Some(number) = databases.iter().find(|number| **number > 1) {
        return lost(format!("none, beside state-{number}, which a member has used"));
    }
    match Witness::open(dir) {
        Ok((_, testimony)) if testimony.batch > 0 => {
            lost(format!("none, beside a log that was synced {} times", testimony.batch))
        }
        Ok(_) => Ok(()),
        Err(newer @ StoreError::NewerFormat { .. }) => Err(newer),
        Err(_) if databases.is_empty() => Ok(()),
        Err(damaged) => lost(format!("none, beside state-1 ({damaged})")),
    }
}

/// Everything but the MEMBER file, which is returned.
pub(super) fn lay_out(dir: &Path, member: u64, beginning: &Beginning) -> Result<MemberFile, StoreError> {
    refuse_lost_member_file(dir)?;
    let path = state_dir(dir, 1);
    for leftover in [&path, &dir.join("WITNESS")] {
        match leftover.symlink_metadata() {
            Ok(m) if m.is_dir() => std::fs::remove_dir_all(leftover).map_err(io("cannot clear a new directory"))?,
            Ok(_) => std::fs::remove_file(leftover).map_err(io("cannot clear a new directory"))?,
            Err(_) => {}
        }
    }
    Witness::create(dir)?;
    let db = database::open(&path)?;
    let conf_state = ConfState { voters: beginning.genesis.clone(), ..ConfState::default() };
    let mut batch = WriteBatch::default();
    put_record(&mut batch, CONF, &membership::encode(&conf_state));
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(|e| damaged(&path, &e))?;
    drop(db);
    sync_dir(dir)?;
    let mut file = MemberFile::new(dir, member);
    file.genesis = beginning.genesis.clone();
    file.genesis.sort_unstable();
    file.addresses = beginning.addresses.clone();
    file.cluster = beginning.cluster;
    file.directory = beginning.directory.unwrap_or(file.directory);
    Ok(file)
}

pub(super) fn batch_number(db: &DB) -> Result<u64, StoreError> {
    let Some(bytes) = database::record(db, BATCH)? else { return Ok(0) };
    let place = format!("`batch` in {}", db.path().display());
    let bytes: [u8; 8] = bytes.as_slice().try_into().map_err(|_| corrupt_record(&place, "8 bytes", bytes.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// Every entry that is kept, read once at the start: without gaps, terms never falling.
pub(super) fn read_log(db: &DB, truncated: Position) -> Result<(Terms, VecDeque<Entry>), StoreError> {
    let mut terms = Terms::starting_after(truncated.index, truncated.term);
    let (mut tail, mut bytes) = (VecDeque::new(), 0);
    for item in db.iterator_cf(family(db, LOG), IteratorMode::Start) {
        let (key, value) = item.map_err(|e| damaged(db.path(), &e))?;
        let (last, term) = terms.last();
        let entry = parse_entry(db, &key, &value)?;
        if entry.index != last + 1 || entry.term < term {
            let place = format!("the log in {}", db.path().display());
            let expected = format!("entry {} of term {term} or later", last + 1);
            return Err(corrupt_record(&place, expected, format!("entry {} of term {}", entry.index, entry.term)));
        }
        terms.put(entry.index, entry.term);
        bytes += size_of(&entry);
        tail.push_back(entry);
        while bytes > TAIL_BYTES && tail.len() > 1 {
            bytes -= tail.pop_front().as_ref().map_or(0, size_of);
        }
    }
    Ok((terms, tail))
}

pub(super) fn parse_entry(db: &DB, key: &[u8], value: &[u8]) -> Result<Entry, StoreError> {
    let index = key.try_into().map(u64::from_be_bytes).unwrap_or_default();
    let name = format!("log entry {index}");
    let bytes = unframed(db.path(), &name, key, value)?;
    let place = format!("{name} in {}", db.path().display());
    let entry = Entry::parse_from_bytes(bytes).map_err(|e| corrupt_record(&place, "a readable entry", e))?;
    if entry.index != index || index == 0 {
        return Err(corrupt_record(&place, format!("index {index}"), format!("index {}", entry.index)));
    }
    Ok(entry)
}
