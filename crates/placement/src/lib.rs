//! Where the copies of a placement group belong: straw2 over failure domains, a pure function of the map.
//!
//! [`Placer::place`] answers, for one PG of one pool, as many OSDs as the pool has copies, each in another failure domain.
//!
//! 1. *Domains.* Every failure domain draws a straw for the PG, and the `n` shortest win. A straw depends only on the PG, the
//!    domain's name and its own chance, so a change elsewhere in the cluster does not reorder the others: what moves is what
//!    the changed domain gains or loses (straw2; Weil et al., CRUSH, and its 2014 revision).
//! 2. *Below.* Within each domain one child wins at each level on the way down (zone > rack > host > osd), by the same draw.
//! 3. *Order.* The chosen OSDs are ordered by a draw of their own, so that primaries, the first of each list, are spread by
//!    weight too.
//!
//! Levels above the failure domain take no part: copies on different hosts are spread over all hosts by their weight.
//!
//! Picking `n` shortest straws with plain weights would give heavy domains less than their share, because none can win
//! twice; so the chances are made such that each wins in proportion to its capacity (`fixed::fair`).
//!
//! Hashing spreads a few PGs unevenly. [`Placer::balance`] finds the exceptions that put it right, and
//! [`Placer::amend`] applies those that still make sense (`balance`).
//!
//! All arithmetic is on integers: no float whose last bit depends on the machine (`fixed`). Nothing here allocates an id,
//! decides who is alive, or has state. The functions are part of the format: changing them moves data.

#![forbid(unsafe_code)]

mod balance;
mod fixed;
mod tree;

use std::collections::BTreeMap;

use cairn_types::map::{ClusterMap, FailureDomain, Pool};
use cairn_types::{OsdId, PoolId};

use crate::fixed::Chance;
use crate::tree::{Names, Node, build};

pub use balance::{Exception, Exceptions, Spread};

/// A pool asks for more failure domains than there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} copies on different {}s, but only {have} of those can be used", .level.as_str())]
pub struct TooFewDomains {
    /// Copies.
    pub wanted: usize,
    /// Domains that have at least one OSD for the pool.
    pub have: usize,
    /// The level at which copies must differ.
    pub level: FailureDomain,
}

/// Places the PGs of one pool on one map.
#[derive(Clone, Debug)]
pub struct Placer {
    pool: PoolId,
    size: usize,
    level: FailureDomain,
    /// Subtrees that must not share two copies, and how they compete.
    domains: Vec<(Node, Chance)>,
    weights: BTreeMap<OsdId, u64>,
    /// Which of them each OSD lies in.
    domain_of: BTreeMap<OsdId, usize>,
    names: Names,
}

impl Placer {
    /// Builds the tree of the OSDs that the pool may use: those placed, and of its device class.
    #[must_use]
    pub fn new(map: &ClusterMap, pool: &Pool) -> Self {
        Self::standing_in(map, pool, &Names::new())
    }

    /// The same, where some OSDs took the place of others: each draws under the number of the one that it stands for, so
    /// that on the same host and with the same weight it gets exactly what the other had.
    #[must_use]
    pub fn standing_in(map: &ClusterMap, pool: &Pool, names: &BTreeMap<OsdId, OsdId>) -> Self {
        let fits = |class: &str| pool.device_class.as_ref().is_none_or(|wanted| wanted == class);
        let osds: Vec<_> =
            map.osds.values().filter(|osd| osd.placed && osd.weight > 0 && fits(&osd.device_class)).collect();
        let domains = build(&osds, pool.failure_domain, names);
        let weights: Vec<u64> = domains.iter().map(Node::weight).collect();
        let size = pool.size as usize;
        let mut domain_of = BTreeMap::new();
        for (at, domain) in domains.iter().enumerate() {
            let mut members = Vec::new();
            domain.osds(&mut members);
            domain_of.extend(members.into_iter().map(|(osd, _)| (osd, at)));
        }
        Self {
            pool: pool.id,
            size,
            level: pool.failure_domain,
            domains: domains.into_iter().zip(fixed::fair(&weights, size)).collect(),
            weights: osds.iter().map(|osd| (osd.id, u64::from(osd.weight))).collect(),
            domain_of,
            names: names.clone(),
        }
    }

    /// Failure domains that have an OSD for the pool.
    #[must_use]
    pub fn domains(&self) -> usize {
        self.domains.len()
    }

    /// The OSDs of one PG, its preferred primary first.
    ///
    /// # Errors
    /// When there are fewer failure domains than copies.
    pub fn place(&self, index: u32) -> Result<Vec<OsdId>, TooFewDomains> {
        if self.domains.len() < self.size {
            return Err(TooFewDomains { wanted: self.size, have: self.domains.len(), level: self.level });
        }
        Ok(self.place_what_fits(index))
    }

    /// Like [`Self::place`], but with as many copies as there are failure domains: for pools that were accepted degraded.
    #[must_use]
    pub fn place_what_fits(&self, index: u32) -> Vec<OsdId> {
        let pg = fixed::hash(u64::from(self.pool.0) << 32 | u64::from(index), 0);
        let straw = |(domain, chance): &'_ (Node, Chance)| fixed::straw(pg, domain.name(), *chance);
        let mut straws: Vec<(i128, u64, &Node)> =
            self.domains.iter().map(|entry| (straw(entry), entry.0.name(), &entry.0)).collect();
        let wanted = self.size.min(straws.len());
        if wanted == 0 {
            return Vec::new();
        }
        straws.select_nth_unstable_by_key(wanted - 1, |(straw, name, _)| (*straw, *name));
        let chosen = straws[..wanted].iter().map(|(_, _, domain)| domain.descend(pg));
        let name = |osd: &OsdId| u64::from(self.names.get(osd).unwrap_or(osd).0);
        let order = |osd: &OsdId| (fixed::draw(pg, fixed::hash(name(osd), 1), self.weights[osd]), *osd);
        let mut chosen: Vec<OsdId> = chosen.collect();
        chosen.sort_by_cached_key(order);
        chosen
    }
}

/// Where the copies of one PG of a pool belong on a map. For many PGs make one [`Placer`].
///
/// # Errors
/// When there are fewer failure domains than copies.
pub fn place(map: &ClusterMap, pool: &Pool, index: u32) -> Result<Vec<OsdId>, TooFewDomains> {
    Placer::new(map, pool).place(index)
}
