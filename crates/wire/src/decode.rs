//! Bytes into frames, in whatever pieces they arrive.

use bytes::{Buf, Bytes, BytesMut};

use crate::encode::{FRAME_CLOSE, FRAME_HELLO, FRAME_OPERATIONS, FRAME_WELCOME, Head, OPERATION_HEAD};
use crate::{
    CloseReason, HANDSHAKE_VERSION, HEADER_LEN, Hello, MAGIC, MAX_FIELDS, MAX_FRAME_PAYLOAD, MAX_HANDSHAKE_FRAME,
    MAX_OPERATIONS, Message, Welcome, WireError, aligned_buffer, client, peer, peer_take,
};

/// Fields are allocated ahead of their arrival up to this much.
const FIELDS_AHEAD: usize = 64 << 10;

/// One frame that arrived whole and unharmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The dialler says who it is.
    Hello(Hello),
    /// The dialled side agrees.
    Welcome(Welcome),
    /// The other side hangs up.
    Close(CloseReason),
    /// Operations, in the order in which they were added.
    Operations {
        /// The shard they are for.
        shard: u16,
        /// At least one.
        messages: Vec<Message>,
    },
}

/// Who compares payload with the checksums that stand in the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadCheck {
    /// The decoder: what it hands out is whole.
    AtDecode,
    /// Whoever receives the messages, because it must anyway.
    ByReceiver,
}

/// Turns a stream of bytes into frames. After an error it stays in error: the stream has lost its place.
///
/// Until [`Decoder::establish`] it takes only frames of the handshake, of at most 4 KiB.
#[derive(Debug)]
pub struct Decoder {
    version: Option<u16>,
    check: PayloadCheck,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Header { bytes: [u8; HEADER_LEN], have: usize },
    Fields { header: Header, bytes: BytesMut },
    Payload { header: Header, fields: Bytes, bytes: BytesMut },
    Failed(WireError),
}

impl Stage {
    const START: Self = Self::Header { bytes: [0; HEADER_LEN], have: 0 };
}

/// A header whose checksum and bounds hold.
#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    shard: u16,
    count: u16,
    fields_len: usize,
    payload_len: usize,
    fields_crc: u32,
}

impl Decoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub fn new(check: PayloadCheck) -> Self {
        Self { version: None, check, stage: Stage::START }
    }

    /// The handshake is done: frames of this version may come.
    pub fn establish(&mut self, version: u16) {
        self.version = Some(version);
    }

    /// Takes bytes from the front of `input` until one frame is complete. `None`: all were taken, and more are
    /// needed.
    ///
    /// # Errors
    /// When the bytes are no valid frame; from then on always the same.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, WireError> {
        loop {
            match self.step(input) {
                Ok(Step::Frame(frame)) => return Ok(Some(frame)),
                Ok(Step::Further) => {}
                Ok(Step::Hungry) => return Ok(None),
                Err(error) => {
                    self.stage = Stage::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// How much of a payload is still missing: worth receiving straight into [`Decoder::payload_space`].
    #[must_use]
    pub fn payload_missing(&self) -> usize {
        match &self.stage {
            Stage::Payload { header, bytes, .. } => header.payload_len - bytes.len(),
            Stage::Header { .. } | Stage::Fields { .. } | Stage::Failed(_) => 0,
        }
    }

    /// Lets `receive` put up to `limit` bytes of the missing payload where they will stay; it returns how many
    /// it put there. Call [`Decoder::decode`] afterwards, with no input if there is none.
    ///
    /// # Errors
    /// What `receive` returns.
    pub fn payload_space<E>(
        &mut self,
        limit: usize,
        receive: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let space = self.payload_missing().min(limit);
        let Stage::Payload { bytes, .. } = &mut self.stage else {
            return receive(&mut []);
        };
        let have = bytes.len();
        bytes.resize(have + space, 0);
        let received = receive(&mut bytes[have..]);
        bytes.truncate(have + received.as_ref().map_or(0, |count| *count.min(&space)));
        received
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Step, WireError> {
        match std::mem::replace(&mut self.stage, Stage::START) {
            Stage::Header { mut bytes, mut have } => {
                let taken = input.len().min(HEADER_LEN - have);
                bytes[have..have + taken].copy_from_slice(&input[..taken]);
                input.advance(taken);
                have += taken;
                if have < HEADER_LEN {
                    self.stage = Stage::Header { bytes, have };
                    return Ok(Step::Hungry);
                }
                let header = Header::take(&bytes, self.version)?;
                self.stage =
                    Stage::Fields { header, bytes: BytesMut::with_capacity(header.fields_len.min(FIELDS_AHEAD)) };
                Ok(Step::Further)
            }
            Stage::Fields { header, mut bytes } => {
                fill(&mut bytes, header.fields_len, input);
                if bytes.len() < header.fields_len {
                    self.stage = Stage::Fields { header, bytes };
                    return Ok(Step::Hungry);
                }
                let found = crc32c::crc32c(&bytes);
                if found != header.fields_crc {
                    return Err(WireError::Corrupt { what: "frame fields", expected: header.fields_crc, found });
                }
                let payload = aligned_buffer(header.payload_len);
                self.stage = Stage::Payload { header, fields: bytes.freeze(), bytes: payload };
                Ok(Step::Further)
            }
            Stage::Payload { header, fields, mut bytes } => {
                fill(&mut bytes, header.payload_len, input);
                if bytes.len() < header.payload_len {
                    self.stage = Stage::Payload { header, fields, bytes };
                    return Ok(Step::Hungry);
                }
                Ok(Step::Frame(header.frame(&fields, bytes.freeze(), self.check)?))
            }
            Stage::Failed(error) => Err(error),
        }
    }
}

enum Step {
    Frame(Frame),
    Further,
    Hungry,
}

fn fill(bytes: &mut BytesMut, len: usize, input: &mut &[u8]) {
    let taken = input.len().min(len - bytes.len());
    bytes.extend_from_slice(&input[..taken]);
    input.advance(taken);
}

impl Header {
    fn take(bytes: &[u8; HEADER_LEN], agreed: Option<u16>) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let magic = rest.get_u32_le();
        if magic != MAGIC {
            return Err(WireError::NotAFrame { found: magic });
        }
        let (version, kind, flags) = (rest.get_u16_le(), rest.get_u8(), rest.get_u8());
        let (shard, count) = (rest.get_u16_le(), rest.get_u16_le());
        let (fields_len, payload_len) = (rest.get_u32_le() as usize, rest.get_u32_le() as usize);
        let (fields_crc, zero, expected) = (rest.get_u32_le(), rest.get_u32_le(), rest.get_u32_le());
        let found = crc32c::crc32c(&bytes[..HEADER_LEN - 4]);
        if found != expected {
            return Err(WireError::Corrupt { what: "frame header", expected, found });
        }
        let expected_version = match kind {
            FRAME_HELLO | FRAME_WELCOME | FRAME_CLOSE => HANDSHAKE_VERSION,
            FRAME_OPERATIONS => agreed.ok_or(WireError::OutOfPlace { what: "an operation before the handshake" })?,
            kind => return Err(WireError::UnknownFrame { kind }),
        };
        if version != expected_version {
            return Err(WireError::UnknownVersion { found: version, expected: expected_version });
        }
        if flags != 0 || zero != 0 {
            return Err(WireError::Malformed { what: "frame header" });
        }
        let header = Self { kind, shard, count, fields_len, payload_len, fields_crc };
        header.check_bounds(agreed.is_some())?;
        Ok(header)
    }

    fn check_bounds(&self, established: bool) -> Result<(), WireError> {
        let bound = |what, len, limit| {
            if len <= limit { Ok(()) } else { Err(WireError::TooLong { what, len, limit }) }
        };
        if self.kind != FRAME_OPERATIONS {
            bound("handshake frame", self.fields_len + HEADER_LEN, MAX_HANDSHAKE_FRAME)?;
            bound("handshake payload", self.payload_len, 0)?;
            if self.count != 0 || self.shard != 0 {
                return Err(WireError::Malformed { what: "handshake header" });
            }
            if established && self.kind != FRAME_CLOSE {
                return Err(WireError::OutOfPlace { what: "a second handshake" });
            }
            return Ok(());
        }
        bound("frame fields", self.fields_len, MAX_FIELDS)?;
        bound("frame payload", self.payload_len, MAX_FRAME_PAYLOAD)?;
        bound("operation count", usize::from(self.count), MAX_OPERATIONS)?;
        if self.count == 0 {
            return Err(WireError::Malformed { what: "frame without operations" });
        }
        Ok(())
    }

    fn frame(&self, fields: &Bytes, payload: Bytes, check: PayloadCheck) -> Result<Frame, WireError> {
        Ok(match self.kind {
            FRAME_HELLO => Frame::Hello(Hello::take(fields)?),
            FRAME_WELCOME => Frame::Welcome(Welcome::take(fields)?),
            FRAME_CLOSE => Frame::Close(CloseReason::take(fields)?),
            _ => Frame::Operations { shard: self.shard, messages: self.operations(fields, payload, check)? },
        })
    }

    fn operations(&self, fields: &[u8], mut payload: Bytes, check: PayloadCheck) -> Result<Vec<Message>, WireError> {
        const MALFORMED: WireError = WireError::Malformed { what: "operation" };
        let mut messages = Vec::with_capacity(usize::from(self.count));
        let mut rest = fields;
        for _ in 0..self.count {
            let (mut fixed, after) = rest.split_at_checked(OPERATION_HEAD).ok_or(MALFORMED)?;
            let (kind, flags) = (fixed.get_u16_le(), fixed.get_u16_le());
            let (body_len, payload_len) = (fixed.get_u32_le() as usize, fixed.get_u32_le() as usize);
            let zero = fixed.get_u32_le();
            let head = Head { kind, c: fixed.get_u64_le(), g: fixed.get_u64_le(), v: fixed.get_u64_le() };
            let (body, after) = after.split_at_checked(body_len).ok_or(MALFORMED)?;
            if flags != 0 || zero != 0 || payload_len > payload.len() {
                return Err(MALFORMED);
            }
            messages.push(operation(head, body, payload.split_to(payload_len), check)?);
            rest = after;
        }
        if rest.is_empty() && payload.is_empty() { Ok(messages) } else { Err(MALFORMED) }
    }
}

fn operation(head: Head, body: &[u8], payload: Bytes, check: PayloadCheck) -> Result<Message, WireError> {
    match head.kind {
        client::READ | client::WRITE | client::ZERO | client::STATUS => {
            client::take_request(head, body, payload, check).map(Message::Request)
        }
        client::REPLY_DONE | client::REPLY_DATA | client::REPLY_REFUSED | client::REPLY_STATUS => {
            client::take_reply(head, body, payload, check).map(Message::Reply)
        }
        peer::HEARTBEAT | peer::HEARTBEAT_REPLY | peer::FIRST_PG..=peer::LAST_PG => {
            peer_take::take_peer(head, body, payload, check).map(Message::Peer)
        }
        kind => Err(WireError::UnknownOperation { kind }),
    }
}
