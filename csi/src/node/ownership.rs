//! Gives the files of a volume to a group, as Kubernetes' fsGroup does: everything belongs to the group, which may do what
//! the owner may; and what is made later in a directory belongs to the group too (the set-group-ID bit).
//!
//! The root directory is changed last and looked at first: where it is the group's already, so is the rest, and a walk that
//! was interrupted is begun anew. Other programs may be at work in the volume meanwhile: nothing is reached by a path, and no
//! symbolic link is followed, so that nothing outside the volume can be touched.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, chownat, fchmod, fchown, fstat, openat};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::NodeError;

/// The group reads and writes what it owns, and enters directories; what is made there is its too.
const OF_FILES: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP).union(Mode::WGRP);
const OF_DIRECTORIES: Mode = OF_FILES.union(Mode::XUSR).union(Mode::XGRP).union(Mode::SGID);
/// Directories below each other; each takes two descriptors while what is below it is walked. Deeper ones are refused, and
/// not left as they are.
const DEEPEST: usize = 256;

/// Whether this process may give files to a group at all.
pub(super) fn is_possible() -> bool {
    let needed = CapabilitySet::CHOWN | CapabilitySet::FOWNER | CapabilitySet::FSETID | CapabilitySet::DAC_OVERRIDE;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Everything below `root`, and `root` itself, belongs to the group afterwards. May block.
pub(super) fn give(root: &Path, group: u32) -> Result<(), NodeError> {
    let failed = |error: Errno| NodeError::system("giving the files to the volume mount group", root)(error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(root, flags, Mode::empty()).map_err(failed)?;
    let found = fstat(&opened).map_err(failed)?;
    if found.st_gid == group && Mode::from_raw_mode(found.st_mode).contains(OF_DIRECTORIES) {
        return Ok(());
    }
    tracing::info!(root = %root.display(), group, "giving the files to the group");
    give_below(opened.as_fd(), Gid::from_raw(group), found.st_dev, 0).map_err(failed)?;
    give_directory(opened.as_fd(), Gid::from_raw(group)).map_err(failed)
}

fn give_directory(directory: BorrowedFd<'_>, group: Gid) -> Result<(), Errno> {
    fchown(directory, None, Some(group))?;
    let mode = Mode::from_raw_mode(fstat(directory)?.st_mode);
    fchmod(directory, mode | OF_DIRECTORIES)
}

fn give_below(directory: BorrowedFd<'_>, group: Gid, device: u64, depth: usize) -> Result<(), Errno> {
    if depth > DEEPEST {
        return Err(Errno::NAMETOOLONG);
    }
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match give_one(directory, name, group, device, depth) {
            // Somebody removed it, or put a link in its place.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NOTDIR) => {}
            other => other?,
        }
    }
    Ok(())
}

fn give_one(directory: BorrowedFd<'_>, name: &CStr, group: Gid, device: u64, depth: usize) -> Result<(), Errno> {
    let found = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let open = |kind| -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(directory, name, flags | kind, Mode::empty())
    };
    match FileType::from_raw_mode(found.st_mode) {
        // Something else is mounted there.
        _ if found.st_dev != device => Ok(()),
        FileType::Directory => {
            let inner = open(OFlags::DIRECTORY)?;
            give_below(inner.as_fd(), group, device, depth + 1)?;
            give_directory(inner.as_fd(), group)
        }
        FileType::RegularFile => {
            let file = open(OFlags::empty())?;
            fchown(&file, None, Some(group))?;
            let mode = Mode::from_raw_mode(fstat(&file)?.st_mode);
            fchmod(&file, mode | OF_FILES)
        }
        // Links, sockets, pipes and devices have the group, and no bits that matter.
        _ => chownat(directory, name, None, Some(group), AtFlags::SYMLINK_NOFOLLOW),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    /// Group and permission bits.
    fn of(path: &Path) -> (u32, u32) {
        let found = fs::symlink_metadata(path).unwrap();
        (found.gid(), found.mode() & 0o7777)
    }

    #[test]
    fn everything_below_is_the_groups_and_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        fs::set_permissions(root.join("a/b/file"), Permissions::from_mode(0o700)).unwrap();
        fs::write(&outside, "x").unwrap();
        fs::set_permissions(&outside, Permissions::from_mode(0o600)).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(dir.path(), root.join("a/up")).unwrap();
        let before = of(&outside);
        give(&root, 2000).unwrap();
        assert_eq!((of(&root), of(&root.join("a/b"))), ((2000, 0o2775), (2000, 0o2775)));
        assert_eq!(of(&root.join("a/b/file")), (2000, 0o760));
        assert_eq!(of(&root.join("link")).0, 2000);
        assert_eq!(of(&outside), before);
        fs::write(root.join("later"), "x").unwrap();
        assert_eq!(of(&root.join("later")).0, 2000, "what is made later is the group's too");
        // Where the root is the group's, nothing is walked: what a program gave away on purpose stays so.
        rustix::fs::chown(root.join("later"), None, Some(Gid::from_raw(7))).unwrap();
        give(&root, 2000).unwrap();
        assert_eq!(of(&root.join("later")).0, 7);
        give(&root, 3000).unwrap();
        assert_eq!((of(&root).0, of(&root.join("later")).0), (3000, 3000));
        assert!(give(&outside, 2000).unwrap_err().to_string().contains("volume mount group"));
        let deep: std::path::PathBuf = std::iter::repeat_n("d", DEEPEST + 2).collect();
        fs::create_dir_all(root.join(deep)).unwrap();
        let refused = give(&root, 4000).unwrap_err().to_string();
        assert!(refused.contains("too long"), "{refused}");
        assert_eq!(of(&root).0, 3000, "the root says that it is not done");
    }
}
