//! A request is executed once (I6): among the committed entries of all logs it stands at one position only.

use std::collections::BTreeMap;

use cairn_osd_core::Transaction;
use cairn_types::peer::LogPoint;
use cairn_types::{PgId, RequestId, SessionId};

use super::{Check, Violation};

/// One OSD's logs as its core wrote them, durable or not: which request stands where.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    requests: BTreeMap<PgId, BTreeMap<u64, RequestId>>,
}

impl Logs {
    /// The core writes.
    pub(crate) fn follow(&mut self, transaction: &Transaction) {
        let log = self.requests.entry(transaction.pg).or_default();
        if let Some(to) = transaction.rewind {
            log.retain(|seq, _| *seq <= to);
        }
        if transaction.restart.is_some() {
            log.clear();
        }
        for logged in &transaction.append {
            log.insert(logged.entry.version.seq, logged.entry.request);
        }
        if let Some(through) = transaction.trim {
            // What is looked at lies above the commit point of a moment ago.
            log.retain(|seq, _| seq + 512 > through);
        }
    }

    /// A new life found this.
    pub(crate) fn found(&mut self, pg: PgId, log: impl Iterator<Item = (u64, RequestId)>) {
        self.requests.insert(pg, log.collect());
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Once {
    through: BTreeMap<PgId, u64>,
    executed: BTreeMap<RequestId, (PgId, u64)>,
}

impl Once {
    /// Some OSD calls its log committed through this point.
    pub(crate) fn committed(&mut self, pg: PgId, point: LogPoint, logs: &Logs) -> Result<(), Violation> {
        let through = self.through.entry(pg).or_default();
        if point.seq() <= *through {
            return Ok(());
        }
        let after = *through;
        *through = point.seq();
        let Some(log) = logs.requests.get(&pg) else { return Ok(()) };
        for (seq, request) in log.range(after + 1..=point.seq()).filter(|(_, id)| id.session != SessionId::default()) {
            if let Some((_, before)) = self.executed.insert(*request, (pg, *seq)) {
                let what = format!("{pg}: {request:?} was executed at {before} and again at {seq}");
                return Err(Violation::new(Check::Once, what));
            }
        }
        Ok(())
    }
}
