//! The table of a run: each fault with its times and the longest wait of a client, then what became of the data.

use std::time::Duration;

use anyhow::{Result, bail};
use cairn_tests::history::Wrong;
use serde_json::json;

/// One fault.
pub(crate) struct Line {
    pub(crate) kind: &'static str,
    pub(crate) on: String,
    pub(crate) at: Duration,
    pub(crate) held: Duration,
    pub(crate) healthy: Duration,
    pub(crate) requests: usize,
    pub(crate) p999: Duration,
    pub(crate) stall: Duration,
    pub(crate) bar: Duration,
}

/// All of a run.
pub(crate) struct Report {
    seed: u64,
    as_json: bool,
    pub(crate) lines: Vec<Line>,
    pub(crate) requests: u64,
    pub(crate) observed: u64,
    pub(crate) blocks_scrubbed: u64,
    pub(crate) blocks_checked: usize,
    pub(crate) fio_passes: u32,
    pub(crate) wrong: Vec<Wrong>,
}

impl Line {
    /// As it is printed while the run goes on.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "{:>7.1} s  {:<12} {:<24} for {:>4.1} s, healthy {:>4.1} s later; longest wait {:>6.3} s (bar {:.2} s{})",
            self.at.as_secs_f64(),
            self.kind,
            self.on,
            self.held.as_secs_f64(),
            self.healthy.as_secs_f64(),
            self.stall.as_secs_f64(),
            self.bar.as_secs_f64(),
            if self.stall > self.bar { ", MISSED" } else { "" }
        )
    }
}

impl Report {
    pub(crate) fn new(seed: u64, as_json: bool) -> Self {
        Self {
            seed,
            as_json,
            lines: Vec::new(),
            requests: 0,
            observed: 0,
            blocks_scrubbed: 0,
            blocks_checked: 0,
            fio_passes: 0,
            wrong: Vec::new(),
        }
    }

    /// Progress, which is not part of the JSON.
    pub(crate) fn say(&self, sentence: &str) {
        if self.as_json { eprintln!("{sentence}") } else { println!("{sentence}") }
    }

    fn count(&self, is: impl Fn(&Wrong) -> bool) -> usize {
        self.wrong.iter().filter(|wrong| is(wrong)).count()
    }

    /// The lines of one kind, the worst of each figure.
    fn kinds(&self) -> Vec<(&'static str, Vec<&Line>)> {
        let mut kinds: Vec<(&'static str, Vec<&Line>)> = Vec::new();
        for line in &self.lines {
            match kinds.iter_mut().find(|(kind, _)| *kind == line.kind) {
                Some((_, lines)) => lines.push(line),
                None => kinds.push((line.kind, vec![line])),
            }
        }
        kinds
    }

    /// The table, or JSON.
    pub(crate) fn print(&self) -> Result<()> {
        if self.as_json {
            println!("{}", serde_json::to_string_pretty(&self.json())?);
            return Ok(());
        }
        println!(
            "\n{:<12} {:>5} {:>9} {:>9} {:>9} {:>7} {:>9}",
            "fault", "times", "stall s", "median s", "p99.9 s", "bar s", "healthy s"
        );
        for (kind, lines) in self.kinds() {
            let mut stalls: Vec<Duration> = lines.iter().map(|line| line.stall).collect();
            stalls.sort_unstable();
            let worst = |of: fn(&Line) -> Duration| lines.iter().map(|line| of(line)).max().unwrap_or_default();
            let (stall, bar) = (worst(|line| line.stall), worst(|line| line.bar));
            println!(
                "{kind:<12} {:>5} {:>9.3} {:>9.3} {:>9.3} {:>7.2} {:>9.1}{}",
                lines.len(),
                stall.as_secs_f64(),
                stalls[stalls.len() / 2].as_secs_f64(),
                worst(|line| line.p999).as_secs_f64(),
                bar.as_secs_f64(),
                worst(|line| line.healthy).as_secs_f64(),
                if stall > bar { "  over its bar" } else { "" }
            );
        }
        println!(
            "\n{} requests and {} reads through other hosts, {} blocks read back and {} scrubbed, {} passes of fio: {} lost \
             writes, {} stale reads, {} corrupt blocks, {} failed requests",
            self.requests,
            self.observed,
            self.blocks_checked,
            self.blocks_scrubbed,
            self.fio_passes,
            self.count(|wrong| matches!(wrong, Wrong::Lost(_))),
            self.count(|wrong| matches!(wrong, Wrong::Stale(_))),
            self.count(|wrong| matches!(wrong, Wrong::Corrupt(_))),
            self.count(|wrong| matches!(wrong, Wrong::Failed(_))),
        );
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        let faults: Vec<_> = self
            .lines
            .iter()
            .map(|line| {
                json!({
                    "kind": line.kind, "on": line.on, "at_s": line.at.as_secs_f64(), "held_s": line.held.as_secs_f64(),
                    "healthy_s": line.healthy.as_secs_f64(), "requests": line.requests,
                    "p999_s": line.p999.as_secs_f64(), "stall_s": line.stall.as_secs_f64(),
                    "bar_s": line.bar.as_secs_f64(),
                })
            })
            .collect();
        json!({
            "seed": self.seed, "requests": self.requests, "observed": self.observed,
            "blocks_scrubbed": self.blocks_scrubbed, "blocks_checked": self.blocks_checked,
            "fio_passes": self.fio_passes, "faults": faults,
            "lost": self.count(|wrong| matches!(wrong, Wrong::Lost(_))),
            "stale": self.count(|wrong| matches!(wrong, Wrong::Stale(_))),
            "corrupt": self.count(|wrong| matches!(wrong, Wrong::Corrupt(_))),
            "failed": self.count(|wrong| matches!(wrong, Wrong::Failed(_))),
        })
    }

    /// An error when anything was wrong.
    pub(crate) fn verdict(&self) -> Result<()> {
        if let Some(first) = self.wrong.first() {
            bail!("{} of the history's checks failed; the first: {first:?} (seed {})", self.wrong.len(), self.seed);
        }
        let counts = [
            ("requests", self.requests),
            ("reads through other hosts", self.observed),
            ("blocks read back", self.blocks_checked as u64),
            ("blocks scrubbed", self.blocks_scrubbed),
            ("passes of fio", u64::from(self.fio_passes)),
        ];
        if let Some((what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            bail!("a run without {what} shows nothing (seed {})", self.seed);
        }
        Ok(())
    }
}
