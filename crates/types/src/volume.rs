//! Volumes, as the metadata service records them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Generation, NodeName, PoolId, SessionId, SnapId, VolumeId};

/// What is asked for when a volume is made; checked, so that the size is whole blocks and the name printable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Unique within the cluster; at most 128 bytes.
    pub name: String,
    /// Where its objects go.
    pub pool: PoolId,
    /// Bytes, a multiple of the block size, above zero.
    pub size: u64,
    /// The admin's and the orchestrator's own notes.
    pub labels: BTreeMap<String, String>,
}

/// A volume that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Never reused.
    pub id: VolumeId,
    /// What was asked for, with the size as it is now.
    pub spec: VolumeSpec,
    /// The newest snapshot: the context that writes carry.
    pub snap_context: SnapId,
    /// The next generation to hand out.
    pub next_generation: Generation,
    /// The holders of today. A single one unless the volume is attached for several.
    pub attachments: Vec<Attachment>,
    /// Seconds since 1970, as the proposer's clock said.
    pub created_at_s: u64,
}

/// What a holder of a volume may do. 0: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLimits {
    /// Reads, writes and discards a second.
    pub iops: u64,
    /// Bytes read and written a second.
    pub bandwidth: u64,
    /// What an idle holder saves up, in seconds of both.
    pub burst_s: u32,
}

/// How a holder may use the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttachMode {
    /// One holder, reading and writing.
    Exclusive,
    /// Reading only; any number of holders.
    ReadOnly,
    /// Several holders, each reading and writing: raw block for applications that coordinate by themselves.
    Shared,
}

/// One holding of a volume: who may write to it, under which generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Every OSD rejects requests of a generation that is not in the valid set.
    pub generation: Generation,
    /// The node that holds it.
    pub node: NodeName,
    /// The data session that writes under this generation.
    pub session: SessionId,
    /// How.
    pub mode: AttachMode,
}
