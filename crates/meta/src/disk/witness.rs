//! The witness of the log: the number of the last log batch that was synced, in a file beside the database.
//!
//! RocksDB tolerates an incomplete record at the end of its write-ahead log, as it must after a crash. So a synced
//! end that rots away looks the same as one that was never written, and a member that lost it would vote and
//! acknowledge against its word. The witness is written after each sync and not synced itself: it is never ahead of
//! the log, after a killed process it is exact, after a power failure at most a little behind.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use cairn_meta_raft::{Position, StoreError};

use super::{io, sync_dir};

const NAME: &str = "WITNESS";
const MAGIC: &[u8; 8] = b"cairnwit";
const FORMAT: u32 = 1;
/// Two slots, written in turn, each in a block of its own: one is whole whatever happens to the other.
const SLOT_BYTES: u64 = 4096;
const RECORD_BYTES: usize = 40;

/// What was synced last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Testimony {
    /// Log batches are numbered from 1, over the whole life of the directory.
    pub(crate) batch: u64,
    /// The end of the log with it.
    pub(crate) last: Position,
}

pub(crate) struct Witness {
    file: File,
}

impl Witness {
    pub(crate) fn create(dir: &Path) -> Result<Self, StoreError> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(dir.join(NAME));
        let witness = Self { file: file.map_err(io("cannot create the log's witness"))? };
        witness.file.set_len(2 * SLOT_BYTES).map_err(io("cannot create the log's witness"))?;
        witness.record(Testimony::default())?;
        witness.file.sync_all().map_err(io("cannot sync the log's witness"))?;
        sync_dir(dir)?;
        Ok(witness)
    }

    pub(crate) fn open(dir: &Path) -> Result<(Self, Testimony), StoreError> {
        let path = dir.join(NAME);
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let witness = Self { file: file.map_err(|e| corrupt(&path, "the log's witness", e))? };
        let slots = [witness.read(0), witness.read(1)];
        if let Some(found) = slots.iter().find_map(|s| s.as_ref().err()) {
            return Err(StoreError::NewerFormat { place: path.display().to_string(), found: *found, known: FORMAT });
        }
        let newest = slots.into_iter().filter_map(|s| s.ok().flatten()).max_by_key(|t| t.batch);
        newest.map(|t| (witness, t)).ok_or_else(|| corrupt(&path, "one whole slot", "none"))
    }

    pub(crate) fn record(&self, testimony: Testimony) -> Result<(), StoreError> {
        let mut record = [0u8; RECORD_BYTES];
        record[..8].copy_from_slice(MAGIC);
        record[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        record[12..20].copy_from_slice(&testimony.batch.to_le_bytes());
        record[20..28].copy_from_slice(&testimony.last.term.to_le_bytes());
        record[28..36].copy_from_slice(&testimony.last.index.to_le_bytes());
        let crc = crc32c::crc32c(&record[..36]);
        record[36..].copy_from_slice(&crc.to_le_bytes());
        let slot = testimony.batch % 2;
        self.file.write_all_at(&record, slot * SLOT_BYTES).map_err(io("cannot write the log's witness"))
    }

    /// `Ok(None)`: the slot is empty or torn. `Err`: it is whole, and of a newer format.
    fn read(&self, slot: u64) -> Result<Option<Testimony>, u32> {
        let mut record = [0u8; RECORD_BYTES];
        if self.file.read_exact_at(&mut record, slot * SLOT_BYTES).is_err() || &record[..8] != MAGIC {
            return Ok(None);
        }
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
        let word = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().expect("four bytes"));
        match word(8) {
            FORMAT if word(36) == crc32c::crc32c(&record[..36]) => {
                let last = Position { term: number(20), index: number(28) };
                Ok(Some(Testimony { batch: number(12), last }))
            }
            FORMAT => Ok(None),
            newer => Err(newer),
        }
    }
}

fn corrupt(path: &Path, expected: &str, found: impl ToString) -> StoreError {
    StoreError::Corrupt { place: path.display().to_string(), expected: expected.to_owned(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn testimony(batch: u64) -> Testimony {
        Testimony { batch, last: Position { term: 3, index: batch * 2 } }
    }

    #[test]
    fn the_newest_whole_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::create(dir.path()).unwrap();
        for batch in 1..=5 {
            witness.record(testimony(batch)).unwrap();
        }
        assert_eq!(Witness::open(dir.path()).unwrap().1, testimony(5));
        witness.file.write_all_at(b"torn", SLOT_BYTES + 20).unwrap();
        assert_eq!(Witness::open(dir.path()).unwrap().1, testimony(4), "batch 5 lay in the torn slot");
    }

    #[test]
    fn a_missing_witness_and_a_newer_one_are_told_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Witness::open(dir.path()).err().unwrap().to_string();
        assert!(missing.contains("WITNESS") && missing.contains("witness"), "{missing}");
        let witness = Witness::create(dir.path()).unwrap();
        witness.file.write_all_at(&9u32.to_le_bytes(), 8).unwrap();
        let newer = Witness::open(dir.path()).err().unwrap().to_string();
        assert!(newer.contains("format 9") && newer.contains("newer version"), "{newer}");
    }
}
