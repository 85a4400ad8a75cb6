//! The volumes that this node has in use, and the promise that nothing is staged before the Node object says so: the
//! attach/detach controller reads it there and does not detach what is mounted.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long a mount waits for the Node object to be written.
pub(crate) const REPORT_LIMIT: Duration = Duration::from_secs(10);

/// Shared by clones. Names are unique names (`kubernetes.io/csi/<driver>^<handle>`).
#[derive(Clone, Debug)]
pub(crate) struct InUse {
    wanted: Arc<watch::Sender<BTreeSet<String>>>,
    reported: Arc<watch::Sender<BTreeSet<String>>>,
}

impl InUse {
    pub(crate) fn new(names: BTreeSet<String>) -> InUse {
        InUse { wanted: Arc::new(watch::Sender::new(names)), reported: Arc::new(watch::Sender::new(BTreeSet::new())) }
    }

    /// Adds a volume and waits until the Node object shows it. False when that took too long.
    pub(crate) async fn add(&self, name: &str) -> bool {
        self.wanted.send_if_modified(|names| names.insert(name.to_owned()));
        let mut reported = self.reported.subscribe();
        let seen = tokio::time::timeout(REPORT_LIMIT, reported.wait_for(|names| names.contains(name))).await;
        matches!(seen, Ok(Ok(_)))
    }

    /// Removes a volume that is neither staged nor published any more.
    pub(crate) fn remove(&self, name: &str) {
        self.wanted.send_if_modified(|names| names.remove(name));
    }

    /// For the writer of the Node object: what should be there, with changes.
    pub(crate) fn wanted(&self) -> watch::Receiver<BTreeSet<String>> {
        self.wanted.subscribe()
    }

    /// For the writer of the Node object: what is there now.
    pub(crate) fn confirm(&self, names: BTreeSet<String>) {
        self.reported.send_replace(names);
    }
}
