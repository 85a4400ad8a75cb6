//! Runs the API server by hand, with throwaway certificates.
//!
//! ```text
//! etcd --data-dir /tmp/x/etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 &
//! cargo run -p cairn-apiserver --example apiserver_dev -- /tmp/x/api http://127.0.0.1:2379 127.0.0.1:6443
//! kubectl --kubeconfig /tmp/x/api/kubeconfig get ns
//! ```
//!
//! Arguments: a directory (made if absent), the store's endpoints (separated by commas), the address to listen on (port 0:
//! any free one,
//! written into the kubeconfig). The directory gets `ca.crt`, `server.{crt,key}` (SANs localhost, 127.0.0.1),
//! `admin.{crt,key}` (CN admin, O system:masters), `agent.{crt,key}` (CN system:node:agent, for an agent's HTTPS door;
//! SANs localhost, 127.0.0.1) and `kubeconfig`; the server shows `admin.crt` to agents, which should ask for
//! `ca.crt`. Existing files are kept, so that a restart changes nothing. `kubeconfig` is written last and only when
//! the port is open. Ends at ctrl-c or SIGTERM.

use cairn_apiserver::{Config, TlsFiles, bind, serve};
use std::error::Error;
use tokio_util::sync::CancellationToken;

#[path = "../tests/real/stand/certificates.rs"]
mod certificates;

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
    certificates::certificates(&dir)?;
    let files = |name: &str| TlsFiles {
        cert: dir.join(format!("{name}.crt")),
        key: dir.join(format!("{name}.key")),
        ca: dir.join("ca.crt"),
    };
    let config = Config {
        listen: listen.parse()?,
        insecure_listen: false,
        etcd: etcd.split(',').map(str::to_owned).collect(),
        tls: files("server"),
        agent: Some(files("admin")),
    };
    let listener = bind(&config).await?;
    std::fs::write(dir.join("kubeconfig"), certificates::kubeconfig(&dir, &listener.local_addr()?.to_string()))?;
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
