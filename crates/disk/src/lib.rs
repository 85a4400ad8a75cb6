//! Block devices and files behind one trait: what the store believes a medium is, and nothing more.
//!
//! A disk is a run of bytes addressed in 4 KiB blocks. A write is volatile until a later [`Disk::sync`] that was
//! issued after the write completed returns. Until then a power cut may keep it, lose it, keep parts of it in any
//! order, or leave rubbish where it was being written; it touches nothing else. [`FileDisk`] is the real thing;
//! [`SimDisk`] is the same contract with the cruelty on demand; [`FaultyDisk`] stands in front of a real one in tests.
//!
//! This is the only crate that opens block files, and the only one on the data path with `unsafe` code. It never
//! retries, never caches, and never decides what an error means.

mod buffer;
mod faulty;
mod file;
mod sim;

use bytes::Bytes;

pub use buffer::{AlignedBuf, BufferPool};
pub use faulty::{Fault, FaultKind, FaultyDisk, UnknownFault, parse_faults};
pub use file::{FileDisk, OpenOptions};
pub use sim::{CrashPolicy, Injection, SimDisk};

/// Offsets and lengths of every call are multiples of this.
pub const BLOCK: u64 = 4096;

/// What went wrong, with what the medium said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The system call failed.
    #[error("{op} of {len} bytes at {offset} failed: {errno}")]
    Io {
        /// Which call.
        op: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// What the kernel said.
        errno: rustix::io::Errno,
    },
    /// The device or its filesystem has no room for the write.
    #[error("no space left to write {len} bytes at {offset}")]
    NoSpace {
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
    },
    /// Offset or length is not a multiple of [`BLOCK`], or the range ends beyond the device. A bug of the caller.
    #[error("{op} of {len} bytes at {offset} does not fit a device of {device} bytes in blocks of 4096")]
    BadRange {
        /// Which call.
        op: &'static str,
        /// Where, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: u64,
        /// Size of the device.
        device: u64,
    },
    /// Another process holds the device, or the kernel does: a filesystem, a volume group, an array.
    #[error("{path} is in use by another process, or mounted; an OSD owns its device alone")]
    Busy {
        /// The device or file.
        path: String,
    },
    /// The device could not be opened or made.
    #[error("cannot open {path}: {errno}")]
    Open {
        /// The device or file.
        path: String,
        /// What the kernel said.
        errno: rustix::io::Errno,
    },
    /// The simulated power is off, or this handle belongs to a life before the last power cut.
    #[error("the disk has no power")]
    PoweredOff,
}

impl Error {
    /// Whether the cause is a full medium, which a caller may survive.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// A device, or a file that plays one. All calls may come from several threads at once; calls that overlap in time
/// have no order.
#[allow(clippy::len_without_is_empty)] // a device without bytes cannot be opened
pub trait Disk: Send + Sync + 'static {
    /// Bytes, a multiple of [`BLOCK`], constant while open.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the medium cannot give the bytes; the contents of `buf` are then unspecified.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error>;

    /// Writes the pieces one after another from `offset`. Each piece is whole blocks. The bytes may not change
    /// before the call returns (I13), which `Bytes` guarantees.
    ///
    /// # Errors
    /// When any byte was not taken; the range is then unspecified.
    fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error>;

    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// After an error nothing is known about any unsynced write; the caller must never sync again and believe it.
    fn sync(&self) -> Result<(), Error>;

    /// Says that the contents of the range are no longer needed. What it reads as afterwards is unspecified.
    ///
    /// # Errors
    /// When the medium refuses; the range is then unspecified.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error>;

    /// Whether first writes to a range cost more than later ones (a sparse file), so that it pays to write ahead.
    fn wants_prewrite(&self) -> bool {
        false
    }

    /// Whether writing this range may need room that the filesystem below has not given yet.
    fn has_hole(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }
}

/// Checks a range against the contract.
fn check_range(op: &'static str, offset: u64, len: u64, device: u64) -> Result<(), Error> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= device);
    if fits && offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK) {
        Ok(())
    } else {
        Err(Error::BadRange { op, offset, len, device })
    }
}
