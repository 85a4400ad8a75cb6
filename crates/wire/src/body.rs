//! Reading and writing the fields of operations: little-endian, no padding, nothing optional.

use bytes::{BufMut, Bytes, BytesMut};
use cairn_types::{BLOCK_SIZE, ObjectId, PgId, PoolId, SnapId, VolumeId};
use uuid::Uuid;

use crate::WireError;

/// Takes fields from the front of a byte string; running out is an error that names what was being read.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn malformed(&self) -> WireError {
        WireError::Malformed { what: self.what }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        Ok(self.bytes(N)?.try_into().expect("exactly N bytes were taken"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn u128(&mut self) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// A flag: 0 or 1 and nothing else.
    pub(crate) fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed()),
        }
    }

    pub(crate) fn uuid(&mut self) -> Result<Uuid, WireError> {
        Ok(Uuid::from_bytes(self.array()?))
    }

    pub(crate) fn pg(&mut self) -> Result<PgId, WireError> {
        Ok(PgId { pool: PoolId(self.u32()?), index: self.u32()? })
    }

    pub(crate) fn object(&mut self) -> Result<ObjectId, WireError> {
        Ok(ObjectId {
            pool: PoolId(self.u32()?),
            volume: VolumeId(self.u64()?),
            index: self.u64()?,
            snapshot: SnapId(self.u64()?),
        })
    }

    /// A list's length; each element takes at least `min_element` bytes, so that what is allocated for it is
    /// bounded by what has been received.
    pub(crate) fn count(&mut self, min_element: usize) -> Result<usize, WireError> {
        let count = self.u32()? as usize;
        if count > self.rest.len() / min_element.max(1) {
            return Err(self.malformed());
        }
        Ok(count)
    }

    pub(crate) fn u32s(&mut self, count: usize) -> Result<Vec<u32>, WireError> {
        let bytes = self.bytes(count.checked_mul(4).ok_or_else(|| self.malformed())?)?;
        Ok(bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
    }

    /// Nothing may be left over.
    pub(crate) fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.malformed()) }
    }
}

/// The composite fields that several operations share.
pub(crate) trait PutFields {
    fn put_uuid(&mut self, uuid: Uuid);
    fn put_pg(&mut self, pg: PgId);
    fn put_object(&mut self, object: ObjectId);
    fn put_u32s(&mut self, values: &[u32]);
}

impl PutFields for BytesMut {
    fn put_uuid(&mut self, uuid: Uuid) {
        self.put_slice(uuid.as_bytes());
    }

    fn put_pg(&mut self, pg: PgId) {
        self.put_u32_le(pg.pool.0);
        self.put_u32_le(pg.index);
    }

    fn put_object(&mut self, object: ObjectId) {
        self.put_u32_le(object.pool.0);
        self.put_u64_le(object.volume.0);
        self.put_u64_le(object.index);
        self.put_u64_le(object.snapshot.0);
    }

    fn put_u32s(&mut self, values: &[u32]) {
        self.reserve(values.len() * 4);
        for value in values {
            self.put_u32_le(*value);
        }
    }
}

/// The blocks in `len` bytes, or an error when they are not whole blocks.
pub(crate) fn whole_blocks(len: usize, what: &'static str) -> Result<usize, WireError> {
    if len.is_multiple_of(BLOCK_SIZE as usize) {
        Ok(len / BLOCK_SIZE as usize)
    } else {
        Err(WireError::Malformed { what })
    }
}

/// Compares each block of `data` with its checksum.
pub(crate) fn check_blocks(data: &Bytes, crcs: &[u32]) -> Result<(), WireError> {
    for (block, &expected) in data.chunks(BLOCK_SIZE as usize).zip(crcs) {
        check_block(block, expected)?;
    }
    Ok(())
}

/// Compares one block with its checksum.
pub(crate) fn check_block(block: &[u8], expected: u32) -> Result<(), WireError> {
    let found = crc32c::crc32c(block);
    if found == expected { Ok(()) } else { Err(WireError::Corrupt { what: "payload block", expected, found }) }
}
