//! When what goes wrong: drawn from the seed before the run begins. Two thirds of the runs have a script in them, a
//! sequence that leads to one of the situations that have cost other systems data, with chance in its times; around it,
//! and in the other third, anything may happen at any time.

use crate::Options;
use crate::bus::{MS, Nanos, SECOND};
use crate::faults::{Fault, Ill, Moment, Pick, Ways, Whom};
use crate::rng::Rng;

/// What goes wrong, and how long after the beginning.
pub(crate) type Plan = Vec<(Nanos, Fault)>;

/// How big the world is.
#[derive(Clone, Copy, Debug)]
struct Shape {
    osds: usize,
    members: usize,
}

/// The volume that one client holds alone, and who that is.
pub(crate) const ALONE: (usize, usize) = (0, 0);
/// The volume that two clients share, and who they are.
pub(crate) const SHARED: (usize, [usize; 2]) = (1, [1, READER]);
/// A client that only reads while it shares a volume: where writes hang, it goes on and sees what it may not see.
pub(crate) const READER: usize = 3;

/// When clients are at work and things begin to go wrong.
pub(crate) const START: Nanos = 5 * SECOND;

/// What goes wrong in the run of a seed.
pub(crate) fn of_seed(seed: u64, options: &Options) -> Plan {
    let shape = Shape { osds: options.osds, members: options.members };
    draw(&mut Rng::new(seed).fork(2), shape, START, START + options.safety)
}

/// Everything that goes wrong between two moments.
fn draw(rng: &mut Rng, shape: Shape, from: Nanos, to: Nanos) -> Plan {
    let mut plan = Vec::new();
    let noise = if rng.chance(650) {
        let at = rng.between(from + SECOND, (from + to) / 2);
        plan.extend(script(rng, at));
        rng.between(0, 5)
    } else {
        // One failover at least: some primary dies or stands still.
        let at = rng.between(from, (from + to) / 2);
        let osd = Pick::PrimaryOf(rng.below(8) as u32);
        let lasts = rng.between(2500 * MS, 8 * SECOND);
        plan.push((at, if rng.chance(700) { kill(rng, osd) } else { Fault::Pause { osd, lasts } }));
        rng.between(5, 8)
    };
    for _ in 0..noise {
        let at = rng.between(from, to);
        plan.push((at, any(rng, shape)));
    }
    plan.sort_by_key(|(at, _)| *at);
    plan
}

fn kill(rng: &mut Rng, osd: Pick) -> Fault {
    let exited = if rng.chance(700) { Some(rng.between(2 * MS, 60 * MS)) } else { None };
    let back = if rng.chance(300) { rng.between(50 * MS, 600 * MS) } else { rng.between(SECOND, 12 * SECOND) };
    Fault::Kill { osd, power: rng.chance(500), back, exited }
}

fn quick(rng: &mut Rng, osd: Pick) -> Fault {
    let back = rng.between(30 * MS, 500 * MS);
    Fault::Kill { osd, power: rng.chance(500), back, exited: Some(rng.between(2 * MS, 20 * MS)) }
}

/// It is back before anybody is sure that it was gone, and no parent says that it was.
fn blink(rng: &mut Rng, osd: Pick) -> Fault {
    Fault::Kill { osd, power: rng.chance(500), back: rng.between(5 * MS, 120 * MS), exited: None }
}

/// The machine loses its power and is back at once: nobody hears a refusal or a reset, only silence.
fn outage(rng: &mut Rng, osd: Pick, at: Nanos) -> (Plan, Nanos) {
    let lasts = rng.between(10 * MS, 150 * MS);
    let silence = Fault::Isolate { osd, with: None, from: Whom::Everybody, ways: Ways::Both, lasts };
    let death = Fault::Kill { osd, power: rng.chance(500), back: lasts, exited: None };
    (vec![(at, silence), (at, death)], at + lasts)
}

fn lag(rng: &mut Rng, osd: Pick) -> Fault {
    let from = *rng.pick(&[Whom::Osds, Whom::Osds, Whom::Members, Whom::Clients, Whom::Everybody]);
    let ways = *rng.pick(&[Ways::Both, Ways::Inbound, Ways::Outbound]);
    Fault::Lag { osd, from, ways, delay: rng.between(20 * MS, 3 * SECOND), lasts: rng.between(100 * MS, 4 * SECOND) }
}

fn when(moment: Moment, volume: usize, fault: Fault) -> Fault {
    Fault::When { moment, volume, then: Box::new(fault) }
}

fn pick(rng: &mut Rng, osds: usize) -> Pick {
    match rng.below(5) {
        0 => Pick::PrimaryOf(rng.below(8) as u32),
        1 => Pick::ReplicaOf(rng.below(8) as u32),
        2 => *rng.pick(&[Pick::HotPrimary(0), Pick::HotReplica(0), Pick::HotPrimary(1), Pick::HotReplica(1)]),
        _ => Pick::Index(rng.below(osds as u64) as usize),
    }
}

fn lasts(rng: &mut Rng) -> Nanos {
    match rng.below(10) {
        0..3 => rng.between(100 * MS, SECOND),
        9 => rng.between(10 * SECOND, 60 * SECOND),
        _ => rng.between(SECOND, 10 * SECOND),
    }
}

fn any(rng: &mut Rng, shape: Shape) -> Fault {
    let osd = pick(rng, shape.osds);
    match rng.below(125) {
        122..125 => Fault::Renew { client: rng.below(4) as usize },
        118..120 => lag(rng, osd),
        120..122 => blink(rng, osd),
        116..118 => Fault::Refuse { osd },
        100..112 => ill(rng, osd),
        112..114 => Fault::Drift { osd, rate: rng.between(976_000, 1_024_000) },
        114 => Fault::Jump { osd, seconds: rng.between(0, 200_000) as i64 - 100_000 },
        115 => {
            let one = rng.below(shape.osds as u64) as usize;
            Fault::Swap { one, other: (one + 1 + rng.below(shape.osds as u64 - 1) as usize) % shape.osds }
        }
        0..22 => kill(rng, osd),
        22..34 => Fault::Pause { osd, lasts: lasts(rng) },
        34..44 => {
            let (leader, member) = (rng.chance(600), rng.below(shape.members as u64) as usize);
            Fault::KillMember { leader, member, back: rng.between(200 * MS, 6 * SECOND) }
        }
        44..64 => {
            let from = match rng.below(7) {
                0 => Whom::Osds,
                1 => Whom::Members,
                2 => Whom::Clients,
                3 => Whom::OsdsAndMembers,
                4 => Whom::Everybody,
                5 => Whom::OneClient(rng.below(4) as usize),
                _ => Whom::OneOsd(rng.below(shape.osds as u64) as usize),
            };
            let ways = *rng.pick(&[Ways::Both, Ways::Both, Ways::Inbound, Ways::Outbound]);
            let with = rng.chance(250).then(|| rng.below(4) as usize);
            Fault::Isolate { osd, with, from, ways, lasts: lasts(rng) }
        }
        64..70 => {
            let one = rng.below(shape.members as u64) as usize;
            let ways = *rng.pick(&[Ways::Both, Ways::Inbound, Ways::Outbound]);
            Fault::SplitMembers { one, other: (one + 1) % shape.members, ways, lasts: lasts(rng) }
        }
        70..77 => Fault::SlowDisk { osd, delay: rng.between(100 * MS, 2 * SECOND), lasts: lasts(rng) },
        77..85 => weather(rng),
        85..89 => Fault::Lose { osd },
        89..97 => Fault::Steal { volume: rng.below(2) as usize, shared: rng.chance(400) },
        _ => Fault::Blackout { back: rng.between(500 * MS, 4 * SECOND) },
    }
}

fn ill(rng: &mut Rng, osd: Pick) -> Fault {
    let blocks = rng.between(1, 8) as u32;
    let what = match rng.below(9) {
        0 => Ill::Rot(blocks),
        1 => Ill::Unreadable(blocks),
        2 => Ill::Misdirected,
        3 => Ill::Dropped,
        4 => Ill::WriteError,
        5 => Ill::SyncError,
        6 => Ill::Full(rng.between(SECOND, 5 * SECOND)),
        7 => Ill::RottenLog,
        _ => Ill::RolledBack(rng.between(200 * MS, 6 * SECOND)),
    };
    Fault::Disk { osd, what }
}

fn weather(rng: &mut Rng) -> Fault {
    Fault::Weather {
        drop: rng.below(300),
        twice: rng.below(300),
        reorder: rng.chance(500),
        delay: rng.below(200),
        delay_max: rng.between(5 * MS, 5 * SECOND),
        lasts: rng.between(500 * MS, 6 * SECOND),
    }
}

/// One of the situations, beginning about then. Each has a failover in it.
fn script(rng: &mut Rng, at: Nanos) -> Plan {
    match rng.below(16) {
        15 => fenced_after_a_join(rng, at),
        14 => succeeded_on_its_node(rng, at),
        10 => rot_is_read(rng, at),
        11 => late_grants(rng, at),
        12 => log_forgets_first(rng, at),
        13 => lonely_end(rng, at),
        0 => island(rng, at),
        1 => taken_over_while_cut_off(rng, at),
        2 => deaf(rng, at),
        3 => reply_lost(rng, at),
        4 => open_entries(rng, at),
        5 => long_absence(rng, at),
        6 => forgetful_grantor(rng, at),
        7 => joins_under_unknown_outcomes(rng, at),
        8 => filled_under_load(rng, at),
        _ => inherited_and_fenced(rng, at),
    }
}

fn sharer(rng: &mut Rng) -> usize {
    if rng.chance(750) { READER } else { *rng.pick(&SHARED.1) }
}

/// The old primary is cut off from everybody but one of the clients that share the volume; the other goes on at the
/// new primary.
fn island(rng: &mut Rng, at: Nanos) -> Plan {
    let (osd, with) = (Pick::HotPrimary(SHARED.0), Some(sharer(rng)));
    let cut = Fault::Isolate { osd, with, from: Whom::Everybody, ways: Ways::Both, lasts: rng.between(2, 6) * SECOND };
    let mut plan = vec![(at, cut)];
    if rng.chance(500) {
        // Its own disk is slow meanwhile: it learns late of what it may not answer any more.
        plan.push((at, Fault::SlowDisk { osd, delay: rng.between(100 * MS, 800 * MS), lasts: 3 * SECOND }));
    }
    plan
}

/// Likewise, and the volume is taken over by somebody else meanwhile.
fn taken_over_while_cut_off(rng: &mut Rng, at: Nanos) -> Plan {
    let osd = Pick::HotPrimary(ALONE.0);
    let from = *rng.pick(&[Whom::Everybody, Whom::Members, Whom::Members]);
    let lasts = rng.between(4 * SECOND, 9 * SECOND);
    let cut = Fault::Isolate { osd, with: Some(ALONE.1), from, ways: Ways::Both, lasts };
    let steal = Fault::Steal { volume: ALONE.0, shared: rng.chance(300) };
    vec![(at, cut), (at + rng.between(50 * MS, 2 * SECOND), steal), (at + lasts + SECOND, quick(rng, osd))]
}

/// A holder restarts while its writes are still on their way; they come after those of the next session.
fn succeeded_on_its_node(rng: &mut Rng, at: Nanos) -> Plan {
    let weather = Fault::Weather {
        drop: rng.below(50),
        twice: rng.below(300),
        reorder: true,
        delay: rng.between(100, 500),
        delay_max: rng.between(200 * MS, 5 * SECOND),
        lasts: rng.between(300 * MS, 2 * SECOND),
    };
    let client = if rng.chance(700) { ALONE.1 } else { SHARED.1[0] };
    let mut plan = vec![(at, weather), (at + rng.between(50 * MS, SECOND), Fault::Renew { client })];
    if rng.chance(500) {
        plan.push((at + rng.below(SECOND), kill(rng, Pick::HotPrimary(ALONE.0))));
    }
    plan
}

/// The primary and a client hear nothing of the metadata service, and everything of the other OSDs.
fn deaf(rng: &mut Rng, at: Nanos) -> Plan {
    let (osd, with) = (Pick::HotPrimary(SHARED.0), Some(sharer(rng)));
    let ways = *rng.pick(&[Ways::Both, Ways::Inbound]);
    vec![(at, Fault::Isolate { osd, with, from: Whom::Members, ways, lasts: rng.between(7, 11) * SECOND })]
}

/// Grants are long on their way, and their holder is cut off with a client before they arrive.
fn late_grants(rng: &mut Rng, at: Nanos) -> Plan {
    let (osd, with) = (Pick::HotPrimary(SHARED.0), Some(sharer(rng)));
    let (delay, lasts) = (rng.between(500 * MS, 3 * SECOND), rng.between(300 * MS, 900 * MS));
    let slow = Fault::Lag { osd, from: Whom::Osds, ways: Ways::Inbound, delay, lasts };
    let away = rng.between(4, 7) * SECOND;
    let cut = Fault::Isolate { osd, with, from: Whom::Everybody, ways: Ways::Both, lasts: away };
    vec![(at, slow), (at + rng.between(50 * MS, lasts), cut)]
}

/// One client's answers are lost; members come back meanwhile, and lead before it has been answered.
fn reply_lost(rng: &mut Rng, at: Nanos) -> Plan {
    let osd = Pick::HotPrimary(SHARED.0);
    let from = Whom::OneClient(SHARED.1[0]);
    let cut = Fault::Isolate { osd, with: None, from, ways: Ways::Outbound, lasts: rng.between(4, 8) * SECOND };
    let away = at.saturating_sub(rng.between(0, 2 * SECOND));
    let returns = at + rng.between(300 * MS, 2 * SECOND);
    let back = returns - away;
    let power = rng.chance(500);
    let heir = if rng.chance(700) { Pick::HotHeir(SHARED.0) } else { Pick::HotReplica(SHARED.0) };
    let replica = Fault::Kill { osd: heir, power, back, exited: Some(5 * MS) };
    let dies = returns + rng.between(500 * MS, 3 * SECOND);
    let mut plan = vec![(away, replica), (at, cut), (dies, kill(rng, osd))];
    if rng.chance(500) {
        plan.push((dies + rng.between(0, SECOND), kill(rng, osd)));
    }
    plan
}

/// One client's answers are lost while another writes on in the same group, until no log has its requests any more;
/// then whoever leads next knows only what its disk remembers.
fn log_forgets_first(rng: &mut Rng, at: Nanos) -> Plan {
    let (osd, heir) = (Pick::HotPrimary(SHARED.0), Pick::HotHeir(SHARED.0));
    let from = Whom::OneClient(SHARED.1[0]);
    let cut = Fault::Isolate { osd, with: None, from, ways: Ways::Outbound, lasts: rng.between(5, 9) * SECOND };
    let mut plan = vec![(at - SECOND, Fault::Steal { volume: SHARED.0, shared: true }), (at, cut)];
    let later = at + rng.between(1500 * MS, 4 * SECOND);
    if rng.chance(400) {
        plan.push((later, Fault::Blackout { back: rng.between(300 * MS, SECOND) }));
    } else {
        plan.extend(outage(rng, heir, later).0);
        plan.push((later + rng.between(400 * MS, 1500 * MS), kill(rng, osd)));
    }
    plan
}

/// A primary orders entries that nobody else gets, for a client that is fenced before it can say them again; then it
/// dies, and comes back with a log that ends like nobody else's.
fn lonely_end(rng: &mut Rng, at: Nanos) -> Plan {
    let osd = Pick::HotPrimary(ALONE.0);
    let ways = *rng.pick(&[Ways::Both, Ways::Outbound]);
    let cut = Fault::Isolate { osd, with: None, from: Whom::Osds, ways, lasts: rng.between(600 * MS, 3 * SECOND) };
    let dies = at + rng.between(40 * MS, 500 * MS);
    let (power, back) = (rng.chance(300), rng.between(500 * MS, 4 * SECOND));
    let death = Fault::Kill { osd, power, back, exited: Some(rng.between(2 * MS, 20 * MS)) };
    let steal = Fault::Steal { volume: ALONE.0, shared: rng.chance(200) };
    vec![(at, cut), (dies, death), (dies.saturating_sub(30 * MS) + rng.below(40 * MS), steal)]
}

/// Entries stand open on slow disks while their primary dies.
fn open_entries(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = *rng.pick(&[ALONE.0, SHARED.0]);
    let lasts = rng.between(SECOND, 3 * SECOND);
    let delay = rng.between(100 * MS, 900 * MS);
    let slow = Fault::SlowDisk { osd: Pick::HotReplica(volume), delay, lasts };
    let dies = at + rng.between(100 * MS, lasts);
    let osd = if rng.chance(600) { Pick::HotPrimary(volume) } else { Pick::HotReplica(volume) };
    let mut plan = vec![(at, slow), (dies, kill(rng, osd))];
    if rng.chance(500) {
        plan.push((dies + rng.between(0, 2 * SECOND), kill(rng, Pick::HotPrimary(volume))));
    }
    plan
}

/// A member is away for long while much is written, and whoever keeps account of it restarts.
fn long_absence(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = *rng.pick(&[ALONE.0, SHARED.0]);
    let back = rng.between(6 * SECOND, 10 * SECOND);
    let away = Fault::Kill { osd: Pick::HotReplica(volume), power: rng.chance(500), back, exited: Some(5 * MS) };
    let mut plan = vec![(at, away)];
    for osd in [Pick::HotPrimary(volume), Pick::HotReplica(volume), Pick::HotPrimary(volume)] {
        plan.push((at + rng.between(3 * SECOND, back + SECOND), quick(rng, osd)));
    }
    plan
}

/// A grantor restarts, unnoticed, just when the holder of its lease is cut off with a client.
fn forgetful_grantor(rng: &mut Rng, at: Nanos) -> Plan {
    let (osd, with) = (Pick::HotPrimary(SHARED.0), Some(sharer(rng)));
    let lasts = rng.between(2, 5) * SECOND;
    let cut = Fault::Isolate { osd, with, from: Whom::Everybody, ways: Ways::Both, lasts };
    if rng.chance(650) {
        let (mut plan, back) = outage(rng, Pick::HotHeir(SHARED.0), at);
        plan.push((at.saturating_sub(100 * MS) + rng.below(back + 100 * MS - at), cut));
        // Something on the way says that nobody listens at the holder any more: it is replaced at once.
        plan.push((back + rng.between(20 * MS, 600 * MS), Fault::Refuse { osd }));
        return plan;
    }
    let mut plan = vec![(at, quick(rng, Pick::HotReplica(SHARED.0)))];
    plan.push((at + rng.below(700 * MS), cut));
    if rng.chance(500) {
        plan.push((at + rng.below(700 * MS), quick(rng, Pick::HotReplica(SHARED.0))));
    }
    plan
}

/// Members come back while the metadata service loses answers, and a primary dies in the middle of it.
fn joins_under_unknown_outcomes(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = *rng.pick(&[ALONE.0, SHARED.0]);
    let (primary, replica) = (Pick::HotPrimary(volume), Pick::HotReplica(volume));
    let mut plan = vec![(at, quick(rng, replica))];
    if rng.chance(600) {
        // What came of the proposal that takes a member in is heard of by nobody who goes on in the old configuration:
        // the primary, a client and the other member. Whoever heard of it would refuse to go on.
        let lasts = rng.between(SECOND, 3 * SECOND);
        let holder = if volume == ALONE.0 { ALONE.1 } else { SHARED.1[0] };
        for (osd, with) in [(Pick::Source, Some(holder)), (replica, None)] {
            let cut = Fault::Isolate { osd, with, from: Whom::Members, ways: Ways::Inbound, lasts };
            plan.push((at, when(Moment::Joins, volume, cut)));
        }
        if rng.chance(500) {
            let delay = rng.between(400 * MS, 1400 * MS);
            plan.push((at, when(Moment::Joins, volume, Fault::SlowDisk { osd: Pick::Joiner, delay, lasts })));
        }
        if rng.chance(500) {
            plan.push((at + rng.between(2 * SECOND, 4 * SECOND), kill(rng, primary)));
        }
        return plan;
    }
    for _ in 0..2 {
        let ways = *rng.pick(&[Ways::Both, Ways::Inbound, Ways::Inbound]);
        let lasts = rng.between(300 * MS, 3 * SECOND);
        let cut = Fault::Isolate { osd: primary, with: None, from: Whom::Members, ways, lasts };
        let when = at + rng.between(100 * MS, 2 * SECOND);
        plan.push((when, cut));
        if rng.chance(500) {
            // Another member does not hear of it either, and goes on in the old configuration.
            plan.push((when, Fault::Isolate { osd: replica, with: None, from: Whom::Members, ways, lasts }));
        }
        let back = rng.between(200 * MS, SECOND);
        plan.push((at + rng.below(3 * SECOND), Fault::KillMember { leader: true, member: 0, back }));
    }
    let delay = rng.between(50 * MS, 500 * MS);
    plan.push((at + rng.below(SECOND), Fault::SlowDisk { osd: replica, delay, lasts: 3 * SECOND }));
    plan.push((at + rng.between(SECOND, 4 * SECOND), kill(rng, primary)));
    plan
}

/// A disk is lost, and filled elsewhere while messages are lost and doubled and somebody else restarts.
fn filled_under_load(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = *rng.pick(&[ALONE.0, SHARED.0]);
    let osd = if rng.chance(500) { Pick::HotPrimary(volume) } else { Pick::HotReplica(volume) };
    let bad = Fault::Weather {
        drop: rng.below(200),
        twice: rng.below(300),
        reorder: rng.chance(300),
        delay: rng.below(200),
        delay_max: rng.between(5 * MS, 400 * MS),
        lasts: rng.between(SECOND, 4 * SECOND),
    };
    let mut plan = vec![(at, Fault::Lose { osd })];
    if rng.chance(600) {
        plan.push((at, when(Moment::Fills, volume, bad)));
    } else {
        plan.push((at + rng.between(0, 4 * SECOND), bad));
    }
    if rng.chance(500) {
        plan.push((at + rng.between(3 * SECOND, 7 * SECOND), quick(rng, Pick::HotPrimary(volume))));
    }
    plan
}

/// Blocks rot under a primary; then it is the source that somebody is brought back from.
fn rot_is_read(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = *rng.pick(&[ALONE.0, SHARED.0]);
    let osd = if rng.chance(700) { Pick::HotPrimary(volume) } else { Pick::HotReplica(volume) };
    let blocks = rng.between(4, 16) as u32;
    let what = *rng.pick(&[Ill::Rot(blocks), Ill::Unreadable(blocks), Ill::Misdirected, Ill::Dropped]);
    let dies = at + rng.between(SECOND, 4 * SECOND);
    let mut plan = vec![(at, Fault::Disk { osd, what }), (dies, kill(rng, Pick::HotReplica(volume)))];
    if rng.chance(500) {
        plan.push((dies + rng.between(SECOND, 3 * SECOND), kill(rng, Pick::HotPrimary(volume))));
    }
    plan
}

/// A primary has joined what a snapshot left, the service hears of it late, and meanwhile the volume is taken over: what
/// the old holder has open is cut, and the new one writes.
fn fenced_after_a_join(rng: &mut Rng, at: Nanos) -> Plan {
    let volume = ALONE.0;
    let (delay, lasts) = (rng.between(100 * MS, 1200 * MS), rng.between(SECOND, 3 * SECOND));
    let late = Fault::Lag { osd: Pick::Source, from: Whom::Members, ways: Ways::Outbound, delay, lasts };
    let open = Fault::SlowDisk { osd: Pick::HotReplica(volume), delay: rng.between(50 * MS, 400 * MS), lasts };
    let steal = Fault::Steal { volume, shared: rng.chance(300) };
    let mut plan: Plan =
        [late, open, steal].into_iter().map(|fault| (at, when(Moment::Joined, volume, fault))).collect();
    plan.push((at + rng.between(SECOND, 5 * SECOND), kill(rng, Pick::HotPrimary(volume))));
    plan
}

/// Writes of a holder are acknowledged, their primary dies, and the volume is taken over at once.
fn inherited_and_fenced(rng: &mut Rng, at: Nanos) -> Plan {
    let osd = Pick::HotPrimary(ALONE.0);
    let steal = Fault::Steal { volume: ALONE.0, shared: rng.chance(300) };
    let when = at.saturating_sub(50 * MS) + rng.below(400 * MS);
    let mut plan = vec![(at, kill(rng, osd)), (when, steal)];
    if rng.chance(400) {
        let delay = rng.between(100 * MS, 600 * MS);
        plan.push((
            at.saturating_sub(SECOND),
            Fault::SlowDisk { osd: Pick::HotReplica(ALONE.0), delay, lasts: 2 * SECOND },
        ));
    }
    plan
}
