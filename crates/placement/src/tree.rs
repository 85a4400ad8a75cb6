//! The tree below one failure domain: straw2 buckets down to OSDs.

use std::collections::BTreeMap;

use cairn_types::OsdId;
use cairn_types::map::{FailureDomain, Osd};

use crate::fixed;

/// A bucket or an OSD. Its name is a hash of its path from the root; its weight is the sum of its OSDs'.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    Osd { name: u64, weight: u64, id: OsdId },
    Bucket { name: u64, weight: u64, children: Vec<Node> },
}

impl Node {
    pub(crate) fn name(&self) -> u64 {
        match self {
            Self::Osd { name, .. } | Self::Bucket { name, .. } => *name,
        }
    }

    pub(crate) fn weight(&self) -> u64 {
        match self {
            Self::Osd { weight, .. } | Self::Bucket { weight, .. } => *weight,
        }
    }

    /// Every OSD here, with its weight.
    pub(crate) fn osds(&self, found: &mut Vec<(OsdId, u64)>) {
        match self {
            Self::Osd { id, weight, .. } => found.push((*id, *weight)),
            Self::Bucket { children, .. } => children.iter().for_each(|child| child.osds(found)),
        }
    }

    /// The OSD that a PG finds here: one child wins at each level.
    pub(crate) fn descend(&self, pg: u64) -> OsdId {
        match self {
            Self::Osd { id, .. } => *id,
            Self::Bucket { children, .. } => {
                let straw = |child: &&Node| (fixed::draw(pg, child.name(), child.weight()), child.name());
                children.iter().min_by_key(straw).expect("no bucket is made without a child").descend(pg)
            }
        }
    }
}

/// The names of the levels above an OSD, from the top.
fn path(osd: &Osd) -> [&str; 3] {
    [&osd.location.zone, &osd.location.rack, &osd.location.host]
}

/// How many of the levels zone, rack and host lead to a failure domain.
fn depth(level: FailureDomain) -> usize {
    match level {
        FailureDomain::Zone => 1,
        FailureDomain::Rack => 2,
        FailureDomain::Host | FailureDomain::Osd => 3,
    }
}

/// The numbers under which OSDs draw, where they are not their own: see [`crate::Placer::standing_in`].
pub(crate) type Names = BTreeMap<OsdId, OsdId>;

/// One subtree per failure domain, in the order of their paths.
pub(crate) fn build(osds: &[&Osd], level: FailureDomain, names: &Names) -> Vec<Node> {
    let depth = depth(level);
    let mut groups: BTreeMap<&[&str], Vec<&Osd>> = BTreeMap::new();
    let paths: Vec<[&str; 3]> = osds.iter().map(|osd| path(osd)).collect();
    for (osd, path) in osds.iter().zip(&paths) {
        groups.entry(&path[..depth]).or_default().push(osd);
    }
    let mut domains = Vec::new();
    for (path, members) in groups {
        let name = path.iter().fold(0, |parent, part| fixed::hash_name(parent, part));
        match level {
            FailureDomain::Osd => domains.extend(members.iter().map(|osd| leaf(osd, names))),
            _ => domains.push(bucket(name, depth, &members, names)),
        }
    }
    domains
}

fn bucket(name: u64, depth: usize, members: &[&Osd], names: &Names) -> Node {
    let children: Vec<Node> = if depth == 3 {
        members.iter().map(|osd| leaf(osd, names)).collect()
    } else {
        let mut groups: BTreeMap<&str, Vec<&Osd>> = BTreeMap::new();
        for osd in members {
            groups.entry(path(osd)[depth]).or_default().push(osd);
        }
        groups.iter().map(|(part, osds)| bucket(fixed::hash_name(name, part), depth + 1, osds, names)).collect()
    };
    Node::Bucket { name, weight: children.iter().map(Node::weight).sum(), children }
}

/// An OSD's straws do not depend on where it stands: moved to another host, it keeps what it can.
fn leaf(osd: &Osd, names: &Names) -> Node {
    let name = names.get(&osd.id).unwrap_or(&osd.id);
    Node::Osd { name: fixed::hash(u64::from(name.0), 2), weight: osd.weight.into(), id: osd.id }
}
