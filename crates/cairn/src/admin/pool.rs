//! `cairn pool`: what there is, a new one, more placement groups for one, and what is allowed in it.

use cairn_proto::meta;
use cairn_proto::meta::change_placement_request::Change;
use cairn_types::map::FailureDomain;
use clap::Subcommand;
use serde_json::{Value, json};

use super::moving::{self, Deed, Way};
use super::{Target, limits};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Format};
use crate::size;

/// What can be asked of pools.
#[derive(Subcommand)]
pub(crate) enum PoolVerb {
    /// All pools.
    Ls,
    /// Compare all copies of everything in a pool.
    Scrub {
        /// Its name.
        name: String,
        #[command(flatten)]
        how: super::pg::How,
    },
    /// Make a pool.
    Create {
        /// Its name.
        name: String,
        /// Copies of each object.
        #[arg(long, default_value_t = 3)]
        size: u32,
        /// Copies without which it serves no I/O; by default one less than the size.
        #[arg(long)]
        min_size: Option<u32>,
        /// Where copies must differ: osd, host, rack or zone.
        #[arg(long, default_value = "host")]
        failure_domain: FailureDomain,
        /// Only OSDs of this class.
        #[arg(long)]
        device_class: Option<String>,
        /// Placement groups, a power of two; by default by the number of OSDs.
        #[arg(long, default_value_t = 0)]
        pg_count: u32,
        /// How many OSDs the pool will grow to: the number of its placement groups is chosen for them at once, so that none
        /// has to be split later.
        #[arg(long, default_value_t = 0)]
        expect_osds: u32,
        /// Make it although it cannot be placed in full today.
        #[arg(long)]
        allow_degraded: bool,
    },
    /// Change a pool: what is allowed in it, or how many placement groups it has.
    Set {
        /// Which one.
        name: String,
        /// So many placement groups, a power of two: each splits in two until there are so many, while clients go on. There
        /// is no way back to fewer.
        #[arg(long, conflicts_with_all = ["quota", "max_volumes", "retention"])]
        pgs: Option<u32>,
        /// Bytes that all volumes may have together, those in the trash too: 10Ti; `none` for no bound.
        #[arg(long, value_name = "SIZE|none", value_parser = limits::bytes)]
        quota: Option<u64>,
        /// How many volumes there may be, those in the trash too; `none` for no bound.
        #[arg(long, value_name = "N|none", value_parser = limits::count)]
        max_volumes: Option<u64>,
        /// How long a deleted volume that does not say so itself stays in the trash: 24h; `0` for not at all.
        #[arg(long, value_name = "TIME", value_parser = super::pg::parse_period)]
        retention: Option<u64>,
        #[command(flatten)]
        way: Way,
    },
}

pub(crate) async fn run(verb: PoolVerb, target: &Target) -> Outcome {
    let client = target.connect()?.0;
    match verb {
        PoolVerb::Ls => {
            let pools = client.list_pools(meta::ListPoolsRequest {}).await?.pools;
            if target.output == Format::Json {
                output::json(&pools.iter().map(status_json).collect::<Vec<_>>());
            } else {
                list(&pools);
            }
        }
        PoolVerb::Set { name, pgs: None, quota, max_volumes, retention, way } => {
            if (quota, max_volumes, retention) == (None, None, None) {
                let words = "nothing is to be set; give --quota, --max-volumes, --retention or --pgs";
                return Err(Failure::new(Code::Failed, words));
            }
            if way.dry_run || way.wait {
                let words = "--dry-run and --wait are for --pgs: what is allowed in a pool moves and deletes nothing";
                return Err(Failure::new(Code::Failed, words));
            }
            let (pool, retention_s) = (name.clone(), retention);
            let request = meta::ChangePoolRequest { mutation: None, pool, quota, max_volumes, retention_s };
            let rules = client.change_pool(request).await?.rules.unwrap_or_default();
            match target.output {
                Format::Json => output::json(&rules_json(&rules)),
                Format::Table => println!("pool {name}: {}", rules_shown(&rules)),
            }
        }
        PoolVerb::Set { name, pgs: Some(pgs), way, .. } => {
            let deed = Deed {
                done: format!("the placement groups of pool {name} split until there are {pgs}"),
                would: format!("the placement groups of pool {name} would split until there are {pgs}"),
                change: Some(Change::SetPgs(meta::SetPgs { pool: name, pgs })),
                empties: None,
            };
            return moving::carry_out(deed, &way).await;
        }
        PoolVerb::Scrub { name, how } => return super::pg::scrub_pool(&name, &how, target).await,
        PoolVerb::Create {
            name,
            size,
            min_size,
            failure_domain,
            device_class,
            pg_count,
            expect_osds,
            allow_degraded,
        } => {
            let pool = meta::Pool {
                name,
                size,
                min_size: min_size.unwrap_or(if size > 1 { size - 1 } else { 1 }),
                failure_domain: failure_domain.as_str().into(),
                device_class: device_class.unwrap_or_default(),
                pg_count,
                ..Default::default()
            };
            let request = meta::CreatePoolRequest {
                mutation: None,
                pool: Some(pool),
                allow_degraded,
                expected_osds: expect_osds,
            };
            let made = client.create_pool(request).await?.pool;
            let made = made.ok_or_else(|| Failure::new(Code::Failed, "the answer holds no pool"))?;
            if target.output == Format::Json {
                output::json(&pool_json(&made));
            } else {
                println!(
                    "pool {} made: {} copies on different {}s, {} placement groups",
                    made.name, made.size, made.failure_domain, made.pg_count
                );
            }
        }
    }
    Ok(())
}

fn pool_json(pool: &meta::Pool) -> Value {
    json!({
        "id": pool.id, "name": pool.name, "size": pool.size, "min_size": pool.min_size,
        "failure_domain": pool.failure_domain, "device_class": pool.device_class,
        "object_size": pool.object_size, "pg_count": pool.pg_count, "pg_target": pool.pg_target.max(pool.pg_count),
    })
}

fn status_json(status: &meta::PoolStatus) -> Value {
    let mut value = pool_json(&status.pool.clone().unwrap_or_default());
    value["volumes"] = json!(status.volumes);
    value["provisioned"] = json!(status.provisioned);
    value["available"] = json!(status.available);
    value["active_pgs"] = json!(status.active_pgs);
    value["degraded_pgs"] = json!(status.degraded_pgs);
    value["misplaced_pgs"] = json!(status.misplaced_pgs);
    value["target_pgs"] = json!(status.target_pgs);
    value["rules"] = rules_json(&status.rules.unwrap_or_default());
    value["trashed"] = json!({"volumes": status.trashed, "bytes": status.trashed_bytes});
    value
}

fn rules_json(rules: &meta::PoolRules) -> Value {
    json!({"quota": rules.quota, "max_volumes": rules.max_volumes, "retention_s": rules.retention_s})
}

fn rules_shown(rules: &meta::PoolRules) -> String {
    let quota = if rules.quota == 0 { "any size".to_owned() } else { size::show(rules.quota) };
    let volumes = if rules.max_volumes == 0 { "any number of".to_owned() } else { rules.max_volumes.to_string() };
    let kept = match rules.retention_s {
        0 => "deleted at once".to_owned(),
        seconds => format!("kept for {} once they are deleted", moving::lasting(seconds)),
    };
    format!("{quota} together, {volumes} volumes, {kept}")
}

/// `3 of 10`.
fn bounded(there: String, most: Option<String>) -> String {
    most.map_or(there.clone(), |most| format!("{there} of {most}"))
}

fn list(pools: &[meta::PoolStatus]) {
    let rows = pools.iter().map(|status| {
        let pool = status.pool.clone().unwrap_or_default();
        let rules = status.rules.unwrap_or_default();
        vec![
            pool.name,
            format!("{}/{}", pool.size, pool.min_size),
            pool.failure_domain,
            format!(
                "{} of {} active, {} degraded, {} misplaced",
                status.active_pgs,
                if pool.pg_target > pool.pg_count {
                    format!("{} (on the way to {})", pool.pg_count, pool.pg_target)
                } else {
                    pool.pg_count.to_string()
                },
                status.degraded_pgs,
                status.misplaced_pgs
            ),
            status.target_pgs.to_string(),
            bounded(status.volumes.to_string(), (rules.max_volumes > 0).then(|| rules.max_volumes.to_string())),
            bounded(size::show(status.provisioned), (rules.quota > 0).then(|| size::show(rules.quota))),
            size::show(status.available),
        ]
    });
    output::table(&["POOL", "COPIES", "DOMAIN", "PGS", "TARGET", "VOLUMES", "PROVISIONED", "AVAILABLE"], rows);
}
