//! The real medium: a raw block device, or a file that plays one, past the page cache.
//!
//! Opening takes an exclusive lock on the file (and `O_EXCL` on a block device), so that two OSDs never share one;
//! the lock ends with the process. A filesystem that refuses O_DIRECT is used through its page cache, where
//! `fdatasync` gives the same promise.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::buffer::{AlignedBuf, is_aligned};
use crate::{BLOCK, Disk, Error, check_range};

/// The kernel takes at most this many pieces in one call.
const MAX_PIECES: usize = 1024;

/// How to open a [`FileDisk`].
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The device or file.
    pub path: PathBuf,
    /// Make the file, sparse, with this many bytes if it does not exist. Never changes an existing one.
    pub create_len: Option<u64>,
    /// Never write: for checks of a device that is offline.
    pub read_only: bool,
}

/// A file or block device opened with O_DIRECT and an exclusive lock.
#[derive(Debug)]
pub struct FileDisk {
    fd: OwnedFd,
    len: u64,
    block_device: bool,
    direct: bool,
}

impl FileDisk {
    /// Opens, and makes if asked.
    ///
    /// # Errors
    /// When it is missing, in use, neither file nor block device, or smaller than one block.
    pub fn open(options: &OpenOptions) -> Result<Self, Error> {
        let path = options.path.as_path();
        let refused = |errno| Error::Open { path: path.display().to_string(), errno };
        let (fd, direct) = open_fd(path, options)?;
        let stat = rustix::fs::fstat(&fd).map_err(refused)?;
        let block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            _ => return Err(refused(Errno::NODEV)),
        };
        lock(&fd, path)?;
        let mut len = rustix::fs::seek(&fd, rustix::fs::SeekFrom::End(0)).map_err(refused)?;
        if let (0, false, Some(wanted)) = (len, block_device, options.create_len) {
            rustix::fs::ftruncate(&fd, wanted).map_err(refused)?;
            rustix::fs::fsync(&fd).map_err(refused)?;
            sync_directory(path).map_err(refused)?;
            len = wanted;
        }
        let len = len / BLOCK * BLOCK;
        if len == 0 {
            return Err(refused(Errno::INVAL));
        }
        Ok(Self { fd, len, block_device, direct })
    }

    fn write_all(&self, mut offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        for group in pieces.chunks(MAX_PIECES) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|p| IoSlice::new(p)).collect();
            let mut rest = slices.as_mut_slice();
            while !rest.is_empty() {
                let left: usize = rest.iter().map(|s| s.len()).sum();
                let written = match rustix::io::pwritev(&self.fd, rest, offset) {
                    Ok(0) => return Err(io_error("write", offset, left as u64, Errno::IO)),
                    Ok(n) => n,
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(io_error("write", offset, left as u64, errno)),
                };
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.len)?;
        if self.direct && !is_aligned(buf) {
            let mut bounce = AlignedBuf::zeroed(buf.len());
            self.read_at(offset, &mut bounce)?;
            buf.copy_from_slice(&bounce[..buf.len()]);
            return Ok(());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            match rustix::io::pread(&self.fd, &mut buf[done..], at) {
                Ok(0) => return Err(io_error("read", at, 0, Errno::IO)),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(io_error("read", at, (buf.len() - done) as u64, errno)),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        check_range("write", offset, len as u64, self.len)?;
        if !self.direct || pieces.iter().all(|p| is_aligned(p) && p.len().is_multiple_of(BLOCK as usize)) {
            return self.write_all(offset, pieces);
        }
        let mut bounce = AlignedBuf::zeroed(len);
        let mut at = 0;
        for piece in pieces {
            bounce[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
        }
        self.write_all(offset, &[bounce.freeze()])
    }

    fn sync(&self) -> Result<(), Error> {
        rustix::fs::fdatasync(&self.fd).map_err(|errno| io_error("sync", 0, self.len, errno))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        check_range("discard", offset, len, self.len)?;
        if self.block_device {
            return block_discard(&self.fd, offset, len).map_err(|errno| io_error("discard", offset, len, errno));
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.fd, mode, offset, len) {
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(io_error("discard", offset, len, errno)),
        }
    }

    fn wants_prewrite(&self) -> bool {
        !self.block_device
    }

    /// Reads and writes name their places, so that the file's own position is free to be moved.
    fn has_hole(&self, offset: u64, len: u64) -> bool {
        let next = || rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Hole(offset));
        !self.block_device && next().is_ok_and(|hole| hole < offset.saturating_add(len))
    }
}

fn open_fd(path: &Path, options: &OpenOptions) -> Result<(OwnedFd, bool), Error> {
    let mut flags = OFlags::CLOEXEC | if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    match rustix::fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice => flags |= OFlags::EXCL,
        Ok(_) => {}
        Err(Errno::NOENT) if options.create_len.is_some() && !options.read_only => flags |= OFlags::CREATE,
        Err(errno) => return Err(Error::Open { path: path.display().to_string(), errno }),
    }
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::open(path, flags | OFlags::DIRECT, mode) {
        Ok(fd) => Ok((fd, true)),
        Err(Errno::INVAL) => match rustix::fs::open(path, flags, mode) {
            Ok(fd) => Ok((fd, false)),
            Err(errno) => Err(Error::Open { path: path.display().to_string(), errno }),
        },
        Err(Errno::BUSY) => Err(Error::Busy { path: path.display().to_string() }),
        Err(errno) => Err(Error::Open { path: path.display().to_string(), errno }),
    }
}

fn lock(fd: &OwnedFd, path: &Path) -> Result<(), Error> {
    match rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::Busy { path: path.display().to_string() }),
        Err(errno) => Err(Error::Open { path: path.display().to_string(), errno }),
    }
}

/// A new file's name is durable only after its directory is.
fn sync_directory(path: &Path) -> Result<(), Errno> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fsync(directory)
}

fn block_discard(fd: &OwnedFd, offset: u64, len: u64) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    // _IO(0x12, 119), linux/fs.h.
    const BLKDISCARD: libc::c_ulong = 0x1277;
    let range = [offset, len];
    // SAFETY: BLKDISCARD reads two u64 through the pointer, which outlives the call; the descriptor is open.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
    if result == 0 {
        return Ok(());
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        // A device without discard keeps the bytes, which is allowed.
        Some(Errno::OPNOTSUPP) => Ok(()),
        Some(errno) => Err(errno),
        None => Err(Errno::IO),
    }
}

fn io_error(op: &'static str, offset: u64, len: u64, errno: Errno) -> Error {
    match errno {
        Errno::NOSPC | Errno::DQUOT => Error::NoSpace { offset, len },
        errno => Error::Io { op, offset, len, errno },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(path: PathBuf) -> OpenOptions {
        OpenOptions { path, create_len: Some(1 << 20), read_only: false }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_the_alignment_of_memory() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(&options(dir.path().join("disk"))).unwrap();
        let odd = Bytes::from(vec![7u8; 4097]).slice(1..);
        let even = AlignedBuf::zeroed(4096).freeze();
        disk.write_at(8192, &[odd, even]).unwrap();
        disk.sync().unwrap();
        let mut buf = vec![1u8; 8193];
        disk.read_at(8192, &mut buf[1..]).unwrap();
        assert!(buf[1..4097].iter().all(|b| *b == 7) && buf[4097..].iter().all(|b| *b == 0));
        disk.discard(8192, 4096).unwrap();
    }

    #[test]
    fn a_device_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = FileDisk::open(&options(path.clone())).unwrap();
        let refused = FileDisk::open(&options(path.clone())).unwrap_err();
        assert!(matches!(refused, Error::Busy { .. }), "{refused}");
        drop(first);
        FileDisk::open(&options(path)).unwrap();
    }

    #[test]
    fn a_missing_file_is_not_made_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none");
        let refused = FileDisk::open(&OpenOptions { path, create_len: None, read_only: false }).unwrap_err();
        assert!(refused.to_string().contains("No such file"), "{refused}");
    }

    #[test]
    fn ranges_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FileDisk::open(&options(dir.path().join("disk"))).unwrap();
        assert!(matches!(disk.read_at(1, &mut [0; 4096]), Err(Error::BadRange { .. })));
        assert!(matches!(disk.read_at(1 << 20, &mut [0; 4096]), Err(Error::BadRange { .. })));
        assert!(matches!(disk.write_at(0, &[Bytes::from_static(b"x")]), Err(Error::BadRange { .. })));
    }
}
