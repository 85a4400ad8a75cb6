//! What every call has: a request id that ties its log lines to those of the services it asks, and a task of its own,
//! so that a caller who hangs up does not stop it half way.

use tonic::{Request, Response, Status};
use tracing::{Instrument, info_span};
use uuid::Uuid;

use crate::error::CsiError;

/// The metadata key under which request ids travel.
const REQUEST_ID: &str = "x-request-id";

/// The caller's id, or a new one.
pub(crate) fn request_id<T>(request: &Request<T>) -> String {
    let given = request.metadata().get(REQUEST_ID).and_then(|value| value.to_str().ok());
    given.filter(|id| !id.is_empty()).map_or_else(|| format!("csi-{}", Uuid::new_v4().simple()), str::to_owned)
}

/// Runs the body of a call. What it is about (`subject`: a volume's id or name) stands on each of its log lines;
/// secrets and mount flags never do.
pub(crate) async fn run<T, F>(
    call: &'static str,
    request_id: &str,
    subject: &str,
    body: F,
) -> Result<Response<T>, Status>
where
    T: Send + 'static,
    F: Future<Output = Result<T, CsiError>> + Send + 'static,
{
    let span = info_span!("csi", call, request_id, subject);
    let logged = async move {
        let outcome = body.await;
        match &outcome {
            Ok(_) => tracing::info!("done"),
            Err(error) => tracing::warn!(code = ?error.code(), %error, "refused"),
        }
        outcome
    };
    match tokio::spawn(logged.instrument(span)).await {
        Ok(outcome) => outcome.map(Response::new).map_err(Status::from),
        Err(error) => Err(Status::internal(format!("a bug in the CSI driver: {error}"))),
    }
}
