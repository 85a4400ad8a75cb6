//! How a PG changes its log and tells the store: every change of what this member holds is one transaction with
//! the log entry, its data, the commit point and the state that goes with it.

use std::collections::BTreeSet;

use cairn_types::peer::{EntryOp, LogPoint, Logged, Run, RunContent};
use cairn_types::{BLOCK_SIZE, Epoch};

use super::log::Kept;
use super::record::{self, Membership};
use super::{Ctx, Durable, Pg};
use crate::output::Transaction;
use crate::planted::{Bug, planted};

/// After this long without a record of its own, the commit point is stored by itself.
const IDLE_COMMIT_MS: u64 = 200;

impl Pg {
    /// A transaction that carries the commit point and what changed beside the log.
    pub(super) fn transaction(&mut self) -> Transaction {
        let mut transaction = Transaction::new(self.id, self.log.commit());
        transaction.attributes = std::mem::take(&mut self.dropped);
        transaction.attributes.extend(self.absents.take_changes());
        transaction.attributes.extend(self.missing.take_changes());
        transaction
    }

    /// Hands a transaction over.
    pub(super) fn store(&mut self, ctx: &mut Ctx<'_>, transaction: Transaction, durable: Durable) {
        self.stored_commit = transaction.commit;
        self.stored_at = ctx.now;
        ctx.out.persist(ctx.now, transaction, durable);
    }

    /// What is durable when everything appended so far is.
    pub(super) fn log_durable(&self) -> Durable {
        Durable { log: Some((self.log.lineage(), self.log.end().seq())), ..Durable::default() }
    }

    /// Appends entries to the log, here and in the store.
    pub(super) fn append(&mut self, ctx: &mut Ctx<'_>, entries: Vec<Logged>) {
        for logged in &entries {
            self.log.append(logged.clone());
            self.dups.record(&logged.entry);
            self.absents.fold(&logged.entry, self.object_size);
        }
        let mut transaction = self.transaction();
        transaction.append = entries;
        self.trim_into(ctx, &mut transaction);
        let durable = self.log_durable();
        self.store(ctx, transaction, durable);
    }

    /// Cuts the log back, here and in the store; gives what was cut.
    pub(super) fn rewind(&mut self, ctx: &mut Ctx<'_>, to: u64) -> Vec<Kept> {
        let cut = self.log.rewind(to);
        if !cut.is_empty() {
            for kept in &cut {
                self.dups.forget(&kept.entry);
            }
            // Whoever is absent may still have these entries, and the log will not say so after a restart. Found by the
            // simulation: a member came back with a fenced entry that everybody else had cut.
            if !planted(Bug::ForgetCutEntries) {
                self.absents.keep(&cut.iter().map(|kept| kept.entry.op.object()).collect());
            }
            let mut transaction = self.transaction();
            transaction.rewind = Some(to);
            let durable = self.log_durable();
            self.store(ctx, transaction, durable);
        }
        cut
    }

    /// Moves the commit point. The store learns of it with the next record.
    pub(super) fn commit_through(&mut self, seq: u64) {
        let before = self.log.commit();
        self.log.commit_through(seq);
        if !self.missing.is_empty() {
            for kept in self.log.after(before).take((seq - before) as usize) {
                self.missing.written(&kept.entry.op, self.object_size);
            }
        }
        if self.primary.is_none() {
            self.log.drop_data(seq);
        }
    }

    /// An idle PG tells the store its commit point too, so that nothing stays pending for ever.
    pub(super) fn store_idle_commit(&mut self, ctx: &mut Ctx<'_>) {
        if self.stored_commit < self.log.commit() && ctx.now.ms_since(self.stored_at) >= IDLE_COMMIT_MS {
            let transaction = self.transaction();
            self.store(ctx, transaction, Durable::default());
        }
    }

    /// Forgets old entries when there are many; what they alone told is kept as attributes.
    fn trim_into(&mut self, ctx: &Ctx<'_>, transaction: &mut Transaction) {
        let keep = ctx.own.log_entries;
        if self.log.committed_kept() <= keep + keep / 4 {
            return;
        }
        // A member that takes entries is not left behind for a while, but not waited for without end.
        let patience = self.log.commit().saturating_sub(8 * keep as u64);
        let through = (self.log.commit() - keep as u64).min(self.needed_after().max(patience));
        if through <= self.log.base().seq() {
            return;
        }
        let gone = self.log.trim(through);
        let sessions = gone.iter().map(|kept| kept.entry.request.session).collect::<BTreeSet<_>>();
        let objects = gone.iter().map(|kept| kept.entry.op.object()).collect::<BTreeSet<_>>();
        for session in sessions.into_iter().filter(|_| !planted(Bug::TrimDups)) {
            let row = self.dups.session(session, self.log.commit());
            transaction.attributes.push(record::session(session, row.as_ref()));
        }
        if !planted(Bug::TrimDirty) {
            self.absents.keep(&objects);
        }
        transaction.attributes.extend(self.absents.take_changes());
        transaction.attributes.push(record::base(self.log.base()));
        transaction.trim = Some(through);
    }

    /// The membership record for the configuration in force.
    pub(super) fn membership(&self, epoch: Epoch) -> record::Attribute {
        record::membership(&Membership {
            c: self.config.c,
            epoch,
            usable: self.usable,
            object_size: self.object_size,
            isr: self.config.isr.clone(),
        })
    }

    /// Whether an entry from another OSD can be this object store's at all: aligned, inside the object, with data
    /// that matches its checksums. What does not is damage on the way, never asserted.
    pub(super) fn is_sound(&self, logged: &Logged) -> bool {
        let (offset, len) = logged.entry.op.range();
        let inside = match &logged.entry.op {
            EntryOp::Remove { .. } => true,
            EntryOp::Write { .. } | EntryOp::Zero { .. } => {
                len > 0
                    && offset.is_multiple_of(BLOCK_SIZE)
                    && len.is_multiple_of(BLOCK_SIZE)
                    && offset.checked_add(len).is_some_and(|end| end <= self.object_size)
            }
        };
        let data = match &logged.entry.op {
            EntryOp::Write { crcs, .. } => crcs_match(&logged.data, crcs),
            EntryOp::Zero { .. } | EntryOp::Remove { .. } => logged.data.is_empty(),
        };
        inside && data && logged.entry.op.object().pool == self.id.pool
    }

    /// The same of content.
    pub(super) fn is_sound_run(&self, run: &Run) -> bool {
        let inside = run.len > 0
            && run.offset.is_multiple_of(BLOCK_SIZE)
            && run.len.is_multiple_of(BLOCK_SIZE)
            && run.offset.checked_add(run.len).is_some_and(|end| end <= self.object_size);
        inside
            && match &run.content {
                RunContent::Data { data, crcs } => data.len() == run.len as usize && crcs_match(data, crcs),
                RunContent::Absent | RunContent::Zero => true,
            }
    }

    /// Whether an entry continues the log.
    pub(super) fn continues(&self, logged: &Logged) -> bool {
        let end: LogPoint = self.log.end();
        logged.entry.version.seq == end.seq() + 1
            && logged.entry.prev == end.hash
            && logged.entry.version >= end.version
            && logged.entry.version.c <= self.config.c
    }
}

/// Whether each block of the data has its checksum.
pub(super) fn crcs_match(data: &[u8], crcs: &[u32]) -> bool {
    data.len() == crcs.len() * BLOCK_SIZE as usize
        && data.chunks(BLOCK_SIZE as usize).zip(crcs).all(|(block, crc)| crc32c::crc32c(block) == *crc)
}
