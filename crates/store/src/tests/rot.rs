//! Rot: bits flip in the log, in the index, in the superblocks, in data, after everything there was known to be
//! durable. What follows is one of two things: the store refuses to open, in words, or each block is what was
//! acknowledged or says that it is bad. It is never something else, and nothing aborts, then or later.

use std::collections::{BTreeMap, BTreeSet};

use cairn_disk::{CrashPolicy, Disk, SimDisk};
use cairn_types::{ObjectId, PgId};

use super::crash::{new_world, seeds};
use super::harness::{Bench, Rng, data_run, object, pg};
use super::model::{Cell, PgModel, expected};
use super::random::transaction;
use crate::superblock::{COPIES, REGIONS_START};
use crate::{Error, FormatOptions, Output, Transaction, format, open, read_superblock, verify};

const PGS: u32 = 3;

/// Where bits flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    /// Anywhere in the log.
    Log,
    /// In what records carry after their first block: data, mostly.
    LogData,
    /// In nodes of the index, live or left behind.
    Index,
    /// Anywhere in the area.
    Area,
    /// In one copy of the superblock.
    Superblock(usize),
}

const SPOTS: [Spot; 6] = [Spot::LogData, Spot::Log, Spot::Index, Spot::Area, Spot::Superblock(0), Spot::Superblock(1)];

/// A disk whose blocks may be bad, and what is on it.
struct Rotten {
    bench: Bench,
    models: BTreeMap<PgId, PgModel>,
    /// Blocks that may be bad: they were when the disk was opened, and not written since.
    bad: BTreeSet<(ObjectId, u32)>,
    rng: Rng,
}

/// A history, all of it acknowledged, and proven durable by records that came after it.
fn history(seed: u64) -> (SimDisk, BTreeMap<PgId, PgModel>) {
    let mut world = new_world(seed);
    world.checkpoints = [0, 3, 10][seed as usize / SPOTS.len() % 3];
    for _ in 0..20 + world.rng.below(120) {
        world.operate();
    }
    world.settle();
    for n in 0..5u8 {
        world.bench.store.put_note(&[n], bytes::Bytes::from_static(b"later"));
        world.settle();
    }
    assert_eq!(world.bench.store.failure(), None);
    let models = world.pgs.iter().map(|(id, history)| (*id, history.now.clone())).collect();
    (world.bench.disk.power_on(CrashPolicy::KEEP_ALL), models)
}

/// The blocks in which bits may flip.
fn places(disk: &SimDisk, spot: Spot) -> Vec<u64> {
    let shard = read_superblock(disk).unwrap().unwrap().shard();
    let range = match spot {
        Spot::Superblock(copy) => return vec![COPIES[copy]],
        Spot::Log | Spot::LogData => REGIONS_START..REGIONS_START + shard.ring_len,
        Spot::Index | Spot::Area => shard.area_start..shard.area_start + shard.area_len,
    };
    let mut block = [0; 4096];
    let mut fits = |at: &u64| {
        disk.read_at(*at, &mut block).unwrap();
        match spot {
            Spot::LogData => !block.starts_with(b"CWAL") && block.iter().any(|byte| *byte != 0),
            Spot::Index => block.starts_with(b"CIDX"),
            _ => block.iter().any(|byte| *byte != 0),
        }
    };
    range.step_by(4096).filter(|at| fits(at)).collect()
}

fn flip(disk: &SimDisk, spot: Spot, rng: &mut Rng) {
    let places = places(disk, spot);
    for _ in 0..[1, 2, 8, 64][rng.below(4) as usize] {
        if let Some(at) = places.get(rng.below(places.len() as u64) as usize) {
            disk.flip_bit(at + rng.below(4096), rng.below(8) as u8);
        }
    }
}

impl Rotten {
    /// What is on the disk now, block by block: right, or bad where it may be.
    fn check(&mut self, opening: bool, context: &str) {
        for (id, model) in &self.models {
            let tip = model.tip();
            for object in (0..4).map(|n| object(*id, n)) {
                let failed = match self.bench.read(*id, object, 0, 200 * 4096) {
                    Ok(_) => BTreeSet::new(),
                    Err(failure) => failure.offsets.iter().map(|at| at / 4096).collect::<BTreeSet<_>>(),
                };
                if opening {
                    self.bad.extend(failed.iter().map(|block| (object, *block)));
                }
                for block in 0..200 {
                    assert!(
                        !failed.contains(&block) || self.bad.contains(&(object, block)),
                        "{context}: {object} {block}"
                    );
                }
                let good = (0..200).filter(|block| !failed.contains(block)).collect::<Vec<u32>>();
                for run in good.chunk_by(|a, b| a + 1 == *b) {
                    let (offset, len) = (run[0] * 4096, run.len() as u32 * 4096);
                    let reply = self.bench.read(*id, object, offset, len).unwrap();
                    let (data, states) = expected(tip.get(&object), offset, len);
                    assert_eq!(reply.blocks, states, "{context}: {object} from block {}", run[0]);
                    assert!(reply.data == data, "{context}: {object} from block {}: the bytes differ", run[0]);
                }
            }
        }
        let problems = verify(&self.bench.disk).unwrap().problems;
        let claimed = problems.iter().find(|problem| problem.what.contains("claimed") || problem.object.is_none());
        assert_eq!(claimed, None, "{context}");
    }

    /// Blocks that pending entries cover may be bad below them, and come to light when those are forgotten.
    fn note_hidden(&mut self) {
        for logged in self.models.values().flat_map(|model| model.pending.values()) {
            let (offset, len) = logged.entry.op.span(200 * 4096);
            let blocks = offset / 4096..(offset + len) / 4096;
            self.bad.extend(blocks.map(|block| (logged.entry.op.object(), block)));
        }
    }

    fn check_loaded(&self, context: &str) {
        for (id, model) in &self.models {
            let found = self.bench.loaded.get(id).cloned().unwrap_or_default();
            let mut wanted = model.loaded();
            wanted.pending.retain(|(seq, _)| found.pending.iter().any(|(other, _)| other == seq));
            assert_eq!(found, wanted, "{context}: {id}");
        }
    }

    fn submit(&mut self, t: Transaction) {
        let token = self.bench.store.submit(t.clone());
        let answer = self.bench.answer(token);
        assert_eq!(answer, Output::Persisted { token });
        self.models.get_mut(&t.pg).unwrap().apply(&t);
    }

    fn live_on(&mut self, context: &str) {
        for _ in 0..30 {
            let id = pg(self.rng.below(u64::from(PGS)) as u32);
            let t = transaction(&mut self.rng, id, &self.models[&id]);
            self.submit(t);
            if self.rng.chance(15) {
                self.bench.checkpoint();
            }
        }
        assert_eq!(self.bench.store.failure(), None, "{context}");
        self.check(false, context);
    }

    fn reopen(mut self, context: &str) -> Self {
        self.bench = self.bench.reopen(CrashPolicy::HARSH, self.rng.next());
        self.check_loaded(context);
        self.check(false, context);
        self
    }

    /// A peer has every block.
    fn repair(&mut self, context: &str) {
        for id in self.models.keys().copied().collect::<Vec<_>>() {
            self.submit(Transaction::new(id, self.models[&id].end));
            let tip = self.models[&id].tip();
            for (object, block) in std::mem::take(&mut self.bad) {
                if let Some(Cell::Data(_, data)) = tip.get(&object).and_then(|blocks| blocks.get(&block)) {
                    let content = vec![(object, vec![data_run(block, data.clone())])];
                    self.submit(Transaction { content, ..Transaction::new(id, self.models[&id].end) });
                } else {
                    self.bad.insert((object, block));
                }
            }
        }
        self.bad.clear();
        self.bench.checkpoint();
        self.check(false, context);
        assert_eq!(verify(&self.bench.disk).unwrap().problems, [], "{context}");
    }
}

/// Whether the store opened, and how many blocks were bad.
fn rot(seed: u64) -> Option<u64> {
    let spot = SPOTS[seed as usize % SPOTS.len()];
    let context = format!("seed {seed}, {spot:?}");
    let (disk, models) = history(seed);
    let mut rng = Rng(seed << 24);
    flip(&disk, spot, &mut rng);
    let opened = match open(&disk, super::harness::small()) {
        Ok(opened) => opened,
        Err(Error::CorruptLog { .. }) if matches!(spot, Spot::Log | Spot::LogData | Spot::Superblock(_)) => {
            return None;
        }
        Err(Error::CorruptIndex { .. }) if !matches!(spot, Spot::Log | Spot::LogData) => return None,
        Err(Error::StaleSuperblock { .. }) if matches!(spot, Spot::Superblock(_)) => return None,
        Err(error) => panic!("{context}: {error}"),
    };
    let bench = Bench::over(disk, opened, seed);
    let mut rotten = Rotten { bench, models, bad: BTreeSet::new(), rng };
    rotten.check_loaded(&context);
    rotten.note_hidden();
    rotten.check(true, &context);
    let bad = verify(&rotten.bench.disk).unwrap().bad_blocks;
    for round in 0..3 {
        let context = format!("{context}, round {round}");
        rotten.live_on(&context);
        rotten = rotten.reopen(&context);
    }
    rotten.repair(&context);
    Some(bad)
}

#[test]
fn rot_is_refused_in_words_or_named_block_by_block() {
    let mut seen: BTreeMap<Spot, (u32, u32, u64)> = BTreeMap::new();
    let all = seeds(120);
    for seed in 0..all {
        let (opened, refused, bad) = seen.entry(SPOTS[seed as usize % SPOTS.len()]).or_default();
        match rot(seed) {
            Some(blocks) => (*opened, *bad) = (*opened + 1, *bad + blocks),
            None => *refused += 1,
        }
    }
    println!("where, opened, refused, bad blocks: {seen:?}");
    assert!(
        seen[&Spot::Log].1 > 0 && seen[&Spot::LogData].2 > 0 && seen[&Spot::Index].1 > 0 && seen[&Spot::Area].2 > 0
    );
    assert!(seen[&Spot::Superblock(0)].0 > 0 && seen[&Spot::Superblock(1)].0 > 0);
}

/// One copy of the superblock that cannot be read at all is as bad as a rotten one; without both, nobody is told to
/// format what was in use.
#[test]
fn without_a_superblock_a_disk_that_was_in_use_is_not_called_blank() {
    let (disk, _) = history(1);
    disk.inject(cairn_disk::Injection::ReadError(COPIES[0]));
    assert!(read_superblock(&disk).unwrap().is_some());
    for copy in COPIES {
        disk.flip_bit(copy + 100, 1);
    }
    assert_eq!(read_superblock(&disk).unwrap_err(), Error::CorruptSuperblock);
    let options = FormatOptions { osd_uuid: uuid::Uuid::from_u128(1), ring_len: Some(2 << 20), force: false };
    assert_eq!(format(&disk, &options).unwrap_err(), Error::CorruptSuperblock);
}
