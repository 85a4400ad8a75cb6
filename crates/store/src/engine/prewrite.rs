//! Writing a sparse file ahead of use: the first write to a hole costs a journal commit of the filesystem with the
//! next flush, and may find the filesystem full. So only blocks that were written once are given out, and zeros are
//! written ahead of the need, one chunk at a time. Beside what is ahead of use, half of the reserve is always written:
//! what was let in before the filesystem turned out to be full still finds its place.

use bytes::Bytes;
use cairn_disk::AlignedBuf;

use super::dirty::nodes_for;
use super::{Purpose, Store};
use crate::error::Error;
use crate::io::{IoOp, IoResult};

/// Blocks in one chunk: 1 MiB.
const CHUNK: u64 = 256;
/// Fewer free blocks than these are not enough to wait for a pause.
const URGENT: u64 = 2048;

#[derive(Debug)]
pub(super) struct Prewrite {
    in_flight: bool,
    /// The filesystem had no room the last time.
    full: bool,
    /// In this life, and since it had none, enough was written ahead to believe that there is room.
    proven: bool,
    /// Blocks in the next chunk: fewer, where the last one did not fit.
    chunk: u64,
    /// Free blocks somebody waits for.
    wanted: u64,
    zeros: Bytes,
}

impl Default for Prewrite {
    fn default() -> Self {
        Self { in_flight: false, full: false, proven: false, chunk: CHUNK, wanted: 0, zeros: Bytes::new() }
    }
}

impl Store {
    pub(super) fn issue_prewrite(&mut self) {
        let end = self.area_end();
        let ahead = self.config.prewrite_ahead / 4096;
        let target = ahead.max(ahead / 2 + nodes_for(self.waiting_rows())) + self.floor_blocks();
        let target = target.max(self.prewrite.wanted);
        // While somebody's write is under way the disk is theirs, unless the next one would have to wait.
        let urgent = URGENT.max(self.proof_blocks()).max(self.prewrite.wanted);
        let busy = self.group.is_some() && self.free.free_blocks() >= urgent;
        let enough = busy || (self.prewrite.proven && self.free.free_blocks() >= target);
        if self.prewrite.in_flight || self.prewrite.full || enough || self.written_through >= end {
            return;
        }
        if self.prewrite.zeros.is_empty() {
            self.prewrite.zeros = AlignedBuf::zeroed((CHUNK * 4096) as usize).freeze();
        }
        let blocks = self.prewrite.chunk.min(end - self.written_through);
        let zeros = self.prewrite.zeros.slice(..(blocks * 4096) as usize);
        self.prewrite.in_flight = true;
        let write = IoOp::Write { offset: self.written_through * 4096, pieces: vec![zeros], sync: false };
        self.issue(write, Purpose::Prewrite { blocks });
    }

    pub(super) fn prewritten(&mut self, blocks: u64, result: IoResult) {
        self.prewrite.in_flight = false;
        match result {
            Ok(_) => {
                self.free.give(self.written_through, blocks);
                self.written_through += blocks;
                self.prewrite.chunk = (self.prewrite.chunk * 2).min(CHUNK);
                self.prewrite.proven |= self.free.free_blocks() >= self.proof_blocks();
                if self.free.free_blocks() >= self.prewrite.wanted {
                    self.prewrite.wanted = 0;
                }
            }
            Err(error) if error.is_no_space() => {
                self.prewrite.proven = false;
                self.prewrite.full = blocks == 1;
                self.prewrite.chunk = (blocks / 4).max(1);
            }
            Err(error) => self.fail(Error::Disk(error)),
        }
        self.wake();
    }

    /// Somebody waits for this many free blocks; false when there are no more to write.
    pub(super) fn prewrite_now(&mut self, blocks: u64) -> bool {
        let more = self.written_through < self.area_end() && !self.prewrite.full;
        if more {
            self.prewrite.wanted = self.prewrite.wanted.max(blocks);
        }
        more
    }

    /// So many free blocks show that the filesystem below has room: with fewer left, what is under way when it turns
    /// out to be full would touch the index's own.
    fn proof_blocks(&self) -> u64 {
        (self.config.prewrite_ahead / 4096 / 2 + self.floor_blocks())
            .min(self.free.free_blocks() + self.unwritten_blocks())
    }

    /// Blocks of the file that were never written.
    pub(super) fn unwritten_blocks(&self) -> u64 {
        self.area_end() - self.written_through
    }

    /// The filesystem below has no room for more of the file.
    pub(super) fn medium_is_full(&self) -> bool {
        self.prewrite.full && self.unwritten_blocks() > 0
    }

    /// Whether there is reason to believe that the filesystem below has room for the rest of the file.
    pub(super) fn medium_gives_room(&self) -> bool {
        self.prewrite.proven || self.unwritten_blocks() == 0
    }

    /// Room may have come back on the filesystem.
    pub(super) fn prewrite_may_retry(&mut self) {
        if std::mem::take(&mut self.prewrite.full) {
            self.prewrite.chunk = CHUNK;
        }
    }
}
