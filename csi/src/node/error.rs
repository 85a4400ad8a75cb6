//! What can go wrong on a node, each with its code.

use std::io;
use std::path::PathBuf;

use cairn_types::VolumeId;
use tonic::Code;

use super::probe::ProbeError;
use crate::filesystem::Filesystem;

/// Why a volume could not be staged, published, or the reverse.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("the attach daemon does not answer at {} ({reason}); is `cairn attach` running on this node?", socket.display())]
    AttachUnreachable { socket: PathBuf, reason: String },
    /// The daemon, in its own words.
    #[error("{message}")]
    Attach { code: Code, message: String },
    #[error("the attach daemon answered without an {0}")]
    Unreadable(&'static str),
    #[error("the volume is exported as {0}, which is not a block device; unexport it first")]
    NotADevice(String),
    #[error("the volume was published in the unknown mode `{}`; run the same version of both halves", .0.escape_debug())]
    AttachMode(String),
    #[error(transparent)]
    Probe(ProbeError),
    #[error("{} holds {what}; it was not formatted; use another volume, or wipe this one by hand", device.display())]
    Foreign { device: PathBuf, what: String },
    #[error("{kind} wants at least {} bytes, and the volume has {size}; grow it, or use a smaller filesystem", kind.least())]
    TooSmall { kind: Filesystem, size: u64 },
    #[error("the volume is to be used read-only and holds no filesystem yet; write to it first")]
    NothingToRead,
    #[error("the filesystem on {} is damaged and needs a decision; run {tool} on it by hand ({report})", device.display())]
    Damaged { device: PathBuf, tool: &'static str, report: String },
    #[error(
        "{} holds {has}, and {asked} is asked for; ask for {has} (`csi.storage.k8s.io/fstype` of the StorageClass), or \
         use another volume", device.display()
    )]
    OtherFilesystem { device: PathBuf, has: Filesystem, asked: Filesystem },
    #[error("`{tool}` failed: {output}")]
    Tool { tool: String, output: String },
    #[error("`{tool}` is not on this machine; install the package {package}")]
    NoTool { tool: String, package: &'static str },
    #[error("the volume is not staged at {}; call NodeStageVolume first", .0.display())]
    NotStaged(PathBuf),
    #[error("{volume} is not published at {}; call NodePublishVolume first", path.display())]
    NotPublished { volume: VolumeId, path: PathBuf },
    #[error("{} is taken: {what} is mounted there; unmount it first", path.display())]
    Occupied { path: PathBuf, what: String },
    #[error("{} is mounted already, {}; unpublish it first", path.display(), access(*read_only))]
    OtherAccess { path: PathBuf, read_only: bool },
    #[error("the volume is for a single writer and published at {} already; unpublish it there first", .0.display())]
    SingleWriter(PathBuf),
    #[error("a raw device that is attached for writing cannot be published read-only; attach it read-only")]
    WritableDevice,
    #[error("{} is still in use; stop what uses it first", .0.display())]
    Busy(PathBuf),
    #[error(
        "the device has grown, its mounted filesystem cannot: this process lacks CAP_SYS_RESOURCE; it grows when the volume is staged next"
    )]
    CannotGrow,
    #[error("{step}, {}: {source}", path.display())]
    System { step: &'static str, path: PathBuf, source: io::Error },
}

fn access(read_only: bool) -> &'static str {
    if read_only { "read-only" } else { "for writing" }
}

impl NodeError {
    /// The code that the specification has for it.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::AttachUnreachable { .. } | Self::Probe(_) => Code::Unavailable,
            // "Aborted" would tell a caller that the same operation is under way; here it shall just ask again.
            Self::Attach { code: Code::Aborted, .. } => Code::Unavailable,
            Self::Attach { code, .. } => *code,
            Self::OtherAccess { .. } => Code::AlreadyExists,
            Self::NotPublished { .. } => Code::NotFound,
            Self::WritableDevice => Code::InvalidArgument,
            Self::Foreign { .. }
            | Self::NothingToRead
            | Self::Damaged { .. }
            | Self::OtherFilesystem { .. }
            | Self::TooSmall { .. }
            | Self::NoTool { .. }
            | Self::NotADevice(_)
            | Self::AttachMode(_)
            | Self::NotStaged(_)
            | Self::Occupied { .. }
            | Self::SingleWriter(_)
            | Self::Busy(_)
            | Self::CannotGrow => Code::FailedPrecondition,
            Self::Unreadable(_) | Self::Tool { .. } | Self::System { .. } => Code::Internal,
        }
    }

    /// For `map_err`: which step the machine refused, where.
    pub(crate) fn system<E: Into<io::Error>>(step: &'static str, path: &std::path::Path) -> impl FnOnce(E) -> Self {
        move |source| Self::System { step, path: path.to_owned(), source: source.into() }
    }
}
