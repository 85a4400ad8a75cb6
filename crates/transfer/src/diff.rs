//! A diff as a stream: what has changed between two snapshots, or everything. The format is that of `rbd export-diff`,
//! version 1 (Ceph's documentation, "RBD Incremental Backup"), so that what one exports the other imports. Numbers are
//! little-endian:
//!
//! | record | bytes |
//! |---|---|
//! | head | `rbd diff v1\n` |
//! | the snapshot it begins at, if any | `f`, length u32, name |
//! | the snapshot it ends at, if any | `t`, length u32, name |
//! | size of the volume at its end | `s`, u64 |
//! | data | `w`, offset u64, length u64, the bytes |
//! | zeros | `z`, offset u64, length u64 |
//! | end | `e` |

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::TransferError;

/// How every diff begins.
pub const MAGIC: &[u8] = b"rbd diff v1\n";

/// The longest name of a snapshot that is believed.
const NAME: u32 = 4096;

/// What a diff says of itself before its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// It holds what was written after this snapshot; absent: everything.
    pub from: Option<String>,
    /// It ends at this one.
    pub to: Option<String>,
    /// Bytes of the volume.
    pub size: u64,
}

impl Header {
    /// As it stands in the stream.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::from(MAGIC);
        for (tag, name) in [(b'f', &self.from), (b't', &self.to)] {
            if let Some(name) = name {
                out.put_u8(tag);
                out.put_u32_le(name.len() as u32);
                out.put_slice(name.as_bytes());
            }
        }
        out.put_u8(b's');
        out.put_u64_le(self.size);
        out.freeze()
    }
}

/// The head of a record of content.
pub(crate) fn encode_extent(offset: u64, len: u64, data: bool) -> Bytes {
    let mut out = BytesMut::with_capacity(17);
    out.put_u8(if data { b'w' } else { b'z' });
    out.put_u64_le(offset);
    out.put_u64_le(len);
    out.freeze()
}

/// The last record.
pub(crate) const END: &[u8] = b"e";

/// A record of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// These many bytes follow, and are to be taken with [`DiffReader::data`].
    Data { offset: u64, len: u64 },
    /// Zeros.
    Zero { offset: u64, len: u64 },
    /// Nothing follows.
    End,
}

/// A diff that is read.
#[derive(Debug)]
pub struct DiffReader<R> {
    input: R,
    at: u64,
    /// The tag of a record that follows the header.
    next: Option<u8>,
}

impl<R: AsyncRead + Unpin> DiffReader<R> {
    /// Of a stream whose first bytes, [`MAGIC`], were taken already.
    pub fn new(input: R) -> Self {
        Self { input, at: MAGIC.len() as u64, next: None }
    }

    /// Where the next record begins in the stream.
    pub(crate) fn position(&self) -> u64 {
        self.at - u64::from(self.next.is_some())
    }

    /// What it says of itself; to be asked for once, before its content.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub async fn header(&mut self) -> Result<Header, TransferError> {
        let (mut header, mut size) = (Header::default(), None);
        loop {
            let at = self.at;
            match self.u8().await? {
                b'f' => header.from = Some(self.name().await?),
                b't' => header.to = Some(self.name().await?),
                b's' => size = Some(self.u64().await?),
                tag => {
                    self.next = Some(tag);
                    header.size = size.ok_or_else(|| wrong(at, "a diff names the volume's size before its content"))?;
                    return Ok(header);
                }
            }
        }
    }

    pub(crate) async fn record(&mut self) -> Result<Record, TransferError> {
        let at = self.at;
        let tag = match self.next.take() {
            Some(tag) => tag,
            None => self.u8().await?,
        };
        match tag {
            b'w' => Ok(Record::Data { offset: self.u64().await?, len: self.u64().await? }),
            b'z' => Ok(Record::Zero { offset: self.u64().await?, len: self.u64().await? }),
            b'e' => Ok(Record::End),
            tag => Err(wrong(at, format!("there is no record of kind {:?}: it is damaged", char::from(tag)))),
        }
    }

    /// Bytes of the data record at hand.
    pub(crate) async fn data(&mut self, len: u64) -> Result<Bytes, TransferError> {
        let mut data = vec![0; len as usize];
        self.fill(&mut data).await?;
        Ok(data.into())
    }

    async fn name(&mut self) -> Result<String, TransferError> {
        let at = self.at;
        let mut len = [0; 4];
        self.fill(&mut len).await?;
        let len = u32::from_le_bytes(len);
        if len > NAME {
            return Err(wrong(at, format!("a name of {len} bytes: it is damaged")));
        }
        let mut name = vec![0; len as usize];
        self.fill(&mut name).await?;
        String::from_utf8(name).map_err(|_| wrong(at, "the name of a snapshot is no text"))
    }

    async fn u8(&mut self) -> Result<u8, TransferError> {
        let mut byte = [0];
        self.fill(&mut byte).await?;
        Ok(byte[0])
    }

    async fn u64(&mut self) -> Result<u64, TransferError> {
        let mut bytes = [0; 8];
        self.fill(&mut bytes).await?;
        Ok(u64::from_le_bytes(bytes))
    }

    async fn fill(&mut self, bytes: &mut [u8]) -> Result<(), TransferError> {
        match self.input.read_exact(bytes).await {
            Ok(count) => {
                self.at += count as u64;
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(wrong(self.at, "it ends here, before its last record: it was cut off"))
            }
            Err(error) => Err(TransferError::Input(error)),
        }
    }
}

pub(crate) fn wrong(at: u64, what: impl Into<String>) -> TransferError {
    TransferError::Stream { at, what: what.into() }
}
