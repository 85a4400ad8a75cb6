//! Which pool a StorageClass means, and what the state of a pool means for its volumes.

use std::collections::BTreeSet;

use cairn_proto::csi::VolumeCondition;
use cairn_proto::meta::{Node, Pool, PoolStatus};

use crate::parameters::Parameters;

/// No pool fits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("there is no pool yet; make one: cairn pool create NAME")]
    NoPools,
    #[error("there is no pool `{}`; the pools are: {have}", name.escape_debug())]
    Unknown { name: String, have: String },
    #[error(
        "there are several pools and none is called `default` ({have}); name one in the StorageClass parameter `pool`"
    )]
    Ambiguous { have: String },
    #[error("{wanted}, but the pool `{name}` keeps {has}; {remedy}")]
    Mismatch { wanted: String, name: String, has: String, remedy: String },
    #[error("{wanted}, but no pool does; the pools are: {have}; {remedy}")]
    NoneFits { wanted: String, have: String, remedy: String },
}

/// The pool that the parameters name, or the default one, or the only one that fits what they demand.
pub(crate) fn choose<'a>(
    pools: &'a [PoolStatus],
    nodes: &[Node],
    wanted: &Parameters,
) -> Result<&'a PoolStatus, PoolError> {
    let have = || pools.iter().filter_map(|status| status.pool.as_ref()).map(described).collect::<Vec<_>>().join(", ");
    let named = |name: &str| pools.iter().find(|status| name_of(status) == name);
    if pools.is_empty() {
        return Err(PoolError::NoPools);
    }
    if let Some(name) = &wanted.pool {
        let found = named(name).ok_or_else(|| PoolError::Unknown { name: name.clone(), have: have() })?;
        if fits(found, wanted) {
            return Ok(found);
        }
        let has = found.pool.as_ref().map(kept).unwrap_or_default();
        let (wanted, remedy) = (demand(wanted), remedy(nodes, wanted));
        return Err(PoolError::Mismatch { wanted, name: name.clone(), has, remedy });
    }
    let fitting: Vec<_> = pools.iter().filter(|status| fits(status, wanted)).collect();
    match fitting[..] {
        [] => Err(PoolError::NoneFits { wanted: demand(wanted), have: have(), remedy: remedy(nodes, wanted) }),
        [only] => Ok(only),
        _ => fitting
            .into_iter()
            .find(|status| name_of(status) == "default")
            .ok_or_else(|| PoolError::Ambiguous { have: have() }),
    }
}

/// How a volume of this pool fares. A volume's objects are spread over all placement groups of its pool, so that one
/// without I/O concerns them all. Fewer copies than wanted are the administrator's business: the volume serves.
pub(crate) fn condition(pools: &[PoolStatus], pool: u32) -> VolumeCondition {
    let of_pool = |status: &&PoolStatus| status.pool.as_ref().is_some_and(|found| found.id == pool);
    let Some((status, pool)) = pools.iter().find(of_pool).and_then(|found| Some((found, found.pool.as_ref()?))) else {
        let message = "the volume's pool is gone; see `cairn pool ls`".to_owned();
        return VolumeCondition { abnormal: true, message };
    };
    let (name, all) = (&pool.name, pool.pg_count);
    let silent = all.saturating_sub(status.active_pgs);
    let message = match (silent, status.degraded_pgs) {
        (0, 0) => format!("all {all} placement groups of the pool `{name}` serve I/O"),
        (0, thin) => format!(
            "all {all} placement groups of the pool `{name}` serve I/O, {thin} of them with fewer copies than wanted; see \
             `cairn health detail`"
        ),
        (silent, _) => format!(
            "{silent} of {all} placement groups of the pool `{name}` serve no I/O, and what is in them waits; see `cairn \
             health detail`"
        ),
    };
    VolumeCondition { abnormal: silent > 0, message }
}

fn name_of(status: &PoolStatus) -> &str {
    status.pool.as_ref().map_or("", |pool| &pool.name)
}

fn fits(status: &PoolStatus, wanted: &Parameters) -> bool {
    let Some(pool) = &status.pool else { return false };
    wanted.replicas.is_none_or(|replicas| replicas == pool.size)
        && wanted.failure_domain.is_none_or(|domain| domain.as_str() == pool.failure_domain)
}

fn described(pool: &Pool) -> String {
    format!("`{}` ({})", pool.name, kept(pool))
}

fn kept(pool: &Pool) -> String {
    copies(Some(pool.size), Some(&pool.failure_domain))
}

fn copies(replicas: Option<u32>, domain: Option<&str>) -> String {
    let count = match replicas {
        None => "its replicas".to_owned(),
        Some(1) => "1 replica".to_owned(),
        Some(count) => format!("{count} replicas"),
    };
    match domain {
        Some(domain) => format!("{count} on different {domain}s"),
        None => count,
    }
}

fn demand(wanted: &Parameters) -> String {
    let domain = wanted.failure_domain.map(|domain| domain.as_str());
    format!("the StorageClass asks for {}", copies(wanted.replicas, domain))
}

/// What to do, by what the cluster has.
fn remedy(nodes: &[Node], wanted: &Parameters) -> String {
    let hosts: BTreeSet<_> = nodes
        .iter()
        .filter(|node| !node.osds.is_empty())
        .map(|node| node.location.as_ref().map_or(node.name.as_str(), |location| location.host.as_str()))
        .collect();
    let domain = wanted.failure_domain.map_or("host", |domain| domain.as_str());
    let replicas = wanted.replicas.unwrap_or(3);
    if domain == "host" && (hosts.len() as u32) < replicas {
        let count = if hosts.len() == 1 { "1 host".to_owned() } else { format!("{} hosts", hosts.len()) };
        return format!(
            "there are OSDs on {count}: add hosts, or ask for fewer replicas or for `failureDomain: osd` (survives a \
             disk, not a machine)"
        );
    }
    format!(
        "make such a pool (cairn pool create NAME --size {replicas} --failure-domain {domain}), or change the StorageClass"
    )
}

#[cfg(test)]
mod tests {
    use cairn_proto::meta::Location;
    use cairn_types::map::FailureDomain;

    use super::*;

    fn pool(name: &str, size: u32, domain: &str) -> PoolStatus {
        let pool = Pool { name: name.into(), size, failure_domain: domain.into(), ..Pool::default() };
        PoolStatus { pool: Some(pool), ..PoolStatus::default() }
    }

    fn one_host() -> Vec<Node> {
        let location = Location { host: "a".into(), ..Location::default() };
        vec![Node { name: "a".into(), location: Some(location), osds: vec![0, 1, 2], ..Node::default() }]
    }

    fn wanted(pool: Option<&str>, replicas: Option<u32>, failure_domain: Option<FailureDomain>) -> Parameters {
        Parameters { pool: pool.map(str::to_owned), replicas, failure_domain, ..Parameters::default() }
    }

    #[test]
    fn the_named_the_fitting_or_the_default_pool_is_taken() {
        let pools = [pool("default", 3, "osd"), pool("wide", 3, "host"), pool("thin", 1, "osd")];
        let chosen = |wanted: Parameters| name_of(choose(&pools, &[], &wanted).unwrap()).to_owned();
        assert_eq!(chosen(wanted(None, None, None)), "default");
        assert_eq!(chosen(wanted(None, Some(1), None)), "thin");
        assert_eq!(chosen(wanted(None, Some(3), Some(FailureDomain::Host))), "wide");
        assert_eq!(chosen(wanted(Some("wide"), Some(3), None)), "wide");
    }

    #[test]
    fn three_replicas_where_there_is_one_host_is_refused_with_what_to_do() {
        let error = choose(&[pool("default", 1, "osd")], &one_host(), &wanted(None, Some(3), None)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the StorageClass asks for 3 replicas, but no pool does; the pools are: `default` (1 replica on different \
             osds); there are OSDs on 1 host: add hosts, or ask for fewer replicas or for `failureDomain: osd` \
             (survives a disk, not a machine)"
        );
        let pools = [pool("default", 3, "osd")];
        let host = wanted(Some("default"), Some(3), Some(FailureDomain::Host));
        let error = choose(&pools, &one_host(), &host).unwrap_err().to_string();
        assert!(error.contains("3 replicas on different hosts, but the pool `default` keeps 3 replicas"), "{error}");
    }

    #[test]
    fn a_pool_with_silent_groups_has_abnormal_volumes() {
        let state = |active_pgs, degraded_pgs| {
            let pool = Pool { id: 4, pg_count: 8, ..pool("fast", 3, "osd").pool.unwrap_or_default() };
            let status = PoolStatus { pool: Some(pool), active_pgs, degraded_pgs, ..PoolStatus::default() };
            let VolumeCondition { abnormal, message } = condition(&[status], 4);
            (abnormal, message)
        };
        assert_eq!(state(8, 0), (false, "all 8 placement groups of the pool `fast` serve I/O".to_owned()));
        let (abnormal, message) = state(8, 3);
        assert!(!abnormal && message.contains("3 of them with fewer copies"), "{message}");
        let (abnormal, message) = state(6, 8);
        assert!(abnormal && message.contains("2 of 8 placement groups of the pool `fast` serve no I/O"), "{message}");
        assert!(condition(&[], 4).abnormal);
    }

    #[test]
    fn unclear_wishes_are_refused_with_the_choices() {
        let pools = [pool("a", 2, "osd"), pool("b", 2, "osd")];
        let error = |wanted: Parameters| choose(&pools, &[], &wanted).unwrap_err().to_string();
        assert!(error(wanted(None, None, None)).contains("`a` (2 replicas on different osds), `b`"));
        assert!(error(wanted(Some("c"), None, None)).starts_with("there is no pool `c`; the pools are: `a`"));
        assert_eq!(choose(&[], &[], &Parameters::default()), Err(PoolError::NoPools));
    }
}
