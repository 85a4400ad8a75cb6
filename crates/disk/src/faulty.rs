//! A disk that fails as it is told, in front of a real one: for fault tests with real processes, never for data that
//! anybody wants back.
//!
//! What it does stands in lines of text, one fault each, and can change while it runs:
//!
//! ```text
//! # kind         options
//! read-error     rate=100 from=1048576 to=2097152
//! write-flip     rate=20 count=3
//! sync-latency   us=50000
//! full
//! ```
//!
//! Kinds: `read-error`, `write-error`, `sync-error`, `read-flip`, `write-flip` (one bit of the call's bytes), `read-latency`,
//! `write-latency`, `sync-latency` (`us` microseconds), `full` (first writes to holes of a file find no room). `rate` is
//! in calls of a million, all when not given; `from` and `to` choose calls that touch these bytes; `count` ends it.

use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use crate::{Disk, Error};

/// Rates are in calls of so many.
const MILLION: u64 = 1_000_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Reads fail.
    ReadError,
    /// Writes fail, and nothing is written.
    WriteError,
    /// Syncs fail.
    SyncError,
    /// Reads give a flipped bit.
    ReadFlip,
    /// Writes leave a flipped bit.
    WriteFlip,
    /// Reads take longer.
    ReadLatency,
    /// Writes take longer.
    WriteLatency,
    /// Syncs take longer.
    SyncLatency,
    /// Holes of a file cannot be filled.
    Full,
}

const KINDS: [(&str, FaultKind); 9] = [
    ("read-error", FaultKind::ReadError),
    ("write-error", FaultKind::WriteError),
    ("sync-error", FaultKind::SyncError),
    ("read-flip", FaultKind::ReadFlip),
    ("write-flip", FaultKind::WriteFlip),
    ("read-latency", FaultKind::ReadLatency),
    ("write-latency", FaultKind::WriteLatency),
    ("sync-latency", FaultKind::SyncLatency),
    ("full", FaultKind::Full),
];

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// In how many calls of a million.
    pub rate: u64,
    /// Calls that touch bytes from here
    pub from: u64,
    /// to here, which is not included.
    pub to: u64,
    /// It happens so often at most.
    pub count: u64,
    /// Microseconds, of a latency.
    pub us: u64,
}

/// A line that says nothing known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fault; faults are a kind (read-error, full, ...) and options like rate=100")]
pub struct UnknownFault(String);

impl FromStr for Fault {
    type Err = UnknownFault;

    fn from_str(line: &str) -> Result<Self, UnknownFault> {
        let unknown = || UnknownFault(line.to_owned());
        let mut words = line.split_whitespace();
        let name = words.next().ok_or_else(unknown)?;
        let (_, kind) = *KINDS.iter().find(|(known, _)| *known == name).ok_or_else(unknown)?;
        let mut fault = Self { kind, rate: MILLION, from: 0, to: u64::MAX, count: u64::MAX, us: 0 };
        for word in words {
            let (option, value) = word.split_once('=').ok_or_else(unknown)?;
            let value: u64 = value.parse().map_err(|_| unknown())?;
            match option {
                "rate" => fault.rate = value,
                "from" => fault.from = value,
                "to" => fault.to = value,
                "count" => fault.count = value,
                "us" => fault.us = value,
                _ => return Err(unknown()),
            }
        }
        Ok(fault)
    }
}

/// The faults of a text; empty lines and lines that begin with `#` are none.
///
/// # Errors
/// At the first line that says nothing known.
pub fn parse_faults(text: &str) -> Result<Vec<Fault>, UnknownFault> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::parse).collect()
}

/// A disk that fails as it is told.
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    state: Mutex<State>,
}

struct State {
    random: u64,
    faults: Vec<Fault>,
    happened: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl FaultyDisk {
    /// In front of `inner`, without a fault so far. Everything random comes from the seed and the order of the calls.
    #[must_use]
    pub fn new(inner: Arc<dyn Disk>, seed: u64) -> Self {
        Self { inner, state: Mutex::new(State { random: seed, faults: Vec::new(), happened: 0 }) }
    }

    /// From now on these.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        self.state().faults = faults;
    }

    /// How many faults happened so far.
    #[must_use]
    pub fn happened(&self) -> u64 {
        self.state().happened
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    fn has(&self, kind: FaultKind) -> bool {
        self.state().faults.iter().any(|fault| fault.kind == kind)
    }

    /// Whether a fault of this kind happens to a call, with its microseconds and something random.
    fn strikes(&self, kind: FaultKind, offset: u64, len: u64) -> Option<(u64, u64)> {
        let mut state = self.state();
        for i in 0..state.faults.len() {
            let fault = state.faults[i];
            let touches = kind == fault.kind && offset < fault.to && offset.saturating_add(len) > fault.from;
            if touches && fault.count > 0 && state.next() % MILLION < fault.rate {
                state.faults[i].count -= 1;
                state.happened += 1;
                let random = state.next();
                return Some((fault.us, random));
            }
        }
        None
    }

    fn delay(&self, kind: FaultKind, offset: u64, len: u64) {
        if let Some((us, _)) = self.strikes(kind, offset, len) {
            std::thread::sleep(Duration::from_micros(us));
        }
    }
}

fn failed(op: &'static str, offset: u64, len: u64) -> Error {
    Error::Io { op, offset, len, errno: Errno::IO }
}

/// The bit of so many bytes that a random number means: (byte, mask).
fn bit_of(random: u64, len: usize) -> (usize, u8) {
    let bit = (random % (len as u64 * 8)) as usize;
    (bit / 8, 1 << (bit % 8))
}

impl Disk for FaultyDisk {
    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let len = buf.len() as u64;
        self.delay(FaultKind::ReadLatency, offset, len);
        if self.strikes(FaultKind::ReadError, offset, len).is_some() {
            return Err(failed("read", offset, len));
        }
        self.inner.read_at(offset, buf)?;
        if let Some((_, random)) = self.strikes(FaultKind::ReadFlip, offset, len).filter(|_| !buf.is_empty()) {
            let (at, mask) = bit_of(random, buf.len());
            buf[at] ^= mask;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, pieces: &[Bytes]) -> Result<(), Error> {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        self.delay(FaultKind::WriteLatency, offset, len as u64);
        if self.strikes(FaultKind::WriteError, offset, len as u64).is_some() {
            return Err(failed("write", offset, len as u64));
        }
        // Looking for a hole takes long on some filesystems: only where it matters.
        let full = self.has(FaultKind::Full) && self.inner.has_hole(offset, len as u64);
        if full && self.strikes(FaultKind::Full, offset, len as u64).is_some() {
            return Err(Error::NoSpace { offset, len: len as u64 });
        }
        match self.strikes(FaultKind::WriteFlip, offset, len as u64).filter(|_| len > 0) {
            None => self.inner.write_at(offset, pieces),
            Some((_, random)) => {
                let mut whole = BytesMut::with_capacity(len);
                pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                let (at, mask) = bit_of(random, len);
                whole[at] ^= mask;
                self.inner.write_at(offset, &[whole.freeze()])
            }
        }
    }

    fn sync(&self) -> Result<(), Error> {
        self.delay(FaultKind::SyncLatency, 0, self.len());
        if self.strikes(FaultKind::SyncError, 0, self.len()).is_some() {
            return Err(failed("sync", 0, self.len()));
        }
        self.inner.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Error> {
        self.inner.discard(offset, len)
    }

    fn wants_prewrite(&self) -> bool {
        self.inner.wants_prewrite()
    }

    fn has_hole(&self, offset: u64, len: u64) -> bool {
        self.inner.has_hole(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileDisk, OpenOptions, SimDisk};

    fn faulty(faults: &str) -> FaultyDisk {
        let disk = FaultyDisk::new(Arc::new(SimDisk::new(1 << 20, 1)), 1);
        disk.set_faults(parse_faults(faults).unwrap());
        disk
    }

    fn block(fill: u8) -> Bytes {
        Bytes::from(vec![fill; 4096])
    }

    #[test]
    fn calls_in_the_range_fail_and_others_do_not() {
        let disk = faulty("# a comment\n\nwrite-error from=8192 to=12288\nsync-error count=1\nread-error rate=500000");
        disk.write_at(4096, &[block(1)]).unwrap();
        assert!(disk.write_at(4096, &[block(1), block(2)]).is_err(), "the second block is in the range");
        assert!(disk.sync().is_err() && disk.sync().is_ok(), "once");
        let mut buf = vec![0; 4096];
        let failed = (0..1000).filter(|_| disk.read_at(4096, &mut buf).is_err()).count();
        assert!((400..600).contains(&failed), "{failed}");
        assert_eq!(disk.happened(), failed as u64 + 2);
        disk.set_faults(Vec::new());
        disk.write_at(8192, &[block(3)]).unwrap();
    }

    #[test]
    fn a_flip_is_one_bit() {
        let flipped = |disk: &FaultyDisk| {
            let mut buf = vec![0; 4096];
            disk.read_at(0, &mut buf).unwrap();
            buf.iter().map(|byte| byte.count_ones()).sum::<u32>()
        };
        let disk = faulty("read-flip count=1");
        assert_eq!((flipped(&disk), flipped(&disk)), (1, 0), "what lies there is whole");
        let disk = faulty("write-flip count=1");
        disk.write_at(0, &[block(0)]).unwrap();
        assert_eq!((flipped(&disk), flipped(&disk)), (1, 1), "what lies there is not");
    }

    #[test]
    fn a_full_filesystem_keeps_what_it_gave() {
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions { path: dir.path().join("disk"), create_len: Some(8 << 20), read_only: false };
        let disk = FaultyDisk::new(Arc::new(FileDisk::open(&options).unwrap()), 1);
        disk.write_at(0, &[Bytes::from(vec![7; 1 << 20])]).unwrap();
        disk.set_faults(parse_faults("full").unwrap());
        disk.write_at(4096, &[block(1)]).unwrap();
        assert!(disk.write_at(4 << 20, &[block(1)]).unwrap_err().is_no_space());
        disk.set_faults(Vec::new());
        disk.write_at(4 << 20, &[block(1)]).unwrap();
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for line in ["explode", "read-error often", "read-error rate=x", "full size=3"] {
            assert_eq!(parse_faults(line), Err(UnknownFault(line.to_owned())));
        }
    }
}
