//! The verbs: from a parsed request to an answer, over the registry and the store.
//!
//! One `Api` serves every kind; what differs between kinds is in the registry's table.

mod bootstrap;
mod change;
mod create;
mod delete;
mod discovery;
mod list;
mod openapi;
mod proxy;
mod review;
mod route;
mod special;
mod view;
mod watch;

use crate::Error;
use crate::error::ApiError;
use crate::http::identity::User;
use crate::http::target::Query;
use crate::owners::Manager;
use crate::registry::{Facts, Gate, Resource, TABLE};
use crate::store::Stored;
use crate::store::cache::Cache;
use crate::store::etcd::{Etcd, StoreError};
use bytes::Bytes;
use http::HeaderMap;
use list::Selection;
use proxy::AgentDoor;
pub(crate) use route::Door;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

/// Requests worked on at once, watches and streams not counted.
const IN_FLIGHT: usize = 400;
/// Objects put under one lease share its end; a new lease is taken this often.
const LEASE_SHARED_SECONDS: i64 = 60;

/// One kind, with what is known of its objects.
pub(crate) struct Served {
    pub(crate) resource: &'static Resource,
    pub(crate) cache: Cache,
}

/// The server behind the door.
pub(crate) struct Api {
    etcd: Arc<Etcd>,
    served: Vec<Served>,
    agent: Option<AgentDoor>,
    bootstrapped: AtomicBool,
    in_flight: Semaphore,
    leases: Mutex<BTreeMap<i64, (tokio::time::Instant, i64)>>,
    shutdown: CancellationToken,
}

/// One request, apart from what it is about.
pub(crate) struct Call {
    pub(crate) user: User,
    pub(crate) headers: HeaderMap,
    pub(crate) query: Query,
    pub(crate) body: Bytes,
}

impl Call {
    fn header(&self, name: http::header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn media_type(&self) -> &str {
        crate::http::body::media_type(&self.headers)
    }

    fn dry_run(&self) -> Result<bool, ApiError> {
        match self.query.one("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => {
                Err(ApiError::BadRequest(format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"")))
            }
        }
    }

    fn manager(&self, resource: &Resource, subresource: &'static str) -> Manager {
        let name = Manager::name_from(self.query.one("fieldManager"), self.header(http::header::USER_AGENT));
        Manager { name, api_version: resource.api_version(), subresource }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match error {
            StoreError::Compacted => ApiError::Expired(
                "The provided resource version is too old: its history has been compacted.".to_owned(),
            ),
            StoreError::Future => ApiError::TooLargeResourceVersion { asked: 0, current: 0 },
            StoreError::Unavailable(_) => ApiError::Unavailable(error.to_string()),
        }
    }
}

impl Api {
    pub(crate) fn new(etcd: Etcd, agent: Option<AgentDoor>, shutdown: CancellationToken) -> Api {
        let served = TABLE.iter().map(|resource| Served { resource, cache: Cache::new(resource) }).collect();
        Api {
            etcd: Arc::new(etcd),
            served,
            agent,
            bootstrapped: AtomicBool::new(false),
            in_flight: Semaphore::new(IN_FLIGHT),
            leases: Mutex::default(),
            shutdown,
        }
    }

    fn served(&self, group: &str, version: &str, plural: &str) -> Option<&Served> {
        self.served.iter().find(|served| {
            let row = served.resource;
            row.plural == plural && row.group == group && row.version == version
        })
    }

    fn core(&self, plural: &str) -> &Served {
        self.served("", "v1", plural).expect("the table has the core kinds that the server itself needs")
    }

    /// Whether every kind is loaded and the first namespaces are there.
    pub(crate) fn is_ready(&self) -> bool {
        self.bootstrapped.load(Ordering::Acquire) && self.served.iter().all(|served| served.cache.is_ready())
    }

    /// The newest object under `key`.
    async fn load(&self, served: &Served, key: &str) -> Result<Arc<Stored>, ApiError> {
        let (kv, _) = self.etcd.get(&format!("{}{key}", served.resource.prefix())).await?;
        match kv {
            Some(kv) => served.cache.resolve(&kv),
            None => {
                Err(ApiError::NotFound { subject: served.resource.subject(key.rsplit('/').next().unwrap_or_default()) })
            }
        }
    }

    /// What the gate of a kind asks to know, as new as can be: a class may have been made a moment ago.
    async fn facts(&self, gate: Gate) -> Result<Facts, ApiError> {
        match gate {
            Gate::None => Ok(Facts::default()),
            Gate::Claim => {
                let classes =
                    self.served("storage.k8s.io", "v1", "storageclasses").expect("claims are served with classes");
                let listed = self.newest(classes, &Selection::everything()).await?;
                Ok(Facts { classes: listed.items.iter().map(|stored| stored.object()).collect() })
            }
        }
    }

    /// The lease under which an object that goes by itself is put; 0 for one that stays.
    async fn lease(&self, resource: &Resource) -> Result<i64, ApiError> {
        let Some(ttl) = resource.ttl else { return Ok(0) };
        let mut leases = self.leases.lock().await;
        let now = tokio::time::Instant::now();
        if let Some((until, id)) = leases.get(&ttl)
            && *until > now
        {
            return Ok(*id);
        }
        let id = self.etcd.grant(ttl + LEASE_SHARED_SECONDS).await?;
        leases.insert(ttl, (now + std::time::Duration::from_secs(LEASE_SHARED_SECONDS.unsigned_abs()), id));
        Ok(id)
    }
}

/// The door to the nodes, if certificates for it are configured.
pub(crate) fn agent_door(files: Option<&crate::TlsFiles>) -> Result<Option<AgentDoor>, Error> {
    files.map(AgentDoor::new).transpose()
}
