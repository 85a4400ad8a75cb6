//! The device of a volume across the life and death of the daemon, with real processes, a real kernel and ext4.
//! Needs root, like the daemon.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cairn_proto::attach::{ExportRequest, Exported, ListRequest, RefreshRequest, UnexportRequest};
use support::{FileSource, Mounted, Place, holder, set_holder, sh};

#[test]
fn child_process() {
    support::play_role();
}

fn export(volume: u64) -> ExportRequest {
    ExportRequest { volume, request_id: "test".into(), ..ExportRequest::default() }
}

fn unexport(volume: u64) -> UnexportRequest {
    UnexportRequest { volume, ..UnexportRequest::default() }
}

async fn exported(place: &Place, volume: u64) -> Exported {
    place.client().await.export(export(volume)).await.unwrap().into_inner().exported.unwrap()
}

fn place_with_volume(size: u64) -> Place {
    let mut place = Place::new();
    FileSource::create(&place.path("volumes"), 7, size);
    place.start("keeper");
    place.start("attach");
    place
}

/// Writes numbered, checkable blocks and syncs each, until told to stop; how many were acknowledged.
fn writer(
    path: &Path,
    stop: &Arc<AtomicBool>,
    written: &Arc<AtomicU64>,
) -> std::thread::JoinHandle<std::io::Result<()>> {
    let (path, stop, written) = (path.to_owned(), stop.clone(), written.clone());
    std::thread::spawn(move || {
        let mut file = File::create(path)?;
        while !stop.load(Ordering::Relaxed) {
            let number = written.load(Ordering::Relaxed);
            file.write_all(&block(number))?;
            file.sync_data()?;
            written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
}

fn block(number: u64) -> Vec<u8> {
    (0..1024u64).flat_map(|word| (number * 1_000_003 + word).to_le_bytes()).collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filesystem_outlives_kills_of_the_daemon_and_loses_nothing() {
    let mut place = place_with_volume(128 << 20);
    let device = exported(&place, 7).await.device;
    assert_eq!(sh(&format!("blockdev --getss {device}")).trim(), "4096");
    assert_eq!(exported(&place, 7).await.device, device, "asked again, it answers with what is there");
    sh(&format!("mkfs.ext4 -q {device}"));
    let mounted = Mounted::new(&device, place.path("mnt"));
    // From here on requests take long enough that every kill finds some in flight.
    File::create(place.path("slow")).unwrap();

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let file = mounted.0.join("numbers");
    let writing = writer(&file, &stop, &written);
    for round in 1..=3 {
        place.kill("attach");
        let at = written.load(Ordering::Relaxed);
        place.start("attach");
        until("writing goes on", || written.load(Ordering::Relaxed) > at + 2).await;
        assert_eq!(holder(&place.path("volumes"), 7), 1 + round, "each life has a generation of its own");
    }
    place.stop("attach");
    place.start("attach");
    let at = written.load(Ordering::Relaxed);
    until("writing goes on after a stop", || written.load(Ordering::Relaxed) > at + 2).await;
    stop.store(true, Ordering::Relaxed);
    writing.join().unwrap().expect("no write failed");

    let busy = place.client().await.unexport(unexport(7)).await.unwrap_err();
    assert_eq!(busy.code(), tonic::Code::FailedPrecondition);
    assert!(busy.message().contains("still in use"), "{busy}");

    sh("echo 3 > /proc/sys/vm/drop_caches");
    let mut bytes = Vec::new();
    File::open(&file).unwrap().read_to_end(&mut bytes).unwrap();
    let count = written.load(Ordering::Relaxed);
    assert!(bytes.len() as u64 >= count * 8192);
    for number in 0..count {
        let at = (number * 8192) as usize;
        assert!(bytes[at..at + 8192] == block(number)[..], "block {number} of {count}");
    }
    drop(mounted);
    sh(&format!("fsck.ext4 -fn {device}"));
    let number = device.trim_start_matches("/dev/loop");
    let file = sh(&format!("cat /sys/block/loop{number}/loop/backing_file"));
    assert!(sh("losetup -a").contains(file.trim()));
    place.client().await.unexport(unexport(7)).await.unwrap();
    assert!(place.client().await.list(ListRequest {}).await.unwrap().into_inner().exports.is_empty());
    assert!(!sh("losetup -a").contains(file.trim()), "no loop device is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grown_volume_grows_under_its_filesystem_and_discards_give_space_back() {
    let place = place_with_volume(64 << 20);
    let device = exported(&place, 7).await.device;
    let data = place.path("volumes/7.data");
    sh(&format!("dd if=/dev/urandom of={device} bs=1M count=8 oflag=direct status=none"));
    let used = || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&data).unwrap());
    let full = used();
    sh(&format!("blkdiscard -o 0 -l 4194304 {device}"));
    assert!(used() <= full - (4 << 20) / 512, "a discard reached the volume");
    sh(&format!("cmp -n 4194304 {device} /dev/zero"));
    sh(&format!("mkfs.ext4 -q {device}"));
    let mounted = Mounted::new(&device, place.path("mnt"));
    File::options().write(true).open(&data).unwrap().set_len(96 << 20).unwrap();
    let request = RefreshRequest { volume: 7, ..RefreshRequest::default() };
    let shown = place.client().await.refresh(request).await.unwrap().into_inner().exported.unwrap();
    assert_eq!(shown.size, 96 << 20);
    assert_eq!(sh(&format!("blockdev --getsize64 {device}")).trim(), (96u64 << 20).to_string(), "while mounted");
    drop(mounted);
    sh(&format!("e2fsck -fp {device} && resize2fs {device} && fsck.ext4 -fn {device}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_device_fails_at_once_and_says_so() {
    let mut place = place_with_volume(16 << 20);
    let device = exported(&place, 7).await.device;
    let state = |exports: Vec<Exported>| exports[0].state.clone();
    let mut client = place.client().await;
    set_holder(&place.path("volumes"), 7, 99);
    let mut file = File::options().write(true).open(&device).unwrap();
    let error = file.write_all(&[1; 4096]).and_then(|()| file.sync_all()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(file);
    assert_eq!(state(client.list(ListRequest {}).await.unwrap().into_inner().exports), "fenced");

    // A daemon that was away while it happened learns it at its start, and does not take the volume back.
    place.kill("attach");
    place.start("attach");
    let mut client = place.client().await;
    for _ in 0..1000 {
        let exports = client.list(ListRequest {}).await.unwrap().into_inner().exports;
        if state(exports) == "fenced" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(holder(&place.path("volumes"), 7), 99);
    assert!(File::open(&device).unwrap().read_exact(&mut [0; 4096]).is_err());

    // Asked to export it again, it begins a new holding on a new device.
    let again = exported(&place, 7).await;
    assert_eq!((again.state.as_str(), again.generation), ("serving", 100));
    File::open(&again.device).unwrap().read_exact(&mut [0; 4096]).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said() {
    let place = place_with_volume(16 << 20);
    let mut client = place.client().await;
    let missing = client.export(export(8)).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (tonic::Code::NotFound, "there is no volume with id 8"));
    let unknown = ExportRequest { exporter: "ublk".into(), ..export(7) };
    let unknown = client.export(unknown).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::InvalidArgument);
    assert!(unknown.message().contains("fuse-loop"), "{unknown}");
    client.unexport(unexport(55)).await.unwrap();

    let read_only = ExportRequest { read_only: true, ..export(7) };
    let device = client.export(read_only).await.unwrap().into_inner().exported.unwrap().device;
    assert_eq!(sh(&format!("blockdev --getro {device}")).trim(), "1");
    assert_eq!(client.export(export(7)).await.unwrap_err().code(), tonic::Code::AlreadyExists);
    let force = UnexportRequest { force: true, ..unexport(7) };
    let held_open = File::open(&device).unwrap();
    client.unexport(force).await.unwrap();
    drop(held_open);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_keeper_a_new_device_is_made_and_the_teardown_leaves_nothing() {
    let mut place = place_with_volume(64 << 20);
    let first = exported(&place, 7).await.device;
    sh(&format!("mkfs.ext4 -q {first}"));
    let mounted = Mounted::new(&first, place.path("mnt"));
    std::fs::write(mounted.0.join("file"), "written").unwrap();
    sh(&format!("sync -f {}", mounted.0.display()));
    place.kill("attach");
    place.kill("keeper");
    // Nobody holds the connection any more: the kernel failed it, and nothing hangs.
    assert!(File::create(mounted.0.join("lost")).and_then(|file| file.sync_all()).is_err());

    place.start("keeper");
    place.start("attach");
    let again = exported(&place, 7).await;
    assert_eq!(again.state, "serving");
    assert_ne!(again.device, first, "the dead one is still mounted");
    drop(mounted);
    let mounted = Mounted::new(&again.device, place.path("mnt"));
    assert_eq!(std::fs::read_to_string(mounted.0.join("file")).unwrap(), "written");

    let number = again.device.trim_start_matches("/dev/loop");
    let backing = format!("/sys/block/loop{number}/loop/backing_file");
    let file = std::fs::read_to_string(&backing).unwrap();
    place.kill("attach");
    let (dir, keeper, at) = (place.path("attach"), place.path("keeper.sock"), mounted.0.display().to_string());
    cairn_attach::teardown(&dir, &keeper).await.unwrap();
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&at), "still mounted");
    assert!(!dir.exists());
    let bound = std::fs::read_to_string(&backing);
    // Another test may have taken the number meanwhile, with a file of its own.
    assert!(bound.is_err() || bound.unwrap() != file, "still bound");
}
