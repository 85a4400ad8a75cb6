//! What only the leader's memory knows: when leases end, which OSDs report, and how far the other members are. Any member
//! is asked; one that does not lead asks the leader. The tasks here turn that memory into commands while this member leads.

mod members;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cairn_proto::meta::command::Payload;
use cairn_proto::meta::{
    BeginMembers, Command, DownEvidence, FinishSnapshot, InitCluster, LeaseExpire, Member, OsdReports,
    ReportDownRequest, ReportOsdReply, ReportOsdRequest,
};
use cairn_proto::meta_raft::raft_client::RaftClient;
use cairn_proto::meta_raft::{LeaseQuestion, LeaseTimes};
use cairn_types::map::{Osd, SnapPhase};
use cairn_types::{Incarnation, OsdId, SnapId};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::clock;
use crate::doors::errors;
use crate::gateway::{CallError, DEADLINE, Gateway};
use crate::leases::Leases;
use crate::liveness::{Facts, Liveness};
use crate::peers::Peers;
use crate::tend::Tended;
use members::Pace;

/// Reports of several OSDs share one command: the first waits this long for others, and two commands are at least
/// [`NEWS_PAUSE`] apart.
const NEWS_GATHER: Duration = Duration::from_millis(3);
const NEWS_PAUSE: Duration = Duration::from_millis(50);
/// Between looks for silent OSDs, ended leases and what else is due.
const LOOK: Duration = Duration::from_millis(500);
/// A snapshot that is not complete after so long is given up.
const TAKING: Duration = Duration::from_secs(30);
/// One attempt to ask the leader.
const ASK: Duration = Duration::from_secs(2);
/// The data-path protocol that every OSD of a new cluster must speak.
const MIN_PROTOCOL: u32 = 1;
/// Commands of this version carry what the first release knows.
pub(crate) const COMMAND_VERSION: u32 = 1;

/// A handle of the leader's memory, wherever the leader is.
#[derive(Clone)]
pub(crate) struct Leader {
    gateway: Gateway,
    peers: Arc<Peers>,
    leases: Arc<Leases>,
    liveness: Arc<Mutex<Liveness>>,
    news: Arc<Notify>,
    pace: Arc<Mutex<Pace>>,
    me: u64,
}

impl Leader {
    pub(crate) fn new(me: u64, gateway: Gateway, peers: Arc<Peers>, leases: Arc<Leases>) -> Self {
        let (liveness, news, pace) = (Arc::default(), Arc::default(), Arc::default());
        Self { gateway, peers, leases, liveness, news, pace, me }
    }

    fn liveness(&self) -> MutexGuard<'_, Liveness> {
        self.liveness.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The times of leases, from the leader.
    pub(crate) async fn lease_times(&self, question: LeaseQuestion) -> Result<LeaseTimes, CallError> {
        let here = || self.lease_times_here(question.clone());
        let there = |mut leader: RaftClient<Channel>| {
            let question = question.clone();
            async move { leader.ask_leases(question).await.map(|r| r.into_inner()) }
        };
        self.ask(here, there).await
    }

    /// The same, if this member leads.
    pub(crate) async fn lease_times_here(&self, question: LeaseQuestion) -> Result<Option<LeaseTimes>, CallError> {
        if !self.gateway.leadership().surely {
            return Ok(None);
        }
        // A leader that was deposed without knowing it must not promise time: a quorum confirms it first.
        self.gateway.read(|_, _| ()).await?;
        if !self.gateway.leadership().surely {
            return Ok(None);
        }
        let times = self.leases.times(&question.ids, question.renew, Instant::now());
        Ok(Some(LeaseTimes { times }))
    }

    /// An OSD's report, to the leader.
    pub(crate) async fn hear_osd(&self, report: ReportOsdRequest) -> Result<ReportOsdReply, CallError> {
        let here = || self.hear_osd_here(report);
        self.ask(here, |mut leader: RaftClient<Channel>| async move {
            leader.report_osd(report).await.map(|r| r.into_inner())
        })
        .await
    }

    /// The same, if this member leads.
    pub(crate) async fn hear_osd_here(&self, report: ReportOsdRequest) -> Result<Option<ReportOsdReply>, CallError> {
        if !self.gateway.leadership().surely {
            return Ok(None);
        }
        let (id, incarnation) = (OsdId(report.id), Incarnation(report.incarnation));
        let known = self.gateway.local(move |machine, _| {
            let map = machine.map();
            let facts = |osd: &Osd| Facts { up: osd.up, capacity: osd.capacity };
            let alive = map.osds.get(&id).filter(|o| o.incarnation == incarnation && o.dead_through < incarnation);
            (map.epoch, alive.map(facts), cairn_meta_core::scrub::orders(machine, id, clock::now_s()))
        });
        let (epoch, facts, scrubs) = known.await?;
        let Some(facts) = facts else {
            return Ok(Some(ReportOsdReply { epoch: epoch.0, dead: true, ..ReportOsdReply::default() }));
        };
        if self.liveness().hear(report, facts, Instant::now()) {
            self.news.notify_one();
        }
        Ok(Some(ReportOsdReply { epoch: epoch.0, dead: false, scrubs }))
    }

    /// Asks here if this member leads, else the leader, again while leadership changes.
    async fn ask<T, Here, There>(
        &self,
        mut here: impl FnMut() -> Here,
        there: impl Fn(RaftClient<Channel>) -> There,
    ) -> Result<T, CallError>
    where
        Here: Future<Output = Result<Option<T>, CallError>>,
        There: Future<Output = Result<T, Status>>,
    {
        let deadline = Instant::now() + DEADLINE;
        let mut leaderships = self.gateway.leaderships();
        loop {
            let leader = leaderships.borrow_and_update().role.leader;
            if leader == self.me {
                if let Some(answer) = here().await? {
                    return Ok(answer);
                }
            } else if let Some(channel) = self.peers.channel(leader) {
                match tokio::time::timeout(ASK, there(RaftClient::new(channel))).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(status)) if errors::refused(&status).is_some() => {
                        return Err(CallError::Refused(errors::refused(&status).unwrap_or_default()));
                    }
                    Ok(Err(status)) if status.code() == Code::DataLoss => {
                        tracing::warn!(leader, "the leader could not answer: {}", status.message());
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            let cut_off_from = leaderships.borrow().cut_off_from;
            if cut_off_from != 0 {
                return Err(CallError::CutOff { leader: cut_off_from });
            }
            if Instant::now() >= deadline {
                return Err(match leader {
                    0 => self.no_leader(),
                    _ => CallError::Unconfirmed { waited_s: DEADLINE.as_secs() },
                });
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), leaderships.changed()).await;
        }
    }

    pub(crate) fn no_leader(&self) -> CallError {
        let (reachable, members) = (self.peers.reachable(), self.peers.count());
        CallError::NoLeader { reachable, members }
    }

    // ---- while this member leads

    /// Turns what is remembered into commands, until shutdown.
    pub(crate) async fn run(self, osd_silence: Duration, shutdown: CancellationToken) {
        let work = async {
            tokio::join!(self.follow_leadership(), self.tell_news(), self.look_around(osd_silence));
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = work => {}
        }
    }

    async fn follow_leadership(&self) {
        let mut leaderships = self.gateway.leaderships();
        let mut led = false;
        loop {
            let leads = leaderships.borrow_and_update().surely;
            if leads && !led {
                self.leases.renew_all(Instant::now());
                self.liveness().begin(Instant::now());
                self.begin_cluster().await;
            }
            led = leads;
            if leaderships.changed().await.is_err() {
                return;
            }
        }
    }

    /// A new cluster gets its name, and its members are written down; again, until both are.
    async fn begin_cluster(&self) {
        let cluster = self.gateway.local(|machine, _| machine.cluster()).await;
        if cluster == Ok(None) {
            let name = Uuid::new_v4().as_bytes().to_vec().into();
            let payload = Payload::InitCluster(InitCluster { cluster: name, min_protocol: MIN_PROTOCOL });
            self.tell("name the cluster", payload).await;
        }
        let known = self.gateway.local(|machine, _| !machine.members().members.is_empty()).await;
        if known == Ok(false) {
            let members = self.peers.members().into_iter().filter(|m| !m.learner);
            let members = members.map(|m| Member { id: m.id, address: m.address, ..Member::default() }).collect();
            let lineage = Uuid::new_v4().as_bytes().to_vec().into();
            self.tell("write down the members", Payload::BeginMembers(BeginMembers { members, lineage })).await;
        }
    }

    async fn tell(&self, what: &str, payload: Payload) -> bool {
        let told = self.gateway.propose(command(payload, String::new())).await;
        if let Err(error) = &told {
            tracing::debug!("could not {what}: {error}");
        }
        told.is_ok()
    }

    async fn tell_news(&self) {
        loop {
            self.news.notified().await;
            tokio::time::sleep(NEWS_GATHER).await;
            let reports = self.liveness().take_news(Instant::now());
            if reports.is_empty() || !self.gateway.leadership().surely {
                continue;
            }
            let payload = Payload::OsdReports(OsdReports { reports: reports.clone() });
            if !self.tell("tell what the OSDs reported", payload).await {
                self.liveness().untold(&reports);
                self.news.notify_one();
            }
            tokio::time::sleep(NEWS_PAUSE).await;
        }
    }

    async fn look_around(&self, osd_silence: Duration) {
        let mut last = Instant::now();
        let mut tended = Tended::default();
        let mut taking = BTreeMap::new();
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.gateway.leadership().surely {
                continue;
            }
            // This process itself was paused: what it did not hear meanwhile says nothing.
            if last.elapsed() > LOOK * 3 {
                self.liveness().begin(Instant::now());
            }
            last = Instant::now();
            let ids = self.leases.expired(Instant::now());
            if !ids.is_empty() {
                self.tell("end leases", Payload::LeaseExpire(LeaseExpire { ids })).await;
            }
            self.report_silent(osd_silence).await;
            if let Some(payload) = tended.due(&self.gateway).await {
                self.tell("tend placement and the trash", payload).await;
            }
            self.begin_cluster().await;
            self.tend_members().await;
            self.end_forgotten_snapshots(&mut taking).await;
        }
    }

    /// Whoever asked for a snapshot gave up waiting for it: it is given up too.
    async fn end_forgotten_snapshots(&self, since: &mut BTreeMap<SnapId, Instant>) {
        let taking = self.gateway.local(|machine, _| {
            let all = machine.map().volumes.values().flat_map(|fence| &fence.snapshots);
            all.filter(|(_, phase)| **phase == SnapPhase::Taking).map(|(id, _)| *id).collect::<BTreeSet<_>>()
        });
        let Ok(taking) = taking.await else { return };
        since.retain(|id, _| taking.contains(id));
        for id in taking {
            if since.entry(id).or_insert_with(Instant::now).elapsed() > TAKING {
                let payload = Payload::FinishSnapshot(FinishSnapshot { snapshot: id.0, taken: false });
                self.tell("give up a snapshot", payload).await;
            }
        }
    }

    async fn report_silent(&self, limit: Duration) {
        let up = self.gateway.local(|machine, _| {
            let up = machine.map().osds.values().filter(|osd| osd.up);
            up.map(|osd| (osd.id.0, osd.incarnation.0)).collect::<Vec<_>>()
        });
        let Ok(up) = up.await else { return };
        let now = Instant::now();
        let silent: Vec<(u32, u64)> = {
            let liveness = self.liveness();
            up.into_iter().filter(|(id, incarnation)| liveness.is_silent(*id, *incarnation, limit, now)).collect()
        };
        for (osd, incarnation) in silent {
            tracing::warn!(osd, incarnation, "no report for {limit:?}: the OSD is declared down");
            let evidence = DownEvidence::Silent.into();
            let request = ReportDownRequest { mutation: None, reporter: None, osd, incarnation, evidence };
            self.tell("declare an OSD down", Payload::ReportDown(request)).await;
        }
    }
}

/// A command with this payload and the present time; without a session.
pub(crate) fn command(payload: Payload, request_id: String) -> Command {
    Command {
        version: COMMAND_VERSION,
        request_id,
        now_s: clock::now_s(),
        payload: Some(payload),
        ..Command::default()
    }
}
