//! Snapshots, and volumes made of them: what each controller call about them does.

use cairn_proto::csi::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use cairn_proto::{csi, meta};
use cairn_types::id::mix;
use cairn_types::{SnapId, VolumeId};
use tonic::Code;

use super::calls::{Calls, Outcome, signed};
use crate::capacity::CapacityError;
use crate::error::CsiError;
use crate::fields::{checked_name, counted, known, present};
use crate::parameters::Parameters;

pub(super) fn by_id(snapshot: SnapId) -> meta::SnapshotRef {
    meta::SnapshotRef { by: Some(meta::snapshot_ref::By::Id(snapshot.0)) }
}

fn of_volume(volume: VolumeId) -> meta::VolumeRef {
    meta::VolumeRef { by: Some(meta::volume_ref::By::Id(volume.0)) }
}

impl Calls {
    /// The snapshot that a new volume is to be a clone of. Of a volume that is to be cloned one is taken, under a name that
    /// a repeated call finds again.
    pub(super) async fn content(
        &self,
        name: &str,
        source: Option<&csi::VolumeContentSource>,
    ) -> Outcome<Option<meta::Snapshot>> {
        match source.map(|source| &source.r#type) {
            None => Ok(None),
            Some(None) => Err(CsiError::Missing("volume_content_source.type")),
            Some(Some(Source::Snapshot(SnapshotSource { snapshot_id }))) => {
                let text = present("volume_content_source.snapshot.snapshot_id", snapshot_id)?;
                Ok(Some(self.snapshot(text).await?))
            }
            Some(Some(Source::Volume(VolumeSource { volume_id }))) => {
                let text = present("volume_content_source.volume.volume_id", volume_id)?;
                Ok(Some(self.take(&passing_name(name), known(text)?).await?))
            }
        }
    }

    /// What was only taken for a clone loses its name, and goes with the clone; or at once, if there is none.
    pub(super) async fn release(&self, name: &str, source: Option<&csi::VolumeContentSource>) -> Outcome<()> {
        if let Some(Source::Volume(_)) = source.and_then(|source| source.r#type.as_ref()) {
            let by = Some(meta::snapshot_ref::By::Name(passing_name(name)));
            let snapshot = Some(meta::SnapshotRef { by });
            self.meta.delete_snapshot(meta::DeleteSnapshotRequest { mutation: None, snapshot }).await?;
        }
        Ok(())
    }

    async fn take(&self, name: &str, volume: VolumeId) -> Outcome<meta::Snapshot> {
        let request = meta::CreateSnapshotRequest {
            mutation: None,
            name: name.to_owned(),
            volume: Some(of_volume(volume)),
            labels: Default::default(),
        };
        let reply = self.meta.create_snapshot(request).await.map_err(|error| match error.is_not_found() {
            true => CsiError::NoVolume(volume.0.to_string()),
            false => error.into(),
        })?;
        reply.snapshot.ok_or(CsiError::Unreadable("snapshot"))
    }

    async fn snapshot(&self, text: &str) -> Outcome<meta::Snapshot> {
        let missing = || CsiError::NoSnapshot(text.chars().take(128).collect());
        let id = counted(text).ok_or_else(missing)?;
        let request = meta::GetSnapshotRequest { snapshot: Some(by_id(SnapId(id))) };
        match self.meta.get_snapshot(request).await {
            Ok(reply) => reply.snapshot.ok_or(CsiError::Unreadable("snapshot")),
            Err(error) if error.is_not_found() => Err(missing()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn create_snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Outcome<csi::CreateSnapshotResponse> {
        let name = checked_name(&request.name)?;
        let volume = present("source_volume_id", &request.source_volume_id)?;
        Parameters::check_snapshot(&request.parameters)?;
        let volume = known(volume)?;
        let _turn = self.turns.take(&format!("snapshot {name}")).await;
        let snapshot = self.take(name, volume).await?;
        tracing::info!(snapshot = snapshot.id, volume = volume.0, "taken");
        Ok(csi::CreateSnapshotResponse { snapshot: Some(shown(&snapshot)) })
    }

    pub(super) async fn delete_snapshot(
        &self,
        request: csi::DeleteSnapshotRequest,
    ) -> Outcome<csi::DeleteSnapshotResponse> {
        let text = present("snapshot_id", &request.snapshot_id)?;
        // An id that is none was never given out: whatever it meant is gone.
        if let Some(id) = counted(text) {
            let request = meta::DeleteSnapshotRequest { mutation: None, snapshot: Some(by_id(SnapId(id))) };
            match self.meta.delete_snapshot(request).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    pub(super) async fn get_snapshot(&self, request: csi::GetSnapshotRequest) -> Outcome<csi::GetSnapshotResponse> {
        let snapshot = self.snapshot(present("snapshot_id", &request.snapshot_id)?).await?;
        Ok(csi::GetSnapshotResponse { snapshot: Some(shown(&snapshot)) })
    }

    pub(super) async fn list_snapshots(
        &self,
        request: csi::ListSnapshotsRequest,
    ) -> Outcome<csi::ListSnapshotsResponse> {
        let page_size = u32::try_from(request.max_entries)
            .map_err(|_| CsiError::Capacity(CapacityError::Negative(request.max_entries.into())))?;
        let entry = |snapshot: &meta::Snapshot| csi::list_snapshots_response::Entry { snapshot: Some(shown(snapshot)) };
        let ready = |snapshot: &&meta::Snapshot| snapshot.phase() == meta::SnapshotPhase::Ready;
        if !request.snapshot_id.is_empty() {
            let found = match self.snapshot(&request.snapshot_id).await {
                Ok(snapshot) => Some(snapshot),
                Err(CsiError::NoSnapshot(_)) => None,
                Err(error) => return Err(error),
            };
            let of_source = |snapshot: &&meta::Snapshot| {
                request.source_volume_id.is_empty() || request.source_volume_id == snapshot.volume.to_string()
            };
            let entries = found.iter().filter(ready).filter(of_source).map(entry).collect();
            return Ok(csi::ListSnapshotsResponse { entries, next_token: String::new() });
        }
        let volume = match request.source_volume_id.as_str() {
            "" => None,
            text => match counted(text) {
                Some(id) => Some(of_volume(VolumeId(id))),
                None => return Ok(csi::ListSnapshotsResponse::default()),
            },
        };
        let page_token = request.starting_token.clone();
        let list = meta::ListSnapshotsRequest { page_size, page_token, volume };
        let reply = self.meta.list_snapshots(list).await.map_err(|error| match error.code() {
            Code::InvalidArgument | Code::OutOfRange if !request.starting_token.is_empty() => {
                CsiError::PageToken(request.starting_token.clone())
            }
            _ => error.into(),
        })?;
        let entries = reply.snapshots.iter().filter(ready).map(entry).collect();
        Ok(csi::ListSnapshotsResponse { entries, next_token: reply.next_page_token })
    }
}

/// The snapshot that is taken for a clone of a volume.
fn passing_name(clone: &str) -> String {
    match format!("clone:{clone}") {
        name if name.len() <= 128 => name,
        // Two long names may begin alike.
        _ => format!("clone:{:016x}", clone.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)))),
    }
}

fn shown(snapshot: &meta::Snapshot) -> csi::Snapshot {
    let seconds = i64::try_from(snapshot.created_at_s).unwrap_or(i64::MAX);
    csi::Snapshot {
        size_bytes: signed(snapshot.size),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume.to_string(),
        creation_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ready_to_use: snapshot.phase() == meta::SnapshotPhase::Ready,
        group_snapshot_id: String::new(),
    }
}
