//! What each node call does. Whatever blocks (mounting, probing, programs) runs on blocking threads.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use cairn_proto::attach::Exported;
use cairn_proto::csi;
use cairn_proto::csi::volume_capability::access_mode::Mode;
use cairn_types::volume::AttachMode;

use super::attach::Attach;
use super::mounts::{self, Mount};
use super::probe::{Found, probe};
use super::{NodeError, format, ownership, stats};
use crate::capability::{Access, Capability};
use crate::error::CsiError;
use crate::fields::{ATTACH_MODE, known, number, present};
use crate::filesystem::Filesystem;
use crate::turns::Turns;

type Outcome<T> = Result<T, CsiError>;

/// One call's view of the node.
pub(super) struct Calls {
    pub(super) attach: Attach,
    pub(super) turns: Turns,
    pub(super) request_id: String,
}

impl Calls {
    pub(super) async fn stage(&self, request: csi::NodeStageVolumeRequest) -> Outcome<csi::NodeStageVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let point = PathBuf::from(present("staging_target_path", &request.staging_target_path)?);
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let mode = attach_mode(&capability, request.publish_context.get(ATTACH_MODE))?;
        let volume = known(text)?;
        let _turn = self.turns.take(text).await;
        let exported = self.attach.export(volume, mode, &self.request_id).await?;
        let device = device_of(&exported)?;
        if let Access::Mount { filesystem, flags, group } = capability.access {
            let wish = Wish { filesystem, flags, read_only: mode == AttachMode::ReadOnly };
            let group = group.filter(|_| !wish.read_only);
            blocking(move || {
                stage_filesystem(&device, exported.size, &point, &wish)?;
                group.map_or(Ok(()), |group| ownership::give(&point, group))
            })
            .await?;
        }
        Ok(csi::NodeStageVolumeResponse {})
    }

    pub(super) async fn unstage(
        &self,
        request: csi::NodeUnstageVolumeRequest,
    ) -> Outcome<csi::NodeUnstageVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let point = PathBuf::from(present("staging_target_path", &request.staging_target_path)?);
        let _turn = self.turns.take(text).await;
        blocking(move || unmount(&point)).await?;
        if let Some(volume) = number(text) {
            self.attach.unexport(volume, &self.request_id).await?;
        }
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    pub(super) async fn publish(
        &self,
        request: csi::NodePublishVolumeRequest,
    ) -> Outcome<csi::NodePublishVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let target = PathBuf::from(present("target_path", &request.target_path)?);
        let capability = Capability::parse(request.volume_capability.as_ref())?;
        let volume = known(text)?;
        let staged = PathBuf::from(&request.staging_target_path);
        let read_only = request.readonly || capability.attach_mode(false) == AttachMode::ReadOnly;
        let single = capability.mode == Mode::SingleNodeSingleWriter;
        let _turn = self.turns.take(text).await;
        match capability.access {
            Access::Mount { group, .. } => {
                let group = group.filter(|_| !read_only);
                blocking(move || publish_filesystem(&staged, &target, read_only, single, group)).await?;
            }
            Access::Block => {
                let exported = self.attach.find(volume).await?.ok_or(NodeError::NotStaged(staged))?;
                if read_only && !exported.read_only {
                    return Err(NodeError::WritableDevice.into());
                }
                let device = device_of(&exported)?;
                blocking(move || publish_device(&device, &target, single)).await?;
            }
        }
        Ok(csi::NodePublishVolumeResponse {})
    }

    pub(super) async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
    ) -> Outcome<csi::NodeUnpublishVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let target = PathBuf::from(present("target_path", &request.target_path)?);
        let _turn = self.turns.take(text).await;
        blocking(move || {
            unmount(&target)?;
            mounts::remove_point(&target).map_err(NodeError::system("removing the target path", &target))
        })
        .await?;
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    /// Only looks, so it waits for no turn.
    pub(super) async fn stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> Outcome<csi::NodeGetVolumeStatsResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let path = PathBuf::from(present("volume_path", &request.volume_path)?);
        let volume = known(text)?;
        let exports = self.attach.exports().await?;
        Ok(blocking(move || stats::of(volume, &path, &exports)).await?)
    }

    pub(super) async fn expand(&self, request: csi::NodeExpandVolumeRequest) -> Outcome<csi::NodeExpandVolumeResponse> {
        let text = present("volume_id", &request.volume_id)?;
        let path = PathBuf::from(present("volume_path", &request.volume_path)?);
        let volume = known(text)?;
        let _turn = self.turns.take(text).await;
        if self.attach.find(volume).await?.is_none() {
            return Err(CsiError::NoVolume(text.to_owned()));
        }
        let exported = self.attach.refresh(volume, &self.request_id).await?;
        let (device, size) = (device_of(&exported)?, exported.size);
        blocking(move || match mounts::at(&path).map_err(NodeError::system("reading the mount table", &path))? {
            Some(mount) if Filesystem::named(&mount.filesystem).is_some() => grow_mounted(&device, size, &mount),
            _ => Ok(()),
        })
        .await?;
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX) })
    }
}

/// As the controller published it; by the capability alone where no controller was asked.
fn attach_mode(capability: &Capability, published: Option<&String>) -> Result<AttachMode, NodeError> {
    match published.map(String::as_str) {
        None => Ok(capability.attach_mode(false)),
        Some("exclusive") => Ok(AttachMode::Exclusive),
        Some("read-only") => Ok(AttachMode::ReadOnly),
        Some("shared") => Ok(AttachMode::Shared),
        Some(other) => Err(NodeError::AttachMode(other.to_owned())),
    }
}

fn device_of(exported: &Exported) -> Result<PathBuf, NodeError> {
    if exported.device.is_empty() {
        return Err(NodeError::NotADevice(exported.exporter.clone()));
    }
    Ok(PathBuf::from(&exported.device))
}

/// How a filesystem is to be mounted.
struct Wish {
    /// None: whatever there is, and the default where there is nothing.
    filesystem: Option<Filesystem>,
    flags: Vec<String>,
    read_only: bool,
}

fn stage_filesystem(device: &Path, size: u64, point: &Path, wish: &Wish) -> Result<(), NodeError> {
    std::fs::create_dir_all(point).map_err(NodeError::system("making the staging path", point))?;
    let table = |path| NodeError::system("reading the mount table", path);
    if let Some(mount) = mounts::at(point).map_err(table(point))? {
        if mount.source == device {
            return same_access(&mount, wish.read_only);
        }
        if !mount.source.starts_with("/dev") {
            return Err(occupied(&mount));
        }
        // What was staged here stood on a device that is gone: its data session ended without us.
        tracing::warn!(stale = %mount.source.display(), point = %point.display(), "taking a dead filesystem away");
        mounts::detach(point).map_err(NodeError::system("unmounting a dead filesystem", point))?;
    }
    // Mounted at another path already: in use, so neither checked nor grown.
    let in_use = mounts::table().map_err(table(point))?.iter().any(|mount| mount.source == device);
    let (kind, bytes) = prepare(device, size, wish, in_use)?;
    mounts::mount(device, point, kind, &wish.flags, wish.read_only)
        .map_err(|error| not_mounted(kind, device, error))?;
    if kind.grows_only_mounted() && bytes < size && !wish.read_only && !in_use {
        tracing::info!(device = %device.display(), bytes, size, "growing the filesystem");
        return format::grow_mounted(kind, point).inspect_err(|_| {
            // Staged is only what has its size: the next call shall try again.
            drop(mounts::unmount_all(point));
        });
    }
    Ok(())
}

/// A filesystem that can be mounted: made where there is nothing, checked where it must be before, and grown where it
/// must not be mounted for that. Returns which it is, and the bytes that it has.
fn prepare(device: &Path, size: u64, wish: &Wish, in_use: bool) -> Result<(Filesystem, u64), NodeError> {
    let (kind, bytes) = match probe(device)? {
        Found::Foreign { what } => return Err(format::foreign(device, &what)),
        Found::Empty | Found::Unfinished if wish.read_only => return Err(NodeError::NothingToRead),
        Found::Empty | Found::Unfinished => {
            let kind = wish.filesystem.unwrap_or(Filesystem::DEFAULT);
            tracing::info!(device = %device.display(), size, %kind, "formatting an empty volume");
            format::format(device, kind)?;
            return Ok((kind, size));
        }
        Found::Filesystem { kind, bytes } => (kind, bytes.next_multiple_of(4096)),
    };
    if let Some(asked) = wish.filesystem.filter(|asked| *asked != kind) {
        return Err(NodeError::OtherFilesystem { device: device.to_owned(), has: kind, asked });
    }
    if kind == Filesystem::Ext4 && !wish.read_only && !in_use {
        format::check(device, bytes < size)?;
        if bytes < size {
            tracing::info!(device = %device.display(), bytes, size, "growing the filesystem");
            format::grow(device)?;
        }
    }
    Ok((kind, bytes))
}

/// xfs and btrfs replay their logs and check themselves when they are mounted; they have no check before that would be
/// quick, or could do more.
fn not_mounted(kind: Filesystem, device: &Path, error: std::io::Error) -> NodeError {
    let damage = [rustix::io::Errno::UCLEAN, rustix::io::Errno::BADMSG].map(|damage| Some(damage.raw_os_error()));
    let damaged = |tool| NodeError::Damaged { device: device.to_owned(), tool, report: error.to_string() };
    match kind {
        Filesystem::Xfs if damage.contains(&error.raw_os_error()) => return damaged("xfs_repair"),
        Filesystem::Btrfs if damage.contains(&error.raw_os_error()) => return damaged("btrfs check"),
        _ => {}
    }
    NodeError::system("mounting the volume", device)(error)
}

fn publish_filesystem(
    staged: &Path,
    target: &Path,
    read_only: bool,
    single: bool,
    group: Option<u32>,
) -> Result<(), NodeError> {
    let table = |path| NodeError::system("reading the mount table", path);
    let source =
        mounts::at(staged).map_err(table(staged))?.filter(|mount| Filesystem::named(&mount.filesystem).is_some());
    let source = source.ok_or_else(|| NodeError::NotStaged(staged.to_owned()))?;
    if let Some(mount) = mounts::at(target).map_err(table(target))? {
        if mount.source == source.source {
            return same_access(&mount, read_only || source.read_only);
        }
        return Err(occupied(&mount));
    }
    if single {
        let all = mounts::table().map_err(table(target))?;
        let other = all.into_iter().find(|mount| mount.source == source.source && mount.point != source.point);
        if let Some(other) = other {
            return Err(NodeError::SingleWriter(other.point));
        }
    }
    if let Some(group) = group.filter(|_| !source.read_only) {
        ownership::give(staged, group)?;
    }
    std::fs::create_dir_all(target).map_err(NodeError::system("making the target path", target))?;
    mounts::bind(staged, target, read_only).map_err(NodeError::system("mounting at the target path", target))
}

/// A device node is shown at a file.
fn publish_device(device: &Path, target: &Path, single: bool) -> Result<(), NodeError> {
    let number = mounts::device_number(device).map_err(NodeError::system("looking at the device", device))?;
    let shows_it = |path: &Path| {
        let block = std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device());
        block && mounts::device_number(path).is_ok_and(|found| found == number)
    };
    if let Some(mount) = mounts::at(target).map_err(NodeError::system("reading the mount table", target))? {
        return if shows_it(&mount.point) { Ok(()) } else { Err(occupied(&mount)) };
    }
    if single {
        let all = mounts::table().map_err(NodeError::system("reading the mount table", target))?;
        let nodes = all.into_iter().filter(|mount| mount.filesystem == "devtmpfs" || mount.filesystem == "tmpfs");
        if let Some(other) = nodes.map(|mount| mount.point).find(|point| shows_it(point)) {
            return Err(NodeError::SingleWriter(other));
        }
    }
    let made = target.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| std::fs::File::create(target).map(drop))
        .map_err(NodeError::system("making the target path", target))?;
    mounts::bind(device, target, false).map_err(NodeError::system("mounting at the target path", target))
}

fn grow_mounted(device: &Path, size: u64, mount: &Mount) -> Result<(), NodeError> {
    match probe(device)? {
        Found::Filesystem { bytes, .. } if bytes.next_multiple_of(4096) >= size => Ok(()),
        Found::Filesystem { kind: Filesystem::Ext4, .. } if !super::grows_mounted() => Err(NodeError::CannotGrow),
        Found::Filesystem { kind: Filesystem::Ext4, .. } => format::grow(device),
        Found::Filesystem { kind: kind @ (Filesystem::Xfs | Filesystem::Btrfs), .. } => {
            // Where it is published read-only it cannot grow, where it is staged it can.
            let all = mounts::table().map_err(NodeError::system("reading the mount table", &mount.point))?;
            let writable = all.into_iter().find(|found| found.source == device && !found.read_only);
            format::grow_mounted(kind, &writable.as_ref().unwrap_or(mount).point)
        }
        _ => Err(format::foreign(device, "something else than the mounted filesystem")),
    }
}

fn same_access(mount: &Mount, read_only: bool) -> Result<(), NodeError> {
    if mount.read_only == read_only {
        return Ok(());
    }
    Err(NodeError::OtherAccess { path: mount.point.clone(), read_only: mount.read_only })
}

fn occupied(mount: &Mount) -> NodeError {
    NodeError::Occupied { path: mount.point.clone(), what: mount.source.display().to_string() }
}

fn unmount(point: &Path) -> Result<(), NodeError> {
    mounts::unmount_all(point).map_err(|error| match error.kind() {
        std::io::ErrorKind::ResourceBusy => NodeError::Busy(point.to_owned()),
        _ => NodeError::system("unmounting", point)(error),
    })
}

async fn blocking<T, F>(work: F) -> Result<T, NodeError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, NodeError> + Send + 'static,
{
    let span = tracing::Span::current();
    let work = move || span.in_scope(work);
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}
