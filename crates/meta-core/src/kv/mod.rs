//! The key-value half: etcd's multi-version store, transactions, leases, compaction and history, as a part of the
//! machine.
//!
//! Revisions start at 1 and rise by one with every command that changes a key; the changes of one command are steps of
//! one revision. Error messages are the very texts of etcd, because its clients match on them.

mod compact;
mod history;
mod lease;
mod range;
mod txn;
mod write;

use cairn_proto::etcdserverpb::ResponseHeader;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{ErrorCode, KvRecord, LeaseExpireReply};

pub(crate) use compact::prune;
pub use history::{Past, history, history_of};
pub use lease::{lease, lease_keys, leases};
pub use range::{check_range, range, range_of};
pub use txn::{MOST_OPS, check_txn};
pub use write::{check_delete_range, check_put};

use crate::machine::{Machine, Turn};
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::{Overlay, StateRead};
use crate::{keys, record};
use write::Writer;

/// Where a key range ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End<'a> {
    /// Only the one key.
    Single,
    /// Every key from there on.
    Open,
    /// Up to and without this key.
    Before(&'a [u8]),
}

impl<'a> End<'a> {
    fn of(range_end: &'a [u8]) -> Self {
        match range_end {
            [] => Self::Single,
            [0] => Self::Open,
            end => Self::Before(end),
        }
    }

    /// Whether a key at or after the beginning of the range is in it.
    fn covers(self, begin: &[u8], key: &[u8]) -> bool {
        match self {
            Self::Single => key == begin,
            Self::Open => true,
            Self::Before(end) => key < end,
        }
    }
}

/// Whether a key lies in the range that `begin` and `range_end` describe, as etcd's requests do.
#[must_use]
pub fn in_range(key: &[u8], begin: &[u8], range_end: &[u8]) -> bool {
    key >= begin && End::of(range_end).covers(begin, key)
}

/// Where the key-value half stands, as its record says.
pub(crate) fn standing(state: &dyn StateRead) -> Result<KvRecord, Corrupt> {
    Ok(record::load(state, keys::KV)?.unwrap_or_else(nothing_yet))
}

/// Before anything was written.
pub(crate) fn nothing_yet() -> KvRecord {
    KvRecord { revision: 1, compacted: 0, pruned: 0 }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

pub(crate) fn empty_key() -> Refusal {
    Refusal::invalid("etcdserver: key is not provided")
}

fn compacted() -> Refusal {
    Refusal::new(ErrorCode::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
}

fn future() -> Refusal {
    Refusal::new(ErrorCode::OutOfRange, "etcdserver: mvcc: required revision is a future revision")
}

/// Carries out a command of this half. What it wrote is taken over only when all of it succeeded.
pub(crate) fn perform(machine: &mut Machine, turn: &mut Turn<'_>, payload: Payload) -> Outcome<Answer> {
    let mut writer = Writer::new(Overlay::new(&turn.state), machine.kv);
    let answer = match payload {
        Payload::KvPut(request) => Answer::KvPut(writer.put(request)?),
        Payload::KvDeleteRange(request) => Answer::KvDeleteRange(writer.delete_range(&request)?),
        Payload::KvTxn(request) => Answer::KvTxn(txn::run(&mut writer, request)?),
        Payload::KvCompact(request) => Answer::KvCompact(compact::compact(&mut writer, &request)?),
        Payload::LeaseGrant(request) => Answer::LeaseGrant(lease::grant(&mut writer, &request, turn.now_s)?),
        Payload::LeaseRevoke(request) => Answer::LeaseRevoke(lease::revoke(&mut writer, request.id)?),
        Payload::LeaseExpire(request) => {
            lease::expire(&mut writer, &request.ids)?;
            Answer::LeaseExpire(LeaseExpireReply { revision: writer.revision() })
        }
        _ => unreachable!("only commands of the key-value half come here"),
    };
    let (kv, events, batch) = writer.finish();
    machine.kv = kv;
    turn.events.extend(events);
    turn.state.absorb(batch);
    Ok(answer)
}
