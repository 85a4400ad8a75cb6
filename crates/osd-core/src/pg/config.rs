//! A newer map: what the PG's new configuration makes of this OSD, and what it means for who left and who came.
//!
//! Configurations are taken from whole maps only, never from a proposal's outcome: with the configuration come the
//! generations that were valid when it was made (I8).

use cairn_types::OsdId;
use cairn_types::io::Refusal;
use cairn_types::map::PgConfig;
use cairn_types::peer::LogPoint;

use super::{Ctx, Durable, Pg};
use crate::planted::{Bug, planted};

impl Pg {
    /// Follows the map this OSD has now.
    pub(crate) fn handle_map(&mut self, ctx: &mut Ctx<'_>) {
        self.follow_pool(ctx);
        self.touched = true;
        let config = ctx.map.pgs.get(&self.id).cloned();
        match config {
            Some(config) if config.c > self.config.c || self.is_newly_loaded(&config) => self.adopt(ctx, config),
            Some(config) if config.c == self.config.c => self.config.up = config.up,
            // No such PG any more, or a map that has lost changes: this OSD serves nothing of it.
            _ => self.step_down(ctx),
        }
        self.follow_fences(ctx);
    }

    /// After a start the number of the configuration is known, but not what it says.
    fn is_newly_loaded(&self, config: &PgConfig) -> bool {
        config.c == self.config.c && self.config.acting.is_empty() && !config.acting.is_empty()
    }

    fn adopt(&mut self, ctx: &mut Ctx<'_>, config: PgConfig) {
        let old = std::mem::replace(&mut self.config, config);
        self.end_split();
        self.forget_inspection();
        self.cleared &= !self.is_member();
        self.note_departures(&old);
        let born = self.follow_birth(ctx);
        let mut transaction = self.transaction();
        transaction.attributes.extend(born);
        transaction.attributes.push(self.membership(ctx.map.epoch));
        let durable = Durable { c: Some(self.config.c), ..Durable::default() };
        self.store(ctx, transaction, durable);
        if self.config.primary == Some(self.me) {
            self.lead(ctx);
        } else {
            self.step_down(ctx);
            if self.config.primary != old.primary || self.config.interval != old.interval {
                self.replica.forget_primary();
            }
        }
        for (from, life, message) in std::mem::take(&mut self.parked) {
            if life >= ctx.peers.incarnation(from) {
                self.handle_peer(ctx, from, life, message);
            }
        }
    }

    /// Whoever left the in-sync set lacks everything from here on; whoever is in it lacks nothing.
    fn note_departures(&mut self, old: &PgConfig) {
        if !self.config.isr.contains(&self.me) {
            self.absents.clear();
            return;
        }
        let mut anchor: Vec<LogPoint> = vec![self.log.commit_point()];
        anchor.extend(self.log.points_after(self.log.commit()));
        // Whoever's place was taken empties itself: nothing it has is worth remembering.
        let config = &self.config;
        let whole = !config.up.is_empty() && config.up.iter().all(|osd| config.isr.contains(osd));
        let of_use = |osd: &&OsdId| !whole || config.up.contains(osd);
        let left = old.isr.iter().filter(|osd| **osd != self.me && !config.isr.contains(osd));
        for osd in left.filter(of_use) {
            let open = self.log.after(self.log.commit()).map(|kept| &kept.entry);
            let open = open.filter(|_| !planted(Bug::ForgetOpenEntries));
            self.absents.depart(*osd, anchor.clone(), open, self.object_size);
        }
        for osd in &self.config.isr {
            self.absents.forget(*osd);
        }
    }

    /// Not the primary any more, or never: whoever waits is sent on.
    pub(super) fn step_down(&mut self, ctx: &mut Ctx<'_>) {
        let refusal = Refusal::NotPrimary { epoch: ctx.map.epoch };
        for read in self.repair.forget() {
            ctx.out.reply(read.conn, read.request.id, Err(refusal));
        }
        self.drop_scrub(ctx);
        let Some(primary) = self.primary.take() else { return };
        for (conn, id) in primary.disband(ctx.out) {
            ctx.out.reply(conn, id, Err(refusal));
        }
        self.log.drop_data(self.log.commit());
        self.replica.forget_primary();
    }
}
