//! The bugs that can be planted in the code under test, of all crates that have some, by name; and the table that
//! shows that the simulation finds each of them.
//!
//! Planting needs the feature `planted`, which nothing that ships turns on. One bug is planted at a time, for the whole
//! process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::{Options, Report, run};

/// A seed for each bug with which it was found: the text of the pinned table, `name seed` a line.
pub const PINNED: &str = include_str!("../planted.txt");

/// All bugs that can be planted.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let replication = cairn_osd_core::planted::Bug::ALL.iter().map(|bug| bug.name());
    replication.chain(cairn_client_core::planted::Bug::ALL.iter().map(|bug| bug.name())).collect()
}

/// Plants the bug of this name, or none; false when there is none of that name, or this program was built without the
/// feature.
#[cfg(feature = "planted")]
#[must_use]
pub fn plant(name: Option<&str>) -> bool {
    let replication = cairn_osd_core::planted::Bug::ALL.iter().find(|bug| Some(bug.name()) == name);
    cairn_osd_core::planted::plant(replication.copied());
    let client = cairn_client_core::planted::Bug::ALL.iter().find(|bug| Some(bug.name()) == name);
    cairn_client_core::planted::plant(client.copied());
    name.is_none() || replication.is_some() || client.is_some()
}

/// Without the feature nothing can be planted.
#[cfg(not(feature = "planted"))]
#[must_use]
pub fn plant(name: Option<&str>) -> bool {
    name.is_none()
}

/// Pinned seeds, by bug.
#[must_use]
pub fn pinned() -> Vec<(&'static str, u64)> {
    let rows = PINNED.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &'static str| {
        let (name, seed) = line.split_once(' ')?;
        Some((name, seed.trim().parse().ok()?))
    };
    rows.filter_map(row).collect()
}

/// A bug and what became of the search for it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub bug: &'static str,
    /// The first run that failed.
    pub report: Option<Report>,
    /// Seeds tried, in order, until then.
    pub seeds: u64,
    /// How long that took.
    pub seconds: f64,
}

impl Found {
    /// One row of the table, for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self { bug, seeds, seconds, .. } = self;
        match self.report.as_ref().and_then(|report| Some((report.seed, report.failure.as_ref()?.check.name()))) {
            Some((seed, check)) => format!("{bug:<24} {seed:>6} {seconds:>8.1}  {check}"),
            None => format!("{bug:<24} {:>6} {seconds:>8.1}  not found in {seeds} seeds", "-"),
        }
    }

    /// The same, for machines.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let failure = self.report.as_ref().and_then(|report| report.failure.as_ref());
        json!({
            "bug": self.bug,
            "found": failure.is_some(),
            "seed": self.report.as_ref().map(|report| report.seed),
            "seeds": self.seeds,
            "seconds": self.seconds,
            "check": failure.map(|failure| failure.check.name()),
            "what": failure.map(|failure| failure.what.lines().next().unwrap_or_default()),
        })
    }
}

/// The head of the table.
#[must_use]
pub fn head() -> String {
    format!("{:<24} {:>6} {:>8}  {}", "bug", "seed", "s", "caught by")
}

/// Runs seed after seed from `first`, on all processors, until one fails; gives the first that does.
#[must_use]
pub fn search(first: u64, count: u64, options: &Options) -> Option<Report> {
    let (next, limit) = (AtomicU64::new(0), AtomicU64::new(count));
    let found = std::sync::Mutex::new(None::<Report>);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= limit.load(Ordering::Relaxed) {
                        return;
                    }
                    let report = run(first + index, options.clone());
                    if report.failure.is_some() {
                        limit.fetch_min(index, Ordering::Relaxed);
                        let mut found = found.lock().expect("no worker panics while it holds this");
                        if found.as_ref().is_none_or(|known| report.seed < known.seed) {
                            *found = Some(report);
                        }
                    }
                }
            });
        }
    });
    found.into_inner().expect("all workers have ended")
}

/// Looks for one bug.
///
/// # Panics
/// When there is none of this name, or nothing can be planted.
#[must_use]
pub fn hunt(bug: &'static str, seeds: u64, options: &Options) -> Found {
    let start = Instant::now();
    assert!(plant(Some(bug)), "{bug} cannot be planted");
    let report = search(1, seeds, options);
    assert!(plant(None), "nothing can always be planted");
    let tried = report.as_ref().map_or(seeds, |report| report.seed);
    Found { bug, report, seeds: tried, seconds: start.elapsed().as_secs_f64() }
}

/// Replays each bug's pinned seed: with the bug it must fail, without it must pass. Gives what did not.
#[must_use]
pub fn replay_pinned(options: &Options) -> Vec<String> {
    let rows = pinned();
    let mut wrong = Vec::new();
    for (bug, seed) in &rows {
        if !plant(Some(bug)) {
            wrong.push(format!("{bug} is pinned and cannot be planted"));
            continue;
        }
        if search(*seed, 1, options).is_none() {
            wrong.push(format!("{bug} is not found at seed {seed} any more: look for it anew"));
        }
        assert!(plant(None), "nothing can always be planted");
    }
    let seeds = rows.iter().map(|(_, seed)| *seed).collect::<std::collections::BTreeSet<_>>();
    for report in seeds.into_iter().filter_map(|seed| search(seed, 1, options)) {
        let failure = report.failure.as_ref().map(ToString::to_string).unwrap_or_default();
        wrong.push(format!("seed {} fails without any bug: {failure}", report.seed));
    }
    wrong
}

/// Looks anew for every bug whose pinned seed does not find it any more; gives the whole table as it is to be kept, and
/// the bugs that were not found.
#[must_use]
pub fn repin(seeds: u64, options: &Options, mut say: impl FnMut(String)) -> (String, Vec<&'static str>) {
    let head = PINNED.lines().take_while(|line| line.starts_with('#'));
    let mut table = head.map(|line| format!("{line}\n")).collect::<String>();
    let known = pinned();
    let mut gone = Vec::new();
    for bug in names() {
        let before = known.iter().find(|(name, _)| *name == bug).map(|(_, seed)| *seed);
        assert!(plant(Some(bug)), "{bug} cannot be planted");
        let still = before.and_then(|seed| search(seed, 1, options)).map(|report| report.seed);
        assert!(plant(None), "nothing can always be planted");
        let seed = still.or_else(|| {
            let found = hunt(bug, seeds, options);
            say(found.to_text());
            found.report.map(|report| report.seed)
        });
        match seed {
            Some(seed) => table.push_str(&format!("{bug} {seed}\n")),
            None => gone.push(bug),
        }
    }
    (table, gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_has_a_name_of_its_own_and_every_pinned_seed_a_bug() {
        let names = names();
        let unique = names.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!(unique.len(), names.len());
        for (bug, _) in pinned() {
            assert!(names.contains(&bug), "{bug}");
        }
    }

    #[cfg(not(feature = "planted"))]
    #[test]
    fn nothing_is_planted_without_the_feature() {
        assert!(plant(None) && !plant(Some("ack-before-replicas")));
    }
}
