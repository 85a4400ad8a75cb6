//! Leases: names for a time span, to which keys are attached. Whether the time is over only the leader's clock knows; the
//! machine grants, revokes and, told so, ends them. Keep-alives are the leader's and are not replicated.

use bytes::Bytes;
use cairn_proto::etcdserverpb::{LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeResponse};
use cairn_proto::meta::{ErrorCode, LeaseRecord};
use cairn_proto::mvccpb::KeyValue;

use super::header;
use super::write::Writer;
use crate::keys;
use crate::machine::Event;
use crate::record;
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;

/// The longest time-to-live, as in etcd.
const LONGEST_S: i64 = 9_000_000_000;
/// The shortest: a lease must outlive the election of a new leader.
const SHORTEST_S: i64 = 2;

pub(super) fn not_found() -> Refusal {
    Refusal::not_found("etcdserver: requested lease not found")
}

/// One lease.
///
/// # Errors
/// When its record cannot be read.
pub fn lease(state: &dyn StateRead, id: i64) -> Result<Option<LeaseRecord>, Corrupt> {
    record::load(state, &keys::lease(id))
}

/// All leases in the order of their ids: what a new leader gives their full time again.
///
/// # Errors
/// When a record cannot be read.
pub fn leases(state: &dyn StateRead) -> Result<Vec<LeaseRecord>, Corrupt> {
    let mut all = Vec::new();
    record::each(state, keys::LEASES, keys::LEASES, &mut |_, lease| {
        all.push(lease);
        Ok(true)
    })?;
    Ok(all)
}

/// The keys attached to a lease, in order.
#[must_use]
pub fn lease_keys(state: &dyn StateRead, id: i64) -> Vec<Bytes> {
    let prefix = keys::attachments(id);
    record::keys_under(state, &prefix).iter().map(|key| key.slice(prefix.len()..)).collect()
}

pub(super) fn grant(writer: &mut Writer<'_>, request: &LeaseGrantRequest, now_s: u64) -> Outcome<LeaseGrantResponse> {
    if request.id <= 0 {
        return Err(Refusal::invalid("the proposer of a lease must give it a positive id").into());
    }
    if request.ttl > LONGEST_S {
        return Err(Refusal::new(ErrorCode::OutOfRange, "etcdserver: too large lease TTL").into());
    }
    if lease(&writer.state, request.id)?.is_some() {
        return Err(Refusal::precondition("etcdserver: lease already exists").into());
    }
    let ttl_s = request.ttl.max(SHORTEST_S);
    let granted = LeaseRecord { id: request.id, ttl_s, granted_at_s: now_s };
    record::store(&mut writer.state, keys::lease(request.id), &granted);
    writer.events.push(Event::LeaseGranted { id: request.id, ttl_s });
    Ok(LeaseGrantResponse { header: header(writer.revision()), id: request.id, ttl: ttl_s, error: String::new() })
}

pub(super) fn revoke(writer: &mut Writer<'_>, id: i64) -> Outcome<LeaseRevokeResponse> {
    if lease(&writer.state, id)?.is_none() {
        return Err(not_found().into());
    }
    end(writer, id)?;
    Ok(LeaseRevokeResponse { header: header(writer.revision()) })
}

pub(super) fn expire(writer: &mut Writer<'_>, ids: &[i64]) -> Outcome<()> {
    for id in ids {
        if lease(&writer.state, *id)?.is_some() {
            end(writer, *id)?;
        }
    }
    Ok(())
}

/// Removes a lease and, as one revision, the keys attached to it.
fn end(writer: &mut Writer<'_>, id: i64) -> Outcome<()> {
    for key in lease_keys(&writer.state, id) {
        let kv: Option<KeyValue> = record::load(&writer.state, &keys::current(&key))?;
        let missing = || Corrupt::new(record::name_of(&key), "a living key with a lease", "nothing");
        writer.delete(kv.ok_or_else(missing)?);
    }
    writer.state.delete(keys::lease(id));
    writer.seal();
    writer.events.push(Event::LeaseEnded { id });
    Ok(())
}
