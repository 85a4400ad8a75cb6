//! What makes data move: OSDs in and out of placement, other weights, one OSD in place of another, removal, balance.
//!
//! Nothing here copies a byte. A command changes where placement wants PGs (`up`); their primaries fill the new members
//! and swap them for the old ones, so that a planned move never costs a copy. What would cost one, or could end nowhere,
//! is refused in words.
//!
//! A dry run is the same command carried out on a copy of the machine: it cannot differ from what would happen.

use cairn_proto::meta::change_placement_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{
    BalancePgs, ChangePlacementReply, ChangePlacementRequest, Command, DropOsd, ErrorCode, OutSilentOsds, PlaceOsd,
    RemoveOsd, RemoveOsdReply, ReplaceOsd, SetOsdPlaced, SetOsdPlacedReply,
};
use cairn_types::map::{ClusterMap, Osd, PgConfig, Pool};
use cairn_types::{OsdId, PgId};
use prost::Message;

use crate::capacity::{self, FULL_PERCENT};
use crate::machine::{Machine, Turn};
use crate::pg::is_up;
use crate::plan;
use crate::refusal::{Failure, Outcome, Refusal};
use crate::state::StateRead;

/// Copies that balance moves with one command, if nobody says otherwise.
const BALANCE_STEPS: u32 = 16;
/// The same by itself: few at a time.
const AUTOMATIC_STEPS: u32 = 4;
/// The most with one command.
const MOST_STEPS: u32 = 1024;

/// Answers a request without carrying it out: what would be to move if it were.
///
/// # Errors
/// Those of the command.
pub fn dry_run(
    machine: &Machine,
    state: &dyn StateRead,
    request: &ChangePlacementRequest,
) -> Outcome<ChangePlacementReply> {
    let mut copy = machine.clone();
    let before = machine.standing(false);
    if request.change.is_some() {
        let request = ChangePlacementRequest { dry_run: false, mutation: None, ..request.clone() };
        let command = Command {
            version: machine.cluster_version(),
            now_s: machine.clock_s(),
            payload: Some(Payload::ChangePlacement(request)),
            ..Command::default()
        };
        let applied = copy.apply(state, 0, &command.encode_to_vec())?;
        if let Some(Answer::Error(error)) = applied.reply.result {
            let refusal = Refusal::new(error.code(), error.message).remedy(error.remedy);
            return Err(Failure::Refused(refusal));
        }
    }
    let after = copy.standing(true);
    Ok(ChangePlacementReply { bytes_before: before.bytes, spread_before: before.spread_before, ..after })
}

/// What the leader should propose by itself at this time, if anything. `balance`: look at that too, which takes longer
/// and gives nothing new while the map is the same.
#[must_use]
pub fn due(machine: &Machine, now_s: u64, balance: bool) -> Option<ChangePlacementRequest> {
    let even = BalancePgs { most: AUTOMATIC_STEPS, automatic: true };
    let change = if machine.silent_for_too_long(now_s).is_some() {
        Change::OutSilent(OutSilentOsds {})
    } else if let Some(set) = machine.pool_that_outgrew_its_pgs() {
        Change::SetPgs(set)
    } else if balance && !machine.balanced(&even).is_empty() {
        Change::Balance(even)
    } else {
        return None;
    };
    Some(ChangePlacementRequest { change: Some(change), ..ChangePlacementRequest::default() })
}

impl Machine {
    pub(crate) fn change_placement(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ChangePlacementRequest,
    ) -> Outcome<ChangePlacementReply> {
        if request.dry_run {
            return Err(Refusal::invalid("a dry run is no command").into());
        }
        let before = self.standing(false);
        match request.change.as_ref().ok_or_else(|| Refusal::invalid("the request names no change"))? {
            Change::Place(place) => self.place_osd(turn, *place, request.force)?,
            Change::Replace(replace) => self.replace_osd(turn, *replace, request.force)?,
            Change::Remove(remove) => self.drop_osd(turn, *remove)?,
            Change::Balance(balance) => self.balance(turn, balance),
            Change::OutSilent(_) => self.out_silent(turn),
            Change::SetPgs(set) => self.set_pgs(turn, set)?,
        }
        let after = self.standing(false);
        let changed = turn.touched != crate::history::Touched::default();
        let epoch = if changed { self.coming_epoch() } else { self.map.epoch };
        Ok(ChangePlacementReply {
            epoch: epoch.0,
            bytes_before: before.bytes,
            spread_before: before.spread_before,
            ..after
        })
    }

    pub(crate) fn set_osd_placed(&mut self, turn: &mut Turn<'_>, request: &SetOsdPlaced) -> Outcome<SetOsdPlacedReply> {
        let place = PlaceOsd { id: request.id, placed: Some(request.placed), weight: request.weight };
        let before = turn.touched.clone();
        self.place_osd(turn, place, true)?;
        let epoch = if turn.touched == before { self.map.epoch } else { self.coming_epoch() };
        Ok(SetOsdPlacedReply { epoch: epoch.0 })
    }

    pub(crate) fn remove_osd(&mut self, turn: &mut Turn<'_>, request: &RemoveOsd) -> Outcome<RemoveOsdReply> {
        if !self.map.osds.contains_key(&OsdId(request.id)) {
            return Ok(RemoveOsdReply { epoch: self.map.epoch.0 });
        }
        self.drop_osd(turn, DropOsd { id: request.id })?;
        Ok(RemoveOsdReply { epoch: self.coming_epoch().0 })
    }

    /// Whether an OSD that arrives counts for placement at once.
    pub(crate) fn is_placed_on_arrival(&self, before: Option<&Osd>) -> bool {
        match before {
            Some(osd) => osd.placed || self.notes.get(&osd.id).is_some_and(|notes| notes.out_by_itself),
            None => !self.map.settings.noin,
        }
    }

    fn known(&self, id: u32) -> Result<&Osd, Refusal> {
        let id = OsdId(id);
        self.map.osds.get(&id).ok_or_else(|| Refusal::not_found(format!("there is no {id}")))
    }

    fn place_osd(&mut self, turn: &mut Turn<'_>, request: PlaceOsd, force: bool) -> Result<(), Refusal> {
        let osd = self.known(request.id)?.clone();
        let weight = request.weight.unwrap_or(osd.weight);
        if weight == 0 {
            return Err(
                Refusal::invalid("a weight of 0 places nothing").remedy("take the OSD out of placement instead")
            );
        }
        let next = Osd { placed: request.placed.unwrap_or(osd.placed), weight, ..osd.clone() };
        if next.placed && !osd.placed {
            self.check_not_replaced(osd.id)?;
        }
        if osd.placed && !next.placed && !force {
            self.check_without(&osd, None)?;
        }
        let notes = self.notes.entry(osd.id).or_default();
        let settled = notes.out_by_itself && request.placed.is_some();
        notes.out_by_itself &= !settled;
        if next != osd {
            self.write_osd(turn, next);
            self.place_pgs(turn);
        } else if settled {
            self.write_osd_quietly(turn, next);
        }
        Ok(())
    }

    fn check_not_replaced(&self, id: OsdId) -> Result<(), Refusal> {
        let name = self.name_of_place(id);
        let in_place = |other: &&Osd| other.id != id && other.placed && self.name_of_place(other.id) == name;
        match self.map.osds.values().find(in_place) {
            Some(other) => Err(Refusal::precondition(format!("{} took the place of {id}", other.id))
                .remedy(format!("remove it (cairn osd remove {}), wipe its disk and add it as a new OSD", id.0))),
            None => Ok(()),
        }
    }

    /// The number under which an OSD draws.
    fn name_of_place(&self, id: OsdId) -> OsdId {
        self.notes.get(&id).and_then(|notes| notes.stands_for).unwrap_or(id)
    }

    /// Refuses to take an OSD out where its copies could go nowhere.
    fn check_without(&self, osd: &Osd, instead: Option<OsdId>) -> Result<(), Refusal> {
        let mut osds = self.map.osds.clone();
        osds.insert(osd.id, Osd { placed: false, ..osd.clone() });
        if let Some(other) = instead.and_then(|id| osds.get_mut(&id)) {
            other.placed = true;
        }
        let without = ClusterMap { osds, ..ClusterMap::default() };
        for pool in self.map.pools.values() {
            let (now, then) = (capacity::domains(&self.map, pool), capacity::domains(&without, pool));
            if then < now && then < pool.size as usize {
                return Err(too_few_left(pool, osd.id, then));
            }
        }
        let holds = self.map.pgs.values().any(|pg| is_member(pg, osd.id));
        let others = without.osds.values().filter(|other| other.placed && is_up(&without, other.id));
        let room: u64 = others.map(|o| (o.capacity / 100 * FULL_PERCENT).saturating_sub(o.used)).sum();
        if holds && osd.used > room {
            let (used, room) = (capacity::human(osd.used), capacity::human(room));
            let message = format!("{} holds {used}, and the others have room for {room}", osd.id);
            return Err(Refusal::new(ErrorCode::NoSpace, message).remedy("add OSDs first"));
        }
        Ok(())
    }

    fn replace_osd(&mut self, turn: &mut Turn<'_>, request: ReplaceOsd, force: bool) -> Result<(), Refusal> {
        let (old, new) = (self.known(request.old)?.clone(), self.known(request.with)?.clone());
        if old.id == new.id {
            return Err(Refusal::invalid(format!("{} cannot take its own place", old.id)));
        }
        self.check_not_replaced(old.id)?;
        if !is_up(&self.map, new.id) {
            return Err(Refusal::precondition(format!("{} is down", new.id)).remedy("start it first"));
        }
        if let Some(name) = self.notes.get(&new.id).and_then(|notes| notes.stands_for) {
            return Err(Refusal::precondition(format!("{} stands for {name} already", new.id)).remedy("use a new OSD"));
        }
        if old.device_class != new.device_class && !force {
            let message =
                format!("{} is of class {}, and {} is {}", old.id, old.device_class, new.id, new.device_class);
            return Err(Refusal::precondition(message).remedy("use a disk of the same class, or --force"));
        }
        if !force {
            self.check_without(&old, Some(new.id))?;
        }
        let name = self.name_of_place(old.id);
        let same = old.capacity == new.capacity;
        self.notes.entry(new.id).or_default().stands_for = Some(name);
        self.notes.entry(old.id).or_default().out_by_itself = false;
        let weight = if same { old.weight } else { new.weight };
        self.write_osd(turn, Osd { placed: true, weight, ..new });
        self.write_osd(turn, Osd { placed: false, ..old });
        self.place_pgs(turn);
        Ok(())
    }

    fn drop_osd(&mut self, turn: &mut Turn<'_>, request: DropOsd) -> Result<(), Refusal> {
        let osd = self.known(request.id)?;
        let (id, number) = (osd.id, osd.id.0);
        let member: Vec<(&PgId, &PgConfig)> = self.map.pgs.iter().filter(|(_, pg)| is_member(pg, id)).collect();
        let needed =
            |(_, pg): &&(&PgId, &PgConfig)| !pg.isr.iter().any(|other| *other != id && is_up(&self.map, *other));
        if let Some((pg, _)) = member.iter().find(needed) {
            let message = format!("{id} has the only copy of placement group {pg} that is up to date and not lost");
            let remedy = if osd.up { drain_first(number) } else { format!("bring {id} back, then drain it") };
            return Err(Refusal::precondition(message).remedy(remedy));
        }
        if let Some(((pg, _), more)) = member.split_first() {
            let more = if more.is_empty() { String::new() } else { format!(" and of {} more", more.len()) };
            let message = format!("{id} is still a member of placement group {pg}{more}");
            return Err(Refusal::precondition(message).remedy(drain_first(number)));
        }
        if osd.up && osd.placed {
            let message = format!("{id} is up, and placement counts on it");
            return Err(Refusal::precondition(message).remedy(drain_first(number)));
        }
        self.map.osds.remove(&id);
        self.notes.remove(&id);
        turn.state.delete(crate::keys::osd(id));
        turn.touched.osds.insert(id);
        self.await_no_longer(turn, id);
        self.place_pgs(turn);
        Ok(())
    }

    // ------------------------------------------------------------------------------------------------- by itself

    /// An OSD that has been down for longer than it may, and whose copies could be made elsewhere.
    fn silent_for_too_long(&self, now_s: u64) -> Option<OsdId> {
        let settings = &self.map.settings;
        let late = |osd: &&Osd| {
            let since = self.notes.get(&osd.id).map_or(0, |notes| notes.down_since_s);
            osd.placed && !osd.up && since > 0 && since + u64::from(settings.down_out_s) <= now_s
        };
        // When half of them are gone it is not their disks.
        let placed = self.map.osds.values().filter(|osd| osd.placed).count();
        let enough = (placed.saturating_sub(1)) * 2 >= self.map.osds.len();
        let helps = |osd: &&Osd| self.check_without(osd, None).is_ok();
        self.map.osds.values().filter(late).find(helps).filter(|_| enough && !settings.noout).map(|osd| osd.id)
    }

    fn out_silent(&mut self, turn: &mut Turn<'_>) {
        while let Some(id) = self.silent_for_too_long(turn.now_s) {
            self.notes.entry(id).or_default().out_by_itself = true;
            let osd = Osd { placed: false, ..self.map.osds[&id].clone() };
            self.write_osd(turn, osd);
            self.place_pgs(turn);
        }
    }

    /// The exceptions that balance would change, and to what.
    fn balanced(&self, request: &BalancePgs) -> Vec<(PgId, Vec<cairn_placement::Exception>)> {
        let settings = &self.map.settings;
        let busy = || !self.map.pgs.values().all(plan::is_settled);
        if request.automatic && (settings.nobalance || settings.norebalance || busy()) {
            return Vec::new();
        }
        let asked = if request.most == 0 { BALANCE_STEPS } else { request.most };
        let mut left = asked.min(MOST_STEPS) as usize;
        let mut changes = Vec::new();
        for pool in self.map.pools.values() {
            let (placer, now) = (self.placer(pool), self.exceptions_of(pool.id));
            // What is split is balanced when all of it is.
            if placer.domains() < pool.size as usize || left == 0 || pool.is_splitting() {
                continue;
            }
            let then = placer.balance(pool.pg_count, &now, left);
            for index in 0..pool.pg_count {
                let (old, new) = (now.get(&index), then.get(&index));
                if old != new {
                    left = left.saturating_sub(1);
                    changes.push((PgId { pool: pool.id, index }, new.cloned().unwrap_or_default()));
                }
            }
        }
        changes
    }

    fn balance(&mut self, turn: &mut Turn<'_>, request: &BalancePgs) {
        for (id, exceptions) in self.balanced(request) {
            self.write_exceptions(turn, id, exceptions);
        }
        self.place_pgs(turn);
    }
}

fn is_member(pg: &PgConfig, osd: OsdId) -> bool {
    pg.acting.contains(&osd) || pg.isr.contains(&osd) || pg.backfill.contains(&osd)
}

fn drain_first(number: u32) -> String {
    format!("drain it first: cairn osd drain {number} --wait")
}

fn too_few_left(pool: &Pool, osd: OsdId, left: usize) -> Refusal {
    let level = pool.failure_domain.as_str();
    let plural = if level == "osd" { "OSDs".to_owned() } else { format!("{level}s") };
    let message = format!(
        "pool `{}` keeps {} copies on different {plural}, and without {osd} there would be {left}: \
         its copies could go nowhere",
        pool.name, pool.size
    );
    let remedy = format!("add a {level} first; with --force {osd} keeps them until there is one");
    Refusal::new(ErrorCode::TooFewDomains, message).remedy(remedy)
}
