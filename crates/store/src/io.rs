//! The I/O that the store wants done, as values: whoever drives the store performs them, in any order and as many
//! at once as it likes, and hands the results back. The store itself never touches the disk while it runs.

use bytes::Bytes;
use cairn_disk::{BufferPool, Disk};

/// Names one I/O until its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// One I/O to perform.
#[derive(Clone, Debug)]
pub struct Io {
    /// Comes back with the result.
    pub id: IoId,
    /// What to do.
    pub op: IoOp,
    /// Nobody waits for it yet: it may go after everything else, as long as it goes.
    pub background: bool,
}

/// What to do. A sync covers the writes whose results were handed in before it was given out; the store waits
/// for those by itself, so that the driver has no order to keep.
#[derive(Clone, Debug)]
pub enum IoOp {
    /// Write the pieces one after another.
    Write {
        /// Byte on the device.
        offset: u64,
        /// Each of whole blocks.
        pieces: Vec<Bytes>,
        /// Then sync, when the write has completed: one hand-over instead of two where nothing else is waited for.
        sync: bool,
    },
    /// Read whole blocks.
    Read {
        /// Byte on the device.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Make completed writes durable.
    Sync,
    /// The range is no longer needed.
    Discard {
        /// Byte on the device.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// What came of an I/O: the bytes of a read, nothing otherwise.
pub type IoResult = Result<Bytes, cairn_disk::Error>;

impl IoOp {
    /// Performs it, blocking.
    ///
    /// # Errors
    /// As the disk says.
    pub fn perform(&self, disk: &dyn Disk, pool: &BufferPool) -> IoResult {
        match self {
            Self::Write { offset, pieces, sync } => {
                disk.write_at(*offset, pieces)?;
                if *sync {
                    disk.sync()?;
                }
            }
            Self::Read { offset, len } => {
                let mut buffer = pool.take(*len);
                disk.read_at(*offset, &mut buffer)?;
                return Ok(buffer.freeze());
            }
            Self::Sync => disk.sync()?,
            Self::Discard { offset, len } => disk.discard(*offset, *len)?,
        }
        Ok(Bytes::new())
    }
}
