//! The image of a container: there already, pulled, or refused with the cause, as its pull policy says.

use base64::Engine as _;
use cairn_proto::cri;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::container::non_root;
use crate::cri::{CriError, Runtime};
use crate::report::{Events, about};

/// Pulls at a time on this node; the others wait their turn.
const PULLS: usize = 3;
const DOCKER_HUB: &str = "docker.io";

/// Why a container cannot have its image.
#[derive(Clone, Debug)]
pub(crate) struct ImageProblem {
    /// For the container's status: `ErrImageNeverPull`, `ImagePullBackOff` ..
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Fetches images, a few at a time.
pub(crate) struct Images {
    runtime: Runtime,
    client: Client,
    events: Events,
    places: Semaphore,
}

impl Images {
    pub(crate) fn new(runtime: Runtime, client: Client, events: Events) -> Images {
        Images { runtime, client, events, places: Semaphore::new(PULLS) }
    }

    /// Makes sure that the container's image is here; the reference to create it with.
    pub(crate) async fn ensure(&self, pod: &Pod, container: &Container) -> Result<String, ImageProblem> {
        let reference = container.image.clone().unwrap_or_default();
        let present = self.find(&reference).await?;
        let image = match (policy(container), present) {
            (Policy::Never, None) => {
                let message = format!(
                    "Container image \"{reference}\" is not present with pull policy of Never; import it on this \
                     node, or use imagePullPolicy IfNotPresent"
                );
                return Err(ImageProblem { reason: "ErrImageNeverPull", message });
            }
            (Policy::Never | Policy::IfNotPresent, Some(image)) => {
                let message = format!("Container image \"{reference}\" already present on machine");
                self.events.normal(about(pod, Some(&container.name)), "Pulled", message);
                image
            }
            (Policy::Always | Policy::IfNotPresent, present) => {
                self.pull(pod, container, &reference, present.is_some()).await?;
                self.find(&reference).await?.ok_or_else(|| ImageProblem {
                    reason: "ImageInspectError",
                    message: format!("image \"{reference}\" was pulled and is not there"),
                })?
            }
        };
        check_user(pod, container, &image)?;
        Ok(reference)
    }

    async fn find(&self, reference: &str) -> Result<Option<cri::Image>, ImageProblem> {
        self.runtime.image(reference).await.map_err(|error| match error {
            CriError::Refused { code: tonic::Code::InvalidArgument | tonic::Code::Unknown, message, .. } => {
                let message = format!("image \"{reference}\" is not a valid reference: {message}");
                ImageProblem { reason: "InvalidImageName", message }
            }
            other => ImageProblem { reason: "ImageInspectError", message: other.to_string() },
        })
    }

    async fn pull(&self, pod: &Pod, container: &Container, reference: &str, present: bool) -> Result<(), ImageProblem> {
        let _place = self.places.acquire().await;
        self.events.normal(about(pod, Some(&container.name)), "Pulling", format!("Pulling image \"{reference}\""));
        let mut outcome = self.runtime.pull(reference, None).await.map(drop);
        // Credentials are shown only to a registry that wants them.
        if outcome.is_err() {
            for auth in self.credentials(pod, reference).await {
                outcome = self.runtime.pull(reference, Some(auth)).await.map(drop);
                if outcome.is_ok() {
                    break;
                }
            }
        }
        let Err(error) = outcome else {
            let message = format!("Successfully pulled image \"{reference}\"");
            self.events.normal(about(pod, Some(&container.name)), "Pulled", message);
            return Ok(());
        };
        let cause = match error {
            CriError::Refused { message, .. } => message,
            other => other.to_string(),
        };
        let remedy = match present {
            true => "; an image of that name is on this node: imagePullPolicy IfNotPresent uses it",
            false => "; check the name and that this node reaches the registry, or import the image on this node",
        };
        let message = format!("Failed to pull image \"{reference}\": {cause}{remedy}");
        Err(ImageProblem { reason: "ImagePullBackOff", message })
    }

    /// Credentials for the image's registry from the pod's imagePullSecrets.
    async fn credentials(&self, pod: &Pod, reference: &str) -> Vec<cri::AuthConfig> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let mut found = Vec::new();
        for name in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            if let Ok(Some(secret)) = secrets.get_opt(&name.name).await {
                found.extend(credential(&secret, registry(reference)));
            }
        }
        found
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// As given; by default Always for the tag `latest` and for no tag, else IfNotPresent.
fn policy(container: &Container) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let name = image.rsplit('/').next().unwrap_or_default();
            let pinned = name.contains('@') || name.split_once(':').is_some_and(|(_, tag)| tag != "latest");
            if pinned { Policy::IfNotPresent } else { Policy::Always }
        }
    }
}

fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => DOCKER_HUB,
    }
}

/// The entry for a registry in a secret of type `kubernetes.io/dockerconfigjson`.
fn credential(secret: &Secret, registry: &str) -> Option<cri::AuthConfig> {
    let bytes = &secret.data.as_ref()?.get(".dockerconfigjson")?.0;
    let config: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let host = |key: &str| {
        let bare = key.trim_start_matches("https://").trim_start_matches("http://");
        let host = bare.split('/').next().unwrap_or_default();
        host == registry || (registry == DOCKER_HUB && host == "index.docker.io")
    };
    let (_, entry) = config["auths"].as_object()?.iter().find(|(key, _)| host(key))?;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok()?;
        let pair = String::from_utf8(decoded).ok()?;
        (username, password) = pair.split_once(':').map(|(user, word)| (user.to_owned(), word.to_owned()))?;
    }
    Some(cri::AuthConfig { username, password, server_address: registry.to_owned(), ..Default::default() })
}

/// runAsNonRoot against the user that the pod or the image names.
fn check_user(pod: &Pod, container: &Container, image: &cri::Image) -> Result<(), ImageProblem> {
    let Some((demanded, user)) = pod.spec.as_ref().map(|spec| non_root(spec, container)) else { return Ok(()) };
    let own = image.uid.as_ref().map(|uid| uid.value);
    let problem = |message: &str| ImageProblem { reason: "CreateContainerConfigError", message: message.to_owned() };
    match (demanded, user.or(own), image.username.as_str()) {
        (false, ..) => Ok(()),
        (true, Some(0), _) | (true, None, "") => Err(problem(
            "container has runAsNonRoot and would run as root; set securityContext.runAsUser, or use another image",
        )),
        (true, Some(_), _) => Ok(()),
        (true, None, _) => Err(problem(
            "container has runAsNonRoot and the image's user is a name that cannot be verified; set \
             securityContext.runAsUser to its number",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{Policy, credential, policy, registry};
    use serde_json::json;

    #[test]
    fn default_policies() {
        for (image, expected) in [
            ("busybox", Policy::Always),
            ("busybox:latest", Policy::Always),
            ("busybox:1.36", Policy::IfNotPresent),
            ("localhost:5000/busybox", Policy::Always),
            ("localhost:5000/a/busybox:1", Policy::IfNotPresent),
            ("busybox@sha256:00", Policy::IfNotPresent),
        ] {
            let container = serde_json::from_value(json!({"name": "c", "image": image})).expect("a container");
            assert_eq!(policy(&container), expected, "{image}");
        }
    }

    #[test]
    fn credentials_are_found_by_registry() {
        use base64::Engine as _;
        let auth = base64::engine::general_purpose::STANDARD.encode("me:pass:word");
        let config = json!({"auths": {"https://index.docker.io/v1/": {"auth": auth}}}).to_string();
        let data = base64::engine::general_purpose::STANDARD.encode(config);
        let secret = serde_json::from_value(json!({"data": {".dockerconfigjson": data}})).expect("a secret");
        let found = credential(&secret, registry("busybox:1")).expect("there");
        assert_eq!((found.username.as_str(), found.password.as_str()), ("me", "pass:word"));
        assert!(credential(&secret, registry("ghcr.io/x/y")).is_none());
    }
}
