//! A disk in memory that keeps exactly what the contract promises and, on a power cut, as little more as it likes.
//!
//! Everything random comes from the seed. Writes since the last completed sync are remembered one by one; a power
//! cut keeps each of them whole, in part (per 512-byte sector), not at all, or with a flipped bit, applied in a
//! shuffled order. Each call that changes the medium counts as one I/O, so that a test can cut the power at every
//! index. A handle outlives its power: after a cut only a handle from [`SimDisk::power_on`] works, so that what an
//! old life drops late cannot touch the medium.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use rustix::io::Errno;

use crate::{BLOCK, Disk, Error, check_range};

const SECTOR: usize = 512;
type Page = Arc<[u8; BLOCK as usize]>;

/// What a power cut may do to writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashPolicy {
    /// Parts per thousand: the write is lost whole.
    pub lose: u32,
    /// Parts per thousand: each of its sectors is kept or lost by the toss of a coin.
    pub tear: u32,
    /// Parts per thousand: it is kept, with one bit flipped.
    pub flip: u32,
    /// Later writes may land before earlier ones.
    pub reorder: bool,
}

impl CrashPolicy {
    /// A bit of everything.
    pub const HARSH: Self = Self { lose: 300, tear: 300, flip: 50, reorder: true };
    /// Everything unsynced is gone: what a volatile cache does.
    pub const LOSE_ALL: Self = Self { lose: 1000, tear: 0, flip: 0, reorder: false };
    /// Everything is kept: what `kill -9` of the process leaves.
    pub const KEEP_ALL: Self = Self { lose: 0, tear: 0, flip: 0, reorder: false };
}

/// A fault to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injection {
    /// The power goes when the I/O with this index (from 0, see [`SimDisk::io_index`]) is attempted. A write in
    /// flight then is unsynced, a sync does not happen.
    PowerOffAt(u64),
    /// The next sync fails; what was unsynced stays so.
    SyncError,
    /// The sync after so many more fails.
    SyncErrorAt(u64),
    /// The next write that touches this byte fails.
    WriteError(u64),
    /// Reads that touch this byte fail, until it is written again.
    ReadError(u64),
    /// Writes to blocks never written before fail for want of space (true), or no longer (false).
    Full(bool),
}

/// A handle on a simulated disk. Clones share the medium.
#[derive(Clone, Debug)]
pub struct SimDisk {
    medium: Arc<Mutex<Medium>>,
    len: u64,
    life: u64,
}

#[derive(Debug, Clone)]
struct Medium {
    random: u64,
    life: u64,
    powered: bool,
    io_index: u64,
    syncs: u64,
    seen: BTreeMap<u64, Page>,
    durable: BTreeMap<u64, Page>,
    unsynced: Vec<(u64, Bytes)>,
    power_off_at: Option<u64>,
    sync_error_in: Option<u64>,
    write_errors: Vec<u64>,
    read_errors: Vec<u64>,
    full: bool,
    prewrite: bool,
}

impl SimDisk {
    /// A blank disk, powered on.
    #[must_use]
    pub fn new(len: u64, seed: u64) -> Self {
        let medium = Medium {
            random: seed,
            life: 1,
            powered: true,
            io_index: 0,
            syncs: 0,
            seen: BTreeMap::new(),
            durable: BTreeMap::new(),
            unsynced: Vec::new(),
            power_off_at: None,
            sync_error_in: None,
            write_errors: Vec::new(),
            read_errors: Vec::new(),
            full: false,
            prewrite: false,
        };
        Self { medium: Arc::new(Mutex::new(medium)), len: len / BLOCK * BLOCK, life: 1 }
    }

    /// The same, which says that it [wants to be written ahead](Disk::wants_prewrite).
    #[must_use]
    pub fn sparse(len: u64, seed: u64) -> Self {
        let disk = Self::new(len, seed);
        disk.medium().prewrite = true;
        disk
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().expect("no panic happens under this lock")
    }

    /// The power goes now: unsynced writes meet their fate and all handles die.
    pub fn power_off(&self, policy: CrashPolicy) {
        let mut medium = self.medium();
        medium.powered = false;
        medium.settle(policy);
    }

    /// Power again (after whatever `policy` does to writes that were still unsynced), and the one handle that
    /// works. Injections that were to come are forgotten.
    #[must_use]
    pub fn power_on(&self, policy: CrashPolicy) -> Self {
        let mut medium = self.medium();
        medium.settle(policy);
        medium.life += 1;
        medium.powered = true;
        medium.power_off_at = None;
        medium.sync_error_in = None;
        medium.write_errors.clear();
        Self { medium: Arc::clone(&self.medium), len: self.len, life: medium.life }
    }

    /// A separate disk with the same contents, the same unsynced writes and the same future randomness.
    #[must_use]
    pub fn fork(&self) -> Self {
        let copy = self.medium().clone();
        Self { medium: Arc::new(Mutex::new(copy)), len: self.len, life: self.life }
    }

    /// Plans a fault.
    pub fn inject(&self, fault: Injection) {
        let mut medium = self.medium();
        match fault {
            Injection::PowerOffAt(index) => medium.power_off_at = Some(index),
            Injection::SyncError => medium.sync_error_in = Some(0),
            Injection::SyncErrorAt(more) => medium.sync_error_in = Some(more),
            Injection::WriteError(at) => medium.write_errors.push(at / BLOCK),
            Injection::ReadError(at) => medium.read_errors.push(at / BLOCK),
            Injection::Full(full) => medium.full = full,
        }
    }

    /// Rot: flips one bit at rest, synced or not.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        let mut medium = self.medium();
        let (page, at) = (offset / BLOCK, (offset % BLOCK) as usize);
        for map in ["seen", "durable"] {
            let map = if map == "seen" { &mut medium.seen } else { &mut medium.durable };
            if let Some(page) = map.get_mut(&page) {
                Arc::make_mut(page)[at] ^= 1 << (bit % 8);
            }
        }
    }

    /// How many I/Os that change the medium (writes, syncs, discards) were attempted so far.
    #[must_use]
    pub fn io_index(&self) -> u64 {
        self.medium().io_index
    }

    /// How many syncs completed.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.medium().syncs
    }

    /// Whether the power is on.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.medium().powered
    }

    fn alive(&self) -> Result<MutexGuard<'_, Medium>, Error> {
        let medium = self.medium();
        if medium.powered && medium.life == self.life { Ok(medium) } else { Err(Error::PoweredOff) }
    }

    /// Counts one I/O; true when the power goes with it.
    fn count(medium: &mut Medium) -> bool {
        let index = medium.io_index;
        medium.io_index += 1;
        medium.powered = medium.power_off_at.is_none_or(|at| index < at);
        !medium.powered
    }
}

impl Medium {
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn settle(&mut self, policy: CrashPolicy) {
        let mut writes = std::mem::take(&mut self.unsynced);
        if policy.reorder {
            for i in (1..writes.len()).rev() {
                let j = self.below(i as u64 + 1) as usize;
                writes.swap(i, j);
            }
        }
        for (offset, data) in writes {
            let fate = self.below(1000) as u32;
            if fate < policy.lose {
                continue;
            }
            let torn = fate < policy.lose + policy.tear;
            let flipped = !torn && fate < policy.lose + policy.tear + policy.flip;
            let flip = flipped.then(|| (self.below(data.len() as u64) as usize, self.below(8) as u8));
            for (i, sector) in data.chunks(SECTOR).enumerate() {
                if torn && self.below(2) == 0 {
                    continue;
                }
                let mut sector = sector.to_vec();
                if let Some((at, bit)) = flip.filter(|(at, _)| at / SECTOR == i) {
                    sector[at % SECTOR] ^= 1 << bit;
                }
                put(&mut self.durable, offset + (i * SECTOR) as u64, &sector);
            }
        }
        self.seen = self.durable.clone();
    }

    fn write(&mut self, offset: u64, data: Bytes) {
        put(&mut self.seen, offset, &data);
        let (first, last) = (offset / BLOCK, (offset + data.len() as u64 - 1) / BLOCK);
        self.read_errors.retain(|page| !(first..=last).contains(page));
        self.unsynced.push((offset, data));
    }
}

fn put(map: &mut BTreeMap<u64, Page>, offset: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let at = offset + done as u64;
        let (page, start) = (at / BLOCK, (at % BLOCK) as usize);
        let n = (BLOCK as usize - start).min(data.len() - done);
        let page = map.entry(page).or_insert_with(|| Arc::new([0; BLOCK as usize]));
        Arc::make_mut(page)[start..start + n].copy_from_slice(&data[done..done + n]);
        done += n;
    }
}

impl Disk for SimDisk {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        check_range("read", offset, buf.len() as u64, self.len)?;
        let medium = self.alive()?;
        for (i, chunk) in buf.chunks_mut(BLOCK as usize).enumerate() {
            let page = offset / BLOCK + i as u64;
            if medium.read_errors.contains(&page) {
                return Err(Error::Io { op: "read", offset: page * BLOCK, len: BLOCK, errno: Errno::IO });
            }
            match medium.seen.get(&page) {
                Some(page) => chunk.copy_from_slice(&page[..]),
                None => chunk.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        check_range("write", offset, len as u64, self.len)?;
        let mut medium = self.alive()?;
        let off = Self::count(&mut medium);
        let pages = offset / BLOCK..(offset + len as u64) / BLOCK;
        if let Some(at) = medium.write_errors.iter().position(|page| pages.contains(page)) {
            medium.write_errors.remove(at);
            return Err(Error::Io { op: "write", offset, len: len as u64, errno: Errno::IO });
        }
        if medium.full && pages.clone().any(|page| !medium.seen.contains_key(&page)) {
            return Err(Error::NoSpace { offset, len: len as u64 });
        }
        if len > 0 {
            let mut whole = Vec::with_capacity(len);
            pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
            medium.write(offset, Bytes::from(whole));
        }
        if off { Err(Error::PoweredOff) } else { Ok(()) }
    }

    fn sync(&self) -> Result<(), Error> {
        let mut medium = self.alive()?;
        if Self::count(&mut medium) {
            return Err(Error::PoweredOff);
        }
        let due = medium.sync_error_in == Some(0);
        medium.sync_error_in = medium.sync_error_in.and_then(|more| more.checked_sub(1));
        if due {
            return Err(Error::Io { op: "sync", offset: 0, len: self.len, errno: Errno::IO });
        }
        let writes = std::mem::take(&mut medium.unsynced);
        for (offset, data) in writes {
            for page in offset / BLOCK..(offset + data.len() as u64) / BLOCK {
                let now = Arc::clone(&medium.seen[&page]);
                medium.durable.insert(page, now);
            }
        }
        medium.syncs += 1;
        Ok(())
    }

    /// Leaves rubbish: nobody may rely on what a discarded range reads as.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        check_range("discard", offset, len, self.len)?;
        let mut medium = self.alive()?;
        let off = Self::count(&mut medium);
        let fill = medium.next() as u8;
        medium.write(offset, Bytes::from(vec![fill; len as usize]));
        if off { Err(Error::PoweredOff) } else { Ok(()) }
    }

    fn wants_prewrite(&self) -> bool {
        self.medium().prewrite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(fill: u8) -> Bytes {
        Bytes::from(vec![fill; BLOCK as usize])
    }

    fn read(disk: &SimDisk, page: u64) -> Vec<u8> {
        let mut buf = vec![0; BLOCK as usize];
        disk.read_at(page * BLOCK, &mut buf).unwrap();
        buf
    }

    #[test]
    fn synced_writes_survive_every_cut() {
        for seed in 0..50 {
            let disk = SimDisk::new(1 << 20, seed);
            disk.write_at(0, &[block(1)]).unwrap();
            disk.sync().unwrap();
            disk.write_at(BLOCK, &[block(2)]).unwrap();
            let disk = disk.power_on(CrashPolicy::HARSH);
            assert_eq!(read(&disk, 0), &block(1)[..]);
        }
    }

    #[test]
    fn unsynced_writes_are_lost_torn_and_flipped_sooner_or_later() {
        let (mut kept, mut lost, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let disk = SimDisk::new(1 << 20, seed);
            disk.write_at(0, &[block(1)]).unwrap();
            let disk = disk.power_on(CrashPolicy::HARSH);
            match read(&disk, 0).iter().filter(|b| **b == 1).count() {
                0 => lost += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(kept > 20 && lost > 20 && torn > 20, "{kept} {lost} {torn}");
    }

    #[test]
    fn a_handle_dies_with_its_power() {
        let old = SimDisk::new(1 << 20, 1);
        let new = old.power_on(CrashPolicy::KEEP_ALL);
        assert_eq!(old.write_at(0, &[block(9)]), Err(Error::PoweredOff));
        assert_eq!(read(&new, 0), &block(0)[..]);
    }

    #[test]
    fn the_power_goes_at_the_chosen_io() {
        let disk = SimDisk::new(1 << 20, 1);
        disk.inject(Injection::PowerOffAt(2));
        disk.write_at(0, &[block(1)]).unwrap();
        disk.sync().unwrap();
        assert_eq!(disk.write_at(0, &[block(2)]), Err(Error::PoweredOff));
        let disk = disk.power_on(CrashPolicy::LOSE_ALL);
        assert_eq!(read(&disk, 0), &block(1)[..]);
    }

    #[test]
    fn faults_come_as_ordered() {
        let disk = SimDisk::new(1 << 20, 1);
        disk.inject(Injection::SyncError);
        assert!(disk.sync().is_err());
        assert!(disk.sync().is_ok());
        disk.inject(Injection::ReadError(BLOCK));
        let mut buf = vec![0; BLOCK as usize];
        assert!(disk.read_at(BLOCK, &mut buf).is_err());
        disk.write_at(BLOCK, &[block(1)]).unwrap();
        assert!(disk.read_at(BLOCK, &mut buf).is_ok());
        disk.inject(Injection::Full(true));
        assert!(disk.write_at(8 * BLOCK, &[block(1)]).unwrap_err().is_no_space());
        disk.write_at(BLOCK, &[block(2)]).unwrap();
        disk.flip_bit(BLOCK, 0);
        disk.read_at(BLOCK, &mut buf).unwrap();
        assert_eq!(buf[0], 3);
    }

    #[test]
    fn a_fork_goes_its_own_way() {
        let disk = SimDisk::new(1 << 20, 1);
        disk.write_at(0, &[block(1)]).unwrap();
        let fork = disk.fork();
        fork.write_at(0, &[block(2)]).unwrap();
        assert_eq!(read(&disk, 0), &block(1)[..]);
        assert_eq!(read(&fork, 0), &block(2)[..]);
    }
}
