//! A CSI node plugin for the agent's tests: staging is a tmpfs, publishing a bind mount, every call is written down.
//! It also serves its registration socket, as a driver beside a kubelet does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use cairn_proto::csi;
use cairn_proto::registration as reg;
use csi::node_server::{Node, NodeServer};
use reg::registration_server::{Registration, RegistrationServer};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

pub(crate) const DRIVER: &str = "test.csi.example";

#[derive(Clone, Default)]
pub(crate) struct FakeDriver {
    calls: Arc<Mutex<Vec<String>>>,
    endpoint: PathBuf,
}

impl FakeDriver {
    /// Serves both sockets beneath `dir`.
    pub(crate) fn start(dir: &Path, registry: &Path) -> FakeDriver {
        std::fs::create_dir_all(registry).expect("made");
        let endpoint = dir.join("csi.sock");
        let driver = FakeDriver { calls: Arc::default(), endpoint: endpoint.clone() };
        let node = UnixListener::bind(&endpoint).expect("bound");
        let server = tonic::transport::Server::builder().add_service(NodeServer::new(driver.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(node)));
        let registration = UnixListener::bind(registry.join("test-reg.sock")).expect("bound");
        let server = tonic::transport::Server::builder().add_service(RegistrationServer::new(driver.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(registration)));
        driver
    }

    /// The calls so far, and forgets them.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().expect("whole"))
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("whole").clone()
    }

    fn note(&self, call: String) {
        self.calls.lock().expect("whole").push(call);
    }
}

fn mount(args: &[&str]) -> Result<(), Status> {
    let output = Command::new(args[0]).args(&args[1..]).output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Status::internal(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn is_mounted(path: &str) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("readable");
    table.lines().any(|line| line.split(' ').nth(4) == Some(path))
}

#[tonic::async_trait]
impl Node for FakeDriver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        assert!(request.metadata().contains_key("x-request-id"), "every call carries a request id");
        let request = request.into_inner();
        let generation = request.publish_context.get("generation").cloned().unwrap_or_default();
        self.note(format!("stage {} generation {generation}", request.volume_id));
        if !is_mounted(&request.staging_target_path) {
            mount(&["mount", "-t", "tmpfs", "tmpfs", &request.staging_target_path])?;
        }
        Ok(Response::new(csi::NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("unstage {}", request.volume_id));
        if is_mounted(&request.staging_target_path) {
            mount(&["umount", &request.staging_target_path])?;
        }
        Ok(Response::new(csi::NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("publish {}", request.volume_id));
        std::fs::create_dir_all(&request.target_path)?;
        if !is_mounted(&request.target_path) {
            mount(&["mount", "--bind", &request.staging_target_path, &request.target_path])?;
        }
        Ok(Response::new(csi::NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        self.note(format!("unpublish {}", request.volume_id));
        if is_mounted(&request.target_path) {
            mount(&["umount", &request.target_path])?;
        }
        let _ = std::fs::remove_dir(&request.target_path);
        Ok(Response::new(csi::NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let stage = csi::node_service_capability::rpc::Type::StageUnstageVolume.into();
        let rpc = csi::node_service_capability::Rpc { r#type: stage };
        let r#type = Some(csi::node_service_capability::Type::Rpc(rpc));
        let capabilities = vec![csi::NodeServiceCapability { r#type }];
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let segments = [("topology.test/host".to_owned(), "h1".to_owned())].into();
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: "node-7".into(),
            max_volumes_per_node: 9,
            accessible_topology: Some(csi::Topology { segments }),
        }))
    }
}

#[tonic::async_trait]
impl Registration for FakeDriver {
    async fn get_info(&self, _: Request<reg::InfoRequest>) -> Result<Response<reg::PluginInfo>, Status> {
        Ok(Response::new(reg::PluginInfo {
            r#type: "CSIPlugin".into(),
            name: DRIVER.into(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<reg::RegistrationStatus>,
    ) -> Result<Response<reg::RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.note(format!("registered {} {}", status.plugin_registered, status.error));
        Ok(Response::new(reg::RegistrationStatusResponse {}))
    }
}
