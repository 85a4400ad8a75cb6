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
        /// What to do, by itself; empty where the service had no advice.
        remedy: String,
        /// The state machine's own name for the reason, where it was the one that refused.
        reason: String,
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

    /// What the service says to do about it; empty where it said nothing.
    #[must_use]
    pub fn remedy(&self) -> &str {
        match self {
            Self::Refused { remedy, .. } => remedy,
            Self::Unreachable { .. } => "check that a majority of the metadata members runs",
            Self::BadEndpoint(_) => "write host:port",
            Self::Unreadable(_) => "run the same version everywhere",
        }
    }

    /// Whether a pool, or a node, may have no more: there is room, and it is not to be used.
    #[must_use]
    pub fn is_quota_exceeded(&self) -> bool {
        matches!(self, Self::Refused { reason, .. } if reason == "QUOTA_EXCEEDED")
    }

    /// Whether what was named does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }
}

impl From<Status> for MetaError {
    fn from(status: Status) -> Self {
        let text =
            |name| status.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let (remedy, reason) = (text(REMEDY), text(REASON));
        Self::Refused { code: status.code(), message: status.message().to_owned(), remedy, reason }
    }
}

/// The trailers in which the service says what to do, and its own name for the reason.
const REMEDY: &str = "cairn-remedy";
const REASON: &str = "cairn-reason";

/// The service has forgotten the client's session: it may be that the command was carried out before.
pub(crate) fn is_session_expired(status: &Status) -> bool {
    status.metadata().get(REASON).is_some_and(|reason| reason == "SESSION_EXPIRED")
}

/// The service itself waited and says what for: a reason of its own, and no broken connection.
pub(crate) fn is_explained(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded && status.metadata().contains_key(REMEDY)
}

/// Whether another attempt, here or at another member, may go better.
pub(crate) fn is_transient(status: &Status) -> bool {
    // `Cancelled` and `Unknown` are what tonic makes of its own timeouts and of broken connections.
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
