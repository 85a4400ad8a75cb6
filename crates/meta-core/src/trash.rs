//! The trash: a deleted volume that is to be kept for a while stays as it is, without its name, and nobody can hold it. Until
//! its time has come it can be taken out again with every byte; what it takes up counts until then.
//!
//! The time is the clock of commands, which never goes back. The leader asks for the purge when its own clock says so
//! ([`is_due`]); the command decides.

use cairn_proto::meta::{
    ErrorCode, PurgeTrashReply, PurgeTrashRequest, Trashed, UndeleteVolumeReply, UndeleteVolumeRequest, Volume,
    VolumeRecord, VolumeRef, purge_trash_request::What, volume_ref,
};
use cairn_types::{PoolId, VolumeId};

use crate::machine::{Machine, Turn};
use crate::record::name_of;
use crate::refusal::{Corrupt, Failure, Outcome, Refusal};
use crate::state::StateRead;
use crate::volume::{called, check_name, shown};
use crate::{keys, record};

/// The longest time in the trash: ten years.
const LONGEST_S: u64 = 10 * 365 * 86_400;
/// Volumes that one command purges; the map's delta holds them all.
const AT_ONCE: usize = 256;

/// Whether something in the trash has outlived its time at this second.
#[must_use]
pub fn is_due(machine: &Machine, now_s: u64) -> bool {
    machine.trash.first().is_some_and(|(expires_at_s, _)| *expires_at_s <= now_s)
}

pub(crate) fn check_retention(retention_s: Option<u64>) -> Result<(), Refusal> {
    if retention_s.is_some_and(|seconds| seconds > LONGEST_S) {
        let message = "a deleted volume is kept for ten years at most";
        return Err(Refusal::invalid(message).remedy("give a shorter time, or do not delete the volume"));
    }
    Ok(())
}

impl Machine {
    /// The rest of a deletion: the name is free already, and nobody holds the volume.
    pub(crate) fn put_in_trash(&mut self, turn: &mut Turn<'_>, mut record: VolumeRecord, retention_s: u64) -> Volume {
        let expires_at_s = turn.now_s + retention_s;
        let volume = record.volume.get_or_insert_default();
        let tally = self.tallies.entry(PoolId(volume.pool)).or_default();
        tally.remove(volume);
        volume.trashed = Some(Trashed { deleted_at_s: turn.now_s, expires_at_s });
        tally.add(volume);
        self.trash.insert((expires_at_s, VolumeId(volume.id)));
        self.write_volume(turn, &record);
        shown(&record)
    }

    pub(crate) fn undelete_volume(
        &mut self,
        turn: &mut Turn<'_>,
        request: &UndeleteVolumeRequest,
    ) -> Outcome<UndeleteVolumeReply> {
        let mut record = self.trashed(&turn.state, request.volume.as_ref())?;
        let words = called(&record);
        let volume = record.volume.get_or_insert_default();
        if !request.name.is_empty() {
            check_name("volume", &request.name)?;
            volume.name.clone_from(&request.name);
        }
        if record::volume_named(&turn.state, &volume.name)?.is_some() {
            let name = &volume.name;
            let message = format!("{words} cannot come back as `{name}`: another volume is called that by now");
            return Err(Refusal::new(ErrorCode::AlreadyExists, message)
                .remedy("give it a new name with --name")
                .into());
        }
        let tally = self.tallies.entry(PoolId(volume.pool)).or_default();
        tally.remove(volume);
        let trashed = volume.trashed.take().unwrap_or_default();
        tally.add(volume);
        self.trash.remove(&(trashed.expires_at_s, VolumeId(volume.id)));
        turn.state.put(keys::volume_name(&volume.name), volume.id.to_be_bytes().to_vec());
        self.write_volume(turn, &record);
        Ok(UndeleteVolumeReply { volume: Some(shown(&record)) })
    }

    pub(crate) fn purge_trash(&mut self, turn: &mut Turn<'_>, request: &PurgeTrashRequest) -> Outcome<PurgeTrashReply> {
        let records = match request.what.as_ref() {
            Some(What::Volume(by)) => vec![self.trashed(&turn.state, Some(by))?],
            Some(What::All(true)) => self.in_trash(&turn.state, u64::MAX, AT_ONCE)?,
            Some(What::Expired(true)) => self.in_trash(&turn.state, turn.now_s, AT_ONCE)?,
            _ => return Err(Refusal::invalid("the request does not say what to purge").into()),
        };
        let mut purged = Vec::new();
        for record in records {
            let volume = shown(&record);
            let expires_at_s = volume.trashed.map_or(0, |trashed| trashed.expires_at_s);
            self.trash.remove(&(expires_at_s, VolumeId(volume.id)));
            // What was destroyed before may have changed it: as the last that needed one of its snapshots.
            let record = of_trash(&turn.state, VolumeId(volume.id))?;
            self.destroy(turn, record)?;
            purged.push(volume);
        }
        let more = match request.what {
            Some(What::All(_)) => !self.trash.is_empty(),
            Some(What::Expired(_)) => is_due(self, turn.now_s),
            _ => false,
        };
        Ok(PurgeTrashReply { purged, more })
    }

    /// What leaves the trash until this second, the first ones.
    fn in_trash(&self, state: &dyn StateRead, until_s: u64, most: usize) -> Result<Vec<VolumeRecord>, Corrupt> {
        let ids = self.trash.iter().take_while(|(expires_at_s, _)| *expires_at_s <= until_s).take(most);
        ids.map(|(_, id)| of_trash(state, *id)).collect()
    }

    /// The volume in the trash that is meant.
    fn trashed(&self, state: &dyn StateRead, by: Option<&VolumeRef>) -> Outcome<VolumeRecord> {
        let refused = |refusal: Refusal| Err(Failure::Refused(refusal.remedy("what there is: cairn trash list")));
        match by.and_then(|by| by.by.as_ref()) {
            None => Err(Refusal::invalid("the request names no volume").into()),
            Some(volume_ref::By::Id(id)) => match self.trash.iter().find(|(_, trashed)| trashed.0 == *id) {
                Some((_, id)) => Ok(of_trash(state, *id)?),
                None => refused(Refusal::not_found(format!("there is no volume with id {id} in the trash"))),
            },
            Some(volume_ref::By::Name(name)) => {
                let all = self.in_trash(state, u64::MAX, usize::MAX)?;
                let mut named = all.into_iter().filter(|record| shown(record).name == *name);
                let name = name.escape_debug();
                match (named.next(), named.next()) {
                    (Some(only), None) => Ok(only),
                    (Some(one), Some(two)) => {
                        let ids: Vec<String> =
                            [one, two].into_iter().chain(named).map(|r| format!("id:{}", shown(&r).id)).collect();
                        let message = format!("{} volumes in the trash were called `{name}`", ids.len());
                        Err(Refusal::precondition(message).remedy(format!("say which: {}", ids.join(", "))).into())
                    }
                    (None, _) => refused(Refusal::not_found(format!("there is no volume `{name}` in the trash"))),
                }
            }
        }
    }
}

fn of_trash(state: &dyn StateRead, id: VolumeId) -> Result<VolumeRecord, Corrupt> {
    let found = record::volume(state, id)?;
    found.ok_or_else(|| Corrupt::new(name_of(&keys::volume(id)), "a volume that is in the trash", "nothing"))
}
