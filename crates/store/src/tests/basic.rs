//! One promise at a time.

use bytes::Bytes;
use cairn_disk::{CrashPolicy, Disk, Injection, SimDisk};
use cairn_types::io::BlockState;
use cairn_types::peer::{LogPoint, Run, RunContent};
use cairn_types::{ConfVersion, Version};

use super::harness::{Bench, DISK_LEN, appended, bytes, crcs, data_run, formatted, io_count, object, pg, write, zero};
use crate::{Config, Error, FormatOptions, MIN_RING, Output, Rejection, Transaction, format, open, verify};

#[test]
fn what_is_written_is_read_before_and_after_commit_and_restart() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 3, bytes(1, 2))]));
    let reply = bench.read(p, o, 2 * 4096, 4 * 4096).unwrap();
    assert_eq!(&reply.data[4096..3 * 4096], &bytes(1, 2)[..]);
    let [a, b] = crcs(&bytes(1, 2))[..] else { panic!() };
    let data = |crc| BlockState::Data { crc };
    assert_eq!(reply.blocks, [BlockState::Absent, data(a), data(b), BlockState::Absent]);
    bench.persist(appended(p, 1, vec![zero(2, o, 4, 1, false)]));
    for policy in [CrashPolicy::KEEP_ALL, CrashPolicy::LOSE_ALL, CrashPolicy::HARSH] {
        bench = bench.reopen(policy, 1);
        assert_eq!((bench.loaded[&p].commit, bench.loaded[&p].end), (1, 2));
        assert_eq!(bench.loaded[&p].log.len(), 2);
        let reply = bench.read(p, o, 3 * 4096, 2 * 4096).unwrap();
        assert_eq!(&reply.data[..4096], &bytes(1, 1)[..]);
        assert_eq!(reply.blocks[1], BlockState::Zero);
    }
}

#[test]
fn one_small_write_is_one_write_and_one_flush() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.settle();
    let (ios, syncs) = (io_count(&bench.disk), bench.disk.syncs());
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 1))]));
    assert_eq!((io_count(&bench.disk) - ios, bench.disk.syncs() - syncs), (2, 1));
    // What arrives while a flush runs shares the next one.
    for seq in 2..34 {
        bench.store.submit(appended(p, seq - 2, vec![write(seq, o, seq as u32, bytes(seq, 1))]));
    }
    bench.settle();
    assert!(bench.disk.syncs() - syncs <= 4, "{} syncs for 33 writes", bench.disk.syncs() - syncs);
}

#[test]
fn a_long_write_goes_straight_to_its_extent() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(5, 256))]));
    bench.persist(appended(p, 1, vec![write(2, o, 7, bytes(6, 1))]));
    bench.persist(Transaction::new(p, 2));
    let mut expected = bytes(5, 256).to_vec();
    expected[7 * 4096..8 * 4096].copy_from_slice(&bytes(6, 1));
    assert_eq!(bench.read(p, o, 0, 256 * 4096).unwrap().data, expected);
    // The small one lies over the long one's extent; replay must not take that for a bad long write.
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 2);
    assert_eq!(bench.read(p, o, 0, 256 * 4096).unwrap().data, expected);
    bench.checkpoint();
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 3);
    assert_eq!(bench.read(p, o, 0, 256 * 4096).unwrap().data, expected);
    assert_eq!(verify(&bench.disk).unwrap().problems, []);
}

/// Three transactions share a record: a long write, a short one in its place, the commit point. The short one's bytes
/// may have replaced the long one's before any record said that they were durable.
#[test]
pub(super) fn a_short_write_over_a_long_one_survives_a_cut_checkpoint() {
    let (p, o) = (pg(0), object(pg(0), 0));
    for cut in 0.. {
        let mut bench = Bench::new(1);
        bench.store.submit(appended(p, 0, vec![write(1, o, 0, bytes(5, 20))]));
        bench.store.submit(appended(p, 0, vec![write(2, o, 7, bytes(6, 1))]));
        bench.store.submit(Transaction::new(p, 2));
        bench.settle();
        bench.disk.inject(Injection::PowerOffAt(io_count(&bench.disk) + cut));
        bench.checkpoint();
        let done = bench.disk.powered();
        let mut bench = bench.reopen(CrashPolicy::KEEP_ALL, 2);
        assert_eq!((bench.loaded[&p].commit, bench.loaded[&p].end), (2, 2), "cut at {cut}");
        assert_eq!(bench.read(p, o, 7 * 4096, 4096).unwrap().data, bytes(6, 1), "cut at {cut}");
        assert_eq!(bench.read(p, o, 0, 7 * 4096).unwrap().data, bytes(5, 7), "cut at {cut}");
        if done {
            break;
        }
    }
}

#[test]
fn a_pending_entry_changes_nothing_that_a_rewind_cannot_undo() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 1))]));
    bench.persist(appended(p, 1, vec![write(2, o, 0, bytes(2, 1)), write(3, o, 1, bytes(3, 32))]));
    bench.checkpoint();
    bench.persist(Transaction { rewind: Some(1), ..Transaction::new(p, 1) });
    assert_eq!(bench.read(p, o, 0, 4096).unwrap().data, bytes(1, 1));
    bench.persist(appended(p, 1, vec![write(2, o, 5, bytes(9, 1))]));
    bench.checkpoint();
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 2);
    assert_eq!(bench.read(p, o, 0, 4096).unwrap().data, bytes(1, 1));
    assert_eq!(bench.read(p, o, 4096, 4096).unwrap().blocks, [BlockState::Absent]);
    assert_eq!(bench.read(p, o, 5 * 4096, 4096).unwrap().data, bytes(9, 1));
    assert_eq!(bench.loaded[&p].pending, [(2, bytes(9, 1))]);
}

#[test]
fn content_lands_below_pending_entries() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 2))]));
    bench.persist(appended(p, 1, vec![write(2, o, 0, bytes(2, 1))]));
    for n in [1, 40] {
        let content = vec![(o, vec![data_run(0, bytes(50 + u64::from(n), n))])];
        bench.persist(Transaction { content, ..Transaction::new(p, 1) });
        assert_eq!(bench.read(p, o, 0, 4096).unwrap().data, bytes(2, 1), "the pending entry is above");
        bench.checkpoint();
    }
    let absent = vec![(o, vec![Run { offset: 0, len: 4096, content: RunContent::Absent }])];
    let mut other = bench.disk.fork();
    bench.persist(Transaction { rewind: Some(1), ..Transaction::new(p, 1) });
    assert_eq!(bench.read(p, o, 0, 2 * 4096).unwrap().data, bytes(90, 2)[..8192], "and the content below is kept");
    other = other.power_on(CrashPolicy::LOSE_ALL);
    let mut bench = Bench::open(other, 3);
    bench.persist(Transaction { content: absent, ..Transaction::new(p, 1) });
    bench.persist(Transaction::new(p, 2));
    assert_eq!(bench.read(p, o, 0, 4096).unwrap().data, bytes(2, 1));
    bench.checkpoint();
    assert_eq!(verify(&bench.disk).unwrap().problems, []);
}

#[test]
fn attributes_of_any_size_notes_and_trims_survive() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(2), object(pg(2), 0));
    let big = Bytes::from(vec![7; 50_000]);
    let attributes = vec![(b"big".to_vec(), Some(big.clone())), (b"gone".to_vec(), Some(big))];
    bench.persist(Transaction { attributes, ..Transaction::new(p, 0) });
    bench.persist(appended(p, 0, (1..=9).map(|seq| write(seq, o, seq as u32, bytes(seq, 1))).collect()));
    bench.persist(Transaction { trim: Some(5), ..Transaction::new(p, 8) });
    bench.checkpoint();
    let small = Bytes::from(vec![8; 3000]);
    let attributes = vec![(b"big".to_vec(), Some(small.clone())), (b"gone".to_vec(), None)];
    bench.persist(Transaction { attributes, trim: Some(7), ..Transaction::new(p, 8) });
    let note = bench.store.put_note(b"epoch", Bytes::from_static(b"12"));
    assert_eq!(bench.answer(note), Output::Persisted { token: note });
    for round in 0..2 {
        bench = bench.reopen(CrashPolicy::LOSE_ALL, 2);
        let loaded = &bench.loaded[&p];
        assert_eq!(loaded.attributes, [(b"big".to_vec(), small.clone())]);
        assert_eq!(loaded.log.iter().map(|e| e.version.seq).collect::<Vec<_>>(), [8, 9], "round {round}");
        assert_eq!(bench.store.note(b"epoch"), Some(&Bytes::from_static(b"12")));
        bench.checkpoint();
    }
}

#[test]
fn a_restarted_log_goes_on_after_its_point() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 1)), write(2, o, 1, bytes(2, 1))]));
    let point = LogPoint { version: Version { c: ConfVersion(1), seq: 100 }, hash: 1 };
    bench.persist(Transaction { restart: Some(point), remove: vec![o], ..Transaction::new(p, 1) });
    let token = bench.store.submit(appended(p, 100, vec![write(3, o, 0, bytes(3, 1))]));
    assert!(matches!(bench.answer(token), Output::Rejected { reason: Rejection::OutOfOrder { .. }, .. }));
    bench.persist(appended(p, 100, vec![write(101, o, 2, bytes(4, 1))]));
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    assert_eq!((bench.loaded[&p].commit, bench.loaded[&p].end), (100, 101));
    let blocks = bench.read(p, o, 0, 3 * 4096).unwrap().blocks;
    assert!(matches!(blocks[..], [BlockState::Absent, BlockState::Absent, BlockState::Data { .. }]));
}

#[test]
fn listings_follow_key_order_and_see_everything() {
    let mut bench = Bench::new(1);
    for p in [pg(0), pg(3)] {
        let many = (0..30).map(|n| write(n + 1, object(p, n), 0, bytes(n, 1))).collect();
        bench.persist(appended(p, 0, many));
    }
    bench.persist(Transaction::new(pg(0), 20));
    bench.checkpoint();
    bench.persist(Transaction { remove: vec![object(pg(0), 3)], ..Transaction::new(pg(0), 20) });
    let mut expected: Vec<_> = (0..30).filter(|n| *n != 3).map(|n| object(pg(0), n)).collect();
    expected.sort_by_key(|object| cairn_types::peer::ObjectKey::new(*object));
    for limit in [1, 4, 100] {
        assert_eq!(bench.list(pg(0), limit), expected, "limit {limit}");
    }
    // Objects that the index still has and that are gone by now fill no page.
    let gone = expected.iter().copied().filter(|object| *object != expected[28]).collect();
    bench.persist(Transaction { remove: gone, ..Transaction::new(pg(0), 30) });
    for limit in [1, 4, 100] {
        assert_eq!(bench.list(pg(0), limit), [expected[28]], "limit {limit}");
    }
    assert_eq!(bench.list(pg(1), 10), []);
    assert_eq!(bench.list(pg(3), 7).len(), 30);
}

#[test]
fn rot_is_seen_and_named() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(5, 64))]));
    bench.persist(Transaction::new(p, 1));
    bench.checkpoint();
    let place = find(&bench.disk, &bytes(5, 64)[9 * 4096..10 * 4096]);
    bench.disk.flip_bit(place + 100, 3);
    let failure = bench.read(p, o, 0, 64 * 4096).unwrap_err();
    assert_eq!(failure.offsets, [9 * 4096]);
    assert_eq!(bench.read(p, o, 0, 9 * 4096).unwrap().data, bytes(5, 9));
    let report = verify(&bench.disk).unwrap();
    assert_eq!((report.bad_blocks, report.found), (1, 1));
    assert_eq!((report.problems[0].object, report.problems[0].offset), (Some(o), Some(9 * 4096)));
    // Repair is content.
    let content = vec![(o, vec![data_run(9, bytes(5, 64).slice(9 * 4096..10 * 4096))])];
    bench.persist(Transaction { content, ..Transaction::new(p, 1) });
    assert_eq!(bench.read(p, o, 0, 64 * 4096).unwrap().data, bytes(5, 64));
}

/// The device byte at which a block with these contents lies.
pub(super) fn find(disk: &SimDisk, block: &[u8]) -> u64 {
    let mut buf = vec![0; 4096];
    // Past the log, where the data has its place.
    for at in ((3 << 20)..disk.len()).step_by(4096) {
        disk.read_at(at, &mut buf).unwrap();
        if buf == block {
            return at;
        }
    }
    panic!("the block is nowhere on the disk");
}

#[test]
fn a_corrupt_middle_record_is_reported_and_not_cut_off() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    for seq in 1..=5 {
        bench.persist(appended(p, 0, vec![write(seq, o, seq as u32, bytes(seq, 1))]));
    }
    // Records are two blocks each: the third one's header.
    bench.disk.flip_bit((1 << 20) + 2 * 2 * 4096 + 50, 1);
    let disk = bench.disk.power_on(CrashPolicy::LOSE_ALL);
    let refused = Bench::try_open(disk.clone(), 1).err().unwrap();
    assert_eq!(refused, Error::CorruptLog { lsn: 3, ring_pos: 4 * 4096, witness: 4 });
    assert!(!verify(&disk).unwrap().is_clean());
    // The last one's header: that may be a torn tail.
    disk.flip_bit((1 << 20) + 2 * 2 * 4096 + 50, 1);
    disk.flip_bit((1 << 20) + 4 * 2 * 4096 + 50, 1);
    assert_eq!(Bench::open(disk, 1).loaded[&p].end, 4);
}

#[test]
fn rotten_data_in_a_durable_record_is_lost_by_name_and_the_entry_stays() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    for seq in 1..=4 {
        bench.persist(appended(p, seq - 1, vec![write(seq, o, seq as u32, bytes(seq, 1))]));
    }
    bench.disk.flip_bit((1 << 20) + (2 + 1) * 4096 + 50, 1);
    // The fourth is pending: its bytes are needed by others, so that it must not look as if they were there.
    bench.persist(appended(p, 3, vec![write(5, o, 5, bytes(5, 1))]));
    let other = bench.disk.fork();
    let report = verify(&other).unwrap();
    assert_eq!((report.problems[0].object, report.problems[0].offset), (Some(o), Some(2 * 4096)));
    other.flip_bit((1 << 20) + (6 + 1) * 4096 + 50, 1);
    let other = Bench::open(other.power_on(CrashPolicy::LOSE_ALL), 1);
    assert_eq!(other.loaded[&p].pending, [(5, bytes(5, 1))]);
    assert_eq!((other.loaded[&p].end, other.lost.len()), (5, 2));
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    assert_eq!((bench.lost.as_slice(), bench.loaded[&p].end), (&[(o, 2 * 4096)][..], 5));
    for _ in 0..2 {
        assert_eq!(bench.read(p, o, 0, 6 * 4096).unwrap_err().offsets, [2 * 4096], "never zeros for lost bytes");
        assert_eq!(bench.read(p, o, 4096, 4096).unwrap().data, bytes(1, 1));
        bench.checkpoint();
        bench = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    }
}

#[test]
fn pending_data_in_its_place_is_checked_offline_too() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(5, 64))]));
    bench.persist(appended(p, 0, vec![write(2, o, 70, bytes(6, 1))]));
    let report = verify(&bench.disk).unwrap();
    assert!(report.is_clean());
    assert_eq!((report.pending, report.blocks, report.verified), (2, 64, 64));
    let place = find(&bench.disk, &bytes(5, 64)[63 * 4096..]);
    bench.disk.flip_bit(place, 0);
    let report = verify(&bench.disk).unwrap();
    assert_eq!((report.found, report.problems[0].offset), (1, Some(63 * 4096)));
}

#[test]
fn a_failed_sync_is_the_end() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 1))]));
    bench.disk.inject(Injection::SyncError);
    let token = bench.store.submit(appended(p, 0, vec![write(2, o, 0, bytes(2, 1))]));
    bench.settle();
    assert!(matches!(bench.outputs.last(), Some(Output::Failed { error: Error::Disk(_) })));
    bench.store.submit(appended(p, 0, vec![write(3, o, 0, bytes(3, 1))]));
    bench.settle();
    assert!(!bench.outputs.contains(&Output::Persisted { token }));
    assert!(bench.store.failure().is_some() && bench.store.poll_io().is_none(), "it stays failed");
}

#[test]
fn a_full_disk_still_takes_deletes_and_metadata() {
    let mut bench = Bench::new(1);
    let p = pg(0);
    let mut seq = 0;
    let refused = loop {
        seq += 1;
        let token = bench.store.submit(appended(
            p,
            seq - 1,
            vec![write(seq, object(p, seq / 8), seq as u32 % 8 * 32, bytes(seq, 32))],
        ));
        match bench.answer(token) {
            Output::Persisted { .. } => {}
            other => break other,
        }
        assert!(seq < 1000);
    };
    assert!(matches!(refused, Output::Rejected { reason: Rejection::NoSpace { .. }, .. }), "{refused:?}");
    assert!(seq > 64, "most of the device was used: {seq}");
    let mut end = seq - 1;
    for round in 0..300 {
        let attributes = vec![(format!("a{round}").into_bytes(), Some(Bytes::from(vec![1; 100])))];
        let object = object(p, round % (seq / 8));
        let append = vec![zero(end + 1, object, (round % 256) as u32, 1, true)];
        bench.persist(Transaction { attributes, append, ..Transaction::new(p, end) });
        end += 1;
    }
    for n in 0..seq / 8 + 1 {
        bench.persist(Transaction { remove: vec![object(p, n)], ..Transaction::new(p, end) });
    }
    bench.checkpoint();
    bench.persist(appended(p, end, vec![write(end + 1, object(p, 0), 0, bytes(1, 32))]));
    assert_eq!(verify(&bench.disk).unwrap().problems, []);
}

#[test]
fn a_sparse_file_is_written_ahead_and_a_full_filesystem_is_survived() {
    let disk = formatted(SimDisk::sparse(DISK_LEN, 4));
    let mut bench = Bench::open(disk.clone(), 1);
    bench.settle();
    let (p, o) = (pg(0), object(pg(0), 0));
    bench.persist(appended(p, 0, vec![write(1, o, 0, bytes(1, 200))]));
    disk.inject(Injection::Full(true));
    let mut seq = 2;
    let refused = loop {
        let token = bench.store.submit(appended(p, seq - 1, vec![write(seq, object(p, seq), 0, bytes(1, 32))]));
        match bench.answer(token) {
            Output::Persisted { .. } => seq += 1,
            other => break other,
        }
    };
    assert!(matches!(refused, Output::Rejected { reason: Rejection::NoSpace { .. }, .. }), "{refused:?}");
    assert!(bench.store.failure().is_none());
    disk.inject(Injection::Full(false));
    bench.checkpoint();
    bench.persist(appended(p, seq - 1, vec![write(seq, object(p, seq), 0, bytes(1, 32))]));
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    assert_eq!(bench.read(p, o, 0, 200 * 4096).unwrap().data, bytes(1, 200));
}

#[test]
fn the_smallest_log_takes_every_transaction_that_is_allowed() {
    let disk = SimDisk::new(16 << 20, 1);
    let options = FormatOptions { osd_uuid: uuid::Uuid::from_u128(7), ring_len: Some(MIN_RING), force: false };
    format(&disk, &options).unwrap();
    let opened = open(&disk, Config::default()).unwrap();
    let mut bench = Bench::over(disk, opened, 1);
    let (p, o) = (pg(0), object(pg(0), 0));
    for round in 0..40u64 {
        let many: Vec<_> =
            (1..=40).map(|i| write(round * 40 + i, o, i as u32, bytes(round * i, 1 + i as u32 % 5))).collect();
        let attributes = vec![(b"a".to_vec(), Some(Bytes::from(vec![round as u8; 100 << 10])))];
        let trim = Some(round * 40);
        bench.persist(Transaction { attributes, trim, ..appended(p, round * 40, many) });
    }
    let mut bench = bench.reopen(CrashPolicy::LOSE_ALL, 2);
    assert_eq!(bench.read(p, o, 4096, 4096).unwrap().data, bytes(39, 1));
}

#[test]
fn only_a_blank_device_is_formatted() {
    let options = FormatOptions { osd_uuid: uuid::Uuid::from_u128(7), ring_len: Some(MIN_RING), force: false };
    let disk = SimDisk::new(16 << 20, 1);
    // Where ext4, a partition table and btrfs have their marks.
    for at in [1024 + 56, 510, 65536 + 64] {
        let disk = disk.fork();
        let mut block = vec![0; 4096];
        block[at % 4096] = 0x53;
        disk.write_at(at as u64 / 4096 * 4096, &[Bytes::from(block)]).unwrap();
        let refused = format(&disk, &options).unwrap_err();
        assert_eq!(refused, Error::NotBlank { at: at as u64 });
        assert_eq!(open(&disk, Config::default()).err(), Some(Error::NotFormatted));
        format(&disk, &FormatOptions { force: true, ..options.clone() }).unwrap();
        let refused = format(&disk, &options).unwrap_err();
        assert!(matches!(refused, Error::AlreadyFormatted { .. }), "{refused}");
    }
    // Formatting that was cut is done again.
    let ios = {
        let disk = disk.fork();
        format(&disk, &options).unwrap();
        disk.io_index()
    };
    for cut in 0..ios {
        let disk = disk.fork();
        disk.inject(Injection::PowerOffAt(cut));
        assert!(format(&disk, &options).is_err());
        let disk = disk.power_on(CrashPolicy::HARSH);
        if open(&disk, Config::default()).is_err() {
            format(&disk, &options).unwrap();
        }
        open(&disk, Config::default()).unwrap();
    }
}

#[test]
fn opening_twice_is_opening_once() {
    let mut bench = Bench::new(1);
    let (p, o) = (pg(0), object(pg(0), 0));
    for seq in 1..20 {
        bench.persist(appended(p, seq / 2, vec![write(seq, o, seq as u32, bytes(seq, 1 + seq as u32 % 3))]));
    }
    let first = bench.reopen(CrashPolicy::LOSE_ALL, 1);
    let loaded = first.loaded.clone();
    let again = first.reopen(CrashPolicy::LOSE_ALL, 1);
    assert_eq!(again.loaded, loaded);
}
