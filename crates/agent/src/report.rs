//! Events about pods, handed to a task of their own: whoever works on a pod never waits for an event.

use cairn_events::{Recorder, Severity};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use tokio::sync::mpsc;

/// Events that wait to be written; when the API server is away longer than this lasts, the newest are dropped.
const QUEUE: usize = 256;

struct Entry {
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Shared by clones.
#[derive(Clone)]
pub(crate) struct Events(mpsc::Sender<Entry>);

impl Events {
    /// Starts the writing task, which ends with the last clone.
    pub(crate) fn start(recorder: Recorder) -> Events {
        let (sender, mut receiver) = mpsc::channel::<Entry>(QUEUE);
        tokio::spawn(async move {
            while let Some(entry) = receiver.recv().await {
                recorder.record(&entry.about, entry.severity, entry.reason, &entry.message).await;
            }
        });
        Events(sender)
    }

    pub(crate) fn normal(&self, about: ObjectReference, reason: &'static str, message: String) {
        self.put(Entry { about, severity: Severity::Normal, reason, message });
    }

    pub(crate) fn warning(&self, about: ObjectReference, reason: &'static str, message: String) {
        self.put(Entry { about, severity: Severity::Warning, reason, message });
    }

    fn put(&self, entry: Entry) {
        if let Err(error) = self.0.try_send(entry) {
            let (mpsc::error::TrySendError::Full(entry) | mpsc::error::TrySendError::Closed(entry)) = error;
            tracing::warn!(reason = entry.reason, message = entry.message, "an event was dropped");
        }
    }
}

/// A pod, or a container of it, as events name it.
pub(crate) fn about(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let mut reference = cairn_events::reference(pod);
    let init = |name: &str| {
        let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        containers.into_iter().any(|container| container.name == name)
    };
    reference.field_path = container.map(|name| {
        let list = if init(name) { "initContainers" } else { "containers" };
        format!("spec.{list}{{{name}}}")
    });
    reference
}
