//! `cargo xtask mutants`: plants each known bug in the code under simulation and shows that the simulation finds it.
//!
//! One build with the feature `planted`, in the simulation's own small crates; the bug is chosen at run time. The
//! search itself is the simulation program's business: here it is built, called, and its table passed on. The bugs of the
//! store are planted in the store alone, whose own crash enumeration must find them.

use anyhow::{Context, Result};
use cairn_tests::cargo;
use clap::Args;

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Give up on a bug after this many seeds.
    #[arg(long, default_value_t = 10_000)]
    seeds: u64,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
    /// Only replay the seed at which each bug was found: it must fail with the bug and pass without.
    #[arg(long)]
    pinned: bool,
    /// Look anew for the bugs that their pinned seed does not find any more, and write the file of pinned seeds.
    #[arg(long, conflicts_with = "pinned")]
    repin: bool,
}

/// Where the seeds are pinned, from the root.
const PINNED: &str = "crates/sim/planted.txt";

impl Options {
    /// What every change must pass.
    pub(crate) fn for_ci() -> Self {
        Self { pinned: true, ..Self::default() }
    }
}

/// Builds once and runs the table, or the pinned seeds.
pub(crate) fn run(options: &Options) -> Result<()> {
    let seeds = options.seeds.to_string();
    let mut args =
        vec!["run", "--quiet", "--package", "cairn-sim", "--features", "planted", "--bin", "cairn-sim", "--"];
    if options.repin {
        args.extend(["--repin", "--seeds", &seeds]);
        let table = cairn_tests::capture(&mut cargo(&args))?;
        return std::fs::write(cairn_tests::root().join(PINNED), table).context("cannot write the pinned seeds");
    }
    if options.pinned {
        args.push("--pinned");
    } else {
        args.extend(["--mutants", "--seeds", &seeds]);
    }
    if options.json {
        args.push("--json");
    }
    cairn_tests::run(&mut cargo(&args))?;
    engine(options.json)
}

/// The store's bugs: each is hunted until its first failure, and the same attempts without a bug must pass. They need
/// no pinned seeds: all are found within seconds.
fn engine(json: bool) -> Result<()> {
    let mut args = vec!["test", "--quiet", "--package", "cairn-store", "--lib", "--features", "planted", "--"];
    args.extend(["tests::planted", "--nocapture"]);
    if json {
        // The table of the simulation stands alone on standard output.
        return cairn_tests::capture(&mut cargo(&args)).map(drop);
    }
    cairn_tests::run(&mut cargo(&args))
}
