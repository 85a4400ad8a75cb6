//! The ordered key space the machine reads and the batches it writes: the seam to RocksDB and to the simulation.
//!
//! The machine never writes by itself. It reads the state as the previous command left it and answers a batch, which
//! its driver writes together with the applied index, or not at all.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// The state as the last written batch left it.
///
/// A read that cannot be carried out is the implementation's to deal with: a member that cannot read its own state
/// must stop, because no answer it could give would be the answer of the others.
pub trait StateRead {
    /// The value under a key.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Visits records in key order until `visit` answers `false`: from `from` (inclusive) upwards, or, `reverse`, from
    /// the greatest key strictly below `from` downwards.
    fn scan(&self, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool);
}

/// One change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key has this value now.
    Put(Bytes, Bytes),
    /// The key is gone.
    Delete(Bytes),
}

/// The changes of one command: each key at most once, in key order. All of them happen, or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In key order.
    pub changes: Vec<Change>,
}

impl Batch {
    /// Changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// A state in memory: what tests and simulations run on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryState {
    records: BTreeMap<Bytes, Bytes>,
}

impl MemoryState {
    /// Carries a batch out.
    pub fn write(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match change {
                Change::Put(key, value) => {
                    self.records.insert(key.clone(), value.clone());
                }
                Change::Delete(key) => {
                    self.records.remove(key);
                }
            }
        }
    }

    /// All records in key order: what a snapshot carries.
    pub fn records(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.records.iter()
    }
}

impl FromIterator<(Bytes, Bytes)> for MemoryState {
    fn from_iter<T: IntoIterator<Item = (Bytes, Bytes)>>(records: T) -> Self {
        Self { records: records.into_iter().collect() }
    }
}

impl StateRead for MemoryState {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.records.get(key).cloned()
    }

    fn scan(&self, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        if reverse {
            let below = self.records.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(from)));
            below.rev().all(|(key, value)| visit(key, value));
        } else {
            let above = self.records.range::<[u8], _>((Bound::Included(from), Bound::Unbounded));
            above.into_iter().all(|(key, value)| visit(key, value));
        }
    }
}

/// The state as it will be once the command at hand is written: reads see the command's own changes.
pub(crate) struct Overlay<'a> {
    base: &'a dyn StateRead,
    changes: BTreeMap<Bytes, Option<Bytes>>,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a dyn StateRead) -> Self {
        Self { base, changes: BTreeMap::new() }
    }

    pub(crate) fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.changes.insert(key.into(), Some(value.into()));
    }

    pub(crate) fn delete(&mut self, key: impl Into<Bytes>) {
        self.changes.insert(key.into(), None);
    }

    pub(crate) fn is_unchanged(&self) -> bool {
        self.changes.is_empty()
    }

    /// Takes over the changes of an overlay that lay on this one.
    pub(crate) fn absorb(&mut self, batch: Batch) {
        for change in batch.changes {
            match change {
                Change::Put(key, value) => self.put(key, value),
                Change::Delete(key) => self.delete(key),
            }
        }
    }

    pub(crate) fn into_batch(self) -> Batch {
        let change = |(key, value)| match value {
            Some(value) => Change::Put(key, value),
            None => Change::Delete(key),
        };
        Batch { changes: self.changes.into_iter().map(change).collect() }
    }
}

impl StateRead for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match self.changes.get(key) {
            Some(change) => change.clone(),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], reverse: bool, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) {
        let range: (Bound<&[u8]>, Bound<&[u8]>) = match reverse {
            true => (Bound::Unbounded, Bound::Excluded(from)),
            false => (Bound::Included(from), Bound::Unbounded),
        };
        let ours = self.changes.range::<[u8], _>(range);
        let ours: Box<dyn Iterator<Item = _>> = if reverse { Box::new(ours.rev()) } else { Box::new(ours) };
        let mut ours = ours.peekable();
        let mut going = true;
        self.base.scan(from, reverse, &mut |key, value| {
            while let Some((own, _)) = ours.peek() {
                let order = if reverse { key.cmp(own) } else { own.as_ref().cmp(key) };
                if order.is_gt() {
                    break;
                }
                let (own, change) = ours.next().expect("it was peeked at");
                if let Some(own_value) = change {
                    going = visit(own, own_value);
                }
                if order.is_eq() || !going {
                    return going;
                }
            }
            going = visit(key, value);
            going
        });
        while going && let Some((own, change)) = ours.next() {
            if let Some(own_value) = change {
                going = visit(own, own_value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    fn seen(state: &dyn StateRead, from: &[u8], reverse: bool, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut all = Vec::new();
        state.scan(from, reverse, &mut |key, value| {
            all.push((key.to_vec(), value.to_vec()));
            all.len() < limit
        });
        all
    }

    proptest! {
        /// Reading through an overlay is reading the state after its batch.
        #[test]
        fn an_overlay_reads_like_the_written_batch(
            base in proptest::collection::btree_map(0u8..40, any::<u8>(), 0..20),
            changes in proptest::collection::vec((0u8..40, any::<Option<u8>>()), 0..20),
            from in 0u8..41, reverse: bool, limit in 1usize..50,
        ) {
            let bytes = |b: u8| Bytes::copy_from_slice(&[b]);
            let state: MemoryState = base.iter().map(|(k, v)| (bytes(*k), bytes(*v))).collect();
            let mut overlay = Overlay::new(&state);
            for (key, change) in changes {
                match change {
                    Some(value) => overlay.put(bytes(key), bytes(value)),
                    None => overlay.delete(bytes(key)),
                }
            }
            let through = seen(&overlay, &[from], reverse, limit);
            let batch = overlay.into_batch();
            let mut after = state.clone();
            after.write(&batch);
            prop_assert_eq!(through, seen(&after, &[from], reverse, limit));
        }
    }
}
