//! Exactly once: which commands of which client sessions were applied, and what they were answered.
//!
//! A reply is kept until its session acknowledges it. Sessions are bounded in number: the one unused for longest goes
//! first. A session that comes back after that is told so when it shows that it is not new (`acked_through` above 0);
//! one that never acknowledged anything could only repeat its very first commands, after `SESSIONS` others came.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use cairn_proto::meta::{ErrorCode, SessionRecord};

use crate::keys::{self, Session};
use crate::record::{self, name_of};
use crate::refusal::{Corrupt, Refusal};
use crate::state::{Overlay, StateRead};

/// The most sessions remembered.
pub const SESSIONS: usize = 10_000;
/// The most unacknowledged replies of one session.
pub const REPLIES: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    acked_through: u64,
    last_index: u64,
    replies: BTreeSet<u64>,
}

/// The session table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sessions {
    table: BTreeMap<Session, Known>,
    by_index: BTreeMap<u64, Session>,
}

/// What is to be done with a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Carry it out.
    Fresh,
    /// Answer as before.
    Repeated,
}

impl Sessions {
    pub(crate) fn open(state: &dyn StateRead) -> Result<Self, Corrupt> {
        let mut sessions = Self::default();
        record::each(state, keys::SESSIONS, keys::SESSIONS, &mut |key, known: SessionRecord| {
            let id: Session = key[1..].try_into().map_err(|_| Corrupt::new(name_of(key), "a session", key.len()))?;
            sessions.by_index.insert(known.last_index, id);
            let known =
                Known { acked_through: known.acked_through, last_index: known.last_index, replies: BTreeSet::new() };
            sessions.table.insert(id, known);
            Ok(true)
        })?;
        for key in record::keys_under(state, keys::REPLIES) {
            let (id, seq) = keys::parse_reply(&key).ok_or_else(|| Corrupt::new(name_of(&key), "a reply's key", ""))?;
            let known = sessions.table.get_mut(&id);
            known.ok_or_else(|| Corrupt::new(name_of(&key), "a reply of a known session", ""))?.replies.insert(seq);
        }
        Ok(sessions)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn admit(&self, id: &Session, seq: u64, acked_through: u64) -> Result<Admission, Refusal> {
        if seq == 0 || acked_through >= seq {
            return Err(Refusal::invalid(format!("sequence {seq} with acknowledgement through {acked_through}")));
        }
        let Some(known) = self.table.get(id) else {
            return match acked_through {
                0 => Ok(Admission::Fresh),
                _ => Err(Refusal::new(
                    ErrorCode::SessionExpired,
                    "this session was forgotten, so it is unknown whether the command was carried out before",
                )
                .remedy("look at the present state, then repeat the command under a new session")),
            };
        };
        if known.replies.contains(&seq) {
            Ok(Admission::Repeated)
        } else if seq <= known.acked_through {
            let message = format!("sequence {seq} was acknowledged before (through {})", known.acked_through);
            Err(Refusal::new(ErrorCode::AlreadyAcked, message))
        } else if known.replies.range(acked_through + 1..).count() >= REPLIES {
            let message = format!("the session left {REPLIES} replies unacknowledged");
            Err(Refusal::new(ErrorCode::TooManyReplies, message).remedy("acknowledge replies by `acked_through`"))
        } else {
            Ok(Admission::Fresh)
        }
    }

    /// Remembers that a command was applied, and forgets what its session acknowledged.
    pub(crate) fn remember(
        &mut self,
        state: &mut Overlay<'_>,
        (id, seq, acked_through): (&Session, u64, u64),
        index: u64,
        reply: Bytes,
    ) {
        if !self.table.contains_key(id) && self.table.len() >= SESSIONS {
            self.forget_oldest(state);
        }
        let fresh = Known { acked_through: 0, last_index: 0, replies: BTreeSet::new() };
        let known = self.table.entry(*id).or_insert(fresh);
        self.by_index.remove(&known.last_index);
        known.last_index = index;
        known.acked_through = known.acked_through.max(acked_through);
        self.by_index.insert(index, *id);
        while let Some(&acked) = known.replies.first()
            && acked <= known.acked_through
        {
            known.replies.remove(&acked);
            state.delete(keys::reply(id, acked));
        }
        known.replies.insert(seq);
        state.put(keys::reply(id, seq), reply);
        let known = SessionRecord { acked_through: known.acked_through, last_index: index };
        record::store(state, keys::session(id), &known);
    }

    fn forget_oldest(&mut self, state: &mut Overlay<'_>) {
        let (_, id) = self.by_index.pop_first().expect("the table is full, so it has an oldest entry");
        let known = self.table.remove(&id).expect("both tables hold the same sessions");
        for seq in known.replies {
            state.delete(keys::reply(&id, seq));
        }
        state.delete(keys::session(&id));
    }
}
