//! The flush oracle: no write is acknowledged before a flush that covers it has completed on every in-sync member of
//! the configuration under which it is acknowledged. It watches the disks, not the cores.

use std::collections::{BTreeMap, BTreeSet};

use cairn_osd_core::Transaction;
use cairn_types::map::PgConfig;
use cairn_types::{OsdId, PgId, RequestId};

/// What one durable transaction means to the oracle.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Entry(PgId, u64, RequestId),
    Rewound(PgId, u64),
    /// The content stands for everything through here.
    Base(PgId, u64),
}

/// What a transaction means, once it is durable.
pub(crate) fn effects(transaction: &Transaction) -> Vec<Effect> {
    let pg = transaction.pg;
    let mut effects = Vec::new();
    effects.extend(transaction.rewind.map(|to| Effect::Rewound(pg, to)));
    effects.extend(transaction.restart.map(|base| Effect::Base(pg, base.seq())));
    let entries = transaction.append.iter().map(|logged| &logged.entry);
    effects.extend(entries.map(|entry| Effect::Entry(pg, entry.version.seq, entry.request)));
    effects
}

/// What one disk holds for certain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Synced {
    entries: BTreeMap<PgId, BTreeMap<u64, RequestId>>,
    bases: BTreeMap<PgId, u64>,
}

impl Synced {
    pub(crate) fn take_in(&mut self, effect: Effect) {
        match effect {
            Effect::Entry(pg, seq, request) => {
                self.entries.entry(pg).or_default().insert(seq, request);
            }
            Effect::Rewound(pg, to) => {
                self.entries.entry(pg).or_default().retain(|seq, _| *seq <= to);
            }
            Effect::Base(pg, seq) => {
                self.bases.insert(pg, seq);
                self.entries.entry(pg).or_default().clear();
            }
        }
    }

    /// What a new life finds of a PG's log is durable, whether its flush was seen to complete or not; what lies
    /// below it was committed and durable when it was forgotten.
    pub(crate) fn found(&mut self, pg: PgId, base: u64, log: impl Iterator<Item = (u64, RequestId)>) {
        let log = log.collect::<BTreeMap<_, _>>();
        self.bases.insert(pg, base);
        self.entries.insert(pg, log);
    }

    /// Where a request stands in a PG's log here.
    fn position(&self, pg: PgId, request: RequestId) -> Option<u64> {
        self.entries.get(&pg)?.iter().rev().find(|(_, id)| **id == request).map(|(seq, _)| *seq)
    }

    fn covers(&self, pg: PgId, seq: u64, request: RequestId) -> bool {
        self.bases.get(&pg).is_some_and(|base| *base >= seq) || self.position(pg, request) == Some(seq)
    }
}

/// Requests whose first acknowledgement was found covered: later ones are repeats.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    known: BTreeSet<RequestId>,
}

impl Oracle {
    /// An OSD acknowledges a write. `config` is what it goes by; `disks` are all of them.
    pub(crate) fn acked(
        &mut self,
        request: RequestId,
        pg: PgId,
        config: &PgConfig,
        disks: &BTreeMap<OsdId, &Synced>,
    ) -> Result<(), String> {
        if !self.known.insert(request) {
            return Ok(());
        }
        let position = config.isr.iter().find_map(|osd| disks.get(osd)?.position(pg, request));
        let Some(seq) = position else {
            return Err(format!("{pg}: {request:?} was acknowledged, but no in-sync disk has its entry"));
        };
        for osd in &config.isr {
            if !disks.get(osd).is_some_and(|disk| disk.covers(pg, seq, request)) {
                return Err(format!(
                    "{pg}: {request:?} at {seq} was acknowledged under {} {:?}, but {osd} has no completed flush of it",
                    config.c, config.isr
                ));
            }
        }
        Ok(())
    }
}
