//! `subPath` mounts: a part of a volume, pinned so that nothing inside the volume can lead outside.
//!
//! A container may put a link to `/etc` where another container's subPath points. The path is therefore opened by the
//! kernel beneath the volume (openat2 with RESOLVE_BENEATH) and what was opened, not its name, is bound to a place of
//! our own.

use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::mounts;

/// Binds `volume/subpath` to `target` and returns the target. The directory is made when it is missing.
pub(crate) fn pin(volume: &Path, subpath: &str, target: &Path) -> std::io::Result<PathBuf> {
    let relative = Path::new(subpath);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        let message = format!("subPath {subpath:?} must be relative and without \"..\"");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, message));
    }
    if mounts::is_mounted(target)? {
        return Ok(target.to_owned());
    }
    let root = rustix::fs::open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let opened = match open_beneath(root.as_fd(), relative) {
        Err(Errno::NOENT) => make(root.as_fd(), relative)?,
        other => other?,
    };
    let stat = rustix::fs::fstat(&opened)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        std::fs::create_dir_all(target)?;
    } else {
        std::fs::create_dir_all(target.parent().unwrap_or(target))?;
        std::fs::File::create(target)?;
    }
    let source = format!("/proc/self/fd/{}", opened.as_raw_fd());
    mounts::bind(Path::new(&source), target)?;
    Ok(target.to_owned())
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

/// Makes the directories of the path one by one, each opened beneath the one before.
fn make(root: BorrowedFd<'_>, path: &Path) -> std::io::Result<OwnedFd> {
    let mut walked = PathBuf::new();
    let mut current =
        rustix::fs::openat(root, c".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        walked.push(name);
        current = match open_beneath(root, &walked) {
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    Err(Errno::EXIST) | Ok(()) => {}
                    Err(error) => return Err(error.into()),
                }
                open_beneath(root, &walked)?
            }
            other => other?,
        };
    }
    Ok(current)
}

#[cfg(test)]
mod tests {
    use super::pin;
    use crate::mounts;

    #[test]
    fn links_that_lead_outside_are_refused_and_others_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = dir.path().join("volume");
        let target = |name: &str| dir.path().join("pins").join(name);
        std::fs::create_dir_all(volume.join("real")).expect("made");
        std::fs::write(volume.join("real/file"), "inside").expect("written");
        std::os::unix::fs::symlink("/etc", volume.join("evil")).expect("linked");
        std::os::unix::fs::symlink("../..", volume.join("real/up")).expect("linked");
        std::os::unix::fs::symlink("real", volume.join("alias")).expect("linked");
        for bad in ["evil", "evil/passwd", "real/up", "../x", "/etc", "evil/new"] {
            assert!(pin(&volume, bad, &target("bad")).is_err(), "{bad}");
            assert!(!mounts::is_mounted(&target("bad")).expect("readable"), "{bad}");
        }
        let file = pin(&volume, "alias/file", &target("file")).expect("pinned");
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), "inside");
        let fresh = pin(&volume, "new/deep", &target("fresh")).expect("made and pinned");
        std::fs::write(fresh.join("x"), "y").expect("written");
        assert_eq!(std::fs::read_to_string(volume.join("new/deep/x")).expect("readable"), "y");
        assert_eq!(pin(&volume, "new/deep", &target("fresh")).expect("again"), fresh);
        for point in mounts::beneath(dir.path()).expect("readable") {
            mounts::detach(&point).expect("unmounted");
        }
    }
}
