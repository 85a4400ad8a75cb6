//! Histories of some groups on one disk, and what a disk may hold after the power went: every PG must be exactly what
//! its first k transactions make it, with no acknowledged one missing.

use std::collections::BTreeMap;

use cairn_disk::{CrashPolicy, Injection, SimDisk};
use cairn_types::io::BlockState;
use cairn_types::{ObjectId, PgId};

use super::harness::{Bench, Rng, object, pg};
use super::model::{Cell, PgModel, expected};
use super::random::transaction;
use crate::{Output, Token, Transaction, verify};

/// Each write kept or lost, in any order.
const LOSE_SOME: CrashPolicy = CrashPolicy { lose: 500, tear: 0, flip: 0, reorder: true };
/// Each write torn, in any order.
const TEAR: CrashPolicy = CrashPolicy { lose: 0, tear: 1000, flip: 0, reorder: true };
/// Each write kept, or kept with a flipped bit.
const FLIP: CrashPolicy = CrashPolicy { lose: 0, tear: 0, flip: 500, reorder: true };

/// What may happen to unsynced writes.
pub(super) const POLICIES: [CrashPolicy; 6] =
    [CrashPolicy::LOSE_ALL, CrashPolicy::KEEP_ALL, CrashPolicy::HARSH, LOSE_SOME, TEAR, FLIP];

/// One PG's history since the last restart.
#[derive(Clone, Default)]
pub(super) struct History {
    /// The state at the restart.
    base: PgModel,
    /// The state after everything submitted.
    pub(super) now: PgModel,
    submitted: Vec<(Token, Transaction)>,
    acknowledged: usize,
}

impl History {
    pub(super) fn after(base: &PgModel) -> Self {
        Self { base: base.clone(), now: base.clone(), ..Self::default() }
    }
}

pub(super) struct World {
    pub(super) bench: Bench,
    pub(super) pgs: BTreeMap<PgId, History>,
    pub(super) rng: Rng,
    /// What every I/O leaves on the disk is looked at, under so many policies.
    pub(super) images: usize,
    /// Per cent of operations after which a checkpoint is asked for.
    pub(super) checkpoints: u64,
    pub(super) looked_at: u64,
}

impl World {
    pub(super) fn on(disk: SimDisk, seed: u64, pgs: u32) -> Self {
        let pgs = (0..pgs).map(|i| (pg(i), History::default())).collect();
        Self { bench: Bench::open(disk, seed), pgs, rng: Rng(seed << 20), images: 0, checkpoints: 3, looked_at: 0 }
    }

    /// One I/O, and what a power cut right after it would leave.
    pub(super) fn step(&mut self) -> bool {
        self.bench.keep_midway = self.images > 0;
        let more = self.bench.step();
        if let Some(disk) = self.bench.midway.take() {
            self.look_at_images(&disk);
        }
        self.take_answers();
        if more && self.images > 0 && self.bench.disk.powered() {
            self.look_at_images(&self.bench.disk.clone());
        }
        more
    }

    pub(super) fn settle(&mut self) {
        while self.step() {}
        self.bench.settle();
        self.take_answers();
    }

    fn look_at_images(&mut self, disk: &SimDisk) {
        let io = disk.io_index();
        let first = self.rng.next() as usize;
        for i in 0..self.images {
            let policy = POLICIES[(first + i) % POLICIES.len()];
            let disk = disk.fork().power_on(policy);
            examine(disk, &self.pgs, self.rng.next(), &format!("after I/O {io}, {policy:?}"));
            self.looked_at += 1;
        }
    }

    /// Submits one transaction somewhere and lets some I/O happen.
    pub(super) fn operate(&mut self) {
        let id = pg(self.rng.below(self.pgs.len() as u64) as u32);
        let t = transaction(&mut self.rng, id, &self.pgs[&id].now);
        self.submit(t);
        if self.rng.chance(self.checkpoints) {
            self.bench.store.request_checkpoint();
        }
        for _ in 0..self.rng.below(6) {
            self.step();
        }
        if self.rng.chance(10) {
            self.check_a_read(id);
        }
        self.take_answers();
    }

    pub(super) fn submit(&mut self, t: Transaction) {
        let history = self.pgs.get_mut(&t.pg).unwrap();
        let token = self.bench.store.submit(t.clone());
        history.now.apply(&t);
        history.submitted.push((token, t));
    }

    /// A read answers with what was submitted, durable or not.
    fn check_a_read(&mut self, id: PgId) {
        let object = object(id, self.rng.below(4));
        let (block, blocks) = (self.rng.below(150) as u32, 1 + self.rng.below(60) as u32);
        let tip = self.pgs[&id].now.tip();
        let token = self.bench.store.read(id, object, block * 4096, blocks * 4096);
        self.settle();
        let found = self.bench.outputs.iter().find_map(|output| match output {
            Output::Read { token: t, result } if *t == token => Some(result.clone()),
            _ => None,
        });
        self.bench.outputs.clear();
        match found {
            Some(result) => {
                let reply = result.unwrap();
                let (data, states) = expected(tip.get(&object), block * 4096, blocks * 4096);
                assert_eq!(reply.blocks, states, "{object} from block {block}");
                assert!(reply.data == data, "{object} from block {block}: the bytes differ");
            }
            None => assert!(self.bench.store.failure().is_some(), "a read was not answered"),
        }
    }

    /// Remembers acknowledgements; answers to reads stay.
    fn take_answers(&mut self) {
        for output in std::mem::take(&mut self.bench.outputs) {
            match output {
                Output::Persisted { token } => {
                    for history in self.pgs.values_mut() {
                        if let Some(i) = history.submitted.iter().position(|(t, _)| *t == token) {
                            assert_eq!(i, history.acknowledged, "acknowledged in order");
                            history.acknowledged = i + 1;
                        }
                    }
                }
                Output::Rejected { reason, .. } => panic!("{reason}"),
                Output::Read { .. } => self.bench.outputs.push(output),
                Output::Inspected { .. } | Output::Listed { .. } | Output::Failed { .. } => {}
            }
        }
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.pgs.values().map(|history| history.acknowledged).sum()
    }

    /// The power was cut; opens again, compares, and goes on from what is there.
    pub(super) fn recover(mut self, policy: CrashPolicy, context: &str) -> Self {
        self.take_answers();
        let seed = self.rng.next();
        let mut disk = self.bench.disk.power_on(policy);
        if self.rng.chance(30) {
            // The power goes again while the store opens.
            disk.inject(Injection::PowerOffAt(disk.io_index() + self.rng.below(2)));
            assert!(Bench::try_open(disk.clone(), seed).is_err());
            disk = disk.power_on(policy);
        }
        let (bench, states) = examine(disk, &self.pgs, seed, context);
        self.bench = bench;
        self.bench.outputs.clear();
        self.pgs = states.iter().map(|(id, state)| (*id, History::after(state))).collect();
        self
    }
}

/// Opens the disk and compares what is there; gives back the states that it holds.
fn examine(disk: SimDisk, pgs: &BTreeMap<PgId, History>, seed: u64, context: &str) -> (Bench, BTreeMap<PgId, PgModel>) {
    let mut bench = match Bench::try_open(disk, seed) {
        Ok(bench) => bench,
        Err(error) => panic!("{context}: {error}"),
    };
    assert_eq!(bench.lost, [], "{context}");
    let mut states = BTreeMap::new();
    for (id, history) in pgs {
        let loaded = bench.loaded.get(id).cloned().unwrap_or_default();
        let found = contents(&mut bench, *id);
        let mut state = history.base.clone();
        let mut matching = None;
        for k in 0..=history.submitted.len() {
            if k > 0 {
                state.apply(&history.submitted[k - 1].1);
            }
            if k >= history.acknowledged && state.loaded() == loaded {
                matching = Some((k, state.clone()));
                if found == state.tip() {
                    break;
                }
            }
        }
        let Some((k, state)) = matching else {
            panic!(
                "{context}: {id} is none of the states after {} to {} transactions: commit {} end {} log {:?}",
                history.acknowledged,
                history.submitted.len(),
                loaded.commit,
                loaded.end,
                loaded.log.iter().map(|entry| entry.version.seq).collect::<Vec<_>>()
            );
        };
        let tip = state.tip();
        assert_eq!(found.keys().collect::<Vec<_>>(), tip.keys().collect::<Vec<_>>(), "{context}: {id} after {k}");
        for (object, blocks) in &tip {
            for (block, cell) in blocks {
                assert!(found[object].get(block) == Some(cell), "{context}: {object} block {block} after {k}");
            }
            assert_eq!(found[object].len(), blocks.len(), "{context}: {object} after {k}");
        }
        states.insert(*id, state);
    }
    let report = verify(&bench.disk).unwrap();
    assert!(report.is_clean(), "{context}: {:?}", report.problems);
    (bench, states)
}

/// Everything in a PG, read back block by block.
pub(super) fn contents(bench: &mut Bench, id: PgId) -> BTreeMap<ObjectId, BTreeMap<u32, Cell>> {
    let mut out = BTreeMap::new();
    for object in (0..4).map(|n| object(id, n)) {
        let reply = match bench.read(id, object, 0, 200 * 4096) {
            Ok(reply) => reply,
            Err(failure) => panic!("{failure}"),
        };
        let mut blocks = BTreeMap::new();
        for (i, state) in reply.blocks.iter().enumerate() {
            match state {
                BlockState::Absent => {}
                BlockState::Zero => {
                    blocks.insert(i as u32, Cell::Zero);
                }
                BlockState::Data { crc } => {
                    blocks.insert(i as u32, Cell::Data(*crc, reply.data.slice(i * 4096..(i + 1) * 4096)));
                }
            }
        }
        if !blocks.is_empty() {
            out.insert(object, blocks);
        }
    }
    out
}
