//! Each planted bug must be found by what this crate runs anyway: small words, random lives, every I/O of random
//! histories, rot. The search for each stops at its first failure; the table says what found it and how soon.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use cairn_disk::CrashPolicy;

use super::basic::a_short_write_over_a_long_one_survives_a_cut_checkpoint;
use super::crash::{every_io, every_io_of_a_later_life, lives, new_world, seeds};
use super::harness::{Bench, Rng, small};
use super::words::{ALPHABET, Letter, Start};
use super::world::POLICIES;
use crate::planted::{Bug, plant};
use crate::superblock::REGIONS_START;
use crate::{Error, open, read_superblock};

thread_local! {
    static HUNTING: Cell<bool> = const { Cell::new(false) };
}

/// What fails while a bug is hunted is not printed.
fn be_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !HUNTING.get() {
                usual(info);
            }
        }));
    });
}

/// Flips a bit in a durable record in the middle of the log: opening must name it.
fn rot(seed: u64) {
    let mut world = new_world(seed);
    for _ in 0..12 {
        world.operate();
        world.settle();
    }
    let disk = world.bench.disk.power_on(CrashPolicy::KEEP_ALL);
    let start = read_superblock(&disk).unwrap().unwrap().checkpoint;
    let replayed = open(&disk.fork(), small()).unwrap().replayed;
    if replayed < 3 {
        return; // There is no middle.
    }
    disk.flip_bit(REGIONS_START + start.ring_pos + 9, 1);
    match Bench::try_open(disk, seed) {
        Err(Error::CorruptLog { lsn, .. }) => assert_eq!(lsn, start.next_lsn),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the rot was cut off"),
    }
}

/// The nth attempt.
fn attempt(start: &Start, n: u64) {
    match n % 8 {
        6 if n % 3 == 2 => every_io_of_a_later_life(n),
        6 => lives(n),
        7 if n.is_multiple_of(3) => {
            every_io(n);
        }
        7 if n % 3 == 1 => rot(n),
        7 => a_short_write_over_a_long_one_survives_a_cut_checkpoint(),
        _ => {
            let mut rng = Rng(n << 8);
            let word: Vec<Letter> =
                (0..1 + rng.below(3)).map(|_| ALPHABET[rng.below(ALPHABET.len() as u64) as usize]).collect();
            start.spell(&word, n);
        }
    }
}

/// What finds the bug, and at which attempt.
fn hunt(bug: Option<Bug>, attempts: u64) -> Option<(u64, String)> {
    plant(None);
    let start = Start::new(POLICIES.len());
    HUNTING.set(true);
    plant(bug);
    let found = (0..attempts).find_map(|n| {
        let failed = catch_unwind(AssertUnwindSafe(|| attempt(&start, n))).err()?;
        let text = failed.downcast_ref::<String>().cloned();
        let text = text.or_else(|| failed.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Some((n + 1, text.unwrap_or_default()))
    });
    plant(None);
    HUNTING.set(false);
    found
}

#[test]
fn every_planted_bug_is_found() {
    be_quiet();
    let attempts = seeds(600);
    let mut missed = Vec::new();
    println!("| bug | attempts | what was seen |\n|---|---|---|");
    for bug in Bug::ALL {
        match hunt(Some(*bug), attempts) {
            Some((n, text)) => {
                let line = text.lines().next().unwrap_or_default();
                println!("| {} | {n} | {} |", bug.name(), line.chars().take(110).collect::<String>());
            }
            None => {
                println!("| {} | none of {attempts} | |", bug.name());
                missed.push(bug.name());
            }
        }
    }
    assert_eq!(missed, Vec::<&str>::new());
}

#[test]
fn without_a_bug_the_same_attempts_pass() {
    be_quiet();
    assert_eq!(hunt(None, 100), None);
}
