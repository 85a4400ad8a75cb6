//! Messages into frames. A builder collects operations until it is full or sent; the payload is never copied.

use bytes::{BufMut, Bytes, BytesMut};

use crate::hello::{CloseReason, Hello, Welcome};
use crate::{
    HANDSHAKE_VERSION, HEADER_LEN, MAGIC, MAX_FIELDS, MAX_FRAME_PAYLOAD, MAX_OPERATIONS, Message, client, peer,
};

pub(crate) const FRAME_HELLO: u8 = 1;
pub(crate) const FRAME_WELCOME: u8 = 2;
pub(crate) const FRAME_CLOSE: u8 = 3;
pub(crate) const FRAME_OPERATIONS: u8 = 4;

/// Bytes of an operation's fixed fields.
pub(crate) const OPERATION_HEAD: usize = 40;

/// What every operation says in the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Which operation.
    pub(crate) kind: u16,
    /// The PG configuration it was made for; 0 where there is none.
    pub(crate) c: u64,
    /// The attachment generation; 0 where there is none.
    pub(crate) g: u64,
    /// A request's sequence in its session; between OSDs the primary's activation.
    pub(crate) v: u64,
}

/// A frame ready to be sent: the head, then the payload's pieces, in order.
#[derive(Clone, Debug)]
pub struct EncodedFrame {
    /// Header and fields.
    pub head: Bytes,
    /// Shared with the messages, not copied.
    pub payload: Vec<Bytes>,
}

impl EncodedFrame {
    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.iter().map(Bytes::len).sum::<usize>()
    }

    /// A frame is never empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The message does not fit into this frame any more: finish it and begin another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the frame is full")]
pub struct FrameFull;

/// A frame of operations in the making.
#[derive(Debug)]
pub struct FrameBuilder {
    version: u16,
    shard: u16,
    count: u16,
    head: BytesMut,
    payload: Vec<Bytes>,
    payload_len: usize,
}

impl FrameBuilder {
    /// An empty frame of the version that the handshake chose, for one shard of the receiver.
    #[must_use]
    pub fn new(version: u16, shard: u16) -> Self {
        let mut head = BytesMut::with_capacity(512);
        head.resize(HEADER_LEN, 0);
        Self { version, shard, count: 0, head, payload: Vec::new(), payload_len: 0 }
    }

    /// Nothing has been added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes it will have on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload_len
    }

    /// Adds an operation.
    ///
    /// # Errors
    /// When it does not fit beside those already there; the frame is as it was before.
    ///
    /// # Panics
    /// When the message alone is larger than a frame, or its checksums do not fit its data: nobody may make such
    /// a message.
    pub fn push(&mut self, message: &Message) -> Result<(), FrameFull> {
        let start = self.head.len();
        let pieces = self.payload.len();
        self.head.resize(start + OPERATION_HEAD, 0);
        let operation = put(message, &mut self.head, &mut self.payload);
        let body_len = self.head.len() - start - OPERATION_HEAD;
        let payload_len: usize = self.payload[pieces..].iter().map(Bytes::len).sum();
        let fits = usize::from(self.count) < MAX_OPERATIONS
            && self.head.len() - HEADER_LEN <= MAX_FIELDS
            && self.payload_len + payload_len <= MAX_FRAME_PAYLOAD;
        if !fits {
            assert!(self.count > 0, "a message of {body_len} + {payload_len} bytes fits into no frame");
            self.head.truncate(start);
            self.payload.truncate(pieces);
            return Err(FrameFull);
        }
        let mut fixed = &mut self.head[start..start + OPERATION_HEAD];
        fixed.put_u16_le(operation.kind);
        fixed.put_u16_le(0);
        fixed.put_u32_le(body_len as u32);
        fixed.put_u32_le(payload_len as u32);
        fixed.put_u32_le(0);
        fixed.put_u64_le(operation.c);
        fixed.put_u64_le(operation.g);
        fixed.put_u64_le(operation.v);
        self.count += 1;
        self.payload_len += payload_len;
        Ok(())
    }

    /// The finished frame.
    #[must_use]
    pub fn finish(mut self) -> EncodedFrame {
        let header = Header {
            version: self.version,
            kind: FRAME_OPERATIONS,
            shard: self.shard,
            count: self.count,
            payload_len: self.payload_len,
        };
        header.write(&mut self.head);
        self.payload.retain(|piece| !piece.is_empty());
        EncodedFrame { head: self.head.freeze(), payload: self.payload }
    }
}

fn put(message: &Message, out: &mut BytesMut, payload: &mut Vec<Bytes>) -> Head {
    match message {
        Message::Request(request) => client::put_request(request, out, payload),
        Message::Reply(reply) => client::put_reply(reply, out, payload),
        Message::Peer(message) => peer::put_peer(message, out, payload),
    }
}

/// The fixed header of a frame, but for what its fields say.
#[derive(Clone, Copy, Debug)]
struct Header {
    version: u16,
    kind: u8,
    shard: u16,
    count: u16,
    payload_len: usize,
}

impl Header {
    /// Writes the header into the first bytes of `head`, whose rest are the fields.
    fn write(self, head: &mut BytesMut) {
        let (mut header, fields) = head.split_at_mut(HEADER_LEN);
        let fields_len = fields.len() as u32;
        let fields_crc = crc32c::crc32c(fields);
        header.put_u32_le(MAGIC);
        header.put_u16_le(self.version);
        header.put_u8(self.kind);
        header.put_u8(0);
        header.put_u16_le(self.shard);
        header.put_u16_le(self.count);
        header.put_u32_le(fields_len);
        header.put_u32_le(self.payload_len as u32);
        header.put_u32_le(fields_crc);
        header.put_u32_le(0);
        let crc = crc32c::crc32c(&head[..HEADER_LEN - 4]);
        head[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    }
}

fn handshake(kind: u8, put: impl FnOnce(&mut BytesMut)) -> EncodedFrame {
    let mut head = BytesMut::with_capacity(160);
    head.resize(HEADER_LEN, 0);
    put(&mut head);
    Header { version: HANDSHAKE_VERSION, kind, shard: 0, count: 0, payload_len: 0 }.write(&mut head);
    EncodedFrame { head: head.freeze(), payload: Vec::new() }
}

/// The first frame of a dialler.
#[must_use]
pub fn encode_hello(hello: &Hello) -> EncodedFrame {
    handshake(FRAME_HELLO, |out| hello.put(out))
}

/// The answer to a hello.
#[must_use]
pub fn encode_welcome(welcome: &Welcome) -> EncodedFrame {
    handshake(FRAME_WELCOME, |out| welcome.put(out))
}

/// The last frame of a connection.
#[must_use]
pub fn encode_close(reason: CloseReason) -> EncodedFrame {
    handshake(FRAME_CLOSE, |out| reason.put(out))
}
