//! Where a range of a volume lies: whole blocks, cut at object boundaries.

use cairn_types::{BLOCK_SIZE, Bytes4k, MAX_PAYLOAD};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A piece of a range that lies within one object and fits into one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which object of the volume.
    pub(crate) index: u64,
    /// Bytes from the object's start.
    pub(crate) offset: u32,
    /// Bytes.
    pub(crate) len: u32,
    /// Bytes from the start of the range that was cut.
    pub(crate) at: u64,
}

/// The whole blocks that a byte range touches. The range must not end beyond the largest volume.
pub(crate) fn cover(offset: u64, len: u64) -> Bytes4k {
    let start = offset - offset % BLOCK;
    let end = if len == 0 { start } else { (offset + len).next_multiple_of(BLOCK) };
    Bytes4k::new(start, end - start).expect("rounded to whole blocks")
}

/// Cuts whole blocks at object boundaries, in order.
pub(crate) fn cut(range: Bytes4k, object_size: u32) -> impl Iterator<Item = Piece> {
    let object_size = u64::from(object_size);
    let mut position = range.offset();
    std::iter::from_fn(move || {
        if position == range.end() {
            return None;
        }
        let offset = position % object_size;
        let len = (range.end() - position).min(object_size - offset).min(u64::from(MAX_PAYLOAD));
        let piece = Piece {
            index: position / object_size,
            offset: offset as u32,
            len: len as u32,
            at: position - range.offset(),
        };
        position += len;
        Some(piece)
    })
}

/// The blocks that a write of this range must read first because it covers only a part of them: the first, the
/// last, or one that is both.
pub(crate) fn edges(offset: u64, len: u64) -> Vec<Bytes4k> {
    let whole = cover(offset, len);
    let mut edges = Vec::new();
    if whole.is_empty() {
        return edges;
    }
    let block = |at| Bytes4k::new(at, BLOCK).expect("one whole block");
    if !offset.is_multiple_of(BLOCK) {
        edges.push(block(whole.offset()));
    }
    let last = whole.end() - BLOCK;
    if !(offset + len).is_multiple_of(BLOCK) && edges.first().is_none_or(|edge| edge.offset() != last) {
        edges.push(block(last));
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(offset: u64, len: u64, object_size: u32) -> Vec<(u64, u32, u32, u64)> {
        cut(cover(offset, len), object_size).map(|p| (p.index, p.offset, p.len, p.at)).collect()
    }

    #[test]
    fn ranges_are_cut_at_object_boundaries() {
        assert_eq!(pieces(0, 4096, 4 << 20), [(0, 0, 4096, 0)]);
        assert_eq!(pieces(4096, 8192, 8192), [(0, 4096, 4096, 0), (1, 0, 4096, 4096)]);
        assert_eq!(pieces(100, 1, 8192), [(0, 0, 4096, 0)]);
        assert_eq!(pieces(4095, 2, 8192), [(0, 0, 8192, 0)]);
        assert_eq!(pieces(5, 0, 8192), []);
        let large = pieces(0, 12 << 20, 8 << 20);
        assert_eq!(large, [(0, 0, 4 << 20, 0), (0, 4 << 20, 4 << 20, 4 << 20), (1, 0, 4 << 20, 8 << 20)]);
    }

    #[test]
    fn partly_covered_blocks_are_the_edges() {
        let edges = |offset, len| edges(offset, len).iter().map(|e| e.offset()).collect::<Vec<_>>();
        assert_eq!(edges(0, 8192), []);
        assert_eq!(edges(512, 512), [0]);
        assert_eq!(edges(0, 512), [0]);
        assert_eq!(edges(512, 4096), [0, 4096]);
        assert_eq!(edges(4096, 4097), [8192]);
        assert_eq!(edges(4000, 8288), [0]);
        assert_eq!(edges(77, 0), []);
    }
}
