//! Where volumes come from: the cluster ([`crate::cluster`]), or a file in a test. The daemon knows this trait only.

use std::sync::Arc;

use async_trait::async_trait;
use cairn_types::volume::AttachMode;
use cairn_types::{Generation, VolumeId};
use tonic::Code;

use crate::device::BlockDevice;

/// What a node wants of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Which.
    pub volume: VolumeId,
    /// How.
    pub mode: AttachMode,
    /// Take it from whoever holds it; otherwise another holder is an error.
    pub steal: bool,
    /// The generation under which a predecessor of this process held it. It is continued, never begun anew: if the
    /// holding was ended meanwhile, the answer is [`SourceError::Ended`].
    pub continues: Option<Generation>,
    /// For the logs of everybody who is asked.
    pub request_id: String,
}

/// A volume that is held, under a generation of its own.
pub struct Held {
    /// The volume's name.
    pub name: String,
    /// Ours.
    pub generation: Generation,
    /// Its bytes.
    pub device: Arc<dyn HeldDevice>,
}

/// The device of a held volume.
#[async_trait]
pub trait HeldDevice: BlockDevice {
    /// Asks for the volume's present size and takes it on.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn refresh(&self, request_id: &str) -> Result<u64, SourceError>;

    /// Ends the data session; the holding stays.
    async fn close(&self);
}

/// Gives volumes to this node.
#[async_trait]
pub trait VolumeSource: Send + Sync + 'static {
    /// Makes this node known.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn register_node(&self) -> Result<(), SourceError>;

    /// Begins a data session under a new generation. When it returns, every earlier holder is fenced off.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn attach(&self, want: &Want) -> Result<Held, SourceError>;

    /// Whether the holding of this generation is still ours: no one has taken the volume over.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn holds(&self, volume: VolumeId, generation: Generation, request_id: &str) -> Result<bool, SourceError>;

    /// Ends the holding of this generation; one that has ended already is fine.
    ///
    /// # Errors
    /// [`SourceError`].
    async fn detach(&self, volume: VolumeId, generation: Generation, request_id: &str) -> Result<(), SourceError>;
}

/// Why a volume was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The holding that should be continued has ended: another node has the volume, or it was taken away.
    #[error("the holding of {volume} by this node has ended; unexport it here, and publish it again to use it")]
    Ended {
        /// Which volume.
        volume: VolumeId,
    },
    /// Nobody answered; whether it happened is unknown. Asking again finds out.
    #[error("{0}")]
    Unreachable(String),
    /// Understood and refused, in the service's words.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: Code,
        /// For people.
        message: String,
    },
}

impl SourceError {
    /// Whether asking again may go better.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Ended { .. } => false,
            Self::Refused { code, .. } => {
                matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Aborted | Code::ResourceExhausted)
            }
        }
    }
}
