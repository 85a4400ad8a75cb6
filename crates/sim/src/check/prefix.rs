//! Committed is committed: whatever any member calls the committed entry at a position, all others call the same (I4);
//! and at most one primary orders entries under one configuration (I1).

use std::collections::BTreeMap;

use cairn_types::PgId;
use cairn_types::peer::LogPoint;

use super::{Check, Violation};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Prefix {
    committed: BTreeMap<(PgId, u64), LogPoint>,
}

impl Prefix {
    /// Some member says that the log is committed through this point.
    pub(crate) fn committed(&mut self, pg: PgId, point: LogPoint) -> Result<(), Violation> {
        let known = self.committed.entry((pg, point.seq())).or_insert(point);
        if *known == point {
            return Ok(());
        }
        let what = format!("{pg}: two entries are committed at position {}: {known:?} and {point:?}", point.seq());
        Err(Violation::new(Check::Prefix, what))
    }
}
