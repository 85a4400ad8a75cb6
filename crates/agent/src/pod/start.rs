//! Starts one container: image, environment, mounts, create, start, the postStart hook. Each failure is a reason for
//! the container's status and a sentence for an event.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cairn_proto::cri;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, VolumeMount};
use kube::Api;

use super::container::{self, Ingredients};
use super::context::Context;
use super::env::{self, Sources};
use super::handler::Action;
use super::image::ImageProblem;
use super::observe::Observed;
use super::spec::{self, PodKey};
use super::{dns, sandbox, words};
use crate::report::about;
use crate::volumes::{Mounted, pin};

/// How long a postStart hook may take before it counts as failed.
const POST_START_LIMIT: Duration = Duration::from_secs(120);

/// Why a container was not started.
#[derive(Clone, Debug)]
pub(crate) struct StartProblem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl From<ImageProblem> for StartProblem {
    fn from(problem: ImageProblem) -> StartProblem {
        StartProblem { reason: problem.reason, message: problem.message }
    }
}

/// The container to start and where.
pub(crate) struct Start<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) key: &'a PodKey,
    pub(crate) container: &'a Container,
    pub(crate) sandbox: &'a str,
    pub(crate) attempt: u32,
    pub(crate) observed: &'a Observed,
    pub(crate) mounted: &'a Mounted,
}

fn config_error(message: impl ToString) -> StartProblem {
    StartProblem { reason: "CreateContainerConfigError", message: message.to_string() }
}

impl Context {
    /// Makes sure that the image is there: the part of a start that may take long and may be interrupted.
    pub(crate) async fn image_for(&self, pod: &Pod, container: &Container) -> Result<String, StartProblem> {
        Ok(self.images.ensure(pod, container).await?)
    }

    /// Creates and starts the container.
    pub(crate) async fn start(&self, start: &Start<'_>, image: String) -> Result<(), StartProblem> {
        let Start { pod, key, container, attempt, .. } = *start;
        let with = Ingredients {
            image,
            environment: self.environment(start).await?,
            mounts: self.mounts(start).await?,
            attempt,
            node_memory: self.memory_bytes,
        };
        let sandbox_attempt = start.observed.ready_sandbox().map_or(0, |sandbox| sandbox.attempt);
        let sandbox_config = sandbox::sandbox_config(pod, key, sandbox_attempt, &self.node);
        let logs = sandbox::log_directory(&self.node.log_root, key).join(&container.name);
        std::fs::create_dir_all(&logs)
            .map_err(|error| config_error(format!("making the log directory {}: {error}", logs.display())))?;
        let config = container::container_config(pod, key, container, &self.node, with);
        let created = self.runtime.create_container(start.sandbox, config, sandbox_config).await;
        let failed = |reason| {
            move |error: crate::cri::CriError| StartProblem { reason, message: format!("{}: {error}", container.name) }
        };
        let id = created.map_err(failed("CreateContainerError"))?;
        let whom = || about(pod, Some(&container.name));
        self.events.normal(whom(), "Created", format!("Created container: {}", container.name));
        self.runtime.start_container(&id).await.map_err(failed("RunContainerError"))?;
        self.events.normal(whom(), "Started", format!("Started container {}", container.name));
        self.post_start(start, &id).await
    }

    async fn post_start(&self, start: &Start<'_>, id: &str) -> Result<(), StartProblem> {
        let Start { pod, container, .. } = *start;
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
            return Ok(());
        };
        let around = self.surroundings(start.observed, spec::host_network(pod));
        let address = around.pod_addresses.first().cloned().unwrap_or_default();
        let action = Action::of_hook(hook, container, &address);
        let Err(message) = action.run(&self.runtime, id, POST_START_LIMIT).await else { return Ok(()) };
        let message = format!("PostStartHook failed, so the container is killed: {message}");
        let stopped = self.runtime.stop_container(id, spec::grace_s(pod)).await;
        tracing::debug!(?stopped, "stopped after its hook failed");
        Err(StartProblem { reason: "PostStartHookError", message })
    }

    async fn environment(&self, start: &Start<'_>) -> Result<Vec<(String, String)>, StartProblem> {
        let Start { pod, key, container, .. } = *start;
        let (config_maps, secrets) = env::references(container);
        let mut sources = Sources::default();
        let unreachable = |error: kube::Error| config_error(format!("the API server did not answer: {error}"));
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &key.namespace);
        for name in config_maps {
            if let Some(found) = api.get_opt(&name).await.map_err(unreachable)? {
                sources.config_maps.insert(name, found);
            }
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        for name in secrets {
            if let Some(found) = api.get_opt(&name).await.map_err(unreachable)? {
                sources.secrets.insert(name, found);
            }
        }
        let around = self.surroundings(start.observed, spec::host_network(pod));
        env::environment(pod, container, &sources, &around).map_err(config_error)
    }

    async fn mounts(&self, start: &Start<'_>) -> Result<Vec<cri::Mount>, StartProblem> {
        let Start { pod, key, container, attempt, .. } = *start;
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            mounts.push(self.volume_mount(start, index, mount).await?);
        }
        let pod_dir = self.volumes.pod_dir(&key.uid);
        let claimed = |path: &str| {
            container.volume_mounts.iter().flatten().any(|mount| mount.mount_path.trim_end_matches('/') == path)
        };
        let read_only_root =
            container.security_context.as_ref().and_then(|context| context.read_only_root_filesystem) == Some(true);
        if !claimed("/etc/hosts") && !spec::host_network(pod) {
            let hosts = self.hosts_file(start, &pod_dir)?;
            mounts.push(plain("/etc/hosts", &hosts, read_only_root));
        }
        let words = words::file(&pod_dir, &container.name, attempt);
        let made = words.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| empty_file(&words));
        made.map_err(|error| config_error(format!("making the termination message file: {error}")))?;
        mounts.push(plain(container::termination_path(container), &words, false));
        Ok(mounts)
    }

    /// The pod's own hosts file, which its containers share.
    fn hosts_file(&self, start: &Start<'_>, pod_dir: &Path) -> Result<PathBuf, StartProblem> {
        let path = pod_dir.join("etc-hosts");
        if !path.exists() {
            let addresses = start.observed.ready_sandbox().map(|sandbox| sandbox.addresses.clone()).unwrap_or_default();
            let text = dns::hosts(start.pod, &sandbox::hostname(start.pod, &self.node), &addresses);
            let written = std::fs::create_dir_all(pod_dir).and_then(|()| std::fs::write(&path, text));
            written.map_err(|error| config_error(format!("writing {}: {error}", path.display())))?;
        }
        Ok(path)
    }

    async fn volume_mount(
        &self,
        start: &Start<'_>,
        index: usize,
        mount: &VolumeMount,
    ) -> Result<cri::Mount, StartProblem> {
        let missing = || config_error(format!("volumeMount \"{}\" names no volume of the pod", mount.name));
        let place = start.mounted.get(&mount.name).ok_or_else(missing)?;
        let subpath = match (&mount.sub_path, &mount.sub_path_expr) {
            (Some(path), _) => path.clone(),
            (None, Some(text)) => env::expand(text, &self.environment(start).await?),
            (None, None) => String::new(),
        };
        let source = match subpath.as_str() {
            "" => place.path.clone(),
            path => {
                let pins = self.volumes.subpaths(&start.key.uid);
                let target = pins.join(&mount.name).join(&start.container.name).join(index.to_string());
                let (volume, part) = (place.path.clone(), path.to_owned());
                // The volume may be one that does not answer: not on a thread that others need.
                let pinned = tokio::task::spawn_blocking(move || pin(&volume, &part, &target)).await;
                pinned.map_err(std::io::Error::other).flatten().map_err(|error| {
                    config_error(format!("subPath \"{path}\" of volume \"{}\": {error}", mount.name))
                })?
            }
        };
        let propagation = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => cri::MountPropagation::PropagationHostToContainer,
            Some("Bidirectional") => cri::MountPropagation::PropagationBidirectional,
            _ => cri::MountPropagation::PropagationPrivate,
        };
        Ok(cri::Mount {
            container_path: absolute(start.container, &mount.mount_path),
            host_path: source.display().to_string(),
            readonly: place.read_only || mount.read_only.unwrap_or(false),
            propagation: propagation.into(),
            selinux_relabel: false,
        })
    }
}

fn plain(inside: &str, outside: &Path, readonly: bool) -> cri::Mount {
    cri::Mount {
        container_path: inside.to_owned(),
        host_path: outside.display().to_string(),
        readonly,
        ..Default::default()
    }
}

/// A relative mount path counts from the working directory.
fn absolute(container: &Container, path: &str) -> String {
    match (path.starts_with('/'), container.working_dir.as_deref()) {
        (false, Some(dir)) => PathBuf::from(dir).join(path).display().to_string(),
        (false, None) => format!("/{path}"),
        (true, _) => path.to_owned(),
    }
}

/// Writable for whatever user the container runs as.
fn empty_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::File::create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
}
