//! How fast the engine is on this machine's disk, without network: 4 KiB random writes at some queue depths, then
//! reads. `cargo run -p cairn-store --example engine_bench -- PATH [MIB] [SECONDS]`; the file is made and removed.
//!
//! One thread plays the shard's loop and performs the I/O itself, so the numbers say what the engine and the disk
//! cost, not what overlapping them gains.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cairn_disk::{BufferPool, FileDisk, OpenOptions};
use cairn_store::{Config, FormatOptions, IoOp, Opened, Output, Store, Transaction, format, open};
use cairn_types::peer::{EntryOp, LogEntry, Logged};
use cairn_types::{
    ConfVersion, Epoch, Generation, ObjectId, PgId, PoolId, RequestId, SessionId, SnapId, Version, VolumeId,
};

const PG: PgId = PgId { pool: PoolId(1), index: 0 };

struct Bench {
    disk: FileDisk,
    store: Store,
    pool: BufferPool,
    random: u64,
    seq: u64,
    objects: u64,
    ios: u64,
    syncs: u64,
    written: u64,
}

impl Bench {
    fn next(&mut self) -> u64 {
        self.random = cairn_types::id::mix(self.random);
        self.random
    }

    fn place(&mut self) -> (ObjectId, u32) {
        let (index, block) = (self.next() % self.objects, self.next() % 1024);
        (ObjectId { pool: PG.pool, volume: VolumeId(1), index, snapshot: SnapId::HEAD }, block as u32 * 4096)
    }

    /// Performs what the store wants until nothing is under way; how many answers came.
    fn drive(&mut self) -> u64 {
        let mut answers = 0;
        while let Some(io) = self.store.poll_io() {
            self.ios += 1;
            match &io.op {
                IoOp::Write { pieces, sync, .. } => {
                    self.written += pieces.iter().map(Bytes::len).sum::<usize>() as u64;
                    self.syncs += u64::from(*sync);
                }
                IoOp::Sync => self.syncs += 1,
                IoOp::Read { .. } | IoOp::Discard { .. } => {}
            }
            let result = io.op.perform(&self.disk, &self.pool);
            self.store.handle_io(io.id, result);
            while let Some(output) = self.store.poll_output() {
                match output {
                    Output::Persisted { .. } | Output::Read { result: Ok(_), .. } => answers += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
        answers
    }

    fn writes(&mut self, depth: u64, time: Duration) {
        let (start, mut done) = (Instant::now(), 0);
        let before = (self.ios, self.syncs, self.written);
        while start.elapsed() < time {
            for _ in 0..depth {
                let (object, offset) = self.place();
                let data = Bytes::from(vec![self.random as u8; 4096]);
                self.seq += 1;
                let op = EntryOp::Write { object, offset, crcs: vec![crc32c::crc32c(&data)] };
                let entry = LogEntry {
                    version: Version { c: ConfVersion(1), seq: self.seq },
                    prev: 0,
                    epoch: Epoch(1),
                    request: RequestId { session: SessionId(1), seq: self.seq },
                    acked_through: 0,
                    generation: Generation(1),
                    snap_context: SnapId(0),
                    op,
                };
                let commit = self.seq.saturating_sub(depth);
                let trim = self.seq.checked_sub(1024);
                let append = vec![Logged { entry, data }];
                self.store.submit(Transaction { append, trim, ..Transaction::new(PG, commit) });
            }
            done += self.drive();
        }
        self.report("write", depth, done, start.elapsed(), before);
    }

    fn reads(&mut self, depth: u64, time: Duration) {
        let (start, mut done) = (Instant::now(), 0);
        let before = (self.ios, self.syncs, self.written);
        while start.elapsed() < time {
            for _ in 0..depth {
                let (object, offset) = self.place();
                self.store.read(PG, object, offset, 4096);
            }
            done += self.drive();
        }
        self.report("read", depth, done, start.elapsed(), before);
    }

    fn report(&self, what: &str, depth: u64, done: u64, time: Duration, before: (u64, u64, u64)) {
        let per = |now: u64, before: u64| (now - before) as f64 / done as f64;
        println!(
            "{what:>5} QD{depth:<3} {:>8.0}/s {:>8.1} us/op  {:.2} I/Os {:.3} flushes {:.2} bytes written per byte",
            done as f64 / time.as_secs_f64(),
            time.as_micros() as f64 / done as f64,
            per(self.ios, before.0),
            per(self.syncs, before.1),
            per(self.written, before.2) / 4096.0,
        );
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().expect("the path of a file to make"));
    let mib: u64 = args.next().map_or(1024, |text| text.parse().expect("a number of MiB"));
    let seconds = Duration::from_secs(args.next().map_or(3, |text| text.parse().expect("a number of seconds")));
    let options = OpenOptions { path: path.clone(), create_len: Some(mib << 20), read_only: false };
    let disk = FileDisk::open(&options).expect("the file can be made");
    let start = Instant::now();
    let how = FormatOptions { osd_uuid: uuid::Uuid::from_u128(1), ring_len: None, force: false };
    format(&disk, &how).expect("it can be formatted");
    println!("format of {mib} MiB: {:?}", start.elapsed());
    let Opened { store, .. } = open(&disk, Config::default()).expect("it opens");
    let pool = BufferPool::new(8 << 20);
    let objects = mib / 16;
    let mut bench = Bench { disk, store, pool, random: 1, seq: 0, objects, ios: 0, syncs: 0, written: 0 };
    bench.drive();
    for depth in [1, 8, 32] {
        bench.writes(depth, seconds);
    }
    for depth in [1, 32] {
        bench.reads(depth, seconds);
    }
    let Bench { disk, store, .. } = bench;
    drop(store);
    let start = Instant::now();
    let opened = open(&disk, Config::default()).expect("it opens again");
    println!("open with {} records to replay: {:?}", opened.replayed, start.elapsed());
    std::fs::remove_file(path).expect("the file can be removed");
}
