//! `cairn pool`: what there is, a new one, more placement groups for one.

use cairn_proto::meta;
use cairn_proto::meta::change_placement_request::Change;
use cairn_types::map::FailureDomain;
use clap::Subcommand;
use serde_json::{Value, json};

use super::Target;
use super::moving::{self, Deed, Way};
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
    /// Give a pool more placement groups: each splits in two until there are so many, while clients go on. There is no
    /// way back to fewer.
    Set {
        /// Which one.
        name: String,
        /// How many, a power of two.
        #[arg(long)]
        pgs: u32,
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
        PoolVerb::Set { name, pgs, way } => {
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
    value
}

fn list(pools: &[meta::PoolStatus]) {
    let rows = pools.iter().map(|status| {
        let pool = status.pool.clone().unwrap_or_default();
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
            status.volumes.to_string(),
            size::show(status.provisioned),
            size::show(status.available),
        ]
    });
    output::table(&["POOL", "COPIES", "DOMAIN", "PGS", "TARGET", "VOLUMES", "PROVISIONED", "AVAILABLE"], rows);
}
