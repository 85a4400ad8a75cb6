//! Out of a volume, into a file or a pipe: raw, or as a diff.

use std::pin::pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, Stream, TryStreamExt as _};

use crate::diff::{END, Header, encode_extent};
use crate::extents::{Extent, Since, extents};
use crate::{Blocks, PIECE, Progress, TransferError, WINDOW};

/// Where exported bytes go, in order.
#[async_trait]
pub trait Sink: Send {
    /// The next bytes.
    async fn write(&mut self, data: Bytes) -> std::io::Result<()>;
    /// As many zeros: a file gets a hole.
    async fn zeros(&mut self, len: u64) -> std::io::Result<()>;
}

/// The content of these extents, piece by piece; those without data have none.
fn content<'a>(
    volume: &'a dyn Blocks,
    extents: impl Stream<Item = Result<Extent, TransferError>> + Send + 'a,
) -> impl Stream<Item = Result<(Extent, Bytes), TransferError>> + Send + 'a {
    extents
        .map_ok(|extent| {
            let piece = if extent.data { PIECE } else { extent.len };
            let starts = (extent.offset..extent.offset + extent.len).step_by(piece as usize);
            let end = extent.offset + extent.len;
            stream::iter(starts.map(move |offset| Ok(Extent { offset, len: piece.min(end - offset), ..extent })))
        })
        .try_flatten()
        .map_ok(move |extent| async move {
            let data = match extent.data {
                true => volume.read(extent.offset, extent.len).await.map_err(TransferError::volume(extent.offset))?,
                false => Bytes::new(),
            };
            Ok((extent, data))
        })
        .try_buffered(WINDOW)
}

/// Every byte of the volume, in order.
///
/// # Errors
/// [`TransferError`].
pub async fn export_raw(volume: &dyn Blocks, out: &mut dyn Sink, progress: Progress<'_>) -> Result<(), TransferError> {
    let mut pieces = pin!(content(volume, extents(volume, Since::Ever { parents: true })));
    let mut at = 0;
    while let Some((extent, data)) = pieces.try_next().await? {
        if !extent.data {
            continue;
        }
        out.zeros(extent.offset - at).await.map_err(TransferError::Output)?;
        out.write(data).await.map_err(TransferError::Output)?;
        at = extent.offset + extent.len;
        progress(at);
    }
    out.zeros(volume.size() - at).await.map_err(TransferError::Output)?;
    progress(volume.size());
    Ok(())
}

/// What was written since, as a diff.
///
/// # Errors
/// [`TransferError`].
pub async fn export_diff(
    volume: &dyn Blocks,
    since: Since,
    header: &Header,
    out: &mut dyn Sink,
    progress: Progress<'_>,
) -> Result<(), TransferError> {
    out.write(header.encode()).await.map_err(TransferError::Output)?;
    let mut pieces = pin!(content(volume, extents(volume, since)));
    let everything = matches!(since, Since::Ever { .. });
    while let Some((extent, data)) = pieces.try_next().await? {
        // Of everything, what is not named is zero.
        if extent.data || !everything {
            let head = encode_extent(extent.offset, extent.len, extent.data);
            out.write(head).await.map_err(TransferError::Output)?;
        }
        if extent.data {
            out.write(data).await.map_err(TransferError::Output)?;
        }
        progress(extent.offset + extent.len);
    }
    progress(volume.size());
    out.write(Bytes::from_static(END)).await.map_err(TransferError::Output)
}
