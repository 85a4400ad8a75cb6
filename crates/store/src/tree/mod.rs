//! The index: a copy-on-write B-tree of 4 KiB nodes in the data area.
//!
//! It plans no I/O by itself: a look-up either answers from cached nodes or names the node it misses, and a batch
//! of changes becomes new nodes for the caller to write. A node is never overwritten while a durable superblock
//! can reach it; each parent holds its child's crc32c, so that a torn, lost, misdirected or rotten node is seen
//! when it is read. There is no log of its own: the WAL is its truth, a checkpoint is one new root.

mod cache;
mod lookup;
mod node;
mod rewrite;

pub(crate) use cache::NodeCache;
pub(crate) use lookup::{check_children, get, rows_from};
pub use node::NodeRef;
#[cfg(test)]
pub(crate) use node::{MAX_KEY, encode_leaf};
pub(crate) use node::{MAX_VALUE, NODE_SIZE, Node};
pub(crate) use rewrite::{Change, Rewrite};

/// A node that must be read before the question can be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Miss(pub(crate) NodeRef);

#[cfg(test)]
mod tests;
