//! Clusters of several hosts, formed by the commands an administrator types, each host in a network of its own.

use std::process::Command;

use anyhow::{Context, Result};
use cairn_tests::{Hosts, Signal, address, capture, run, until};

/// A command that must be refused with this exit code and these words.
fn refused(mut command: Command, code: i32, says: &str) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert!(said.contains(says), "{command:?}: {said}");
    Ok(())
}

#[test]
fn three_hosts_become_one_cluster_and_survive_the_loss_of_one() -> Result<()> {
    let mut hosts = Hosts::form(3, 3)?;
    let status = hosts.json(2, &["status"])?;
    assert_eq!(status["members"].as_array().map(Vec::len), Some(3));
    let tree = hosts.json(1, &["osd", "tree"])?;
    let names: Vec<&str> =
        tree["hosts"].as_array().context("no hosts")?.iter().filter_map(|h| h["host"].as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);

    run(&mut hosts.cairn(2, &["volume", "create", "v", "--size", "64Mi"]))?;
    let device = capture(&mut hosts.cairn(2, &["volume", "attach", "v"]))?.trim().to_owned();
    let noise = vec![0xa5_u8; 1 << 20];
    std::fs::write(&device, &noise)?;
    capture(Command::new("sync").arg(&device))?;
    hosts.crash(0)?;
    let back = std::fs::read(&device)?;
    assert!(back[..noise.len()] == noise[..] && back[noise.len()..].iter().all(|byte| *byte == 0));
    hosts.up(0)?;
    hosts.healthy(2, 60)?;

    // A process that dies on one host is started again there.
    let before = hosts.pid(1, "osd-0")?;
    hosts.signal(1, "osd-0", Signal::Kill)?;
    until("another osd-0", 30, || Ok(hosts.pid(1, "osd-0")?.filter(|pid| Some(*pid) != before)))?;

    // Each host stops and starts by itself.
    run(&mut hosts.cairn(2, &["volume", "detach", "v"]))?;
    run(&mut hosts.cairn(2, &["down"]))?;
    hosts.up(2)?;
    hosts.healthy(0, 60)?;
    hosts.reset()
}

#[test]
fn what_cannot_be_joined_is_refused_in_words() -> Result<()> {
    let mut hosts = Hosts::bare(3)?;
    let own = address(0).to_string();
    refused(hosts.cairn(0, &["init", "--address", &own]), 1, "--insecure-listen")?;
    refused(hosts.cairn(0, &["init", "--address", "10.98.0.99", "--insecure-listen"]), 1, "no interface of this host")?;
    let two = format!("{own},10.98.0.2");
    refused(hosts.cairn(0, &["init", "--address", &own, "--members", &two, "--insecure-listen"]), 1, "1, 3 or 5")?;
    refused(hosts.cairn(0, &["token", "create"]), 4, "no cluster")?;
    hosts.init(1)?;
    refused(hosts.cairn(0, &["init", "--address", &own, "--insecure-listen"]), 1, "belongs to a cluster already")?;

    let token = hosts.token()?;
    let join = |host: usize, token: &str, more: &[&str]| hosts.cairn(host, &[&["join", token][..], more].concat());
    refused(join(1, "hello", &["--insecure-listen"]), 1, "no join token")?;
    refused(join(1, &token[..token.len() - 3], &["--insecure-listen"]), 1, "damaged")?;
    refused(join(1, &token, &[]), 1, "--insecure-listen")?;
    refused(join(1, &token, &["--insecure-listen", "--node", "a"]), 1, "choose another name with --node")?;
    hosts.join(1, &token)?;
    refused(join(1, &token, &["--insecure-listen", "--node", "b"]), 1, "belongs to a cluster already")?;
    refused(hosts.cairn(1, &["token", "create"]), 1, "on the first host")?;

    // A first host that is away is named, and so is one that became another cluster.
    run(&mut hosts.cairn(0, &["down"]))?;
    refused(join(2, &token, &["--insecure-listen"]), 1, "does not answer on 10.98.0.1:7401")?;
    run(&mut hosts.cairn(0, &["reset", "--yes"]))?;
    hosts.init(1)?;
    refused(join(2, &token, &["--insecure-listen"]), 1, "not the cluster this token was made for")?;

    let create = |path: &str, more: &[&str]| hosts.cairn(0, &[&["osd", "create", path][..], more].concat());
    let file = hosts.root().join("disk").display().to_string();
    refused(create(&file, &[]), 1, "give --size")?;
    refused(create(&file, &["--size", "1Mi"]), 1, "too small")?;
    run(&mut create(&file, &["--size", "2Gi"]))?;
    run(&mut create(&file, &[]))?;
    refused(hosts.cairn(0, &["token", "forget", "nobody"]), 4, "no host named")?;
    refused(hosts.cairn(0, &["token", "forget", "a"]), 1, "cairn reset")?;
    hosts.reset()
}

/// A host that was taken away and comes again has forgotten everything, its votes too: the others do not take it for
/// who it was, it says so, and its place is taken again by one command.
#[test]
fn a_metadata_host_that_was_reset_takes_its_place_again() -> Result<()> {
    let mut hosts = Hosts::form(3, 3)?;
    let token = hosts.token()?;
    run(&mut hosts.cairn(2, &["reset", "--yes"]))?;
    let said = capture(&mut hosts.cairn(2, &["join", &token, "--node", "c", "--insecure-listen"]))?;
    assert!(said.contains("cairn meta replace 3"), "{said}");
    run(&mut hosts.cairn(2, &["meta", "replace", "3"]))?;
    until("three members", 30, || {
        let status = hosts.json(0, &["status"])?;
        let members = status["members"].as_array().context("no members")?;
        let healthy = members.iter().filter(|member| member["healthy"] == true).count();
        Ok((members.len() == 3 && healthy == 3).then_some(()))
    })?;
    // Its disk is still the OSD that it was.
    let disk = hosts.disk_folder(2).join("osd.img").display().to_string();
    run(&mut hosts.cairn(2, &["osd", "create", &disk]))?;
    hosts.healthy(0, 60)?;
    // What it was before stays forgotten.
    run(&mut hosts.cairn(2, &["down"]))?;
    hosts.up(2)?;
    hosts.healthy(0, 60)?;
    hosts.reset()
}
