//! At the end, when all is healed and at rest: the disks of all in-sync members of a PG hold the same bytes.

use std::collections::BTreeMap;

use cairn_types::map::ClusterMap;
use cairn_types::{ObjectId, OsdId, PgId};

use super::{Check, Violation};

/// The first PG whose replicas differ.
pub(crate) fn check(
    map: &ClusterMap,
    mut content: impl FnMut(OsdId, PgId) -> BTreeMap<(ObjectId, u32), u32>,
) -> Result<(), Violation> {
    for (pg, config) in &map.pgs {
        let Some((first, others)) = config.isr.split_first() else { continue };
        let reference = content(*first, *pg);
        for osd in others {
            let copy = content(*osd, *pg);
            if copy == reference {
                continue;
            }
            let differs = |key: &&(ObjectId, u32)| copy.get(key) != reference.get(key);
            let at = reference.keys().chain(copy.keys()).find(differs);
            let what = format!("{pg}: {first} and {osd} differ, first at {at:?}");
            return Err(Violation::new(Check::Replicas, what));
        }
    }
    Ok(())
}
