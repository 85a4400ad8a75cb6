//! The PG's own state as the store keeps it: small keyed values that mean nothing to the store. This file is the
//! only one that knows their bytes. Each value begins with a format version; an unknown one is refused in words.
//!
//! Keys: `c` membership, `l` the point before the first kept log entry, `s`+session one row of the dup table,
//! `a`+osd the anchor of an absent member, `d`+osd+object one row of its dirty map, `m`+object blocks missing
//! here, `b` a fill from nothing, `f`+object blocks written ahead of that fill, `h` which PG this one was split off.

use bytes::Bytes;
use cairn_types::map::Born;
use cairn_types::peer::{BlockSet, LogPoint, ObjectKey, SessionDups};
use cairn_types::{ConfVersion, Epoch, Generation, ObjectId, OsdId, PoolId, SessionId, SnapId, Version, VolumeId};

const VERSION: u8 = 1;

/// One attribute: a key, and its value or its end.
pub(crate) type Attribute = (Vec<u8>, Option<Bytes>);

/// One attribute that was read back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Member(Membership),
    Base(LogPoint),
    Session(SessionDups),
    Anchor(OsdId, Vec<LogPoint>),
    Dirty(OsdId, ObjectId, BlockSet),
    Missing(ObjectId, BlockSet),
    Fill(Fill),
    Fresh(ObjectId, BlockSet),
    Born(Born),
}

/// What this member is in the PG.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership {
    /// The configuration it took part in last (I1).
    pub(crate) c: ConfVersion,
    /// The epoch that brought it.
    pub(crate) epoch: Epoch,
    /// The content is whole but for what is named as missing.
    pub(crate) usable: bool,
    /// The pool's object size.
    pub(crate) object_size: u32,
    /// The in-sync set of `c`: who leaves it while this OSD is away is noted when it comes back.
    pub(crate) isr: Vec<OsdId>,
}

/// How far a fill from nothing has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fill {
    /// Everything through this object is there.
    pub(crate) through: Option<ObjectKey>,
}

/// Why a stored value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Written by a later version of this program.
    #[error("a placement group record has format {found}, this program knows {VERSION}")]
    Version {
        /// The version byte.
        found: u8,
    },
    /// Not a record at all.
    #[error("a placement group record is damaged: key {key:02x?}")]
    Damaged {
        /// Its key.
        key: Vec<u8>,
    },
}

pub(crate) fn membership(record: &Membership) -> Attribute {
    let mut w = Writer::new();
    w.u64(record.c.0).u64(record.epoch.0).u8(u8::from(record.usable)).u32(record.object_size);
    w.u32(record.isr.len() as u32);
    for osd in &record.isr {
        w.u32(osd.0);
    }
    (b"c".to_vec(), Some(w.done()))
}

pub(crate) fn base(point: LogPoint) -> Attribute {
    let mut w = Writer::new();
    w.point(point);
    (b"l".to_vec(), Some(w.done()))
}

pub(crate) fn session(id: SessionId, row: Option<&SessionDups>) -> Attribute {
    let mut key = b"s".to_vec();
    key.extend_from_slice(&id.0.to_be_bytes());
    let value = row.map(|row| {
        let mut w = Writer::new();
        w.u64(row.volume.0).u64(row.generation.0).u64(row.acked_through).u32(row.executed.len() as u32);
        for (seq, at) in &row.executed {
            w.u64(*seq).u64(*at);
        }
        w.done()
    });
    (key, value)
}

pub(crate) fn anchor(osd: OsdId, points: Option<&[LogPoint]>) -> Attribute {
    let mut key = b"a".to_vec();
    key.extend_from_slice(&osd.0.to_be_bytes());
    let value = points.map(|points| {
        let mut w = Writer::new();
        w.u32(points.len() as u32);
        for point in points {
            w.point(*point);
        }
        w.done()
    });
    (key, value)
}

pub(crate) fn dirty(osd: OsdId, object: ObjectId, blocks: Option<&BlockSet>) -> Attribute {
    let mut key = b"d".to_vec();
    key.extend_from_slice(&osd.0.to_be_bytes());
    push_object(&mut key, object);
    (key, blocks.map(blocks_value))
}

pub(crate) fn missing(object: ObjectId, blocks: Option<&BlockSet>) -> Attribute {
    let mut key = b"m".to_vec();
    push_object(&mut key, object);
    (key, blocks.map(blocks_value))
}

pub(crate) fn fresh(object: ObjectId, blocks: Option<&BlockSet>) -> Attribute {
    let mut key = b"f".to_vec();
    push_object(&mut key, object);
    (key, blocks.map(blocks_value))
}

pub(crate) fn fill(record: Option<Fill>) -> Attribute {
    let value = record.map(|fill| {
        let mut w = Writer::new();
        match fill.through {
            Some(key) => w.u8(1).object(key.object()),
            None => w.u8(0),
        };
        w.done()
    });
    (b"b".to_vec(), value)
}

pub(crate) fn born(born: &Born) -> Attribute {
    let mut w = Writer::new();
    w.u32(born.from).u64(born.c.0).point(born.at);
    (b"h".to_vec(), Some(w.done()))
}

fn blocks_value(blocks: &BlockSet) -> Bytes {
    let mut w = Writer::new();
    w.u32(blocks.words().len() as u32);
    for word in blocks.words() {
        w.u64(*word);
    }
    w.done()
}

fn push_object(key: &mut Vec<u8>, object: ObjectId) {
    key.extend_from_slice(&object.pool.0.to_be_bytes());
    key.extend_from_slice(&object.volume.0.to_be_bytes());
    key.extend_from_slice(&object.index.to_be_bytes());
    key.extend_from_slice(&object.snapshot.0.to_be_bytes());
}

/// Reads one attribute back.
pub(crate) fn read(key: &[u8], value: &[u8]) -> Result<Record, BadRecord> {
    let damaged = || BadRecord::Damaged { key: key.to_vec() };
    let mut k = Reader(key);
    let mut v = Reader(value);
    let kind = k.u8().ok_or_else(damaged)?;
    let version = v.u8().ok_or_else(damaged)?;
    if version != VERSION {
        return Err(BadRecord::Version { found: version });
    }
    let record = parse(kind, &mut k, &mut v).ok_or_else(damaged)?;
    if k.0.is_empty() && v.0.is_empty() { Ok(record) } else { Err(damaged()) }
}

fn parse(kind: u8, k: &mut Reader<'_>, v: &mut Reader<'_>) -> Option<Record> {
    Some(match kind {
        b'c' => {
            let (c, epoch) = (ConfVersion(v.u64()?), Epoch(v.u64()?));
            let (usable, object_size) = (v.u8()? == 1, v.u32()?);
            let isr = (0..v.u32()?).map(|_| v.u32().map(OsdId)).collect::<Option<Vec<_>>>()?;
            Record::Member(Membership { c, epoch, usable, object_size, isr })
        }
        b'l' => Record::Base(v.point()?),
        b's' => {
            let session = SessionId(u128::from_be_bytes(k.take(16)?.try_into().ok()?));
            let (volume, generation) = (VolumeId(v.u64()?), Generation(v.u64()?));
            let acked_through = v.u64()?;
            let executed = (0..v.u32()?).map(|_| Some((v.u64()?, v.u64()?))).collect::<Option<Vec<_>>>()?;
            Record::Session(SessionDups { session, volume, generation, acked_through, executed })
        }
        b'a' => {
            let osd = OsdId(k.u32_be()?);
            Record::Anchor(osd, (0..v.u32()?).map(|_| v.point()).collect::<Option<Vec<_>>>()?)
        }
        b'd' => Record::Dirty(OsdId(k.u32_be()?), k.object_be()?, v.blocks()?),
        b'm' => Record::Missing(k.object_be()?, v.blocks()?),
        b'f' => Record::Fresh(k.object_be()?, v.blocks()?),
        b'h' => Record::Born(Born { from: v.u32()?, c: ConfVersion(v.u64()?), at: v.point()? }),
        b'b' => {
            let through = if v.u8()? == 1 { Some(ObjectKey::new(v.object()?)) } else { None };
            Record::Fill(Fill { through })
        }
        _ => return None,
    })
}

struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Self(vec![VERSION])
    }
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }
    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn point(&mut self, point: LogPoint) -> &mut Self {
        self.u64(point.version.c.0).u64(point.version.seq).u64(point.hash)
    }
    fn object(&mut self, object: ObjectId) -> &mut Self {
        self.u32(object.pool.0).u64(object.volume.0).u64(object.index).u64(object.snapshot.0)
    }
    fn done(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }
    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
    fn u32_be(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }
    fn u64_be(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(self.take(8)?.try_into().ok()?))
    }
    fn point(&mut self) -> Option<LogPoint> {
        let version = Version { c: ConfVersion(self.u64()?), seq: self.u64()? };
        Some(LogPoint { version, hash: self.u64()? })
    }
    fn object(&mut self) -> Option<ObjectId> {
        let (pool, volume) = (PoolId(self.u32()?), VolumeId(self.u64()?));
        Some(ObjectId { pool, volume, index: self.u64()?, snapshot: SnapId(self.u64()?) })
    }
    fn object_be(&mut self) -> Option<ObjectId> {
        let (pool, volume) = (PoolId(self.u32_be()?), VolumeId(self.u64_be()?));
        Some(ObjectId { pool, volume, index: self.u64_be()?, snapshot: SnapId(self.u64_be()?) })
    }
    fn blocks(&mut self) -> Option<BlockSet> {
        let words = (0..self.u32()?).map(|_| self.u64()).collect::<Option<Vec<_>>>()?;
        Some(BlockSet::from_words(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back(attribute: Attribute) -> Record {
        read(&attribute.0, &attribute.1.expect("put")).unwrap()
    }

    #[test]
    fn every_record_reads_back() {
        let object = ObjectId { pool: PoolId(3), volume: VolumeId(4), index: 5, snapshot: SnapId::HEAD };
        let point = LogPoint { version: Version { c: ConfVersion(2), seq: 7 }, hash: 0xfeed };
        let mut blocks = BlockSet::default();
        blocks.insert(8192, 4096 * 70);
        let row = SessionDups {
            session: SessionId(u128::MAX - 4),
            volume: VolumeId(4),
            generation: Generation(6),
            acked_through: 3,
            executed: vec![(4, 10), (5, 12)],
        };
        let isr = vec![OsdId(1), OsdId(4)];
        let member = Membership { c: ConfVersion(9), epoch: Epoch(20), usable: true, object_size: 1 << 20, isr };
        assert_eq!(back(membership(&member)), Record::Member(member));
        assert_eq!(back(base(point)), Record::Base(point));
        assert_eq!(back(session(row.session, Some(&row))), Record::Session(row));
        assert_eq!(back(anchor(OsdId(2), Some(&[point]))), Record::Anchor(OsdId(2), vec![point]));
        assert_eq!(back(dirty(OsdId(2), object, Some(&blocks))), Record::Dirty(OsdId(2), object, blocks.clone()));
        assert_eq!(back(missing(object, Some(&blocks))), Record::Missing(object, blocks.clone()));
        assert_eq!(back(fresh(object, Some(&blocks))), Record::Fresh(object, blocks));
        for through in [None, Some(ObjectKey::new(object))] {
            assert_eq!(back(fill(Some(Fill { through }))), Record::Fill(Fill { through }));
        }
    }

    #[test]
    fn damage_and_later_formats_are_told_apart() {
        assert_eq!(read(b"c", &[2, 0]), Err(BadRecord::Version { found: 2 }));
        assert_eq!(read(b"c", &[1, 0]), Err(BadRecord::Damaged { key: b"c".to_vec() }));
        assert_eq!(read(b"", &[1]), Err(BadRecord::Damaged { key: vec![] }));
    }
}
