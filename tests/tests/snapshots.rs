//! Snapshots and clones as an administrator uses them, while volumes are written and OSDs die.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use cairn_tests::{Cluster, UpOptions, capture, nbd, nbdcopy, noise, run, until};

/// Bytes of an object in the default pool.
const OBJECT: u64 = 4 << 20;

fn storage() -> Result<Cluster> {
    Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })
}

/// Bytes that all OSDs store.
fn stored(cluster: &Cluster) -> Result<u64> {
    cluster.cairn_json(&["status"])?["usage"]["used"].as_u64().context("the status says nothing of use")
}

#[test]
fn a_clone_of_a_snapshot_outlives_its_source() -> Result<()> {
    let mut cluster = storage()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    noise(Path::new(&file("first")), 48, 1)?;
    noise(Path::new(&file("second")), 48, 2)?;
    let empty = stored(&cluster)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "64Mi"]))?;
    let uri = nbd(&cluster, "v")?;
    nbdcopy(&file("first"), &uri)?;
    let began = Instant::now();
    run(&mut cluster.cairn(&["snapshot", "create", "s", "--volume", "v"]))?;
    println!("a snapshot of a volume in use: {} ms", began.elapsed().as_millis());
    run(&mut cluster.cairn(&["snapshot", "create", "s", "--volume", "v"]))?;
    let began = Instant::now();
    run(&mut cluster.cairn(&["volume", "create", "c", "--from", "s"]))?;
    println!("a clone: {} ms", began.elapsed().as_millis());
    cluster.kill("osd-1")?;
    nbdcopy(&file("second"), &uri)?;
    let same = |volume: &str, expected: &str| -> Result<()> {
        nbdcopy(&nbd(&cluster, volume)?, &file("read"))?;
        let (read, expected) = (std::fs::read(file("read"))?, std::fs::read(file(expected))?);
        ensure!(read[..expected.len()] == expected, "volume {volume} is not what it should be");
        ensure!(read[expected.len()..].iter().all(|byte| *byte == 0), "volume {volume} has something at its end");
        Ok(())
    };
    same("v", "second")?;
    same("c", "first")?;
    // The source goes: volume first, then snapshot.
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    run(&mut cluster.cairn(&["volume", "rm", "v"]))?;
    same("c", "first")?;
    run(&mut cluster.cairn(&["snapshot", "rm", "s"]))?;
    same("c", "first")?;
    ensure!(cluster.cairn_json(&["snapshot", "ls"])?.as_array().is_some_and(Vec::is_empty), "it has no name any more");
    // What the clone overwrites is its own.
    nbdcopy(&file("second"), &nbd(&cluster, "c")?)?;
    same("c", "second")?;
    run(&mut cluster.cairn(&["volume", "detach", "c"]))?;
    run(&mut cluster.cairn(&["volume", "rm", "c"]))?;
    until("all of it to be given back", 60, || Ok((stored(&cluster)? < empty + (16 << 20)).then_some(())))?;
    cluster.reset()
}

#[test]
fn a_deleted_snapshot_gives_back_what_only_it_held() -> Result<()> {
    let mut cluster = storage()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "48Mi"]))?;
    let uri = nbd(&cluster, "v")?;
    for (round, name) in ["one", "two", "three"].into_iter().enumerate() {
        noise(Path::new(&file(name)), 48, round as u64)?;
        nbdcopy(&file(name), &uri)?;
        run(&mut cluster.cairn(&["snapshot", "create", name, "--volume", "v"]))?;
    }
    // OSDs say now and then how much they store.
    let layers = 3 * 3 * (48 << 20);
    until("all three layers to be counted", 60, || Ok((stored(&cluster)? >= layers - (16 << 20)).then_some(())))?;
    run(&mut cluster.cairn(&["snapshot", "rm", "two"]))?;
    run(&mut cluster.cairn(&["volume", "create", "c", "--from", "one"]))?;
    let fewer = layers / 3 * 2;
    until("a third of it to be given back", 60, || Ok((stored(&cluster)? < fewer + (32 << 20)).then_some(())))?;
    nbdcopy(&nbd(&cluster, "c")?, &file("read"))?;
    ensure!(std::fs::read(file("read"))? == std::fs::read(file("one"))?, "the older snapshot is as it was");
    nbdcopy(&uri, &file("read"))?;
    ensure!(std::fs::read(file("read"))? == std::fs::read(file("three"))?, "the volume is as it was");
    cluster.reset()
}

/// Counts in two objects, one after the other, for as long as it is told to.
fn count(device: &File, go_on: &AtomicBool) -> Result<u64> {
    let mut block = vec![0; 4096];
    for number in 1_u64.. {
        block[..8].copy_from_slice(&number.to_le_bytes());
        for offset in [0, OBJECT] {
            device.write_all_at(&block, offset).context("cannot count")?;
            device.sync_data().context("cannot count")?;
        }
        if !go_on.load(Ordering::Relaxed) {
            return Ok(number);
        }
    }
    unreachable!("there are enough numbers")
}

fn number_at(device: &str, offset: u64) -> Result<u64> {
    let mut number = [0; 8];
    File::open(device)?.read_exact_at(&mut number, offset).with_context(|| format!("cannot read {device}"))?;
    Ok(u64::from_le_bytes(number))
}

#[test]
fn a_snapshot_is_one_moment_across_objects() -> Result<()> {
    let mut cluster = storage()?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "16Mi"]))?;
    let device = capture(&mut cluster.cairn(&["volume", "attach", "v"]))?.trim().to_owned();
    let go_on = Arc::new(AtomicBool::new(true));
    let counter = std::thread::spawn({
        let (go_on, device) = (Arc::clone(&go_on), OpenOptions::new().read(true).write(true).open(&device)?);
        move || count(&device, &go_on)
    });
    let mut took = Vec::new();
    for round in 0..12 {
        if round == 6 {
            cluster.kill("osd-0")?;
        }
        let began = Instant::now();
        run(&mut cluster.cairn(&["snapshot", "create", &format!("s{round}"), "--volume", "v"]))?;
        took.push(began.elapsed().as_millis());
    }
    go_on.store(false, Ordering::Relaxed);
    let last = counter.join().expect("the counter does not panic")?;
    println!("counted to {last}; snapshots took {took:?} ms");
    let mut before = 0;
    for round in 0..12 {
        let clone = format!("c{round}");
        run(&mut cluster.cairn(&["volume", "create", &clone, "--from", &format!("s{round}")]))?;
        let device = capture(&mut cluster.cairn(&["volume", "attach", &clone]))?.trim().to_owned();
        let (first, second) = (number_at(&device, 0)?, number_at(&device, OBJECT)?);
        ensure!(second <= first && first <= second + 1, "snapshot {round} holds {first} and {second}");
        ensure!(before <= first && first <= last, "snapshot {round} holds {first} after {before}");
        before = first;
        run(&mut cluster.cairn(&["volume", "detach", &clone]))?;
    }
    ensure!(before > 0, "something was counted meanwhile");
    cluster.reset()
}
