//! Who may hold a volume (publish), who holds it (attach, under a generation), and the nodes that can.
//!
//! Taking over is one command: the old generation leaves the valid set and the new one enters it, in one epoch. Whether
//! every PG has heard of that epoch is [`crate::query::fence_pending`]'s question; the data session starts only then.

use cairn_proto::convert::{attach_mode_from, session_from};
use cairn_proto::meta::{
    AttachReply, AttachRequest, Attachment, Completed, DetachReply, DetachRequest, ErrorCode, NodeRecord, Publication,
    PublishVolumeReply, PublishVolumeRequest, RegisterNodeReply, RegisterNodeRequest, SnapshotPhase, SnapshotRef,
    UnpublishVolumeReply, UnpublishVolumeRequest, VolumeRecord, snapshot_ref,
};
use cairn_types::map::Location;
use cairn_types::volume::AttachMode;

use crate::machine::{Machine, Turn};
use crate::refusal::{Outcome, Refusal};
use crate::state::StateRead;
use crate::volume::{called, required, shown};
use crate::{keys, record, snapshot};

/// What begins with this is no node but an administrator's program, which may attach a volume for as long as it runs.
const PROGRAM: &str = "admin:";
/// Volumes of a node that does not say how many it can hold.
const VOLUMES: u32 = 512;
/// The most nodes that hold one volume at once.
const HOLDERS: usize = 256;

/// Two holders can stand beside each other when neither wants the volume alone.
fn at_peace(one: AttachMode, other: AttachMode) -> bool {
    one != AttachMode::Exclusive && other != AttachMode::Exclusive
}

/// How many volumes a node can hold at once.
pub(crate) fn most_volumes(node: Option<&NodeRecord>) -> u32 {
    node.map(|node| node.max_volumes).filter(|most| *most > 0).unwrap_or(VOLUMES)
}

fn word(mode: AttachMode) -> &'static str {
    match mode {
        AttachMode::Exclusive => "alone",
        AttachMode::ReadOnly => "read-only",
        AttachMode::Shared => "shared",
    }
}

impl Machine {
    pub(crate) fn register_node(
        &mut self,
        turn: &mut Turn<'_>,
        request: RegisterNodeRequest,
    ) -> Outcome<RegisterNodeReply> {
        if request.name.is_empty() || request.name.len() > 253 || request.name.chars().any(char::is_control) {
            let message = format!("`{}` cannot be the name of a node", request.name.escape_debug());
            return Err(Refusal::invalid(message).into());
        }
        let mut location = request.location.unwrap_or_default();
        if location.host.is_empty() {
            location.host.clone_from(&request.name);
        }
        let location = Location::from(location);
        let (name, max_volumes) = (request.name, request.max_volumes);
        let node = NodeRecord { name, location: Some((&location).into()), max_volumes };
        if self.nodes.get(&node.name) != Some(&node) {
            record::store(&mut turn.state, keys::node(&node.name), &node);
            self.nodes.insert(node.name.clone(), node);
        }
        Ok(RegisterNodeReply {})
    }

    fn check_node(&self, node: &str) -> Result<(), Refusal> {
        if self.nodes.contains_key(node) || (node.starts_with(PROGRAM) && node.len() <= 253) {
            return Ok(());
        }
        let message = format!("there is no node `{node}`");
        Err(Refusal::not_found(message).remedy("start `cairn attach` on it: that makes it known"))
    }

    /// Whether one more volume may be published to the node. What it attaches by itself is its own business.
    fn check_load(&self, name: &str) -> Result<(), Refusal> {
        let most = most_volumes(self.nodes.get(name));
        let there = self.published.values().filter(|nodes| nodes.iter().any(|node| node == name)).count();
        if there < most as usize {
            return Ok(());
        }
        let message = format!("node `{name}` has {there} volumes already, and can hold {most}");
        Err(Refusal::new(ErrorCode::QuotaExceeded, message)
            .remedy("unpublish one of them, or run what needs the volume on another node"))
    }

    pub(crate) fn publish_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: &PublishVolumeRequest,
    ) -> Outcome<PublishVolumeReply> {
        let mut record = required(&turn.state, request.volume.as_ref())?;
        self.check_node(&request.node)?;
        let mode = attach_mode_from(request.mode)?;
        for other in &record.publications {
            let theirs = attach_mode_from(other.mode)?;
            if other.node == request.node && theirs == mode {
                return Ok(PublishVolumeReply {});
            }
            if other.node == request.node {
                let message = format!(
                    "{} is published to node `{}` already, {} and not {}",
                    called(&record),
                    request.node,
                    word(theirs),
                    word(mode)
                );
                return Err(Refusal::new(ErrorCode::AlreadyExists, message).remedy("unpublish it first").into());
            }
            if !at_peace(mode, theirs) {
                let message = format!("{} is published to node `{}` ({})", called(&record), other.node, word(theirs));
                return Err(Refusal::new(ErrorCode::Conflict, message).remedy("unpublish it there first").into());
            }
        }
        if record.publications.len() >= HOLDERS {
            return Err(Refusal::precondition(format!("{HOLDERS} nodes hold {} already", called(&record))).into());
        }
        self.check_load(&request.node)?;
        record.publications.push(Publication { node: request.node.clone(), mode: request.mode });
        self.write_volume(turn, &record);
        Ok(PublishVolumeReply {})
    }

    /// Also fences whatever still holds the volume there: after this the node has no access.
    pub(crate) fn unpublish_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: &UnpublishVolumeRequest,
    ) -> Outcome<UnpublishVolumeReply> {
        let Some(mut record) = crate::volume::find(&turn.state, request.volume.as_ref())? else {
            return Ok(UnpublishVolumeReply {});
        };
        let before = record.clone();
        let stays = |node: &str| !request.node.is_empty() && node != request.node;
        record.publications.retain(|publication| stays(&publication.node));
        let volume = record.volume.get_or_insert_default();
        volume.attachments.retain(|attachment| stays(&attachment.node));
        if record.volume != before.volume {
            self.give_up_taking(turn, &mut record)?;
        }
        if record != before {
            self.write_volume(turn, &record);
        }
        Ok(UnpublishVolumeReply {})
    }

    pub(crate) fn attach(&mut self, turn: &mut Turn<'_>, request: &AttachRequest) -> Outcome<AttachReply> {
        let mut record = required(&turn.state, request.volume.as_ref())?;
        self.check_node(&request.node)?;
        session_from(&request.data_session)?;
        let mode = attach_mode_from(request.mode)?;
        let held = record.volume.as_ref().map_or(&[][..], |volume| &volume.attachments);
        if let Some(same) = held.iter().find(|a| a.session == request.data_session) {
            if same.node == request.node && same.mode == request.mode {
                let (generation, epoch) = (same.generation, self.map.epoch.0);
                return Ok(AttachReply { volume: Some(shown(&record)), generation, epoch });
            }
            return Err(Refusal::invalid("every attachment needs a data session of its own").into());
        }
        check_publication(&record, request, mode)?;
        check_restore(&turn.state, &record, request, mode)?;
        let replaced = |a: &Attachment| a.node == request.node || a.generation == request.replaces;
        if !request.steal {
            check_holders(&record, held.iter().filter(|a| !replaced(a)), mode)?;
        }
        let generation = record.next_generation;
        let volume = record.volume.get_or_insert_default();
        let mut kept = Vec::new();
        for holder in volume.attachments.drain(..).filter(|a| !replaced(a)) {
            if at_peace(mode, attach_mode_from(holder.mode)?) {
                kept.push(holder);
            }
        }
        kept.push(Attachment {
            generation,
            node: request.node.clone(),
            session: request.data_session.clone(),
            mode: request.mode,
        });
        volume.attachments = kept;
        volume.restoring = request.restores;
        record.next_generation += 1;
        self.give_up_taking(turn, &mut record)?;
        self.write_volume(turn, &record);
        Ok(AttachReply { volume: Some(shown(&record)), generation, epoch: self.coming_epoch().0 })
    }

    pub(crate) fn detach(&mut self, turn: &mut Turn<'_>, request: &DetachRequest) -> Outcome<DetachReply> {
        let Some(mut record) = crate::volume::find(&turn.state, request.volume.as_ref())? else {
            return Ok(DetachReply {});
        };
        let volume = record.volume.get_or_insert_default();
        let at = volume.attachments.iter().position(|attachment| attachment.generation == request.generation);
        let Some(ended) = at.map(|at| volume.attachments.remove(at)) else {
            if request.completed() == Completed::Nothing {
                return Ok(DetachReply {});
            }
            let message = format!("generation {} does not hold {} any more", request.generation, called(&record));
            return Err(Refusal::precondition(message).remedy("begin again").into());
        };
        let alone = attach_mode_from(ended.mode)? == AttachMode::Exclusive;
        let parents = match request.completed() {
            Completed::Restore if volume.restoring != 0 => {
                volume.restoring = 0;
                Vec::new()
            }
            Completed::Flatten if alone => std::mem::take(&mut volume.parents),
            Completed::Nothing => Vec::new(),
            Completed::Restore | Completed::Flatten => {
                let message = format!("generation {} was not attached for that", request.generation);
                return Err(Refusal::precondition(message).into());
            }
        };
        self.give_up_taking(turn, &mut record)?;
        self.write_volume(turn, &record);
        self.unpin(turn, &parents)?;
        Ok(DetachReply {})
    }
}

/// A volume that was rolled back only in part is neither as it was nor as it should be.
fn check_restore(
    state: &dyn StateRead,
    record: &VolumeRecord,
    request: &AttachRequest,
    mode: AttachMode,
) -> Outcome<()> {
    let volume = record.volume.as_ref().map_or(0, |volume| volume.id);
    let restoring = record.volume.as_ref().map_or(0, |volume| volume.restoring);
    if request.restores == 0 {
        return if restoring == 0 { Ok(()) } else { Err(half_restored(state, record).into()) };
    }
    let by = SnapshotRef { by: Some(snapshot_ref::By::Id(request.restores)) };
    let wanted = snapshot::shown(&snapshot::known(state, Some(&by))?);
    if wanted.volume != volume || wanted.phase() != SnapshotPhase::Ready {
        let message = format!("`{}` is no complete snapshot of {}", wanted.name, called(record));
        return Err(Refusal::precondition(message).into());
    }
    if mode != AttachMode::Exclusive {
        return Err(Refusal::invalid("a volume is rolled back by whoever has it alone").into());
    }
    Ok(())
}

/// Why nothing else can be done to such a volume.
pub(crate) fn half_restored(state: &dyn StateRead, record: &VolumeRecord) -> Refusal {
    let volume = record.volume.clone().unwrap_or_default();
    let by = SnapshotRef { by: Some(snapshot_ref::By::Id(volume.restoring)) };
    let name = snapshot::find(state, Some(&by)).ok().flatten().map(|record| snapshot::shown(&record).name);
    let name = name.unwrap_or_else(|| format!("id:{}", volume.restoring));
    Refusal::precondition(format!("{} is being rolled back to snapshot `{name}`", called(record)))
        .remedy(format!("where that was interrupted, finish it: cairn volume rollback {} --to {name}", volume.name))
}

/// A volume that is published somewhere is for those nodes, in their mode. One that is published nowhere may be attached
/// by an admin anywhere.
fn check_publication(record: &VolumeRecord, request: &AttachRequest, mode: AttachMode) -> Outcome<()> {
    let here = record.publications.iter().find(|p| p.node == request.node);
    if let Some(publication) = here {
        if attach_mode_from(publication.mode)? == AttachMode::ReadOnly && mode != AttachMode::ReadOnly {
            let message = format!("{} is published to node `{}` read-only", called(record), request.node);
            return Err(Refusal::precondition(message).remedy("attach it read-only").into());
        }
        return Ok(());
    }
    match record.publications.iter().find(|p| attach_mode_from(p.mode).is_ok_and(|theirs| !at_peace(mode, theirs))) {
        Some(other) if !request.steal => {
            let message =
                format!("{} is published to node `{}` and not to `{}`", called(record), other.node, request.node);
            Err(Refusal::new(ErrorCode::Conflict, message)
                .remedy(format!("unpublish it from `{}`, or take it over", other.node))
                .into())
        }
        _ => Ok(()),
    }
}

fn check_holders<'a>(
    record: &VolumeRecord,
    holders: impl Iterator<Item = &'a Attachment>,
    mode: AttachMode,
) -> Outcome<()> {
    let mut count = 0;
    for holder in holders {
        count += 1;
        let theirs = attach_mode_from(holder.mode)?;
        if !at_peace(mode, theirs) {
            let message = format!("{} is attached to node `{}` ({})", called(record), holder.node, word(theirs));
            return Err(Refusal::new(ErrorCode::Conflict, message)
                .remedy("detach it there, or take it over: the other holder's writes are then refused")
                .into());
        }
    }
    if count >= HOLDERS {
        return Err(Refusal::precondition(format!("{HOLDERS} nodes hold {} already", called(record))).into());
    }
    Ok(())
}
