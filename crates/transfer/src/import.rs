//! Into a volume, out of a file or a pipe: raw bytes, or a diff.

use bytes::{Bytes, BytesMut};
use cairn_types::BLOCK_SIZE;
use futures::stream::{FuturesUnordered, TryStreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::diff::{DiffReader, MAGIC, Record, wrong};
use crate::{Blocks, PIECE, Progress, TransferError, WINDOW};

/// How an image of QEMU's begins.
const QCOW2: &[u8] = b"QFI\xfb";

/// What is to be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes of a volume.
    Raw,
    /// A diff; its header follows.
    Diff,
}

/// The first bytes of a stream, which tell what it is.
#[derive(Clone, Debug)]
pub struct Start {
    /// What it is.
    pub content: Content,
    /// Those of the first bytes that are content.
    pub bytes: Bytes,
}

/// Reads as far as needed to tell what a stream is.
///
/// # Errors
/// When it cannot be read, or is an image in a form that is not understood.
pub async fn start(input: &mut (dyn AsyncRead + Unpin + Send)) -> Result<Start, TransferError> {
    let mut first = Vec::with_capacity(MAGIC.len());
    input.take(MAGIC.len() as u64).read_to_end(&mut first).await.map_err(TransferError::Input)?;
    if first == MAGIC {
        return Ok(Start { content: Content::Diff, bytes: Bytes::new() });
    }
    if first.starts_with(QCOW2) {
        return Err(wrong(0, "this is a qcow2 image; make it raw first: qemu-img convert -O raw IMAGE RAW"));
    }
    Ok(Start { content: Content::Raw, bytes: first.into() })
}

/// Writes under way, a few at once.
struct Writes<'a> {
    volume: &'a dyn Blocks,
    under_way: FuturesUnordered<futures::future::BoxFuture<'a, Result<(), TransferError>>>,
}

impl<'a> Writes<'a> {
    fn new(volume: &'a dyn Blocks) -> Self {
        Self { volume, under_way: FuturesUnordered::new() }
    }

    async fn room(&mut self) -> Result<(), TransferError> {
        while self.under_way.len() >= WINDOW {
            self.under_way.try_next().await?;
        }
        Ok(())
    }

    async fn write(&mut self, offset: u64, data: Bytes) -> Result<(), TransferError> {
        self.room().await?;
        let volume = self.volume;
        let write = async move { volume.write(offset, data).await.map_err(TransferError::volume(offset)) };
        self.under_way.push(Box::pin(write));
        Ok(())
    }

    async fn discard(&mut self, offset: u64, len: u64) -> Result<(), TransferError> {
        self.room().await?;
        let volume = self.volume;
        let zero = async move { volume.discard(offset, len).await.map_err(TransferError::volume(offset)) };
        self.under_way.push(Box::pin(zero));
        Ok(())
    }

    async fn end(mut self) -> Result<(), TransferError> {
        while self.under_way.try_next().await?.is_some() {}
        Ok(())
    }
}

/// Raw bytes into a volume that has no content. Zeros are not written. Gives how many bytes came.
///
/// # Errors
/// [`TransferError`]; some of it may have been written.
pub async fn import_raw(
    volume: &dyn Blocks,
    first: Bytes,
    input: &mut (dyn AsyncRead + Unpin + Send),
    progress: Progress<'_>,
) -> Result<u64, TransferError> {
    let mut writes = Writes::new(volume);
    let (mut at, mut held) = (0, BytesMut::from(first));
    loop {
        let missing = PIECE as usize - held.len();
        let mut more = held.split_off(held.len());
        more.reserve(missing);
        let mut part = input.take(missing as u64);
        while part.read_buf(&mut more).await.map_err(TransferError::Input)? > 0 {}
        held.unsplit(more);
        let piece = held.split().freeze();
        if piece.is_empty() {
            break;
        }
        let end = at + piece.len() as u64;
        if end > volume.size() {
            return Err(TransferError::TooLarge { end, size: volume.size() });
        }
        for (start, end) in filled(&piece) {
            writes.write(at + start as u64, piece.slice(start..end)).await?;
        }
        at = end;
        progress(at);
    }
    writes.end().await?;
    Ok(at)
}

/// Runs of blocks that are not all zeros.
fn filled(piece: &[u8]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (index, block) in piece.chunks(BLOCK_SIZE as usize).enumerate() {
        let start = index * BLOCK_SIZE as usize;
        if block.iter().any(|byte| *byte != 0) {
            match runs.last_mut().filter(|(_, end)| *end == start) {
                Some((_, end)) => *end += block.len(),
                None => runs.push((start, start + block.len())),
            }
        }
    }
    runs
}

/// The content of a diff after its header, onto what it was made from.
///
/// # Errors
/// [`TransferError`]; some of it may have been written.
pub async fn apply_diff<R: AsyncRead + Unpin + Send>(
    volume: &dyn Blocks,
    diff: &mut DiffReader<R>,
    progress: Progress<'_>,
) -> Result<(), TransferError> {
    let mut writes = Writes::new(volume);
    let mut through = 0;
    loop {
        let at = diff.position();
        let (offset, len, data) = match diff.record().await? {
            Record::Data { offset, len } => (offset, len, true),
            Record::Zero { offset, len } => (offset, len, false),
            Record::End => break,
        };
        let end = offset.checked_add(len).ok_or_else(|| wrong(at, "a range without an end: it is damaged"))?;
        if end > volume.size() {
            return Err(TransferError::TooLarge { end, size: volume.size() });
        }
        if offset < through {
            return Err(wrong(at, "a range that begins before the end of the last one: it is damaged"));
        }
        through = end;
        if !data {
            writes.discard(offset, len).await?;
        }
        let mut from = if data { offset } else { end };
        while from < end {
            // Pieces of their own blocks, so that two of them never share one.
            let piece = (PIECE - from % PIECE).min(end - from);
            let bytes = diff.data(piece).await?;
            writes.write(from, bytes).await?;
            from += piece;
        }
        progress(end);
    }
    writes.end().await
}
