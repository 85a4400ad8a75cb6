//! What went wrong, as gRPC says it: the one table of codes of this door.

use tonic::{Code, Status};

use crate::daemon::DaemonError;
use crate::exporter::ExportError;
use crate::source::SourceError;

impl From<DaemonError> for Status {
    fn from(error: DaemonError) -> Self {
        let code = match &error {
            DaemonError::UnknownExporter { .. } => Code::InvalidArgument,
            DaemonError::OtherWay { .. } => Code::AlreadyExists,
            DaemonError::NotExported { .. } => Code::NotFound,
            DaemonError::TooMany => Code::ResourceExhausted,
            DaemonError::Source(SourceError::Ended { .. }) => Code::FailedPrecondition,
            DaemonError::Source(SourceError::Unreachable(_)) => Code::Unavailable,
            DaemonError::Source(SourceError::Refused { code, .. }) => *code,
            DaemonError::Export(ExportError::InUse { .. }) => Code::FailedPrecondition,
            DaemonError::Export(ExportError::Keeper(_)) => Code::Unavailable,
            DaemonError::Export(ExportError::Unavailable { .. }) => Code::FailedPrecondition,
            DaemonError::Export(_) | DaemonError::Record(_) => Code::Internal,
        };
        Self::new(code, error.to_string())
    }
}
