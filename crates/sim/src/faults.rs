//! What goes wrong in a run, and when: drawn from the seed before it begins, within what a quorum can repair.

use crate::bus::{MS, Nanos, Node, SECOND};
use crate::rng::Rng;

/// One fault. Those that last end by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An OSD dies and comes back. `power`: what it had not flushed is lost.
    Kill { osd: Pick, power: bool, back: Nanos, exited: Option<Nanos> },
    /// An OSD stands still.
    Pause { osd: Pick, lasts: Nanos },
    /// A metadata member dies and comes back.
    KillMember { leader: bool, member: usize, back: Nanos },
    /// Messages between an OSD and some others are lost, in one direction or both.
    Isolate { osd: Pick, from: Whom, ways: Ways, lasts: Nanos },
    /// Messages between two metadata members are lost.
    SplitMembers { one: usize, other: usize, ways: Ways, lasts: Nanos },
    /// A disk takes very long.
    SlowDisk { osd: Pick, delay: Nanos, lasts: Nanos },
    /// The whole network is bad.
    Weather { drop: u64, twice: u64, reorder: bool, delay: u64, delay_max: Nanos, lasts: Nanos },
    /// Another client takes a volume over.
    Steal { volume: usize },
    /// An OSD dies for good with its disk; an empty one takes its place in the machine.
    Lose { osd: Pick },
    /// Everything loses its power at once.
    Blackout { back: Nanos },
}

/// Which OSD, decided when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Index(usize),
    /// The primary of this PG at that moment.
    PrimaryOf(u32),
    /// Another in-sync member of this PG.
    ReplicaOf(u32),
}

/// The other side of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Osds,
    OneOsd(usize),
    Members,
    Clients,
    OsdsAndMembers,
    Everybody,
}

/// The direction of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ways {
    Both,
    Inbound,
    Outbound,
}

impl Fault {
    /// The name it is counted under.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kill { power: true, .. } => "power cut of an OSD",
            Self::Kill { .. } => "kill of an OSD",
            Self::Pause { .. } => "pause of an OSD",
            Self::KillMember { leader: true, .. } => "kill of the metadata leader",
            Self::KillMember { .. } => "kill of a metadata member",
            Self::Isolate { ways: Ways::Both, .. } => "partition",
            Self::Isolate { .. } => "one-way partition",
            Self::SplitMembers { .. } => "partition of metadata members",
            Self::SlowDisk { .. } => "slow disk",
            Self::Weather { .. } => "bad network",
            Self::Steal { .. } => "take-over of a volume",
            Self::Lose { .. } => "loss of a disk",
            Self::Blackout { .. } => "power cut of everything",
        }
    }
}

/// Everything that goes wrong between two moments.
pub(crate) fn plan(rng: &mut Rng, osds: usize, members: usize, from: Nanos, to: Nanos) -> Vec<(Nanos, Fault)> {
    let count = rng.between(5, 9);
    let mut plan = Vec::new();
    // One failover at least: some primary dies or stands still.
    let pg = rng.below(8) as u32;
    let at = rng.between(from, (from + to) / 2);
    let first = if rng.chance(700) {
        kill(rng, Pick::PrimaryOf(pg))
    } else {
        Fault::Pause { osd: Pick::PrimaryOf(pg), lasts: rng.between(2500 * MS, 8 * SECOND) }
    };
    plan.push((at, first));
    for _ in 1..count {
        let at = rng.between(from, to);
        plan.push((at, draw(rng, osds, members)));
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn kill(rng: &mut Rng, osd: Pick) -> Fault {
    let exited = if rng.chance(700) { Some(rng.between(2 * MS, 60 * MS)) } else { None };
    let back = if rng.chance(300) { rng.between(50 * MS, 600 * MS) } else { rng.between(SECOND, 12 * SECOND) };
    Fault::Kill { osd, power: rng.chance(500), back, exited }
}

fn pick(rng: &mut Rng, osds: usize) -> Pick {
    match rng.below(4) {
        0 => Pick::PrimaryOf(rng.below(8) as u32),
        1 => Pick::ReplicaOf(rng.below(8) as u32),
        _ => Pick::Index(rng.below(osds as u64) as usize),
    }
}

fn lasts(rng: &mut Rng) -> Nanos {
    if rng.chance(300) { rng.between(100 * MS, SECOND) } else { rng.between(SECOND, 10 * SECOND) }
}

fn draw(rng: &mut Rng, osds: usize, members: usize) -> Fault {
    let osd = pick(rng, osds);
    match rng.below(100) {
        0..24 => kill(rng, osd),
        24..36 => Fault::Pause { osd, lasts: lasts(rng) },
        36..46 => {
            let (leader, member) = (rng.chance(600), rng.below(members as u64) as usize);
            Fault::KillMember { leader, member, back: rng.between(200 * MS, 6 * SECOND) }
        }
        46..66 => {
            let from = match rng.below(6) {
                0 => Whom::Osds,
                1 => Whom::Members,
                2 => Whom::Clients,
                3 => Whom::OsdsAndMembers,
                4 => Whom::Everybody,
                _ => Whom::OneOsd(rng.below(osds as u64) as usize),
            };
            let ways = *rng.pick(&[Ways::Both, Ways::Both, Ways::Inbound, Ways::Outbound]);
            Fault::Isolate { osd, from, ways, lasts: lasts(rng) }
        }
        66..72 => {
            let one = rng.below(members as u64) as usize;
            let ways = *rng.pick(&[Ways::Both, Ways::Inbound, Ways::Outbound]);
            Fault::SplitMembers { one, other: (one + 1) % members, ways, lasts: lasts(rng) }
        }
        72..79 => Fault::SlowDisk { osd, delay: rng.between(100 * MS, 2 * SECOND), lasts: lasts(rng) },
        79..87 => Fault::Weather {
            drop: rng.below(300),
            twice: rng.below(300),
            reorder: rng.chance(500),
            delay: rng.below(200),
            delay_max: rng.between(5 * MS, 5 * SECOND),
            lasts: rng.between(500 * MS, 6 * SECOND),
        },
        87..91 => Fault::Lose { osd },
        91..97 => Fault::Steal { volume: rng.below(2) as usize },
        _ => Fault::Blackout { back: rng.between(500 * MS, 4 * SECOND) },
    }
}

/// The nodes on the other side of a cut.
pub(crate) fn others(whom: Whom, me: usize, osds: usize, members: usize, clients: usize) -> Vec<Node> {
    let all_osds = (0..osds).filter(|index| *index != me).map(Node::Osd);
    let all_members = (0..members).map(Node::Meta);
    let all_clients = (0..clients).map(Node::Client);
    match whom {
        Whom::Osds => all_osds.collect(),
        Whom::OneOsd(index) => all_osds.filter(|node| *node == Node::Osd(index)).collect(),
        Whom::Members => all_members.collect(),
        Whom::Clients => all_clients.collect(),
        Whom::OsdsAndMembers => all_osds.chain(all_members).collect(),
        Whom::Everybody => all_osds.chain(all_members).chain(all_clients).collect(),
    }
}
