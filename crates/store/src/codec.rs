//! Little-endian fields in and out of byte strings. Decoding never panics: what is short or strange is a
//! [`Malformed`] with words, because every byte decoded here came off a disk.

use bytes::Bytes;

/// Bytes off the disk that do not mean what they should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes end in the middle of a field.
    #[error("the bytes end inside {0}")]
    Short(&'static str),
    /// A field has a value that has no meaning.
    #[error("{field} cannot be {value}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: u64,
    },
    /// Written by a newer Cairn, or not by Cairn.
    #[error("{what} has format version {found}; this program reads {known}")]
    Version {
        /// Which structure.
        what: &'static str,
        /// What it says.
        found: u64,
        /// What is read here.
        known: u64,
    },
    /// More bytes follow than belong there.
    #[error("{0} bytes follow the end")]
    Trailing(usize),
}

/// Appends fields to a byte string.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes.push(value);
        self
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u128(&mut self, value: u128) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn raw(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self
    }

    /// Length (u32), then the bytes.
    pub(crate) fn blob(&mut self, value: &[u8]) -> &mut Self {
        self.u32(u32::try_from(value.len()).expect("a blob is bounded far below 4 GiB")).raw(value)
    }
}

/// Takes fields off the front of a byte string.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn raw(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Short(what))?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        self.raw(N, what).map(|bytes| bytes.try_into().expect("`raw` gave exactly N bytes"))
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self, what: &'static str) -> Result<u128, Malformed> {
        self.array(what).map(u128::from_le_bytes)
    }

    pub(crate) fn blob(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let len = self.u32(what)? as usize;
        self.raw(len, what)
    }

    pub(crate) fn blob_bytes(&mut self, what: &'static str) -> Result<Bytes, Malformed> {
        self.blob(what).map(Bytes::copy_from_slice)
    }

    /// A count that the remaining bytes can hold, each item at least `least` bytes long.
    pub(crate) fn count(&mut self, least: usize, what: &'static str) -> Result<usize, Malformed> {
        let count = self.u32(what)? as usize;
        if count.saturating_mul(least) > self.rest.len() {
            return Err(Malformed::Value { field: what, value: count as u64 });
        }
        Ok(count)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed::Trailing(self.rest.len())) }
    }
}
