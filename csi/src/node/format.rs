//! A filesystem onto a device, in one step as far as anybody can see: it is made in memory, its blocks are copied,
//! and its superblock comes last. A device that was left half way says so by its mark and is made again; it is never
//! mistaken for somebody's data, nor somebody's data for it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

use super::NodeError;
use super::mounts::patiently;
use super::probe::{Found, MARK, ProbeError, probe};
use crate::filesystem::Filesystem;

const BLOCK: u64 = 4096;
const CHUNK: u64 = 1 << 20;
/// Of xfs. Unlike the rest of a new filesystem it is written whole, so its own choice of up to 2 GiB is not taken.
const XFS_LOG: &str = "size=64m";

/// Formats a device that `probe` finds empty or unfinished; anything else is refused, whatever was found before.
pub(super) fn format(device: &Path, filesystem: Filesystem) -> Result<(), NodeError> {
    match probe(device)? {
        Found::Empty | Found::Unfinished => {}
        Found::Filesystem { kind, .. } => return Err(foreign(device, &format!("a filesystem ({kind})"))),
        Found::Foreign { what } => return Err(foreign(device, &what)),
    }
    let wrong = |step| move |source| NodeError::System { step, path: device.to_owned(), source };
    // Exclusively: a device that is mounted, or in other use, cannot be opened like this.
    let exclusively = rustix::fs::OFlags::EXCL.bits() as i32;
    let target = patiently(|| OpenOptions::new().read(true).write(true).custom_flags(exclusively).open(device))
        .map_err(wrong("opening the device to format it"))?;
    let size = io::Seek::seek(&mut &target, io::SeekFrom::End(0)).map_err(wrong("measuring the device"))?;
    if size < filesystem.least() {
        return Err(NodeError::TooSmall { kind: filesystem, size });
    }
    let image = filesystem_of(size, filesystem)?;

    let mut first = vec![0; BLOCK as usize];
    first[..MARK.len()].copy_from_slice(MARK);
    write_durably(&target, &first).map_err(wrong("marking the device"))?;
    copy(&image, &target, size).map_err(wrong("writing the filesystem"))?;
    target.sync_all().map_err(wrong("writing the filesystem"))?;
    image.read_exact_at(&mut first, 0).map_err(wrong("reading the new filesystem"))?;
    write_durably(&target, &first).map_err(wrong("writing the superblock"))
}

pub(super) fn foreign(device: &Path, what: &str) -> NodeError {
    NodeError::Foreign { device: device.to_owned(), what: what.to_owned() }
}

fn write_durably(target: &File, first: &[u8]) -> io::Result<()> {
    target.write_all_at(first, 0)?;
    target.sync_all()
}

/// A new filesystem of so many bytes, as a sparse file in memory: only its metadata takes room.
fn filesystem_of(size: u64, filesystem: Filesystem) -> Result<File, NodeError> {
    let wrong = |step| move |error: io::Error| NodeError::System { step, path: "memory".into(), source: error };
    let image = memfd_create("cairn-filesystem", MemfdFlags::CLOEXEC)
        .map_err(|e| wrong("making a file in memory")(e.into()))?;
    let image = File::from(image);
    image.set_len(size).map_err(wrong("making a file in memory"))?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd());
    let mut command = match filesystem {
        Filesystem::Ext4 => {
            let mut command = Command::new("mkfs.ext4");
            command.args(["-q", "-F", "-b", "4096", "-m", "0"]);
            command.args(["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]);
            command
        }
        Filesystem::Xfs => {
            let mut command = Command::new("mkfs.xfs");
            // A file does not say that the device's sectors have 4096 bytes.
            command.args(["-q", "-f", "-K", "-b", "size=4096", "-s", "size=4096", "-l", XFS_LOG]);
            command
        }
        Filesystem::Btrfs => {
            let mut command = Command::new("mkfs.btrfs");
            command.args(["-q", "-f", "-K", "-s", "4096"]);
            command
        }
    };
    run(command.arg(path)).map(|_| image)
}

/// Copies what is not a hole, but for the first block.
fn copy(image: &File, target: &File, size: u64) -> io::Result<()> {
    let mut at = BLOCK;
    while at < size {
        let data = match seek(image, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            other => other?,
        };
        let end = seek(image, SeekFrom::Hole(data))?.min(size);
        at = data;
        while at < end {
            let mut chunk = vec![0; (end - at).min(CHUNK) as usize];
            image.read_exact_at(&mut chunk, at)?;
            target.write_all_at(&chunk, at)?;
            at += chunk.len() as u64;
        }
    }
    Ok(())
}

/// Checks an ext4 filesystem before it is mounted, and repairs what can be repaired without asking (the journal first of
/// all). `thoroughly`: every block, as growing it wants.
pub(super) fn check(device: &Path, thoroughly: bool) -> Result<(), NodeError> {
    let mut command = Command::new("e2fsck");
    command.arg("-p").args(thoroughly.then_some("-f")).arg(device);
    // e2fsck(8): 0 is clean, 1 is corrected.
    let code = run_to_code(&mut command)?;
    match code.code {
        Some(0 | 1) => Ok(()),
        _ => Err(NodeError::Damaged { device: device.to_owned(), tool: "e2fsck", report: code.output }),
    }
}

/// Has an ext4 filesystem take up its device: offline, or under its users where the kernel lets this process do that.
pub(super) fn grow(device: &Path) -> Result<(), NodeError> {
    run(Command::new("resize2fs").arg(device)).map(drop)
}

/// Has a filesystem take up its device that can only do so mounted, and for writing.
pub(super) fn grow_mounted(kind: Filesystem, point: &Path) -> Result<(), NodeError> {
    match kind {
        Filesystem::Btrfs => run(Command::new("btrfs").args(["-q", "filesystem", "resize", "max"]).arg(point)),
        _ => run(Command::new("xfs_growfs").arg(point)),
    }
    .map(drop)
}

struct Ended {
    code: Option<i32>,
    output: String,
}

fn run(command: &mut Command) -> Result<String, NodeError> {
    let ended = run_to_code(command)?;
    match ended.code {
        Some(0) => Ok(ended.output),
        _ => {
            let tool = command.get_program().to_string_lossy().into_owned();
            Err(NodeError::Tool { tool, output: ended.output })
        }
    }
}

fn run_to_code(command: &mut Command) -> Result<Ended, NodeError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let ended = command.stdin(Stdio::null()).env("LC_ALL", "C").output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => NodeError::NoTool { package: package_of(&tool), tool: tool.clone() },
        _ => NodeError::System { step: "starting a program", path: tool.clone().into(), source },
    })?;
    let text = [ended.stdout, ended.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).join(" ");
    let output = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect();
    Ok(Ended { code: ended.status.code(), output })
}

fn package_of(tool: &str) -> &'static str {
    match tool {
        tool if tool.contains("btrfs") => "btrfs-progs",
        tool if tool.contains("xfs") => "xfsprogs",
        _ => "e2fsprogs",
    }
}

impl From<ProbeError> for NodeError {
    fn from(error: ProbeError) -> Self {
        Self::Probe(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(size: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        file
    }

    #[test]
    fn a_format_is_whole_or_known_to_be_unfinished_at_every_step() {
        let least = |kind: Filesystem| (kind, kind.least());
        for (kind, size) in [(Filesystem::Ext4, 64 << 20), least(Filesystem::Xfs), least(Filesystem::Btrfs)] {
            let file = device(size);
            let image = filesystem_of(size, kind).unwrap();
            let mut mark = vec![0; 4096];
            mark[..MARK.len()].copy_from_slice(MARK);
            write_durably(file.as_file(), &mark).unwrap();
            assert_eq!(probe(file.path()).unwrap(), Found::Unfinished, "marked, {kind}");
            copy(&image, file.as_file(), size).unwrap();
            assert_eq!(probe(file.path()).unwrap(), Found::Unfinished, "everything but the superblock, {kind}");
            format(file.path(), kind).unwrap();
            assert_eq!(probe(file.path()).unwrap(), Found::Filesystem { kind, bytes: size });
            match kind {
                Filesystem::Ext4 => check(file.path(), true).unwrap(),
                Filesystem::Btrfs => {
                    drop(run(Command::new("btrfs").args(["check", "--readonly"]).arg(file.path())).unwrap());
                }
                Filesystem::Xfs => drop(run(Command::new("xfs_repair").args(["-n", "-f"]).arg(file.path())).unwrap()),
            }
            let again = format(file.path(), kind).unwrap_err().to_string();
            assert!(again.contains(&format!("a filesystem ({kind})")) && again.contains("not formatted"), "{again}");
        }
    }

    #[test]
    fn a_filesystem_takes_little_room_and_grows_with_its_device() {
        let used = |file: &tempfile::NamedTempFile| {
            std::os::unix::fs::MetadataExt::blocks(&file.as_file().metadata().unwrap()) * 512
        };
        let file = device(1 << 30);
        format(file.path(), Filesystem::Ext4).unwrap();
        assert!(used(&file) < 8 << 20, "{} bytes of metadata for 1 GiB", used(&file));
        file.as_file().set_len(2 << 30).unwrap();
        check(file.path(), true).unwrap();
        grow(file.path()).unwrap();
        assert_eq!(probe(file.path()).unwrap(), Found::Filesystem { kind: Filesystem::Ext4, bytes: 2 << 30 });
        for kind in [Filesystem::Xfs, Filesystem::Btrfs] {
            let large = device(1 << 42);
            format(large.path(), kind).unwrap();
            assert!(used(&large) < 80 << 20, "{} bytes of metadata for 4 TiB of {kind}", used(&large));
        }
    }

    #[test]
    fn a_broken_filesystem_is_reported_and_not_touched() {
        let file = device(16 << 20);
        format(file.path(), Filesystem::Ext4).unwrap();
        // Claims more blocks than there are.
        file.as_file().set_len(9 << 20).unwrap();
        let error = check(file.path(), true).unwrap_err().to_string();
        assert!(error.contains("e2fsck"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = run(&mut Command::new("mkfs.no-such")).unwrap_err().to_string();
        assert!(error.contains("mkfs.no-such") && error.contains("e2fsprogs"), "{error}");
        let error = run(&mut Command::new("no-such-btrfs")).unwrap_err().to_string();
        assert!(error.contains("btrfs-progs"), "{error}");
        let error = run(&mut Command::new("no-such-xfs")).unwrap_err().to_string();
        assert!(error.contains("no-such-xfs") && error.contains("xfsprogs"), "{error}");
    }
}
