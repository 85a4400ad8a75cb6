//! What of a volume has content, or has changed since a snapshot: ranges of blocks in the same state.

use cairn_client::{ABSENT, DATA};
use cairn_types::{BLOCK_SIZE, SnapId};
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::{Blocks, TransferError, WINDOW};

/// Bytes asked about at once.
const STEP: u64 = 64 << 20;

/// Since when content counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// All of the volume's own. What a clone has from its parents counts only if asked for.
    Ever {
        /// It counts.
        parents: bool,
    },
    /// What was written after this snapshot.
    Snapshot(SnapId),
}

/// A range of whole blocks in one state; the volume's end may cut the last block short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes, at most 64 MiB.
    pub len: u64,
    /// It has data; otherwise it was zeroed or discarded.
    pub data: bool,
}

/// The extents of a volume, in order. A longer range comes in several parts.
pub fn extents<'a>(
    volume: &'a dyn Blocks,
    since: Since,
) -> impl Stream<Item = Result<Extent, TransferError>> + Send + 'a {
    let size = volume.size();
    let (snapshot, parents) = match since {
        Since::Ever { parents } => (SnapId(0), parents),
        Since::Snapshot(snapshot) => (snapshot, false),
    };
    stream::iter((0..size).step_by(STEP as usize))
        .map(move |offset| async move {
            let len = STEP.min(size - offset);
            let states = volume.status(offset, len, snapshot, parents).await;
            let parts = |states: bytes::Bytes| stream::iter(runs(offset, len, &states).into_iter().map(Ok));
            states.map(parts).map_err(TransferError::volume(offset))
        })
        .buffered(WINDOW)
        .try_flatten()
}

/// Blocks in the same state, joined; those that are absent left out.
pub(crate) fn runs(offset: u64, len: u64, states: &[u8]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for (index, state) in states.iter().enumerate().filter(|(_, state)| **state != ABSENT) {
        let at = offset + index as u64 * u64::from(BLOCK_SIZE);
        let size = u64::from(BLOCK_SIZE).min(offset + len - at);
        let data = *state == DATA;
        match runs.last_mut() {
            Some(last) if last.data == data && last.offset + last.len == at => last.len += size,
            _ => runs.push(Extent { offset: at, len: size, data }),
        }
    }
    runs
}
