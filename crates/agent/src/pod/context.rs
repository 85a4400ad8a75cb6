//! What every pod's worker shares: the node's facts and its doors to runtime, API server, volumes and events.

use std::sync::Arc;

use kube::Client;

use super::env::Surroundings;
use super::image::Images;
use super::observe::{Contained, Observed, Sandbox};
use super::sandbox::NodeFacts;
use super::spec::PodKey;
use crate::cri::{CriError, Runtime};
use crate::names::label;
use crate::report::Events;
use crate::volumes::Volumes;

/// One for the whole agent.
pub(crate) struct Context {
    pub(crate) node: NodeFacts,
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
    /// `containerd` or `cri-o`: the scheme of container ids.
    pub(crate) runtime_name: String,
    pub(crate) volumes: Volumes,
    pub(crate) images: Images,
    pub(crate) events: Events,
    pub(crate) host_address: String,
    pub(crate) cpu_milli: i64,
    pub(crate) memory_bytes: i64,
}

impl Context {
    /// What the runtime has of one pod.
    pub(crate) async fn observe(&self, key: &PodKey) -> Result<Observed, CriError> {
        let labels = [(label::POD_UID, key.uid.as_str()), (label::NODE, self.node.name.as_str())];
        let (sandboxes, containers) =
            tokio::try_join!(self.runtime.sandboxes(&labels), self.runtime.containers(&labels))?;
        let mut observed = Observed::default();
        for sandbox in sandboxes {
            match self.runtime.sandbox_status(&sandbox.id).await {
                Ok(status) => observed.sandboxes.push(Sandbox::from(status)),
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        for container in containers {
            match self.runtime.container_status(&container.id).await {
                Ok(status) => {
                    observed.containers.push(Contained { sandbox: container.pod_sandbox_id, ..status.into() });
                }
                Err(error) if error.is_absent() => {}
                Err(error) => return Err(error),
            }
        }
        observed.sort();
        Ok(observed)
    }

    /// What a pod's environment and downward files say about where it is.
    pub(crate) fn surroundings(&self, observed: &Observed, host_network: bool) -> Surroundings {
        let own = observed.ready_sandbox().map(|sandbox| sandbox.addresses.clone()).unwrap_or_default();
        Surroundings {
            pod_addresses: if host_network { vec![self.host_address.clone()] } else { own },
            host_address: self.host_address.clone(),
            cpu_milli: self.cpu_milli.into(),
            memory_bytes: self.memory_bytes.into(),
        }
    }
}

/// How workers hold it.
pub(crate) type Shared = Arc<Context>;
