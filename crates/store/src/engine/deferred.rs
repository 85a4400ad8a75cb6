//! Committed bytes that are only in the log, on their way to their places. Only the newest version of a block is
//! copied; a block that a read has pinned waits for it.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Purpose, Store};
use crate::io::IoOp;

/// Blocks in one write at most.
const RUN: u64 = 256;
/// Writes in flight at most.
const IN_FLIGHT: usize = 4;

#[derive(Debug)]
struct Waiting {
    data: Bytes,
    epoch: u64,
    /// The data is being written; what came after it.
    writing: Option<Option<(Bytes, u64)>>,
}

/// The blocks that wait, by place.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    blocks: BTreeMap<u64, Waiting>,
    /// How many versions of each epoch there are.
    epochs: BTreeMap<u64, usize>,
    in_flight: usize,
    cursor: u64,
}

impl Deferred {
    pub(super) fn put(&mut self, at: u64, data: Bytes, epoch: u64) {
        *self.epochs.entry(epoch).or_default() += 1;
        match self.blocks.get_mut(&at) {
            None => {
                self.blocks.insert(at, Waiting { data, epoch, writing: None });
            }
            Some(waiting) => {
                let old = match &mut waiting.writing {
                    Some(next) => next.replace((data, epoch)).map(|(_, epoch)| epoch),
                    None => {
                        waiting.data = data;
                        Some(std::mem::replace(&mut waiting.epoch, epoch))
                    }
                };
                if let Some(old) = old {
                    self.drop_epoch(old);
                }
            }
        }
    }

    /// The block is free: what waits for it is not needed.
    pub(super) fn forget(&mut self, at: u64) {
        let Some(waiting) = self.blocks.get_mut(&at) else { return };
        let epoch = match &mut waiting.writing {
            Some(next) => next.take().map(|(_, epoch)| epoch),
            None => self.blocks.remove(&at).map(|waiting| waiting.epoch),
        };
        if let Some(epoch) = epoch {
            self.drop_epoch(epoch);
        }
    }

    /// The newest bytes of a block, if its place does not have them yet.
    pub(super) fn get(&self, at: u64) -> Option<&Bytes> {
        let waiting = self.blocks.get(&at)?;
        match &waiting.writing {
            Some(Some((data, _))) => Some(data),
            _ => Some(&waiting.data),
        }
    }

    pub(super) fn contains(&self, at: u64) -> bool {
        self.blocks.contains_key(&at)
    }

    /// Whether versions of this epoch or earlier ones wait.
    pub(super) fn has_through(&self, epoch: u64) -> bool {
        self.epochs.first_key_value().is_some_and(|(first, _)| *first <= epoch)
    }

    pub(super) fn bytes(&self) -> usize {
        self.blocks.len() * 4096
    }

    fn drop_epoch(&mut self, epoch: u64) {
        if let Some(count) = self.epochs.get_mut(&epoch) {
            *count -= 1;
            if *count == 0 {
                self.epochs.remove(&epoch);
            }
        }
    }

    /// The next run of neighbouring blocks to write, going round.
    fn next_run(&mut self, pins: &BTreeMap<u64, u32>) -> Option<(u64, Vec<Bytes>)> {
        let ready = |(at, waiting): &(&u64, &Waiting)| waiting.writing.is_none() && !pins.contains_key(*at);
        let after = self.blocks.range(self.cursor..).find(ready);
        let start = *after.or_else(|| self.blocks.range(..self.cursor).find(ready))?.0;
        let mut pieces = Vec::new();
        for at in start..start + RUN {
            match self.blocks.get_mut(&at) {
                Some(waiting) if waiting.writing.is_none() && !pins.contains_key(&at) => {
                    waiting.writing = Some(None);
                    pieces.push(waiting.data.clone());
                }
                _ => break,
            }
        }
        self.cursor = start + pieces.len() as u64;
        Some((start, pieces))
    }

    fn written(&mut self, at: u64) {
        let Some(waiting) = self.blocks.get_mut(&at) else { return };
        let done = waiting.epoch;
        match waiting.writing.take().flatten() {
            Some((data, epoch)) => (waiting.data, waiting.epoch) = (data, epoch),
            None => {
                self.blocks.remove(&at);
            }
        }
        self.drop_epoch(done);
    }
}

impl Store {
    /// Copies when much waits, or when a checkpoint waits for it.
    pub(super) fn issue_deferred(&mut self) {
        let due = self.checkpoint.as_ref().is_some_and(|run| self.deferred.has_through(run.epoch()));
        while self.deferred.in_flight < IN_FLIGHT && (due || self.deferred.bytes() > self.config.deferred_max) {
            let Some((start, pieces)) = self.deferred.next_run(&self.pins) else { break };
            self.deferred.in_flight += 1;
            let blocks = (start..start + pieces.len() as u64).collect();
            self.issue(IoOp::Write { offset: start * 4096, pieces, sync: false }, Purpose::Deferred { blocks });
        }
    }

    pub(super) fn deferred_written(&mut self, blocks: &[u64]) {
        self.deferred.in_flight -= 1;
        blocks.iter().for_each(|at| self.deferred.written(*at));
    }
}
