//! The node's `attach` daemon, as the node service asks it.

use std::path::PathBuf;
use std::time::Duration;

use cairn_proto::attach::attach_daemon_client::AttachDaemonClient;
use cairn_proto::attach::{ExportRequest, Exported, ListRequest, RefreshRequest, UnexportRequest};
use cairn_types::VolumeId;
use cairn_types::volume::AttachMode;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use super::NodeError;

/// An export waits until every earlier holder is fenced off.
const EXPORT_PATIENCE: Duration = Duration::from_secs(90);
/// An unexport flushes first.
const UNEXPORT_PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(20);

/// Dials when it is first asked, and again after the daemon was restarted.
#[derive(Clone)]
pub(super) struct Attach {
    socket: PathBuf,
    client: AttachDaemonClient<Channel>,
}

impl Attach {
    pub(super) fn new(socket: PathBuf) -> Self {
        let path = socket.clone();
        let connect = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://attach.invalid").connect_with_connector_lazy(connect);
        Self { socket, client: AttachDaemonClient::new(channel) }
    }

    /// The volume as a block device of this node.
    pub(super) async fn export(
        &self,
        volume: VolumeId,
        mode: AttachMode,
        request_id: &str,
    ) -> Result<Exported, NodeError> {
        let message = ExportRequest {
            volume: volume.0,
            exporter: String::new(),
            read_only: mode == AttachMode::ReadOnly,
            shared: mode == AttachMode::Shared,
            request_id: request_id.to_owned(),
            steal: false,
        };
        let mut client = self.client.clone();
        let reply = self.finish(client.export(within(message, EXPORT_PATIENCE))).await?;
        reply.exported.ok_or(NodeError::Unreadable("export"))
    }

    pub(super) async fn unexport(&self, volume: VolumeId, request_id: &str) -> Result<(), NodeError> {
        let message = UnexportRequest { volume: volume.0, request_id: request_id.to_owned(), force: false };
        let mut client = self.client.clone();
        self.finish(client.unexport(within(message, UNEXPORT_PATIENCE))).await.map(drop)
    }

    /// The volume's export, if it has one.
    pub(super) async fn find(&self, volume: VolumeId) -> Result<Option<Exported>, NodeError> {
        Ok(self.exports().await?.into_iter().find(|export| export.volume == volume.0))
    }

    /// Every export of this node.
    pub(super) async fn exports(&self) -> Result<Vec<Exported>, NodeError> {
        let mut client = self.client.clone();
        Ok(self.finish(client.list(within(ListRequest {}, PATIENCE))).await?.exports)
    }

    /// The device takes on the volume's present size.
    pub(super) async fn refresh(&self, volume: VolumeId, request_id: &str) -> Result<Exported, NodeError> {
        let message = RefreshRequest { volume: volume.0, request_id: request_id.to_owned() };
        let mut client = self.client.clone();
        let reply = self.finish(client.refresh(within(message, PATIENCE))).await?;
        reply.exported.ok_or(NodeError::Unreadable("refresh"))
    }

    async fn finish<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, NodeError> {
        call.await.map(Response::into_inner).map_err(|status| {
            // Statuses that were made on this side have a source; the daemon's own have none.
            if std::error::Error::source(&status).is_some() && status.code() != Code::Cancelled {
                let socket = self.socket.clone();
                return NodeError::AttachUnreachable { socket, reason: status.message().to_owned() };
            }
            NodeError::Attach { code: status.code(), message: status.message().to_owned() }
        })
    }
}

fn within<T>(message: T, patience: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(patience);
    request
}
