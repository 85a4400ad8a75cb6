//! Between the loop and the metadata service: the loop asks through a bounded channel, the answers come back as facts
//! through the inbox and the waker. The loop never waits for the metadata service.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cairn_meta_client::{MapWatch, MetaClient};
use cairn_osd_core::{CasOutcome, CasToken, DownEvidence, PgChange, PgDecision};
use cairn_proto::meta;
use cairn_types::map::{ClusterMap, PgConfig};
use cairn_types::scrub::{Damage, DamagedBlock, ScrubOutcome};
use cairn_types::{ConfVersion, Epoch, Incarnation, OsdId, PgId, SnapId, VolumeId};
use mio::Waker;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How often an OSD reports while nothing changes.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Questions that may wait; the core asks few, and each at most once at a time.
pub(crate) const MOST_QUESTIONS: usize = 4096;

/// What the loop asks.
#[derive(Debug)]
pub(crate) enum Question {
    /// These compare-and-swaps, as one command.
    Propose(CasToken, Vec<PgChange>),
    /// Say that this OSD is down.
    Down(OsdId, Incarnation, DownEvidence),
    /// Say that this PG holds nothing of a deleted volume any more, or no layer above these snapshots of it, as long as
    /// this interval lasts.
    Purged(VolumeId, PgId, Vec<SnapId>, ConfVersion),
    /// This epoch is durable here.
    Acknowledge(Epoch),
    /// Say what a scrub found.
    Scrubbed(Box<ScrubOutcome>),
    /// The disk, for the next report.
    Disk {
        /// Bytes stored.
        used: u64,
        /// Age of the oldest unfinished operation.
        oldest_io_ms: u32,
    },
}

/// What the loop learns.
#[derive(Debug)]
pub(crate) enum Fact {
    /// A newer map.
    Map(Arc<ClusterMap>),
    /// What came of a proposal.
    Decided(CasToken, CasOutcome),
    /// These groups are to be scrubbed.
    Scrub(Vec<meta::ScrubOrder>),
    /// The outcome of this order has arrived.
    ScrubReported(PgId, u64),
    /// This life was declared dead.
    Dead,
    /// Stop in order.
    Shutdown,
}

/// Facts for the loop, and the waker that tells it so.
pub(crate) struct Inbox {
    facts: Mutex<Vec<Fact>>,
    waker: Arc<Waker>,
}

impl Inbox {
    pub(crate) fn new(waker: Arc<Waker>) -> Self {
        Self { facts: Mutex::default(), waker }
    }

    pub(crate) fn put(&self, fact: Fact) {
        let mut facts = self.facts.lock().expect("no holder panics");
        // Only the newest map counts: a slow loop does not collect old ones.
        if matches!(fact, Fact::Map(_)) {
            facts.retain(|fact| !matches!(fact, Fact::Map(_)));
        }
        facts.push(fact);
        drop(facts);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the loop");
        }
    }

    pub(crate) fn take(&self) -> Vec<Fact> {
        std::mem::take(&mut *self.facts.lock().expect("no holder panics"))
    }
}

/// The metadata service's side of the bridge.
pub(crate) struct Control {
    pub(crate) client: MetaClient,
    pub(crate) osd: OsdId,
    pub(crate) incarnation: Incarnation,
    pub(crate) inbox: Arc<Inbox>,
}

/// What the next report says.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Report {
    acked: Epoch,
    used: u64,
    oldest_io_ms: u32,
}

impl Control {
    /// Serves the loop's questions and feeds it maps, until the channel closes.
    pub(crate) async fn run(self, mut questions: mpsc::Receiver<Question>, mut maps: MapWatch) {
        let this = Arc::new(self);
        let mut tasks = JoinSet::new();
        let (report, reports) = tokio::sync::watch::channel(Report::default());
        tasks.spawn(Arc::clone(&this).report_forever(reports));
        loop {
            tokio::select! {
                question = questions.recv() => match question {
                    Some(Question::Acknowledge(epoch)) => {
                        report.send_if_modified(|report| std::mem::replace(&mut report.acked, epoch) != epoch);
                    }
                    Some(Question::Disk { used, oldest_io_ms }) => {
                        // Goes along with the next report; not a reason for one.
                        report.send_if_modified(|report| {
                            (report.used, report.oldest_io_ms) = (used, oldest_io_ms);
                            false
                        });
                    }
                    Some(question) => {
                        tasks.spawn(Arc::clone(&this).ask(question));
                    }
                    None => break,
                },
                changed = maps.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    let map = Arc::clone(&maps.borrow_and_update());
                    this.inbox.put(Fact::Map(map));
                }
                Some(_) = tasks.join_next() => {}
            }
        }
        tasks.shutdown().await;
    }

    async fn ask(self: Arc<Self>, question: Question) {
        let outcome = match question {
            Question::Propose(token, changes) => {
                let outcome = self.propose(changes).await;
                self.inbox.put(Fact::Decided(token, outcome));
                return;
            }
            Question::Down(osd, incarnation, evidence) => {
                let evidence = match evidence {
                    DownEvidence::Silent => meta::DownEvidence::Silent,
                    DownEvidence::Refused => meta::DownEvidence::Refused,
                };
                self.client.osd_is_down(Some(self.osd), osd, incarnation, evidence).await.map(|_| ())
            }
            Question::Purged(volume, pg, snapshots, interval) => {
                self.client.purged((self.osd, self.incarnation), (volume, pg), &snapshots, interval).await
            }
            Question::Scrubbed(outcome) => {
                let (pg, order) = (outcome.pg, outcome.order);
                let reported = self.client.report_scrub(self.scrub_report(&outcome)).await;
                if reported.is_ok() {
                    self.inbox.put(Fact::ScrubReported(pg, order));
                }
                reported.map(|_| ())
            }
            Question::Acknowledge(_) | Question::Disk { .. } => return,
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, "a report to the metadata service failed; the core repeats it if it still holds");
        }
    }

    fn scrub_report(&self, outcome: &ScrubOutcome) -> meta::ReportScrubRequest {
        let block = |block: &DamagedBlock| meta::DamagedBlock {
            volume: block.object.volume.0,
            object: block.object.index,
            snapshot: block.object.snapshot.0,
            offset: block.offset,
            copies_differ: block.damage == Damage::CopiesDiffer,
        };
        let found = outcome.found.iter().map(|(osd, copies)| meta::BadCopies { osd: osd.0, copies: *copies });
        meta::ReportScrubRequest {
            mutation: None,
            reporter: self.osd.0,
            incarnation: self.incarnation.0,
            pg: Some(outcome.pg.into()),
            deep: outcome.deep,
            order: outcome.order,
            findings: Some(meta::ScrubFindings {
                objects: outcome.objects,
                blocks: outcome.blocks,
                found: found.collect(),
                repaired: outcome.repaired,
                damaged: outcome.damaged_count,
                damaged_blocks: outcome.damaged.iter().map(block).collect(),
            }),
        }
    }

    /// A refusal decides nothing was changed; no answer decides nothing at all.
    async fn propose(&self, changes: Vec<PgChange>) -> CasOutcome {
        let request = meta::ChangePgsRequest {
            mutation: None,
            reporter: self.osd.0,
            incarnation: self.incarnation.0,
            changes: changes.iter().map(change_to).collect(),
        };
        match self.client.change_pgs(request).await {
            Ok(reply) => {
                let decisions: Option<Vec<PgDecision>> = reply.outcomes.into_iter().map(decision_from).collect();
                match decisions {
                    Some(decisions) => CasOutcome::Decided { epoch: Epoch(reply.epoch), decisions },
                    None => CasOutcome::Unknown,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the outcome of a proposal is unknown");
                CasOutcome::Unknown
            }
        }
    }

    async fn report_forever(self: Arc<Self>, mut reports: tokio::sync::watch::Receiver<Report>) {
        loop {
            let report = *reports.borrow_and_update();
            let request = meta::ReportOsdRequest {
                id: self.osd.0,
                incarnation: self.incarnation.0,
                acked_epoch: report.acked.0,
                used: report.used,
                oldest_io_ms: report.oldest_io_ms.into(),
            };
            match self.client.report_osd(request).await {
                Ok(reply) if reply.dead => self.inbox.put(Fact::Dead),
                Ok(reply) if !reply.scrubs.is_empty() => self.inbox.put(Fact::Scrub(reply.scrubs)),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "the report did not reach the metadata service"),
            }
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(REPORT_EVERY) => {}
            }
        }
    }
}

fn change_to(change: &PgChange) -> meta::PgChange {
    let ids = |osds: &[OsdId]| osds.iter().map(|osd| osd.0).collect();
    meta::PgChange {
        pg: Some(change.pg.into()),
        expect_c: change.expect_c.0,
        primary: change.primary.map(|osd| osd.0),
        isr: ids(&change.isr),
        acting: ids(&change.acting),
        backfill: ids(&change.backfill),
        split_at: change.split_at.map(Into::into),
    }
}

fn decision_from(outcome: meta::PgOutcome) -> Option<PgDecision> {
    if !outcome.refused.is_empty() {
        tracing::info!(pg = ?outcome.pg, refused = outcome.refused, "a change of a PG was refused");
    }
    let (pg, now) = <(PgId, PgConfig)>::try_from(outcome.now?).ok()?;
    Some(PgDecision { pg, applied: outcome.applied, now })
}
