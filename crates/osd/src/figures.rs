//! What this OSD counts for its metrics page, where it has one: a few atomic additions for each request, and the rest when
//! the disk's use is told anyway.

use cairn_store::{Io, IoOp, Usage};
use cairn_types::OsdId;
use cairn_types::io::ClientOp;
use cairn_types::map::ClusterMap;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 14] =
    [0.000_05, 0.000_1, 0.000_2, 0.000_4, 0.000_8, 0.001_6, 0.003, 0.006, 0.012, 0.025, 0.05, 0.1, 0.5, 2.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Op {
    op: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

/// Seconds of one kind of request.
type Latency = Family<Op, Histogram, fn() -> Histogram>;

fn latency() -> Histogram {
    Histogram::new(BUCKETS)
}

/// What kind of request it is, and over how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) op: &'static str,
    pub(crate) bytes: u64,
}

impl Work {
    pub(crate) fn of(op: &ClientOp) -> Self {
        match op {
            ClientOp::Read { len, .. } => Self { op: "read", bytes: u64::from(*len) },
            ClientOp::Write { data, .. } => Self { op: "write", bytes: data.len() as u64 },
            ClientOp::Zero { unmap: true, len, .. } => Self { op: "discard", bytes: u64::from(*len) },
            ClientOp::Zero { len, .. } => Self { op: "zero", bytes: u64::from(*len) },
            ClientOp::Status { .. } => Self { op: "status", bytes: 0 },
        }
    }
}

/// The figures of one OSD.
pub(crate) struct Figures {
    requests: Family<Op, Counter>,
    refused: Family<Op, Counter>,
    bytes: Family<Op, Counter>,
    seconds: Latency,
    in_flight: Gauge,
    disk: Family<Kind, Counter>,
    disk_queue: Gauge,
    oldest_io_ms: Gauge,
    space: Family<State, Gauge>,
    pgs: Family<State, Gauge>,
    epoch: Gauge<i64>,
}

impl Figures {
    /// On this process' page, if it has one.
    pub(crate) fn on_page() -> Option<Self> {
        let page = cairn_metrics::installed()?;
        let figures = Self {
            requests: Family::default(),
            refused: Family::default(),
            bytes: Family::default(),
            seconds: Family::new_with_constructor(latency as fn() -> Histogram),
            in_flight: Gauge::default(),
            disk: Family::default(),
            disk_queue: Gauge::default(),
            oldest_io_ms: Gauge::default(),
            space: Family::default(),
            pgs: Family::default(),
            epoch: Gauge::default(),
        };
        page.add("osd_requests", "Requests of clients that were answered", figures.requests.clone());
        page.add("osd_requests_refused", "Requests that were refused", figures.refused.clone());
        page.add("osd_request_bytes", "Bytes of answered requests", figures.bytes.clone());
        page.add("osd_request_seconds", "From arrival to reply", figures.seconds.clone());
        page.add("osd_requests_in_flight", "Requests under way", figures.in_flight.clone());
        page.add("osd_disk_operations", "Operations on the disk; a flush is one of its own", figures.disk.clone());
        page.add("osd_disk_queue", "Operations on the disk that are not done", figures.disk_queue.clone());
        page.add("osd_disk_oldest_ms", "Age of the oldest of them", figures.oldest_io_ms.clone());
        page.add("osd_space_bytes", "The device's space", figures.space.clone());
        page.add("osd_pgs", "Placement groups of this OSD", figures.pgs.clone());
        page.add("osd_map_epoch", "The map it knows", figures.epoch.clone());
        Some(figures)
    }

    pub(crate) fn done(&self, work: Work, nanos: u64, refused: bool) {
        let op = Op { op: work.op };
        if refused {
            self.refused.get_or_create(&op).inc();
            return;
        }
        self.requests.get_or_create(&op).inc();
        self.bytes.get_or_create(&op).inc_by(work.bytes);
        self.seconds.get_or_create(&op).observe(nanos as f64 / 1e9);
    }

    pub(crate) fn submitted(&self, batch: &[Io]) {
        let count = |kind, n: u64| {
            if n > 0 {
                self.disk.get_or_create(&Kind { kind }).inc_by(n);
            }
        };
        let of = |is: fn(&IoOp) -> bool| batch.iter().filter(|io| is(&io.op)).count() as u64;
        count("write", of(|op| matches!(op, IoOp::Write { .. })));
        count("read", of(|op| matches!(op, IoOp::Read { .. })));
        count("flush", of(|op| matches!(op, IoOp::Write { sync: true, .. } | IoOp::Sync)));
    }

    /// What changes slowly.
    pub(crate) fn tell(&self, usage: &Usage, in_flight: usize, disk_queue: usize, oldest_io_ms: u32) {
        let bytes = |state, bytes: u64| self.space.get_or_create(&State { state }).set(bytes as i64);
        bytes("capacity", usage.capacity);
        bytes("used", usage.used.saturating_sub(usage.reclaiming));
        bytes("reclaiming", usage.reclaiming);
        bytes("available", usage.available());
        self.in_flight.set(in_flight as i64);
        self.disk_queue.set(disk_queue as i64);
        self.oldest_io_ms.set(i64::from(oldest_io_ms));
    }

    /// A newer map.
    pub(crate) fn follow(&self, map: &ClusterMap, own: OsdId) {
        let (mut led, mut followed, mut joining, mut degraded) = (0, 0, 0, 0);
        for (id, pg) in map.pgs.iter().filter(|(_, pg)| pg.acting.contains(&own) || pg.backfill.contains(&own)) {
            match (pg.primary == Some(own), pg.isr.contains(&own)) {
                (true, _) => led += 1,
                (_, true) => followed += 1,
                _ => joining += 1,
            }
            let size = map.pools.get(&id.pool).map_or(0, |pool| pool.size as usize);
            degraded += i64::from(pg.primary == Some(own) && pg.isr.len() < size);
        }
        let states = [("primary", led), ("in-sync", followed), ("recovering", joining), ("degraded", degraded)];
        for (state, count) in states {
            self.pgs.get_or_create(&State { state }).set(count);
        }
        self.epoch.set(map.epoch.0 as i64);
    }
}
