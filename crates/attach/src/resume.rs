//! A start after a restart or a kill: what the records name is taken over, what they do not name is cleared away.
//!
//! Whoever uses a device meanwhile waits. Weather is waited out without limit (giving up would turn a pause into
//! I/O errors); only a holding that has ended makes the device fail.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cairn_types::VolumeId;

use crate::daemon::{Active, Daemon, DaemonError, Turn, continued, spec};
use crate::device::{BlockDevice, IoError};
use crate::exporter::{ExportError, Exporter};
use crate::record::Record;
use crate::source::{Held, HeldDevice, SourceError, Want};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often the keeper's holdings are looked at.
const KEEP_EVERY: Duration = Duration::from_secs(5);

impl Daemon {
    /// Clears away what no record names, and takes over the rest in tasks, each of which has its volume's turn
    /// before this returns.
    pub(crate) async fn start(self: &Arc<Self>) -> Result<(), DaemonError> {
        let records = self.records().await;
        for exporter in &self.exporters {
            for volume in exporter.remains().await? {
                if records.get(&volume).is_none_or(|record| record.endpoint.is_none()) {
                    tracing::warn!(%volume, exporter = exporter.name(), "clearing away what nobody exports");
                    exporter.sweep(volume).await?;
                }
            }
        }
        for (volume, record) in records {
            let turn = self.turn(volume).await?;
            let daemon = self.clone();
            self.tasks.spawn(async move {
                let shutdown = daemon.shutdown.clone();
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = daemon.take_over(turn, volume, record) => {}
                }
            });
        }
        Ok(())
    }

    async fn take_over(&self, turn: Turn, volume: VolumeId, record: Record) {
        let request_id = format!("restart-{volume}-{}", record.generation);
        let mut pause = FIRST_PAUSE;
        loop {
            let outcome = match record.endpoint {
                Some(_) => self.resume(&turn, volume, record.clone(), &request_id).await,
                None => self.finish(volume, &record, &request_id).await,
            };
            match outcome {
                Ok(()) => return,
                Err(error) => tracing::warn!(%volume, %error, "could not go on with it yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// An export that was being made or removed: its holding ends.
    async fn finish(&self, volume: VolumeId, record: &Record, request_id: &str) -> Result<(), DaemonError> {
        match self.source.detach(volume, record.generation, request_id).await {
            Err(error) if error.is_transient() => Err(error.into()),
            _ => self.write(volume, None).await,
        }
    }

    async fn resume(
        &self,
        turn: &Turn,
        volume: VolumeId,
        mut record: Record,
        request_id: &str,
    ) -> Result<(), DaemonError> {
        let exporter = self.exporter(&record.exporter)?;
        let want = Want {
            volume,
            mode: record.mode,
            steal: false,
            continues: continued(&record),
            request_id: request_id.to_owned(),
        };
        let held = match self.source.attach(&want).await {
            Err(error) if error.is_transient() => return Err(error.into()),
            Err(error) => return self.fail(turn, volume, &record, exporter.as_ref(), &error).await,
            Ok(held) => held,
        };
        record.generation = held.generation;
        record.size = held.device.size();
        self.write(volume, Some(record.clone())).await?;
        let export = self.show_again(volume, &mut record, exporter.as_ref(), &held).await?;
        turn.put(Active { device: held.device, export });
        self.write(volume, Some(record.clone())).await?;
        tracing::info!(%volume, generation = %record.generation, endpoint = ?record.endpoint, "exported again");
        Ok(())
    }

    async fn show_again(
        &self,
        volume: VolumeId,
        record: &mut Record,
        exporter: &dyn Exporter,
        held: &Held,
    ) -> Result<Box<dyn crate::exporter::Export>, DaemonError> {
        let endpoint = record.endpoint.as_ref().expect("only exports with an endpoint are resumed").into();
        let spec = spec(volume, record);
        let why = match exporter.resume(&spec, &endpoint, held.device.clone()).await {
            Ok(export) => return Ok(export),
            Err(why @ ExportError::NothingToResume { .. }) => why,
            Err(other) => return Err(other.into()),
        };
        tracing::error!(%volume, %why, "cannot be taken over; whoever had it open sees I/O errors, a new device is made");
        exporter.sweep(volume).await?;
        let export = exporter.export(&spec, held.device.clone()).await?;
        record.endpoint = Some(export.endpoint().into());
        Ok(export)
    }

    /// The holding has ended: the device answers every request with an error, until it is unexported.
    async fn fail(
        &self,
        turn: &Turn,
        volume: VolumeId,
        record: &Record,
        exporter: &dyn Exporter,
        why: &SourceError,
    ) -> Result<(), DaemonError> {
        tracing::error!(%volume, %why, "fenced while this daemon was away; I/O fails now");
        let device: Arc<dyn HeldDevice> = Arc::new(Fenced { size: record.size });
        let endpoint = record.endpoint.as_ref().expect("only exports with an endpoint are resumed").into();
        match exporter.resume(&spec(volume, record), &endpoint, device.clone()).await {
            Ok(export) => {
                export.fence();
                turn.put(Active { device, export });
                Ok(())
            }
            Err(ExportError::NothingToResume { .. }) => {
                exporter.sweep(volume).await?;
                self.write(volume, None).await
            }
            Err(other) => Err(other.into()),
        }
    }

    /// Has the keeper hold what it should, for as long as the daemon runs.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut well = true;
        let mut clock = tokio::time::interval(KEEP_EVERY);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                _ = clock.tick() => {}
            }
            for (volume, active) in self.active() {
                match active.export.keep().await {
                    Ok(()) => well = true,
                    Err(error) if well => {
                        well = false;
                        tracing::error!(%volume, %error, "a restart of this daemon would now cost I/O errors");
                    }
                    Err(_) => {}
                }
            }
        }
    }
}

/// A device that somebody else holds now.
struct Fenced {
    size: u64,
}

#[async_trait]
impl BlockDevice for Fenced {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read(&self, _: u64, _: u32) -> Result<Bytes, IoError> {
        Err(IoError::Fenced)
    }

    async fn write(&self, _: u64, _: Bytes) -> Result<(), IoError> {
        Err(IoError::Fenced)
    }

    async fn zero(&self, _: u64, _: u64, _: bool) -> Result<(), IoError> {
        Err(IoError::Fenced)
    }

    async fn flush(&self) -> Result<(), IoError> {
        Err(IoError::Fenced)
    }
}

#[async_trait]
impl HeldDevice for Fenced {
    async fn refresh(&self, _: &str) -> Result<u64, SourceError> {
        Ok(self.size)
    }

    async fn close(&self) {}
}
