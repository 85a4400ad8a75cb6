//! Project automation: `cargo xtask demo | test | ci | tidy | sim | mutants | faults | conformance`.
//!
//! This program decides nothing about the product. It prepares the machine (saying so), calls cargo, and tells the
//! demonstration's story by driving the `cairn` binary and `kubectl` the way a person would. It links none of the
//! product's crates, so that it builds in seconds.

#![forbid(unsafe_code)]

mod ci;
mod conformance;
mod demo;
mod faults;
mod machine;
mod mutants;
mod report;
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Automation of the Cairn project", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, build, start a cluster on this machine and tell the whole story.
    Demo(demo::Options),
    /// Install what is missing and pass every test.
    Test(ci::TestOptions),
    /// The gate: formatting, lints, tidy, licences, then `test` and `conformance`.
    Ci,
    /// Hold the tree against its own rules: allowed arrows, file headers, words that may not stand in code.
    Tidy,
    /// Run the deterministic simulation; a failure prints the command that replays it.
    Sim(ci::SimOptions),
    /// Plant each known bug in the code under simulation, and find it.
    Mutants(mutants::Options),
    /// Let hosts, processes, links and disks fail under clients that check every byte.
    Faults(faults::Options),
    /// Hold the CSI driver against csi-sanity, the suite of the Kubernetes CSI project.
    Conformance(conformance::Options),
}

fn main() -> std::process::ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    match task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => ci::test(&options),
        Task::Ci => ci::run(),
        Task::Tidy => tidy::run(),
        Task::Sim(options) => ci::sim(&options),
        Task::Mutants(options) => mutants::run(&options),
        Task::Faults(options) => faults::run(&options),
        Task::Conformance(options) => conformance::run(&options),
    }
}
