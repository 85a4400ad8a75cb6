//! Faults on real processes: a cluster of four hosts on this machine, formed by the commands an administrator types,
//! with one fault after the other drawn from a seed, while fio verifies one volume and a history is held against
//! another. No acknowledged write may be lost, no read be stale, no request fail, and no client wait longer than ten
//! times the bar of the fault.

mod draw;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use cairn_tests::history::History;
use cairn_tests::{Hosts, Rng, Verifier, capture, cargo, interrupt, run as run_command};
use clap::Args;

use crate::machine::{self, Need};
use draw::{Fault, Stage};
use report::{Line, Report};

#[derive(Args)]
pub(crate) struct Options {
    /// How long faults are drawn; the set-up and the last check come on top.
    #[arg(long, default_value_t = 4.0)]
    minutes: f64,
    /// Draw the same faults again.
    #[arg(long)]
    seed: Option<u64>,
    /// Only these kinds of fault, as the table names them, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Options {
    /// What every change must pass: four minutes in all.
    pub(crate) fn for_ci() -> Self {
        Self { minutes: 3.0, seed: None, only: Vec::new(), json: false }
    }
}

/// Hosts a, b and c are metadata members with an OSD each; d attaches the volumes and suffers the clients.
const HOSTS: usize = 4;
pub(crate) const SERVERS: usize = 3;
pub(crate) const CLIENT: usize = 3;

/// Before each fault nothing happens for so long, so that its requests are its own.
const QUIET: Duration = Duration::from_millis(1500);

/// A healed cluster is clean again within so many seconds, or the run fails.
const CONVERGES_S: u64 = 90;

/// Beyond so many times its bar a stall fails the run; up to there it is shown. Machines are noisy.
const SLACK: u32 = 10;

/// Runs until the time is up, prints the table, and fails if anything was not as promised.
pub(crate) fn run(options: &Options) -> Result<()> {
    machine::prepare(Need::Test)?;
    machine::check_host()?;
    interrupt::install()?;
    if std::env::var_os("CAIRN_BIN").is_none() {
        run_command(&mut cargo(&["build", "--quiet", "--locked"]))?;
    }
    let seed = options.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64 % 1_000_000)
    });
    println!("seed {seed}; the same faults again: cargo xtask faults --minutes {} --seed {seed}", options.minutes);
    let mut report = Report::new(seed);
    let outcome = tell(options, seed, &mut report);
    report.print(options.json)?;
    outcome?;
    report.verdict()
}

fn tell(options: &Options, seed: u64, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let mut hosts = Hosts::form(HOSTS, SERVERS)?;
    println!("a cluster of {HOSTS} hosts is formed and healthy after {:.1} s", start.elapsed().as_secs_f64());
    let device = attach(&hosts, "history", "64Mi")?;
    let other = attach(&hosts, "fio", "32Mi")?;
    let mut history = History::start(&device, seed)?;
    let verifier = Verifier::start(&other, hosts.root())?;
    let outcome = storm(options, seed, &hosts, &history, &verifier, report);
    // Also after a failure: what was lost is worth knowing, and the devices must be free.
    heal_everything(&hosts);
    let stopped = history.stop(Duration::from_secs(60));
    report.requests = history.requests();
    report.wrong = history.wrong();
    outcome?;
    stopped.context("after the last fault")?;
    report.fio_passes = verifier.finish()?;
    last_check(&hosts, &history)?;
    report.blocks_checked = history.blocks_written();
    report.wrong = history.wrong();
    drop(history);
    hosts.reset()
}

fn attach(hosts: &Hosts, volume: &str, size: &str) -> Result<PathBuf> {
    capture(&mut hosts.cairn(CLIENT, &["volume", "create", volume, "--size", size]))?;
    let device = capture(&mut hosts.cairn(CLIENT, &["volume", "attach", volume]))?;
    Ok(PathBuf::from(device.trim()))
}

/// Reads everything back twice: where it was written, and on another host, which has nothing in memory.
fn last_check(hosts: &Hosts, history: &History) -> Result<()> {
    let device = capture(&mut hosts.cairn(CLIENT, &["volume", "attach", "history"]))?;
    history.check_everything(device.trim().as_ref())?;
    for volume in ["history", "fio"] {
        capture(&mut hosts.cairn(CLIENT, &["volume", "detach", volume]))?;
    }
    let device = capture(&mut hosts.cairn(0, &["volume", "attach", "history"]))?;
    history.check_everything(device.trim().as_ref())?;
    capture(&mut hosts.cairn(0, &["volume", "detach", "history"])).map(|_| ())
}

/// A fault that was under way when the run failed must not keep the teardown from its work.
fn heal_everything(hosts: &Hosts) {
    for host in 0..HOSTS {
        let _ = hosts.network().heal(host);
    }
}

fn storm(
    options: &Options,
    seed: u64,
    hosts: &Hosts,
    history: &History,
    verifier: &Verifier,
    report: &mut Report,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut rng = Rng::new(seed);
    let kinds = draw::kinds(&options.only)?;
    let mut round: Vec<Fault> = Vec::new();
    while Instant::now() < end {
        interrupt::check()?;
        if verifier.failed() {
            bail!("fio ended by itself");
        }
        // Each kind once in each round, in another order: a short run has seen every one.
        let fault = match round.pop() {
            Some(fault) => fault,
            None => {
                round.clone_from(&kinds);
                rng.shuffle(&mut round);
                continue;
            }
        };
        let line = one(fault, &mut rng, hosts, history).with_context(|| format!("during `{}`", fault.word()))?;
        println!("{}", line.sentence());
        let too_long = line.stall > line.bar * SLACK;
        report.lines.push(line);
        if too_long {
            bail!("a client waited longer than {SLACK} times the bar of `{}`", fault.word());
        }
        if !history.wrong().is_empty() {
            bail!("the history is wrong after `{}`", fault.word());
        }
    }
    Ok(())
}

/// One fault: quiet, the fault, its end, and the way back to health.
fn one(fault: Fault, rng: &mut Rng, hosts: &Hosts, history: &History) -> Result<Line> {
    std::thread::sleep(QUIET);
    let stage = Stage { hosts, rng };
    let began = history.now();
    let injected = fault.inject(stage)?;
    patiently(injected.hold)?;
    let held = history.now() - began;
    (injected.heal)(hosts)?;
    let healed = history.now();
    let healthy = hosts.healthy(CLIENT, CONVERGES_S)?;
    // Whoever was waiting has its answer by now; one that has not is counted with its age.
    let latency = history.latency(began, healed + Duration::from_secs(2));
    Ok(Line {
        kind: fault.word(),
        on: injected.on,
        at: began,
        held,
        healthy: Duration::from_secs_f64(healthy),
        requests: latency.requests,
        p999: latency.p999,
        stall: latency.longest,
        bar: fault.bar(injected.hold),
    })
}

/// Sleeps, but not through Ctrl-C.
fn patiently(time: Duration) -> Result<()> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
