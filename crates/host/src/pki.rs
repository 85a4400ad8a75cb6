//! The cluster's certificate authority and what it signs: the API server's and the agent's certificates, one client
//! certificate for each role that calls the API server, and the administrator's, which lies in the kubeconfig.
//!
//! Made once, when the cluster is made. Keys are files of mode 0600 in a folder of mode 0700.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

use crate::Layout;

/// Why the certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A key or certificate could not be generated.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A file could not be written or read.
    #[error("cannot use {0}: {1}")]
    Write(PathBuf, std::io::Error),
}

/// Who a client certificate speaks for: the user (CN) and the groups (O) that the API server sees.
struct Client {
    file: &'static str,
    user: String,
    groups: &'static [&'static str],
}

/// Makes the authority, every certificate, and the kubeconfigs, unless they are there already.
///
/// # Errors
/// When a key cannot be generated or a file not written.
pub fn ensure(layout: &Layout, node: &str, api_address: &str) -> Result<(), PkiError> {
    if layout.kubeconfig().exists() {
        return Ok(());
    }
    let authority = authority()?;
    let pki = layout.pki();
    write_private(&pki.join("ca.crt"), &authority.pem())?;
    serve(&authority, &pki.join("apiserver"), "cairn-apiserver", node)?;
    serve(&authority, &pki.join("agent"), &format!("system:node:{node}"), node)?;
    let clients = [
        Client { file: "admin", user: "cairn-admin".into(), groups: &["system:masters"] },
        Client { file: "controllers", user: "system:cairn-controllers".into(), groups: &["system:masters"] },
        Client { file: "scheduler", user: "system:cairn-scheduler".into(), groups: &["system:masters"] },
        Client { file: "node", user: format!("system:node:{node}"), groups: &["system:nodes"] },
        Client { file: "apiserver-agent", user: "system:cairn-apiserver".into(), groups: &["system:masters"] },
    ];
    for client in clients {
        let (certificate, key) = client_certificate(&authority, &client)?;
        write_private(&pki.join(format!("{}.crt", client.file)), &certificate)?;
        write_private(&pki.join(format!("{}.key", client.file)), &key)?;
        let text = kubeconfig(api_address, &authority.pem(), &client.user, &certificate, &key);
        write_private(&pki.join(format!("{}.kubeconfig", client.file)), &text)?;
    }
    // Last, so that its presence means that everything else is there.
    let admin = std::fs::read_to_string(pki.join("admin.kubeconfig"))
        .map_err(|error| PkiError::Write(pki.join("admin.kubeconfig"), error))?;
    write_private(&layout.kubeconfig(), &admin)
}

/// Makes the authority of a cluster of several hosts, whose key stays on this one, and the certificate of the door at
/// which the others knock. The hash of the authority's certificate, which tokens carry.
///
/// # Errors
/// When a key cannot be generated or a file not written.
pub fn found(layout: &Layout) -> Result<[u8; 32], PkiError> {
    let authority = authority()?;
    let pki = layout.pki();
    write_private(&pki.join("ca.key"), &authority.key().serialize_pem())?;
    write_private(&pki.join("ca.crt"), &authority.pem())?;
    let mut params = params(vec!["cairn-join".to_owned()], "cairn-join", &[])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &authority)?;
    write_private(&pki.join("door.crt"), &certificate.pem())?;
    write_private(&pki.join("door.key"), &key.serialize_pem())?;
    Ok(Sha256::digest(authority.der()).into())
}

/// The hash of the authority's certificate, from its file.
///
/// # Errors
/// When there is none that can be read.
pub fn authority_hash(layout: &Layout) -> Result<[u8; 32], PkiError> {
    let file = layout.pki().join("ca.crt");
    let certificate = CertificateDer::from_pem_file(&file)
        .map_err(|error| PkiError::Write(file, std::io::Error::other(error.to_string())))?;
    Ok(Sha256::digest(&certificate).into())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, PkiError> {
    let mut params = params(Vec::new(), "cairn-ca", &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

/// A server certificate for loopback and the node's name, as `<base>.crt` and `<base>.key`.
fn serve(authority: &CertifiedIssuer<'_, KeyPair>, base: &Path, name: &str, node: &str) -> Result<(), PkiError> {
    let names = ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", node];
    let mut params = params(names.map(str::to_owned).to_vec(), name, &[])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    write_private(&base.with_extension("crt"), &certificate.pem())?;
    write_private(&base.with_extension("key"), &key.serialize_pem())
}

fn client_certificate(authority: &CertifiedIssuer<'_, KeyPair>, client: &Client) -> Result<(String, String), PkiError> {
    let mut params = params(Vec::new(), &client.user, client.groups)?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, authority)?.pem(), key.serialize_pem()))
}

fn params(names: Vec<String>, common_name: &str, groups: &[&str]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, common_name);
    for group in groups {
        params.distinguished_name.push(DnType::OrganizationName, *group);
    }
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 12, 31);
    Ok(params)
}

/// A kubeconfig with everything inside, so that one file is all a client needs.
fn kubeconfig(api_address: &str, authority: &str, user: &str, certificate: &str, key: &str) -> String {
    let data = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cairn", "cluster": {
            "server": format!("https://{api_address}"),
            "certificate-authority-data": base64(authority),
        }}],
        "users": [{"name": user, "user": {
            "client-certificate-data": base64(certificate),
            "client-key-data": base64(key),
        }}],
        "contexts": [{"name": "cairn", "context": {"cluster": "cairn", "user": user}}],
        "current-context": "cairn",
    });
    serde_json::to_string_pretty(&data).expect("a kubeconfig is plain data") + "\n"
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// A file that only its owner reads.
pub(crate) fn write_private(file: &Path, text: &str) -> Result<(), PkiError> {
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file);
    open.and_then(|mut open| open.write_all(text.as_bytes())).map_err(|error| PkiError::Write(file.into(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubeconfig_is_private_and_made_once() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::at(&folder.path().join("c")).unwrap();
        ensure(&layout, "node-1", "127.0.0.1:7443").unwrap();
        let first = std::fs::read(layout.kubeconfig()).unwrap();
        let mode = std::fs::metadata(layout.kubeconfig()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        ensure(&layout, "node-1", "127.0.0.1:7443").unwrap();
        assert_eq!(first, std::fs::read(layout.kubeconfig()).unwrap());
        let text: serde_json::Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(text["clusters"][0]["cluster"]["server"], "https://127.0.0.1:7443");
    }
}
