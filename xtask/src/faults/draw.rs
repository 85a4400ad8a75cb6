//! The kinds of fault: what is done to which host, how it ends, and how long a client may wait for it.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cairn_tests::{Cut, Hosts, Rng, SMALL_DISK, Signal, capture, until};
use rustix::process::{Pid, Signal as KillSignal, kill_process};

use super::{CLIENT, SERVERS};

/// A kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: what a client waits for anyway.
    Nothing,
    /// kill -9 of an OSD.
    KillOsd,
    /// SIGSTOP of an OSD, and SIGCONT.
    StopOsd,
    /// kill -9 of the metadata leader.
    KillLeader,
    /// SIGSTOP of the metadata leader, and SIGCONT: it wakes up as one that believes to lead.
    StopLeader,
    /// SIGSTOP of a metadata member, and SIGCONT.
    StopMember,
    /// kill -9 of the attach daemon under its devices.
    KillAttach,
    /// kill -9 of the keeper.
    KillKeeper,
    /// A host loses power, and comes back.
    CrashHost,
    /// A host hears nobody, and nobody hears it.
    CutHost,
    /// A host hears nobody.
    DeafHost,
    /// Nobody hears a host.
    MuteHost,
    /// Two hosts do not reach each other; everybody else reaches both.
    CutPair,
    /// The filesystem under an OSD is full.
    FullDisk,
    /// An OSD's disk fails some reads.
    ReadError,
    /// An OSD's disk returns flipped bits.
    BitFlip,
    /// An OSD's disk fails a write.
    WriteError,
    /// An OSD's disk fails a flush.
    SyncError,
    /// An OSD's disk takes its time.
    SlowDisk,
}

use Fault::{
    BitFlip, CrashHost, CutHost, CutPair, DeafHost, FullDisk, KillAttach, KillKeeper, KillLeader, KillOsd, MuteHost,
    Nothing, ReadError, SlowDisk, StopLeader, StopMember, StopOsd, SyncError, WriteError,
};

const ALL: [Fault; 19] = [
    Nothing, KillOsd, StopOsd, KillLeader, StopLeader, StopMember, KillAttach, KillKeeper, CrashHost, CutHost,
    DeafHost, MuteHost, CutPair, FullDisk, ReadError, BitFlip, WriteError, SyncError, SlowDisk,
];

/// Whom it happens to, and chance.
pub(crate) struct Stage<'a> {
    pub(crate) hosts: &'a Hosts,
    pub(crate) rng: &'a mut Rng,
    pub(crate) host: Option<usize>,
}

/// A fault under way.
pub(crate) struct Injected {
    /// Who suffers it.
    pub(crate) on: String,
    /// For how long.
    pub(crate) hold: Duration,
    /// Asked at the end of that time: it fails when the fault had no effect.
    pub(crate) proof: Deed,
    /// Ends it.
    pub(crate) heal: Deed,
}

/// What is done or asked when its time has come.
pub(crate) type Deed = Box<dyn FnOnce(&Hosts) -> Result<()>>;

/// All kinds, or those that were asked for by name.
pub(crate) fn kinds(only: &[String]) -> Result<Vec<Fault>> {
    for word in only {
        if ALL.iter().all(|fault| fault.word() != word) {
            let known: Vec<&str> = ALL.iter().map(|fault| fault.word()).collect();
            bail!("there is no fault `{word}`; there are {}", known.join(", "));
        }
    }
    Ok(ALL.into_iter().filter(|fault| only.is_empty() || only.iter().any(|word| word == fault.word())).collect())
}

impl Fault {
    /// As the table names it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Nothing => "nothing",
            KillOsd => "kill-osd",
            StopOsd => "stop-osd",
            KillLeader => "kill-leader",
            StopLeader => "stop-leader",
            StopMember => "stop-member",
            KillAttach => "kill-attach",
            KillKeeper => "kill-keeper",
            CrashHost => "crash-host",
            CutHost => "cut-host",
            DeafHost => "deaf-host",
            MuteHost => "mute-host",
            CutPair => "cut-pair",
            FullDisk => "full-disk",
            ReadError => "read-error",
            BitFlip => "bit-flip",
            WriteError => "write-error",
            SyncError => "sync-error",
            SlowDisk => "slow-disk",
        }
    }

    /// How long a client may wait. A host that vanishes may be the metadata leader's too, and then an election comes
    /// before anything can be decided about its OSD; writes to a full OSD wait until there is room.
    pub(crate) fn bar(self, hold: Duration) -> Duration {
        match self {
            Nothing | KillLeader | StopLeader | StopMember | KillKeeper => Duration::from_millis(250),
            KillOsd => Duration::from_millis(500),
            ReadError | BitFlip | WriteError | SyncError => Duration::from_secs(1),
            StopOsd | KillAttach | SlowDisk => Duration::from_secs(3),
            CrashHost | CutHost | DeafHost | MuteHost | CutPair => Duration::from_secs(5),
            FullDisk => hold + Duration::from_secs(2),
        }
    }

    /// What a wait may not exceed, on the noisiest machine: ten times the bar, not counting how long a disk was full.
    pub(crate) fn limit(self, hold: Duration) -> Duration {
        let waits = if self == FullDisk { hold } else { Duration::ZERO };
        waits + (self.bar(hold) - waits) * 10
    }

    /// Whether the attach daemon of the host dies of it, with the devices that it shows.
    pub(crate) fn ends_devices_of(self, rng: &mut Rng) -> Option<usize> {
        (self == CrashHost).then(|| a_server(rng))
    }

    /// Does it. `host`: where, when that was drawn already.
    pub(crate) fn inject(self, stage: Stage<'_>) -> Result<Injected> {
        let Stage { hosts, rng, host } = stage;
        let host = host.unwrap_or_else(|| a_server(rng));
        let name = |host: usize| format!("host {}", hosts.name(host));
        match self {
            Nothing => Ok(Injected::over("-", 3000)),
            KillOsd => killed(hosts, host, "osd-0"),
            KillLeader => {
                let (host, role) = hosts.leader(CLIENT)?;
                let old = hosts.pid(host, &role)?;
                let mut injected = killed(hosts, host, &role)?;
                injected.proof = Box::new(move |hosts| another_leads(hosts, old));
                Ok(injected)
            }
            StopLeader => {
                let (host, role) = hosts.leader(CLIENT)?;
                let old = hosts.pid(host, &role)?;
                let mut injected = stopped(hosts, rng, host, &role)?;
                let sleeps = injected.proof;
                // It sleeps still, and they have gone on without it.
                injected.proof = Box::new(move |hosts| another_leads(hosts, old).and_then(|()| sleeps(hosts)));
                Ok(injected)
            }
            StopMember => stopped(hosts, rng, host, &format!("meta-{}", host + 1)),
            KillAttach => killed(hosts, CLIENT, "attach"),
            KillKeeper => killed(hosts, CLIENT, "keeper"),
            StopOsd => stopped(hosts, rng, host, "osd-0"),
            CrashHost => {
                hosts.crash(host)?;
                let hold = Duration::from_millis(1000 + rng.below(4000));
                let proof: Deed = Box::new(move |hosts| lost_packets(hosts, host));
                Ok(Injected { on: name(host), hold, proof, heal: Box::new(move |hosts| hosts.up(host)) })
            }
            CutHost => cut(hosts, rng, host, Cut::Both, None),
            DeafHost => cut(hosts, rng, host, Cut::Incoming, None),
            MuteHost => cut(hosts, rng, host, Cut::Outgoing, None),
            CutPair => {
                let other = (host + 1 + rng.below(SERVERS as u64 - 1) as usize) % SERVERS;
                let way = *rng.pick(&[Cut::Both, Cut::Incoming, Cut::Outgoing]);
                cut(hosts, rng, host, way, Some(other))
            }
            FullDisk => fill_up(hosts),
            ReadError => ill(hosts, a_leading_one(hosts, rng)?, "read-error rate=50000", 4000),
            BitFlip => ill(hosts, a_leading_one(hosts, rng)?, "read-flip rate=50000", 4000),
            WriteError => deadly(hosts, host, "write-error count=1"),
            SyncError => deadly(hosts, host, "sync-error count=1"),
            SlowDisk => ill(hosts, host, "sync-latency us=2500000", 6000),
        }
    }
}

impl Injected {
    /// One that needs no end: what died comes back by itself.
    fn over(on: impl Into<String>, hold_ms: u64) -> Self {
        let hold = Duration::from_millis(hold_ms);
        Self { on: on.into(), hold, proof: Box::new(|_| Ok(())), heal: Box::new(|_| Ok(())) }
    }
}

fn a_server(rng: &mut Rng) -> usize {
    rng.below(SERVERS as u64) as usize
}

/// A server whose OSD leads groups, and so is read from. OSDs are numbered in the order of their hosts.
fn a_leading_one(hosts: &Hosts, rng: &mut Rng) -> Result<usize> {
    let pgs = hosts.json(CLIENT, &["pg", "ls"])?;
    let leaders = pgs.as_array().into_iter().flatten().filter_map(|pg| pg["primary"].as_u64());
    let leaders: BTreeSet<u64> = leaders.collect();
    let leaders: Vec<u64> = leaders.into_iter().collect();
    if leaders.is_empty() {
        bail!("no OSD leads any group");
    }
    Ok(*rng.pick(&leaders) as usize)
}

fn killed(hosts: &Hosts, host: usize, role: &str) -> Result<Injected> {
    let old = hosts.pid(host, role)?;
    hosts.signal(host, role, Signal::Kill)?;
    let mut injected = Injected::over(format!("{role} of host {}", hosts.name(host)), 2500);
    let role = role.to_owned();
    injected.proof = Box::new(move |hosts| another(hosts, host, &role, old));
    Ok(injected)
}

/// A process sleeps for 3 to 8 s; its sockets stay, and take what is sent to them.
fn stopped(hosts: &Hosts, rng: &mut Rng, host: usize, role: &str) -> Result<Injected> {
    hosts.signal(host, role, Signal::Stop)?;
    let hold = Duration::from_millis(3000 + rng.below(5000));
    let pid = hosts.pid(host, role)?.with_context(|| format!("no {role} was stopped"))?;
    let proof: Deed = Box::new(move |_| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("it is gone")?;
        match stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')) {
            true => Ok(()),
            false => bail!("it was not stopped: {stat}"),
        }
    });
    let on = format!("{role} of host {}", hosts.name(host));
    let role = role.to_owned();
    let heal = move |hosts: &Hosts| hosts.signal(host, &role, Signal::Continue);
    Ok(Injected { on, hold, proof, heal: Box::new(heal) })
}

/// Waits until the metadata leader, as a client sees it, is another process than this one.
fn another_leads(hosts: &Hosts, old: Option<u32>) -> Result<()> {
    until("another leader", 30, || {
        let (at, now) = hosts.leader(CLIENT)?;
        Ok((hosts.pid(at, &now)? != old).then_some(()))
    })
}

/// Waits until the supervisor has started another process of a role.
fn another(hosts: &Hosts, host: usize, role: &str, old: Option<u32>) -> Result<()> {
    let lives = || Ok(hosts.pid(host, role)?.filter(|pid| Some(*pid) != old));
    until(&format!("another life of {role}"), 30, lives).map(|_| ())
}

fn lost_packets(hosts: &Hosts, host: usize) -> Result<()> {
    match hosts.network().dropped(host)? {
        0 => bail!("no packet was lost"),
        _ => Ok(()),
    }
}

fn cut(hosts: &Hosts, rng: &mut Rng, host: usize, cut: Cut, other: Option<usize>) -> Result<Injected> {
    hosts.network().cut(host, cut, other)?;
    let arrow = match cut {
        Cut::Both => "<->",
        Cut::Incoming => "<-",
        Cut::Outgoing => "->",
    };
    let on = format!("{} {arrow} {}", hosts.name(host), other.map_or("all", |other| hosts.name(other)));
    let hold = Duration::from_millis(3000 + rng.below(6000));
    let proof: Deed = Box::new(move |hosts| lost_packets(hosts, host));
    Ok(Injected { on, hold, proof, heal: Box::new(move |hosts| hosts.network().heal(host)) })
}

/// The disk of an OSD does this wrong for a while.
fn ill(hosts: &Hosts, host: usize, how: &str, hold_ms: u64) -> Result<Injected> {
    let file = hosts.disk_faults(host);
    let tally = file.with_extension("happened");
    let counted = tally.clone();
    let so_far = move || std::fs::read_to_string(&counted).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // An earlier life of the OSD may have counted further than this one does.
    let _ = std::fs::remove_file(&tally);
    std::fs::write(&file, how).context("cannot write the disk's faults")?;
    // Only some requests go wrong, and an OSD that leads few groups has few.
    let proof: Deed = Box::new(move |_| until("a failure of the disk", 30, || Ok((so_far() > 0).then_some(()))));
    let heal = move |_: &Hosts| std::fs::remove_file(&file).context("cannot end the disk's faults");
    let on = format!("osd-0 of host {}", hosts.name(host));
    Ok(Injected { on, hold: Duration::from_millis(hold_ms), proof, heal: Box::new(heal) })
}

/// The disk of an OSD does something wrong that no OSD survives; its next life finds a good disk.
fn deadly(hosts: &Hosts, host: usize, how: &str) -> Result<Injected> {
    let (old, file) = (hosts.pid(host, "osd-0")?, hosts.disk_faults(host));
    std::fs::write(&file, how).context("cannot write the disk's faults")?;
    let dies = until("the end of the OSD", 30, || Ok((hosts.pid(host, "osd-0")? != old).then_some(())));
    std::fs::remove_file(&file).context("cannot end the disk's faults")?;
    dies?;
    let mut injected = Injected::over(format!("osd-0 of host {}", hosts.name(host)), 2500);
    injected.proof = Box::new(move |hosts| another(hosts, host, "osd-0", old));
    Ok(injected)
}

/// Takes every free byte of the small filesystem while somebody writes what was never written before, and gives it
/// back.
fn fill_up(hosts: &Hosts) -> Result<Injected> {
    const FRESH: &str = "fresh";
    let ballast = hosts.ballast(SMALL_DISK);
    capture(&mut hosts.cairn(CLIENT, &["volume", "create", FRESH, "--size", "768Mi"]))?;
    let device = capture(&mut hosts.cairn(CLIENT, &["volume", "attach", FRESH]))?;
    let mut file = std::fs::File::create(&ballast).context("cannot fill the disk")?;
    for piece in [1 << 20, 4096] {
        let bytes = vec![1u8; piece];
        while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
    }
    let mut writer = Command::new("dd");
    writer.args(["if=/dev/urandom", "bs=1M", "count=768", "oflag=direct", "status=none"]).process_group(0);
    let mut writer =
        writer.arg(format!("of={}", device.trim())).stdin(Stdio::null()).spawn().context("cannot start dd")?;
    let on = format!("the disk of host {}", hosts.name(SMALL_DISK));
    let proof: Deed = Box::new(|hosts| {
        until("OSD_FULL", 90, || {
            let health = hosts.json(CLIENT, &["health"])?;
            let checks = health["checks"].as_array().into_iter().flatten();
            Ok(checks.map(|check| &check["code"]).any(|code| code == "OSD_FULL").then_some(()))
        })
    });
    let heal = move |hosts: &Hosts| {
        std::fs::remove_file(&ballast).context("cannot empty the disk")?;
        // It has written enough; the write that waits for room must still be answered.
        kill_process(Pid::from_child(&writer), KillSignal::TERM).context("cannot end dd")?;
        let status = until("the answer to the write that waited for room", 60, || Ok(writer.try_wait()?))?;
        if status.code().is_some_and(|code| code != 0) {
            bail!("a write to a full cluster failed, and did not wait: {status}");
        }
        capture(&mut hosts.cairn(CLIENT, &["volume", "detach", FRESH]))?;
        capture(&mut hosts.cairn(CLIENT, &["volume", "rm", FRESH])).map(|_| ())
    };
    Ok(Injected { on, hold: Duration::from_secs(4), proof, heal: Box::new(heal) })
}
