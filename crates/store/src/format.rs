//! Making a device ours: a zeroed log, a superblock, nothing else. A sparse file stays sparse but for the log, so
//! that a first flush costs no journal commit of the filesystem below, and formatting takes as long as writing it.

use cairn_disk::{AlignedBuf, Disk};
use cairn_types::Incarnation;
use uuid::Uuid;

use crate::error::Error;
use crate::superblock::{COPIES, Checkpoint, Identity, MAGIC, REGIONS_START, ShardLayout, Superblock};

/// The smallest log.
pub const MIN_RING: u64 = 1 << 20;
/// The smallest area.
pub const MIN_AREA: u64 = 4 << 20;

/// Blocks of the area that are written at once, at most.
const FIRST_BLOCKS: u64 = 1024;

/// How to format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatOptions {
    /// The identity to write; random, made by the caller.
    pub osd_uuid: Uuid,
    /// Bytes of the log; `None` for 1/128 of the device, at least 16 MiB and at most 1 GiB.
    pub ring_len: Option<u64>,
    /// Even when there is a superblock already.
    pub force: bool,
}

/// Formats the device.
///
/// # Errors
/// When the device is too small, formatted already, or not blank; or when it fails.
pub fn format(disk: &dyn Disk, options: &FormatOptions) -> Result<(), Error> {
    let device_len = disk.len();
    let ring_len = options.ring_len.unwrap_or((device_len / 128).clamp(16 << 20, 1 << 30)) / 4096 * 4096;
    let ring_len = ring_len.max(MIN_RING);
    let area_start = REGIONS_START + ring_len;
    let needed = area_start + MIN_AREA;
    if device_len < needed {
        return Err(Error::TooSmall { found: device_len, needed });
    }
    if !options.force {
        if let Some(superblock) = read_superblock(disk)? {
            return Err(Error::AlreadyFormatted { cluster: superblock.identity.cluster });
        }
        check_blank(disk)?;
    }
    let area_len = device_len - area_start;
    let zeros = AlignedBuf::zeroed(4 << 20).freeze();
    for copy in COPIES {
        disk.write_at(copy, &[zeros.slice(..4096)])?;
    }
    disk.sync()?;
    let mut at = 0;
    while at < ring_len {
        let len = (ring_len - at).min(zeros.len() as u64);
        disk.write_at(REGIONS_START + at, &[zeros.slice(..len as usize)])?;
        at += len;
    }
    let mut written_through = area_start / 4096;
    if disk.wants_prewrite() {
        // Room for the index, whatever becomes of the filesystem below.
        let blocks = (area_len / 4096 / 128).clamp(64, FIRST_BLOCKS).min(zeros.len() as u64 / 4096);
        disk.write_at(area_start, &[zeros.slice(..blocks as usize * 4096)])?;
        written_through += blocks;
    }
    disk.sync()?;
    let superblock = Superblock {
        sequence: 1,
        mount: 0,
        identity: Identity { cluster: Uuid::nil(), osd_uuid: options.osd_uuid, osd: None, incarnation: Incarnation(0) },
        device_len,
        compat: 0,
        shards: vec![ShardLayout { ring_start: REGIONS_START, ring_len, area_start, area_len }],
        checkpoint: Checkpoint {
            next_lsn: 1,
            ring_pos: 0,
            prev_crc: 0,
            root: None,
            number: 0,
            written_through,
            durable_lsn: 0,
        },
    };
    write_superblock(disk, &superblock)
}

/// Nothing of anybody's is overwritten unasked: whatever makes a device its own marks its first 128 KiB. A superblock
/// of ours that was torn while the device was formatted does not count; a device in use has one in copy A too.
fn check_blank(disk: &dyn Disk) -> Result<(), Error> {
    let mut head = vec![0; 128 << 10];
    disk.read_at(0, &mut head)?;
    let copy = COPIES[1] as usize..COPIES[1] as usize + 4096;
    if head[copy.clone()].starts_with(&MAGIC.to_le_bytes()) {
        head[copy].fill(0);
    }
    match head.iter().position(|byte| *byte != 0) {
        Some(at) => Err(Error::NotBlank { at: at as u64 }),
        None => Ok(()),
    }
}

/// The newest valid superblock; `None` when there is none.
///
/// # Errors
/// When the disk fails, or holds a superblock that this program must not use, or was in use and has none any more.
pub fn read_superblock(disk: &dyn Disk) -> Result<Option<Superblock>, Error> {
    let mut newest: Option<Superblock> = None;
    let mut unreadable = None;
    let mut marks = Vec::new();
    for copy in COPIES {
        let mut block = vec![0; 4096];
        match disk.read_at(copy, &mut block) {
            Ok(()) => marks.push((block.starts_with(&MAGIC.to_le_bytes()), block.iter().any(|byte| *byte != 0))),
            // A bad sector is as bad as a rotten one, and is whole again when it is written.
            Err(error @ cairn_disk::Error::Io { .. }) => {
                unreadable = Some(error);
                continue;
            }
            Err(error) => return Err(Error::Disk(error)),
        }
        let decoded = Superblock::decode(&block)
            .map_err(|malformed| Error::Malformed { place: format!("the superblock at byte {copy}"), malformed })?;
        if let Some(superblock) = decoded
            && newest.as_ref().is_none_or(|newest| newest.sequence < superblock.sequence)
        {
            newest = Some(superblock);
        }
    }
    match newest {
        Some(superblock) if superblock.device_len > disk.len() => {
            Err(Error::TooSmall { found: disk.len(), needed: superblock.device_len })
        }
        Some(superblock) => Ok(Some(superblock)),
        None => match unreadable {
            _ if marks.len() == COPIES.len() && !was_in_use(&marks) => Ok(None),
            Some(error) if !marks.iter().any(|(ours, _)| *ours) => Err(Error::Disk(error)),
            _ => Err(Error::CorruptSuperblock),
        },
    }
}

/// Copy A is written only when B was whole: with anything in A and our mark on either, this is no device whose format
/// was cut short. Per copy: our mark stands there, anything does.
fn was_in_use(marks: &[(bool, bool)]) -> bool {
    marks.iter().any(|(ours, _)| *ours) && marks.first().is_some_and(|(_, anything)| *anything)
}

/// Writes a superblock to its slot and makes it durable.
pub(crate) fn write_superblock(disk: &dyn Disk, superblock: &Superblock) -> Result<(), Error> {
    disk.write_at(superblock.slot(), &[bytes::Bytes::from(superblock.encode())])?;
    disk.sync()?;
    Ok(())
}
