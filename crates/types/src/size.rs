//! Sizes that are part of the format: the block, the object, the largest payload.

/// Data moves, is checksummed and is tracked in units of this many bytes.
pub const BLOCK_SIZE: u32 = 4096;

/// The default object size: a volume is cut into pieces of this many bytes.
pub const OBJECT_SIZE: u32 = 4 << 20;

/// Blocks in an object of the default size.
pub const BLOCKS_PER_OBJECT: u32 = OBJECT_SIZE / BLOCK_SIZE;

/// The most data one request or one frame carries.
pub const MAX_PAYLOAD: u32 = 4 << 20;

/// A byte range aligned to blocks: `offset` and `len` are multiples of [`BLOCK_SIZE`], by construction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bytes4k {
    offset: u64,
    len: u64,
}

/// Why a byte range is not one of whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misaligned {
    /// Offset or length is not a multiple of the block size.
    #[error("the range {offset}+{len} is not made of whole 4096-byte blocks")]
    Unaligned {
        /// As given.
        offset: u64,
        /// As given.
        len: u64,
    },
    /// The range ends beyond 2^64.
    #[error("the range {offset}+{len} overflows")]
    Overflow {
        /// As given.
        offset: u64,
        /// As given.
        len: u64,
    },
}

impl Bytes4k {
    /// Checks a range.
    ///
    /// # Errors
    /// When it is not made of whole blocks, or overflows.
    pub fn new(offset: u64, len: u64) -> Result<Self, Misaligned> {
        let block = u64::from(BLOCK_SIZE);
        if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(Misaligned::Unaligned { offset, len });
        }
        if offset.checked_add(len).is_none() {
            return Err(Misaligned::Overflow { offset, len });
        }
        Ok(Self { offset, len })
    }

    /// First byte.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// Bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// No bytes at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The byte after the last.
    #[must_use]
    pub fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether the two share a byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_pass() {
        assert!(Bytes4k::new(0, 4096).is_ok());
        assert!(Bytes4k::new(512, 4096).is_err());
        assert!(Bytes4k::new(0, 100).is_err());
        assert!(Bytes4k::new(u64::MAX - 4095, 8192).is_err());
    }

    #[test]
    fn ranges_that_only_touch_do_not_overlap() {
        let a = Bytes4k::new(0, 4096).unwrap();
        let b = Bytes4k::new(4096, 4096).unwrap();
        assert!(!a.overlaps(b));
        assert!(a.overlaps(Bytes4k::new(0, 8192).unwrap()));
    }
}
