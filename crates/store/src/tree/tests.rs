//! The index against a plain map, over random batches, with every node read back from its bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::{Change, MAX_KEY, MAX_VALUE, Miss, Node, NodeCache, NodeRef, Rewrite, get, rows_from};

/// Nodes by block, as a device would hold them.
#[derive(Default)]
struct Shelf {
    pages: BTreeMap<u64, Bytes>,
    next: u64,
}

impl Shelf {
    fn load(&self, cache: &mut NodeCache, miss: Miss) {
        let page = &self.pages[&miss.0.block];
        assert_eq!(crc32c::crc32c(page), miss.0.crc);
        cache.insert(miss.0, Arc::new(Node::decode(page).unwrap()));
    }

    fn commit(&mut self, root: Option<NodeRef>, changes: &[Change], slice: usize) -> Option<NodeRef> {
        let mut cache = NodeCache::new(4096);
        let mut rewrite = Rewrite::new(root, 1);
        for part in changes.chunks(slice) {
            while let Err(misses) = rewrite.apply(part, &mut cache) {
                misses.into_iter().for_each(|miss| self.load(&mut cache, miss));
            }
            self.write(&mut rewrite, &mut cache, false);
        }
        self.write(&mut rewrite, &mut cache, true);
        let (root, freed) = rewrite.finish();
        for block in freed {
            assert!(self.pages.remove(&block).is_some(), "a node is freed once");
        }
        root
    }

    fn write(&mut self, rewrite: &mut Rewrite, cache: &mut NodeCache, last: bool) {
        let next = &mut self.next;
        // Room comes in small portions: what found none goes on later.
        let mut whole = false;
        while !whole {
            let mut portion = 3;
            let mut place = || {
                portion -= 1;
                *next += 1;
                (portion > 0).then_some(*next)
            };
            let (writes, all) = rewrite.take_writes(last, cache, &mut place);
            for (block, page) in writes {
                assert!(self.pages.insert(block, page).is_none());
            }
            whole = all;
        }
    }

    fn all(&self, root: Option<NodeRef>) -> BTreeMap<Bytes, Bytes> {
        let mut cache = NodeCache::new(4096);
        let mut out = BTreeMap::new();
        let mut from = Bytes::new();
        loop {
            match rows_from(root, &from, &mut cache) {
                Err(miss) => self.load(&mut cache, miss),
                Ok(rows) => {
                    out.extend(rows.rows);
                    match rows.next {
                        Some(next) => from = next,
                        None => return out,
                    }
                }
            }
        }
    }
}

fn random(state: &mut u64) -> u64 {
    *state = cairn_types::id::mix(*state);
    *state
}

#[test]
fn it_holds_what_a_map_holds() {
    for seed in 0..12u64 {
        let mut state = seed;
        let (mut shelf, mut root, mut model) = (Shelf::default(), None, BTreeMap::new());
        for round in 0..12 {
            let mut batch = BTreeMap::new();
            let deletes = if round % 3 == 2 { 8 } else { 2 };
            for _ in 0..random(&mut state) % 400 {
                let number = random(&mut state) % 600;
                let mut key = number.to_be_bytes().to_vec();
                key.resize(8 + (number % 40) as usize, 7);
                let value = vec![number as u8; (random(&mut state) % 300) as usize];
                let keep = random(&mut state) % 10 >= deletes;
                batch.insert(Bytes::from(key), keep.then(|| Bytes::from(value)));
            }
            let changes: Vec<Change> = batch.into_iter().collect();
            root = shelf.commit(root, &changes, 1 + (random(&mut state) % 90) as usize);
            for (key, value) in changes {
                match value {
                    Some(value) => model.insert(key, value),
                    None => model.remove(&key),
                };
            }
            assert_eq!(shelf.all(root), model, "seed {seed} round {round}");
        }
        let mut cache = NodeCache::new(4096);
        for (key, value) in &model {
            let found = loop {
                match get(root, key, &mut cache) {
                    Ok(found) => break found,
                    Err(miss) => shelf.load(&mut cache, miss),
                }
            };
            assert_eq!(found.as_ref(), Some(value));
        }
    }
}

#[test]
fn deleting_everything_leaves_nothing() {
    let mut shelf = Shelf::default();
    let rows: Vec<Change> =
        (0..5000u32).map(|i| (Bytes::copy_from_slice(&i.to_be_bytes()), Some(Bytes::from(vec![1; 100])))).collect();
    let root = shelf.commit(None, &rows, 64);
    assert!(shelf.pages.len() < 5000 * 112 / 4000 + 20, "rows in key order fill their leaves: {}", shelf.pages.len());
    let gone: Vec<Change> = rows.into_iter().map(|(key, _)| (key, None)).collect();
    let root = shelf.commit(root, &gone, 64);
    assert_eq!(root, None);
    assert!(shelf.pages.is_empty());
}

#[test]
fn the_largest_rows_fit() {
    let mut shelf = Shelf::default();
    let rows: Vec<Change> = (0..50u8)
        .map(|i| {
            let mut key = vec![i];
            key.resize(MAX_KEY, 0);
            (Bytes::from(key), Some(Bytes::from(vec![i; MAX_VALUE])))
        })
        .collect();
    let root = shelf.commit(None, &rows, 7);
    assert_eq!(shelf.all(root).len(), 50);
}
