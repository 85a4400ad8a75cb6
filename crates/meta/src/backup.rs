//! Backups of the metadata: the whole state as of one moment in a file, and a new cluster from such a file.
//!
//! ```text
//! "CAIRNMB1"                 magic and version
//! frames                     length u32, crc32c u32 (of kind and body), kind u8, body; little endian
//!   H  BackupHead            once, first: what it is a backup of
//!   P  BackupPiece           records in key order, about 256 KiB each
//!   T  BackupTail            once, last: how many records and bytes, and a digest of them all
//! ```
//! A file that ends early, has a wrong checksum or anything after its tail is refused, so that nobody trusts half of one.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cairn_meta_core::{Machine, STATE_FORMAT, StateRead, members};
use cairn_meta_raft::{Position, StoreError, digest_records, piece_of};
use cairn_proto::meta::{BackupHead, BackupPiece, BackupRecord, BackupTail};
use prost::Message;

use crate::disk::sync_dir;

const MAGIC: &[u8; 8] = b"CAIRNMB1";
const PIECE_BYTES: usize = 256 << 10;
/// A frame holds one record at least, and a record is never larger than a command.
const LARGEST_FRAME: u32 = 64 << 20;
const HEAD: u8 = b'H';
const PIECE: u8 = b'P';
const TAIL: u8 = b'T';

/// Why a backup cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file system failed.
    #[error("{}: {cause}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It is no whole backup.
    #[error("{} is not a whole backup: {what}; use another one", file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Written by another version.
    #[error("{} was written by another version of Cairn ({what}); use that version", file.display())]
    OtherVersion {
        /// Which file.
        file: PathBuf,
        /// Which.
        what: String,
    },
}

/// Sends the pieces of a backup.
pub(crate) fn pieces<E: From<StoreError>>(
    state: &dyn StateRead,
    at: Position,
    mut send: impl FnMut(BackupPiece) -> Result<(), E>,
) -> Result<(), E> {
    let machine = Machine::open(state).map_err(|corrupt| StoreError::Corrupt {
        place: corrupt.at,
        expected: corrupt.expected,
        found: corrupt.found,
    })?;
    let mut head = Some(BackupHead {
        index: at.index,
        term: at.term,
        cluster: machine.cluster().map(|c| Bytes::copy_from_slice(c.as_bytes())).unwrap_or_default(),
        state_format: STATE_FORMAT,
        cluster_version: machine.cluster_version(),
        epoch: machine.map().epoch.0,
        revision: machine.kv_revision(),
        made_at_s: crate::clock::now_s(),
        members: machine.members().members.iter().map(members::shown).collect(),
        lineage: machine.members().lineage.clone(),
    });
    let mut after: Option<Vec<u8>> = None;
    loop {
        let piece = piece_of(state, after.as_deref(), PIECE_BYTES);
        after = piece.records.last().map(|r| r.key.to_vec()).or(after);
        let records = piece.records.into_iter().map(|r| BackupRecord { key: r.key, value: r.value }).collect();
        send(BackupPiece { head: head.take(), records, last: piece.last })?;
        if piece.last {
            return Ok(());
        }
    }
}

/// A backup that is being written, beside its file until it is whole.
pub struct Writer {
    file: PathBuf,
    beside: PathBuf,
    out: BufWriter<File>,
    tail: BackupTail,
    last_key: Option<Bytes>,
    begun: bool,
}

impl Writer {
    /// Begins beside `file`, which must not be there.
    ///
    /// # Errors
    /// When it is there, or cannot be written.
    pub fn create(file: &Path) -> Result<Self, BackupError> {
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(".unfinished");
        let beside = file.with_file_name(name);
        let failed = |cause| BackupError::Io { file: file.to_owned(), cause };
        if file.exists() {
            return Err(failed(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "it exists; choose another name",
            )));
        }
        // Another backup may be on its way to the same name, or one was killed on it.
        let unfinished = |cause| BackupError::Io { file: beside.clone(), cause };
        let out = File::options().write(true).create_new(true).open(&beside).map_err(unfinished)?;
        let (file, tail) = (file.to_owned(), BackupTail::default());
        let mut writer = Self { file, beside, out: BufWriter::new(out), tail, last_key: None, begun: false };
        writer.out.write_all(MAGIC).map_err(failed)?;
        Ok(writer)
    }

    /// Takes a piece as it comes; whether it was the last.
    ///
    /// # Errors
    /// When it cannot be written, or does not follow the one before.
    pub fn take(&mut self, piece: BackupPiece) -> Result<bool, BackupError> {
        let wrong = |what: &str| BackupError::Damaged { file: self.file.clone(), what: what.to_owned() };
        if piece.head.is_some() == self.begun {
            return Err(wrong("the pieces do not come in their order"));
        }
        for record in &piece.records {
            if self.last_key.as_ref().is_some_and(|last| *last >= record.key) {
                return Err(wrong("the records do not come in their order"));
            }
            self.last_key = Some(record.key.clone());
            self.tail.count(record);
        }
        self.begun = true;
        if let Some(head) = &piece.head {
            self.frame(HEAD, &head.encode_to_vec())?;
        }
        let last = piece.last;
        self.frame(PIECE, &BackupPiece { head: None, ..piece }.encode_to_vec())?;
        Ok(last)
    }

    /// Ends it, durably; its size in bytes and how many records it has. It gets its name once it has been read again, as a
    /// restore would read it.
    ///
    /// # Errors
    /// When it cannot be written, or does not read back.
    pub fn finish(mut self) -> Result<(u64, u64), BackupError> {
        let tail = self.tail;
        self.frame(TAIL, &tail.encode_to_vec())?;
        let file = self.file.clone();
        let failed = |cause| BackupError::Io { file: file.clone(), cause };
        self.out.flush().map_err(failed)?;
        self.out.get_ref().sync_all().map_err(failed)?;
        let bytes = self.out.get_ref().metadata().map_err(failed)?.len();
        read(&self.beside, &mut |_| {})?;
        std::fs::rename(&self.beside, &self.file).map_err(failed)?;
        let dir = self.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sync_dir(dir).map_err(|error| failed(std::io::Error::other(error.to_string())))?;
        Ok((bytes, tail.records))
    }

    fn frame(&mut self, kind: u8, body: &[u8]) -> Result<(), BackupError> {
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), body);
        let mut write = || {
            self.out.write_all(&(body.len() as u32).to_le_bytes())?;
            self.out.write_all(&crc.to_le_bytes())?;
            self.out.write_all(&[kind])?;
            self.out.write_all(body)
        };
        write().map_err(|cause| BackupError::Io { file: self.file.clone(), cause })
    }
}

/// What is left of a backup that was not finished goes away.
impl Drop for Writer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.beside);
    }
}

trait Count {
    fn count(&mut self, record: &BackupRecord);
}

impl Count for BackupTail {
    fn count(&mut self, record: &BackupRecord) {
        self.records += 1;
        self.bytes += (record.key.len() + record.value.len()) as u64;
        self.digest = digest_records(self.digest, [(record.key.as_ref(), record.value.as_ref())]);
    }
}

/// Reads a backup through, every checksum verified: what it is of, and each record to `visit`.
///
/// # Errors
/// When it is damaged, or cannot be read.
pub fn read(file: &Path, visit: &mut dyn FnMut(BackupRecord)) -> Result<(BackupHead, BackupTail), BackupError> {
    let failed = |cause| BackupError::Io { file: file.to_owned(), cause };
    let damaged = |what: &str| BackupError::Damaged { file: file.to_owned(), what: what.to_owned() };
    let mut input = BufReader::new(File::open(file).map_err(failed)?);
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(|_| damaged("it is too short"))?;
    if magic[..7] == MAGIC[..7] && magic != *MAGIC {
        let what = format!("format {}", char::from(magic[7]).escape_default());
        return Err(BackupError::OtherVersion { file: file.to_owned(), what });
    }
    if magic != *MAGIC {
        return Err(damaged("it does not begin as one"));
    }
    let (mut head, mut found) = (None, BackupTail::default());
    loop {
        let (kind, body) = next_frame(&mut input).map_err(|what| damaged(&what))?;
        let unreadable = |_| damaged("a frame cannot be read");
        match (kind, &head) {
            (HEAD, None) => {
                let decoded = BackupHead::decode(body.as_slice()).map_err(unreadable)?;
                if decoded.state_format != STATE_FORMAT {
                    let what = format!("state format {}", decoded.state_format);
                    return Err(BackupError::OtherVersion { file: file.to_owned(), what });
                }
                head = Some(decoded);
            }
            (PIECE, Some(_)) => {
                for record in BackupPiece::decode(body.as_slice()).map_err(unreadable)?.records {
                    found.count(&record);
                    visit(record);
                }
            }
            (TAIL, Some(_)) => {
                let tail = BackupTail::decode(body.as_slice()).map_err(unreadable)?;
                if tail != found {
                    return Err(damaged("it does not hold what its tail says"));
                }
                if input.read(&mut [0]).map_err(failed)? != 0 {
                    return Err(damaged("something follows its end"));
                }
                return Ok((head.take().expect("it was matched"), tail));
            }
            _ => return Err(damaged("its frames are not in their order")),
        }
    }
}

fn next_frame(input: &mut impl Read) -> Result<(u8, Vec<u8>), String> {
    let mut front = [0; 9];
    input.read_exact(&mut front).map_err(|_| "it ends early".to_owned())?;
    let word = |at: usize| u32::from_le_bytes(front[at..at + 4].try_into().expect("four bytes"));
    let (length, crc, kind) = (word(0), word(4), front[8]);
    if length > LARGEST_FRAME {
        return Err("a frame has an absurd length".to_owned());
    }
    let mut body = vec![0; length as usize];
    input.read_exact(&mut body).map_err(|_| "it ends early".to_owned())?;
    match crc32c::crc32c_append(crc32c::crc32c(&[kind]), &body) == crc {
        true => Ok((kind, body)),
        false => Err("a checksum is wrong".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use cairn_meta_core::MemoryState;

    use super::*;

    fn written(dir: &Path) -> PathBuf {
        let state: MemoryState = (0..50).map(|n| (Bytes::from(format!("~{n:02}")), Bytes::from(vec![n; 40]))).collect();
        let file = dir.join("backup");
        let mut writer = Writer::create(&file).unwrap();
        let mut last = false;
        pieces(&state, Position { term: 3, index: 70 }, |piece| {
            last = writer.take(piece).unwrap();
            Ok::<(), StoreError>(())
        })
        .unwrap();
        assert!(last);
        assert_eq!(writer.finish().unwrap().1, 50);
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = written(dir.path());
        let mut found = Vec::new();
        let (head, tail) = read(&file, &mut |record| found.push(record)).unwrap();
        assert_eq!((head.index, head.term, tail.records), (70, 3, 50));
        assert_eq!((found.len(), found[7].key.as_ref()), (50, &b"~07"[..]));
        assert!(Writer::create(&file).is_err(), "a backup is never overwritten");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing unfinished is left");
    }

    #[test]
    fn two_names_are_two_files_while_they_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let [monday, tuesday] = ["meta.mon", "meta.tue"].map(|name| dir.path().join(name));
        let (one, two) = (Writer::create(&monday).unwrap(), Writer::create(&tuesday).unwrap());
        assert!(Writer::create(&monday).is_err(), "and one name is made once at a time");
        drop((one, two));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "what was not finished goes away");
    }

    #[test]
    fn what_does_not_read_back_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup");
        let mut writer = Writer::create(&file).unwrap();
        // No head: no restore could use it.
        writer.begun = true;
        writer.take(BackupPiece { head: None, records: Vec::new(), last: true }).unwrap();
        assert!(matches!(writer.finish(), Err(BackupError::Damaged { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn reading_that_fails_is_never_the_end_of_a_backup() {
        let (state, mut sent) = (MemoryState::default(), 0);
        let told = pieces(&state, Position::default(), |_| {
            sent += 1;
            Err::<(), _>(StoreError::Io { what: "reading", cause: "gone".to_owned() })
        });
        assert!(told.is_err() && sent == 1);
    }

    #[test]
    fn any_damaged_byte_and_any_early_end_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = written(dir.path());
        let whole = std::fs::read(&file).unwrap();
        let spoilt = dir.path().join("spoilt");
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x20;
            std::fs::write(&spoilt, &bytes).unwrap();
            assert!(read(&spoilt, &mut |_| {}).is_err(), "byte {at}");
            std::fs::write(&spoilt, &whole[..at]).unwrap();
            assert!(read(&spoilt, &mut |_| {}).is_err(), "cut at {at}");
        }
        std::fs::write(&spoilt, [&whole[..], b"x"].concat()).unwrap();
        assert!(read(&spoilt, &mut |_| {}).unwrap_err().to_string().contains("follows its end"));
    }
}
