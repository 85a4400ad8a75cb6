//! At the end, when all is healed and at rest: the disks of all in-sync members of a PG hold the same bytes.

use cairn_types::map::ClusterMap;
use cairn_types::{OsdId, PgId};

use super::{Check, Violation};
use crate::medium::Content;

/// The first PG whose replicas differ, or that has bad blocks where the disk may have none (`may_be_bad`). Bad blocks
/// are no difference: nobody would be given them.
pub(crate) fn check(
    map: &ClusterMap,
    may_be_bad: impl Fn(OsdId) -> bool,
    mut content: impl FnMut(OsdId, PgId) -> Content,
) -> Result<(), Violation> {
    for (pg, config) in &map.pgs {
        let Some((first, others)) = config.isr.split_first() else { continue };
        let reference = content(*first, *pg);
        let sound = |osd: OsdId, copy: &Content| match copy.bad.first() {
            Some(at) if !may_be_bad(osd) => {
                Err(Violation::new(Check::Replicas, format!("{pg}: {osd} has a bad block, first at {at:?}")))
            }
            _ => Ok(()),
        };
        sound(*first, &reference)?;
        for osd in others {
            let copy = content(*osd, *pg);
            sound(*osd, &copy)?;
            let keys = reference.blocks.keys().chain(copy.blocks.keys());
            let mut comparable = keys.filter(|key| !reference.bad.contains(key) && !copy.bad.contains(key));
            let Some(at) = comparable.find(|key| copy.blocks.get(key) != reference.blocks.get(key)) else { continue };
            let what = format!("{pg}: {first} and {osd} differ, first at {at:?}");
            return Err(Violation::new(Check::Replicas, what));
        }
    }
    Ok(())
}
