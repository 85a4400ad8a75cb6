//! Reservations as the map shows them: how many groups are being filled from nothing, at each OSD and by this one.
//!
//! A group that names an OSD as `backfill` holds a place at that OSD and one at its primary. The metadata service refuses
//! a proposal that would take one too many; counting here, before asking, only saves the question.

use std::collections::BTreeMap;

use cairn_types::OsdId;
use cairn_types::map::ClusterMap;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Fills {
    at: BTreeMap<OsdId, u32>,
    led: u32,
    urgent: u32,
    moving: u32,
    rests: bool,
}

impl Fills {
    /// As the map shows them, for groups that `me` leads.
    pub(crate) fn of(map: &ClusterMap, me: OsdId) -> Self {
        let settings = &map.settings;
        let mut fills = Self {
            urgent: settings.fills(true),
            moving: settings.fills(false),
            rests: settings.norebalance,
            ..Self::default()
        };
        // A group that nobody leads fills nobody.
        for config in map.pgs.values().filter(|config| config.primary.is_some() && !config.backfill.is_empty()) {
            fills.led += u32::from(config.primary == Some(me));
            for osd in &config.backfill {
                *fills.at.entry(*osd).or_default() += 1;
            }
        }
        fills
    }

    /// Whether a group may ask to have this OSD filled. `urgent`: it lacks a copy.
    pub(crate) fn allow(&self, osd: OsdId, urgent: bool) -> bool {
        let most = if urgent { self.urgent } else { self.moving };
        (urgent || !self.rests) && self.led < most && self.at.get(&osd).copied().unwrap_or(0) < most
    }

    /// A group asks: until the next map, it counts as if it had been granted.
    pub(crate) fn ask<'a>(&mut self, osds: impl Iterator<Item = &'a OsdId>) {
        let mut any = false;
        for osd in osds {
            *self.at.entry(*osd).or_default() += 1;
            any = true;
        }
        self.led += u32::from(any);
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::map::{PgConfig, Settings};
    use cairn_types::{PgId, PoolId};

    use super::*;

    fn map(backfills: u32, filling: &[(u32, u32)]) -> ClusterMap {
        let pg = |(index, (primary, osd)): (usize, &(u32, u32))| {
            let config =
                PgConfig { primary: Some(OsdId(*primary)), backfill: vec![OsdId(*osd)], ..PgConfig::default() };
            (PgId { pool: PoolId(1), index: index as u32 }, config)
        };
        let settings = Settings { backfills, ..Settings::default() };
        ClusterMap { pgs: filling.iter().enumerate().map(pg).collect(), settings, ..ClusterMap::default() }
    }

    #[test]
    fn both_ends_are_bounded_and_what_lacks_a_copy_comes_first() {
        let mut fills = Fills::of(&map(4, &[(1, 5), (1, 6)]), OsdId(1));
        assert!(!fills.allow(OsdId(7), false), "it leads two fills, half of what is allowed in need");
        assert!(fills.allow(OsdId(7), true));
        fills.ask([OsdId(7)].iter());
        fills.ask([OsdId(7)].iter());
        assert!(!fills.allow(OsdId(8), true), "what was asked for counts");
        let fills = Fills::of(&map(4, &[(2, 5), (3, 5), (4, 5), (2, 5)]), OsdId(1));
        assert!(!fills.allow(OsdId(5), true) && fills.allow(OsdId(6), true));
    }

    #[test]
    fn norebalance_holds_what_has_all_its_copies_and_nothing_else() {
        let mut map = map(4, &[]);
        map.settings.norebalance = true;
        let fills = Fills::of(&map, OsdId(1));
        assert!(!fills.allow(OsdId(5), false) && fills.allow(OsdId(5), true));
    }
}
