//! Primaries whose members all keep up: what they propose, and until when.

use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{ChangePgsRequest, PgChange};
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::{OsdId, PgId};

use super::Cluster;

/// Lets every primary do what it would until nothing is left to do.
pub(crate) fn settle(cluster: &mut Cluster) -> usize {
    let (mut rounds, mut changes) = (0, 0);
    loop {
        let made = round(cluster);
        if made == 0 {
            return changes;
        }
        (rounds, changes) = (rounds + 1, changes + made);
        assert!(rounds < 1000, "it does not settle");
    }
}

/// One change of every PG whose primary has one to propose, as far as they are accepted.
pub(crate) fn round(cluster: &mut Cluster) -> usize {
    let map = cluster.machine.map().clone();
    let mut made = 0;
    for (id, pg) in &map.pgs {
        let (Some(primary), Some(next)) = (pg.primary, wish(&map, *id, pg)) else { continue };
        let ids = |osds: &[OsdId]| osds.iter().map(|osd| osd.0).collect::<Vec<_>>();
        let change = PgChange {
            pg: Some((*id).into()),
            expect_c: pg.c.0,
            primary: next.primary.map(|osd| osd.0),
            isr: ids(&next.isr),
            acting: ids(&next.acting),
            backfill: ids(&next.backfill),
            split_at: None,
        };
        let incarnation = map.osds[&primary].incarnation.0;
        let request = ChangePgsRequest { mutation: None, reporter: primary.0, incarnation, changes: vec![change] };
        let Ok(Answer::ChangePgs(reply)) = cluster.run(Payload::ChangePgs(request)) else { panic!("{id}: {next:?}") };
        made += usize::from(reply.outcomes[0].applied);
    }
    made
}

/// What a primary whose members all keep up would ask for: the rules of `osd-core`, without its reasons.
fn wish(map: &ClusterMap, id: PgId, pg: &PgConfig) -> Option<PgConfig> {
    let up = |osd: &OsdId| map.osds.get(osd).is_some_and(|osd| osd.up);
    let size = map.pools[&id.pool].size as usize;
    let mut next = pg.clone();
    if let Some(osd) = pg.acting.iter().find(|osd| !pg.isr.contains(osd) && up(osd)) {
        next.isr.push(*osd);
        let whole = next.up.len() >= size && next.up.iter().all(|osd| next.isr.contains(osd) && up(osd));
        if whole {
            let stays = |osd: &OsdId| next.up.contains(osd) || Some(*osd) == pg.primary;
            next.isr = next.isr.iter().copied().filter(stays).collect();
            next.acting = next.acting.iter().copied().filter(stays).collect();
        }
        return Some(next);
    }
    if let Some(osd) = pg.backfill.iter().find(|osd| up(osd)) {
        next.backfill.retain(|other| other != osd);
        next.acting.push(*osd);
        return Some(next);
    }
    if let Some(osd) = pg.up.iter().find(|osd| !pg.acting.contains(osd) && up(osd)) {
        next.backfill.push(*osd);
        return Some(next);
    }
    let whole = pg.up.len() >= size && pg.up.iter().all(|osd| pg.isr.contains(osd) && up(osd));
    if whole && pg.acting.iter().any(|osd| !pg.up.contains(osd)) {
        next.isr.retain(|osd| pg.up.contains(osd));
        next.acting.retain(|osd| pg.up.contains(osd));
        next.primary = pg.primary.filter(|osd| pg.up.contains(osd)).or_else(|| pg.up.first().copied());
        return Some(next);
    }
    None
}
