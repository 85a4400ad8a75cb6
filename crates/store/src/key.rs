//! Rows of the index: their keys in memory and on disk, in one order.
//!
//! An object's key starts with its pool and the bit-reversed hash of (volume, index): a PG is one range of keys, a
//! split cuts the range in two, and an object's snapshots lie beside its head. (The pool comes first, so that the
//! range of a PG holds nothing of other pools.)

use bytes::Bytes;
use cairn_types::{ObjectId, PgId, PoolId, SnapId, VolumeId};

use crate::codec::{Malformed, Reader};

/// An object in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pool: u32,
    place: u64,
    volume: u64,
    index: u64,
    snapshot: u64,
}

impl Key {
    /// Bytes of an encoded key.
    pub const LEN: usize = 36;

    /// The key of an object.
    #[must_use]
    pub fn new(object: ObjectId) -> Self {
        Self {
            pool: object.pool.0,
            place: object.hash().reverse_bits(),
            volume: object.volume.0,
            index: object.index,
            snapshot: object.snapshot.0,
        }
    }

    /// The object.
    #[must_use]
    pub fn object(&self) -> ObjectId {
        ObjectId {
            pool: PoolId(self.pool),
            volume: VolumeId(self.volume),
            index: self.index,
            snapshot: SnapId(self.snapshot),
        }
    }

    /// The first possible key of a PG in a pool of `pg_count` PGs (a power of two), and whether a key is in it.
    #[must_use]
    pub fn first_of(pg: PgId) -> Self {
        Self { pool: pg.pool.0, place: u64::from(pg.index).reverse_bits(), volume: 0, index: 0, snapshot: 0 }
    }

    /// Whether the object lies in the PG, in a pool of `pg_count` PGs.
    #[must_use]
    pub fn is_in(&self, pg: PgId, pg_count: u32) -> bool {
        let low = self.place.reverse_bits() & (u64::from(pg_count.max(1)) - 1);
        self.pool == pg.pool.0 && low == u64::from(pg.index)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.pool.to_be_bytes());
        for field in [self.place, self.volume, self.index, self.snapshot] {
            out.extend_from_slice(&field.to_be_bytes());
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let pool = r.u32("pool")?.swap_bytes();
        let mut field = |what| r.u64(what).map(u64::swap_bytes);
        let key = Self {
            pool,
            place: field("place")?,
            volume: field("volume")?,
            index: field("index")?,
            snapshot: field("snapshot")?,
        };
        if key.object().hash().reverse_bits() != key.place {
            return Err(Malformed::Value { field: "object place", value: key.place });
        }
        Ok(key)
    }
}

/// Whose attribute: a PG's, or the store's own.
pub type Scope = Option<PgId>;

/// The key of a row, ordered as its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RowKey {
    /// State of a PG.
    Pg(PgId),
    /// (scope, length, name).
    Attribute(Scope, u16, Bytes),
    /// (PG, seq).
    Log(PgId, u64),
    /// An object's row or one of its segments.
    Object(Key, Part),
}

/// Which row of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Info,
    Segment(u16),
}

const TAG_PG: u8 = 1;
const TAG_ATTRIBUTE: u8 = 2;
const TAG_LOG: u8 = 3;
const TAG_OBJECT: u8 = 4;

/// The longest name of an attribute.
pub const MAX_ATTRIBUTE_NAME: usize = 80;

impl RowKey {
    pub(crate) fn attribute(scope: Scope, name: Bytes) -> Self {
        Self::Attribute(scope, name.len() as u16, name)
    }

    pub(crate) fn segment(key: Key, segment: u16) -> Self {
        Self::Object(key, Part::Segment(segment))
    }

    /// The key's bytes. Rows whose values are cut in chunks have the chunk's number at the end.
    pub(crate) fn encode(&self, chunk: u16) -> Bytes {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Pg(pg) => {
                out.push(TAG_PG);
                encode_pg(*pg, &mut out);
            }
            Self::Attribute(scope, len, name) => {
                out.push(TAG_ATTRIBUTE);
                out.push(u8::from(scope.is_some()));
                if let Some(pg) = scope {
                    encode_pg(*pg, &mut out);
                }
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(name);
                out.extend_from_slice(&chunk.to_be_bytes());
            }
            Self::Log(pg, seq) => {
                out.push(TAG_LOG);
                encode_pg(*pg, &mut out);
                out.extend_from_slice(&seq.to_be_bytes());
                out.extend_from_slice(&chunk.to_be_bytes());
            }
            Self::Object(key, part) => {
                out.push(TAG_OBJECT);
                key.encode(&mut out);
                match part {
                    Part::Info => out.push(0),
                    Part::Segment(segment) => {
                        out.push(1);
                        out.extend_from_slice(&segment.to_be_bytes());
                    }
                }
            }
        }
        Bytes::from(out)
    }

    /// The key and the chunk's number.
    pub(crate) fn decode(bytes: &[u8]) -> Result<(Self, u16), Malformed> {
        let mut r = Reader::new(bytes);
        let mut chunk = 0;
        let key = match r.u8("row tag")? {
            TAG_PG => Self::Pg(decode_pg(&mut r)?),
            TAG_ATTRIBUTE => {
                let scope = match r.u8("scope")? {
                    0 => None,
                    _ => Some(decode_pg(&mut r)?),
                };
                let len = r.u16("name length")?.swap_bytes();
                let name = Bytes::copy_from_slice(r.raw(len.into(), "name")?);
                chunk = r.u16("chunk")?.swap_bytes();
                Self::Attribute(scope, len, name)
            }
            TAG_LOG => {
                let pg = decode_pg(&mut r)?;
                let seq = r.u64("seq")?.swap_bytes();
                chunk = r.u16("chunk")?.swap_bytes();
                Self::Log(pg, seq)
            }
            TAG_OBJECT => {
                let key = Key::decode(&mut r)?;
                match r.u8("row part")? {
                    0 => Self::Object(key, Part::Info),
                    _ => Self::Object(key, Part::Segment(r.u16("segment")?.swap_bytes())),
                }
            }
            tag => return Err(Malformed::Value { field: "row tag", value: tag.into() }),
        };
        r.finish()?;
        Ok((key, chunk))
    }
}

fn encode_pg(pg: PgId, out: &mut Vec<u8>) {
    out.extend_from_slice(&pg.pool.0.to_be_bytes());
    out.extend_from_slice(&pg.index.to_be_bytes());
}

fn decode_pg(r: &mut Reader<'_>) -> Result<PgId, Malformed> {
    Ok(PgId { pool: PoolId(r.u32("pool")?.swap_bytes()), index: r.u32("pg")?.swap_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(volume: u64, index: u64) -> ObjectId {
        ObjectId { pool: PoolId(3), volume: VolumeId(volume), index, snapshot: SnapId::HEAD }
    }

    #[test]
    fn bytes_have_the_order_of_keys_and_come_back() {
        let pg = |index| PgId { pool: PoolId(3), index };
        let mut keys = vec![
            RowKey::Pg(pg(1)),
            RowKey::Pg(pg(300)),
            RowKey::attribute(None, Bytes::from_static(b"zz")),
            RowKey::attribute(Some(pg(1)), Bytes::from_static(b"b")),
            RowKey::attribute(Some(pg(1)), Bytes::from_static(b"aa")),
            RowKey::Log(pg(1), 255),
            RowKey::Log(pg(1), 256),
        ];
        for i in 0..40 {
            let key = Key::new(object(1, i));
            keys.push(RowKey::Object(key, Part::Info));
            keys.push(RowKey::segment(key, 300));
        }
        keys.sort();
        let encoded: Vec<Bytes> = keys.iter().map(|key| key.encode(0)).collect();
        assert!(encoded.windows(2).all(|pair| pair[0] < pair[1]));
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(&RowKey::decode(bytes).unwrap().0, key);
        }
    }

    #[test]
    fn a_pg_is_one_range() {
        let pg = PgId { pool: PoolId(3), index: 5 };
        let mut keys: Vec<Key> = (0..2000).map(|i| Key::new(object(7, i))).collect();
        keys.sort();
        let inside: Vec<bool> = keys.iter().map(|key| key.is_in(pg, 16)).collect();
        let first = inside.iter().position(|x| *x).unwrap();
        let count = inside.iter().filter(|x| **x).count();
        assert!(count > 80 && inside[first..first + count].iter().all(|x| *x));
        assert!(keys[first] >= Key::first_of(pg) && keys[first - 1] < Key::first_of(pg));
        assert_eq!(u64::from(cairn_types::map::pg_index(keys[first].object().hash(), 16)), 5);
    }
}
