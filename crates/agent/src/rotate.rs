//! Keeps container logs from filling the disk: a log beyond its limit is moved aside, the runtime starts a new one, and
//! only one old file is kept for each life of a container.

use std::path::Path;

use cairn_proto::cri;

use crate::cri::Runtime;
use crate::names::{annotation, label};

const LOG_MAX: u64 = 10 << 20;

/// Looks at the logs of all running containers.
pub(crate) async fn rotate_large(runtime: &Runtime, log_root: &Path, containers: &[cri::Container]) {
    for container in containers.iter().filter(|container| container.state() == cri::ContainerState::ContainerRunning) {
        let Some(path) = log_file(log_root, container) else { continue };
        if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LOG_MAX) {
            let old = path.with_extension("log.old");
            let moved = std::fs::rename(&path, &old).map_err(|error| error.to_string());
            let reopened = match moved {
                Ok(()) => runtime.reopen_log(&container.id).await.map_err(|error| error.to_string()),
                Err(error) => Err(error),
            };
            if let Err(error) = reopened {
                tracing::warn!(path = %path.display(), error, "a log was not rotated");
                // The runtime still writes to the file: it keeps its name, if the new one was not made.
                if !path.exists() {
                    let _ = std::fs::rename(&old, &path);
                }
            }
        }
    }
}

/// Where the runtime was told to write, from what it shows of the container.
fn log_file(root: &Path, container: &cri::Container) -> Option<std::path::PathBuf> {
    let label = |name| container.labels.get(name);
    let pod = format!("{}_{}_{}", label(label::POD_NAMESPACE)?, label(label::POD_NAME)?, label(label::POD_UID)?);
    let attempt = container.annotations.get(annotation::RESTART_COUNT)?;
    Some(root.join(pod).join(label(label::CONTAINER_NAME)?).join(format!("{attempt}.log")))
}
