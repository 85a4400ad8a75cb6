//! The node service over its socket, with real mounts. Behind it stands a server of the attach protocol whose volumes
//! are files on plain loop devices. Needs root, like the node service.

mod support;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use cairn_csi::Mode;
use cairn_proto::attach::attach_daemon_server::{AttachDaemon, AttachDaemonServer};
use cairn_proto::attach::{
    ExportReply, ExportRequest, Exported, InfoReply, InfoRequest, ListReply, ListRequest, RefreshReply, RefreshRequest,
    UnexportReply, UnexportRequest,
};
use cairn_proto::csi;
use csi::node_client::NodeClient;
use csi::volume_capability::access_mode::Mode as Access;
use support::{Driver, block, dial, filesystem, mount};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

/// Volumes `N.img` of one directory; exported ones with their loop devices.
#[derive(Clone, Default)]
struct Files {
    dir: PathBuf,
    exports: Arc<Mutex<BTreeMap<u64, Exported>>>,
}

fn sh(command: &str) -> Result<String, Status> {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.success() {
        true => Ok(text),
        false => Err(Status::internal(format!("{command}: {text} {}", String::from_utf8_lossy(&output.stderr)))),
    }
}

impl Files {
    fn image(&self, volume: u64) -> PathBuf {
        self.dir.join(format!("{volume}.img"))
    }

    fn export(&self, request: &ExportRequest) -> Result<Exported, Status> {
        let mut exports = self.exports.lock().unwrap();
        if let Some(found) = exports.get(&request.volume) {
            return Ok(found.clone());
        }
        let image = self.image(request.volume);
        let size = std::fs::metadata(&image).map_err(|_| Status::not_found("there is no such volume"))?.len();
        let read_only = if request.read_only { "-r" } else { "" };
        let device = sh(&format!("losetup -f --show -b 4096 {read_only} {}", image.display()))?;
        let exported = Exported {
            volume: request.volume,
            device,
            size,
            read_only: request.read_only,
            exporter: "test".into(),
            state: "serving".into(),
            ..Exported::default()
        };
        exports.insert(request.volume, exported.clone());
        Ok(exported)
    }
}

#[tonic::async_trait]
impl AttachDaemon for Files {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoReply>, Status> {
        Ok(Response::new(InfoReply::default()))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<ExportReply>, Status> {
        let exported = Some(Files::export(self, request.get_ref())?);
        Ok(Response::new(ExportReply { exported }))
    }

    async fn unexport(&self, request: Request<UnexportRequest>) -> Result<Response<UnexportReply>, Status> {
        let mut exports = self.exports.lock().unwrap();
        if let Some(export) = exports.remove(&request.get_ref().volume) {
            sh(&format!("losetup -d {}", export.device))?;
        }
        Ok(Response::new(UnexportReply {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        Ok(Response::new(ListReply { exports: self.exports.lock().unwrap().values().cloned().collect() }))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshReply>, Status> {
        let mut exports = self.exports.lock().unwrap();
        let export = exports.get_mut(&request.get_ref().volume).ok_or_else(|| Status::not_found("not exported"))?;
        sh(&format!("losetup -c {}", export.device))?;
        export.size = std::fs::metadata(self.image(export.volume)).unwrap().len();
        Ok(Response::new(RefreshReply { exported: Some(export.clone()) }))
    }
}

struct Machine {
    dir: tempfile::TempDir,
    files: Files,
    driver: Driver,
}

impl Machine {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { dir: dir.path().to_owned(), ..Files::default() };
        let listener = tokio::net::UnixListener::bind(dir.path().join("attach.sock")).unwrap();
        let server = tonic::transport::Server::builder().add_service(AttachDaemonServer::new(files.clone()));
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::UnixListenerStream::new(listener)));
        let driver = Driver::start(dir.path(), Mode::Node, Vec::new()).await;
        Self { dir, files, driver }
    }

    fn volume(&self, volume: u64, size: u64) {
        std::fs::File::create(self.files.image(volume)).unwrap().set_len(size).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn node(&self) -> NodeClient<Channel> {
        NodeClient::new(self.driver.channel.clone())
    }

    async fn stage(&self, volume: u64, capability: csi::VolumeCapability, mode: &str) -> Result<(), Status> {
        self.stage_at(volume, "staging", capability, mode).await
    }

    async fn stage_at(
        &self,
        volume: u64,
        point: &str,
        capability: csi::VolumeCapability,
        mode: &str,
    ) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.to_string(),
            publish_context: [("attachMode".to_owned(), mode.to_owned())].into(),
            staging_target_path: self.path(point).display().to_string(),
            volume_capability: Some(capability),
            ..Default::default()
        };
        self.node().node_stage_volume(request).await.map(drop)
    }

    async fn publish(
        &self,
        volume: u64,
        target: &str,
        capability: csi::VolumeCapability,
        readonly: bool,
    ) -> Result<PathBuf, Status> {
        let target = self.path(target);
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.to_string(),
            staging_target_path: self.path("staging").display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability),
            readonly,
            ..Default::default()
        };
        self.node().node_publish_volume(request).await.map(|_| target)
    }

    async fn unpublish(&self, volume: u64, target: &Path) -> Result<(), Status> {
        let target_path = target.display().to_string();
        let request = csi::NodeUnpublishVolumeRequest { volume_id: volume.to_string(), target_path };
        self.node().node_unpublish_volume(request).await.map(drop)
    }

    async fn stats(&self, volume: u64, path: &Path) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let volume_path = path.display().to_string();
        let request =
            csi::NodeGetVolumeStatsRequest { volume_id: volume.to_string(), volume_path, ..Default::default() };
        self.node().node_get_volume_stats(request).await.map(Response::into_inner)
    }

    async fn unstage(&self, volume: u64) -> Result<(), Status> {
        self.unstage_from(volume, "staging").await
    }

    async fn unstage_from(&self, volume: u64, point: &str) -> Result<(), Status> {
        let staging_target_path = self.path(point).display().to_string();
        let request = csi::NodeUnstageVolumeRequest { volume_id: volume.to_string(), staging_target_path };
        self.node().node_unstage_volume(request).await.map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let root = self.dir.path().display();
        let unmount = format!("grep -o ' {root}[^ ]* ' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l");
        drop(sh(&unmount));
        for export in self.files.exports.lock().unwrap().values() {
            drop(sh(&format!("losetup -d {}", export.device)));
        }
    }
}

fn ext4() -> csi::VolumeCapability {
    mount(Access::SingleNodeWriter)
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, words: &[&str]) {
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    words.iter().for_each(|word| assert!(status.message().contains(word), "`{word}` is not in: {}", status.message()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_formatted_once_and_keeps_its_data_whoever_restarts() {
    let mut machine = Machine::start().await;
    machine.volume(7, 64 << 20);
    let (one, other) = tokio::join!(machine.stage(7, ext4(), "exclusive"), machine.stage(7, ext4(), "exclusive"));
    one.and(other).unwrap();
    let target = machine.publish(7, "pod/a", ext4(), false).await.unwrap();
    machine.publish(7, "pod/a", ext4(), false).await.unwrap();
    refused(machine.publish(7, "pod/a", ext4(), true).await, Code::AlreadyExists, &["for writing"]);
    std::fs::write(target.join("file"), "kept").unwrap();

    // A restart of the driver is noticed by nobody, and the new one goes on where the old one was.
    let fresh = Driver::start(&machine.path("second"), Mode::Node, Vec::new()).await;
    std::mem::replace(&mut machine.driver, fresh).stop().await;
    assert_eq!(std::fs::read_to_string(target.join("file")).unwrap(), "kept");
    std::os::unix::fs::symlink(machine.path("attach.sock"), machine.path("second/attach.sock")).unwrap();
    machine.stage(7, ext4(), "exclusive").await.unwrap();

    let second = machine.publish(7, "pod/b", ext4(), true).await.unwrap();
    assert_eq!(std::fs::read_to_string(second.join("file")).unwrap(), "kept");
    assert!(std::fs::write(second.join("file"), "x").is_err(), "read-only there");
    let held_open = std::fs::File::open(target.join("file")).unwrap();
    refused(machine.unpublish(7, &target).await, Code::FailedPrecondition, &["still in use"]);
    drop(held_open);
    for _ in 0..2 {
        machine.unpublish(7, &target).await.unwrap();
        machine.unpublish(7, &second).await.unwrap();
    }
    assert!(!target.exists() && !second.exists());
    for _ in 0..2 {
        machine.unstage(7).await.unwrap();
    }
    assert!(machine.files.exports.lock().unwrap().is_empty());
    sh(&format!("fsck.ext4 -fn {}", machine.files.image(7).display())).unwrap();

    // Grown while it was away: the filesystem takes it up when it is staged.
    std::fs::File::options().write(true).open(machine.files.image(7)).unwrap().set_len(128 << 20).unwrap();
    machine.stage(7, ext4(), "exclusive").await.unwrap();
    let size = sh(&format!("stat -f -c %b {}", machine.path("staging").display())).unwrap();
    assert!(size.parse::<u64>().unwrap() > 24 << 10, "blocks of 4096 bytes: {size}");
    assert_eq!(std::fs::read_to_string(machine.path("staging/file")).unwrap(), "kept");
    machine.unstage(7).await.unwrap();
}

/// Of the filesystem at a path, in MiB.
async fn mib(machine: &Machine, volume: u64, path: &Path) -> i64 {
    counted(machine.stats(volume, path).await.unwrap()).0[0][0] >> 20
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_is_made_once_grows_under_its_users_and_is_taken_for_nothing_else() {
    let machine = Machine::start().await;
    let xfs = || filesystem("xfs", Access::SingleNodeWriter);
    let grow = |size: u64| {
        std::fs::File::options().write(true).open(machine.files.image(7)).unwrap().set_len(size << 20).unwrap();
    };
    machine.volume(7, 300 << 20);
    machine.stage(7, xfs(), "exclusive").await.unwrap();
    let target = machine.publish(7, "pod/a", xfs(), false).await.unwrap();
    std::fs::write(target.join("file"), "kept").unwrap();
    assert!((200..300).contains(&mib(&machine, 7, &target).await), "without its log");

    let read_only = machine.publish(7, "pod/ro", xfs(), true).await.unwrap();
    for (size, path) in [(400, &target), (500, &read_only)] {
        grow(size);
        let volume_path = path.display().to_string();
        let expand = csi::NodeExpandVolumeRequest { volume_id: "7".into(), volume_path, ..Default::default() };
        machine.node().node_expand_volume(expand).await.unwrap();
        let grown = mib(&machine, 7, &target).await;
        assert!((size as i64 - 100..size as i64).contains(&grown), "{grown} MiB of {size}");
    }
    machine.unpublish(7, &read_only).await.unwrap();

    opens_beside_its_source(&machine, &target, xfs()).await;

    machine.unpublish(7, &target).await.unwrap();
    machine.unstage(7).await.unwrap();
    sh(&format!("xfs_repair -n -f {}", machine.files.image(7).display())).unwrap();
    machine.stage(7, xfs(), "exclusive").await.unwrap();
    let staging = machine.path("staging");
    assert!(!counted(machine.stats(7, &staging).await.unwrap()).1.abnormal);
    sh(&format!("xfs_io -x -c shutdown {}", staging.display())).unwrap();
    let (_, stopped) = counted(machine.stats(7, &staging).await.unwrap());
    assert!(stopped.abnormal && stopped.message.contains("does not answer"), "{}", stopped.message);
    machine.unstage(7).await.unwrap();
    refused(machine.stage(7, ext4(), "exclusive").await, Code::FailedPrecondition, &["holds xfs", "ext4 is asked for"]);
    machine.unstage(7).await.unwrap();
    grow(600);
    machine.stage(7, filesystem("", Access::SingleNodeWriter), "exclusive").await.unwrap();
    assert!((500..600).contains(&mib(&machine, 7, &machine.path("staging")).await), "grown while it was away");
    machine.unstage(7).await.unwrap();
    machine.stage(7, filesystem("xfs", Access::MultiNodeReaderOnly), "read-only").await.unwrap();
    assert_eq!(std::fs::read_to_string(machine.path("staging/file")).unwrap(), "kept");
    assert!(std::fs::write(machine.path("staging/file"), "x").is_err(), "read-only");
    machine.unstage(7).await.unwrap();

    machine.volume(9, 64 << 20);
    refused(machine.stage(9, xfs(), "exclusive").await, Code::FailedPrecondition, &["xfs wants", "314572800"]);
    machine.unstage(9).await.unwrap();
}

/// What a power cut leaves of volume 7 in volume 8: the journal is not empty, and a filesystem with the same UUID is
/// mounted.
async fn opens_beside_its_source(machine: &Machine, target: &Path, capability: csi::VolumeCapability) {
    let image = |volume| machine.files.image(volume).display().to_string();
    sh(&format!("sync -f {}; cp --sparse=always {} {}", target.display(), image(7), image(8))).unwrap();
    machine.stage_at(8, "other", capability, "exclusive").await.unwrap();
    assert_eq!(std::fs::read_to_string(machine.path("other/file")).unwrap(), "kept");
    machine.unstage_from(8, "other").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_is_made_once_and_grows_under_its_users() {
    let machine = Machine::start().await;
    let btrfs = || filesystem("btrfs", Access::SingleNodeWriter);
    let grow = |size: u64| {
        std::fs::File::options().write(true).open(machine.files.image(7)).unwrap().set_len(size << 20).unwrap();
    };
    machine.volume(7, 256 << 20);
    machine.stage(7, btrfs(), "exclusive").await.unwrap();
    let target = machine.publish(7, "pod/a", btrfs(), false).await.unwrap();
    std::fs::write(target.join("file"), "kept").unwrap();
    let (counts, condition) = counted(machine.stats(7, &target).await.unwrap());
    assert!(!condition.abnormal && counts.len() == 1, "btrfs counts no inodes: {counts:?} {}", condition.message);

    let read_only = machine.publish(7, "pod/ro", btrfs(), true).await.unwrap();
    for (size, path) in [(260, &target), (300, &read_only)] {
        grow(size);
        let volume_path = path.display().to_string();
        let expand = csi::NodeExpandVolumeRequest { volume_id: "7".into(), volume_path, ..Default::default() };
        for _ in 0..2 {
            machine.node().node_expand_volume(expand.clone()).await.unwrap();
        }
        assert_eq!(mib(&machine, 7, &target).await, size as i64);
    }
    machine.unpublish(7, &read_only).await.unwrap();

    opens_beside_its_source(&machine, &target, btrfs()).await;

    machine.unpublish(7, &target).await.unwrap();
    machine.unstage(7).await.unwrap();
    sh(&format!("btrfs check --readonly {}", machine.files.image(7).display())).unwrap();
    refused(
        machine.stage(7, ext4(), "exclusive").await,
        Code::FailedPrecondition,
        &["holds btrfs", "ext4 is asked for"],
    );
    machine.unstage(7).await.unwrap();
    grow(400);
    machine.stage(7, filesystem("", Access::SingleNodeWriter), "exclusive").await.unwrap();
    assert_eq!(mib(&machine, 7, &machine.path("staging")).await, 400, "grown while it was away");
    machine.unstage(7).await.unwrap();
    machine.stage(7, filesystem("btrfs", Access::MultiNodeReaderOnly), "read-only").await.unwrap();
    assert_eq!(std::fs::read_to_string(machine.path("staging/file")).unwrap(), "kept");
    assert!(std::fs::write(machine.path("staging/file"), "x").is_err(), "read-only");
    machine.unstage(7).await.unwrap();

    machine.volume(9, 64 << 20);
    refused(machine.stage(9, btrfs(), "exclusive").await, Code::FailedPrecondition, &["btrfs wants", "268435456"]);
    machine.unstage(9).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_files_of_a_volume_are_its_mount_groups() {
    use std::os::unix::fs::MetadataExt;
    let machine = Machine::start().await;
    machine.volume(7, 64 << 20);
    let of_group = |group: &str| {
        let mount = csi::volume_capability::MountVolume { volume_mount_group: group.into(), ..Default::default() };
        csi::VolumeCapability { access_type: Some(csi::volume_capability::AccessType::Mount(mount)), ..ext4() }
    };
    machine.stage(7, of_group("2000"), "exclusive").await.unwrap();
    let target = machine.publish(7, "pod/a", of_group("2000"), false).await.unwrap();
    let found = std::fs::metadata(&target).unwrap();
    assert_eq!((found.gid(), found.mode() & 0o2770), (2000, 0o2770));
    std::fs::write(target.join("file"), "x").unwrap();
    let gid = || std::fs::metadata(target.join("file")).unwrap().gid();
    assert_eq!(gid(), 2000);
    // Who only reads changes nothing; the next pod's group takes over.
    let reader = machine.publish(7, "pod/ro", of_group("4000"), true).await.unwrap();
    assert_eq!(gid(), 2000);
    let other = machine.publish(7, "pod/b", of_group("3000"), false).await.unwrap();
    assert_eq!((gid(), std::fs::metadata(&other).unwrap().gid()), (3000, 3000));
    refused(machine.publish(7, "pod/c", of_group("staff"), false).await, Code::InvalidArgument, &["staff", "number"]);
    for path in [&target, &reader, &other] {
        machine.unpublish(7, path).await.unwrap();
    }
    machine.unstage(7).await.unwrap();
    let able = machine.node().node_get_capabilities(csi::NodeGetCapabilitiesRequest {}).await.unwrap().into_inner();
    let group = csi::node_service_capability::rpc::Type::VolumeMountGroup;
    let has = able.capabilities.iter().any(
        |able| matches!(&able.r#type, Some(csi::node_service_capability::Type::Rpc(rpc)) if rpc.r#type() == group),
    );
    assert!(has, "advertised, because it works");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_empty_is_never_formatted() {
    let machine = Machine::start().await;
    machine.volume(8, 32 << 20);
    let image = machine.files.image(8);
    let offset = (32 << 20) - 4096;
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(&image).unwrap(),
        b"somebody's",
        offset,
    )
    .unwrap();
    let before = std::fs::read(&image).unwrap();
    refused(machine.stage(8, ext4(), "exclusive").await, Code::FailedPrecondition, &["not formatted", "33550336"]);
    assert!(std::fs::read(&image).unwrap() == before);
    machine.unstage(8).await.unwrap();

    // A device that cannot be read says nothing about what it holds.
    let unreadable = Exported { volume: 9, device: "/proc/self/mem".into(), size: 1 << 20, ..Exported::default() };
    machine.files.exports.lock().unwrap().insert(9, unreadable);
    refused(machine.stage(9, ext4(), "exclusive").await, Code::Unavailable, &["cannot read", "NOT formatted"]);
    machine.files.exports.lock().unwrap().remove(&9);

    machine.volume(10, 32 << 20);
    let reader = mount(Access::MultiNodeReaderOnly);
    refused(machine.stage(10, reader, "read-only").await, Code::FailedPrecondition, &["no filesystem yet"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_writers_and_raw_devices_are_what_they_say() {
    let machine = Machine::start().await;
    machine.volume(7, 32 << 20);
    let single = || mount(Access::SingleNodeSingleWriter);
    machine.stage(7, single(), "exclusive").await.unwrap();
    let first = machine.publish(7, "pod/a", single(), false).await.unwrap();
    machine.publish(7, "pod/a", single(), false).await.unwrap();
    refused(machine.publish(7, "pod/b", single(), false).await, Code::FailedPrecondition, &["single writer", "pod/a"]);
    machine.unpublish(7, &first).await.unwrap();
    machine.unstage(7).await.unwrap();

    machine.volume(8, 32 << 20);
    let raw = || block(Access::SingleNodeSingleWriter);
    machine.stage(8, raw(), "exclusive").await.unwrap();
    let target = machine.publish(8, "pod/raw", raw(), false).await.unwrap();
    machine.publish(8, "pod/raw", raw(), false).await.unwrap();
    assert_eq!(sh(&format!("blockdev --getss {}", target.display())).unwrap(), "4096");
    assert_eq!(sh(&format!("blockdev --getsize64 {}", target.display())).unwrap(), (32 << 20).to_string());
    refused(machine.publish(8, "pod/raw2", raw(), false).await, Code::FailedPrecondition, &["single writer"]);
    let plain = || block(Access::SingleNodeWriter);
    refused(machine.publish(8, "pod/ro", plain(), true).await, Code::InvalidArgument, &["attach it read-only"]);
    std::fs::File::options().write(true).open(machine.files.image(8)).unwrap().set_len(64 << 20).unwrap();
    let volume_path = target.display().to_string();
    let expand = csi::NodeExpandVolumeRequest { volume_id: "8".into(), volume_path, ..Default::default() };
    let grown = machine.node().node_expand_volume(expand).await.unwrap().into_inner();
    assert_eq!(grown.capacity_bytes, 64 << 20);
    assert_eq!(sh(&format!("blockdev --getsize64 {}", target.display())).unwrap(), (64 << 20).to_string());
    machine.unpublish(8, &target).await.unwrap();
    assert!(!target.exists());
    machine.unstage(8).await.unwrap();
}

/// A program on its way to start holds what this process had open, for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_held_for_a_moment_is_waited_for() {
    let machine = Machine::start().await;
    machine.volume(7, 32 << 20);
    // Formatted first, then mounted only.
    for (access, mode) in [(Access::SingleNodeWriter, "exclusive"), (Access::MultiNodeReaderOnly, "read-only")] {
        let read_only = mode == "read-only";
        let request = ExportRequest { volume: 7, read_only, ..ExportRequest::default() };
        let device = Files::export(&machine.files, &request).unwrap().device;
        let exclusively = rustix::fs::OFlags::EXCL.bits() as i32;
        let held = OpenOptions::new().read(true).custom_flags(exclusively).open(&device).unwrap();
        let release = tokio::task::spawn_blocking(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            drop(held);
        });
        machine.stage(7, mount(access), mode).await.unwrap();
        release.await.unwrap();
        machine.unstage(7).await.unwrap();
    }
}

/// Bytes and inodes as (total, used, available), and the condition.
fn counted(stats: csi::NodeGetVolumeStatsResponse) -> (Vec<[i64; 3]>, csi::VolumeCondition) {
    let counts = stats.usage.iter().map(|usage| [usage.total, usage.used, usage.available]).collect();
    (counts, stats.volume_condition.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn use_and_condition_are_those_of_the_volume_at_the_path() {
    let machine = Machine::start().await;
    machine.volume(7, 64 << 20);
    machine.stage(7, ext4(), "exclusive").await.unwrap();
    let target = machine.publish(7, "pod/a", ext4(), false).await.unwrap();
    let (before, well) = counted(machine.stats(7, &target).await.unwrap());
    assert!(!well.abnormal, "{}", well.message);
    std::fs::write(target.join("file"), vec![1; 8 << 20]).unwrap();
    rustix::fs::sync();
    let (after, _) = counted(machine.stats(7, &machine.path("staging")).await.unwrap());
    let [[total, used, available], [inodes, inodes_used, inodes_free]] = after[..] else { panic!("{after:?}") };
    assert!(((32 << 20)..=(64 << 20)).contains(&total) && used + available <= total, "{after:?}");
    assert!(used - before[0][1] >= 8 << 20 && before[0][2] - available >= 8 << 20, "{before:?} {after:?}");
    assert_eq!((inodes_used - before[1][1], inodes_used + inodes_free), (1, inodes));
    let read_only = machine.publish(7, "pod/ro", ext4(), true).await.unwrap();
    assert!(!counted(machine.stats(7, &read_only).await.unwrap()).1.abnormal, "published read-only is as asked for");

    // Nothing there, another volume there, no such volume.
    for (volume, path) in [(7, machine.path("pod/none")), (8, target.clone()), (8, machine.path("staging"))] {
        refused(machine.stats(volume, &path).await, Code::NotFound, &["not published at", &path.display().to_string()]);
    }
    refused(machine.stats(7, Path::new("")).await, Code::InvalidArgument, &["volume_path"]);

    let set = |state: &str| machine.files.exports.lock().unwrap().get_mut(&7).unwrap().state = state.into();
    set("fenced");
    let (_, fenced) = counted(machine.stats(7, &target).await.unwrap());
    assert!(fenced.abnormal && fenced.message.contains("another node"), "{}", fenced.message);
    set("serving");

    machine.volume(8, 32 << 20);
    let raw = || block(Access::SingleNodeWriter);
    machine.stage(8, raw(), "exclusive").await.unwrap();
    let shown = machine.publish(8, "pod/raw", raw(), false).await.unwrap();
    let (size, well) = counted(machine.stats(8, &shown).await.unwrap());
    assert_eq!(size, [[32 << 20, 0, 0]]);
    assert!(!well.abnormal, "{}", well.message);
    refused(machine.stats(7, &shown).await, Code::NotFound, &["not published at"]);
    machine.unpublish(8, &shown).await.unwrap();
    machine.unstage(8).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_that_an_error_stopped_and_a_device_that_is_gone_are_abnormal() {
    let machine = Machine::start().await;
    machine.volume(7, 64 << 20);
    let flags = vec!["errors=remount-ro".to_owned()];
    let mount = csi::volume_capability::MountVolume { mount_flags: flags, ..Default::default() };
    let strict =
        csi::VolumeCapability { access_type: Some(csi::volume_capability::AccessType::Mount(mount)), ..ext4() };
    machine.stage(7, strict, "exclusive").await.unwrap();
    let target = machine.publish(7, "pod/a", ext4(), false).await.unwrap();
    let device = machine.files.exports.lock().unwrap()[&7].device.clone();
    let name = device.trim_start_matches("/dev/");
    sh(&format!("echo planted > /sys/fs/ext4/{name}/trigger_fs_error")).unwrap();
    assert!(std::fs::write(target.join("file"), "x").is_err(), "it takes no writes any more");
    let (counts, stopped) = counted(machine.stats(7, &target).await.unwrap());
    assert!(stopped.abnormal && stopped.message.contains("takes no more writes"), "{}", stopped.message);
    assert_eq!(counts.len(), 2);

    // Exported no more, and nothing behind it any more.
    machine.files.exports.lock().unwrap().remove(&7);
    refused(machine.stats(7, &target).await, Code::NotFound, &["not published at"]);
    std::fs::File::options().write(true).open(machine.files.image(7)).unwrap().set_len(0).unwrap();
    let (_, gone) = counted(machine.stats(7, &target).await.unwrap());
    assert!(gone.abnormal && gone.message.contains("the device is gone"), "{}", gone.message);
    machine.unpublish(7, &target).await.unwrap();
    machine.unstage(7).await.unwrap();
    sh(&format!("losetup -d {device}")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_calls_get_the_code_and_the_words_for_it() {
    let machine = Machine::start().await;
    let mut node = machine.node();
    let stage = |edit: fn(&mut csi::NodeStageVolumeRequest)| {
        let mut request = csi::NodeStageVolumeRequest {
            volume_id: "7".into(),
            staging_target_path: machine.path("staging").display().to_string(),
            volume_capability: Some(ext4()),
            ..Default::default()
        };
        edit(&mut request);
        let mut node = machine.node();
        async move { node.node_stage_volume(request).await }
    };
    refused(stage(|r| r.volume_id.clear()).await, Code::InvalidArgument, &["volume_id"]);
    refused(stage(|r| r.staging_target_path.clear()).await, Code::InvalidArgument, &["staging_target_path"]);
    refused(stage(|r| r.volume_capability = None).await, Code::InvalidArgument, &["capability"]);
    refused(stage(|r| r.volume_id = "no-number".into()).await, Code::NotFound, &["no-number"]);
    refused(stage(|_| {}).await, Code::NotFound, &["no such volume"]);
    refused(machine.publish(7, "pod/a", ext4(), false).await, Code::FailedPrecondition, &["NodeStageVolume first"]);
    let expand = csi::NodeExpandVolumeRequest { volume_id: "7".into(), volume_path: "/x".into(), ..Default::default() };
    refused(node.node_expand_volume(expand).await, Code::NotFound, &["7"]);

    let lonely = tempfile::tempdir().unwrap();
    let driver = Driver::start(lonely.path(), Mode::Node, Vec::new()).await;
    let request = csi::NodeStageVolumeRequest {
        volume_id: "7".into(),
        staging_target_path: lonely.path().join("staging").display().to_string(),
        volume_capability: Some(ext4()),
        ..Default::default()
    };
    let mut alone = NodeClient::new(driver.channel.clone());
    refused(alone.node_stage_volume(request).await, Code::Unavailable, &["attach.sock", "is `cairn attach` running"]);
    let info = node.node_get_info(csi::NodeGetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id.as_str(), info.max_volumes_per_node), ("node-1", 512));

    let announced = dial(lonely.path().join("plugins_registry/csi.cairn.dev-reg.sock")).await;
    let mut registration = cairn_proto::registration::registration_client::RegistrationClient::new(announced);
    let about = registration.get_info(cairn_proto::registration::InfoRequest {}).await.unwrap().into_inner();
    assert_eq!((about.r#type.as_str(), about.name.as_str()), ("CSIPlugin", "csi.cairn.dev"));
    assert_eq!(about.endpoint, lonely.path().join("csi/csi.sock").display().to_string());
}
