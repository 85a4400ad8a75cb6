//! A volume made as it was in a snapshot, or free of its parents. Both only write what differs, and both can be begun again
//! where they were interrupted.

use std::pin::pin;

use cairn_types::SnapId;
use futures::stream::{self, TryStreamExt as _};

use crate::extents::{Extent, Since, extents};
use crate::{Blocks, PIECE, Progress, TransferError, WINDOW};

/// Writes into `volume` what `view`, its snapshot `snapshot`, has wherever something was written since. What the volume
/// has grown by reads as zeros afterwards.
///
/// # Errors
/// [`TransferError`]; some of it may have been written.
pub async fn restore(
    volume: &dyn Blocks,
    view: &dyn Blocks,
    snapshot: SnapId,
    progress: Progress<'_>,
) -> Result<(), TransferError> {
    let size = view.size();
    let changed = extents(volume, Since::Snapshot(snapshot)).map_ok(|extent| {
        let end = extent.offset + extent.len;
        let starts = (extent.offset..end).step_by(PIECE as usize);
        stream::iter(starts.map(move |offset| Ok(Extent { offset, len: PIECE.min(end - offset), ..extent })))
    });
    let pieces = changed.try_flatten().map_ok(|Extent { offset, len, .. }| async move {
        let kept = len.min(size.saturating_sub(offset));
        let was = match kept {
            0 => Vec::new(),
            kept => part_of(view, offset, kept).await?,
        };
        let mut at = offset;
        for Extent { offset, len, .. } in was {
            if offset > at {
                volume.discard(at, offset - at).await.map_err(TransferError::volume(at))?;
            }
            let data = view.read(offset, len).await.map_err(TransferError::volume(offset))?;
            volume.write(offset, data).await.map_err(TransferError::volume(offset))?;
            at = offset + len;
        }
        if at < offset + len {
            volume.discard(at, offset + len - at).await.map_err(TransferError::volume(at))?;
        }
        Ok::<_, TransferError>(offset + len)
    });
    let mut done = pin!(pieces.try_buffered(WINDOW));
    while let Some(through) = done.try_next().await? {
        progress(through);
    }
    progress(volume.size());
    Ok(())
}

/// Whether a volume reads as `view`, its snapshot `snapshot`, does; what it has grown by counts as zeros.
///
/// # Errors
/// [`TransferError`].
pub async fn is_as(volume: &dyn Blocks, view: &dyn Blocks, snapshot: SnapId) -> Result<bool, TransferError> {
    let size = view.size();
    let changed = extents(volume, Since::Snapshot(snapshot)).map_ok(|extent| {
        let end = extent.offset + extent.len;
        let starts = (extent.offset..end).step_by(PIECE as usize);
        stream::iter(starts.map(move |offset| Ok((offset, PIECE.min(end - offset)))))
    });
    let pieces = changed.try_flatten().map_ok(|(offset, len)| async move {
        let now = volume.read(offset, len).await.map_err(TransferError::volume(offset))?;
        let (kept, grown) = now.split_at(len.min(size.saturating_sub(offset)) as usize);
        let same = match kept.len() as u64 {
            0 => true,
            len => view.read(offset, len).await.map_err(TransferError::volume(offset))? == kept,
        };
        Ok::<_, TransferError>(same && grown.iter().all(|byte| *byte == 0))
    });
    let mut pieces = pin!(pieces.try_buffered(WINDOW));
    while let Some(same) = pieces.try_next().await? {
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Where a snapshot has data in a range.
async fn part_of(view: &dyn Blocks, offset: u64, len: u64) -> Result<Vec<Extent>, TransferError> {
    let states = view.status(offset, len, SnapId(0), true).await.map_err(TransferError::volume(offset))?;
    Ok(crate::extents::runs(offset, len, &states).into_iter().filter(|extent| extent.data).collect())
}

/// Makes everything that a clone reads from its parents its own.
///
/// # Errors
/// [`TransferError`]; some of it may be its own by then.
pub async fn flatten(volume: &dyn Blocks, progress: Progress<'_>) -> Result<(), TransferError> {
    let inherited = extents(volume, Since::Ever { parents: true }).map_ok(|extent| {
        let end = extent.offset + extent.len;
        let starts = (extent.offset..if extent.data { end } else { extent.offset }).step_by(PIECE as usize);
        stream::iter(starts.map(move |offset| Ok((offset, PIECE.min(end - offset)))))
    });
    let copies = inherited.try_flatten().map_ok(|(offset, len)| async move {
        volume.copy_up(offset, len).await.map_err(TransferError::volume(offset))?;
        Ok::<_, TransferError>(offset + len)
    });
    let mut done = pin!(copies.try_buffered(WINDOW));
    while let Some(through) = done.try_next().await? {
        progress(through);
    }
    progress(volume.size());
    Ok(())
}
