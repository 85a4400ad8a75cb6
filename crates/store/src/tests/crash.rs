//! Random histories with the power cut at any I/O, again and again on the same disk. `CAIRN_SEEDS` asks for more of
//! them.

use cairn_disk::{CrashPolicy, Injection, SimDisk};

use super::harness::{DISK_LEN, Rng, formatted};
use super::world::{POLICIES, World};

const PGS: u32 = 3;

pub(super) fn new_world(seed: u64) -> World {
    World::on(formatted(SimDisk::new(DISK_LEN, seed)), seed, PGS)
}

fn policy(rng: &mut Rng) -> CrashPolicy {
    POLICIES[rng.below(POLICIES.len() as u64) as usize]
}

/// How many seeds: more on demand, by the environment.
pub(super) fn seeds(usual: u64) -> u64 {
    std::env::var("CAIRN_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Several lives of one disk, each cut at some I/O.
pub(super) fn lives(seed: u64) {
    let mut world = new_world(seed);
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

#[test]
fn random_histories_survive_random_power_cuts() {
    (0..seeds(60)).for_each(lives);
}

#[test]
fn long_histories_wrap_the_log_and_reuse_space() {
    for seed in 100..100 + seeds(60) / 15 {
        let mut world = new_world(seed);
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

/// One history, and what every one of its I/Os leaves under every policy, checkpoints included.
pub(super) fn every_io(seed: u64) -> u64 {
    let mut world = new_world(seed);
    world.images = POLICIES.len();
    world.checkpoints = if seed.is_multiple_of(2) { 3 } else { 30 };
    for _ in 0..40 {
        world.operate();
    }
    world.bench.store.request_checkpoint();
    world.settle();
    world.looked_at
}

/// The same of a later life: the older superblock leads to an index, whose nodes are used again sooner or later.
pub(super) fn every_io_of_a_later_life(seed: u64) {
    let mut world = new_world(seed);
    world.checkpoints = 30;
    for _ in 0..30 {
        world.operate();
    }
    world.bench.store.request_checkpoint();
    world.settle();
    let mut world = world.recover(CrashPolicy::KEEP_ALL, &format!("seed {seed}"));
    for _ in 0..20 {
        world.operate();
        world.bench.store.request_checkpoint();
        world.settle();
    }
    world.images = POLICIES.len();
    for _ in 0..6 {
        world.operate();
        world.bench.store.request_checkpoint();
        world.settle();
    }
}

#[test]
fn later_lives_survive_a_cut_at_every_io() {
    (0..seeds(60) / 15).for_each(every_io_of_a_later_life);
}

#[test]
fn random_histories_survive_a_cut_at_every_io() {
    let images: u64 = (0..seeds(60) / 10).map(every_io).sum();
    assert!(images > 300 * (seeds(60) / 10), "{images} images");
}

/// Every sync of a history fails in its turn: the store stops at once and for good, acknowledges nothing more, and
/// what the next life finds is what it would find after a power cut there.
#[test]
fn every_failed_sync_is_the_end() {
    let mut failed = 0;
    for seed in 0..seeds(60) / 15 {
        for nth in 0.. {
            let mut world = new_world(1000 + seed);
            world.bench.disk.inject(Injection::SyncErrorAt(nth));
            for _ in 0..20 {
                world.operate();
            }
            world.bench.store.request_checkpoint();
            world.settle();
            if world.bench.store.failure().is_none() {
                assert!(nth > 10, "{nth} syncs");
                break;
            }
            let (acknowledged, ios) = (world.acknowledged(), world.bench.disk.io_index());
            for _ in 0..10 {
                world.operate();
            }
            world.settle();
            assert_eq!((world.acknowledged(), world.bench.disk.io_index()), (acknowledged, ios));
            let policy = policy(&mut world.rng);
            world.recover(policy, &format!("seed {seed}, sync {nth} failed"));
            failed += 1;
        }
    }
    assert!(failed > 10 * (seeds(60) / 15), "{failed} syncs failed");
}
