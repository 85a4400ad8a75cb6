//! Virtual time and the virtual network: the queue of events, who lives, what a message meets on its way.
//!
//! A connection is bound to one life at each end. Where nobody listens the sender hears a refusal, where the peer died
//! a reset, unless the way back is cut: then it hears nothing, as from any silent machine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use cairn_proto::meta::CommandReply;
use cairn_types::io::{ClientReply, ClientRequest};
use cairn_types::map::ClusterMap;
use cairn_types::peer::PeerMessage;
use cairn_types::{Epoch, OsdId, PoolId};

use crate::faults::Fault;
use crate::report::Stats;
use crate::rng::Rng;

/// Nanoseconds of virtual time.
pub(crate) type Nanos = u64;
pub(crate) const MS: Nanos = 1_000_000;
pub(crate) const SECOND: Nanos = 1_000 * MS;

/// Somebody on the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Node {
    /// A metadata member, by index.
    Meta(usize),
    /// A storage daemon, by index.
    Osd(usize),
    /// A client, by index.
    Client(usize),
    /// Whoever started the daemons and sees them exit.
    Keeper,
}

/// What goes over the network.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    Peer {
        to: OsdId,
        message: Box<PeerMessage>,
    },
    Request {
        link: u64,
        request: Box<ClientRequest>,
    },
    Reply {
        link: u64,
        reply: ClientReply,
    },
    Raft(Box<cairn_proto::meta_raft::PeerMessage>),
    Ask {
        session: u128,
        seq: u64,
        command: Vec<u8>,
    },
    Answer {
        session: u128,
        seq: u64,
        reply: Box<CommandReply>,
    },
    /// Not taken: ask somebody else.
    NotTaken,
    Watch {
        since: Epoch,
    },
    Map(Arc<ClusterMap>),
    /// Does the fence hold?
    Fence {
        pool: PoolId,
        epoch: Epoch,
        ask: u64,
    },
    FenceHolds {
        ask: u64,
        holds: bool,
    },
    /// A member passes on to the leader that an OSD reported.
    Heard {
        osd: u32,
    },
    Dial {
        osd: OsdId,
        link: u64,
    },
    Dialled {
        link: u64,
    },
}

/// What happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Deliver {
        from: Node,
        from_life: u32,
        to: Node,
        to_life: u32,
        body: Body,
    },
    /// Nobody listened at the other end.
    Refused {
        at: Node,
        life: u32,
        peer: Node,
    },
    /// The other end died.
    Reset {
        at: Node,
        life: u32,
        peer: Node,
    },
    Timer {
        at: Node,
        life: u32,
        serial: u64,
    },
    Disk {
        osd: usize,
        life: u32,
        job: u64,
    },
    Fault(Fault),
    /// The end of a fault that lasts.
    Undo(Fault),
    Restart(Node),
    Resume(Node),
    /// A client's next operation.
    Work {
        client: usize,
    },
    /// A volume is deleted.
    Doom,
    Check,
}

/// What the network does beside carrying messages, for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    /// Per mille of messages lost.
    pub(crate) drop: u64,
    /// Per mille of messages that arrive twice.
    pub(crate) twice: u64,
    /// Messages of one connection overtake each other.
    pub(crate) reorder: bool,
    /// Per mille of messages that take up to `delay_max`.
    pub(crate) delay: u64,
    pub(crate) delay_max: Nanos,
}

/// See the file's head.
pub(crate) struct Bus {
    pub(crate) now: Nanos,
    queue: BinaryHeap<Reverse<(Nanos, u64)>>,
    events: BTreeMap<u64, Event>,
    serial: u64,
    pub(crate) rng: Rng,
    pub(crate) weather: Weather,
    /// Directed cuts; counted, because faults overlap.
    cuts: BTreeMap<(Node, Node), u32>,
    /// Directed delays beside the usual ones.
    lags: BTreeMap<(Node, Node), Nanos>,
    lives: BTreeMap<Node, (u32, bool)>,
    last: BTreeMap<(Node, Node), Nanos>,
    trace: u64,
    pub(crate) stats: Stats,
    pub(crate) verbose: bool,
}

impl Bus {
    pub(crate) fn new(rng: Rng, verbose: bool) -> Self {
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            serial: 0,
            rng,
            weather: Weather::default(),
            cuts: BTreeMap::new(),
            lags: BTreeMap::new(),
            lives: BTreeMap::new(),
            last: BTreeMap::new(),
            trace: 0,
            stats: Stats::default(),
            verbose,
        }
    }

    pub(crate) fn at(&mut self, at: Nanos, event: Event) {
        self.serial += 1;
        self.queue.push(Reverse((at.max(self.now), self.serial)));
        self.events.insert(self.serial, event);
    }

    pub(crate) fn after(&mut self, delay: Nanos, event: Event) {
        self.at(self.now + delay, event);
    }

    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse((at, serial)) = self.queue.pop()?;
        self.now = at;
        let event = self.events.remove(&serial).expect("queued with its number");
        self.note(&[at, serial]);
        Some(event)
    }

    /// Something observable happened: it becomes part of the trace.
    pub(crate) fn note(&mut self, what: &[u64]) {
        for value in what {
            self.trace = cairn_types::id::mix(self.trace ^ value);
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// For whoever replays a seed with its eyes open.
    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>10.4} {}", self.now as f64 / SECOND as f64, what());
        }
    }

    pub(crate) fn set_life(&mut self, node: Node, life: u32, alive: bool) {
        self.lives.insert(node, (life, alive));
    }

    pub(crate) fn life(&self, node: Node) -> Option<u32> {
        self.lives.get(&node).filter(|(_, alive)| *alive).map(|(life, _)| *life)
    }

    pub(crate) fn cut(&mut self, from: Node, to: Node) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    pub(crate) fn mend(&mut self, from: Node, to: Node) {
        if let Some(count) = self.cuts.get_mut(&(from, to)) {
            *count -= 1;
            if *count == 0 {
                self.cuts.remove(&(from, to));
            }
        }
    }

    /// Messages from one to the other take so much longer from now on; 0 is as usual.
    pub(crate) fn lag(&mut self, from: Node, to: Node, delay: Nanos) {
        if delay == 0 {
            self.lags.remove(&(from, to));
        } else {
            self.lags.insert((from, to), delay);
        }
    }

    pub(crate) fn any_cut(&self) -> bool {
        !self.cuts.is_empty() || !self.lags.is_empty()
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.clear();
        self.lags.clear();
        self.weather = Weather::default();
    }

    pub(crate) fn is_cut(&self, from: Node, to: Node) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    fn latency(&mut self) -> Nanos {
        let slow = self.weather.delay;
        if slow > 0 && self.rng.chance(slow) {
            return self.rng.between(MS, self.weather.delay_max);
        }
        self.rng.between(50_000, 400_000)
    }

    /// Sends on the connection between two nodes as they live now.
    pub(crate) fn send(&mut self, from: Node, to: Node, body: Body) {
        let Some(from_life) = self.life(from) else { return };
        self.stats.messages += 1;
        let Some(to_life) = self.life(to) else {
            if !self.is_cut(from, to) && !self.is_cut(to, from) {
                let delay = self.latency();
                self.after(delay, Event::Refused { at: from, life: from_life, peer: to });
            }
            return;
        };
        if self.is_cut(from, to) {
            self.stats.cut += 1;
            return;
        }
        let (drop, twice) = (self.weather.drop, self.weather.twice);
        if drop > 0 && self.rng.chance(drop) {
            self.stats.dropped += 1;
            return;
        }
        let copies = if twice > 0 && self.rng.chance(twice) { 2 } else { 1 };
        let lag = self.lags.get(&(from, to)).copied().unwrap_or(0);
        for copy in 0..copies {
            let mut at = self.now + self.latency() + lag;
            let last = self.last.entry((from, to)).or_default();
            if !self.weather.reorder && copy == 0 {
                at = at.max(*last + 1);
                *last = at;
            }
            let event = Event::Deliver { from, from_life, to, to_life, body: body.clone() };
            self.at(at, event);
        }
    }

    /// A middlebox answers in an OSD's place that nobody listens there.
    pub(crate) fn forge_refusal(&mut self, peer: Node) {
        let others = self.lives.iter().filter(|(node, (_, alive))| **node != peer && *alive);
        for (at, life) in others.map(|(node, (life, _))| (*node, *life)).collect::<Vec<_>>() {
            let delay = self.latency();
            self.after(delay, Event::Refused { at, life, peer });
        }
    }

    /// A daemon died: whoever is connected hears of it, if the way is not cut.
    pub(crate) fn reset_connections(&mut self, dead: Node) {
        let others = self.lives.iter().filter(|(node, (_, alive))| **node != dead && *alive);
        let others = others.map(|(node, (life, _))| (*node, *life)).collect::<BTreeSet<_>>();
        for (at, life) in others {
            if !self.is_cut(dead, at) {
                let delay = self.latency();
                self.after(delay, Event::Reset { at, life, peer: dead });
            }
        }
    }
}
