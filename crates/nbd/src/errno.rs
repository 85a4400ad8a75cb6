//! The errors of the protocol. They are numbers of its own, whatever the machine calls them.

/// Why a request failed, as clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Errno {
    /// EPERM: the export is read-only.
    #[error("operation not permitted")]
    NotPermitted,
    /// EIO.
    #[error("input/output error")]
    Io,
    /// EINVAL: the request makes no sense.
    #[error("invalid argument")]
    Invalid,
    /// ENOSPC: beyond the end, or no room.
    #[error("no space left on device")]
    NoSpace,
    /// EOVERFLOW: more than may be asked for at once.
    #[error("value too large")]
    Overflow,
    /// ENOTSUP: cannot be done fast, or at all.
    #[error("operation not supported")]
    NotSupported,
    /// ESHUTDOWN: the server is going away.
    #[error("the server is shutting down")]
    Shutdown,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::NotPermitted => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }
}
