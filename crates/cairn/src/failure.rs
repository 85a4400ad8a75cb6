//! How a command fails: one sentence for the reader, one stable exit code for scripts.

use std::fmt;

/// Exit codes; `docs/operating/cli.md` lists them, and they never change meaning. 2 is clap's: wrong usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// The operation was refused or failed.
    Failed = 1,
    /// The cluster cannot be reached.
    Unreachable = 3,
    /// What was named does not exist.
    NotFound = 4,
    /// `health`: something is wrong.
    Unhealthy = 5,
    /// `--wait --timeout`: it is under way and was not done in time.
    Unfinished = 6,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// For `map_err`: what was being done, and why it failed.
    pub(crate) fn while_<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        move |error| Self::new(Code::Failed, format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let code = if status.code == 404 { Code::NotFound } else { Code::Failed };
                let reason = if status.reason.is_empty() { "Error" } else { &status.reason };
                Self::new(code, format!("Error from server ({reason}): {}", status.message))
            }
            other => Self::new(Code::Unreachable, format!("cannot talk to the API server: {other}")),
        }
    }
}

/// The result of a command.
pub(crate) type Outcome = Result<(), Failure>;
