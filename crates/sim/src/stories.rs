//! Named scenarios: what happens when, written down in `stories/*.txt`, each run with some seeds; every check of the
//! simulation holds in each, and clients notice no more than the story allows. And: runs are deterministic.
//!
//! A line that begins with `story` names one; below it stand bounds (`slowest`, `sometimes`), what the work is like
//! (`quiet 8s`: only reads from then on; `log 8`: entries that a log keeps) and events, each with its time after the
//! beginning. `+40ms*seed` shifts an event by a little more with every seed. `when joins 1`, `when fills 1` and `when
//! returns 1` wait for the next such moment in the hot group of volume 1; `source` and `joiner` have part in it.

use crate::bus::{MS, Nanos, SECOND};
use crate::faults::{Fault, Ill, Moment, Pick, Ways, Whom};
use crate::plan::{Plan, START};
use crate::{Options, run, run_many, run_plan};

/// Each story runs with as many seeds.
const SEEDS: u64 = 3;

#[derive(Debug, Default)]
struct Story {
    name: String,
    slowest: Option<Nanos>,
    sometimes: Vec<String>,
    quiet: Option<Nanos>,
    log: Option<usize>,
    events: Vec<String>,
}

fn parse(text: &str) -> Vec<Story> {
    let mut stories: Vec<Story> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix("story ") {
            stories.push(Story { name: name.to_owned(), ..Story::default() });
            continue;
        }
        let story = stories.last_mut().expect("a story begins with its name");
        match line.split_once(' ') {
            Some(("slowest", bound)) => story.slowest = Some(time(bound, 0)),
            Some(("sometimes", what)) => story.sometimes.push(what.to_owned()),
            Some(("quiet", from)) => story.quiet = Some(START + time(from, 0)),
            Some(("log", entries)) => story.log = Some(entries.parse().expect("a number of log entries")),
            _ => story.events.push(line.to_owned()),
        }
    }
    stories
}

/// `4s`, `250ms`, `4s+40ms*seed`.
fn time(text: &str, seed: u64) -> Nanos {
    let one = |text: &str| match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(ms), _) => ms.parse::<u64>().expect("a number of ms") * MS,
        (None, Some(s)) => s.parse::<u64>().expect("a number of s") * SECOND,
        (None, None) => panic!("`{text}` is no time"),
    };
    text.split('+').map(|part| part.strip_suffix("*seed").map_or_else(|| one(part), |each| one(each) * seed)).sum()
}

/// The words of one event.
struct Words<'a> {
    line: &'a str,
    rest: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
    seed: u64,
}

impl<'a> Words<'a> {
    fn word(&mut self) -> &'a str {
        self.rest.next().unwrap_or_else(|| panic!("`{}` ends early", self.line))
    }

    fn number<T: std::str::FromStr>(&mut self) -> T {
        self.word().parse().unwrap_or_else(|_| panic!("`{}`: a number is wanted", self.line))
    }

    fn time(&mut self) -> Nanos {
        time(self.word(), self.seed)
    }

    /// Whether this word comes next; takes it.
    fn has(&mut self, word: &str) -> bool {
        self.rest.next_if(|next| *next == word).is_some()
    }

    /// The time after this word, if it comes next.
    fn after(&mut self, word: &str) -> Option<Nanos> {
        self.has(word).then(|| self.time())
    }

    fn lasts(&mut self) -> Nanos {
        self.after("for").unwrap_or_else(|| panic!("`{}` does not say for how long", self.line))
    }

    fn osd(&mut self) -> Pick {
        match self.word() {
            "primary" => Pick::PrimaryOf(self.number()),
            "replica" => Pick::ReplicaOf(self.number()),
            "hot-primary" => Pick::HotPrimary(self.number()),
            "hot-replica" => Pick::HotReplica(self.number()),
            "hot-heir" => Pick::HotHeir(self.number()),
            "source" => Pick::Source,
            "joiner" => Pick::Joiner,
            "osd" => Pick::Index(self.number()),
            other => panic!("`{}`: `{other}` is no OSD", self.line),
        }
    }

    fn ways(&mut self) -> Ways {
        if self.has("inbound") {
            Ways::Inbound
        } else if self.has("outbound") {
            Ways::Outbound
        } else {
            Ways::Both
        }
    }

    fn whom(&mut self) -> Whom {
        match self.word() {
            "osds" => Whom::Osds,
            "osd" => Whom::OneOsd(self.number()),
            "members" => Whom::Members,
            "clients" => Whom::Clients,
            "client" => Whom::OneClient(self.number()),
            "osds-and-members" => Whom::OsdsAndMembers,
            "everybody" => Whom::Everybody,
            other => panic!("`{}`: `{other}` is nobody", self.line),
        }
    }

    fn ill(&mut self) -> Ill {
        match self.word() {
            "rot" => Ill::Rot(self.number()),
            "unreadable" => Ill::Unreadable(self.number()),
            "misdirected" => Ill::Misdirected,
            "dropped" => Ill::Dropped,
            "write-error" => Ill::WriteError,
            "sync-error" => Ill::SyncError,
            "full" => Ill::Full(self.time()),
            "rotten-log" => Ill::RottenLog,
            "rolled-back" => Ill::RolledBack(self.time()),
            other => panic!("`{}`: no disk is ill with `{other}`", self.line),
        }
    }

    fn kill(&mut self, power: bool) -> Fault {
        let osd = self.osd();
        let exited = self.after("exited");
        let back = self.after("back").unwrap_or(5 * SECOND);
        Fault::Kill { osd, power, back, exited }
    }

    fn weather(&mut self) -> Fault {
        let mut number = |word: &str| if self.has(word) { self.number() } else { 0 };
        let (drop, twice) = (number("drop"), number("twice"));
        let reorder = self.has("reorder");
        let delay = if self.has("delay") { self.number() } else { 0 };
        let delay_max = self.after("up-to").unwrap_or(SECOND);
        Fault::Weather { drop, twice, reorder, delay, delay_max, lasts: self.lasts() }
    }

    fn fault(&mut self) -> Fault {
        match self.word() {
            "kill" => self.kill(false),
            "power-cut" => self.kill(true),
            "pause" => Fault::Pause { osd: self.osd(), lasts: self.lasts() },
            "kill-member" => {
                assert!(self.has("leader"), "`{}`: which member?", self.line);
                Fault::KillMember { leader: true, member: 0, back: self.after("back").unwrap_or(SECOND) }
            }
            "isolate" => {
                let osd = self.osd();
                let with = self.has("with").then(|| self.number());
                assert!(self.has("from"), "`{}`: from whom?", self.line);
                Fault::Isolate { osd, with, from: self.whom(), ways: self.ways(), lasts: self.lasts() }
            }
            "lag" => {
                let osd = self.osd();
                assert!(self.has("from"), "`{}`: from whom?", self.line);
                let (from, ways) = (self.whom(), self.ways());
                let delay = self.after("by").expect("a slow connection says by how much");
                Fault::Lag { osd, from, ways, delay, lasts: self.lasts() }
            }
            "when" => {
                let moment = match self.word() {
                    "joins" => Moment::Joins,
                    "fills" => Moment::Fills,
                    "returns" => Moment::Returns,
                    "joined" => Moment::Joined,
                    other => panic!("`{}`: `{other}` is no moment", self.line),
                };
                let volume = self.number();
                Fault::When { moment, volume, then: Box::new(self.fault()) }
            }
            "slow" => {
                let osd = self.osd();
                let delay = self.after("by").expect("a slow disk says by how much");
                Fault::SlowDisk { osd, delay, lasts: self.lasts() }
            }
            "weather" => self.weather(),
            "refuse" => Fault::Refuse { osd: self.osd() },
            "renew" => Fault::Renew { client: self.number() },
            "steal" => Fault::Steal { volume: self.number(), shared: self.has("shared") },
            "lose" => Fault::Lose { osd: self.osd() },
            "split" => Fault::Split,
            "blackout" => Fault::Blackout { back: self.after("back").unwrap_or(SECOND) },
            "ill" => Fault::Disk { osd: self.osd(), what: self.ill() },
            "swap" => Fault::Swap { one: self.number(), other: self.number() },
            "drift" => Fault::Drift { osd: self.osd(), rate: self.number() },
            "jump" => Fault::Jump { osd: self.osd(), seconds: self.number() },
            other => panic!("`{}`: nothing is called `{other}`", self.line),
        }
    }
}

fn plan(story: &Story, seed: u64) -> Plan {
    let event = |line: &String| {
        let mut words = Words { line, rest: line.split_whitespace().peekable(), seed };
        let at = words.time();
        let fault = words.fault();
        assert_eq!(words.rest.next(), None, "`{line}` goes on too long");
        (at, fault)
    };
    story.events.iter().map(event).collect()
}

/// Every story of a file, with some seeds each.
fn tell(text: &str) {
    let mut wrong = Vec::new();
    for story in parse(text) {
        let reports = (1..=SEEDS).map(|seed| {
            let writes_until = Some(story.quiet.unwrap_or(Nanos::MAX));
            let options = Options { safety: 16 * SECOND, writes_until, log_entries: story.log, ..Options::default() };
            run_plan(seed, options, Some(plan(&story, seed)))
        });
        let reports = reports.collect::<Vec<_>>();
        let name = &story.name;
        for report in &reports {
            let (seed, stats) = (report.seed, &report.stats);
            if let Some(failure) = &report.failure {
                wrong.push(format!("{name}, seed {seed}: {failure}"));
            } else if stats.ops < 300 {
                wrong.push(format!("{name}, seed {seed}: the clients were hardly at work: {} operations", stats.ops));
            }
        }
        let slowest = reports.iter().map(|report| report.stats.slowest).max().unwrap_or_default();
        if story.slowest.is_some_and(|bound| slowest > bound) {
            wrong.push(format!("{name}: an operation took {} ms", slowest / MS));
        }
        for what in &story.sometimes {
            if !reports.iter().any(|report| report.stats.sometimes.contains_key(what.as_str())) {
                wrong.push(format!("{name}: never `{what}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn failover() {
    tell(include_str!("../stories/failover.txt"));
}

#[test]
fn leases() {
    tell(include_str!("../stories/leases.txt"));
}

#[test]
fn recovery() {
    tell(include_str!("../stories/recovery.txt"));
}

#[test]
fn fencing() {
    tell(include_str!("../stories/fencing.txt"));
}

#[test]
fn disks() {
    tell(include_str!("../stories/disks.txt"));
}

#[test]
fn bugs_that_others_had() {
    tell(include_str!("../stories/named.txt"));
}

#[test]
fn equal_seeds_give_equal_runs() {
    for seed in 40..44 {
        let (one, other) = (run(seed, Options::default()), run(seed, Options::default()));
        assert_eq!(one, other);
    }
    assert_ne!(run(40, Options::default()).trace, run(41, Options::default()).trace);
}

#[test]
fn some_seeds_on_the_store_and_on_its_model() {
    let summary = run_many(1, 30, &Options::default());
    assert!(summary.failures.is_empty(), "{}", summary.to_text());
    assert!(summary.stats.failovers >= 30 && summary.stats.ops >= 30 * 500, "{}", summary.to_text());
    let summary = run_many(1, 20, &Options { model: true, ..Options::default() });
    assert!(summary.failures.is_empty(), "{}", summary.to_text());
}

/// What a rejoin copies is what was written meanwhile, and little more.
#[test]
fn a_rejoin_copies_what_was_dirtied() {
    let (mut dirty, mut pushed) = (0, 0);
    for seed in 1..=SEEDS {
        let fault = |at| Fault::Kill { osd: Pick::Index(at), power: false, back: 5 * SECOND, exited: Some(5 * MS) };
        let plan = vec![(2 * SECOND, fault(1)), (10 * SECOND, fault(3))];
        let options = Options { safety: 16 * SECOND, ..Options::default() };
        let report = run_plan(seed, options, Some(plan));
        assert_eq!(report.failure, None, "seed {seed}");
        assert!(!report.stats.sometimes.contains_key("a fill from nothing"));
        dirty += report.stats.dirty_blocks;
        pushed += report.stats.pushed_blocks;
    }
    println!("{dirty} blocks dirtied while somebody was away, {pushed} copied: {:.2}", pushed as f64 / dirty as f64);
    assert!(dirty > 100 && pushed * 10 <= dirty * 11, "{pushed} blocks copied for {dirty} that were dirtied");
}
