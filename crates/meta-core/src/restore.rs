//! A state that came from a backup: what is changed in it before it counts, and how PGs begin again.
//!
//! A backup is older than the disks. Whatever was given since (epochs, incarnations, generations, ids) must not be given
//! again, so all of these leap; and the in-sync set that the backup names may be one that was left since, whose members
//! lack acknowledged writes. So no PG has a primary until every OSD of the backup has registered and said which
//! configuration of each PG its disk has seen. Configurations are made one after the other, so the newest of them is the
//! one that counted last. It may name OSDs that are newer than the backup: they are awaited like the others, and taken
//! back under their numbers. Whoever was in sync then either is heard, or was declared lost.

use std::collections::BTreeSet;

use bytes::Bytes;
use cairn_proto::meta::{
    ClusterRecord, KvRecord, MemberRecord, MembersRecord, OsdRecord, Pg, PgMemory, RegisterOsdRequest, Restoring,
    VolumeRecord,
};
use cairn_types::map::{PgConfig, Pool};
use cairn_types::{ConfVersion, Incarnation, OsdId, PgId};
use prost::Message;

use crate::machine::{Machine, Turn};
use crate::pg::elect;
use crate::pool::MOST_PGS;
use crate::refusal::Corrupt;
use crate::{keys, record};

/// More than any cluster counts between a backup and its end.
const LEAP: u64 = 1 << 32;
/// The same for numbers of 32 bits, given to pools and OSDs.
const SMALL_LEAP: u32 = 1 << 12;

/// What a restored state is to be.
#[derive(Clone, Debug, Default)]
pub struct Restoration {
    /// The members it begins with.
    pub members: Vec<(u64, String)>,
    /// Names the new line of members.
    pub lineage: [u8; 16],
    /// The OSDs that must say what they know: see [`awaited`].
    pub awaited: Vec<u32>,
    /// Those that never will.
    pub lost: Vec<u32>,
}

/// Of two members that hold the same lineage the states must be the same; so the records that have it come last, when
/// everything else is known.
#[must_use]
pub fn has_lineage(key: &[u8]) -> bool {
    key == keys::MEMBERS
}

/// Records that a restored state has even where the backup has none.
#[must_use]
pub fn needed() -> Vec<(Bytes, Bytes)> {
    vec![(Bytes::from_static(keys::KV), Bytes::from(crate::kv::nothing_yet().encode_to_vec()))]
}

/// Whether a record is that of an OSD which must be heard of again, and its number.
///
/// # Errors
/// When it cannot be read.
pub fn awaited(key: &[u8], value: &[u8]) -> Result<Option<u32>, Corrupt> {
    if !key.starts_with(keys::OSDS) {
        return Ok(None);
    }
    let osd: OsdRecord = record::decode(key, value)?;
    Ok(osd.osd.map(|osd| osd.id))
}

/// A record of a backup as the restored state has it.
///
/// # Errors
/// When it cannot be read.
pub fn transform(restoration: &Restoration, key: &[u8], value: &Bytes) -> Result<Bytes, Corrupt> {
    let kind = key.get(..1).unwrap_or_default();
    let transformed = match kind {
        _ if key == keys::CLUSTER => {
            let mut cluster: ClusterRecord = record::decode(key, value)?;
            cluster.epoch += LEAP;
            cluster.next_volume += LEAP;
            cluster.next_snapshot += LEAP;
            cluster.next_pool += SMALL_LEAP;
            cluster.osds_after_backup = cluster.next_osd;
            cluster.next_osd += SMALL_LEAP;
            let (awaited, lost) = (restoration.awaited.clone(), restoration.lost.clone());
            cluster.lost_with_state.clone_from(&lost);
            cluster.restoring = (!awaited.is_empty()).then_some(Restoring { awaited, lost });
            cluster.encode_to_vec()
        }
        _ if key == keys::MEMBERS => {
            let old: MembersRecord = record::decode(key, value)?;
            restored_members(restoration, &old).encode_to_vec()
        }
        _ if key == keys::KV => {
            let mut kv: KvRecord = record::decode(key, value)?;
            kv.revision += LEAP as i64;
            // Whoever watches or reads from a revision that was given since must begin anew.
            kv.compacted = kv.revision;
            kv.encode_to_vec()
        }
        keys::OSDS => {
            let mut osd: OsdRecord = record::decode(key, value)?;
            osd.suspicions.clear();
            if let Some(osd) = &mut osd.osd {
                // Every life there ever was is over.
                osd.incarnation += LEAP;
                osd.dead_through = osd.incarnation;
                osd.up = false;
            }
            osd.encode_to_vec()
        }
        keys::PGS => {
            let mut pg: Pg = record::decode(key, value)?;
            pg.primary = None;
            pg.encode_to_vec()
        }
        keys::VOLUMES => {
            let mut volume: VolumeRecord = record::decode(key, value)?;
            volume.next_generation += LEAP;
            volume.encode_to_vec()
        }
        _ => return Ok(value.clone()),
    };
    Ok(transformed.into())
}

fn restored_members(restoration: &Restoration, old: &MembersRecord) -> MembersRecord {
    let member =
        |(id, address): &(u64, String)| MemberRecord { id: *id, address: address.clone(), ..Default::default() };
    let mut members: Vec<MemberRecord> = restoration.members.iter().map(member).collect();
    members.sort_by_key(|m| m.id);
    let genesis: Vec<u64> = members.iter().map(|m| m.id).collect();
    let next_id = genesis.last().map_or(1, |last| last + 1).max(old.next_id);
    let lineage = restoration.lineage.to_vec().into();
    MembersRecord { members, next_id, genesis, lineage, leaving: Vec::new() }
}

impl Machine {
    /// The OSDs that must still say what they know, after a restore.
    #[must_use]
    pub fn awaited_osds(&self) -> Vec<OsdId> {
        let Some(restoring) = &self.cluster.restoring else { return Vec::new() };
        let named = self.map.pgs.values().flat_map(|pg| &pg.isr);
        let newer = named.filter(|osd| !self.map.osds.contains_key(osd) && !restoring.lost.contains(&osd.0));
        let awaited: BTreeSet<OsdId> = restoring.awaited.iter().copied().map(OsdId).chain(newer.copied()).collect();
        awaited.into_iter().collect()
    }

    /// Whether a disk that the map does not know was given its number after the backup, and so is taken back under it.
    pub(crate) fn is_after_backup(&self, request: &RegisterOsdRequest) -> bool {
        let from = self.cluster.osds_after_backup;
        let ours = request.cluster[..] == self.map.cluster.as_bytes()[..];
        from != 0 && ours && request.id.is_some_and(|id| (from..from.saturating_add(SMALL_LEAP)).contains(&id))
    }

    /// The incarnation after which such a disk begins: above all that it was ever given.
    pub(crate) fn life_before(last_incarnation: u64) -> Incarnation {
        Incarnation(last_incarnation.saturating_add(LEAP))
    }

    /// Until all have spoken, a PG keeps what is known of it and nobody leads it.
    pub(crate) fn held_back(&self, id: PgId, next: PgConfig) -> PgConfig {
        match self.map.pgs.get(&id).filter(|_| self.cluster.restoring.is_some()) {
            Some(known) => PgConfig { up: next.up, primary: None, ..known.clone() },
            None => next,
        }
    }

    /// An OSD registered and said what its disk has seen. When it was the last one, the PGs begin again.
    pub(crate) fn hear_memories(&mut self, turn: &mut Turn<'_>, osd: OsdId, memories: &[PgMemory]) {
        let Some(restoring) = self.cluster.restoring.as_mut() else { return };
        restoring.awaited.retain(|awaited| *awaited != osd.0);
        for memory in memories {
            let id: PgId = memory.pg.unwrap_or_default().into();
            self.remember_half(turn, id, memory);
            let Some(known) = self.map.pgs.get(&id).filter(|known| memory.c > known.c.0) else { continue };
            let isr: Vec<OsdId> = memory.isr.iter().copied().map(OsdId).collect();
            let newer =
                PgConfig { c: ConfVersion(memory.c), acting: isr.clone(), isr, backfill: Vec::new(), ..known.clone() };
            self.put_pg(turn, id, newer);
        }
        if self.awaited_osds().is_empty() {
            self.begin_again(turn);
        }
    }

    /// A PG that was split off after the backup is there again as soon as one disk knows it: its objects are in no other.
    fn remember_half(&mut self, turn: &mut Turn<'_>, id: PgId, memory: &PgMemory) {
        let Some(pool) = self.map.pools.get(&id.pool).filter(|_| id.index < MOST_PGS).cloned() else { return };
        let Some(born) = memory.born.filter(|_| !self.map.pgs.contains_key(&id)) else { return };
        let pg_target = (id.index + 1).next_power_of_two().max(pool.pg_target);
        self.write_pool(turn, Pool { pg_target, ..pool });
        self.put_pg(turn, id, PgConfig { born: Some(born.into()), ..PgConfig::default() });
    }

    /// A PG that no disk knows any more, and that there must have been, since there are PGs that came later: its objects are
    /// nowhere else, so nobody may serve their place as if they had never been.
    fn keep_places_of_lost_halves(&mut self, turn: &mut Turn<'_>, restoring: &Restoring) {
        let mut lost: Vec<OsdId> = restoring.lost.iter().copied().map(OsdId).collect();
        if lost.is_empty() {
            // It was on disks that nobody has spoken of.
            lost.push(OsdId(u32::MAX));
        }
        let pools: Vec<Pool> = self.map.pools.values().cloned().collect();
        for pool in pools {
            let id = |index| PgId { pool: pool.id, index };
            let last = self.map.pgs.range(id(0)..=id(u32::MAX)).next_back().map_or(0, |(id, _)| id.index);
            for index in pool.pg_count..(last + 1).next_power_of_two() / 2 {
                if !self.map.pgs.contains_key(&id(index)) {
                    self.put_pg(turn, id(index), PgConfig { isr: lost.clone(), ..PgConfig::default() });
                }
            }
        }
    }

    /// Who goes on without OSDs that were lost together with the metadata: where so many were that they may have been a
    /// whole in-sync set of their own since the backup, they may have had writes that nobody else knows of.
    pub(crate) fn check_lost(&self, now: &PgConfig, min_size: u32, next: PgConfig) -> Result<PgConfig, String> {
        let lost = &self.cluster.lost_with_state;
        let without = now.isr.iter().find(|osd| !next.isr.contains(osd) && lost.contains(&osd.0));
        match without.filter(|_| (next.isr.len() as u32) < min_size && lost.len() as u32 >= min_size) {
            Some(osd) => Err(format!(
                "{osd} was lost with the metadata and {} others: together they may have newer writes than anybody else",
                lost.len() - 1
            )),
            None => Ok(next),
        }
    }

    /// Of an OSD that will never come back nothing is awaited.
    pub(crate) fn await_no_longer(&mut self, turn: &mut Turn<'_>, osd: OsdId) {
        if self.cluster.restoring.is_some() {
            self.cluster.lost_with_state.push(osd.0);
        }
        self.hear_memories(turn, osd, &[]);
    }

    fn begin_again(&mut self, turn: &mut Turn<'_>) {
        let restoring = self.cluster.restoring.take().unwrap_or_default();
        self.count_halves(turn);
        self.keep_places_of_lost_halves(turn, &restoring);
        self.count_halves(turn);
        let pgs: Vec<(PgId, PgConfig)> = self.map.pgs.iter().map(|(id, pg)| (*id, pg.clone())).collect();
        for (id, pg) in pgs.into_iter().filter(|(_, pg)| !pg.isr.is_empty()) {
            // A version that was given since the backup is not given again to another configuration.
            let c = ConfVersion(pg.c.0 + LEAP);
            let mut next = PgConfig { c, interval: c, acting: pg.isr.clone(), backfill: Vec::new(), ..pg };
            next.primary = elect(&self.map, &next, None);
            self.put_pg(turn, id, next);
        }
    }
}
