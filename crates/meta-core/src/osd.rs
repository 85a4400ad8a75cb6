//! OSDs: registration with proof of identity, reports, being declared down or dead.
//!
//! `up` and `dead_through` are two things. `up` is opinion: it decides who may lead and join. `dead_through` is proof (its
//! parent saw it exit, or its next life registered): only a dead incarnation may be treated as having ended its leases.

use cairn_proto::convert::uuid_from;
use cairn_proto::meta::{
    DownEvidence, ErrorCode, OsdReports, OsdReportsReply, RegisterOsdReply, RegisterOsdRequest, ReportDownReply,
    ReportDownRequest, ReportOsdReply, ReportOsdRequest, Suspicion,
};
use cairn_types::map::{Osd, WEIGHT_ONE};
use cairn_types::{Epoch, Incarnation, OsdId};
use uuid::Uuid;

use crate::machine::{Machine, OsdNotes, Turn};
use crate::pg::is_up;
use crate::refusal::{Outcome, Refusal};

/// Reports of silence count together that come within this time: each is repeated every second while it holds.
const AT_ONCE_S: u64 = 3;
/// Who was declared down for silence is down at least as long, however it speaks itself.
const SUSPICION_S: u64 = 10;
/// The most addresses of one OSD.
const ADDRESSES: usize = 8;

/// 1 TiB weighs 1.0; nothing weighs nothing.
fn weight_of(capacity: u64) -> u32 {
    let weight = (u128::from(capacity) * u128::from(WEIGHT_ONE)) >> 40;
    u32::try_from(weight).unwrap_or(u32::MAX).max(1)
}

impl Machine {
    pub(crate) fn register_osd(
        &mut self,
        turn: &mut Turn<'_>,
        request: RegisterOsdRequest,
    ) -> Outcome<RegisterOsdReply> {
        let uuid = uuid_from("the OSD's uuid", &request.uuid)?;
        self.check_registration(&request)?;
        let known = self.map.osds.values().find(|osd| osd.uuid == uuid).map(|osd| osd.id);
        match known {
            Some(id) => self.check_return(id, &request)?,
            None => self.check_newcomer(uuid, &request)?,
        }
        let taken_back = request.id.filter(|_| known.is_none() && self.is_after_backup(&request)).map(OsdId);
        let id = known.or(taken_back).unwrap_or(OsdId(self.cluster.next_osd));
        let before = self.map.osds.get(&id);
        let dead_through = match taken_back {
            Some(_) => Self::life_before(request.last_incarnation),
            None => before.map_or(Incarnation(0), |osd| osd.incarnation),
        };
        let osd = Osd {
            id,
            uuid,
            incarnation: dead_through.next(),
            dead_through,
            addresses: request.addresses,
            up: true,
            placed: self.is_placed_on_arrival(before),
            weight: before.map_or_else(|| weight_of(request.capacity), |osd| osd.weight),
            location: request.location.unwrap_or_default().into(),
            device_class: request.device_class,
            capacity: request.capacity,
            used: before.map_or(0, |osd| osd.used),
            acked_epoch: before.map_or(Epoch(0), |osd| osd.acked_epoch),
        };
        let place = |osd: &Osd| (osd.location.clone(), osd.device_class.clone(), osd.placed);
        let moved = before.is_none_or(|old| place(old) != place(&osd));
        let incarnation = osd.incarnation;
        if known.is_none() && taken_back.is_none() {
            self.cluster.next_osd += 1;
        }
        let notes = self.notes.entry(id).or_default();
        let (confirmed, stands_for) = (notes.confirmed, notes.stands_for);
        *notes = OsdNotes { confirmed, stands_for, ..OsdNotes::default() };
        self.write_osd(turn, osd);
        self.hear_memories(turn, id, &request.memories);
        self.renew_pgs(turn, id);
        if moved {
            self.place_pgs(turn);
        }
        Ok(RegisterOsdReply {
            id: id.0,
            incarnation: incarnation.0,
            cluster: self.cluster.cluster.clone(),
            epoch: self.coming_epoch().0,
        })
    }

    fn check_registration(&self, request: &RegisterOsdRequest) -> Result<(), Refusal> {
        let place =
            request.location.as_ref().ok_or_else(|| Refusal::invalid("the OSD does not say where it stands"))?;
        if place.host.is_empty() {
            return Err(Refusal::invalid("the OSD does not say which host it stands on"));
        }
        if request.addresses.is_empty() || request.addresses.len() > ADDRESSES {
            let message = format!("an OSD has 1 to {ADDRESSES} addresses, and not {}", request.addresses.len());
            return Err(Refusal::invalid(message));
        }
        if request.capacity == 0 {
            return Err(Refusal::invalid("an OSD without capacity can store nothing"));
        }
        let lowest = u32::from(self.map.min_protocol);
        if request.protocol < lowest {
            let message = format!("the OSD speaks data protocol {}, the cluster at least {lowest}", request.protocol);
            return Err(Refusal::new(ErrorCode::UnsupportedVersion, message).remedy("upgrade the OSD"));
        }
        if !request.cluster.is_empty() {
            let theirs = uuid_from("the cluster on the disk", &request.cluster)
                .map_err(|error| Refusal::invalid(error.to_string()))?;
            if theirs != self.map.cluster {
                let message = format!("the disk belongs to cluster {theirs}, this is cluster {}", self.map.cluster);
                return Err(mismatch(message, "check where it came from; if its data is not needed, wipe it"));
            }
        }
        Ok(())
    }

    /// A disk that the map knows comes back: its memory must be the map's.
    fn check_return(&self, id: OsdId, request: &RegisterOsdRequest) -> Result<(), Refusal> {
        let osd = &self.map.osds[&id];
        let confirmed = self.notes.get(&id).map_or(0, |notes| notes.confirmed);
        if request.id.is_some_and(|theirs| theirs != id.0) {
            let theirs = OsdId(request.id.unwrap_or_default());
            let message = format!("the disk calls itself {theirs}, but its uuid {} is that of {id}", osd.uuid);
            return Err(mismatch(message, "do not copy disks of OSDs; wipe the copy"));
        }
        if request.last_incarnation > osd.incarnation.0 {
            let message = format!(
                "the disk of {id} remembers {}, but the newest this cluster gave is {}: the metadata is older than the disk",
                Incarnation(request.last_incarnation),
                osd.incarnation
            );
            return Err(mismatch(message, "bring back the newer metadata, or wipe the disk"));
        }
        // One that was never heard of after its registration may have died before it wrote its incarnation down.
        if request.last_incarnation < confirmed {
            let message = format!(
                "the disk of {id} remembers {}, but {} has been at work: the disk was rolled back to an older image",
                Incarnation(request.last_incarnation),
                Incarnation(confirmed)
            );
            return Err(mismatch(message, "wipe the disk: it then joins as a new OSD and is filled from the others"));
        }
        Ok(())
    }

    fn check_newcomer(&self, uuid: Uuid, request: &RegisterOsdRequest) -> Result<(), Refusal> {
        if request.id.is_none() && request.cluster.is_empty() && request.last_incarnation == 0 {
            return Ok(());
        }
        if self.is_after_backup(request) && request.id.is_some_and(|id| !self.map.osds.contains_key(&OsdId(id))) {
            return Ok(());
        }
        let claim = request.id.map_or("an OSD".to_owned(), |id| OsdId(id).to_string());
        let known = request.id.and_then(|id| self.map.osds.get(&OsdId(id)));
        let but =
            known.map_or("this cluster knows no such disk".to_owned(), |osd| format!("that has uuid {}", osd.uuid));
        let message = format!("the disk with uuid {uuid} calls itself {claim}, but {but}");
        Err(mismatch(message, "a wiped or foreign disk joins as a new OSD: wipe it and give it a new uuid"))
    }

    /// A sign of life under the present incarnation: from now on the disk must remember it.
    pub(crate) fn confirm(&mut self, turn: &mut Turn<'_>, id: OsdId) {
        let osd = self.map.osds[&id].clone();
        let notes = self.notes.entry(id).or_default();
        if notes.confirmed != osd.incarnation.0 {
            notes.confirmed = osd.incarnation.0;
            self.write_osd_quietly(turn, osd);
        }
    }

    pub(crate) fn osd_reports(&mut self, turn: &mut Turn<'_>, request: &OsdReports) -> Outcome<OsdReportsReply> {
        let dead: Vec<bool> = request.reports.iter().map(|report| !self.hear(turn, report)).collect();
        let raised = turn.touched != crate::history::Touched::default();
        let epoch = if raised { self.coming_epoch() } else { self.map.epoch };
        let replies =
            dead.into_iter().map(|dead| ReportOsdReply { epoch: epoch.0, dead, ..ReportOsdReply::default() }).collect();
        Ok(OsdReportsReply { replies })
    }

    /// Takes in one report. `false`: whoever sent it must stop.
    fn hear(&mut self, turn: &mut Turn<'_>, report: &ReportOsdRequest) -> bool {
        let id = OsdId(report.id);
        if self.check_alive(id, Incarnation(report.incarnation)).is_err() {
            return false;
        }
        self.confirm(turn, id);
        let mut osd = self.map.osds[&id].clone();
        let before = osd.clone();
        // An epoch that was never given is no acknowledgement of anything.
        if report.acked_epoch <= self.map.epoch.0 {
            osd.acked_epoch = osd.acked_epoch.max(Epoch(report.acked_epoch));
        }
        osd.used = report.used.min(osd.capacity);
        let notes = self.notes.entry(id).or_default();
        let slow = std::mem::replace(&mut notes.oldest_io_ms, report.oldest_io_ms) != report.oldest_io_ms;
        if !osd.up && !self.is_suspect(id, turn.now_s) {
            osd.up = true;
            osd.placed = self.is_placed_on_arrival(Some(&osd));
            let notes = self.notes.entry(id).or_default();
            notes.suspicions.clear();
            (notes.down_since_s, notes.out_by_itself) = (0, false);
            let moved = osd.placed != before.placed;
            self.write_osd(turn, osd);
            self.revive_pgs(turn, id);
            if moved {
                self.place_pgs(turn);
            }
        } else if osd != before || slow {
            self.write_osd_quietly(turn, osd);
        }
        true
    }

    /// Whether as many others as it takes say now that an OSD is silent: two, or the only one that shares a group with it.
    /// Whoever shares none is not asked: the groups that the two shared have gone on without one of them because they lost
    /// each other, and which of them is cut off nobody else has said.
    fn is_accused(&self, id: OsdId, now_s: u64) -> bool {
        let shares = |other: &OsdId| self.share_a_group(id, *other);
        let voices = self.accusers(id, now_s, AT_ONCE_S).filter(shares).count();
        voices >= self.voices_needed(id)
    }

    /// Whether as many did lately: one that is down stays so for a while.
    fn is_suspect(&self, id: OsdId, now_s: u64) -> bool {
        self.accusers(id, now_s, SUSPICION_S).count() >= self.voices_needed(id)
    }

    fn accusers(&self, id: OsdId, now_s: u64, within_s: u64) -> impl Iterator<Item = OsdId> + '_ {
        let suspicions = self.notes.get(&id).into_iter().flat_map(|notes| &notes.suspicions);
        suspicions.filter(move |s| s.at_s + within_s >= now_s).map(|s| OsdId(s.reporter))
    }

    fn voices_needed(&self, id: OsdId) -> usize {
        let others = self.map.osds.keys().filter(|other| **other != id && is_up(&self.map, **other));
        others.filter(|other| self.share_a_group(id, **other)).take(2).count().max(1)
    }

    fn share_a_group(&self, one: OsdId, other: OsdId) -> bool {
        self.map.pgs.values().any(|pg| pg.acting.contains(&one) && pg.acting.contains(&other))
    }

    pub(crate) fn report_down(&mut self, turn: &mut Turn<'_>, request: &ReportDownRequest) -> Outcome<ReportDownReply> {
        let (id, incarnation) = (OsdId(request.osd), Incarnation(request.incarnation));
        let osd = self.map.osds.get(&id).ok_or_else(|| Refusal::not_found(format!("there is no {id}")))?.clone();
        if incarnation > osd.incarnation {
            let message = format!("{id} never had {incarnation}; its newest is {}", osd.incarnation);
            return Err(Refusal::invalid(message).into());
        }
        if incarnation == osd.incarnation && incarnation > osd.dead_through {
            let reporter = request.reporter.map(OsdId);
            match request.evidence() {
                DownEvidence::Silent => self.suspect(turn, osd, reporter)?,
                DownEvidence::Refused => self.refused(turn, id, reporter)?,
                DownEvidence::Exited => self.declare_down(turn, Osd { dead_through: incarnation, ..osd }),
                DownEvidence::Unspecified => return Err(Refusal::invalid("the report brings no evidence").into()),
            }
        }
        let applied = turn.touched != crate::history::Touched::default();
        let epoch = if applied { self.coming_epoch() } else { self.map.epoch };
        Ok(ReportDownReply { epoch: epoch.0, applied })
    }

    fn check_witness(&self, osd: OsdId, reporter: Option<OsdId>) -> Result<OsdId, Refusal> {
        let reporter = reporter.ok_or_else(|| Refusal::invalid("only another OSD can say that an OSD is silent"))?;
        if reporter == osd || !is_up(&self.map, reporter) {
            return Err(Refusal::precondition(format!(
                "{reporter} is no witness: it is down, unknown or {osd} itself"
            )));
        }
        Ok(reporter)
    }

    /// Without a reporter it is the leader that heard nothing, for longer than any OSD would wait: it alone is believed,
    /// so that the last OSD's silence is noticed too. The door lets nobody else leave the reporter out.
    fn suspect(&mut self, turn: &mut Turn<'_>, osd: Osd, reporter: Option<OsdId>) -> Result<(), Refusal> {
        let Some(reporter) = reporter else {
            if osd.up {
                self.declare_down(turn, osd);
            }
            return Ok(());
        };
        let reporter = self.check_witness(osd.id, Some(reporter))?;
        let notes = self.notes.entry(osd.id).or_default();
        notes.suspicions.retain(|s| s.reporter != reporter.0 && s.at_s + SUSPICION_S >= turn.now_s);
        notes.suspicions.push(Suspicion { reporter: reporter.0, at_s: turn.now_s });
        if osd.up && self.is_accused(osd.id, turn.now_s) {
            self.declare_down(turn, osd);
        } else {
            self.write_osd_quietly(turn, osd);
        }
        Ok(())
    }

    /// Nobody listens there any more, says one OSD: believed for the PGs the two share, but no proof of death.
    fn refused(&mut self, turn: &mut Turn<'_>, osd: OsdId, reporter: Option<OsdId>) -> Result<(), Refusal> {
        let reporter = self.check_witness(osd, reporter)?;
        self.leave_pgs(turn, osd, |pg| pg.acting.contains(&reporter));
        Ok(())
    }

    fn declare_down(&mut self, turn: &mut Turn<'_>, osd: Osd) {
        let id = osd.id;
        if osd.up {
            self.notes.entry(id).or_default().down_since_s = turn.now_s.max(1);
        }
        self.write_osd(turn, Osd { up: false, ..osd });
        self.leave_pgs(turn, id, |_| true);
    }
}

fn mismatch(message: String, remedy: &str) -> Refusal {
    Refusal::new(ErrorCode::IdentityMismatch, message).remedy(remedy)
}
