//! Asking placement: where each PG belongs, with the exceptions that were made for balance, and who stands for whom.
//!
//! `up` is what placement wants. It changes without a new `c`; the PG's primary follows it (see `pg`).

use std::collections::BTreeMap;

use cairn_placement::{Exception, Exceptions, Placer};
use cairn_proto::meta::{self, ExceptionsRecord};
use cairn_types::map::{PgConfig, Pool};
use cairn_types::{OsdId, PgId, PoolId};

use crate::keys;
use crate::machine::{Machine, Turn};
use crate::pg::is_up;
use crate::record::{self, name_of};
use crate::refusal::Corrupt;
use crate::state::StateRead;

impl Machine {
    /// Placement of a pool on the present map.
    pub(crate) fn placer(&self, pool: &Pool) -> Placer {
        let names: BTreeMap<OsdId, OsdId> =
            self.notes.iter().filter_map(|(id, notes)| Some((*id, notes.stands_for?))).collect();
        Placer::standing_in(&self.map, pool, &names)
    }

    /// The exceptions of a pool.
    pub(crate) fn exceptions_of(&self, pool: PoolId) -> Exceptions {
        let all = self.exceptions.range(PgId { pool, index: 0 }..=PgId { pool, index: u32::MAX });
        all.map(|(id, exceptions)| (id.index, exceptions.clone())).collect()
    }

    pub(crate) fn read_exceptions(&mut self, state: &dyn StateRead) -> Result<(), Corrupt> {
        record::each(state, keys::EXCEPTIONS, keys::EXCEPTIONS, &mut |key, record: ExceptionsRecord| {
            let id = keys::parse_exceptions(key)
                .ok_or_else(|| Corrupt::new(name_of(key), "the key of a placement group", "another"))?;
            let one = |e: &meta::Exception| Exception { from: OsdId(e.from), to: OsdId(e.to) };
            self.exceptions.insert(id, record.exceptions.iter().map(one).collect());
            Ok(true)
        })
    }

    pub(crate) fn write_exceptions(&mut self, turn: &mut Turn<'_>, id: PgId, exceptions: Vec<Exception>) {
        if exceptions.is_empty() {
            if self.exceptions.remove(&id).is_some() {
                turn.state.delete(keys::exceptions(id));
            }
            return;
        }
        let one = |e: &Exception| meta::Exception { from: e.from.0, to: e.to.0 };
        let record = ExceptionsRecord { exceptions: exceptions.iter().map(one).collect() };
        record::store(&mut turn.state, keys::exceptions(id), &record);
        self.exceptions.insert(id, exceptions);
    }

    /// Asks placement again: `up` of every PG, and the first members of PGs that never had any. Exceptions that have
    /// no effect any more are dropped.
    pub(crate) fn place_pgs(&mut self, turn: &mut Turn<'_>) {
        let (mut changes, mut outgrown) = (Vec::new(), Vec::new());
        for pool in self.map.pools.values() {
            let placer = self.placer(pool);
            let id_of = |index| PgId { pool: pool.id, index };
            let halves =
                (pool.pg_count..pool.next_pg_count()).filter(|index| self.map.pgs.contains_key(&id_of(*index)));
            for index in (0..pool.pg_count).chain(halves) {
                let id = id_of(index);
                let now = self.map.pgs.get(&id).cloned().unwrap_or_default();
                let mut up = placer.place_what_fits(index);
                if let Some(exceptions) = self.exceptions.get(&id) {
                    let applied = placer.amend(&mut up, exceptions);
                    if applied != *exceptions {
                        outgrown.push((id, applied));
                    }
                }
                let mut next = PgConfig { up, ..now.clone() };
                if now.isr.is_empty() {
                    next = self.first_members(next);
                }
                if next != now || !self.map.pgs.contains_key(&id) {
                    changes.push((id, next));
                }
            }
        }
        for (id, next) in changes {
            self.write_pg(turn, id, next);
        }
        for (id, exceptions) in outgrown {
            self.write_exceptions(turn, id, exceptions);
        }
    }

    /// A PG that never had a member holds nothing, so that whoever is up is in sync.
    fn first_members(&self, pg: PgConfig) -> PgConfig {
        let isr: Vec<OsdId> = pg.up.iter().copied().filter(|osd| is_up(&self.map, *osd)).collect();
        let c = pg.c.next();
        match isr.first() {
            Some(&primary) => {
                PgConfig { c, interval: c, primary: Some(primary), acting: isr.clone(), isr, backfill: vec![], ..pg }
            }
            None => pg,
        }
    }
}
