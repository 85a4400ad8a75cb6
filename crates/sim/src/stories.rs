//! Named scenarios: one thing goes wrong in a cluster that is otherwise well, and clients notice no more than they
//! may. And: runs are deterministic, and a hundred drawn ones are fine.

use crate::bus::{MS, SECOND};
use crate::faults::{Fault, Pick, Ways, Whom};
use crate::{Options, Report, run, run_many, run_plan};

/// A run in which exactly these things happen; it must be fine.
fn story(seed: u64, plan: Vec<(u64, Fault)>) -> Report {
    let options = Options { safety: 20 * SECOND, ..Options::default() };
    let report = run_plan(seed, options, Some(plan));
    assert_eq!(report.failure, None, "seed {seed}");
    assert!(report.stats.ops > 400, "the clients were at work: {} operations", report.stats.ops);
    report
}

/// The slowest operation of several such runs, in milliseconds.
fn slowest(plan: impl Fn() -> Vec<(u64, Fault)>) -> u64 {
    (1..=5).map(|seed| story(seed, plan()).stats.slowest / MS).max().unwrap_or(0)
}

fn primary() -> Pick {
    Pick::PrimaryOf(1)
}

fn kill(osd: Pick, exited: Option<u64>) -> Fault {
    Fault::Kill { osd, power: false, back: 8 * SECOND, exited }
}

#[test]
fn nothing_goes_wrong_and_nothing_is_slow() {
    let slowest = slowest(Vec::new);
    assert!(slowest < 20, "{slowest} ms");
}

#[test]
fn a_killed_primary_whose_parent_saw_it_exit_stalls_clients_for_half_a_second_at_most() {
    let slowest = slowest(|| vec![(4 * SECOND, kill(primary(), Some(5 * MS)))]);
    assert!(slowest <= 500, "{slowest} ms");
}

#[test]
fn a_killed_primary_whose_death_nobody_proves_costs_its_lease() {
    let slowest = slowest(|| vec![(4 * SECOND, kill(primary(), None))]);
    assert!(slowest <= 3000, "{slowest} ms");
}

#[test]
fn a_killed_replica_stalls_clients_for_half_a_second_at_most() {
    let slowest = slowest(|| vec![(4 * SECOND, kill(Pick::ReplicaOf(1), Some(5 * MS)))]);
    assert!(slowest <= 500, "{slowest} ms");
}

#[test]
fn a_stopped_osd_stalls_clients_for_three_seconds_at_most() {
    for osd in [primary(), Pick::ReplicaOf(1)] {
        let slowest = slowest(|| vec![(4 * SECOND, Fault::Pause { osd, lasts: 10 * SECOND })]);
        assert!(slowest <= 3000, "{osd:?}: {slowest} ms");
    }
}

#[test]
fn the_metadata_leader_dies_and_io_does_not_care() {
    let fault = || Fault::KillMember { leader: true, member: 0, back: 5 * SECOND };
    let slowest = slowest(|| vec![(4 * SECOND, fault())]);
    assert!(slowest < 50, "{slowest} ms");
}

#[test]
fn an_old_primary_is_isolated_with_its_clients() {
    for ways in [Ways::Both, Ways::Inbound, Ways::Outbound] {
        let fault = Fault::Isolate { osd: primary(), with: None, from: Whom::OsdsAndMembers, ways, lasts: 8 * SECOND };
        for seed in 1..=5 {
            story(seed, vec![(4 * SECOND, fault.clone())]);
        }
    }
}

#[test]
fn a_double_failover_within_one_write() {
    for seed in 1..=8 {
        let second = 4 * SECOND + seed * 40 * MS;
        let plan = vec![(4 * SECOND, kill(primary(), Some(3 * MS))), (second, kill(primary(), Some(3 * MS)))];
        story(seed, plan);
    }
}

#[test]
fn rolling_loss_never_lets_the_stale_one_serve() {
    for seed in 1..=8 {
        let down = |osd, back| Fault::Kill { osd, power: true, back, exited: Some(5 * MS) };
        let plan = vec![
            (4 * SECOND, down(Pick::ReplicaOf(1), 6 * SECOND)),
            (8 * SECOND, down(primary(), 7 * SECOND)),
            (9 * SECOND, down(primary(), 5 * SECOND)),
        ];
        story(seed, plan);
    }
}

#[test]
fn all_lose_their_power_at_once() {
    for seed in 1..=8 {
        let plan = vec![(4 * SECOND, Fault::Blackout { back: SECOND }), (9 * SECOND, Fault::Blackout { back: SECOND })];
        story(seed, plan);
    }
}

#[test]
fn a_volume_changes_hands_while_the_old_holder_is_cut_off() {
    for seed in 1..=8 {
        // The primary serves its clients and does not hear of the take-over.
        let cut =
            Fault::Isolate { osd: primary(), with: None, from: Whom::Members, ways: Ways::Both, lasts: 6 * SECOND };
        let plan = vec![
            (4 * SECOND, cut),
            (4 * SECOND + 100 * MS, Fault::Steal { volume: 0, shared: false }),
            (4 * SECOND + 100 * MS, Fault::Steal { volume: 1, shared: false }),
        ];
        story(seed, plan);
    }
}

#[test]
fn a_lost_disk_is_filled_anew_elsewhere() {
    for seed in 1..=5 {
        let report = story(seed, vec![(4 * SECOND, Fault::Lose { osd: primary() })]);
        assert!(report.stats.sometimes.contains_key("a fill from nothing"), "seed {seed}");
    }
}

#[test]
fn a_slow_replica_leaves_the_in_sync_set_instead_of_stalling_it() {
    let slow = || Fault::SlowDisk { osd: Pick::ReplicaOf(1), delay: 8 * SECOND, lasts: 6 * SECOND };
    let slowest = slowest(|| vec![(4 * SECOND, slow())]);
    assert!(slowest <= 3000, "{slowest} ms");
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 40..44 {
        let (one, other) = (run(seed, Options::default()), run(seed, Options::default()));
        assert_eq!(one, other);
    }
    assert_ne!(run(40, Options::default()).trace, run(41, Options::default()).trace);
}

#[test]
fn a_hundred_seeds() {
    let summary = run_many(1, 100, &Options::default());
    assert!(summary.failures.is_empty(), "{}", summary.to_text());
    assert!(summary.stats.failovers >= 100 && summary.stats.ops >= 100 * 500, "{}", summary.to_text());
}
