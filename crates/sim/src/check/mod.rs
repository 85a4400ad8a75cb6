//! What must hold of every run, each question in a file of its own.

pub(crate) mod epochs;
pub(crate) mod flush;
pub(crate) mod linear;
pub(crate) mod lost;
pub(crate) mod once;
pub(crate) mod prefix;
pub(crate) mod replicas;
pub(crate) mod states;

/// A promise that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Each block behaves as one register.
    Linearizable,
    /// What was acknowledged is read until something newer was written.
    NothingLost,
    /// A session that was replaced changes nothing any more.
    Fence,
    /// A request is executed once.
    Once,
    /// Committed prefixes are equal everywhere.
    Prefix,
    /// Nothing is acknowledged before every in-sync disk has it.
    Flush,
    /// What is said to have no content, or not to have changed, is so.
    States,
    /// Epochs and configurations go forward only.
    Epochs,
    /// At the end all in-sync disks hold the same bytes.
    Replicas,
    /// Nothing is left of what was deleted or moved away.
    Cleared,
    /// Once healed, everything works within a bound.
    Liveness,
    /// A planned move costs no copy.
    Copies,
    /// No operation of a client fails that must not.
    Client,
    /// A store on a disk that keeps its promises works.
    Store,
    /// No assertion of the code itself fails.
    Assertion,
}

impl Check {
    /// As it stands in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::NothingLost => "nothing lost",
            Self::Fence => "fence",
            Self::Once => "executed once",
            Self::Prefix => "committed prefix",
            Self::Flush => "flush oracle",
            Self::States => "states",
            Self::Epochs => "epochs",
            Self::Replicas => "replicas equal",
            Self::Cleared => "cleared",
            Self::Liveness => "liveness",
            Self::Copies => "copies kept",
            Self::Client => "client",
            Self::Store => "store",
            Self::Assertion => "assertion",
        }
    }
}

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub check: Check,
    /// How.
    pub what: String,
}

impl Violation {
    pub(crate) fn new(check: Check, what: impl Into<String>) -> Self {
        Self { check, what: what.into() }
    }
}

impl std::fmt::Display for Violation {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "[{}] {}", self.check.name(), self.what)
    }
}
