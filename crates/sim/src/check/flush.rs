//! The flush oracle: no write is acknowledged before a flush that covers it has completed on every in-sync member of
//! the configuration under which it is acknowledged. It watches the disks, not the cores.

use std::collections::{BTreeMap, BTreeSet};

use cairn_osd_core::Transaction;
use cairn_types::map::PgConfig;
use cairn_types::{OsdId, PgId, RequestId};

use super::{Check, Violation};

/// What one durable transaction means to the oracle.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Entry(PgId, u64, RequestId),
    Rewound(PgId, u64),
    /// The content stands for everything through here.
    Base(PgId, u64),
    /// The first was split off the second: what was executed there was executed here.
    Half(PgId, PgId),
}

/// What a transaction means, once it is durable.
pub(crate) fn effects(transaction: &Transaction) -> Vec<Effect> {
    let pg = transaction.pg;
    let mut effects = Vec::new();
    effects.extend(transaction.rewind.map(|to| Effect::Rewound(pg, to)));
    effects.extend(transaction.restart.map(|base| Effect::Base(pg, base.seq())));
    let attributes = transaction.attributes.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?)));
    let born = cairn_osd_core::remembered(&attributes.collect::<Vec<_>>()).and_then(|known| known.born);
    effects.extend(born.map(|born| Effect::Half(pg, PgId { index: born.from, ..pg })));
    let entries = transaction.append.iter().map(|logged| &logged.entry);
    effects.extend(entries.map(|entry| Effect::Entry(pg, entry.version.seq, entry.request)));
    effects
}

/// What one disk holds for certain.
#[derive(Clone, Debug, Default)]
pub(crate) struct Synced {
    entries: BTreeMap<PgId, BTreeMap<u64, RequestId>>,
    /// What a half has from the whole.
    inherited: BTreeMap<PgId, BTreeMap<u64, RequestId>>,
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
            Effect::Half(half, whole) => {
                let mut all = self.inherited.get(&whole).cloned().unwrap_or_default();
                all.extend(self.entries.get(&whole).into_iter().flatten());
                self.inherited.insert(half, all);
            }
        }
    }

    /// What a new life finds of a PG's log is durable, whether its flush was seen to complete or not; what lies
    /// below it was committed and durable when it was forgotten.
    pub(crate) fn found(&mut self, pg: PgId, base: u64, log: impl Iterator<Item = (u64, RequestId)>) {
        self.bases.insert(pg, base);
        let entries = self.entries.entry(pg).or_default();
        entries.retain(|seq, _| *seq <= base);
        entries.extend(log);
    }

    /// Where a request stands in a PG's log here.
    fn position(&self, pg: PgId, request: RequestId) -> Option<u64> {
        let mut all = self.entries.get(&pg).into_iter().chain(self.inherited.get(&pg)).flat_map(|all| all.iter().rev());
        all.find(|(_, id)| **id == request).map(|(seq, _)| *seq)
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
    /// An OSD acknowledges a write. `configs` are what it goes by and what is newest in the metadata service: both may
    /// be in force. `disks` are all of them.
    pub(crate) fn acked(
        &mut self,
        request: RequestId,
        pg: PgId,
        configs: &[&PgConfig],
        min_size: usize,
        disks: &BTreeMap<OsdId, &Synced>,
    ) -> Result<(), Violation> {
        if !self.known.insert(request) {
            return Ok(());
        }
        let broken = |what: String| Err(Violation::new(Check::Flush, format!("{pg}: {request:?} {what}")));
        let everybody = configs.iter().flat_map(|config| &config.isr).collect::<BTreeSet<_>>();
        let position = everybody.iter().find_map(|osd| disks.get(osd)?.position(pg, request));
        let Some(seq) = position else {
            return broken("was acknowledged, but no in-sync disk has its entry".into());
        };
        for osd in &everybody {
            if !disks.get(osd).is_some_and(|disk| disk.covers(pg, seq, request)) {
                let sets = configs.iter().map(|config| (config.c, &config.isr)).collect::<Vec<_>>();
                return broken(format!(
                    "at {seq} was acknowledged while {sets:?} may be in force, but {osd} has no completed flush of it"
                ));
            }
        }
        if everybody.len() < min_size {
            return broken(format!("at {seq} was acknowledged by {} copies", everybody.len()));
        }
        Ok(())
    }
}
