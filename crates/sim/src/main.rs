//! The simulation from the command line: `cairn-sim [--seeds N] [--seed S] [--json] [--verbose] [--model]`. Ends with 1
//! when a seed failed.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use cairn_sim::{Options, Summary, run, run_many};

fn main() -> ExitCode {
    let mut seeds = 100;
    let mut first = 1;
    let mut single = false;
    let (mut json, mut verbose, mut model) = (false, false, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = |what: &str| match arguments.next().and_then(|text| text.parse::<u64>().ok()) {
            Some(number) => Ok(number),
            None => {
                eprintln!("{what} wants a number");
                Err(ExitCode::from(2))
            }
        };
        match argument.as_str() {
            "--seeds" => match number("--seeds") {
                Ok(number) => seeds = number,
                Err(code) => return code,
            },
            "--seed" => match number("--seed") {
                Ok(number) => (first, single) = (number, true),
                Err(code) => return code,
            },
            "--json" => json = true,
            "--verbose" => verbose = true,
            "--model" => model = true,
            other => {
                eprintln!(
                    "unknown argument `{other}`; usage: cairn-sim [--seeds N] [--seed S] [--json] [--verbose] [--model]"
                );
                return ExitCode::from(2);
            }
        }
    }
    let options = Options { verbose, model, ..Options::default() };
    let summary = if single {
        let mut summary = Summary::default();
        let report = run(first, options);
        eprintln!("trace {:016x}", report.trace);
        summary.add(report);
        summary
    } else {
        run_many(first, seeds, &options)
    };
    let text = if json { format!("{:#}", summary.to_json()) } else { summary.to_text() };
    println!("{text}");
    if summary.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
