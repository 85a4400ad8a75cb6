//! Taking a volume over from a node that is not dead but late: its writes must be refused whenever they arrive.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use cairn_tests::history::{Aligned, BLOCK, O_DIRECT};
use cairn_tests::{Cut, Hosts, Signal, capture, run, until};

/// Four objects, and so up to four placement groups.
const BLOCKS: u64 = 4096;
/// What is written and read at once where it is about all blocks.
const PIECE: usize = 16 * BLOCK;
/// Where the metadata members listen, on each host.
const META_PORT: u16 = 7400;
const THREADS: u64 = 8;
const OLD: usize = 3;
const NEW: usize = 0;

/// Threads that write one byte, over and over, to every block of a device, each in its own part of it, until a write
/// fails.
struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(device: &Path, byte: u8) -> Result<Self> {
        let (stop, done, failed) = (Arc::default(), Arc::default(), Arc::default());
        let mut writers = Self { stop, done, failed, threads: Vec::new() };
        for thread in 0..THREADS {
            let file = open(device)?;
            let (stop, done, failed) = (writers.stop.clone(), writers.done.clone(), writers.failed.clone());
            writers.threads.push(std::thread::spawn(move || {
                let mut buffer = Aligned::new(BLOCK);
                buffer.bytes().fill(byte);
                let mut at = thread;
                while !stop.load(Ordering::SeqCst) {
                    if file.write_all_at(buffer.bytes(), at * BLOCK as u64).is_err() {
                        failed.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    done.fetch_add(1, Ordering::SeqCst);
                    at = if at + THREADS < BLOCKS { at + THREADS } else { thread };
                }
            }));
        }
        Ok(writers)
    }

    fn wait_for(&self, writes: u64) -> Result<()> {
        until("writes", 60, || Ok((self.done.load(Ordering::SeqCst) >= writes).then_some(())))
    }

    fn end(mut self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::SeqCst);
        until("the last write's answer", 60, || Ok(self.threads.iter().all(|t| t.is_finished()).then_some(())))?;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        Ok((self.done.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst)))
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn open(device: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open(device);
    file.with_context(|| format!("cannot open {}", device.display()))
}

fn attach(hosts: &Hosts, host: usize, more: &[&str]) -> Result<PathBuf> {
    let device = capture(&mut hosts.cairn(host, &[&["volume", "attach", "v"][..], more].concat()))?;
    Ok(PathBuf::from(device.trim()))
}

/// Every block as a fresh look shows it.
fn holds_only(device: &Path, byte: u8) -> Result<()> {
    let file = open(device)?;
    let mut buffer = Aligned::new(PIECE);
    for at in (0..BLOCKS * BLOCK as u64).step_by(PIECE) {
        file.read_exact_at(buffer.bytes(), at)?;
        let strange = buffer.bytes().iter().position(|one| *one != byte);
        assert_eq!(strange, None, "from {at}: {:#x} and not {byte:#x}", buffer.bytes()[strange.unwrap_or(0)]);
    }
    Ok(())
}

/// How many writes the OSDs have refused, by their own word.
fn refused(hosts: &Hosts) -> Result<u64> {
    let mut total = 0;
    for host in 0..3 {
        let socket = hosts.dir(host).join("run/osd-0.metrics.sock");
        let page =
            capture(Command::new("curl").args(["-s", "--unix-socket"]).arg(socket).arg("http://localhost/metrics"))?;
        let count = page.lines().filter(|line| line.starts_with("cairn_osd_requests_refused_total{"));
        let writes = count.filter(|line| line.contains("op=\"write\""));
        total += writes.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(total)
}

/// The old holder writes, `silence` keeps it from the cluster, the volume is taken over and overwritten, and `release`
/// lets the old holder's late writes go, before the metadata service can tell it anything. They reach the OSDs and are
/// refused there, none arrives, and it learns that it has lost the volume.
fn taken_over(silence: impl Fn(&Hosts) -> Result<()>, release: impl Fn(&Hosts) -> Result<()>) -> Result<()> {
    let mut hosts = Hosts::form(4, 3)?;
    run(&mut hosts.cairn(OLD, &["volume", "create", "v", "--size", "16Mi"]))?;
    let device = attach(&hosts, OLD, &[])?;
    let writers = Writers::start(&device, 0x0d)?;
    writers.wait_for(BLOCKS)?;

    let other = hosts.cairn(NEW, &["volume", "attach", "v"]).output()?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("is attached to node `d`"), "{said}");

    // In the middle of its writes: some are in its memory, some in its sockets, some on the way.
    silence(&hosts)?;
    let taken = attach(&hosts, NEW, &["--steal"])?;
    let file = open(&taken)?;
    let mut buffer = Aligned::new(PIECE);
    buffer.bytes().fill(0x4e);
    for at in (0..BLOCKS * BLOCK as u64).step_by(PIECE) {
        file.write_all_at(buffer.bytes(), at)?;
    }
    let before = refused(&hosts)?;
    hosts.network().cut_port(OLD, META_PORT)?;
    release(&hosts)?;
    until("a late write to be refused by an OSD", 30, || Ok((refused(&hosts)? > before).then_some(())))?;
    hosts.network().heal(OLD)?;
    until("the old holder to learn that it lost the volume", 30, || {
        Ok(writers.threads.iter().all(std::thread::JoinHandle::is_finished).then_some(()))
    })?;
    let (_, failed) = writers.end()?;
    assert_eq!(failed, THREADS, "every writer learns it, and no late write is said to be done");
    holds_only(&taken, 0x4e)?;
    drop(file);
    run(&mut hosts.cairn(NEW, &["volume", "detach", "v"]))?;
    let again = attach(&hosts, 1, &[])?;
    holds_only(&again, 0x4e)?;
    run(&mut hosts.cairn(1, &["volume", "detach", "v"]))?;
    hosts.reset()
}

#[test]
fn a_stopped_holder_that_wakes_up_is_refused() -> Result<()> {
    let stop = |hosts: &Hosts| {
        hosts.network().cut_port(OLD, META_PORT)?;
        hosts.signal(OLD, "attach", Signal::Stop)
    };
    taken_over(stop, |hosts| hosts.signal(OLD, "attach", Signal::Continue))
}

#[test]
fn a_holder_that_was_cut_off_is_refused_with_what_its_sockets_still_held() -> Result<()> {
    taken_over(|hosts| hosts.network().cut(OLD, Cut::Both, None), |_| Ok(()))
}

/// The fence is the OSDs' word, not the metadata's opinion: while a group has no reachable in-sync member, a take-over
/// waits, and goes through once one of them has heard of it.
#[test]
fn a_take_over_waits_for_every_group() -> Result<()> {
    let mut hosts = Hosts::form(4, 3)?;
    run(&mut hosts.cairn(OLD, &["volume", "create", "v", "--size", "4Mi"]))?;
    attach(&hosts, OLD, &[])?;
    hosts.signal(OLD, "attach", Signal::Stop)?;
    // All OSDs sleep; the metadata service is well, and would be quick to say yes.
    for host in 0..3 {
        hosts.signal(host, "osd-0", Signal::Stop)?;
    }
    let mut taking = hosts.cairn(NEW, &["volume", "attach", "v", "--steal"]);
    let mut taking = Taking(taking.stdout(Stdio::piped()).spawn().context("cannot start the take-over")?);
    until("the take-over to be decided", 30, || {
        let volume = hosts.json(NEW, &["volume", "info", "v"])?.to_string();
        Ok((!volume.contains("\"node\":\"d\"")).then_some(()))
    })?;
    // It has been decided, and the service answers others; this answer still waits.
    for _ in 0..20 {
        hosts.json(NEW, &["status"])?;
        assert!(taking.0.try_wait()?.is_none(), "it returned although no OSD could know");
    }
    // One member of every group is enough when the others are marked down: without it nothing is committed.
    hosts.signal(0, "osd-0", Signal::Continue)?;
    assert!(taking.0.wait()?.success());
    for host in 1..3 {
        hosts.signal(host, "osd-0", Signal::Continue)?;
    }
    hosts.signal(OLD, "attach", Signal::Continue)?;
    hosts.healthy(NEW, 60)?;
    run(&mut hosts.cairn(NEW, &["volume", "detach", "v"]))?;
    hosts.reset()
}

/// An OSD that is thought to be up has to hear of it too, also where the other members of its groups have: a take-over
/// waits until it has, or is marked down.
#[test]
fn a_take_over_waits_for_whoever_is_up() -> Result<()> {
    const LATE: usize = 1;
    let mut hosts = Hosts::form(4, 3)?;
    run(&mut hosts.cairn(OLD, &["volume", "create", "v", "--size", "4Mi"]))?;
    attach(&hosts, OLD, &[])?;
    let is_up = |hosts: &Hosts| {
        let osds = hosts.json(NEW, &["osd", "ls"])?;
        let late = osds.as_array().into_iter().flatten().find(|osd| osd["id"].as_u64() == Some(LATE as u64));
        late.and_then(|osd| osd["up"].as_bool()).with_context(|| format!("osd-{LATE} is not listed: {osds}"))
    };
    assert!(is_up(&hosts)?);
    hosts.signal(LATE, "osd-0", Signal::Stop)?;
    attach(&hosts, NEW, &["--steal"])?;
    assert!(!is_up(&hosts)?, "it returned while an OSD that is up could not know");
    hosts.signal(LATE, "osd-0", Signal::Continue)?;
    hosts.healthy(NEW, 60)?;
    run(&mut hosts.cairn(NEW, &["volume", "detach", "v"]))?;
    hosts.reset()
}

/// A command under way, which ends with the test.
struct Taking(Child);

impl Drop for Taking {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
