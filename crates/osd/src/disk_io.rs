//! Disk I/O off the loop's thread: a few threads that perform what the store wants, and hand the results back
//! through a queue and the loop's waker. The store keeps every order that matters by itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use cairn_disk::{BufferPool, Disk};
use cairn_store::{Io, IoId, IoOp, IoResult};
use mio::Waker;

/// Threads: one may be in a flush while others read and write.
const THREADS: usize = 4;

/// Threads that may be busy with what nobody waits for.
const BACKGROUND: usize = 2;

/// The threads and their two queues.
pub(crate) struct DiskIo {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    started: BTreeMap<IoId, Instant>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    pool: BufferPool,
    waker: Arc<Waker>,
    wanted: Mutex<Wanted>,
    some: Condvar,
    done: Mutex<Vec<(IoId, IoResult)>>,
}

#[derive(Default)]
struct Wanted {
    urgent: VecDeque<Io>,
    background: VecDeque<Io>,
    /// Threads that are busy with background work.
    busy: usize,
    stop: bool,
}

impl Wanted {
    fn take(&mut self) -> Option<Io> {
        if let Some(io) = self.urgent.pop_front() {
            return Some(io);
        }
        if self.busy >= BACKGROUND {
            return None;
        }
        let io = self.background.pop_front()?;
        self.busy += 1;
        Some(io)
    }
}

impl DiskIo {
    pub(crate) fn start(disk: Arc<dyn Disk>, pool: BufferPool, waker: Arc<Waker>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            disk,
            pool,
            waker,
            wanted: Mutex::default(),
            some: Condvar::new(),
            done: Mutex::default(),
        });
        let mut threads = Vec::with_capacity(THREADS);
        for number in 0..THREADS {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("disk-{number}")).stack_size(256 << 10);
            threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(Self { shared, threads, started: BTreeMap::new() })
    }

    /// Performs these, in any order.
    pub(crate) fn submit(&mut self, batch: Vec<Io>) {
        if batch.is_empty() {
            return;
        }
        let now = Instant::now();
        // A scrub's reads wait behind everything else for as long as it takes: their age says nothing about the disk.
        let counts = |io: &&Io| !(io.background && matches!(io.op, IoOp::Read { .. }));
        self.started.extend(batch.iter().filter(counts).map(|io| (io.id, now)));
        let many = batch.len() > 1;
        let mut wanted = self.shared.wanted.lock().expect("no holder panics");
        for io in batch {
            if io.background { wanted.background.push_back(io) } else { wanted.urgent.push_back(io) }
        }
        drop(wanted);
        if many { self.shared.some.notify_all() } else { self.shared.some.notify_one() }
    }

    /// What is done since the last call.
    pub(crate) fn take_done(&mut self) -> Vec<(IoId, IoResult)> {
        let done = std::mem::take(&mut *self.shared.done.lock().expect("no holder panics"));
        for (id, _) in &done {
            self.started.remove(id);
        }
        done
    }

    /// Operations that are not done.
    pub(crate) fn waiting(&self) -> usize {
        self.started.len()
    }

    /// Age of the oldest operation that is not done, in milliseconds; 0 when there is none.
    pub(crate) fn oldest_ms(&self) -> u32 {
        let oldest = self.started.values().min();
        oldest.map_or(0, |at| u32::try_from(at.elapsed().as_millis()).unwrap_or(u32::MAX))
    }
}

impl Drop for DiskIo {
    fn drop(&mut self) {
        self.shared.wanted.lock().expect("no holder panics").stop = true;
        self.shared.some.notify_all();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a disk thread panicked");
            }
        }
    }
}

impl Shared {
    fn work(&self) {
        while let Some(io) = self.next() {
            let result = io.op.perform(self.disk.as_ref(), &self.pool);
            if io.background {
                self.wanted.lock().expect("no holder panics").busy -= 1;
            }
            let first = {
                let mut done = self.done.lock().expect("no holder panics");
                done.push((io.id, result));
                done.len() == 1
            };
            // One wake-up for all that is done before the loop comes to look.
            if first && let Err(error) = self.waker.wake() {
                tracing::error!(%error, "cannot wake the loop");
            }
        }
    }

    fn next(&self) -> Option<Io> {
        let mut wanted = self.wanted.lock().expect("no holder panics");
        loop {
            if let Some(io) = wanted.take() {
                return Some(io);
            }
            if wanted.stop {
                return None;
            }
            wanted = self.some.wait(wanted).expect("no holder panics");
        }
    }
}
