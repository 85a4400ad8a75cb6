//! The negotiation: the client asks for this and that, and in the end to begin.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::number::{self, answer, info, option};
use crate::session::{Export, Violation, take};
use crate::{MAX_DATA, PREFERRED_BLOCK};

/// Options longer than this are answered with "too big" and skipped.
const MAX_OPTION: usize = 8 << 10;
/// Options longer than this are no options.
const MAX_SKIPPED: usize = 1 << 20;

/// What came of the bytes at hand.
#[derive(Debug)]
pub(crate) enum Haggled {
    /// More are needed.
    Hungry,
    /// Send this and go on.
    Answer(Bytes),
    /// Send this, and transmission begins.
    Begin(Bytes),
    /// Send this and hang up.
    Abort(Bytes),
}

/// The state between options.
#[derive(Debug)]
pub(crate) struct Haggling {
    no_zeroes: bool,
    header: Option<Header>,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    option: u32,
    len: usize,
    skipped: usize,
}

impl Haggling {
    pub(crate) fn new(no_zeroes: bool) -> Self {
        Self { no_zeroes, header: None }
    }

    pub(crate) fn handle_input(
        &mut self,
        input: &mut BytesMut,
        export: &Export,
        structured: &mut bool,
    ) -> Result<Haggled, Violation> {
        let header = match self.header {
            Some(header) => header,
            None => {
                let Some(bytes) = take(input, 16) else { return Ok(Haggled::Hungry) };
                Header::take(bytes)?
            }
        };
        self.header = Some(header);
        if header.len > MAX_OPTION {
            return Ok(self.skip(header, input));
        }
        let Some(data) = take(input, header.len) else { return Ok(Haggled::Hungry) };
        self.header = None;
        self.answer(header.option, &data, export, structured)
    }

    fn skip(&mut self, mut header: Header, input: &mut BytesMut) -> Haggled {
        let now = input.len().min(header.len - header.skipped);
        input.advance(now);
        header.skipped += now;
        if header.skipped < header.len {
            input.reserve(PREFERRED_BLOCK as usize);
            self.header = Some(header);
            return Haggled::Hungry;
        }
        self.header = None;
        Haggled::Answer(refusal(header.option, answer::TOO_BIG, "the option is too long"))
    }

    fn answer(&self, option: u32, data: &Bytes, export: &Export, structured: &mut bool) -> Result<Haggled, Violation> {
        let refuse = |kind, why| Ok(Haggled::Answer(refusal(option, kind, why)));
        match option {
            option::EXPORT_NAME => {
                let name = String::from_utf8_lossy(data).into_owned();
                if !export.answers_to(data) {
                    return Err(Violation::NoSuchExport { name });
                }
                Ok(Haggled::Begin(self.old_fashioned(export, *structured)))
            }
            option::ABORT => Ok(Haggled::Abort(ack(option))),
            option::LIST if !data.is_empty() => refuse(answer::INVALID, "a list takes no arguments"),
            option::LIST => Ok(Haggled::Answer(list(export))),
            option::INFO | option::GO => match Query::take(data) {
                None => refuse(answer::INVALID, "the query is malformed"),
                Some(query) if !export.answers_to(&query.name) => refuse(answer::UNKNOWN, "no such export"),
                Some(query) => {
                    let bytes = describe(option, &query, export, *structured);
                    Ok(if option == option::GO { Haggled::Begin(bytes) } else { Haggled::Answer(bytes) })
                }
            },
            option::STRUCTURED_REPLY if !data.is_empty() => {
                refuse(answer::INVALID, "structured replies take no arguments")
            }
            option::STRUCTURED_REPLY => {
                *structured = true;
                Ok(Haggled::Answer(ack(option)))
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT if !*structured => {
                refuse(answer::INVALID, "negotiate structured replies first")
            }
            // There are no contexts here: of none that are asked for, none is selected.
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => match context_export(data) {
                None => refuse(answer::INVALID, "the query is malformed"),
                Some(name) if !export.answers_to(&name) => refuse(answer::UNKNOWN, "no such export"),
                Some(_) => Ok(Haggled::Answer(ack(option))),
            },
            _ => refuse(answer::UNSUPPORTED, "this option is not supported"),
        }
    }

    /// The answer to EXPORT_NAME, from before there were answers.
    fn old_fashioned(&self, export: &Export, structured: bool) -> Bytes {
        let mut out = BytesMut::with_capacity(134);
        out.put_u64(export.size);
        out.put_u16(export.abilities(structured));
        if !self.no_zeroes {
            out.put_bytes(0, 124);
        }
        out.freeze()
    }
}

impl Header {
    fn take(mut bytes: Bytes) -> Result<Self, Violation> {
        let magic = bytes.get_u64();
        if magic != number::OPTION {
            return Err(Violation::Magic { what: "an option", found: magic });
        }
        let (option, len) = (bytes.get_u32(), bytes.get_u32());
        if len as usize > MAX_SKIPPED {
            return Err(Violation::TooLong { len });
        }
        Ok(Self { option, len: len as usize, skipped: 0 })
    }
}

impl Export {
    /// The empty name is the default export.
    fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }
}

/// What INFO and GO ask.
struct Query {
    name: Bytes,
    wants_name: bool,
}

impl Query {
    fn take(data: &Bytes) -> Option<Self> {
        let mut rest = data.clone();
        let name = take_string(&mut rest)?;
        let count = rest.try_get_u16().ok()?;
        if rest.len() != usize::from(count) * 2 {
            return None;
        }
        let wants_name = rest.chunks(2).any(|kind| kind == info::NAME.to_be_bytes());
        Some(Self { name, wants_name })
    }
}

fn take_string(rest: &mut Bytes) -> Option<Bytes> {
    let len = rest.try_get_u32().ok()? as usize;
    (len <= rest.len()).then(|| rest.split_to(len))
}

/// The export that a query for contexts is about, if the query is well-formed.
fn context_export(data: &Bytes) -> Option<Bytes> {
    let mut rest = data.clone();
    let name = take_string(&mut rest)?;
    for _ in 0..rest.try_get_u32().ok()? {
        take_string(&mut rest)?;
    }
    rest.is_empty().then_some(name)
}

fn put_answer(out: &mut BytesMut, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(number::OPTION_REPLY);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

fn ack(option: u32) -> Bytes {
    let mut out = BytesMut::with_capacity(20);
    put_answer(&mut out, option, answer::ACK, &[]);
    out.freeze()
}

fn refusal(option: u32, kind: u32, why: &str) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    put_answer(&mut out, option, kind, why.as_bytes());
    out.freeze()
}

fn list(export: &Export) -> Bytes {
    let mut out = BytesMut::with_capacity(128);
    let mut server = BytesMut::with_capacity(64);
    server.put_u32(export.name.len() as u32);
    server.put_slice(export.name.as_bytes());
    put_answer(&mut out, option::LIST, answer::SERVER, &server);
    put_answer(&mut out, option::LIST, answer::ACK, &[]);
    out.freeze()
}

/// Size and abilities, block sizes, the name if it is asked for, and an acknowledgement.
fn describe(option: u32, query: &Query, export: &Export, structured: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(160);
    let mut piece = BytesMut::with_capacity(64);
    piece.put_u16(info::EXPORT);
    piece.put_u64(export.size);
    piece.put_u16(export.abilities(structured));
    put_answer(&mut out, option, answer::INFO, &piece);
    piece.clear();
    piece.put_u16(info::BLOCK_SIZE);
    piece.put_u32(1);
    piece.put_u32(PREFERRED_BLOCK);
    piece.put_u32(MAX_DATA);
    put_answer(&mut out, option, answer::INFO, &piece);
    if query.wants_name {
        piece.clear();
        piece.put_u16(info::NAME);
        piece.put_slice(export.name.as_bytes());
        put_answer(&mut out, option, answer::INFO, &piece);
    }
    put_answer(&mut out, option, answer::ACK, &[]);
    out.freeze()
}
