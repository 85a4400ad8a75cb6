//! Volumes without an orchestrator: what nbdcopy wrote is read back through the death of OSDs, of the attach daemon,
//! of the metadata leader, and of everything at once.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use cairn_tests::{Cluster, Copying, UpOptions, capture, nbd, nbdcopy, noise, run, tool, until};

fn storage() -> Result<Cluster> {
    Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })
}

fn healthy(cluster: &Cluster) -> Result<()> {
    until("HEALTHY", 60, || Ok((cluster.cairn_json(&["health"]).ok().map(|h| h["status"] == "OK")).filter(|ok| *ok)))
        .map(|_| ())
}

#[test]
fn what_nbdcopy_wrote_is_read_back_through_deaths() -> Result<()> {
    let mut cluster = storage()?;
    let folder = tempfile::tempdir()?;
    let (written, read) = (folder.path().join("written"), folder.path().join("read"));
    noise(&written, 96, 1)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "96Mi"]))?;
    let uri = nbd(&cluster, "v")?;
    run(tool("nbdinfo")?.arg(&uri))?;

    let copy = Copying::start(&written.to_string_lossy(), &uri)?;
    cluster.kill("osd-0")?;
    copy.finish()?;
    healthy(&cluster)?;
    let leader = cluster.cairn_json(&["status"])?["leader_id"].as_u64().context("no leader")?;
    let copy = Copying::start(&uri, &read.to_string_lossy())?;
    cluster.kill("osd-2")?;
    cluster.kill(&format!("meta-{leader}"))?;
    copy.finish()?;
    assert_eq!(std::fs::read(&written)?, std::fs::read(&read)?, "what was written is what is read");
    healthy(&cluster)?;
    cluster.reset()
}

#[test]
fn everything_dies_at_once_and_nothing_acknowledged_is_lost() -> Result<()> {
    let mut cluster = storage()?;
    let folder = tempfile::tempdir()?;
    let (written, read) = (folder.path().join("written"), folder.path().join("read"));
    noise(&written, 32, 1)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "32Mi"]))?;
    nbdcopy(&written.to_string_lossy(), &nbd(&cluster, "v")?)?;
    cluster.cut_power()?;
    cluster.start(true)?;
    nbdcopy(&nbd(&cluster, "v")?, &read.to_string_lossy())?;
    assert_eq!(std::fs::read(&written)?, std::fs::read(&read)?, "what was acknowledged is still there");
    cluster.reset()
}

#[test]
fn a_block_device_outlives_its_attach_daemon() -> Result<()> {
    let mut cluster = storage()?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "256Mi"]))?;
    let device = capture(&mut cluster.cairn(&["volume", "attach", "v"]))?.trim().to_owned();
    assert_eq!(capture(Command::new("blockdev").args(["--getss", &device]))?.trim(), "4096");
    assert_eq!(cluster.volume_loop(), Some(device.replace("/dev/", "/sys/block/")), "what is checked after a reset");
    let fio = |extra: &[&str]| -> Result<Command> {
        let mut command = tool("fio")?;
        let filename = format!("--filename={device}");
        command.args(["--name=verify", &filename, "--rw=randwrite", "--bs=4k", "--size=64m", "--direct=1"]);
        command.args(["--ioengine=psync", "--numjobs=1", "--verify=crc32c", "--verify_fatal=1"]).args(extra);
        // Its state files go where the cluster's go.
        command.current_dir(cluster.dir()).stdout(Stdio::null());
        Ok(command)
    };
    let mut writer = fio(&["--do_verify=1"])?.spawn().context("cannot start fio")?;
    cluster.kill("attach")?;
    cluster.kill("osd-1")?;
    let status = writer.wait()?;
    assert!(status.success(), "fio saw an error while daemons died: {status}");
    let old = cluster.pid("attach")?;
    until("the attach daemon again", 30, || {
        Ok(cluster.pid("attach")?.filter(|pid| Some(*pid) == old || old.is_none()))
    })?;
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    run(&mut cluster.cairn(&["volume", "rm", "v"]))?;
    cluster.reset()
}

#[test]
fn etcdctl_is_served_while_the_leader_dies() -> Result<()> {
    let mut cluster = storage()?;
    let status = cluster.cairn_json(&["status"])?;
    let members = status["members"].as_array().context("no members")?;
    let endpoints: Vec<&str> = members.iter().filter_map(|member| member["address"].as_str()).collect();
    let etcdctl = |args: &[&str]| -> Result<String> {
        let mut command = tool("etcdctl")?;
        command.env("ETCDCTL_API", "3").args(["--endpoints", &endpoints.join(","), "--command-timeout=20s"]).args(args);
        capture(&mut command)
    };
    etcdctl(&["put", "greeting", "hello"])?;
    let leader = status["leader_id"].as_u64().context("no leader")?;
    cluster.kill(&format!("meta-{leader}"))?;
    etcdctl(&["put", "greeting/again", "hello again"])?;
    assert_eq!(etcdctl(&["get", "--prefix", "greeting", "--print-value-only"])?, "hello\nhello again\n");
    until("all members again", 30, || {
        let status = cluster.cairn_json(&["status"])?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().all(|member| member["healthy"] == true).then_some(()))
    })?;
    assert_eq!(etcdctl(&["endpoint", "status"])?.lines().count(), 3);
    assert_eq!(etcdctl(&["member", "list"])?.lines().count(), 3);
    cluster.reset()
}

#[test]
fn mistakes_are_answered_with_cause_and_remedy() -> Result<()> {
    let mut cluster = storage()?;
    let refused = |args: &[&str], code: i32, says: &str| -> Result<()> {
        let output = cluster.cairn(args).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "cairn {}: {said}", args.join(" "));
        assert!(said.contains(says), "cairn {}: {said}", args.join(" "));
        Ok(())
    };
    refused(&["volume", "create", "v", "--size", "10Xi"], 2, "10Gi")?;
    refused(&["volume", "create", "v", "--size", "900Ti"], 1, "free")?;
    refused(&["volume", "create", "v", "--size", "1Gi", "--pool", "nowhere"], 4, "nowhere")?;
    refused(&["volume", "info", "nothing"], 4, "nothing")?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "1Gi"]))?;
    refused(&["volume", "resize", "v", "--size", "1Mi"], 1, "shrink")?;
    refused(&["pool", "create", "p", "--size", "5", "--failure-domain", "osd"], 1, "5 copies")?;
    refused(&["pool", "create", "p", "--failure-domain", "galaxy"], 2, "osd, host, rack, zone")?;
    refused(&["reset"], 1, "--yes")?;
    refused(&["up"], 1, "running already")?;
    cluster.reset()
}
