//! From what a person types (`pvc`, `pods`, `PersistentVolumeClaim`) to a resource of the API, by asking the server
//! what it serves.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;

use crate::failure::{Code, Failure};

/// One resource the server serves.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    names: Vec<String>,
}

impl Resource {
    /// The path of its collection in a namespace (or cluster-wide when `None`).
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.api_version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{}", self.api_version) };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{}", self.plural),
        }
    }

    /// `pod/shell`, `persistentvolumeclaim/data`.
    pub(crate) fn label(&self, name: &str) -> String {
        format!("{}/{name}", self.kind.to_lowercase())
    }
}

/// Everything the server serves.
pub(crate) struct Catalogue(Vec<Resource>);

impl Catalogue {
    pub(crate) async fn read(client: &Client) -> Result<Self, Failure> {
        let mut all = Vec::new();
        add(&mut all, "v1", client.list_core_api_resources("v1").await?.resources);
        for group in client.list_api_groups().await?.groups {
            let Some(version) = group.preferred_version.or_else(|| group.versions.first().cloned()) else { continue };
            let resources = client.list_api_group_resources(&version.group_version).await?.resources;
            add(&mut all, &version.group_version, resources);
        }
        Ok(Self(all))
    }

    /// By any of its names, in any case.
    pub(crate) fn named(&self, typed: &str) -> Result<&Resource, Failure> {
        let wanted = typed.to_lowercase();
        self.0.iter().find(|resource| resource.names.contains(&wanted)).ok_or_else(|| {
            let known: Vec<&str> = self.0.iter().map(|resource| resource.plural.as_str()).collect();
            let message = format!("the server has no resource `{typed}`; it has {}", known.join(", "));
            Failure::new(Code::NotFound, message)
        })
    }

    /// By what stands in a manifest.
    pub(crate) fn of_manifest(&self, api_version: &str, kind: &str) -> Result<&Resource, Failure> {
        let found = self.0.iter().find(|resource| resource.api_version == api_version && resource.kind == kind);
        found.ok_or_else(|| {
            let message = format!("no matches for kind \"{kind}\" in version \"{api_version}\"");
            Failure::new(Code::NotFound, message)
        })
    }
}

fn add(all: &mut Vec<Resource>, api_version: &str, resources: Vec<APIResource>) {
    for resource in resources.into_iter().filter(|resource| !resource.name.contains('/')) {
        let mut names = vec![resource.name.clone(), resource.kind.to_lowercase(), resource.singular_name];
        names.extend(resource.short_names.unwrap_or_default());
        names.retain(|name| !name.is_empty());
        all.push(Resource {
            api_version: api_version.to_owned(),
            kind: resource.kind,
            plural: resource.name,
            namespaced: resource.namespaced,
            names,
        });
    }
}
