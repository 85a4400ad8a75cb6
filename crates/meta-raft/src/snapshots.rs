//! Both ends of a snapshot transfer. The raft message only names the snapshot; the receiver pulls the records piece
//! by piece, so that it can resume after an interruption and nothing large ever waits in a queue.
//!
//! The raft message is held back until every record has arrived and the digest matches; only then does raft hear of
//! the snapshot, and the store switches to it.

use std::collections::BTreeMap;

use cairn_proto::meta_raft::{Chunk, FetchChunk, Record, SnapshotManifest};
use raft::eraftpb::Message;

use crate::store::{Position, position_of};

/// The version of manifests and chunks.
pub const SNAPSHOT_FORMAT: u32 = 1;
/// Ticks without a chunk after which it is asked for again.
const ASK_AGAIN_TICKS: u32 = 10;
/// Ticks without an answer after which the receiver gives up and lets the leader offer again.
const GIVE_UP_TICKS: u32 = 60;
/// Ticks without a request from a receiver after which the leader tells raft that the snapshot failed.
const SENDER_GIVES_UP_TICKS: u32 = 40;

/// crc32c over records, each with its lengths, continued from `digest`.
#[must_use]
pub fn digest_records<'a>(digest: u32, records: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> u32 {
    records.into_iter().fold(digest, |digest, (key, value)| {
        let digest = crc32c::crc32c_append(digest, &(key.len() as u32).to_le_bytes());
        let digest = crc32c::crc32c_append(digest, key);
        let digest = crc32c::crc32c_append(digest, &(value.len() as u32).to_le_bytes());
        crc32c::crc32c_append(digest, value)
    })
}

pub(crate) fn digest_of(records: &[Record]) -> u32 {
    digest_records(0, records.iter().map(|r| (r.key.as_ref(), r.value.as_ref())))
}

/// A snapshot on its way to this member.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Stepped into raft when everything has arrived.
    pub(crate) message: Message,
    pub(crate) manifest: SnapshotManifest,
    pub(crate) cursor: Option<Vec<u8>>,
    quiet_ticks: u32,
}

impl Incoming {
    pub(crate) fn new(message: Message, manifest: SnapshotManifest, cursor: Option<Vec<u8>>) -> Self {
        Self { message, manifest, cursor, quiet_ticks: 0 }
    }

    pub(crate) fn request(&self) -> FetchChunk {
        let after = self.cursor.clone().map(Into::into);
        FetchChunk { index: self.manifest.index, term: self.manifest.term, after }
    }

    /// Whether the chunk is the one that was asked for, whole.
    pub(crate) fn accepts(&self, from: u64, chunk: &Chunk) -> bool {
        from == self.message.from
            && (Position { term: chunk.term, index: chunk.index }) == position_of(&self.manifest)
            && (chunk.gone
                || (chunk.after.as_deref() == self.cursor.as_deref() && digest_of(&chunk.records) == chunk.crc))
    }

    pub(crate) fn advance(&mut self, chunk: &Chunk) {
        self.quiet_ticks = 0;
        if let Some(record) = chunk.records.last() {
            self.cursor = Some(record.key.to_vec());
        }
    }

    pub(crate) fn tick(&mut self) -> Quiet {
        self.quiet_ticks += 1;
        match self.quiet_ticks {
            GIVE_UP_TICKS.. => Quiet::GiveUp,
            n if n % ASK_AGAIN_TICKS == 0 => Quiet::AskAgain,
            _ => Quiet::Wait,
        }
    }
}

/// What a receiver does about silence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Quiet {
    Wait,
    AskAgain,
    GiveUp,
}

/// The leader's watch over who is receiving a snapshot.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    quiet_ticks: BTreeMap<u64, u32>,
}

impl Outgoing {
    /// Somebody is receiving a snapshot and has not fallen silent.
    pub(crate) fn is_active(&self) -> bool {
        !self.quiet_ticks.is_empty()
    }

    pub(crate) fn heard_from(&mut self, member: u64) {
        if let Some(ticks) = self.quiet_ticks.get_mut(&member) {
            *ticks = 0;
        }
    }

    /// `receiving`: whom raft believes to be receiving one. Answers those that fell silent.
    pub(crate) fn tick(&mut self, receiving: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut old = std::mem::take(&mut self.quiet_ticks);
        let mut silent = Vec::new();
        for member in receiving {
            let ticks = old.remove(&member).unwrap_or(0) + 1;
            if ticks > SENDER_GIVES_UP_TICKS {
                silent.push(member);
            } else {
                self.quiet_ticks.insert(member, ticks);
            }
        }
        silent.sort_unstable();
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::{Outgoing, SENDER_GIVES_UP_TICKS, digest_records};

    #[test]
    fn the_digest_tells_where_a_key_ends() {
        let a = digest_records(0, [(&b"ab"[..], &b"c"[..])]);
        let b = digest_records(0, [(&b"a"[..], &b"bc"[..])]);
        assert_ne!(a, b);
        let both = digest_records(0, [(&b"a"[..], &b"1"[..]), (&b"b"[..], &b"2"[..])]);
        let first = digest_records(0, [(&b"a"[..], &b"1"[..])]);
        assert_eq!(digest_records(first, [(&b"b"[..], &b"2"[..])]), both);
    }

    #[test]
    fn a_receiver_that_asks_is_not_given_up() {
        let mut outgoing = Outgoing::default();
        for tick in 0..SENDER_GIVES_UP_TICKS * 3 {
            outgoing.heard_from(2);
            let silent = outgoing.tick([2, 3]);
            if tick == SENDER_GIVES_UP_TICKS {
                assert_eq!(silent, [3]);
            }
            assert!(!silent.contains(&2));
        }
    }
}
