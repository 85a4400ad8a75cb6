//! One connection: what came, what it means, what comes next.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::option::{Haggled, Haggling};
use crate::transmission::{Reply, Request, Ticket, Transmission, Transmitted};
use crate::{PREFERRED_BLOCK, number};

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Clients ask for it by this name, or by none.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Export {
    /// What it can do, as clients are told. There is no cache, so a flush on one connection covers all.
    pub(crate) fn abilities(&self, structured: bool) -> u16 {
        use number::can;
        let mut flags = can::HAS_FLAGS | can::FLUSH | can::FUA | can::MULTI_CONN | can::CACHE;
        flags |= if self.read_only { can::READ_ONLY } else { can::TRIM | can::WRITE_ZEROES | can::FAST_ZERO };
        if structured {
            flags |= can::DONT_FRAGMENT;
        }
        flags
    }
}

/// What received bytes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Send this.
    Send(Bytes),
    /// Execute this and answer it with [`Session::reply`].
    Request(Request),
    /// The client is done: answer what is in flight and hang up.
    End,
}

/// Bytes that no client of this protocol sends. The connection is of no further use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A magic number is wrong.
    #[error("{what} begins with {found:#x}")]
    Magic {
        /// Option or request.
        what: &'static str,
        /// What stood there.
        found: u64,
    },
    /// The client does not negotiate in the fixed newstyle.
    #[error("the client does not speak the fixed newstyle protocol (flags {flags:#x})")]
    OldClient {
        /// What it sent.
        flags: u32,
    },
    /// A name that this server does not export, asked for in a way that has no answer.
    #[error("there is no export `{name}` here")]
    NoSuchExport {
        /// As asked.
        name: String,
    },
    /// A declared length above every bound.
    #[error("an option of {len} bytes")]
    TooLong {
        /// As declared.
        len: u32,
    },
}

/// One connection of one client to one export.
#[derive(Debug)]
pub struct Session {
    export: Export,
    structured: bool,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    AwaitFlags,
    Haggling(Haggling),
    Transmission(Transmission),
    Ended,
}

impl Session {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(export: Export) -> Self {
        Self { export, structured: false, phase: Phase::Greeting }
    }

    /// Whether the negotiation is done.
    #[must_use]
    pub fn is_transmitting(&self) -> bool {
        matches!(self.phase, Phase::Transmission(_))
    }

    /// Takes what it can from the front of `input` and says what comes of it; `None` when more bytes are needed, for
    /// which `input` then has room. Call it once before anything was received: the server speaks first.
    ///
    /// # Errors
    /// When the client breaks the protocol: hang up.
    pub fn handle_input(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            match &mut self.phase {
                Phase::Greeting => {
                    self.phase = Phase::AwaitFlags;
                    return Ok(Some(Event::Send(greeting())));
                }
                Phase::AwaitFlags => {
                    let Some(flags) = take(input, 4).map(|mut bytes| bytes.get_u32()) else { return Ok(None) };
                    self.phase = Phase::Haggling(Haggling::new(client_flags(flags)?));
                }
                Phase::Haggling(haggling) => {
                    let haggled = haggling.handle_input(input, &self.export, &mut self.structured)?;
                    match haggled {
                        Haggled::Hungry => return Ok(None),
                        Haggled::Answer(bytes) => return Ok(Some(Event::Send(bytes))),
                        Haggled::Begin(bytes) => {
                            self.phase = Phase::Transmission(Transmission::new());
                            return Ok(Some(Event::Send(bytes)));
                        }
                        Haggled::Abort(bytes) => {
                            self.phase = Phase::Ended;
                            return Ok(Some(Event::Send(bytes)));
                        }
                    }
                }
                Phase::Transmission(transmission) => match transmission.handle_input(input, &self.export)? {
                    Transmitted::Hungry => return Ok(None),
                    Transmitted::Request(request) => return Ok(Some(Event::Request(request))),
                    Transmitted::Refuse(ticket, errno) => {
                        let reply = self.reply(ticket, Err(errno));
                        return Ok(Some(Event::Send(reply.head)));
                    }
                    Transmitted::Disconnect => self.phase = Phase::Ended,
                },
                Phase::Ended => {
                    input.clear();
                    return Ok(Some(Event::End));
                }
            }
        }
    }

    /// The bytes that answer a request: with data if it was a read that succeeded.
    ///
    /// # Panics
    /// When the data is not as long as what was to be read.
    #[must_use]
    pub fn reply(&self, ticket: Ticket, result: Result<Bytes, crate::Errno>) -> Reply {
        Reply::new(ticket, result, self.structured)
    }
}

fn greeting() -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u64(number::GREETING);
    out.put_u64(number::OPTION);
    out.put_u16(number::greeting::FIXED_NEWSTYLE | number::greeting::NO_ZEROES);
    out.freeze()
}

/// Whether the client spares itself the zeroes behind an old-fashioned answer.
fn client_flags(flags: u32) -> Result<bool, Violation> {
    let (fixed, no_zeroes) = (u32::from(number::greeting::FIXED_NEWSTYLE), u32::from(number::greeting::NO_ZEROES));
    if flags & fixed == 0 || flags & !(fixed | no_zeroes) != 0 {
        return Err(Violation::OldClient { flags });
    }
    Ok(flags & no_zeroes != 0)
}

/// The first `len` bytes, once they are there; until then there is room for them.
pub(crate) fn take(input: &mut BytesMut, len: usize) -> Option<Bytes> {
    if input.len() < len {
        input.reserve((len - input.len()).max(PREFERRED_BLOCK as usize));
        return None;
    }
    Some(input.split_to(len).freeze())
}
