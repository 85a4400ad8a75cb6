//! From a range of bytes to the size of a volume.

use cairn_proto::csi::CapacityRange;
use cairn_types::BLOCK_SIZE;

/// Of a volume that nobody gave a size.
const DEFAULT: u64 = 1 << 30;

/// A range that no volume can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CapacityError {
    #[error("a capacity cannot be negative ({0} bytes)")]
    Negative(i64),
    #[error("at least {required} and at most {limit} bytes are asked for: no volume has that")]
    Empty { required: u64, limit: u64 },
    #[error("at most {limit} bytes are asked for, and a volume has at least {least}; raise the limit")]
    TooSmall { limit: u64, least: u64 },
    #[error(
        "the volume has {size} bytes and cannot shrink to {limit}; make a smaller volume and copy the data, or ask for more"
    )]
    Shrink { size: u64, limit: u64 },
}

/// The bounds of a range; absent and zero mean unbounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) required: u64,
    pub(crate) limit: Option<u64>,
}

impl Bounds {
    pub(crate) fn of(range: Option<&CapacityRange>) -> Result<Self, CapacityError> {
        let range = range.copied().unwrap_or_default();
        let bytes = |value: i64| u64::try_from(value).map_err(|_| CapacityError::Negative(value));
        let (required, limit) = (bytes(range.required_bytes)?, bytes(range.limit_bytes)?);
        if limit != 0 && limit < required {
            return Err(CapacityError::Empty { required, limit });
        }
        Ok(Self { required, limit: (limit != 0).then_some(limit) })
    }

    /// The size of a new volume: whole blocks, as little as is asked for, and no less than its use needs.
    pub(crate) fn size(self, least: u64) -> Result<u64, CapacityError> {
        let wanted = match self {
            Self { required: 0, limit } => DEFAULT.min(limit.unwrap_or(DEFAULT)) & !u64::from(BLOCK_SIZE - 1),
            Self { required, .. } => required.next_multiple_of(u64::from(BLOCK_SIZE)),
        };
        let size = wanted.max(least);
        match self.limit {
            Some(limit) if size > limit => Err(CapacityError::TooSmall { limit, least: size }),
            _ => Ok(size),
        }
    }

    /// The size of a volume of `size` bytes after growing.
    pub(crate) fn grown(self, size: u64) -> Result<u64, CapacityError> {
        match self.limit {
            Some(limit) if limit < size => Err(CapacityError::Shrink { size, limit }),
            _ if self.required <= size => Ok(size),
            _ => self.size(size),
        }
    }

    /// Whether an existing volume has what is asked for.
    pub(crate) fn fits(self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: u64 = 8 << 20;

    fn bounds(required: i64, limit: i64) -> Result<Bounds, CapacityError> {
        Bounds::of(Some(&CapacityRange { required_bytes: required, limit_bytes: limit }))
    }

    #[test]
    fn sizes_are_whole_blocks_within_the_bounds() {
        assert_eq!(Bounds::of(None).unwrap().size(LEAST), Ok(1 << 30));
        assert_eq!(bounds(10 << 20, 0).unwrap().size(LEAST), Ok(10 << 20));
        assert_eq!(bounds((10 << 20) + 1, 0).unwrap().size(LEAST), Ok((10 << 20) + 4096));
        assert_eq!(bounds(1, 0).unwrap().size(LEAST), Ok(LEAST));
        assert_eq!(bounds(10 << 20, 0).unwrap().size(300 << 20), Ok(300 << 20));
        assert_eq!(bounds(0, (20 << 20) + 5).unwrap().size(LEAST), Ok(20 << 20));
        let tight = bounds((10 << 20) + 1, (10 << 20) + 2).unwrap().size(LEAST);
        assert_eq!(tight, Err(CapacityError::TooSmall { limit: (10 << 20) + 2, least: (10 << 20) + 4096 }));
        assert_eq!(bounds(1, 4096).unwrap().size(LEAST), Err(CapacityError::TooSmall { limit: 4096, least: LEAST }));
        assert_eq!(bounds(2, 1), Err(CapacityError::Empty { required: 2, limit: 1 }));
        assert_eq!(bounds(-5, 0), Err(CapacityError::Negative(-5)));
    }

    #[test]
    fn growing_never_shrinks() {
        assert_eq!(bounds(5 << 20, 0).unwrap().grown(10 << 20), Ok(10 << 20), "already larger");
        assert_eq!(bounds(20 << 20, 0).unwrap().grown(10 << 20), Ok(20 << 20));
        let shrink = bounds(1 << 20, 5 << 20).unwrap().grown(10 << 20);
        assert_eq!(shrink, Err(CapacityError::Shrink { size: 10 << 20, limit: 5 << 20 }));
    }
}
