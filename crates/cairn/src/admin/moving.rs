//! The verbs that make data move: what they print before, while and after. What they change is one command of the metadata
//! service; how far it is, is read off the map.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::{self, ChangePlacementReply, ChangePlacementRequest, PgMove};
use cairn_types::PgId;
use cairn_types::map::WEIGHT_ONE;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{Metadata, Target};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// Between looks while waiting.
const LOOK: Duration = Duration::from_millis(500);
/// Without a terminal, one line in so much time at most.
const LINE: Duration = Duration::from_secs(5);
/// Groups listed in a table.
const LISTED: usize = 20;

/// How a verb that moves data is carried out.
#[derive(Args, Clone)]
pub(crate) struct Way {
    /// Only say what would be moved, and which placement groups lack copies meanwhile.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Wait until everything has moved, and show how far it is.
    #[arg(long, visible_alias = "watch", conflicts_with = "dry_run")]
    pub(crate) wait: bool,
    /// With --wait: give up after so many seconds (exit code 6). The data goes on moving.
    #[arg(long, requires = "wait")]
    pub(crate) timeout: Option<u64>,
    /// Although a pool could then not place all its copies: they stay where they are until it can.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// An OSD's number: `3` or `osd-3`.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn osd_number(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("osd-").or_else(|| text.strip_prefix("osd.")).unwrap_or(text);
    digits.parse().map_err(|_| format!("`{text}` is no OSD; write its number, as in 3 or osd-3"))
}

/// A weight as people write it: 1.0 is one TiB.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn weight(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a weight; write a number above 0, 1.0 for each TiB");
    let number: f64 = text.parse().map_err(|_| wrong())?;
    let scaled = (number * f64::from(WEIGHT_ONE)).round();
    if scaled >= 1.0 && scaled <= f64::from(u32::MAX) { Ok(scaled as u32) } else { Err(wrong()) }
}

/// What a verb does, in words and as a command.
pub(crate) struct Deed {
    /// Nothing: only look.
    pub(crate) change: Option<Change>,
    /// "osd-3 is out of placement".
    pub(crate) done: String,
    /// "osd-3 would go out of placement".
    pub(crate) would: String,
    /// This OSD must be left by everything; otherwise all groups must be where they belong.
    pub(crate) empties: Option<u32>,
}

/// Carries a verb out, or says what it would do.
pub(crate) async fn carry_out(deed: Deed, way: &Way) -> Outcome {
    let metadata = way.target.connect()?;
    let json = way.target.output == Format::Json;
    let begun = Instant::now();
    if way.dry_run || deed.change.is_none() {
        let plan = metadata.plan(deed.change.clone(), way.force).await?;
        if !way.wait {
            return shown(&deed.would, &plan, json, None);
        }
    } else {
        metadata.change(deed.change.clone(), way.force).await?;
    }
    let plan = metadata.plan(None, false).await?;
    if !way.wait {
        return shown(&deed.done, &plan, json, None);
    }
    if !json {
        println!("{}", deed.done);
    }
    wait(&metadata, &deed, &plan, way.timeout.map(Duration::from_secs)).await?;
    let after = metadata.plan(None, false).await?;
    if json {
        return shown(&deed.done, &after, true, Some(begun.elapsed()));
    }
    println!("moved: {} copied in {}", size::show(plan.bytes), lasting(begun.elapsed().as_secs()));
    if let Some(osd) = deed.empties {
        println!("osd-{osd} holds nothing that is needed any more; to forget it: cairn osd remove {osd}");
    }
    Ok(())
}

impl Metadata {
    async fn change(&self, change: Option<Change>, force: bool) -> Result<ChangePlacementReply, Failure> {
        Ok(self.0.change_placement(ChangePlacementRequest { change, force, ..Default::default() }).await?)
    }

    /// What is to be moved once this change is made; without one, what is to be moved now.
    pub(crate) async fn plan(&self, change: Option<Change>, force: bool) -> Result<ChangePlacementReply, Failure> {
        let request = ChangePlacementRequest { change, force, dry_run: true, ..Default::default() };
        Ok(self.0.change_placement(request).await?)
    }
}

// ------------------------------------------------------------------------------------------------------- what is shown

fn shown(head: &str, plan: &ChangePlacementReply, json: bool, took: Option<Duration>) -> Outcome {
    if json {
        output::json(&plan_json(head, plan, took));
        return Ok(());
    }
    println!("{head}");
    if plan.to_come > 0 {
        println!(
            "  to split    {} more placement groups come; what moves then is known when they are there",
            plan.to_come
        );
    }
    if plan.moves.is_empty() {
        println!("  nothing is to be moved{}", if plan.to_come > 0 { " yet" } else { "" });
        return Ok(());
    }
    let (groups, eta) = (plan.moves.len(), lasting(plan.eta_s));
    println!(
        "  to copy     about {} for {groups} placement groups, {eta} at 64 MiB/s for each OSD",
        size::show(plan.bytes)
    );
    if plan.bytes_before > 0 {
        println!("  before      {} were still to be copied", size::show(plan.bytes_before));
    }
    for (index, note) in plan.notes.iter().enumerate() {
        println!("  {:<11} {note}", if index == 0 { "redundancy" } else { "" });
    }
    println!("  spread      {} of an OSD's share at most", percent(plan.spread));
    println!();
    output::table(&["PG", "FROM", "TO", "BYTES", "COPIES"], plan.moves.iter().take(LISTED).map(row));
    if groups > LISTED {
        println!("and {} more; -o json shows all", groups - LISTED);
    }
    Ok(())
}

fn names(osds: &[u32]) -> String {
    osds.iter().map(|osd| format!("osd-{osd}")).collect::<Vec<_>>().join(" ")
}

fn pg_name(one: &PgMove) -> String {
    PgId::from(one.pg.unwrap_or_default()).to_string()
}

fn row(one: &PgMove) -> Vec<String> {
    let copies = format!("{} of {}", one.copies, one.wanted);
    vec![pg_name(one), names(&one.from), names(&one.to), size::show(one.bytes), copies]
}

fn percent(permille: u32) -> String {
    format!("{:.1} %", f64::from(permille) / 10.0)
}

fn plan_json(head: &str, plan: &ChangePlacementReply, took: Option<Duration>) -> Value {
    let moves: Vec<Value> = plan
        .moves
        .iter()
        .map(|one| {
            json!({
                "pg": pg_name(one), "from": one.from, "to": one.to, "bytes": one.bytes,
                "copies": one.copies, "wanted": one.wanted, "degraded": one.copies < one.wanted,
            })
        })
        .collect();
    json!({
        "what": head, "epoch": plan.epoch, "bytes": plan.bytes, "bytes_before": plan.bytes_before,
        "eta_s": plan.eta_s, "notes": plan.notes, "exceptions": plan.exceptions, "to_come": plan.to_come,
        "spread_percent": f64::from(plan.spread) / 10.0, "spread_percent_before": f64::from(plan.spread_before) / 10.0,
        "moves": moves, "took_s": took.map(|took| took.as_secs_f64()),
    })
}

/// Seconds for people.
/// A time for people.
pub(crate) fn lasting(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (h @ 72.., ..) => format!("{} days", h / 24),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

// ------------------------------------------------------------------------------------------------------------ waiting

/// What one look shows.
struct Progress {
    groups: usize,
    bytes: u64,
    /// Groups that come yet of those that split.
    to_come: u32,
    done: bool,
}

impl Progress {
    fn of(plan: &ChangePlacementReply, empties: Option<u32>) -> Self {
        let concerns = |one: &&PgMove| empties.is_none_or(|osd| one.from.contains(&osd));
        let left: Vec<&PgMove> = plan.moves.iter().filter(concerns).collect();
        let to_come = if empties.is_none() { plan.to_come } else { 0 };
        let bytes = left.iter().map(|one| one.bytes).sum();
        Self { groups: left.len(), bytes, to_come, done: left.is_empty() && to_come == 0 }
    }

    /// Seconds to go, from what was done so far.
    fn eta(&self, first: &Self, since: Duration) -> Option<u64> {
        let (made, left) = match first.bytes > self.bytes {
            true => (first.bytes - self.bytes, self.bytes),
            false => (first.groups.saturating_sub(self.groups) as u64, self.groups as u64),
        };
        (made > 0).then(|| (since.as_secs_f64() * left as f64 / made as f64) as u64)
    }

    fn words(&self, first: &Self, since: Duration) -> String {
        let groups = first.groups.max(self.groups);
        let eta = self.eta(first, since).map_or(String::new(), |eta| format!(", about {} to go", lasting(eta)));
        let copied = size::show(first.bytes.saturating_sub(self.bytes));
        if self.to_come > 0 {
            return format!(
                "{} placement groups come yet of those that split, {} to be moved",
                self.to_come, self.groups
            );
        }
        format!(
            "{} of {groups} placement groups moved, about {copied} of {}{eta}",
            groups - self.groups,
            size::show(first.bytes)
        )
    }
}

async fn wait(
    metadata: &Metadata,
    deed: &Deed,
    first: &ChangePlacementReply,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let start = Progress::of(first, deed.empties);
    let bar = bar(start.bytes.max(1));
    let (mut told, mut notes) = (None::<Instant>, Vec::new());
    loop {
        let plan = metadata.plan(None, false).await?;
        let now = Progress::of(&plan, deed.empties);
        let words = now.words(&start, begun.elapsed());
        bar.set_position(start.bytes.saturating_sub(now.bytes));
        bar.set_message(words.clone());
        if bar.is_hidden() && told.is_none_or(|at| at.elapsed() >= LINE) {
            eprintln!("{words}");
            told = Some(Instant::now());
        }
        // What stands in the way is said once.
        for note in plan.notes.iter().filter(|note| !note.starts_with("every")) {
            if !notes.contains(note) {
                bar.suspend(|| eprintln!("{note}"));
                notes.push(note.clone());
            }
        }
        if now.done {
            bar.finish_and_clear();
            return Ok(());
        }
        if timeout.is_some_and(|timeout| begun.elapsed() >= timeout) {
            bar.abandon();
            let message =
                format!("not done after {}: {words}; it goes on (cairn osd moves)", lasting(begun.elapsed().as_secs()));
            return Err(Failure::new(Code::Unfinished, message));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Drawn on a terminal, hidden elsewhere.
fn bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(bytes);
    let style = ProgressStyle::with_template("{spinner} [{bar:32}] {percent:>3} %  {msg}");
    bar.set_style(style.expect("the template is well-formed").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A request to change what is set.
pub(crate) async fn change_settings(request: meta::ChangeSettingsRequest, target: &Target) -> Outcome {
    let settings = target.connect()?.0.change_settings(request).await?.settings.unwrap_or_default();
    let rows = [
        ("noout", settings.noout.to_string()),
        ("norebalance", settings.norebalance.to_string()),
        ("noin", settings.noin.to_string()),
        ("nobalance", settings.nobalance.to_string()),
        ("noautoscale", settings.noautoscale.to_string()),
        ("down-out-after", lasting(settings.down_out_s.into())),
        ("backfills", settings.backfills.to_string()),
        ("client-latency", format!("{} ms", settings.client_latency_ms)),
    ];
    if target.output == Format::Json {
        output::json(&json!({
            "noout": settings.noout, "norebalance": settings.norebalance, "noin": settings.noin,
            "nobalance": settings.nobalance,
            "noautoscale": settings.noautoscale, "down_out_s": settings.down_out_s, "backfills": settings.backfills,
            "client_latency_ms": settings.client_latency_ms,
        }));
    } else {
        output::table(&["SETTING", "VALUE"], rows.map(|(name, value)| vec![name.to_owned(), value]));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn osds_and_weights_read_as_people_write_them() {
        assert_eq!([osd_number("3"), osd_number("osd-3"), osd_number("osd.3")], [Ok(3), Ok(3), Ok(3)]);
        assert!(osd_number("three").unwrap_err().contains("osd-3"));
        assert_eq!((weight("1"), weight("0.5")), (Ok(65536), Ok(32768)));
        assert!(["0", "-1", "heavy", "NaN"].iter().all(|wrong| weight(wrong).is_err()));
    }

    #[test]
    fn progress_counts_what_concerns_the_verb_and_says_how_long() {
        let one = |from: u32, to: u32, bytes| PgMove { from: vec![from], to: vec![to], bytes, ..PgMove::default() };
        let plan = |moves| ChangePlacementReply { moves, ..ChangePlacementReply::default() };
        let first = Progress::of(&plan(vec![one(1, 2, 600), one(1, 3, 200), one(4, 3, 5000)]), Some(1));
        assert_eq!((first.groups, first.bytes, first.done), (2, 800, false));
        let now = Progress::of(&plan(vec![one(1, 3, 200), one(4, 3, 5000)]), Some(1));
        assert_eq!(now.eta(&first, Duration::from_secs(30)), Some(10));
        assert!(now.words(&first, Duration::from_secs(30)).contains("1 of 2 placement groups moved"));
        assert!(Progress::of(&plan(vec![one(4, 3, 5000)]), Some(1)).done);
        assert!(!Progress::of(&plan(vec![one(4, 3, 5000)]), None).done);
    }
}
