//! A metadata member: the real raft member without I/O, its disk, its watchers, and the leader's eye on silent OSDs.

use std::collections::BTreeMap;
use std::sync::Arc;

use cairn_meta_core::Event as MetaEvent;
use cairn_meta_raft::{MemoryStore, Node as Raft, NodeConfig, Output};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{Command, DownEvidence, InitCluster, ReportDownRequest};
use cairn_types::map::ClusterMap;
use cairn_types::{Epoch, OsdId, PoolId};
use prost::Message as _;

use crate::bus::{Body, Bus, Event, MS, Nanos, Node, SECOND};

const TICK: Nanos = 100 * MS;
/// The leader calls an OSD silent that made no report for this long.
const SILENCE: Nanos = 5 * SECOND;

enum Waiting {
    Ask { from: Node, session: u128, seq: u64 },
    Fence { from: Node, pool: PoolId, epoch: Epoch, ask: u64 },
}

/// See the file's head.
pub(crate) struct MetaHost {
    index: usize,
    pub(crate) life: u32,
    raft: Option<Raft<MemoryStore>>,
    disk: Option<MemoryStore>,
    waiting: BTreeMap<u64, Waiting>,
    tickets: u64,
    watchers: BTreeMap<Node, Epoch>,
    map: Arc<ClusterMap>,
    heard: BTreeMap<OsdId, Nanos>,
    timer: u64,
}

impl MetaHost {
    pub(crate) fn new(index: usize, members: usize) -> Self {
        let voters = (1..=members as u64).collect::<Vec<_>>();
        let disk = Some(MemoryStore::new(&voters));
        Self {
            index,
            life: 0,
            raft: None,
            disk,
            waiting: BTreeMap::new(),
            tickets: 0,
            watchers: BTreeMap::new(),
            map: Arc::default(),
            heard: BTreeMap::new(),
            timer: 0,
        }
    }

    fn node(&self) -> Node {
        Node::Meta(self.index)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.raft.is_some()
    }

    pub(crate) fn leads(&self) -> bool {
        self.raft.as_ref().is_some_and(Raft::leads_surely)
    }

    /// The newest map this member has applied, for checkers.
    pub(crate) fn map(&self) -> &Arc<ClusterMap> {
        &self.map
    }

    pub(crate) fn start(&mut self, bus: &mut Bus) {
        let Some(disk) = self.disk.take() else { return };
        self.life += 1;
        bus.set_life(self.node(), self.life, true);
        let config = NodeConfig {
            checkpoint_entries: 400,
            keep_entries: 60,
            ..NodeConfig::new(self.index as u64 + 1, bus.rng.next())
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        self.raft =
            Some(Raft::open(config, disk, logger).expect("a disk that only forgets what was not synced is sound"));
        self.publish(bus);
        self.drain(bus);
        self.arm(bus);
    }

    /// Ends this life; unsynced writes survive up to a random one.
    pub(crate) fn kill(&mut self, bus: &mut Bus) {
        let Some(raft) = self.raft.take() else { return };
        let store = raft.into_store();
        let keep = bus.rng.below(store.unsynced() as u64 + 1) as usize;
        self.disk = Some(store.crash(keep));
        self.waiting.clear();
        self.watchers.clear();
        self.heard.clear();
        bus.set_life(self.node(), self.life, false);
        bus.reset_connections(self.node());
    }

    fn arm(&mut self, bus: &mut Bus) {
        self.timer += 1;
        bus.after(TICK, Event::Timer { at: self.node(), life: self.life, serial: self.timer });
    }

    pub(crate) fn handle_timer(&mut self, bus: &mut Bus, serial: u64) {
        if serial != self.timer {
            return;
        }
        let Some(raft) = &mut self.raft else { return };
        raft.handle_tick().expect("the disk in memory does not fail");
        if raft.leads_surely() && raft.machine().cluster().is_none() {
            let payload = Payload::InitCluster(InitCluster { cluster: vec![7; 16].into(), min_protocol: 1 });
            self.propose(bus, payload);
        }
        self.report_silent(bus);
        self.drain(bus);
        self.arm(bus);
    }

    fn propose(&mut self, bus: &Bus, payload: Payload) {
        let now_s = 1_700_000_000 + bus.now / SECOND;
        let command = Command { version: 1, now_s, payload: Some(payload), ..Command::default() };
        self.tickets += 1;
        if let Some(raft) = &mut self.raft {
            // Not taken: the next tick tries again.
            let _ = raft.propose(self.tickets, command.encode_to_vec());
        }
    }

    fn report_silent(&mut self, bus: &mut Bus) {
        if !self.leads() {
            self.heard.clear();
            return;
        }
        let mut silent = Vec::new();
        for osd in self.map.osds.values().filter(|osd| osd.up) {
            let heard = *self.heard.entry(osd.id).or_insert(bus.now);
            if bus.now - heard > SILENCE {
                silent.push((osd.id, osd.incarnation));
            }
        }
        for (osd, incarnation) in silent {
            bus.stats.sometimes("the leader reports a silent OSD");
            self.heard.insert(osd, bus.now);
            self.propose(
                bus,
                Payload::ReportDown(ReportDownRequest {
                    mutation: None,
                    reporter: None,
                    osd: osd.0,
                    incarnation: incarnation.0,
                    evidence: DownEvidence::Silent.into(),
                }),
            );
        }
    }

    pub(crate) fn handle_body(&mut self, bus: &mut Bus, from: Node, body: Body) {
        if self.raft.is_none() {
            return;
        }
        match body {
            Body::Raft(message) => {
                let Node::Meta(sender) = from else { return };
                let raft = self.raft.as_mut().expect("alive");
                raft.handle_message(sender as u64 + 1, *message).expect("no member loses what it synced");
            }
            Body::Ask { session, seq, command } => self.ask(bus, from, session, seq, command),
            Body::Heard { osd } => {
                self.heard.insert(OsdId(osd), bus.now);
            }
            Body::Watch { since } => {
                self.watchers.insert(from, since);
                self.publish(bus);
            }
            Body::Fence { pool, epoch, ask } => {
                self.tickets += 1;
                self.waiting.insert(self.tickets, Waiting::Fence { from, pool, epoch, ask });
                self.raft.as_mut().expect("alive").read_index(self.tickets);
            }
            _ => {}
        }
        self.drain(bus);
    }

    fn ask(&mut self, bus: &mut Bus, from: Node, session: u128, seq: u64, command: Vec<u8>) {
        if let Ok(Command { payload: Some(Payload::OsdReports(reports)), .. }) = Command::decode(&command[..]) {
            let leader = self.raft.as_ref().map_or(0, |raft| raft.role().leader);
            for report in &reports.reports {
                self.heard.insert(OsdId(report.id), bus.now);
                if leader != 0 && leader != self.index as u64 + 1 {
                    bus.send(self.node(), Node::Meta(leader as usize - 1), Body::Heard { osd: report.id });
                }
            }
        }
        self.tickets += 1;
        match self.raft.as_mut().expect("alive").propose(self.tickets, command) {
            Ok(()) => {
                self.waiting.insert(self.tickets, Waiting::Ask { from, session, seq });
            }
            Err(_) => bus.send(self.node(), from, Body::NotTaken),
        }
    }

    fn drain(&mut self, bus: &mut Bus) {
        let mut map_changed = false;
        loop {
            let Some(raft) = &mut self.raft else { return };
            let Some(output) = raft.poll_output().expect("the disk in memory does not fail") else { break };
            match output {
                Output::Send { to, message } => {
                    bus.send(self.node(), Node::Meta(to as usize - 1), Body::Raft(Box::new(message)));
                }
                Output::Applied { ticket, applied, .. } => {
                    map_changed |= applied.events.iter().any(|event| matches!(event, MetaEvent::Map(_)));
                    if let Some(Waiting::Ask { from, session, seq }) = ticket.and_then(|t| self.waiting.remove(&t)) {
                        bus.send(self.node(), from, Body::Answer { session, seq, reply: Box::new(applied.reply) });
                    }
                }
                Output::ReadReady { ticket } => {
                    if let Some(Waiting::Fence { from, pool, epoch, ask }) = self.waiting.remove(&ticket) {
                        let map = raft.machine().map();
                        let pending = cairn_meta_core::fence_pending(map, pool, epoch);
                        // What is safe is the half about in-sync members alone. Three of four fences rest on it, or nothing
                        // would be seen of replicas that have to refuse what a late primary sends.
                        let holds = pending.holds() || (!epoch.0.is_multiple_of(4) && pending.pgs.is_empty());
                        bus.send(self.node(), from, Body::FenceHolds { ask, holds });
                    }
                }
                Output::Role(_) => {}
                Output::StateReplaced { .. } => {
                    bus.stats.sometimes("a member installs a snapshot");
                    map_changed = true;
                }
            }
        }
        if map_changed {
            self.publish(bus);
        }
    }

    /// Sends the map to every watcher that has an older one.
    fn publish(&mut self, bus: &mut Bus) {
        let Some(raft) = &self.raft else { return };
        let map = raft.machine().map();
        if map.epoch != self.map.epoch || self.map.osds.is_empty() {
            self.map = Arc::new(map.clone());
        }
        let node = self.node();
        for (watcher, since) in &mut self.watchers {
            if *since < self.map.epoch {
                *since = self.map.epoch;
                bus.send(node, *watcher, Body::Map(Arc::clone(&self.map)));
            }
        }
    }
}
