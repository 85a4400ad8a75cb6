//! Faults on real processes: a cluster of four hosts on this machine, formed by the commands an administrator types,
//! with one fault after the other drawn from a seed, while fio verifies one volume and a history is held against
//! another, which every host reads. No acknowledged write may be lost, no read be stale, no request fail, and no client
//! wait longer than ten times the bar of the fault.

mod draw;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use cairn_tests::history::{History, Observer};
use cairn_tests::{Hosts, Rng, Verifier, capture, cargo, interrupt, run as run_command};
use clap::Args;

use crate::machine::{self, Need};
use draw::{Fault, Stage};
use report::{Line, Report};

#[derive(Args)]
pub(crate) struct Options {
    /// How long faults are drawn, each kind at least once; the set-up and the last check come on top.
    #[arg(long, default_value_t = 4.0, value_parser = minutes)]
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

fn minutes(text: &str) -> Result<f64, String> {
    let minutes = text.parse().map_err(|error| format!("{error}"))?;
    match (0.0..=7.0 * 24.0 * 60.0).contains(&minutes) {
        true => Ok(minutes),
        false => Err("a run takes between 0 minutes and a week".to_owned()),
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

/// What is unanswered for so long after the last fault is lost.
const ANSWERS: Duration = Duration::from_secs(120);

/// Written and read by the history, from every host.
const HISTORY: &str = "history";

/// Written and read by fio.
const FIO: &str = "fio";

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
    let mut report = Report::new(seed, options.json);
    let only = if options.only.is_empty() { String::new() } else { format!(" --only {}", options.only.join(",")) };
    let again = format!("cargo xtask faults --minutes {} --seed {seed}{only}", options.minutes);
    report.say(&format!("seed {seed}; the same faults again: {again}"));
    let outcome = tell(options, seed, &mut report);
    report.print()?;
    outcome?;
    report.verdict()
}

fn tell(options: &Options, seed: u64, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    let mut hosts = Hosts::form(HOSTS, SERVERS)?;
    report
        .say(&format!("a cluster of {HOSTS} hosts is formed and healthy after {:.1} s", start.elapsed().as_secs_f64()));
    let outcome = suffer(options, seed, &hosts, report);
    match outcome {
        Ok(()) => hosts.reset(),
        // Dropped with its logs kept.
        Err(error) => Err(error),
    }
}

/// Clients at work, the storm, and what is there afterwards.
fn suffer(options: &Options, seed: u64, hosts: &Hosts, report: &mut Report) -> Result<()> {
    capture(&mut hosts.cairn(CLIENT, &["volume", "create", HISTORY, "--size", "64Mi"]))?;
    capture(&mut hosts.cairn(CLIENT, &["volume", "create", FIO, "--size", "32Mi"]))?;
    let mut history = History::start(&attach(hosts, CLIENT, HISTORY)?, seed)?;
    let mut observers = Observers::start(hosts, &history, seed)?;
    let mut verifier = Verifier::start(&attach(hosts, CLIENT, FIO)?, hosts.root())?;
    let stormed = storm(options, seed, hosts, &history, &mut observers, &mut verifier, report);
    // Also after a failure: what was lost is worth knowing, and the devices must be free.
    hosts.end_all_faults();
    let stopped = history.stop(ANSWERS).context("after the last fault");
    let observed = observers.end();
    let verified = verifier.finish(ANSWERS);
    report.requests = history.requests();
    report.fio_passes = *verified.as_ref().unwrap_or(&0);
    report.observed = *observed.as_ref().unwrap_or(&0);
    let interrupted = interrupt::check();
    let checked = interrupted.and_then(|()| last_check(hosts, &history, report));
    report.wrong = history.wrong();
    stormed.and(stopped).and(observed.map(drop)).and(verified.map(drop)).and(checked)
}

fn attach(hosts: &Hosts, host: usize, volume: &str) -> Result<PathBuf> {
    let how: &[&str] = if volume == HISTORY { &["--shared"] } else { &[] };
    let device = capture(&mut hosts.cairn(host, &[&["volume", "attach", volume], how].concat()))?;
    Ok(PathBuf::from(device.trim()))
}

/// One on each server: each has a map and connections of its own, and is cut off when its host is.
struct Observers {
    all: Vec<Option<Observer>>,
    seed: u64,
    ended: u64,
}

impl Observers {
    fn start(hosts: &Hosts, history: &History, seed: u64) -> Result<Self> {
        let mut observers = Self { all: (0..SERVERS).map(|_| None).collect(), seed, ended: 0 };
        for host in 0..SERVERS {
            observers.begin(host, hosts, history)?;
        }
        Ok(observers)
    }

    fn begin(&mut self, host: usize, hosts: &Hosts, history: &History) -> Result<()> {
        self.all[host] = Some(history.observe(&attach(hosts, host, HISTORY)?, self.seed ^ host as u64)?);
        Ok(())
    }

    fn leave(&mut self, host: usize) -> Result<()> {
        if let Some(observer) = self.all[host].take() {
            self.ended += observer.end(ANSWERS).with_context(|| format!("the observer on host {host}"))?;
        }
        Ok(())
    }

    /// How many reads all of them made.
    fn end(mut self) -> Result<u64> {
        (0..SERVERS).try_for_each(|host| self.leave(host))?;
        Ok(self.ended)
    }
}

/// Reads everything back twice: where it was written, and on another host, which has nothing in memory. Then every
/// copy of every block is held against its checksum and against the other copies.
fn last_check(hosts: &Hosts, history: &History, report: &mut Report) -> Result<()> {
    hosts.healthy(CLIENT, CONVERGES_S)?;
    history.check_everything(&attach(hosts, CLIENT, HISTORY)?)?;
    history.check_everything(&attach(hosts, 0, HISTORY)?)?;
    report.blocks_checked = history.blocks_written();
    let scrub = hosts.json(CLIENT, &["pool", "scrub", "default", "--deep", "--wait"])?;
    let number = |name: &str| scrub[name].as_u64().with_context(|| format!("the scrub does not say `{name}`: {scrub}"));
    report.blocks_scrubbed = number("blocks")?;
    let (bad, damaged) = (number("bad_copies")?, number("damaged_blocks")?);
    if bad > 0 || damaged > 0 {
        bail!("a deep scrub found {bad} bad copies and {damaged} blocks without a good one");
    }
    for host in 0..SERVERS {
        capture(&mut hosts.cairn(host, &["volume", "detach", HISTORY]))?;
    }
    for volume in [HISTORY, FIO] {
        capture(&mut hosts.cairn(CLIENT, &["volume", "detach", volume]))?;
    }
    Ok(())
}

fn storm(
    options: &Options,
    seed: u64,
    hosts: &Hosts,
    history: &History,
    observers: &mut Observers,
    verifier: &mut Verifier,
    report: &mut Report,
) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64(options.minutes * 60.0);
    let mut rng = Rng::new(seed);
    let kinds = draw::kinds(&options.only)?;
    // Each kind once in each round, in another order; the first round is always whole.
    for number in 0.. {
        let mut round = kinds.clone();
        rng.shuffle(&mut round);
        for fault in round {
            if number > 0 && Instant::now() >= end {
                return Ok(());
            }
            interrupt::check()?;
            if let Some(error) = verifier.found() {
                return Err(error.context("fio --verify"));
            }
            one(fault, &mut rng, hosts, history, observers, report)
                .with_context(|| format!("during `{}`", fault.word()))?;
            if !history.wrong().is_empty() {
                bail!("the history is wrong after `{}`", fault.word());
            }
        }
    }
    Ok(())
}

/// One fault: quiet, the fault, its end, and the way back to health.
fn one(
    fault: Fault,
    rng: &mut Rng,
    hosts: &Hosts,
    history: &History,
    observers: &mut Observers,
    report: &mut Report,
) -> Result<()> {
    patiently(QUIET)?;
    let host = fault.ends_devices_of(rng);
    if let Some(host) = host {
        observers.leave(host)?;
    }
    let began = history.now();
    let injected = fault.inject(Stage { hosts, rng, host })?;
    patiently(injected.hold)?;
    (injected.proof)(hosts).context("the fault had no effect")?;
    let held = history.now() - began;
    (injected.heal)(hosts)?;
    let healthy = hosts.healthy(CLIENT, CONVERGES_S)?;
    if let Some(host) = host {
        observers.begin(host, hosts, history)?;
    }
    // The way back to health counts too, and who still waits is counted with its age.
    let latency = history.latency(began, history.now());
    let line = Line {
        kind: fault.word(),
        on: injected.on,
        at: began,
        held,
        healthy: Duration::from_secs_f64(healthy),
        requests: latency.requests,
        p999: latency.p999,
        stall: latency.longest,
        bar: fault.bar(injected.hold),
    };
    report.say(&line.sentence());
    let too_long = line.stall > fault.limit(injected.hold);
    report.lines.push(line);
    if too_long {
        bail!("a client waited longer than ten times the bar");
    }
    Ok(())
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
