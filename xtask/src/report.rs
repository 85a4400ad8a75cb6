//! The demonstration's record: each step with its time and its bar, as a table and as JSON.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

/// One line of the table.
#[derive(Serialize)]
struct Step {
    name: String,
    held: bool,
    ms: u128,
    bar_ms: Option<u128>,
    note: String,
}

/// All steps so far; printed as they happen.
#[derive(Serialize, Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
    facts: Vec<(String, String)>,
}

/// Times are judged only beyond this many times their bar: correctness decides, machines are noisy.
const BAR_SLACK: u128 = 10;

impl Report {
    /// Runs one step and records it. `action` returns a note for the table. A failed step is recorded and returned.
    pub(crate) fn step<T>(
        &mut self,
        name: &str,
        bar: Option<Duration>,
        action: impl FnOnce() -> Result<(T, String)>,
    ) -> Result<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = action();
        self.record(name, start.elapsed(), bar, result)
    }

    /// Records a step whose time was measured elsewhere.
    pub(crate) fn record<T>(
        &mut self,
        name: &str,
        took: Duration,
        bar: Option<Duration>,
        result: Result<(T, String)>,
    ) -> Result<T> {
        let ms = took.as_millis();
        let bar_ms = bar.map(|bar| bar.as_millis());
        let in_time = bar_ms.is_none_or(|bar| ms <= bar * BAR_SLACK);
        let (held, note, value) = match result {
            Ok((value, note)) if in_time => (true, note, Ok(value)),
            Ok((_, note)) => {
                let error = anyhow::anyhow!("{name}: {ms} ms, more than {BAR_SLACK} times its bar");
                (false, note, Err(error))
            }
            Err(error) => (false, format!("{error:#}"), Err(error.context(name.to_owned()))),
        };
        println!("   {} in {ms} ms{}", if held { "held" } else { "FAILED" }, note_line(&note));
        self.steps.push(Step { name: name.to_owned(), held, ms, bar_ms, note });
        value
    }

    /// A measured figure that is not a step of its own.
    pub(crate) fn fact(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        println!("   {name}: {value}");
        self.facts.push((name.to_owned(), value));
    }

    /// The table, for people.
    pub(crate) fn print(&self) {
        println!("\n{:<52} {:>9} {:>9}  result", "step", "ms", "bar");
        for step in &self.steps {
            let bar = step.bar_ms.map_or_else(|| "-".to_owned(), |bar| bar.to_string());
            let result = if step.held { "held" } else { "FAILED" };
            println!("{:<52} {:>9} {:>9}  {result}", step.name, step.ms, bar);
        }
        for (name, value) in &self.facts {
            println!("{name:<52} {value}");
        }
    }

    /// Whether every step held.
    pub(crate) fn held(&self) -> bool {
        !self.steps.is_empty() && self.steps.iter().all(|step| step.held)
    }

    /// The same, for programs.
    pub(crate) fn write_json(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("a report is plain data");
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
    }
}

fn note_line(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(": {note}") }
}
