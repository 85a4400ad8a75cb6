//! Inspection: what the index says of each block, and in depth whether the bytes agree.

use cairn_disk::{CrashPolicy, Injection};
use cairn_types::scrub::BlockCopy;

use super::basic::find;
use super::harness::{Bench, appended, bytes, crcs, object, pg, write, zero};
use crate::{Output, Transaction};

fn inspect(bench: &mut Bench, blocks: u32, deep: bool) -> Vec<BlockCopy> {
    let token = bench.store.inspect(pg(0), object(pg(0), 0), 0, blocks * 4096, deep);
    match bench.answer(token) {
        Output::Inspected { blocks, .. } => blocks,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_index_is_told_and_the_bytes_are_held_against_it() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 1, bytes(5, 3)), zero(2, o, 4, 1, false)]));
    let data = crcs(&bytes(5, 3)).into_iter().map(|crc| BlockCopy::Data { crc }).collect::<Vec<_>>();
    let whole = [BlockCopy::Absent, data[0], data[1], data[2], BlockCopy::Zero, BlockCopy::Absent];
    assert_eq!(inspect(&mut bench, 6, true), whole, "pending entries count");
    bench.persist(Transaction::new(p, 2));
    bench.checkpoint();
    assert_eq!(inspect(&mut bench, 6, true), whole);

    let (second, third) = (&bytes(5, 3)[4096..2 * 4096], &bytes(5, 3)[2 * 4096..]);
    bench.disk.flip_bit(find(&bench.disk, second) + 77, 5);
    bench.disk.inject(Injection::ReadError(find(&bench.disk, third)));
    assert_eq!(inspect(&mut bench, 6, false), whole, "a light one reads no data");
    let mut seen = inspect(&mut bench, 6, true);
    for at in [2, 3] {
        let BlockCopy::Data { crc } = whole[at] else { panic!("data") };
        assert_eq!(std::mem::replace(&mut seen[at], whole[at]), BlockCopy::Rotten { crc });
    }
    assert_eq!(seen, whole);
}

#[test]
fn bytes_that_rotted_in_the_log_are_lost() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    for seq in 1..=3 {
        bench.persist(appended(p, seq - 1, vec![write(seq, o, seq as u32, bytes(seq, 1))]));
    }
    bench.disk.flip_bit((1 << 20) + (2 + 1) * 4096 + 50, 1);
    bench.persist(Transaction::new(p, 3));
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    for deep in [false, true] {
        let seen = inspect(&mut bench, 4, deep);
        assert_eq!((seen[2], seen[1].is_good(), seen[3].is_good()), (BlockCopy::Lost, true, true));
    }
}
