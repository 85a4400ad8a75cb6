//! Random transactions that a replication core could order.

use bytes::Bytes;
use cairn_types::peer::{EntryOp, LogPoint, Logged, Run, RunContent};
use cairn_types::{BLOCK_SIZE, ConfVersion, PgId, Version};

use super::harness::{Rng, bytes, data_run, entry, object, write, zero};
use super::model::PgModel;
use crate::Transaction;

const OBJECTS: u64 = 4;
const BLOCKS: u64 = 150;

/// The next transaction of a PG in this state.
pub(super) fn transaction(rng: &mut Rng, pg: PgId, model: &PgModel) -> Transaction {
    let mut t = Transaction::new(pg, model.commit);
    let mut end = model.end;
    if rng.chance(8) && !model.pending.is_empty() {
        let to = model.commit + rng.below(model.end - model.commit + 1);
        t.rewind = Some(if rng.chance(10) { 0 } else { to });
        end = if t.rewind == Some(0) { model.commit } else { to };
    }
    if rng.chance(70) {
        t.commit = model.commit + rng.below(end - model.commit + 1);
    }
    if rng.chance(2) {
        end = t.commit.max(end) + rng.below(5);
        t.restart = Some(LogPoint { version: Version { c: ConfVersion(1), seq: end }, hash: rng.next() });
    }
    for _ in 0..rng.below(4) {
        end += 1;
        t.append.push(logged(rng, pg, end));
    }
    if rng.chance(15) {
        for _ in 0..=rng.below(2) {
            let object = object(pg, rng.below(OBJECTS));
            if t.content.iter().all(|(o, _)| *o != object) {
                t.content.push((object, runs(rng)));
            }
        }
    }
    if rng.chance(4) {
        t.remove.push(object(pg, rng.below(OBJECTS)));
    }
    if rng.chance(20) {
        t.trim = Some(t.commit.saturating_sub(rng.below(10)));
    }
    for _ in 0..rng.below(3) {
        let name = vec![b'a' + rng.below(5) as u8];
        let len = if rng.chance(20) { 5000 } else { 40 };
        let value = rng.chance(70).then(|| Bytes::from(vec![rng.next() as u8; rng.below(len) as usize]));
        t.attributes.retain(|(n, _)| *n != name);
        t.attributes.push((name, value));
    }
    t
}

fn logged(rng: &mut Rng, pg: PgId, seq: u64) -> Logged {
    let object = object(pg, rng.below(OBJECTS));
    let block = rng.below(BLOCKS) as u32;
    match rng.below(20) {
        0..=11 => write(seq, object, block, bytes(rng.next(), 1 + rng.below(3) as u32)),
        12..=15 => write(seq, object, block, bytes(rng.next(), 17 + rng.below(30) as u32)),
        16 => zero(seq, object, block, 1 + rng.below(40) as u32, false),
        17 | 18 => zero(seq, object, block, 1 + rng.below(40) as u32, true),
        _ => Logged { entry: entry(seq, EntryOp::Remove { object }), data: Bytes::new() },
    }
}

fn runs(rng: &mut Rng) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut block = rng.below(20) as u32;
    for _ in 0..=rng.below(3) {
        let len = if rng.chance(20) { 17 + rng.below(20) } else { 1 + rng.below(4) } as u32;
        runs.push(match rng.below(5) {
            0 => Run { offset: block * BLOCK_SIZE, len: len * BLOCK_SIZE, content: RunContent::Absent },
            1 => Run { offset: block * BLOCK_SIZE, len: len * BLOCK_SIZE, content: RunContent::Zero },
            _ => data_run(block, bytes(rng.next(), len)),
        });
        block += len + rng.below(9) as u32;
    }
    runs
}
