//! The demonstration: one story from nothing to a torn-down cluster, each step timed and held.
//!
//! It drives the finished binary and `kubectl` from outside, so that what it shows is what a user gets.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use cairn_tests::{Cluster, UpOptions, cargo, until};
use clap::Args;
use serde_json::Value;

use crate::machine::{self, Need};
use crate::report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// No terminal: plain lines, and the table as JSON.
    #[arg(long)]
    ci: bool,
    /// Leave the cluster running at the end.
    #[arg(long)]
    keep: bool,
    /// Tell the story with `cairn` alone, as where kubectl is missing.
    #[arg(long)]
    without_kubectl: bool,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/demo.json")]
    json: PathBuf,
}

impl Options {
    pub(crate) fn for_ci() -> Self {
        Self { ci: true, keep: false, without_kubectl: false, json: "target/demo.json".into() }
    }
}

/// Tells the story; an error after the table when a step did not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Run)?;
    machine::check_host()?;
    let mut report = Report::default();
    let outcome = tell(options, &mut report);
    report.print();
    let json = cairn_tests::root().join(&options.json);
    report.write_json(&json)?;
    if options.ci {
        println!("written to {}", options.json.display());
    }
    outcome?;
    if !report.held() {
        bail!("a step of the demonstration did not hold");
    }
    Ok(())
}

fn tell(options: &Options, report: &mut Report) -> Result<()> {
    report.step("build the binary", None, || {
        cairn_tests::run(&mut cargo(&["build", "--package", "cairn", "--locked"]))?;
        Ok(((), String::new()))
    })?;
    let mut cluster = report.step("nothing -> HEALTHY", secs(5), || {
        let without_kubectl = options.without_kubectl;
        let cluster = Cluster::up(UpOptions { keep: options.keep, without_kubectl, ..UpOptions::default() })?;
        Ok((cluster, "3 metadata members, 3 OSDs, API server, agent".into()))
    })?;
    members_and_osds(&cluster, report)?;
    claim_and_pod(&cluster, report)?;
    if cluster.has_kubectl() {
        documented_manifests(&cluster, report)?;
        wrong_on_purpose(&cluster, report)?;
    }
    both_kills(&cluster, report)?;
    report.step("healthy again: the OSD caught up", secs(20), || wait_healthy(&cluster))?;
    delete_everything(&cluster, report)?;
    report.fact("resident memory of everything but containerd (MiB)", cluster.resident_mib()?);
    if options.keep {
        return Ok(());
    }
    report.step("teardown leaves nothing", secs(20), || {
        cluster.reset()?;
        Ok(((), "no process, mount, loop device or file".into()))
    })
}

fn members_and_osds(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.step("three members, one leader", None, || {
        let status = cluster.cairn_json(&["status"])?;
        let members = status["members"].as_array().map_or(0, Vec::len);
        let leader = status["leader_id"].as_u64().unwrap_or(0);
        if members != 3 || leader == 0 {
            bail!("{members} members, leader {leader}");
        }
        cairn_tests::run(&mut cluster.cairn(&["status"]))?;
        Ok(((), format!("member {leader} leads")))
    })?;
    report.step("three OSDs up", None, || {
        let osds = cluster.cairn_json(&["osd", "ls"])?;
        let up = osds.as_array().into_iter().flatten().filter(|osd| osd["up"] == true).count();
        if up != 3 {
            bail!("{up} OSDs are up");
        }
        cairn_tests::run(&mut cluster.cairn(&["osd", "tree"]))?;
        Ok(((), String::new()))
    })?;
    report.step("health names the single host, with the remedy", None, || {
        let health = cluster.cairn_json(&["health"])?;
        cairn_tests::run(&mut cluster.cairn(&["health"]))?;
        let checks = health["checks"].as_array().cloned().unwrap_or_default();
        let check = checks.iter().find(|check| check["code"] == "POOL_SINGLE_HOST").context("no POOL_SINGLE_HOST")?;
        if check["remedy"].as_str().unwrap_or_default().is_empty() {
            bail!("it names no remedy");
        }
        Ok(((), String::new()))
    })
}

/// The pod that writes through everything that follows.
fn claim_and_pod(cluster: &Cluster, report: &mut Report) -> Result<()> {
    println!("\n(manifests are applied with {})", cluster.client_name());
    let watch = BindingWatch::start(cluster)?;
    cairn_tests::run(&mut cluster.kube(&["apply", "-f", "examples/writer.yaml"]))?;
    let bound = until("claim Bound", 10, || phase(cluster, "pvc", "writer-data", "Bound"))?;
    let took = watch.finish()?;
    report.record("claim -> Bound", took, millis(200), Ok(((), volume_of(&bound))))?;
    report.step("pod Running with its volume as ext4", secs(5), || {
        until("pod Running", 60, || phase(cluster, "pod", "writer", "Running"))?;
        let mount = exec(cluster, "grep ' /data ' /proc/mounts")?;
        if !mount.contains("ext4") {
            bail!("/data is not ext4: {mount}");
        }
        Ok(((), mount.trim().to_owned()))
    })?;
    report.step("the pod writes", None, || {
        let lines = until("20 writes", 30, || at_least(cluster, 20))?;
        Ok(((), format!("{lines} writes")))
    })
}

/// The claim and the pod of the Kubernetes documentation, with only the image changed.
fn documented_manifests(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.step("the documentation's claim and pod, by kubectl alone", secs(10), || {
        cairn_tests::run(&mut cluster.kube(&["apply", "-f", "examples/claim.yaml", "-f", "examples/pod.yaml"]))?;
        cairn_tests::run(&mut cluster.kube(&[
            "wait",
            "--for=jsonpath={.status.phase}=Bound",
            "pvc/data",
            "--timeout=30s",
        ]))?;
        cairn_tests::run(&mut cluster.kube(&["wait", "--for=condition=Ready", "pod/shell", "--timeout=60s"]))?;
        cairn_tests::run(&mut cluster.kube(&["exec", "shell", "--", "sh", "-c", "echo hello > /data/hello && sync"]))?;
        let read = cairn_tests::capture(&mut cluster.kube(&["exec", "shell", "--", "cat", "/data/hello"]))?;
        if read.trim() != "hello" {
            bail!("read back {read:?}");
        }
        cairn_tests::run(&mut cluster.kube(&["get", "pods,pvc,pv,storageclass,nodes", "-o", "wide"]))?;
        cairn_tests::run(&mut cluster.kube(&["describe", "pvc", "data"]))?;
        cairn_tests::run(&mut cluster.kube(&["delete", "-f", "examples/pod.yaml", "-f", "examples/claim.yaml"]))?;
        Ok(((), String::new()))
    })
}

/// Mistakes people make: each is answered within 5 s by a sentence that names the cause.
fn wrong_on_purpose(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let claim = |name: &str, class: &str, size: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec:\n  storageClassName: \
             {class}\n  accessModes: [ReadWriteOnce]\n  resources: {{requests: {{storage: {size}}}}}\n"
        )
    };
    report.step("unknown StorageClass: an event names it", secs(5), || {
        apply_text(cluster, &claim("lost", "no-such-class", "1Gi"))?;
        let said = until("an event", 10, || event_about(cluster, "lost", "no-such-class"))?;
        delete(cluster, "pvc", "lost")?;
        Ok(((), said))
    })?;
    report.step("a claim larger than free space: an event says so", secs(5), || {
        apply_text(cluster, &claim("huge", "cairn-block", "500Ti"))?;
        let said = until("an event", 10, || event_about(cluster, "huge", "free"))?;
        delete(cluster, "pvc", "huge")?;
        Ok(((), said))
    })?;
    report.step("three copies on three hosts where there is one", secs(5), || {
        let args = ["pool", "create", "apart", "--size", "3", "--failure-domain", "host"];
        let said = refused(&mut cluster.cairn(&args), "host")?;
        Ok(((), said))
    })?;
    report.step("shrinking a claim is refused", secs(5), || {
        let patch = r#"{"spec":{"resources":{"requests":{"storage":"1Mi"}}}}"#;
        let said = refused(&mut cluster.kube(&["patch", "pvc", "writer-data", "-p", patch]), "can not be less than")?;
        Ok(((), said))
    })?;
    report.step("a malformed manifest is refused with the field", secs(5), || {
        let text = claim("bad", "cairn-block", "1Gi").replace("accessModes", "accesModes");
        let said = refused_text(cluster, &text, "accesModes")?;
        Ok(((), said))
    })?;
    report.step("a wrong flag is refused with the right one", secs(5), || {
        let said = refused(&mut cluster.cairn(&["volume", "create", "v", "--sise", "1Gi"]), "--size")?;
        Ok(((), said))
    })
}

/// An OSD and the metadata leader die while the pod writes; then everything it wrote is read back.
fn both_kills(cluster: &Cluster, report: &mut Report) -> Result<()> {
    let before = report.step("a file's checksum, before the kills", None, || {
        exec(cluster, "dd if=/dev/urandom of=/data/kept bs=1M count=16 conv=fsync 2>/dev/null")?;
        let sum = exec(cluster, "sha256sum /data/kept")?;
        Ok((sum.clone(), sum.trim().to_owned()))
    })?;
    let start = wrote(cluster)?;
    report.step("kill -9 an OSD: the pod keeps writing", secs(5), || {
        let pid = cluster.kill("osd-1")?;
        let lines = until("50 more writes", 60, || at_least(cluster, start + 50))?;
        Ok(((), format!("osd-1 (pid {pid}) killed; {} writes since", lines - start)))
    })?;
    let middle = wrote(cluster)?;
    report.step("kill -9 the metadata leader: the pod keeps writing", secs(5), || {
        let leader = cluster.cairn_json(&["status"])?["leader_id"].as_u64().context("no leader")?;
        let pid = cluster.kill(&format!("meta-{leader}"))?;
        let lines = until("50 more writes", 60, || at_least(cluster, middle + 50))?;
        until("another leader", 20, || {
            let now = cluster.cairn_json(&["status"])?["leader_id"].as_u64().unwrap_or(0);
            Ok((now != 0 && now != leader).then_some(()))
        })?;
        Ok(((), format!("meta-{leader} (pid {pid}) killed; {} writes since", lines - middle)))
    })?;
    let (stall, at) = longest_stall(cluster)?;
    let note = format!("after write {at}");
    report.record("longest write stall in the pod", stall, millis(500), Ok(((), note)))?;
    report.step("the data reads back whole", secs(5), || {
        // Out of the page cache's sight: what is compared comes from the OSDs.
        std::fs::write("/proc/sys/vm/drop_caches", "3").context("cannot drop the page cache")?;
        let after = exec(cluster, "sha256sum /data/kept")?;
        if after != before {
            bail!("before {before}, after {after}");
        }
        let verified = exec(cluster, VERIFY)?;
        Ok(((), verified.trim().to_owned()))
    })?;
    report.step("no I/O error in the pod", None, || {
        let log = cairn_tests::capture(&mut cluster.kube(&["logs", "writer"]))?;
        let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("ERROR")).collect();
        if let Some(first) = errors.first() {
            bail!("{} failed writes; the first: {first}", errors.len());
        }
        Ok(((), format!("{} writes", log.lines().count())))
    })
}

/// Every file must have a checksum that was recorded for it. The writer rests meanwhile.
const VERIFY: &str = r#"
touch /data/pause; sleep 1
bad=0; good=0
for file in /data/block-*; do
    now=$(sha256sum "$file" | cut -d' ' -f1)
    if grep -q "$now $file" /data/sums; then good=$((good + 1)); else bad=$((bad + 1)); echo "bad: $file"; fi
done
rm /data/pause
echo "$good files match their checksums, $bad do not"
[ "$bad" -eq 0 ]
"#;

fn delete_everything(cluster: &Cluster, report: &mut Report) -> Result<()> {
    report.step("delete pod and claim: the volume is gone", secs(20), || {
        cairn_tests::run(&mut cluster.kube(&["delete", "-f", "examples/writer.yaml"]))?;
        until("volume gone", 60, || {
            let volumes = cluster.cairn_json(&["volume", "ls"])?;
            Ok(volumes.as_array().is_some_and(Vec::is_empty).then_some(()))
        })?;
        Ok(((), String::new()))
    })
}

fn wait_healthy(cluster: &Cluster) -> Result<((), String)> {
    until("HEALTHY", 60, || {
        let health = cluster.cairn_json(&["health"])?;
        Ok((health["status"] == "OK").then_some(()))
    })?;
    Ok(((), String::new()))
}

fn phase(cluster: &Cluster, kind: &str, name: &str, wanted: &str) -> Result<Option<Value>> {
    Ok(cluster.object(kind, name)?.filter(|object| object["status"]["phase"] == wanted))
}

fn volume_of(claim: &Value) -> String {
    claim["spec"]["volumeName"].as_str().unwrap_or_default().to_owned()
}

/// Watches claims as they change, so that the time from creation to binding is the cluster's and not that of a
/// client's start.
struct BindingWatch {
    child: std::process::Child,
    seen: std::sync::mpsc::Receiver<(Instant, String)>,
}

impl BindingWatch {
    fn start(cluster: &Cluster) -> Result<Self> {
        let mut command = cluster.kube(&["get", "pvc", "--watch"]);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().context("cannot start a watch")?;
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
        let (send, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(std::result::Result::ok) {
                let _ = send.send((Instant::now(), line));
            }
        });
        Ok(Self { child, seen })
    }

    /// The time between the claim's first sight and the sight of it bound.
    fn finish(mut self) -> Result<Duration> {
        let mut first = None;
        let limit = Duration::from_secs(10);
        let took = loop {
            let Ok((at, line)) = self.seen.recv_timeout(limit) else { break None };
            let mut words = line.split_whitespace();
            if words.next() == Some("writer-data") {
                let start = *first.get_or_insert(at);
                if words.next() == Some("Bound") {
                    break Some(at - start);
                }
            }
        };
        let _ = self.child.kill();
        let _ = self.child.wait();
        took.context("the watch never showed the claim bound")
    }
}

fn exec(cluster: &Cluster, script: &str) -> Result<String> {
    cairn_tests::capture(&mut cluster.kube(&["exec", "writer", "--", "sh", "-c", script]))
}

fn wrote(cluster: &Cluster) -> Result<usize> {
    let log = cairn_tests::capture(&mut cluster.kube(&["logs", "writer"]))?;
    Ok(log.lines().filter(|line| line.starts_with("wrote")).count())
}

fn at_least(cluster: &Cluster, wanted: usize) -> Result<Option<usize>> {
    let lines = wrote(cluster)?;
    Ok((lines >= wanted).then_some(lines))
}

/// The longest time between two lines of the writer, by the times the container runtime put on them.
fn longest_stall(cluster: &Cluster) -> Result<(Duration, String)> {
    let log = cairn_tests::capture(&mut cluster.kube(&["logs", "writer", "--timestamps"]))?;
    let mut longest = (Duration::ZERO, String::new());
    let mut last: Option<(f64, String)> = None;
    for line in log.lines() {
        let (stamp, text) = line.split_once(' ').unwrap_or((line, ""));
        let Some(now) = seconds_of_day(stamp) else { continue };
        if let Some((before, what)) = last {
            // Across midnight the difference is negative; add the day.
            let gap = Duration::from_secs_f64((now - before).rem_euclid(86_400.0));
            if gap > longest.0 {
                longest = (gap, what);
            }
        }
        last = Some((now, text.split_whitespace().nth(1).unwrap_or_default().to_owned()));
    }
    Ok(longest)
}

/// `2026-01-02T03:04:05.678901234Z` -> seconds since midnight.
fn seconds_of_day(stamp: &str) -> Option<f64> {
    let time = stamp.split_once('T')?.1;
    let time = time.split(['Z', '+', '-']).next()?;
    let mut parts = time.split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

fn apply_text(cluster: &Cluster, text: &str) -> Result<()> {
    let file = manifest(cluster, text)?;
    cairn_tests::run(&mut cluster.kube(&["apply", "-f", &file.to_string_lossy()]))
}

fn refused_text(cluster: &Cluster, text: &str, names: &str) -> Result<String> {
    let file = manifest(cluster, text)?;
    refused(&mut cluster.kube(&["apply", "-f", &file.to_string_lossy()]), names)
}

fn manifest(cluster: &Cluster, text: &str) -> Result<PathBuf> {
    let file = cluster.dir().join("manifest.yaml");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The command must fail, and say `names`.
fn refused(command: &mut Command, names: &str) -> Result<String> {
    let start = Instant::now();
    let output = cairn_tests::output(command)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() {
        bail!("it was accepted");
    }
    if !said.contains(names) {
        bail!("it does not name {names}: {said}");
    }
    if start.elapsed() > Duration::from_secs(5) {
        bail!("refused only after {} ms: {said}", start.elapsed().as_millis());
    }
    Ok(said)
}

fn event_about(cluster: &Cluster, name: &str, names: &str) -> Result<Option<String>> {
    let field = format!("involvedObject.name={name}");
    let text = cairn_tests::capture(&mut cluster.kube(&["get", "events", "--field-selector", &field, "-o", "json"]))?;
    let events: Value = serde_json::from_str(&text).context("events are not JSON")?;
    let messages = events["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
    Ok(messages.into_iter().find(|message| message.contains(names)).map(str::to_owned))
}

fn delete(cluster: &Cluster, kind: &str, name: &str) -> Result<()> {
    cairn_tests::run(&mut cluster.kube(&["delete", kind, name, "--timeout=20s"]))
}

fn secs(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

fn millis(ms: u64) -> Option<Duration> {
    Some(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_runtimes_time_is_read() {
        let seconds = seconds_of_day("2026-01-02T03:04:05.5Z").unwrap();
        assert!((seconds - 11_045.5).abs() < 1e-6);
        assert!(seconds_of_day("not a time").is_none());
    }
}
