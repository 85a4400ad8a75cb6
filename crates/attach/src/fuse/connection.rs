//! A FUSE connection as the kernel sees it: made, opened, aborted. Serving it is `session`'s.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, openat, statx};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::exporter::ExportError;

/// The device end of a connection and, as long as the maker has it, its detached mount.
#[derive(Debug)]
pub struct Connection {
    device: Arc<OwnedFd>,
    number: u32,
    mount: Option<OwnedFd>,
}

impl Connection {
    /// Opens `/dev/fuse` and makes a mount of it that has no place in any mount table. The kernel sends its first
    /// request, which somebody has to serve before the mount can be used.
    ///
    /// # Errors
    /// When the machine refuses a step; nothing is left then.
    pub fn make(source: &str) -> Result<Self, ExportError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device =
            rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(ExportError::system("opening /dev/fuse"))?;
        let mount = detached_mount(&device, source).map_err(ExportError::system("making the FUSE mount"))?;
        // Without asking the filesystem, which nobody serves yet.
        let root = statx(&mount, c"", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())
            .map_err(ExportError::system("looking at the FUSE mount"))?;
        Ok(Self { device: Arc::new(device), number: root.stx_dev_minor, mount: Some(mount) })
    }

    /// A connection that was made by a predecessor.
    #[must_use]
    pub fn taken_over(device: OwnedFd, number: u32) -> Self {
        Self { device: Arc::new(device), number, mount: None }
    }

    /// The device end, shared with who serves it.
    #[must_use]
    pub fn device(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    /// The kernel's number of this connection.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Opens the one file and lets the mount go: the file alone holds it from here on. Blocks until the connection
    /// is served.
    ///
    /// # Errors
    /// When the machine or the server refuses.
    pub fn open_file(&mut self, name: &str, read_only: bool) -> Result<OwnedFd, ExportError> {
        let mount = self.mount.take().expect("the file is opened once, by the maker");
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        openat(mount, name, access | OFlags::CLOEXEC | OFlags::LARGEFILE, Mode::empty())
            .map_err(ExportError::system("opening the volume's file"))
    }

    /// Fails every request, in flight and to come. Only for a connection that is alive: numbers are used again.
    ///
    /// # Errors
    /// When the kernel's control filesystem cannot be used.
    pub fn abort(&self) -> Result<(), ExportError> {
        let step = "aborting the FUSE connection";
        let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC).map_err(ExportError::system(step))?;
        fsconfig_create(&control).map_err(ExportError::system(step))?;
        let control = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
            .map_err(ExportError::system(step))?;
        let path = format!("{}/abort", self.number);
        match openat(control, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => rustix::io::write(file, b"1").map(drop).map_err(ExportError::system(step)),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(ExportError::system(step)(error)),
        }
    }
}

fn detached_mount(device: &OwnedFd, source: &str) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", source)?;
    fsconfig_set_string(context, "fd", device.as_raw_fd().to_string())?;
    fsconfig_set_string(context, "rootmode", "40000")?;
    fsconfig_set_string(context, "user_id", "0")?;
    fsconfig_set_string(context, "group_id", "0")?;
    // The loop driver's workers do their I/O with the kernel's own credentials.
    fsconfig_set_flag(context, "allow_other")?;
    fsconfig_create(context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
