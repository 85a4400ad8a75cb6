//! What every [`Store`] must do, as random walks from a seed against a small model. The model remembers the state
//! after every apply, so that after a crash it can say which of them the store is allowed to show.

use std::collections::BTreeMap;

use bytes::Bytes;
use cairn_meta_core::{Batch, Change, MemoryState, StateRead};
use cairn_proto::meta_raft::Record;
use cairn_types::id::mix;
use raft::eraftpb::{ConfState, Entry, HardState};

use crate::memory::{manifest_of, piece_of};
use crate::store::{Position, Store, StoreError, position_of};

/// How a kind of store is made and crashed.
pub trait Rig {
    /// The kind.
    type Store: Store;
    /// An empty one, of a cluster with the voters 1, 2 and 3.
    fn fresh(&mut self) -> Self::Store;
    /// The same disk after a crash, which may take away unsynced writes as the dice say.
    fn crash(&mut self, store: Self::Store, dice: u64) -> Self::Store;
}

/// What is there after an apply. The configuration belongs to it: a crash shows both as of the same entry.
#[derive(Clone)]
struct Moment {
    at: Position,
    state: MemoryState,
    conf: ConfState,
}

struct Model {
    dice: u64,
    truncated: Position,
    entries: Vec<Entry>,
    hard_state: HardState,
    /// The state after each apply since the last one that surely survives, which comes first.
    states: Vec<Moment>,
    checkpoints: BTreeMap<Position, MemoryState>,
    newest_checkpoint: u64,
    term: u64,
}

/// Walks `steps` steps.
///
/// # Panics
/// When the store does what it must not.
pub fn run<R: Rig>(rig: &mut R, seed: u64, steps: usize) {
    let mut store = rig.fresh();
    let mut model = Model::new(seed);
    for _ in 0..steps {
        match model.roll(24) {
            0..=6 => model.append(&mut store),
            7 => model.overwrite(&mut store),
            8..=15 => model.apply(&mut store),
            16 => model.vote(&mut store),
            17 => model.checkpoint(&mut store),
            18 => model.truncate(&mut store),
            19 => model.truncate_too_far(&mut store),
            20 => model.read_checkpoint(&mut store),
            21 => store = model.install(rig, store),
            _ => store = model.crash(rig, store),
        }
        model.compare(&store);
    }
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            dice: mix(seed),
            truncated: Position::default(),
            entries: Vec::new(),
            hard_state: HardState::default(),
            states: vec![Moment { at: Position::default(), state: MemoryState::default(), conf: three() }],
            checkpoints: BTreeMap::new(),
            newest_checkpoint: 0,
            term: 1,
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice = mix(self.dice);
        self.dice % sides
    }

    fn bytes(&mut self, max: u64) -> Bytes {
        let len = self.roll(max);
        (0..len).map(|_| self.roll(256) as u8).collect()
    }

    fn last(&self) -> Position {
        self.entries.last().map_or(self.truncated, |e| Position { term: e.term, index: e.index })
    }

    fn now(&self) -> &Moment {
        self.states.last().expect("there is always a state")
    }

    fn new_entries(&mut self, from: u64) -> Vec<Entry> {
        let count = 1 + self.roll(4);
        let make = |model: &mut Self, index| {
            let data = model.bytes(200);
            Entry { index, term: model.term, data, context: vec![index as u8; 3].into(), ..Entry::default() }
        };
        (from..from + count).map(|index| make(self, index)).collect()
    }

    fn write_entries(&mut self, store: &mut impl Store, from: u64) {
        let new = self.new_entries(from);
        self.hard_state.term = self.term;
        store.append(&new, Some(&self.hard_state), true).unwrap();
        self.entries.truncate((from - self.truncated.index - 1) as usize);
        self.entries.extend(new);
        // A sync makes everything before it durable.
        let newest = self.states.pop().expect("there is always a state");
        self.states = vec![newest];
    }

    fn append(&mut self, store: &mut impl Store) {
        self.write_entries(store, self.last().index + 1);
    }

    fn overwrite(&mut self, store: &mut impl Store) {
        let applied = self.now().at.index;
        let free = self.last().index - applied;
        if free > 0 {
            self.term += 1;
            let from = applied + 1 + self.roll(free);
            self.write_entries(store, from);
        }
    }

    fn vote(&mut self, store: &mut impl Store) {
        self.term += 1;
        self.hard_state = HardState { term: self.term, vote: 1 + self.roll(3), ..HardState::default() };
        store.append(&[], Some(&self.hard_state), true).unwrap();
        let newest = self.states.pop().expect("there is always a state");
        self.states = vec![newest];
    }

    fn apply(&mut self, store: &mut impl Store) {
        let next = self.now().at.index + 1;
        let Some(term) = self.entries.iter().find(|e| e.index == next).map(|e| e.term) else { return };
        let mut changes = BTreeMap::new();
        for _ in 0..self.roll(5) {
            let key = Bytes::from(format!("key-{:02}", self.roll(40)));
            let value = self.bytes(120);
            let change = if self.roll(4) == 0 { Change::Delete(key.clone()) } else { Change::Put(key.clone(), value) };
            changes.insert(key, change);
        }
        let batch = Batch { changes: changes.into_values().collect() };
        let at = Position { term, index: next };
        let mut now = self.now().clone();
        if self.roll(3) == 0 {
            now.conf = self.another_conf(next);
            store.apply_change(at, &batch, &now.conf).unwrap();
        } else {
            store.apply(at, &batch).unwrap();
        }
        now.at = at;
        now.state.write(&batch);
        self.states.push(now);
    }

    /// No two of one walk are the same: each shows after which entry it was.
    fn another_conf(&mut self, index: u64) -> ConfState {
        let outgoing = if self.roll(4) == 0 { vec![1, 2] } else { Vec::new() };
        ConfState { learners: vec![index + 3], voters_outgoing: outgoing, ..three() }
    }

    fn checkpoint(&mut self, store: &mut impl Store) {
        store.start_checkpoint().unwrap();
        let manifest = loop {
            match store.poll_checkpoint().unwrap() {
                Some(manifest) => break manifest,
                None => std::hint::spin_loop(),
            }
        };
        let now = self.now().clone();
        assert_eq!(position_of(&manifest), now.at, "nothing was applied meanwhile");
        let records = now.state.records().map(|(k, v)| (k.as_ref(), v.as_ref()));
        assert_eq!(manifest, manifest_of(now.at, &now.conf, records));
        self.newest_checkpoint = now.at.index;
        self.checkpoints.insert(now.at, now.state.clone());
        self.states = vec![now];
    }

    fn truncate(&mut self, store: &mut impl Store) {
        let highest = self.newest_checkpoint.min(self.now().at.index);
        if highest <= self.truncated.index {
            return;
        }
        let index = self.truncated.index + 1 + self.roll(highest - self.truncated.index);
        store.truncate(index).unwrap();
        let cut = (index - self.truncated.index) as usize;
        let gone: Vec<Entry> = self.entries.drain(..cut).collect();
        self.truncated = Position { term: gone.last().expect("cut is not 0").term, index };
    }

    fn truncate_too_far(&mut self, store: &mut impl Store) {
        let asked = self.newest_checkpoint + 1;
        let refused = StoreError::NotCheckpointed { asked, checkpoint: self.newest_checkpoint };
        assert_eq!(store.truncate(asked), Err(refused));
    }

    fn read_checkpoint(&mut self, store: &mut impl Store) {
        let Some(manifest) = store.checkpoint().cloned() else { return };
        let at = position_of(&manifest);
        let max_bytes = 1 + self.roll(500) as usize;
        let (mut after, mut records) = (None, Vec::new());
        loop {
            let piece = store.read_piece(at, after.as_deref(), max_bytes).unwrap().expect("the newest is kept");
            after = piece.records.last().map(|r| r.key.to_vec()).or(after);
            records.extend(piece.records);
            if piece.last {
                break;
            }
        }
        let expected: Vec<Record> = records_of(&self.checkpoints[&at]);
        assert_eq!(records, expected, "a checkpoint reads back as the state it was made of");
        let unknown = Position { term: at.term, index: at.index + 1 };
        assert_eq!(store.read_piece(unknown, None, 1).unwrap(), None);
    }

    /// Receives a snapshot from nowhere: damaged first, then interrupted by a crash, then whole.
    fn install<R: Rig>(&mut self, rig: &mut R, mut store: R::Store) -> R::Store {
        self.term += 1;
        let at = Position { term: self.term, index: self.last().index + 1 + self.roll(50) };
        let state: MemoryState =
            (0..self.roll(60)).map(|n| (Bytes::from(format!("key-{n:02}")), self.bytes(80))).collect();
        let conf = ConfState { learners: vec![at.index + 3], ..three() };
        let manifest = manifest_of(at, &conf, state.records().map(|(k, v)| (k.as_ref(), v.as_ref())));
        let records = records_of(&state);
        if self.roll(3) == 0 && !records.is_empty() {
            store.begin_install(&manifest).unwrap();
            let mut damaged = records.clone();
            damaged[0].value = Bytes::from_static(b"something else");
            store.install_piece(&damaged).unwrap();
            assert!(!store.verify_install().unwrap(), "damage is noticed");
        }
        let mut cursor = store.begin_install(&manifest).unwrap();
        assert_eq!(cursor, None, "nothing of it was received");
        if self.roll(2) == 0 {
            store.install_piece(&records[..records.len() / 2]).unwrap();
            store = self.crash(rig, store);
            cursor = store.begin_install(&manifest).unwrap();
        }
        let rest = piece_of(&state, cursor.as_deref(), usize::MAX);
        store.install_piece(&rest.records).unwrap();
        assert!(store.verify_install().unwrap(), "it arrived whole");
        self.compare(&store);
        let hard_state = HardState { term: self.term, vote: 2, commit: at.index, ..HardState::default() };
        store.finish_install(&hard_state, &conf).unwrap();
        *self = Self {
            truncated: at,
            entries: Vec::new(),
            hard_state,
            states: vec![Moment { at, state: state.clone(), conf }],
            checkpoints: BTreeMap::from([(at, state)]),
            newest_checkpoint: at.index,
            ..Self::new(self.dice)
        };
        self.term = at.term;
        store
    }

    fn crash<R: Rig>(&mut self, rig: &mut R, store: R::Store) -> R::Store {
        let checkpoint = store.checkpoint().cloned();
        let dice = self.roll(u64::MAX);
        let store = rig.crash(store, dice);
        let applied = store.applied();
        let moment = self.states.iter().find(|moment| moment.at == applied);
        let moment = moment.unwrap_or_else(|| panic!("{applied:?} did not survive, or never was")).clone();
        self.states = vec![moment];
        assert_eq!(store.checkpoint(), checkpoint.as_ref(), "checkpoints survive");
        store
    }

    fn compare(&mut self, store: &impl Store) {
        assert_eq!(store.truncated(), self.truncated, "truncations survive");
        assert_eq!(store.last(), self.last(), "entries survive");
        let hard_state = store.hard_state();
        assert_eq!((hard_state.term, hard_state.vote), (self.hard_state.term, self.hard_state.vote), "votes survive");
        for index in self.truncated.index.saturating_sub(1)..=self.last().index + 1 {
            let expected = match index {
                i if i == self.truncated.index => Some(self.truncated.term),
                i => self.entries.iter().find(|e| e.index == i).map(|e| e.term),
            };
            assert_eq!(store.term(index), expected, "term of {index}");
        }
        if !self.entries.is_empty() {
            let low = self.roll(self.entries.len() as u64) as usize;
            let first = self.entries[low].index;
            let read = store.entries(first, self.last().index + 1, u64::MAX).unwrap();
            assert_eq!(read, self.entries[low..], "entries survive");
            let one = store.entries(first, self.last().index + 1, 1).unwrap();
            assert_eq!(one, self.entries[low..=low], "a limit leaves at least one");
        }
        let Moment { at, state, conf } = self.now().clone();
        assert_eq!(store.applied(), at);
        assert_eq!(store.conf_state(), conf, "the configuration is that of the entry applied last");
        assert_eq!(seen(store.state(), b"", false), seen(&state, b"", false));
        let from = format!("key-{:02}", self.roll(41));
        for reverse in [false, true] {
            assert_eq!(seen(store.state(), from.as_bytes(), reverse), seen(&state, from.as_bytes(), reverse));
        }
        assert_eq!(store.state().get(from.as_bytes()), state.get(from.as_bytes()));
    }
}

fn three() -> ConfState {
    ConfState { voters: vec![1, 2, 3], ..ConfState::default() }
}

fn records_of(state: &MemoryState) -> Vec<Record> {
    state.records().map(|(key, value)| Record { key: key.clone(), value: value.clone() }).collect()
}

fn seen(state: &dyn StateRead, from: &[u8], reverse: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    state.scan(from, reverse, &mut |key, value| {
        all.push((key.to_vec(), value.to_vec()));
        true
    });
    all
}
