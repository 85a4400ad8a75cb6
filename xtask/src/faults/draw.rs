//! The kinds of fault: what is done to which host, how it ends, and how long a client may wait for it.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use cairn_tests::{Cut, Hosts, Rng, SMALL_DISK, Signal};

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
    /// An OSD's disk fails its next flush.
    SyncError,
    /// An OSD's disk takes its time.
    SlowDisk,
}

use Fault::{
    BitFlip, CrashHost, CutHost, CutPair, DeafHost, FullDisk, KillAttach, KillKeeper, KillLeader, KillOsd, MuteHost,
    Nothing, ReadError, SlowDisk, StopOsd, SyncError,
};

const ALL: [Fault; 16] = [
    Nothing, KillOsd, StopOsd, KillLeader, KillAttach, KillKeeper, CrashHost, CutHost, DeafHost, MuteHost, CutPair,
    FullDisk, ReadError, BitFlip, SyncError, SlowDisk,
];

/// Whom it happens to, and chance.
pub(crate) struct Stage<'a> {
    pub(crate) hosts: &'a Hosts,
    pub(crate) rng: &'a mut Rng,
}

/// A fault under way.
pub(crate) struct Injected {
    /// Who suffers it.
    pub(crate) on: String,
    /// For how long.
    pub(crate) hold: Duration,
    /// Ends it.
    pub(crate) heal: Box<dyn FnOnce(&Hosts) -> Result<()>>,
}

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
            SyncError => "sync-error",
            SlowDisk => "slow-disk",
        }
    }

    /// How long a client may wait. A host that vanishes may be the metadata leader's too, and then an election comes
    /// before anything can be decided about its OSD; writes to a full OSD wait until there is room.
    pub(crate) fn bar(self, hold: Duration) -> Duration {
        match self {
            Nothing | KillLeader | KillKeeper => Duration::from_millis(250),
            KillOsd => Duration::from_millis(500),
            ReadError | BitFlip | SyncError => Duration::from_secs(1),
            StopOsd | KillAttach | SlowDisk => Duration::from_secs(3),
            CrashHost | CutHost | DeafHost | MuteHost | CutPair => Duration::from_secs(5),
            FullDisk => hold + Duration::from_secs(2),
        }
    }

    /// Does it.
    pub(crate) fn inject(self, stage: Stage<'_>) -> Result<Injected> {
        let Stage { hosts, rng } = stage;
        let host = rng.below(SERVERS as u64) as usize;
        let name = |host: usize| format!("host {}", hosts.name(host));
        match self {
            Nothing => Ok(Injected::over("-", 3000)),
            KillOsd => killed(hosts, host, "osd-0"),
            KillLeader => {
                let (host, role) = hosts.leader(CLIENT)?;
                killed(hosts, host, &role)
            }
            KillAttach => killed(hosts, CLIENT, "attach"),
            KillKeeper => killed(hosts, CLIENT, "keeper"),
            StopOsd => {
                hosts.signal(host, "osd-0", Signal::Stop)?;
                let hold = Duration::from_millis(3000 + rng.below(5000));
                let heal = move |hosts: &Hosts| hosts.signal(host, "osd-0", Signal::Continue);
                Ok(Injected { on: format!("osd-0 of {}", name(host)), hold, heal: Box::new(heal) })
            }
            CrashHost => {
                hosts.crash(host)?;
                let hold = Duration::from_millis(1000 + rng.below(4000));
                Ok(Injected { on: name(host), hold, heal: Box::new(move |hosts| hosts.up(host)) })
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
            ReadError => ill(hosts, host, "read-error rate=50000", 4000),
            BitFlip => ill(hosts, host, "read-flip rate=50000", 4000),
            SyncError => ill(hosts, host, "sync-error count=1", 2500),
            SlowDisk => ill(hosts, host, "sync-latency us=2500000", 6000),
        }
    }
}

impl Injected {
    /// One that needs no end: what died comes back by itself.
    fn over(on: impl Into<String>, hold_ms: u64) -> Self {
        Self { on: on.into(), hold: Duration::from_millis(hold_ms), heal: Box::new(|_| Ok(())) }
    }
}

fn killed(hosts: &Hosts, host: usize, role: &str) -> Result<Injected> {
    hosts.signal(host, role, Signal::Kill)?;
    // Until the supervisor has started it again.
    Ok(Injected::over(format!("{role} of host {}", hosts.name(host)), 2500))
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
    Ok(Injected { on, hold, heal: Box::new(move |hosts| hosts.network().heal(host)) })
}

/// The disk of an OSD does this wrong for a while.
fn ill(hosts: &Hosts, host: usize, how: &str, hold_ms: u64) -> Result<Injected> {
    let file = hosts.disk_faults(host);
    std::fs::write(&file, how).context("cannot write the disk's faults")?;
    let heal = move |_: &Hosts| std::fs::remove_file(&file).context("cannot end the disk's faults");
    let on = format!("osd-0 of host {}", hosts.name(host));
    Ok(Injected { on, hold: Duration::from_millis(hold_ms), heal: Box::new(heal) })
}

/// Takes every free byte of the small filesystem, and gives it back.
fn fill_up(hosts: &Hosts) -> Result<Injected> {
    let ballast = hosts.disk_folder(SMALL_DISK).join("ballast");
    let mut file = std::fs::File::create(&ballast).context("cannot fill the disk")?;
    for piece in [1 << 20, 4096] {
        let bytes = vec![1u8; piece];
        while std::io::Write::write_all(&mut file, &bytes).is_ok() {}
    }
    let on = format!("the disk of host {}", hosts.name(SMALL_DISK));
    let heal = move |_: &Hosts| std::fs::remove_file(&ballast).context("cannot empty the disk");
    Ok(Injected { on, hold: Duration::from_secs(4), heal: Box::new(heal) })
}
