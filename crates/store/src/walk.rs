//! The whole index, read from the disk node by node: opening the store and checking it offline both need it.

use bytes::Bytes;
use cairn_disk::Disk;

use crate::error::Error;
use crate::tree::{NODE_SIZE, Node, NodeRef, check_children};

/// Reads one node and checks it against what its parent says.
pub(crate) fn read_node(disk: &dyn Disk, at: NodeRef) -> Result<Node, Error> {
    let mut page = vec![0; NODE_SIZE];
    disk.read_at(at.block * 4096, &mut page)?;
    let found = crc32c::crc32c(&page);
    if found != at.crc {
        return Err(Error::CorruptIndex { block: at.block, expected: at.crc, found });
    }
    let place = || format!("index node {}", at.block);
    let node = Node::decode(&Bytes::from(page)).map_err(|malformed| Error::Malformed { place: place(), malformed })?;
    if check_children(&node) {
        return Ok(node);
    }
    let malformed = crate::Malformed::Value { field: "order of keys in a node", value: at.block };
    Err(Error::Malformed { place: place(), malformed })
}

/// Something found on a walk.
pub(crate) enum Found<'a> {
    /// A node, at this block.
    Node(u64),
    /// A row.
    Row(&'a Bytes, &'a Bytes),
}

/// Visits every node and every row, rows in key order.
pub(crate) fn walk(
    disk: &dyn Disk,
    root: Option<NodeRef>,
    visit: &mut dyn FnMut(Found<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let Some(at) = root else { return Ok(()) };
    visit(Found::Node(at.block))?;
    match read_node(disk, at)? {
        Node::Leaf(rows) => rows.iter().try_for_each(|(key, value)| visit(Found::Row(key, value))),
        Node::Inner(_, children) => children.iter().try_for_each(|(_, child)| walk(disk, Some(*child), visit)),
    }
}
