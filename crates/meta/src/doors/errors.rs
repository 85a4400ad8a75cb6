//! The one place where this service's reasons become gRPC codes. The message says what failed and why; the remedy goes
//! with it, after a semicolon and in the `cairn-remedy` trailer.
//!
//! etcd's clients match on the very text of some errors, so those of the key-value half are given as they came, and
//! carry no remedy.

use cairn_proto::meta::{CommandError, ErrorCode};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::gateway::CallError;

/// The trailer that carries what to do.
pub(crate) const REMEDY: &str = "cairn-remedy";
/// The trailer that carries the state machine's own code, for programs.
pub(crate) const REASON: &str = "cairn-reason";

/// For our own API.
pub(crate) fn status(error: CallError) -> Status {
    match error {
        CallError::Refused(refused) => refusal(&refused),
        other => weather(&other),
    }
}

/// For etcd's API: the texts that its clients know.
pub(crate) fn etcd_status(error: CallError) -> Status {
    match error {
        CallError::Refused(refused) => Status::new(code_of(refused.code()), refused.message),
        CallError::Busy { .. } => Status::resource_exhausted("etcdserver: too many requests"),
        CallError::TooLarge { .. } => Status::invalid_argument("etcdserver: request is too large"),
        CallError::NoLeader { reachable, members } => {
            let why = format!("etcdserver: no leader ({reachable} of {members} members reachable)");
            Status::unavailable(why)
        }
        CallError::CutOff { .. } => Status::unavailable("etcdserver: no leader"),
        CallError::Unknown { .. } => Status::unavailable("etcdserver: request timed out"),
        other => weather(&other),
    }
}

/// A sentence with what to do about it.
pub(crate) fn explained(code: Code, message: &str, remedy: &str) -> Status {
    let mut trailers = MetadataMap::new();
    if let Ok(value) = MetadataValue::try_from(remedy)
        && !remedy.is_empty()
    {
        trailers.insert(REMEDY, value);
    }
    let text = if remedy.is_empty() { message.to_owned() } else { format!("{message}; {remedy}") };
    Status::with_metadata(code, text, trailers)
}

/// The refusal that another member answered with, if it is one.
pub(crate) fn refused(status: &Status) -> Option<CommandError> {
    let text = |name| status.metadata().get(name).and_then(|value| value.to_str().ok());
    let code = ErrorCode::from_str_name(text(REASON)?)?;
    let remedy = text(REMEDY).unwrap_or_default().to_owned();
    let message = status.message().strip_suffix(&format!("; {remedy}")).unwrap_or(status.message()).to_owned();
    Some(CommandError { code: code.into(), message, remedy })
}

fn refusal(error: &CommandError) -> Status {
    let mut status = explained(code_of(error.code()), &error.message, &error.remedy);
    if let Ok(value) = MetadataValue::try_from(error.code().as_str_name()) {
        status.metadata_mut().insert(REASON, value);
    }
    status
}

fn code_of(code: ErrorCode) -> Code {
    match code {
        ErrorCode::ErrorUnspecified => Code::Internal,
        ErrorCode::InvalidArgument | ErrorCode::UnsupportedVersion => Code::InvalidArgument,
        ErrorCode::NotFound => Code::NotFound,
        ErrorCode::AlreadyExists => Code::AlreadyExists,
        ErrorCode::FailedPrecondition
        | ErrorCode::IdentityMismatch
        | ErrorCode::TooFewDomains
        | ErrorCode::Conflict => Code::FailedPrecondition,
        ErrorCode::NoSpace | ErrorCode::TooManyReplies | ErrorCode::QuotaExceeded => Code::ResourceExhausted,
        ErrorCode::OutOfRange => Code::OutOfRange,
        ErrorCode::NotInitialised => Code::Unavailable,
        ErrorCode::SessionExpired | ErrorCode::AlreadyAcked => Code::Aborted,
    }
}

fn weather(error: &CallError) -> Status {
    let message = error.to_string();
    match error {
        // Not "exhausted": another member may well take it, and clients try again by themselves.
        CallError::Busy { .. } => explained(Code::Unavailable, &message, "try again in a moment"),
        CallError::NoLeader { .. } => {
            let remedy = "start the missing metadata members; a majority of them must reach each other";
            explained(Code::Unavailable, &message, remedy)
        }
        CallError::CutOff { .. } => {
            explained(Code::Unavailable, &message, "ask another member, and look at the network between these two")
        }
        CallError::Unknown { .. } => {
            let remedy = "repeat it with the same session and sequence: it is carried out once";
            explained(Code::Unavailable, &message, remedy)
        }
        CallError::Unconfirmed { .. } => explained(Code::Unavailable, &message, "try again, or another member"),
        CallError::Stalled { .. } => {
            explained(Code::Unavailable, &message, "ask another member, and look at this one's disk")
        }
        CallError::TooLarge { .. } => explained(Code::InvalidArgument, &message, "make it smaller, or split it"),
        CallError::Stopping => explained(Code::Unavailable, &message, "ask another member"),
        CallError::Store(_) => {
            let remedy = "this member stops; the others go on: look at its disk before it is started again";
            explained(Code::DataLoss, &message, remedy)
        }
        CallError::Refused(refused) => refusal(refused),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_admin_reads_says_what_failed_and_what_to_do() {
        let status = status(CallError::NoLeader { reachable: 1, members: 3 });
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().starts_with("no leader; 1 of 3 members reachable; start the missing"));
        assert!(status.metadata().contains_key(REMEDY));
    }

    #[test]
    fn etcd_clients_get_the_text_they_know() {
        let refused = CommandError {
            code: ErrorCode::OutOfRange.into(),
            message: "etcdserver: mvcc: required revision has been compacted".into(),
            remedy: "a remedy that they would not understand".into(),
        };
        let status = etcd_status(CallError::Refused(refused));
        assert_eq!(
            (status.code(), status.message()),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted")
        );
    }
}
