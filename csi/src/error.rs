//! Everything that can come of a call, and the one table of the gRPC codes that CSI wants for it.

use cairn_meta_client::MetaError;
use tonic::{Code, Status};

use crate::capability::CapabilityError;
use crate::capacity::CapacityError;
use crate::controller::PoolError;
use crate::node::NodeError;
use crate::parameters::ParameterError;

/// Why a call was refused. Each says what is wrong and what to do about it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsiError {
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("a volume's name has at most 128 bytes; `{}...` has {len}", start.escape_debug())]
    LongName { start: String, len: usize },
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error(transparent)]
    Capability(#[from] CapabilityError),
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("there is no volume with id `{}`", .0.escape_debug())]
    NoVolume(String),
    #[error("there is no snapshot with id `{}`", .0.escape_debug())]
    NoSnapshot(String),
    #[error("there is a volume `{name}` already, and {differs}; choose another name, or ask for the same")]
    Taken { name: String, differs: String },
    #[error("`{}` is not a page token of this driver; start again without one", .0.escape_debug())]
    PageToken(String),
    /// The metadata service, in its own words.
    #[error("{0}")]
    Meta(#[from] MetaError),
    #[error("the metadata service answered without a {0}")]
    Unreadable(&'static str),
    #[error(transparent)]
    Node(#[from] NodeError),
}

impl CsiError {
    /// The code that the specification has for it.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Missing(_) | Self::LongName { .. } | Self::Parameter(_) | Self::Capability(_) => {
                Code::InvalidArgument
            }
            Self::Capacity(_) => Code::OutOfRange,
            Self::Pool(PoolError::NoPools | PoolError::Ambiguous { .. }) => Code::FailedPrecondition,
            Self::Pool(_) => Code::InvalidArgument,
            Self::NoVolume(_) | Self::NoSnapshot(_) => Code::NotFound,
            Self::Taken { .. } => Code::AlreadyExists,
            Self::PageToken(_) => Code::Aborted,
            // There is room, and a pool or a node may have no more: elsewhere it may go.
            Self::Meta(error) if error.is_quota_exceeded() => Code::ResourceExhausted,
            Self::Meta(error) => match error.code() {
                // Volumes larger than what is free: the code by which a caller tries elsewhere.
                Code::ResourceExhausted => Code::OutOfRange,
                // "Aborted" would tell a caller that the same operation is under way; here it shall just ask again.
                Code::Aborted => Code::Unavailable,
                code => code,
            },
            Self::Unreadable(_) => Code::Internal,
            Self::Node(error) => error.code(),
        }
    }
}

impl From<CsiError> for Status {
    fn from(error: CsiError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
