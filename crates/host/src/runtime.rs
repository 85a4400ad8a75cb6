//! The cluster's own containerd: where it lies, what its pods' network is called, and the images that must be there
//! before the first pod starts.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use cairn_agent::containerd::{self, Settings};

use crate::Layout;
use crate::cluster::Orchestrator;

/// Debian's static busybox, in the places it has been.
const BUSYBOX: [&str; 2] = ["/bin/busybox", "/usr/bin/busybox"];

/// What manifests mean by `busybox`.
const BUSYBOX_REFERENCE: &str = "docker.io/library/busybox:latest";

/// The settings that belong to this cluster alone: clusters side by side differ in directory, bridge and subnet.
#[must_use]
pub fn settings(layout: &Layout, orchestrator: &Orchestrator) -> Settings {
    Settings {
        root: layout.containerd(),
        bridge: format!("cairn{}", orchestrator.api_port),
        subnet: Ipv4Addr::new(10, orchestrator.pod_network, (orchestrator.api_port / 128) as u8, 0),
        cni_bin_dir: "/usr/lib/cni".into(),
        sandbox_image: containerd::PAUSE_REFERENCE.to_owned(),
        cgroup_parent: format!("/cairn-{}", orchestrator.api_port),
    }
}

/// Waits for containerd to serve, then imports the pause and busybox images, which need no registry.
///
/// # Errors
/// A sentence: containerd does not serve, or an image cannot be built or imported.
pub async fn import_images(settings: &Settings) -> Result<(), String> {
    let socket = settings.socket();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while tokio::net::UnixStream::connect(&socket).await.is_err() {
        if tokio::time::Instant::now() > deadline {
            return Err(format!("containerd does not serve {}; its log says why", socket.display()));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let busybox = BUSYBOX.iter().map(Path::new).find(|file| file.exists());
    let busybox = busybox.ok_or("busybox is missing; install Debian's package busybox-static")?;
    let pause = containerd::pause_image(busybox, &[containerd::PAUSE_REFERENCE]).map_err(|error| error.to_string())?;
    containerd::import_image(settings, pause, containerd::PAUSE_REFERENCE).await.map_err(|error| error.to_string())?;
    let image = containerd::busybox_image(busybox, &[BUSYBOX_REFERENCE]).map_err(|error| error.to_string())?;
    containerd::import_image(settings, image, BUSYBOX_REFERENCE).await.map_err(|error| error.to_string())
}
