//! Throwaway certificates and a kubeconfig, for tests and for running by hand.

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::error::Error;
use std::path::Path;

fn params(name: &str, group: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.distinguished_name.push(DnType::CommonName, name);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// An authority, and certificates by it for the server, an administrator and an agent; existing ones are kept.
pub(crate) fn certificates(dir: &Path) -> Result<(), Box<dyn Error>> {
    if dir.join("ca.crt").exists() {
        return Ok(());
    }
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "cairn-dev");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    for (file, name, group) in [
        ("server", "cairn-apiserver", ""),
        ("admin", "admin", "system:masters"),
        ("agent", "system:node:agent", "system:nodes"),
    ] {
        let key = KeyPair::generate()?;
        let cert = params(name, group)?.signed_by(&key, &issuer)?;
        std::fs::write(dir.join(format!("{file}.crt")), cert.pem())?;
        std::fs::write(dir.join(format!("{file}.key")), key.serialize_pem())?;
    }
    std::fs::write(dir.join("ca.crt"), ca_cert.pem())?;
    Ok(())
}

/// A kubeconfig of the administrator.
pub(crate) fn kubeconfig(dir: &Path, server: &str) -> String {
    let at = |file: &str| dir.join(file).display().to_string();
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: dev\n  cluster: {{server: \"https://{server}\", certificate-authority: \"{}\"}}\n\
         users:\n- name: admin\n  user: {{client-certificate: \"{}\", client-key: \"{}\"}}\n\
         contexts:\n- name: dev\n  context: {{cluster: dev, user: admin}}\ncurrent-context: dev\n",
        at("ca.crt"),
        at("admin.crt"),
        at("admin.key")
    )
}
