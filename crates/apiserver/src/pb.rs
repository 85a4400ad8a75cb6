//! Request bodies in Kubernetes' protobuf encoding, turned into the JSON that the rest of the server knows.
//!
//! One walk over the schema table serves every kind. Only decoding: every client here accepts JSON answers. Input
//! comes off the wire, so depth and counts are bounded and every length is checked.

use crate::schema::{Field, Kind, Message, Shape, message};
use crate::time;
use base64::Engine;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
const MAX_DEPTH: usize = 64;
/// More fields than this in one body are refused: a JSON object per byte of input would cost far more than the input.
const MAX_VALUES: usize = 400_000;

/// What an encoded body says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope<'a> {
    /// `v1`, `storage.k8s.io/v1`.
    pub(crate) api_version: String,
    /// `Pod`.
    pub(crate) kind: String,
    /// The message itself.
    pub(crate) raw: &'a [u8],
}

/// Why a body cannot be read.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PbError {
    /// Not the encoding it claims to be.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// Cut short, or with impossible lengths or types.
    #[error("malformed protobuf message at byte {at} of {within}: {what}")]
    Malformed {
        /// Offset in the innermost message.
        at: usize,
        /// The message.
        within: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// Nested or repeated beyond the limits.
    #[error("protobuf message is nested or repeated beyond the limit")]
    TooLarge,
    /// A kind without a field table.
    #[error("no protobuf description for kind {0:?}, send application/json instead")]
    UnknownKind(String),
}

/// Takes the envelope off.
pub(crate) fn open(body: &[u8]) -> Result<Envelope<'_>, PbError> {
    let mut reader = Reader::new(body.strip_prefix(MAGIC).ok_or(PbError::Magic)?, "runtime.Unknown");
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    while let Some((number, wire)) = reader.tag()? {
        match (number, wire) {
            (1, 2) => {
                let mut inner = Reader::new(reader.chunk()?, "runtime.TypeMeta");
                while let Some((number, wire)) = inner.tag()? {
                    match (number, wire) {
                        (1, 2) => envelope.api_version = inner.text()?,
                        (2, 2) => envelope.kind = inner.text()?,
                        _ => inner.skip(wire)?,
                    }
                }
            }
            (2, 2) => envelope.raw = reader.chunk()?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(envelope)
}

/// The body as JSON, `apiVersion` and `kind` included. `DeleteOptions` and the like are found by kind alone.
pub(crate) fn to_json(body: &[u8]) -> Result<Value, PbError> {
    let envelope = open(body)?;
    let message = message(&envelope.kind).ok_or_else(|| PbError::UnknownKind(envelope.kind.clone()))?;
    let mut object = Map::new();
    object.insert("apiVersion".to_owned(), json!(envelope.api_version));
    object.insert("kind".to_owned(), json!(envelope.kind));
    Transcoder { left: MAX_VALUES }.message(message, envelope.raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

struct Transcoder {
    left: usize,
}

impl Transcoder {
    fn message(
        &mut self,
        message: &Message,
        raw: &[u8],
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), PbError> {
        if depth > MAX_DEPTH {
            return Err(PbError::TooLarge);
        }
        let mut reader = Reader::new(raw, message.name);
        while let Some((number, wire)) = reader.tag()? {
            self.left = self.left.checked_sub(1).ok_or(PbError::TooLarge)?;
            match message.numbered(number) {
                None => reader.skip(wire)?,
                Some(field) if field.inline => {
                    let inner = field.message().expect("embedded fields are messages");
                    self.message(inner, reader.chunk_of(wire)?, into, depth + 1)?;
                }
                Some(field) => self.field(field, &mut reader, wire, into, depth)?,
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &Field,
        reader: &mut Reader<'_>,
        wire: u8,
        into: &mut Map<String, Value>,
        depth: usize,
    ) -> Result<(), PbError> {
        match field.shape {
            Shape::One => {
                if let Some(value) = self.single(field.kind(), reader, wire, depth)?
                    && (field.pointer || field.always || !is_zero(&value))
                {
                    into.insert(field.name.to_owned(), value);
                }
            }
            Shape::List => {
                let list = into
                    .entry(field.name)
                    .or_insert_with(|| json!([]))
                    .as_array_mut()
                    .expect("only lists are put here");
                if wire == 2 && matches!(field.kind(), Kind::Int32 | Kind::Int64 | Kind::Bool) {
                    let mut packed = Reader::new(reader.chunk()?, reader.within);
                    while !packed.rest.is_empty() {
                        self.left = self.left.checked_sub(1).ok_or(PbError::TooLarge)?;
                        list.extend(self.single(field.kind(), &mut packed, 0, depth)?);
                    }
                } else {
                    list.extend(self.single(field.kind(), reader, wire, depth)?);
                }
            }
            Shape::Map => {
                let (key, value) = self.entry(field.kind(), reader.chunk_of(wire)?, depth)?;
                let map = into
                    .entry(field.name)
                    .or_insert_with(|| json!({}))
                    .as_object_mut()
                    .expect("only maps are put here");
                map.insert(key, value);
            }
        }
        Ok(())
    }

    fn entry(&mut self, kind: Kind, raw: &[u8], depth: usize) -> Result<(String, Value), PbError> {
        let mut reader = Reader::new(raw, "map entry");
        let (mut key, mut value) = (String::new(), None);
        while let Some((number, wire)) = reader.tag()? {
            match number {
                1 => key = reader.text_of(wire)?,
                2 => value = self.single(kind, &mut reader, wire, depth)?,
                _ => reader.skip(wire)?,
            }
        }
        let absent = match kind {
            Kind::Message(_) => json!({}),
            Kind::Quantity => json!("0"),
            _ => json!(""),
        };
        Ok((key, value.unwrap_or(absent)))
    }

    /// One value; `None` where the encoding says "absent".
    fn single(
        &mut self,
        kind: Kind,
        reader: &mut Reader<'_>,
        wire: u8,
        depth: usize,
    ) -> Result<Option<Value>, PbError> {
        Ok(Some(match kind {
            Kind::String => json!(reader.text_of(wire)?),
            Kind::Bool => json!(reader.varint_of(wire)? != 0),
            Kind::Int32 => json!(reader.varint_of(wire)? as i64 as i32),
            Kind::Int64 => json!(reader.varint_of(wire)? as i64),
            Kind::Bytes => json!(base64::engine::general_purpose::STANDARD.encode(reader.chunk_of(wire)?)),
            Kind::Time => return instant(reader.chunk_of(wire)?, time::seconds),
            Kind::MicroTime => return instant(reader.chunk_of(wire)?, time::micros),
            Kind::Quantity => {
                let text = first_text(reader.chunk_of(wire)?)?;
                json!(if text.is_empty() { "0".to_owned() } else { text })
            }
            Kind::IntOrString => int_or_string(reader.chunk_of(wire)?)?,
            Kind::Json => {
                let at = reader.at();
                let text = first_text(reader.chunk_of(wire)?)?;
                if text.is_empty() {
                    return Ok(None);
                }
                serde_json::from_str(&text).map_err(|_| PbError::Malformed {
                    at,
                    within: reader.within,
                    what: "embedded JSON",
                })?
            }
            Kind::Message(inner) => {
                let mut object = Map::new();
                self.message(inner, reader.chunk_of(wire)?, &mut object, depth + 1)?;
                Value::Object(object)
            }
        }))
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn instant(raw: &[u8], print: fn(jiff::Timestamp) -> String) -> Result<Option<Value>, PbError> {
    let mut reader = Reader::new(raw, "Time");
    let (mut seconds, mut nanos, mut seen) = (0i64, 0i32, false);
    while let Some((number, wire)) = reader.tag()? {
        seen = true;
        match number {
            1 => seconds = reader.varint_of(wire)? as i64,
            2 => nanos = reader.varint_of(wire)? as i32,
            _ => reader.skip(wire)?,
        }
    }
    let malformed = |_| PbError::Malformed { at: 0, within: "Time", what: "out of range" };
    if !seen {
        return Ok(None);
    }
    Ok(Some(json!(print(jiff::Timestamp::new(seconds, nanos).map_err(malformed)?))))
}

fn int_or_string(raw: &[u8]) -> Result<Value, PbError> {
    let mut reader = Reader::new(raw, "IntOrString");
    let (mut is_text, mut number, mut text) = (false, 0i32, String::new());
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => is_text = reader.varint_of(wire)? != 0,
            2 => number = reader.varint_of(wire)? as i32,
            3 => text = reader.text_of(wire)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

fn first_text(raw: &[u8]) -> Result<String, PbError> {
    let mut reader = Reader::new(raw, "value");
    let mut text = String::new();
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => text = reader.text_of(wire)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(text)
}

struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
    within: &'static str,
}

impl<'a> Reader<'a> {
    fn new(raw: &'a [u8], within: &'static str) -> Reader<'a> {
        Reader { rest: raw, length: raw.len(), within }
    }

    fn at(&self) -> usize {
        self.length - self.rest.len()
    }

    fn malformed<T>(&self, what: &'static str) -> Result<T, PbError> {
        Err(PbError::Malformed { at: self.at(), within: self.within, what })
    }

    fn varint(&mut self) -> Result<u64, PbError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let Some((&byte, rest)) = self.rest.split_first() else { return self.malformed("cut short") };
            self.rest = rest;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.malformed("a number of more than ten bytes")
    }

    fn tag(&mut self) -> Result<Option<(u32, u8)>, PbError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        match u32::try_from(tag >> 3) {
            Ok(number) if number != 0 => Ok(Some((number, (tag & 7) as u8))),
            _ => self.malformed("an impossible field number"),
        }
    }

    fn chunk(&mut self) -> Result<&'a [u8], PbError> {
        let length = self.varint()?;
        match usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length)) {
            Some((chunk, rest)) => {
                self.rest = rest;
                Ok(chunk)
            }
            None => self.malformed("a length beyond the end"),
        }
    }

    fn chunk_of(&mut self, wire: u8) -> Result<&'a [u8], PbError> {
        if wire == 2 { self.chunk() } else { self.malformed("a number where a message is expected") }
    }

    fn varint_of(&mut self, wire: u8) -> Result<u64, PbError> {
        if wire == 0 { self.varint() } else { self.malformed("something else where a number is expected") }
    }

    fn text(&mut self) -> Result<String, PbError> {
        let chunk = self.chunk()?;
        match std::str::from_utf8(chunk) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => self.malformed("text that is not UTF-8"),
        }
    }

    fn text_of(&mut self, wire: u8) -> Result<String, PbError> {
        if wire == 2 { self.text() } else { self.malformed("a number where text is expected") }
    }

    fn skip(&mut self, wire: u8) -> Result<(), PbError> {
        let fixed = match wire {
            0 => return self.varint().map(drop),
            2 => return self.chunk().map(drop),
            1 => 8,
            5 => 4,
            _ => return self.malformed("an unknown wire type"),
        };
        match self.rest.split_at_checked(fixed) {
            Some((_, rest)) => {
                self.rest = rest;
                Ok(())
            }
            None => self.malformed("cut short"),
        }
    }
}

#[cfg(test)]
#[path = "pb_tests.rs"]
mod tests;
