//! Every history of up to three steps, together, one by one, or in between, and what each I/O leaves on the disk.
//! `CAIRN_CRASH=all` looks at every image under every policy instead of two.

use cairn_disk::{CrashPolicy, SimDisk};
use cairn_types::peer::{EntryOp, Logged};

use super::harness::{appended, bytes, data_run, entry, formatted, object, pg, write, zero};
use super::model::PgModel;
use super::world::{History, POLICIES, World};
use crate::Transaction;

/// A letter of the alphabet of small histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letter {
    Write,
    Overwrite,
    LongWrite,
    Zero,
    Unmap,
    Delete,
    Commit,
    Rewind,
    Content,
    Patch,
    Remove,
    Checkpoint,
}

pub(super) const ALPHABET: [Letter; 12] = [
    Letter::Write,
    Letter::Overwrite,
    Letter::LongWrite,
    Letter::Zero,
    Letter::Unmap,
    Letter::Delete,
    Letter::Commit,
    Letter::Rewind,
    Letter::Content,
    Letter::Patch,
    Letter::Remove,
    Letter::Checkpoint,
];

impl Letter {
    fn happen(self, world: &mut World, nth: u64) {
        let (id, object) = (pg(0), object(pg(0), 0));
        let model = &world.pgs[&id].now;
        let (commit, end) = (model.commit, model.end);
        let append = |logged| Transaction { append: vec![logged], ..Transaction::new(id, commit) };
        let content = |runs| Transaction { content: vec![(object, runs)], ..Transaction::new(id, commit) };
        let t = match self {
            Self::Write => append(write(end + 1, object, 1, bytes(100 + nth, 2))),
            Self::Overwrite => append(write(end + 1, object, 0, bytes(200 + nth, 1))),
            Self::LongWrite => append(write(end + 1, object, 0, bytes(300 + nth, 17))),
            Self::Zero => append(zero(end + 1, object, 0, 2, false)),
            Self::Unmap => append(zero(end + 1, object, 1, 3, true)),
            Self::Delete => {
                append(Logged { entry: entry(end + 1, EntryOp::Remove { object }), data: bytes::Bytes::new() })
            }
            Self::Commit => Transaction::new(id, end),
            Self::Rewind => Transaction { rewind: Some(commit), ..Transaction::new(id, commit) },
            Self::Content => content(vec![data_run(0, bytes(400 + nth, 2)), data_run(4, bytes(nth, 18))]),
            Self::Patch => content(vec![data_run(5, bytes(500 + nth, 1))]),
            Self::Remove => Transaction { remove: vec![object], ..Transaction::new(id, commit) },
            Self::Checkpoint => return world.bench.store.request_checkpoint(),
        };
        world.submit(t);
    }
}

/// What happens between two letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    None,
    OneIo,
    All,
}

/// One committed write, in the index.
pub(super) struct Start {
    disk: SimDisk,
    base: PgModel,
    images: usize,
}

impl Start {
    pub(super) fn new(images: usize) -> Self {
        let mut world = World::on(formatted(SimDisk::new(8 << 20, 1)), 1, 1);
        world.submit(appended(pg(0), 0, vec![write(1, object(pg(0), 0), 0, bytes(1, 3))]));
        world.submit(Transaction::new(pg(0), 1));
        world.bench.store.request_checkpoint();
        world.settle();
        let base = world.pgs[&pg(0)].now.clone();
        Self { disk: world.bench.disk.power_on(CrashPolicy::LOSE_ALL), base, images }
    }

    /// The word with every mix of pauses. What a shorter word shows is not looked at again.
    pub(super) fn spell(&self, word: &[Letter], seed: u64) -> u64 {
        let pauses: &[&[Pause]] = match word.len() {
            1 => &[&[]],
            2 => &[&[Pause::None], &[Pause::OneIo], &[Pause::All]],
            _ => &[
                &[Pause::None, Pause::None],
                &[Pause::None, Pause::All],
                &[Pause::All, Pause::None],
                &[Pause::All, Pause::All],
                &[Pause::OneIo, Pause::OneIo],
            ],
        };
        let mut looked_at = 0;
        for (i, pauses) in pauses.iter().enumerate() {
            let mut world = World::on(self.disk.fork(), seed * 8 + i as u64, 1);
            world.pgs.insert(pg(0), History::after(&self.base));
            for (nth, letter) in word.iter().enumerate() {
                let last = nth + 1 == word.len();
                world.images = if last { self.images } else { 0 };
                letter.happen(&mut world, nth as u64);
                match pauses.get(nth) {
                    Some(Pause::None) => {}
                    Some(Pause::OneIo) => {
                        world.step();
                    }
                    Some(Pause::All) | None => world.settle(),
                }
            }
            looked_at += world.looked_at;
            world.images = 0;
            world.recover(CrashPolicy::KEEP_ALL, &format!("{word:?}, {pauses:?}"));
        }
        looked_at
    }
}

/// All words that begin with these letters.
fn words(first: &[Letter]) -> u64 {
    let all = std::env::var("CAIRN_CRASH").is_ok_and(|text| text == "all");
    let start = Start::new(if all { POLICIES.len() } else { 2 });
    let mut images = 0;
    for (i, a) in first.iter().enumerate() {
        images += start.spell(&[*a], i as u64);
        for (j, b) in ALPHABET.iter().enumerate() {
            images += start.spell(&[*a, *b], (i * 12 + j) as u64);
            for (k, c) in ALPHABET.iter().enumerate() {
                images += start.spell(&[*a, *b, *c], (i * 144 + j * 12 + k) as u64);
            }
        }
    }
    images
}

// Two tests, for two processors.

#[test]
fn all_small_histories_survive_a_cut_at_every_io_first_half() {
    let images = words(&ALPHABET[..6]);
    assert!(images > 25_000, "{images} images");
}

#[test]
fn all_small_histories_survive_a_cut_at_every_io_second_half() {
    let images = words(&ALPHABET[6..]);
    assert!(images > 25_000, "{images} images");
}
