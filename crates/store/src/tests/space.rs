//! Room: the index never runs out of it on ordinary work, and a full device still takes everything but data.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_disk::{CrashPolicy, Injection, SimDisk};
use cairn_types::peer::EntryOp;
use cairn_types::{ObjectId, PgId};

use super::crash::seeds;
use super::harness::{Bench, Rng, appended, bytes, data_run, formatted, object, pg, write, zero};
use super::model::PgModel;
use super::random::transaction;
use super::world::contents;
use crate::{Output, Rejection, Transaction, verify};

const PGS: u32 = 4;

/// Long sequential writes to many groups on a file that is written ahead of use, with the process killed in the
/// middle: what the next life finds free is only what an earlier one wrote ahead, which may be nothing.
#[test]
fn a_sparse_file_never_runs_out_of_room_for_the_index_after_a_restart() {
    for seed in 0..seeds(24) / 3 {
        let mut rng = Rng(seed);
        let mut bench = Bench::open(formatted(SimDisk::sparse(48 << 20, seed)), seed);
        let mut ends = [0u64; PGS as usize];
        for life in 0..6 {
            for _ in 0..60 {
                let i = rng.below(u64::from(PGS));
                let (p, end) = (pg(i as u32), ends[i as usize]);
                let (n, at) = (rng.below(4), rng.below(6) as u32);
                let blocks = 20 + rng.below(80) as u32;
                bench.store.submit(appended(p, end, vec![write(end + 1, object(p, n), at * 100, bytes(end, blocks))]));
                ends[i as usize] += 1;
                for _ in 0..rng.below(8) {
                    bench.step();
                }
            }
            assert_eq!(bench.store.failure(), None, "seed {seed} life {life}");
            assert!(!bench.outputs.iter().any(|output| matches!(output, Output::Rejected { .. })));
            bench = bench.reopen(CrashPolicy::KEEP_ALL, seed);
            for (i, end) in ends.iter_mut().enumerate() {
                *end = bench.loaded.get(&pg(i as u32)).map_or(0, |loaded| loaded.end);
            }
            bench.store.request_checkpoint();
            bench.settle();
            assert_eq!(bench.store.failure(), None, "seed {seed} life {life}: the first checkpoint");
        }
    }
}

/// Groups on a device that is too small for them, one transaction of each at a time.
struct Crowd {
    bench: Bench,
    models: BTreeMap<PgId, PgModel>,
    rng: Rng,
    refused: u32,
    taken_when_full: u32,
}

impl Crowd {
    fn new(disk: SimDisk, seed: u64) -> Self {
        let models = (0..PGS).map(|i| (pg(i), PgModel::default())).collect();
        Self { bench: Bench::open(formatted(disk), seed), models, rng: Rng(seed << 16), refused: 0, taken_when_full: 0 }
    }

    /// A transaction of some groups each; only those with data may find no room.
    fn round(&mut self, make: &mut dyn FnMut(&mut Rng, PgId, &PgModel) -> Transaction) {
        let mut under_way = Vec::new();
        for (id, model) in &self.models {
            if self.rng.chance(60) {
                let t = make(&mut self.rng, *id, model);
                under_way.push((self.bench.store.submit(t.clone()), t));
                for _ in 0..self.rng.below(4) {
                    self.bench.step();
                }
            }
        }
        for (token, t) in under_way {
            let answer = self.bench.answer(token);
            let is_data = |op: &EntryOp| matches!(op, EntryOp::Write { .. } | EntryOp::Zero { unmap: false, .. });
            let data = t.append.iter().any(|logged| is_data(&logged.entry.op)) || !t.content.is_empty();
            match answer {
                Output::Persisted { .. } => {
                    self.taken_when_full += u32::from(self.refused > 0 && !data);
                    self.models.get_mut(&t.pg).unwrap().apply(&t);
                }
                Output::Rejected { reason: Rejection::NoSpace { .. }, .. } if data => self.refused += 1,
                other => panic!("{other:?} to {t:?}"),
            }
        }
        assert_eq!(self.bench.store.failure(), None);
    }

    fn life(&mut self, rounds: u32, make: &mut dyn FnMut(&mut Rng, PgId, &PgModel) -> Transaction) {
        (0..rounds).for_each(|_| self.round(make));
    }

    /// Everything goes: what was freed counts as room at once, and is room when it is asked for.
    fn empty(&mut self) {
        for round in 0..2 {
            for (id, model) in &mut self.models {
                let remove: Vec<_> = (0..4).map(|n| object(*id, n)).collect();
                let t = Transaction { remove, trim: Some(model.end), ..Transaction::new(*id, model.end) };
                self.bench.persist(t.clone());
                model.apply(&t);
                assert!(round == 0 || model.tip().is_empty());
            }
        }
        let usage = self.bench.store.usage();
        assert!(usage.available() > usage.capacity * 3 / 4, "{usage:?}");
        let (id, n) = (pg(0), 600);
        let model = self.models.get_mut(&id).unwrap();
        let t = appended(id, model.end, vec![write(model.end + 1, object(id, 0), 0, bytes(1, n))]);
        self.bench.persist(t.clone());
        model.apply(&t);
    }

    fn check(&mut self, when: &str) {
        for (id, model) in &self.models {
            let (found, tip) = (contents(&mut self.bench, *id), model.tip());
            let objects: BTreeSet<_> = found.keys().chain(tip.keys()).collect();
            for object in objects {
                let (found, tip) = (found.get(object), tip.get(object));
                let blocks: Vec<u32> = (0..200)
                    .filter(|b| found.and_then(|cells| cells.get(b)) != tip.and_then(|cells| cells.get(b)))
                    .collect();
                assert!(blocks.is_empty(), "{when}: {object} differs in {blocks:?}");
            }
        }
    }

    /// What was acknowledged is there, nothing else is, and the device is whole.
    fn reopen(mut self, policy: CrashPolicy) -> Self {
        self.bench = self.bench.reopen(policy, self.rng.next());
        for (id, model) in &self.models {
            assert_eq!(self.bench.loaded.get(id).cloned().unwrap_or_default(), model.loaded());
        }
        self.check("after");
        assert_eq!(verify(&self.bench.disk).unwrap().problems, []);
        self
    }
}

/// Any transactions, three times as much data as there is room for.
#[test]
fn a_full_device_refuses_data_and_takes_everything_else() {
    let (mut refused, mut taken) = (0, 0);
    for seed in 0..seeds(24) {
        let disk = if seed % 2 == 0 { SimDisk::new(7 << 20, seed) } else { SimDisk::sparse(7 << 20, seed) };
        let mut crowd = Crowd::new(disk.clone(), seed);
        for life in 0..4 {
            // A file may find the filesystem below it full, too.
            if seed % 4 == 1 {
                disk.inject(Injection::Full(life % 2 == 1));
            }
            crowd.life(50, &mut transaction);
            crowd = crowd.reopen(if life % 2 == 0 { CrashPolicy::KEEP_ALL } else { CrashPolicy::LOSE_ALL });
        }
        if seed % 4 != 1 {
            crowd.empty();
            crowd = crowd.reopen(CrashPolicy::HARSH);
        }
        (refused, taken) = (refused + crowd.refused, taken + crowd.taken_when_full);
    }
    assert!(refused > 100 && taken > 100, "{refused} refused, {taken} taken");
}

/// A device filled to the last block, then nothing but metadata, again and again.
#[test]
fn a_device_that_stays_full_takes_metadata_for_ever() {
    for seed in 0..seeds(24) / 6 {
        let mut crowd = Crowd::new(SimDisk::new(7 << 20, seed), seed);
        let mut fill = |rng: &mut Rng, id: PgId, model: &PgModel| {
            let (n, at, blocks) = (rng.below(4), rng.below(8) as u32 * 20, 1 + rng.below(40) as u32);
            let fresh = bytes(rng.next(), blocks);
            appended(id, model.end, vec![write(model.end + 1, object(id, n), at, fresh)])
        };
        crowd.life(200, &mut fill);
        assert!(crowd.refused > 0);
        let mut metadata = |rng: &mut Rng, id: PgId, model: &PgModel| {
            let end = model.end;
            let name = vec![b'a' + rng.below(20) as u8];
            let attributes = vec![(name, Some(Bytes::from(vec![1; rng.below(3000) as usize])))];
            let (n, at) = (rng.below(4), rng.below(150) as u32);
            let append = vec![zero(end + 1, object(id, n), at, 1, true)];
            let trim = Some(end.saturating_sub(20));
            Transaction { append, attributes, trim, ..Transaction::new(id, end) }
        };
        for _ in 0..4 {
            crowd.life(60, &mut metadata);
            crowd.life(10, &mut fill);
            crowd = crowd.reopen(CrashPolicy::HARSH);
        }
        crowd.empty();
    }
}

/// Zeros take no blocks, but rows: a full device refuses those that are new before the index's reserve is touched,
/// and deletes bring everything back.
#[test]
fn zeros_where_nothing_was_count_as_data() {
    let mut bench = Bench::new(1);
    let p = pg(0);
    let mut end = 0;
    let mut next = |bench: &mut Bench, make: &mut dyn FnMut(u64) -> cairn_types::peer::Logged| {
        let t = Transaction { trim: Some(end), ..appended(p, end, vec![make(end + 1)]) };
        let token = bench.store.submit(t);
        let answer = bench.answer(token);
        assert_eq!(bench.store.failure(), None);
        end += u64::from(matches!(answer, Output::Persisted { .. }));
        answer
    };
    let data = object(p, 0);
    for block in 0.. {
        match next(&mut bench, &mut |seq| write(seq, data, block, bytes(seq, 1))) {
            Output::Persisted { .. } => {}
            Output::Rejected { reason: Rejection::NoSpace { .. }, .. } => break,
            other => panic!("{other:?}"),
        }
    }
    let first = object(p, 1);
    let objects = (first.index..).map(|index| ObjectId { index, ..first });
    let inside = |object: &ObjectId| cairn_types::map::pg_index(object.hash(), super::harness::PG_COUNT) == p.index;
    let mut zeroed = Vec::new();
    for object in objects.filter(inside) {
        match next(&mut bench, &mut |seq| zero(seq, object, 0, 4096, false)) {
            Output::Persisted { .. } => zeroed.push(object),
            Output::Rejected { reason: Rejection::NoSpace { .. }, .. } => break,
            other => panic!("{other:?}"),
        }
        assert!(zeroed.len() < 1000, "zeros without end");
    }
    let again = |seq| zero(seq, data, 0, 64, false);
    assert!(matches!(next(&mut bench, &mut { again }), Output::Persisted { .. }), "where data was there is room");
    for object in zeroed {
        let unmapped = next(&mut bench, &mut |seq| zero(seq, object, 0, 4096, true));
        assert!(matches!(unmapped, Output::Persisted { .. }));
    }
    bench.persist(Transaction { remove: vec![data], ..Transaction::new(p, end) });
    bench.checkpoint();
    bench.checkpoint();
    let usage = bench.store.usage();
    assert!(usage.available() > usage.capacity * 9 / 10, "{usage:?}");
}

/// A filesystem that was full before the store on it began: there is no room until it is proven, nothing fails, and
/// room is found when there is some.
#[test]
fn a_filesystem_that_is_full_from_the_start_is_survived() {
    let disk = formatted(SimDisk::sparse(48 << 20, 1));
    disk.inject(Injection::Full(true));
    let mut bench = Bench::open(disk.clone(), 1);
    assert!(!bench.store.knows_room() && bench.store.usage().available() < 1 << 20);
    bench.settle();
    assert!(bench.store.knows_room() && bench.store.usage().available() < 1 << 20);
    let p = pg(0);
    let push = |n: u64| Transaction {
        content: vec![(object(p, 0), vec![data_run(0, bytes(n, 200))])],
        ..Transaction::new(p, 0)
    };
    let token = bench.store.submit(push(1));
    assert!(matches!(bench.answer(token), Output::Rejected { reason: Rejection::NoSpace { .. }, .. }));
    for n in 0..40u8 {
        let attributes = vec![(vec![n % 7], Some(Bytes::from(vec![n; 100])))];
        bench.persist(Transaction { attributes, ..Transaction::new(p, 0) });
        bench.checkpoint();
    }
    assert_eq!(bench.store.failure(), None);
    disk.inject(Injection::Full(false));
    bench.checkpoint();
    let usage = bench.store.usage();
    assert!(usage.available() > usage.capacity / 2, "{usage:?}");
    bench.persist(push(2));
}

/// A filesystem that becomes full while data is on its way: what was let in while there seemed to be room finds its
/// place, and then there is none.
#[test]
fn what_was_let_in_before_the_filesystem_was_full_finds_its_place() {
    for seed in 0..20 {
        let disk = formatted(SimDisk::sparse(48 << 20, seed));
        let mut bench = Bench::open(disk.clone(), seed);
        bench.settle();
        let mut rng = Rng(seed);
        let mut end = 0;
        let mut submit = |bench: &mut Bench, blocks: u32| {
            end += 1;
            let t = appended(pg(0), end - 1, vec![write(end, object(pg(0), end), 0, bytes(end, blocks))]);
            bench.store.submit(t)
        };
        for _ in 0..rng.below(30) {
            submit(&mut bench, 20 + rng.below(60) as u32);
            (0..rng.below(6)).for_each(|_| {
                bench.step();
            });
        }
        assert!(bench.store.usage().available() > 20 << 20);
        disk.inject(Injection::Full(true));
        // Half of what is written ahead.
        for _ in 0..4 {
            submit(&mut bench, 32);
        }
        bench.settle();
        assert!(!bench.outputs.iter().any(|output| matches!(output, Output::Rejected { .. })), "seed {seed}");
        while bench.outputs.iter().all(|output| matches!(output, Output::Persisted { .. })) {
            submit(&mut bench, 32);
            bench.settle();
        }
        let available = bench.store.usage().available();
        assert!(bench.store.knows_room() && available < 4 << 20, "seed {seed}: {available}");
    }
}
