//! What the tests stand on: the driver on its socket, dialled as a sidecar or an agent dials it.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cairn_csi::{Config, Mode};
use cairn_proto::csi;
use csi::volume_capability::access_mode::Mode as Access;
use csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};

/// A driver that is stopped when it goes.
pub(crate) struct Driver {
    pub(crate) channel: Channel,
    stop: CancellationToken,
    task: JoinHandle<Result<(), cairn_csi::Error>>,
}

impl Driver {
    pub(crate) async fn start(dir: &Path, mode: Mode, meta: Vec<String>) -> Self {
        let config = Config {
            endpoint: dir.join("csi/csi.sock"),
            node: "node-1".into(),
            meta,
            attach: dir.join("attach.sock"),
            registration_dir: (mode != Mode::Controller).then(|| dir.join("plugins_registry")),
            mode,
        };
        let (stop, endpoint) = (CancellationToken::new(), config.endpoint.clone());
        let task = tokio::spawn(cairn_csi::run(config, stop.clone()));
        Self { channel: dial(endpoint).await, stop, task }
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        drop(self.channel);
        self.task.await.unwrap().unwrap();
    }
}

/// Connects, as soon as somebody listens.
pub(crate) async fn dial(path: PathBuf) -> Channel {
    let connect = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { tokio::net::UnixStream::connect(path).await.map(hyper_util::rt::TokioIo::new) }
    });
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match Endpoint::from_static("http://test.invalid").connect_with_connector(connect.clone()).await {
            Ok(channel) => return channel,
            Err(error) if Instant::now() > deadline => panic!("nobody listens: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

pub(crate) fn mount(mode: Access) -> csi::VolumeCapability {
    filesystem("ext4", mode)
}

pub(crate) fn filesystem(fs_type: &str, mode: Access) -> csi::VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..MountVolume::default() };
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(mount)),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub(crate) fn block(mode: Access) -> csi::VolumeCapability {
    csi::VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..mount(mode) }
}
