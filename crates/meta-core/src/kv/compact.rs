//! Compaction: history below a revision may not be read any more at once, and is removed little by little.
//!
//! Removal is part of `apply`: a bounded piece with every command, so that no command stalls the log and every member
//! holds the same bytes. What stays is, per key, the newest version at the compacted revision, and everything after it.

use cairn_proto::etcdserverpb::{CompactionRequest, CompactionResponse};
use cairn_proto::meta::RevisionRecord;

use super::write::Writer;
use super::{compacted, future, header};
use crate::keys::{self, Step};
use crate::machine::{Machine, Turn};
use crate::record::{self, name_of};
use crate::refusal::{Corrupt, Outcome};
use crate::state::{Overlay, StateRead};

/// Steps looked at with one command; a revision is never split.
const PIECE: usize = 64;

pub(super) fn compact(writer: &mut Writer<'_>, request: &CompactionRequest) -> Outcome<CompactionResponse> {
    if request.revision <= writer.kv.compacted {
        return Err(compacted().into());
    }
    if request.revision > writer.kv.revision {
        return Err(future().into());
    }
    writer.kv.compacted = request.revision;
    Ok(CompactionResponse { header: header(writer.revision()) })
}

/// Removes the next piece of compacted history.
pub(crate) fn prune(machine: &mut Machine, turn: &mut Turn<'_>) -> Result<(), Corrupt> {
    let (from, target) = (machine.kv.pruned, machine.kv.compacted);
    if from >= target {
        return Ok(());
    }
    let mut piece: Vec<(Step, RevisionRecord)> = Vec::new();
    let mut reached = target;
    record::each(&turn.state, b"r", &keys::revision(Step { revision: from, sub: 0 }), &mut |key, record| {
        let step = keys::parse_revision(key).ok_or_else(|| Corrupt::new(name_of(key), "a revision's key", ""))?;
        if step.revision > target {
            return Ok(false);
        }
        if piece.len() >= PIECE && piece.last().is_some_and(|(last, _)| last.revision != step.revision) {
            reached = step.revision;
            return Ok(false);
        }
        piece.push((step, record));
        Ok(true)
    })?;
    for (step, record) in piece {
        if let Some(before) = predecessor(&turn.state, &record.key, step)? {
            remove(&mut turn.state, &record.key, before);
        }
        // A deletion at the compacted revision itself can still be watched.
        if record.deleted && step.revision < target {
            remove(&mut turn.state, &record.key, step);
        }
    }
    machine.kv.pruned = reached;
    Ok(())
}

fn remove(state: &mut Overlay<'_>, key: &[u8], step: Step) {
    state.delete(keys::revision(step));
    state.delete(keys::version(key, step));
}

/// The version of a key before a step, if history still has it.
pub(super) fn predecessor(state: &dyn StateRead, key: &[u8], step: Step) -> Result<Option<Step>, Corrupt> {
    let prefix = keys::versions(key);
    let mut before = Ok(None);
    state.scan(&keys::version(key, step), true, &mut |stored, _| {
        if stored.starts_with(&prefix) {
            let unreadable = || Corrupt::new(name_of(stored), "a version's key", "something else");
            before = keys::parse_version(stored).map(|(_, step)| Some(step)).ok_or_else(unreadable);
        }
        false
    });
    before
}
