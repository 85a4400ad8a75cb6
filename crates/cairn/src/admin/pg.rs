//! `cairn pg`: placement groups, who serves them, and their scrubs.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cairn_meta_client::MetaClient;
use cairn_proto::meta;
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::{OsdId, PgId, PoolId};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Target;
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};

/// What can be asked of placement groups.
#[derive(Subcommand)]
pub(crate) enum PgVerb {
    /// All placement groups.
    Ls {
        /// Only those of this pool.
        #[arg(long)]
        pool: Option<String>,
    },
    /// Everything that is known of one.
    Query {
        /// Its name, as `pg ls` shows it: 1.3
        #[arg(value_parser = parse_pg)]
        pg: PgId,
    },
    /// Compare all copies of one.
    Scrub {
        /// Its name, as `pg ls` shows it: 1.3
        #[arg(value_parser = parse_pg)]
        pg: PgId,
        #[command(flatten)]
        how: How,
    },
    /// How often groups are scrubbed by themselves; without options, what is set.
    Schedule {
        /// Between light scrubs of a group: 12h, 1d. 0: the default.
        #[arg(long, value_parser = parse_period)]
        light: Option<u64>,
        /// Between deep scrubs of a group: 7d, 4w. 0: the default.
        #[arg(long, value_parser = parse_period)]
        deep: Option<u64>,
        /// Begin none by themselves.
        #[arg(long, conflicts_with = "resume")]
        pause: bool,
        /// Begin them by themselves again.
        #[arg(long)]
        resume: bool,
    },
}

/// How to scrub.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct How {
    /// Read all data and hold it against its checksums.
    #[arg(long)]
    deep: bool,
    /// Return when it is done; the exit code says whether data is lost.
    #[arg(long)]
    wait: bool,
}

pub(crate) async fn run(verb: PgVerb, target: &Target) -> Outcome {
    let metadata = target.connect()?;
    match verb {
        PgVerb::Ls { pool } => list(&metadata.0, &metadata.map().await?, pool.as_deref(), target).await,
        PgVerb::Query { pg } => query(&metadata.0, &metadata.map().await?, pg).await,
        PgVerb::Scrub { pg, how } => scrub(&metadata.0, vec![pg], how, target).await,
        PgVerb::Schedule { light, deep, pause, resume } => {
            let paused = (pause || resume).then_some(pause);
            let request = meta::ScheduleScrubsRequest { mutation: None, light_s: light, deep_s: deep, paused };
            let set = metadata.0.schedule_scrubs(request).await?.schedule.unwrap_or_default();
            show_schedule(&set, target);
            Ok(())
        }
    }
}

/// `cairn osd scrub`.
pub(crate) async fn scrub_osd(id: u32, how: &How, target: &Target) -> Outcome {
    let metadata = target.connect()?;
    let map = metadata.map().await?;
    if !map.osds.contains_key(&OsdId(id)) {
        return Err(Failure::new(Code::NotFound, format!("there is no {}", OsdId(id))));
    }
    let pgs = map.pgs.iter().filter(|(_, config)| config.isr.contains(&OsdId(id))).map(|(pg, _)| *pg).collect();
    scrub(&metadata.0, pgs, *how, target).await
}

/// `cairn pool scrub`.
pub(crate) async fn scrub_pool(name: &str, how: &How, target: &Target) -> Outcome {
    let metadata = target.connect()?;
    let map = metadata.map().await?;
    let pool = pool_named(&map, name)?;
    let pgs = map.pgs.keys().filter(|pg| pg.pool == pool).copied().collect();
    scrub(&metadata.0, pgs, *how, target).await
}

fn pool_named(map: &ClusterMap, name: &str) -> Result<PoolId, Failure> {
    let pool = map.pools.values().find(|pool| pool.name == name).map(|pool| pool.id);
    pool.ok_or_else(|| Failure::new(Code::NotFound, format!("there is no pool `{name}`")))
}

fn parse_pg(text: &str) -> Result<PgId, String> {
    let parsed = text.split_once('.').and_then(|(pool, index)| {
        Some(PgId { pool: PoolId(pool.parse().ok()?), index: u32::from_str_radix(index, 16).ok()? })
    });
    parsed.ok_or_else(|| format!("`{text}` is not a placement group; they are written as in `cairn pg ls`: 1.3"))
}

/// Seconds, as people write them: 12h.
///
/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn parse_period(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "w" => 7 * 24 * 3600,
        "d" => 24 * 3600,
        "h" => 3600,
        "m" => 60,
        "s" => 1,
        "" if digits == "0" => 1,
        _ => 0,
    };
    let seconds = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).filter(|_| unit > 0);
    seconds.ok_or_else(|| format!("`{text}` is not a period; write 12h, 1d or 4w"))
}

// ------------------------------------------------------------------------------------------------------------ scrub

async fn scrub(client: &MetaClient, pgs: Vec<PgId>, how: How, target: &Target) -> Outcome {
    let ids = pgs.iter().map(|pg| (*pg).into()).collect();
    client.order_scrub(meta::OrderScrubRequest { mutation: None, pgs: ids, deep: how.deep }).await?;
    let kind = if how.deep { "deep" } else { "light" };
    if !how.wait {
        match target.output {
            Format::Json => output::json(
                &json!({"ordered": pgs.iter().map(ToString::to_string).collect::<Vec<_>>(), "deep": how.deep}),
            ),
            Format::Table => {
                println!("{kind} scrub of {} placement groups ordered; `cairn pg ls` shows what it finds", pgs.len())
            }
        }
        return Ok(());
    }
    let scrubs = wait(client, &pgs).await?;
    let findings = scrubs.iter().filter_map(|scrub| if how.deep { scrub.deep.as_ref() } else { newest(scrub) });
    let total = findings.fold(Total::default(), Total::add);
    match target.output {
        Format::Json => output::json(&json!({
            "placement_groups": pgs.len(), "deep": how.deep, "objects": total.objects, "blocks": total.blocks,
            "bad_copies": total.found, "repaired": total.repaired, "damaged_blocks": total.damaged,
        })),
        Format::Table => println!(
            "{kind} scrub of {} placement groups: {} blocks of {} objects compared, {} bad copies, {} repaired, {} blocks \
             without a good copy",
            pgs.len(),
            total.blocks,
            total.objects,
            total.found,
            total.repaired,
            total.damaged
        ),
    }
    if total.damaged == 0 {
        return Ok(());
    }
    let message = format!("{} blocks have no good copy; `cairn health` names them", total.damaged);
    Err(Failure::new(Code::Unhealthy, message))
}

/// Until none of the orders is open any more.
async fn wait(client: &MetaClient, pgs: &[PgId]) -> Result<Vec<meta::PgScrub>, Failure> {
    loop {
        let known = client.list_pgs(meta::ListPgsRequest {}).await?;
        let of_ours = |scrub: &meta::PgScrub| pgs.contains(&scrub.pg.unwrap_or_default().into());
        let scrubs = known.scrubs.into_iter().filter(of_ours).collect::<Vec<_>>();
        let open = scrubs.iter().filter(|scrub| scrub.ordered.is_some()).count();
        if open == 0 {
            return Ok(scrubs);
        }
        let stuck = known.pgs.iter().filter(|pg| pg.primary.is_none() && of_ours_id(pgs, pg)).count();
        if stuck > 0 {
            let message = format!("{stuck} of the placement groups have no primary; see `cairn health`");
            return Err(Failure::new(Code::Failed, message));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn of_ours_id(pgs: &[PgId], pg: &meta::Pg) -> bool {
    pgs.contains(&pg.id.unwrap_or_default().into())
}

#[derive(Default)]
struct Total {
    objects: u64,
    blocks: u64,
    found: u64,
    repaired: u64,
    damaged: u64,
}

impl Total {
    fn add(self, one: &meta::ScrubFindings) -> Self {
        Self {
            objects: self.objects + one.objects,
            blocks: self.blocks + one.blocks,
            found: self.found + bad_copies(one),
            repaired: self.repaired + one.repaired,
            damaged: self.damaged + one.damaged,
        }
    }
}

fn bad_copies(findings: &meta::ScrubFindings) -> u64 {
    findings.found.iter().map(|bad| bad.copies).sum()
}

/// What the last scrub of either kind found.
fn newest(scrub: &meta::PgScrub) -> Option<&meta::ScrubFindings> {
    scrub.light.as_ref().or(scrub.deep.as_ref())
}

// ------------------------------------------------------------------------------------------------------------- shown

fn show_schedule(set: &meta::ScrubSchedule, target: &Target) {
    if target.output == Format::Json {
        output::json(&json!({"light_s": set.light_s, "deep_s": set.deep_s, "paused": set.paused}));
        return;
    }
    let paused = if set.paused { "; paused" } else { "" };
    println!("each placement group: light every {}, deep every {}{paused}", period(set.light_s), period(set.deep_s));
}

fn period(seconds: u64) -> String {
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
    let unit = units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

async fn list(client: &MetaClient, map: &ClusterMap, pool: Option<&str>, target: &Target) -> Outcome {
    let pool = pool.map(|name| pool_named(map, name)).transpose()?;
    let known = scrubs(client).await?;
    let pgs = map.pgs.iter().filter(|(pg, _)| pool.is_none_or(|pool| pg.pool == pool));
    if target.output == Format::Json {
        let all = pgs.map(|(pg, config)| to_json(map, *pg, config, known.get(pg))).collect::<Vec<_>>();
        output::json(&all);
        return Ok(());
    }
    let rows = pgs.map(|(pg, config)| {
        let scrub = known.get(pg).cloned().unwrap_or_default();
        vec![
            pg.to_string(),
            map.pools.get(&pg.pool).map(|pool| pool.name.clone()).unwrap_or_default(),
            state(map, *pg, config),
            config.primary.map(|osd| osd.0.to_string()).unwrap_or_else(|| "-".to_owned()),
            osds(&config.isr),
            osds(&config.up),
            age(scrub.light_s),
            age(scrub.deep_s),
            errors(&scrub),
        ]
    });
    let heading = ["PG", "POOL", "STATE", "PRIMARY", "IN SYNC", "WANTED", "SCRUBBED", "DEEP", "SCRUB ERRORS"];
    output::table(&heading, rows);
    Ok(())
}

async fn query(client: &MetaClient, map: &ClusterMap, pg: PgId) -> Outcome {
    let none = || Failure::new(Code::NotFound, format!("there is no placement group {pg}"));
    let config = map.pgs.get(&pg).ok_or_else(none)?;
    // There is more than a table has room for.
    output::json(&to_json(map, pg, config, scrubs(client).await?.get(&pg)));
    Ok(())
}

async fn scrubs(client: &MetaClient) -> Result<BTreeMap<PgId, meta::PgScrub>, Failure> {
    let known = client.list_pgs(meta::ListPgsRequest {}).await?.scrubs;
    Ok(known.into_iter().map(|scrub| (scrub.pg.unwrap_or_default().into(), scrub)).collect())
}

fn osds(set: &[OsdId]) -> String {
    set.iter().map(|osd| osd.0.to_string()).collect::<Vec<_>>().join(",")
}

fn state(map: &ClusterMap, pg: PgId, config: &PgConfig) -> String {
    let pool = map.pools.get(&pg.pool);
    let up = |osd: &OsdId| map.osds.get(osd).is_some_and(|osd| osd.up);
    let held = pool.is_none_or(|pool| config.isr.len() < pool.min_size as usize);
    let word = match config.primary {
        None => "inactive",
        Some(_) if held => "held",
        Some(_) if pool.is_some_and(|pool| config.isr.len() < pool.size as usize) => "degraded",
        Some(_) if !config.isr.iter().all(up) => "degraded",
        Some(_) => "active",
    };
    if config.backfill.is_empty() && config.acting.len() <= config.isr.len() {
        word.to_owned()
    } else {
        format!("{word}, filling")
    }
}

fn age(at_s: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match now.saturating_sub(at_s) {
        _ if at_s == 0 => "never".to_owned(),
        seconds @ 0..60 => format!("{seconds}s ago"),
        seconds @ 60..3600 => format!("{}m ago", seconds / 60),
        seconds @ 3600..172_800 => format!("{}h ago", seconds / 3600),
        seconds => format!("{}d ago", seconds / 86_400),
    }
}

fn errors(scrub: &meta::PgScrub) -> String {
    let total = scrub.light.iter().chain(&scrub.deep).fold(Total::default(), Total::add);
    match (total.found, total.damaged) {
        (0, 0) => "none".to_owned(),
        (found, 0) => format!("{found} found, {} repaired", total.repaired),
        (found, damaged) => format!("{found} found, {} repaired, {damaged} blocks lost", total.repaired),
    }
}

fn to_json(map: &ClusterMap, pg: PgId, config: &PgConfig, scrub: Option<&meta::PgScrub>) -> Value {
    let ids = |set: &[OsdId]| set.iter().map(|osd| osd.0).collect::<Vec<_>>();
    let scrub = scrub.cloned().unwrap_or_default();
    json!({
        "pg": pg.to_string(), "pool": pg.pool.0, "index": pg.index, "state": state(map, pg, config), "c": config.c.0,
        "interval": config.interval.0, "primary": config.primary.map(|osd| osd.0), "in_sync": ids(&config.isr),
        "acting": ids(&config.acting), "backfill": ids(&config.backfill), "wanted": ids(&config.up),
        "scrub": {
            "last_s": scrub.light_s, "last_deep_s": scrub.deep_s,
            "ordered": scrub.ordered.map(|order| if order.deep { "deep" } else { "light" }),
            "light": scrub.light.as_ref().map(findings_json), "deep": scrub.deep.as_ref().map(findings_json),
        },
    })
}

fn findings_json(findings: &meta::ScrubFindings) -> Value {
    let found = findings.found.iter().map(|bad| json!({"osd": bad.osd, "copies": bad.copies})).collect::<Vec<_>>();
    let damaged = findings.damaged_blocks.iter().map(|block| {
        json!({
            "volume": block.volume, "object": block.object, "offset": block.offset,
            "damage": if block.copies_differ { "copies differ" } else { "no good copy" },
        })
    });
    json!({
        "objects": findings.objects, "blocks": findings.blocks, "bad_copies": bad_copies(findings), "by_osd": found,
        "repaired": findings.repaired, "damaged": findings.damaged, "damaged_blocks": damaged.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_periods_are_read_as_they_are_shown() {
        let pg = PgId { pool: PoolId(2), index: 0x1f };
        assert_eq!(parse_pg(&pg.to_string()), Ok(pg));
        assert!(parse_pg("17").unwrap_err().contains("1.3"));
        for (text, seconds) in [("1d", 86_400), ("4w", 4 * 604_800), ("90m", 5400), ("60s", 60), ("0", 0)] {
            assert_eq!(parse_period(text), Ok(seconds), "{text}");
        }
        assert!(parse_period("12").is_err() && parse_period("d").is_err() && parse_period("1y").is_err());
        assert_eq!((period(86_400).as_str(), period(5400).as_str()), ("1d", "90m"));
    }
}
