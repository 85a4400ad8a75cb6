//! How a published volume fares: how much of it is used, and whether it can be used at all. Only looked at: nothing is
//! mounted, checked or repaired here, and whatever is said comes from the kernel and from `attach` at that moment.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use cairn_proto::attach::Exported;
use cairn_proto::csi;
use cairn_proto::csi::volume_usage::Unit;
use cairn_types::BLOCK_SIZE;
use cairn_types::VolumeId;

use super::NodeError;
use super::mounts::{self, Mount};

/// Use and condition of the volume that is mounted at `path`. All of it may block.
pub(super) fn of(
    volume: VolumeId,
    path: &Path,
    exports: &[Exported],
) -> Result<csi::NodeGetVolumeStatsResponse, NodeError> {
    let elsewhere = || NodeError::NotPublished { volume, path: path.to_owned() };
    let table = NodeError::system("reading the mount table", path);
    let mount = mounts::at(path).map_err(table)?.ok_or_else(elsewhere)?;
    let raw = is_device(path);
    if !raw && !mount.source.starts_with("/dev") {
        return Err(elsewhere());
    }
    let device = if raw { path } else { &mount.source };
    let shown = exports.iter().find(|exported| is_same(device, Path::new(&exported.device)));
    let fault = match shown {
        Some(exported) if exported.volume == volume.0 => {
            of_export(&exported.state).or_else(|| of_mount(&mount)).or_else(|| of_path(path))
        }
        // Somebody else's.
        Some(_) => return Err(elsewhere()),
        None if !is_dead(device) => return Err(elsewhere()),
        None => {
            Some("the device is gone, every access fails; delete the pod, so that the volume is attached anew".into())
        }
    };
    let usage = if raw { of_device(device) } else { of_filesystem(path) };
    Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition: Some(condition(fault)) })
}

/// A condition always has words.
fn condition(fault: Option<String>) -> csi::VolumeCondition {
    csi::VolumeCondition {
        abnormal: fault.is_some(),
        message: fault.unwrap_or_else(|| "the device serves, and is mounted as it was asked for".to_owned()),
    }
}

/// By the states of `Exported.state`.
fn of_export(state: &str) -> Option<String> {
    Some(match state {
        "serving" => return None,
        "fenced" => {
            "another node has taken the volume over, every access fails here; delete the pod, so that the volume is attached \
             anew"
                .to_owned()
        }
        "failed" => {
            "the device has stopped serving, every access fails; delete the pod, so that the volume is attached anew".to_owned()
        }
        "reconnecting" => {
            "the attach daemon is taking the device up again, and accesses wait; if that lasts, see the log of `cairn attach`"
                .to_owned()
        }
        other => format!("the attach daemon calls the device `{other}`; run the same version of it and of this driver"),
    })
}

fn of_mount(mount: &Mount) -> Option<String> {
    mount.forced_read_only.then(|| {
        format!(
            "the kernel found the {} filesystem damaged and takes no more writes; see the kernel's log, delete the pod, so \
             that the filesystem is checked when it is mounted next",
            mount.filesystem
        )
    })
}

/// A filesystem that was shut down does not even show its root.
fn of_path(path: &Path) -> Option<String> {
    let error = std::fs::metadata(path).err()?;
    Some(format!(
        "the filesystem does not answer ({error}); see the kernel's log, delete the pod, so that the filesystem is \
         checked when it is mounted next"
    ))
}

fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device())
}

fn is_same(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| is_device(path).then(|| mounts::device_number(path).ok()).flatten();
    number(one).is_some_and(|found| number(other) == Some(found))
}

/// Whether a device is there and cannot be read. It is asked itself, past the page cache. Only for devices that nobody
/// exports: there an answer never waits for the cluster.
fn is_dead(device: &Path) -> bool {
    let read = || -> io::Result<()> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new().read(true).custom_flags(direct).open(device)?;
        // Direct reads want whole blocks at whole blocks of memory.
        let block = BLOCK_SIZE as usize;
        let mut room = vec![0; 2 * block];
        let start = room.as_ptr().align_offset(block);
        file.read_exact_at(&mut room[start..start + block], 0)
    };
    // What may not be opened says nothing about itself.
    read().is_err_and(|error| !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied))
}

/// The size alone: what a raw device's blocks hold is its user's business.
fn of_device(device: &Path) -> Vec<csi::VolumeUsage> {
    let size = File::open(device).and_then(|file| io::Seek::seek(&mut &file, io::SeekFrom::End(0)));
    size.map(|size| csi::VolumeUsage { total: signed(size), unit: Unit::Bytes.into(), ..Default::default() })
        .into_iter()
        .collect()
}

/// As df(1) counts. Nothing, where the filesystem does not answer.
fn of_filesystem(path: &Path) -> Vec<csi::VolumeUsage> {
    let Ok(counted) = rustix::fs::statvfs(path) else { return Vec::new() };
    let usage = |total: u64, free: u64, available: u64, of_one: u64, unit: Unit| csi::VolumeUsage {
        available: signed(available.saturating_mul(of_one)),
        total: signed(total.saturating_mul(of_one)),
        used: signed(total.saturating_sub(free).saturating_mul(of_one)),
        unit: unit.into(),
    };
    let bytes = usage(counted.f_blocks, counted.f_bfree, counted.f_bavail, counted.f_frsize, Unit::Bytes);
    // btrfs makes inodes as it needs them, and counts none.
    let inodes = || usage(counted.f_files, counted.f_ffree, counted.f_favail, 1, Unit::Inodes);
    std::iter::once(bytes).chain((counted.f_files > 0).then(inodes)).collect()
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_serving_device_is_well() {
        assert_eq!(of_export("serving"), None);
        for (state, words) in [
            ("fenced", "another node"),
            ("failed", "stopped serving"),
            ("reconnecting", "accesses wait"),
            ("dreaming", "`dreaming`"),
        ] {
            let said = condition(of_export(state));
            assert!(said.abnormal && said.message.contains(words), "{}", said.message);
        }
        let well = condition(None);
        assert!(!well.abnormal && !well.message.is_empty());
    }

    #[test]
    fn what_is_no_volume_of_ours_is_not_found() {
        let refused = |path: &str| of(VolumeId(7), Path::new(path), &[]).unwrap_err();
        for path in ["some/path", "/proc", "/dev/null", "/"] {
            let error = refused(path);
            assert_eq!(error.code(), tonic::Code::NotFound, "{path}: {error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_filesystem_is_counted_as_df_counts() {
        let [bytes, inodes] = of_filesystem(Path::new("/")).try_into().unwrap();
        assert_eq!((bytes.unit(), inodes.unit()), (Unit::Bytes, Unit::Inodes));
        assert!(bytes.total > 0 && bytes.used > 0 && bytes.used + bytes.available <= bytes.total, "{bytes:?}");
        assert!(of_filesystem(Path::new("/no/such/path")).is_empty());
    }
}
