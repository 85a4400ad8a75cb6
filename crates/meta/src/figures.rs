//! What a member shows on its metrics page, where its process has one. Most of it is looked up when the page is read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::gateway::Gateway;
use crate::peers::Peers;

/// What the driver counts as it goes.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) proposals: AtomicU64,
    pub(crate) applied: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) snapshots_installed: AtomicU64,
    pub(crate) leader_changes: AtomicU64,
    /// Looked up now and then.
    pub(crate) db_bytes: AtomicU64,
}

/// One more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The figures of one member.
pub(crate) struct MemberFigures {
    pub(crate) gateway: Gateway,
    pub(crate) peers: Arc<Peers>,
    pub(crate) counts: Arc<Counts>,
}

impl fmt::Debug for MemberFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemberFigures")
    }
}

impl Collector for MemberFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (leadership, progress) = (self.gateway.leadership(), self.gateway.progress());
        let waiting = self.gateway.waiting();
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let gauges = [
            ("meta_raft_term", "The term this member is in", leadership.role.term),
            ("meta_raft_leader", "The leader's number; 0: none known", leadership.role.leader),
            ("meta_raft_leads", "1 where this member leads", u64::from(leadership.surely)),
            ("meta_raft_commit_index", "The last entry known to be committed", progress.committed),
            ("meta_raft_applied_index", "The last applied entry", progress.applied.index),
            ("meta_raft_last_index", "The end of the log", progress.last_index),
            ("meta_raft_checkpoint_index", "Where the newest checkpoint stands", progress.checkpoint),
            ("meta_members", "Members that vote", self.peers.count() as u64),
            ("meta_members_reachable", "Of these, heard from lately", self.peers.reachable() as u64),
            ("meta_proposals_waiting", "Proposals under way", waiting.0 as u64),
            ("meta_reads_waiting", "Linearizable reads under way", waiting.1 as u64),
            ("meta_db_bytes", "Log and state on disk and in memory tables", of(&self.counts.db_bytes)),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counters = [
            ("meta_proposals", "Commands that clients proposed here", of(&self.counts.proposals)),
            ("meta_applied", "Commands that were applied", of(&self.counts.applied)),
            ("meta_reads", "Linearizable reads", of(&self.counts.reads)),
            ("meta_snapshots_installed", "Snapshots received from a leader", of(&self.counts.snapshots_installed)),
            ("meta_leader_changes", "Changes of leader or term that were seen", of(&self.counts.leader_changes)),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}
