//! What a write costs: device flushes per acknowledged write, alone and with many at once.

use super::harness::{Bench, appended, bytes, object, pg, write};
use crate::Output;

/// Flushes and acknowledged writes of 4 KiB, with so many of different groups under way. The disk completes one
/// operation at a time, and the group of writes that wait for a flush is everything that came since the last one.
fn flushes(depth: u32, writes: u64) -> f64 {
    let mut bench = Bench::new(1);
    let mut ends = vec![0u64; depth as usize];
    let (mut begun, mut acked) = (0, 0);
    let before = bench.disk.syncs();
    let mut under_way = std::collections::BTreeMap::new();
    while acked < writes {
        for group in 0..depth {
            if begun < writes && !under_way.values().any(|other| *other == group) {
                let end = &mut ends[group as usize];
                let (p, at) = (pg(group), (*end % 64) as u32);
                let t = appended(p, *end, vec![write(*end + 1, object(pg(group % 4), 0), at, bytes(begun, 1))]);
                under_way.insert(bench.store.submit(t), group);
                *end += 1;
                begun += 1;
            }
        }
        assert!(bench.step(), "something is under way");
        for output in std::mem::take(&mut bench.outputs) {
            let Output::Persisted { token } = output else { panic!("{output:?}") };
            under_way.remove(&token);
            acked += 1;
        }
    }
    (bench.disk.syncs() - before) as f64 / acked as f64
}

#[test]
fn a_write_alone_costs_one_flush_and_many_share_one() {
    let (alone, many) = (flushes(1, 2000), flushes(32, 8000));
    println!("flushes per acknowledged 4 KiB write: {alone:.3} at QD1, {many:.3} at QD32");
    assert!(alone <= 1.05, "{alone}");
    assert!(many <= 0.1, "{many}");
}
