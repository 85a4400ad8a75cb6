//! What a run was, and what many runs were together.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::check::Violation;

/// Counted along the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Client operations that ended.
    pub ops: u64,
    /// Client operations begun.
    pub begun: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages that met a cut.
    pub cut: u64,
    /// Messages lost.
    pub dropped: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Things that should happen sometimes, in some run.
    pub sometimes: BTreeMap<&'static str, u64>,
    /// Changes of a primary.
    pub failovers: u64,
    /// Flushes that completed.
    pub flushes: u64,
    /// Blocks that members on their way back were told to be dirty.
    pub dirty_blocks: u64,
    /// Blocks that were sent to them, or to others that were filled.
    pub pushed_blocks: u64,
    /// Nanoseconds simulated.
    pub simulated: u64,
    /// Nanoseconds that the slowest client operation took.
    pub slowest: u64,
}

impl Stats {
    /// Something that should happen in some run happened in this one.
    pub(crate) fn sometimes(&mut self, what: &'static str) {
        *self.sometimes.entry(what).or_default() += 1;
    }

    fn add(&mut self, other: &Self) {
        self.ops += other.ops;
        self.begun += other.begun;
        self.messages += other.messages;
        self.cut += other.cut;
        self.dropped += other.dropped;
        self.failovers += other.failovers;
        self.flushes += other.flushes;
        self.dirty_blocks += other.dirty_blocks;
        self.pushed_blocks += other.pushed_blocks;
        self.simulated += other.simulated;
        self.slowest = self.slowest.max(other.slowest);
        for (kind, count) in &other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (kind, count) in &other.sometimes {
            *self.sometimes.entry(kind).or_default() += count;
        }
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it was made from.
    pub seed: u64,
    /// Of everything that happened: equal for equal seeds.
    pub trace: u64,
    /// Counted along the way.
    pub stats: Stats,
    /// What was violated, if anything was.
    pub failure: Option<Violation>,
}

impl Report {
    /// The command that replays it.
    #[must_use]
    pub fn command(&self) -> String {
        format!("cargo xtask sim --seed {}", self.seed)
    }
}

/// Many runs.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many.
    pub seeds: u64,
    /// All of them together.
    pub stats: Stats,
    /// In how many of them each kind of fault, and each thing that should happen sometimes, did happen.
    pub seen_in: BTreeMap<&'static str, u64>,
    /// Those that failed.
    pub failures: Vec<Report>,
}

impl Summary {
    /// Takes one run in.
    pub fn add(&mut self, report: Report) {
        self.seeds += 1;
        for what in report.stats.faults.keys().chain(report.stats.sometimes.keys()) {
            *self.seen_in.entry(what).or_default() += 1;
        }
        self.stats.add(&report.stats);
        if report.failure.is_some() {
            self.failures.push(report);
        }
    }

    /// For machines.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let failure = |report: &Report| {
            let failure = report.failure.as_ref();
            json!({
                "seed": report.seed,
                "check": failure.map(|failure| failure.check.name()),
                "failure": failure.map(|failure| failure.what.as_str()),
                "replay": report.command(),
            })
        };
        let mean = |count: u64| count as f64 / self.seeds.max(1) as f64;
        let row = |(what, count): (&&'static str, &u64)| {
            let seeds = self.seen_in.get(what).copied().unwrap_or_default();
            ((*what).to_owned(), json!({ "count": count, "seeds": seeds }))
        };
        let table = |counts: &BTreeMap<&'static str, u64>| counts.iter().map(row).collect::<serde_json::Map<_, _>>();
        json!({
            "seeds": self.seeds,
            "operations": self.stats.ops,
            "simulated_hours": self.stats.simulated as f64 / 3.6e12,
            "messages": self.stats.messages,
            "slowest_operation_s": self.stats.slowest as f64 / 1e9,
            "mean": {
                "operations": mean(self.stats.ops),
                "faults": mean(self.stats.faults.values().sum()),
                "failovers": mean(self.stats.failovers),
            },
            "faults": table(&self.stats.faults),
            "sometimes": table(&self.stats.sometimes),
            "failures": self.failures.iter().map(failure).collect::<Vec<_>>(),
        })
    }

    /// For people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mean = |count: u64| count as f64 / self.seeds.max(1) as f64;
        let mut lines = vec![
            format!(
                "{} seeds, {} operations, {:.1} simulated hours",
                self.seeds,
                self.stats.ops,
                self.stats.simulated as f64 / 3.6e12
            ),
            format!(
                "a seed has {:.0} operations, {:.1} faults and {:.1} failovers in the mean",
                mean(self.stats.ops),
                mean(self.stats.faults.values().sum()),
                mean(self.stats.failovers)
            ),
        ];
        let row = |(kind, count): (&&'static str, &u64)| {
            let seeds = self.seen_in.get(kind).copied().unwrap_or_default();
            format!("  {kind:<42} {count:>9} in {seeds} seeds")
        };
        lines.push("faults:".into());
        lines.extend(self.stats.faults.iter().map(row));
        lines.push("sometimes:".into());
        lines.extend(self.stats.sometimes.iter().map(row));
        lines.push(format!("slowest operation: {:.1} s", self.stats.slowest as f64 / 1e9));
        for report in &self.failures {
            let Some(what) = &report.failure else { continue };
            lines.push(format!("FAILED seed {}: {what}\n  replay: {}", report.seed, report.command()));
        }
        lines.push(format!("{} of {} seeds failed", self.failures.len(), self.seeds));
        lines.join("\n")
    }
}
