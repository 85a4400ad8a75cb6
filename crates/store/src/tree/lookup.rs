//! Questions to the index, answered from cached nodes or with the node that is missing.

use bytes::Bytes;

use super::node::{Node, NodeRef, Row};
use super::{Miss, NodeCache};

/// The value of a key.
pub(crate) fn get(root: Option<NodeRef>, key: &[u8], cache: &mut NodeCache) -> Result<Option<Bytes>, Miss> {
    let Some(mut at) = root else { return Ok(None) };
    loop {
        match cache.get(at).ok_or(Miss(at))?.as_ref() {
            Node::Inner(_, children) => at = children[Node::child_of(children, key)].1,
            Node::Leaf(rows) => {
                let found = rows.binary_search_by(|(k, _)| k.as_ref().cmp(key));
                return Ok(found.ok().map(|i| rows[i].1.clone()));
            }
        }
    }
}

/// Some rows in key order, and where to go on.
#[derive(Debug)]
pub(crate) struct Rows {
    /// At or after the key that was asked for; may be empty although more follow.
    pub(crate) rows: Vec<Row>,
    /// The next question's key; `None` at the end of the index.
    pub(crate) next: Option<Bytes>,
}

/// The rows of one leaf from a key on.
pub(crate) fn rows_from(root: Option<NodeRef>, from: &[u8], cache: &mut NodeCache) -> Result<Rows, Miss> {
    let Some(mut at) = root else { return Ok(Rows { rows: Vec::new(), next: None }) };
    let mut next = None;
    loop {
        match cache.get(at).ok_or(Miss(at))?.as_ref() {
            Node::Inner(_, children) => {
                let i = Node::child_of(children, from);
                if let Some((first, _)) = children.get(i + 1) {
                    next = Some(first.clone());
                }
                at = children[i].1;
            }
            Node::Leaf(rows) => {
                let start = rows.partition_point(|(key, _)| key.as_ref() < from);
                return Ok(Rows { rows: rows[start..].to_vec(), next });
            }
        }
    }
}

/// Whether a node's children can be its children: levels fall by one, keys rise. For walks over the whole index.
pub(crate) fn check_children(node: &Node) -> bool {
    match node {
        Node::Leaf(rows) => rows.windows(2).all(|pair| pair[0].0 < pair[1].0),
        Node::Inner(level, children) => *level > 0 && children.windows(2).all(|pair| pair[0].0 < pair[1].0),
    }
}
