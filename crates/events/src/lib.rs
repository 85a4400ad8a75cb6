//! What every client of the API does alike: it records events, and it comes back after a broken watch.
//!
//! There is one event for each cause, counted when it repeats, instead of thousands that say "waiting".
//! An event's name is made of its object, its reason and its message, so that the same cause finds the same event
//! again, across restarts of whoever reports it. Recording never fails its caller: an event that cannot be written is
//! logged.

#![forbid(unsafe_code)]

mod watch_backoff;

use std::fmt;
use std::hash::{Hash, Hasher};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};

pub use watch_backoff::WatchBackoff;

/// Whether something went as it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// It did.
    Normal,
    /// Somebody should look.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        })
    }
}

/// Writes the events of one component.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    component: String,
    host: Option<String>,
}

impl Recorder {
    /// For a component such as `cairn-scheduler`; `host` is the node it speaks for, if it speaks for one.
    #[must_use]
    pub fn new(client: Client, component: &str, host: Option<&str>) -> Self {
        Self { client, component: component.to_owned(), host: host.map(str::to_owned) }
    }

    /// Records one occurrence. `reason` is CamelCase for programs, `message` a sentence for people: cause and remedy.
    pub async fn record(&self, about: &ObjectReference, severity: Severity, reason: &str, message: &str) {
        let namespace = about.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let event = self.event(about, namespace, severity, reason, message);
        let name = event.name_any();
        let outcome = match events.create(&PostParams::default(), &event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => count_up(&events, &name).await,
            other => other.map(|_| ()),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, reason, message, "an event could not be written");
        }
    }

    fn event(
        &self,
        about: &ObjectReference,
        namespace: &str,
        severity: Severity,
        reason: &str,
        message: &str,
    ) -> Event {
        let now = Some(Time(Timestamp::now()));
        Event {
            metadata: ObjectMeta {
                name: Some(event_name(about, &self.component, reason, message)),
                namespace: Some(namespace.to_owned()),
                ..Default::default()
            },
            involved_object: about.clone(),
            type_: Some(severity.to_string()),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            source: Some(EventSource { component: Some(self.component.clone()), host: self.host.clone() }),
            first_timestamp: now.clone(),
            last_timestamp: now,
            count: Some(1),
            ..Default::default()
        }
    }
}

/// The reference by which events name an object.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: object.meta().name.clone(),
        namespace: object.meta().namespace.clone(),
        uid: object.meta().uid.clone(),
        resource_version: object.meta().resource_version.clone(),
        ..Default::default()
    }
}

async fn count_up(events: &Api<Event>, name: &str) -> Result<(), kube::Error> {
    let known = events.get(name).await?;
    let patch = serde_json::json!({
        "count": known.count.unwrap_or(1).saturating_add(1),
        "lastTimestamp": Time(Timestamp::now()),
    });
    events.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
}

/// `<object>.<hash>`, as Kubernetes shapes it; FNV-1a, because it must be the same in every build.
fn event_name(about: &ObjectReference, component: &str, reason: &str, message: &str) -> String {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    (&about.kind, &about.uid, component, reason, message).hash(&mut hasher);
    let object = about.name.as_deref().unwrap_or("object");
    // A name has at most 253 bytes, the hash and its dot take 17.
    let object = object.get(..230).unwrap_or(object);
    format!("{object}.{:016x}", hasher.finish())
}

struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(uid: &str) -> ObjectReference {
        ObjectReference { name: Some("data".into()), uid: Some(uid.into()), ..Default::default() }
    }

    #[test]
    fn the_same_cause_has_the_same_name() {
        let name = |uid: &str, message: &str| event_name(&claim(uid), "c", "Failed", message);
        assert_eq!(name("1", "no space"), name("1", "no space"));
        assert_ne!(name("1", "no space"), name("1", "no class"));
        assert_ne!(name("1", "no space"), name("2", "no space"), "another object of the same name");
        assert!(name("1", "x").starts_with("data."));
    }
}
