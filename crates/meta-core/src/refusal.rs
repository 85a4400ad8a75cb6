//! Why a command is not carried out: the words an admin reads, and the code a program does.
//!
//! A refusal is an ordinary, replicated answer. `Corrupt` is not: it says that this member's own state is damaged, and
//! the member must stop before it answers anything.

use cairn_proto::convert::ConvertError;
use cairn_proto::meta::{CommandError, ErrorCode};

/// A command that was understood and not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// What failed and why.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

impl Refusal {
    /// A refusal without a remedy of its own: the message says it all.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: String::new() }
    }

    /// Adds what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::FailedPrecondition, message)
    }
}

impl From<Refusal> for CommandError {
    fn from(refusal: Refusal) -> Self {
        Self { code: refusal.code.into(), message: refusal.message, remedy: refusal.remedy }
    }
}

/// This member's state is not what a machine wrote: bytes rotted, or another version wrote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metadata state is damaged at {at}: expected {expected}, found {found}")]
pub struct Corrupt {
    /// Which record.
    pub at: String,
    /// What should be there.
    pub expected: String,
    /// What is.
    pub found: String,
}

impl Corrupt {
    pub(crate) fn new(at: impl Into<String>, expected: impl Into<String>, found: impl ToString) -> Self {
        Self { at: at.into(), expected: expected.into(), found: found.to_string() }
    }
}

/// Why a command or a query gives no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It was understood, and this is the answer.
    #[error(transparent)]
    Refused(Refusal),
    /// This member must stop.
    #[error(transparent)]
    Corrupt(Corrupt),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Corrupt> for Failure {
    fn from(corrupt: Corrupt) -> Self {
        Self::Corrupt(corrupt)
    }
}

/// A field of a request that cannot be read is the caller's mistake.
impl From<ConvertError> for Failure {
    fn from(error: ConvertError) -> Self {
        Self::Refused(Refusal::invalid(error.to_string()))
    }
}

/// What a handler of a command answers.
pub(crate) type Outcome<T> = Result<T, Failure>;
