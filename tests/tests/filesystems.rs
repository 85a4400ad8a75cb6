//! What people put on a block device: filesystems that are exercised, checked, and filled by other people's programs,
//! while OSDs and the attach daemon die below.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use cairn_tests::{Cluster, Fsx, UpOptions, capture, nbd, run, tool, until};

fn storage() -> Result<Cluster> {
    Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })
}

fn device(cluster: &Cluster, volume: &str, size: &str) -> Result<PathBuf> {
    run(&mut cluster.cairn(&["volume", "create", volume, "--size", size]))?;
    Ok(PathBuf::from(capture(&mut cluster.cairn(&["volume", "attach", volume]))?.trim()))
}

/// A mounted filesystem, which is unmounted whatever becomes of the test.
struct Mounted(PathBuf);

impl Mounted {
    fn at(device: &Path, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        capture(Command::new("mount").arg(device).arg(folder))?;
        Ok(Self(folder.to_owned()))
    }

    fn end(self) -> Result<()> {
        capture(Command::new("umount").arg(&self.0)).map(|_| ())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// Exercises on threads until each of these roles has died and come back, one after the other.
fn under_deaths(cluster: &Cluster, exercises: Vec<Fsx>, roles: &[&str]) -> Result<()> {
    let enough = exercises.first().map(|fsx| Arc::clone(&fsx.enough)).context("there is an exercise")?;
    let threads: Vec<_> = exercises.into_iter().map(|fsx| std::thread::spawn(move || fsx.run())).collect();
    let died = roles.iter().try_for_each(|role| {
        let old = cluster.kill(role)?;
        until(&format!("another life of {role}"), 30, || Ok(cluster.pid(role)?.filter(|pid| *pid != old))).map(drop)
    });
    enough.store(true, Ordering::SeqCst);
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("an exercise panicked"))??;
    }
    died
}

fn seed() -> u64 {
    let seed = std::env::var("CAIRN_FSX_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260_101);
    println!("CAIRN_FSX_SEED={seed}");
    seed
}

#[test]
fn ext4_and_the_raw_device_are_exercised_while_daemons_die() -> Result<()> {
    let mut cluster = storage()?;
    let (fs, raw) = (device(&cluster, "fs", "256Mi")?, device(&cluster, "raw", "16Mi")?);
    run(tool("mkfs.ext4")?.args(["-q", "-E", "nodiscard"]).arg(&fs))?;
    let mounted = Mounted::at(&fs, &cluster.dir().join("mnt"))?;
    let (seed, operations) = (seed(), 3000);
    let enough = Arc::new(AtomicBool::new(false));
    let of = |path: PathBuf, len: u64, direct: bool, resize: bool| {
        let enough = Arc::clone(&enough);
        Fsx { path, seed, operations, enough, len, direct, resize }
    };
    let exercises = vec![
        of(mounted.0.join("buffered"), 4 << 20, false, true),
        of(mounted.0.join("direct"), 4 << 20, true, true),
        of(raw, 16 << 20, true, false),
    ];
    under_deaths(&cluster, exercises, &["osd-0", "attach", "osd-1"])?;
    mounted.end()?;
    run(tool("fsck.ext4")?.args(["-f", "-n"]).arg(&fs))?;
    for volume in ["fs", "raw"] {
        run(&mut cluster.cairn(&["volume", "detach", volume]))?;
    }
    cluster.reset()
}

#[test]
fn xfs_is_made_filled_and_checked() -> Result<()> {
    let mut cluster = storage()?;
    let fs = device(&cluster, "fs", "512Mi")?;
    run(tool("mkfs.xfs")?.args(["-q", "-f"]).arg(&fs))?;
    let mounted = Mounted::at(&fs, &cluster.dir().join("mnt"))?;
    let (seed, operations) = (seed(), 1500);
    let path = mounted.0.join("file");
    let enough = Arc::default();
    let fsx = Fsx { path, seed, operations, enough, len: 4 << 20, direct: false, resize: true };
    under_deaths(&cluster, vec![fsx], &["osd-2"])?;
    mounted.end()?;
    run(tool("xfs_repair")?.arg("-n").arg(&fs))?;
    run(&mut cluster.cairn(&["volume", "detach", "fs"]))?;
    cluster.reset()
}

#[test]
fn qemu_img_fills_and_compares_while_an_osd_dies() -> Result<()> {
    let mut cluster = storage()?;
    let image = cluster.dir().join("image.qcow2");
    // Data, holes and zeros, as images have them.
    run(tool("qemu-img")?.args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("96M"))?;
    let writes = ["write -P 0x5a 0 24M", "write -P 0x33 40M 12M", "write -z 60M 8M", "write -P 0x77 95M 1M"];
    let mut qemu_io = tool("qemu-io")?;
    for write in writes {
        qemu_io.args(["-c", write]);
    }
    capture(qemu_io.arg(&image))?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "96Mi"]))?;
    let uri = nbd(&cluster, "v")?;
    let mut convert = tool("qemu-img")?;
    convert.args(["convert", "-n", "-f", "qcow2", "-O", "raw"]).arg(&image).arg(&uri);
    let mut convert = convert.spawn().context("cannot start qemu-img")?;
    let io = format!("/proc/{}/io", convert.id());
    until("qemu-img in the middle of it", 30, || {
        let read = std::fs::read_to_string(&io).context("qemu-img was over before the OSD died")?;
        let read = read.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<u64>().ok());
        Ok(read.filter(|bytes| *bytes > 8 << 20))
    })?;
    cluster.kill("osd-1")?;
    assert!(convert.try_wait()?.is_none(), "qemu-img was over before the OSD died");
    let status = convert.wait()?;
    assert!(status.success(), "qemu-img convert saw an error: {status}");
    run(tool("qemu-img")?.args(["compare", "-f", "qcow2", "-F", "raw"]).arg(&image).arg(&uri))?;
    let info = capture(tool("nbdinfo")?.arg(&uri))?;
    assert!(info.contains("export-size: 100663296"), "{info}");
    cluster.reset()
}
