//! Subresources that are not objects of their own: binding a pod to a node, letting a namespace go.

use super::change::{Edit, Part};
use super::create::accept;
use super::{Api, Call, Served};
use crate::error::{ApiError, Cause, Subject};
use crate::http::body;
use crate::http::respond::{self, Body};
use crate::object;
use crate::schema;
use crate::time;
use http::Response;
use serde_json::{Value, json};

impl Api {
    /// POST of `pods/NAME/binding`: the pod gets its node, once.
    pub(super) async fn bind(
        &self,
        served: &Served,
        namespace: &str,
        name: &str,
        call: &Call,
    ) -> Result<Response<Body>, ApiError> {
        let mut binding = body::parse(call.media_type(), &call.body)?;
        let message = schema::message("Binding").expect("the table has it");
        body::conform(message, "v1", &mut binding, &call.query)?;
        let node = object::text(&binding, "/target/name").to_owned();
        let kind = object::text(&binding, "/target/kind");
        let subject = || Subject { group: String::new(), kind: "Binding".to_owned(), name: name.to_owned() };
        if node.is_empty() {
            return Err(ApiError::Invalid { subject: subject(), causes: vec![Cause::required("target.name", "")] });
        }
        if !matches!(kind, "" | "Node") {
            let causes = vec![Cause::not_supported("target.kind", &binding["target"]["kind"], &["Node", "<empty>"])];
            return Err(ApiError::Invalid { subject: subject(), causes });
        }
        let meant = object::uid(&binding).to_owned();
        let edit = Edit {
            key: served.resource.key(namespace, name),
            part: Part::Decided,
            manager: Some(&call.manager(served.resource, "")),
            dry_run: call.dry_run()?,
        };
        self.change(served, &edit, |pod| bound(pod, &node, &meant)).await?;
        Ok(respond::json(
            201,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
        ))
    }

    /// PUT of `namespaces/NAME/finalize`: sets `spec.finalizers`.
    pub(super) async fn finalize(&self, served: &Served, name: &str, call: &Call) -> Result<Response<Body>, ApiError> {
        let mut wanted = body::parse(call.media_type(), &call.body)?;
        accept(served.resource, &mut wanted, call)?;
        let finalizers = wanted.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
        let meant = object::text(&wanted, "/metadata/resourceVersion").to_owned();
        let edit = Edit { key: name.to_owned(), part: Part::Decided, manager: None, dry_run: call.dry_run()? };
        let changed = self
            .change(served, &edit, |old| {
                let mut new = old.clone();
                object::child(&mut new, "spec").insert("finalizers".to_owned(), finalizers.clone());
                if !meant.is_empty() {
                    object::metadata(&mut new).insert("resourceVersion".to_owned(), json!(meant));
                }
                Ok(new)
            })
            .await?;
        Ok(respond::json_text(200, changed.json.clone()))
    }
}

fn bound(pod: &Value, node: &str, meant: &str) -> Result<Value, ApiError> {
    let name = object::name(pod);
    let conflict = |why: String| {
        let subject = Subject { group: String::new(), kind: "pods/binding".to_owned(), name: name.to_owned() };
        Err(ApiError::Conflict { subject, why })
    };
    if !meant.is_empty() && meant != object::uid(pod) {
        return conflict(format!(
            "Precondition failed: UID in precondition: {meant}, UID in object meta: {}",
            object::uid(pod)
        ));
    }
    if object::is_deleting(pod) {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let has = object::text(pod, "/spec/nodeName");
    if !has.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {has:?}"));
    }
    let mut new = pod.clone();
    object::child(&mut new, "spec").insert("nodeName".to_owned(), json!(node));
    let status = object::child(&mut new, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(
            json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": time::now()}),
        );
    }
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::bound;
    use serde_json::json;

    #[test]
    fn a_pod_is_bound_once() {
        let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": {},
            "status": {"conditions": [{"type": "PodScheduled", "status": "False"}]}});
        let on_node = bound(&pod, "n", "u").expect("bound");
        assert_eq!(on_node["spec"]["nodeName"], "n");
        assert_eq!(on_node["status"]["conditions"][0]["status"], "True");
        let again = bound(&on_node, "m", "").expect_err("refused");
        assert_eq!(
            again.to_string(),
            "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\""
        );
        assert!(bound(&pod, "n", "other").is_err());
        let going = json!({"metadata": {"name": "p", "deletionTimestamp": "t"}});
        assert!(bound(&going, "n", "").is_err());
    }
}
