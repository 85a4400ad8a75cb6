//! The gRPC door: requests in, wishes to the daemon, answers out.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use cairn_metrics::Outcomes;
use cairn_proto::attach::attach_daemon_server::AttachDaemon;
use cairn_proto::attach::{
    ExportReply, ExportRequest, Exported, InfoReply, InfoRequest, ListReply, ListRequest, RefreshReply, RefreshRequest,
    UnexportReply, UnexportRequest,
};
use cairn_types::VolumeId;
use cairn_types::volume::AttachMode;
use tonic::{Request, Response, Status};
use tracing::{Instrument, Span, info_span};

use crate::daemon::{Daemon, Shown, Wish};
use crate::exporter::Removal;
use crate::record::RecordedEndpoint;

/// Serves `cairn.attach.v1`.
pub(crate) struct Service(pub(crate) Arc<Daemon>);

#[tonic::async_trait]
impl AttachDaemon for Service {
    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoReply>, Status> {
        let exporters = self.0.exporters.iter().map(|exporter| exporter.name().to_owned()).collect();
        Ok(Response::new(InfoReply { node: self.0.node.clone(), exporters }))
    }

    async fn export(&self, request: Request<ExportRequest>) -> Result<Response<ExportReply>, Status> {
        let request_id = request_id(&request, &request.get_ref().request_id);
        let request = request.into_inner();
        let mode = match (request.read_only, request.shared) {
            (true, _) => AttachMode::ReadOnly,
            (false, true) => AttachMode::Shared,
            (false, false) => AttachMode::Exclusive,
        };
        let span = span("export", &request_id, request.volume);
        let ExportRequest { volume, exporter, steal, .. } = request;
        let wish = Wish { volume: VolumeId(volume), exporter, mode, steal, request_id };
        let daemon = self.0.clone();
        let shown = finish("export", span, async move { daemon.export(wish).await }).await?;
        Ok(Response::new(ExportReply { exported: Some(shown.into()) }))
    }

    async fn unexport(&self, request: Request<UnexportRequest>) -> Result<Response<UnexportReply>, Status> {
        let request_id = request_id(&request, &request.get_ref().request_id);
        let UnexportRequest { volume, force, .. } = request.into_inner();
        let removal = if force { Removal::Force } else { Removal::IfIdle };
        let span = span("unexport", &request_id, volume);
        let daemon = self.0.clone();
        finish("unexport", span, async move { daemon.unexport(VolumeId(volume), removal, &request_id).await }).await?;
        Ok(Response::new(UnexportReply {}))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListReply>, Status> {
        let exports = self.0.list().await.into_iter().map(Exported::from).collect();
        Ok(Response::new(ListReply { exports }))
    }

    async fn refresh(&self, request: Request<RefreshRequest>) -> Result<Response<RefreshReply>, Status> {
        let request_id = request_id(&request, &request.get_ref().request_id);
        let volume = request.into_inner().volume;
        let span = span("refresh", &request_id, volume);
        let daemon = self.0.clone();
        let shown = finish("refresh", span, async move { daemon.refresh(VolumeId(volume), &request_id).await }).await?;
        Ok(Response::new(RefreshReply { exported: Some(shown.into()) }))
    }
}

/// Runs it in a task of its own, so that a caller who hangs up does not stop it half way.
async fn finish<T, E>(
    call: &'static str,
    span: Span,
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + std::fmt::Display + Send + 'static,
{
    let logged = async move {
        let began = Instant::now();
        let outcome = work.await;
        if let Some(calls) = calls() {
            calls.done(call, if outcome.is_ok() { "ok" } else { "refused" }, began.elapsed());
        }
        if let Err(error) = &outcome {
            tracing::warn!(%error, "refused");
        }
        outcome.map_err(Into::into)
    };
    match tokio::spawn(logged.instrument(span)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Status::internal(format!("a bug in attach: {error}"))),
    }
}

/// What is counted for the metrics page, if the process has one.
fn calls() -> Option<&'static Outcomes> {
    static CALLS: OnceLock<Option<Outcomes>> = OnceLock::new();
    CALLS.get_or_init(|| Outcomes::on_page("attach_calls", "Exports and unexports of volumes, by outcome")).as_ref()
}

fn span(call: &'static str, request_id: &str, volume: u64) -> Span {
    info_span!("attach", call, request_id, volume)
}

/// As the message says, or else its metadata.
fn request_id<T>(request: &Request<T>, field: &str) -> String {
    if !field.is_empty() {
        return field.to_owned();
    }
    let value = request.metadata().get("x-request-id").and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

impl From<Shown> for Exported {
    fn from(shown: Shown) -> Self {
        let (mut device, mut socket) = (String::new(), String::new());
        match &shown.record.endpoint {
            Some(RecordedEndpoint::Device(path)) => device = path.display().to_string(),
            Some(RecordedEndpoint::Socket(path)) => socket = path.display().to_string(),
            None => {}
        }
        Self {
            volume: shown.volume.0,
            name: shown.record.name,
            exporter: shown.record.exporter,
            device,
            socket,
            size: shown.record.size,
            generation: shown.record.generation.0,
            read_only: shown.record.mode == AttachMode::ReadOnly,
            state: shown.state.to_owned(),
        }
    }
}
