//! What is mounted where, and taking it away again. The only room that calls mount(2) and umount(2).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

/// Mount points at or beneath `path`, deepest first.
pub(crate) fn beneath(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = points(&table).filter(|point| point.starts_with(path)).collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(found)
}

/// Whether something is mounted exactly here.
pub(crate) fn is_mounted(path: &Path) -> std::io::Result<bool> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(points(&table).any(|point| point == path))
}

/// A tmpfs, for secrets and for emptyDir in memory.
pub(crate) fn mount_tmpfs(path: &Path, size_bytes: Option<u64>, mode: u32) -> std::io::Result<()> {
    let mut data = format!("mode={mode:o}");
    if let Some(size) = size_bytes {
        data.push_str(&format!(",size={size}"));
    }
    let data = std::ffi::CString::new(data).expect("digits and letters hold no zero byte");
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, data.as_c_str())?;
    Ok(())
}

/// Makes a file or directory visible at a second place.
pub(crate) fn bind(source: &Path, target: &Path) -> std::io::Result<()> {
    Ok(rustix::mount::mount_bind(source, target)?)
}

/// Unmounts; when something still has it open, it goes away with its last user.
pub(crate) fn detach(path: &Path) -> std::io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// Removes a directory tree in which nothing may be mounted: what is mounted is somebody's data.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    if let Some(point) = beneath(path)?.first() {
        let message = format!("{} is still mounted, so {} was left alone", point.display(), path.display());
        return Err(std::io::Error::new(std::io::ErrorKind::ResourceBusy, message));
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The mount points of a mountinfo table (proc_pid_mountinfo(5)): its fifth column.
fn points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) => {
                out.push(value);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::{beneath, detach, is_mounted, mount_tmpfs, points, remove_tree};
    use std::path::PathBuf;

    #[test]
    fn escaped_names_are_read() {
        let table = b"22 1 0:20 / /a\\040b rw - tmpfs tmpfs rw\n23 1 0:21 / /c rw - ext4 /dev/x rw\n";
        assert_eq!(points(table).collect::<Vec<_>>(), [PathBuf::from("/a b"), PathBuf::from("/c")]);
    }

    #[test]
    fn a_tree_with_a_mount_in_it_is_left_alone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let inner = dir.path().join("pod/volume");
        std::fs::create_dir_all(&inner).expect("made");
        mount_tmpfs(&inner, Some(1 << 20), 0o755).expect("mounted (this test needs root)");
        std::fs::write(inner.join("data"), b"precious").expect("written");
        assert!(is_mounted(&inner).expect("readable"));
        assert_eq!(beneath(&dir.path().join("pod")).expect("readable"), std::slice::from_ref(&inner));
        let refused = remove_tree(&dir.path().join("pod")).expect_err("something is mounted");
        assert!(refused.to_string().contains("still mounted"), "{refused}");
        assert!(inner.join("data").exists());
        detach(&inner).expect("unmounted");
        remove_tree(&dir.path().join("pod")).expect("removed");
        assert!(!dir.path().join("pod").exists());
    }
}
