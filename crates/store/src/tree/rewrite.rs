//! A batch of changes becomes a new tree that shares what did not change with the old one.
//!
//! Changes come in slices of rising keys. A slice is applied only when every node on its paths is cached; until
//! then the missing ones are named. Leaves left of the newest change are final and can be written at once, inner
//! nodes are written at the end, so that memory holds one slice and the inner nodes above what changed.

use std::sync::Arc;

use bytes::Bytes;

use super::node::{Node, NodeRef, ROOM, Row, child_len, encode_inner, encode_leaf, row_len};
use super::{Miss, NodeCache};

/// A key and its new value; `None` removes it.
pub(crate) type Change = (Bytes, Option<Bytes>);

/// Leaves smaller than this are joined with a neighbour that is being rewritten anyway.
const JOIN_BELOW: usize = ROOM * 3 / 4;

#[derive(Debug)]
enum Child {
    Clean(NodeRef),
    Leaf(Vec<Row>),
    Inner(u8, Vec<(Bytes, Child)>),
}

/// A rewrite under way.
#[derive(Debug)]
pub(crate) struct Rewrite {
    root: Option<Child>,
    checkpoint: u64,
    freed: Vec<u64>,
}

impl Rewrite {
    pub(crate) fn new(root: Option<NodeRef>, checkpoint: u64) -> Self {
        Self { root: root.map(Child::Clean), checkpoint, freed: Vec::new() }
    }

    /// Applies a slice of changes with rising keys, all above those of earlier slices; or names the nodes that
    /// must be in the cache first.
    pub(crate) fn apply(&mut self, changes: &[Change], cache: &mut NodeCache) -> Result<(), Vec<Miss>> {
        let mut misses = Vec::new();
        if let Some(root) = &self.root {
            collect_misses(root, changes, cache, &mut misses);
        }
        if !misses.is_empty() {
            return Err(misses);
        }
        let root = self.root.take().unwrap_or_else(|| Child::Leaf(Vec::new()));
        let mut level = level_of(&root, cache);
        let mut pieces = self.change(root, changes, cache);
        while pieces.len() > 1 {
            level += 1;
            pieces = split_inner(level, pieces);
        }
        self.root = pieces.pop().map(|(_, child)| child);
        while let Some(Child::Inner(_, children)) = &mut self.root {
            if children.len() > 1 {
                break;
            }
            self.root = children.pop().map(|(_, child)| child);
        }
        Ok(())
    }

    fn change(&mut self, child: Child, changes: &[Change], cache: &mut NodeCache) -> Vec<(Bytes, Child)> {
        match self.open(child, cache) {
            Child::Leaf(rows) => split_leaf(merge(rows, changes), changes),
            Child::Inner(level, children) => {
                let parts = split_changes(&children, changes);
                let mut out: Vec<(Bytes, Child)> = Vec::with_capacity(children.len() + 1);
                for ((key, child), part) in children.into_iter().zip(parts) {
                    let pieces = if part.is_empty() { vec![(key, child)] } else { self.change(child, part, cache) };
                    pieces.into_iter().for_each(|piece| push_joining(&mut out, piece));
                }
                split_inner(level, out)
            }
            Child::Clean(_) => unreachable!("`open` never gives back a clean node"),
        }
    }

    /// A node that may be changed. The old one is freed when the new tree is durable.
    fn open(&mut self, child: Child, cache: &mut NodeCache) -> Child {
        let Child::Clean(at) = child else { return child };
        self.freed.push(at.block);
        let node = cache.get(at).expect("all nodes on the paths of a slice are cached before it is applied");
        match node.as_ref() {
            Node::Leaf(rows) => Child::Leaf(rows.clone()),
            Node::Inner(level, children) => {
                let children = children.iter().map(|(key, at)| (key.clone(), Child::Clean(*at))).collect();
                Child::Inner(*level, children)
            }
        }
    }

    /// Nodes to write: the final leaves, and with `last` everything that is left. `place` gives a free block. False
    /// when there were not enough: those given have their places, and asking again goes on with the rest.
    pub(crate) fn take_writes(
        &mut self,
        last: bool,
        cache: &mut NodeCache,
        place: &mut impl FnMut() -> Option<u64>,
    ) -> (Vec<(u64, Bytes)>, bool) {
        let mut writes = Vec::new();
        let checkpoint = self.checkpoint;
        let Some(root) = &mut self.root else { return (writes, true) };
        let mut sink = Sink { cache, place, checkpoint, writes: &mut writes };
        let whole = sink.settle(root, !last);
        (writes, whole)
    }

    /// The new root and the blocks of nodes that only the old tree has. Everything must have been written.
    pub(crate) fn finish(self) -> (Option<NodeRef>, Vec<u64>) {
        let root = self.root.map(|root| match root {
            Child::Clean(at) => at,
            _ => unreachable!("the last writes were taken before the rewrite is finished"),
        });
        (root, self.freed)
    }
}

struct Sink<'a, P> {
    cache: &'a mut NodeCache,
    place: &'a mut P,
    checkpoint: u64,
    writes: &'a mut Vec<(u64, Bytes)>,
}

impl<P: FnMut() -> Option<u64>> Sink<'_, P> {
    /// Writes what is dirty below `child`; `keep_right` spares the right edge, which the next slice may change.
    /// False when there is no room.
    fn settle(&mut self, child: &mut Child, keep_right: bool) -> bool {
        let clean = match child {
            Child::Clean(_) => return true,
            Child::Leaf(_) if keep_right => return true,
            Child::Leaf(rows) => self.write(|| Node::Leaf(std::mem::take(rows))),
            Child::Inner(level, children) => {
                let last_dirty = children.iter().rposition(|(_, child)| !matches!(child, Child::Clean(_)));
                for (i, (_, child)) in children.iter_mut().enumerate() {
                    if !self.settle(child, keep_right && Some(i) == last_dirty) {
                        return false;
                    }
                }
                if keep_right {
                    return true;
                }
                let children = children.iter().map(|(key, child)| match child {
                    Child::Clean(at) => (key.clone(), *at),
                    _ => unreachable!("all children were written just now"),
                });
                self.write(|| Node::Inner(*level, children.collect()))
            }
        };
        clean.is_some_and(|at| {
            *child = Child::Clean(at);
            true
        })
    }

    /// Takes the node only when there is a place for it.
    fn write(&mut self, node: impl FnOnce() -> Node) -> Option<NodeRef> {
        let block = (self.place)()?;
        let node = node();
        let page = match &node {
            Node::Leaf(rows) => encode_leaf(block, self.checkpoint, rows),
            Node::Inner(level, children) => encode_inner(block, self.checkpoint, *level, children),
        };
        let at = NodeRef { block, crc: crc32c::crc32c(&page) };
        // Decoded from the page, so that the cache holds one allocation per node and not one per row.
        let decoded = Node::decode(&page).expect("a node that was just encoded is well formed");
        self.cache.insert(at, Arc::new(decoded));
        self.writes.push((block, page));
        Some(at)
    }
}

fn level_of(child: &Child, cache: &mut NodeCache) -> u8 {
    match child {
        Child::Leaf(_) => 0,
        Child::Inner(level, _) => *level,
        Child::Clean(at) => match cache.get(*at).as_deref() {
            Some(Node::Inner(level, _)) => *level,
            _ => 0,
        },
    }
}

fn collect_misses(child: &Child, changes: &[Change], cache: &mut NodeCache, misses: &mut Vec<Miss>) {
    match child {
        Child::Leaf(_) => {}
        Child::Inner(_, children) => {
            for ((_, child), part) in children.iter().zip(split_changes(children, changes)) {
                if !part.is_empty() {
                    collect_misses(child, part, cache, misses);
                }
            }
        }
        Child::Clean(at) => match cache.get(*at).as_deref() {
            None => misses.push(Miss(*at)),
            Some(Node::Leaf(_)) => {}
            Some(Node::Inner(_, children)) => {
                for ((_, at), part) in children.iter().zip(split_changes(children, changes)) {
                    if !part.is_empty() {
                        collect_misses(&Child::Clean(*at), part, cache, misses);
                    }
                }
            }
        },
    }
}

/// The changes of each child, in order. The first child takes everything below the second one's key.
fn split_changes<'c, T>(children: &[(Bytes, T)], changes: &'c [Change]) -> Vec<&'c [Change]> {
    let mut rest = changes;
    let mut parts = Vec::with_capacity(children.len());
    for i in 0..children.len() {
        let end = match children.get(i + 1) {
            Some((bound, _)) => rest.partition_point(|(key, _)| key < bound),
            None => rest.len(),
        };
        let (part, tail) = rest.split_at(end);
        parts.push(part);
        rest = tail;
    }
    parts
}

fn merge(rows: Vec<Row>, changes: &[Change]) -> Vec<Row> {
    let mut out = Vec::with_capacity(rows.len() + changes.len());
    let mut rows = rows.into_iter().peekable();
    for (key, value) in changes {
        while let Some(row) = rows.next_if(|(k, _)| k < key) {
            out.push(row);
        }
        rows.next_if(|(k, _)| k == key);
        if let Some(value) = value {
            out.push((key.clone(), value.clone()));
        }
    }
    out.extend(rows);
    out
}

fn leaf_len(rows: &[Row]) -> usize {
    rows.iter().map(|(key, value)| row_len(key, value)).sum()
}

fn split_leaf(rows: Vec<Row>, changes: &[Change]) -> Vec<(Bytes, Child)> {
    let total = leaf_len(&rows);
    // Rows that arrive in key order at the right edge (a log) fill their leaves; others leave room on both sides.
    let appended = rows.last().is_some_and(|(key, _)| changes.first().is_some_and(|(first, _)| first <= key))
        && changes.last().is_some_and(|(key, _)| rows.last().is_some_and(|(last, _)| last == key));
    let target = if appended { ROOM } else { total.div_ceil(total.div_ceil(ROOM).max(1)) };
    let mut out: Vec<Vec<Row>> = Vec::new();
    let mut used = usize::MAX;
    for row in rows {
        let len = row_len(&row.0, &row.1);
        match out.last_mut() {
            Some(leaf) if used < target && used + len <= ROOM => leaf.push(row),
            _ => {
                out.push(vec![row]);
                used = 0;
            }
        }
        used += len;
    }
    out.into_iter().map(|leaf| (leaf[0].0.clone(), Child::Leaf(leaf))).collect()
}

fn split_inner(level: u8, children: Vec<(Bytes, Child)>) -> Vec<(Bytes, Child)> {
    let total: usize = children.iter().map(|(key, _)| child_len(key)).sum();
    let target = total.div_ceil(total.div_ceil(ROOM).max(1));
    let mut out: Vec<Vec<(Bytes, Child)>> = Vec::new();
    let mut used = usize::MAX;
    for child in children {
        let len = child_len(&child.0);
        match out.last_mut() {
            Some(node) if used < target && used + len <= ROOM => node.push(child),
            _ => {
                out.push(vec![child]);
                used = 0;
            }
        }
        used += len;
    }
    out.into_iter().map(|node| (node[0].0.clone(), Child::Inner(level, node))).collect()
}

fn push_joining(out: &mut Vec<(Bytes, Child)>, piece: (Bytes, Child)) {
    let (key, mut child) = piece;
    if let (Some((_, Child::Leaf(left))), Child::Leaf(right)) = (out.last_mut(), &mut child)
        && leaf_len(left) + leaf_len(right) <= JOIN_BELOW
    {
        left.append(right);
        return;
    }
    out.push((key, child));
}
