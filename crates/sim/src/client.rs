//! A client: the real client core over links that break, holding one volume at a time, making operations and noting
//! what it saw.

mod snapshots;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cairn_client_core::{ABSENT, Config, Core, DATA, IoError, Op, OpId, Output, Timing};
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    AttachMode, AttachReply, AttachRequest, CommandReply, DetachRequest, ReportDrainedRequest, VolumeRef, volume_ref,
};
use cairn_types::map::ClusterMap;
use cairn_types::{BLOCK_SIZE, Epoch, Generation, OsdId, PoolId, SessionId, SnapId, TraceId, VolumeId};

use crate::bus::{Body, Bus, Event, MS, Nanos, Node, SECOND};
use crate::caller::Caller;
use crate::history::{Block, History, block_of, value_of};
use crate::osd::Directory;
use crate::plan::READER;
use crate::profile::Profile;

/// Operations under way at once.
const WINDOW: usize = 4;
const PULSE: Nanos = 200 * MS;

/// Blocks of each volume that are worked on.
pub(crate) const BLOCKS: u64 = 80;
/// In a sweep: not a block, but the states of all of them.
pub(crate) const STATES: u64 = BLOCKS;

/// One operation under way: its blocks, in order, with where they are noted.
#[derive(Debug)]
struct Running {
    begun: Nanos,
    blocks: Vec<(Block, usize)>,
    is_read: bool,
    /// It asked for states: all of them, or what changed since this snapshot.
    states: Option<SnapId>,
}

/// What a call to the metadata service was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Attach,
    Snapshot,
    Other,
}

/// A snapshot, with the moment at which everything acknowledged before was in it.
pub(crate) type Taken = (VolumeId, SnapId, Nanos);

#[derive(Debug)]
enum Holding {
    Nothing,
    Asking,
    /// Attached in Raft; the fence need not hold yet.
    Fencing {
        reply: Box<AttachReply>,
    },
    Working {
        core: Box<Core>,
    },
}

#[derive(Debug)]
struct Link {
    serial: u64,
    up: bool,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct ClientHost {
    pub(crate) index: usize,
    profile: Profile,
    pub(crate) volume: Option<VolumeId>,
    /// It holds the volume beside others.
    pub(crate) shared: bool,
    holding: Holding,
    caller: Caller<Asked>,
    session: u128,
    pub(crate) generation: u64,
    map: Arc<ClusterMap>,
    map_at: Nanos,
    links: BTreeMap<OsdId, Link>,
    serial: u64,
    ops: BTreeMap<OpId, Running>,
    /// What an earlier session of this client had under way when it ended.
    pub(crate) orphans: Vec<(Block, usize)>,
    timer_serial: u64,
    timer_at: Option<Nanos>,
    /// Another session was told that it holds the volume, under this generation: an older one is over. One that was given
    /// out later is not, however long the other had to wait for its fence.
    superseded: u64,
    /// This session was told that it holds the volume: the world takes note.
    pub(crate) took_over: bool,
    /// Makes no new operations.
    pub(crate) resting: bool,
    /// Blocks still to be read at the end.
    pub(crate) sweep: Vec<u64>,
    ask: u64,
    pub(crate) failure: Option<String>,
    /// It holds no volume and reads snapshots.
    pub(crate) views: bool,
    view: SnapId,
    /// The one before that which it reads, if there is one.
    since: SnapId,
    /// Blocks that are said to be the same in two snapshots.
    pub(crate) unchanged: Vec<(Block, SnapId, SnapId)>,
    /// Snapshots to be read whole at the end.
    pub(crate) to_view: Vec<(VolumeId, SnapId)>,
    /// Blocks that were read of snapshots.
    pub(crate) viewed: Vec<(Block, SnapId, u64)>,
    /// Snapshots of the volume it holds.
    pub(crate) taken: Vec<Taken>,
    taking: bool,
    snapshots: u64,
}

impl ClientHost {
    pub(crate) fn new(index: usize, members: usize, profile: Profile) -> Self {
        Self {
            index,
            profile,
            volume: None,
            shared: false,
            holding: Holding::Nothing,
            caller: Caller::new(Node::Client(index), 0xc11e_0000 + index as u128, members),
            session: 0,
            generation: 0,
            map: Arc::default(),
            map_at: 0,
            links: BTreeMap::new(),
            serial: 0,
            ops: BTreeMap::new(),
            orphans: Vec::new(),
            timer_serial: 0,
            timer_at: None,
            superseded: 0,
            took_over: false,
            resting: false,
            sweep: Vec::new(),
            ask: 0,
            failure: None,
            views: false,
            view: SnapId::HEAD,
            to_view: Vec::new(),
            viewed: Vec::new(),
            since: SnapId(0),
            unchanged: Vec::new(),
            taken: Vec::new(),
            taking: false,
            snapshots: 0,
        }
    }

    fn node(&self) -> Node {
        Node::Client(self.index)
    }

    /// What it is about, for a failure's text.
    pub(crate) fn holding(&self) -> String {
        match &self.holding {
            Holding::Nothing => "it holds nothing".to_owned(),
            Holding::Asking => format!("it asks for {:?}", self.volume),
            Holding::Fencing { reply } => format!("it waits for the fence of {reply:?}"),
            Holding::Working { .. } => format!("it works on {:?}", self.volume),
        }
    }

    pub(crate) fn is_working(&self) -> bool {
        matches!(self.holding, Holding::Working { .. })
    }

    pub(crate) fn holds_nothing(&self) -> bool {
        matches!(self.holding, Holding::Nothing)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.ops.is_empty()
    }

    pub(crate) fn start(&mut self, bus: &mut Bus) {
        bus.set_life(self.node(), 1, true);
        let serial = u64::MAX;
        bus.after(PULSE, Event::Timer { at: self.node(), life: 1, serial });
    }

    /// Takes a volume, from whoever holds it; `shared`: beside whoever shares it already.
    pub(crate) fn take(&mut self, bus: &mut Bus, volume: VolumeId, shared: bool) {
        self.orphans.clear();
        self.volume = Some(volume);
        self.shared = shared;
        self.superseded = 0;
        self.session = u128::from(bus.rng.next()) << 64 | u128::from(bus.rng.next());
        let request = AttachRequest {
            mutation: None,
            volume: Some(VolumeRef { by: Some(volume_ref::By::Id(volume.0)) }),
            node: format!("node{}", self.index),
            mode: if shared { AttachMode::Shared } else { AttachMode::Exclusive }.into(),
            data_session: self.session.to_be_bytes().to_vec().into(),
            steal: true,
            replaces: 0,
            restores: 0,
        };
        self.caller.call(bus, Payload::Attach(request), Asked::Attach);
        self.holding = Holding::Asking;
    }

    /// Lets the volume go, with what is under way. Not while it is only being taken: an attachment that is on its way would
    /// be nobody's.
    pub(crate) fn release(&mut self, bus: &mut Bus) {
        if !self.is_working() {
            return;
        }
        let Some(volume) = self.volume.take() else { return };
        let volume = Some(VolumeRef { by: Some(volume_ref::By::Id(volume.0)) });
        let request = DetachRequest { volume, generation: self.generation, ..DetachRequest::default() };
        self.caller.call(bus, Payload::Detach(request), Asked::Other);
        self.holding = Holding::Nothing;
        self.ops.clear();
        self.links.clear();
    }

    /// Its session ends without a word, whatever is on its way; the next takes the volume on the same node.
    pub(crate) fn renew(&mut self, bus: &mut Bus) {
        let (Some(volume), true) = (self.volume, self.is_working()) else { return };
        bus.stats.sometimes("a session is followed by another on its node");
        let orphans = self.under_way();
        self.ops.clear();
        self.links.clear();
        self.take(bus, volume, self.shared);
        self.orphans = orphans;
    }

    fn under_way(&self) -> Vec<(Block, usize)> {
        self.ops.values().flat_map(|running| running.blocks.iter().copied()).collect()
    }

    /// Somebody else was told that it holds the volume under `generation`, `shared` or alone. Gives what is over with that.
    pub(crate) fn supersede(&mut self, volume: VolumeId, shared: bool, generation: u64) -> Vec<(Block, usize)> {
        if self.views || self.volume != Some(volume) || (shared && self.shared) {
            return Vec::new();
        }
        // It may have no generation yet; what it is given is compared then.
        self.superseded = self.superseded.max(generation);
        if self.is_superseded() { self.under_way() } else { Vec::new() }
    }

    fn is_superseded(&self) -> bool {
        self.generation < self.superseded
    }

    pub(crate) fn handle_timer(&mut self, bus: &mut Bus, history: &mut History, directory: &Directory, serial: u64) {
        if serial == u64::MAX {
            self.caller.tick(bus);
            if let Holding::Fencing { reply } = &self.holding {
                let (pool, epoch) = (reply.volume.as_ref().map_or(0, |volume| volume.pool), Epoch(reply.epoch));
                self.ask += 1;
                let member = self.caller.member();
                bus.send(self.node(), member, Body::Fence { pool: PoolId(pool), epoch, ask: self.ask });
                if self.ask.is_multiple_of(3) {
                    self.caller.turn_away();
                }
            }
            if bus.now.saturating_sub(self.map_at) > SECOND {
                self.map_at = bus.now;
                self.caller.turn_away();
                self.watch(bus);
            }
            if self.views {
                self.view_next(bus);
            }
            let silent = self.links.iter().filter(|(_, link)| !link.up).map(|(osd, _)| *osd).collect::<Vec<_>>();
            for osd in silent {
                self.dial(bus, directory, osd);
            }
            bus.after(PULSE, Event::Timer { at: self.node(), life: 1, serial });
        } else if serial == self.timer_serial {
            self.timer_at = None;
            if let Holding::Working { core } = &mut self.holding {
                core.handle_timeout(Duration::from_nanos(bus.now));
            }
        }
        self.drain(bus, history, directory);
    }

    fn watch(&mut self, bus: &mut Bus) {
        let member = self.caller.member();
        bus.send(self.node(), member, Body::Watch { since: self.map.epoch });
    }

    pub(crate) fn handle_body(
        &mut self,
        bus: &mut Bus,
        history: &mut History,
        directory: &Directory,
        from: Node,
        body: Body,
    ) {
        let now = Duration::from_nanos(bus.now);
        match body {
            Body::Map(map) => {
                self.map_at = bus.now;
                if map.epoch > self.map.epoch {
                    self.map = map;
                    if let Holding::Working { core } = &mut self.holding {
                        core.handle_map(now, Arc::clone(&self.map));
                    }
                }
            }
            Body::Answer { session, seq, reply } => self.answered(bus, session, seq, &reply),
            Body::NotTaken => self.caller.turn_away(),
            Body::FenceHolds { ask, holds } if holds && ask == self.ask => self.begin(bus),
            Body::Dialled { link } => {
                let found = self.links.iter_mut().find(|(_, known)| known.serial == link && !known.up);
                if let (Some((osd, link)), Holding::Working { core }) = (found, &mut self.holding) {
                    link.up = true;
                    core.handle_link_up(now, *osd);
                }
            }
            Body::Reply { link, reply } => {
                let osd = self.links.iter().find(|(_, known)| known.serial == link && known.up).map(|(osd, _)| *osd);
                if let (Some(osd), Holding::Working { core }) = (osd, &mut self.holding) {
                    core.handle_reply(now, osd, reply);
                }
            }
            _ => {
                let _ = from;
            }
        }
        self.drain(bus, history, directory);
    }

    fn answered(&mut self, bus: &mut Bus, session: u128, seq: u64, reply: &CommandReply) {
        let asked = self.caller.answered(session, seq);
        if asked == Some(Asked::Snapshot) {
            self.taking = false;
        }
        if asked != Some(Asked::Attach) || !matches!(self.holding, Holding::Asking) {
            return;
        }
        match &reply.result {
            Some(Answer::Attach(reply)) => {
                bus.say(|| format!("client {} attached g{} at e{}", self.index, reply.generation, reply.epoch));
                self.holding = Holding::Fencing { reply: Box::new(reply.clone()) };
            }
            other => self.failure = Some(format!("attach was refused: {other:?}")),
        }
    }

    /// The fence holds: the session may work.
    fn begin(&mut self, bus: &mut Bus) {
        let Holding::Fencing { reply } = &self.holding else { return };
        let Some(volume) = reply.volume.as_ref() else { return };
        let config = Config {
            session: SessionId(self.session),
            volume: VolumeId(volume.id),
            pool: PoolId(volume.pool),
            generation: Generation(reply.generation),
            min_epoch: Epoch(reply.epoch),
            size: volume.size,
            object_size: volume.object_size,
            snap_context: SnapId(volume.snap_context),
            view: SnapId::HEAD,
            parents: Vec::new(),
            read_only: false,
            max_ops: 64,
            max_bytes: 16 << 20,
            max_requests: 64,
            timing: Timing { resend: Duration::from_secs(2), ..Timing::default() },
        };
        bus.say(|| format!("client {} works under g{}", self.index, reply.generation));
        self.generation = reply.generation;
        let mut core = Box::new(Core::new(config, bus.rng.next()));
        core.handle_map(Duration::from_nanos(bus.now), Arc::clone(&self.map));
        self.links.clear();
        self.ops.clear();
        self.holding = Holding::Working { core };
        self.took_over = true;
        for _ in 0..WINDOW {
            let pause = bus.rng.below(20 * MS);
            bus.after(pause, Event::Work { client: self.index });
        }
    }

    /// The next operation of the closed loop.
    pub(crate) fn handle_work(&mut self, bus: &mut Bus, history: &mut History, directory: &Directory) {
        if (self.resting || self.views) && self.sweep.is_empty() {
            return;
        }
        if let (Some(volume), true) = (self.volume, self.is_working() && !self.views && !self.resting)
            && !self.shared
            && bus.rng.chance(12)
        {
            self.snapshot(bus, volume);
        }
        let superseded = self.is_superseded();
        let (Holding::Working { core }, Some(volume)) = (&mut self.holding, self.volume) else { return };
        if !core.has_room() || core.fatal().is_some() {
            return;
        }
        let reader = self.index == READER && self.shared;
        let quiet = bus.now >= self.profile.writes_until;
        let kind = if reader || quiet { 0 } else { bus.rng.below(1000) };
        let Profile { hot, hot_share, reads, .. } = &self.profile;
        let sweep = self.sweep.pop();
        let (first, count) = match sweep {
            Some(STATES) => (0, BLOCKS),
            Some(block) => (block, 1),
            // Only where the group is that others write in: it goes on reading when no other group answers.
            None if reader => (*bus.rng.pick(self.profile.same_object()), 1),
            None => {
                let first = if bus.rng.chance(*hot_share) { *bus.rng.pick(hot) } else { bus.rng.below(BLOCKS - 4) };
                (first, bus.rng.between(1, 3).min(BLOCKS - first))
            }
        };
        let (offset, len) = (first * u64::from(BLOCK_SIZE), count * u64::from(BLOCK_SIZE));
        let mut values = vec![0; count as usize];
        let op = match kind {
            _ if sweep == Some(STATES) => Op::Status { offset, len, since: self.since, parents: false },
            _ if sweep.is_some() => Op::Read { offset, len },
            _ if kind < *reads => Op::Read { offset, len },
            0..900 => {
                let mut data = Vec::new();
                for value in &mut values {
                    *value = history.fresh_value();
                    data.extend_from_slice(&block_of(*value));
                }
                Op::Write { offset, data: Bytes::from(data) }
            }
            900..970 => Op::Zero { offset, len, unmap: bus.rng.chance(500) },
            _ => Op::Flush,
        };
        let is_read = matches!(op, Op::Read { .. } | Op::Status { .. });
        let states = if let Op::Status { since, .. } = op { Some(since) } else { None };
        let blocks = match op {
            Op::Flush => Vec::new(),
            _ if self.views => (first..first + count).map(|block| ((volume, block), 0)).collect(),
            _ => values
                .iter()
                .enumerate()
                .map(|(index, value)| {
                    let block = (volume, first + index as u64);
                    (block, history.begin(block, *value, !is_read, bus.now, superseded))
                })
                .collect(),
        };
        bus.stats.begun += 1;
        let id = core.handle_op(Duration::from_nanos(bus.now), op, TraceId(0));
        self.ops.insert(id, Running { begun: bus.now, blocks, is_read, states });
        self.drain(bus, history, directory);
    }

    pub(crate) fn handle_reset(&mut self, bus: &mut Bus, history: &mut History, directory: &Directory, peer: Node) {
        let Node::Osd(index) = peer else { return };
        let osd = directory.index.iter().rev().find(|(_, i)| **i == index).map(|(osd, _)| *osd);
        if let (Some(osd), Holding::Working { core }) = (osd, &mut self.holding)
            && let Some(link) = self.links.get_mut(&osd)
        {
            link.up = false;
            core.handle_link_down(Duration::from_nanos(bus.now), osd);
        }
        self.drain(bus, history, directory);
    }

    fn dial(&mut self, bus: &mut Bus, directory: &Directory, osd: OsdId) {
        self.serial += 1;
        self.links.insert(osd, Link { serial: self.serial, up: false });
        if let Some(index) = directory.index.get(&osd) {
            bus.send(self.node(), Node::Osd(*index), Body::Dial { osd, link: self.serial });
        }
    }

    fn drain(&mut self, bus: &mut Bus, history: &mut History, directory: &Directory) {
        loop {
            let Holding::Working { core } = &mut self.holding else { return };
            let Some(output) = core.poll_output() else { break };
            match output {
                Output::Connect { osd, .. } => self.dial(bus, directory, osd),
                Output::Disconnect { osd } => {
                    self.links.remove(&osd);
                }
                Output::Send { to, request } => {
                    let link = self.links.get(&to).filter(|link| link.up).map(|link| link.serial);
                    if let (Some(link), Some(index)) = (link, directory.index.get(&to)) {
                        let body = Body::Request { link, request: Box::new(request) };
                        bus.send(self.node(), Node::Osd(*index), body);
                    }
                }
                Output::Drained { snapshot } => {
                    bus.stats.sometimes("a snapshot is taken between writes");
                    let Some(volume) = self.volume else { continue };
                    self.taken.push((volume, snapshot, bus.now));
                    let (volume, generation, snapshot) = (volume.0, self.generation, snapshot.0);
                    let request = ReportDrainedRequest { mutation: None, volume, generation, snapshot };
                    self.caller.call(bus, Payload::ReportDrained(request), Asked::Other);
                }
                Output::Done { op, result } => self.done(bus, history, op, result),
            }
        }
        let Holding::Working { core } = &mut self.holding else { return };
        core.invariants();
        if core.fatal().is_some() {
            bus.say(|| format!("client {} is fenced", self.index));
            let seen = if self.views { "a snapshot goes while it is read" } else { "a session is fenced" };
            bus.stats.sometimes(seen);
            if self.views {
                self.sweep.clear();
                self.ops.clear();
            }
            self.holding = Holding::Nothing;
            self.volume = None;
            self.links.clear();
            return;
        }
        if let Some(due) = core.poll_timeout() {
            let at = due.as_nanos() as u64;
            if self.timer_at.is_none_or(|set| at < set) {
                self.timer_at = Some(at);
                self.timer_serial += 1;
                bus.at(at, Event::Timer { at: self.node(), life: 1, serial: self.timer_serial });
            }
        }
    }

    fn done(&mut self, bus: &mut Bus, history: &mut History, op: OpId, result: Result<Bytes, IoError>) {
        let Some(running) = self.ops.remove(&op) else { return };
        bus.stats.ops += 1;
        if bus.now - running.begun > SECOND {
            bus.say(|| format!("client {} waited {} ms for {running:?}", self.index, (bus.now - running.begun) / MS));
        }
        bus.stats.slowest = bus.stats.slowest.max(bus.now - running.begun);
        match result {
            Ok(data) if running.states.is_some() => {
                let since = running.states.unwrap_or_default();
                for ((block, at), state) in running.blocks.iter().zip(&data) {
                    bus.note(&[block.1, u64::from(*state)]);
                    match *state {
                        // Some content: which, only a read can tell.
                        DATA => {}
                        ABSENT if since != SnapId(0) => self.unchanged.push((*block, since, self.view)),
                        _ if self.views => self.viewed.push((*block, self.view, 0)),
                        _ => history.end(*block, *at, Some(0), bus.now),
                    }
                }
            }
            Ok(data) => {
                for (index, (block, at)) in running.blocks.iter().enumerate() {
                    let start = index * BLOCK_SIZE as usize;
                    let value = running.is_read.then(|| value_of(&data[start..start + BLOCK_SIZE as usize]));
                    match value {
                        Some(None) => self.failure = Some(format!("a read of {block:?} gave a torn block")),
                        Some(Some(value)) if self.views => self.viewed.push((*block, self.view, value)),
                        value => history.end(*block, *at, value.flatten(), bus.now),
                    }
                    bus.note(&[block.1, value.flatten().unwrap_or(0)]);
                }
            }
            Err(IoError::Fenced | IoError::NoSnapshot) => return,
            Err(error) => self.failure = Some(format!("an operation failed: {error}")),
        }
        let pause = if self.sweep.is_empty() { bus.rng.below(self.profile.think) } else { 0 };
        bus.after(pause, Event::Work { client: self.index });
    }
}
