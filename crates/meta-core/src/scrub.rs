//! Scrubs of placement groups: when each is due, what an administrator ordered, what the last ones found.
//!
//! Nobody is told to scrub by a command: whoever leads a group is given the order with the answer to its report, again
//! and again, until the outcome is reported. So an order survives the death of the OSD that was at it.

use std::collections::BTreeMap;

use cairn_proto::meta::{
    BadCopies, DamagedBlock, HealthCheck, ListPgsReply, OrderScrubReply, OrderScrubRequest, Pg, PgScrub,
    ReportScrubReply, ReportScrubRequest, ScheduleScrubsReply, ScheduleScrubsRequest, ScrubFindings, ScrubOrder,
    ScrubSchedule,
};
use cairn_types::id::mix;
use cairn_types::map::ClusterMap;
use cairn_types::{Incarnation, OsdId, PgId};

use crate::health::{check, counted};
use crate::keys;
use crate::machine::{Machine, Turn};
use crate::query::is_active;
use crate::record;
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;

/// Between light scrubs of a group, unless something else is set.
const LIGHT_S: u64 = 24 * 3600;
/// Between deep scrubs.
const DEEP_S: u64 = 7 * LIGHT_S;
/// The shortest time that can be set.
const SHORTEST_S: u64 = 60;
/// Orders in one answer.
const ORDERS: usize = 4;
/// Damaged blocks that are kept by name.
const NAMED: usize = 64;
/// Set in the number of what an administrator ordered; the others are moments.
const BY_HAND: u64 = 1 << 63;

/// What is known of all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scrubs {
    pgs: BTreeMap<PgId, PgScrub>,
    schedule: ScrubSchedule,
}

impl Scrubs {
    pub(crate) fn open(state: &dyn StateRead) -> Result<Self, Corrupt> {
        let schedule = record::load(state, keys::SCRUB_SCHEDULE)?.unwrap_or_default();
        let mut pgs = BTreeMap::new();
        record::each(state, keys::SCRUBS, keys::SCRUBS, &mut |_, record: PgScrub| {
            let pg: PgId = record.pg.unwrap_or_default().into();
            pgs.insert(pg, record);
            Ok(true)
        })?;
        Ok(Self { pgs, schedule })
    }

    /// What is due for a group at this moment, if anything.
    fn due(&self, pg: PgId, now_s: u64) -> Option<ScrubOrder> {
        let nothing = PgScrub::default();
        let known = self.pgs.get(&pg).unwrap_or(&nothing);
        if known.ordered.is_some() {
            return known.ordered;
        }
        if self.schedule.paused {
            return None;
        }
        let period = |set: u64, default| if set == 0 { default } else { set };
        let deep = latest(pg, now_s, period(self.schedule.deep_s, DEEP_S));
        let light = latest(pg, now_s, period(self.schedule.light_s, LIGHT_S));
        let order = |deep, at| ScrubOrder { pg: Some(pg.into()), deep, order: at };
        if known.deep_s < deep {
            return Some(order(true, deep));
        }
        (known.light_s < light).then(|| order(false, light))
    }
}

/// The latest moment at which a group was to be scrubbed: every group has its own within the period.
fn latest(pg: PgId, now_s: u64, period_s: u64) -> u64 {
    let phase = mix(u64::from(pg.pool.0) << 32 | u64::from(pg.index)) % period_s;
    now_s.checked_sub(phase).map_or(0, |since| since / period_s * period_s + phase)
}

/// What this OSD, in this life, is to scrub now.
#[must_use]
pub fn orders(machine: &Machine, osd: OsdId, now_s: u64) -> Vec<ScrubOrder> {
    let map = &machine.map;
    let led = map.pgs.iter().filter(|(id, pg)| {
        pg.primary == Some(osd) && map.pools.get(&id.pool).is_some_and(|pool| is_active(map, pool, pg))
    });
    led.filter_map(|(id, _)| machine.scrubs.due(*id, now_s)).take(ORDERS).collect()
}

/// All groups, with what is known of their scrubs.
#[must_use]
pub fn pgs(machine: &Machine) -> ListPgsReply {
    let of_map = |id: &PgId| machine.map.pgs.contains_key(id);
    let set = machine.scrubs.schedule;
    let or = |set: u64, default| if set == 0 { default } else { set };
    ListPgsReply {
        pgs: machine.map.pgs.iter().map(|(id, pg)| Pg::from((*id, pg))).collect(),
        scrubs: machine.scrubs.pgs.iter().filter(|(id, _)| of_map(id)).map(|(_, scrub)| scrub.clone()).collect(),
        schedule: Some(ScrubSchedule { light_s: or(set.light_s, LIGHT_S), deep_s: or(set.deep_s, DEEP_S), ..set }),
    }
}

impl Machine {
    /// A half was looked through when the whole was. What was found there is said of the whole until the next time.
    pub(crate) fn scrub_half_as(&mut self, turn: &mut Turn<'_>, whole: PgId, half: PgId) {
        let PgScrub { light_s, deep_s, .. } = self.scrub_of(whole);
        self.write_scrub(turn, half, PgScrub { pg: Some(half.into()), light_s, deep_s, ..PgScrub::default() });
    }

    fn write_scrub(&mut self, turn: &mut Turn<'_>, id: PgId, scrub: PgScrub) {
        record::store(&mut turn.state, keys::scrub(id), &scrub);
        self.scrubs.pgs.insert(id, scrub);
    }

    fn scrub_of(&self, id: PgId) -> PgScrub {
        self.scrubs.pgs.get(&id).cloned().unwrap_or_else(|| PgScrub { pg: Some(id.into()), ..PgScrub::default() })
    }

    pub(crate) fn order_scrub(&mut self, turn: &mut Turn<'_>, request: &OrderScrubRequest) -> Outcome<OrderScrubReply> {
        let ids: Vec<PgId> = request.pgs.iter().map(|pg| (*pg).into()).collect();
        if let Some(unknown) = ids.iter().find(|id| !self.map.pgs.contains_key(id)) {
            return Err(Refusal::not_found(format!("there is no placement group {unknown}")).into());
        }
        for id in ids {
            let mut scrub = self.scrub_of(id);
            // Who waits for a deep one is not satisfied by a light one.
            let deep = request.deep || scrub.ordered.is_some_and(|ordered| ordered.deep);
            scrub.orders += 1;
            scrub.ordered = Some(ScrubOrder { pg: Some(id.into()), deep, order: BY_HAND | scrub.orders });
            self.write_scrub(turn, id, scrub);
        }
        Ok(OrderScrubReply {})
    }

    pub(crate) fn schedule_scrubs(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ScheduleScrubsRequest,
    ) -> Outcome<ScheduleScrubsReply> {
        let set = self.scrubs.schedule;
        if let Some(short) =
            [request.light_s, request.deep_s].into_iter().flatten().find(|s| (1..SHORTEST_S).contains(s))
        {
            let message = format!("{short} s between scrubs is too short; the shortest is {SHORTEST_S} s");
            return Err(Refusal::invalid(message).into());
        }
        let schedule = ScrubSchedule {
            light_s: request.light_s.unwrap_or(set.light_s),
            deep_s: request.deep_s.unwrap_or(set.deep_s),
            paused: request.paused.unwrap_or(set.paused),
        };
        if schedule != set {
            record::store(&mut turn.state, keys::SCRUB_SCHEDULE.to_vec(), &schedule);
            self.scrubs.schedule = schedule;
        }
        Ok(ScheduleScrubsReply { schedule: pgs(self).schedule })
    }

    pub(crate) fn report_scrub(
        &mut self,
        turn: &mut Turn<'_>,
        request: ReportScrubRequest,
    ) -> Outcome<ReportScrubReply> {
        let id: PgId = request.pg.unwrap_or_default().into();
        let reporter = OsdId(request.reporter);
        self.check_alive(reporter, Incarnation(request.incarnation))?;
        // Whoever is not the primary any more has nothing to say; the next one is given the same order.
        if self.map.pgs.get(&id).is_none_or(|pg| pg.primary != Some(reporter)) {
            return Err(Refusal::precondition(format!("{reporter} does not lead placement group {id}")).into());
        }
        let mut findings = request.findings.unwrap_or_default();
        findings.damaged_blocks.truncate(NAMED);
        let mut scrub = self.scrub_of(id);
        // A moment by the schedule is not later than the clock that the schedule was read by.
        let at = turn.now_s.max(if request.order & BY_HAND == 0 { request.order } else { 0 });
        scrub.light_s = scrub.light_s.max(at);
        if request.deep {
            scrub.deep_s = scrub.deep_s.max(at);
            scrub.deep = Some(findings);
            scrub.light = None;
        } else {
            scrub.light = Some(findings);
        }
        scrub.ordered.take_if(|ordered| ordered.order == request.order);
        self.write_scrub(turn, id, scrub);
        Ok(ReportScrubReply {})
    }
}

/// What scrubs found, for the health of the cluster.
pub(crate) fn checks(machine: &Machine) -> Vec<HealthCheck> {
    let pgs = machine.scrubs.pgs.iter().filter(|(id, _)| machine.map.pgs.contains_key(id));
    let findings = pgs.flat_map(|(id, scrub)| scrub.light.iter().chain(&scrub.deep).map(move |found| (*id, found)));
    let findings = findings.collect::<Vec<_>>();
    damaged(&findings).into_iter().chain(bad_copies(&machine.map, &findings)).collect()
}

fn damaged(findings: &[(PgId, &ScrubFindings)]) -> Option<HealthCheck> {
    let bad = findings.iter().filter(|(_, found)| found.damaged > 0).collect::<Vec<_>>();
    let details = bad.iter().flat_map(|(id, found)| found.damaged_blocks.iter().map(|block| name(*id, block)));
    let blocks = bad.iter().map(|(_, found)| found.damaged).sum::<u64>();
    let summary = format!("{} without a good copy", counted(blocks as usize, "block is", "blocks are"));
    let remedy = "reading them is an I/O error; bring back an OSD that may have an older copy, or write the blocks anew \
                  (restore the named volumes), then scrub again: cairn pg scrub PG --deep";
    (!bad.is_empty()).then(|| check("PG_DAMAGED", true, summary, remedy, details.collect()))
}

fn name(pg: PgId, block: &DamagedBlock) -> String {
    let DamagedBlock { volume, object, offset, .. } = block;
    let what = match block.copies_differ {
        true => "the copies differ, and the log does not tell which is right",
        false => "no copy matches its checksum",
    };
    format!("{pg}: volume {volume}, object {object}, at byte {offset}: {what}")
}

/// OSDs that gave bad bytes: their disks deserve a look, even where all is repaired.
fn bad_copies(map: &ClusterMap, findings: &[(PgId, &ScrubFindings)]) -> Option<HealthCheck> {
    let mut osds: BTreeMap<u32, (u64, usize)> = BTreeMap::new();
    for BadCopies { osd, copies } in findings.iter().flat_map(|(_, found)| &found.found) {
        let (sum, pgs) = osds.entry(*osd).or_default();
        *sum += copies;
        *pgs += 1;
    }
    let known = osds.iter().filter(|(osd, _)| map.osds.contains_key(&OsdId(**osd)));
    let details = known.map(|(osd, (copies, pgs))| {
        let (copies, pgs) = (counted(*copies as usize, "bad copy", "bad copies"), counted(*pgs, "group", "groups"));
        format!("{} had {copies} in {pgs}", OsdId(*osd))
    });
    let details = details.collect::<Vec<_>>();
    let (found, repaired) = findings.iter().fold((0, 0), |(found, repaired), (_, one)| {
        (found + one.found.iter().map(|bad| bad.copies).sum::<u64>(), repaired + one.repaired)
    });
    let summary = format!("the last scrubs found {found} bad copies and repaired {repaired}");
    let remedy = "look at the named disks (smartctl, the kernel's log) and replace what goes on rotting; the note goes \
                  with the next deep scrub that finds nothing: cairn osd scrub ID --deep";
    let mut check = check("OSD_SCRUB_ERRORS", false, summary, remedy, details);
    if repaired >= found {
        check.severity = "NOTE".to_owned();
    }
    (!check.details.is_empty()).then_some(check)
}

#[cfg(test)]
mod tests {
    use cairn_types::PoolId;

    use super::*;

    #[test]
    fn every_group_has_its_own_moment_in_the_period() {
        let moments = (0..512).map(|index| {
            let pg = PgId { pool: PoolId(1), index };
            let now = 1_800_000_000;
            let at = latest(pg, now, LIGHT_S);
            assert!(at <= now && now - at < LIGHT_S, "{at}");
            assert_eq!(latest(pg, at, LIGHT_S), at);
            assert_eq!(latest(pg, at - 1, LIGHT_S), at - LIGHT_S);
            now - at
        });
        let early = moments.filter(|age| *age < LIGHT_S / 2).count();
        assert!((200..312).contains(&early), "spread over the period: {early} of 512");
    }

    #[test]
    fn a_scrub_is_due_once_a_period_and_what_is_ordered_comes_first() {
        let now = 1_800_000_000;
        // One whose deep scrub is not due on the very day on which a light one is.
        let pgs = (0..).map(|index| PgId { pool: PoolId(1), index });
        let pg = pgs.into_iter().find(|pg| latest(*pg, now + LIGHT_S, DEEP_S) <= now).unwrap();
        let mut scrubs = Scrubs::default();
        let first = scrubs.due(pg, now).unwrap();
        assert!(first.deep, "never scrubbed: a deep one counts for both");
        let done = PgScrub { light_s: now, deep_s: now, ..PgScrub::default() };
        scrubs.pgs.insert(pg, done.clone());
        assert_eq!(scrubs.due(pg, now), None);
        let light = scrubs.due(pg, now + LIGHT_S).unwrap();
        assert!(!light.deep && light.order > now);
        assert!(scrubs.due(pg, now + DEEP_S).unwrap().deep);
        scrubs.schedule.paused = true;
        assert_eq!(scrubs.due(pg, now + DEEP_S), None);
        let ordered = Some(ScrubOrder { pg: Some(pg.into()), deep: true, order: BY_HAND | 1 });
        scrubs.pgs.insert(pg, PgScrub { ordered, ..done });
        assert_eq!(scrubs.due(pg, now), ordered);
    }
}
