//! Deterministic simulation: the real metadata members, OSD cores and client cores on a virtual clock, network and
//! disks, from one seed. The same seed gives the same run, to the last event.
//!
//! This crate is for development only. Nothing in it decides what the product does; it drives the cores as a daemon
//! would, lets go wrong what can go wrong, and asks afterwards, and all the time, whether the promises were kept.

#![forbid(unsafe_code)]

mod bus;
mod caller;
mod check;
mod client;
mod engine;
mod faults;
mod finish;
mod history;
mod inflict;
mod medium;
mod meta;
mod model;
mod osd;
mod plan;
pub mod planted;
mod profile;
mod rebalance;
mod report;
mod rng;
#[cfg(test)]
mod rot;
mod scrub;
#[cfg(test)]
mod stories;
mod world;

pub use check::{Check, Violation};
pub use report::{Report, Stats, Summary};

/// What a run is like, beside its seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// Storage daemons.
    pub osds: usize,
    /// Metadata members.
    pub members: usize,
    /// Clients; the first three hold a volume each, the others take over.
    pub clients: usize,
    /// Copies of each object.
    pub size: u32,
    /// Copies without which nothing is served.
    pub min_size: u32,
    /// Nanoseconds in which things go wrong.
    pub safety: u64,
    /// Nanoseconds after healing within which all must be well.
    pub liveness: u64,
    /// Disks hold the model of the store instead of the store.
    pub model: bool,
    /// Says on stderr what happens.
    pub verbose: bool,
    /// OSDs that join only when the plan says so: the last ones.
    pub late: usize,
    /// From then on clients only read; drawn from the seed where nothing is said.
    pub writes_until: Option<u64>,
    /// Log entries that an OSD keeps; likewise.
    pub log_entries: Option<usize>,
    /// Nothing goes wrong, data only moves: no group may have fewer copies at any moment.
    pub steady: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            osds: 5,
            members: 3,
            clients: 5,
            size: 3,
            min_size: 2,
            safety: 18 * bus::SECOND,
            liveness: 60 * bus::SECOND,
            model: false,
            verbose: false,
            late: 0,
            writes_until: None,
            log_entries: None,
            steady: false,
        }
    }
}

/// One run. A panic of the code under test is a failure like any other.
#[must_use]
pub fn run(seed: u64, options: Options) -> Report {
    run_plan(seed, options, None)
}

/// What goes wrong in the run of a seed, a line each: when, and what.
#[must_use]
pub fn describe_plan(seed: u64, options: &Options) -> Vec<String> {
    let plan = plan::of_seed(seed, options);
    plan.iter().map(|(at, fault)| format!("{:>8.3} s {fault:?}", *at as f64 / bus::SECOND as f64)).collect()
}

/// One run in which exactly these things happen, each so long after the beginning; drawn from the seed where nothing
/// is said.
fn run_plan(seed: u64, options: Options, plan: Option<Vec<(u64, faults::Fault)>>) -> Report {
    let result = std::panic::catch_unwind(move || world::World::new(seed, options).run(seed, plan));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let failure = Some(Violation::new(Check::Assertion, text.unwrap_or_default()));
        Report { seed, trace: 0, stats: Stats::default(), failure }
    })
}

/// Many runs, spread over this machine's processors; seed after seed from `first`.
#[must_use]
pub fn run_many(first: u64, count: u64, options: &Options) -> Summary {
    let next = std::sync::atomic::AtomicU64::new(0);
    let reports = std::sync::Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let report = run(first + index, options.clone());
                    reports.lock().expect("no worker panics while it holds this").push(report);
                }
            });
        }
    });
    let mut reports = reports.into_inner().expect("all workers have ended");
    reports.sort_by_key(|report| report.seed);
    let mut summary = Summary::default();
    reports.into_iter().for_each(|report| summary.add(report));
    summary
}
