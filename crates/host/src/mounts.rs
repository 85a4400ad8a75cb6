//! Mounts below a directory: found by what the kernel says, never by what we remember.

use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

/// Mount points at or below `root`, the deepest first.
#[must_use]
pub(crate) fn beneath(root: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = table.lines().filter_map(mount_point).filter(|p| p.starts_with(root)).collect();
    points.sort();
    points.reverse();
    points
}

/// Unmounts; a filesystem whose device is gone is detached by force. A FUSE connection is aborted by that, so that
/// nobody waits for an answer that never comes.
pub(crate) fn unmount(point: &Path) {
    if rustix::mount::unmount(point, UnmountFlags::empty()).is_ok() {
        return;
    }
    if let Err(error) = rustix::mount::unmount(point, UnmountFlags::FORCE | UnmountFlags::DETACH) {
        tracing::warn!(point = %point.display(), %error, "cannot unmount");
    }
}

/// The fifth field of a mountinfo line, with its octal escapes undone (proc(5)).
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
    let mut path = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        path.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4)?;
        path.push(char::from(u8::from_str_radix(code, 8).ok()?));
        rest = &rest[at + 4..];
    }
    path.push_str(rest);
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_with_a_space_is_read() {
        let line = r"36 35 98:0 / /mnt/a\040b rw,noatime shared:1 - ext4 /dev/loop0 rw";
        assert_eq!(mount_point(line).unwrap(), Path::new("/mnt/a b"));
    }

    #[test]
    fn the_root_is_always_there() {
        assert_eq!(beneath(Path::new("/")).last().unwrap(), Path::new("/"));
    }
}
