//! The task that owns one volume's core and its connections: waits for the next fact, tells the core, and does what
//! the core orders. It decides nothing.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cairn_client_core::{Config, Core, IoError, Op, OpId, Output, Throttle};
use cairn_meta_client::{MapWatch, MetaClient};
use cairn_proto::meta;
use cairn_rpc::{Address, Limits, Link, LinkConfig, LinkEvent};
use cairn_types::id::mix;
use cairn_types::{OsdId, SnapId, TraceId};
use cairn_wire::{Hello, Identity, Message, PROTOCOL, PayloadCheck};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};
use uuid::Uuid;

use crate::Options;
use crate::volume::Shared;

/// What a handle asks of the task.
#[derive(Debug)]
pub(crate) enum Command {
    /// An operation.
    Run { op: Op, done: oneshot::Sender<Result<Bytes, IoError>> },
    /// The volume has grown.
    Grow { size: u64, done: oneshot::Sender<()> },
    /// End when idle.
    Close { done: oneshot::Sender<()> },
}

/// The next fact.
enum Fact {
    Command(Option<Command>),
    Map,
    MapsEnded,
    Link(OsdId, LinkEvent),
    Time,
}

/// Far enough for "no timer".
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(crate) struct Driver {
    core: Core,
    throttle: Throttle,
    config: Config,
    options: Options,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    maps: MapWatch,
    meta: Option<MetaClient>,
    maps_live: bool,
    links: BTreeMap<OsdId, Link>,
    waiting: BTreeMap<OpId, oneshot::Sender<Result<Bytes, IoError>>>,
    closing: Vec<oneshot::Sender<()>>,
    start: Instant,
    timer: Pin<Box<Sleep>>,
    ops: u64,
}

impl Driver {
    pub(crate) fn new(
        config: Config,
        options: Options,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        (maps, meta): (MapWatch, Option<MetaClient>),
    ) -> Self {
        let start = Instant::now();
        let seed = (config.session.0 >> 64) as u64 ^ config.session.0 as u64;
        Self {
            core: Core::new(config.clone(), seed),
            throttle: Throttle::new(),
            config,
            options,
            shared,
            commands,
            maps,
            meta,
            maps_live: true,
            links: BTreeMap::new(),
            waiting: BTreeMap::new(),
            closing: Vec::new(),
            start,
            timer: Box::pin(sleep_until(start + NEVER)),
            ops: 0,
        }
    }

    /// Runs until the volume is closed or its last handle is dropped.
    pub(crate) async fn run(mut self) {
        self.show_map();
        loop {
            self.drain();
            if !self.closing.is_empty() && self.core.is_idle() {
                break;
            }
            match self.next_fact().await {
                Fact::Command(None) => break,
                Fact::Command(Some(command)) => self.handle_command(command),
                Fact::Map => self.show_map(),
                Fact::MapsEnded => self.maps_live = false,
                Fact::Link(osd, event) => self.handle_link(osd, event),
                Fact::Time => self.core.handle_timeout(self.now()),
            }
        }
        poll_fn(|cx| {
            self.links.values_mut().for_each(|link| link.shut_down(cx));
            Poll::Ready(())
        })
        .await;
        for done in self.closing.drain(..) {
            // Nobody waits for it any more: fine.
            let _ = done.send(());
        }
        // Dropping the rest tells whoever still waits that the volume is closed.
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// The map comes first, because it may limit what is let in; commands come before links, so that what is asked for at
    /// the same time leaves in the same frame.
    async fn next_fact(&mut self) -> Fact {
        self.set_timer();
        let takes_commands = self.core.has_room() && self.closing.is_empty() && self.may_come();
        tokio::select! {
            biased;
            changed = self.maps.changed(), if self.maps_live => match changed {
                Ok(()) => Fact::Map,
                Err(_) => Fact::MapsEnded,
            },
            command = self.commands.recv(), if takes_commands => Fact::Command(command),
            () = self.timer.as_mut() => Fact::Time,
            (osd, event) = poll_fn(|cx| poll_links(&mut self.links, cx)) => Fact::Link(osd, event),
        }
    }

    /// Whether the volume's limits let the next command in. A session that is over answers at once.
    fn may_come(&self) -> bool {
        self.core.fatal().is_some() || self.throttle.is_open(self.now())
    }

    /// Moves the timer only when it would ring too late, or has rung: most requests end long before theirs.
    fn set_timer(&mut self) {
        let opens = Some(self.throttle.opens_at()).filter(|_| !self.may_come());
        let next = [self.core.poll_timeout(), opens].into_iter().flatten().min();
        let wanted = self.start + next.unwrap_or(NEVER);
        if wanted < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(wanted);
        }
    }

    fn show_map(&mut self) {
        let map = Arc::clone(&self.maps.borrow_and_update());
        if let Some(fence) = map.volumes.get(&self.config.volume) {
            self.throttle.set_limits(self.now(), fence.limits);
        }
        self.core.handle_map(self.now(), map);
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Run { op, done } => {
                self.ops += 1;
                self.throttle.count(self.now(), &op);
                let trace = TraceId(mix(self.config.session.0 as u64 ^ self.ops));
                let id = self.core.handle_op(self.now(), op, trace);
                self.waiting.insert(id, done);
            }
            Command::Grow { size, done } => {
                self.core.handle_size(size);
                self.shared.size.store(self.core.size(), Ordering::Relaxed);
                // Nobody waits for it any more: fine.
                let _ = done.send(());
            }
            Command::Close { done } => self.closing.push(done),
        }
    }

    fn handle_link(&mut self, osd: OsdId, event: LinkEvent) {
        let now = self.now();
        match event {
            LinkEvent::Up(welcome) => {
                tracing::debug!(%osd, incarnation = %welcome.incarnation, "connected");
                self.core.handle_link_up(now, osd);
            }
            LinkEvent::Message(Message::Reply(reply)) => self.core.handle_reply(now, osd, reply),
            LinkEvent::Message(Message::Request(_) | Message::Peer(_)) => {
                tracing::warn!(%osd, "sent a client what only OSDs are sent");
            }
            LinkEvent::Down(error) => {
                tracing::debug!(%osd, %error, "not connected");
                self.core.handle_link_down(now, osd);
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Connect { osd, addresses } => self.connect(osd, &addresses),
                Output::Disconnect { osd } => drop(self.links.remove(&osd)),
                Output::Send { to, request } => self.send(to, &request.into()),
                Output::Drained { snapshot } => self.tell_drained(snapshot),
                Output::Done { op, result } => {
                    if let Some(done) = self.waiting.remove(&op) {
                        // Whoever asked may have gone; the operation is done all the same.
                        let _ = done.send(result);
                    }
                }
            }
        }
        if let Some(error) = self.core.fatal()
            && self.shared.fatal.set(error).is_ok()
        {
            tracing::warn!(volume = %self.config.volume, generation = %self.config.generation, %error, "session over");
        }
    }

    /// Beside everything else: a snapshot waits for it, and writes do not.
    fn tell_drained(&self, snapshot: SnapId) {
        let Some(meta) = self.meta.clone() else { return };
        let (volume, generation) = (self.config.volume.0, self.config.generation.0);
        tokio::spawn(async move {
            let snapshot = snapshot.0;
            let request = meta::ReportDrainedRequest { mutation: None, volume, generation, snapshot };
            if let Err(error) = meta.report_drained(request).await {
                tracing::warn!(volume, snapshot, %error, "the snapshot will not be taken: nobody could be told");
            }
        });
    }

    /// What is lost here counts as lost on the wire: the core sends it again.
    fn send(&mut self, to: OsdId, message: &Message) {
        if let Some(link) = self.links.get_mut(&to)
            && let Err(error) = link.send(message)
        {
            tracing::debug!(osd = %to, %error, "not sent");
        }
    }

    fn connect(&mut self, osd: OsdId, addresses: &[String]) {
        let usable: Vec<Address> = addresses
            .iter()
            .filter_map(|text| text.parse().inspect_err(|error| tracing::warn!(%osd, %error, "ignored")).ok())
            .collect();
        if let Some(link) = self.links.get_mut(&osd) {
            link.reset(usable);
            return;
        }
        let config = LinkConfig {
            addresses: usable,
            hello: self.hello(osd),
            deadline: self.options.dial_deadline,
            backoff: self.options.backoff,
            // The core compares every block that it reads with its checksum.
            limits: Limits { payload_check: PayloadCheck::ByReceiver, ..Limits::default() },
        };
        self.links.insert(osd, Link::new(config));
    }

    fn hello(&self, osd: OsdId) -> Hello {
        let cluster: Uuid = self.maps.borrow().cluster;
        let identity = Identity::Client {
            session: self.config.session,
            volume: self.config.volume,
            generation: self.config.generation,
        };
        Hello { versions: PROTOCOL, features: 0, required: 0, cluster, identity, to: osd, shard: 0 }
    }
}

/// The next event of any link; flushes what is queued on all of them on its way.
fn poll_links(links: &mut BTreeMap<OsdId, Link>, cx: &mut Context<'_>) -> Poll<(OsdId, LinkEvent)> {
    let mut first = Poll::Pending;
    for (osd, link) in links {
        if first.is_ready() {
            link.poll_flush(cx);
        } else if let Poll::Ready(event) = link.poll_event(cx) {
            first = Poll::Ready((*osd, event));
        }
    }
    first
}
