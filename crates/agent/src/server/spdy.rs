//! SPDY/3.1 frames as far as a CRI streaming server speaks them: open streams, data both ways, half close.
//!
//! Bytes in, bytes out, no I/O. A container runtime's streaming server offers WebSockets too, but only in versions
//! that cannot half-close stdin, so `kubectl exec -i < file` would hang; SPDY is what gives end of file and exit codes.
//!
//! Header blocks are sent in stored (uncompressed) zlib blocks, which every inflater reads, and those of replies carry
//! nothing that is needed, so there is no compression here at all.

use bytes::{Buf as _, Bytes, BytesMut};

const VERSION: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
const HEADER: usize = 8;
/// Larger frames than this are not sent; a streaming server's own are at most 32 KiB.
pub(crate) const DATA_MAX: usize = 32 << 10;
/// What a frame may claim to be long; more is a broken peer.
const FRAME_MAX: usize = 1 << 20;

/// What the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Data {
        stream: u32,
        bytes: Bytes,
        last: bool,
    },
    /// The stream was refused or aborted.
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
}

/// A peer that does not speak SPDY/3.1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime's streaming server sent a frame that is not SPDY/3.1 ({0})")]
pub(crate) struct Corrupt(&'static str);

/// Writes what a client sends; streams are numbered 1, 3, 5 ..
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    opened: u32,
}

impl Encoder {
    /// A new stream with these headers (lower-case names); its number.
    pub(crate) fn open(&mut self, headers: &[(&str, &str)], out: &mut Vec<u8>) -> u32 {
        let id = self.opened * 2 + 1;
        let mut block = u32::to_be_bytes(u32::try_from(headers.len()).expect("a handful")).to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend(u32::to_be_bytes(u32::try_from(text.len()).expect("short")));
            block.extend(text.as_bytes());
        }
        let length = u16::try_from(block.len()).expect("a few short headers");
        let mut payload = Vec::with_capacity(block.len() + 32);
        payload.extend(id.to_be_bytes());
        // No associated stream, highest priority, no credential slot.
        payload.extend([0; 6]);
        if self.opened == 0 {
            // The zlib stream starts once per connection: deflate, 32 KiB window, no dictionary.
            payload.extend([0x78, 0x01]);
        }
        // One stored block, not the last.
        payload.push(0);
        payload.extend(length.to_le_bytes());
        payload.extend((!length).to_le_bytes());
        payload.extend(block);
        // An empty block is what makes an inflater give out what it has.
        payload.extend([0, 0, 0, 0xff, 0xff]);
        control(SYN_STREAM, &payload, out);
        self.opened += 1;
        id
    }

    /// Data; `last` closes our half of the stream.
    pub(crate) fn data(&self, stream: u32, bytes: &[u8], last: bool, out: &mut Vec<u8>) {
        let mut pieces = bytes.chunks(DATA_MAX).peekable();
        if pieces.peek().is_none() && last {
            data_frame(stream, &[], FLAG_FIN, out);
        }
        while let Some(piece) = pieces.next() {
            let flags = if last && pieces.peek().is_none() { FLAG_FIN } else { 0 };
            data_frame(stream, piece, flags, out);
        }
    }

    /// The answer to a ping.
    pub(crate) fn pong(&self, id: u32, out: &mut Vec<u8>) {
        control(PING, &id.to_be_bytes(), out);
    }
}

fn control(kind: u16, payload: &[u8], out: &mut Vec<u8>) {
    out.extend(VERSION.to_be_bytes());
    out.extend(kind.to_be_bytes());
    // No flags, 24 bits of length.
    out.extend(u32::try_from(payload.len()).expect("control frames are short").to_be_bytes());
    out.extend(payload);
}

fn data_frame(stream: u32, bytes: &[u8], flags: u8, out: &mut Vec<u8>) {
    out.extend(stream.to_be_bytes());
    let length = u32::try_from(bytes.len()).expect("at most DATA_MAX");
    out.extend((u32::from(flags) << 24 | length).to_be_bytes());
    out.extend(bytes);
}

/// Takes the next whole frame that matters off the front of what was received; None: read more.
pub(crate) fn decode(input: &mut BytesMut) -> Result<Option<Frame>, Corrupt> {
    loop {
        let Some(header) = input.first_chunk::<HEADER>() else { return Ok(None) };
        let word = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        let flags = header[4];
        let length = usize::from(header[5]) << 16 | usize::from(header[6]) << 8 | usize::from(header[7]);
        if length > FRAME_MAX {
            return Err(Corrupt("longer than a megabyte"));
        }
        if input.len() < HEADER + length {
            return Ok(None);
        }
        input.advance(HEADER);
        let payload = input.split_to(length).freeze();
        if word & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data { stream: word, bytes: payload, last: flags & FLAG_FIN != 0 }));
        }
        if word >> 16 != u32::from(VERSION) {
            return Err(Corrupt("of another version"));
        }
        let first = payload.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
        // The low half of the word is the type. Replies, settings and headers say nothing that is needed.
        match u16::try_from(word & 0xffff).expect("masked") {
            RST_STREAM => {
                return Ok(Some(Frame::Reset { stream: first.ok_or(Corrupt("a reset without a stream"))? }));
            }
            PING => return Ok(Some(Frame::Ping { id: first.ok_or(Corrupt("a ping without a number"))? })),
            GOAWAY => return Ok(Some(Frame::GoAway)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DATA_MAX, Encoder, Frame, decode};
    use bytes::{Bytes, BytesMut};

    #[test]
    fn streams_are_odd_and_their_headers_are_stored_blocks() {
        let mut encoder = Encoder::default();
        let mut out = Vec::new();
        assert_eq!(encoder.open(&[("streamtype", "error")], &mut out), 1);
        let zlib = &out[8 + 10..];
        assert_eq!(zlib[..3], [0x78, 0x01, 0x00]);
        let length = u16::from_le_bytes([zlib[3], zlib[4]]);
        assert_eq!(u16::from_le_bytes([zlib[5], zlib[6]]), !length);
        assert_eq!(zlib.len(), 7 + usize::from(length) + 5);
        out.clear();
        assert_eq!(encoder.open(&[("streamtype", "stdin")], &mut out), 3);
        assert_eq!(out[8 + 10], 0, "the zlib header comes once");
    }

    #[test]
    fn data_survives_any_cutting() {
        let encoder = Encoder::default();
        let payload: Vec<u8> = (0..DATA_MAX + 77).map(|i| (i % 251) as u8).collect();
        let mut wire = Vec::new();
        encoder.data(5, &payload, true, &mut wire);
        // A SYN_REPLY in between is skipped.
        wire.splice(0..0, [0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 5]);
        for cut in [1, 7, 8, 9, 4096] {
            let (mut input, mut got, mut ended) = (BytesMut::new(), Vec::new(), false);
            for piece in wire.chunks(cut) {
                input.extend_from_slice(piece);
                while let Some(frame) = decode(&mut input).expect("valid") {
                    let Frame::Data { stream: 5, bytes, last } = frame else { panic!("{frame:?}") };
                    got.extend_from_slice(&bytes);
                    ended = last;
                }
            }
            assert!(ended && got == payload, "cut {cut}");
        }
    }

    #[test]
    fn an_empty_last_frame_closes() {
        let mut wire = Vec::new();
        Encoder::default().data(3, &[], true, &mut wire);
        let frame = decode(&mut BytesMut::from(&wire[..])).expect("valid");
        assert_eq!(frame, Some(Frame::Data { stream: 3, bytes: Bytes::new(), last: true }));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(decode(&mut BytesMut::from(&b"\x80\x02\0\x01\0\0\0\0"[..])).is_err(), "SPDY/2");
        assert!(decode(&mut BytesMut::from(&b"\0\0\0\x01\0\xff\xff\xff"[..])).is_err(), "16 MiB");
        assert!(decode(&mut BytesMut::from(&b"\x80\x03\0\x06\0\0\0\0"[..])).is_err(), "an empty ping");
    }
}
