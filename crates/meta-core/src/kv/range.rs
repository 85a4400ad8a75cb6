//! Range reads: of the newest revision, or of any that is not compacted.

use std::cmp::Ordering;

use bytes::Bytes;
use cairn_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use cairn_proto::etcdserverpb::{RangeRequest, RangeResponse};
use cairn_proto::meta::RevisionRecord;
use cairn_proto::mvccpb::KeyValue;

use super::{End, compacted, empty_key, future, header, standing};
use crate::keys::{self, Step};
use crate::machine::Machine;
use crate::record::{self, name_of};
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;

/// A key that a range found, read only when it is wanted.
pub(super) enum Found<'a> {
    Current { key: &'a [u8], value: &'a [u8] },
    Past { state: &'a dyn StateRead, step: Step },
}

impl Found<'_> {
    pub(super) fn decode(&self) -> Result<KeyValue, Corrupt> {
        match self {
            Self::Current { key, value } => record::decode(key, value),
            Self::Past { state, step } => {
                let key = keys::revision(*step);
                let missing = || Corrupt::new(name_of(&key), "a revision", "nothing");
                record::load(*state, &key)?.map(|record| key_value(record, step.revision)).ok_or_else(missing)
            }
        }
    }
}

pub(super) fn key_value(record: RevisionRecord, revision: i64) -> KeyValue {
    KeyValue {
        key: record.key,
        create_revision: record.create_revision,
        mod_revision: revision,
        version: record.version,
        value: record.value,
        lease: record.lease,
    }
}

type Visit<'v> = &'v mut dyn FnMut(Found<'_>) -> Result<bool, Corrupt>;

/// Visits the living keys of a range in order.
pub(super) fn each_current(
    state: &dyn StateRead,
    begin: &[u8],
    range_end: &[u8],
    visit: Visit<'_>,
) -> Result<(), Corrupt> {
    let end = End::of(range_end);
    let from = keys::current(begin);
    if end == End::Single {
        return match state.get(&from) {
            Some(value) => visit(Found::Current { key: &from, value: &value }).map(|_| ()),
            None => Ok(()),
        };
    }
    let mut result = Ok(());
    state.scan(&from, false, &mut |key, value| {
        let Some(user) = key.strip_prefix(b"c") else { return false };
        if !end.covers(begin, user) {
            return false;
        }
        visit(Found::Current { key, value }).unwrap_or_else(|corrupt| {
            result = Err(corrupt);
            false
        })
    });
    result
}

/// Visits the keys of a range as they were at `revision`, in order.
fn each_past(
    state: &dyn StateRead,
    begin: &[u8],
    range_end: &[u8],
    revision: i64,
    visit: Visit<'_>,
) -> Result<(), Corrupt> {
    let end = End::of(range_end);
    // The newest version at or before `revision` of the key that is being walked over.
    let mut last: Option<(Vec<u8>, Step)> = None;
    let mut settle = |last: Option<(Vec<u8>, Step)>| -> Result<bool, Corrupt> {
        let Some((_, step)) = last else { return Ok(true) };
        let key = keys::revision(step);
        let record: RevisionRecord = record::load(state, &key)?.unwrap_or_default();
        if record.key.is_empty() {
            return Err(Corrupt::new(name_of(&key), "a revision", "nothing"));
        }
        if record.deleted { Ok(true) } else { visit(Found::Past { state, step }) }
    };
    let mut result = Ok(true);
    state.scan(&keys::versions(begin), false, &mut |stored, _| {
        if !stored.starts_with(b"h") {
            return false;
        }
        let Some((key, step)) = keys::parse_version(stored) else {
            result = Err(Corrupt::new(name_of(stored), "a version's key", "something else"));
            return false;
        };
        if !end.covers(begin, &key) {
            return false;
        }
        if last.as_ref().is_some_and(|(walked, _)| *walked != key) {
            result = settle(last.take());
        }
        if step.revision <= revision {
            last = Some((key, step));
        }
        matches!(result, Ok(true))
    });
    if result? {
        settle(last)?;
    }
    Ok(())
}

/// What can be said against a range request without looking at the store.
///
/// # Errors
/// When the key is missing or the sort options are unknown.
pub fn check_range(request: &RangeRequest) -> Result<(), Refusal> {
    if request.key.is_empty() {
        return Err(empty_key());
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Refusal::invalid("etcdserver: invalid sort option"));
    }
    Ok(())
}

/// Answers a range request from the machine's present state.
///
/// # Errors
/// When the request is wrong, or asks for a revision that is compacted or yet to come.
pub fn range(machine: &Machine, state: &dyn StateRead, request: &RangeRequest) -> Outcome<RangeResponse> {
    read(state, machine.kv.revision, machine.kv.compacted, request)
}

/// Answers a range request from a state alone: one that was held fast while the machine went on.
///
/// # Errors
/// As [`range`].
pub fn range_of(state: &dyn StateRead, request: &RangeRequest) -> Outcome<RangeResponse> {
    let kv = standing(state)?;
    read(state, kv.revision, kv.compacted, request)
}

pub(super) fn read(state: &dyn StateRead, newest: i64, oldest: i64, request: &RangeRequest) -> Outcome<RangeResponse> {
    check_range(request)?;
    if request.revision > newest {
        return Err(future().into());
    }
    if request.revision > 0 && request.revision < oldest {
        return Err(compacted().into());
    }
    let all = picks(request);
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let mut kvs: Vec<KeyValue> = Vec::new();
    let mut count = 0;
    let mut visit = |found: Found<'_>| {
        count += 1;
        if !request.count_only && (all || limit == 0 || kvs.len() <= limit) {
            kvs.push(found.decode()?);
        }
        Ok(true)
    };
    match request.revision {
        past if past > 0 && past < newest => {
            each_past(state, &request.key, &request.range_end, past, &mut visit)?;
        }
        _ => each_current(state, &request.key, &request.range_end, &mut visit)?,
    }
    if all {
        kvs.retain(|kv| wanted(request, kv));
        sort(request, &mut kvs);
    }
    let more = limit > 0 && kvs.len() > limit;
    if more {
        kvs.truncate(limit);
    }
    if request.keys_only {
        kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
    }
    Ok(RangeResponse { header: header(newest), kvs, more, count })
}

/// Whether every key must be looked at before the limit applies.
fn picks(request: &RangeRequest) -> bool {
    let bounds =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    bounds.iter().any(|bound| *bound != 0)
        || request.sort_order() != SortOrder::None
        || request.sort_target() != SortTarget::Key
}

fn wanted(request: &RangeRequest, kv: &KeyValue) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

fn sort(request: &RangeRequest, kvs: &mut [KeyValue]) {
    let order = |a: &KeyValue, b: &KeyValue| -> Ordering {
        match request.sort_target() {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    };
    match request.sort_order() {
        SortOrder::Descend => kvs.sort_by(|a, b| order(b, a)),
        SortOrder::Ascend | SortOrder::None => kvs.sort_by(order),
    }
}
