//! Members on disks that forget and a network that loses, doubles and delays, from a seed: members are cut off,
//! and killed between any two of their orders; an administrator adds, removes and replaces some.

use std::collections::{BTreeMap, BTreeSet};

use cairn_meta_core::StateRead;
use cairn_meta_raft::{MemoryStore, Node, NodeConfig, NodeError, Output, Position};
use cairn_proto::etcdserverpb::PutRequest;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{BeginMembers, Command, InitCluster, Member};
use cairn_proto::meta_raft::PeerMessage;
use cairn_types::id::mix;
use prost::Message;

use crate::admin::{ADMIN, Admin};

pub(crate) const MEMBERS: [u64; 3] = [1, 2, 3];
/// Clients, each with a session and a counter of its own.
const CLIENTS: usize = 4;

pub(crate) struct World {
    pub(crate) dice: u64,
    pub(crate) now: u64,
    life: u64,
    pub(crate) nodes: BTreeMap<u64, Node<MemoryStore>>,
    pub(crate) disks: BTreeMap<u64, MemoryStore>,
    pub(crate) network: BTreeMap<(u64, u64), (u64, u64, PeerMessage)>,
    pub(crate) sent: u64,
    cut_off: BTreeSet<u64>,
    clients: Vec<Client>,
    /// What the state after each index is, as the first member to apply it has it.
    truth: BTreeMap<u64, u32>,
    reads: BTreeMap<(u64, u64), Vec<u64>>,
    pub(crate) tickets: BTreeMap<(u64, u64), usize>,
    pub(crate) next_ticket: u64,
    pub(crate) crashes: u64,
    pub(crate) snapshots: u64,
    pub(crate) confirmed_reads: u64,
    pub(crate) trace: u32,
    pub(crate) admin: Admin,
    /// Disks that are lost for ever, and members that know they were removed.
    pub(crate) gone: BTreeSet<u64>,
}

/// Counts up under its own key, one command after the other.
#[derive(Default)]
struct Client {
    acked: u64,
    waiting: bool,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = Self {
            dice: mix(seed),
            now: 0,
            life: 0,
            nodes: BTreeMap::new(),
            disks: MEMBERS.iter().map(|id| (*id, MemoryStore::new(&MEMBERS))).collect(),
            network: BTreeMap::new(),
            sent: 0,
            cut_off: BTreeSet::new(),
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            truth: BTreeMap::new(),
            reads: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            crashes: 0,
            snapshots: 0,
            confirmed_reads: 0,
            trace: 0,
            admin: Admin::default(),
            gone: BTreeSet::new(),
        };
        MEMBERS.iter().for_each(|id| world.start(*id));
        world
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.dice = mix(self.dice);
        self.dice % sides
    }

    pub(crate) fn start(&mut self, id: u64) {
        self.life += 1;
        let config = NodeConfig {
            checkpoint_entries: 25,
            keep_entries: 5,
            chunk_bytes: 200,
            ..NodeConfig::new(id, self.life * 1000 + id)
        };
        let disk = self.disks.remove(&id).expect("it is down");
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        self.nodes.insert(id, Node::open(config, disk, logger).expect("what it wrote can be read"));
    }

    pub(crate) fn crash(&mut self, id: u64) {
        let node = self.nodes.remove(&id).expect("it is up");
        let disk = node.into_store();
        let keep = self.roll(disk.unsynced() as u64 + 1) as usize;
        self.disks.insert(id, disk.crash(keep));
        self.crashes += 1;
        // Whoever waited for this member asks another one.
        let lost: Vec<usize> = self.tickets.iter().filter(|((at, _), _)| *at == id).map(|(_, c)| *c).collect();
        for client in lost.into_iter().filter(|client| *client != ADMIN) {
            self.clients[client].waiting = false;
        }
        self.tickets.retain(|(at, _), _| *at != id);
        self.reads.retain(|(at, _), _| *at != id);
    }

    /// Carries out a member's orders; dies after `at_most` of them.
    pub(crate) fn drain(&mut self, id: u64, at_most: u64) {
        for _ in 0..at_most {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            match node.poll_output().unwrap() {
                Some(output) => self.carry_out(id, output),
                None => {
                    self.nodes[&id].invariants();
                    return;
                }
            }
        }
        self.crash(id);
    }

    fn carry_out(&mut self, id: u64, output: Output) {
        match output {
            Output::Send { to, message } => self.send(id, to, message),
            Output::Applied { at, ticket, applied } => {
                let digest = crc32c::crc32c(format!("{at:?} {:?} {:?}", applied.reply, applied.batch).as_bytes());
                let first = *self.truth.entry(at.index).or_insert(digest);
                assert_eq!(first, digest, "member {id} applied something else at {at:?}");
                self.trace = crc32c::crc32c_append(self.trace, &digest.to_le_bytes());
                let client = ticket.and_then(|ticket| self.tickets.remove(&(id, ticket)));
                if client == Some(ADMIN) {
                    self.admin_heard(applied.reply.result);
                } else if let Some(client) = client {
                    match applied.reply.result {
                        Some(Answer::KvPut(_)) => self.clients[client].acked += 1,
                        other => panic!("a put is answered by a put: {other:?}"),
                    }
                    self.clients[client].waiting = false;
                }
            }
            Output::ReadReady { ticket } => {
                let known = self.reads.remove(&(id, ticket)).expect("it was asked");
                for (client, least) in known.into_iter().enumerate() {
                    let found = self.counter(id, client);
                    assert!(found >= least, "a read at {id} shows {found} of client {client}, who had {least}");
                }
                self.confirmed_reads += 1;
            }
            Output::Role(_) => {}
            Output::StateReplaced { .. } => self.snapshots += 1,
        }
    }

    fn counter(&self, id: u64, client: usize) -> u64 {
        let node = &self.nodes[&id];
        let request = cairn_proto::etcdserverpb::RangeRequest { key: key_of(client).into(), ..Default::default() };
        let found = cairn_meta_core::kv::range(node.machine(), node.state(), &request).unwrap();
        found.kvs.first().map_or(0, |kv| String::from_utf8_lossy(&kv.value).parse().unwrap())
    }

    fn send(&mut self, from: u64, to: u64, message: PeerMessage) {
        if self.roll(50) == 0 {
            return;
        }
        let copies = if self.roll(50) == 0 { 2 } else { 1 };
        for _ in 0..copies {
            self.sent += 1;
            let delay = if self.roll(30) == 0 { self.roll(80) } else { self.roll(3) };
            self.network.insert((self.now + delay, self.sent), (from, to, message.clone()));
        }
    }

    fn deliver(&mut self, deadly: bool) {
        while let Some(entry) = self.network.first_entry()
            && entry.key().0 <= self.now
        {
            let (from, to, message) = entry.remove();
            if self.cut_off.contains(&from) || self.cut_off.contains(&to) {
                continue;
            }
            if let Some(node) = self.nodes.get_mut(&to) {
                node.handle_message(from, message).unwrap();
                let orders = if deadly && self.roll(400) == 0 { self.roll(6) } else { u64::MAX };
                self.drain(to, orders);
            }
        }
    }

    pub(crate) fn step(&mut self, storm: bool) {
        self.now += 1;
        if storm {
            self.weather();
        }
        self.deliver(storm);
        self.tick();
        self.ask();
        self.administer(storm);
    }

    fn tick(&mut self) {
        if !self.now.is_multiple_of(4) {
            return;
        }
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            match self.nodes.get_mut(&id).expect("it is up").handle_tick() {
                Ok(()) => self.drain(id, u64::MAX),
                Err(NodeError::Removed { .. }) => self.lose(id),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// This member never comes back.
    pub(crate) fn lose(&mut self, id: u64) {
        if self.nodes.contains_key(&id) {
            self.crash(id);
        }
        self.disks.remove(&id);
        self.gone.insert(id);
    }

    /// Any member that is up.
    fn any_up(&mut self) -> Option<u64> {
        let count = self.nodes.len() as u64;
        let at = self.roll(count.max(1)) as usize;
        self.nodes.keys().nth(at).copied()
    }

    fn weather(&mut self) {
        match self.roll(150) {
            0 => {
                if let Some(id) = self.any_up() {
                    self.crash(id);
                }
            }
            1..=4 => {
                if let Some(id) = self.disks.keys().next().copied() {
                    self.start(id);
                }
            }
            5 => {
                if let Some(id) = self.any_up() {
                    self.cut_off.insert(id);
                }
            }
            6..=7 => self.cut_off.clear(),
            _ => {}
        }
    }

    /// The clients ask a member each: for a write if none is under way, for a read otherwise.
    fn ask(&mut self) {
        let Some(id) = self.any_up() else { return };
        let client = self.roll(CLIENTS as u64) as usize;
        let known: Vec<u64> = self.clients.iter().map(|c| c.acked).collect();
        let ticket = self.ticket();
        let name = self.roll(100) == 0 || self.truth.is_empty();
        let node = self.nodes.get_mut(&id).expect("it is up");
        if name {
            let _ = node.propose(ticket, init().encode_to_vec());
            let _ = node.propose(ticket, begin().encode_to_vec());
        } else if !self.clients[client].waiting {
            let command = self.clients[client].command(client);
            if node.propose(ticket, command.encode_to_vec()).is_ok() {
                self.clients[client].waiting = true;
                self.tickets.insert((id, ticket), client);
            }
        } else {
            node.read_index(ticket);
            self.reads.insert((id, ticket), known);
        }
        // A proposal can vanish with its leader: after a while the client asks again, for the same thing.
        if self.roll(40) == 0 {
            self.clients[client].waiting = false;
            self.tickets.retain(|_, c| *c != client);
        }
        self.drain(id, u64::MAX);
    }

    pub(crate) fn ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    pub(crate) fn calm(&mut self) {
        self.cut_off.clear();
        let down: Vec<u64> = self.disks.keys().copied().collect();
        down.into_iter().for_each(|id| self.start(id));
        for _ in 0..2000 {
            self.step(false);
        }
        // The last questions are answered, and whoever is being sent a snapshot gets all of it.
        for quiet in 0..8000 {
            let first = self.nodes.values().next().map(Node::applied);
            if quiet > 400 && self.nodes.values().all(|node| Some(node.applied()) == first) {
                break;
            }
            self.now += 1;
            self.deliver(false);
            self.tick();
        }
    }

    pub(crate) fn judge(&self) {
        let first = *self.nodes.keys().next().expect("somebody is up");
        let applied: Vec<Position> = self.nodes.values().map(Node::applied).collect();
        assert!(applied.iter().all(|at| *at == applied[0]), "all have applied the same: {applied:?}");
        let states: Vec<_> = self.nodes.values().map(|node| seen(node.state())).collect();
        assert!(states.iter().all(|state| *state == states[0]), "all states are equal");
        for (client, known) in self.clients.iter().enumerate() {
            let found = self.counter(first, client);
            assert!(found >= known.acked, "client {client} was told {} and {found} is there", known.acked);
            assert!(found <= known.acked + 1, "nothing was done that was not asked for");
            assert!(known.acked > 5, "client {client} got on: {}", known.acked);
        }
    }
}

impl Client {
    fn command(&self, client: usize) -> Command {
        let next = self.acked + 1;
        let put = PutRequest { key: key_of(client).into(), value: next.to_string().into(), ..PutRequest::default() };
        Command {
            version: 1,
            session: vec![client as u8 + 1; 16].into(),
            seq: next,
            acked_through: self.acked,
            now_s: 1,
            payload: Some(Payload::KvPut(put)),
            ..Command::default()
        }
    }
}

fn init() -> Command {
    let payload = Payload::InitCluster(InitCluster { cluster: vec![7; 16].into(), min_protocol: 1 });
    Command { version: 1, now_s: 1, payload: Some(payload), ..Command::default() }
}

fn begin() -> Command {
    let members = MEMBERS.iter().map(|id| Member { id: *id, address: format!("host-{id}:7400"), ..Member::default() });
    let members = BeginMembers { members: members.collect(), lineage: vec![9; 16].into() };
    Command { version: 1, now_s: 1, payload: Some(Payload::BeginMembers(members)), ..Command::default() }
}

fn key_of(client: usize) -> String {
    format!("client-{client}")
}

fn seen(state: &dyn StateRead) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    state.scan(b"", false, &mut |key, value| {
        all.push((key.to_vec(), value.to_vec()));
        true
    });
    all
}
