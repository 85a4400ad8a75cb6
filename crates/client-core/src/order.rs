//! What waits for what. A write waits for every earlier write that shares a block with it, a read likewise, and a
//! flush for every earlier write. A write does not wait for earlier reads: a read that is still under way may return
//! either.

use std::collections::BTreeMap;

use cairn_types::Bytes4k;

use crate::OpId;

/// How an operation touches the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read(Bytes4k),
    Write(Bytes4k),
    /// Waits for all earlier writes.
    Barrier,
}

impl Access {
    /// Whether this, being later, waits for `earlier`.
    fn waits_for(self, earlier: Self) -> bool {
        match (self, earlier) {
            (Self::Read(range) | Self::Write(range), Self::Write(written)) => range.overlaps(written),
            (Self::Barrier, Self::Write(_)) => true,
            (_, Self::Read(_) | Self::Barrier) => false,
        }
    }
}

#[derive(Debug)]
struct Entry {
    access: Access,
    waits_for: usize,
    waited_for_by: Vec<OpId>,
}

/// The operations that have come and not ended.
#[derive(Debug, Default)]
pub(crate) struct Order {
    entries: BTreeMap<OpId, Entry>,
}

impl Order {
    /// Adds an operation behind all others. True: it waits for none of them.
    pub(crate) fn enter(&mut self, id: OpId, access: Access) -> bool {
        let mut waits_for = 0;
        for earlier in self.entries.values_mut() {
            if access.waits_for(earlier.access) {
                earlier.waited_for_by.push(id);
                waits_for += 1;
            }
        }
        let replaced = self.entries.insert(id, Entry { access, waits_for, waited_for_by: Vec::new() });
        assert!(replaced.is_none(), "{id:?} entered twice");
        waits_for == 0
    }

    /// Takes an operation out that has ended; returns those that wait for nothing any more, in order.
    pub(crate) fn leave(&mut self, id: OpId) -> Vec<OpId> {
        let entry = self.entries.remove(&id).expect("only what entered leaves");
        assert_eq!(entry.waits_for, 0, "{id:?} ended before what it waits for");
        let mut free = Vec::new();
        for waiting in entry.waited_for_by {
            let later = self.entries.get_mut(&waiting).expect("nothing leaves before what it waits for");
            later.waits_for -= 1;
            if later.waits_for == 0 {
                free.push(waiting);
            }
        }
        free
    }

    /// Nothing is left.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    /// No two writes that may be in flight overlap.
    pub(crate) fn check(&self) {
        let running: Vec<_> = self.entries.iter().filter(|(_, entry)| entry.waits_for == 0).collect();
        for (i, (id, entry)) in running.iter().enumerate() {
            for (later, other) in &running[i + 1..] {
                assert!(!other.access.waits_for(entry.access), "{later:?} runs beside {id:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u64, blocks: u64) -> Bytes4k {
        Bytes4k::new(from * 4096, blocks * 4096).unwrap()
    }

    #[test]
    fn overlapping_writes_go_one_after_the_other() {
        let mut order = Order::default();
        assert!(order.enter(OpId(1), Access::Write(range(0, 2))));
        assert!(!order.enter(OpId(2), Access::Write(range(1, 2))));
        assert!(!order.enter(OpId(3), Access::Write(range(2, 2))));
        assert!(order.enter(OpId(4), Access::Write(range(9, 1))));
        order.check();
        assert_eq!(order.leave(OpId(1)), [OpId(2)]);
        assert_eq!(order.leave(OpId(2)), [OpId(3)]);
    }

    #[test]
    fn reads_follow_writes_and_hold_nothing_up() {
        let mut order = Order::default();
        assert!(order.enter(OpId(1), Access::Read(range(0, 1))));
        assert!(order.enter(OpId(2), Access::Write(range(0, 1))));
        assert!(!order.enter(OpId(3), Access::Read(range(0, 1))));
        assert!(order.enter(OpId(4), Access::Read(range(1, 1))));
        assert_eq!(order.leave(OpId(2)), [OpId(3)]);
    }

    #[test]
    fn a_flush_waits_for_all_earlier_writes_and_for_nothing_else() {
        let mut order = Order::default();
        order.enter(OpId(1), Access::Write(range(0, 1)));
        order.enter(OpId(2), Access::Read(range(5, 1)));
        order.enter(OpId(3), Access::Write(range(7, 1)));
        assert!(!order.enter(OpId(4), Access::Barrier));
        assert!(order.enter(OpId(5), Access::Write(range(8, 1))), "later writes pass it");
        assert_eq!(order.leave(OpId(3)), []);
        assert_eq!(order.leave(OpId(1)), [OpId(4)]);
        assert!(Order::default().enter(OpId(1), Access::Barrier));
    }
}
