//! What is on a device, found by reading it. The rule of this room: a device counts as empty only if every area where
//! a filesystem, a partition table or a volume manager keeps its signature was READ and is zero. What could not be read
//! is an error and never "empty", and what is not zero and not known is somebody's data.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::filesystem::Filesystem;

/// Signatures stand within this many bytes of either end: ext4, xfs, btrfs, swap, LVM, LUKS, MBR, GPT and md in the
/// first, backup GPT and old md in the last; ZFS labels in both.
const AREA: u64 = 1 << 20;

/// Written to the first block before formatting and overwritten by the superblock as the very last step: a device
/// that has it holds nothing but an unfinished filesystem that nobody ever mounted.
pub(super) const MARK: &[u8] = b"cairn csi: formatting, version 1\n";
/// Of any version.
const MARK_STEM: &[u8] = b"cairn csi: formatting, version ";

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing: it may be formatted.
    Empty,
    /// A format that was interrupted: it may be formatted.
    Unfinished,
    /// One that can be mounted, of so many bytes. ext2 and ext3 count as ext4.
    Filesystem { kind: Filesystem, bytes: u64 },
    /// Something else.
    Foreign { what: String },
}

/// The device could not be read, so nothing is known about it.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read {} at byte {offset} ({source}); it was NOT formatted; check that the cluster serves I/O (cairn health) and try again",
    device.display()
)]
pub(crate) struct ProbeError {
    pub(super) device: PathBuf,
    pub(super) offset: u64,
    pub(super) source: io::Error,
}

/// Looks at a device.
pub(super) fn probe(device: &Path) -> Result<Found, ProbeError> {
    let failed = |offset| move |source| ProbeError { device: device.to_owned(), offset, source };
    let file = File::open(device).map_err(failed(0))?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(failed(0))?;
    let head = read(&file, 0, AREA.min(size)).map_err(failed(0))?;
    let start = size.saturating_sub(AREA).max(AREA.min(size));
    let tail = read(&file, start, size - start).map_err(failed(start))?;
    Ok(judge(&head, start, &tail))
}

fn read(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0xff; usize::try_from(len).expect("an area is small")];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn judge(head: &[u8], start: u64, tail: &[u8]) -> Found {
    if let Some(rest) = head.strip_prefix(MARK) {
        let only_the_mark = rest.iter().take(4096 - MARK.len()).all(|byte| *byte == 0);
        return if only_the_mark { Found::Unfinished } else { foreign("a formatting mark with data behind it") };
    }
    if head.starts_with(MARK_STEM) {
        return foreign("an unfinished filesystem made by another version of this driver");
    }
    if let Some(bytes) = ext4_bytes(head) {
        return Found::Filesystem { kind: Filesystem::Ext4, bytes };
    }
    if let Some(bytes) = xfs_bytes(head) {
        return Found::Filesystem { kind: Filesystem::Xfs, bytes };
    }
    if let Some(bytes) = btrfs_bytes(head) {
        return Found::Filesystem { kind: Filesystem::Btrfs, bytes };
    }
    if let Some(name) = known(head) {
        return foreign(name);
    }
    let data = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0).map(|at| at as u64);
    match data(head).or_else(|| data(tail).map(|at| start + at)) {
        Some(at) => foreign(&format!("data at byte {at} that is no known filesystem")),
        None => Found::Empty,
    }
}

fn foreign(what: &str) -> Found {
    Found::Foreign { what: what.to_owned() }
}

/// The size of an ext2/3/4 filesystem, by its superblock (Documentation/filesystems/ext4, "Super Block").
fn ext4_bytes(head: &[u8]) -> Option<u64> {
    let superblock = head.get(1024..2048)?;
    let u32_at = |at: usize| u32::from_le_bytes(superblock[at..at + 4].try_into().expect("four bytes"));
    if superblock[56..58] != [0x53, 0xef] {
        return None;
    }
    let large = u32_at(96) & 0x80 != 0;
    let blocks = u64::from(u32_at(4)) | if large { u64::from(u32_at(0x150)) << 32 } else { 0 };
    blocks.checked_mul(1024u64.checked_shl(u32_at(24)).filter(|size| *size <= 65536)?)
}

/// The size of an xfs filesystem, by its superblock (XFS Algorithms & Data Structures, "Superblocks"): all numbers are
/// big-endian. One that its own mkfs did not finish (`sb_inprogress`) is none.
fn xfs_bytes(head: &[u8]) -> Option<u64> {
    let superblock = head.get(..512)?;
    if !superblock.starts_with(b"XFSB") || superblock[126] != 0 {
        return None;
    }
    let block = u32::from_be_bytes(superblock[4..8].try_into().expect("four bytes"));
    let blocks = u64::from_be_bytes(superblock[8..16].try_into().expect("eight bytes"));
    let sane = block.is_power_of_two() && (512..=65536).contains(&block) && blocks != 0;
    blocks.checked_mul(u64::from(block)).filter(|_| sane)
}

/// The size of a btrfs filesystem that has this device alone, by its superblock (btrfs-dev-docs, "On-disk format"): 64 KiB
/// from the start, little-endian.
fn btrfs_bytes(head: &[u8]) -> Option<u64> {
    let superblock = head.get(0x10000..0x11000)?;
    let u64_at = |at: usize| u64::from_le_bytes(superblock[at..at + 8].try_into().expect("eight bytes"));
    let alone = u64_at(0x88) == 1 && u64_at(0x30) == 0x10000;
    (superblock[0x40..0x48] == *b"_BHRfS_M" && alone).then(|| u64_at(0x70)).filter(|bytes| *bytes != 0)
}

/// Others, by the signature at their place.
fn known(head: &[u8]) -> Option<&'static str> {
    let signatures: [(usize, &[u8], &str); 10] = [
        (0, b"XFSB", "an unfinished or broken xfs filesystem"),
        (0x10040, b"_BHRfS_M", "a broken btrfs filesystem, or one of several devices"),
        (0, b"LUKS\xba\xbe", "an encrypted (LUKS) volume"),
        (4086, b"SWAPSPACE2", "swap space"),
        (512, b"LABELONE", "an LVM physical volume"),
        (0x8001, b"CD001", "an ISO 9660 filesystem"),
        (512, b"EFI PART", "a partition table (GPT)"),
        (4096, b"EFI PART", "a partition table (GPT)"),
        (4096, b"\xfc\x4e\x2b\xa9", "a RAID member (md)"),
        (510, b"\x55\xaa", "a partition table (MBR) or a boot sector"),
    ];
    let matches = |(at, magic, _): &(usize, &[u8], &str)| head.get(*at..*at + magic.len()) == Some(*magic);
    signatures.iter().find(|signature| matches(signature)).map(|(.., name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64, writes: &[(u64, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        writes.iter().for_each(|(at, bytes)| file.as_file().write_all_at(bytes, *at).unwrap());
        file
    }

    fn found(writes: &[(u64, &[u8])]) -> Found {
        probe(image(8 << 20, writes).path()).unwrap()
    }

    #[test]
    fn only_zeros_at_both_ends_are_empty() {
        assert_eq!(found(&[]), Found::Empty);
        for at in [0, 511, 4096, 65536, AREA - 1, (8 << 20) - AREA, (8 << 20) - 1] {
            let Found::Foreign { what } = found(&[(at, &[1])]) else { panic!("byte {at} went unseen") };
            assert_eq!(what, format!("data at byte {at} that is no known filesystem"));
        }
        for size in [4096, AREA, AREA + 4096, 2 * AREA - 4096] {
            assert_eq!(probe(image(size, &[]).path()).unwrap(), Found::Empty);
            let last = image(size, &[(size - 1, &[1])]);
            assert!(matches!(probe(last.path()).unwrap(), Found::Foreign { .. }), "of {size} bytes");
        }
    }

    #[test]
    fn others_are_called_by_their_names() {
        let what = |writes: &[(u64, &[u8])]| match found(writes) {
            Found::Foreign { what } => what,
            other => panic!("{other:?}"),
        };
        let xfs = b"XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00\x08\x00";
        assert_eq!(found(&[(0, xfs)]), Found::Filesystem { kind: Filesystem::Xfs, bytes: 8 << 20 });
        assert_eq!(what(&[(0, xfs), (126, &[1])]), "an unfinished or broken xfs filesystem");
        assert_eq!(what(&[(0, b"XFSB")]), "an unfinished or broken xfs filesystem");
        let number = |n: u64| n.to_le_bytes();
        let btrfs = |devices: u64| {
            let [at, bytes, devices] = [0x10000, 8 << 20, devices].map(number);
            found(&[(0x10030, &at), (0x10040, b"_BHRfS_M"), (0x10070, &bytes), (0x10088, &devices)])
        };
        assert_eq!(btrfs(1), Found::Filesystem { kind: Filesystem::Btrfs, bytes: 8 << 20 });
        assert_eq!(btrfs(2), foreign("a broken btrfs filesystem, or one of several devices"));
        assert_eq!(what(&[(0x10040, b"_BHRfS_M")]), "a broken btrfs filesystem, or one of several devices");
        assert_eq!(what(&[(510, b"\x55\xaa"), (512, b"EFI PART")]), "a partition table (GPT)");
    }

    #[test]
    fn an_interrupted_format_is_known_by_its_mark_alone() {
        assert_eq!(found(&[(0, MARK), (5 << 20, b"an inode table")]), Found::Unfinished);
        assert!(matches!(found(&[(0, MARK), (2000, b"x")]), Found::Foreign { .. }));
        assert!(matches!(found(&[(0, b"cairn csi: formatting, version 2\n")]), Found::Foreign { .. }));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let error = probe(Path::new("/no/such/device")).unwrap_err();
        assert!(error.to_string().contains("NOT formatted"), "{error}");
    }
}
