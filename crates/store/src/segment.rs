//! Extent maps: what each 4 KiB block of an object is and where its bytes lie, in segments of 64 blocks.

use std::collections::BTreeMap;

use cairn_types::{SnapId, Version};

use crate::codec::{Malformed, Reader, Writer};

/// Blocks in a segment: 256 KiB.
pub const SEGMENT_BLOCKS: usize = 64;
/// Segments in the largest object: 16 MiB.
pub const MAX_SEGMENTS: u32 = 64;
/// The format of a segment row.
pub const VERSION: u8 = 1;

/// What one 4 KiB block of an object is (I10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Block {
    /// Never written, or discarded.
    #[default]
    Absent,
    /// Explicit zeros.
    Zero,
    /// Was acknowledged here, but its bytes are known to be bad: repair from a peer. It keeps its place, because what
    /// was logged later takes it for granted.
    Lost {
        /// Block number on the device.
        at: u64,
    },
    /// Bytes on the medium.
    Data {
        /// Block number on the device.
        at: u64,
        /// crc32c of the 4 KiB.
        crc: u32,
    },
}

impl Block {
    /// The place it holds, if it has one.
    #[must_use]
    pub fn at(self) -> Option<u64> {
        match self {
            Self::Data { at, .. } | Self::Lost { at } => Some(at),
            Self::Absent | Self::Zero => None,
        }
    }

    /// Where its bytes lie, if it has any that are worth reading.
    #[must_use]
    pub fn readable_at(self) -> Option<u64> {
        match self {
            Self::Data { at, .. } => Some(at),
            Self::Absent | Self::Zero | Self::Lost { .. } => None,
        }
    }
}

/// One segment of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its blocks, in order.
    pub blocks: [Block; SEGMENT_BLOCKS],
}

impl Default for Segment {
    fn default() -> Self {
        Self { blocks: [Block::Absent; SEGMENT_BLOCKS] }
    }
}

impl Segment {
    /// Nothing in it: it needs no row.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.blocks.iter().all(|block| *block == Block::Absent)
    }

    /// The row's value: version, block states (2 bits each), extents, checksums.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        let mut states = [0u8; SEGMENT_BLOCKS / 4];
        for (i, block) in self.blocks.iter().enumerate() {
            let state = match block {
                Block::Absent => 0u8,
                Block::Zero => 1,
                Block::Lost { .. } => 2,
                Block::Data { .. } => 3,
            };
            states[i / 4] |= state << (i % 4 * 2);
        }
        w.raw(&states);
        let extents = self.extents();
        w.u8(extents.len() as u8);
        for (first, len, at) in extents {
            // Codec 0 is "as it is", and then the stored length is the length; shard 0 is "not erasure coded".
            w.u8(first).u8(len).u8(0).u8(0).u16(u16::from(len)).raw(&at.to_le_bytes()[..6]);
        }
        for block in &self.blocks {
            if let Block::Data { crc, .. } = block {
                w.u32(*crc);
            }
        }
        w.bytes
    }

    /// Runs of blocks that lie side by side on the device: (first block, blocks, device block).
    fn extents(&self) -> Vec<(u8, u8, u64)> {
        let mut extents: Vec<(u8, u8, u64)> = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            let Some(at) = block.at() else { continue };
            match extents.last_mut() {
                Some((first, len, start))
                    if usize::from(*first) + usize::from(*len) == i && *start + u64::from(*len) == at =>
                {
                    *len += 1;
                }
                _ => extents.push((i as u8, 1, at)),
            }
        }
        extents
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of an unknown version or codec, or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let version = r.u8("version")?;
        if version != VERSION {
            return Err(Malformed::Version { what: "segment", found: version.into(), known: VERSION.into() });
        }
        let states = r.raw(SEGMENT_BLOCKS / 4, "block states")?;
        let mut places = BTreeMap::new();
        for _ in 0..r.u8("extent count")? {
            let (first, len) = (r.u8("extent start")?, r.u8("extent length")?);
            let (codec, shard, stored) = (r.u8("codec")?, r.u8("shard")?, r.u16("stored length")?);
            if codec != 0 || shard != 0 || stored != u16::from(len) {
                return Err(Malformed::Value { field: "extent codec", value: codec.into() });
            }
            let mut at = [0u8; 8];
            at[..6].copy_from_slice(r.raw(6, "extent place")?);
            let at = u64::from_le_bytes(at);
            (0..u64::from(len)).for_each(|i| {
                places.insert(u64::from(first) + i, at + i);
            });
        }
        let mut segment = Self::default();
        for (i, block) in segment.blocks.iter_mut().enumerate() {
            let mut place = || places.remove(&(i as u64)).ok_or(Malformed::Short("extents"));
            *block = match states[i / 4] >> (i % 4 * 2) & 3 {
                0 => Block::Absent,
                1 => Block::Zero,
                2 => Block::Lost { at: place()? },
                _ => Block::Data { at: place()?, crc: r.u32("block checksum")? },
            };
        }
        if let Some((block, _)) = places.first_key_value() {
            return Err(Malformed::Value { field: "extent of a block without a place", value: *block });
        }
        r.finish()?;
        Ok(segment)
    }
}

/// What is known of one object beside its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ObjectInfo {
    /// The last log entry that changed it; the default where recovery brought it.
    pub version: Version,
    /// The snapshot context under which it came into being: before that it is known to be absent.
    pub birth: SnapId,
    /// The newest snapshot context of any write.
    pub snap_context: SnapId,
    /// Which of its segments have a row, one bit each.
    pub segments: u64,
    /// How many objects share its extents beside itself; 0 until there are snapshots.
    pub shared: u32,
}

impl ObjectInfo {
    /// The row's value.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION).u64(self.version.c.0).u64(self.version.seq);
        w.u64(self.birth.0).u64(self.snap_context.0).u64(self.segments).u32(self.shared);
        w.bytes
    }

    /// Reads a row's value.
    ///
    /// # Errors
    /// When it is of an unknown version or cut short.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let version = r.u8("version")?;
        if version != VERSION {
            return Err(Malformed::Version { what: "object", found: version.into(), known: VERSION.into() });
        }
        let info = Self {
            version: Version { c: cairn_types::ConfVersion(r.u64("c")?), seq: r.u64("seq")? },
            birth: SnapId(r.u64("birth")?),
            snap_context: SnapId(r.u64("snapshot context")?),
            segments: r.u64("segments")?,
            shared: r.u32("shared")?,
        };
        r.finish()?;
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_trip() {
        let mut segment = Segment::default();
        segment.blocks[0] = Block::Zero;
        segment.blocks[1] = Block::Lost { at: 77 };
        for i in 5..20u64 {
            segment.blocks[i as usize] = Block::Data { at: 0x0102_0304_0500 + i, crc: i as u32 };
        }
        segment.blocks[63] = Block::Data { at: 9, crc: 1 };
        assert_eq!(segment.extents().len(), 3);
        let bytes = segment.encode();
        assert_eq!(Segment::decode(&bytes).unwrap(), segment);
        assert!(Segment::decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn the_largest_row_is_bounded() {
        let mut segment = Segment::default();
        for (i, block) in segment.blocks.iter_mut().enumerate() {
            *block = Block::Data { at: i as u64 * 2, crc: 1 };
        }
        assert_eq!(segment.encode().len(), 1 + 16 + 1 + 64 * 12 + 64 * 4);
        assert!(segment.encode().len() <= crate::tree::MAX_VALUE);
    }

    #[test]
    fn an_unknown_codec_is_refused() {
        let mut segment = Segment::default();
        segment.blocks[0] = Block::Data { at: 1, crc: 1 };
        let mut bytes = segment.encode();
        bytes[20] = 3;
        assert!(Segment::decode(&bytes).is_err());
    }
}
