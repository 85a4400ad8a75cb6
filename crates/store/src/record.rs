//! One record of the WAL: the bytes of a header, of transactions, and of the data they carry.
//!
//! A record starts on a 4 KiB block: header and transactions, padded to whole blocks, then the data blocks. The
//! header's checksum covers header and transactions; each data block has the crc32c that its transaction names.
//! `docs/design/disk-format.md` has the offsets.

use std::sync::Arc;

use bytes::Bytes;
use cairn_types::peer::{EntryOp, LogEntry, LogPoint};
use cairn_types::{
    ConfVersion, Epoch, Generation, ObjectId, PgId, PoolId, RequestId, SessionId, SnapId, Version, VolumeId,
};

use crate::codec::{Malformed, Reader, Writer};
use crate::key::Scope;

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// "CWAL".
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"CWAL");
/// The record format.
pub(crate) const VERSION: u16 = 1;
/// Bytes of the header.
pub(crate) const HEADER: usize = 96;

/// The fields of a record's header that replay needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// A filler carries nothing: the ring's end was too near.
    pub(crate) filler: bool,
    /// The disk's own, so that a foreign record is no record.
    pub(crate) osd_uuid: u128,
    pub(crate) lsn: u64,
    /// The checksum of the record before it.
    pub(crate) prev_crc: u32,
    /// Bytes of header and transactions.
    pub(crate) meta_len: u32,
    /// Blocks of the whole record.
    pub(crate) blocks: u32,
    pub(crate) mount: u64,
    pub(crate) incarnation: u64,
    /// The highest lsn whose flush had completed when this record was built.
    pub(crate) durable_lsn: u64,
    pub(crate) transactions: u32,
}

impl Header {
    /// Blocks before the data.
    pub(crate) fn meta_blocks(&self) -> u64 {
        u64::from(self.meta_len).div_ceil(BLOCK as u64)
    }

    /// The first blocks of a record: header, transactions, padding; and the record's checksum.
    pub(crate) fn seal(&self, transactions: &[u8]) -> (Vec<u8>, u32) {
        let mut w = Writer::default();
        w.u32(MAGIC).u16(VERSION).u16(if self.filler { 2 } else { 1 });
        w.u32(0).u16(0).u16(0).raw(&self.osd_uuid.to_be_bytes()); // checksum at 8; shard, flags
        w.u64(self.lsn).u32(self.prev_crc).u32(self.meta_len).u32(self.blocks).u32(self.transactions);
        w.u64(self.mount).u64(self.incarnation).u64(self.durable_lsn).u64(0).u64(0);
        debug_assert_eq!(w.bytes.len(), HEADER);
        w.raw(transactions);
        debug_assert_eq!(w.bytes.len(), self.meta_len as usize);
        let crc = checksum(&w.bytes);
        w.bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        w.bytes.resize(w.bytes.len().next_multiple_of(BLOCK), 0);
        (w.bytes, crc)
    }

    /// Reads a header whose checksum is not checked yet; `None` where there is none that could be ours.
    pub(crate) fn decode(bytes: &[u8], osd_uuid: u128) -> Result<Option<(Self, u32)>, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u32("magic")? != MAGIC {
            return Ok(None);
        }
        let (version, kind, crc) = (r.u16("version")?, r.u16("kind")?, r.u32("checksum")?);
        r.u32("shard and flags")?;
        let uuid = r.u128("uuid")?.swap_bytes();
        let header = Self {
            filler: kind == 2,
            osd_uuid: uuid,
            lsn: r.u64("lsn")?,
            prev_crc: r.u32("previous checksum")?,
            meta_len: r.u32("meta length")?,
            blocks: r.u32("blocks")?,
            transactions: r.u32("transactions")?,
            mount: r.u64("mount")?,
            incarnation: r.u64("incarnation")?,
            durable_lsn: r.u64("durable lsn")?,
        };
        if version != VERSION {
            return Err(Malformed::Version { what: "WAL record", found: version.into(), known: VERSION.into() });
        }
        let sane = uuid == osd_uuid
            && (1..=2).contains(&kind)
            && header.meta_len as usize >= HEADER
            && u64::from(header.blocks) >= header.meta_blocks();
        Ok(sane.then_some((header, crc)))
    }
}

/// crc32c of header and transactions, with the checksum's own field as zero.
pub(crate) fn checksum(meta: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&meta[..8]);
    let crc = crc32c::crc32c_append(crc, &[0; 4]);
    crc32c::crc32c_append(crc, &meta[12..])
}

/// A place in the log that never changes: the record and the transaction within it where something was first
/// written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Origin {
    pub(crate) lsn: u64,
    pub(crate) index: u32,
}

/// Neighbouring blocks of an object that change alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Block within the object.
    pub(crate) block: u32,
    pub(crate) count: u32,
    pub(crate) to: PieceTo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PieceTo {
    Absent,
    Zero,
    /// The bytes rotted in an earlier record; the place stays theirs.
    Lost {
        at: u64,
    },
    /// The bytes are in the record, from this block of it on; they are to be copied to `at` later.
    Inline {
        at: u64,
        record_block: u32,
    },
    /// The bytes were written to `at` before the record's flush.
    Placed {
        at: u64,
    },
}

/// What one transaction does to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) object: ObjectId,
    /// The whole object goes.
    pub(crate) remove: bool,
    pub(crate) pieces: Vec<Piece>,
    /// One per block with bytes, in the order of the pieces. Empty in an appended entry, which has its own.
    pub(crate) crcs: Vec<u32>,
}

/// One transaction as the log has it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct TxnImage {
    pub(crate) scope: Scope,
    /// A copy of pending entries whose first record leaves the ring: nothing but `append` counts.
    pub(crate) relog: Option<Origin>,
    pub(crate) rewind: Option<u64>,
    pub(crate) commit: u64,
    pub(crate) restart: Option<LogPoint>,
    pub(crate) append: Vec<(Arc<LogEntry>, Image)>,
    pub(crate) direct: Vec<Image>,
    pub(crate) trim: Option<u64>,
    pub(crate) attributes: Vec<(Bytes, Option<Bytes>)>,
    /// Replay dropped the transactions of this PG from the first place on, through this lsn: they never count.
    pub(crate) dropped: Option<(Origin, u64)>,
}

mod flag {
    pub(super) const SCOPED: u16 = 1;
    pub(super) const RELOG: u16 = 2;
    pub(super) const REWIND: u16 = 4;
    pub(super) const RESTART: u16 = 8;
    pub(super) const TRIM: u16 = 16;
    pub(super) const DROPPED: u16 = 32;
    pub(super) const KNOWN: u16 = 63;
}

impl TxnImage {
    pub(crate) fn encode(&self, w: &mut Writer) {
        let mut flags = 0;
        let mut set = |on: bool, bit: u16| flags |= if on { bit } else { 0 };
        set(self.scope.is_some(), flag::SCOPED);
        set(self.relog.is_some(), flag::RELOG);
        set(self.rewind.is_some(), flag::REWIND);
        set(self.restart.is_some(), flag::RESTART);
        set(self.trim.is_some(), flag::TRIM);
        set(self.dropped.is_some(), flag::DROPPED);
        w.u16(flags).u64(self.commit);
        if let Some(pg) = self.scope {
            w.u32(pg.pool.0).u32(pg.index);
        }
        if let Some(origin) = self.relog {
            w.u64(origin.lsn).u32(origin.index);
        }
        if let Some(to) = self.rewind {
            w.u64(to);
        }
        if let Some(point) = self.restart {
            encode_point(point, w);
        }
        if let Some(trim) = self.trim {
            w.u64(trim);
        }
        if let Some((from, through)) = self.dropped {
            w.u64(from.lsn).u32(from.index).u64(through);
        }
        w.u32(self.append.len() as u32);
        for (entry, image) in &self.append {
            encode_entry(entry, w);
            encode_pieces(&image.pieces, w);
        }
        w.u32(self.direct.len() as u32);
        for image in &self.direct {
            encode_object(image.object, w);
            w.u8(u8::from(image.remove));
            encode_pieces(&image.pieces, w);
            w.u32(image.crcs.len() as u32);
            image.crcs.iter().for_each(|crc| {
                w.u32(*crc);
            });
        }
        w.u32(self.attributes.len() as u32);
        for (name, value) in &self.attributes {
            w.blob(name).u8(u8::from(value.is_some()));
            if let Some(value) = value {
                w.blob(value);
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let flags = r.u16("flags")?;
        if flags & !flag::KNOWN != 0 {
            return Err(Malformed::Value { field: "transaction flags", value: flags.into() });
        }
        let has = |bit| flags & bit != 0;
        let mut txn = Self { commit: r.u64("commit")?, ..Self::default() };
        if has(flag::SCOPED) {
            txn.scope = Some(PgId { pool: PoolId(r.u32("pool")?), index: r.u32("pg")? });
        }
        if has(flag::RELOG) {
            txn.relog = Some(decode_origin(r)?);
        }
        if has(flag::REWIND) {
            txn.rewind = Some(r.u64("rewind")?);
        }
        if has(flag::RESTART) {
            txn.restart = Some(decode_point(r)?);
        }
        if has(flag::TRIM) {
            txn.trim = Some(r.u64("trim")?);
        }
        if has(flag::DROPPED) {
            txn.dropped = Some((decode_origin(r)?, r.u64("dropped through")?));
        }
        for _ in 0..r.count(90, "entries")? {
            let entry = decode_entry(r)?;
            let pieces = decode_pieces(r)?;
            let remove = matches!(entry.op, EntryOp::Remove { .. });
            let image = Image { object: entry.op.object(), remove, pieces, crcs: Vec::new() };
            txn.append.push((Arc::new(entry), image));
        }
        for _ in 0..r.count(37, "direct changes")? {
            let object = decode_object(r)?;
            let remove = r.u8("remove")? != 0;
            let pieces = decode_pieces(r)?;
            let crcs = (0..r.count(4, "checksums")?).map(|_| r.u32("checksum")).collect::<Result<_, _>>()?;
            txn.direct.push(Image { object, remove, pieces, crcs });
        }
        for _ in 0..r.count(5, "attributes")? {
            let name = r.blob_bytes("attribute name")?;
            let value = match r.u8("attribute present")? {
                0 => None,
                _ => Some(r.blob_bytes("attribute value")?),
            };
            txn.attributes.push((name, value));
        }
        Ok(txn)
    }
}

fn decode_origin(r: &mut Reader<'_>) -> Result<Origin, Malformed> {
    Ok(Origin { lsn: r.u64("origin lsn")?, index: r.u32("origin index")? })
}

pub(crate) fn encode_point(point: LogPoint, w: &mut Writer) {
    w.u64(point.version.c.0).u64(point.version.seq).u64(point.hash);
}

pub(crate) fn decode_point(r: &mut Reader<'_>) -> Result<LogPoint, Malformed> {
    let version = Version { c: ConfVersion(r.u64("c")?), seq: r.u64("seq")? };
    Ok(LogPoint { version, hash: r.u64("hash")? })
}

fn encode_object(object: ObjectId, w: &mut Writer) {
    w.u32(object.pool.0).u64(object.volume.0).u64(object.index).u64(object.snapshot.0);
}

fn decode_object(r: &mut Reader<'_>) -> Result<ObjectId, Malformed> {
    Ok(ObjectId {
        pool: PoolId(r.u32("pool")?),
        volume: VolumeId(r.u64("volume")?),
        index: r.u64("object index")?,
        snapshot: SnapId(r.u64("snapshot")?),
    })
}

/// A log entry, the same in records and in the index.
pub(crate) fn encode_entry(entry: &LogEntry, w: &mut Writer) {
    w.u64(entry.version.c.0).u64(entry.version.seq).u64(entry.prev).u64(entry.epoch.0);
    w.u128(entry.request.session.0).u64(entry.request.seq).u64(entry.acked_through);
    w.u64(entry.generation.0).u64(entry.snap_context.0);
    match &entry.op {
        EntryOp::Write { object, offset, crcs } => {
            w.u8(1);
            encode_object(*object, w);
            w.u32(*offset).u32(crcs.len() as u32);
            crcs.iter().for_each(|crc| {
                w.u32(*crc);
            });
        }
        EntryOp::Zero { object, offset, len, unmap } => {
            w.u8(if *unmap { 3 } else { 2 });
            encode_object(*object, w);
            w.u32(*offset).u32(*len);
        }
        EntryOp::Remove { object } => {
            w.u8(4);
            encode_object(*object, w);
        }
    }
}

pub(crate) fn decode_entry(r: &mut Reader<'_>) -> Result<LogEntry, Malformed> {
    let version = Version { c: ConfVersion(r.u64("c")?), seq: r.u64("seq")? };
    let (prev, epoch) = (r.u64("prev")?, Epoch(r.u64("epoch")?));
    let request = RequestId { session: SessionId(r.u128("session")?), seq: r.u64("request")? };
    let acked_through = r.u64("acked through")?;
    let (generation, snap_context) = (Generation(r.u64("generation")?), SnapId(r.u64("snapshot context")?));
    let kind = r.u8("operation")?;
    let object = decode_object(r)?;
    let op = match kind {
        1 => {
            let offset = r.u32("offset")?;
            let crcs = (0..r.count(4, "checksums")?).map(|_| r.u32("checksum")).collect::<Result<_, _>>()?;
            EntryOp::Write { object, offset, crcs }
        }
        2 | 3 => EntryOp::Zero { object, offset: r.u32("offset")?, len: r.u32("length")?, unmap: kind == 3 },
        4 => EntryOp::Remove { object },
        kind => return Err(Malformed::Value { field: "operation", value: kind.into() }),
    };
    Ok(LogEntry { version, prev, epoch, request, acked_through, generation, snap_context, op })
}

pub(crate) fn encode_pieces(pieces: &[Piece], w: &mut Writer) {
    w.u32(pieces.len() as u32);
    for piece in pieces {
        w.u32(piece.block).u32(piece.count);
        match piece.to {
            PieceTo::Absent => w.u8(0),
            PieceTo::Zero => w.u8(1),
            PieceTo::Lost { at } => w.u8(2).u64(at),
            PieceTo::Inline { at, record_block } => w.u8(3).u64(at).u32(record_block),
            PieceTo::Placed { at } => w.u8(4).u64(at),
        };
    }
}

fn decode_pieces(r: &mut Reader<'_>) -> Result<Vec<Piece>, Malformed> {
    let count = r.count(9, "pieces")?;
    let mut pieces = Vec::with_capacity(count);
    for _ in 0..count {
        let (block, count) = (r.u32("block")?, r.u32("block count")?);
        let to = match r.u8("piece kind")? {
            0 => PieceTo::Absent,
            1 => PieceTo::Zero,
            2 => PieceTo::Lost { at: r.u64("place")? },
            3 => PieceTo::Inline { at: r.u64("place")?, record_block: r.u32("record block")? },
            4 => PieceTo::Placed { at: r.u64("place")? },
            kind => return Err(Malformed::Value { field: "piece kind", value: kind.into() }),
        };
        pieces.push(Piece { block, count, to });
    }
    Ok(pieces)
}

#[cfg(test)]
pub(crate) fn example_header() -> Header {
    Header {
        filler: false,
        osd_uuid: 0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10,
        lsn: 42,
        prev_crc: 0xaabb_ccdd,
        meta_len: HEADER as u32 + 5,
        blocks: 3,
        mount: 6,
        incarnation: 7,
        durable_lsn: 41,
        transactions: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> ObjectId {
        ObjectId { pool: PoolId(1), volume: VolumeId(2), index: 3, snapshot: SnapId::HEAD }
    }

    #[test]
    fn headers_survive_the_trip_and_every_flip_is_noticed() {
        let header = example_header();
        let (bytes, crc) = header.seal(b"hello");
        assert_eq!(bytes.len(), BLOCK);
        let (read, read_crc) = Header::decode(&bytes, header.osd_uuid).unwrap().unwrap();
        assert_eq!((read, read_crc), (header.clone(), crc));
        for at in 0..header.meta_len as usize {
            let mut bad = bytes.clone();
            bad[at] ^= 4;
            let noticed = match Header::decode(&bad, header.osd_uuid) {
                Ok(Some((h, crc))) => h.meta_len != header.meta_len || checksum(&bad[..h.meta_len as usize]) != crc,
                _ => true,
            };
            assert!(noticed, "byte {at}");
        }
        assert_eq!(Header::decode(&bytes, 1).unwrap(), None, "a foreign record is no record");
    }

    #[test]
    fn transactions_survive_the_trip() {
        let entry = LogEntry {
            version: Version { c: ConfVersion(1), seq: 2 },
            prev: 3,
            epoch: Epoch(4),
            request: RequestId { session: SessionId(5), seq: 6 },
            acked_through: 5,
            generation: Generation(7),
            snap_context: SnapId(8),
            op: EntryOp::Write { object: object(), offset: 8192, crcs: vec![1, 2] },
        };
        let zero =
            LogEntry { op: EntryOp::Zero { object: object(), offset: 0, len: 4096, unmap: true }, ..entry.clone() };
        let image = |pieces: Vec<Piece>, remove| Image { object: object(), remove, pieces, crcs: Vec::new() };
        let inline = Piece { block: 2, count: 2, to: PieceTo::Inline { at: 900, record_block: 1 } };
        let placed = Piece { block: 4, count: 1, to: PieceTo::Placed { at: 905 } };
        let lost = Piece { block: 5, count: 2, to: PieceTo::Lost { at: 906 } };
        let txn = TxnImage {
            scope: Some(PgId { pool: PoolId(1), index: 9 }),
            relog: Some(Origin { lsn: 3, index: 1 }),
            rewind: Some(1),
            commit: 1,
            restart: Some(LogPoint { version: entry.version, hash: 9 }),
            append: vec![
                (Arc::new(entry), image(vec![inline], false)),
                (Arc::new(zero), image(vec![Piece { block: 0, count: 1, to: PieceTo::Absent }], false)),
            ],
            direct: vec![Image { crcs: vec![77], ..image(vec![placed, lost], false) }, image(Vec::new(), true)],
            trim: Some(0),
            attributes: vec![(Bytes::from_static(b"k"), None), (Bytes::from_static(b"l"), Some(Bytes::new()))],
            dropped: Some((Origin { lsn: 1, index: 0 }, 2)),
        };
        let mut w = Writer::default();
        txn.encode(&mut w);
        let mut r = Reader::new(&w.bytes);
        assert_eq!(TxnImage::decode(&mut r).unwrap(), txn);
        r.finish().unwrap();
        for cut in 0..w.bytes.len() {
            assert!(TxnImage::decode(&mut Reader::new(&w.bytes[..cut])).is_err(), "cut at {cut}");
        }
    }
}
