//! Whole volumes: what of them has content, in and out of files and pipes, back to a snapshot, free of their parents.
//!
//! Everything here goes through a volume piece by piece, with a few pieces under way at once, and says how far it is. It
//! decides nothing about who may hold a volume, and nothing is done behind the volume's back: what it writes are
//! ordinary writes. What is interrupted can be begun again.

#![forbid(unsafe_code)]

mod blocks;
mod diff;
mod export;
mod extents;
mod import;
mod renew;

#[cfg(test)]
mod tests;

use cairn_client::VolumeError;

pub use blocks::Blocks;
pub use diff::{DiffReader, Header, MAGIC};
pub use export::{Sink, export_diff, export_raw};
pub use extents::{Extent, Since, extents};
pub use import::{Content, Start, apply_diff, import_raw, start};
pub use renew::{flatten, is_as, restore};

/// Pieces under way at once.
const WINDOW: usize = 8;
/// Bytes of one piece.
const PIECE: u64 = 1 << 20;

/// Told how many bytes are done.
pub type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

/// Why a transfer ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The volume.
    #[error("the volume, at byte {at}: {error}")]
    Volume {
        /// Where.
        at: u64,
        /// How.
        error: VolumeError,
    },
    /// The file or pipe that is read.
    #[error("cannot read what is to be imported: {0}")]
    Input(std::io::Error),
    /// The file or pipe that is written.
    #[error("cannot write what is exported: {0}")]
    Output(std::io::Error),
    /// What is read is no such stream, or not all of one.
    #[error("at byte {at} of the stream: {what}")]
    Stream {
        /// Where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// It holds more than the volume can.
    #[error("it reaches to byte {end}, beyond the volume's end at {size}; make the volume larger first")]
    TooLarge {
        /// Where it ends.
        end: u64,
        /// Of the volume.
        size: u64,
    },
}

impl TransferError {
    fn volume(at: u64) -> impl FnOnce(VolumeError) -> Self {
        move |error| Self::Volume { at, error }
    }
}
