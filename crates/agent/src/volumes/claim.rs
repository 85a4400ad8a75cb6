//! From a pod's claim to the volume behind it: reads the claim, the persistent volume, the driver's CSIDriver object
//! and the attachment. Reads only; every refusal names its cause.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret, SecretReference};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};

use super::error::{AttachCause, VolumeError};
use super::record::VolumeId;

/// How long one attempt waits for an attachment before it says what is missing and tries again.
const ATTACH_PATIENCE: Duration = Duration::from_secs(4);

/// What stands behind a claim.
#[derive(Clone, Debug)]
pub(crate) enum Behind {
    Csi(Box<CsiSource>),
    /// A static volume that is a path of this node.
    HostPath(String),
}

/// A CSI volume as its persistent volume describes it.
#[derive(Clone, Debug)]
pub(crate) struct CsiSource {
    pub(crate) volume: VolumeId,
    pub(crate) name: String,
    pub(crate) fs_type: String,
    pub(crate) read_only: bool,
    pub(crate) block: bool,
    pub(crate) access_modes: Vec<String>,
    pub(crate) mount_options: Vec<String>,
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) stage_secret: Option<SecretReference>,
    pub(crate) publish_secret: Option<SecretReference>,
    pub(crate) attach_required: bool,
    pub(crate) pod_info: bool,
    /// `fsGroupPolicy` of the driver.
    pub(crate) fs_group_policy: Option<String>,
}

/// Reads the API server's side of volumes.
#[derive(Clone)]
pub(crate) struct Claims {
    pub(crate) client: Client,
    pub(crate) node: String,
}

impl Claims {
    /// The volume behind a claim of this namespace.
    pub(crate) async fn behind(&self, namespace: &str, claim: &str) -> Result<Behind, VolumeError> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let missing = || VolumeError::NoClaim { claim: claim.to_owned(), namespace: namespace.to_owned() };
        let object = claims.get_opt(claim).await.map_err(|error| api("claim", claim, &error))?.ok_or_else(missing)?;
        let unbound = || VolumeError::Unbound { claim: claim.to_owned() };
        let phase = object.status.as_ref().and_then(|status| status.phase.as_deref());
        let name = object.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
        let name = name.filter(|_| phase == Some("Bound")).ok_or_else(unbound)?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let lost = || VolumeError::LostVolume { volume: name.clone(), claim: claim.to_owned() };
        let volume = volumes.get_opt(&name).await.map_err(|error| api("volume", &name, &error))?.ok_or_else(lost)?;
        let spec = volume.spec.unwrap_or_default();
        let owner = spec.claim_ref.as_ref().and_then(|owner| owner.uid.as_ref());
        if owner.is_some() && owner != object.metadata.uid.as_ref() {
            return Err(VolumeError::ForeignVolume { volume: name, claim: claim.to_owned() });
        }
        if let Some(path) = spec.host_path.as_ref().map(|source| &source.path) {
            return Ok(Behind::HostPath(path.clone()));
        }
        if let Some(path) = spec.local.as_ref().map(|source| &source.path) {
            return Ok(Behind::HostPath(path.clone()));
        }
        let Some(csi) = spec.csi.clone() else {
            let what = "a persistentvolume that is neither csi nor hostPath nor local";
            return Err(VolumeError::Unsupported { volume: name, what, remedy: "; use a CSI driver for it" });
        };
        let driver = self.driver(&csi.driver).await?;
        Ok(Behind::Csi(Box::new(CsiSource {
            volume: VolumeId { driver: csi.driver, handle: csi.volume_handle },
            name,
            fs_type: csi.fs_type.unwrap_or_default(),
            read_only: csi.read_only.unwrap_or(false),
            block: spec.volume_mode.as_deref() == Some("Block"),
            access_modes: spec.access_modes.unwrap_or_default(),
            mount_options: spec.mount_options.unwrap_or_default(),
            attributes: csi.volume_attributes.unwrap_or_default(),
            stage_secret: csi.node_stage_secret_ref,
            publish_secret: csi.node_publish_secret_ref,
            // Without a CSIDriver object Kubernetes assumes that volumes have to be attached.
            attach_required: driver.as_ref().and_then(|driver| driver.spec.attach_required).unwrap_or(true),
            pod_info: driver.as_ref().and_then(|driver| driver.spec.pod_info_on_mount).unwrap_or(false),
            fs_group_policy: driver.and_then(|driver| driver.spec.fs_group_policy),
        })))
    }

    async fn driver(&self, name: &str) -> Result<Option<CSIDriver>, VolumeError> {
        let drivers: Api<CSIDriver> = Api::all(self.client.clone());
        drivers.get_opt(name).await.map_err(|error| api("CSIDriver", name, &error))
    }

    /// Waits until the volume is attached to this node; the attachment's metadata is the driver's publish context.
    pub(crate) async fn attached(&self, source: &CsiSource) -> Result<BTreeMap<String, String>, VolumeError> {
        let attachments: Api<VolumeAttachment> = Api::all(self.client.clone());
        let name = source.volume.attachment_name(&self.node);
        // The usual case costs one GET and no watch.
        let mut cause = match judge(attachments.get_opt(&name).await.ok().flatten().as_ref()) {
            Ok(context) => return Ok(context),
            Err(cause) => cause,
        };
        let waiting = async {
            let mut stream = std::pin::pin!(watch_object(attachments, &name));
            while let Some(event) = stream.next().await {
                match event.map(|object| judge(object.as_ref())) {
                    Ok(Ok(context)) => return Some(context),
                    Ok(Err(news)) => cause = news,
                    // The stream lists again by itself; not at full speed while the API server is away.
                    Err(watcher::Error::NoResourceVersion) => return None,
                    Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
                }
            }
            None
        };
        match tokio::time::timeout(ATTACH_PATIENCE, waiting).await {
            Ok(Some(context)) => Ok(context),
            _ => Err(VolumeError::NotAttached { volume: source.name.clone(), node: self.node.clone(), cause }),
        }
    }

    /// The data of a secret that a persistent volume refers to.
    pub(crate) async fn secret(
        &self,
        volume: &str,
        reference: Option<&SecretReference>,
    ) -> Result<BTreeMap<String, String>, VolumeError> {
        let Some(reference) = reference else { return Ok(BTreeMap::new()) };
        let namespace = reference.namespace.clone().unwrap_or_default();
        let name = reference.name.clone().unwrap_or_default();
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let found = secrets.get_opt(&name).await.map_err(|error| api("secret", &name, &error))?;
        let missing = || VolumeError::NoSecret { volume: volume.to_owned(), namespace, secret: name };
        let data = found.ok_or_else(missing)?.data.unwrap_or_default();
        Ok(data.into_iter().filter_map(|(key, value)| Some((key, String::from_utf8(value.0).ok()?))).collect())
    }
}

pub(crate) fn api(kind: &str, name: &str, error: &kube::Error) -> VolumeError {
    VolumeError::Api(format!("{kind} {name}"), error.to_string())
}

/// Whether an attachment may be used, and if not, why.
fn judge(attachment: Option<&VolumeAttachment>) -> Result<BTreeMap<String, String>, AttachCause> {
    let Some(attachment) = attachment else { return Err(AttachCause::Absent) };
    if attachment.metadata.deletion_timestamp.is_some() {
        return Err(AttachCause::Detaching);
    }
    let status = attachment.status.as_ref();
    if let Some(status) = status.filter(|status| status.attached) {
        return Ok(status.attachment_metadata.clone().unwrap_or_default());
    }
    let message = status.and_then(|status| status.attach_error.as_ref()?.message.clone());
    Err(message.map_or(AttachCause::Pending, AttachCause::Failed))
}

#[cfg(test)]
mod tests {
    use super::{AttachCause, judge};
    use k8s_openapi::api::storage::v1::VolumeAttachment;
    use serde_json::json;

    #[test]
    fn only_a_living_attachment_counts() {
        let judged = |value: serde_json::Value| {
            let mut value = value;
            value["spec"] = json!({"attacher": "d", "nodeName": "n", "source": {}});
            if value.get("metadata").is_none() {
                value["metadata"] = json!({});
            }
            judge(Some(&serde_json::from_value::<VolumeAttachment>(value).expect("an attachment")))
        };
        assert_eq!(judge(None), Err(AttachCause::Absent));
        assert_eq!(judged(json!({})), Err(AttachCause::Pending));
        let failed = json!({"status": {"attached": false, "attachError": {"message": "no quorum"}}});
        assert_eq!(judged(failed), Err(AttachCause::Failed("no quorum".into())));
        let attached = json!({"status": {"attached": true, "attachmentMetadata": {"generation": "2"}}});
        assert_eq!(judged(attached.clone()).expect("attached")["generation"], "2");
        let mut going = attached;
        going["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert_eq!(judged(going), Err(AttachCause::Detaching));
    }
}
