//! The simulation from the command line. `--help` says what it takes. Ends with 1 when a seed failed, or a bug that was
//! planted was not found.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use cairn_sim::{Options, Summary, describe_plan, planted, run, run_many};

const USAGE: &str = "usage: cairn-sim [--seeds N] [--seed S] [--json] [--verbose] [--model]
       cairn-sim --plan --seed S [--seeds N]        what goes wrong in a run, without running it
       cairn-sim --list-planted                     the bugs that can be planted
       cairn-sim --planted NAME [--seeds N | --seed S]  plants one and looks for it
       cairn-sim --mutants [--seeds N] [--json]     looks for every one; prints the table
       cairn-sim --pinned                           replays the seed at which each was found
       cairn-sim --repin [--seeds N]                looks anew for those it is not found with any more; prints the file
--planted, --mutants, --pinned and --repin need the feature `planted`.";

#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    seed: Option<u64>,
    planted: Option<String>,
    json: bool,
    verbose: bool,
    model: bool,
    list: bool,
    plan: bool,
    mutants: bool,
    pinned: bool,
    repin: bool,
}

fn parse(mut given: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{argument} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{argument} wants a number"));
        match argument.as_str() {
            "--seeds" => arguments.seeds = Some(number(value()?)?),
            "--seed" => arguments.seed = Some(number(value()?)?),
            "--planted" => arguments.planted = Some(value()?),
            "--json" => arguments.json = true,
            "--verbose" => arguments.verbose = true,
            "--model" => arguments.model = true,
            "--plan" => arguments.plan = true,
            "--list-planted" => arguments.list = true,
            "--mutants" => arguments.mutants = true,
            "--pinned" => arguments.pinned = true,
            "--repin" => arguments.repin = true,
            other => return Err(format!("unknown argument `{other}`")),
        }
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(wrong) => {
            eprintln!("{wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let options = Options { verbose: arguments.verbose, model: arguments.model, ..Options::default() };
    if arguments.list {
        planted::names().iter().for_each(|name| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    if arguments.plan {
        let first = arguments.seed.unwrap_or(1);
        for seed in first..first + arguments.seeds.unwrap_or(1) {
            describe_plan(seed, &options).iter().for_each(|line| println!("{seed:>6} {line}"));
        }
        return ExitCode::SUCCESS;
    }
    let wants_bug = arguments.mutants || arguments.pinned || arguments.repin || arguments.planted.is_some();
    if wants_bug && !cfg!(feature = "planted") {
        eprintln!("this program was built without the feature `planted`\n{USAGE}");
        return ExitCode::from(2);
    }
    if wants_bug && !arguments.verbose {
        // A planted bug makes assertions fail by the hundred; what they say is in the report.
        std::panic::set_hook(Box::new(|_| {}));
    }
    if arguments.mutants {
        return mutants(arguments.seeds.unwrap_or(10_000), arguments.json, &options);
    }
    if arguments.pinned {
        let wrong = planted::replay_pinned(&options);
        wrong.iter().for_each(|what| println!("{what}"));
        let (pinned, all) = (planted::pinned().len(), planted::names().len());
        println!("{pinned} pinned seeds, of {all} bugs, replayed with and without the bug");
        return verdict(wrong.is_empty());
    }
    if arguments.repin {
        let (table, gone) = planted::repin(arguments.seeds.unwrap_or(10_000), &options, |row| eprintln!("{row}"));
        print!("{table}");
        gone.iter().for_each(|bug| eprintln!("{bug} was not found"));
        return verdict(gone.is_empty());
    }
    if let Some(name) = &arguments.planted {
        return look_for(name, &arguments, &options);
    }
    let summary = match arguments.seed {
        Some(seed) if arguments.seeds.is_none() => {
            let mut summary = Summary::default();
            let report = run(seed, options);
            eprintln!("trace {:016x}", report.trace);
            summary.add(report);
            summary
        }
        first => run_many(first.unwrap_or(1), arguments.seeds.unwrap_or(100), &options),
    };
    let text = if arguments.json { format!("{:#}", summary.to_json()) } else { summary.to_text() };
    println!("{text}");
    verdict(summary.failures.is_empty())
}

fn verdict(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn look_for(name: &str, arguments: &Arguments, options: &Options) -> ExitCode {
    let Some(bug) = planted::names().into_iter().find(|bug| *bug == name) else {
        eprintln!("there is no bug `{name}`; --list-planted names them");
        return ExitCode::from(2);
    };
    if let Some(seed) = arguments.seed {
        let good = planted::plant(Some(bug));
        let report = run(seed, options.clone());
        match &report.failure {
            Some(failure) => println!("{bug}: seed {seed}: {failure}"),
            None => println!("{bug}: seed {seed} finds nothing"),
        }
        return verdict(good && report.failure.is_some());
    }
    let found = planted::hunt(bug, arguments.seeds.unwrap_or(10_000), options);
    println!("{}\n{}", planted::head(), found.to_text());
    if let Some(failure) = found.report.as_ref().and_then(|report| report.failure.as_ref()) {
        println!("{failure}");
    }
    verdict(found.report.is_some())
}

fn mutants(seeds: u64, json: bool, options: &Options) -> ExitCode {
    let mut rows = Vec::new();
    if !json {
        println!("{}", planted::head());
    }
    for bug in planted::names() {
        let found = planted::hunt(bug, seeds, options);
        if !json {
            println!("{}", found.to_text());
        }
        rows.push(found);
    }
    let caught = rows.iter().filter(|found| found.report.is_some()).count();
    let seconds: f64 = rows.iter().map(|found| found.seconds).sum();
    if json {
        let all = rows.iter().map(planted::Found::to_json).collect::<Vec<_>>();
        println!("{:#}", serde_json::json!({ "bugs": all, "found": caught, "seconds": seconds }));
    } else {
        println!("{caught} of {} bugs found in {seconds:.0} s", rows.len());
    }
    verdict(caught == rows.len())
}
