//! The handshake: who dials, which versions and features both sides have, and why a side hangs up.
//!
//! These three bodies are format 0 and only ever grow at their end; a reader skips what it does not know there.

use bytes::{BufMut, BytesMut};
use cairn_types::{Epoch, Generation, Incarnation, OsdId, SessionId, VolumeId};
use uuid::Uuid;

use crate::WireError;
use crate::body::{Fields, PutFields};

/// An inclusive range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The oldest spoken.
    pub min: u16,
    /// The newest spoken.
    pub max: u16,
}

impl VersionRange {
    /// The newest version that both sides speak.
    #[must_use]
    pub fn newest_common(self, other: Self) -> Option<u16> {
        let max = self.max.min(other.max);
        (max >= self.min.max(other.min)).then_some(max)
    }
}

/// Who is at the dialling end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The holder of a volume.
    Client {
        /// Its data session.
        session: SessionId,
        /// What it holds.
        volume: VolumeId,
        /// Under which generation.
        generation: Generation,
    },
    /// Another OSD.
    Osd {
        /// Which.
        id: OsdId,
        /// In which life.
        incarnation: Incarnation,
    },
}

/// The first frame, from the side that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the dialler speaks.
    pub versions: VersionRange,
    /// Optional features it has, one bit each.
    pub features: u64,
    /// Features without which it cannot go on.
    pub required: u64,
    /// Its cluster.
    pub cluster: Uuid,
    /// Who it is.
    pub identity: Identity,
    /// Which OSD it believes to be dialling; a different one hangs up.
    pub to: OsdId,
    /// The shard of that OSD it wants.
    pub shard: u16,
}

/// The answer of the side that was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both will speak.
    pub version: u16,
    /// The features that both have.
    pub features: u64,
    /// Its cluster.
    pub cluster: Uuid,
    /// Who it is.
    pub osd: OsdId,
    /// In which life.
    pub incarnation: Incarnation,
    /// How many shards it has.
    pub shards: u16,
    /// The map epoch it knows.
    pub epoch: Epoch,
}

/// Why a side ends the connection; the last frame it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// It speaks only these versions.
    #[error("no common protocol version: the other side speaks {min} to {max}")]
    NoCommonVersion {
        /// The oldest.
        min: u16,
        /// The newest.
        max: u16,
    },
    /// Required features that it does not have.
    #[error("the other side lacks required features {missing:#x}")]
    MissingFeatures {
        /// Their bits.
        missing: u64,
    },
    /// It belongs to another cluster.
    #[error("the other side belongs to another cluster")]
    WrongCluster,
    /// It is not the OSD that was dialled.
    #[error("{found} answers at this address, not the OSD that was dialled")]
    WrongOsd {
        /// Who it is.
        found: OsdId,
    },
    /// The dialler's incarnation is proven dead.
    #[error("this incarnation is proven dead")]
    DeadIncarnation,
    /// It has as many connections as it takes.
    #[error("the other side has too many connections")]
    TooManyConnections,
    /// A frame of a version that was not agreed on.
    #[error("the other side does not know frame version {found}")]
    UnknownVersion {
        /// The frame's version.
        found: u16,
    },
    /// An operation it does not know.
    #[error("the other side does not know operation {kind}")]
    UnknownOperation {
        /// The operation's number.
        kind: u16,
    },
    /// Bytes that are no frame, or whose checksum does not match.
    #[error("the other side received bytes that are not a valid frame")]
    BadFrame,
    /// A newer connection of the same peer took its place.
    #[error("a newer connection took the place of this one")]
    Replaced,
    /// It stops.
    #[error("the other side is shutting down")]
    ShuttingDown,
    /// A reason of a newer version.
    #[error("the other side hung up for reason {code}, unknown here")]
    Unknown {
        /// The reason's number.
        code: u16,
    },
}

impl From<WireError> for CloseReason {
    fn from(error: WireError) -> Self {
        match error {
            WireError::UnknownVersion { found, .. } => Self::UnknownVersion { found },
            WireError::UnknownOperation { kind } => Self::UnknownOperation { kind },
            WireError::UnknownFrame { .. }
            | WireError::Corrupt { .. }
            | WireError::NotAFrame { .. }
            | WireError::TooLong { .. }
            | WireError::OutOfPlace { .. }
            | WireError::Malformed { .. } => Self::BadFrame,
        }
    }
}

impl Hello {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u16_le(self.versions.min);
        out.put_u16_le(self.versions.max);
        out.put_u64_le(self.features);
        out.put_u64_le(self.required);
        out.put_uuid(self.cluster);
        out.put_u32_le(self.to.0);
        out.put_u16_le(self.shard);
        match self.identity {
            Identity::Client { session, volume, generation } => {
                out.put_u8(1);
                out.put_u128_le(session.0);
                out.put_u64_le(volume.0);
                out.put_u64_le(generation.0);
            }
            Identity::Osd { id, incarnation } => {
                out.put_u8(2);
                out.put_u32_le(id.0);
                out.put_u64_le(incarnation.0);
            }
        }
    }

    pub(crate) fn take(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(bytes, "hello");
        let versions = VersionRange { min: fields.u16()?, max: fields.u16()? };
        let (features, required) = (fields.u64()?, fields.u64()?);
        let cluster = fields.uuid()?;
        let (to, shard) = (OsdId(fields.u32()?), fields.u16()?);
        let identity = match fields.u8()? {
            1 => Identity::Client {
                session: SessionId(fields.u128()?),
                volume: VolumeId(fields.u64()?),
                generation: Generation(fields.u64()?),
            },
            2 => Identity::Osd { id: OsdId(fields.u32()?), incarnation: Incarnation(fields.u64()?) },
            _ => return Err(WireError::Malformed { what: "hello" }),
        };
        Ok(Self { versions, features, required, cluster, identity, to, shard })
    }
}

impl Welcome {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u16_le(self.version);
        out.put_u64_le(self.features);
        out.put_uuid(self.cluster);
        out.put_u32_le(self.osd.0);
        out.put_u64_le(self.incarnation.0);
        out.put_u16_le(self.shards);
        out.put_u64_le(self.epoch.0);
    }

    pub(crate) fn take(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(bytes, "welcome");
        Ok(Self {
            version: fields.u16()?,
            features: fields.u64()?,
            cluster: fields.uuid()?,
            osd: OsdId(fields.u32()?),
            incarnation: Incarnation(fields.u64()?),
            shards: fields.u16()?,
            epoch: Epoch(fields.u64()?),
        })
    }
}

impl CloseReason {
    pub(crate) fn put(self, out: &mut BytesMut) {
        let (code, detail) = match self {
            Self::NoCommonVersion { min, max } => (1, u64::from(min) | u64::from(max) << 16),
            Self::MissingFeatures { missing } => (2, missing),
            Self::WrongCluster => (3, 0),
            Self::WrongOsd { found } => (4, u64::from(found.0)),
            Self::DeadIncarnation => (5, 0),
            Self::TooManyConnections => (6, 0),
            Self::UnknownVersion { found } => (7, u64::from(found)),
            Self::UnknownOperation { kind } => (8, u64::from(kind)),
            Self::BadFrame => (9, 0),
            Self::Replaced => (10, 0),
            Self::ShuttingDown => (11, 0),
            Self::Unknown { code } => (code, 0),
        };
        out.put_u16_le(code);
        out.put_u64_le(detail);
    }

    pub(crate) fn take(bytes: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields::new(bytes, "close");
        let (code, detail) = (fields.u16()?, fields.u64()?);
        Ok(match code {
            1 => Self::NoCommonVersion { min: detail as u16, max: (detail >> 16) as u16 },
            2 => Self::MissingFeatures { missing: detail },
            3 => Self::WrongCluster,
            4 => Self::WrongOsd { found: OsdId(detail as u32) },
            5 => Self::DeadIncarnation,
            6 => Self::TooManyConnections,
            7 => Self::UnknownVersion { found: detail as u16 },
            8 => Self::UnknownOperation { kind: detail as u16 },
            9 => Self::BadFrame,
            10 => Self::Replaced,
            11 => Self::ShuttingDown,
            code => Self::Unknown { code },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::VersionRange;

    #[test]
    fn the_newest_common_version_is_chosen() {
        let range = |min, max| VersionRange { min, max };
        assert_eq!(range(1, 3).newest_common(range(2, 9)), Some(3));
        assert_eq!(range(2, 9).newest_common(range(1, 3)), Some(3));
        assert_eq!(range(1, 1).newest_common(range(1, 1)), Some(1));
        assert_eq!(range(1, 1).newest_common(range(2, 4)), None);
    }
}
