//! What can come of asking the metadata service.

use tonic::{Code, Status};

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// No member answered before the deadline. A mutation may or may not have been applied; asking again under the
    /// same name finds out.
    #[error(
        "the metadata service did not answer within {waited_ms} ms (asked {endpoints}): {last}; check that a majority of its members runs"
    )]
    Unreachable {
        /// Who was asked.
        endpoints: String,
        /// How long.
        waited_ms: u64,
        /// What the last attempt met.
        last: String,
    },
    /// The service understood and refused.
    #[error("{message}")]
    Refused {
        /// gRPC code, for programs.
        code: Code,
        /// Cause and remedy, for people.
        message: String,
    },
    /// An endpoint is not of the form host:port.
    #[error("`{0}` is not an endpoint; write host:port")]
    BadEndpoint(String),
    /// A member sent what cannot be read.
    #[error("a metadata member sent an unreadable answer: {0}")]
    Unreadable(String),
}

impl MetaError {
    /// The gRPC code that says the same to our own callers.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Unreachable { .. } => Code::Unavailable,
            Self::Refused { code, .. } => *code,
            Self::BadEndpoint(_) => Code::InvalidArgument,
            Self::Unreadable(_) => Code::Internal,
        }
    }

    /// Whether what was named does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }
}

/// Whether another attempt, here or at another member, may go better.
pub(crate) fn is_transient(status: &Status) -> bool {
    // `Cancelled` and `Unknown` are what tonic makes of its own timeouts and of broken connections.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
