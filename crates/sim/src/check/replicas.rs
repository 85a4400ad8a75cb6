//! At the end, when all is healed, scrubbed and at rest: the disks of all in-sync members of a PG hold the same bytes.

use cairn_types::map::ClusterMap;
use cairn_types::{ObjectId, OsdId, PgId};

use super::{Check, Violation};
use crate::medium::Content;

/// The first PG whose replicas differ, or that has a bad block left.
pub(crate) fn check(map: &ClusterMap, mut content: impl FnMut(OsdId, PgId) -> Content) -> Result<(), Violation> {
    for (pg, config) in &map.pgs {
        let Some((first, others)) = config.isr.split_first() else { continue };
        let reference = content(*first, *pg);
        let sound = |osd: OsdId, copy: &Content| match copy.bad.first() {
            Some(at) => Err(Violation::new(Check::Replicas, format!("{pg}: {osd} has a bad block, first at {at:?}"))),
            None => Ok(()),
        };
        sound(*first, &reference)?;
        for osd in others {
            let copy = content(*osd, *pg);
            sound(*osd, &copy)?;
            let keys = reference.blocks.keys().chain(copy.blocks.keys());
            let differs = |key: &&(ObjectId, u32)| copy.blocks.get(key) != reference.blocks.get(key);
            let Some(at) = keys.into_iter().find(differs) else { continue };
            let what = format!("{pg}: {first} and {osd} differ, first at {at:?}");
            return Err(Violation::new(Check::Replicas, what));
        }
    }
    Ok(())
}
