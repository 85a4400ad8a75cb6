//! What is allowed in a pool: how many volumes, of how many bytes together, and how long deleted ones are kept. Volumes in
//! the trash count like the others, because they take up room like them.
//!
//! Rules are no part of the map: no OSD and no client has to know them. They bound what is added, and take nothing away.

use cairn_proto::meta::{
    ChangePoolReply, ChangePoolRequest, ErrorCode, HealthCheck, PoolRules, PoolRulesRecord, Volume,
};
use cairn_types::PoolId;
use cairn_types::map::Pool;

use crate::capacity::{NEARFULL_PERCENT, human};
use crate::health::{check, counted};
use crate::machine::{Machine, Turn};
use crate::refusal::{Corrupt, Outcome, Refusal};
use crate::state::StateRead;
use crate::trash::check_retention;
use crate::{keys, record};

impl Machine {
    pub(crate) fn read_rules(&mut self, state: &dyn StateRead) -> Result<(), Corrupt> {
        record::each(state, keys::POOL_RULES, keys::POOL_RULES, &mut |_, record: PoolRulesRecord| {
            self.rules.insert(PoolId(record.pool), record.rules.unwrap_or_default());
            Ok(true)
        })
    }

    pub(crate) fn change_pool(&mut self, turn: &mut Turn<'_>, request: &ChangePoolRequest) -> Outcome<ChangePoolReply> {
        let pool = self.map.pools.values().find(|pool| pool.name == request.pool).map(|pool| pool.id);
        let pool = pool.ok_or_else(|| {
            let message = format!("there is no pool `{}`", request.pool.escape_debug());
            Refusal::not_found(message).remedy("what there is: cairn pool ls")
        })?;
        check_retention(request.retention_s)?;
        let now = self.rules.get(&pool).copied().unwrap_or_default();
        let rules = PoolRules {
            quota: request.quota.unwrap_or(now.quota),
            max_volumes: request.max_volumes.unwrap_or(now.max_volumes),
            retention_s: request.retention_s.unwrap_or(now.retention_s),
        };
        if rules != now {
            let record = PoolRulesRecord { pool: pool.0, rules: Some(rules) };
            record::store(&mut turn.state, keys::pool_rules(pool), &record);
            self.rules.insert(pool, rules);
        }
        Ok(ChangePoolReply { rules: Some(rules) })
    }

    /// How long this volume is kept once it is deleted, in seconds.
    pub(crate) fn retention_of(&self, volume: &Volume) -> u64 {
        let of_pool = || self.rules.get(&PoolId(volume.pool)).map_or(0, |rules| rules.retention_s);
        volume.retention_s.unwrap_or_else(of_pool)
    }

    /// Whether so many volumes and bytes more are allowed; `what` wants them.
    pub(crate) fn check_rules(&self, pool: &Pool, volumes: u64, bytes: u64, what: &str) -> Result<(), Refusal> {
        let rules = self.rules.get(&pool.id).copied().unwrap_or_default();
        let tally = self.tallies.get(&pool.id).copied().unwrap_or_default();
        let purge = if tally.trashed > 0 { ", purge what is in the trash (cairn trash list)" } else { "" };
        let refused = |message: String, flag: &str| {
            let remedy = format!("delete volumes{purge}, or allow more: cairn pool set {} {flag}", pool.name);
            Err(Refusal::new(ErrorCode::QuotaExceeded, message).remedy(remedy))
        };
        let (quota, taken) = (rules.quota, tally.provisioned);
        if bytes > 0 && quota > 0 && taken.saturating_add(bytes) > quota {
            let trash = match tally.trashed_bytes {
                0 => String::new(),
                bytes => format!(", {} of that in the trash", human(bytes)),
            };
            let (name, quota, taken) = (&pool.name, human(quota), human(taken));
            let message = format!("{what}, but pool `{name}` has a quota of {quota}, and {taken} are taken{trash}");
            return refused(message, "--quota SIZE");
        }
        let (most, there) = (rules.max_volumes, tally.volumes);
        if volumes > 0 && most > 0 && there + volumes > most {
            let trash =
                if tally.trashed > 0 { format!(", {} of them in the trash", tally.trashed) } else { String::new() };
            let message = format!("pool `{}` may have {most} volumes, and has {there}{trash}", pool.name);
            return refused(message, "--max-volumes N");
        }
        Ok(())
    }

    /// The largest volume that the rules of a pool allow, in bytes.
    pub(crate) fn allowed(&self, pool: &Pool) -> u64 {
        let rules = self.rules.get(&pool.id).copied().unwrap_or_default();
        let tally = self.tallies.get(&pool.id).copied().unwrap_or_default();
        match rules {
            PoolRules { max_volumes: most @ 1.., .. } if tally.volumes >= most => 0,
            PoolRules { quota: 0, .. } => u64::MAX,
            PoolRules { quota, .. } => quota.saturating_sub(tally.provisioned),
        }
    }
}

/// Pools that are nearly as full as they may be.
pub(crate) fn checks(machine: &Machine) -> Option<HealthCheck> {
    let mut details = Vec::new();
    for (id, rules) in &machine.rules {
        let Some(pool) = machine.map.pools.get(id) else { continue };
        let tally = machine.tallies.get(id).copied().unwrap_or_default();
        let percent = |of: u64, taken: u64| (of > 0).then(|| (u128::from(taken) * 100 / u128::from(of)) as u64);
        let near = |of: u64, taken: u64| percent(of, taken).filter(|percent| *percent >= NEARFULL_PERCENT);
        if let Some(percent) = near(rules.quota, tally.provisioned) {
            let (taken, quota) = (human(tally.provisioned), human(rules.quota));
            details.push(format!("pool `{}` has given {taken} of {quota} ({percent} %)", pool.name));
        }
        if let Some(percent) = near(rules.max_volumes, tally.volumes) {
            let (there, most) = (tally.volumes, rules.max_volumes);
            details.push(format!("pool `{}` has {there} of {most} volumes ({percent} %)", pool.name));
        }
    }
    let quotas = counted(details.len(), "quota of a pool is", "quotas of pools are");
    let summary = format!("{quotas} used to {NEARFULL_PERCENT} % or more");
    let remedy = "delete volumes, purge the trash (cairn trash list), or allow more: cairn pool set NAME --quota SIZE";
    (!details.is_empty()).then(|| check("POOL_NEAR_FULL", false, summary, remedy, details))
}
