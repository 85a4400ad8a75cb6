//! Time goes forward: the epoch that a disk or a watcher has seen, and the configuration of each of its groups, never
//! decrease (I7).

use std::collections::BTreeMap;

use cairn_types::{ConfVersion, Epoch, PgId};

use super::{Check, Violation};
use crate::bus::Node;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Epochs {
    seen: BTreeMap<Node, Epoch>,
    configurations: BTreeMap<(Node, PgId), ConfVersion>,
}

impl Epochs {
    /// Somebody works with the map of this epoch. Epoch 0 is no map yet.
    pub(crate) fn saw(&mut self, who: Node, epoch: Epoch) -> Result<(), Violation> {
        let known = self.seen.entry(who).or_default();
        if epoch != Epoch(0) && epoch < *known {
            return Err(Violation::new(Check::Epochs, format!("{who:?} went back from {known} to {epoch}")));
        }
        *known = epoch.max(*known);
        Ok(())
    }

    /// An OSD takes part in a group under this configuration.
    pub(crate) fn takes_part(&mut self, who: Node, pg: PgId, c: ConfVersion) -> Result<(), Violation> {
        let known = self.configurations.entry((who, pg)).or_default();
        if c < *known {
            return Err(Violation::new(Check::Epochs, format!("{who:?} went back in {pg} from {known} to {c}")));
        }
        *known = c;
        Ok(())
    }

    /// A new life: what the last one knew and had not persisted it had taken no part in (I1).
    pub(crate) fn restart(&mut self, who: Node) {
        self.configurations.retain(|(node, _), _| *node != who);
    }

    /// Another disk: it has seen nothing.
    pub(crate) fn forget(&mut self, who: Node) {
        self.seen.remove(&who);
        self.restart(who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_forward() {
        let mut epochs = Epochs::default();
        let osd = Node::Osd(1);
        assert!(epochs.saw(osd, Epoch(4)).is_ok());
        assert!(epochs.saw(osd, Epoch(0)).is_ok(), "a restart, before its first map");
        assert!(epochs.saw(osd, Epoch(3)).is_err());
        let pg = PgId { pool: cairn_types::PoolId(1), index: 0 };
        assert!(epochs.takes_part(osd, pg, ConfVersion(2)).is_ok());
        assert!(epochs.takes_part(osd, pg, ConfVersion(1)).is_err());
        epochs.forget(osd);
        assert!(epochs.saw(osd, Epoch(1)).is_ok() && epochs.takes_part(osd, pg, ConfVersion(1)).is_ok());
    }
}
