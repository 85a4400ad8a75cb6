//! What can be wrong with bytes that came from a wire.

/// Bytes that are not a frame of this protocol. The connection they came on is of no further use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A checksum does not match.
    #[error("corrupt {what}: checksum {found:#010x} where {expected:#010x} was sent")]
    Corrupt {
        /// Header, fields or payload.
        what: &'static str,
        /// As the sender computed it.
        expected: u32,
        /// Of the bytes received.
        found: u32,
    },
    /// The first bytes are not those of a frame.
    #[error("not a frame of this protocol: it begins with {found:#010x}")]
    NotAFrame {
        /// The first four bytes.
        found: u32,
    },
    /// A frame of a version other than the one the handshake chose.
    #[error("frame version {found} is unknown here; version {expected} was agreed on")]
    UnknownVersion {
        /// In the frame.
        found: u16,
        /// Agreed on, or 0 during the handshake.
        expected: u16,
    },
    /// A frame of an unknown kind.
    #[error("frame kind {kind} is unknown here")]
    UnknownFrame {
        /// Its number.
        kind: u8,
    },
    /// An operation of an unknown kind.
    #[error("operation {kind} is unknown here")]
    UnknownOperation {
        /// Its number.
        kind: u16,
    },
    /// A declared length is above its bound.
    #[error("{what} of {len} is above the limit of {limit}")]
    TooLong {
        /// Which length.
        what: &'static str,
        /// As declared.
        len: usize,
        /// The bound.
        limit: usize,
    },
    /// A frame that may not come at this point of the conversation.
    #[error("{what} may not come now")]
    OutOfPlace {
        /// Which.
        what: &'static str,
    },
    /// Fields that contradict each other.
    #[error("malformed {what}")]
    Malformed {
        /// Which.
        what: &'static str,
    },
}
