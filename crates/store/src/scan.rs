//! Reading the log: the chain of valid records from the checkpoint on, and whether what ends it is a torn tail or
//! rot. Replay and the offline check both start here.

use cairn_disk::Disk;

use crate::codec::Reader;
use crate::error::Error;
use crate::planted::{Bug, planted};
use crate::record::{HEADER, Header, TxnImage, checksum};
use crate::superblock::Superblock;

/// One valid record.
#[derive(Debug)]
pub(crate) struct Scanned {
    pub(crate) header: Header,
    /// Bytes from the ring's start.
    pub(crate) pos: u64,
    pub(crate) transactions: Vec<TxnImage>,
}

/// The log as it was found.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) records: Vec<Scanned>,
    /// Where the next record goes.
    pub(crate) head: u64,
    pub(crate) next_lsn: u64,
    pub(crate) prev_crc: u32,
    /// The highest lsn that any record, or the superblock, says was durable.
    pub(crate) durable_lsn: u64,
}

/// Reads the chain.
///
/// # Errors
/// When the disk fails, a record is of an unknown version, or the chain ends in front of a record that says that
/// what is missing was durable.
pub(crate) fn scan(disk: &dyn Disk, superblock: &Superblock) -> Result<Log, Error> {
    let start = superblock.checkpoint;
    let ring_len = superblock.shard().ring_len;
    let mut log = Log {
        records: Vec::new(),
        head: start.ring_pos,
        next_lsn: start.next_lsn,
        prev_crc: start.prev_crc,
        durable_lsn: start.durable_lsn,
    };
    let mut mount = 0;
    let mut scanned = 0;
    while scanned < ring_len {
        let Some((header, crc, meta)) = read_record(disk, superblock, log.head)? else { break };
        let follows = header.lsn == log.next_lsn && header.prev_crc == log.prev_crc && header.mount >= mount;
        let bytes = u64::from(header.blocks) * 4096;
        if !follows || scanned + bytes > ring_len {
            break;
        }
        let transactions = decode_transactions(&header, &meta)?;
        (mount, log.prev_crc, log.next_lsn) = (header.mount, crc, header.lsn + 1);
        log.durable_lsn = log.durable_lsn.max(header.durable_lsn);
        log.records.push(Scanned { header, pos: log.head, transactions });
        log.head = (log.head + bytes) % ring_len;
        scanned += bytes;
    }
    if !planted(Bug::CutAtRot) {
        check_end(disk, superblock, &mut log, ring_len - scanned)?;
    }
    Ok(log)
}

/// The record at a place, if its header and transactions are whole.
fn read_record(disk: &dyn Disk, superblock: &Superblock, pos: u64) -> Result<Option<(Header, u32, Vec<u8>)>, Error> {
    let shard = superblock.shard();
    let mut block = vec![0; 4096];
    if let Err(error) = disk.read_at(shard.ring_start + pos, &mut block) {
        return unreadable(error);
    }
    let uuid = superblock.identity.osd_uuid.as_u128();
    let decoded = Header::decode(&block, uuid);
    let header = match decoded {
        Ok(Some((header, crc))) => (header, crc),
        Ok(None) => return Ok(None),
        Err(malformed) => return unknown_version(&block, pos, malformed),
    };
    let (header, crc) = header;
    let len = header.meta_blocks() * 4096;
    if u64::from(header.blocks) * 4096 > shard.ring_len - pos {
        return Ok(None);
    }
    block.resize(len as usize, 0);
    if let Err(error) = disk.read_at(shard.ring_start + pos, &mut block) {
        return unreadable(error);
    }
    block.truncate(header.meta_len as usize);
    Ok((checksum(&block) == crc).then_some((header, crc, block)))
}

/// A block of the log that the medium cannot read is a bad block; a disk without power is no disk.
fn unreadable<T>(error: cairn_disk::Error) -> Result<Option<T>, Error> {
    match error {
        cairn_disk::Error::Io { .. } => Ok(None),
        error => Err(Error::Disk(error)),
    }
}

/// A record of another version is refused only if it is whole; otherwise its version is noise.
fn unknown_version<T>(block: &[u8], pos: u64, malformed: crate::Malformed) -> Result<Option<T>, Error> {
    let mut r = Reader::new(&block[8..12]);
    let crc = r.u32("checksum").unwrap_or(0);
    let len = u32::from_le_bytes(block[44..48].try_into().unwrap_or_default()) as usize;
    if (HEADER..=block.len()).contains(&len) && checksum(&block[..len]) == crc {
        return Err(Error::Malformed { place: format!("the record at ring offset {pos}"), malformed });
    }
    Ok(None)
}

fn decode_transactions(header: &Header, meta: &[u8]) -> Result<Vec<TxnImage>, Error> {
    let mut r = Reader::new(&meta[HEADER..]);
    let decode = |r: &mut Reader<'_>| -> Result<Vec<TxnImage>, crate::Malformed> {
        (0..header.transactions).map(|_| TxnImage::decode(r)).collect()
    };
    let transactions = decode(&mut r).and_then(|transactions| r.finish().map(|()| transactions));
    transactions.map_err(|malformed| Error::Malformed { place: format!("record {}", header.lsn), malformed })
}

/// Decides whether the chain ended at a torn tail. A record anywhere ahead that belongs to a later position and says
/// that the position where the chain broke was durable proves rot; older laps and dropped tails never say so.
fn check_end(disk: &dyn Disk, superblock: &Superblock, log: &mut Log, rest: u64) -> Result<(), Error> {
    let corrupt = |log: &Log, witness| Error::CorruptLog { lsn: log.next_lsn, ring_pos: log.head, witness };
    if log.durable_lsn >= log.next_lsn {
        return Err(corrupt(log, log.durable_lsn));
    }
    let shard = superblock.shard();
    let uuid = superblock.identity.osd_uuid.as_u128();
    let mut chunk = vec![0; 1 << 20];
    let mut done = 0;
    while done < rest {
        let pos = (log.head + done) % shard.ring_len;
        let len = (rest - done).min(shard.ring_len - pos).min(chunk.len() as u64);
        let bytes = &mut chunk[..len as usize];
        done += len;
        if disk.read_at(shard.ring_start + pos, bytes).is_err() {
            continue;
        }
        for (i, block) in bytes.chunks(4096).enumerate() {
            let Ok(Some((header, _))) = Header::decode(block, uuid) else { continue };
            if header.lsn <= log.next_lsn || header.durable_lsn < log.next_lsn {
                continue;
            }
            if read_record(disk, superblock, pos + i as u64 * 4096)?.is_some() {
                return Err(corrupt(log, header.lsn));
            }
        }
    }
    Ok(())
}
