//! Pools: what may be created, and the defaults of what was not said.

use std::collections::BTreeSet;

use cairn_proto::meta::{CreatePoolReply, CreatePoolRequest, ErrorCode};
use cairn_types::map::{ClusterMap, FailureDomain, Pool};
use cairn_types::size::OBJECT_SIZE;
use cairn_types::{OsdId, PoolId};

use crate::capacity;
use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};

/// The most copies.
const SIZES: u32 = 8;
/// The smallest object.
const SMALLEST_OBJECT: u32 = 64 << 10;
/// The most PGs of one pool.
pub(crate) const MOST_PGS: u32 = 16_384;
/// PG copies that each OSD should carry, if nobody says otherwise.
const PGS_PER_OSD: u32 = 64;
/// PG copies that an OSD is made to carry at most, on average, whoever says so: each is a log, a heartbeat's line and
/// memory.
const MOST_PGS_PER_OSD: u64 = 256;

impl Machine {
    pub(crate) fn create_pool(&mut self, turn: &mut Turn<'_>, request: CreatePoolRequest) -> Outcome<CreatePoolReply> {
        let asked = request.pool.ok_or_else(|| Refusal::invalid("the request describes no pool"))?;
        let pool = self.completed(asked, request.expected_osds)?;
        if self.map.pools.values().any(|other| other.name == pool.name) {
            let message = format!("there is a pool `{}` already", pool.name);
            return Err(Refusal::new(ErrorCode::AlreadyExists, message).remedy("choose another name").into());
        }
        if !request.allow_degraded {
            self.check_domains(&pool)?;
        }
        self.cluster.next_pool += 1;
        self.write_pool(turn, pool.clone());
        self.place_pgs(turn);
        Ok(CreatePoolReply { pool: Some((&pool).into()) })
    }

    fn completed(&self, asked: cairn_proto::meta::Pool, expected_osds: u32) -> Result<Pool, Refusal> {
        check_name(&asked.name)?;
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let size = or(asked.size, 3);
        let failure_domain = match asked.failure_domain.as_str() {
            "" => FailureDomain::Host,
            word => {
                word.parse().map_err(|e: cairn_types::map::UnknownFailureDomain| Refusal::invalid(e.to_string()))?
            }
        };
        let mut pool = Pool {
            id: PoolId(self.cluster.next_pool),
            name: asked.name,
            size,
            min_size: or(asked.min_size, size - size / 2),
            failure_domain,
            device_class: Some(asked.device_class).filter(|class| !class.is_empty()),
            object_size: or(asked.object_size, OBJECT_SIZE),
            pg_count: asked.pg_count,
            pg_target: asked.pg_count,
        };
        if pool.pg_count == 0 {
            let osds = capacity::candidates(&self.map, &pool).count() as u32;
            pool.pg_count = pgs_for(osds.max(expected_osds), pool.size);
        }
        pool.pg_target = pool.pg_count;
        check_numbers(&pool)?;
        Ok(pool)
    }

    fn check_domains(&self, pool: &Pool) -> Result<(), Refusal> {
        let have = capacity::domains(&self.map, pool);
        if have >= pool.size as usize {
            return Ok(());
        }
        let class = pool.device_class.as_ref().map_or(String::new(), |class| format!(" with {class} disks"));
        let level = pool.failure_domain.as_str();
        let plural = |level: &str| if level == "osd" { "OSDs".to_owned() } else { format!("{level}s") };
        let found = match (have, level) {
            (1, "osd") => "is 1 OSD".to_owned(),
            (1, level) => format!("is 1 {level}"),
            (0, level) => format!("are no {}", plural(level)),
            (n, level) => format!("are {n} {}", plural(level)),
        };
        let copies = if pool.size == 1 { "1 copy".to_owned() } else { format!("{} copies", pool.size) };
        let on = if pool.size == 1 { "on one of the" } else { "on different" };
        let message = format!("pool `{}` wants {copies} {on} {}{class}, but there {found}", pool.name, plural(level));
        let osds = capacity::candidates(&self.map, pool).count();
        let remedy = match pool.failure_domain {
            FailureDomain::Osd => "add OSDs, or ask for fewer copies with --size, or --allow-degraded".to_owned(),
            _ if osds >= pool.size as usize => {
                format!("add {level}s, or use --failure-domain osd, or --allow-degraded")
            }
            _ => format!("add {level}s, or ask for fewer copies with --size, or --allow-degraded"),
        };
        Err(Refusal::new(ErrorCode::TooFewDomains, message).remedy(remedy))
    }
}

/// The number of PGs that suits so many OSDs.
fn pgs_for(osds: u32, size: u32) -> u32 {
    (osds.saturating_mul(PGS_PER_OSD) / size.max(1)).clamp(16, MOST_PGS / 2).next_power_of_two()
}

/// The number of PGs that a pool would be given if it were made today.
pub(crate) fn target_pgs(map: &ClusterMap, pool: &Pool) -> u32 {
    pgs_for(capacity::candidates(map, pool).count() as u32, pool.size)
}

/// The most PGs that a pool may be given: so many that its OSDs carry no more copies than they should. What other pools
/// have on the same OSDs counts, as if it were spread evenly.
pub(crate) fn most_pgs(map: &ClusterMap, pool: &Pool) -> u32 {
    let osds: BTreeSet<OsdId> = capacity::candidates(map, pool).map(|osd| osd.id).collect();
    let carried = |other: &Pool| {
        let theirs: Vec<OsdId> = capacity::candidates(map, other).map(|osd| osd.id).collect();
        let shared = theirs.iter().filter(|osd| osds.contains(osd)).count() as u64;
        u64::from(other.pg_target) * u64::from(other.size) * shared / theirs.len().max(1) as u64
    };
    let others: u64 = map.pools.values().filter(|other| other.id != pool.id).map(carried).sum();
    let left = (osds.len() as u64 * MOST_PGS_PER_OSD).saturating_sub(others) / u64::from(pool.size.max(1));
    left.checked_ilog2().map_or(0, |power| 1 << power.min(MOST_PGS.ilog2()))
}

/// Refuses to give a pool more PGs than its OSDs should carry.
pub(crate) fn check_load(map: &ClusterMap, now: &Pool, pgs: u32) -> Result<(), Refusal> {
    let most = most_pgs(map, now);
    if pgs <= now.pg_target || pgs <= most {
        return Ok(());
    }
    let osds = capacity::candidates(map, now).count();
    let on = if osds == 1 { "1 OSD".to_owned() } else { format!("{osds} OSDs") };
    let message = format!(
        "pool `{}` cannot have {pgs} placement groups on {on}: an OSD carries at most {MOST_PGS_PER_OSD} copies of \
         groups on average, those of other pools counted",
        now.name
    );
    let remedy = match most > now.pg_target {
        true => format!("ask for {most}, or add OSDs"),
        false => "add OSDs".to_owned(),
    };
    Err(Refusal::precondition(message).remedy(remedy))
}

fn check_numbers(pool: &Pool) -> Result<(), Refusal> {
    if pool.size > SIZES {
        return Err(Refusal::invalid(format!("a pool makes 1 to {SIZES} copies, and not {}", pool.size)));
    }
    if pool.min_size > pool.size {
        let message = format!("min_size {} is more than the {} copies there are", pool.min_size, pool.size);
        return Err(Refusal::invalid(message));
    }
    if !pool.object_size.is_power_of_two() || !(SMALLEST_OBJECT..=OBJECT_SIZE).contains(&pool.object_size) {
        let message = format!(
            "the object size must be a power of two from {} to {}, and {} is not",
            capacity::human(SMALLEST_OBJECT.into()),
            capacity::human(OBJECT_SIZE.into()),
            pool.object_size
        );
        return Err(Refusal::invalid(message));
    }
    check_pgs(pool.pg_count)
}

pub(crate) fn check_pgs(pgs: u32) -> Result<(), Refusal> {
    if !pgs.is_power_of_two() || pgs > MOST_PGS {
        let nearest = pgs.min(MOST_PGS).next_power_of_two();
        let message = format!("the number of PGs must be a power of two up to {MOST_PGS}, and {pgs} is not");
        return Err(Refusal::invalid(message).remedy(format!("use {nearest}")));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 64 || !name.chars().all(fine) {
        let message = format!("`{}` cannot be the name of a pool", name.escape_debug());
        return Err(Refusal::invalid(message).remedy("use 1 to 64 letters, digits, `-`, `_` and `.`"));
    }
    Ok(())
}
