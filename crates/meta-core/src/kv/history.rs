//! What happened since a revision: the past that a watch begins with.

use cairn_proto::meta::{KvRecord, RevisionRecord};
use cairn_proto::mvccpb::{Event, KeyValue, event::EventType};

use super::compact::predecessor;
use super::range::key_value;
use super::{compacted, in_range, standing};
use crate::keys::{self, Step};
use crate::machine::Machine;
use crate::record::{self, name_of};
use crate::refusal::{Corrupt, Outcome};
use crate::state::StateRead;

/// A piece of history.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// The revisions that touched the range, in order, with what they did there. Previous values are filled in.
    pub revisions: Vec<(i64, Vec<Event>)>,
    /// Everything up to and with this revision was looked at: the next piece begins after it.
    pub through: i64,
}

/// What happened to a range of keys from revision `from` on, looking at about `most` steps; never half a revision.
///
/// # Errors
/// When the history before `from` is compacted into it: the caller must read the range anew.
pub fn history(
    machine: &Machine,
    state: &dyn StateRead,
    range: (&[u8], &[u8]),
    from: i64,
    most: usize,
) -> Outcome<Past> {
    read(state, &machine.kv, range, from, most)
}

/// The same from a state alone: one that was held fast while the machine went on.
///
/// # Errors
/// As [`history`].
pub fn history_of(state: &dyn StateRead, range: (&[u8], &[u8]), from: i64, most: usize) -> Outcome<Past> {
    read(state, &standing(state)?, range, from, most)
}

fn read(
    state: &dyn StateRead,
    kv: &KvRecord,
    (begin, range_end): (&[u8], &[u8]),
    from: i64,
    most: usize,
) -> Outcome<Past> {
    if from < kv.compacted {
        return Err(compacted().into());
    }
    let mut past = Past { revisions: Vec::new(), through: kv.revision };
    let (mut seen, mut last) = (0, 0);
    record::each(state, b"r", &keys::revision(Step { revision: from, sub: 0 }), &mut |key, record: RevisionRecord| {
        let step = keys::parse_revision(key).ok_or_else(|| Corrupt::new(name_of(key), "a revision's key", ""))?;
        if seen >= most && step.revision != last {
            past.through = last;
            return Ok(false);
        }
        seen += 1;
        last = step.revision;
        if in_range(&record.key, begin, range_end) {
            let event = event_of(state, record, step)?;
            match past.revisions.last_mut() {
                Some((revision, events)) if *revision == step.revision => events.push(event),
                _ => past.revisions.push((step.revision, vec![event])),
            }
        }
        Ok(true)
    })?;
    Ok(past)
}

fn event_of(state: &dyn StateRead, record: RevisionRecord, step: Step) -> Result<Event, Corrupt> {
    let mut prev_kv: Option<KeyValue> = None;
    if let Some(before) = predecessor(state, &record.key, step)? {
        let old: Option<RevisionRecord> = record::load(state, &keys::revision(before))?;
        prev_kv = old.filter(|old| !old.deleted).map(|old| key_value(old, before.revision));
    }
    if record.deleted {
        let kv = KeyValue { key: record.key, mod_revision: step.revision, ..KeyValue::default() };
        return Ok(Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv });
    }
    let kv = key_value(record, step.revision);
    Ok(Event { r#type: EventType::Put.into(), kv: Some(kv), prev_kv })
}
