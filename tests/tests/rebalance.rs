//! Moving data with the commands an administrator types, on real processes, while a client writes: nothing is lost, no
//! group loses a copy, and what must not be done is refused in words.

use std::process::Stdio;

use anyhow::{Context, Result};
use cairn_tests::{Cluster, Copying, UpOptions, capture, nbd, nbdcopy, noise, output, run, until};

/// Its exit code, and what it says went wrong.
fn refused(cluster: &Cluster, args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = output(&mut cluster.cairn(args))?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// PGs that have fewer copies than they should.
fn degraded(cluster: &Cluster) -> Result<u64> {
    let pools = cluster.cairn_json(&["pool", "ls"])?;
    Ok(pools.as_array().into_iter().flatten().filter_map(|pool| pool["degraded_pgs"].as_u64()).sum())
}

/// Moves of groups that are not over.
fn moves_under_way(cluster: &Cluster) -> Result<usize> {
    let moves = cluster.cairn_json(&["osd", "moves"])?;
    moves["moves"].as_array().map(Vec::len).context("no moves")
}

#[test]
fn osds_are_drained_removed_and_replaced_while_a_client_writes() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, osds: Some(5), ..UpOptions::default() })?;
    let folder = tempfile::tempdir()?;
    let (written, read) = (folder.path().join("written"), folder.path().join("read"));
    noise(&written, 64, 1)?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "64Mi"]))?;
    let uri = nbd(&cluster, "v")?;

    // The balancer may have begun to even out what the OSDs got as they came.
    until("nothing to move", 60, || Ok((moves_under_way(&cluster)? == 0).then_some(())))?;
    let plan = cluster.cairn_json(&["osd", "drain", "0", "--dry-run"])?;
    let moves = plan["moves"].as_array().context("no moves")?;
    assert!(!moves.is_empty() && moves.iter().all(|one| one["degraded"] == false), "{plan}");
    assert_eq!(moves_under_way(&cluster)?, 0, "nothing was changed");
    let (code, words) = refused(&cluster, &["osd", "remove", "0"])?;
    assert!(code == Some(1) && words.contains("cairn osd drain 0 --wait"), "{words}");

    let copy = Copying::start(&written.to_string_lossy(), &uri)?;
    let mut drain = cluster.cairn(&["osd", "drain", "0", "--wait", "--timeout", "240"]);
    let mut drain = drain.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start the drain")?;
    let ended = loop {
        if let Some(ended) = drain.try_wait()? {
            break ended;
        }
        assert_eq!(degraded(&cluster)?, 0, "a group lost a copy because it moves");
    };
    assert!(ended.success(), "the drain ended with {ended}");
    copy.finish()?;
    run(&mut cluster.cairn(&["osd", "remove", "0"]))?;

    // The fifth takes the place of the second; then three are left for three copies, and none may go.
    run(&mut cluster.cairn(&["osd", "drain", "4", "--wait", "--timeout", "240"]))?;
    run(&mut cluster.cairn(&["osd", "replace", "1", "--with", "4", "--wait", "--timeout", "240"]))?;
    run(&mut cluster.cairn(&["osd", "remove", "1"]))?;
    let (code, words) = refused(&cluster, &["osd", "drain", "4"])?;
    assert!(code == Some(1) && words.contains("3 copies on different OSDs"), "{words}");
    let (code, words) = refused(&cluster, &["osd", "drain", "77"])?;
    assert!(code == Some(4) && words.contains("there is no osd-77"), "{words}");

    run(&mut cluster.cairn(&["osd", "set", "noout"]))?;
    assert_eq!(cluster.cairn_json(&["osd", "set"])?["noout"], true);
    run(&mut cluster.cairn(&["osd", "unset", "noout"]))?;

    nbdcopy(&uri, &read.to_string_lossy())?;
    assert_eq!(std::fs::read(&written)?, std::fs::read(&read)?, "what was written is what is read");
    assert_eq!(degraded(&cluster)?, 0);
    cluster.reset()
}

/// The groups of every pool, and how many there are to be.
fn groups(cluster: &Cluster) -> Result<Vec<(u64, u64)>> {
    let pools = cluster.cairn_json(&["pool", "ls"])?;
    let of = |pool: &serde_json::Value| Some((pool["pg_count"].as_u64()?, pool["pg_target"].as_u64()?));
    Ok(pools.as_array().into_iter().flatten().filter_map(of).collect())
}

#[test]
fn placement_groups_split_while_a_client_writes() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, osds: Some(4), ..UpOptions::default() })?;
    let folder = tempfile::tempdir()?;
    let (written, read) = (folder.path().join("written"), folder.path().join("read"));
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "64Mi"]))?;
    let uri = nbd(&cluster, "v")?;
    noise(&written, 64, 1)?;
    nbdcopy(&written.to_string_lossy(), &uri)?;

    let (before, _) = groups(&cluster)?[0];
    let wanted = before * 2;
    let (code, words) = refused(&cluster, &["pool", "set", "default", "--pgs", "3"])?;
    assert!(code == Some(1) && words.contains("power of two"), "{words}");
    let (code, words) = refused(&cluster, &["pool", "set", "default", "--pgs", "1"])?;
    assert!(code == Some(1) && words.contains("never joined again"), "{words}");
    let (code, words) = refused(&cluster, &["pool", "set", "default", "--pgs", &(before * 4).to_string()])?;
    assert!(code == Some(1) && words.contains("or add OSDs"), "{words}");
    let pgs = wanted.to_string();
    let words = capture(&mut cluster.cairn(&["pool", "set", "default", "--pgs", &pgs, "--dry-run"]))?;
    assert!(words.contains(&format!("{} more placement groups come", wanted - before)), "{words}");
    assert_eq!(groups(&cluster)?, [(before, before)], "nothing was changed");
    run(&mut cluster.cairn(&["pool", "set", "default", "--pgs", &pgs]))?;
    // The same bytes again and again, until all have split.
    until("all groups to split", 120, || {
        nbdcopy(&written.to_string_lossy(), &uri)?;
        Ok((groups(&cluster)? == [(wanted, wanted)]).then_some(()))
    })?;
    let wait = ["pool", "set", "default", "--pgs", &pgs, "--wait", "--timeout", "120", "-o", "json"];
    let done: serde_json::Value = serde_json::from_str(&capture(&mut cluster.cairn(&wait))?)?;
    assert!(done["to_come"] == 0 && done["moves"] == serde_json::json!([]), "{done}");
    cluster.kill("osd-1")?;
    until("every group to be whole again", 120, || {
        let pools = cluster.cairn_json(&["pool", "ls"])?;
        let pool = &pools[0];
        Ok((pool["active_pgs"] == wanted && pool["degraded_pgs"] == 0 && pool["misplaced_pgs"] == 0).then_some(()))
    })?;
    nbdcopy(&uri, &read.to_string_lossy())?;
    assert_eq!(std::fs::read(&written)?, std::fs::read(&read)?, "what was written is what is read");
    let scrub = cluster.cairn_json(&["pool", "scrub", "default", "--deep", "--wait"])?;
    assert!(scrub["blocks"].as_u64() > Some(0) && scrub["bad_copies"] == 0 && scrub["damaged_blocks"] == 0, "{scrub}");
    cluster.reset()
}
