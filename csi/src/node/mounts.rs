//! What is mounted where, mounting and unmounting. All of it may block: called from blocking threads only.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags};

use crate::filesystem::Filesystem;

/// One line of this process's mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    /// What was mounted: a device, for filesystems on one.
    pub(super) source: PathBuf,
    pub(super) filesystem: String,
    /// This mount, or the whole filesystem, takes no writes.
    pub(super) read_only: bool,
    /// The filesystem takes no writes though this mount would let them pass: the kernel stopped them after an error.
    pub(super) forced_read_only: bool,
}

/// The whole table, in the order of mounting.
pub(super) fn table() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(parse).collect())
}

/// What is visible at a path; the topmost, where several are stacked.
pub(super) fn at(point: &Path) -> io::Result<Option<Mount>> {
    // The kernel shows resolved paths.
    let point = match std::fs::canonicalize(point) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(_) => point.to_owned(),
        Ok(point) => point,
    };
    Ok(table()?.into_iter().rfind(|mount| mount.point == point))
}

/// proc(5): `id parent major:minor root point options [optional...] - type source super-options`.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    let (point, options) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (filesystem, source, of_super) = (right.next()?, right.next()?, right.next().unwrap_or_default());
    let has = |options: &str, word: &str| options.split(',').any(|option| option == word);
    let (here, everywhere) = (has(options, "ro"), has(of_super, "ro"));
    // Who mounts read-only sets both; an error sets the filesystem's alone, or one of the newer words.
    let stopped = has(of_super, "emergency_ro") || has(of_super, "shutdown");
    Some(Mount {
        point: plain(point).into(),
        source: plain(source).into(),
        filesystem: filesystem.to_owned(),
        read_only: here || everywhere,
        forced_read_only: (everywhere && !here) || stopped,
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn plain(field: &str) -> String {
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    codes.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// Mounts a filesystem. Options that the kernel has flags for become flags, the others are the filesystem's own.
pub(super) fn mount(
    device: &Path,
    point: &Path,
    kind: Filesystem,
    options: &[String],
    read_only: bool,
) -> io::Result<()> {
    let (mut flags, mut own) = split(options);
    if read_only {
        flags |= MountFlags::RDONLY;
        // A journal cannot be replayed onto a device that takes no writes.
        own.push(match kind {
            Filesystem::Ext4 => "noload",
            Filesystem::Xfs => "norecovery",
            Filesystem::Btrfs => "rescue=nologreplay",
        });
    }
    if kind == Filesystem::Xfs {
        // A dead mount of the same volume, which somebody holds open, has the same UUID.
        own.push("nouuid");
    }
    let own = CString::new(own.join(",")).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    patiently(|| rustix::mount::mount(device, point, kind.as_str(), flags, own.as_c_str()).map_err(Into::into))
}

/// Tries again for a while what finds a device busy: a program that another call is about to start holds, until it
/// runs, whatever this process had open a moment ago, and so a device that was just formatted.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < end => {}
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn split(options: &[String]) -> (MountFlags, Vec<&str>) {
    let mut flags = MountFlags::empty();
    let mut own = Vec::new();
    for option in options.iter().flat_map(|option| option.split(',')) {
        match option {
            "" | "defaults" | "rw" => {}
            "ro" => flags |= MountFlags::RDONLY,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "strictatime" => flags |= MountFlags::STRICTATIME,
            "lazytime" => flags |= MountFlags::LAZYTIME,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "nosuid" => flags |= MountFlags::NOSUID,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "dirsync" => flags |= MountFlags::DIRSYNC,
            option => own.push(option),
        }
    }
    (flags, own)
}

/// Shows what is at one path at another, there read-only if so wanted.
pub(super) fn bind(source: &Path, point: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind(source, point)?;
    if read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        if let Err(error) = rustix::mount::mount_remount(point, flags, c"") {
            unmount_all(point)?;
            return Err(error.into());
        }
    }
    Ok(())
}

/// Unmounts everything that is stacked at a path; nothing there is fine.
pub(super) fn unmount_all(point: &Path) -> io::Result<()> {
    while at(point)?.is_some() {
        rustix::mount::unmount(point, UnmountFlags::NOFOLLOW)?;
    }
    Ok(())
}

/// Takes a dead filesystem away from a path; whoever has files of it open keeps failing by themselves.
pub(super) fn detach(point: &Path) -> io::Result<()> {
    rustix::mount::unmount(point, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(Into::into)
}

/// Removes the directory or the file that a mount stood on; never anything with something in it.
pub(super) fn remove_point(point: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(point) {
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => std::fs::remove_dir(point),
        Ok(found) if found.len() == 0 => std::fs::remove_file(point),
        Ok(_) => Err(io::ErrorKind::DirectoryNotEmpty.into()),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The device number of a device node.
pub(super) fn device_number(node: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(node)?.rdev())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_read_whole() {
        let line = "98 29 7:3 / /pods/a\\040b rw,noatime shared:5 master:2 - ext4 /dev/loop3 ro,errors=continue";
        let expected = Mount {
            point: "/pods/a b".into(),
            source: "/dev/loop3".into(),
            filesystem: "ext4".into(),
            read_only: true,
            forced_read_only: true,
        };
        assert_eq!(parse(line), Some(expected));
        let forced = |options: &str, of_super: &str| {
            let line = format!("98 29 7:3 / /pods/a {options} shared:5 - ext4 /dev/loop3 {of_super}");
            parse(&line).unwrap().forced_read_only
        };
        assert!(!forced("rw", "rw,errors=remount-ro") && !forced("ro", "rw"), "published read-only");
        assert!(!forced("ro", "ro"), "attached read-only");
        assert!(forced("rw", "ro") && forced("rw", "rw,emergency_ro") && forced("ro", "rw,shutdown"));
        assert_eq!(parse("nonsense"), None);
        assert!(at(Path::new("/proc")).unwrap().is_some_and(|mount| mount.filesystem == "proc"));
        assert_eq!(at(Path::new("/no/such/path")).unwrap(), None);
    }

    #[test]
    fn options_become_flags_where_the_kernel_has_them() {
        let options = ["noatime,nodev".to_owned(), "data=journal".to_owned(), "rw".to_owned()];
        let (flags, own) = split(&options);
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::NODEV);
        assert_eq!(own, ["data=journal"]);
    }

    #[test]
    fn a_path_with_something_in_it_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (point, file) = (dir.path().join("point"), dir.path().join("point/file"));
        std::fs::create_dir(&point).unwrap();
        std::fs::write(&file, "data").unwrap();
        assert!(remove_point(&point).is_err());
        assert!(remove_point(&file).is_err());
        std::fs::write(&file, "").unwrap();
        remove_point(&file).unwrap();
        remove_point(&point).unwrap();
        remove_point(&point).unwrap();
    }
}
