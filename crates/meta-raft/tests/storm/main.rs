//! Storms from a seed: see `world` for the weather and `admin` for the changes of members. Then the storm ends, and the
//! members must agree, have everything that was acknowledged, and have shown no reader an old state.

mod admin;
mod world;

use cairn_meta_raft::{MemoryStore, NodeError, Position, Store};

use world::{MEMBERS, World};

fn live_through(seed: u64) -> World {
    live_with(seed, false)
}

fn live_with(seed: u64, changes: bool) -> World {
    let mut world = World::new(seed);
    // The cluster gets its name before the storm, as the daemon's first leader gives it.
    for _ in 0..400 {
        world.step(false);
    }
    world.admin.works = changes;
    for _ in 0..4000 {
        world.step(true);
    }
    world.calm();
    world.judge();
    if changes {
        world.judge_members();
    }
    world
}

#[test]
fn members_agree_after_any_storm() {
    let (mut crashes, mut snapshots, mut reads) = (0, 0, 0);
    for seed in 0..25 {
        let world = live_through(seed);
        crashes += world.crashes;
        snapshots += world.snapshots;
        reads += world.confirmed_reads;
    }
    assert!(crashes > 200 && snapshots > 20 && reads > 5000, "a storm: {crashes} {snapshots} {reads}");
}

#[test]
fn members_come_and_go_in_any_storm() {
    let (mut changes, mut replaced, mut lost, mut snapshots) = (0, 0, 0, 0);
    for seed in 1000..1030 {
        let world = live_with(seed, true);
        changes += world.admin.done;
        replaced += world.admin.replaced;
        lost += world.admin.lost_disks;
        snapshots += world.snapshots;
    }
    assert!(changes > 90 && replaced > 15 && lost > 6 && snapshots > 50, "{changes} {replaced} {lost} {snapshots}");
}

#[test]
fn the_same_seed_is_the_same_storm() {
    let (one, two) = (live_with(77, true), live_with(77, true));
    assert_eq!((one.trace, one.sent, one.dice), (two.trace, two.sent, two.dice));
    assert_ne!(one.trace, live_with(78, true).trace);
}

#[test]
fn a_member_that_lost_its_log_stops_instead_of_voting() {
    let mut world = World::new(5);
    for _ in 0..400 {
        world.step(false);
    }
    let leader = world.nodes[&1].role().leader;
    let wiped = MEMBERS.into_iter().find(|id| *id != leader).expect("there are three");
    world.crash(wiped);
    world.disks.insert(wiped, MemoryStore::new(&MEMBERS));
    world.start(wiped);
    let mut words = String::new();
    for _ in 0..200 {
        world.now += 1;
        let due: Vec<_> = world.network.keys().take_while(|(at, _)| *at <= world.now).copied().collect();
        for key in due {
            let (from, to, message) = world.network.remove(&key).expect("it is there");
            let Some(node) = world.nodes.get_mut(&to) else { continue };
            match node.handle_message(from, message) {
                Ok(()) => world.drain(to, u64::MAX),
                Err(error @ NodeError::LostLog { .. }) => words = error.to_string(),
                Err(error) => panic!("{error}"),
            }
        }
        if world.now.is_multiple_of(4) {
            for id in MEMBERS {
                world.nodes.get_mut(&id).expect("all are up").handle_tick().unwrap();
                world.drain(id, u64::MAX);
            }
        }
    }
    assert!(words.contains("was wiped, or restored from an older copy"), "{words}");
    assert_eq!(world.nodes[&wiped].store().last(), Position::default(), "it took nothing in");
}
