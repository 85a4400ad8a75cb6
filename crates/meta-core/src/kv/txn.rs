//! Transactions: comparisons decide which of two lists of operations runs, all of it as one revision.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use bytes::Bytes;
use cairn_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use cairn_proto::etcdserverpb::request_op::Request;
use cairn_proto::etcdserverpb::response_op::Response;
use cairn_proto::etcdserverpb::{Compare, DeleteRangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse};
use cairn_proto::mvccpb::KeyValue;

use super::write::Writer;
use super::{check_delete_range, check_put, check_range, empty_key, header, in_range, range};
use crate::refusal::{Corrupt, Outcome, Refusal};

/// The most comparisons, and the most operations of one branch.
pub const MOST_OPS: usize = 128;
/// The deepest nesting of transactions in transactions.
const DEEPEST: usize = 8;

/// What can be said against a transaction without looking at the store.
///
/// # Errors
/// When it is too large, malformed in any branch, or writes a key twice.
pub fn check_txn(request: &TxnRequest) -> Result<(), Refusal> {
    check_shape(request, 0)?;
    writes_of(&request.success)?;
    writes_of(&request.failure)?;
    Ok(())
}

fn check_shape(request: &TxnRequest, depth: usize) -> Result<(), Refusal> {
    let most = request.compare.len().max(request.success.len()).max(request.failure.len());
    if most > MOST_OPS || depth > DEEPEST {
        return Err(Refusal::invalid("etcdserver: too many operations in txn request"));
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(empty_key());
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => check_range(request)?,
            Some(Request::RequestPut(request)) => check_put(request)?,
            Some(Request::RequestDeleteRange(request)) => check_delete_range(request)?,
            Some(Request::RequestTxn(request)) => check_shape(request, depth + 1)?,
            None => return Err(empty_key()),
        }
    }
    Ok(())
}

/// What one branch writes: keys put, and ranges deleted.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Bytes>,
    deletes: Vec<DeleteRangeRequest>,
}

impl Writes {
    fn clash(&self, key: &Bytes) -> bool {
        self.puts.contains(key) || self.deletes.iter().any(|gone| in_range(key, &gone.key, &gone.range_end))
    }
}

/// Collects the writes of a branch. The two branches of a nested transaction exclude each other, so that a key may be
/// written in both, but not in one of them and beside it.
fn writes_of(ops: &[RequestOp]) -> Result<Writes, Refusal> {
    let mut all = Writes::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(request)) = &op.request {
            all.deletes.push(request.clone());
        }
    }
    let mut nested = Writes::default();
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else { continue };
        let (one, other) = (writes_of(&request.success)?, writes_of(&request.failure)?);
        let puts: BTreeSet<Bytes> = one.puts.union(&other.puts).cloned().collect();
        if puts.iter().any(|key| all.clash(key) || nested.clash(key)) {
            return Err(duplicate());
        }
        nested.puts.extend(puts);
        nested.deletes.extend(one.deletes.into_iter().chain(other.deletes));
    }
    all.deletes.append(&mut nested.deletes);
    for op in ops {
        let Some(Request::RequestPut(request)) = &op.request else { continue };
        if all.clash(&request.key) || nested.puts.contains(&request.key) {
            return Err(duplicate());
        }
        all.puts.insert(request.key.clone());
    }
    all.puts.append(&mut nested.puts);
    Ok(all)
}

fn duplicate() -> Refusal {
    Refusal::invalid("etcdserver: duplicate key given in txn request")
}

pub(super) fn run(writer: &mut Writer<'_>, request: TxnRequest) -> Outcome<TxnResponse> {
    check_txn(&request)?;
    run_checked(writer, request)
}

fn run_checked(writer: &mut Writer<'_>, request: TxnRequest) -> Outcome<TxnResponse> {
    let mut succeeded = true;
    for compare in &request.compare {
        succeeded = succeeded && holds(writer, compare)?;
    }
    let ops = if succeeded { request.success } else { request.failure };
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match op.request {
            Some(Request::RequestRange(request)) => {
                let newest = writer.revision();
                Some(Response::ResponseRange(range::read(&writer.state, newest, writer.kv.compacted, &request)?))
            }
            Some(Request::RequestPut(request)) => Some(Response::ResponsePut(writer.put(request)?)),
            Some(Request::RequestDeleteRange(request)) => {
                Some(Response::ResponseDeleteRange(writer.delete_range(&request)?))
            }
            Some(Request::RequestTxn(request)) => Some(Response::ResponseTxn(run_checked(writer, request)?)),
            None => None,
        };
        responses.push(ResponseOp { response });
    }
    Ok(TxnResponse { header: header(writer.revision()), succeeded, responses })
}

/// Whether a comparison holds for its key, or for every key of its range. A key that does not exist compares as zero,
/// but has no value to compare.
fn holds(writer: &Writer<'_>, compare: &Compare) -> Result<bool, Corrupt> {
    let (mut all, mut any) = (true, false);
    range::each_current(&writer.state, &compare.key, &compare.range_end, &mut |found| {
        any = true;
        all = all && holds_for(compare, &found.decode()?);
        Ok(all)
    })?;
    if any {
        return Ok(all);
    }
    Ok(compare.target() != CompareTarget::Value && holds_for(compare, &KeyValue::default()))
}

fn holds_for(compare: &Compare, kv: &KeyValue) -> bool {
    let number = || match &compare.target_union {
        Some(
            TargetUnion::Version(n)
            | TargetUnion::CreateRevision(n)
            | TargetUnion::ModRevision(n)
            | TargetUnion::Lease(n),
        ) => *n,
        _ => 0,
    };
    let order = match compare.target() {
        CompareTarget::Version => kv.version.cmp(&number()),
        CompareTarget::Create => kv.create_revision.cmp(&number()),
        CompareTarget::Mod => kv.mod_revision.cmp(&number()),
        CompareTarget::Lease => kv.lease.cmp(&number()),
        CompareTarget::Value => match &compare.target_union {
            Some(TargetUnion::Value(value)) => kv.value.cmp(value),
            _ => kv.value.as_ref().cmp(b""),
        },
    };
    match compare.result() {
        CompareResult::Equal => order == Ordering::Equal,
        CompareResult::NotEqual => order != Ordering::Equal,
        CompareResult::Greater => order == Ordering::Greater,
        CompareResult::Less => order == Ordering::Less,
    }
}
