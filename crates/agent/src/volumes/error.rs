//! Why a volume cannot be used, each with what to do about it: these sentences become the pod's FailedMount events.

use std::path::PathBuf;

use jiff::SignedDuration;

use super::files::FileError;
use crate::csi_node::CsiError;

/// Something in the way of a pod's volumes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeError {
    #[error("volume \"{volume}\": {error}")]
    Files { volume: String, error: FileError },
    #[error(
        "persistentvolumeclaim \"{claim}\" not found; create it in namespace {namespace}, or correct the claimName"
    )]
    NoClaim { claim: String, namespace: String },
    #[error("persistentvolumeclaim \"{claim}\" is not bound yet; `kubectl describe pvc {claim}` says why")]
    Unbound { claim: String },
    #[error(
        "persistentvolume \"{volume}\" is gone although claim \"{claim}\" is bound to it; its data is lost to the claim, \
         delete the claim and make a new one"
    )]
    LostVolume { volume: String, claim: String },
    #[error(
        "persistentvolume \"{volume}\" belongs to another claim than \"{claim}\"; delete the claim and make a new one"
    )]
    ForeignVolume { volume: String, claim: String },
    #[error(
        "CSI driver {driver} is not registered on node {node}; start its node plugin here (with Cairn: the csi role), \
         its socket belongs into the plugin registry directory"
    )]
    NoDriver { driver: String, node: String },
    #[error("persistentvolume \"{volume}\" is not attached to node {node} yet{cause}")]
    NotAttached { volume: String, node: String, cause: AttachCause },
    #[error("volume \"{volume}\": secret {namespace}/{secret} of its persistentvolume not found; create it")]
    NoSecret { volume: String, namespace: String, secret: String },
    #[error("volume \"{volume}\": {error}")]
    Driver { volume: String, error: CsiError },
    #[error("volume \"{volume}\": {what} is not supported by this agent{remedy}")]
    Unsupported { volume: String, what: &'static str, remedy: &'static str },
    #[error("volume \"{volume}\": {path} {problem}")]
    HostPath { volume: String, path: PathBuf, problem: &'static str },
    #[error(
        "the Node's volumesInUse could not be written within {0:?}; nothing is staged before the controller can see it"
    )]
    NotReported(std::time::Duration),
    #[error("{doing}: {error}")]
    Io { doing: String, error: std::io::Error },
    #[error("the API server did not answer about {0}: {1}")]
    Api(String, String),
    #[error("the pod is being deleted")]
    Stopped,
}

/// What is known about a missing attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AttachCause {
    /// There is no VolumeAttachment.
    Absent,
    /// There is one and it waits.
    Pending,
    /// It failed, and this is what the attacher says.
    Failed(String),
    /// The one before is still being taken away.
    Detaching,
}

impl std::fmt::Display for AttachCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AttachCause::Absent => {
                f.write_str(": it has no VolumeAttachment, which the attach/detach controller makes; is it running?")
            }
            AttachCause::Pending => f.write_str(": the driver's attacher has not answered; is it running?"),
            AttachCause::Failed(message) => write!(f, ": {message}"),
            AttachCause::Detaching => f.write_str(": its previous attachment is still being detached"),
        }
    }
}

impl VolumeError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> VolumeError {
        let doing = doing.into();
        move |error| VolumeError::Io { doing, error }
    }

    /// The longest pause before the next try. What others bring about is looked for often; a driver that fails is not
    /// pressed.
    pub(crate) fn patience(&self) -> SignedDuration {
        match self {
            // Waited for already.
            VolumeError::NotAttached { .. } => SignedDuration::from_millis(500),
            VolumeError::Driver { .. } | VolumeError::Io { .. } => SignedDuration::from_secs(10),
            _ => SignedDuration::from_secs(2),
        }
    }

    /// The event's reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            VolumeError::NotAttached { .. } => "FailedAttachVolume",
            _ => "FailedMount",
        }
    }
}
