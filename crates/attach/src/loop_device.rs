//! Kernel loop devices: bound to a file with 4096-byte blocks and direct I/O, resized, cleared, found again.
//!
//! `unsafe` stands here for the driver's ioctls. All of it blocks, some of it (binding, sizing) until the file's
//! filesystem answers: called from blocking threads only.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_types::BLOCK_SIZE;

use crate::exporter::ExportError;

const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

/// `struct loop_info64` of `include/uapi/linux/loop.h`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Configuration {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

impl Info {
    fn empty() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// One loop device, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// The N of `/dev/loopN`.
    pub number: u32,
}

/// Whether the driver is there.
///
/// # Errors
/// What opening its control device said.
pub fn probe() -> io::Result<()> {
    open(Path::new("/dev/loop-control"), true, 0).map(drop)
}

impl LoopDevice {
    /// Binds a free device to a file. Blocks until the file's filesystem answers.
    ///
    /// # Errors
    /// When there is no free device or the driver refuses.
    pub fn bind(file: impl AsFd, name: &str, read_only: bool) -> Result<Self, ExportError> {
        let control =
            open(Path::new("/dev/loop-control"), true, 0).map_err(ExportError::system("opening /dev/loop-control"))?;
        let mut configuration = Configuration {
            fd: file.as_fd().as_raw_fd() as u32,
            block_size: BLOCK_SIZE,
            info: Info::empty(),
            reserved: [0; 8],
        };
        configuration.info.flags = DIRECT_IO | if read_only { READ_ONLY } else { 0 };
        let shown = &name.as_bytes()[..name.len().min(63)];
        configuration.info.file_name[..shown.len()].copy_from_slice(shown);
        // Between asking for a free one and binding it somebody else may take it.
        for _ in 0..64 {
            // SAFETY: this request takes no argument.
            let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })
                .map_err(ExportError::system("asking for a free loop device"))?;
            let device = Self { number: number as u32 };
            let opened = device.open(!read_only, 0).map_err(ExportError::system("opening the loop device"))?;
            // SAFETY: `configuration` is a `struct loop_config` that lives across the call; the kernel only reads it.
            match check(unsafe { libc::ioctl(opened.as_raw_fd(), LOOP_CONFIGURE, &raw const configuration) }) {
                Ok(_) => return Ok(device),
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(ExportError::system("binding the loop device")(error)),
            }
        }
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        Err(ExportError::system("finding a loop device that nobody else takes")(busy))
    }

    /// Its node.
    #[must_use]
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// The device that a node is of.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        let number = path.to_str()?.strip_prefix("/dev/loop")?.parse().ok()?;
        Some(Self { number })
    }

    /// The file it is bound to, as the kernel names it. Never waits for the file's filesystem.
    #[must_use]
    pub fn backing_file(self) -> Option<String> {
        let text = std::fs::read_to_string(format!("/sys/block/loop{}/loop/backing_file", self.number)).ok()?;
        Some(text.trim_end().to_owned())
    }

    /// Takes on the file's present size; blocks until its filesystem answers. Returns the size.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn update_size(self) -> Result<u64, ExportError> {
        let device = self.open(false, 0).map_err(ExportError::system("opening the loop device"))?;
        // Asking for the status has kernels before 6.17 look at the file's attributes again.
        self.info(&device).map_err(ExportError::system("asking for the loop device's status"))?;
        // SAFETY: this request takes no argument.
        check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) })
            .map_err(ExportError::system("resizing the loop device"))?;
        self.size().map_err(ExportError::system("reading the loop device's size"))
    }

    /// Bytes.
    ///
    /// # Errors
    /// When the kernel does not know the device.
    pub fn size(self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/sys/block/loop{}/size", self.number))?;
        let sectors: u64 = text.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(sectors * 512)
    }

    /// Writes what the device's own cache holds and has the file flushed; blocks until its filesystem answers.
    ///
    /// # Errors
    /// When writing failed.
    pub fn flush(self) -> io::Result<()> {
        self.open(false, 0)?.sync_all()
    }

    /// Whether something holds it exclusively: a mounted filesystem, a device mapped onto it.
    #[must_use]
    pub fn is_claimed(self) -> bool {
        matches!(self.open(false, libc::O_EXCL), Err(error) if error.raw_os_error() == Some(libc::EBUSY))
    }

    /// Unbinds it once nobody has it open any more, and waits for that up to `patience`. Returns whether it is
    /// unbound; otherwise the kernel unbinds it at the last close, unless `keep_bound` is called.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn clear(self, patience: Duration) -> Result<bool, ExportError> {
        let device = match self.open(false, 0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            other => other.map_err(ExportError::system("opening the loop device"))?,
        };
        // SAFETY: this request takes no argument.
        match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) }) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(true),
            other => drop(other.map_err(ExportError::system("clearing the loop device"))?),
        }
        drop(device);
        let deadline = Instant::now() + patience;
        while self.backing_file().is_some() {
            if Instant::now() > deadline {
                return Ok(false);
            }
            // The kernel tells nobody when the last opener is gone.
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(true)
    }

    /// Takes back a `clear` that found the device open.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn keep_bound(self) -> io::Result<()> {
        let device = self.open(false, 0)?;
        let mut info = self.info(&device)?;
        info.flags &= !AUTOCLEAR;
        // SAFETY: `info` is a `struct loop_info64` that lives across the call; the kernel only reads it.
        check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) }).map(drop)
    }

    fn info(self, device: &File) -> io::Result<Info> {
        let mut info = Info::empty();
        // SAFETY: `info` is a `struct loop_info64`, all of whose bit patterns are valid, for the kernel to fill.
        check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) })?;
        Ok(info)
    }

    fn open(self, write: bool, flags: i32) -> io::Result<File> {
        open(&self.path(), write, flags)
    }
}

/// Every device bound to a file whose name satisfies `wanted`, with that name.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn bound(wanted: impl Fn(&str) -> bool) -> io::Result<Vec<(LoopDevice, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")).and_then(|n| n.parse().ok());
        let Some(device) = number.map(|number| LoopDevice { number }) else { continue };
        if let Some(file) = device.backing_file().filter(|file| wanted(file)) {
            found.push((device, file));
        }
    }
    found.sort_by_key(|(device, _)| device.number);
    Ok(found)
}

fn open(path: &Path, write: bool, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).write(write).custom_flags(flags | libc::O_CLOEXEC).open(path)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Info>(), 232);
        assert_eq!(size_of::<Configuration>(), 304);
    }

    #[test]
    fn a_device_is_bound_found_grown_and_cleared() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let device = LoopDevice::bind(file.as_file(), "test", false).unwrap();
        assert_eq!(LoopDevice::of_path(&device.path()), Some(device));
        let path = file.path().to_str().unwrap().to_owned();
        assert_eq!(bound(|name| name == path).unwrap(), [(device, path.clone())]);
        assert_eq!(device.size().unwrap(), 1 << 20);
        file.as_file().set_len(3 << 20).unwrap();
        assert_eq!(device.update_size().unwrap(), 3 << 20);

        let opener = device.open(false, 0).unwrap();
        assert!(!device.clear(Duration::from_millis(20)).unwrap(), "open elsewhere");
        device.keep_bound().unwrap();
        drop(opener);
        assert!(device.backing_file().is_some(), "the clear was taken back");
        assert!(!device.is_claimed());
        assert!(device.clear(Duration::from_secs(5)).unwrap());
        assert!(bound(|name| name == path).unwrap().is_empty());
    }
}
