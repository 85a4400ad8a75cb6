//! Writing what the map shows: memory, record and delta together, so that none of the three can be forgotten.

use cairn_proto::meta::{OsdRecord, Pg, Pool, VolumeRecord};
use cairn_types::map::{Osd, PgConfig};
use cairn_types::{Epoch, PgId, VolumeId};

use crate::machine::{Machine, Turn};
use crate::{keys, record, volume};

impl Machine {
    /// The epoch that the command at hand will bring, if it touches the map.
    pub(crate) fn coming_epoch(&self) -> Epoch {
        self.map.epoch.next()
    }

    pub(crate) fn write_osd(&mut self, turn: &mut Turn<'_>, osd: Osd) {
        turn.touched.osds.insert(osd.id);
        self.write_osd_quietly(turn, osd);
    }

    /// Without a new epoch: what the record notes about an OSD but watchers need not hear at once.
    pub(crate) fn write_osd_quietly(&mut self, turn: &mut Turn<'_>, osd: Osd) {
        let notes = self.notes.entry(osd.id).or_default();
        let record = OsdRecord {
            osd: Some((&osd).into()),
            confirmed: notes.confirmed,
            oldest_io_ms: notes.oldest_io_ms,
            suspicions: notes.suspicions.clone(),
            down_since_s: notes.down_since_s,
            out_by_itself: notes.out_by_itself,
            stands_for: notes.stands_for.map(|osd| osd.0),
        };
        record::store(&mut turn.state, keys::osd(osd.id), &record);
        self.map.osds.insert(osd.id, osd);
    }

    pub(crate) fn write_pg(&mut self, turn: &mut Turn<'_>, id: PgId, pg: PgConfig) {
        let pg = self.held_back(id, pg);
        self.put_pg(turn, id, pg);
    }

    pub(crate) fn put_pg(&mut self, turn: &mut Turn<'_>, id: PgId, pg: PgConfig) {
        turn.touched.pgs.insert(id);
        record::store(&mut turn.state, keys::pg(id), &Pg::from((id, &pg)));
        self.map.pgs.insert(id, pg);
    }

    pub(crate) fn write_pool(&mut self, turn: &mut Turn<'_>, pool: cairn_types::map::Pool) {
        turn.touched.pools.insert(pool.id);
        record::store(&mut turn.state, keys::pool(pool.id), &Pool::from(&pool));
        self.tallies.entry(pool.id).or_default();
        self.map.pools.insert(pool.id, pool);
    }

    pub(crate) fn note_publications(&mut self, record: &VolumeRecord) {
        let id = VolumeId(record.volume.as_ref().map_or(0, |volume| volume.id));
        match record.publications.is_empty() {
            true => self.published.remove(&id),
            false => self.published.insert(id, record.publications.iter().map(|p| p.node.clone()).collect()),
        };
    }

    /// Also brings the map's fence in line with the record.
    pub(crate) fn write_volume(&mut self, turn: &mut Turn<'_>, record: &VolumeRecord) {
        let id = VolumeId(record.volume.as_ref().map_or(0, |volume| volume.id));
        record::store(&mut turn.state, keys::volume(id), record);
        self.note_publications(record);
        let fence = volume::fence_of(record);
        if fence.as_ref() != self.map.volumes.get(&id) {
            turn.touched.volumes.insert(id);
            match fence {
                Some(fence) => self.map.volumes.insert(id, fence),
                None => self.map.volumes.remove(&id),
            };
        }
    }
}
