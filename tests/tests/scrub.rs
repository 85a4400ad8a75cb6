//! Bits flip in the files of running OSDs: a deep scrub finds and repairs every one of them, also when an OSD dies in
//! the middle of it, and what was written is what is read.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cairn_tests::{Cluster, UpOptions, capture, nbd, nbdcopy, noise, run, until};
use serde_json::Value;

const BLOCK: usize = 4096;
/// The superblocks and the log come before; the log is the 128th part, at least 16 MiB.
const LOG: u64 = 1 << 20;
const VOLUME_MIB: usize = 48;

fn device(cluster: &Cluster, osd: usize) -> PathBuf {
    cluster.dir().join(format!("osd-{osd}.img"))
}

/// Where the volume's blocks lie in an OSD's file: number of the block, byte of the file.
fn places(device: &Path, content: &[u8]) -> Result<BTreeMap<usize, u64>> {
    let wanted: BTreeMap<&[u8], usize> =
        content.chunks(BLOCK).enumerate().map(|(number, block)| (&block[..16], number)).collect();
    let file = File::open(device)?;
    let len = file.metadata()?.len();
    let first = LOG + (len / 128).max(16 << 20);
    let (mut places, mut buffer) = (BTreeMap::new(), vec![0; 1 << 20]);
    for at in (first..len).step_by(buffer.len()) {
        let read = file.read_at(&mut buffer, at)?;
        for (i, block) in buffer[..read].chunks_exact(BLOCK).enumerate() {
            if let Some(number) = wanted.get(&block[..16])
                && block == &content[number * BLOCK..(number + 1) * BLOCK]
            {
                places.insert(*number, at + (i * BLOCK) as u64);
            }
        }
    }
    Ok(places)
}

/// Flips a bit of every `step`th block, beginning with the one of this number; how many.
fn flip(device: &Path, places: &BTreeMap<usize, u64>, first: usize, step: usize) -> Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let mut flipped = 0;
    for (number, at) in places.iter().filter(|(number, _)| *number % step == first) {
        let at = at + (number * 37 % BLOCK) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1 << (number % 8)], at)?;
        flipped += 1;
    }
    file.sync_all()?;
    Ok(flipped)
}

fn healthy(cluster: &Cluster) -> Result<()> {
    until("HEALTHY", 60, || Ok(cluster.cairn_json(&["health"]).ok().filter(|health| health["status"] == "OK")))
        .map(|_| ())
}

fn scrub(cluster: &Cluster, deep: bool) -> Result<Value> {
    let mut args = vec!["pool", "scrub", "default", "--wait"];
    args.extend(deep.then_some("--deep"));
    cluster.cairn_json(&args)
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or(u64::MAX)
}

#[test]
fn flipped_bits_are_found_and_repaired_while_osds_run_and_die() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
    let folder = tempfile::tempdir()?;
    let (written, read) = (folder.path().join("written"), folder.path().join("read"));
    noise(&written, VOLUME_MIB, 1)?;
    let content = std::fs::read(&written)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", &format!("{VOLUME_MIB}Mi")]))?;
    nbdcopy(&written.to_string_lossy(), &nbd(&cluster, "v")?)?;
    let all = content.len() / BLOCK;
    let devices = [0, 1, 2].map(|osd| device(&cluster, osd));
    let found_all = |device: &PathBuf| {
        let found = places(device, &content)?;
        Ok((found.len() == all).then_some(found))
    };
    let mut places = Vec::new();
    for device in &devices {
        places.push(until("every block in its place", 60, || found_all(device))?);
    }
    let clean = scrub(&cluster, true)?;
    assert_eq!((number(&clean, "blocks"), number(&clean, "bad_copies")), (all as u64, 0), "{clean}");

    // Two copies of some blocks, one of others; the third is good everywhere.
    let mut flipped = 0;
    for (osd, first) in [(0, 0), (1, 0), (1, 3), (2, 5), (0, 7)] {
        flipped += flip(&devices[osd], &places[osd], first, 11)?;
    }
    let light = scrub(&cluster, false)?;
    assert_eq!(number(&light, "bad_copies"), 0, "a light scrub reads no data: {light}");
    let deep = scrub(&cluster, true)?;
    assert_eq!((number(&deep, "bad_copies"), number(&deep, "repaired")), (flipped, flipped), "{deep}");
    assert_eq!(number(&deep, "damaged_blocks"), 0);
    healthy(&cluster)?;
    let noted = cluster.cairn_json(&["health"])?;
    let noted = noted["checks"].as_array().cloned().unwrap_or_default();
    assert!(noted.iter().any(|check| check["code"] == "OSD_SCRUB_ERRORS" && check["severity"] == "NOTE"), "{noted:?}");
    nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy())?;
    assert!(std::fs::read(&read)? == content, "what was written is what is read");

    // An OSD dies in the middle, and comes back with its own rot: after it nothing is left.
    flip(&devices[1], &places[1], 2, 5)?;
    run(&mut cluster.cairn(&["pool", "scrub", "default", "--deep"]))?;
    cluster.kill("osd-1")?;
    nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy())?;
    assert!(std::fs::read(&read)? == content, "what was written is what is read, with one OSD less");
    healthy(&cluster)?;
    let after = scrub(&cluster, true)?;
    assert_eq!(
        (number(&after, "bad_copies"), number(&after, "damaged_blocks")),
        (number(&after, "repaired"), 0),
        "{after}"
    );
    let last = scrub(&cluster, true)?;
    assert_eq!((number(&last, "blocks"), number(&last, "bad_copies")), (all as u64, 0), "{last}");
    let pgs = cluster.cairn_json(&["pg", "ls"])?;
    let pgs = pgs.as_array().context("pg ls is a list")?;
    assert!(pgs.iter().all(|pg| pg["scrub"]["last_deep_s"].as_u64().is_some_and(|at| at > 1_700_000_000)), "{pgs:?}");

    // Reads repair, too.
    flip(&devices[0], &places[0], 1, 40)?;
    flip(&devices[2], &places[2], 2, 40)?;
    nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy())?;
    assert!(std::fs::read(&read)? == content, "a reader notices nothing");

    // No good copy anywhere, of a block that nothing has touched before: that is said, and nothing is made up.
    for (device, places) in devices.iter().zip(&places) {
        assert_eq!(flip(device, places, 4325, all)?, 1);
    }
    let output = cluster.cairn(&["pool", "scrub", "default", "--deep", "--wait", "-o", "json"]).output()?;
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let lost: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(number(&lost, "damaged_blocks"), 1, "{lost}");
    let health = capture(&mut cluster.cairn(&["health", "-o", "json"])).err().map(|_| ());
    assert_eq!(health, Some(()), "a cluster that lost data is not healthy");
    assert!(nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy()).is_err(), "the lost block is an error, not zeros");
    // Written anew, it is well.
    nbdcopy(&written.to_string_lossy(), &nbd(&cluster, "v")?)?;
    let last = scrub(&cluster, true)?;
    assert_eq!((number(&last, "damaged_blocks"), number(&last, "bad_copies")), (0, 0), "{last}");
    healthy(&cluster)?;
    nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy())?;
    assert!(std::fs::read(&read)? == content, "what was written is what is read");
    cluster.reset()
}
