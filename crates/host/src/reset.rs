//! Taking a cluster off the host: stop what runs, remove by force what a crash left, delete the directory.

use std::path::PathBuf;
use std::time::Duration;

use cairn_agent::containerd;
use rustix::process::Signal;

use crate::supervisor::State;
use crate::{Cluster, Layout, mounts, runtime};

/// How long an orderly stop may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The supervisor did not end.
    #[error("the supervisor (pid {0}) did not stop within {limit} s; look into log/supervisor.log", limit = PATIENCE.as_secs())]
    StillRunning(u32),
    /// Files are left.
    #[error("cannot delete {0}: {1}")]
    Files(PathBuf, std::io::Error),
    /// Devices are left.
    #[error("cannot remove the volumes' devices: {0}")]
    Devices(#[from] cairn_attach::Error),
    /// Parts of the container runtime are left.
    #[error("the container runtime left: {}", .0.join("; "))]
    Containers(Vec<String>),
}

/// Stops a cluster and keeps its data. Whether one ran.
///
/// # Errors
/// When the supervisor does not end.
pub async fn down(layout: &Layout) -> Result<bool, ResetError> {
    let Some(state) = State::load(layout) else { return Ok(false) };
    let ran = if let Some(supervisor) = state.live_supervisor() {
        supervisor.signal(Signal::TERM);
        if !supervisor.gone_within(PATIENCE).await {
            return Err(ResetError::StillRunning(supervisor.pid));
        }
        true
    } else {
        false
    };
    // A supervisor that was killed leaves its children; the state file knows them.
    let orphans: Vec<_> = state.processes.values().filter_map(|role| role.process).collect();
    for orphan in orphans.iter().filter(|process| process.is_alive()) {
        orphan.signal(Signal::TERM);
    }
    for orphan in orphans {
        orphan.stop(Duration::from_secs(5)).await;
    }
    Ok(ran)
}

/// A daemon that was killed may take a moment to be gone, with the last of its I/O.
async fn remove_devices(layout: &Layout) -> Result<(), cairn_attach::Error> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let outcome = cairn_attach::teardown(&layout.attach(), &layout.socket("keeper")).await;
        match outcome {
            Err(cairn_attach::Error::AlreadyRunning(_)) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            outcome => return outcome,
        }
    }
}

/// Stops a cluster and removes everything of it.
///
/// # Errors
/// When something is left; the sentence says what.
pub async fn reset(layout: &Layout) -> Result<(), ResetError> {
    down(layout).await?;
    let mut left = Vec::new();
    if let Ok(Some(cluster)) = Cluster::load(layout)
        && let Some(orchestrator) = &cluster.orchestrator
    {
        left = containerd::sweep(&runtime::settings(layout, orchestrator));
    }
    let root = layout.root();
    // Filesystems on our devices first, then the devices, then whatever else is mounted here.
    mounts::beneath(&layout.agent()).iter().for_each(|point| mounts::unmount(point));
    remove_devices(layout).await?;
    mounts::beneath(root).iter().for_each(|point| mounts::unmount(point));
    if !left.is_empty() {
        return Err(ResetError::Containers(left));
    }
    match std::fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ResetError::Files(root.into(), error)),
        _ => Ok(()),
    }
}
