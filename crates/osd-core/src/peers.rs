//! The other OSDs as this one knows them: heartbeats, failure detection, and the read leases, which are held and
//! granted per pair of OSDs.
//!
//! A holder counts 1.8 s from sending its request, a grantor 2.0 s from sending its grant; clocks may differ in
//! rate by 5 %. A grant carries the grantor's epoch, and the holder applies that map before it uses the grant, so
//! a grantor that knows of a newer primary never prolongs the older one's lease.

use std::collections::{BTreeMap, BTreeSet};

use cairn_types::map::ClusterMap;
use cairn_types::peer::{Heartbeat, HeartbeatReply};
use cairn_types::{Epoch, Incarnation, OsdId};

use crate::Time;
use crate::output::DownEvidence;
use crate::planted::{Bug, planted};

/// Between heartbeats.
pub(crate) const HEARTBEAT_MS: u64 = 250;
/// What a holder counts on, from sending its request.
const HOLD_MS: u64 = 1800;
/// What a grantor honours, from sending its grant.
const GRANT_MS: u64 = 2000;
/// Silence that counts as failure, while this OSD itself runs on time.
const SILENCE_MS: u64 = 1000;
/// The longest that starvation of this OSD's own processor stretches that.
const SILENCE_MAX_MS: u64 = 3000;
/// A lost connection counts as failure when nothing was heard again after this.
const LOST_MS: u64 = 200;
/// Between reports of the same failure.
const REPORT_MS: u64 = 1000;

/// One other OSD.
#[derive(Debug)]
struct Peer {
    incarnation: Incarnation,
    up: bool,
    /// Its life has ended, says the map.
    dead: bool,
    /// The newest epoch it spoke of.
    epoch: Epoch,
    heard: Time,
    lost: Option<Time>,
    refused: bool,
    reported: Option<Time>,
    oldest_io_ms: u32,
    full: bool,
    /// We hold its lease until then.
    held_until: Time,
    /// A grant that counts once this OSD has the map of that epoch.
    early: Option<(Epoch, Time)>,
    /// We granted ours: to which life, until when.
    granted: Option<(Incarnation, Time)>,
}

/// A grant of ours that a new primary must wait out, unless its holder is proven not to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outstanding {
    pub(crate) holder: OsdId,
    pub(crate) incarnation: Incarnation,
    pub(crate) until: Time,
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Peers {
    me: OsdId,
    incarnation: Incarnation,
    started: Time,
    peers: BTreeMap<OsdId, Peer>,
    /// Whom we exchange heartbeats with.
    watched: BTreeSet<OsdId>,
    /// How late this OSD's own timer has been of late, milliseconds.
    lag_ms: u64,
}

impl Peers {
    pub(crate) fn new(me: OsdId, incarnation: Incarnation, started: Time) -> Self {
        Self { me, incarnation, started, peers: BTreeMap::new(), watched: BTreeSet::new(), lag_ms: 0 }
    }

    /// A newer map: new OSDs, new lives, new marks; and the OSDs that share a PG with this one.
    pub(crate) fn handle_map(&mut self, now: Time, map: &ClusterMap, watched: BTreeSet<OsdId>) {
        for (id, osd) in map.osds.iter().filter(|(id, _)| **id != self.me) {
            let started = self.started;
            let peer = self.peers.entry(*id).or_insert_with(|| Peer {
                incarnation: osd.incarnation,
                up: osd.up,
                dead: false,
                epoch: Epoch(0),
                heard: now,
                lost: None,
                refused: false,
                reported: None,
                oldest_io_ms: 0,
                full: false,
                held_until: Time(0),
                early: None,
                // An OSD that starts behaves as if it had granted at that instant.
                granted: Some((osd.incarnation, started.plus_ms(GRANT_MS))).filter(|_| !planted(Bug::ForgetGrants)),
            });
            if osd.incarnation > peer.incarnation {
                peer.new_life(now, osd.incarnation);
            }
            peer.dead = osd.incarnation <= osd.dead_through;
            peer.up = osd.up && !peer.dead;
            if let Some((epoch, until)) = peer.early
                && epoch <= map.epoch
            {
                peer.held_until = peer.held_until.max(until);
                peer.early = None;
            }
        }
        self.peers.retain(|id, _| map.osds.contains_key(id));
        for id in watched.difference(&self.watched) {
            if let Some(peer) = self.peers.get_mut(id) {
                peer.heard = peer.heard.max(now);
            }
        }
        self.watched = watched;
        self.watched.remove(&self.me);
    }

    /// Takes note of a message. False: it comes from a life that has ended, or from nobody we know.
    pub(crate) fn handle_heard(&mut self, now: Time, from: OsdId, incarnation: Incarnation) -> bool {
        let Some(peer) = self.peers.get_mut(&from) else { return false };
        if incarnation < peer.incarnation {
            return false;
        }
        if incarnation > peer.incarnation {
            peer.new_life(now, incarnation);
        }
        peer.heard = now;
        peer.lost = None;
        peer.refused = false;
        true
    }

    /// Answers a heartbeat; with a grant, when one is asked for.
    pub(crate) fn handle_heartbeat(
        &mut self,
        now: Time,
        from: OsdId,
        beat: &Heartbeat,
        own: HeartbeatReply,
    ) -> HeartbeatReply {
        let peer = self.peers.get_mut(&from).expect("only a known peer's heartbeat is handled");
        peer.learn(beat.epoch, beat.oldest_io_ms, beat.full);
        if beat.want_lease {
            // A grant to an earlier life of the holder is void: the life that speaks now is a later one.
            let honoured_ms = if planted(Bug::GrantShort) { GRANT_MS / 2 } else { GRANT_MS };
            peer.granted = Some((peer.incarnation, now.plus_ms(honoured_ms)));
        }
        HeartbeatReply { echo: beat.sent_at, echo_incarnation: peer.incarnation, lease: beat.want_lease, ..own }
    }

    /// Takes a grant, when it was made to this life.
    pub(crate) fn handle_heartbeat_reply(&mut self, from: OsdId, reply: &HeartbeatReply, known: Epoch) {
        let peer = self.peers.get_mut(&from).expect("only a known peer's reply is handled");
        peer.learn(reply.epoch, reply.oldest_io_ms, reply.full);
        if !reply.lease || reply.echo_incarnation != self.incarnation {
            return;
        }
        let since = if planted(Bug::LeaseFromReceipt) { peer.heard } else { Time(reply.echo) };
        let until = since.plus_ms(HOLD_MS);
        if reply.epoch <= known || planted(Bug::GrantBeforeMap) {
            peer.held_until = peer.held_until.max(until);
        } else {
            peer.early = Some((reply.epoch, until));
        }
    }

    /// A connection broke: probably dead, perhaps only the connection.
    pub(crate) fn handle_lost(&mut self, now: Time, osd: OsdId) {
        if let Some(peer) = self.peers.get_mut(&osd) {
            peer.lost.get_or_insert(now);
        }
    }

    /// Nobody listens there.
    pub(crate) fn handle_refused(&mut self, osd: OsdId) {
        if let Some(peer) = self.peers.get_mut(&osd) {
            peer.refused = true;
        }
    }

    /// Takes note of how late a timer was: what starves this OSD must not be blamed on others.
    pub(crate) fn handle_lag(&mut self, now: Time, late_ms: u64) {
        self.lag_ms = (self.lag_ms * 7 / 8).max(late_ms.min(SILENCE_MAX_MS));
        if late_ms >= HEARTBEAT_MS {
            for peer in self.peers.values_mut() {
                peer.heard = now;
            }
        }
    }

    /// Whom to send heartbeats to.
    pub(crate) fn watched(&self) -> impl Iterator<Item = OsdId> + '_ {
        self.watched.iter().copied()
    }

    /// Failures that are not reported yet, or not lately, although the map still calls the OSD up.
    pub(crate) fn reports_due(&mut self, now: Time) -> Vec<(OsdId, Incarnation, DownEvidence)> {
        let silence = self.silence_ms();
        let mut reports = Vec::new();
        for id in &self.watched {
            let Some(peer) = self.peers.get_mut(id) else { continue };
            let failed = peer.failed(now, silence);
            if let Some(evidence) = failed
                && peer.up
                && peer.reported.is_none_or(|at| now.ms_since(at) >= REPORT_MS)
            {
                peer.reported = Some(now);
                reports.push((*id, peer.incarnation, evidence));
            }
        }
        reports
    }

    /// Whether this OSD cannot be counted on now.
    pub(crate) fn is_down(&self, now: Time, osd: OsdId) -> bool {
        if osd == self.me {
            return false;
        }
        self.peers.get(&osd).is_none_or(|peer| !peer.up || peer.failed(now, self.silence_ms()).is_some())
    }

    /// Whether this OSD can speak with it now, whatever the map says of it: who is marked down may still be heard by some,
    /// and where an in-sync member cannot be spared, its word is needed as before.
    pub(crate) fn is_reachable(&self, now: Time, osd: OsdId) -> bool {
        let silence = self.silence_ms();
        self.peers.get(&osd).is_some_and(|peer| !peer.dead && peer.failed(now, silence).is_none())
    }

    /// How long its oldest disk operation has taken so far, as it said last.
    pub(crate) fn oldest_io_ms(&self, osd: OsdId) -> u32 {
        self.peers.get(&osd).map_or(0, |peer| peer.oldest_io_ms)
    }

    /// It said that it has no room.
    pub(crate) fn is_full(&self, osd: OsdId) -> bool {
        self.peers.get(&osd).is_some_and(|peer| peer.full)
    }

    /// The life of it that is known.
    pub(crate) fn incarnation(&self, osd: OsdId) -> Incarnation {
        self.peers.get(&osd).map_or(Incarnation(0), |peer| peer.incarnation)
    }

    /// Whether we hold its lease at this instant.
    pub(crate) fn holds_lease(&self, now: Time, osd: OsdId) -> bool {
        self.peers.get(&osd).is_some_and(|peer| now < peer.held_until)
    }

    /// The silence that counts as failure now.
    pub(crate) fn silence_ms(&self) -> u64 {
        (SILENCE_MS + 4 * self.lag_ms).min(SILENCE_MAX_MS)
    }

    /// All grants that may still be used by others.
    pub(crate) fn outstanding(&self, now: Time) -> Vec<Outstanding> {
        let grants = self.peers.iter().filter_map(|(id, peer)| {
            let (incarnation, until) = peer.granted?;
            (until > now).then_some(Outstanding { holder: *id, incarnation, until })
        });
        grants.collect()
    }

    /// Whether a grant can no longer serve a primary that was replaced at epoch `since`: it ran out, its holder is
    /// proven dead, or its holder has applied that map.
    pub(crate) fn is_spent(&self, now: Time, grant: &Outstanding, since: Epoch, map: &ClusterMap) -> bool {
        now >= grant.until
            || map.is_dead(grant.holder, grant.incarnation)
            || self.peers.get(&grant.holder).is_some_and(|peer| peer.epoch >= since)
    }
}

impl Peer {
    fn new_life(&mut self, now: Time, incarnation: Incarnation) {
        self.incarnation = incarnation;
        self.heard = now;
        self.lost = None;
        self.refused = false;
        self.reported = None;
        self.held_until = Time(0);
        self.early = None;
        self.oldest_io_ms = 0;
        self.full = false;
    }

    fn learn(&mut self, epoch: Epoch, oldest_io_ms: u32, full: bool) {
        self.epoch = self.epoch.max(epoch);
        self.oldest_io_ms = oldest_io_ms;
        self.full = full;
    }

    fn failed(&self, now: Time, silence_ms: u64) -> Option<DownEvidence> {
        if self.refused || self.lost.is_some_and(|at| now.ms_since(at) >= LOST_MS) {
            return Some(DownEvidence::Refused);
        }
        (now.ms_since(self.heard) >= silence_ms).then_some(DownEvidence::Silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cairn_types::map::{Location, Osd};

    fn map(epoch: u64, lives: &[(u32, u64, u64)]) -> ClusterMap {
        let osds = lives.iter().map(|(id, incarnation, dead)| {
            let osd = Osd {
                id: OsdId(*id),
                uuid: uuid::Uuid::from_u128(u128::from(*id)),
                incarnation: Incarnation(*incarnation),
                dead_through: Incarnation(*dead),
                addresses: vec![],
                up: incarnation > dead,
                placed: true,
                weight: 1 << 16,
                location: Location { zone: "z".into(), rack: "r".into(), host: "h".into() },
                device_class: "ssd".into(),
                capacity: 0,
                used: 0,
                acked_epoch: Epoch(0),
            };
            (OsdId(*id), osd)
        });
        ClusterMap { epoch: Epoch(epoch), osds: osds.collect(), ..ClusterMap::default() }
    }

    fn peers(map: &ClusterMap) -> Peers {
        let mut peers = Peers::new(OsdId(1), Incarnation(1), Time(0));
        peers.handle_map(Time(0), map, map.osds.keys().copied().collect());
        peers
    }

    fn ms(ms: u64) -> Time {
        Time(0).plus_ms(ms)
    }

    fn reply(echo: Time, epoch: u64) -> HeartbeatReply {
        HeartbeatReply {
            echo: echo.0,
            echo_incarnation: Incarnation(1),
            epoch: Epoch(epoch),
            lease: true,
            oldest_io_ms: 0,
            full: false,
        }
    }

    #[test]
    fn a_lease_counts_from_the_request_and_ends() {
        let map = map(1, &[(1, 1, 0), (2, 1, 0)]);
        let mut peers = peers(&map);
        peers.handle_heartbeat_reply(OsdId(2), &reply(ms(100), 1), Epoch(1));
        assert!(peers.holds_lease(ms(1899), OsdId(2)));
        assert!(!peers.holds_lease(ms(1900), OsdId(2)));
    }

    #[test]
    fn a_grant_with_a_newer_epoch_waits_for_the_map() {
        let first = map(1, &[(1, 1, 0), (2, 1, 0)]);
        let mut peers = peers(&first);
        peers.handle_heartbeat_reply(OsdId(2), &reply(ms(100), 2), Epoch(1));
        assert!(!peers.holds_lease(ms(200), OsdId(2)));
        let second = map(2, &[(1, 1, 0), (2, 1, 0)]);
        peers.handle_map(ms(200), &second, [OsdId(2)].into());
        assert!(peers.holds_lease(ms(200), OsdId(2)));
    }

    #[test]
    fn a_start_counts_as_a_grant_until_death_is_proven() {
        let first = map(5, &[(1, 1, 0), (2, 1, 0)]);
        let mut peers = peers(&first);
        let grants = peers.outstanding(ms(10));
        assert_eq!(grants.len(), 1);
        assert!(!peers.is_spent(ms(1999), &grants[0], Epoch(6), &first));
        assert!(peers.is_spent(ms(2000), &grants[0], Epoch(6), &first));
        let dead = map(6, &[(1, 1, 0), (2, 1, 1)]);
        assert!(peers.is_spent(ms(20), &grants[0], Epoch(6), &dead));
        assert!(peers.handle_heard(ms(30), OsdId(2), Incarnation(1)));
        let beat =
            Heartbeat { sent_at: 0, epoch: Epoch(6), want_lease: false, oldest_io_ms: 0, full: false, commits: vec![] };
        peers.handle_heartbeat(ms(30), OsdId(2), &beat, reply(ms(0), 6));
        assert!(peers.is_spent(ms(30), &grants[0], Epoch(6), &first), "it has applied the newer map");
    }

    #[test]
    fn silence_is_failure_but_not_while_we_were_away() {
        let map = map(1, &[(1, 1, 0), (2, 1, 0)]);
        let mut peers = peers(&map);
        assert!(!peers.is_down(ms(999), OsdId(2)));
        assert!(peers.is_down(ms(1000), OsdId(2)));
        assert_eq!(peers.reports_due(ms(1000)), vec![(OsdId(2), Incarnation(1), DownEvidence::Silent)]);
        assert!(peers.reports_due(ms(1001)).is_empty());
        peers.handle_lag(ms(1500), 900);
        assert!(!peers.is_down(ms(1500), OsdId(2)));
    }

    #[test]
    fn a_refused_connection_is_failure_at_once_and_a_new_life_clears_it() {
        let first = map(1, &[(1, 1, 0), (2, 1, 0)]);
        let mut peers = peers(&first);
        peers.handle_refused(OsdId(2));
        assert!(peers.is_down(ms(1), OsdId(2)));
        assert!(peers.handle_heard(ms(2), OsdId(2), Incarnation(2)));
        assert!(!peers.is_down(ms(2), OsdId(2)));
        assert!(!peers.handle_heard(ms(3), OsdId(2), Incarnation(1)), "a delayed message of the life before");
    }
}
