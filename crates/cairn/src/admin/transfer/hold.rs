//! Volumes in the hands of this program: attached for as long as it runs, or looked at without being held.

use std::io::IsTerminal;

use cairn_client::{AttachError, Claim, Holding, Options, Volume};
use cairn_meta_client::{MapWatch, MetaClient};
use cairn_proto::meta;
use cairn_types::volume::AttachMode;
use cairn_types::{SnapId, VolumeId};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::snapshot_of;
use crate::admin::volume::to_json;
use crate::failure::{Code, Failure};
use crate::output::{self, Format};

/// Says of a snapshot that it was only taken for an export.
const TEMPORARY: &str = "cairn.io/temporary";

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Meta(error) => error.into(),
            unusable @ AttachError::Unusable(_) => Self::new(Code::Failed, unusable.to_string()),
        }
    }
}

/// The cluster with its data path.
pub(super) struct Cluster {
    pub(super) client: MetaClient,
    maps: MapWatch,
}

/// A volume that nobody else has now.
pub(super) struct Held {
    pub(super) volume: Volume,
    holding: Holding,
    client: MetaClient,
}

impl Cluster {
    pub(super) fn new(client: MetaClient) -> Self {
        let maps = client.watch_map();
        Self { client, maps }
    }

    pub(super) fn open(&self, holding: &Holding) -> Volume {
        Volume::open(holding, self.maps.clone(), None, Options::default())
    }

    /// A volume as it is now, only to see what of it has content; nothing if no OSD knows it yet.
    pub(super) async fn look_at(&self, volume: &meta::Volume) -> Result<Option<Volume>, Failure> {
        let map = self.client.map_once().await?;
        if !map.volumes.contains_key(&VolumeId(volume.id)) {
            return Ok(None);
        }
        let holding = Holding { epoch: map.epoch, ..Holding::of_onlooker(volume)? };
        Ok(Some(self.open(&holding)))
    }

    /// The snapshot that a clone was made of, which may have lost its name.
    pub(super) async fn parent_of(&self, volume: &meta::Volume) -> Result<Option<Volume>, Failure> {
        let Some((parent, further)) = volume.parents.split_first() else { return Ok(None) };
        let epoch = self.client.map_once().await?.epoch;
        let source = meta::Volume {
            id: parent.volume,
            pool: parent.pool,
            size: parent.size,
            object_size: volume.object_size,
            parents: further.to_vec(),
            ..meta::Volume::default()
        };
        let view = SnapId(parent.snapshot);
        Ok(Some(self.open(&Holding { view, epoch, ..Holding::of_onlooker(&source)? })))
    }

    /// A snapshot of this volume, where one is named.
    pub(super) async fn snapshot(
        &self,
        volume: &meta::Volume,
        name: Option<&str>,
    ) -> Result<Option<meta::GetSnapshotReply>, Failure> {
        match name {
            Some(name) => Ok(Some(snapshot_of(&self.client, volume, name).await?)),
            None => Ok(None),
        }
    }

    /// A snapshot for the length of an export.
    pub(super) async fn take_temporary(&self, volume: &meta::Volume) -> Result<u64, Failure> {
        let by = Some(meta::volume_ref::By::Id(volume.id));
        let name = format!("export-{}-{}", volume.id, uuid::Uuid::new_v4().simple());
        let labels = [(TEMPORARY.to_owned(), "export".to_owned())].into();
        let request =
            meta::CreateSnapshotRequest { mutation: None, name, volume: Some(meta::VolumeRef { by }), labels };
        Ok(self.client.create_snapshot(request).await?.snapshot.unwrap_or_default().id)
    }

    pub(super) async fn drop_temporary(&self, id: u64) -> Result<(), Failure> {
        let by = Some(meta::snapshot_ref::By::Id(id));
        let request = meta::DeleteSnapshotRequest { mutation: None, snapshot: Some(meta::SnapshotRef { by }) };
        self.client.delete_snapshot(request).await?;
        Ok(())
    }

    /// Attaches the volume to this program, alone. What an earlier one on this host left is taken over.
    pub(super) async fn hold(&self, volume: &meta::Volume, restores: Option<SnapId>) -> Result<Held, Failure> {
        let node = format!("admin:{}", rustix::system::uname().nodename().to_string_lossy());
        let (volume, mode) = (VolumeId(volume.id), AttachMode::Exclusive);
        let claim = Claim { volume, node, mode, steal: false, replaces: None, restores };
        let holding = Holding::attach(&self.client, &claim).await?;
        Ok(Held { volume: self.open(&holding), holding, client: self.client.clone() })
    }
}

impl Held {
    /// Lets it go, and says what was completed.
    pub(super) async fn end(self, completed: meta::Completed) -> Result<(), Failure> {
        self.volume.close().await;
        let by = Some(meta::volume_ref::By::Id(self.holding.volume.0));
        let request = meta::DetachRequest {
            mutation: None,
            volume: Some(meta::VolumeRef { by }),
            generation: self.holding.generation.0,
            completed: completed.into(),
        };
        self.client.detach(request).await?;
        Ok(())
    }
}

/// Waits for the end, or for somebody who presses Ctrl-C.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        _ = tokio::signal::ctrl_c() => Err(Failure::new(Code::Failed, "interrupted")),
    }
}

/// A bar on a terminal's standard error; nothing elsewhere.
pub(super) fn bar(bytes: u64, word: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:40} {percent}% {msg}, {binary_bytes_per_sec}, {eta} left");
    ProgressBar::new(bytes).with_style(style.expect("the template is right")).with_message(word)
}

/// One volume, and what became of it.
pub(super) fn done(volume: &meta::Volume, words: &str, format: Format) {
    match format {
        Format::Json => output::json(&to_json(volume)),
        Format::Table => println!("volume {} {words}", volume.name),
    }
}
