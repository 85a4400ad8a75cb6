//! Bits that flip on disks, and writes that went astray: a deep scrub finds every one, repairs what has a good copy
//! left, writes nowhere else, and says which blocks have none.

use std::collections::{BTreeMap, BTreeSet};

use cairn_disk::Disk;
use cairn_types::scrub::{BlockCopy, Damage, DamagedBlock, ScrubOutcome};
use cairn_types::{BLOCK_SIZE, ObjectId, OsdId, PgId};

use crate::Options;
use crate::bus::{Event, MS, SECOND};
use crate::engine::Engine;
use crate::faults::{Fault, Pick};
use crate::medium::Medium;
use crate::rng::Rng;
use crate::world::{PGS, World};

type Block = (ObjectId, u32);
type Copies = BTreeMap<(OsdId, PgId), BTreeMap<Block, BlockCopy>>;

/// The first byte behind the log.
const AREA: u64 = (1 << 20) + crate::engine::RING;

/// A cluster that has worked for a while and now rests.
fn rested(seed: u64) -> World {
    let options = Options { safety: 4 * SECOND, ..Options::default() };
    let mut world = World::new(seed, options);
    world.begin();
    world.bus.at(9 * SECOND, Event::Doom);
    world.until(14 * SECOND, |_| false);
    rest(&mut world);
    world
}

fn rest(world: &mut World) {
    world.heal();
    world.demand_whole();
    world.sweep();
    let limit = world.bus.now + 20 * SECOND;
    assert!(world.until(limit, World::is_swept), "{:?}", world.failure);
    settle(world);
}

/// Everything that is committed is in its place.
fn settle(world: &mut World) {
    let pause = world.bus.now + SECOND;
    world.until(pause, |_| false);
    for osd in &mut world.osds {
        if let Medium::Engine(engine) = &mut osd.medium {
            engine.look_for_room();
        }
    }
    let pause = world.bus.now + 2 * SECOND;
    world.until(pause, |_| false);
    world.osds.iter_mut().for_each(|osd| osd.landed.clear());
    assert_eq!(world.failure, None);
}

fn engine(world: &World, osd: OsdId) -> &Engine {
    match &world.osds[world.directory.index[&osd]].medium {
        Medium::Engine(engine) => engine,
        Medium::Model(_) => panic!("the model has no disk that could rot"),
    }
}

/// Every copy of every in-sync member, held against its bytes.
fn survey(world: &World) -> Copies {
    let map = world.newest_map();
    let osds = map.pgs.values().flat_map(|config| config.isr.iter().copied()).collect::<BTreeSet<_>>();
    let mut copies = Copies::new();
    for osd in osds {
        let pgs = map.pgs.iter().filter(|(_, config)| config.isr.contains(&osd)).map(|(pg, _)| *pg);
        copies.extend(engine(world, osd).survey(pgs, PGS).into_iter().map(|(pg, all)| ((osd, pg), all)));
    }
    copies
}

fn bad(copies: &Copies) -> BTreeSet<(OsdId, Block)> {
    let all = copies.iter().flat_map(|((osd, _), all)| all.iter().map(move |(block, copy)| (*osd, *block, *copy)));
    all.filter(|(_, _, copy)| !copy.is_good()).map(|(osd, block, _)| (osd, block)).collect()
}

/// Where each content lies on a disk, freed places included.
fn places(engine: &Engine) -> BTreeMap<u32, Vec<u64>> {
    let mut places: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    let mut page = [0; BLOCK_SIZE as usize];
    for at in (AREA..engine.disk.len()).step_by(BLOCK_SIZE as usize) {
        engine.disk.read_at(at, &mut page).expect("the disk is on");
        places.entry(crc32c::crc32c(&page)).or_default().push(at);
    }
    places
}

/// Flips a bit in up to `most` copies of a block, of some of the blocks.
fn flip(world: &World, rng: &mut Rng, most: usize, per_mille: u64) {
    let copies = survey(world);
    let map = world.newest_map();
    let mut chosen: BTreeMap<OsdId, BTreeSet<u32>> = BTreeMap::new();
    for (pg, config) in &map.pgs {
        let blocks = config.isr.iter().filter_map(|osd| copies.get(&(*osd, *pg))).flat_map(BTreeMap::iter);
        for (_, copy) in blocks.collect::<BTreeMap<_, _>>() {
            let BlockCopy::Data { crc } = copy else { continue };
            if !rng.chance(per_mille) {
                continue;
            }
            let mut osds = config.isr.clone();
            for _ in 0..most.min(osds.len()) {
                let osd = osds.swap_remove(rng.below(osds.len() as u64) as usize);
                chosen.entry(osd).or_default().insert(*crc);
                if most < config.isr.len() && rng.chance(400) {
                    break;
                }
            }
        }
    }
    for (osd, crcs) in chosen {
        let engine = engine(world, osd);
        let places = places(engine);
        for at in crcs.iter().filter_map(|crc| places.get(crc)).flatten() {
            engine.disk.flip_bit(at + rng.below(u64::from(BLOCK_SIZE)), rng.below(8) as u8);
        }
    }
}

/// What a scrub of everything found, per OSD.
fn found(outcomes: &[ScrubOutcome]) -> BTreeMap<OsdId, u64> {
    let mut found = BTreeMap::new();
    for (osd, count) in outcomes.iter().flat_map(|outcome| &outcome.found) {
        *found.entry(*osd).or_default() += count;
    }
    found
}

fn counted(bad: &BTreeSet<(OsdId, Block)>) -> BTreeMap<OsdId, u64> {
    let mut counts = BTreeMap::new();
    bad.iter().for_each(|(osd, _)| *counts.entry(*osd).or_default() += 1);
    counts
}

/// What was put in place since the last look, per OSD.
fn landed(world: &World) -> BTreeSet<(OsdId, Block)> {
    let osds = world.osds.iter().filter_map(|host| Some((host.id()?, &host.landed)));
    osds.flat_map(|(osd, blocks)| blocks.iter().map(move |block| (osd, *block))).collect()
}

/// A scrub after some rot: everything found, everything repaired, nothing else written, and all as it was before.
fn scrubbed_away(world: &mut World, before: &Copies, rotten: &BTreeSet<(OsdId, Block)>) {
    let outcomes = world.scrub(true);
    assert_eq!(world.failure, None);
    assert_eq!(outcomes.len(), PGS as usize, "every group ends: {}", world.ailments());
    assert_eq!(found(&outcomes), counted(rotten), "exactly what rotted is found");
    assert!(outcomes.iter().all(|outcome| outcome.damaged_count == 0), "{outcomes:?}");
    assert_eq!(outcomes.iter().map(|outcome| outcome.repaired).sum::<u64>(), rotten.len() as u64);
    assert_eq!(landed(world), *rotten, "no good copy is overwritten");
    settle(world);
    assert!(survey(world) == *before, "every copy is what it was");
}

#[test]
fn ten_thousand_flips_are_found_and_repaired_and_no_good_copy_is_overwritten() {
    let mut flips = 0;
    for seed in 1.. {
        let mut rng = Rng::new(seed);
        let mut world = rested(seed);
        let before = survey(&world);
        assert_eq!(bad(&before), BTreeSet::new());
        for _ in 0..12 {
            flip(&world, &mut rng, 2, 900);
            let rotten = bad(&survey(&world));
            flips += rotten.len();
            scrubbed_away(&mut world, &before, &rotten);
        }
        world.check_end();
        assert_eq!(world.failure, None);
        if flips >= 10_000 {
            break;
        }
    }
    println!("{flips} flips");
}

#[test]
fn a_light_scrub_reads_nothing_and_finds_no_flip() {
    let mut world = rested(7);
    flip(&world, &mut Rng::new(7), 1, 500);
    let outcomes = world.scrub(false);
    assert!(outcomes.iter().all(|outcome| outcome.found.is_empty()));
    assert!(outcomes.iter().map(|outcome| outcome.blocks).sum::<u64>() > 50, "it compares all the same");
    assert_eq!(landed(&world), BTreeSet::new());
}

#[test]
fn a_misdirected_write_spoils_two_blocks_and_both_are_found() {
    for seed in 1..=6 {
        let mut rng = Rng::new(seed);
        let mut world = rested(seed);
        let before = survey(&world);
        let crcs = |copies: &BTreeMap<Block, BlockCopy>| {
            let crc = |copy: &BlockCopy| if let BlockCopy::Data { crc } = copy { Some(*crc) } else { None };
            copies.values().filter_map(crc).collect::<Vec<_>>()
        };
        let rich = before.iter().map(|((osd, _), copies)| (*osd, crcs(copies))).filter(|(_, crcs)| crcs.len() > 1);
        let rich = rich.collect::<Vec<_>>();
        let (osd, crcs) = rng.pick(&rich).clone();
        let (wanted, hit) = (crcs[0], crcs[crcs.len() - 1]);
        let engine = engine(&world, osd);
        let places = places(engine);
        let mut page = vec![0; BLOCK_SIZE as usize];
        engine.disk.read_at(places[&wanted][0], &mut page).expect("the disk is on");
        // What should have replaced the one block replaced the other; where it should be, there is what was there before.
        for (crc, content) in [(hit, page.clone()), (wanted, vec![0; BLOCK_SIZE as usize])] {
            for at in &places[&crc] {
                engine.disk.write_at(*at, &[content.clone().into()]).expect("the disk is on");
            }
        }
        engine.disk.sync().expect("the disk is on");
        let rotten = bad(&survey(&world));
        assert!(rotten.len() >= 2, "{rotten:?}");
        scrubbed_away(&mut world, &before, &rotten);
    }
}

#[test]
fn a_block_without_a_good_copy_is_named_and_not_invented() {
    let mut world = rested(3);
    flip(&world, &mut Rng::new(3), 3, 60);
    let rotten = bad(&survey(&world));
    let blocks = rotten.iter().map(|(_, block)| *block).collect::<BTreeSet<_>>();
    assert!(!blocks.is_empty() && rotten.len() == 3 * blocks.len());
    let outcomes = world.scrub(true);
    assert_eq!(outcomes.len(), PGS as usize, "{}", world.ailments());
    let named = outcomes.iter().flat_map(|outcome| &outcome.damaged).copied().collect::<BTreeSet<_>>();
    let damaged = blocks.iter().map(|(object, offset)| DamagedBlock {
        object: *object,
        offset: *offset,
        damage: Damage::NoGoodCopy,
    });
    assert_eq!(named, damaged.collect());
    assert_eq!(found(&outcomes), counted(&rotten));
    assert_eq!(outcomes.iter().map(|outcome| outcome.repaired).sum::<u64>(), 0);
    assert_eq!(landed(&world), BTreeSet::new());
    assert_eq!(bad(&survey(&world)), rotten, "nothing was touched");
}

#[test]
fn bits_flip_under_load_while_osds_die_and_no_reader_notices() {
    let mut repaired = 0;
    for seed in 1..=6 {
        let mut rng = Rng::new(seed);
        let mut world = World::new(seed, Options::default());
        world.begin();
        world.bus.at(11 * SECOND, Event::Doom);
        for round in 0..4 {
            let start = 10 * SECOND + round * 14 * SECOND;
            world.until(start, |_| false);
            let limit = world.bus.now + 12 * SECOND;
            if !world.until(limit, |world| round == 0 || world.is_whole()) {
                continue;
            }
            flip(&world, &mut rng, 1, 300);
            let osd = Pick::Index(rng.below(5) as usize);
            let fault = Fault::Kill { osd, power: rng.chance(500), back: 2 * SECOND, exited: Some(5 * MS) };
            world.bus.at(world.bus.now + rng.between(20 * MS, SECOND), Event::Fault(fault));
            // One that is under way when the member dies; and one after it came back, before more rots.
            let outcomes = [world.scrub(true), world.scrub(true)].concat();
            repaired += outcomes.iter().map(|outcome| outcome.repaired).sum::<u64>();
            assert_eq!(world.failure, None, "seed {seed}");
        }
        rest(&mut world);
        for _ in 0..2 {
            world.scrub(true);
        }
        world.demand_clean();
        world.check_end();
        assert_eq!(world.failure, None, "seed {seed}");
    }
    assert!(repaired > 200, "{repaired} copies were repaired");
}
