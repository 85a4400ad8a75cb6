//! Two copies, of which both are demanded, and one disk is lost (`docs/decisions/0085`): who is left waits as long as the other
//! may come back, goes on when an administrator says that it will not, and serves once another has joined.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cairn_tests::history::History;
use cairn_tests::{Cluster, UpOptions, capture, run, until};
use serde_json::Value;

const GROUPS: u64 = 16;
/// Its process here; OSDs are numbered in the order in which they joined.
const ROLE: &str = "osd-1";
/// What is unanswered for so long is lost.
const ANSWERS: Duration = Duration::from_secs(120);

fn pool(cluster: &Cluster) -> Result<Value> {
    let pools = cluster.cairn_json(&["pool", "ls"])?;
    let two = pools.as_array().into_iter().flatten().find(|pool| pool["name"] == "two").cloned();
    two.with_context(|| format!("there is no pool `two`: {pools}"))
}

/// The in-sync OSDs of each group of the pool.
fn in_sync(cluster: &Cluster) -> Result<Vec<Vec<u64>>> {
    let pgs = cluster.cairn_json(&["pg", "ls", "--pool", "two"])?;
    let osds = |pg: &Value| pg["in_sync"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    Ok(pgs.as_array().into_iter().flatten().map(osds).collect())
}

/// The number of the OSD that a process of this host is.
fn number(cluster: &Cluster, role: &str) -> Result<u64> {
    let osds = cluster.cairn_json(&["osd", "ls"])?;
    let it = |osd: &&Value| osd["addresses"].to_string().contains(&format!("{role}."));
    let found = osds.as_array().into_iter().flatten().find(it).and_then(|osd| osd["id"].as_u64());
    found.with_context(|| format!("{role} is not listed: {osds}"))
}

fn attach(cluster: &Cluster) -> Result<PathBuf> {
    Ok(PathBuf::from(capture(&mut cluster.cairn(&["volume", "attach", "v"]))?.trim()))
}

#[test]
fn a_survivor_goes_on_without_a_lost_disk_and_serves_when_another_has_joined() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, osds: Some(4), ..UpOptions::default() })?;
    let groups = GROUPS.to_string();
    let make = ["pool", "create", "two", "--size", "2", "--min-size", "2", "--failure-domain", "osd", "--pg-count"];
    run(&mut cluster.cairn(&[&make[..], &[&groups]].concat()))?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--pool", "two", "--size", "64Mi"]))?;
    let device = attach(&cluster)?;
    let mut history = History::start(&device, 85)?;
    until("requests", 60, || Ok((history.requests() > 2000).then_some(())))?;
    let lost = number(&cluster, ROLE)?;
    let stranded = in_sync(&cluster)?.iter().filter(|osds| osds.contains(&lost)).count() as u64;
    assert!((1..GROUPS).contains(&stranded), "{stranded} groups are on osd-{lost}");

    // In the middle of writes, and nobody else is spared: all primaries begin anew, without the word of the lost one.
    cluster.kill(ROLE)?;
    // A disk that cannot be opened; a blank file would be made another OSD.
    let image = cluster.dir().join(format!("{ROLE}.img"));
    std::fs::remove_file(&image)?;
    std::fs::create_dir(&image)?;
    let others = [0, 2, 3];
    let lives: Vec<u32> = others.iter().map(|osd| cluster.kill(&format!("osd-{osd}"))).collect::<Result<_>>()?;
    for (osd, before) in others.into_iter().zip(lives) {
        let role = format!("osd-{osd}");
        until("another life", 60, || Ok(cluster.pid(&role)?.filter(|pid| *pid != before)))?;
    }
    until("the groups without the lost OSD to serve", 60, || {
        Ok((pool(&cluster)?["active_pgs"] == GROUPS - stranded).then_some(()))
    })?;
    // It may come back, for all that is known: nobody goes on without it, and no write is acknowledged by one of two.
    until("a write to wait", 60, || {
        assert_eq!(pool(&cluster)?["active_pgs"], GROUPS - stranded);
        Ok((history.oldest_under_way() > Duration::from_secs(6)).then_some(()))
    })?;
    assert_eq!(in_sync(&cluster)?.iter().filter(|osds| osds.contains(&lost)).count() as u64, stranded);

    run(&mut cluster.cairn(&["osd", "out", &lost.to_string()]))?;
    until("every group to have two copies again", 120, || {
        let pool = pool(&cluster)?;
        Ok((pool["active_pgs"] == GROUPS && pool["degraded_pgs"] == 0).then_some(()))
    })?;
    assert!(in_sync(&cluster)?.iter().all(|osds| osds.len() == 2 && !osds.contains(&lost)));
    until("whoever waited to be answered", 60, || {
        Ok((history.oldest_under_way() < Duration::from_secs(2)).then_some(()))
    })?;
    let before = history.requests();
    until("requests again", 60, || Ok((history.requests() > before + 1000).then_some(())))?;
    history.stop(ANSWERS)?;
    history.check_everything(&device)?;
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    history.check_everything(&attach(&cluster)?)?;
    assert!(history.wrong().is_empty(), "{:?}", history.wrong().first());
    let scrub = cluster.cairn_json(&["pool", "scrub", "two", "--deep", "--wait"])?;
    assert!(scrub["blocks"].as_u64() > Some(0) && scrub["bad_copies"] == 0 && scrub["damaged_blocks"] == 0, "{scrub}");
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    cluster.reset()
}
