//! The newcomer's side: dial the door, make sure that it is the right one, say the secret, and take the answer home.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::protocol::{self, Answer, DOOR_NAME, FORMAT, Newcomer, Question, Welcome};
use super::token::Token;

/// Until the door answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// Nobody there.
    #[error(
        "the first host does not answer on {door}: {cause}; check that it runs (`cairn up` there) and that this \
         network reaches it"
    )]
    Unreachable {
        /// Where it was looked for.
        door: std::net::SocketAddr,
        /// What happened.
        cause: String,
    },
    /// Somebody else.
    #[error(
        "whoever answers on {0} is not the cluster this token was made for: its authority has another hash. Nothing \
         was told to it; make a new token with `cairn token create` on the first host"
    )]
    Impostor(std::net::SocketAddr),
    /// The cluster does not want it.
    #[error("the cluster refused: {0}")]
    Refused(String),
}

/// Asks to be let in.
///
/// # Errors
/// [`KnockError`].
pub async fn knock(token: &Token, newcomer: &Newcomer) -> Result<Welcome, KnockError> {
    let door = token.door;
    let unreachable = move |cause: String| KnockError::Unreachable { door, cause };
    let visit = async {
        let stream = TcpStream::connect(door).await.map_err(|error| unreachable(error.to_string()))?;
        let name = ServerName::try_from(DOOR_NAME).expect("a constant that is a name");
        let connector = TlsConnector::from(Arc::new(client_config(token)));
        let mut stream = connector.connect(name, stream).await.map_err(|error| tls_failed(door, &error))?;
        let question = Question { format: FORMAT, secret: token.secret.to_vec(), newcomer: newcomer.clone() };
        let failed = |error: std::io::Error| unreachable(error.to_string());
        protocol::write(&mut stream, &question).await.map_err(failed)?;
        let answer: Answer = protocol::read(&mut stream).await.map_err(failed)?;
        answer.welcome.ok_or(KnockError::Refused(answer.refused))
    };
    match tokio::time::timeout(PATIENCE, visit).await {
        Ok(outcome) => outcome,
        Err(_) => Err(unreachable(format!("no answer within {} s", PATIENCE.as_secs()))),
    }
}

fn tls_failed(door: std::net::SocketAddr, error: &std::io::Error) -> KnockError {
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => KnockError::Impostor(door),
        _ => KnockError::Unreachable { door, cause: error.to_string() },
    }
}

fn client_config(token: &Token) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let pinned = Pinned { authority: token.authority, provider: Arc::clone(&provider) };
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth()
}

/// Believes the one authority whose certificate has the hash, and what that authority signed.
#[derive(Debug)]
struct Pinned {
    authority: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = intermediates.iter().find(|certificate| Sha256::digest(certificate)[..] == self.authority);
        let authority = shown.ok_or(rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::time::{SystemTime, UNIX_EPOCH};

    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::cluster::{Member, Network};
    use crate::join::{Invitations, serve};
    use crate::{Cluster, Layout, pki};

    /// A first host with an open door, and a token for it.
    async fn first_host(folder: &tempfile::TempDir, name: &str) -> (Layout, Token, CancellationToken) {
        let layout = Layout::at(&folder.path().join(name)).unwrap();
        let authority = pki::found(&layout).unwrap();
        // Two ports in a row that are free at this moment.
        let base_port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port() & !1;
        let network = Network { address: Ipv4Addr::LOCALHOST.into(), base_port, insecure_listen: false, door: true };
        let members = vec![Member { id: 1, address: network.meta_address().to_string() }];
        let place = ("default".to_owned(), "default".to_owned());
        Cluster::of_host("a".into(), place, members, network.clone()).save(&layout).unwrap();
        let token = Token { door: network.door_address(), authority, secret: [5; 16] };
        let mut list = Invitations::load(&layout).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        list.invite(&token.secret, now + 60, now);
        list.save(&layout).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(serve(layout.clone(), network, stop.clone()));
        while TcpStream::connect(token.door).await.is_err() {
            tokio::task::yield_now().await;
        }
        (layout, token, stop)
    }

    fn newcomer() -> Newcomer {
        Newcomer { node: "b".into(), address: Ipv4Addr::new(127, 0, 0, 2).into() }
    }

    #[tokio::test]
    async fn the_invited_are_let_in_and_strangers_told_why_not() {
        let folder = tempfile::tempdir().unwrap();
        let (layout, token, stop) = first_host(&folder, "a").await;
        let welcome = knock(&token, &newcomer()).await.unwrap();
        assert_eq!(welcome.members, Cluster::load(&layout).unwrap().unwrap().members);
        let guessed = Token { secret: [6; 16], ..token.clone() };
        let error = knock(&guessed, &newcomer()).await.unwrap_err();
        assert!(matches!(&error, KnockError::Refused(why) if why.contains("token create")), "{error}");
        stop.cancel();
    }

    #[tokio::test]
    async fn another_cluster_at_that_address_learns_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (_, token, stop) = first_host(&folder, "a").await;
        let (_, other, other_stop) = first_host(&folder, "b").await;
        let misled = Token { door: other.door, ..token };
        let error = knock(&misled, &newcomer()).await.unwrap_err();
        assert!(matches!(error, KnockError::Impostor(_)), "{error}");
        stop.cancel();
        other_stop.cancel();
    }

    #[tokio::test]
    async fn a_door_that_is_not_there_is_named() {
        let door = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let error = knock(&Token { door, authority: [0; 32], secret: [0; 16] }, &newcomer()).await.unwrap_err();
        assert!(error.to_string().contains(&door.to_string()), "{error}");
    }
}
