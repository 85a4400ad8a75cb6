//! Which groups, versions and kinds there are, in the plain and the aggregated form, all from the table.

use super::review::REVIEWS;
use crate::http::respond::{self, Body};
use crate::registry::{Resource, TABLE};
use http::Response;
use serde_json::{Value, json};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Groups in the order of the table, then those of the reviews. All have the one version v1.
fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&'static str> = Vec::new();
    for group in TABLE.iter().map(|row| row.group).chain(REVIEWS.iter().map(|(group, _, _)| *group)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// `GET /version`.
pub(super) fn version() -> Value {
    json!({"major": "1", "minor": "32", "gitVersion": format!("v1.32.0+cairn-{}", env!("CARGO_PKG_VERSION")), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": "linux/amd64"})
}

/// Whether the client reads aggregated discovery in the version written here.
fn wants_aggregated(accept: &str) -> bool {
    accept.split(',').any(|wanted| {
        let parameters: Vec<&str> = wanted.split(';').map(str::trim).collect();
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"].iter().all(|part| parameters.contains(part))
    })
}

/// `GET /api`.
pub(super) fn core_versions(accept: &str) -> Response<Body> {
    if wants_aggregated(accept) {
        return respond::json_as(AGGREGATED, &aggregated(|group| group.is_empty()));
    }
    respond::json(200, &json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
}

/// `GET /apis`.
pub(super) fn group_list(accept: &str) -> Response<Body> {
    if wants_aggregated(accept) {
        return respond::json_as(AGGREGATED, &aggregated(|group| !group.is_empty()));
    }
    let groups: Vec<Value> = groups().into_iter().filter(|group| !group.is_empty()).map(group_value).collect();
    respond::json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

/// `GET /apis/G`.
pub(super) fn group(name: &str) -> Option<Value> {
    let found = groups().into_iter().find(|group| !group.is_empty() && *group == name)?;
    let mut group = group_value(found);
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    Some(group)
}

fn group_value(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// `GET /api/v1` and `/apis/G/V`.
pub(super) fn resources(group: &str, version: &str) -> Option<Value> {
    if version != "v1" || !groups().contains(&group) {
        return None;
    }
    let mut list = Vec::new();
    for row in TABLE.iter().filter(|row| row.group == group) {
        list.push(
            json!({"name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
            "verbs": VERBS, "shortNames": row.short_names, "categories": row.categories}),
        );
        for (name, kind, verbs) in subresources(row) {
            list.push(
                json!({"name": format!("{}/{name}", row.plural), "singularName": "", "namespaced": row.namespaced,
                "kind": kind, "verbs": verbs}),
            );
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(of, _, _)| *of == group) {
        list.push(json!({"name": plural, "singularName": plural.trim_end_matches('s'), "namespaced": false,
            "kind": kind, "verbs": ["create"]}));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}))
}

fn subresources(row: &Resource) -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    let mut all: Vec<_> = row.subs.iter().map(|sub| (sub.name(), sub.kind(row), sub.verbs().to_vec())).collect();
    if row.status {
        all.push(("status", row.kind, vec!["get", "patch", "update"]));
    }
    all
}

fn aggregated(wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = groups()
        .into_iter()
        .filter(|group| wanted(group))
        .map(|group| {
            let mut resources: Vec<Value> = TABLE.iter().filter(|row| row.group == group).map(aggregated_resource).collect();
            for (_, plural, kind) in REVIEWS.iter().filter(|(of, _, _)| *of == group) {
                resources.push(json!({"resource": plural, "responseKind": {"group": group, "version": "v1", "kind": kind},
                    "scope": "Cluster", "singularResource": plural.trim_end_matches('s'), "verbs": ["create"]}));
            }
            let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
            json!({"metadata": metadata, "versions": [{"version": "v1", "freshness": "Current", "resources": resources}]})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn aggregated_resource(row: &Resource) -> Value {
    let kind = |kind: &str| json!({"group": row.group, "version": row.version, "kind": kind});
    let mut resource = json!({"resource": row.plural, "responseKind": kind(row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": row.singular, "verbs": VERBS,
        "shortNames": row.short_names, "categories": row.categories});
    let subs = subresources(row);
    if !subs.is_empty() {
        let subs = subs
            .into_iter()
            .map(|(name, of, verbs)| json!({"subresource": name, "responseKind": kind(of), "verbs": verbs}));
        resource["subresources"] = subs.collect();
    }
    resource
}

#[cfg(test)]
mod tests {
    use super::{aggregated, group, resources, wants_aggregated};

    #[test]
    fn only_the_version_that_the_client_reads() {
        assert!(wants_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json"
        ));
        assert!(!wants_aggregated(
            "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"
        ));
    }

    #[test]
    fn both_forms_say_the_same() {
        let plain = resources("storage.k8s.io", "v1").expect("served");
        let names: Vec<&str> =
            plain["resources"].as_array().expect("list").iter().filter_map(|r| r["name"].as_str()).collect();
        assert!(names.contains(&"storageclasses") && names.contains(&"volumeattachments/status"), "{names:?}");
        assert!(resources("storage.k8s.io", "v1beta1").is_none() && resources("apps", "v1").is_none());
        assert_eq!(group("storage.k8s.io").expect("served")["preferredVersion"]["groupVersion"], "storage.k8s.io/v1");
        let core = aggregated(|group| group.is_empty());
        let pods = core["items"][0]["versions"][0]["resources"]
            .as_array()
            .expect("list")
            .iter()
            .find(|r| r["resource"] == "pods");
        assert!(pods.is_some_and(|pods| {
            pods["subresources"].as_array().is_some_and(|subs| subs.iter().any(|s| s["subresource"] == "log"))
        }));
    }
}
