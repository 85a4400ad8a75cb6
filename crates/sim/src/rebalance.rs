//! Data on the move: an administrator drains, adds, weighs and replaces OSDs while clients work. Everything ends where
//! placement wants it, nothing acknowledged is lost, and in a run in which nothing goes wrong besides, no group ever has a
//! copy less.

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{BalancePgs, ChangePlacementRequest, PlaceOsd, ReplaceOsd};
use cairn_types::map::{ClusterMap, PgConfig};

use crate::Options;
use crate::bus::{Event, Node};
use crate::check::{Check, Violation};
use crate::faults::Pick;
use crate::world::{Setup, World};

/// What an administrator does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "no drawn plan moves data, only named scenarios do"))]
pub(crate) enum Move {
    /// Takes an OSD out of placement.
    Out(Pick),
    /// Puts it in again.
    In(Pick),
    /// Gives it another weight.
    Weigh(Pick, u32),
    /// Puts one in the place of another.
    Replace(Pick, Pick),
    /// Evens out.
    Balance,
    /// Starts the OSDs that were late.
    Join,
}

impl Move {
    /// As a command. `Join` is none: the OSD itself registers.
    fn payload(&self, id: impl Fn(Pick) -> u32) -> Payload {
        let place = |osd, placed, weight| Change::Place(PlaceOsd { id: id(osd), placed, weight });
        let change = match *self {
            Self::Out(osd) => Some(place(osd, Some(false), None)),
            Self::In(osd) => Some(place(osd, Some(true), None)),
            Self::Weigh(osd, weight) => Some(place(osd, None, Some(weight))),
            Self::Replace(old, with) => Some(Change::Replace(ReplaceOsd { old: id(old), with: id(with) })),
            Self::Balance => Some(Change::Balance(BalancePgs { most: 8, automatic: false })),
            Self::Join => None,
        };
        Payload::ChangePlacement(ChangePlacementRequest { change, force: true, ..ChangePlacementRequest::default() })
    }
}

impl World {
    /// Does what the administrator asks for.
    pub(crate) fn move_data(&mut self, change: &Move) {
        if *change == Move::Join {
            for index in self.osds.len() - self.options.late..self.osds.len() {
                self.bus.after(0, Event::Restart(Node::Osd(index)));
            }
            return;
        }
        let payload = change.payload(|osd| self.osds[self.choose(osd)].id().map_or(u32::MAX, |id| id.0));
        self.keeper.call(&mut self.bus, payload, Setup::Other);
    }
}

/// Everybody that placement wants is in sync, and nobody else has a part in it.
pub(crate) fn is_settled(config: &PgConfig) -> bool {
    config.up.iter().all(|osd| config.isr.contains(osd)) && config.acting.iter().all(|osd| config.up.contains(osd))
}

/// In a steady run: a group that has lost a copy, on purpose or not.
pub(crate) fn check(map: &ClusterMap, options: &Options) -> Result<(), Violation> {
    let thin = |config: &PgConfig| !config.isr.is_empty() && config.isr.len() < options.size as usize;
    let found = map.pgs.iter().find(|(_, config)| options.steady && thin(config));
    found.map_or(Ok(()), |(pg, config)| {
        Err(Violation::new(Check::Copies, format!("{pg} has fewer copies because it moves: {config:?}")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{MS, SECOND};
    use crate::faults::Fault;
    use crate::{Report, run_plan};

    const EIGHTH: u32 = 1 << 13;

    fn steady(late: usize) -> Options {
        Options { safety: 20 * SECOND, osds: 5 + late, late, steady: true, ..Options::default() }
    }

    fn story(seed: u64, options: Options, plan: Vec<(u64, Fault)>) -> Report {
        let report = run_plan(seed, options, Some(plan));
        assert_eq!(report.failure, None, "seed {seed}");
        assert!(report.stats.ops > 400, "the clients were at work: {} operations", report.stats.ops);
        assert!(report.stats.faults.contains_key("planned move"));
        report
    }

    fn moves(plan: &[(u64, Move)]) -> Vec<(u64, Fault)> {
        plan.iter().map(|(at, what)| (*at, Fault::Move(what.clone()))).collect()
    }

    /// Clients notice a move by a hand-over of the lead at most.
    fn unnoticed(report: &Report, seed: u64) {
        let slowest = report.stats.slowest / MS;
        assert!(slowest <= 500, "seed {seed}: somebody waited for {slowest} ms");
        assert!(report.stats.sometimes.contains_key("a fill from nothing"), "seed {seed}: nothing moved");
    }

    #[test]
    fn a_drained_osd_is_left_by_everything_and_no_copy_is_missing_meanwhile() {
        for seed in 1..=6 {
            let osd = if seed % 2 == 0 { Pick::PrimaryOf(1) } else { Pick::Index(0) };
            unnoticed(&story(seed, steady(0), moves(&[(3 * SECOND, Move::Out(osd))])), seed);
        }
    }

    #[test]
    fn an_added_osd_takes_its_share_and_no_copy_is_missing_meanwhile() {
        for seed in 1..=6 {
            unnoticed(&story(seed, steady(1), moves(&[(3 * SECOND, Move::Join)])), seed);
        }
    }

    #[test]
    fn a_replaced_osd_gives_its_place_to_another() {
        for seed in 1..=4 {
            let replace = Move::Replace(Pick::Index(1), Pick::Index(5));
            unnoticed(&story(seed, steady(1), moves(&[(2 * SECOND, Move::Join), (9 * SECOND, replace)])), seed);
        }
    }

    #[test]
    fn minds_that_change_on_the_way_end_where_the_last_word_was() {
        for seed in 1..=6 {
            let plan = [
                (2 * SECOND, Move::Out(Pick::Index(0))),
                (2 * SECOND + 300 * MS, Move::In(Pick::Index(0))),
                (3 * SECOND, Move::Weigh(Pick::Index(2), EIGHTH)),
                (4 * SECOND, Move::Out(Pick::PrimaryOf(2))),
                (4 * SECOND + 200 * MS, Move::Balance),
                (9 * SECOND, Move::In(Pick::Index(3))),
            ];
            story(seed, steady(0), moves(&plan));
        }
    }

    #[test]
    fn a_drain_survives_what_else_goes_wrong() {
        for seed in 1..=8 {
            let kill = |osd, exited| Fault::Kill { osd, power: seed % 2 == 0, back: 4 * SECOND, exited };
            let plan = vec![
                (3 * SECOND, Fault::Move(Move::Out(Pick::Index(0)))),
                (3 * SECOND + seed * 60 * MS, kill(Pick::PrimaryOf(1), Some(5 * MS))),
                (8 * SECOND, Fault::KillMember { leader: true, member: 0, back: 3 * SECOND }),
                (9 * SECOND, Fault::Move(Move::Join)),
                (9 * SECOND + seed * 40 * MS, kill(Pick::ReplicaOf(2), None)),
                (14 * SECOND, Fault::Pause { osd: Pick::PrimaryOf(3), lasts: 3 * SECOND }),
            ];
            story(seed, Options { steady: false, ..steady(1) }, plan);
        }
    }
}
