//! The table that makes a request execute once (I6): per session the executed requests above its acked-through
//! mark, and the log position of each. It is a function of the log, so every member has it; what the log forgot is
//! kept as attributes.

use std::collections::{BTreeMap, BTreeSet};

use cairn_types::map::ClusterMap;
use cairn_types::peer::{LogEntry, SessionDups};
use cairn_types::{Generation, RequestId, SessionId, VolumeId};

/// What the table knows of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing: execute it.
    New,
    /// It is the entry at this log position.
    Executed(u64),
    /// Its client had the answer: refuse it.
    Forgotten,
}

#[derive(Debug, Clone)]
struct Session {
    volume: VolumeId,
    generation: Generation,
    acked_through: u64,
    executed: BTreeMap<u64, u64>,
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Dups {
    sessions: BTreeMap<SessionId, Session>,
}

impl Dups {
    /// What is known of a request.
    pub(crate) fn seen(&self, id: RequestId) -> Seen {
        let Some(session) = self.sessions.get(&id.session) else { return Seen::New };
        if let Some(at) = session.executed.get(&id.seq) {
            return Seen::Executed(*at);
        }
        if id.seq <= session.acked_through { Seen::Forgotten } else { Seen::New }
    }

    /// Replies kept for one session.
    pub(crate) fn kept(&self, session: SessionId) -> usize {
        self.sessions.get(&session).map_or(0, |session| session.executed.len())
    }

    /// Takes note of an entry of the log.
    pub(crate) fn record(&mut self, entry: &LogEntry) {
        if entry.request.session == SessionId::default() {
            return;
        }
        let session = self.sessions.entry(entry.request.session).or_insert_with(|| Session {
            volume: entry.volume(),
            generation: entry.generation,
            acked_through: 0,
            executed: BTreeMap::new(),
        });
        session.executed.insert(entry.request.seq, entry.version.seq);
        if session.acked_through < entry.acked_through {
            session.acked_through = entry.acked_through;
            session.executed = session.executed.split_off(&(entry.acked_through + 1));
        }
    }

    /// Forgets an entry that was cut off the log.
    pub(crate) fn forget(&mut self, entry: &LogEntry) {
        if let Some(session) = self.sessions.get_mut(&entry.request.session)
            && session.executed.get(&entry.request.seq) == Some(&entry.version.seq)
        {
            session.executed.remove(&entry.request.seq);
        }
    }

    /// Drops the sessions whose generation left the valid set at this map; gives them.
    pub(crate) fn drop_fenced(&mut self, map: &ClusterMap) -> Vec<SessionId> {
        let valid = |session: &Session| {
            map.volumes.get(&session.volume).is_some_and(|fence| fence.generations.contains(&session.generation))
        };
        let gone = self.sessions.iter().filter(|(_, s)| !valid(s)).map(|(id, _)| *id).collect::<Vec<_>>();
        for id in &gone {
            self.sessions.remove(id);
        }
        gone
    }

    /// Everything, with executed requests at or below a committed position only.
    pub(crate) fn snapshot(&self, commit: u64) -> Vec<SessionDups> {
        self.sessions.keys().filter_map(|id| self.session(*id, commit)).collect()
    }

    /// One session, likewise.
    pub(crate) fn session(&self, id: SessionId, commit: u64) -> Option<SessionDups> {
        let session = self.sessions.get(&id)?;
        Some(SessionDups {
            session: id,
            volume: session.volume,
            generation: session.generation,
            acked_through: session.acked_through,
            executed: session.executed.iter().filter(|(_, at)| **at <= commit).map(|(seq, at)| (*seq, *at)).collect(),
        })
    }

    /// Replaces the table; gives the sessions that were known before.
    pub(crate) fn replace(&mut self, dups: Vec<SessionDups>) -> BTreeSet<SessionId> {
        let before = self.sessions.keys().copied().collect();
        self.sessions.clear();
        for one in dups {
            self.restore(one);
        }
        before
    }

    /// Adds one session as it was kept.
    pub(crate) fn restore(&mut self, dups: SessionDups) {
        let session = Session {
            volume: dups.volume,
            generation: dups.generation,
            acked_through: dups.acked_through,
            executed: dups.executed.into_iter().collect(),
        };
        self.sessions.insert(dups.session, session);
    }
}

#[cfg(test)]
mod tests {
    use cairn_types::map::VolumeFence;
    use cairn_types::peer::EntryOp;
    use cairn_types::{ConfVersion, Epoch, ObjectId, PoolId, SnapId, Version};

    use super::*;

    fn entry(seq: u64, at: u64, acked_through: u64) -> LogEntry {
        let object = ObjectId { pool: PoolId(1), volume: VolumeId(1), index: 0, snapshot: SnapId::HEAD };
        LogEntry {
            version: Version { c: ConfVersion(1), seq: at },
            prev: 0,
            epoch: Epoch(1),
            request: RequestId { session: SessionId(9), seq },
            acked_through,
            generation: Generation(2),
            snap_context: SnapId(0),
            op: EntryOp::Remove { object },
        }
    }

    fn id(seq: u64) -> RequestId {
        RequestId { session: SessionId(9), seq }
    }

    #[test]
    fn a_request_is_new_then_executed_then_forgotten() {
        let mut dups = Dups::default();
        assert_eq!(dups.seen(id(1)), Seen::New);
        dups.record(&entry(1, 10, 0));
        dups.record(&entry(3, 11, 0));
        assert_eq!(dups.seen(id(1)), Seen::Executed(10));
        assert_eq!(dups.seen(id(2)), Seen::New, "2 may still be under way");
        dups.record(&entry(4, 12, 2));
        assert_eq!(dups.seen(id(1)), Seen::Forgotten);
        assert_eq!(dups.seen(id(2)), Seen::Forgotten);
        assert_eq!(dups.seen(id(3)), Seen::Executed(11));
    }

    #[test]
    fn a_cut_entry_was_never_executed() {
        let mut dups = Dups::default();
        dups.record(&entry(1, 10, 0));
        dups.forget(&entry(1, 10, 0));
        assert_eq!(dups.seen(id(1)), Seen::New);
        dups.record(&entry(1, 12, 0));
        dups.forget(&entry(1, 10, 0));
        assert_eq!(dups.seen(id(1)), Seen::Executed(12), "executed again at another position");
    }

    #[test]
    fn a_session_goes_only_with_its_generation() {
        let mut dups = Dups::default();
        dups.record(&entry(1, 10, 0));
        let mut map = ClusterMap::default();
        let fence = VolumeFence { generations: [Generation(2)].into(), ..VolumeFence::default() };
        map.volumes.insert(VolumeId(1), fence);
        assert!(dups.drop_fenced(&map).is_empty());
        map.volumes.get_mut(&VolumeId(1)).unwrap().generations = [Generation(3)].into();
        assert_eq!(dups.drop_fenced(&map), vec![SessionId(9)]);
    }

    #[test]
    fn only_what_is_committed_is_kept_for_later() {
        let mut dups = Dups::default();
        dups.record(&entry(1, 10, 0));
        dups.record(&entry(2, 11, 0));
        assert_eq!(dups.session(SessionId(9), 10).unwrap().executed, vec![(1, 10)]);
    }
}
