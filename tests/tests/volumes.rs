//! What an administrator does to volumes: limits that hold while fio pushes against them, and a claim that was deleted by
//! mistake and comes back with its data.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cairn_tests::{Cluster, UpOptions, capture, find_program, run, until};
use serde_json::Value;

/// fio over a volume's NBD socket, 16 blocks at a time, its result as JSON.
fn fio(folder: &Path, socket: &str, args: &[&str]) -> Result<Command> {
    let program = find_program("fio").context("fio is missing; `cargo xtask test` installs it")?;
    let mut command = Command::new(program);
    command.args(["--name=limits", "--ioengine=nbd", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=32m"]);
    command.arg(format!("--uri=nbd+unix:///?socket={socket}")).args(["--output-format=json"]).args(args);
    command.current_dir(folder).stdin(Stdio::null());
    Ok(command)
}

/// Of one direction: operations and bytes a second.
fn rate(command: &mut Command, direction: &str) -> Result<(f64, f64)> {
    let text = capture(command)?;
    // Before it stands what fio has to remark.
    let start = text.find('{').context("fio wrote no report")?;
    let report: Value = serde_json::from_str(&text[start..]).context("fio's report is not JSON")?;
    let of = &report["jobs"][0][direction];
    let number = |name: &str| of[name].as_f64().with_context(|| format!("fio's report names no {name}"));
    Ok((number("iops")?, number("bw_bytes")?))
}

/// Requests of clients that the OSDs have answered.
fn served(cluster: &Cluster) -> Result<u64> {
    let mut sum = 0;
    for osd in 0..3 {
        let page = cluster.metrics(&format!("osd-{osd}"))?;
        let counts = page.lines().filter(|line| line.starts_with("cairn_osd_requests_total{"));
        sum += counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(sum)
}

#[test]
fn limits_hold_within_five_percent_and_change_under_fio() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "32Mi", "--iops", "100"]))?;
    let socket = capture(&mut cluster.cairn(&["volume", "attach", "v", "--nbd"]))?.trim().to_owned();
    let folder = cluster.dir().to_owned();
    let timed = ["--time_based", "--runtime=10"];
    let near = |what: &str, measured: f64, limit: f64| {
        println!("{what}: {measured:.1} of {limit:.0} a second");
        assert!((measured / limit - 1.0).abs() <= 0.05, "{what}: {measured:.1} a second, and not {limit:.0}");
    };
    let iops = || rate(&mut fio(&folder, &socket, &timed)?, "write").map(|(iops, _)| iops);
    near("operations", iops()?, 100.0);
    run(&mut cluster.cairn(&["volume", "set", "v", "--iops", "300"]))?;
    near("operations, changed under the holder", iops()?, 300.0);
    run(&mut cluster.cairn(&["volume", "set", "v", "--iops", "none", "--bandwidth", "4Mi"]))?;
    let large = ["--bs=64k", "--rw=randread", "--time_based", "--runtime=10"];
    let (_, bytes) = rate(&mut fio(&folder, &socket, &large)?, "read")?;
    near("bytes", bytes, f64::from(4 << 20));

    // In the middle of a run that would take 100 seconds.
    run(&mut cluster.cairn(&["volume", "set", "v", "--iops", "10", "--bandwidth", "none"]))?;
    let begun = Instant::now();
    let mut limited = fio(&folder, &socket, &["--number_ios=1000"])?;
    let mut limited = limited.stdout(Stdio::null()).spawn().context("cannot start fio")?;
    let before = served(&cluster)?;
    until("the first of them", 30, || Ok((served(&cluster)? >= before + 20).then_some(())))?;
    assert!(limited.try_wait()?.is_none(), "1000 writes at 10 a second are under way");
    run(&mut cluster.cairn(&["volume", "set", "v", "--iops", "none"]))?;
    assert!(limited.wait()?.success());
    assert!(begun.elapsed() < Duration::from_secs(30), "the limit was lifted: {:?}", begun.elapsed());
    assert_eq!(cluster.cairn_json(&["volume", "info", "v"])?["limits"]["iops"], 0);
    cluster.reset()
}

#[test]
fn what_is_in_the_trash_comes_back_or_goes_for_good() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
    let cairn = |args: &[&str]| run(&mut cluster.cairn(args));
    let names = |args: &[&str]| -> Result<Vec<String>> {
        let volumes = cluster.cairn_json(args)?;
        Ok(volumes.as_array().into_iter().flatten().filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect())
    };
    cairn(&["pool", "set", "default", "--retention", "1h", "--max-volumes", "4"])?;
    for name in ["a", "b", "c"] {
        cairn(&["volume", "create", name, "--size", "16Mi", "-l", "team=db"])?;
    }
    cairn(&["volume", "rename", "c", "d"])?;
    cairn(&["volume", "label", "d", "team-", "tier=gold"])?;
    assert_eq!(names(&["volume", "ls", "-l", "team=db"])?, ["a", "b"]);
    let would = capture(&mut cluster.cairn(&["volume", "rm", "a", "--dry-run"]))?;
    assert!(would.contains("to the trash, for 1 h"), "{would}");
    for name in ["a", "b"] {
        cairn(&["volume", "delete", name])?;
    }
    assert_eq!(
        (names(&["volume", "ls"])?, names(&["trash", "list"])?),
        (vec!["d".into()], vec!["a".into(), "b".into()])
    );
    cairn(&["volume", "create", "a", "--size", "16Mi"])?;
    let refused = cluster.cairn(&["volume", "create", "e", "--size", "16Mi"]).output()?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("may have 4 volumes, and has 4, 2 of them"), "{words}");
    // What is not healthy ends with a code of its own.
    let health = cluster.cairn(&["health"]).output()?;
    let words = String::from_utf8_lossy(&health.stdout).into_owned();
    assert!(words.contains("POOL_NEAR_FULL") && health.status.code() == Some(5), "{words}");
    cairn(&["volume", "undelete", "a", "--name", "old"])?;
    let would = capture(&mut cluster.cairn(&["trash", "purge", "--all", "--dry-run"]))?;
    assert!(would.starts_with("would delete volume b "), "{would}");
    assert_eq!(names(&["trash", "list"])?, ["b"]);
    cairn(&["trash", "purge", "--all"])?;
    cairn(&["volume", "rm", "old", "--now"])?;
    assert_eq!((names(&["volume", "ls"])?, names(&["trash", "list"])?), (vec!["d".into(), "a".into()], Vec::new()));
    cluster.reset()
}

/// A claim of a class that keeps what is deleted: gone with its data's name, and back under another claim with every byte.
#[test]
fn a_claim_deleted_by_mistake_comes_back() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { without_kubectl: true, ..UpOptions::default() })?;
    let file = cluster.class_and_claim("cairn-kept", "deleteRetention: 24h")?;
    let in_pod = |command: &str| capture(&mut cluster.kube(&["exec", "shell", "--", "sh", "-c", command]));
    let pod = || -> Result<()> {
        run(&mut cluster.kube(&["apply", "-f", "examples/pod.yaml"]))?;
        until("the pod", 60, || Ok(in_pod("true").ok()))?;
        Ok(())
    };
    run(&mut cluster.kube(&["apply", "-f", &file]))?;
    pod()?;
    in_pod("echo kept > /data/file; sync")?;
    run(&mut cluster.kube(&["delete", "-f", "examples/pod.yaml", "-f", &file]))?;
    let trashed = until("the volume in the trash", 60, || {
        let trash = cluster.cairn_json(&["trash", "list"])?;
        Ok(trash.as_array().and_then(|trash| trash.first()).and_then(|volume| volume["id"].as_u64()))
    })?;
    until("the PersistentVolume gone", 60, || {
        let volumes = capture(&mut cluster.kube(&["get", "pv", "-o", "json"]))?;
        let volumes: Value = serde_json::from_str(&volumes).context("the API's answer is not JSON")?;
        Ok(volumes["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;

    let manifest =
        capture(&mut cluster.cairn(&["volume", "undelete", &format!("id:{trashed}"), "--pvc", "default/data"]))?;
    let back = cluster.dir().join("back.yaml");
    std::fs::write(&back, manifest).context("cannot write the manifest")?;
    let back = back.to_string_lossy().into_owned();
    run(&mut cluster.kube(&["apply", "-f", &back]))?;
    pod()?;
    assert_eq!(in_pod("cat /data/file")?, "kept\n");
    run(&mut cluster.kube(&["delete", "-f", "examples/pod.yaml", "-f", &back]))?;
    cluster.reset()
}
