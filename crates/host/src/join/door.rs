//! The door: a TLS listener on the first host, which keeps the authority's key. It tells invited newcomers who the
//! metadata members are, and everybody else why not. It changes nothing but the list of hosts.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::invitations::{InvitationError, Invitations};
use super::protocol::{self, Answer, FORMAT, Question, Welcome};
use crate::cluster::Network;
use crate::{Cluster, Layout};

/// What one visitor gets.
const PATIENCE: Duration = Duration::from_secs(10);

/// Visitors at once.
const VISITORS: usize = 16;

/// Why there is no door.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// It cannot listen.
    #[error("no host can join: cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, std::io::Error),
    /// Certificate or key.
    #[error("no host can join: the door's certificate cannot be used: {0}")]
    Tls(String),
}

/// Serves until `shutdown`.
///
/// # Errors
/// When it cannot begin.
pub async fn serve(layout: Layout, network: Network, shutdown: CancellationToken) -> Result<(), DoorError> {
    let acceptor = TlsAcceptor::from(Arc::new(server_config(&layout)?));
    let address = network.door_address();
    let listener = TcpListener::bind(address).await.map_err(|error| DoorError::Listen(address, error))?;
    let seats = Arc::new(Semaphore::new(VISITORS));
    // One at a time writes the list.
    let desk = Arc::new(tokio::sync::Mutex::new(layout));
    loop {
        // Whoever finds all seats taken waits in the listener's queue.
        let next = async {
            let seat = Arc::clone(&seats).acquire_owned().await;
            (listener.accept().await, seat)
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            () = shutdown.cancelled() => return Ok(()),
        };
        let (Ok((stream, peer)), Ok(seat)) = accepted else {
            // Out of descriptors, most likely: that passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, desk) = (acceptor.clone(), Arc::clone(&desk));
        tokio::spawn(async move {
            let visit = tokio::time::timeout(PATIENCE, receive(acceptor, stream, &desk)).await;
            match visit {
                Ok(Ok(said)) => tracing::info!(%peer, said, "somebody knocked at the join door"),
                Ok(Err(error)) => tracing::warn!(%peer, %error, "a visit at the join door came to nothing"),
                Err(_) => tracing::warn!(%peer, "a visitor at the join door said nothing in time"),
            }
            drop(seat);
        });
    }
}

async fn receive(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    desk: &tokio::sync::Mutex<Layout>,
) -> std::io::Result<String> {
    let mut stream = acceptor.accept(stream).await?;
    let question: Question = protocol::read(&mut stream).await?;
    let who = question.newcomer.clone();
    let outcome = answer(&*desk.lock().await, &question);
    let said = match &outcome {
        Ok(_) => format!("`{}` at {} was let in", who.node, who.address),
        Err(why) => format!("somebody at {} was refused: {why}", who.address),
    };
    let (welcome, refused) = match outcome {
        Ok(welcome) => (Some(welcome), String::new()),
        Err(why) => (None, why),
    };
    protocol::write(&mut stream, &Answer { format: FORMAT, welcome, refused }).await?;
    Ok(said)
}

fn answer(layout: &Layout, question: &Question) -> Result<Welcome, String> {
    if question.format != FORMAT {
        let ours = env!("CARGO_PKG_VERSION");
        return Err(format!("this cluster runs cairn {ours}, which speaks join format {FORMAT}; use the same version"));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let admit = |list: &mut Invitations| list.admit(&question.secret, &question.newcomer, now);
    Invitations::change(layout, admit).map_err(words)?;
    let cluster = Cluster::load(layout).map_err(|error| error.to_string())?.ok_or("the cluster is being reset")?;
    let authority = std::fs::read_to_string(layout.pki().join("ca.crt")).map_err(|error| error.to_string())?;
    Ok(Welcome { members: cluster.members, authority })
}

fn words(error: InvitationError) -> String {
    error.to_string()
}

fn server_config(layout: &Layout) -> Result<ServerConfig, DoorError> {
    let wrong = |error: &dyn std::fmt::Display| DoorError::Tls(error.to_string());
    let pki = layout.pki();
    let mut chain = Vec::new();
    for file in ["door.crt", "ca.crt"] {
        chain.push(CertificateDer::from_pem_file(pki.join(file)).map_err(|error| wrong(&error))?);
    }
    let key = PrivateKeyDer::from_pem_file(pki.join("door.key")).map_err(|error| wrong(&error))?;
    ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))
}
