//! The node agent: registers this machine as a Node, runs the pods that are bound to it through CRI, and their volumes
//! through CSI; serves logs, exec and attach to the API server.
//!
//! It keeps no truth of its own: what is wanted is in the API, what is runs in the container runtime (found by labels)
//! and stands on disk (volume records), so an agent may be killed and started again at any moment without disturbing
//! a pod. It knows storage only through CSI, and containers only through CRI.

#![forbid(unsafe_code)]

mod cgroups;
mod clear;
mod config;
pub mod containerd;
pub mod cri;
mod csi_node;
mod directory;
mod drivers;
mod mounts;
mod names;
mod node;
mod plugins;
mod pod;
mod pods;
mod quantity;
mod report;
mod rotate;
mod server;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use cairn_events::Recorder;
pub use clear::Clear;
pub use config::{Config, Error};
pub use server::TlsError;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use cri::Runtime;
use directory::Directory;
use drivers::Drivers;
use node::facts::{self, Machine};
use node::object::Identity;
use pod::{ClusterDns, Context, Images, NodeFacts};
use volumes::{Kept, Volumes};

/// How often a container runtime that is not there yet is asked for.
const RUNTIME_RETRY: Duration = Duration::from_millis(200);

/// Runs the agent until `shutdown`. Pods keep running when it ends.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    config.check_listen()?;
    let root = config.prepare_root()?;
    let tls = server::server_config(&config.tls_certificate, &config.tls_key, &config.client_ca)?;
    let listener =
        TcpListener::bind(config.listen).await.map_err(|source| Error::Listen { address: config.listen, source })?;
    let port = listener.local_addr().map_or(config.listen.port(), |address| address.port());
    let client = config.client().await?;
    let runtime = Runtime::new(&config.cri_socket);
    let Some(version) = first_version(&runtime, &shutdown).await else { return Ok(()) };
    tracing::info!(runtime = version.runtime_name, version = version.runtime_version, "the container runtime answers");

    let machine = Machine::look(&root);
    let drivers = Drivers::default();
    let directory = Directory::default();
    let kept = Kept::open(&root, &config.node_name, drivers.clone())
        .map_err(|source| Error::Root { path: root.clone(), source })?;
    let volumes = Volumes::new(kept.clone(), &config.node_name, client.clone());
    let recorder = Recorder::new(client.clone(), "cairn-agent", Some(&config.node_name));
    let events = report::Events::start(recorder);
    let host_address = config.node_address.unwrap_or_else(facts::address).to_string();
    let identity = Identity {
        name: config.node_name.clone(),
        address: host_address.clone(),
        port,
        labels: config.labels.clone(),
        pod_cidr: config.pod_cidr.clone(),
        runtime: format!("{}://{}", version.runtime_name, version.runtime_version.trim_start_matches('v')),
    };
    let context = Arc::new(Context {
        node: NodeFacts {
            name: config.node_name.clone(),
            hostname: machine.hostname.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            log_root: root.join("logs"),
            dns: ClusterDns {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                domain: config.cluster_domain.clone(),
            },
            resolv_conf: facts::resolv_conf(),
        },
        client: client.clone(),
        runtime: runtime.clone(),
        runtime_name: version.runtime_name,
        images: Images::new(runtime.clone(), client.clone(), events.clone()),
        events,
        host_address,
        cpu_milli: i64::try_from(machine.cpus).unwrap_or(i64::MAX).saturating_mul(1000),
        memory_bytes: machine.memory_bytes,
        volumes: volumes.clone(),
    });
    let (uid, node_uid) = watch::channel(None);
    let registrar = node::Registrar {
        client: client.clone(),
        runtime: runtime.clone(),
        identity,
        machine,
        in_use: volumes.in_use().clone(),
        uid,
    };
    let registry = plugins::Registry {
        client,
        node: config.node_name.clone(),
        directory: config.plugin_registry.clone(),
        drivers,
        node_uid: node_uid.clone(),
    };
    let endpoint = server::Endpoint { node: config.node_name.clone(), runtime, pods: directory.clone() };
    let pods = pods::Pods::new(context, directory);
    tokio::join!(
        server::serve(listener, tls, endpoint, shutdown.clone()),
        registrar.run(shutdown.clone()),
        registry.run(shutdown.clone()),
        kept.tidy(shutdown.clone()),
        pods.run(node_uid, shutdown.clone()),
    );
    Ok(())
}

/// Waits for the runtime; None when told to stop before it came.
async fn first_version(runtime: &Runtime, shutdown: &CancellationToken) -> Option<cairn_proto::cri::VersionResponse> {
    let mut complained = false;
    loop {
        match runtime.version().await {
            Ok(version) => return Some(version),
            Err(error) if !complained => {
                tracing::warn!(%error, "waiting for the container runtime");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(RUNTIME_RETRY) => {}
        }
    }
}
