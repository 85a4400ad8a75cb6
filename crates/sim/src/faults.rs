//! What can go wrong in a run, and the name each kind is counted under. When what happens is `plan`'s business, or that
//! of a moment that the plan lies in wait for.

use crate::bus::{Nanos, Node};
use crate::rebalance::Move;

/// One fault. Those that last end by themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An OSD dies and comes back. `power`: what it had not flushed is lost.
    Kill { osd: Pick, power: bool, back: Nanos, exited: Option<Nanos> },
    /// An OSD stands still.
    Pause { osd: Pick, lasts: Nanos },
    /// A metadata member dies and comes back.
    KillMember { leader: bool, member: usize, back: Nanos },
    /// Messages between an OSD and some others are lost, in one direction or both. `with`: a client shares its fate.
    Isolate { osd: Pick, with: Option<usize>, from: Whom, ways: Ways, lasts: Nanos },
    /// Messages between two metadata members are lost.
    SplitMembers { one: usize, other: usize, ways: Ways, lasts: Nanos },
    /// Messages between an OSD and some others take so much longer, in one direction or both. Their order stays.
    Lag { osd: Pick, from: Whom, ways: Ways, delay: Nanos, lasts: Nanos },
    /// A disk takes very long.
    SlowDisk { osd: Pick, delay: Nanos, lasts: Nanos },
    /// The whole network is bad.
    Weather { drop: u64, twice: u64, reorder: bool, delay: u64, delay_max: Nanos, lasts: Nanos },
    /// Another client takes a volume over, for itself or beside others that share it.
    Steal { volume: usize, shared: bool },
    /// A client's session ends without a word, and another takes the volume on the same node.
    Renew { client: usize },
    /// An OSD dies for good with its disk; an empty one takes its place in the machine.
    Lose { osd: Pick },
    /// Nothing goes wrong: an administrator gives the pool twice as many groups.
    Split,
    /// Everything loses its power at once.
    Blackout { back: Nanos },
    /// Nothing goes wrong: an administrator moves data.
    #[cfg_attr(not(test), expect(dead_code, reason = "no drawn plan moves data, only named scenarios do"))]
    Move(Move),
    /// A disk breaks its promises.
    Disk { osd: Pick, what: Ill },
    /// Two OSDs are stopped, and each starts again on the other's disk.
    Swap { one: usize, other: usize },
    /// Something on the way tells everybody that nobody listens at this OSD, which lives.
    Refuse { osd: Pick },
    /// An OSD's clock runs at another rate from now on, within what leases allow for: millionths.
    Drift { osd: Pick, rate: u64 },
    /// An OSD's calendar clock jumps by so many seconds.
    Jump { osd: Pick, seconds: i64 },
    /// It waits for a moment in the group in which this volume's work is concentrated, and happens then.
    When { moment: Moment, volume: usize, then: Box<Self> },
}

/// What a fault can wait for: it happens between an OSD that leads a group and one that comes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// The primary has just asked for a member to be taken into the in-sync set.
    Joins,
    /// A fill from nothing has just begun.
    Fills,
    /// A recovery of what changed has just begun.
    Returns,
    /// The primary is about to report that it has joined the layers of a snapshot that goes.
    Joined,
}

/// What can be wrong with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ill {
    /// Bits of so many blocks of data flip at rest.
    Rot(u32),
    /// So many blocks of data cannot be read until they are written again.
    Unreadable(u32),
    /// The next write of data lands on other data.
    Misdirected,
    /// The next write of data never reaches the disk, though it says so.
    Dropped,
    /// The next write fails.
    WriteError,
    /// The next sync fails, and what it should have kept may be gone.
    SyncError,
    /// No new room for so long.
    Full(Nanos),
    /// The OSD stops, and its log is damaged in the middle before it starts again.
    RottenLog,
    /// The OSD stops, and starts again on an image of its disk that is so old.
    RolledBack(Nanos),
}

/// Which OSD, decided when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pick {
    Index(usize),
    /// The primary of this PG at that moment.
    PrimaryOf(u32),
    /// Another in-sync member of this PG.
    ReplicaOf(u32),
    /// The primary of the PG in which this volume's work is concentrated.
    HotPrimary(usize),
    /// Another in-sync member of that PG.
    HotReplica(usize),
    /// The one that leads that PG when its primary is gone.
    HotHeir(usize),
    /// The OSD that leads at the moment that was waited for.
    Source,
    /// The OSD that comes to it then.
    Joiner,
}

/// The other side of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Osds,
    OneOsd(usize),
    Members,
    Clients,
    OneClient(usize),
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
    /// The moment has come: who they are is known now.
    pub(crate) fn aimed(mut self, source: usize, joiner: usize) -> Self {
        if let Self::Kill { osd, .. }
        | Self::Pause { osd, .. }
        | Self::Isolate { osd, .. }
        | Self::Lag { osd, .. }
        | Self::SlowDisk { osd, .. } = &mut self
        {
            match osd {
                Pick::Source => *osd = Pick::Index(source),
                Pick::Joiner => *osd = Pick::Index(joiner),
                _ => {}
            }
        }
        self
    }

    /// The name it is counted under.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Kill { power: true, .. } => "power cut of an OSD",
            Self::Kill { .. } => "kill of an OSD",
            Self::Pause { .. } => "pause of an OSD",
            Self::KillMember { leader: true, .. } => "kill of the metadata leader",
            Self::KillMember { .. } => "kill of a metadata member",
            Self::Isolate { with: Some(_), .. } => "partition with a client",
            Self::Isolate { ways: Ways::Both, .. } => "partition",
            Self::Isolate { .. } => "one-way partition",
            Self::SplitMembers { .. } => "partition of metadata members",
            Self::Lag { .. } => "slow connection",
            Self::SlowDisk { .. } => "slow disk",
            Self::Weather { .. } => "bad network",
            Self::Steal { .. } => "take-over of a volume",
            Self::Renew { .. } => "restart of a holder",
            Self::Lose { .. } => "loss of a disk",
            Self::Blackout { .. } => "power cut of everything",
            Self::Move(_) => "planned move",
            Self::Split => "split of groups",
            Self::Swap { .. } => "swapped disks",
            Self::Refuse { .. } => "forged refusal",
            Self::Drift { .. } => "clock drift",
            Self::Jump { .. } => "clock jump",
            Self::When { then, .. } => then.kind(),
            Self::Disk { what, .. } => match what {
                Ill::Rot(_) => "flipped bits",
                Ill::Unreadable(_) => "unreadable blocks",
                Ill::Misdirected => "misdirected write",
                Ill::Dropped => "dropped write",
                Ill::WriteError => "write error",
                Ill::SyncError => "sync error",
                Ill::Full(_) => "full disk",
                Ill::RottenLog => "damaged log",
                Ill::RolledBack(_) => "rolled-back disk",
            },
        }
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
        Whom::OneClient(index) => vec![Node::Client(index)],
        Whom::OsdsAndMembers => all_osds.chain(all_members).collect(),
        Whom::Everybody => all_osds.chain(all_members).chain(all_clients).collect(),
    }
}
