//! Requests and replies, after the negotiation.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::number::{self, chunk, command, flag};
use crate::session::{Export, Violation, take};
use crate::{Errno, PREFERRED_BLOCK};

/// The most data in one request or reply, bytes; clients are told.
pub const MAX_DATA: u32 = 32 << 20;

/// Bytes of a request's header.
const HEADER: usize = 28;

/// What is needed to answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    cookie: u64,
    /// Offset and length of a read.
    read: Option<(u64, u32)>,
}

/// A request whose form and range are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// For the answer.
    pub ticket: Ticket,
    /// What to do.
    pub command: Command,
}

/// What clients ask. Where it says `durable`, the answer must not come before the change is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Answer with these bytes.
    Read {
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA`].
        len: u32,
    },
    /// Replace these bytes.
    Write {
        /// First byte.
        offset: u64,
        /// At most [`MAX_DATA`].
        data: Bytes,
        /// See above.
        durable: bool,
    },
    /// Everything that was answered before is durable.
    Flush,
    /// The range is not needed any more.
    Trim {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// See above.
        durable: bool,
    },
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
        /// Its space may be given back.
        may_unmap: bool,
        /// Refuse with [`Errno::NotSupported`] unless it costs less than writing zeros.
        only_if_fast: bool,
        /// See above.
        durable: bool,
    },
    /// The range will be read soon.
    Cache {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
}

/// What came of the bytes at hand.
#[derive(Debug)]
pub(crate) enum Transmitted {
    /// More are needed.
    Hungry,
    /// Execute this.
    Request(Request),
    /// Answer with this error.
    Refuse(Ticket, Errno),
    /// The client is done.
    Disconnect,
}

/// The state between requests.
#[derive(Debug)]
pub(crate) enum Transmission {
    Idle,
    /// The data of a write is on its way.
    AwaitData(Header),
    /// The data of a refused write is on its way, and is not kept.
    Discard {
        left: u32,
        ticket: Ticket,
        errno: Errno,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Transmission {
    pub(crate) fn new() -> Self {
        Self::Idle
    }

    pub(crate) fn handle_input(&mut self, input: &mut BytesMut, export: &Export) -> Result<Transmitted, Violation> {
        loop {
            match self {
                Self::Idle => {
                    let Some(bytes) = take(input, HEADER) else { return Ok(Transmitted::Hungry) };
                    let header = Header::take(bytes)?;
                    if header.kind == command::DISCONNECT {
                        return Ok(Transmitted::Disconnect);
                    }
                    match header.check(export) {
                        Ok(()) if header.kind == command::WRITE => *self = Self::AwaitData(header),
                        Ok(()) => return Ok(Transmitted::Request(header.request(Bytes::new()))),
                        Err(errno) if header.kind == command::WRITE => {
                            *self = Self::Discard { left: header.len, ticket: header.ticket(), errno };
                        }
                        Err(errno) => return Ok(Transmitted::Refuse(header.ticket(), errno)),
                    }
                }
                Self::AwaitData(header) => {
                    let Some(data) = take(input, header.len as usize) else { return Ok(Transmitted::Hungry) };
                    let request = header.request(data);
                    *self = Self::Idle;
                    return Ok(Transmitted::Request(request));
                }
                Self::Discard { left, ticket, errno } => {
                    let now = input.len().min(*left as usize);
                    input.advance(now);
                    *left -= now as u32;
                    if *left > 0 {
                        input.reserve(PREFERRED_BLOCK as usize);
                        return Ok(Transmitted::Hungry);
                    }
                    let refused = Transmitted::Refuse(*ticket, *errno);
                    *self = Self::Idle;
                    return Ok(refused);
                }
            }
        }
    }
}

impl Header {
    fn take(mut bytes: Bytes) -> Result<Self, Violation> {
        let magic = bytes.get_u32();
        if magic != number::REQUEST {
            return Err(Violation::Magic { what: "a request", found: u64::from(magic) });
        }
        Ok(Self {
            flags: bytes.get_u16(),
            kind: bytes.get_u16(),
            cookie: bytes.get_u64(),
            offset: bytes.get_u64(),
            len: bytes.get_u32(),
        })
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    fn ticket(&self) -> Ticket {
        let read = (self.kind == command::READ).then_some((self.offset, self.len));
        Ticket { cookie: self.cookie, read }
    }

    /// Whether it may be executed at all.
    fn check(&self, export: &Export) -> Result<(), Errno> {
        let allowed = match self.kind {
            command::READ => flag::DONT_FRAGMENT | flag::FUA,
            command::WRITE | command::TRIM => flag::FUA,
            command::WRITE_ZEROES => flag::FUA | flag::NO_HOLE | flag::FAST_ZERO,
            command::FLUSH | command::CACHE => 0,
            _ => return Err(Errno::Invalid),
        };
        let changes = matches!(self.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && export.read_only {
            return Err(Errno::NotPermitted);
        }
        if self.flags & !allowed != 0 || (self.kind == command::FLUSH && (self.offset, self.len) != (0, 0)) {
            return Err(Errno::Invalid);
        }
        if matches!(self.kind, command::READ | command::WRITE) && self.len > MAX_DATA {
            return Err(Errno::Overflow);
        }
        let inside = self.offset.checked_add(u64::from(self.len)).is_some_and(|end| end <= export.size);
        match self.kind {
            command::WRITE | command::WRITE_ZEROES if !inside => Err(Errno::NoSpace),
            _ if !inside => Err(Errno::Invalid),
            _ => Ok(()),
        }
    }

    fn request(&self, data: Bytes) -> Request {
        let (offset, len, durable) = (self.offset, self.len, self.has(flag::FUA));
        let command = match self.kind {
            command::READ => Command::Read { offset, len },
            command::WRITE => Command::Write { offset, data, durable },
            command::TRIM => Command::Trim { offset, len, durable },
            command::CACHE => Command::Cache { offset, len },
            command::WRITE_ZEROES => Command::WriteZeroes {
                offset,
                len,
                may_unmap: !self.has(flag::NO_HOLE),
                only_if_fast: self.has(flag::FAST_ZERO),
                durable,
            },
            // `check` lets nothing else pass.
            _ => Command::Flush,
        };
        Request { ticket: self.ticket(), command }
    }
}

/// The bytes of an answer: send the head, then the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Header and, for an error, its text.
    pub head: Bytes,
    /// What was read; shared, not copied.
    pub data: Bytes,
}

impl Reply {
    pub(crate) fn new(ticket: Ticket, result: Result<Bytes, Errno>, structured: bool) -> Self {
        if let (Ok(data), Some((_, len))) = (&result, ticket.read) {
            assert_eq!(data.len(), len as usize, "a read is answered with as much as was asked for");
        }
        match (ticket.read, structured) {
            (Some((offset, _)), true) => Self::chunk(ticket.cookie, offset, result),
            (Some(_), false) | (None, _) => Self::simple(ticket.cookie, result),
        }
    }

    fn simple(cookie: u64, result: Result<Bytes, Errno>) -> Self {
        let mut head = BytesMut::with_capacity(16);
        head.put_u32(number::SIMPLE_REPLY);
        head.put_u32(result.as_ref().err().map_or(0, |errno| errno.number()));
        head.put_u64(cookie);
        Self { head: head.freeze(), data: result.unwrap_or_default() }
    }

    /// A read has one chunk, whole or failed: there is nothing in between.
    fn chunk(cookie: u64, offset: u64, result: Result<Bytes, Errno>) -> Self {
        let mut head = BytesMut::with_capacity(64);
        let mut put_header = |kind, len: usize| {
            head.put_u32(number::CHUNK);
            head.put_u16(chunk::DONE);
            head.put_u16(kind);
            head.put_u64(cookie);
            head.put_u32(len as u32);
        };
        match result {
            Ok(data) if data.is_empty() => {
                put_header(chunk::NONE, 0);
                Self { head: head.freeze(), data }
            }
            Ok(data) => {
                put_header(chunk::OFFSET_DATA, 8 + data.len());
                head.put_u64(offset);
                Self { head: head.freeze(), data }
            }
            Err(errno) => {
                let text = errno.to_string();
                put_header(chunk::ERROR, 6 + text.len());
                head.put_u32(errno.number());
                head.put_u16(text.len() as u16);
                head.put_slice(text.as_bytes());
                Self { head: head.freeze(), data: Bytes::new() }
            }
        }
    }
}
