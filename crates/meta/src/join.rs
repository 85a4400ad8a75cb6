//! How a new directory becomes a member of a living cluster: it asks for a number under the name of its directory, and
//! begins with what the cluster began with; the log, or a snapshot, brings the rest.
//!
//! The directory's name is written down before anybody is asked, so that a member that dies on the way is the same one
//! when it starts again, and a wiped one never is.

use std::path::Path;
use std::time::Duration;

use cairn_meta_raft::StoreError;
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::meta_client::MetaClient;
use cairn_proto::meta::{AddMember, ChangeMemberReply, ChangeMemberRequest, ErrorCode};
use tokio::time::Instant;
use tonic::Code;
use tonic::transport::Endpoint;
use uuid::Uuid;

use crate::config::Config;
use crate::disk::{self, Beginning};
use crate::doors::errors;

/// How long the cluster is asked before the member gives up.
const PATIENCE: Duration = Duration::from_secs(30);
const ATTEMPT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// Why a member could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The cluster said no.
    #[error("the cluster does not take this member: {0}")]
    Refused(String),
    /// Nobody answered.
    #[error(
        "no member answered at {asked} within {waited_s} s ({last}); check --join, and that the cluster has a leader"
    )]
    Unreachable {
        /// Who was asked.
        asked: String,
        /// For how long.
        waited_s: u64,
        /// The last failure.
        last: String,
    },
    /// It is another member than the command line says.
    #[error("the cluster knows this member as {found}, and the command line says {wanted}; leave --id out")]
    OtherId {
        /// As the cluster says.
        found: u64,
        /// As configured.
        wanted: u64,
    },
    /// The directory cannot be written.
    #[error(transparent)]
    Disk(#[from] StoreError),
}

/// Asks a living cluster for a place. The number that it gives, and what to begin with.
pub(crate) async fn join(config: &Config) -> Result<(u64, Beginning), JoinError> {
    let directory = disk::announced(Path::new(&config.dir))?;
    let address = if config.advertise.is_empty() { config.listen.clone() } else { config.advertise.clone() };
    let add = AddMember {
        address: address.clone(),
        replaces: config.replace,
        directory: directory.as_bytes().to_vec().into(),
        ..AddMember::default()
    };
    let reply = ask(&config.join, &add).await?;
    let id = reply.member.as_ref().map_or(0, |member| member.id);
    if config.id != 0 && config.id != id {
        return Err(JoinError::OtherId { found: id, wanted: config.id });
    }
    tracing::info!(member = id, address, "joins the cluster: {}", reply.words);
    let addresses = reply.members.iter().map(|m| (m.id, m.address.clone())).collect();
    let cluster = Uuid::from_slice(&reply.cluster).unwrap_or_default();
    Ok((id, Beginning { genesis: reply.genesis, addresses, cluster, directory: Some(directory) }))
}

/// Whether the same question may be answered otherwise in a moment: nobody answered, the members are not written down yet,
/// another one is just being added, or was in the same moment.
fn may_pass(status: &tonic::Status) -> bool {
    match errors::refused(status) {
        Some(refusal) => matches!(refusal.code(), ErrorCode::Conflict | ErrorCode::FailedPrecondition),
        None => matches!(
            status.code(),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted
        ),
    }
}

async fn ask(members: &[String], add: &AddMember) -> Result<ChangeMemberReply, JoinError> {
    let began = Instant::now();
    let (mut last, mut refused) = (String::new(), false);
    while began.elapsed() < PATIENCE {
        for address in members {
            let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
                Ok(endpoint) => endpoint.connect_timeout(Duration::from_secs(1)).timeout(ATTEMPT),
                Err(error) => return Err(JoinError::Refused(format!("`{address}` is no address: {error}"))),
            };
            let change = Some(Change::Add(add.clone()));
            let request = ChangeMemberRequest { change, ..ChangeMemberRequest::default() };
            match MetaClient::new(endpoint.connect_lazy()).change_member(request).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) if may_pass(&status) => {
                    (last, refused) = (status.message().to_owned(), errors::refused(&status).is_some());
                }
                Err(status) => return Err(JoinError::Refused(status.message().to_owned())),
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    if refused {
        return Err(JoinError::Refused(last));
    }
    Err(JoinError::Unreachable { asked: members.join(", "), waited_s: PATIENCE.as_secs(), last })
}
