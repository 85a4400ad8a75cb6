//! `cairn osd create`: a disk of this host becomes an OSD, formatted here, registered by its own process.

use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use cairn_disk::{Disk, FileDisk, OpenOptions};
use cairn_host::cluster::{OsdDisk, check_osd_size};
use cairn_host::supervisor::State;
use cairn_host::{Cluster, Layout};
use cairn_store::FormatOptions;
use cairn_types::map::Osd;
use clap::Args;
use rustix::process::Signal;
use uuid::Uuid;

use crate::admin::{Metadata, Target};
use crate::failure::{Code, Failure, Outcome};
use crate::{size, up};

/// Zeroed at both ends of what is wiped.
const WIPED: u64 = 1 << 20;

/// A disk for an OSD.
#[derive(Args)]
pub(crate) struct OsdCreate {
    /// A block device, or a file that is made when it is not there.
    device: PathBuf,
    /// Size of a new file: 100Gi (thin: it takes what is stored).
    #[arg(long, value_parser = size::parse)]
    size: Option<u64>,
    /// ssd, hdd, nvme, ...
    #[arg(long, default_value = "ssd")]
    device_class: String,
    /// Delete what is on it: a filesystem, a partition table, an OSD of another cluster. Never while it is in use.
    #[arg(long)]
    wipe: bool,
    /// Tests only: what the disk does wrong stands in this file.
    #[arg(long, hide = true)]
    inject_disk_faults: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

/// Formats, adds it to this host's description, and waits until the cluster counts on it.
pub(crate) async fn create(options: OsdCreate) -> Outcome {
    let layout = up::existing(&options.target.dir)?;
    let _alone = Cluster::lock(&layout).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    let mut cluster = up::described(&layout)?;
    let supervisor = State::load(&layout).and_then(|state| state.live_supervisor());
    let supervisor = supervisor.ok_or_else(|| {
        Failure::new(Code::Unreachable, "the cluster does not run on this host; `cairn up` starts it")
    })?;
    let metadata = Metadata::of_cluster(&cluster)?;
    let status = metadata.status().await?;
    let device = std::path::absolute(&options.device)
        .map_err(Failure::while_(format!("cannot resolve {}", options.device.display())))?;
    // The same command again waits for what it began.
    let (disk, returning) = match cluster.disks.iter().find(|disk| disk.device == device) {
        Some(known) if options.wipe => {
            let message =
                format!("{} is {} of this host already, and is not wiped", device.display(), known.role_name());
            return Err(Failure::new(Code::Failed, message));
        }
        Some(known) => (known.clone(), true),
        None => add(&mut cluster, &layout, &options, &device, &status.cluster_id)?,
    };
    cluster.save(&layout).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    supervisor.signal(Signal::HUP);
    let osd = up::wait(&format!("the OSD on {} to come up", device.display()), async || {
        let map = metadata.map().await.ok()?;
        let it = |osd: &&Osd| osd.up && (disk.uuid == Some(osd.uuid) || disk.uuid.is_none());
        map.osds.values().filter(|osd| osd.addresses.contains(&disk.listen)).find(it).cloned()
    })
    .await
    .map_err(|failure| {
        let log = layout.log().join(format!("{}.log", disk.role_name()));
        let hint = format!("{} says why; the same command waits for it again", log.display());
        Failure::new(failure.code, format!("{failure}; {hint}"))
    })?;
    let verb = if returning { "is back" } else { "is up" };
    let bytes = std::fs::File::open(&device).and_then(|mut file| file.seek(SeekFrom::End(0)));
    let bytes = bytes.map_err(Failure::while_(format!("cannot measure {}", device.display())))?;
    println!(
        "{} {verb} on host {}: {} on {} (process {} of this host)",
        osd.id,
        cluster.node,
        size::show(bytes),
        device.display(),
        disk.role_name()
    );
    Ok(())
}

/// Checks, formats and describes a disk that is none of this host's yet. Whether it was an OSD of the cluster before.
fn add(
    cluster: &mut Cluster,
    layout: &Layout,
    options: &OsdCreate,
    device: &Path,
    cluster_id: &str,
) -> Result<(OsdDisk, bool), Failure> {
    let class = options.device_class.clone();
    let disk = cluster
        .add_disk(layout, device.to_owned(), class)
        .map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    if let Some(address) = disk.listen.strip_prefix("tcp:").and_then(|address| address.parse().ok()) {
        super::check_port(address)?;
    }
    let (uuid, returning) = prepare(device, options.size, options.wipe, cluster_id)?;
    disk.uuid = Some(uuid);
    disk.inject_disk_faults.clone_from(&options.inject_disk_faults);
    Ok((disk.clone(), returning))
}

/// Formats a blank disk. One that was an OSD of this cluster comes back as what it was. Its name, and whether it was.
fn prepare(device: &Path, size: Option<u64>, wipe: bool, cluster: &str) -> Result<(Uuid, bool), Failure> {
    let is_new = check(device, size)?;
    let outcome = format(device, size, wipe, cluster);
    if outcome.is_err() && is_new {
        // What this command made and could not use.
        let _ = std::fs::remove_file(device);
    }
    outcome
}

/// What can be said of a path without opening it. Whether it is a new file.
fn check(device: &Path, size: Option<u64>) -> Result<bool, Failure> {
    let refuse = |message: String| Err(Failure::new(Code::Failed, message));
    let shown = device.display();
    let kind = match std::fs::metadata(device) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let folder = device.parent().filter(|folder| folder.is_dir());
            let Some(size) = size.filter(|_| folder.is_some()) else {
                return match folder {
                    Some(_) => refuse(format!("{shown} does not exist; give --size to make a file of that size")),
                    None => refuse(format!("{shown} cannot be made: its directory does not exist")),
                };
            };
            check_osd_size(size).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
            return Ok(true);
        }
        Err(error) => return refuse(format!("cannot look at {shown}: {error}")),
    };
    if kind.is_dir() {
        return refuse(format!("{shown} is a directory; name a file in it and give --size"));
    }
    if !kind.is_file() && !kind.file_type().is_block_device() {
        return refuse(format!("{shown} is neither a block device nor a file"));
    }
    if size.is_some() {
        return refuse(format!("{shown} is there already and has its size; leave --size out"));
    }
    if kind.is_file() {
        check_osd_size(kind.len()).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
    }
    Ok(false)
}

fn format(device: &Path, size: Option<u64>, wiped: bool, cluster: &str) -> Result<(Uuid, bool), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Code::Failed, format!("{} cannot become an OSD: {error}", device.display()))
    };
    let options = OpenOptions { path: device.into(), create_len: size, read_only: false };
    let disk = FileDisk::open(&options).map_err(|error| failed(&error))?;
    match cairn_store::read_superblock(&disk) {
        Ok(Some(found)) if found.identity.cluster.to_string() == cluster && wiped => {
            return Err(failed(
                &"it is one of this cluster already, and comes back as what it was without --wipe; if nobody needs what \
                  is on it, wipe its first MiB by hand",
            ));
        }
        Ok(Some(found)) if !wiped => {
            let theirs = found.identity.cluster;
            if !theirs.is_nil() && theirs.to_string() != cluster {
                return Err(failed(&format!("it is one of another cluster ({theirs}); --wipe deletes what is on it")));
            }
            return Ok((found.identity.osd_uuid, found.identity.osd.is_some()));
        }
        Err(error) if !wiped => return Err(failed(&error)),
        // Whatever is on it is not wanted.
        Ok(_) | Err(_) if wiped => wipe(&disk).map_err(|error| failed(&error))?,
        Ok(_) | Err(_) => {}
    }
    let format = FormatOptions { osd_uuid: Uuid::new_v4(), ring_len: None, force: false };
    cairn_store::format(&disk, &format).map_err(|error| match error {
        cairn_store::Error::NotBlank { .. } => failed(&format!("{error}: --wipe does that")),
        error => failed(&error),
    })?;
    Ok((format.osd_uuid, false))
}

/// Whatever makes a device its own marks one of its ends.
fn wipe(disk: &FileDisk) -> Result<(), cairn_disk::Error> {
    let len = WIPED.min(disk.len());
    let zeros = cairn_disk::AlignedBuf::zeroed(len as usize).freeze();
    disk.write_at(disk.len() - len, std::slice::from_ref(&zeros))?;
    disk.write_at(0, &[zeros])?;
    disk.sync()
}

/// An OSD was removed from the cluster. A disk of this host that was that OSD is described no longer, and its process ends.
pub(crate) fn forget(dir: &Path, osd: &Osd) -> Result<Option<OsdDisk>, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::new(Code::Failed, error.to_string());
    // Asked from a machine that is no host of the cluster.
    let Ok(layout) = up::existing(dir) else { return Ok(None) };
    let _alone = Cluster::lock(&layout).map_err(|error| failed(&error))?;
    let mut cluster = up::described(&layout)?;
    // `up` does not know the names of the disks that it makes.
    let was = |disk: &OsdDisk| disk.uuid.map_or(osd.addresses.contains(&disk.listen), |uuid| uuid == osd.uuid);
    let Some(at) = cluster.disks.iter().position(was) else { return Ok(None) };
    let disk = cluster.disks.remove(at);
    cluster.save(&layout).map_err(|error| failed(&error))?;
    if let Some(supervisor) = State::load(&layout).and_then(|state| state.live_supervisor()) {
        supervisor.signal(Signal::HUP);
    }
    Ok(Some(disk))
}

/// What `reset` leaves because it lies elsewhere.
pub(crate) fn outside(layout: &Layout, cluster: &Cluster) -> Vec<PathBuf> {
    let devices = cluster.disks.iter().map(|disk| disk.device.clone());
    devices.filter(|device| !device.starts_with(layout.root())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "6f6f6f6f-0000-4000-8000-000000000001";

    fn refused(device: &Path, size: Option<u64>) -> String {
        prepare(device, size, false, CLUSTER).unwrap_err().to_string()
    }

    #[test]
    fn a_new_file_is_formatted_and_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("disk");
        let made = prepare(&device, Some(1 << 30), false, CLUSTER).unwrap();
        assert!(!made.1);
        assert_eq!(prepare(&device, None, false, CLUSTER).unwrap(), made, "formatted, and never registered");
    }

    #[test]
    fn what_cannot_be_an_osd_is_refused_in_words_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("disk");
        assert!(refused(&device, None).contains("give --size"));
        assert!(refused(&device, Some(4096)).contains("at least 1024 MiB"));
        assert!(!device.exists());
        assert!(refused(&folder.path().join("no/disk"), Some(1 << 30)).contains("its directory does not exist"));
        assert!(refused(folder.path(), None).contains("is a directory"));
        assert!(refused(Path::new("/dev/null"), None).contains("neither a block device nor a file"));

        let filled = std::fs::File::create(&device).unwrap();
        filled.set_len(1 << 30).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&filled, b"somebody's", 1024).unwrap();
        assert!(refused(&device, Some(1 << 30)).contains("leave --size out"));
        assert!(refused(&device, None).contains("not blank"));
        assert!(device.exists(), "what was there stays");
        assert!(!prepare(&device, None, true, CLUSTER).unwrap().1, "unless it is to be wiped");
    }

    #[test]
    fn a_disk_in_use_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("disk");
        let options = OpenOptions { path: device.clone(), create_len: Some(1 << 30), read_only: false };
        let _holder = FileDisk::open(&options).unwrap();
        assert!(refused(&device, None).contains("in use by another process"));
    }
}
