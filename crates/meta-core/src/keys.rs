//! Where each record lies in the state's key space. One letter names the kind; numbers are big endian, so that byte
//! order is numeric order. Part of the state's format.
//!
//! | key | record |
//! |---|---|
//! | `m` | `ClusterRecord` |
//! | `o` osd | `OsdRecord` |
//! | `p` pool | `Pool` |
//! | `g` pool, index | `Pg` |
//! | `x` pool, index | `ExceptionsRecord` |
//! | `v` volume | `VolumeRecord` |
//! | `n` name | volume id, 8 bytes |
//! | `i` snapshot | `SnapshotRecord` |
//! | `j` name | snapshot id, 8 bytes |
//! | `d` name | `NodeRecord` |
//! | `s` session | `SessionRecord` |
//! | `t` session, seq | the encoded `CommandReply` |
//! | `e` | `MembersRecord` |
//! | `b` | `MutesRecord` |
//! | `k` | `KvRecord` |
//! | `c` key | the newest `KeyValue` of a living key |
//! | `r` revision, sub | `RevisionRecord` |
//! | `h` escaped key, revision, sub | nothing: one version of the key, in `r` |
//! | `l` lease | `LeaseRecord` |
//! | `q` pool, index | `PgScrub` |
//! | `w` pool | `PoolRulesRecord` |
//! | `y` | `ScrubSchedule` |
//! | `a` lease, key | nothing: the key is attached to the lease |

use cairn_types::{OsdId, PgId, PoolId, SnapId, VolumeId};

pub(crate) const CLUSTER: &[u8] = b"m";
pub(crate) const MEMBERS: &[u8] = b"e";
pub(crate) const MUTES: &[u8] = b"b";
pub(crate) const KV: &[u8] = b"k";
pub(crate) const OSDS: &[u8] = b"o";
pub(crate) const POOLS: &[u8] = b"p";
pub(crate) const PGS: &[u8] = b"g";
pub(crate) const EXCEPTIONS: &[u8] = b"x";
pub(crate) const VOLUMES: &[u8] = b"v";
pub(crate) const SNAPSHOTS: &[u8] = b"i";
pub(crate) const NODES: &[u8] = b"d";
pub(crate) const SESSIONS: &[u8] = b"s";
pub(crate) const REPLIES: &[u8] = b"t";
pub(crate) const LEASES: &[u8] = b"l";
pub(crate) const SCRUBS: &[u8] = b"q";
pub(crate) const POOL_RULES: &[u8] = b"w";
pub(crate) const SCRUB_SCHEDULE: &[u8] = b"y";

/// A client's session with the metadata service.
pub(crate) type Session = [u8; 16];

fn join(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
    key.push(kind);
    for part in parts {
        key.extend_from_slice(part);
    }
    key
}

pub(crate) fn osd(id: OsdId) -> Vec<u8> {
    join(b'o', &[&id.0.to_be_bytes()])
}

pub(crate) fn pool(id: PoolId) -> Vec<u8> {
    join(b'p', &[&id.0.to_be_bytes()])
}

pub(crate) fn pool_rules(id: PoolId) -> Vec<u8> {
    join(b'w', &[&id.0.to_be_bytes()])
}

pub(crate) fn pg(id: PgId) -> Vec<u8> {
    join(b'g', &[&id.pool.0.to_be_bytes(), &id.index.to_be_bytes()])
}

pub(crate) fn exceptions(id: PgId) -> Vec<u8> {
    join(b'x', &[&id.pool.0.to_be_bytes(), &id.index.to_be_bytes()])
}

/// Reads back what [`exceptions`] wrote.
pub(crate) fn parse_exceptions(key: &[u8]) -> Option<PgId> {
    let (pool, index) = key.strip_prefix(b"x")?.split_first_chunk::<4>()?;
    let (pool, index) = (u32::from_be_bytes(*pool), u32::from_be_bytes(index.try_into().ok()?));
    Some(PgId { pool: PoolId(pool), index })
}

pub(crate) fn scrub(id: PgId) -> Vec<u8> {
    join(b'q', &[&id.pool.0.to_be_bytes(), &id.index.to_be_bytes()])
}

pub(crate) fn volume(id: VolumeId) -> Vec<u8> {
    join(b'v', &[&id.0.to_be_bytes()])
}

pub(crate) fn volume_name(name: &str) -> Vec<u8> {
    join(b'n', &[name.as_bytes()])
}

pub(crate) fn snapshot(id: SnapId) -> Vec<u8> {
    join(b'i', &[&id.0.to_be_bytes()])
}

pub(crate) fn snapshot_name(name: &str) -> Vec<u8> {
    join(b'j', &[name.as_bytes()])
}

pub(crate) fn node(name: &str) -> Vec<u8> {
    join(b'd', &[name.as_bytes()])
}

pub(crate) fn session(id: &Session) -> Vec<u8> {
    join(b's', &[id])
}

pub(crate) fn reply(id: &Session, seq: u64) -> Vec<u8> {
    join(b't', &[id, &seq.to_be_bytes()])
}

/// Reads back what [`reply`] wrote.
pub(crate) fn parse_reply(key: &[u8]) -> Option<(Session, u64)> {
    let (session, seq) = key.get(1..)?.split_first_chunk::<16>()?;
    Some((*session, u64::from_be_bytes(seq.try_into().ok()?)))
}

pub(crate) fn current(key: &[u8]) -> Vec<u8> {
    join(b'c', &[key])
}

/// One step of one revision of the key-value half: the `sub`-th change under `revision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Step {
    pub(crate) revision: i64,
    pub(crate) sub: u32,
}

impl Step {
    fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sub.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (revision, sub) = bytes.split_first_chunk::<8>()?;
        Some(Self { revision: i64::from_be_bytes(*revision), sub: u32::from_be_bytes(sub.try_into().ok()?) })
    }
}

pub(crate) fn revision(step: Step) -> Vec<u8> {
    join(b'r', &[&step.to_bytes()])
}

pub(crate) fn parse_revision(key: &[u8]) -> Option<Step> {
    Step::from_bytes(key.strip_prefix(b"r")?)
}

/// The prefix of all versions of one user key. A zero byte in it becomes `00 ff` and the end is `00 01`, so that no key
/// is a prefix of another and the order is that of the user keys.
pub(crate) fn versions(key: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(key.len() + 15);
    escaped.push(b'h');
    for byte in key {
        escaped.push(*byte);
        if *byte == 0 {
            escaped.push(0xff);
        }
    }
    escaped.extend_from_slice(&[0, 1]);
    escaped
}

pub(crate) fn version(key: &[u8], step: Step) -> Vec<u8> {
    let mut escaped = versions(key);
    escaped.extend_from_slice(&step.to_bytes());
    escaped
}

/// Reads back what [`version`] wrote.
pub(crate) fn parse_version(stored: &[u8]) -> Option<(Vec<u8>, Step)> {
    let escaped = stored.strip_prefix(b"h")?;
    let mut key = Vec::with_capacity(escaped.len());
    let mut rest = escaped.iter();
    loop {
        match (*rest.next()?, rest.as_slice().first()) {
            (0, Some(0xff)) => {
                rest.next();
                key.push(0);
            }
            (0, Some(1)) => {
                rest.next();
                return Some((key, Step::from_bytes(rest.as_slice())?));
            }
            (0, _) => return None,
            (byte, _) => key.push(byte),
        }
    }
}

/// A lease id as bytes; ids are positive.
pub(crate) fn lease(id: i64) -> Vec<u8> {
    join(b'l', &[&id.to_be_bytes()])
}

pub(crate) fn attached(lease: i64, key: &[u8]) -> Vec<u8> {
    join(b'a', &[&lease.to_be_bytes(), key])
}

/// The prefix of all keys attached to a lease.
pub(crate) fn attachments(lease: i64) -> Vec<u8> {
    attached(lease, b"")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    proptest! {
        #[test]
        fn versions_order_by_user_key_then_step(
            a in proptest::collection::vec(0u8..3, 0..5), b in proptest::collection::vec(0u8..3, 0..5),
            ra in 1i64..4, rb in 1i64..4, sa: u32, sb: u32,
        ) {
            let (one, two) = (Step { revision: ra, sub: sa }, Step { revision: rb, sub: sb });
            let stored = version(&a, one).cmp(&version(&b, two));
            prop_assert_eq!(stored, (&a, one).cmp(&(&b, two)));
        }

        #[test]
        fn versions_read_back(key: Vec<u8>, revision in 1i64.., sub: u32) {
            let step = Step { revision, sub };
            prop_assert_eq!(parse_version(&version(&key, step)), Some((key, step)));
        }

        #[test]
        fn parsing_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            parse_version(&bytes);
            parse_reply(&bytes);
            parse_revision(&bytes);
        }
    }
}
