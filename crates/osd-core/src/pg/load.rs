//! A PG from what its store found: believe only the disk, and say so when it makes no sense.

use bytes::Bytes;
use cairn_types::map::{Born, PgConfig};
use cairn_types::{ConfVersion, Epoch, OsdId, PgId};

use super::log::{BrokenLog, Log};
use super::record::{self, BadRecord, Record};
use super::{Ctx, Pg};
use crate::output::LoadedPg;

/// Why a PG cannot be used as it was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A value kept beside the log.
    #[error(transparent)]
    Record(#[from] BadRecord),
    /// The log.
    #[error(transparent)]
    Log(#[from] BrokenLog),
}

/// What a PG's attributes know of its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remembered {
    /// The newest one.
    pub c: ConfVersion,
    /// Its in-sync set.
    pub isr: Vec<OsdId>,
    /// Which PG it was split off, and where.
    pub born: Option<Born>,
}

/// See [`Remembered`]; `None`: they know none.
#[must_use]
pub fn remembered(attributes: &[(Vec<u8>, Bytes)]) -> Option<Remembered> {
    let mut found = None;
    let mut born = None;
    for (key, value) in attributes {
        match record::read(key, value) {
            Ok(Record::Member(member)) => found = Some(member),
            Ok(Record::Born(of)) => born = Some(of),
            _ => {}
        }
    }
    found.map(|member| Remembered { c: member.c, isr: member.isr, born })
}

impl Pg {
    /// From disk; with the newest epoch it took part in.
    pub(crate) fn load(id: PgId, me: OsdId, loaded: LoadedPg) -> Result<(Self, Epoch), LoadError> {
        let mut pg = Self::new(id, me);
        let mut base = cairn_types::peer::LogPoint::default();
        let mut epoch = Epoch(0);
        for (key, value) in &loaded.attributes {
            match record::read(key, value)? {
                Record::Member(member) => {
                    pg.config = PgConfig { c: member.c, isr: member.isr, ..PgConfig::default() };
                    pg.object_size = member.object_size;
                    pg.durable_c = member.c;
                    pg.usable = member.usable;
                    epoch = member.epoch;
                }
                Record::Base(point) => base = point,
                Record::Session(row) => pg.dups.restore(row),
                Record::Anchor(osd, points) => pg.absents.restore_anchor(osd, points),
                Record::Dirty(osd, object, blocks) => pg.absents.restore_dirty(osd, object, blocks),
                Record::Missing(object, blocks) => pg.missing.restore_blocks(object, blocks),
                Record::Fill(fill) => pg.missing.restore_fill(fill),
                Record::Fresh(object, blocks) => pg.missing.restore_fresh(object, blocks),
                Record::Born(born) => pg.born = Some(born),
            }
        }
        pg.log = Log::load(base, loaded.commit, loaded.log, loaded.pending)?;
        pg.stored_commit = pg.log.commit();
        for kept in pg.log.after(0) {
            pg.dups.record(&kept.entry);
            // Rows of entries that are still in the log are rebuilt from it; a row too many costs a copy.
            pg.absents.fold(&kept.entry, pg.object_size);
        }
        Ok((pg, epoch))
    }

    /// A PG whose records make no sense: it is a member without content, to be filled anew.
    pub(crate) fn unusable(id: PgId, me: OsdId) -> Self {
        Self { usable: false, ..Self::new(id, me) }
    }

    /// The sizes that the pool prescribes.
    pub(super) fn follow_pool(&mut self, ctx: &Ctx<'_>) {
        if let Some(pool) = ctx.map.pools.get(&self.id.pool) {
            self.object_size = pool.object_size;
            self.size = pool.size as usize;
            self.min_size = pool.min_size as usize;
            self.parts = ctx.map.parts(self.id);
        }
    }
}
