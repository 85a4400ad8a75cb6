//! The mounts of this process's namespace that stand on one block device.

use std::io;
use std::path::{Path, PathBuf};

/// Mount points of filesystems on this device, innermost last.
///
/// # Errors
/// When the kernel's list cannot be read.
pub(crate) fn mounted_from(device: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(points(&String::from_utf8_lossy(&table), device))
}

/// proc(5): `id parent major:minor root mount-point options [optional...] - type source super-options`.
fn points(table: &str, device: &Path) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let source = right.split(' ').nth(1)?;
        let point = left.split(' ').nth(4)?;
        (Path::new(&plain(source)) == device).then(|| PathBuf::from(plain(point)))
    };
    table.lines().filter_map(point).collect()
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn plain(field: &str) -> String {
    let pairs = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    pairs.iter().fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_devices_mounts_are_found() {
        let table = "29 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     31 29 7:3 / /var/lib/a\\040b rw shared:5 - ext4 /dev/loop3 rw\n\
                     32 29 7:3 / /pods/x rw - ext4 /dev/loop3 rw\n\
                     33 29 7:33 / /other rw - ext4 /dev/loop33 rw\n";
        let found = points(table, Path::new("/dev/loop3"));
        assert_eq!(found, [PathBuf::from("/var/lib/a b"), PathBuf::from("/pods/x")]);
    }
}
