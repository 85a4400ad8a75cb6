//! OSDs on block devices, with the commands an administrator types: what is on a device is not lost by a slip, what a
//! volume has on one is read back after a stop, and another device takes its place. Needs root, for loop devices.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use cairn_tests::{Cluster, UpOptions, capture, nbd, nbdcopy, noise, output, run, until};

/// A block device over a sparse file. Dropping it takes it away.
struct LoopDevice(PathBuf);

impl LoopDevice {
    fn make(folder: &Path, name: &str, bytes: u64) -> Result<Self> {
        let image = folder.join(name);
        std::fs::File::create(&image)?.set_len(bytes)?;
        let device = capture(Command::new("losetup").args(["--find", "--show", "--sector-size", "4096"]).arg(&image))?;
        Ok(Self(PathBuf::from(device.trim())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A mounted filesystem. Dropping it unmounts it.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// What a command that must fail says.
fn refused(cluster: &Cluster, args: &[&str]) -> Result<String> {
    failed(&mut cluster.cairn(args))
}

fn failed(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    assert!(!output.status.success(), "it was done");
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// `cairn osd verify`, which asks no cluster.
fn verify(cluster: &Cluster, device: &LoopDevice) -> Command {
    let mut command = Command::new(cluster.cairn(&[]).get_program());
    command.args(["osd", "verify", "-o", "json"]).arg(&device.0);
    command
}

/// The volume as it is read now.
fn holds(uri: &str, written: &[u8], folder: &Path) -> Result<()> {
    let file = folder.join("read");
    nbdcopy(uri, &file.to_string_lossy())?;
    assert!(std::fs::read(&file)? == written, "what was written is not what is read");
    Ok(())
}

#[test]
fn an_osd_lives_on_a_block_device_and_another_takes_its_place() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let one = LoopDevice::make(folder.path(), "one", 2 << 30)?;
    let other = LoopDevice::make(folder.path(), "other", 2 << 30)?;
    let mut cluster = Cluster::up(UpOptions { storage_only: true, osds: Some(3), ..UpOptions::default() })?;
    let written = folder.path().join("written");
    noise(&written, 32, 7)?;
    let bytes = std::fs::read(&written)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "32Mi"]))?;
    let uri = nbd(&cluster, "v")?;

    // Somebody's filesystem, then mounted, and somebody's partitions.
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&one.0).stdout(Stdio::null()))?;
    let words = refused(&cluster, &["osd", "create", one.path()])?;
    assert!(words.contains("not blank") && words.contains("filesystem") && words.contains("--wipe"), "{words}");
    let mountpoint = folder.path().join("mounted");
    std::fs::create_dir(&mountpoint)?;
    run(Command::new("mount").arg(&one.0).arg(&mountpoint))?;
    let mounted = Mounted(&mountpoint);
    for args in [&["osd", "create", one.path()][..], &["osd", "create", "--wipe", one.path()]] {
        let words = refused(&cluster, args)?;
        assert!(words.contains("in use by another process, or mounted"), "{words}");
    }
    std::fs::write(mountpoint.join("still"), "there")?;
    drop(mounted);
    // A master boot record: one partition, and the mark at its end.
    let device = OpenOptions::new().write(true).open(&other.0)?;
    device.write_all_at(&[0x83], 450)?;
    device.write_all_at(&[0x55, 0xaa], 510)?;
    device.sync_all()?;
    drop(device);
    let words = refused(&cluster, &["osd", "create", other.path()])?;
    assert!(words.contains("not blank") && words.contains("partition table") && words.contains("--wipe"), "{words}");
    let words = refused(&cluster, &["osd", "create", "--size", "1Gi", other.path()])?;
    assert!(words.contains("leave --size out"), "{words}");

    run(&mut cluster.cairn(&["osd", "create", "--wipe", one.path()]))?;
    let words = failed(&mut verify(&cluster, &one))?;
    assert!(words.contains("in use by another process"), "{words}");
    run(&mut cluster.cairn(&["osd", "replace", "0", "--with", "3", "--wait", "--timeout", "240"]))?;
    let addresses = cluster.cairn_json(&["osd", "ls"])?[0]["addresses"].to_string();
    let role = (0..3).map(|slot| format!("osd-{slot}")).find(|role| addresses.contains(&format!("{role}.")));
    let role = role.with_context(|| format!("whose addresses are {addresses}?"))?;
    run(&mut cluster.cairn(&["osd", "remove", "0"]))?;
    until("its process to end for good", 30, || Ok(cluster.pid(&role)?.is_none().then_some(())))?;
    nbdcopy(&written.to_string_lossy(), &uri)?;
    let words = refused(&cluster, &["osd", "create", "--wipe", one.path()])?;
    assert!(words.contains("of this host already, and is not wiped"), "{words}");

    run(&mut cluster.cairn(&["down"]))?;
    let found: serde_json::Value = serde_json::from_str(&capture(&mut verify(&cluster, &one))?)?;
    assert!(found["clean"] == true && found["osd"] == 3, "{found}");
    // Three of three have everything, so this one does.
    assert_eq!(found["verified_bytes"], bytes.len(), "{found}");
    let words = refused(&cluster, &["osd", "create", "--wipe", one.path()])?;
    assert!(words.contains("the cluster does not run on this host"), "{words}");
    cluster.start(true)?;
    let uri = nbd(&cluster, "v")?;
    holds(&uri, &bytes, folder.path())?;

    run(&mut cluster.cairn(&["osd", "create", "--wipe", other.path()]))?;
    run(&mut cluster.cairn(&["osd", "replace", "3", "--with", "4", "--wait", "--timeout", "240"]))?;
    run(&mut cluster.cairn(&["osd", "remove", "3"]))?;
    holds(&uri, &bytes, folder.path())?;
    let scrub = cluster.cairn_json(&["pool", "scrub", "default", "--deep", "--wait"])?;
    assert!(scrub["blocks"].as_u64() > Some(0) && scrub["bad_copies"] == 0 && scrub["damaged_blocks"] == 0, "{scrub}");
    cluster.reset()
}
