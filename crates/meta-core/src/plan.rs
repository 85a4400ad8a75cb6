//! What is still to be moved: read off the map, with estimates of bytes and time.
//!
//! A PG is where it belongs once everybody that placement wants is in sync and nobody else is a member. Sizes are
//! estimates: OSDs report what they store in all, and that is shared out over the PGs that they hold.

use std::collections::BTreeMap;

use cairn_proto::meta::{ChangePlacementReply, PgMove};
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::{OsdId, PgId};

use crate::machine::Machine;
use crate::pg::is_up;

/// What one OSD takes in or gives out for recovery, as estimates assume.
const BYTES_S: u64 = 64 << 20;

/// Whether a PG lies where placement wants it.
pub(crate) fn is_settled(pg: &PgConfig) -> bool {
    let all_in = pg.up.iter().all(|osd| pg.isr.contains(osd));
    all_in && pg.acting.iter().chain(&pg.backfill).all(|osd| pg.up.contains(osd))
}

/// Whether a PG has copies elsewhere than placement wants, and all of them.
pub(crate) fn is_misplaced(map: &ClusterMap, size: u32, pg: &PgConfig) -> bool {
    !is_settled(pg) && pg.isr.iter().filter(|osd| is_up(map, **osd)).count() >= size as usize
}

/// About how many bytes one copy of each PG has.
pub(crate) fn sizes(map: &ClusterMap) -> BTreeMap<PgId, u64> {
    let mut held: BTreeMap<OsdId, u64> = BTreeMap::new();
    for osd in map.pgs.values().flat_map(|pg| &pg.isr) {
        *held.entry(*osd).or_default() += 1;
    }
    let part = |osd: &OsdId| map.osds.get(osd).map_or(0, |known| known.used / held[osd]);
    map.pgs.iter().map(|(id, pg)| (*id, pg.isr.iter().map(part).max().unwrap_or(0))).collect()
}

/// The PGs that are not where they belong.
pub(crate) fn moves(map: &ClusterMap) -> Vec<PgMove> {
    let sizes = sizes(map);
    let unsettled = map.pgs.iter().filter(|(_, pg)| !is_settled(pg) && !pg.isr.is_empty());
    unsettled.map(|(id, pg)| one_move(map, *id, pg, sizes[id])).collect()
}

fn one_move(map: &ClusterMap, id: PgId, pg: &PgConfig, size: u64) -> PgMove {
    let to: Vec<OsdId> = pg.up.iter().filter(|osd| !pg.isr.contains(osd)).copied().collect();
    let from = pg.isr.iter().chain(pg.acting.iter().filter(|osd| !pg.isr.contains(osd)));
    // Who catches up by its log copies what changed, and nobody here knows how little that is.
    let copied = to.iter().filter(|osd| !pg.acting.contains(osd)).count() as u64;
    PgMove {
        pg: Some(id.into()),
        to: to.iter().map(|osd| osd.0).collect(),
        from: from.filter(|osd| !pg.up.contains(osd)).map(|osd| osd.0).collect(),
        bytes: size * copied,
        copies: pg.isr.iter().filter(|osd| is_up(map, **osd)).count() as u32,
        wanted: map.pools.get(&id.pool).map_or(0, |pool| pool.size),
    }
}

/// Seconds that these moves take, if each OSD takes in and gives out at the assumed rate.
fn eta_s(map: &ClusterMap, moves: &[PgMove]) -> u64 {
    let (mut taken, mut given): (BTreeMap<u32, u64>, BTreeMap<u32, u64>) = Default::default();
    for one in moves.iter().filter(|one| !one.to.is_empty()) {
        for osd in &one.to {
            *taken.entry(*osd).or_default() += one.bytes / one.to.len() as u64;
        }
        let id: PgId = one.pg.unwrap_or_default().into();
        if let Some(primary) = map.pgs.get(&id).and_then(|pg| pg.primary) {
            *given.entry(primary.0).or_default() += one.bytes;
        }
    }
    taken.values().chain(given.values()).max().map_or(0, |bytes| bytes.div_ceil(BYTES_S))
}

/// What is to be copied in all.
pub(crate) fn bytes(moves: &[PgMove]) -> u64 {
    moves.iter().map(|one| one.bytes).sum()
}

impl Machine {
    /// The largest deviation of an OSD from its share of a pool's PG copies, over all pools, in thousandths.
    pub(crate) fn spread_permille(&self) -> u32 {
        let spread = |pool: &cairn_types::map::Pool| {
            self.placer(pool).spread(pool.pg_count, &self.exceptions_of(pool.id)).permille
        };
        self.map.pools.values().map(spread).max().unwrap_or(0)
    }

    /// How things stand: what is still to be moved, as one reply. `listed`: with each PG.
    pub(crate) fn standing(&self, listed: bool) -> ChangePlacementReply {
        let (moves, spread) = (moves(&self.map), self.spread_permille());
        ChangePlacementReply {
            epoch: self.map.epoch.0,
            bytes_before: bytes(&moves),
            bytes: bytes(&moves),
            eta_s: eta_s(&self.map, &moves),
            notes: self.notes_on(&moves),
            spread_before: spread,
            spread,
            exceptions: self.exceptions.len() as u32,
            to_come: self.to_come(),
            moves: if listed { moves } else { Vec::new() },
        }
    }

    /// PGs that pools are to have and do not have yet.
    fn to_come(&self) -> u32 {
        let wanted: u32 = self.map.pools.values().map(|pool| pool.pg_target).sum();
        wanted.saturating_sub(self.map.pgs.len() as u32)
    }

    /// What an administrator should know about what is to be moved.
    fn notes_on(&self, moves: &[PgMove]) -> Vec<String> {
        let mut notes = Vec::new();
        let short = moves.iter().filter(|one| one.copies < one.wanted).count();
        let stuck = moves.iter().filter(|one| one.to.is_empty() && !self.is_whole_elsewhere(one)).count();
        if moves.len() > stuck && short == 0 {
            notes.push("every placement group keeps all its copies while it moves".to_owned());
        }
        if short > 0 {
            notes.push(format!("{} fewer copies than wanted until filled", has(short)));
        }
        if stuck > 0 {
            notes.push(format!("{} nowhere to go: copies stay where they are until there is room", has(stuck)));
        }
        if self.map.settings.norebalance && moves.len() > short {
            notes.push("norebalance is set: whole placement groups stay where they are until it is unset".to_owned());
        }
        for pool in self.map.pools.values().filter(|pool| pool.is_splitting()) {
            let wait = |pg: &PgConfig| {
                let behind = pg.acting.iter().chain(&pg.backfill).any(|osd| !pg.isr.contains(osd));
                behind || pg.isr.len() < pool.size as usize
            };
            let whole = |id: &PgId| id.pool == pool.id && id.index < pool.pg_count;
            let undivided = |id: &PgId| !self.map.pgs.contains_key(&PgId { index: id.index + pool.pg_count, ..*id });
            let held = self.map.pgs.iter().filter(|(id, pg)| whole(id) && undivided(id) && wait(pg));
            let held: Vec<String> = held.map(|(id, _)| id.to_string()).collect();
            if let Some(first) = held.first() {
                let (count, name) = (held.len(), &pool.name);
                let words = format!("of pool {name}, {count} cannot split before all their copies are whole ({first}");
                notes.push(if count > 1 { format!("{words} and others)") } else { format!("{words})") });
            }
        }
        notes
    }

    /// Whether placement found as many places as the pool wants copies.
    fn is_whole_elsewhere(&self, one: &PgMove) -> bool {
        let id: PgId = one.pg.unwrap_or_default().into();
        self.map.pgs.get(&id).is_some_and(|pg| pg.up.len() >= one.wanted as usize)
    }
}

fn has(n: usize) -> String {
    if n == 1 { "1 placement group has".to_owned() } else { format!("{n} placement groups have") }
}
