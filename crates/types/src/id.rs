//! Identifiers and counters, each a type of its own, so that an epoch is never compared with a generation.
//!
//! None of them is ever reused: a wiped disk is a new OSD, a deleted volume's id stays dead.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value that follows this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter never wraps"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

counter!(
    /// A pool of volumes that share placement and redundancy.
    PoolId(u32), "pool-"
);
counter!(
    /// A volume, or the snapshot history that carries its name.
    VolumeId(u64), "vol-"
);
counter!(
    /// One object storage daemon and the one disk it owns.
    OsdId(u32), "osd-"
);
counter!(
    /// The version of the cluster map. The epoch an OSD has seen never decreases (I7).
    Epoch(u64), "e"
);
counter!(
    /// The version `c` of one PG's configuration; every change is a compare-and-swap in Raft.
    ConfVersion(u64), "c"
);
counter!(
    /// One holding of one volume. A data session carries it, every replica checks it (I8).
    Generation(u64), "g"
);
counter!(
    /// One life of one OSD process. Dead incarnations never return.
    Incarnation(u64), "i"
);
counter!(
    /// A snapshot of a volume; 0 is "no snapshot yet", the head's context before the first one.
    SnapId(u64), "snap-"
);
counter!(
    /// Ties the log lines of one request together from the CSI call to the disk.
    TraceId(u64), "t"
);

impl SnapId {
    /// In what a client asks: the volume as it is now, not one of its snapshots.
    pub const HEAD: SnapId = SnapId(u64::MAX);
}

/// A placement group: the unit of ordering and of replication.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PgId {
    /// The pool it belongs to.
    pub pool: PoolId,
    /// Its number within the pool, below the pool's `pg_count`; of a half, while the others split, below twice that.
    pub index: u32,
}

impl fmt::Display for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:x}", self.pool.0, self.index)
    }
}

impl fmt::Debug for PgId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pg-{self}")
    }
}

/// The version of one entry in a PG's log: ordered by configuration, then by position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Version {
    /// The configuration under which the primary assigned it.
    pub c: ConfVersion,
    /// Strictly +1 from entry to entry within the PG; 0 is "before the first".
    pub seq: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}'{}", self.c.0, self.seq)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A client's data session: random, never reused, one per attached volume and generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s-{:08x}", self.0 >> 96)
    }
}

/// One request of one session. A resend carries the same id, and is executed once (I6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct RequestId {
    /// Whose request.
    pub session: SessionId,
    /// Its number within the session, from 1, strictly rising.
    pub seq: u64,
}

/// One object of one volume: `object_size` bytes of it. Never reused.
///
/// On disk and in the log it is one *layer*: what was written under one snapshot context, which is to say after that
/// snapshot and before the next one. A snapshot sees the layers below it, the newest that knows a block first; the head
/// sees all of them. In what a client asks it is such a *view*.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectId {
    /// The pool that stores it.
    pub pool: PoolId,
    /// The volume it is a piece of.
    pub volume: VolumeId,
    /// Offset within the volume in units of the object size.
    pub index: u64,
    /// Of a layer: the context of its writes, 0 before the first snapshot. Of a view: the snapshot, or
    /// [`SnapId::HEAD`].
    pub snapshot: SnapId,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{:x}", self.pool.0, self.volume.0, self.index)?;
        match self.snapshot {
            SnapId::HEAD | SnapId(0) => Ok(()),
            SnapId(id) => write!(f, "@{id}"),
        }
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ObjectId {
    /// The same piece of the volume in another layer or view.
    #[must_use]
    pub fn at(self, snapshot: SnapId) -> Self {
        Self { snapshot, ..self }
    }

    /// Whether the two are layers of the same piece of a volume.
    #[must_use]
    pub fn is_beside(&self, other: Self) -> bool {
        self.at(other.snapshot) == other
    }

    /// The hash that decides its PG and its place in the index: of (volume, index) only, so that layers lie beside each
    /// other. A 64-bit finaliser (splitmix64); part of the format, fixed for life.
    #[must_use]
    pub fn hash(&self) -> u64 {
        object_hash(self.volume, self.index)
    }
}

/// See [`ObjectId::hash`].
#[must_use]
pub fn object_hash(volume: VolumeId, index: u64) -> u64 {
    mix(mix(volume.0 ^ 0x6361_6972_6e5f_6f62) ^ index)
}

/// The splitmix64 finaliser: a bijection of 64 bits with full avalanche (Steele, Lea, Flood 2014).
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The name of a node (a machine), as Kubernetes names it: a DNS subdomain of at most 253 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_configuration_first() {
        let old = Version { c: ConfVersion(1), seq: 9 };
        let new = Version { c: ConfVersion(2), seq: 3 };
        assert!(old < new);
        assert_eq!(new.to_string(), "2'3");
    }

    #[test]
    fn object_hash_is_part_of_the_format() {
        assert_eq!(object_hash(VolumeId(1), 0), 0x17e4_fb8b_2118_8f61);
        let a = ObjectId { pool: PoolId(1), volume: VolumeId(7), index: 3, snapshot: SnapId::HEAD };
        let b = ObjectId { snapshot: SnapId(4), ..a };
        assert_eq!(a.hash(), b.hash(), "layers lie beside each other");
    }

    #[test]
    fn names_print_as_the_admin_reads_them() {
        assert_eq!(PgId { pool: PoolId(2), index: 26 }.to_string(), "2.1a");
        let head = ObjectId { pool: PoolId(1), volume: VolumeId(7), index: 31, snapshot: SnapId::HEAD };
        assert_eq!(head.to_string(), "1/7/1f");
    }
}
