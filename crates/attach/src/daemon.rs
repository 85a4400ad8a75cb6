//! The daemon's decisions: which volumes are exported here, one turn per volume at a time, and what a restart does.
//!
//! Order of an export: attach (a new generation, earlier holders fenced), record, export, record with its endpoint.
//! Order of its end: remove, end the session, record without endpoint, detach, forget. A crash anywhere between
//! leaves a record from which the next start, or the same request again, goes on.
//!
//! Invariants: a volume has at most one export; a record with an endpoint is served, or is about to be; a restart
//! continues a holding and never begins one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use cairn_types::volume::AttachMode;
use cairn_types::{Generation, VolumeId};
use tokio::sync::{Mutex as TurnMutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::exporter::{Export, ExportError, ExportSpec, ExportState, Exporter, Removal};
use crate::record::{self, Record, RecordError, RecordedEndpoint, Records};
use crate::source::{Held, HeldDevice, SourceError, VolumeSource, Want};

/// Volumes on one node.
pub(crate) const MAX_EXPORTS: usize = crate::keeper::MAX_ENTRIES;
/// How long the session of a volume may take to end.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

pub(crate) struct Daemon {
    pub(crate) node: String,
    pub(crate) dir: PathBuf,
    pub(crate) source: Arc<dyn VolumeSource>,
    /// Those that work here, best first.
    pub(crate) exporters: Vec<Arc<dyn Exporter>>,
    /// Why the others do not.
    pub(crate) unusable: Vec<String>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
    slots: Mutex<BTreeMap<VolumeId, Arc<Slot>>>,
    records: TurnMutex<Records>,
}

#[derive(Default)]
struct Slot {
    turn: Arc<TurnMutex<()>>,
    active: RwLock<Option<Arc<Active>>>,
}

/// A volume that is held and shown.
pub(crate) struct Active {
    pub(crate) device: Arc<dyn HeldDevice>,
    pub(crate) export: Box<dyn Export>,
}

/// Taken while something is done to a volume.
pub(crate) struct Turn {
    slot: Arc<Slot>,
    _guard: OwnedMutexGuard<()>,
}

/// How a volume is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) volume: VolumeId,
    /// Empty: the best that makes a block device.
    pub(crate) exporter: String,
    pub(crate) mode: AttachMode,
    pub(crate) steal: bool,
    pub(crate) request_id: String,
}

/// What is shown of an export.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) volume: VolumeId,
    pub(crate) record: Record,
    pub(crate) state: &'static str,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("there is no exporter `{name}` here; {have}")]
    UnknownExporter { name: String, have: String },
    #[error("{volume} is exported already, by {exporter} and held {mode:?}; unexport it first")]
    OtherWay { volume: VolumeId, exporter: String, mode: AttachMode },
    #[error("{volume} is not exported on this node")]
    NotExported { volume: VolumeId },
    #[error("this node exports {MAX_EXPORTS} volumes already; unexport one first")]
    TooMany,
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl Daemon {
    pub(crate) fn new(
        node: String,
        dir: PathBuf,
        source: Arc<dyn VolumeSource>,
        exporters: Vec<Arc<dyn Exporter>>,
        shutdown: CancellationToken,
    ) -> Result<Self, DaemonError> {
        let records = record::load(&dir)?;
        let mut usable = Vec::new();
        let mut unusable = Vec::new();
        for exporter in exporters {
            match exporter.probe() {
                Ok(()) => usable.push(exporter),
                Err(error) => unusable.push(error.to_string()),
            }
        }
        Ok(Self {
            node,
            dir,
            source,
            exporters: usable,
            unusable,
            shutdown,
            tasks: TaskTracker::new(),
            slots: Mutex::default(),
            records: TurnMutex::new(records),
        })
    }

    /// Waits for the volume's turn: everything about one volume happens one after the other.
    pub(crate) async fn turn(&self, volume: VolumeId) -> Result<Turn, DaemonError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if slots.len() >= MAX_EXPORTS && !slots.contains_key(&volume) {
                // Slots of volumes that are long gone make room.
                slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.active().is_some());
                if slots.len() >= MAX_EXPORTS {
                    return Err(DaemonError::TooMany);
                }
            }
            slots.entry(volume).or_default().clone()
        };
        let guard = slot.turn.clone().lock_owned().await;
        Ok(Turn { slot, _guard: guard })
    }

    pub(crate) async fn export(&self, wish: Wish) -> Result<Shown, DaemonError> {
        let turn = self.turn(wish.volume).await?;
        let exporter = self.exporter(&wish.exporter)?;
        if let Some(record) = self.record(wish.volume).await {
            if let Some(active) = turn.slot.active() {
                if record.exporter != exporter.name() || record.mode != wish.mode {
                    let Record { exporter, mode, .. } = record;
                    return Err(DaemonError::OtherWay { volume: wish.volume, exporter, mode });
                }
                let serving = active.export.state() == ExportState::Serving;
                if serving && (!wish.steal || self.still_ours(&record, &wish).await?) {
                    return Ok(self.shown(wish.volume, record));
                }
            }
            self.end(&turn, wish.volume, Removal::Force, &wish.request_id).await?;
        }
        let Wish { volume, mode, steal, request_id, .. } = wish.clone();
        let want = Want { volume, mode, steal, continues: None, request_id };
        let held = self.source.attach(&want).await?;
        let record = Record {
            name: held.name.clone(),
            exporter: exporter.name().to_owned(),
            mode: wish.mode,
            generation: held.generation,
            size: held.device.size(),
            endpoint: None,
        };
        let made = self.show(&turn, wish.volume, record, &held, exporter.as_ref()).await;
        if made.is_err() {
            self.give_up(wish.volume, &held, &wish.request_id).await;
        }
        made
    }

    /// Somebody may have taken over what still seems to serve.
    async fn still_ours(&self, record: &Record, wish: &Wish) -> Result<bool, DaemonError> {
        Ok(self.source.holds(wish.volume, record.generation, &wish.request_id).await?)
    }

    /// From a held volume to an export that serves and is recorded.
    async fn show(
        &self,
        turn: &Turn,
        volume: VolumeId,
        mut record: Record,
        held: &Held,
        exporter: &dyn Exporter,
    ) -> Result<Shown, DaemonError> {
        self.write(volume, Some(record.clone())).await?;
        let device = held.device.clone();
        let export = exporter.export(&spec(volume, &record), device.clone()).await?;
        record.endpoint = Some(export.endpoint().into());
        turn.slot.put(Some(Active { device, export }));
        self.write(volume, Some(record.clone())).await?;
        tracing::info!(%volume, name = record.name, generation = %record.generation, endpoint = ?record.endpoint, "exported");
        Ok(self.shown(volume, record))
    }

    async fn give_up(&self, volume: VolumeId, held: &Held, request_id: &str) {
        close(held.device.as_ref()).await;
        let detached = self.source.detach(volume, held.generation, request_id).await;
        if let Err(error) = detached {
            tracing::warn!(%volume, %error, "could not detach after a failed export");
        } else if let Err(error) = self.write(volume, None).await {
            tracing::warn!(%volume, %error, "could not forget a failed export");
        }
    }

    pub(crate) async fn unexport(
        &self,
        volume: VolumeId,
        removal: Removal,
        request_id: &str,
    ) -> Result<(), DaemonError> {
        let turn = self.turn(volume).await?;
        if self.record(volume).await.is_none() {
            return Ok(());
        }
        self.end(&turn, volume, removal, request_id).await
    }

    /// Removes the export if there is one, ends the session and the holding, forgets the record.
    async fn end(&self, turn: &Turn, volume: VolumeId, removal: Removal, request_id: &str) -> Result<(), DaemonError> {
        let Some(mut record) = self.record(volume).await else { return Ok(()) };
        if let Some(active) = turn.slot.active() {
            active.export.remove(removal).await?;
            close(active.device.as_ref()).await;
            turn.slot.put(None);
        } else if let Ok(exporter) = self.exporter(&record.exporter) {
            exporter.sweep(volume).await?;
        }
        let generation = record.generation;
        record.endpoint = None;
        self.write(volume, Some(record)).await?;
        match self.source.detach(volume, generation, request_id).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => tracing::warn!(%volume, %error, "the holding could not be ended"),
            Ok(()) => {}
        }
        self.write(volume, None).await?;
        tracing::info!(%volume, "unexported");
        Ok(())
    }

    pub(crate) async fn refresh(&self, volume: VolumeId, request_id: &str) -> Result<Shown, DaemonError> {
        let turn = self.turn(volume).await?;
        let record = self.record(volume).await;
        let (Some(mut record), Some(active)) = (record, turn.slot.active()) else {
            return Err(DaemonError::NotExported { volume });
        };
        active.device.refresh(request_id).await?;
        record.size = active.export.resize().await?;
        self.write(volume, Some(record.clone())).await?;
        Ok(self.shown(volume, record))
    }

    pub(crate) async fn list(&self) -> Vec<Shown> {
        let records = self.records.lock().await.clone();
        let shown = records.into_iter().filter(|(_, record)| record.endpoint.is_some());
        shown.map(|(volume, record)| self.shown(volume, record)).collect()
    }

    pub(crate) fn exporter(&self, name: &str) -> Result<Arc<dyn Exporter>, DaemonError> {
        let fits = |exporter: &&Arc<dyn Exporter>| match name {
            "" => exporter.makes_block_device(),
            name => exporter.name() == name,
        };
        self.exporters.iter().find(fits).cloned().ok_or_else(|| {
            let names: Vec<_> = self.exporters.iter().map(|exporter| exporter.name()).collect();
            let mut have = format!("those that work are: {}", names.join(", "));
            self.unusable.iter().for_each(|why| have.push_str(&format!("; {why}")));
            DaemonError::UnknownExporter { name: if name.is_empty() { "(any)" } else { name }.to_owned(), have }
        })
    }

    pub(crate) async fn records(&self) -> Records {
        self.records.lock().await.clone()
    }

    async fn record(&self, volume: VolumeId) -> Option<Record> {
        self.records.lock().await.get(&volume).cloned()
    }

    /// Changes one record; durable when it returns. When it fails, memory keeps what the disk has.
    pub(crate) async fn write(&self, volume: VolumeId, record: Option<Record>) -> Result<(), DaemonError> {
        let mut records = self.records.lock().await;
        let mut next = records.clone();
        match record {
            Some(record) => drop(next.insert(volume, record)),
            None => drop(next.remove(&volume)),
        }
        if *records != next {
            let dir = self.dir.clone();
            let stored = tokio::task::spawn_blocking(move || record::store(&dir, &next).map(|()| next)).await;
            *records = stored.expect("storing records does not panic")?;
        }
        Ok(())
    }

    fn shown(&self, volume: VolumeId, record: Record) -> Shown {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned();
        let state = slot.and_then(|slot| slot.active()).map(|active| active.export.state().as_str());
        Shown { volume, record, state: state.unwrap_or("reconnecting") }
    }

    pub(crate) fn active(&self) -> Vec<(VolumeId, Arc<Active>)> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.iter().filter_map(|(volume, slot)| slot.active().map(|active| (*volume, active))).collect()
    }

    /// Stops serving, and leaves every device to the successor.
    pub(crate) async fn leave(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        let leaving = self.active().into_iter().map(|(_, active)| async move {
            active.export.leave().await;
            close(active.device.as_ref()).await;
        });
        let mut all = tokio::task::JoinSet::new();
        leaving.for_each(|one| drop(all.spawn(one)));
        all.join_all().await;
    }
}

impl Turn {
    pub(crate) fn put(&self, active: Active) {
        self.slot.put(Some(active));
    }
}

impl Slot {
    fn active(&self) -> Option<Arc<Active>> {
        self.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn put(&self, active: Option<Active>) {
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = active.map(Arc::new);
    }
}

pub(crate) fn spec(volume: VolumeId, record: &Record) -> ExportSpec {
    ExportSpec { volume, name: record.name.clone(), read_only: record.mode == AttachMode::ReadOnly }
}

/// Ends a session. One that cannot finish (the cluster does not answer) is dropped: it is fenced by the next holder.
pub(crate) async fn close(device: &dyn HeldDevice) {
    if tokio::time::timeout(CLOSE_PATIENCE, device.close()).await.is_err() {
        tracing::warn!("a data session did not end in time and was dropped");
    }
}

impl From<crate::exporter::Endpoint> for RecordedEndpoint {
    fn from(endpoint: crate::exporter::Endpoint) -> Self {
        match endpoint {
            crate::exporter::Endpoint::Device(path) => Self::Device(path),
            crate::exporter::Endpoint::Socket(path) => Self::Socket(path),
        }
    }
}

impl From<&RecordedEndpoint> for crate::exporter::Endpoint {
    fn from(endpoint: &RecordedEndpoint) -> Self {
        match endpoint {
            RecordedEndpoint::Device(path) => Self::Device(path.clone()),
            RecordedEndpoint::Socket(path) => Self::Socket(path.clone()),
        }
    }
}

/// Generations are only ever continued by the record that names them.
pub(crate) fn continued(record: &Record) -> Option<Generation> {
    Some(record.generation)
}
