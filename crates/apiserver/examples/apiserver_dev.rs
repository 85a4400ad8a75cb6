//! Runs the API server by hand, with throwaway certificates.
//!
//! ```text
//! etcd --data-dir /tmp/x/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 &
//! cargo run -p cairn-apiserver --example apiserver_dev -- /tmp/x/api http://127.0.0.1:2379 127.0.0.1:6443
//! kubectl --kubeconfig /tmp/x/api/kubeconfig get ns
//! ```
//!
//! Arguments: a directory (made if absent), the store's endpoint, the address to listen on (port 0: any free one,
//! written into the kubeconfig). The directory gets `ca.crt`, `server.{crt,key}` (SANs localhost, 127.0.0.1),
//! `admin.{crt,key}` (CN admin, O system:masters), `agent.{crt,key}` (CN system:node:agent, for an agent's HTTPS door;
//! SANs localhost, 127.0.0.1) and `kubeconfig`; the server shows `admin.crt` to agents, which should ask for
//! `ca.crt`. Existing files are kept, so that a restart changes nothing. `kubeconfig` is written last and only when
//! the port is open. Ends at ctrl-c or SIGTERM.

use cairn_apiserver::{Config, TlsFiles, bind, serve};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use std::error::Error;
use std::path::Path;
use tokio_util::sync::CancellationToken;

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

fn certificates(dir: &Path) -> Result<(), Box<dyn Error>> {
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

fn kubeconfig(dir: &Path, server: &str) -> String {
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

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, etcd, listen] = arguments.as_slice() else {
        return Err("usage: apiserver_dev DIR ETCD_URL LISTEN".into());
    };
    std::fs::create_dir_all(dir)?;
    let dir = std::fs::canonicalize(dir)?;
    certificates(&dir)?;
    let files = |name: &str| TlsFiles {
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.crt"),
    };
    let config = Config {
        listen: listen.parse()?,
        insecure_listen: false,
        etcd: vec![etcd.clone()],
        tls: files("server"),
        agent: Some(files("admin")),
    };
    let listener = bind(&config).await?;
    std::fs::write(dir.join("kubeconfig"), kubeconfig(&dir, &listener.local_addr()?.to_string()))?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminated.recv() => {}
        }
        stop.cancel();
    });
    serve(listener, config, shutdown).await?;
    Ok(())
}
