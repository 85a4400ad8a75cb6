//! The gate and the tests: which checks run, in which order, with their times.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::machine::{self, Need};
use cairn_tests::cargo;

use crate::{conformance, demo, faults, mutants, tidy};

/// The version of cargo-deny that the gate is written for.
const CARGO_DENY: &str = "0.20.2";

#[derive(Args, Default)]
pub(crate) struct TestOptions {
    /// Leave out the end-to-end tests, which start clusters and need root.
    #[arg(long)]
    no_e2e: bool,
}

#[derive(Args)]
pub(crate) struct SimOptions {
    /// How many seeds to run: 100 unless said otherwise, one with --seed.
    #[arg(long)]
    seeds: Option<u64>,
    /// Run this seed only, or start from it when --seeds is given too.
    #[arg(long)]
    seed: Option<u64>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything a change must pass before it lands.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    machine::prepare(Need::Test)?;
    let mut times = Vec::new();
    stage(&mut times, "fmt", || cairn_tests::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    stage(&mut times, "tidy", tidy::run)?;
    stage(&mut times, "deny", deny)?;
    stage(&mut times, "clippy", || {
        cairn_tests::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
    })?;
    stage(&mut times, "test", || test(&TestOptions::default()))?;
    stage(&mut times, "conformance", conformance::run_where_possible)?;
    println!("\nstage            s");
    for (name, seconds) in &times {
        println!("{name:<12} {seconds:>6}");
    }
    println!("{:<12} {:>6}", "total", start.elapsed().as_secs());
    Ok(())
}

/// `cargo xtask test`: unit and property tests, the simulation in its short form, then the stories on real processes.
pub(crate) fn test(options: &TestOptions) -> Result<()> {
    machine::prepare(Need::Test)?;
    cairn_tests::run(&mut cargo(&["build", "--workspace", "--locked"]))?;
    cairn_tests::run(&mut cargo(&["test", "--workspace", "--exclude", "cairn-tests", "--locked"]))?;
    sim(&SimOptions { seeds: Some(SHORT_SIM_SEEDS), seed: None, json: false })?;
    mutants::run(&mutants::Options::for_ci())?;
    if options.no_e2e {
        println!("the end-to-end tests were left out (--no-e2e)");
        return Ok(());
    }
    machine::check_host()?;
    // One at a time: each starts a cluster of its own on a machine that may have two cores.
    cairn_tests::run(&mut cargo(&["test", "--package", "cairn-tests", "--locked", "--", "--test-threads=1"]))?;
    demo::run(&demo::Options::for_ci())?;
    faults::run(&faults::Options::for_ci())
}

/// Seeds of the simulation that every change must pass.
const SHORT_SIM_SEEDS: u64 = 1000;

/// Runs the simulation's own program, which links no RocksDB.
pub(crate) fn sim(options: &SimOptions) -> Result<()> {
    let mut args = vec!["run", "--quiet", "--package", "cairn-sim", "--bin", "cairn-sim", "--"];
    let seeds = options.seeds.map(|seeds| seeds.to_string());
    if let Some(seeds) = &seeds {
        args.extend(["--seeds", seeds]);
    }
    let seed = options.seed.map(|seed| seed.to_string());
    if let Some(seed) = &seed {
        args.extend(["--seed", seed]);
    }
    if options.json {
        args.push("--json");
    }
    cairn_tests::run(&mut cargo(&args))
}

/// Licences, sources and banned crates. Advisories only where their database can be reached.
fn deny() -> Result<()> {
    let has = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !has {
        println!("cargo-deny is missing; building it once with cargo install");
        // The dev profile: it runs for a second, so its own speed does not matter.
        cairn_tests::run(&mut cargo(&[
            "install",
            "--locked",
            "--quiet",
            "--debug",
            "--version",
            CARGO_DENY,
            "cargo-deny",
        ]))
        .context("cargo-deny could not be installed from the registry")?;
    }
    cairn_tests::run(&mut cargo(&["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))
}

fn stage(times: &mut Vec<(String, u64)>, name: &str, action: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n---- {name}");
    let start = Instant::now();
    let result = action();
    times.push((name.to_owned(), start.elapsed().as_secs()));
    if let Err(error) = result {
        bail!("stage `{name}` failed: {error:#}");
    }
    Ok(())
}
