//! Nodes kept in memory: two generations, so that what was used since the last turn of the wheel survives it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::node::{Node, NodeRef};

/// At most `2 * capacity` nodes.
#[derive(Debug)]
pub(crate) struct NodeCache {
    young: BTreeMap<NodeRef, Arc<Node>>,
    old: BTreeMap<NodeRef, Arc<Node>>,
    capacity: usize,
}

impl NodeCache {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), capacity: capacity.max(512) }
    }

    pub(crate) fn get(&mut self, at: NodeRef) -> Option<Arc<Node>> {
        if let Some(node) = self.young.get(&at) {
            return Some(Arc::clone(node));
        }
        let node = self.old.remove(&at)?;
        self.young.insert(at, Arc::clone(&node));
        Some(node)
    }

    pub(crate) fn insert(&mut self, at: NodeRef, node: Arc<Node>) {
        if self.young.len() >= self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(at, node);
    }
}
