//! Data-path frames to bytes and back.
//!
//! A connection opens with a handshake ([`Hello`], answered by [`Welcome`] or [`CloseReason`]) and then carries
//! frames of many operations each. A frame is a fixed header, the operations' fields, and apart from both the
//! payload, so that data is received into an aligned buffer and only sliced after that:
//!
//! ```text
//! header, 32 bytes little-endian
//!    0 magic u32     4 version u16   6 kind u8      7 flags u8, 0
//!    8 shard u16    10 count u16    12 fields_len u32
//!   16 payload_len u32              20 fields_crc u32
//!   24 zero u32                     28 header_crc u32, of the 28 bytes before it
//! fields: `count` operations, each 40 fixed bytes and a body
//!    0 kind u16      2 flags u16, 0  4 body_len u32  8 payload_len u32  12 zero u32
//!   16 c u64        24 g u64        32 v u64        40 body: volume, object, offset, checksums ...
//! payload: the operations' data, one after the other
//! ```
//!
//! The two crcs cover everything but the payload; the payload is covered by the crc32c of each of its 4 KiB
//! blocks, which stand in the fields. Frames of the handshake are at most 4 KiB and carry version 0, which never
//! changes; every other frame carries the version that the handshake chose.
//!
//! This room does no I/O and keeps no clock. What is wrong with received bytes is a typed [`WireError`]; no length
//! that was declared is believed, let alone allocated, before its checksum and its bound hold.

#![forbid(unsafe_code)]

mod aligned;
mod body;
mod client;
mod decode;
mod encode;
mod error;
mod hello;
mod peer;
mod peer_take;
mod scrub;

pub use aligned::{aligned_buffer, zeros};
pub use decode::{Decoder, Frame, PayloadCheck};
pub use encode::{EncodedFrame, FrameBuilder, FrameFull, encode_close, encode_hello, encode_welcome};
pub use error::WireError;
pub use hello::{CloseReason, Hello, Identity, VersionRange, Welcome};

use cairn_types::io::{ClientReply, ClientRequest};
use cairn_types::peer::PeerMessage;

/// First bytes of every frame: "CRNF".
pub const MAGIC: u32 = u32::from_le_bytes(*b"CRNF");
/// The protocol versions this build speaks.
pub const PROTOCOL: VersionRange = VersionRange { min: 1, max: 1 };
/// What frames of the handshake carry as their version, for ever.
pub const HANDSHAKE_VERSION: u16 = 0;
/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 32;
/// The longest frame before the handshake is done.
pub const MAX_HANDSHAKE_FRAME: usize = 4096;
/// The most bytes of operations' fields in a frame: the beginning of a recovery carries whole dirty maps.
pub const MAX_FIELDS: usize = 16 << 20;
/// The most data in a frame.
pub const MAX_FRAME_PAYLOAD: usize = (4 << 20) + (64 << 10);
/// The most operations in a frame.
pub const MAX_OPERATIONS: usize = 1024;

/// One operation of the data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A client asks the primary of a PG.
    Request(ClientRequest),
    /// The primary answers.
    Reply(ClientReply),
    /// OSDs among themselves.
    Peer(PeerMessage),
}

impl From<ClientRequest> for Message {
    fn from(request: ClientRequest) -> Self {
        Self::Request(request)
    }
}

impl From<ClientReply> for Message {
    fn from(reply: ClientReply) -> Self {
        Self::Reply(reply)
    }
}

impl From<PeerMessage> for Message {
    fn from(message: PeerMessage) -> Self {
        Self::Peer(message)
    }
}
