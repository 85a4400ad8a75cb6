//! Taking a volume over from a node that is not dead but late: its writes must be refused whenever they arrive.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use cairn_tests::history::{Aligned, BLOCK, O_DIRECT};
use cairn_tests::{Cut, Hosts, Signal, capture, run, until};

const BLOCKS: u64 = 1024;
const OLD: usize = 3;
const NEW: usize = 0;

/// Threads that write one byte, over and over, to every block of a device, each in its own part of it.
struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Writers {
    fn start(device: &Path, byte: u8) -> Result<Self> {
        const THREADS: u64 = 8;
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
                    match file.write_all_at(buffer.bytes(), at * BLOCK as u64) {
                        Ok(()) => done.fetch_add(1, Ordering::SeqCst),
                        Err(_) => failed.fetch_add(1, Ordering::SeqCst),
                    };
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
    let mut buffer = Aligned::new(BLOCK);
    for block in 0..BLOCKS {
        file.read_exact_at(buffer.bytes(), block * BLOCK as u64)?;
        let found = buffer.bytes()[0];
        assert!(buffer.bytes().iter().all(|one| *one == byte), "block {block} holds {found:#x} and not {byte:#x}");
    }
    Ok(())
}

/// The old holder writes, `silence` keeps it from the cluster, the volume is taken over and overwritten, and `release`
/// lets the old holder's late writes go. None may arrive, and it must learn that it has lost the volume.
fn taken_over(silence: impl Fn(&Hosts) -> Result<()>, release: impl Fn(&Hosts) -> Result<()>) -> Result<()> {
    let mut hosts = Hosts::form(4, 3)?;
    run(&mut hosts.cairn(OLD, &["volume", "create", "v", "--size", "4Mi"]))?;
    let device = attach(&hosts, OLD, &[])?;
    let writers = Writers::start(&device, 0x0d)?;
    writers.wait_for(2 * BLOCKS)?;

    let refused = hosts.cairn(NEW, &["volume", "attach", "v"]).output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("is attached to node `d`"), "{said}");

    // In the middle of its writes: some are in its memory, some in its sockets, some on the way.
    silence(&hosts)?;
    let taken = attach(&hosts, NEW, &["--steal"])?;
    // What the old holder still sends is on the way while this is written.
    let file = open(&taken)?;
    let mut buffer = Aligned::new(BLOCK);
    buffer.bytes().fill(0x4e);
    for block in 0..BLOCKS {
        file.write_all_at(buffer.bytes(), block * BLOCK as u64)?;
    }
    release(&hosts)?;
    until("the old holder to learn that it lost the volume", 30, || {
        Ok((writers.failed.load(Ordering::SeqCst) > 0).then_some(()))
    })?;
    // Time for anything that is still on its way: longer than any request waits before it is sent again.
    std::thread::sleep(Duration::from_secs(3));
    holds_only(&taken, 0x4e)?;
    let (_, failed) = writers.end()?;
    assert!(failed > 0);
    drop(file);
    run(&mut hosts.cairn(NEW, &["volume", "detach", "v"]))?;
    let again = attach(&hosts, 1, &[])?;
    holds_only(&again, 0x4e)?;
    run(&mut hosts.cairn(1, &["volume", "detach", "v"]))?;
    hosts.reset()
}

#[test]
fn a_stopped_holder_that_wakes_up_is_refused() -> Result<()> {
    taken_over(|hosts| hosts.signal(OLD, "attach", Signal::Stop), |hosts| hosts.signal(OLD, "attach", Signal::Continue))
}

#[test]
fn a_holder_that_was_cut_off_is_refused_with_what_its_sockets_still_held() -> Result<()> {
    taken_over(|hosts| hosts.network().cut(OLD, Cut::Both, None), |hosts| hosts.network().heal(OLD))
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
    let mut taking = taking.stdout(std::process::Stdio::piped()).spawn()?;
    std::thread::sleep(Duration::from_secs(3));
    assert!(taking.try_wait()?.is_none(), "it returned although no OSD could know");
    for host in 0..3 {
        hosts.signal(host, "osd-0", Signal::Continue)?;
    }
    assert!(taking.wait()?.success());
    hosts.signal(OLD, "attach", Signal::Continue)?;
    hosts.healthy(NEW, 60)?;
    run(&mut hosts.cairn(NEW, &["volume", "detach", "v"]))?;
    hosts.reset()
}
