//! One node of the index: its bytes and its entries.

use bytes::Bytes;

use crate::codec::{Malformed, Reader, Writer};

/// Bytes of a node on the device.
pub(crate) const NODE_SIZE: usize = 4096;
/// The longest key.
pub(crate) const MAX_KEY: usize = 96;
/// The longest value: at least three entries fit in a leaf.
pub(crate) const MAX_VALUE: usize = 1152;
/// "CIDX".
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"CIDX");
/// The node format.
pub(crate) const VERSION: u8 = 1;
/// Bytes before the first entry.
pub(crate) const HEADER: usize = 32;
/// Bytes for entries.
pub(crate) const ROOM: usize = NODE_SIZE - HEADER;

/// Where a node lies and what its bytes sum up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeRef {
    /// Block number on the device; 0 is no node.
    pub block: u64,
    /// crc32c of its 4 KiB.
    pub crc: u32,
}

/// A row: key and value.
pub(crate) type Row = (Bytes, Bytes);

/// A node's entries, in key order. In an inner node the first key of each child is a lower bound of its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// Level 0.
    Leaf(Vec<Row>),
    /// The level, and the children.
    Inner(u8, Vec<(Bytes, NodeRef)>),
}

/// Bytes one row takes in a leaf.
pub(crate) fn row_len(key: &[u8], value: &[u8]) -> usize {
    4 + key.len() + value.len()
}

/// Bytes one child takes in an inner node.
pub(crate) fn child_len(key: &[u8]) -> usize {
    2 + key.len() + 12
}

/// No key is longer: the longest is that of a PG's attribute.
const _: () = assert!(1 + 1 + 8 + 2 + crate::key::MAX_ATTRIBUTE_NAME + 2 <= MAX_KEY);
/// Three of the largest rows fit.
const _: () = assert!(3 * (4 + MAX_KEY + MAX_VALUE) <= ROOM);

pub(crate) fn encode_leaf(block: u64, checkpoint: u64, rows: &[Row]) -> Bytes {
    let mut w = header(block, checkpoint, 0, rows.len());
    for (key, value) in rows {
        w.u16(key.len() as u16).u16(value.len() as u16).raw(key).raw(value);
    }
    finish(w)
}

pub(crate) fn encode_inner(block: u64, checkpoint: u64, level: u8, children: &[(Bytes, NodeRef)]) -> Bytes {
    let mut w = header(block, checkpoint, level, children.len());
    for (key, child) in children {
        w.u16(key.len() as u16).raw(key).u64(child.block).u32(child.crc);
    }
    finish(w)
}

fn header(block: u64, checkpoint: u64, level: u8, count: usize) -> Writer {
    let mut w = Writer::default();
    w.u32(MAGIC).u8(VERSION).u8(level).u16(count as u16).u64(checkpoint).u64(block).u64(0);
    w
}

fn finish(mut w: Writer) -> Bytes {
    assert!(w.bytes.len() <= NODE_SIZE, "a node is split before it overflows");
    w.bytes.resize(NODE_SIZE, 0);
    Bytes::from(w.bytes)
}

impl Node {
    /// Reads a node whose checksum was found right.
    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        let magic = r.u32("node magic")?;
        if magic != MAGIC {
            return Err(Malformed::Value { field: "node magic", value: magic.into() });
        }
        let version = r.u8("node version")?;
        if version != VERSION {
            return Err(Malformed::Version { what: "index node", found: version.into(), known: VERSION.into() });
        }
        let level = r.u8("node level")?;
        let count = r.u16("node count")?;
        r.raw(24, "node header")?;
        if level == 0 {
            let mut rows = Vec::with_capacity(count.into());
            for _ in 0..count {
                let (klen, vlen) = (r.u16("key length")?, r.u16("value length")?);
                let key = bytes.slice_ref(r.raw(klen.into(), "key")?);
                rows.push((key, bytes.slice_ref(r.raw(vlen.into(), "value")?)));
            }
            return Ok(Self::Leaf(rows));
        }
        let mut children = Vec::with_capacity(count.into());
        for _ in 0..count {
            let klen = r.u16("key length")?;
            let key = bytes.slice_ref(r.raw(klen.into(), "key")?);
            children.push((key, NodeRef { block: r.u64("child block")?, crc: r.u32("child checksum")? }));
        }
        if children.is_empty() {
            return Err(Malformed::Value { field: "children of an inner node", value: 0 });
        }
        Ok(Self::Inner(level, children))
    }

    /// Which child of an inner node holds a key.
    pub(crate) fn child_of(children: &[(Bytes, NodeRef)], key: &[u8]) -> usize {
        children.partition_point(|(first, _)| first.as_ref() <= key).saturating_sub(1)
    }
}
