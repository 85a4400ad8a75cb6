//! `cargo xtask conformance`: holds the CSI driver against csi-sanity, the suite of the Kubernetes CSI project.
//!
//! The suite calls a cluster on this machine over the driver's socket, with filesystems and then with raw devices, and
//! mounts for real. A spec that fails fails this; so does one that is skipped for a reason that is not written down
//! here, because a driver that stops advertising something is skipped and not failed. Nothing may be left afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use cairn_tests::{Cluster, UpOptions, cargo, find_program, until};
use clap::Args;
use serde_json::Value;

use crate::machine::{self, Need};

/// The version that this is written for, and the Go that it wants.
const VERSION: &str = "v5.4.0";
const GO: &str = "1.23";
const PACKAGE: &str = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity";

/// Volumes are small: what is tested are the calls.
const VOLUME_BYTES: u64 = 64 << 20;
const GROWN_BYTES: u64 = 128 << 20;
/// A suite that hangs is ended by itself, with the stacks of its calls.
const TIMEOUT: &str = "180s";
/// What volumes are created with, and changed to.
const MUTABLE: &str = "iops: \"500\"\nbandwidth: 50Mi\nburst: \"5\"\n";

/// Why a spec may be skipped: what the suite says, and what is behind it.
const MAY_SKIP: &[(&str, &str)] = &[
    ("GroupControllerService not supported", "this driver has no group snapshots"),
    ("NodeExpandVolume not supported", "this process lacks CAP_SYS_RESOURCE, without which mounted ext4 cannot grow"),
    ("pending", "switched off by the suite itself"),
];

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Use this csi-sanity instead of installing one into the user's cache.
    #[arg(long, value_name = "PATH")]
    csi_sanity: Option<PathBuf>,
}

/// What volumes show themselves as, in the suite's words and in ours.
const KINDS: [(&str, &str); 2] = [("mount", "filesystems"), ("block", "raw devices")];

/// Installs the suite, brings a cluster up, runs the suite over it and takes everything away.
pub(crate) fn run(options: &Options) -> Result<()> {
    let suite = match &options.csi_sanity {
        Some(path) => std::fs::canonicalize(path).with_context(|| {
            format!("there is no csi-sanity at {}; leave --csi-sanity out to have it built", path.display())
        })?,
        None => installed()?,
    };
    with(&suite)
}

/// The same in the gate, where a machine without a new Go or a Go module proxy is no fault of the driver: said, not failed.
pub(crate) fn run_where_possible() -> Result<()> {
    match installed() {
        Ok(suite) => with(&suite),
        Err(why) => {
            println!("csi-sanity is not to be had here, so the driver was NOT held against it: {why:#}");
            Ok(())
        }
    }
}

fn with(suite: &Path) -> Result<()> {
    machine::prepare(Need::Run)?;
    machine::check_host()?;
    cairn_tests::run(&mut cargo(&["build", "--package", "cairn", "--locked"]))?;
    let mut cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
    let mut results = Vec::new();
    for (kind, shown) in KINDS {
        results.push((shown, against(&cluster, suite, kind)?));
    }
    print(&results);
    cluster.reset()?;
    results.iter().try_for_each(|(shown, result)| result.judge().with_context(|| format!("csi-sanity on {shown}")))
}

/// The suite in the user's cache, built there once.
fn installed() -> Result<PathBuf> {
    let folder = cache()?.join(format!("cairn/csi-sanity-{VERSION}"));
    let suite = folder.join("csi-sanity");
    if suite.exists() {
        return Ok(suite);
    }
    println!("csi-sanity {VERSION} is missing; building it once with go install, into {}", folder.display());
    let go = match go() {
        Some(go) => go,
        None => {
            machine::install(&[&machine::GO])?;
            go().context("there is no `go` after installing golang-go; give --csi-sanity PATH")?
        }
    };
    cairn_tests::run(Command::new(go).arg("install").arg(format!("{PACKAGE}@{VERSION}")).env("GOBIN", &folder))
        .with_context(|| {
            format!(
                "csi-sanity could not be built; it wants Go {GO} and a Go module proxy. Install a newer Go, or give \
                 --csi-sanity PATH"
            )
        })?;
    Ok(suite)
}

/// On the PATH, or where Go's own archive is unpacked.
fn go() -> Option<PathBuf> {
    find_program("go").or_else(|| Some(PathBuf::from("/usr/local/go/bin/go")).filter(|go| go.is_file()))
}

/// Where a user's programs keep what they can make again.
fn cache() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set; set one, or give --csi-sanity PATH")
}

/// One run of the suite. Whatever it left on the machine or in the cluster is an error.
fn against(cluster: &Cluster, suite: &Path, kind: &str) -> Result<Outcome> {
    let socket = cluster.dir().join("run/csi.sock");
    until("the CSI driver's socket", 30, || Ok(socket.exists().then_some(())))?;
    let folder = cluster.dir().join(format!("sanity-{kind}"));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let report = folder.join("report.json");
    let mutable = folder.join("mutable.yaml");
    std::fs::write(&mutable, MUTABLE).with_context(|| format!("cannot write {}", mutable.display()))?;
    let flag = |name: &str, value: &Path| {
        let mut flag = OsString::from(format!("-{name}="));
        flag.push(value);
        flag
    };
    let mut endpoint = OsString::from("-csi.endpoint=unix://");
    endpoint.push(&socket);
    let start = Instant::now();
    let ended = cairn_tests::run(
        Command::new(suite)
            .arg(endpoint)
            .arg(flag("csi.mountdir", &folder.join("target")))
            .arg(flag("csi.stagingdir", &folder.join("staging")))
            .arg(flag("csi.testvolumemutableparameters", &mutable))
            .arg("-csi.testnodevolumeattachlimit")
            .arg(flag("ginkgo.json-report", &report))
            .arg(format!("-csi.testvolumeaccesstype={kind}"))
            .arg(format!("-csi.testvolumesize={VOLUME_BYTES}"))
            .arg(format!("-csi.testvolumeexpandsize={GROWN_BYTES}"))
            .arg(format!("-ginkgo.timeout={TIMEOUT}"))
            .args(["-ginkgo.seed=1", "-ginkgo.no-color"])
            .current_dir(&folder),
    );
    let seconds = start.elapsed().as_secs_f64();
    // The report says more than the exit code; without one the exit code is what there is.
    let text = match (std::fs::read_to_string(&report), ended) {
        (Ok(text), _) => text,
        (Err(_), Err(ended)) => return Err(ended),
        (Err(error), Ok(())) => return Err(error).context("csi-sanity wrote no report"),
    };
    let mut outcome = Outcome::read(&text)?;
    outcome.seconds = seconds;
    if outcome.failed.is_empty() {
        nothing_left(cluster, &folder)?;
    }
    Ok(outcome)
}

/// The suite undoes what it did by calling the driver: then there is no mount, device or volume of its any more.
fn nothing_left(cluster: &Cluster, folder: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    let folder = folder.to_string_lossy();
    if let Some(line) = mounts.lines().find(|line| line.contains(folder.as_ref())) {
        bail!("a mount is left after csi-sanity: {line}");
    }
    if let Some(device) = cluster.volume_loop() {
        bail!("a device is left after csi-sanity: {device}");
    }
    let volumes = cluster.cairn_json(&["volume", "ls"])?;
    if volumes.as_array().is_none_or(|volumes| !volumes.is_empty()) {
        bail!("volumes are left after csi-sanity: {volumes}");
    }
    Ok(())
}

/// What the suite found.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    passed: usize,
    /// Name and message.
    failed: Vec<(String, String)>,
    /// The suite's reason, and the specs that were skipped for it.
    skipped: BTreeMap<String, BTreeSet<String>>,
    seconds: f64,
}

impl Outcome {
    /// Reads Ginkgo's JSON report.
    fn read(text: &str) -> Result<Self> {
        let suites: Value = serde_json::from_str(text).context("the report of csi-sanity is not JSON")?;
        let mut outcome = Self::default();
        let reports = suites.as_array().into_iter().flatten();
        for spec in reports.flat_map(|suite| suite["SpecReports"].as_array().into_iter().flatten()) {
            let message = spec["Failure"]["Message"].as_str().unwrap_or_default().to_owned();
            match (spec["LeafNodeType"].as_str(), spec["State"].as_str()) {
                (Some("It"), Some("passed")) => outcome.passed += 1,
                // What surrounds the specs.
                (Some(_), Some("passed")) => {}
                (_, Some(state @ ("skipped" | "pending"))) => {
                    let reason = if state == "pending" { state.to_owned() } else { message };
                    outcome.skipped.entry(reason).or_default().insert(name_of(spec));
                }
                (_, state) => outcome.failed.push((name_of(spec), format!("{}: {message}", state.unwrap_or("?")))),
            }
        }
        Ok(outcome)
    }

    /// Nothing failed, something passed, and what was skipped was skipped for a known reason.
    fn judge(&self) -> Result<()> {
        if !self.failed.is_empty() {
            bail!("{} specs failed, the first: {}: {}", self.failed.len(), self.failed[0].0, self.failed[0].1);
        }
        if self.passed == 0 {
            bail!("no spec ran");
        }
        if let Some((reason, specs)) = self.skipped.iter().find(|(reason, _)| cause(reason).is_none()) {
            bail!(
                "{} specs were skipped because of `{reason}`, which is no known reason: does the driver still advertise \
                 what it did?",
                specs.len()
            );
        }
        Ok(())
    }

    fn count_skipped(&self) -> usize {
        self.skipped.values().map(BTreeSet::len).sum()
    }
}

fn name_of(spec: &Value) -> String {
    let above = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
    let words = above.chain([&spec["LeafNodeText"]]).filter_map(Value::as_str);
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

/// What is behind a reason of the suite's, if it is a known one.
fn cause(reason: &str) -> Option<&'static str> {
    MAY_SKIP.iter().find(|(says, _)| reason.contains(says)).map(|(_, cause)| *cause)
}

fn print(results: &[(&str, Outcome)]) {
    let mut skipped = BTreeMap::<&str, BTreeSet<&str>>::new();
    println!("\n{:<24} {:>7} {:>7} {:>8} {:>6}", format!("csi-sanity {VERSION}"), "passed", "failed", "skipped", "s");
    for (shown, outcome) in results {
        let (failed, count) = (outcome.failed.len(), outcome.count_skipped());
        println!("{shown:<24} {:>7} {failed:>7} {count:>8} {:>6.1}", outcome.passed, outcome.seconds);
        for (reason, specs) in &outcome.skipped {
            skipped.entry(cause(reason).unwrap_or(reason)).or_default().extend(specs.iter().map(String::as_str));
        }
    }
    for (reason, specs) in skipped {
        println!("\nskipped, {reason}:");
        specs.iter().for_each(|spec| println!("  {spec}"));
    }
    for (shown, (spec, message)) in results.iter().flat_map(|(shown, of)| of.failed.iter().map(move |one| (shown, one)))
    {
        println!("\nFAILED on {shown}: {spec}\n  {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: &str, state: &str, message: &str) -> Value {
        serde_json::json!({
            "ContainerHierarchyTexts": ["Node Service", "NodeGetInfo"],
            "LeafNodeText": "should work",
            "LeafNodeType": kind,
            "State": state,
            "Failure": {"Message": message},
        })
    }

    fn outcome(specs: &[Value]) -> Outcome {
        Outcome::read(&serde_json::json!([{"SpecReports": specs}]).to_string()).unwrap()
    }

    #[test]
    fn a_report_is_counted_by_specs() {
        let read = outcome(&[
            spec("BeforeSuite", "passed", ""),
            spec("It", "passed", ""),
            spec("It", "pending", ""),
            spec("It", "skipped", "GroupControllerService not supported"),
        ]);
        assert_eq!((read.passed, read.count_skipped()), (1, 2));
        let name = "Node Service NodeGetInfo should work";
        assert!(read.skipped["GroupControllerService not supported"].contains(name), "{read:?}");
        read.judge().unwrap();
    }

    #[test]
    fn whatever_is_not_well_is_refused() {
        let refused = |specs: &[Value], words: &str| {
            let error = outcome(specs).judge().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        let passed = spec("It", "passed", "");
        refused(&[passed.clone(), spec("It", "failed", "got OK")], "NodeGetInfo should work: failed: got OK");
        refused(&[passed.clone(), spec("It", "timedout", "")], "1 specs failed");
        refused(&[passed.clone(), spec("BeforeSuite", "panicked", "boom")], "boom");
        refused(&[passed, spec("It", "skipped", "NodeGetVolume not supported")], "still advertise");
        refused(&[], "no spec ran");
        assert!(Outcome::read("no JSON").is_err());
    }
}
