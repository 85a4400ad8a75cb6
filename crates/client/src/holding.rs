//! What entitles a client to a volume: the outcome of an attach.

use cairn_client_core::Parent;
use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::convert::session_to;
use cairn_proto::meta;
use cairn_types::volume::AttachMode;
use cairn_types::{BLOCK_SIZE, Epoch, Generation, PoolId, SessionId, SnapId, VolumeId};
use uuid::Uuid;

/// Who wants a volume, and how.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which.
    pub volume: VolumeId,
    /// The node that will hold it.
    pub node: String,
    /// How.
    pub mode: AttachMode,
    /// Take it from whoever holds it.
    pub steal: bool,
    /// The generation this session takes over from, on the same node.
    pub replaces: Option<Generation>,
    /// To roll the volume back to this snapshot of it.
    pub restores: Option<SnapId>,
}

/// A valid generation of a volume, and what is needed to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The volume.
    pub volume: VolumeId,
    /// The pool that stores it.
    pub pool: PoolId,
    /// Bytes when it was attached.
    pub size: u64,
    /// Bytes of its objects.
    pub object_size: u32,
    /// The newest snapshot when it was attached.
    pub snap_context: SnapId,
    /// The data session; only one client may ever use it.
    pub session: SessionId,
    /// The generation it may write under.
    pub generation: Generation,
    /// The fence holds from this epoch on.
    pub epoch: Epoch,
    /// Writes are not allowed.
    pub read_only: bool,
    /// What is read: the volume as it is now, or one of its snapshots.
    pub view: SnapId,
    /// Of a clone: where what it does not know is read, the nearest first.
    pub parents: Vec<Parent>,
}

/// Why a volume could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The metadata service said no, or nothing.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// Its answer makes no sense.
    #[error("the metadata service answered an attach without a usable {0}")]
    Unusable(&'static str),
}

impl Holding {
    /// Attaches a volume under a fresh session. Returns when every earlier holder is fenced off.
    ///
    /// # Errors
    /// [`AttachError`].
    pub async fn attach(meta: &MetaClient, claim: &Claim) -> Result<Self, AttachError> {
        let session = SessionId(Uuid::new_v4().as_u128());
        let mode = match claim.mode {
            AttachMode::Exclusive => meta::AttachMode::Exclusive,
            AttachMode::ReadOnly => meta::AttachMode::ReadOnly,
            AttachMode::Shared => meta::AttachMode::Shared,
        };
        let request = meta::AttachRequest {
            mutation: None,
            volume: Some(meta::VolumeRef { by: Some(meta::volume_ref::By::Id(claim.volume.0)) }),
            node: claim.node.clone(),
            mode: mode.into(),
            data_session: session_to(session),
            steal: claim.steal,
            replaces: claim.replaces.map_or(0, |generation| generation.0),
            restores: claim.restores.map_or(0, |snapshot| snapshot.0),
        };
        let reply = meta.attach(request).await?;
        Self::from_reply(&reply, session, claim.mode == AttachMode::ReadOnly)
    }

    /// To look at what of a volume has content, and at nothing else. It may be attached anywhere, and must have been once:
    /// what never was has no content.
    ///
    /// # Errors
    /// When the metadata service's answer lacks what it must say.
    pub fn of_onlooker(volume: &meta::Volume) -> Result<Self, AttachError> {
        let session = SessionId(Uuid::new_v4().as_u128());
        let reply = meta::AttachReply { volume: Some(volume.clone()), generation: 1, epoch: 0 };
        Ok(Self { generation: Generation(0), ..Self::from_reply(&reply, session, true)? })
    }

    /// To read a snapshot: nobody need be asked, it never changes.
    ///
    /// # Errors
    /// When the metadata service's answer lacks what it must say.
    pub fn of_snapshot(reply: &meta::GetSnapshotReply) -> Result<Self, AttachError> {
        let snapshot = reply.snapshot.as_ref().ok_or(AttachError::Unusable("snapshot"))?;
        let volume = meta::Volume {
            id: snapshot.volume,
            pool: snapshot.pool,
            size: snapshot.size,
            object_size: reply.object_size,
            parents: reply.parents.clone(),
            ..meta::Volume::default()
        };
        let holding = Self::of_onlooker(&volume)?;
        Ok(Self { view: SnapId(snapshot.id), epoch: Epoch(reply.epoch), ..holding })
    }

    /// The holding that the answer to an attach describes.
    ///
    /// # Errors
    /// When the answer lacks what it must say.
    pub fn from_reply(reply: &meta::AttachReply, session: SessionId, read_only: bool) -> Result<Self, AttachError> {
        let volume = reply.volume.as_ref().ok_or(AttachError::Unusable("volume"))?;
        if !volume.object_size.is_power_of_two() || volume.object_size < BLOCK_SIZE {
            return Err(AttachError::Unusable("object size"));
        }
        if !volume.size.is_multiple_of(u64::from(BLOCK_SIZE)) {
            return Err(AttachError::Unusable("volume size"));
        }
        if reply.generation == 0 {
            return Err(AttachError::Unusable("generation"));
        }
        Ok(Self {
            volume: VolumeId(volume.id),
            pool: PoolId(volume.pool),
            size: volume.size,
            object_size: volume.object_size,
            snap_context: SnapId(volume.snap_context),
            session,
            generation: Generation(reply.generation),
            epoch: Epoch(reply.epoch),
            read_only,
            view: SnapId::HEAD,
            parents: volume.parents.iter().map(parent_of).collect(),
        })
    }
}

fn parent_of(parent: &meta::Parent) -> Parent {
    Parent {
        volume: VolumeId(parent.volume),
        pool: PoolId(parent.pool),
        snapshot: SnapId(parent.snapshot),
        size: parent.size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_used_is_refused_by_name() {
        let volume = meta::Volume { id: 4, pool: 1, size: 8192, object_size: 4096, ..meta::Volume::default() };
        let good = meta::AttachReply { volume: Some(volume.clone()), generation: 2, epoch: 9 };
        let holding = Holding::from_reply(&good, SessionId(5), true).unwrap();
        assert_eq!((holding.volume, holding.generation, holding.epoch), (VolumeId(4), Generation(2), Epoch(9)));
        let broken = [
            (meta::AttachReply { volume: None, ..good.clone() }, "volume"),
            (meta::AttachReply { generation: 0, ..good.clone() }, "generation"),
            (
                meta::AttachReply {
                    volume: Some(meta::Volume { object_size: 5000, ..volume.clone() }),
                    ..good.clone()
                },
                "object size",
            ),
            (meta::AttachReply { volume: Some(meta::Volume { size: 1, ..volume }), ..good }, "volume size"),
        ];
        for (reply, what) in broken {
            let error = Holding::from_reply(&reply, SessionId(5), false).unwrap_err().to_string();
            assert_eq!(error, format!("the metadata service answered an attach without a usable {what}"));
        }
    }
}
