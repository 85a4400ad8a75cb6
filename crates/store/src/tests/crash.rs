//! Random histories with the power cut at any I/O, again and again on the same disk: after each cut every PG must be
//! exactly what its first k transactions make it, with no acknowledged one missing.

use std::collections::BTreeMap;

use cairn_disk::{CrashPolicy, Injection, SimDisk};
use cairn_types::PgId;

use super::harness::{Bench, DISK_LEN, Rng, appended, bytes, data_run, formatted, object, pg, write, zero};
use super::model::{PgModel, expected};
use super::random::transaction;
use crate::{Output, Token, Transaction, verify};

const PGS: u32 = 3;

/// One PG's history since the last restart.
#[derive(Default)]
struct History {
    /// The state at the restart.
    base: PgModel,
    /// The state after everything submitted.
    now: PgModel,
    submitted: Vec<(Token, Transaction)>,
    acknowledged: usize,
}

struct World {
    bench: Bench,
    pgs: BTreeMap<PgId, History>,
    rng: Rng,
}

impl World {
    fn new(seed: u64) -> Self {
        Self::on(formatted(SimDisk::new(DISK_LEN, seed)), seed, PGS)
    }

    fn on(disk: SimDisk, seed: u64, pgs: u32) -> Self {
        let pgs = (0..pgs).map(|i| (pg(i), History::default())).collect();
        Self { bench: Bench::open(disk, seed), pgs, rng: Rng(seed << 20) }
    }

    /// Submits one transaction somewhere and lets some I/O happen.
    fn operate(&mut self) {
        let id = pg(self.rng.below(u64::from(PGS)) as u32);
        let t = transaction(&mut self.rng, id, &self.pgs[&id].now);
        self.submit(t);
        if self.rng.chance(3) {
            self.bench.store.request_checkpoint();
        }
        for _ in 0..self.rng.below(6) {
            self.bench.step();
        }
        if self.rng.chance(10) {
            self.check_a_read(id);
        }
        self.take_answers();
    }

    fn submit(&mut self, t: Transaction) {
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
        self.bench.settle();
        let found = self.bench.outputs.iter().find_map(|output| match output {
            Output::Read { token: t, result } if *t == token => Some(result.clone()),
            _ => None,
        });
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
                _ => {}
            }
        }
    }

    /// The power was cut; opens again and compares.
    fn recover(mut self, policy: CrashPolicy, context: &str) -> Self {
        self.take_answers();
        let seed = self.rng.next();
        let mut disk = self.bench.disk.power_on(policy);
        if self.rng.chance(30) {
            // The power goes again while the store opens.
            disk.inject(Injection::PowerOffAt(disk.io_index() + self.rng.below(2)));
            assert!(Bench::try_open(disk.clone(), seed).is_err());
            disk = disk.power_on(policy);
        }
        self.bench = match Bench::try_open(disk, seed) {
            Ok(bench) => bench,
            Err(error) => panic!("{context}: {error}"),
        };
        assert_eq!(self.bench.lost, [], "{context}");
        for (id, history) in &mut self.pgs {
            let loaded = self.bench.loaded.get(id).cloned().unwrap_or_default();
            let mut state = history.base.clone();
            let mut matching = None;
            for k in 0..=history.submitted.len() {
                if k > 0 {
                    state.apply(&history.submitted[k - 1].1);
                }
                if k >= history.acknowledged && state.loaded() == loaded {
                    matching = Some((k, state.clone()));
                    if contents(&mut self.bench, *id) == state.tip() {
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
            let found = contents(&mut self.bench, *id);
            let tip = state.tip();
            assert_eq!(found.keys().collect::<Vec<_>>(), tip.keys().collect::<Vec<_>>(), "{context}: {id} after {k}");
            for (object, blocks) in &tip {
                for (block, cell) in blocks {
                    assert!(found[object].get(block) == Some(cell), "{context}: {object} block {block} after {k}");
                }
                assert_eq!(
                    found[object].len(),
                    blocks.len(),
                    "{context}: {object} after {k} of {}",
                    history.submitted.len()
                );
            }
            *history = History { base: state.clone(), now: state, ..History::default() };
        }
        self.bench.outputs.clear();
        let report = verify(&self.bench.disk).unwrap();
        assert_eq!(report.problems, Vec::<String>::new(), "{context}");
        self
    }
}

/// Everything in a PG, read back block by block.
pub(super) fn contents(
    bench: &mut Bench,
    id: PgId,
) -> BTreeMap<cairn_types::ObjectId, BTreeMap<u32, super::model::Cell>> {
    use super::model::Cell;
    use cairn_types::io::BlockState;
    let mut out = BTreeMap::new();
    for object in (0..4).map(|n| object(id, n)) {
        let reply = bench.read(id, object, 0, 200 * 4096).unwrap();
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

fn policy(rng: &mut Rng) -> CrashPolicy {
    match rng.below(4) {
        0 => CrashPolicy::LOSE_ALL,
        1 => CrashPolicy::KEEP_ALL,
        _ => CrashPolicy::HARSH,
    }
}

/// How many seeds: more on demand, by the environment.
pub(super) fn seeds(usual: u64) -> u64 {
    std::env::var("CAIRN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn random_histories_survive_random_power_cuts() {
    for seed in 0..seeds(60) {
        let mut world = World::new(seed);
        for life in 0..6 {
            let cut = world.bench.disk.io_index() + 1 + world.rng.below(120);
            world.bench.disk.inject(Injection::PowerOffAt(cut));
            while world.bench.disk.powered() {
                world.operate();
            }
            let policy = policy(&mut world.rng);
            world = world.recover(policy, &format!("seed {seed} life {life}"));
        }
    }
}

#[test]
fn long_histories_wrap_the_log_and_reuse_space() {
    for seed in 100..100 + seeds(60) / 15 {
        let mut world = World::new(seed);
        for life in 0..3 {
            for _ in 0..400 {
                world.operate();
            }
            assert_eq!(world.bench.store.failure(), None);
            let policy = policy(&mut world.rng);
            world = world.recover(policy, &format!("seed {seed} life {life}"));
        }
    }
}

/// One history, cut at each of its I/Os in turn.
#[test]
fn one_history_survives_a_cut_at_every_io() {
    let run = |cut: Option<u64>| {
        let mut world = World::new(7);
        if let Some(cut) = cut {
            world.bench.disk.inject(Injection::PowerOffAt(cut));
        }
        for _ in 0..60 {
            if world.bench.disk.powered() {
                world.operate();
            }
        }
        if world.bench.disk.powered() {
            world.bench.checkpoint();
        }
        world
    };
    let first = World::new(7).bench.disk.io_index();
    let last = run(None).bench.disk.io_index();
    assert!(last - first > 60);
    for cut in first..=last {
        run(Some(cut)).recover(CrashPolicy::HARSH, &format!("cut at {cut}"));
    }
}

/// A letter of the alphabet of small histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Letter {
    Write,
    Overwrite,
    LongWrite,
    Unmap,
    Commit,
    Rewind,
    Content,
    Remove,
    Checkpoint,
}

const ALPHABET: [Letter; 9] = [
    Letter::Write,
    Letter::Overwrite,
    Letter::LongWrite,
    Letter::Unmap,
    Letter::Commit,
    Letter::Rewind,
    Letter::Content,
    Letter::Remove,
    Letter::Checkpoint,
];

impl Letter {
    fn happen(self, world: &mut World, nth: u64) {
        let (id, object) = (pg(0), object(pg(0), 0));
        let model = &world.pgs[&id].now;
        let (commit, end) = (model.commit, model.end);
        let append = |logged| Transaction { append: vec![logged], ..Transaction::new(id, commit) };
        let t = match self {
            Self::Write => append(write(end + 1, object, 1, bytes(100 + nth, 2))),
            Self::Overwrite => append(write(end + 1, object, 0, bytes(200 + nth, 1))),
            Self::LongWrite => append(write(end + 1, object, 0, bytes(300 + nth, 17))),
            Self::Unmap => append(zero(end + 1, object, 1, 3, true)),
            Self::Commit => Transaction::new(id, end),
            Self::Rewind => Transaction { rewind: Some(commit), ..Transaction::new(id, commit) },
            Self::Content => {
                let content = vec![(object, vec![data_run(0, bytes(400 + nth, 2)), data_run(4, bytes(nth, 18))])];
                Transaction { content, ..Transaction::new(id, commit) }
            }
            Self::Remove => Transaction { remove: vec![object], ..Transaction::new(id, commit) },
            Self::Checkpoint => return world.bench.store.request_checkpoint(),
        };
        world.submit(t);
    }
}

/// Every history of three steps after a committed write, cut at every I/O.
#[test]
fn all_small_histories_survive_a_cut_at_every_io() {
    let mut world = World::on(formatted(SimDisk::new(8 << 20, 1)), 1, 1);
    world.submit(appended(pg(0), 0, vec![write(1, object(pg(0), 0), 0, bytes(1, 3))]));
    world.submit(Transaction::new(pg(0), 1));
    world.bench.checkpoint();
    let base = world.pgs[&pg(0)].now.clone();
    let disk = world.bench.disk.power_on(CrashPolicy::LOSE_ALL);
    let mut cuts = 0;
    for n in 0..ALPHABET.len().pow(3) {
        let word = [n % 9, n / 9 % 9, n / 81].map(|letter| ALPHABET[letter]);
        let run = |cut: u64| {
            let mut world = World::on(disk.fork(), n as u64, 1);
            world.pgs.insert(pg(0), History { base: base.clone(), now: base.clone(), ..History::default() });
            world.bench.disk.inject(Injection::PowerOffAt(world.bench.disk.io_index() + cut));
            for (nth, letter) in word.into_iter().enumerate() {
                letter.happen(&mut world, nth as u64);
                // Together, one by one, or half of each.
                match (n as u64 + cut) % 3 {
                    0 => {}
                    1 => world.bench.settle(),
                    _ => drop(world.bench.step()),
                }
            }
            world.bench.settle();
            world
        };
        for cut in 0.. {
            let world = run(cut);
            let done = world.bench.disk.powered();
            let policy = if cut % 2 == 0 { CrashPolicy::HARSH } else { CrashPolicy::LOSE_ALL };
            world.recover(policy, &format!("{word:?} cut at {cut}"));
            cuts += 1;
            if done {
                break;
            }
        }
    }
    assert!(cuts > 4000, "{cuts} cuts");
}
