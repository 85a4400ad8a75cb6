//! The administrator's verbs: what the metadata service knows, shown, and the few things an admin asks of it.

mod labels;
mod limits;
mod manifest;
mod meta;
mod meta_here;
mod moving;
mod node;
mod osd;
mod pg;
mod pool;
mod restore;
mod snapshot;
mod status;
mod transfer;
mod trash;
mod verify;
mod volume;

use std::path::PathBuf;

use cairn_host::{Cluster, Layout};
use cairn_meta_client::{MetaClient, MetaError};
use cairn_proto::meta as api;
use cairn_types::map::ClusterMap;
use clap::Args;

use crate::failure::{Code, Failure};
use crate::output::Format;

pub(crate) use meta::{MetaVerb, run as meta};
pub(crate) use node::{NodeVerb, run as node};
pub(crate) use osd::{OsdVerb, run as osd};
pub(crate) use pg::{PgVerb, run as pg};
pub(crate) use pool::{PoolVerb, run as pool};
pub(crate) use snapshot::{SnapshotVerb, run as snapshot};
pub(crate) use status::{HealthVerb, health, status};
pub(crate) use trash::{TrashVerb, run as trash};
pub(crate) use volume::{VolumeVerb, run as volume};

/// Which cluster, and how to print.
#[derive(Args, Clone)]
pub(crate) struct Target {
    /// The cluster's directory on this host; its metadata members are found there.
    #[arg(long, env = "CAIRN_DIR", default_value = crate::DEFAULT_DIR, global = true)]
    pub(crate) dir: PathBuf,
    /// The metadata members instead: host:port, separated by commas.
    #[arg(long, env = "CAIRN_META", value_delimiter = ',', global = true)]
    meta: Vec<String>,
    /// table or json.
    #[arg(short, long, default_value = "table", global = true)]
    pub(crate) output: Format,
}

impl Target {
    /// The members as far as this host, or whoever asks, knows them.
    fn endpoints(&self) -> Vec<String> {
        let described = || Cluster::load(&Layout::at(&self.dir).ok()?).ok()?;
        match self.meta.is_empty() && self.dir.join("cluster.json").exists() {
            true => described().map(|cluster| cluster.meta_endpoints()).unwrap_or_default(),
            false => self.meta.clone(),
        }
    }

    pub(crate) fn connect(&self) -> Result<Metadata, Failure> {
        if !self.meta.is_empty() {
            return Metadata::at(&self.meta);
        }
        let none = || {
            let message = format!(
                "there is no cluster in {}; start one with `cairn up`, or name one with --dir or --meta",
                self.dir.display()
            );
            Failure::new(Code::Unreachable, message)
        };
        if !self.dir.join("cluster.json").exists() {
            return Err(none());
        }
        let layout = Layout::at(&self.dir).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        let cluster = Cluster::load(&layout).map_err(|error| Failure::new(Code::Failed, error.to_string()))?;
        Metadata::at(&cluster.ok_or_else(none)?.meta_endpoints())
    }
}

/// The metadata service, as commands use it.
pub(crate) struct Metadata(pub(crate) MetaClient);

impl Metadata {
    pub(crate) fn at(endpoints: &[String]) -> Result<Self, Failure> {
        let client = MetaClient::new(endpoints)?;
        Ok(Self(client.with_request_id(&format!("cli-{}", std::process::id()))))
    }

    pub(crate) fn of_cluster(cluster: &Cluster) -> Result<Self, Failure> {
        Self::at(&cluster.meta_endpoints())
    }

    pub(crate) async fn status(&self) -> Result<api::StatusReply, Failure> {
        Ok(self.0.status(api::StatusRequest::default()).await?)
    }

    pub(crate) async fn health(&self) -> Result<api::HealthReply, Failure> {
        Ok(self.0.health(api::HealthRequest {}).await?)
    }

    pub(crate) async fn map(&self) -> Result<ClusterMap, Failure> {
        Ok(self.0.map_once().await?)
    }

    /// The names of the nodes that can attach volumes.
    pub(crate) async fn nodes(&self) -> Result<Vec<String>, Failure> {
        let nodes = self.0.list_nodes(api::ListNodesRequest {}).await?.nodes;
        Ok(nodes.into_iter().map(|node| node.name).collect())
    }

    /// The pool that a new cluster on one host starts with, unless there is a pool already. Whether it was made.
    pub(crate) async fn create_default_pool(&self, osds: u32) -> Result<bool, Failure> {
        if !self.0.list_pools(api::ListPoolsRequest {}).await?.pools.is_empty() {
            return Ok(false);
        }
        let size = osds.min(3);
        let pool = api::Pool {
            name: "default".into(),
            size,
            min_size: if size == 1 { 1 } else { size - 1 },
            failure_domain: "osd".into(),
            ..Default::default()
        };
        let request =
            api::CreatePoolRequest { mutation: None, pool: Some(pool), allow_degraded: false, expected_osds: 0 };
        self.0.create_pool(request).await?;
        Ok(true)
    }
}

impl From<MetaError> for Failure {
    fn from(error: MetaError) -> Self {
        let code = match &error {
            MetaError::Unreachable { .. } => Code::Unreachable,
            refused if refused.is_not_found() => Code::NotFound,
            _ => Code::Failed,
        };
        Self::new(code, error.to_string())
    }
}
