//! Whom a request goes to by the map, over which connection, and when it goes again.

use std::time::Duration;

use cairn_types::io::{ClientOp, ClientRequest};
use cairn_types::map::ClusterMap;
use cairn_types::{ConfVersion, OsdId, PgId, RequestId};

use super::{Core, LinkState, Output};
use crate::planted::{Bug, planted};
use crate::request::State;

/// Where the map sends a request.
struct Target {
    primary: OsdId,
    pg: PgId,
    c: ConfVersion,
    interval: ConfVersion,
}

impl Core {
    /// Where a request goes by the present map: the primary, the PG's configuration and its interval.
    fn target(&self, what: &ClientOp) -> Option<(Target, &ClusterMap)> {
        let map = self.map.as_deref().filter(|map| map.epoch >= self.config.min_epoch)?;
        let object = what.object();
        let (pg, config) = map.pg_of(object.pool, object.hash())?;
        let primary = config.primary.filter(|osd| map.osds.contains_key(osd))?;
        Some((Target { primary, pg, c: config.c, interval: config.interval }, map))
    }

    /// Sends a request to where the map says, or notes what it waits for.
    pub(super) fn route(&mut self, now: Duration, seq: u64) {
        let Some(request) = self.requests.get_mut(seq) else { return };
        let (trace, what) = (request.trace, request.what.clone());
        let Some((target, map)) = self.target(&what) else {
            self.requests.wait(seq, State::Unrouted, None);
            return;
        };
        let epoch = map.epoch;
        let to = target.primary;
        if !self.connected(to) {
            self.requests.wait(seq, State::AwaitLink(to), None);
            return;
        }
        let until = now + self.config.timing.resend;
        self.requests.wait(seq, State::Sent { to, interval: target.interval, at: now }, Some(until));
        let acked_through = if planted(Bug::AckedTooFar) { seq - 1 } else { self.requests.acked_through() };
        let request = ClientRequest {
            id: RequestId { session: self.config.session, seq },
            acked_through,
            trace,
            pg: target.pg,
            c: target.c,
            epoch,
            volume: what.object().volume,
            generation: self.config.generation,
            snap_context: self.context,
            op: what,
        };
        self.outputs.push_back(Output::Send { to, request });
    }

    /// After a new map: sends a request again only if what it waits for changed.
    pub(super) fn reroute(&mut self, now: Duration, seq: u64) {
        let request = self.requests.get_mut(seq).expect("it was listed");
        let (state, what) = (request.state, request.what.clone());
        let target = self.target(&what).map(|(target, map)| (target.primary, target.interval, map.epoch));
        let again = match (state, target) {
            (State::Sent { to, interval, .. }, Some((primary, now_interval, _))) => {
                (to, interval) != (primary, now_interval)
            }
            (State::AwaitEpoch(wanted), Some((_, _, epoch))) => epoch >= wanted,
            (State::AwaitLink(osd), Some((primary, _, _))) => osd != primary,
            (State::Unrouted | State::Paused, Some(_)) => true,
            (_, None) => true,
        };
        if again {
            self.route(now, seq);
        }
    }

    /// After a transient refusal: again after a while, with some spread between clients.
    pub(super) fn pause(&mut self, now: Duration, seq: u64) {
        let Some(request) = self.requests.get_mut(seq) else { return };
        let timing = &self.config.timing;
        let doubled = timing.first_pause.saturating_mul(1 << request.refusals.min(16));
        request.refusals = request.refusals.saturating_add(1);
        let pause = doubled.min(timing.longest_pause);
        self.seed = cairn_types::id::mix(self.seed);
        let until = now + pause / 2 + pause / 2 * (self.seed % 64) as u32 / 63;
        self.requests.wait(seq, State::Paused, Some(until));
    }

    // --------------------------------------------------------------------------------------------------- links

    /// Whether a connection to an OSD of the map is open; asks for one if there has been none.
    fn connected(&mut self, osd: OsdId) -> bool {
        if let Some(link) = self.links.get(&osd) {
            return link.up;
        }
        let map = self.map.as_deref().expect("a request is routed by the map");
        let entry = &map.osds[&osd];
        let (addresses, incarnation) = (entry.addresses.clone(), entry.incarnation);
        self.outputs.push_back(Output::Connect { osd, addresses: addresses.clone() });
        self.links.insert(osd, LinkState { addresses, incarnation, up: false, heard_at: None });
        false
    }

    /// Follows the map: OSDs that moved or began a new life are dialled afresh, those that are gone are let go.
    pub(super) fn update_links(&mut self) {
        let map = self.map.clone().expect("it was just set");
        let known: Vec<OsdId> = self.links.keys().copied().collect();
        for osd in known {
            let Some(entry) = map.osds.get(&osd) else {
                self.links.remove(&osd);
                self.outputs.push_back(Output::Disconnect { osd });
                self.await_link(osd);
                continue;
            };
            let link = self.links.get_mut(&osd).expect("it was listed");
            if link.addresses != entry.addresses || link.incarnation != entry.incarnation {
                link.addresses.clone_from(&entry.addresses);
                link.incarnation = entry.incarnation;
                self.redial(osd);
            }
        }
    }

    pub(super) fn redial(&mut self, osd: OsdId) {
        let link = self.links.get_mut(&osd).expect("only a known link is dialled again");
        link.up = false;
        link.heard_at = None;
        self.outputs.push_back(Output::Connect { osd, addresses: link.addresses.clone() });
        self.await_link(osd);
    }

    /// What was sent over this connection waits for the next.
    pub(super) fn await_link(&mut self, osd: OsdId) {
        for seq in self.requests.matching(|state| matches!(state, State::Sent { to, .. } if *to == osd)) {
            self.requests.wait(seq, State::AwaitLink(osd), None);
        }
    }
}
