//! Pods with volumes while every part of the cluster dies under them, and the whole story without kubectl.

use anyhow::{Context, Result, bail};
use cairn_tests::{Cluster, UpOptions, capture, run, until};

fn wrote(cluster: &Cluster) -> Result<usize> {
    let log = capture(&mut cluster.kube(&["logs", "writer"]))?;
    if let Some(error) = log.lines().find(|line| line.starts_with("ERROR")) {
        bail!("a write failed in the pod: {error}");
    }
    Ok(log.lines().filter(|line| line.starts_with("wrote")).count())
}

fn goes_on(cluster: &Cluster, what: &str) -> Result<()> {
    // What died may be what serves the log: then the count comes later.
    let before = until("the log", 60, || Ok(wrote(cluster).ok()))?;
    until(&format!("20 writes after {what}"), 90, || Ok(wrote(cluster).ok().filter(|now| *now >= before + 20)))?;
    wrote(cluster).map(|_| ())
}

/// No part of the cluster is between the pod and its data but the OSDs and the attach daemon, and these come back.
#[test]
fn every_part_dies_once_and_the_pod_sees_no_error() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { without_kubectl: true, ..UpOptions::default() })?;
    run(&mut cluster.kube(&["apply", "-f", "examples/writer.yaml"]))?;
    until("the first writes", 60, || Ok(wrote(&cluster).ok().filter(|count| *count > 5)))?;
    for role in ["csi", "controllers", "scheduler", "apiserver", "agent", "attach", "osd-0", "meta-1"] {
        cluster.kill(role)?;
        goes_on(&cluster, role).with_context(|| format!("after kill -9 of {role}"))?;
        until(&format!("{role} again"), 30, || cluster.pid(role))?;
    }
    run(&mut cluster.kube(&["delete", "-f", "examples/writer.yaml"]))?;
    until("the volume to be gone", 60, || {
        let volumes = cluster.cairn_json(&["volume", "ls"])?;
        Ok(volumes.as_array().is_some_and(Vec::is_empty).then_some(()))
    })?;
    cluster.reset()
}

/// Stopped and started again: the claim is still bound, the pod runs again, what it wrote is there.
#[test]
fn down_and_up_keeps_pods_and_their_data() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { without_kubectl: true, ..UpOptions::default() })?;
    run(&mut cluster.kube(&["apply", "-f", "examples/claim.yaml", "-f", "examples/pod.yaml"]))?;
    let ready = |cluster: &Cluster| {
        until("the pod", 60, || {
            let shell = &["exec", "shell", "--", "true"];
            Ok(cluster.kube(shell).output()?.status.success().then_some(()))
        })
    };
    ready(&cluster)?;
    capture(&mut cluster.kube(&["exec", "shell", "--", "sh", "-c", "echo kept > /data/file; sync"]))?;
    run(&mut cluster.cairn(&["down"]))?;
    cluster.start(false)?;
    ready(&cluster)?;
    assert_eq!(capture(&mut cluster.kube(&["exec", "shell", "--", "cat", "/data/file"]))?, "kept\n");
    let code = cluster.kube(&["exec", "shell", "--", "sh", "-c", "exit 7"]).status()?.code();
    assert_eq!(code, Some(7), "the command's exit code is exec's own");
    run(&mut cluster.kube(&["delete", "-f", "examples/pod.yaml", "-f", "examples/claim.yaml"]))?;
    cluster.reset()
}

/// A StorageClass that names xfs: the pod gets it, and the next pod finds what the first one wrote.
#[test]
fn a_class_of_xfs_gives_pods_xfs() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { without_kubectl: true, ..UpOptions::default() })?;
    let file = cluster.class_and_claim("cairn-xfs", "csi.storage.k8s.io/fstype: xfs")?;
    run(&mut cluster.kube(&["apply", "-f", &file]))?;
    let in_pod = |command: &str| capture(&mut cluster.kube(&["exec", "shell", "--", "sh", "-c", command]));
    for expected in ["", "kept\n"] {
        run(&mut cluster.kube(&["apply", "-f", "examples/pod.yaml"]))?;
        until("the pod", 60, || Ok(in_pod("true").ok()))?;
        let mount = in_pod("grep ' /data ' /proc/mounts")?;
        assert!(mount.contains(" xfs "), "{mount}");
        assert_eq!(in_pod("cat /data/file 2>/dev/null || true")?, expected);
        in_pod("echo kept > /data/file; sync")?;
        run(&mut cluster.kube(&["delete", "-f", "examples/pod.yaml"]))?;
    }
    run(&mut cluster.kube(&["delete", "-f", &file]))?;
    cluster.reset()
}
