//! The container runtime, spoken to over CRI: one typed method for each call the agent makes, each with a deadline.
//!
//! Nothing is decided here and nothing is remembered but the connection, which is made when it is first needed and
//! again whenever the runtime was restarted.

use std::collections::HashMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_proto::cri;
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::names::label;

/// Questions about what is.
const ASK: Duration = Duration::from_secs(10);
/// Work on one sandbox or container.
const WORK: Duration = Duration::from_secs(120);
/// An image of some gigabytes over a slow line.
const PULL: Duration = Duration::from_secs(1800);
/// A node with a thousand containers answers in one message.
const MESSAGE_MAX: usize = 32 << 20;

/// A call that the runtime refused or did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CriError {
    /// It answered with an error.
    #[error("{call}: {message}")]
    Refused {
        /// The CRI method.
        call: &'static str,
        /// The gRPC code.
        code: tonic::Code,
        /// The runtime's own words.
        message: String,
    },
    /// Nothing serves the socket.
    #[error("the container runtime does not answer on {socket} ({message}); is containerd running?")]
    Unreachable {
        /// Where it should be.
        socket: PathBuf,
        /// What dialling said.
        message: String,
    },
    /// The deadline passed.
    #[error("{call} was not answered within {limit:?}")]
    Late {
        /// The CRI method.
        call: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// An answer without its essential part.
    #[error("{call} was answered without {missing}")]
    Hollow {
        /// The CRI method.
        call: &'static str,
        /// What it lacks.
        missing: &'static str,
    },
}

impl CriError {
    /// The thing asked about does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, CriError::Refused { code: tonic::Code::NotFound, .. })
    }
}

/// A connection to one runtime. Clones share it.
#[derive(Clone, Debug)]
pub struct Runtime {
    socket: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

impl Runtime {
    /// A client for the CRI socket; dials on first use.
    pub fn new(socket: &Path) -> Runtime {
        let path = socket.to_owned();
        // The address is only a formality: the connector ignores it.
        let channel =
            Endpoint::from_static("http://cri.invalid").connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        Runtime {
            socket: socket.to_owned(),
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX),
        }
    }

    async fn call<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, CriError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                Err(CriError::Unreachable { socket: self.socket.clone(), message: status.message().to_owned() })
            }
            Ok(Err(status)) => {
                Err(CriError::Refused { call, code: status.code(), message: status.message().to_owned() })
            }
            Err(_) => Err(CriError::Late { call, limit }),
        }
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<cri::VersionResponse, CriError> {
        let request = cri::VersionRequest { version: "v1".into() };
        self.call("Version", ASK, self.runtime.clone().version(request)).await
    }

    /// The runtime's own conditions.
    pub async fn conditions(&self) -> Result<Vec<cri::RuntimeCondition>, CriError> {
        let reply = self.call("Status", ASK, self.runtime.clone().status(cri::StatusRequest::default())).await?;
        Ok(reply.status.unwrap_or_default().conditions)
    }

    /// Sandboxes that carry all these labels.
    pub async fn sandboxes(&self, labels: &[(&str, &str)]) -> Result<Vec<cri::PodSandbox>, CriError> {
        let filter = cri::PodSandboxFilter { label_selector: selector(labels), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.call("ListPodSandbox", ASK, self.runtime.clone().list_pod_sandbox(request)).await?.items)
    }

    /// One sandbox with its addresses.
    pub async fn sandbox_status(&self, id: &str) -> Result<cri::PodSandboxStatus, CriError> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let reply = self.call("PodSandboxStatus", ASK, self.runtime.clone().pod_sandbox_status(request)).await?;
        reply.status.ok_or(CriError::Hollow { call: "PodSandboxStatus", missing: "a status" })
    }

    /// Makes and starts a sandbox; its id.
    pub async fn run_sandbox(&self, config: cri::PodSandboxConfig) -> Result<String, CriError> {
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
        Ok(self.call("RunPodSandbox", WORK, self.runtime.clone().run_pod_sandbox(request)).await?.pod_sandbox_id)
    }

    /// Stops a sandbox and everything in it. Fine when it is gone.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        absent_is_fine(self.call("StopPodSandbox", WORK, self.runtime.clone().stop_pod_sandbox(request)).await)
    }

    /// Removes a sandbox with its containers. Fine when it is gone.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        absent_is_fine(self.call("RemovePodSandbox", WORK, self.runtime.clone().remove_pod_sandbox(request)).await)
    }

    /// Containers that carry all these labels.
    pub async fn containers(&self, labels: &[(&str, &str)]) -> Result<Vec<cri::Container>, CriError> {
        let filter = cri::ContainerFilter { label_selector: selector(labels), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.call("ListContainers", ASK, self.runtime.clone().list_containers(request)).await?.containers)
    }

    /// One container with its times, exit code and log.
    pub async fn container_status(&self, id: &str) -> Result<cri::ContainerStatus, CriError> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let reply = self.call("ContainerStatus", ASK, self.runtime.clone().container_status(request)).await?;
        reply.status.ok_or(CriError::Hollow { call: "ContainerStatus", missing: "a status" })
    }

    /// Makes a container without starting it; its id.
    pub async fn create_container(
        &self,
        sandbox: &str,
        config: cri::ContainerConfig,
        sandbox_config: cri::PodSandboxConfig,
    ) -> Result<String, CriError> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.into(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self.call("CreateContainer", WORK, self.runtime.clone().create_container(request)).await?.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let request = cri::StartContainerRequest { container_id: id.into() };
        self.call("StartContainer", WORK, self.runtime.clone().start_container(request)).await.map(|_| ())
    }

    /// The stop signal, `grace_s` seconds, then SIGKILL. Fine when it is gone.
    pub async fn stop_container(&self, id: &str, grace_s: i64) -> Result<(), CriError> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout: grace_s };
        let limit = WORK + Duration::from_secs(grace_s.max(0).unsigned_abs());
        absent_is_fine(self.call("StopContainer", limit, self.runtime.clone().stop_container(request)).await)
    }

    /// Removes a stopped container. Fine when it is gone.
    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        absent_is_fine(self.call("RemoveContainer", WORK, self.runtime.clone().remove_container(request)).await)
    }

    /// Tells the runtime that a container's log file was moved away.
    pub async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let request = cri::ReopenContainerLogRequest { container_id: id.into() };
        self.call("ReopenContainerLog", ASK, self.runtime.clone().reopen_container_log(request)).await.map(|_| ())
    }

    /// CPU and memory of a container.
    pub async fn stats(&self, id: &str) -> Result<cri::ContainerStats, CriError> {
        let request = cri::ContainerStatsRequest { container_id: id.into() };
        let reply = self.call("ContainerStats", ASK, self.runtime.clone().container_stats(request)).await?;
        reply.stats.ok_or(CriError::Hollow { call: "ContainerStats", missing: "stats" })
    }

    /// Runs a command to its end and collects what it said.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<cri::ExecSyncResponse, CriError> {
        let timeout = i64::try_from(limit.as_secs().max(1)).unwrap_or(i64::MAX);
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd: command, timeout };
        self.call("ExecSync", limit + ASK, self.runtime.clone().exec_sync(request)).await
    }

    /// The URL of a streaming session that runs a command.
    pub async fn exec_url(&self, request: cri::ExecRequest) -> Result<String, CriError> {
        Ok(self.call("Exec", ASK, self.runtime.clone().exec(request)).await?.url)
    }

    /// The URL of a streaming session with a container's first process.
    pub async fn attach_url(&self, request: cri::AttachRequest) -> Result<String, CriError> {
        Ok(self.call("Attach", ASK, self.runtime.clone().attach(request)).await?.url)
    }

    /// The image under this reference, if it is on this node.
    pub async fn image(&self, reference: &str) -> Result<Option<cri::Image>, CriError> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(reference)), verbose: false };
        Ok(self.call("ImageStatus", ASK, self.images.clone().image_status(request)).await?.image)
    }

    /// All images on this node.
    pub async fn image_list(&self) -> Result<Vec<cri::Image>, CriError> {
        Ok(self
            .call("ListImages", ASK, self.images.clone().list_images(cri::ListImagesRequest::default()))
            .await?
            .images)
    }

    /// Fetches an image from its registry.
    pub async fn pull(&self, reference: &str, auth: Option<cri::AuthConfig>) -> Result<String, CriError> {
        let request = cri::PullImageRequest { image: Some(image_spec(reference)), auth, sandbox_config: None };
        Ok(self.call("PullImage", PULL, self.images.clone().pull_image(request)).await?.image_ref)
    }
}

/// The labels by which an agent finds what is its own.
pub(crate) fn own(node: &str) -> [(&'static str, &str); 1] {
    [(label::NODE, node)]
}

fn image_spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: reference.into(), ..Default::default() }
}

fn selector(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn absent_is_fine<T>(answer: Result<T, CriError>) -> Result<(), CriError> {
    match answer {
        Err(error) if error.is_absent() => Ok(()),
        other => other.map(|_| ()),
    }
}
